"""A picture as a pre-training method corrupts and restores it: the square that its network sees. With torch.

restore.py takes noise out of pictures of any size; here is what the method learned, with its own masks and noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from dsdmae_cli.artifacts.trained_method import TrainedMethod
from dsdmae_cli.data.augment import prepare
from dsdmae_cli.data.beyond import check_range
from dsdmae_cli.data.decode import decode, deep_values, image_form
from dsdmae_cli.data.source import derive_seed, seeded
from dsdmae_cli.data.square import to_square
from dsdmae_cli.data.values import Range, Ranges, Reading, range_for
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.methods.base import Restoration
from dsdmae_cli.pictures.contact_sheet import Panel
from dsdmae_cli.pictures.outcome import Changed, finite
from dsdmae_cli.pictures.paths import Source
from dsdmae_cli.pictures.picture import Picture
from dsdmae_cli.report import number_of
from dsdmae_cli.runtime import autocast
from dsdmae_cli.settings.resolved import ResolvedData
from dsdmae_cli.settings.size import Size, height_width

_RGB = 3
Rgb = UInt8[np.ndarray, "h w 3"]
# Smaller squares are enlarged by whole factors up to this side: patches can be seen, and captions fit above them.
_SHOWN = 192
_ADVICE = "--range LOW,HIGH says another"


class Shown(NamedTuple):
    """A square as the network got it, as it gave it back, and as it was; the names are those of paths.PARTS."""

    corrupted: Picture
    restored: Picture
    original: Picture


@dataclass(frozen=True)
class MethodAtWork:
    """A trained method on a device.

    Args:
        trained: its network is moved to the device.
        where: the device.
        precision: bf16, fp16 or fp32, of the network.
        seed: of masks and noise: every picture gets the same, whatever is named beside it.
    """

    trained: TrainedMethod
    where: torch.device
    precision: str
    seed: int

    def __post_init__(self) -> None:
        self.trained.method.to(self.where)

    def check(self) -> None:
        """Try it, before a picture is read.

        Raises:
            SettingsError: the method restores no pixels; the message says why.
        """
        channels = self.trained.settings.data.channels
        if channels not in ("auto", _RGB):
            raise SettingsError(
                f"the run learned from pictures of {number_of(channels, 'channel')}, and restore shows pictures"
                " of red, green and blue alone; name a run of such pictures"
            )
        self(np.zeros((*height_width(self.trained.method.encoder().image_size), 3), np.uint8))

    @torch.inference_mode()
    def __call__(self, rgb: Rgb) -> Shown:
        """The middle square of a picture, scaled as in evaluation, corrupted and restored.

        Raises:
            SettingsError: the method restores no pixels.
            MemoryError: the device has too little.
        """
        method = self.trained.method
        size = method.encoder().image_size
        square = np.ascontiguousarray(to_square(rgb, size))
        images = prepare(torch.from_numpy(square.copy()).permute(2, 0, 1)[None].to(self.where), size, "bicubic")
        views = method.as_views(images)
        try:
            corruption = method.corrupt(views, seeded(self.where, derive_seed(self.seed, "corrupt")))
            with autocast(self.where, self.precision):
                shown: Restoration | None = method.restore(views, corruption)
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error)) from None
        if shown is None:
            raise SettingsError(
                f"method {self.trained.settings.method.name!r} cannot restore pictures: {method.no_restore}"
            )
        return Shown(_picture(shown.corrupted), _picture(shown.restored), Picture.of(square))


def _picture(images: Float[Tensor, "1 3 h w"]) -> Picture:
    """Rounded and clipped as a file must be."""
    pixels = ((images[0].float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return Picture.of(np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy()))


def how_its_data(data: ResolvedData, limits: Range | Ranges | Literal["auto"] | None = "auto") -> Reading:
    """How the pictures of a run were read.

    Args:
        limits: in place of its own range.
    """
    return Reading(data.range if limits == "auto" else limits, None if data.bands == "auto" else data.bands)


def read_as_data(source: Source, how: Reading, *, own: bool) -> tuple[Rgb, int]:
    """A picture as a dataset would give it, and of how many pages it is the first.

    Args:
        how: it is read.
        own: where that has no range, take the picture's own.

    Raises:
        UnreadableImage: it cannot be decoded.
        DataError: nearly all of its values are beyond the range.
    """
    name = str(source)
    content = source.content()
    if (values := deep_values(content, name)) is not None:
        if how.range is None and own:
            how = replace(how, range=range_for([values], how))
        check_range([values], how, _ADVICE)
    return decode(content, name, how), image_form(content, name).pages


@dataclass(frozen=True)
class Restored:
    """A picture that was restored.

    Attributes:
        files: by what they show: corrupted, restored, original.
        width, height: of the picture; size: of the part of it that the network saw.
        scores: of the pixels that were changed.
        pages: of the file, of which this is the first.
    """

    source: str
    files: dict[str, Path]
    width: int
    height: int
    size: Size
    scores: Changed
    pages: int = 1
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """For --json."""
        return {
            "source": self.source,
            "files": {name: str(path) for name, path in self.files.items()},
            "width": self.width,
            "height": self.height,
            "side": self.size,
            "pages": self.pages,
            **self.scores.record("corrupted"),
            "seconds": round(self.seconds, 2),
        }

    def __str__(self) -> str:
        before, after = (f"{v:.2f} dB" if finite(v) is not None else "equal" for v in self.scores[1:])
        whole = self.scores.share in (0, 1)
        what = "" if whole else f" on the {self.scores.share:.0%} of pixels that were changed"
        rows, columns = height_width(self.size)
        square = f"{columns}x{rows} of {self.width}x{self.height}"
        square += f", the first of {self.pages} pages" if self.pages > 1 else ""
        return f"{self.source}  {square}, {before} -> {after}{what}, {self.seconds:.1f} s"


def row_of(rgb: Rgb, shown: Shown, scores: Changed) -> list[Panel]:
    """The picture as it was given, whole, then the square's three; all of one size, so that columns stand in line."""
    before, after = (f"{v:.2f} dB" if finite(v) is not None else "equal" for v in scores[1:])
    height, width = rgb.shape[:2]
    factor = max(1, _SHOWN // shown.original.height)
    size = shown.original.width * factor, shown.original.height * factor
    whole = ImageOps.pad(Image.fromarray(rgb), size, Image.Resampling.LANCZOS, color="white")
    given = Panel(Picture.of(np.asarray(whole)), f"given  {width}x{height}", 1)
    captions = (f"corrupted  {before}", f"restored  {after}", "original")
    return [given, *(Panel(picture, words, factor) for picture, words in zip(shown, captions, strict=True))]
