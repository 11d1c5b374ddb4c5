"""A dataset by its settings, packed: what `dsdmae data pack` does. pack.py writes the folder."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from dsdmae_cli import __version__, plugins
from dsdmae_cli.data.account import take_account
from dsdmae_cli.data.masks import MaskedImages
from dsdmae_cli.data.open import open_dataset
from dsdmae_cli.data.pack import Options, pack, parts_of_before
from dsdmae_cli.data.packed import INDEX, MANIFEST, Manifest, Shard
from dsdmae_cli.data.source import Unreadable
from dsdmae_cli.errors import RunInterrupted, SettingsError, signal_words
from dsdmae_cli.files import typed
from dsdmae_cli.plugins import DatasetSpec
from dsdmae_cli.report import say
from dsdmae_cli.report.counted import Counted
from dsdmae_cli.settings.models import DataSettings
from dsdmae_cli.settings.size import height_width, size_words
from dsdmae_cli.signals import Stopped, stopping

_RGB = 3


def pack_dataset(settings: DataSettings, out: Path, options: Options, *, quiet: bool) -> dict[str, Any]:
    """Write a dataset's packed form; what became of it, fit for JSON.

    Args:
        quiet: no progress and no remarks.

    Raises:
        SettingsError: the dataset has ways of its own that the packed form would forget.
        DataError: it cannot be read, or the folder holds something else.
        RunFailed: the folder cannot be written.
        RunInterrupted: a signal asked to stop.
    """
    _require_elsewhere(settings.dataset, out)
    spec: DatasetSpec = plugins.find("dataset", settings.dataset).spec
    _require_plain(spec, settings.dataset)
    splits = {split: open_dataset(settings, split) for split in ("train", "test")}
    train = splits["train"]
    if isinstance(train, MaskedImages):
        raise SettingsError(
            f"{settings.dataset} has masks, which a packed folder does not hold; pack its images/ alone for"
            " pre-training, and keep the folder for what needs masks"
        )
    limits = settings.range
    if limits == "auto":
        limits = None if spec.value_range is None else plugins.load(spec.value_range)(settings)
    account = take_account({"training": train, "held-out": splits["test"]}, limits)
    if not quiet:
        for line in account.lines():
            say(line)
    size = plugins.load(spec.image_size)(settings) if isinstance(spec.image_size, str) else spec.image_size
    if settings.image_size != "auto":
        size = settings.image_size
    bands = None if settings.bands == "auto" else settings.bands
    rewritten = train.channels in (1, _RGB) and bands is None
    if rewritten and min(height_width(size)) > options.size and not quiet:
        seen = size_words(size)
        say(f"dsdmae: warning: networks see these images at {seen} px, and they are packed at {options.size}")
    source = {"dataset": settings.dataset, "account": account.rows(), "notes": list(train.notes)}
    manifest = Manifest(
        f"dsdmae {__version__}", source, vars(options), size, train.channels, bands, limits, train.classes, 0,
        Shard(INDEX, 0, 0, ""), (),
    )  # fmt: skip
    unreadable = Unreadable(sum(map(len, splits.values())), settings)
    try:
        with stopping(), Counted("packing", 1, quiet=quiet) as report:
            report.begin(settings.dataset)
            done = pack(
                splits, out, options, manifest, rewritten=rewritten, unreadable=unreadable.add, advance=report.advance,
            )  # fmt: skip
    except KeyboardInterrupt as stopped:
        raise _interrupted(out, sum(map(len, splits.values())), stopped) from stopped
    if len(unreadable) and not quiet:
        for line in unreadable.lines():
            say(f"left out {line}")
    if done.as_they_were and not quiet:
        chosen = "" if bands is None else f", of whose bands a run reads {list(bands)}"
        say(f"{done.as_they_were:,} of {done.index.images:,} images are kept as the files they were, at their own size"
            f" (what is written anew is RGB of 8 bits){chosen}")  # fmt: skip
    return {
        "out": str(out),
        "images": done.index.images,
        "bytes": sum(shard.bytes for shard in done.shards),
        "shards": len(done.shards),
        "as_they_were": done.as_they_were,
        "unreadable": dict(done.source["unreadable"]),
        "next": f"dsdmae pretrain {typed(out)}",
    }


def _interrupted(out: Path, images: int, stopped: KeyboardInterrupt) -> RunInterrupted:
    number = Stopped.by if isinstance(stopped, Stopped) else int(signal.SIGINT)
    parts = list(parts_of_before(out))
    kept = f"{parts[-1].reached:,} of {images:,} images in whole shards are kept" if parts else "no shard was whole yet"
    kept = "all is packed" if (out / MANIFEST).exists() else kept
    return RunInterrupted(f"stopped by {signal_words(number)}: {kept} in {out}; the same command goes on", number)


def _require_elsewhere(dataset: str, out: Path) -> None:
    """See that what is packed does not become a part of what it is packed from."""
    source = Path(plugins.argument_of(dataset)).expanduser() if ":" in dataset else None
    if source is not None and source.is_dir() and out.expanduser().resolve().is_relative_to(source.resolve()):
        raise SettingsError(
            f"--out {out} lies in {source}, whose images are packed: its shards would be files of that dataset; choose"
            " a folder outside it"
        )


def _require_plain(spec: DatasetSpec, name: str) -> None:
    usual = DatasetSpec(summary="", build="", image_size=1).augment
    if spec.labelled_split != "train" or dict(spec.augment) != dict(usual):
        raise SettingsError(
            f"dataset {name} says how its own images are split or augmented, which a packed folder would forget; pack"
            " images of your own, or use it as it is"
        )
