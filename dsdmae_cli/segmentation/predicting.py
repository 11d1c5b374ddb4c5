"""Masks of pictures by a network that was fine-tuned to name pixels: read, brought under windows and named as the test
images of its run were, whatever their size.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from dsdmae_cli.artifacts.classifier import Tuned
from dsdmae_cli.artifacts.open import open_encoder
from dsdmae_cli.artifacts.subject import Subject
from dsdmae_cli.data.base import UnreadableImage
from dsdmae_cli.data.masks import VOID
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.evaluation.dense_features import Cut, Lens, seen
from dsdmae_cli.evaluation.windows import cut_image, frame, labels_of
from dsdmae_cli.pictures.each import Made, check_free, each
from dsdmae_cli.pictures.outcome import Outcome
from dsdmae_cli.pictures.paths import Failure, Results, Source, targets
from dsdmae_cli.pictures.predict import as_it_learned, as_its_run_read, how_seen
from dsdmae_cli.report import say
from dsdmae_cli.report.counted import Counted
from dsdmae_cli.runtime import choose_device, choose_precision
from dsdmae_cli.segmentation.drawing import class_colours
from dsdmae_cli.settings.resolved import ResolvedFinetuneSettings
from dsdmae_cli.tasks.segmenter import PixelNetwork

_BATCH = 16


@dataclass(frozen=True)
class Masked:
    """What became of a picture.

    Attributes:
        shares: of the picture's pixels, by class.
        seconds: from reading to writing.
    """

    picture: str
    mask: Path
    width: int
    height: int
    shares: dict[str, float]
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """For --json."""
        return {
            "picture": self.picture,
            "mask": str(self.mask),
            "width": self.width,
            "height": self.height,
            "shares": {name: round(share, 6) for name, share in self.shares.items()},
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        most = sorted(self.shares.items(), key=lambda pair: -pair[1])[:3]
        return f"{self.mask}: {', '.join(f'{name} {share:.0%}' for name, share in most if share >= 0.005)}"


def segment(
    subject: Subject,
    sources: list[Source],
    failed: list[Failure],
    *,
    results: Results,
    force: bool,
    device: str,
    precision: str,
    quiet: bool,
) -> Outcome:
    """Write a mask of every picture, of its size, as NAME.png in a folder, or of one to a file: values are those of the
    classes in the files that the network learned from, so that such a folder is one of masks again; the palette is that
    of the figures.

    Args:
        subject: a network that names pixels (artifacts.subject.parse_classifier).
        failed: what was named and is no picture.
        results: where they go, each by a name of its own alone.
        force: replace what is there.

    Raises:
        CheckpointError: the network is damaged.
        DataError: the network's range makes these pictures black or white all over.
        SettingsError: there is no such device, two masks would have one name or lie in one file, or one where its
            picture is.
        RunFailed, RunInterrupted: see pictures/each.py.
    """
    began = time.monotonic()
    settings = subject.settings()
    assert isinstance(settings, ResolvedFinetuneSettings)
    files = _files(sources, results)
    for source, file in zip(sources, files, strict=True):
        if source.path is not None and source.path.resolve() == file.resolve():
            raise SettingsError(f"the mask of {source} would take its place; name another folder with --out")
    where = choose_device(device)
    how = choose_precision(precision, where)
    opened = open_encoder(subject, None, backbone=None, image_size=None, seed=0, head=True)
    tuned = opened.tuned
    assert tuned is not None
    network = tuned.network.to(where).eval()
    assert isinstance(network, PixelNetwork)
    images = as_its_run_read(settings.data, sources)
    for note in how_seen(images):
        say(note)
    palette = _palette(tuned)
    values = np.array(tuned.values, dtype=np.uint8)
    outcome = Outcome(
        {
            "network": subject.text,
            "weights_sha256": tuned.sha256,
            "classes": list(tuned.classes),
            "values": list(tuned.values),
            "image_size": opened.encoder.image_size,
        },
        "segmented",
        failed=list(failed),
    )

    def make(number: int) -> Made:
        check_free(files[number], force=force)
        try:
            pixels = images.load(number)
        except UnreadableImage as error:
            raise UnreadableImage(error.name, as_it_learned(error.reason, settings.data)) from error
        labels = _labels(network, pixels, where, how)
        counts = np.bincount(labels.ravel(), minlength=len(values)) / labels.size
        mask = Image.fromarray(values[labels])
        mask.putpalette(palette.tobytes())
        shares = dict(zip(tuned.classes, counts.tolist(), strict=True))
        height, width = labels.shape
        return Made([(mask, files[number])], Masked(str(sources[number]), files[number], width, height, shares), [])

    each(sources, make, outcome, Counted("segmenting", len(sources), quiet=quiet), device=str(where))
    outcome.seconds = time.monotonic() - began
    return outcome


def _files(sources: list[Source], results: Results) -> list[Path]:
    """Where each mask goes."""
    found = targets(sources, results)
    if not found[0].open_ended and found[0].path is not None:
        file = found[0].path
        if file.suffix.lower() != ".png":
            raise SettingsError(f"--out {file}: a mask is a PNG; name a .png, or a folder")
        return [file]
    folder = Path(str(results.out))
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--out {folder} is a file; masks go to a folder, or that of one picture to a .png")
    return [target.named(".png") for target in found]


@torch.inference_mode()
def _labels(
    network: PixelNetwork, pixels: UInt8[np.ndarray, "h w c"], device: torch.device, precision: str
) -> UInt8[np.ndarray, "h w"]:
    """Of every pixel of a picture."""
    lens = Lens.fitting(network.image_size)
    size = (pixels.shape[0], pixels.shape[1])
    lying = frame(size, lens.window, lens.scale, lens.stride)
    cut = Cut(0, lying, cut_image(pixels, lying), np.full(size, VOID, dtype=np.uint8))  # nobody judges it
    [(_, scores)] = seen(network, iter([cut]), device, precision, _BATCH)
    grids = scores.unflatten(1, network.backbone.grid)
    return labels_of(grids, lying, size).cpu().numpy()


def _palette(tuned: Tuned) -> UInt8[np.ndarray, "256 3"]:
    """Colours by value, those of the figures' classes."""
    colours = class_colours(len(tuned.classes))
    palette = np.zeros_like(colours)
    palette[VOID] = colours[VOID]
    palette[list(tuned.values)] = colours[: len(tuned.classes)]  # one of them may be 255
    return palette
