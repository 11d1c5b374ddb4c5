"""Learning from labels of pixels: a linear layer on every patch's token, upsampled bilinearly, and the whole network
below it. Trained by the same engine as any method.

Strudel et al. 2021 (Segmenter) call such a head "linear" and show that little is gained by a heavier one on a ViT that
was pre-trained well. Tokens are normalised each for itself (LayerNorm without weights), not by a batch's mean and
variance: a micro-batch, a process's share and a picture alone are then answered alike.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor
from torch.nn import functional as F

from dsdmae_cli.backbone import Backbone, evaluating, freeze_unmet
from dsdmae_cli.blocks import numbers_of, shape_of
from dsdmae_cli.data.masks import VOID
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.methods.base import Losses
from dsdmae_cli.settings.judge import FinetuneSection
from dsdmae_cli.settings.size import Size, height_width, size_words
from dsdmae_cli.tasks.erasing import erased
from dsdmae_cli.tasks.finetuning import FineTuning, Headed
from dsdmae_cli.tasks.weights import balanced_by_counts

_KEY = "finetune.blocks"


class MaskedBatch(NamedTuple):
    """Images as the network learns them, and labels and VOID of their pixels."""

    images: Float[Tensor, "b c h w"]
    masks: UInt8[Tensor, "b h w"]


def check_cells(encoder: Backbone) -> None:
    """See that tokens lie in the image as cells of one size.

    Raises:
        SettingsError: they do not.
    """
    (height, width), (rows, columns) = height_width(encoder.image_size), encoder.grid
    if encoder.num_tokens < 2 or height % rows or width % columns:
        raise SettingsError(
            f"this encoder gives {rows}x{columns} tokens for {size_words(encoder.image_size)} px, which are no cells of"
            " the image; set data.image_size to a multiple of its stride"
        )


class PixelNetwork(Headed):
    """A backbone and a linear layer on every token: scores of classes at every pixel.

    Args:
        blocks: after which of the backbone's blocks its tokens are read, as finetune.blocks has it; those of several
            lie side by side.

    Raises:
        SettingsError: tokens are no cells of the image, there are no such blocks, or they have several grids.
    """

    def __init__(self, backbone: Backbone, num_classes: int, std: float, blocks: str = "last") -> None:
        check_cells(backbone)
        numbers, width = numbers_of(backbone, blocks, _KEY), backbone.width
        if blocks != "last":
            tokens, width, _ = shape_of(backbone, numbers, _KEY)
            if tokens != backbone.num_tokens:
                raise SettingsError(f"{_KEY} = {blocks!r}: its grid is not that of the final features; say last")
        super().__init__(backbone, num_classes, std, width)
        self.blocks = numbers

    @property
    def image_size(self) -> Size:
        """Of the images it takes."""
        return self.backbone.image_size

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        scores = self.patch_scores(images).movedim(3, 1)
        return F.interpolate(scores, images.shape[-2:], mode="bilinear", align_corners=False)

    def patch_scores(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b rows columns k"]:
        """Of the patches as they lie, in float32."""
        return self.forward_tokens(images)[0].unflatten(1, self.backbone.grid)

    def forward_tokens(self, images: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b t k"], None]:
        """Scores in the place of an encoder's tokens, for what looks at pictures by windows."""
        found = [tokens for tokens, _ in self.backbone.forward_blocks(images, self.blocks)]
        normed = [F.layer_norm(tokens, tokens.shape[-1:]) for tokens in found]
        return self.head(torch.cat(normed, dim=2)).float(), None


class Segmenter(FineTuning[PixelNetwork]):
    """A network that names pixels, trained by cross-entropy over those that are not void.

    Args:
        num_classes: that the head tells apart.
        layer_decay: see FineTuning.
    """

    def __init__(self, settings: FinetuneSection, backbone: Backbone, num_classes: int, layer_decay: float) -> None:
        network = PixelNetwork(backbone, num_classes, settings.head_std, settings.blocks)
        if backbone.num_blocks not in network.blocks:
            self._freeze_blocks_after(network)
        super().__init__(settings, network, layer_decay)

    @staticmethod
    def _freeze_blocks_after(network: PixelNetwork) -> None:
        """What lies behind the last block that is read stays as it is. Not so in PixelNetwork itself, whose backbone a
        later run may begin with."""
        backbone, weight = network.backbone, network.head.weight
        blank = torch.zeros(1, backbone.in_chans, *height_width(backbone.image_size), device=weight.device)
        with evaluating(network), torch.enable_grad():
            freeze_unmet(backbone, network.forward_tokens(blank.to(weight.dtype))[0])

    def weigh_pixels(self, counts: Int64[Tensor, " c"]) -> None:
        """Let the classes count alike, by how many pixels of the training masks are of each (weights.balanced)."""
        self._weigh(balanced_by_counts(counts))

    def corrupt(self, images: Float[Tensor, "b c h w"], generator: Generator) -> MaskedBatch:
        """As images all of the first class: for a plan, which measures work."""
        return MaskedBatch(images, torch.zeros_like(images[:, 0], dtype=torch.uint8))

    def labels_to_try(self, images: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b h w"]:
        return torch.zeros_like(images[:, 0], dtype=torch.uint8)

    def corrupt_labelled(
        self,
        images: Float[Tensor, "b c h w"],
        labels: Int64[Tensor, " b"] | UInt8[Tensor, "b h w"],
        generator: Generator,
    ) -> MaskedBatch:
        if self.settings.random_erasing:
            images = erased(images, self.settings.random_erasing, generator)
        return MaskedBatch(images, labels)

    def forward(self, images: Float[Tensor, "b c h w"], corruption: MaskedBatch) -> Losses:
        masks = corruption.masks.long()
        logits = upsampled(self.network.patch_scores(corruption.images), (masks.shape[1], masks.shape[2]))
        losses = F.cross_entropy(
            logits, masks, weight=self.class_weights, ignore_index=VOID, reduction="none",
            label_smoothing=self.settings.label_smoothing,
        )  # fmt: skip
        judged = masks != VOID
        right = (logits.argmax(dim=1) == masks).sum() / judged.sum().clamp(min=1)
        # Over all pixels, void ones as zeros: each judged pixel counts the same wherever it is, so that the mean of
        # micro-batches, and of processes, is the mean of the batch.
        return {"loss": losses.mean(), "accuracy": right.detach()}


def upsampled(scores: Float[Tensor, "b r c k"], size: tuple[int, int]) -> Float[Tensor, "b k {size[0]} {size[1]}"]:
    """Bilinear upsampling, as F.interpolate's without aligned corners, by two products with small matrices.

    The gradient of torch's own is summed on a GPU in any order: a resumed run would not be that of the first one.
    """
    device = scores.device
    rows, columns = (bilinear(old, new, device) for old, new in zip(scores.shape[1:3], size, strict=True))
    with torch.autocast(device.type if device.type != "meta" else "cpu", enabled=False):
        return rows @ (scores.float().movedim(3, 1) @ columns.mT)


def bilinear(old: int, new: int, device: torch.device) -> Float[Tensor, "{new} {old}"]:
    """How much of each of `old` samples each of `new` is made of."""
    places = ((torch.arange(new, device=device) + 0.5) * (old / new) - 0.5).clamp(0, old - 1)
    return (1 - (places[:, None] - torch.arange(old, device=device)).abs()).clamp(min=0)
