"""`dsdmae denoise` from the command line: where results go, what they are called, and what is said of them.

What is kept of a picture is in test_denoise_kept.py, what is refused in test_denoise_refused.py, the files of weights
in test_denoisers.py.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import Run, listing, look, one_line
from PIL import Image

from dsdmae_cli.pictures.outcome import Done
from dsdmae_cli.report import counted


def test_a_file_gets_one_beside_it(denoise: Run, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.jpg")
    code, out, err = denoise(tmp_path / "a.jpg")
    assert (code, err) == (0, "")
    assert listing(tmp_path) == {"a.jpg", "a.denoised.png"}
    assert out.startswith(f"{tmp_path / 'a.denoised.png'}  50x37 RGB, ")
    assert " of 255" in out
    assert look(tmp_path / "a.denoised.png").size == (50, 37)


def test_folders_globs_and_names_that_meet(denoise: Run, photo: Image.Image, tmp_path: Path) -> None:
    for name in ("in/a.png", "in/a.jpg", "in/deep/b.png", "in/.hidden.png", "in/old.denoised.png", "c1.png", "c2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photo.save(tmp_path / name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    assert denoise(tmp_path / "in", tmp_path / "c*.png", tmp_path / "c1.png", "--out", f"{tmp_path}/out/")[0] == 0
    pictures = {"a.jpg.png", "a.png.png", "deep", "deep/b.png", "c1.png", "c2.png"}
    assert listing(tmp_path / "out") == pictures | {"report.html"}


def test_what_results_are_called(denoise: Run, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.png")
    assert denoise(tmp_path, "--out", tmp_path)[0] == 0  # its own folder
    assert denoise(tmp_path, "--suffix", "-clean")[0] == 0
    assert denoise(tmp_path, "--suffix", "-clean", "--out", tmp_path / "out")[0] == 0
    assert (
        denoise(tmp_path, "--suffix", "-clean", "--out", tmp_path / "out", "--force")[0] == 0
    )  # results are no pictures
    assert denoise(tmp_path, "--corrupt", "1", "--out", tmp_path / "out")[0] == 0
    assert denoise(tmp_path / "a.png", "--suffix", "", "--out", tmp_path / "plain")[0] == 0
    assert listing(tmp_path) == {
        "a.png", "a.denoised.png", "a-clean.png", "out", "out/a-clean.png", "out/a.triptych.png",
        "out/a-clean.triptych.png", "out/report.html", "plain", "plain/a.png",
    }  # fmt: skip


def test_a_folder_of_results_has_a_page(denoise: Run, photo: Image.Image, tmp_path: Path) -> None:
    given, out = tmp_path / "my pictures", tmp_path / "out"
    given.mkdir()
    photo.save(given / "a<b>.png")
    photo.save(given / "漢字.png")
    (given / "broken.png").write_text("no picture")
    assert denoise(given, "--out", out)[0] == 1
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "2 pictures were denoised in " in page
    assert "1 failed." in page
    assert page.count("<img ") == 8  # each before and after, and a part of it magnified
    assert 'alt="a&lt;b&gt;.png: given"' in page
    assert "漢字.png" in page
    assert "…/my pictures/broken.png" in page
    for absent in ("a<b>", str(tmp_path), "http:"):
        assert absent not in page
    # What stayed as it was is said, and not shown beside itself. A page of ours is replaced, a stranger's file is not.
    assert denoise(given / "a<b>.png", given / "漢字.png", "--out", out, "--force", "--strength", "0")[0] == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert ("2 of them unchanged." in page, page.count("<img ")) == (True, 0)
    assert denoise(given / "a<b>.png", given / "漢字.png", "--out", out, "--force")[0] == 0
    assert "1 failed." not in (out / "report.html").read_text(encoding="utf-8")
    (out / "report.html").write_text("mine")
    assert denoise(given / "a<b>.png", given / "漢字.png", "--out", out, "--force")[0] == 0
    assert (out / "report.html").read_text() == "mine"


def test_a_picture_is_not_replaced_by_its_result(denoise: Run, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    code, _, err = denoise(tmp_path / "a.png", "--suffix", "")
    assert code == 2
    assert "exists; --force replaces it" in one_line(err)
    assert (tmp_path / "a.png").read_bytes() == before


def test_two_results_of_one_name(denoise: Run, photo: Image.Image, tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        photo.save(tmp_path / name / "a.png")
    code, _, err = denoise(tmp_path / "x", tmp_path / "y", "--out", tmp_path / "out", "--force")
    assert code == 2
    assert "would both become" in one_line(err)
    assert not (tmp_path / "out").exists()


def test_out_names_a_file_and_its_format(denoise: Run, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.png")
    for name in ("b.tif", "b.webp", "b.jpg"):
        assert denoise(tmp_path / "a.png", "--out", tmp_path / name)[0] == 0
        assert look(tmp_path / name).size == (50, 37)


def test_the_line_says_what_was_found_and_what_was_done(denoise: Run, photo: Image.Image, tmp_path: Path) -> None:
    """This network takes out whatever it is given; that is much in any picture."""
    photo.save(tmp_path / "a.png")
    _, out, _ = denoise(tmp_path / "a.png")
    assert ", white noise, about " in out
    assert " of 255: removed, " in out
    _, out, _ = denoise(tmp_path / "a.png", "--force", "--strength", "0.25")
    assert ": 25% of it removed, " in out
    _, out, _ = denoise(tmp_path / "a.png", "--force", "--strength", "0")
    assert "unchanged as asked for: white noise" in out
    [record] = json.loads(denoise(tmp_path / "a.png", "--json", "--force", "--strength", "0.25")[1])["pictures"]
    assert (record["strength"], record["found"], record["changed"]) == (0.25, "white noise", True)


def test_the_time_left_is_that_of_all_pictures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 100.0
    monkeypatch.setattr(counted, "time", SimpleNamespace(monotonic=lambda: seconds))
    with counted.Counted("denoising", 4, quiet=False) as told:
        told.begin("a.png")
        seconds = 120
        told.advance(1, 2)  # an eighth of the whole
        seconds = 125
        told.advance(2, 2)
        told.begin("b.png")
        seconds = 140
        told.advance(0, 1)  # a quarter
        told.begin("c.png")
        told.begin("d.png")
        seconds = 200
        told.advance(1, 1)
    assert capsys.readouterr().err.splitlines() == [
        "denoising 1 of 4, a.png: 50%, 2 min 20 s left",
        "denoising 2 of 4, b.png: 0%, 2 min 00 s left",
    ]


def test_the_pages_of_a_stack_are_parts_of_it() -> None:
    told = counted.Counted("denoising", 2, quiet=True)
    told.begin("a.tif")
    shares = []
    for page in range(3):
        for done in (1, 2):
            told.part(page, 3)(done, 2)
            shares.append(told.completed)
    assert shares == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])


def test_nothing_is_called_denoised_that_came_back_as_it_was() -> None:
    done = Done("a.png", None, 8, 8, "RGB", 8, 1, 1, 0, None, 2.9, "", 0.0, False, None)
    assert "unchanged: no noise found; --strength 1 would take out 2.9 of 255" in str(done)
    assert "unchanged: there is nothing to take out" in str(replace(done, noise_level=0.01))
    apart = replace(done, limits=(0.0, 9.0), left_out=tuple(map(float, range(1000))))
    assert ", 0 to 9 but 0, 1, 2 and 997 more, unchanged" in str(apart)  # floats have as many as they please
    # A little was taken, and rounding gave every value back.
    assert "no noise found" in str(replace(done, strength=0.03, found="white noise"))


def test_standard_input_and_output(weights: Path, photo: Image.Image, tmp_path: Path) -> None:
    content = io.BytesIO()
    photo.save(content, "PNG")
    command = [sys.executable, "-m", "dsdmae_cli", "denoise", "-", "--weights", str(weights), "--device", "cpu"]
    done = subprocess.run(command, input=content.getvalue(), capture_output=True, check=True)
    result = look(done.stdout)
    assert (result.format, result.size) == ("PNG", (50, 37))
    assert b"standard output  50x37 RGB" in done.stderr
