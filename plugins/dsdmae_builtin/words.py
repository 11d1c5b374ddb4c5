"""What methods share that predict a tokenizer's words: the tokenizer inside them, the loss and the pictures."""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from dsdmae_builtin.methods.specs import TokenSettings
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.methods.base import Method, Pictures
from dsdmae_cli.methods.pictures import hide
from dsdmae_cli.methods.tokens import FrozenTokenizer, ImageTokenizer
from dsdmae_cli.settings.size import size_words


def fitting(settings: TokenSettings, backbone: Backbone, tokenizer: Method) -> ImageTokenizer:
    """The tokenizer, whose words must be those of the backbone's own patches.

    Raises:
        SettingsError: what method.tokenizer names makes no visual words, or words of other patches.
    """
    if not isinstance(tokenizer, ImageTokenizer):
        raise SettingsError(
            f"method.tokenizer = {str(settings.tokenizer)!r} is a run of a method that makes no visual words; make one"
            " with: dsdmae tokenizer --out DIR"
        )
    net = tokenizer.encoder()
    if (net.grid, net.image_size) != (backbone.grid, backbone.image_size):
        raise SettingsError(
            f"the tokenizer makes {_tokens(net)}, and the backbone {_tokens(backbone)}; choose backbone.patch_size and"
            " data.image_size as they are there, or another method.tokenizer"
        )
    return tokenizer


def _tokens(net: Backbone) -> str:
    return f"{net.grid[0]}x{net.grid[1]} tokens of {size_words(net.image_size)} px"


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
