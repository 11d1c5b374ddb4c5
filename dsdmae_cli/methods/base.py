"""A method: all that its author must read.

A method is an nn.Module with three moments:

    corrupt(images, generator)   all randomness lives here: masks, noise, views. Not compiled, not differentiated.
    forward(images, corruption)  deterministic, runs under autocast, may be compiled and distributed; gives losses.
    after_step(info)             after the optimiser's step: a teacher follows its student here.

A test can so hand `forward` a corruption of its own, and a resumed run needs no random state but the step's number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor, nn

from dsdmae_cli.backbone import Backbone

# A NamedTuple (or any pytree) of tensors; its shape is the method's own business.
Corruption = Any
# "loss" is what is differentiated; the other entries are its detached parts, for people to look at.
Losses = dict[str, Tensor]
# Rows of a figure by name: images in [-1, 1], [b, c, h, w], of any size.
Pictures = dict[str, Tensor]


@dataclass(frozen=True)
class StepInfo:
    """Where the run stands after an optimiser step.

    Attributes:
        step: steps done, this one included, from 1.
        total_steps: steps of the whole run.
        steps_per_epoch: steps of an epoch.
        skipped: scalar float tensor on the device, 1.0 if the step was skipped for a non-finite gradient, else 0.0.
            It is never read back here: multiply by it.
    """

    step: int
    total_steps: int
    steps_per_epoch: int
    skipped: Tensor


class Restoration(NamedTuple):
    """What the paper's Fig. 2 shows, in [-1, 1]: the images as the network got them, and as it gave them back."""

    corrupted: Float[Tensor, "b c h w"]
    restored: Float[Tensor, "b c h w"]


class Method(nn.Module):
    """A pre-training task around a backbone. Images are [b, c, s, s] in [-1, 1], of the encoder's `in_chans` channels.

    Attributes:
        num_views: how many augmented views of each image a batch holds, each a crop of its own; with more than one,
            images are [b, v, c, s, s].
        learns_features: the encoder's features, averaged over an image, are what it is for: their collapse is worth a
            warning.
        whole_batch: the losses compare the images of a batch, so that the engine must not cut it into micro-batches.
    """

    num_views: int = 1
    learns_features: bool = True
    whole_batch: bool = False

    def corrupt(self, images: Float[Tensor, "b *v c h w"], generator: Generator) -> Corruption:
        """Draw masks, noise or views for a batch.

        Args:
            generator: on the images' device, freshly seeded for this batch; the only source of randomness.
        """
        raise AssertionError("a method overrides corrupt")

    def forward(self, images: Float[Tensor, "b *v c h w"], corruption: Corruption) -> Losses:
        """The losses of a batch, each a mean over it; "loss" carries the gradient."""
        raise AssertionError("a method overrides forward")

    def as_views(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b *v c h w"]:
        """Images as a batch of this method, for pictures and plans: every view is the image itself."""
        return images if self.num_views == 1 else images.unsqueeze(1).expand(-1, self.num_views, -1, -1, -1)

    def after_step(self, info: StepInfo) -> None:
        """Whatever follows an optimiser step; nothing by default."""

    def encoder(self) -> Backbone:
        """The network that is kept when pre-training is over."""
        raise AssertionError("a method overrides encoder")

    @property
    def tokens_read(self) -> int:
        """Of an image's tokens, those that its networks read in training; the widest of them, where they differ."""
        return self.encoder().num_tokens

    def averaged(self) -> Backbone | None:
        """The moving average of the encoder, if the method keeps one as its teacher."""
        return None

    def denoise(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"] | None:
        """The whole image as the network restores it, every patch taken as noisy; None where it restores no pixels.

        Images are squares of the encoder's image_size, or of any size that `denoise_multiple` allows.
        """
        return None

    @property
    def denoise_multiple(self) -> int | None:
        """Where it is a number, `denoise` takes any height and width that are multiples of it; None = image_size alone.

        A method that says so computes the same with every image_size it may have been trained at.
        """
        return None

    def restore(self, images: Float[Tensor, "b *v c h w"], corruption: Corruption) -> Restoration | None:
        """Images as corrupted and as restored, for figures; None where the method restores no pixels."""
        return None

    @property
    def no_restore(self) -> str:
        """Why `restore` gives None, as a person should read it; asked only where it does."""
        return "it does not learn to predict pixels"

    @property
    def no_denoise(self) -> str:
        """Why `denoise` gives None, as a person should read it; asked only where it does."""
        if type(self).restore is Method.restore:
            return self.no_restore
        return "it has learned to restore what it takes away itself, and nothing of noise in what it sees"

    def show(self, images: Float[Tensor, "b *v c h w"], corruption: Corruption) -> Pictures:
        """What the method is given and what it predicts, for figures; overridden where that is more than pixels."""
        shown = self.restore(images, corruption)
        return {} if shown is None else {"given": shown.corrupted, "restored": shown.restored}

    def measure(self, images: Float[Tensor, "b c h w"]) -> dict[str, float]:
        """What the method has to say of itself on held-out images, by name, beside k-NN and the features' spread."""
        return {}

    def lr_scales(self) -> dict[str, float]:
        """Factors on the learning rate by parameter name, where they are not 1 (layer decay, several heads at once)."""
        return {}


class SupervisedMethod(Method):
    """A task that learns from labels; its corruption carries them (mixed labels are one with mixed images)."""

    def corrupt_labelled(
        self,
        images: Float[Tensor, "b c h w"],
        labels: Int64[Tensor, " b"] | UInt8[Tensor, "b h w"],
        generator: Generator,
    ) -> Corruption:
        """As Method.corrupt, with the images' labels: one an image, or of those who learn from masks one a pixel."""
        raise AssertionError("a supervised method overrides corrupt_labelled")

    def labels_to_try(self, images: Float[Tensor, "b c h w"]) -> Int64[Tensor, " b"] | UInt8[Tensor, "b h w"]:
        """Labels of the first class, as corrupt_labelled takes them: to see whether a batch fits the memory."""
        return torch.zeros(len(images), dtype=torch.int64, device=images.device)
