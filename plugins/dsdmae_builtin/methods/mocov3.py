"""MoCo v3: momentum contrast for vision transformers (Chen et al. 2021, arXiv:2104.02057).

Two strong views of each image. The student (encoder, projector, predictor) makes queries of both, the momentum encoder
(encoder, projector) makes keys; each query must find the key of its image's other view among those of the batch.
docs/methods/mocov3.md says where this differs from the public code.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Generator, Tensor

from dsdmae_builtin.methods.specs import MoCoV3Settings
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.methods.base import Losses, Method, Pictures, StepInfo
from dsdmae_cli.methods.contrastive import info_nce
from dsdmae_cli.methods.ema import EMATeacher
from dsdmae_cli.methods.projection import mlp, synchronized
from dsdmae_cli.methods.spreading import Spreading
from dsdmae_cli.settings.size import height_width
from dsdmae_cli.views import NO_BLUR_UP_TO, Strength, strong_view


class Views(NamedTuple):
    """Two strong views of each image."""

    first: Float[Tensor, "b c h w"]
    second: Float[Tensor, "b c h w"]
    directions: Float[Tensor, "d n"] | None = None


class MoCoV3(Method):
    """Queries of a trained encoder, keys of its moving average."""

    num_views = 2
    whole_batch = True

    def __init__(self, settings: MoCoV3Settings, backbone: Backbone) -> None:
        super().__init__()
        self.settings = settings
        self.spreading = Spreading(settings, self)
        self.student = synchronized(backbone)
        if settings.freeze_patch_embed:
            _freeze_patch_embed(self.student)
        self.projector = mlp(backbone.width, settings.hidden_dim, settings.out_dim, layers=3)
        self.predictor = mlp(settings.out_dim, settings.hidden_dim, settings.out_dim, layers=2)
        self.teacher = EMATeacher(self.student, settings.ema_momentum)
        self.teacher_projector = EMATeacher(self.projector, settings.ema_momentum)
        blur = settings.blur_probability
        if blur == "auto":
            blur = (1.0, 0.1) if min(height_width(backbone.image_size)) > NO_BLUR_UP_TO else (0.0, 0.0)
        self.strengths = [
            Strength(
                settings.jitter, settings.jitter_probability, settings.grey_probability, blurred, (0.1, 2.0), solar
            )
            for blurred, solar in zip(blur, settings.solarize_probability, strict=True)
        ]

    def corrupt(self, images: Float[Tensor, "b 2 c h w"], generator: Generator) -> Views:
        first, second = (strong_view(images[:, i], self.strengths[i], generator) for i in range(2))
        return Views(first, second, self.spreading.directions(self.student.width, generator))

    def forward(self, images: Float[Tensor, "b 2 c h w"], corruption: Views) -> Losses:
        # View by view, as batch norm must not mix the statistics of two kinds of views.
        views = (corruption.first, corruption.second)
        pooled = [self.student(view).mean(dim=1) for view in views]
        queries = [self.predictor(self.projector(features)) for features in pooled]
        keys = [self.teacher_projector(self.teacher(view).mean(dim=1)) for view in views]
        tau = self.settings.temperature
        loss = info_nce(queries[0], keys[1], tau) + info_nce(queries[1], keys[0], tau)
        return self.spreading.add({"loss": loss, "contrastive": loss.detach()}, pooled[0], corruption.directions)

    def after_step(self, info: StepInfo) -> None:
        self.teacher.follow(self.student, info)
        self.teacher_projector.follow(self.projector, info)

    def encoder(self) -> Backbone:
        return self.student

    def averaged(self) -> Backbone | None:
        return self.teacher.backbone()

    def show(self, images: Float[Tensor, "b 2 c h w"], corruption: Views) -> Pictures:
        """The two views; nothing is predicted that could be seen."""
        return {"first view": corruption.first, "second view": corruption.second}


def _freeze_patch_embed(backbone: Backbone) -> None:
    """Sec. 4.2: gradients spike in the first layer first, and a random one serves as well."""
    found = [part for name, part in backbone.named_modules() if name.rpartition(".")[2] == "patch_embed"]
    if not found:
        raise SettingsError(
            f"method.freeze_patch_embed = true, but backbone {backbone.timm_name or type(backbone).__name__} has no"
            " patch embedding; use --set method.freeze_patch_embed=false"
        )
    found[0].requires_grad_(False)


def build(settings: MoCoV3Settings, backbone: Backbone) -> MoCoV3:
    """MoCo v3 around any backbone with a grid."""
    return MoCoV3(settings, backbone)
