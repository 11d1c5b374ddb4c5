"""Training batches: which images make up which step, and where they come from.

An epoch is one permutation of the images, drawn from (seed, epoch); step k takes its k-th slice, a process its share
of the slice, in micro-batches. Every micro-batch carries the seed of all that is random about it, derived from
(seed, step, position in the global batch). So a resumed run needs no random state, and processes that share a batch
draw what one process would draw, as long as the micro-batch is the same.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor

from dsdmae_cli.data.augment import Augmentation, augment, augment_with_masks
from dsdmae_cli.errors import DataError
from dsdmae_cli.report import number_of, shown
from dsdmae_cli.settings.models import DataSettings


def derive_seed(seed: int, purpose: str, *numbers: int) -> int:
    """An independent 63-bit seed for each purpose and set of numbers."""
    text = ":".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def of_view(purpose: str, view: int) -> str:
    """The purpose of a view's draws; those of the first view are what they are when it is the only one."""
    return purpose if view == 0 else f"{purpose} view {view + 1}"


def seeded(device: torch.device, seed: int) -> Generator:
    """A generator on the device with this seed."""
    return torch.Generator(device=device).manual_seed(seed)


@dataclass(frozen=True)
class Batching:
    """How the images of an epoch are divided.

    Args:
        batch_size: images per step over all processes.
        micro_batch: images per forward pass.
        rank, world_size: this process and how many there are.
    """

    num_images: int
    batch_size: int
    micro_batch: int
    seed: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size > self.num_images:
            raise DataError(
                f"train.batch_size = {self.batch_size} is larger than the"
                f" {number_of(self.num_images, 'training image')}; set --batch-size {self.num_images} or lower"
            )
        if self.batch_size % self.world_size:
            raise DataError(
                f"train.batch_size = {self.batch_size} cannot be shared evenly by {self.world_size} processes;"
                f" use a multiple of {self.world_size}"
            )

    @property
    def local_batch(self) -> int:
        """Images per step in this process."""
        return self.batch_size // self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; what is left over takes its turn in another permutation."""
        return self.num_images // self.batch_size

    def order(self, epoch: int) -> Int64[Tensor, " n"]:
        """The epoch's permutation of all images."""
        generator = seeded(torch.device("cpu"), derive_seed(self.seed, "order", epoch))
        return torch.randperm(self.num_images, generator=generator)

    def micro_batches(self, order: Int64[Tensor, " n"], step_in_epoch: int) -> list[Int64[Tensor, " m"]]:
        """This process's image indices of a step, micro-batch by micro-batch."""
        first = step_in_epoch * self.batch_size + self.rank * self.local_batch
        return list(order[first : first + self.local_batch].split(self.micro_batch))

    def position(self, index: int) -> int:
        """Number of this process's micro-batch `index` among those of all processes."""
        return self.rank * -(-self.local_batch // self.micro_batch) + index


class MicroBatch(NamedTuple):
    """Augmented images in [-1, 1] on the device, and the seed of all that is still to be drawn for them.

    Of several views of each image they are [b, v, 3, s, s]. labels are there where the run learns from them: one an
    image, or a mask that was augmented as its image was.
    """

    images: Float[Tensor, "b *v c h w"]
    seed: int
    labels: Int64[Tensor, " b"] | UInt8[Tensor, "b h w"] | None = None


class Source(ABC):
    """Training images of a run, step by step."""

    batching: Batching
    _generator: Generator | None = None

    @abstractmethod
    def steps(self, epoch: int, first_step: int = 0) -> Iterator[Iterator[MicroBatch]]:
        """The steps of an epoch from `first_step` (counted within the epoch) on, each as its micro-batches.

        Raises:
            DataError: too many images are unreadable, or one is and data.strict is set.
        """

    def micro_seed(self, purpose: str, epoch: int, step_in_epoch: int, index: int) -> int:
        """Seed of one purpose for this process's micro-batch `index` of a step."""
        step = epoch * self.batching.steps_per_epoch + step_in_epoch
        return derive_seed(self.batching.seed, purpose, step, self.batching.position(index))

    def augmented(
        self, pixels: UInt8[Tensor, "b v c h w"], plan: Augmentation, epoch: int, step_in_epoch: int, index: int
    ) -> Float[Tensor, "b *v c h w"]:
        """Each view augmented with draws of its own; without a dimension for views where there is but one.

        Args:
            index: of this process's micro-batch.
        """
        seeds = [self.micro_seed(of_view("augment", v), epoch, step_in_epoch, index) for v in range(pixels.shape[1])]
        parts = zip(pixels.unbind(dim=1), seeds, strict=True)
        views = [augment(part, plan, self._seeded(pixels.device, seed)) for part, seed in parts]
        return views[0] if len(views) == 1 else torch.stack(views, dim=1)

    def augmented_with_masks(
        self,
        pixels: UInt8[Tensor, "b c h w"],
        masks: UInt8[Tensor, "b h w"],
        plan: Augmentation,
        epoch: int,
        step_in_epoch: int,
        index: int,
    ) -> tuple[Float[Tensor, "b c s t"], UInt8[Tensor, "b s t"]]:
        """`augmented` for a single view, and the masks by the same draws."""
        seed = self.micro_seed(of_view("augment", 0), epoch, step_in_epoch, index)
        return augment_with_masks(pixels, masks, plan, self._seeded(pixels.device, seed))

    def _seeded(self, device: torch.device, seed: int) -> Generator:
        """One generator that is seeded anew each time."""
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device=device)
        return self._generator.manual_seed(seed)

    def recut(self, micro_batch: int) -> None:
        """Have micro-batches of another size from the next call of `steps` on."""
        self.batching = replace(self.batching, micro_batch=micro_batch)

    def close(self) -> None:  # noqa: B027  (most have nothing to close)
        """Let go of whatever is held."""


class Unreadable:
    """Images that could not be read: each named once, counted, and limited.

    Args:
        total: images in the dataset.
        split: what they are for, as "held-out".
    """

    def __init__(self, total: int, settings: DataSettings, split: str = "") -> None:
        self.total = total
        self.split = split
        self.settings = settings
        self.reasons: dict[str, str] = {}
        # A hundredth of ten images is no image; a single broken one should never stop a run unless it is strict.
        self.limit = max(1, int(settings.max_unreadable * total))

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, name: str, reason: str) -> None:
        """Count an image.

        Raises:
            DataError: the limit is passed, or data.strict is set.
        """
        if self.settings.strict:
            raise DataError(f"unreadable image {name}: {reason}; mend or remove it, or run without --strict-data")
        self.reasons.setdefault(name, reason)
        if len(self) > self.limit:
            first, why = next(iter(self.reasons.items()))
            raise DataError(
                f"{len(self)} unreadable images so far, more than the limit of {self.limit} of {self.total} (first:"
                f" {first}: {why}); mend them or raise it with --set data.max_unreadable=SHARE"
            )

    @property
    def first(self) -> str:
        """One of them, and why; there must be one."""
        name, reason = next(iter(self.reasons.items()))
        return f"{name}: {reason}"

    def lines(self, kind: str = "image", most: int = 3) -> list[str]:
        """A line that counts them and names the first; none where all could be read.

        Args:
            kind: of image.
            most: that are named.
        """
        if not self.reasons:
            return []
        named = "; ".join(f"{name}: {reason}" for name, reason in list(self.reasons.items())[:most])
        more = f"; and {len(self) - most:,} more" if len(self) > most else ""
        some = "an" if len(self) == 1 else f"{len(self):,}"
        return [shown(f"{some} unreadable {kind}{'s' * (len(self) > 1)}: {named}{more}", one_line=True)]
