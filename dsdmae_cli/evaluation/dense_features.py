"""Images with masks to windows of the network's size, and those to tokens, a few images at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from dsdmae_cli.backbone import Backbone
from dsdmae_cli.data.augment import prepare
from dsdmae_cli.data.base import UnreadableImage
from dsdmae_cli.data.masks import MaskedImages, size_fault
from dsdmae_cli.data.resident import to_tensor
from dsdmae_cli.data.source import Unreadable
from dsdmae_cli.errors import DataError, RunFailed
from dsdmae_cli.evaluation.windows import Frame, cut_image, cut_mask, frame
from dsdmae_cli.runtime import autocast
from dsdmae_cli.settings.judge import DenseProbeSection
from dsdmae_cli.settings.size import Size, height_width

# Pictures that wait decoded while the network is at work.
_AHEAD = 32


@dataclass(frozen=True)
class Lens:
    """How pictures are looked at: windows of (height, width), and how they lie (windows.frame)."""

    window: tuple[int, int]
    scale: float | None
    stride: float

    @classmethod
    def fitting(cls, size: Size) -> Lens:
        """As a probe looks where nothing else is set: pictures scaled to cover a window of this size."""
        fields = DenseProbeSection.model_fields
        return cls(height_width(size), None, fields["stride"].default)

    @classmethod
    def of(cls, encoder: Backbone, settings: DenseProbeSection) -> Lens:
        """Windows of the encoder's size."""
        scale = None if settings.scale == "fit" else settings.scale
        return cls(height_width(encoder.image_size), scale, settings.stride)


@dataclass(frozen=True)
class Cut:
    """An image in windows.

    Attributes:
        index: of the image in its dataset.
        windows: as the network sees them, before they are scaled to [-1, 1].
        mask: of the whole image, as it is.
    """

    index: int
    frame: Frame
    windows: list[UInt8[np.ndarray, "h w c"]]
    mask: UInt8[np.ndarray, "height width"]

    def masks(self) -> list[UInt8[np.ndarray, "h w"]]:
        """Those of the windows."""
        return cut_mask(self.mask, self.frame)


def cuts(dataset: MaskedImages, indices: Sequence[int], lens: Lens, unreadable: Unreadable) -> Iterator[Cut]:
    """Images one by one, the next ones decoded while this one is used; unreadable ones are counted and left out.

    Raises:
        DataError: too many cannot be read, or a mask cannot be used.
    """

    def cut(index: int) -> Cut | UnreadableImage:
        try:
            pixels = dataset.load(index)
        except UnreadableImage as error:
            return error
        mask = dataset.load_mask(index)
        if mask.shape != pixels.shape[:2]:
            sides = ((a.shape[1], a.shape[0]) for a in (pixels, mask))
            raise DataError(size_fault(dataset, index, *sides))
        lying = frame((mask.shape[0], mask.shape[1]), lens.window, lens.scale, lens.stride)
        return Cut(index, lying, cut_image(pixels, lying), mask)

    with ThreadPoolExecutor(2) as ahead:
        left = iter(indices)
        while some := list(islice(left, _AHEAD)):
            for found in ahead.map(cut, some):
                if isinstance(found, UnreadableImage):
                    unreadable.add(found.name, found.reason)
                else:
                    yield found


class Sees(Protocol):
    """What gives every patch of a window a vector: an encoder its tokens, a network with a head its scores."""

    @property
    def image_size(self) -> Size:
        """Of the windows."""

    def forward_tokens(
        self, images: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b d"] | None]:
        """See Backbone."""


class Seen(NamedTuple):
    """An image and the tokens of its windows, on the device."""

    cut: Cut
    tokens: Float[Tensor, "k t d"]


@torch.no_grad()
def seen(encoder: Sees, coming: Iterator[Cut], device: torch.device, precision: str, batch_size: int) -> Iterator[Seen]:
    """Tokens of each image's windows; several images share a batch.

    Args:
        encoder: in eval mode, on the device.

    Raises:
        RunFailed: tokens are not finite.
    """
    waiting: list[Cut] = []
    for cut in coming:
        waiting.append(cut)
        if sum(len(one.windows) for one in waiting) >= batch_size:
            yield from _encoded(encoder, waiting, device, precision, batch_size)
            waiting = []
    if waiting:
        yield from _encoded(encoder, waiting, device, precision, batch_size)


def _encoded(encoder: Sees, some: list[Cut], device: torch.device, precision: str, batch_size: int) -> Iterator[Seen]:
    windows = np.stack([window for cut in some for window in cut.windows])
    parts = []
    for chunk in to_tensor(windows, device).split(batch_size):
        with autocast(device, precision):
            parts.append(encoder.forward_tokens(prepare(chunk, encoder.image_size, "bicubic"))[0].float())
    tokens = torch.cat(parts)
    if not tokens.isfinite().all():
        raise RunFailed(f"the encoder gives features that are not finite in {precision}; try --precision fp32")
    yield from (Seen(cut, own) for cut, own in zip(some, tokens.split([len(c.windows) for c in some]), strict=True))


class Patches(NamedTuple):
    """Tokens and masks of all windows of some images, on the CPU.

    Attributes:
        images: [n] which image each window is of, as a number among those that could be read.
        indices: of these in the dataset.
    """

    tokens: Float[Tensor, "n t d"]
    masks: UInt8[Tensor, "n h w"]
    images: Int64[Tensor, " n"]
    indices: list[int]


def patches(coming: Iterator[Seen]) -> Patches:
    """All of them at once, to learn from.

    Raises:
        DataError: none could be read.
    """
    tokens: list[Tensor] = []
    masks: list[UInt8[np.ndarray, "h w"]] = []
    images: list[int] = []
    indices: list[int] = []
    for one in coming:
        tokens.append(one.tokens.cpu())
        masks.extend(one.cut.masks())
        images.extend([len(indices)] * len(one.tokens))
        indices.append(one.cut.index)
    if not tokens:
        raise DataError("none of the training images can be read")
    return Patches(torch.cat(tokens), torch.from_numpy(np.stack(masks)), torch.tensor(images), indices)
