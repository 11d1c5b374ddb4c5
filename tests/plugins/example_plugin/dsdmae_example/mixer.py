"""The backbone: MLP-Mixer (Tolstikhin et al. 2021, arXiv:2105.01601)."""

from __future__ import annotations

from dsdmae_cli.backbone import Backbone
from dsdmae_cli.errors import SettingsError
from jaxtyping import Float
from torch import Tensor, nn

from dsdmae_example.specs import MixerSettings


def perceptron(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class MixerBlock(nn.Module):
    """Eq. 1 of the paper: a perceptron over the tokens, then one over the features, both as residuals."""

    def __init__(self, num_tokens: int, width: int, token_width: int) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(width)
        self.tokens = perceptron(num_tokens, token_width)
        self.feature_norm = nn.LayerNorm(width)
        self.features = perceptron(width, 4 * width)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        x = x + self.tokens(self.token_norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.features(self.feature_norm(x))


class Mixer(Backbone):
    """A patch embedding, the blocks, and a norm.

    Args:
        image_size: side of the images in pixels, a multiple of patch_size.
        patch_size: side of a patch in pixels.
        settings: width and depth.
    """

    def __init__(self, image_size: int, patch_size: int, settings: MixerSettings) -> None:
        super().__init__()
        self.grid = (image_size // patch_size, image_size // patch_size)
        self.width = settings.width
        self.image_size = image_size
        # An empty name: no architecture of timm's has these weights.
        self.timm_name = ""
        self.timm_kwargs = {}
        self.embed = nn.Conv2d(3, self.width, kernel_size=patch_size, stride=patch_size)
        self.blocks = nn.Sequential(
            *(MixerBlock(self.num_tokens, self.width, settings.token_width) for _ in range(settings.depth))
        )
        self.norm = nn.LayerNorm(self.width)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t d"]:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        return self.norm(self.blocks(tokens))

    def timm_state(self) -> dict[str, Tensor]:
        """The weights under the names of this class."""
        return self.state_dict()


def build(settings: MixerSettings, image_size: int) -> Mixer:
    """The backbone for images of a size.

    Raises:
        SettingsError: the patches do not cover the image.
    """
    patch_size = settings.patch_size
    assert patch_size != "auto", "dsdmae decides it before a run begins"
    if image_size % patch_size:
        raise SettingsError(
            f"backbone.patch_size = {patch_size} does not divide the image size {image_size};"
            " choose one that does"
        )
    return Mixer(image_size, patch_size, settings)
