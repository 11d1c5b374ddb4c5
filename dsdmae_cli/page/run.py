"""The page of a run: pretrain, probe or finetune."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from dsdmae_cli.evaluation.closing import NEIGHBOURS
from dsdmae_cli.figures.sheet import moments, strips
from dsdmae_cli.page import PAGE, segments
from dsdmae_cli.page.blocks import (
    Block,
    Charts,
    Code,
    Facts,
    Gallery,
    Listing,
    Moments,
    Page,
    Section,
    State,
    Table,
    Text,
    Thumb,
)
from dsdmae_cli.page.curves import Curves
from dsdmae_cli.page.document import Places, places, write
from dsdmae_cli.page.thumbs import thumb
from dsdmae_cli.page.words import FIGURES, score_facts, scored_words, value_words
from dsdmae_cli.report import duration
from dsdmae_cli.report.lines import in_directions

_RUN = "RUN"
_MOST_MOMENTS = 8
_MOST_WARNINGS = 50
_PATCHES = (
    "To the network, patches of one colour are alike; of a useful one colours follow things and their parts, not single"
    " edges or the place in the image. Colours are the first three principal components of all these patches' features,"
    " of each moment anew, in the order and sign that fit the moment before: compare what has one colour, not how red"
    " it is."
)


@dataclass(frozen=True)
class Story:
    """What is known of a run now.

    Attributes:
        folder: its directory.
        command: that trains or judges: "pretrain".
        state: what it is doing; why: what it said at its end.
        epochs: that are asked for; None where it has none.
        seconds: that it took so far.
        left: seconds that it may still take.
        patience: seconds without a new page after which it is no longer believed to be alive.
        settings: tables, every "auto" decided.
        asked: the same as they were given.
        about: run.json.
        result: result.json; empty until there is one.
        warnings: in order.
        flops: of all training; None where not counted.
    """

    folder: Path
    command: str
    state: State
    why: str = ""
    epochs: int | None = None
    seconds: float | None = None
    left: float | None = None
    patience: float = 600.0
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    asked: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    curves: Curves = field(default_factory=Curves)
    result: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    flops: float | None = None

    @property
    def before(self) -> str:
        """What the network was as it began."""
        return "untrained" if self.settings.get("train", {}).get("start", "none") == "none" else "as it began"

    @property
    def dataset(self) -> str:
        """Its name, of a path the last part."""
        plugin, colon, argument = str(self.settings.get("data", {}).get("dataset", "")).partition(":")
        return f"{plugin}{colon}{Path(argument).name}" if colon else plugin


def where(story: Story) -> Places:
    """What takes paths of the machine out of a run's page."""
    data, train = story.settings.get("data", {}), story.settings.get("train", {})
    known = [str(data.get("dataset", "")).partition(":")[2], str(train.get("start", "")), str(data.get("labels", ""))]
    known += [str(story.about.get("command", "")), *(str(story.result.get(key, "")) for key in ("subject", "start"))]
    return places(story.folder, _RUN, known)


def page_of(story: Story) -> Page:
    """The page as it is now."""
    share = None
    if story.epochs and story.state != "done":
        share = min(1.0, story.curves.epoch / story.epochs)
    closing = str(story.result.get("closing") or "")
    sections = [Section(title, blocks) for title, blocks in _sections(story) if blocks]
    return Page(
        title=_title(story),
        answer=scored_words(story.result) or closing,
        answers=[story.why] if story.why else [],
        state=story.state,
        status=_status(story, share),
        share=share,
        written=time.time(),
        patience=story.patience,
        refresh=10 if (story.seconds or 0) < 300 else 30,
        lead=[Facts(list(_facts(story)))],
        sections=[*sections, *_folded(story)],
    )


def write_page(story: Story) -> None:
    """Write it into the run's directory.

    Raises:
        RunFailed: it cannot be written.
    """
    write(page_of(story), story.folder / PAGE, where(story))


def _title(story: Story) -> str:
    backbone = story.settings.get("backbone", {}).get("name", "")
    if story.command == "pretrain":
        what = f"{story.settings.get('method', {}).get('name', '')} with {backbone}"
    elif story.command == "finetune":
        what = f"{_subject(story)} fine-tuned"
    else:
        what = f"{story.settings.get('probe', {}).get('kind', '')} {story.command} of {_subject(story)}"
    return f"{story.folder.name}: {what} on {story.dataset}"


def _subject(story: Story) -> str:
    start = story.settings.get(story.command, {}).get("start", "")
    return str(story.result.get("subject") or Path(str(start)).name)


def _status(story: Story, share: float | None) -> str:
    parts = []
    if story.epochs:
        parts.append(f"epoch {min(story.curves.epoch, story.epochs):.4g} of {story.epochs}")
    if share is not None:
        parts.append(f"{share:.0%}")
    if story.state == "running":
        parts.append(f"about {duration(story.left)} left" if story.left is not None else "no step yet")
    elif story.seconds is not None:
        parts.append(f"in {duration(story.seconds)}")
    parts.append(time.strftime("written %Y-%m-%d %H:%M:%S"))
    return ", ".join(parts)


def _facts(story: Story) -> Iterator[tuple[str, str, str]]:
    result, curves = story.result, story.curves
    yield from score_facts(result)
    if (knn := curves.last("knn")) is not None and result.get("knn_accuracy", knn) is not None:
        first = curves.first("knn")
        yield f"k-NN (k = {NEIGHBOURS})", f"{knn:.1%}", f"{story.before} {first:.1%}" if first is not None else ""
    if (loss := curves.last("loss")) is not None:
        yield "last loss", f"{loss:.4g}", ""
    if (rank := curves.last("rank")) is not None and result.get("feature_rank", rank) is not None:
        first = curves.first("rank")
        yield "features vary in", in_directions(rank), f"{story.before} {first:.0f}" if first is not None else ""
    if story.seconds is not None:
        yield "time so far" if story.state == "running" else "time", duration(story.seconds), ""


# -- sections


def _sections(story: Story) -> Iterator[tuple[str, Sequence[Block]]]:
    trained = story.command != "probe"
    waits = "The first figures come with the first steps." if story.state == "running" else "No step was recorded."
    if trained:
        yield "Curves", [Charts(story.curves.charts(story.before), waits)]
    if seen := moments_of(story.folder / "figures", story.curves.steps_per_epoch):
        yield "Pictures", [Text([_seen(story, len(seen.moments))], quiet=True), seen]
    if patches := moments_of(story.folder / "figures", story.curves.steps_per_epoch, patches=True):
        yield "What patches are alike", [Text([_PATCHES], quiet=True), patches]
    if figures := _figures(story.folder / "figures"):
        yield "Figures", [figures]
    yield from segments.sections(story.result)
    if rows := story.result.get("few_shot"):
        yield "With few labels", [_few(rows)]
    if account := story.about.get("account"):
        notes = [str(note) for note in story.result.get("data_notes") or ()]
        yield "Data", [Table((), list(account.items()), frozenset({0, 1}), wraps=frozenset({1})),
                       *([Listing(notes, quiet=True)] if notes else [])]  # fmt: skip
    if story.warnings:
        more = len(story.warnings) - _MOST_WARNINGS
        shown = [*story.warnings[:_MOST_WARNINGS], *([f"and {more} more"] if more > 0 else [])]
        yield "Warnings", [Listing(shown)]
    if protocol := story.result.get("protocol"):
        yield "Protocol", [Text([f"{protocol}."])]
    yield "Cost", [Table((), list(_cost(story)), frozenset({0}))]
    yield "How to go on", list(_going_on(story))


def _seen(story: Story, moments: int) -> str:
    slider = "; move the slider" * (moments > 1)
    return f"The same held-out images at each moment{slider}." if story.command == "pretrain" else ""


def _few(rows: Sequence[Mapping[str, Any]]) -> Table:
    shown = [
        (f"{row['share']:.3g}", f"{row['images']:,}", f"{row['draws']}", f"{row['top1']:.1%}",
         f"{row['std']:.1%}" if row.get("std") is not None else "-")
        for row in rows
    ]  # fmt: skip
    return Table(("share of labels", "images", "draws", "top-1", "standard deviation"), shown)


def _cost(story: Story) -> Iterator[tuple[str, str]]:
    result = story.result
    if story.seconds is not None:
        yield "time", duration(story.seconds)
    images = result.get("images_seen")
    if images is not None:
        yield "images seen", f"{images:,}"
    if (speed := story.curves.last("images_per_second")) is not None:
        yield "images a second, last", f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"
    flops = result.get("flops", story.flops)
    if flops is not None:
        yield "work", f"{flops:.3g} FLOP"
    if skipped := result.get("skipped_steps"):
        yield "steps skipped, not finite", f"{skipped:,}"
    if unreadable := result.get("unreadable_images"):
        yield "images skipped, unreadable", f"{unreadable:,}"


def _going_on(story: Story) -> Iterator[Block]:
    folder = f"{_RUN} is the folder that holds this page."
    if story.state == "failed" and story.command == "probe":  # which is never saved half-way
        yield Text(["The same command begins it anew."], quiet=True)
        return
    if story.state == "running":
        yield Text([f"Ctrl-C stops it and saves. {folder} Then this goes on:"], quiet=True)
    if story.state in ("running", "stopped", "failed"):
        if story.state != "running":
            yield Text([f"{folder} This goes on from what was saved:"], quiet=True)
        yield Code(f"dsdmae {story.command} --resume --out {_RUN}")
        return
    commands = {
        "pretrain": (*_judging(story.result), f"dsdmae export {_RUN} --to timm"),
        "finetune": (f"dsdmae predict {_RUN} PICTURES", f"dsdmae export {_RUN} --to timm"),
    }.get(story.command, ())  # fmt: skip
    if story.result.get("task") == "segment":
        commands = (f"dsdmae predict {_RUN} PICTURES --out MASKS", f"dsdmae export {_RUN} --to onnx --out NAME.onnx")
    if commands:
        yield Text([folder], quiet=True)
        yield Code("\n".join(commands))
    if load := story.result.get("load_with"):
        yield Text(["From Python:"], quiet=True)
        yield Code(str(load))


def _judging(result: Mapping[str, Any]) -> Iterator[str]:
    """Commands that judge a pre-trained network by what labels its images have."""
    labels = result.get("labels", "classes")
    if labels == "classes" and result.get("knn_accuracy") is None and result.get("feature_rank") is not None:
        yield f"dsdmae probe {_RUN} --labels FILE.csv"  # features were looked at, and no held-out image has a label
        yield f"dsdmae embed {_RUN} --out features.npz"
    elif labels == "classes":
        yield from (f"dsdmae probe {_RUN}", f"dsdmae finetune {_RUN} --preset strong", f"dsdmae worth {_RUN}")
    elif labels == "masks":
        yield from (f"dsdmae probe {_RUN} --kind segment", f"dsdmae finetune {_RUN} --task segment")
    else:
        yield f"dsdmae worth {_RUN} --dataset folder:LABELLED"
        yield f"dsdmae embed {_RUN} --out features.npz"


def _folded(story: Story) -> Iterator[Section]:
    sources: Mapping[str, str] = story.about.get("sources") or {}
    rows = []
    for section, table in story.settings.items():
        for key, value in table.items():
            source = sources.get(f"{section}.{key}", "")
            if story.asked.get(section, {}).get(key) == "auto" != value:
                source = f"{source}: auto" if source else "auto"
            rows.append((f"{section}.{key}", value_words(value), source))
    titles, words, wraps = ("setting", "value", "from"), frozenset({0, 1, 2}), frozenset({1, 2})
    chosen = [row for row in rows if row[2] and not row[2].startswith(("default", "auto"))]
    if chosen:
        yield Section("Settings from presets, files and flags", [Table(titles, chosen, words, wraps=wraps)])
    if rows:
        yield Section("All settings", [Table(titles, rows, words, wraps=wraps)], folded=True)
    if machine := list(_machine(story.about)):
        yield Section(
            "Machine and versions", [Table((), machine, frozenset({0, 1}), wraps=frozenset({1}))], folded=True
        )


def _machine(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    argv = about.get("argv") or []
    if argv and Path(argv[0]).name in ("dsdmae", "dsdmae.exe", "__main__.py"):
        yield "command", shlex.join(["dsdmae", *argv[1:]])
    for key, title in (("started", "started"), ("device_name", "device"), ("precision", "precision"),
                       ("micro_batch", "micro-batch"), ("threads", "threads"), ("cpu_count", "CPU cores"),
                       ("world_size", "processes"), ("platform", "platform"), ("python", "Python")):  # fmt: skip
        if about.get(key) is not None:
            yield title, str(about[key])
    yield from (about.get("packages") or {}).items()
    if git := about.get("git"):
        yield "commit", f"{git['commit']}{' with changes' if git['dirty'] else ''}"


# -- pictures


def _figures(folder: Path) -> Gallery | None:
    """What probe and finetune draw."""
    found = [(words, folder / f"{name}.png") for name, words in FIGURES.items()]
    pictures = [
        (words, _file(path, path.stat().st_mtime_ns, words), f"{folder.name}/{path.name}")
        for words, path in found
        if path.is_file()
    ]
    return Gallery(pictures, wide=True) if pictures else None


def moments_of(
    folder: Path, steps_per_epoch: float | None, most: int = _MOST_MOMENTS, patches: bool = False
) -> Moments | None:
    """The pictures that a run has drawn on its way, or those of its patches' features; None where there are none."""
    files = moments(folder, patches)
    if len(files) > most:  # the first and the last are among them
        files = [files[round(index * (len(files) - 1) / (most - 1))] for index in range(most)]
    found = [(step, _strips(file, file.stat().st_mtime_ns)) for step, file in files]
    found = [(step, rows) for step, rows in found if rows]
    if not found:
        return None
    last = found[-1][1]
    still = [
        index for index in range(len(last))
        if index == len(last) - 1
        or (len(found) > 1 and all(rows[index][1].source == last[index][1].source for _, rows in found))
    ]  # fmt: skip
    shown = [
        (_when(step, steps_per_epoch), [row for index, row in enumerate(rows) if index not in still])
        for step, rows in found
    ]
    return Moments([last[index] for index in still], shown)


def last_moment(folder: Path, what: str) -> Thumb | None:
    """The last picture that a run has drawn, its rows below each other; None where there is none.

    Args:
        what: whose it is, for who does not see it.
    """
    files = moments(folder)
    rows = strips(files[-1][1]) if files else []
    if not rows:
        return None
    page = Image.new("RGB", (rows[0][1].width, sum(image.height for _, image in rows)))
    top = 0
    for _, image in rows:
        page.paste(image, (0, top))
        top += image.height
    names = ", ".join(name.replace("\n", ", ") for name, _ in rows)
    return thumb(page, f"{what}: {names}", width=640, most=40_000)


def _when(step: int, steps_per_epoch: float | None) -> str:
    if step == 0:
        return "before training"
    return f"step {step:,}" + (f", epoch {step / steps_per_epoch:.4g}" if steps_per_epoch else "")


# A picture does not change; a page of a long run is made anew many times.
@lru_cache(maxsize=64)
def _strips(path: Path, changed: int) -> tuple[tuple[str, Thumb], ...]:
    rows = [(name.replace("\n", ", "), image) for name, image in strips(path)]
    return tuple((name, thumb(image, f"{name}: held-out images in a row", most=40_000)) for name, image in rows)


@lru_cache(maxsize=16)
def _file(path: Path, changed: int, words: str) -> Thumb:
    with Image.open(path) as image:
        return thumb(image, words, width=1200, most=150_000)
