"""MSA: masked Siamese autoencoder (Zhu et al. 2025), re-implemented from the abstract.

The student is a MAE on a weak view. The teacher, its moving average, reads the whole of a strong view; the student's
pooled features of the visible patches must find the teacher's of the same image among those of the batch.
L = L_pixel + β L_contrast. Everything the abstract leaves open is our reading: docs/methods/msa.md lists it.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Generator, Tensor

from dsdmae_builtin.methods.mae import MAE, Split
from dsdmae_builtin.methods.specs import MSASettings
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.methods.base import Losses, Method, Pictures, Restoration, StepInfo
from dsdmae_cli.methods.contrastive import info_nce
from dsdmae_cli.methods.ema import EMATeacher
from dsdmae_cli.methods.projection import mlp, synchronized
from dsdmae_cli.methods.spreading import Spreading
from dsdmae_cli.settings.size import height_width
from dsdmae_cli.views import NO_BLUR_UP_TO, Strength, strong_view


class Siamese(NamedTuple):
    """The student's view and its masked patches; the teacher's view."""

    weak: Float[Tensor, "b c h w"]
    split: Split
    strong: Float[Tensor, "b c h w"]
    directions: Float[Tensor, "d n"] | None = None


class MSA(Method):
    """A MAE, a projector and a predictor on its pooled latents, and a teacher of encoder and projector."""

    num_views = 2
    whole_batch = True

    def __init__(self, settings: MSASettings, backbone: Backbone) -> None:
        super().__init__()
        self.settings = settings
        self.spreading = Spreading(settings, self)
        self.mae = MAE(settings, synchronized(backbone))
        self.projector = mlp(backbone.width, settings.hidden_dim, settings.out_dim, layers=3)
        self.predictor = mlp(settings.out_dim, settings.hidden_dim, settings.out_dim, layers=2)
        self.teacher = EMATeacher(self.mae.backbone, settings.ema_momentum)
        self.teacher_projector = EMATeacher(self.projector, settings.ema_momentum)
        blur = settings.blur_probability
        if blur == "auto":
            blur = 0.5 if min(height_width(backbone.image_size)) > NO_BLUR_UP_TO else 0.0
        self.strength = Strength(
            settings.jitter,
            settings.jitter_probability,
            settings.grey_probability,
            blur,
            (0.1, 2.0),
            settings.solarize_probability,
        )

    def corrupt(self, images: Float[Tensor, "b 2 c h w"], generator: Generator) -> Siamese:
        weak = images[:, 0]
        split, strong = self.mae.split(weak, generator), strong_view(images[:, 1], self.strength, generator)
        directions = self.spreading.directions(self.mae.backbone.width, generator)
        return Siamese(weak, split, strong, directions)

    def forward(self, images: Float[Tensor, "b 2 c h w"], corruption: Siamese) -> Losses:
        weak, split, strong, directions = corruption
        latents, class_token = self.mae.backbone.forward_subset_tokens(weak, split.ids_keep)
        pixel = self.mae.reconstruction_loss(latents, class_token, weak, split)
        pooled = latents.mean(dim=1)
        query = self.predictor(self.projector(pooled))
        key = self.teacher_projector(self.teacher(strong).mean(dim=1))
        contrastive = info_nce(query, key, self.settings.temperature, self.settings.symmetric)
        loss = pixel + self.settings.contrastive_weight * contrastive
        losses = {"loss": loss, "pixel": pixel.detach(), "contrastive": contrastive.detach()}
        return self.spreading.add(losses, pooled, directions)

    def after_step(self, info: StepInfo) -> None:
        self.teacher.follow(self.mae.backbone, info)
        self.teacher_projector.follow(self.projector, info)

    def encoder(self) -> Backbone:
        return self.mae.encoder()

    def averaged(self) -> Backbone | None:
        return self.teacher.backbone()

    def restore(self, images: Float[Tensor, "b 2 c h w"], corruption: Siamese) -> Restoration:
        """The weak view as MAE shows it."""
        return self.mae.restore(corruption.weak, corruption.split)

    def show(self, images: Float[Tensor, "b 2 c h w"], corruption: Siamese) -> Pictures:
        """What the student is given and restores, and what the teacher reads."""
        shown = self.restore(images, corruption)
        return {"student": shown.corrupted, "restored": shown.restored, "teacher": corruption.strong}

    @property
    def no_denoise(self) -> str:
        return "it has learned to fill in patches that are hidden, and nothing of noise in those that it sees"


def build(settings: MSASettings, backbone: Backbone) -> MSA:
    """MSA around a backbone that encodes subsets."""
    return MSA(settings, backbone)
