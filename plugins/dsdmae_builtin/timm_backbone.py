"""`timm:NAME`: any timm model with a grid of features, hierarchical and convolutional ones included.

DSdMAE drops no patch, so that nothing here needs to be a plain transformer.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from inspect import signature
from typing import Any, Literal

import timm
import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dsdmae_builtin.backbones import TimmSettings
from dsdmae_builtin.timm_weights import where_from
from dsdmae_builtin.vit import attention_to_patches
from dsdmae_cli.backbone import Backbone, evaluating, freeze_unmet
from dsdmae_cli.errors import PluginError, SettingsError, nearest
from dsdmae_cli.plugins import argument_of
from dsdmae_cli.settings.size import Size, height_width, nearest_whole, size_word, size_words, whole_patches


class TimmBackbone(Backbone):
    """The last feature map of a timm model as tokens, row by row.

    Raises:
        SettingsError: timm has no such model, refuses the options, or its features form no usable grid.
    """

    def __init__(self, settings: TimmSettings, image_size: Size) -> None:
        super().__init__()
        self.image_size = image_size
        self.timm_name = argument_of(settings.name)
        self.timm_kwargs = {**settings.options, "num_classes": 0}
        if self.set_channels(settings.in_chans) != 3:  # timm's own default, and not every model knows the word
            self.timm_kwargs["in_chans"] = self.in_chans
        if settings.patch_size != "auto":
            self.timm_kwargs["patch_size"] = settings.patch_size
        if settings.drop_path:
            self.timm_kwargs["drop_path_rate"] = settings.drop_path
        self.model = _create(self.timm_name, self.timm_kwargs, settings.pretrained, image_size)
        if settings.normalized:
            config = self.model.pretrained_cfg
            self.set_normalization(tuple(config["mean"]), tuple(config["std"]))
        self.has_class_token = _has_class_token(self.model)
        self.grid, self.width = self._measure()
        self._freeze_what_no_feature_meets()

    def _check_patches(self) -> None:
        """A plain transformer would leave out, without a word, the pixels that fill no patch."""
        patch = getattr(getattr(self.model, "patch_embed", None), "patch_size", None)
        plain = isinstance(self.model, VisionTransformer) and not self.model.patch_embed.dynamic_img_pad
        if plain and patch is not None and whole_patches(self.image_size, patch) is None:
            below, above = (size_word(size) for size in nearest_whole(self.image_size, patch))
            raise SettingsError(
                f"backbone timm:{self.timm_name} has patches of {size_words(tuple(patch))} px, of which data.image_size"
                f" = {size_word(self.image_size)} is no whole number; {below} or {above} would be"
            )

    @torch.no_grad()
    def _measure(self) -> tuple[tuple[int, int], int]:
        self._check_patches()
        was_training = self.model.training
        self.model.eval()
        try:
            features = self._feature_map(torch.zeros(1, self.in_chans, *height_width(self.image_size)))
        except Exception as error:  # thousands of architectures, each with its own way to refuse a size
            raise SettingsError(
                f"backbone timm:{self.timm_name} cannot encode {size_words(self.image_size)} images:"
                f" {_first_line(error)}"
            ) from error
        self.model.train(was_training)
        _, width, rows, columns = features.shape
        if whole_patches(self.image_size, (rows, columns)) is None or rows * columns < 2:
            raise SettingsError(
                f"backbone timm:{self.timm_name} makes a {rows}x{columns} grid of {size_words(self.image_size)} px"
                " images, which is of no use here; choose another data.image_size (several times the model's stride) or"
                " a smaller backbone.patch_size"
            )
        return (rows, columns), width

    def _freeze_what_no_feature_meets(self) -> None:
        """Layers behind the feature map (a ConvNeXt's head norm) get no gradient, and DDP would wait for it in vain."""
        with evaluating(self.model):
            freeze_unmet(self.model, self._feature_map(torch.rand(1, self.in_chans, *height_width(self.image_size))))

    def _feature_map(self, images: Tensor) -> Tensor:
        maps = self.model.forward_intermediates(
            images, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return maps[-1]

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t d"]:
        return self._feature_map(self.normalize(images)).flatten(2).transpose(1, 2)

    def forward_tokens(
        self, images: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b d"] | None]:
        if not self.has_class_token:
            return self(images), None
        found = self.model.forward_intermediates(
            self.normalize(images),
            indices=1,
            norm=True,
            output_fmt="NLC",
            intermediates_only=True,
            return_prefix_tokens=True,
        )
        patches, prefix = found[-1]
        return patches, prefix[:, 0]

    @property
    def num_blocks(self) -> int:
        return len(self.model.feature_info)

    def forward_blocks(
        self, images: Float[Tensor, "b c h w"], blocks: Sequence[int]
    ) -> Sequence[tuple[Float[Tensor, "b _ _"], Float[Tensor, "b _"] | None]]:
        wanted, last = sorted(set(blocks)), self.num_blocks
        if wanted == [last]:
            return [self.forward_tokens(images)] * len(blocks)
        final = self._final if last in wanted else "in its place"  # without the last block nothing is normed
        if final == "apart":
            wanted.remove(last)
        found = dict(zip(wanted, self._maps(images, wanted, final == "by timm"), strict=True))
        if final == "apart":
            found[last] = self.forward_tokens(images)
        elif final == "by its norm":
            found[last] = self._normed(found[last])
        return [found[block] for block in blocks]

    def _maps(
        self, images: Float[Tensor, "b c h w"], blocks: Sequence[int], norm: bool
    ) -> list[tuple[Float[Tensor, "b _ _"], Float[Tensor, "b _"] | None]]:
        """What timm gives after blocks, in ascending order, as tokens."""
        more = {"return_prefix_tokens": True} if self.has_class_token else {}
        maps = self.model.forward_intermediates(
            self.normalize(images), indices=[block - 1 for block in blocks], stop_early=True, norm=norm,
            output_fmt="NCHW", intermediates_only=True, **more,
        )  # fmt: skip
        pairs = maps if self.has_class_token else [(given, None) for given in maps]
        return [(given.flatten(2).transpose(1, 2), None if p is None else p[:, 0]) for given, p in pairs]

    def _normed(self, given: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
        """What the last block gives, as the architecture normalises it: each token by itself."""
        patches, token = given
        return self.model.norm(patches), None if token is None else self.model.norm(token)

    @cached_property
    def _final(self) -> Literal["by timm", "by its norm", "apart"]:
        """How the final features are had by the pass that gives inner blocks as they are.

        timm's `norm` is for the last block alone in hierarchical networks, for every block in plain transformers, and
        for some in others: one image tells. The pass is made twice ("apart") only where neither way gives them.
        """
        weight = next(self.model.parameters())
        shape = (1, self.in_chans, *height_width(self.image_size))
        image = torch.linspace(-1, 1, math.prod(shape), device=weight.device, dtype=weight.dtype).view(shape)
        blocks = list(range(1, self.num_blocks + 1))
        with torch.no_grad(), evaluating(self.model):
            raw, normed = (self._maps(image, blocks, norm) for norm in (False, True))
            if all(_alike(one, other) for (one, _), (other, _) in zip(raw[:-1], normed[:-1], strict=True)):
                return "by timm"
            if not isinstance(getattr(self.model, "norm", None), nn.LayerNorm | nn.RMSNorm | nn.Identity):
                return "apart"
            return "by its norm" if _alike(self._normed(raw[-1])[0], normed[-1][0]) else "apart"

    def attention(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b heads rows columns"] | None:
        if type(self.model) is not VisionTransformer or self.num_blocks < 2:
            return None
        found: Any = self.model.forward_intermediates(
            self.normalize(images), indices=[self.num_blocks - 2], stop_early=True, norm=False, output_fmt="NLC",
            intermediates_only=True, return_prefix_tokens=True,
        )  # fmt: skip
        [(patches, prefix)] = found
        tokens = patches if prefix is None else torch.cat([prefix, patches], dim=1)
        return attention_to_patches(self.model.blocks[-1], tokens, self.grid, self.has_class_token)

    @property
    def body(self) -> nn.Module:
        return self.model

    def timm_state(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())

    def set_image_size(self, image_size: Size) -> None:
        if image_size == self.image_size:
            return
        fixed = {name: p.requires_grad for name, p in self.model.named_parameters()}
        if hasattr(self.model, "set_input_size"):  # those that have none, have nothing that depends on the size
            try:
                with _quiet():
                    self.model.set_input_size(img_size=height_width(image_size))
            except Exception as error:  # as many ways to refuse as there are architectures
                raise SettingsError(
                    f"backbone timm:{self.timm_name} refuses images of {size_words(image_size)} px:"
                    f" {_first_line(error)}"
                ) from error
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(fixed[name])
        self.image_size = image_size
        self.grid, self.width = self._measure()
        if "img_size" in self.timm_kwargs:
            self.timm_kwargs = {**self.timm_kwargs, "img_size": image_size}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings of how timm interpolates tables of relative positions, which no person can mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _has_class_token(model: Any) -> bool:
    """Whether the model has a class token and hands it out beside its grid, first of its prefix tokens."""
    offers = signature(model.forward_intermediates).parameters
    return getattr(model, "cls_token", None) is not None and "return_prefix_tokens" in offers


def _check_name(name: str) -> None:
    if not timm.is_model(name):  # which knows names with a tag for their weights, too
        raise SettingsError(
            f"timm has no model {name!r}{nearest(name, timm.list_models())};"
            " timm.list_models() in Python lists them all"
        )


def _create(name: str, kwargs: dict[str, Any], pretrained: bool, image_size: Size) -> Any:
    _check_name(name)
    # Transformers with fixed positions or windows must be told the image's size; convolutional ones refuse it.
    attempts = [{**kwargs, "img_size": image_size}, kwargs] if "img_size" not in kwargs else [kwargs]
    problem: Exception | None = None
    source = where_from(name) if pretrained else {}
    for arguments in attempts:
        try:
            with _quiet():
                model = timm.create_model(name, pretrained=pretrained, **source, **arguments)
        except OSError as error:
            raise PluginError(
                f"cannot fetch timm's weights for {name}: {_first_line(error)} With no network, use a machine that has"
                " one, copy its cache, or set backbone.pretrained=false for random weights"
            ) from error
        except Exception as error:  # each of timm's architectures refuses options in its own way
            problem = problem or error
            continue
        kwargs.update(arguments)
        if not hasattr(model, "forward_intermediates"):
            raise SettingsError(f"backbone timm:{name} yields no grid of features; choose another model")
        return model
    raise SettingsError(f"timm refuses to build {name} with {kwargs}: {type(problem).__name__}: {problem}")


def own_image_size(settings: TimmSettings) -> int:
    """The side in pixels of the images that timm's weights of the model were made for.

    Raises:
        SettingsError: timm has no such model.
    """
    name = argument_of(settings.name)
    _check_name(name)
    config = timm.get_pretrained_cfg(name)
    return int(config.input_size[-1]) if config else 224


def build(settings: TimmSettings, image_size: Size) -> TimmBackbone:
    """The timm model named after the colon."""
    return TimmBackbone(settings, image_size)
