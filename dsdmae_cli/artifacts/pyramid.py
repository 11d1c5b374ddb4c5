"""An encoder as the backbone of torchvision's detectors: the simple feature pyramid of ViTDet (Li et al. 2022,
"Exploring Plain Vision Transformer Backbones for Object Detection", arXiv:2203.16527). The detectors are torchvision's.
"""

from __future__ import annotations

from collections import OrderedDict

from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from dsdmae_cli.backbone import Backbone, at_size
from dsdmae_cli.settings.size import as_size

POOLED = "pool"


class FeaturePyramid(nn.Module):
    """Maps at four scales out of an encoder's last one, and a fifth that is the coarsest at every other place.

    The scales are 4, 2, 1 and 1/2 times that of the encoder's patches, strides 4, 8, 16 and 32 of patches of 16 pixels:
    by two deconvolutions, by one, as it is, and by max pooling; then a 1x1 and a 3x3 convolution, each with a layer
    norm. These layers are new and to be trained.

    Args:
        encoder: of `load_encoder`, best a plain vision transformer.
        out_channels: of every map.
        frozen: the encoder is not trained, and stays in eval mode.

    Attributes:
        out_channels: what torchvision's detectors ask for.
        strides: of the maps in pixels, the fifth's last.
        image_mean, image_std: that a detector normalises pixels from [0, 1] by, so that the encoder gets [-1, 1].
    """

    def __init__(self, encoder: Backbone, out_channels: int = 256, *, frozen: bool = False) -> None:
        super().__init__()
        self.encoder, self.out_channels, self.frozen = encoder, out_channels, frozen
        if frozen:
            encoder.requires_grad_(False)
        width, patch = encoder.width, encoder.patch_shape[0]
        self.strides = tuple(round(patch * scale) for scale in (1 / 4, 1 / 2, 1, 2, 4))
        self.image_mean = self.image_std = [0.5] * encoder.in_chans
        self.scales = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(width, width // 2, 2, stride=2),
                    LayerNorm2d(width // 2),
                    nn.GELU(),
                    nn.ConvTranspose2d(width // 2, width // 4, 2, stride=2),
                ),
                nn.ConvTranspose2d(width, width // 2, 2, stride=2),
                nn.Identity(),
                nn.MaxPool2d(2),
            ]
        )
        self.outputs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, bias=False),
                LayerNorm2d(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                LayerNorm2d(out_channels),
            )
            for channels in (width // 4, width // 2, width, width)
        )
        self.train(self.training)

    def forward(self, images: Float[Tensor, "b c h w"]) -> OrderedDict[str, Tensor]:
        """Maps "0" to "3" from fine to coarse, and "pool".

        Args:
            images: in [-1, 1], of any whole number of patches. Of another size than the encoder's own its position
                embeddings are interpolated (see at_size), and learned ones are then not trained: give load_encoder the
                size that the detector will see.

        Raises:
            SettingsError: the images are no whole number of patches.
        """
        encoder = at_size(self.encoder, as_size(*images.shape[-2:]))
        last = encoder.forward_grid(images).permute(0, 3, 1, 2).contiguous()
        maps = [output(scale(last)) for scale, output in zip(self.scales, self.outputs, strict=True)]
        named = OrderedDict((str(level), found) for level, found in enumerate(maps))
        named[POOLED] = F.max_pool2d(maps[-1], 1, stride=2)
        return named

    def train(self, mode: bool = True) -> FeaturePyramid:
        """As any module's; a frozen encoder stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self
