"""What a probe is to this program, and what its author must read.

A probe is one function, `fit(settings, data) -> ProbeResult`, named by a ProbeSpec (dsdmae_cli.plugins). It learns from
the features, or the images, of the training part and answers for the test part. What there is to choose is chosen on
held-out training images and never on the test set, whose labels are therefore not in `ProbeData`. No torch here:
settings and spec of a probe stand in the same file as its function, and that file is read for every --help.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from dsdmae_cli.report import number_of as number_of

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int64
    from torch import Tensor

    from dsdmae_cli.backbone import Backbone
    from dsdmae_cli.data.base import ImageDataset
    from dsdmae_cli.evaluation.split import HeldOut
    from dsdmae_cli.report import Report
    from dsdmae_cli.settings.resolved import ResolvedData, ResolvedProbeTrain

V = TypeVar("V")


@dataclass(frozen=True)
class ProbeData:
    """What a probe learns from and answers for: images that could be read, in the same order everywhere.

    Attributes:
        train_features: [n, d] float32 on the CPU, pooled as `probe.pool` says, of clean training images.
        train_labels: [n] from 0 to num_classes - 1. With few labels a class may have no image.
        test_features: [m, d] of the test images, whose labels no probe sees.
        split: two parts of the n training images, by index: `fit` to learn from, and `held` to choose on. `held` is
            empty where no class has two images; with few labels the settings then have no choice left
            (ProbeSection.without_choice).
        others: where `held` is few, further such parts of the n images, with others held out: a choice that is cheap is
            by the right answers of all of them.
        num_classes: c.
        encoder: frozen, in eval mode, on `device`; it takes images [b, 3, s, s] in [-1, 1].
        train_images, test_images: the n and m images; those of the test set are without labels.
        image_settings: [data]: how images are brought to a size and varied.
        schedule: [train]: epochs, warm-up and seed. All that is random must follow from that seed, and the state of
            torch's global generators must be left as it was. The batch size is `batch_size` below.
        device: where to compute.
        precision: of the encoder's pass: "bf16", "fp16" or "fp32".
        report: takes notes and progress for people.
    """

    train_features: Float[Tensor, "n d"]
    train_labels: Int64[Tensor, " n"]
    test_features: Float[Tensor, "m d"]
    split: HeldOut
    num_classes: int
    encoder: Backbone
    train_images: ImageDataset
    test_images: ImageDataset
    image_settings: ResolvedData
    schedule: ResolvedProbeTrain
    device: torch.device
    precision: str
    report: Report
    others: tuple[HeldOut, ...] = ()

    @property
    def batch_size(self) -> int:
        """Images per step: train.batch_size; "auto" is 1024, or what gives 16 steps an epoch where images are few."""
        wanted = self.schedule.batch_size
        return wanted if wanted != "auto" else min(1024, 1 << max(16, len(self.train_labels) // 16).bit_length() - 1)

    def how_chosen(self, num_values: int, then: str = "trained anew on", by_others: bool = False) -> str:
        """The words of a protocol for a value that was chosen from several; empty for a single one.

        Args:
            then: what is done with the chosen value and all training images.
            by_others: `others` had their say too.
        """
        if num_values < 2:
            return ""
        held = [len(part.held) for part in (self.split, *(self.others if by_others else ()))]
        turns = f", held out in {len(held)} turns" if len(held) > 1 else ""
        return (
            f" chosen from {num_values} on {number_of(sum(held), 'held-out training image')}{turns},"
            f" then {then} all {len(self.split.fit) + len(self.split.held):,}"
        )

    def how_weighted(self, class_weights: str | None) -> str:
        """The words of a protocol for a setting class_weights; empty for none."""
        return f", classes with {class_weights} weights in the loss" if class_weights else ""


@dataclass(frozen=True)
class Curves:
    """What trainings at several values of a setting passed through, by epoch.

    Attributes:
        values: [v] of the setting.
        loss: [epochs][v] mean training loss of the epoch; None once a training has diverged.
        held_out: [epochs][v] accuracy on the held-out images after the epoch; empty where none were given.
    """

    values: tuple[float, ...]
    loss: list[list[float | None]]
    held_out: list[list[float]]


@dataclass(frozen=True)
class ProbeResult:
    """What a probe answers.

    Attributes:
        logits: [m, c] of the test images, on the CPU; their softmax is taken for the confidence.
        protocol: what was done, in words that another lab could repeat it from.
        chosen: name and value of the setting that was chosen on held-out images; None = there is none.
        held_out: accuracy on the held-out images by value of that setting; empty where a single value was given.
        notes: what a person should know.
        epochs: passes over the training images; None where nothing is trained by epochs.
        curves: of the trainings that were chosen from, for a figure.
    """

    logits: Float[Tensor, "m c"]
    protocol: str
    chosen: tuple[str, float] | None = None
    held_out: Mapping[float, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    epochs: int | None = None
    curves: Curves | None = None


def of_all(accuracies: Sequence[Mapping[V, float]], counts: Sequence[int]) -> dict[V, float]:
    """Accuracy by value over several held-out parts together; none of none.

    Args:
        accuracies: of each part.
        counts: its images.
    """
    values = accuracies[0] if accuracies else ()
    return {
        value: sum(part[value] * count for part, count in zip(accuracies, counts, strict=True)) / sum(counts)
        for value in values
    }


def best_of(held_out: Mapping[V, float]) -> V:
    """The value with the highest held-out accuracy; of equals the first."""
    return max(held_out, key=held_out.__getitem__)
