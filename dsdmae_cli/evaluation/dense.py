"""What a probe of patches is to this program, and what its author must read: it labels pixels, not images.

Such a probe is one function too, `fit(settings, data) -> DenseResult`, named by a ProbeSpec with dense = True. It
learns from the tokens of training images and their masks, and gives back a function from tokens to scores of classes;
what becomes of the test images is done alike for all (dsdmae_cli.segmentation). What there is to choose is chosen by
`DenseData.held_out_iou`. No torch here, as in probes.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dsdmae_cli.evaluation.probes import Curves
from dsdmae_cli.report import number_of

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int64, UInt8
    from torch import Tensor

    from dsdmae_cli.evaluation.split import HeldOut
    from dsdmae_cli.report import Report
    from dsdmae_cli.settings.resolved import ResolvedProbeTrain

    Answer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DenseData:
    """What a probe of patches learns from: windows of the training images, in the size that the network sees.

    Attributes:
        tokens: [n, t, d] float32 on the CPU: final features of the patches of each window, row by row, no noise on it
            but `probe.input_noise`.
        masks: [n, h, w] labels of the windows' pixels, 0 to num_classes - 1, and data.masks.VOID for those that nobody
            judges.
        images: [n] which training image each window is of, ascending.
        grid: (rows, columns) of the t tokens.
        split: two parts of the images (not the windows), by their numbers in `images`: `fit` to learn from, and `held`
            to choose on. `held` is empty where there is a single image.
        num_classes: c.
        schedule: [train]: epochs, warm-up and seed. All that is random must follow from that seed, and the state of
            torch's global generators must be left as it was.
        device: where to compute.
        report: takes notes for people.
    """

    tokens: Float[Tensor, "n t d"]
    masks: UInt8[Tensor, "n h w"]
    images: Int64[Tensor, " n"]
    grid: tuple[int, int]
    split: HeldOut
    num_classes: int
    schedule: ResolvedProbeTrain
    device: torch.device
    report: Report

    def windows(self, images: Int64[Tensor, " k"]) -> Int64[Tensor, " m"]:
        """Which windows are of these images."""
        import torch

        return torch.nonzero(torch.isin(self.images, torch.as_tensor(images)))[:, 0]

    def held_out_iou(self, answer: Answer) -> float:
        """Mean IoU of the held-out windows, by which values of a setting are chosen.

        Args:
            answer: as DenseResult has it.
        """
        import torch

        from dsdmae_cli.evaluation.overlap import mean_iou
        from dsdmae_cli.evaluation.segmentation import Counts, answer_pixels

        counts = Counts.none(self.num_classes)
        for rows in self.windows(torch.from_numpy(self.split.held)).split(16):
            with torch.no_grad():
                scores = answer(self.tokens[rows].to(self.device))
            masks = self.masks[rows].to(self.device)
            predicted = answer_pixels(scores.unflatten(1, self.grid), (int(masks.shape[1]), int(masks.shape[2])))
            counts = counts.with_images(predicted, masks)
        return mean_iou(counts.total())

    @property
    def batch_size(self) -> int:
        """Images per step: train.batch_size; "auto" is 32, or what gives 16 steps an epoch where images are few."""
        wanted, count = self.schedule.batch_size, len(self.split.fit) + len(self.split.held)
        return wanted if wanted != "auto" else min(32, max(4, count // 16))

    def how_chosen(self, num_values: int, then: str = "trained anew on") -> str:
        """The words of a protocol for a value that was chosen from several; empty for a single one."""
        if num_values < 2:
            return ""
        return (
            f" chosen from {num_values} by mean IoU on {number_of(len(self.split.held), 'held-out training image')},"
            f" then {then} all {len(self.split.fit) + len(self.split.held):,}"
        )


@dataclass(frozen=True)
class DenseResult:
    """What a probe of patches answers.

    Attributes:
        answer: scores of classes for tokens, [b, t, d] to [b, t, c], on `DenseData.device`. They are upsampled
            bilinearly to pixels, and the largest is the answer: logits, or probabilities.
        protocol: what was done, in words that another lab could repeat it from.
        chosen: name and value of the setting that was chosen on held-out images; None = there is none.
        held_out: mean IoU on the held-out images by value of that setting; empty where a single value was given.
        notes: what a person should know.
        epochs: passes over the training images; None where nothing is trained by epochs.
        curves: of the trainings that were chosen from, for a figure.
    """

    answer: Answer
    protocol: str
    chosen: tuple[str, float] | None = None
    held_out: Mapping[float, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    epochs: int | None = None
    curves: Curves | None = None
