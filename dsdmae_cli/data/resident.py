"""A whole dataset decoded once and kept on the device as uint8; batches are cut and augmented there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from dsdmae_cli.data.augment import Augmentation
from dsdmae_cli.data.source import Batching, MicroBatch, Source
from dsdmae_cli.transfer import sent

_PIECE = 4096  # images


def to_tensor(arrays: UInt8[np.ndarray, "n h w c"], device: torch.device) -> UInt8[Tensor, "n c h w"]:
    """Channels first, on the device; piece by piece, so that no second copy of them all lies on the host.

    On the host it is the very memory of arrays that have their channels first there, as those of square.Squares.
    """
    n, h, w, c = arrays.shape
    if device.type == "cpu" and arrays.flags.writeable and arrays.transpose(0, 3, 1, 2).flags.c_contiguous:
        return torch.from_numpy(arrays.transpose(0, 3, 1, 2))
    images = torch.empty(n, c, h, w, dtype=torch.uint8, device=device)
    for start in range(0, n, _PIECE):
        images[start : start + _PIECE].copy_(torch.from_numpy(arrays[start : start + _PIECE]).permute(0, 3, 1, 2))
    return images


class ResidentSource(Source):
    """Batches out of one tensor on the device, with labels where they are given.

    Args:
        num_views: how many views of each image there are in a batch (Method.num_views).
        kept: which images of the dataset these are, ascending, where some could not be read; None = all of them.
        masks: labels of pixels in place of `labels`, augmented as their images are; with one view alone.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n c h w"],
        batching: Batching,
        plan: Augmentation,
        labels: Int64[Tensor, " n"] | None = None,
        num_views: int = 1,
        kept: Int64[np.ndarray, " n"] | None = None,
        masks: UInt8[Tensor, "n h w"] | None = None,
    ) -> None:
        assert masks is None or num_views == 1
        self.images = images
        self.kept = kept
        self.labels = labels
        self.masks = masks
        self.batching = batching
        self.plan = plan
        self.num_views = num_views

    def steps(self, epoch: int, first_step: int = 0) -> Iterator[Iterator[MicroBatch]]:
        order = sent(self.batching.order(epoch), self.images.device)  # once: a copy a micro-batch would be waited for
        for step in range(first_step, self.batching.steps_per_epoch):
            yield self._step(epoch, step, self.batching.micro_batches(order, step))

    def _step(self, epoch: int, step: int, chunks: list[Int64[Tensor, " m"]]) -> Iterator[MicroBatch]:
        for index, chosen in enumerate(chunks):
            seed = self.micro_seed("corrupt", epoch, step, index)
            if self.masks is not None:
                both = self.images[chosen], self.masks[chosen]
                images, masks = self.augmented_with_masks(*both, self.plan, epoch, step, index)
                yield MicroBatch(images, seed, masks)
                continue
            views = self.images[chosen].unsqueeze(1).expand(-1, self.num_views, -1, -1, -1)
            images = self.augmented(views, self.plan, epoch, step, index)
            labels = None if self.labels is None else self.labels[chosen]
            yield MicroBatch(images, seed, labels)
