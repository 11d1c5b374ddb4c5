"""Somebody else's weights under timm's names, which say nothing of their architecture, image size or pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import timm
from torch import Tensor

from dsdmae_cli import checkpoint, plugins
from dsdmae_cli.artifacts.opened import Opened, Request, fill, finished
from dsdmae_cli.artifacts.subject import published_size
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.config.resolve import resolve_backbone
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.runs.build import build_backbone
from dsdmae_cli.settings.models import BackboneSettings


def open_foreign(path: Path, request: Request) -> Opened:
    """The encoder in a file that does not name its architecture; a classifier beside it is left out.

    Raises:
        SettingsError: neither the request nor the backbone says what is missing.
        CheckpointError: the weights do not fit.
    """
    if request.backbone is None:
        raise SettingsError(
            f"{path} does not say which network it belongs to; name it with --backbone NAME (see `dsdmae plugins`)"
        )
    state = checkpoint.load_weights(path)
    wanted = request.wanted_size() or _size_of_published(request.backbone)
    if wanted is None:
        raise SettingsError(f"{path} does not say which images it is for; give their side with --image-size")
    backbone = resolve_backbone(request.backbone.without_weights(), wanted)
    encoder = build_backbone(backbone, wanted, request.seed)
    native = _native_size(encoder, state)
    if native not in (None, wanted):
        assert native is not None
        encoder = build_backbone(backbone, native, request.seed)
    dropped = _without_classifier(encoder, state)
    fill(encoder, state, str(path))
    opened = finished(encoder, backbone, replace(request, image_size=wanted))
    notes = [f"left out {', '.join(dropped)}: the classifier of {path}"] if dropped else []
    if opened.mean == opened.std == (0.5, 0.5, 0.5) and "normalization" in type(backbone).model_fields:
        notes.append(
            f"{path} does not say how it wants its pixels; it gets them in [-1, 1]. If it was trained as timm's own"
            " weights were, add --set backbone.normalization=timm"
        )
    return replace(opened, notes=(*notes, *opened.notes))


def _size_of_published(backbone: BackboneSettings) -> int | None:
    """The side that weights of this architecture are most likely for: that of the published ones."""
    has_some = plugins.find("backbone", backbone.name).spec.image_size is not None
    return published_size(backbone) if has_some else None


def _native_size(encoder: Backbone, state: dict[str, Tensor]) -> int | None:
    """The image size that a plain position table was made for; None where there is none, or it fits as it is."""
    own, other = encoder.timm_state().get("pos_embed"), state.get("pos_embed")
    if own is None or other is None or own.ndim != 3 or other.ndim != 3 or own.shape == other.shape:
        return None
    side = round((other.shape[1] - own.shape[1] + encoder.num_tokens) ** 0.5)
    square = side * side + own.shape[1] - encoder.num_tokens == other.shape[1]
    return side * encoder.patch_shape[0] if square and side > 1 else None


def _without_classifier(encoder: Backbone, state: dict[str, Tensor]) -> list[str]:
    """Take the classifier out of `state`, by timm's name for it, where the encoder has none; what was taken."""
    config = timm.get_pretrained_cfg(encoder.timm_name) if encoder.timm_name else None
    named = config.classifier if config and config.classifier else ()
    names = (named,) if isinstance(named, str) else tuple(named)
    own = encoder.timm_state()
    taken = [key for key in state if key not in own and any(key.startswith(f"{name}.") for name in names)]
    for key in taken:
        del state[key]
    return taken
