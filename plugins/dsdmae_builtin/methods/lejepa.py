"""LeJEPA: latent Euclidean joint-embedding prediction (Balestriero & LeCun 2025, arXiv:2511.08544).

Several strong views of each image go through one encoder and a projector. What comes out has to be the same for all
views of an image, and lie over the images of the batch like an isotropic Gaussian, so that it cannot be the same
for all images. No teacher, no stop-gradient, no mask: L = (1-λ) mean (z - mean over views)² + λ SIGReg(z).
docs/methods/lejepa.md says where this differs from the public code.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dsdmae_builtin.methods.specs import LeJEPASettings
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.methods.base import Losses, Method, Pictures
from dsdmae_cli.methods.projection import GlobalBatchNorm, synchronized
from dsdmae_cli.methods.spreading import draw_directions, sigreg
from dsdmae_cli.settings.size import height_width
from dsdmae_cli.views import NO_BLUR_UP_TO, Strength, strong_view


class Views(NamedTuple):
    """Strong views of each image, and the directions that SIGReg looks along."""

    views: Float[Tensor, "b v c h w"]
    directions: Float[Tensor, "d n"]


class LeJEPA(Method):
    """An encoder and a projector of the mean of its tokens."""

    whole_batch = True

    def __init__(self, settings: LeJEPASettings, backbone: Backbone) -> None:
        super().__init__()
        self.settings = settings
        self.num_views = settings.views
        self.backbone = synchronized(backbone)
        wide, out = settings.hidden_dim, settings.out_dim
        # torchvision.ops.MLP as in the public code: the last layer is bare, or there were nothing left to regularise.
        self.projector = nn.Sequential(
            nn.Linear(backbone.width, wide), GlobalBatchNorm(wide), nn.ReLU(),
            nn.Linear(wide, wide), GlobalBatchNorm(wide), nn.ReLU(),
            nn.Linear(wide, out),
        )  # fmt: skip
        blur = settings.blur_probability
        if blur == "auto":
            blur = 0.5 if min(height_width(backbone.image_size)) > NO_BLUR_UP_TO else 0.0
        self.strength = Strength(
            settings.jitter, settings.jitter_probability, settings.grey_probability, blur, (0.1, 2.0),
            settings.solarize_probability,
        )  # fmt: skip

    def corrupt(self, images: Float[Tensor, "b v c h w"], generator: Generator) -> Views:
        strong = strong_view(images.flatten(0, 1), self.strength, generator)
        return Views(strong.view_as(images), draw_directions(self.settings.out_dim, generator))

    def forward(self, images: Float[Tensor, "b v c h w"], corruption: Views) -> Losses:
        views = corruption.views
        pooled = self.backbone(views.flatten(0, 1)).mean(dim=1)
        projected = self.projector(pooled).float().unflatten(0, views.shape[:2])
        invariance = (projected - projected.mean(dim=1, keepdim=True)).square().mean()
        gaussian = torch.stack([sigreg(view, corruption.directions) for view in projected.unbind(dim=1)]).mean()
        weight = self.settings.sigreg_weight
        loss = (1 - weight) * invariance + weight * gaussian
        return {"loss": loss, "invariance": invariance.detach(), "sigreg": gaussian.detach()}

    def encoder(self) -> Backbone:
        return self.backbone

    def show(self, images: Float[Tensor, "b v c h w"], corruption: Views) -> Pictures:
        """The first two views; nothing is predicted that could be seen."""
        return {"a view": corruption.views[:, 0], "another": corruption.views[:, 1]}


def build(settings: LeJEPASettings, backbone: Backbone) -> LeJEPA:
    """LeJEPA around any backbone."""
    return LeJEPA(settings, backbone)
