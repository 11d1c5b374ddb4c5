"""Pages: they stand alone, say what they must, escape what comes from outside, and name no path of the machine."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from helpers import digit_folder, train
from parsed import HOSTILE, Parsed, parsed
from PIL import Image

from dsdmae_cli.figures.sheet import save, sheet
from dsdmae_cli.page.blocks import Cell, Charts, Page, Section, Table, Text
from dsdmae_cli.page.chart import Chart, Rule, Series
from dsdmae_cli.page.curves import MOST_POINTS, Curves
from dsdmae_cli.page.document import Places, html, places
from dsdmae_cli.page.run import Story, last_moment, page_of, where
from dsdmae_cli.page.thumbs import thumb
from dsdmae_cli.page.words import more_lines, value_words
from dsdmae_cli.runs.observers import page as observer


def records(epochs: int, *, knn: bool = True, seed: int = 0) -> list[dict[str, Any]]:
    noise = random.Random(seed)
    found: list[dict[str, Any]] = [
        {"step": 0, "epoch": 0.0, "rank": 29.0, "spread": 0.1} | ({"knn": 0.31} if knn else {})
    ]
    for epoch in range(1, epochs + 1):
        found += [{"step": 4 * (epoch - 1) + i, "epoch": epoch - 1 + i / 4, "loss": 1 / epoch + noise.random() / 99,
                   "pixel": 0.5, "lr": 1e-4, "grad_norm": 1.0, "skipped": 0, "images_per_second": 99.0}
                  for i in range(1, 5)]  # fmt: skip
        found.append(
            {"step": 4 * epoch, "epoch": float(epoch), "rank": 30.0, "spread": 0.1} | ({"knn": 0.7} if knn else {})
        )
    return found


def story(folder: Path, **more: Any) -> Story:
    settings = {"data": {"dataset": f"folder:{folder}/My Pictures"}, "backbone": {"name": "b"}, "method": {"name": "m"},
                "train": {"epochs": 5, "start": "none"}}  # fmt: skip
    given = {"folder": folder / "run", "command": "pretrain", "state": "running", "epochs": 5, "settings": settings}
    return Story(**(given | more))


# -- the shell


def test_what_comes_from_outside_is_escaped() -> None:
    table = Table(HOSTILE, [[*HOSTILE[:-1], Cell(HOSTILE[-1], "a%20b")]])
    chart = Chart(
        "x", HOSTILE[0], HOSTILE[4], [Series(name, [(0, 1)]) for name in HOSTILE], [Rule(HOSTILE[0], 2)], HOSTILE
    )
    picture = thumb(Image.new("RGB", (8, 8)), HOSTILE[1])
    page = Page(
        HOSTILE[0], HOSTILE[1], HOSTILE, sections=[Section(h, [Text([h]), table, Charts([chart])]) for h in HOSTILE]
    )
    found = parsed(page)
    assert len(found.of("script")) == 1
    assert found.of("img") == []
    for name in ("<script>alert(1)</script>", "漢字クラス", "{{ 7*7 }}", "\\x1b[31mred"):
        assert name in found.text
    assert picture.alt == HOSTILE[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("folder:/home/me/cats", "folder:…/cats"), ("--out /tmp/a/b --epochs 3", "--out …/b --epochs 3"),
        ("C:\\Users\\me\\cats", "…/cats"), ("~/cats/dogs x", "…/dogs x"),
        ("rate 0.1 × batch/256", "rate 0.1 × batch/256"),
        ("a/b/c.py", "a/b/c.py"), ("2026/11/27 12:00", "2026/11/27 12:00"),
        ("'/data'", "'…/data'"), ("and / or", "and / or"),
        ("http://host/path/x", "http://host/path/x"), ("./a ../b", "./a ../b"),
    ],
)  # fmt: skip
def test_paths_keep_their_last_part(text: str, said: str) -> None:
    assert Places()(text) == said


def test_known_paths_may_have_blanks(tmp_path: Path) -> None:
    its = places(tmp_path / "a run", "RUN", [f"{tmp_path}/My Pictures", "relative/x", ""])
    said = its(f"{tmp_path}/a run/encoder.safetensors and {tmp_path}/a running and {tmp_path}/My Pictures/x")
    assert said == "RUN/encoder.safetensors and …/a running and …/My Pictures/x"


def test_a_relative_folder_is_no_place_in_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = places(Path("mae"), "RUN")(f"mae on digits: dsdmae pretrain --resume --out mae, in {tmp_path}/mae")
    assert said == "mae on digits: dsdmae pretrain --resume --out mae, in RUN"


# -- the page of a run


@pytest.mark.parametrize("moments", [1, 2])
def test_a_slider_is_spoken_of_where_there_is_one(moments: int, tmp_path: Path) -> None:
    figures = tmp_path / "run" / "figures"
    figures.mkdir(parents=True)
    for step in range(moments):
        grey = [Image.new("RGB", (8, 8))]
        save(
            sheet([("given", grey), ("restored", grey)]),
            figures / f"restored-step-{step:08d}.png",
            ["given", "restored"],
        )
    told = story(tmp_path, curves=Curves(records(1)))
    assert ("move the slider" in parsed(page_of(told), where(told)).text) == (moments > 1)


@pytest.mark.parametrize("state", ["running", "done", "stopped", "failed"])
@pytest.mark.parametrize("epochs", [0, 1, 5])
@pytest.mark.parametrize("knn", [True, False])
def test_a_run_at_every_moment(state: Any, epochs: int, knn: bool, tmp_path: Path) -> None:
    told = story(tmp_path, state=state, why="it broke", curves=Curves(records(epochs, knn=knn)), seconds=65.0,
                 result={"load_with": f"load('{tmp_path}/run/e.safetensors')"} if state == "done" else {})  # fmt: skip
    found = parsed(page_of(told), where(told))
    assert str(tmp_path) not in html(page_of(told), where(told))
    assert f"{state} epoch {epochs} of 5" in found.text
    assert "it broke" in found.text
    # It loads itself again while it lives, and only then.
    alive = state == "running"
    assert any(m.get("http-equiv") == "refresh" for m in found.of("meta")) == alive
    assert ("data-refresh" in found.of("body")[0]) == alive
    drawn = [attributes["aria-label"] or "" for attributes in found.of("svg")]
    assert any(label.startswith("accuracy, %") for label in drawn) == knn
    assert ("untrained 31.0%" in found.text) == knn
    assert any(label.startswith("training loss against epoch. loss: ") for label in drawn) == (epochs > 0)
    assert ("dsdmae pretrain --resume --out RUN" in found.text) == (state != "done")
    assert ("load('RUN/e.safetensors')" in found.text) == (state == "done")


def test_a_long_run_has_a_small_page(tmp_path: Path) -> None:
    curves = Curves(records(2000))
    assert all(len(curves.points(name)) <= MOST_POINTS + 2 for name in curves.lines)
    told = story(tmp_path, epochs=2000, curves=curves)
    assert len(html(page_of(told), where(told))) < 120_000
    # Thinned evenly, by means: a straight line stays one, from end to end.
    straight = [{"step": i, "epoch": i / 4, "lr": i / 4} for i in range(5000)]
    line = Curves(straight).points("lr")
    assert line[0] == (0.0, 0.0)
    assert line[-1][0] > 0.99 * 5000 / 4
    assert all(x == pytest.approx(y) for x, y in line)
    gaps = [b[0] - a[0] for a, b in pairwise(line[1:-1])]
    assert max(gaps) == pytest.approx(min(gaps))


def test_the_values_that_stand_out_are_the_newest_and_the_first() -> None:
    curves = Curves(records(3000))
    assert (curves.first("knn"), curves.last("knn")) == (0.31, 0.7)
    assert curves.last("loss") == records(3000)[-2]["loss"]


def test_pictures_by_moment(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "figures"
    folder.mkdir(parents=True)
    given, original = Image.new("RGB", (96, 96), "red"), Image.new("RGB", (96, 96), "green")
    for number, step in enumerate((0, 4, 8)):
        restored = Image.new("RGB", (96, 96), (0, 0, 80 * number))
        rows = [("given", [given]), ("restored", [restored]), ("original", [original])]
        save(sheet(rows), folder / f"restored-step-{step:08d}.png", [name for name, _ in rows])
    told = story(tmp_path, curves=Curves(records(3)))
    found = parsed(page_of(told), where(told))
    assert len(found.of("img")) == 2 + 3  # what does not change is there once
    assert all(image["alt"] for image in found.of("img"))
    [slider] = [i for i in found.of("input") if i["type"] == "range"]
    assert slider["max"] == "2"
    for when in ("before training", "step 4, epoch 1", "step 8, epoch 2"):
        assert when in found.text
    for number in range(30):  # of many moments some are shown
        save(sheet([("restored", [given])]), folder / f"restored-step-{100 + number:08d}.png", ["restored"])
    assert len(parsed(page_of(told), where(told)).of("img")) <= 9


def test_features_of_patches_have_a_slider_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "figures"
    folder.mkdir(parents=True)
    tile = Image.new("RGB", (96, 96), "red")
    for name, step in (("restored", 0), ("patches", 0), ("patches", 4)):
        rows = [(name, [Image.new("RGB", (96, 96), (0, 0, 20 * step))]), ("original", [tile])]
        save(sheet(rows), folder / f"{name}-step-{step:08d}.png", [row for row, _ in rows])
    told = story(tmp_path, curves=Curves(records(3)))
    found = parsed(page_of(told), where(told))
    assert "To the network, patches of one colour are alike" in found.text
    assert "of each moment anew" in found.text
    assert len(found.of("img")) == 2 + 3
    assert len([i for i in found.of("input") if i["type"] == "range"]) == 1  # the other has one moment
    shown = last_moment(folder, "a trial")
    assert shown is not None
    assert shown.alt == "a trial: restored, original"


@pytest.mark.parametrize(
    ("labels", "said", "refused"),
    [
        ("classes", ["dsdmae probe RUN", "dsdmae worth RUN"], "segment"),
        ("masks", ["dsdmae probe RUN --kind segment", "dsdmae finetune RUN --task segment"], "dsdmae worth"),
        (None, ["dsdmae worth RUN --dataset folder:LABELLED"], "dsdmae probe"),
    ],
)
def test_how_to_go_on_names_nothing_that_would_be_refused(
    labels: str | None, said: list[str], refused: str, tmp_path: Path
) -> None:
    told = story(tmp_path, state="done", result={"labels": labels})
    text = parsed(page_of(told), where(told)).text
    assert all(line in text for line in said)
    assert refused not in text


@pytest.mark.parametrize(("speed", "said"), [(0.23, "0.23"), (4120.6, "4,121")])
def test_a_slow_run_is_not_told_to_stand(speed: float, said: str, tmp_path: Path) -> None:
    told = story(tmp_path, curves=Curves([{"step": 1, "epoch": 1.0, "lr": 0.1, "images_per_second": speed}]))
    assert f"images a second, last {said}" in parsed(page_of(told), where(told)).text


def test_a_picture_is_bounded() -> None:
    noise = Image.effect_noise((3000, 900), 100)
    small = thumb(noise, "noise", most=20_000)
    assert small.width <= 800
    assert len(small.source) < 20_000 * 4 / 3 + 40


def test_settings_say_where_they_came_from(tmp_path: Path) -> None:
    sources = {"train.epochs": "--epochs", "data.dataset": f"{tmp_path}/My Settings.toml", "method.name": "default"}
    about = {"sources": sources, "account": {"data": "5 images <b>"}, "packages": {"torch": "2.0"}}  # fmt: skip
    told = story(
        tmp_path, about=about, warnings=["<i>careful</i>", *["again"] * 70], asked={"train": {"epochs": "auto"}}
    )
    found = parsed(page_of(told), where(told))
    for words in ("train.epochs 5 --epochs: auto", "5 images <b>", "<i>careful</i>", "and 21 more", "torch 2.0"):
        assert words in found.text
    assert "Settings from presets, files and flags" in found.text


# -- a run that trains


def test_a_page_that_cannot_be_written_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*given: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(observer, "write_page", refuse)
    result = train(digit_folder(tmp_path / "digits"), tmp_path / "run")
    assert result["steps"] > 0
    assert (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "report.html").exists()
    err = capfd.readouterr().err
    assert err.count("the page report.html could not be written (OSError: no space left)") == 1


def test_a_finished_run_says_so(encoder_run: Path) -> None:
    found = Parsed((encoder_run / "report.html").read_text(encoding="utf-8"))
    assert "✓ done epoch 2 of 2" in found.text
    assert "dsdmae probe RUN" in found.text
    assert "k-NN (k = 20)" in found.text
    assert "FLOP" in found.text
    assert str(encoder_run) not in (encoder_run / "report.html").read_text(encoding="utf-8")
    assert {p.stem for p in (encoder_run / "figures").glob("*.svg")} == {
        "loss", "accuracy", "rank", "spread", "learning-rate", "gradient",
    }  # fmt: skip


def test_a_stopped_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dsdmae_cli.runs.run import Run

    stepped = Run.stepped

    def and_fail(self: Run, step: int) -> None:
        stepped(self, step)
        if step == 3:
            self.report.warn("all is lost")
            raise ValueError("<boom>")

    monkeypatch.setattr(Run, "stepped", and_fail)
    images = digit_folder(tmp_path / "digits")
    with pytest.raises(ValueError, match="<boom>"):
        train(images, tmp_path / "run")
    page = tmp_path / "run" / "report.html"
    found = Parsed(page.read_text(encoding="utf-8"))
    for words in ("✕ failed", "ValueError: <boom>", "all is lost", "dsdmae pretrain --resume --out RUN"):
        assert words in found.text
    monkeypatch.setattr(Run, "stepped", stepped)
    train(images, tmp_path / "run", resume=True)
    found = Parsed(page.read_text(encoding="utf-8"))
    assert "✓ done" in found.text
    assert "all is lost" in found.text  # warnings of before are kept
    assert "train.epochs" in found.text


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    class Other:
        main = False

    writer = observer.PageWriter()
    writer.begin(Other())  # type: ignore[arg-type]
    writer.epoch_ended(Other(), 1, last=False)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("result", "lines"),
    [
        ({"top1": 0.5, "top5": 0.91, "top5_k": 5, "mean_per_class": 0.5004, "per_class": [0.5] * 9},
         ["top-5          91.0%"]),
        ({"top1": 0.5, "top5": 1.0, "top5_k": 5, "mean_per_class": 0.4, "per_class": [0.4] * 5},
         ["mean per class 40.0%"]),
        ({"top1": 0.5, "top5": 1.0, "top5_k": 4, "mean_per_class": 0.5, "per_class": [0.5] * 4}, []),
    ],
)  # fmt: skip
def test_what_is_said_below_top1(result: dict[str, Any], lines: list[str]) -> None:
    assert more_lines(result) == lines


def test_numbers_of_settings_are_short() -> None:
    assert value_words([0.75, 4 / 3]) == "[0.75, 1.333]"
    assert [value_words(value) for value in (1e-5, 0.00015, 1234567890123, "1.33333333333", True)] == [
        "1e-05", "0.00015", "1234567890123", "1.33333333333", "true",
    ]  # fmt: skip
