"""Learning from labels: fine-tuning the whole network, and attentive heads on a frozen one. Trained by the same engine.

Mix-up, CutMix, layer decay and attention pooling are timm's. RandAugment, timm's too, works on PIL
images and is done by the processes that decode (data/rand_augment.py).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from timm.data.mixup import Mixup
from timm.layers.attention_pool import AttentionPoolLatent
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dsdmae_cli.backbone import Backbone
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.methods.base import Losses, SupervisedMethod
from dsdmae_cli.methods.heads import head_count
from dsdmae_cli.settings.judge import FinetuneSection
from dsdmae_cli.tasks.erasing import erased
from dsdmae_cli.tasks.finetuning import FineTuning, Headed
from dsdmae_cli.tasks.weights import balanced


class MixedBatch(NamedTuple):
    """Images and labels as the network learns them: mixed, erased, smoothed; and the labels as they were."""

    images: Float[Tensor, "b c h w"]
    targets: Float[Tensor, "b k"]
    labels: Int64[Tensor, " b"]


class Network(Headed):
    """A backbone, a pooling and a linear layer."""

    def __init__(self, backbone: Backbone, num_classes: int, pool: str, std: float) -> None:
        super().__init__(backbone, num_classes, std)
        if pool == "cls" and not backbone.has_class_token:
            raise SettingsError("finetune.pool = 'cls' needs a class token and this backbone has none; use mean")
        self.pool = pool

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        if self.pool == "mean":
            return self.head(self.backbone(images).mean(dim=1))
        _, class_token = self.backbone.forward_tokens(images)
        return self.head(class_token)


class Classifier(FineTuning[Network]):
    """A network that names images, trained by (soft) cross-entropy.

    Args:
        num_classes: that the head tells apart.
        layer_decay: see FineTuning.
    """

    def __init__(self, settings: FinetuneSection, backbone: Backbone, num_classes: int, layer_decay: float) -> None:
        super().__init__(settings, Network(backbone, num_classes, settings.pool, settings.head_std), layer_decay)
        mixes = settings.mixup > 0 or settings.cutmix > 0
        self.mixup = (
            Mixup(settings.mixup, settings.cutmix, label_smoothing=settings.label_smoothing, num_classes=num_classes)
            if mixes
            else None
        )

    def weigh_classes(self, labels: Int64[Tensor, " n"]) -> None:
        """Let the classes count alike, by the training labels: each image's loss, target by target, times the weight of
        that class (weights.balanced), and the mean over the images."""
        self._weigh(balanced(labels, self.num_classes))

    def corrupt(self, images: Float[Tensor, "b c h w"], generator: Generator) -> MixedBatch:
        """As images of the first class, unmixed: for a plan, which measures work."""
        labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        return MixedBatch(images, F.one_hot(labels, self.num_classes).float(), labels)

    def corrupt_labelled(
        self, images: Float[Tensor, "b c h w"], labels: Int64[Tensor, " b"], generator: Generator
    ) -> MixedBatch:
        # timm draws from the interpreter's and numpy's global states: give them the batch's own seed.
        seed = generator.initial_seed()
        random.seed(seed)
        np.random.seed(seed % 2**32)
        if self.mixup is not None:
            images, targets = self.mixup(images.clone(), labels)
        else:
            smoothing = self.settings.label_smoothing
            off = smoothing / self.num_classes
            targets = F.one_hot(labels, self.num_classes).float() * (1 - smoothing) + off
        if self.settings.random_erasing:
            images = erased(images, self.settings.random_erasing, generator)
        return MixedBatch(images, targets, labels)

    def forward(self, images: Float[Tensor, "b c h w"], corruption: MixedBatch) -> Losses:
        logits = self.network(corruption.images).float()
        loss = F.cross_entropy(logits, corruption.targets, weight=self.class_weights)
        if self.mixup is not None:
            return {"loss": loss}
        right = (logits.argmax(dim=1) == corruption.labels).float().mean()
        return {"loss": loss, "accuracy": right}


class AttentiveProbe(SupervisedMethod):
    """A frozen encoder under several heads, each a cross-attention block with a learned query and a linear layer.

    One head a learning rate, all trained at once: they share the encoder's pass and nothing else.

    Args:
        lrs: learning rates relative to the schedule's.
    """

    def __init__(self, backbone: Backbone, num_classes: int, lrs: Sequence[float]) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.lrs = tuple(lrs)
        heads = head_count(backbone.width)
        self.heads = nn.ModuleList(
            nn.Sequential(AttentionPoolLatent(backbone.width, num_heads=heads), nn.Linear(backbone.width, num_classes))
            for _ in lrs
        )

    def train(self, mode: bool = True) -> AttentiveProbe:
        super().train(mode)
        self.backbone.eval()
        return self

    def corrupt(self, images: Float[Tensor, "b c h w"], generator: Generator) -> Int64[Tensor, " b"]:
        return torch.zeros(len(images), dtype=torch.int64, device=images.device)

    def corrupt_labelled(
        self, images: Float[Tensor, "b c h w"], labels: Int64[Tensor, " b"], generator: Generator
    ) -> Int64[Tensor, " b"]:
        return labels

    def forward(self, images: Float[Tensor, "b c h w"], corruption: Int64[Tensor, " b"]) -> Losses:
        losses = [F.cross_entropy(logits, corruption) for logits in self.logits(images)]
        # The sum gives every head the gradient that it would have alone.
        return {"loss": torch.stack(losses).sum(), **{f"head {i}": loss.detach() for i, loss in enumerate(losses)}}

    def logits(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "n b k"]:
        """Of every head."""
        with torch.no_grad():
            tokens = self.backbone(images)
        return torch.stack([head(tokens).float() for head in self.heads])

    def encoder(self) -> Backbone:
        return self.backbone

    def lr_scales(self) -> dict[str, float]:
        return {
            f"heads.{index}.{name}": lr
            for index, lr in enumerate(self.lrs)
            for name, _ in self.heads[index].named_parameters()
        }
