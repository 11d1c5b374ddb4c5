"""Somebody else's weights, which say nothing of their architecture, image size or pixels: a network built around them.

elsewhere.py reads the file and finds the backbone by the shapes; what a person names wins over that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path

import timm
from torch import Tensor

from dsdmae_cli import plugins
from dsdmae_cli.artifacts.elsewhere import Elsewhere, left_out, read_elsewhere
from dsdmae_cli.artifacts.opened import Opened, Request, fill, finished
from dsdmae_cli.artifacts.subject import published_size
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.config.resolve import RGB, resolve_backbone
from dsdmae_cli.errors import CheckpointError, SettingsError
from dsdmae_cli.plugins import Recognized
from dsdmae_cli.runs.build import build_backbone
from dsdmae_cli.settings.models import BackboneSettings
from dsdmae_cli.settings.size import Size, size_words


@dataclass(frozen=True)
class _Wanted:
    """The network to build.

    Attributes:
        backbone: its settings, resolved, published weights left out.
        native: side in pixels of the images that the weights are for, where that is known before it is built.
        size: side of the images that it should take in the end.
        words: what was read off the weights; empty for a network that was named.
    """

    backbone: BackboneSettings
    native: Size | None
    size: Size
    words: str


def open_foreign(path: Path, request: Request) -> Opened:
    """The encoder in a file that does not name its architecture; what stands beside it there is left out.

    Raises:
        SettingsError: neither the request nor the weights say what is missing.
        CheckpointError: the file is damaged, or the weights do not fit.
    """
    found = read_elsewhere(path)
    state = dict(found.state)
    wanted = _wanted(found, state, request)
    encoder = build_backbone(wanted.backbone, wanted.native or wanted.size, request.seed)
    native = wanted.native or _native_size(encoder, state)
    if native not in (None, encoder.image_size):
        assert native is not None
        encoder = build_backbone(wanted.backbone, native, request.seed)
    own = encoder.timm_state()
    beside = left_out(own, state, _classifier(encoder))
    if wanted.words:  # of another network than the one that was named nothing need fit
        _check_positions(path, own, state, encoder)
    try:
        fill(encoder, state, str(path))
    except CheckpointError as error:
        raise _misfit(found, wanted, error) from error
    opened = finished(encoder, wanted.backbone, replace(request, image_size=wanted.size))
    return replace(opened, notes=(*_notes(found, wanted, beside, encoder), *opened.notes))


def _wanted(found: Elsewhere, state: dict[str, Tensor], request: Request) -> _Wanted:
    """What is to be built: what a person named, and for the rest what the weights tell."""
    given = request.backbone
    named = given.name if given is not None and "name" in given.model_fields_set else None
    recognized = found.recognized(named)
    by_shapes = recognized or found.recognized()
    native = by_shapes.image_size if by_shapes is not None else None
    if recognized is not None:
        for theirs, ours in recognized.renamed.items():
            state[ours] = state.pop(theirs)
        backbone, words = _changed(recognized, given)
    elif given is not None and named is not None:
        backbone, words = given, ""
    else:
        raise SettingsError(
            f"{found.path} holds no vision backbone that can be told from its names ({found.first_names()}, ...); if it"
            " is one, name it with --backbone NAME (see `dsdmae plugins`)"
        )
    size = request.image_size or native or request.wanted_size() or _size_of_published(backbone)
    if size is None and recognized is not None and "pos_embed" in state:
        size = 2 * _patch(backbone)  # any: the table is no square, as is said when there is a network to hold it to
    if size is None:
        raise SettingsError(f"{found.path} does not say which images it is for; give their side with --image-size")
    channels = RGB if backbone.in_chans == "auto" else backbone.in_chans
    return _Wanted(resolve_backbone(backbone.without_weights(), size, channels), native, size, words)


def _patch(backbone: BackboneSettings) -> int:
    return backbone.patch_size if isinstance(backbone.patch_size, int) else 16


def _changed(recognized: Recognized, given: BackboneSettings | None) -> tuple[BackboneSettings, str]:
    """What the weights tell with what a person says otherwise, in settings and in words."""
    backbone, words = recognized.settings, recognized.words
    if given is None:
        return backbone, words
    said = {key: getattr(given, key) for key in given.model_fields_set if key in type(backbone).model_fields}
    changes = {key: value for key, value in said.items() if value != "auto" and value != getattr(backbone, key)}
    if changes:
        words += f"; but {', '.join(f'{key} = {value}' for key, value in sorted(changes.items()))} as given"
    return type(backbone).model_validate({**backbone.model_dump(exclude_unset=True), **changes}), words


def _notes(found: Elsewhere, wanted: _Wanted, beside: str, encoder: Backbone) -> list[str]:
    read = [f"read as {wanted.backbone.name}: {wanted.words}"] if wanted.words else []
    read += found.other_pixels(wanted.backbone, encoder.mean, encoder.std)
    parts = [*found.notes, *read, *([f"left out, as no part of the backbone: {beside}"] if beside else [])]
    notes = [f"{found.path}: {'; '.join(parts)}"] if parts else []
    if not read and getattr(wanted.backbone, "normalization", None) in ("auto", "none"):
        notes.append(
            f"{found.path} does not say how it wants its pixels; it gets them in [-1, 1]. If it was trained otherwise,"
            " say so with --set backbone.normalization="
        )
    return notes


def _misfit(found: Elsewhere, wanted: _Wanted, error: CheckpointError) -> CheckpointError:
    """The same error with what to do next."""
    if wanted.words:
        return CheckpointError(f"{error}; by its other shapes it is {wanted.backbone.name}")
    if found.recognized() is not None:
        return CheckpointError(f"{error}; without --backbone the network is read off its shapes")
    return error


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


def _check_positions(path: Path, own: dict[str, Tensor], state: dict[str, Tensor], encoder: Backbone) -> None:
    """See that a table of positions that is no square belongs to the images that are meant: only a person can say what
    rectangle it is.

    Raises:
        CheckpointError: it is of others.
    """
    mine, theirs = own.get("pos_embed"), state.get("pos_embed")
    if mine is None or theirs is None or mine.ndim != 3 or theirs.ndim != 3 or mine.shape[1] == theirs.shape[1]:
        return
    patches, (height, width) = theirs.shape[1] - mine.shape[1] + encoder.num_tokens, encoder.patch_shape
    if patches < 1 or isqrt(patches) ** 2 == patches:
        return
    rows = max(n for n in range(1, isqrt(patches) + 1) if patches % n == 0)
    columns = patches // rows
    examples = f"{rows * height},{columns * width} or {columns * height},{rows * width}"
    raise CheckpointError(
        f"{path} has positions for {patches} patches of {size_words((height, width))} px, which are no square; say what"
        f" images it is for with --image-size HEIGHT,WIDTH ({examples}, for example)"
    )


def _classifier(encoder: Backbone) -> tuple[str, ...]:
    """timm's names for the head that the encoder has not."""
    config = timm.get_pretrained_cfg(encoder.timm_name) if encoder.timm_name else None
    named = config.classifier if config and config.classifier else ()
    return (named,) if isinstance(named, str) else tuple(named)
