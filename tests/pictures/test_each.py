"""The loop over pictures: what is said of those that fail, and by what names results go. No network here."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dsdmae_cli.data import files
from dsdmae_cli.data.base import UnreadableImage
from dsdmae_cli.data.decode import IMAGE_SUFFIXES
from dsdmae_cli.data.source import Unreadable
from dsdmae_cli.errors import DataError, RunFailed, SettingsError
from dsdmae_cli.pictures import paths
from dsdmae_cli.pictures.contact_sheet import Panel
from dsdmae_cli.pictures.each import Made, check_free, each
from dsdmae_cli.pictures.outcome import Done, Outcome
from dsdmae_cli.pictures.page import RestoredPage
from dsdmae_cli.pictures.paths import Results, Source, find, reference_of, targets
from dsdmae_cli.pictures.picture import Picture
from dsdmae_cli.report.counted import Counted
from dsdmae_cli.segmentation.predicting import Masked
from dsdmae_cli.settings.models import DataSettings

MASKS = {"kind": "", "suffix": "", "verb": "segment", "alone": True}


def names(folder: Path, named: Sequence[Path], out: str = "masks") -> list[str]:
    """Where the masks of pictures go."""
    results = Results(out, **MASKS)
    sources, failed = find([str(path) for path in named], results)
    assert not failed
    return [str(target.named(".png") if target.open_ended else target.path) for target in targets(sources, results)]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("a.jpg", "a.png", "b.png", "deep/c.png", "other/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    return tmp_path


def test_a_masks_name_says_nothing_of_the_other_pictures(pictures: Path) -> None:
    assert names(pictures, [pictures / "b.png"]) == ["masks/b.png"]
    assert names(pictures, [pictures / "b.png", pictures / "deep/c.png"]) == ["masks/b.png", "masks/c.png"]
    assert names(pictures, [pictures / "a.jpg"]) == ["masks/a.png"]
    for two in ([pictures / "a.jpg", pictures / "a.png"], [pictures / "deep", pictures / "other"], [pictures]):
        with pytest.raises(SettingsError, match=r"would both become masks/[ac]\.png; segment them in two calls"):
            names(pictures, two)


def test_a_file_is_one_pictures_and_a_folder_is_named_by_its_form(pictures: Path) -> None:
    assert names(pictures, [pictures / "b.png"], "one.png") == ["one.png"]
    assert names(pictures, [pictures / "b.png"], "one.png/") == ["one.png/b.png"]
    with pytest.raises(SettingsError, match=r"--out one.png is one file and there are 2 pictures; name a folder"):
        names(pictures, [pictures / "b.png", pictures / "a.jpg"], "one.png")


def test_what_a_folder_has_beside_pictures_is_counted_by_suffix(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heic = {".heic", ".heif", ".hif"}
    monkeypatch.setattr(paths, "IMAGE_SUFFIXES", IMAGE_SUFFIXES - heic)  # as without its package
    monkeypatch.setattr(files, "IMAGE_SUFFIXES", IMAGE_SUFFIXES - heic)
    for name in ("IMG_1.HEIC", "deep/IMG_2.heic", "deep/.hidden", "deep/notes.txt", "report.html", "b.denoised.png"):
        (pictures / name).touch()
    (pictures / "only").mkdir()
    (pictures / "only/IMG_3.heic").touch()
    said: list[str] = []
    sources, failed = find([str(pictures), str(pictures / "only")], Results(), said.append)
    assert len(sources) == 5
    assert said == ["3 .heic: pip install 'dsdmae[heif]', 1 .txt passed over"]
    assert [str(failure) for failure in failed] == [
        f"{pictures / 'only'} (a folder without images: 1 .heic: pip install 'dsdmae[heif]')"
    ]


def run(number: int, refused: dict[int, Exception], there: set[int], folder: Path) -> Outcome:
    """`each` over so many pictures, some of which fail."""
    files = [folder / f"{k}.png" for k in range(number)]
    for k in there:
        files[k].write_bytes(b"mine")

    def make(k: int) -> Made:
        check_free(files[k], force=False)
        if k in refused:
            raise refused[k]
        return Made([(Image.new("L", (2, 2)), files[k])], Masked(f"in{k}.png", files[k], 2, 2, {"sky": 1.0}), [])

    outcome = Outcome({}, "segmented")
    sources = [Source(Path(f"in{k}.png"), Path(f"in{k}.png")) for k in range(number)]
    each(sources, make, outcome, Counted("segmenting", number, quiet=True), device="cpu")
    return outcome


def test_results_that_are_there_are_counted_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    outcome = run(40, {}, set(range(1, 13)), tmp_path)
    assert (len(outcome.done), len(outcome.failed)) == (28, 12)
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("dsdmae: warning: 12 of 40 results are there already, and stay: in1.png (")
    assert "exists; --force replaces it); in2.png (" in line
    assert line.endswith("; and 9 more")
    assert (tmp_path / "1.png").read_bytes() == b"mine"


def test_many_that_fail_are_no_page(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    outcome = run(20, {k: UnreadableImage(f"in{k}.png", "truncated") for k in range(10)}, set(), tmp_path)
    lines = capfd.readouterr().err.splitlines()
    assert lines[:3] == [f"dsdmae: warning: in{k}.png (truncated)" for k in range(3)]
    assert lines[3:] == ["dsdmae: warning: 10 of 20 failed, of which the first are named above"]
    named = "; ".join(f"in{k}.png (truncated)" for k in range(5))
    assert str(outcome.failure()) == f"10 of 20 failed: {named}; and 5 more"


def test_unreadable_images_are_one_line() -> None:
    found = Unreadable(1000, DataSettings(max_unreadable=0.5))
    assert found.lines() == []
    found.add("a.png", "truncated")
    assert found.lines() == ["an unreadable image: a.png: truncated"]
    for k in range(1234 - 1):
        found.reasons[f"{k}.png"] = "empty file"
    assert found.lines("held-out image") == [
        "1,234 unreadable held-out images: a.png: truncated; 0.png: empty file; 1.png: empty file; and 1,231 more"
    ]


def test_a_picture_is_a_line_whatever_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a\nb.png"
    source = Source(tmp_path / "a.png")
    outcome = Outcome({}, "segmented")
    record = Masked(str(source), file, 4, 4, {"sky": 1.0})
    made = Made([(Image.new("L", (4, 4)), file)], record, [])
    each([source], lambda number: made, outcome, Counted("", 1, quiet=False), device="cpu")
    assert capsys.readouterr().out.splitlines() == [f"{tmp_path}/a\\nb.png: sky 100%"]
    assert file.is_file()


def test_names_that_no_file_can_have_are_one_pictures_failure(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="choose another name with --out or --suffix"):
        check_free(tmp_path / f"{'x' * 300}.png", force=False)


def test_a_place_that_cannot_be_written_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Any, flags: int, *_: Any, **__: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)  # as of a folder that is read only, which root may write to
    with pytest.raises(RunFailed, match=r"cannot write to .*: Permission denied; make room, or write elsewhere"):
        check_free(tmp_path / "there/a.png", force=False)
    monkeypatch.undo()
    check_free(tmp_path / "there/a.png", force=False)
    assert not list((tmp_path / "there").iterdir())


def test_a_name_that_is_no_utf8_stands_on_the_page(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / os.fsdecode(b"caf\xe9  two blanks.png")
    done = Done(str(file), file, 4, 4, "L", 8, 1, 1, 0, None, 2.0, "noise", 1.0, True, None)
    panel = Panel(Picture.of(np.zeros((30, 30), np.uint8)), "given")
    page = RestoredPage(tmp_path, print)
    page.add(done, [panel, panel])
    page.write(Outcome({}, "denoised", done=[done]))
    assert capfd.readouterr().out == ""
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "caf\\udce9  two blanks.png" in text
    assert "4x4 L, noise, about 2.0 of 255: removed" in text


def test_what_the_page_cannot_show_costs_no_picture(tmp_path: Path) -> None:
    said: list[str] = []
    done = Done("a.tif", None, 4, 4, "L", 8, 1, 1, 0, None, 2.0, "noise", 1.0, True, None)
    panel = Panel(Picture(np.zeros((30, 30, 1), np.float64), "L"), "given")
    RestoredPage(tmp_path, said.append).add(done, [panel, panel])
    [line] = said
    assert line.startswith("a.tif is not shown on the page report.html: ")


def sheet_of(heights: Sequence[int], sheet: Path) -> Outcome:
    """`each` over pictures of such heights, with a sheet."""

    def make(k: int) -> Made:
        row = [Panel(Picture.of(np.zeros((heights[k], 100), np.uint8)), "given")]
        return Made([], Masked(f"in{k}.png", sheet, 2, 2, {"sky": 1.0}), [row])

    outcome = Outcome({}, "segmented")
    sources = [Source(Path(f"in{k}.png"), Path(f"in{k}.png")) for k in range(len(heights))]
    report = Counted("segmenting", len(heights), quiet=True)
    each(sources, make, outcome, report, device="cpu", sheet=sheet)
    return outcome


def test_a_sheet_ends_where_its_format_does(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    outcome = sheet_of([6000, 6000, 6000, 10], tmp_path / "sheet.webp")
    assert outcome.sheet == tmp_path / "sheet.webp"
    assert "shows the first 2 of 4 pictures" in capfd.readouterr().err
    with Image.open(tmp_path / "sheet.webp") as image:
        assert image.height < 16383


@pytest.mark.parametrize("count", [1, 2])
def test_a_sheet_of_many_says_whose_a_row_is(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[str]] = []

    def draw(rows: list[list[Panel]]) -> Image.Image:
        drawn.extend([panel.caption for panel in row] for row in rows)
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr("dsdmae_cli.pictures.each.draw", draw)
    sheet_of([10] * count, tmp_path / "sheet.png")
    plain = "".join(drawn[0])
    assert len(drawn) == count
    for number, [caption] in enumerate(drawn if count > 1 else []):
        assert caption.startswith(f"in{number}.png: ")
    assert (".png" in plain) == (count > 1)


def test_a_sheet_that_fails_takes_nothing_with_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    outcome = sheet_of([17000, 10], tmp_path / "sheet.webp")
    assert (len(outcome.done), outcome.sheet) == (2, None)
    [failure] = outcome.failed
    assert failure.source == str(tmp_path / "sheet.webp")
    assert "higher than 16,383 pixels" in capfd.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(RunFailed, match=r"cannot make .*file"):  # before anything is done
        sheet_of([10], tmp_path / "file/sheet.png")


def test_a_reference_may_have_another_suffix_in_capitals(tmp_path: Path) -> None:
    for name in ("a.JPG", "a.txt", "deep/a.TIFF", "ab.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert reference_of(Source(Path("x/a.png"), Path("a.png")), tmp_path) == tmp_path / "a.JPG"
    assert reference_of(Source(Path("x/deep/a.png"), Path("deep/a.png")), tmp_path) == tmp_path / "deep/a.TIFF"
    for other in ("b.png", "none/a.png"):
        with pytest.raises(SettingsError, match="has no picture named"):
            reference_of(Source(Path("x") / other, Path(other)), tmp_path)
