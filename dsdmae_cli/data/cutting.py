"""Random crops out of one image, by way of as few decoded pixels as they need; for workers that decode ahead.

augment.py cuts the same crops out of batches that are on the device already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Generator, Tensor

from dsdmae_cli.data.augment import NUM_TRIES, Augmentation, Interpolation, central_box
from dsdmae_cli.data.base import ImageDataset, UnreadableImage
from dsdmae_cli.data.plain import Odd, Plain, plain
from dsdmae_cli.data.square import to_square
from dsdmae_cli.settings.size import Size, height_width

# A picture is decoded at a fraction of its size where a crop has still so many times the pixels that it becomes. At 1
# the crop would be what JPEG's transform makes of it; at 1.5 antialiasing has the last word (docs/results/feed.md).
LEAST_REDUCTION = 1.5

Pixels = UInt8[np.ndarray, "h w c"]


class Box(NamedTuple):
    """A rectangle of whole pixels."""

    top: int
    left: int
    height: int
    width: int


class Picture:
    """An image whose size is known and whose pixels are decoded when a crop asks for them.

    Args:
        dataset, index: the image.

    Raises:
        UnreadableImage: it cannot be decoded, as far as that is tried.
    """

    def __init__(self, dataset: ImageDataset, index: int) -> None:
        self._dataset, self._index = dataset, index
        content = dataset.encoded(index)
        self._plain: Plain | None = None if content is None else plain(content)
        self._whole: Pixels | None = None
        if self._plain is None:
            self._whole = dataset.load(index)
            self.height, self.width = self._whole.shape[:2]
        else:
            self.height, self.width = self._plain.height, self._plain.width

    def whole(self) -> Pixels:
        """All of it.

        Raises:
            UnreadableImage: it cannot be decoded.
        """
        return self._at(1)[0]

    def crops(
        self, boxes: Sequence[Box], size: Size, interpolation: Interpolation
    ) -> list[UInt8[Tensor, "rows columns c"]]:
        """Each box at this size, antialiased; each may lie in memory of its own or not.

        A JPEG whose boxes are all at least LEAST_REDUCTION x 2 times that large is decoded at a fraction of its size.
        The edges of boxes are then at whole pixels of that, which moves them by at most half such a pixel.

        Raises:
            UnreadableImage: it cannot be decoded.
        """
        height, width = height_width(size)
        least = min(min(box.height / height, box.width / width) for box in boxes)
        pixels, shrink = self._at(self._affordable(least))
        return [resampled(_part(pixels, box, shrink), size, interpolation) for box in boxes]

    def _affordable(self, reduction: float) -> int:
        shrinks = () if self._plain is None else self._plain.shrinks
        return next((n for n in shrinks if reduction >= n * LEAST_REDUCTION), 1)

    def _at(self, shrink: int) -> tuple[Pixels, int]:
        if self._whole is not None:
            return self._whole, 1
        assert self._plain is not None
        try:
            pixels = self._plain.pixels(shrink)
        except Odd:
            pixels, shrink = self._dataset.load(self._index), 1
            if pixels.shape[:2] != (self.height, self.width):  # boxes have been drawn for what the header says
                name, (height, width) = self._dataset.name(self._index), pixels.shape[:2]
                reason = f"its header says {self.width}x{self.height} and its pixels are {width}x{height}"
                raise UnreadableImage(name, reason) from None
        if shrink == 1:
            self._whole = pixels
        return pixels, shrink


def _part(pixels: Pixels, box: Box, shrink: int) -> Pixels:
    """What a box of the whole picture is of one that was decoded at 1/shrink."""

    def span(first: int, length: int, of: int) -> slice:
        start, end = ((place + shrink // 2) // shrink for place in (first, first + length))
        return slice(start, min(end, of))

    return pixels[span(box.top, box.height, pixels.shape[0]), span(box.left, box.width, pixels.shape[1])]


def resampled(part: Pixels, size: Size, interpolation: Interpolation) -> UInt8[Tensor, "rows columns c"]:
    """All of an image at this size, antialiased as Pillow's, from which it differs by at most one level.

    torch's kernel for uint8 is vectorised where three channels lie side by side, and needs no conversion to float.
    """
    channels_first = _tensor(part).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(
        channels_first, height_width(size), mode=interpolation, antialias=True, align_corners=False
    )
    return resized[0].permute(1, 2, 0)


def _tensor(pixels: Pixels) -> UInt8[Tensor, "h w c"]:
    """The same memory where it may be written to, which torch insists on."""
    contiguous = np.ascontiguousarray(pixels)
    return torch.from_numpy(contiguous if contiguous.flags.writeable else contiguous.copy())


def crops(
    picture: Picture, plan: Augmentation, generators: Sequence[Generator]
) -> list[UInt8[Tensor, "rows columns c"]]:
    """A crop for each generator, as the plan says: a window of a square, the middle square, or a random resized crop.

    Raises:
        UnreadableImage: it cannot be decoded.
    """
    if plan.crop_from is not None:
        # The window is cut in here: a whole square would be many times as much to send.
        square = _tensor(to_square(picture.whole(), plan.crop_from))
        corners = (window_corner(plan, generator) for generator in generators)
        return [square[top : top + plan.height, left : left + plan.width] for top, left in corners]
    if plan.crop_scale is None:
        return [_tensor(to_square(picture.whole(), plan.image_size))] * len(generators)
    boxes = [crop_box(picture.height, picture.width, plan.crop_scale, plan.ratios, g) for g in generators]
    return picture.crops(boxes, plan.image_size, plan.interpolation)


def window_corner(plan: Augmentation, generator: Generator) -> tuple[int, int]:
    """Top and left of a window of the plan's size in a square of crop_from pixels."""
    assert plan.crop_from is not None
    # Two draws of one number are the draw of two that squares have always had.
    top, left = (
        int(torch.randint(0, plan.crop_from - side + 1, (), generator=generator)) for side in (plan.height, plan.width)
    )
    return top, left


def crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], generator: Generator
) -> Box:
    """augment.crop_boxes for one image, whose draws it makes, in a tenth of the time; up to a rounding the same box."""
    areas, ratios, tops, lefts = torch.rand((4, NUM_TRIES), generator=generator).tolist()
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for u_area, u_ratio in zip(areas, ratios, strict=True):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * u_area)
        aspect = math.exp(log_low + (log_high - log_low) * u_ratio)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(tops[0] * (height - h + 1)), int(lefts[0] * (width - w + 1)), h, w)
    h, w = central_box(height, width, ratio)
    return Box((height - h) // 2, (width - w) // 2, h, w)
