"""`timm:NAME`: any timm model with a grid of features, hierarchical and convolutional ones included.

DSdMAE drops no patch, so that nothing here needs to be a plain transformer.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor

from dsdmae_builtin.backbones import TimmSettings
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.errors import PluginError, SettingsError, nearest
from dsdmae_cli.plugins import argument_of


class TimmBackbone(Backbone):
    """The last feature map of a timm model as tokens, row by row.

    Raises:
        SettingsError: timm has no such model, refuses the options, or its features form no usable grid.
    """

    def __init__(self, settings: TimmSettings, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.timm_name = argument_of(settings.name)
        self.timm_kwargs = {**settings.options, "num_classes": 0}
        if settings.patch_size != "auto":
            self.timm_kwargs["patch_size"] = settings.patch_size
        self.model = _create(self.timm_name, self.timm_kwargs, settings.pretrained, image_size)
        self.grid, self.width = self._measure()
        self._freeze_what_no_feature_meets()

    @torch.no_grad()
    def _measure(self) -> tuple[tuple[int, int], int]:
        was_training = self.model.training
        self.model.eval()
        try:
            features = self._feature_map(torch.zeros(1, 3, self.image_size, self.image_size))
        except Exception as error:  # thousands of architectures, each with its own way to refuse a size
            raise SettingsError(
                f"backbone timm:{self.timm_name} cannot encode {self.image_size}x{self.image_size} images:"
                f" {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            ) from error
        self.model.train(was_training)
        _, width, rows, columns = features.shape
        if self.image_size % rows or self.image_size % columns or rows * columns < 2:
            raise SettingsError(
                f"backbone timm:{self.timm_name} makes a {rows}x{columns} grid of {self.image_size} px images, which is"
                " of no use here; choose another data.image_size (several times the model's stride) or a smaller"
                " backbone.patch_size"
            )
        return (rows, columns), width

    def _freeze_what_no_feature_meets(self) -> None:
        """Layers behind the feature map (a ConvNeXt's head norm) get no gradient, and DDP would wait for it in vain."""
        was_training = self.model.training
        self.model.eval()
        self._feature_map(torch.rand(1, 3, self.image_size, self.image_size)).sum().backward()
        for parameter in self.model.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None
        self.model.train(was_training)

    def _feature_map(self, images: Tensor) -> Tensor:
        maps = self.model.forward_intermediates(
            images, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return maps[-1]

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t d"]:
        return self._feature_map(images).flatten(2).transpose(1, 2)

    def timm_state(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())


def _create(name: str, kwargs: dict[str, Any], pretrained: bool, image_size: int) -> Any:
    if name not in timm.list_models():
        raise SettingsError(
            f"timm has no model {name!r}{nearest(name, timm.list_models())};"
            " timm.list_models() in Python lists them all"
        )
    # Transformers with fixed positions or windows must be told the image's size; convolutional ones refuse it.
    attempts = [{**kwargs, "img_size": image_size}, kwargs] if "img_size" not in kwargs else [kwargs]
    problem: Exception | None = None
    for arguments in attempts:
        try:
            model = timm.create_model(name, pretrained=pretrained, **arguments)
        except OSError as error:
            raise PluginError(f"cannot fetch timm's weights for {name}: {error}") from error
        except Exception as error:  # each of timm's architectures refuses options in its own way
            problem = problem or error
            continue
        kwargs.update(arguments)
        if not hasattr(model, "forward_intermediates"):
            raise SettingsError(f"backbone timm:{name} yields no grid of features; choose another model")
        return model
    raise SettingsError(f"timm refuses to build {name} with {kwargs}: {type(problem).__name__}: {problem}")


def build(settings: TimmSettings, image_size: int) -> TimmBackbone:
    """The timm model named after the colon."""
    return TimmBackbone(settings, image_size)
