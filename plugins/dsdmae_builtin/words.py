"""What methods share that predict a tokenizer's words: the loss and the pictures."""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from dsdmae_cli.methods.base import Pictures
from dsdmae_cli.methods.pictures import hide
from dsdmae_cli.methods.tokens import FrozenTokenizer


def word_losses(
    logits: Float[Tensor, "b m v"], words: Int64[Tensor, "b m"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy of predicted words (natural logarithm), and the share that is right, both means over patches."""
    flat = logits.flatten(0, 1).float()
    right = (flat.detach().argmax(dim=1) == words.flatten()).float().mean()
    return F.cross_entropy(flat, words.flatten()), right


def word_pictures(
    images: Float[Tensor, "b c h w"],
    ids_masked: Int64[Tensor, "b m"],
    logits: Float[Tensor, "b m v"],
    tokenizer: FrozenTokenizer,
) -> Pictures:
    """Masked patches grey; the image of all words with the masked ones as predicted; that of the true words."""
    net = tokenizer.module.encoder()
    true = tokenizer(images)
    predicted = true.scatter(1, ids_masked, logits.argmax(dim=-1))
    return {
        "given": hide(images, ids_masked, net.patch_shape, net.grid),
        "predicted": tokenizer.decode(predicted),
        "true words": tokenizer.decode(true),
    }
