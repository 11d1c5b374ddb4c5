"""What "auto" means where settings and specs alone decide it, and the rules between sections. No torch here."""

from __future__ import annotations

import math
from typing import Any, overload

from pydantic import BaseModel

from dsdmae_cli import plugins
from dsdmae_cli.errors import DataError, SettingsError
from dsdmae_cli.report import number_of
from dsdmae_cli.settings.judge import FinetuneOptimSettings, FinetuneSettings, ProbeSettings
from dsdmae_cli.settings.models import BackboneSettings, DataSettings, MethodSettings, Section, Settings
from dsdmae_cli.settings.resolved import (
    ResolvedData,
    ResolvedFinetuneSettings,
    ResolvedOptim,
    ResolvedProbeSettings,
    ResolvedSettings,
    decided,
)
from dsdmae_cli.settings.size import Size, height_width, size_word

# Of a run that begins with trained weights: the rate at which a new run learns would undo much of what they know, and
# AdamW's moments, which begin anew, need a longer warm-up before their steps can be trusted.
BEGUN_RATE = 0.1
_BEGUN_WARMUP = 0.1
RGB = 3

_RESOLVED: dict[type[BaseModel], type[BaseModel]] = {
    Settings: ResolvedSettings,
    FinetuneSettings: ResolvedFinetuneSettings,
    ProbeSettings: ResolvedProbeSettings,
}


@overload
def resolve(settings: Settings) -> ResolvedSettings: ...
@overload
def resolve(settings: FinetuneSettings) -> ResolvedFinetuneSettings: ...
@overload
def resolve(settings: ProbeSettings) -> ResolvedProbeSettings: ...
def resolve(settings: Any) -> Any:
    """Replace every "auto" that settings and specs alone decide; pure but for a folder's look at its images.

    The device, precision, compilation and micro-batch are left to runtime.py, which knows the hardware.

    Raises:
        SettingsError: sections do not go together, or the images' size cannot be.
        PluginError, DataError: a plugin or the dataset is not there.
    """
    data = resolve_data(settings.data, getattr(settings, "method", None))
    backbone = resolve_backbone(settings.backbone, data.image_size, data.channels)
    whole = next(to for of, to in _RESOLVED.items() if isinstance(settings, of))
    sections = {name: getattr(settings, name) for name in type(settings).model_fields}
    sections |= {"data": data, "backbone": backbone}
    if "method" in sections:
        encodes_subset = plugins.find("backbone", backbone.name).spec.encodes_subset
        tokens = _num_tokens(backbone, data.image_size)
        sections["method"] = _without_colour(settings.method, data.channels).for_backbone(encodes_subset, tokens)
    for name, decide in (("optim", _optim), ("train", _train)):
        if name in sections:
            narrow: Any = whole.model_fields[name].annotation
            sections[name] = decided(sections[name], narrow, decide(settings))
    resolved = whole(**sections)
    _check_together(resolved)
    return resolved


def resolve_data(data: DataSettings, method: MethodSettings | None = None) -> ResolvedData:
    """The data section with "auto" replaced, for images that a method (None = none in particular) learns from."""
    spec = plugins.find("dataset", data.dataset).spec
    size = data.image_size
    if size == "auto":
        own = spec.image_size
        size = plugins.load(own)(data) if isinstance(own, str) else own
    if data.crop_from is not None and data.crop_from < max(height_width(size)):
        raise SettingsError(f"data.crop_from = {data.crop_from} must be at least data.image_size = {size_word(size)}")
    augment = {**spec.augment, **methods_augment(data, method)}
    auto = {key: augment[key] for key in ("crop_scale", "flip", "shift") if getattr(data, key) == "auto"}
    channels = data.channels
    if channels == "auto":
        auto["channels"] = channels = _channels(data, spec)
    data = data.model_copy(update={"channels": channels})
    if data.range == "auto":
        auto["range"] = _range(data, spec)
    _check_channels(data, auto.get("range", data.range), channels)
    return decided(data, ResolvedData, {"image_size": size, **auto})


def _channels(data: DataSettings, spec: plugins.DatasetSpec) -> int:
    """As many as the images have; RGB where they are not here (see _range)."""
    if data.bands != "auto":
        return 3 if len(data.bands) == 1 else len(data.bands)
    if isinstance(spec.channels, int):
        return spec.channels
    try:
        return int(plugins.load(spec.channels)(data))
    except DataError:
        return RGB


def _check_channels(data: DataSettings, limits: object, channels: int) -> None:
    """See that channels, bands and ranges go together."""
    if data.bands != "auto" and len(data.bands) != channels and not {len(data.bands), channels} <= {1, RGB}:
        raise SettingsError(
            f"data.bands names {len(data.bands)} bands and data.channels = {channels}; leave one of them out"
        )
    if isinstance(limits, tuple) and isinstance(limits[0], tuple) and len(limits) != channels:
        raise SettingsError(
            f"data.range has {len(limits)} pairs and there are {channels} channels; give one pair a channel, or one for"
            " all"
        )


def _range(data: DataSettings, spec: plugins.DatasetSpec) -> Any:
    """What the images say is black and white; None where all have 8 bits, or are not here.

    An old run's settings are read for its network too, and its images may be gone; who opens them is told that.
    """
    if spec.value_range is None:
        return None
    try:
        return plugins.load(spec.value_range)(data)
    except DataError:
        return None


def _without_colour(method: MethodSettings, channels: int) -> MethodSettings:
    """A method's settings for images of so many channels: what varies colours is off where there are none.

    Raises:
        SettingsError: the method is for RGB alone, or somebody asked for what needs colours.
    """
    spec = plugins.find("method", method.name).spec
    if channels == RGB:
        return method
    if not spec.any_channels:
        raise SettingsError(
            f"method {method.name!r} is for RGB images, and data.channels = {channels}; choose three with --set"
            f" data.bands=[3,2,1], or use another method ({_names('method', 'any_channels')})"
        )
    for key, off in spec.colour.items():
        if key in method.model_fields_set and getattr(method, key) != off:
            raise SettingsError(
                f"method.{key} = {getattr(method, key)!r} needs RGB images, and data.channels = {channels}; leave it"
                " out, or choose three bands with --set data.bands=[3,2,1]"
            )
    return method.model_copy(update=dict(spec.colour))


def methods_augment(data: DataSettings, method: MethodSettings | None) -> dict[str, Any]:
    """What a method rather than the dataset says that "auto" means for data.crop_scale, data.flip and data.shift.

    A dataset that has no crops or no mirror has a reason in its images: of a digit of 8x8 pixels a twelfth of the area
    says nothing, and the mirror image of a grating of 45 degrees is one of 135. No method can know that, so that there
    the dataset has the last word, and a method's wishes are for the other datasets.
    """
    if method is None:
        return {}
    own = plugins.find("dataset", data.dataset).spec.augment
    wanted = plugins.find("method", method.name).spec.augment
    return {key: value for key, value in wanted.items() if own[key] is not None and own[key] is not False}


def colour_notes(settings: Any) -> tuple[str, ...]:
    """What a person should know of a method that leaves out what varies colours, in resolved settings."""
    if not hasattr(settings, "method") or settings.data.channels == RGB:
        return ()
    off = plugins.find("method", settings.method.name).spec.colour
    return (
        (f"{', '.join(off)} of the method are off: they are for RGB images, colour jitter and the like",) if off else ()
    )


def resolve_backbone(backbone: BackboneSettings, image_size: Size, channels: int = RGB) -> BackboneSettings:
    """The backbone section with "auto" replaced, for images of a size and number of channels.

    Raises:
        SettingsError: it takes another number of channels, or squares alone.
    """
    spec, patch = plugins.find("backbone", backbone.name).spec, backbone.patch_size
    if not isinstance(image_size, int) and not spec.rectangles:
        raise SettingsError(
            f"backbone {backbone.name!r} is for square images, and data.image_size = {size_word(image_size)}; give one"
            f" number, or use another ({_names('backbone', 'rectangles')})"
        )
    if patch == "auto" and not spec.own_patch_size:
        patch = _auto_patch_size(image_size)
    taken = channels if backbone.in_chans == "auto" else backbone.in_chans
    check_taken(taken, channels, "the network")
    if taken != RGB and not spec.any_channels:
        raise SettingsError(
            f"backbone {backbone.name!r} is for RGB images, and data.channels = {channels}; use another"
            f" ({_names('backbone', 'any_channels')}), or choose three bands with --set data.bands=[3,2,1]"
        )
    return backbone.model_copy(update={"patch_size": patch, "in_chans": taken})


def _num_tokens(backbone: BackboneSettings, image_size: Size) -> int | None:
    """Patches of an image; None where the architecture decides their size."""
    patch = backbone.patch_size
    return math.prod(side // patch for side in height_width(image_size)) if isinstance(patch, int) else None


def check_taken(taken: int, channels: int, what: str) -> None:
    """See that a network takes the images.

    Args:
        taken: channels that it takes.
        channels: that the images have, as data.channels says.
        what: the network, for the message.

    Raises:
        SettingsError: it does not.
    """
    if taken == channels:
        return
    first = ",".join(str(number) for number in range(1, taken + 1))
    advice = (
        f"with --set data.bands=[{first}] and the like it sees as many bands"
        if taken < channels
        else ("give it images of so many bands")
    )
    if taken == RGB:
        advice = "with --set data.bands=[3,2,1] and the like it sees three bands"
    raise SettingsError(
        f"{what} takes images of {number_of(taken, 'channel')}, and data.channels = {channels}; {advice}"
    )


def _optim(settings: Any) -> dict[str, Any]:
    optim, train = settings.optim, settings.train
    share, rate = 0.05 if isinstance(optim, FinetuneOptimSettings) else 0.04, 1.0
    if getattr(train, "start", None) is not None:
        share, rate = _BEGUN_WARMUP, BEGUN_RATE
    auto = {"lr": rate * optim.base_lr * train.batch_size / 256, "warmup_epochs": share * train.epochs}
    return _where_auto(optim, auto)


def _train(settings: Any) -> dict[str, Any]:
    """Intervals by the length of the run; a warm-up, where it stands here."""
    epochs = settings.train.epochs
    tenth = max(1, round(epochs / 10))
    auto = {
        "knn_every": tenth,
        "checkpoint_every": tenth,
        "score_every": 1 if epochs <= 50 else 2,
        "warmup_epochs": epochs / 9,
    }
    return _where_auto(settings.train, auto)


def _where_auto(section: Section, values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if getattr(section, key, None) == "auto"}


def _auto_patch_size(image_size: Size) -> int:
    """The divisor of the image's sides that is nearest, by ratio, to the paper's choice.

    That is 16x16 patches up to 128 px (32/2, 96/6), of rectangles 16 along the shorter side; beyond, the 16 px of
    ImageNet's ViTs.
    """
    sides = height_width(image_size)
    wanted = min(sides) / 16 if min(sides) <= 128 else 16
    common = math.gcd(*sides)
    divisors = [n for n in range(1, common + 1) if common % n == 0]
    return min(divisors, key=lambda n: max(n / wanted, wanted / n))


def _check_together(settings: Any) -> None:
    """Rules between sections, in resolved settings."""
    if hasattr(settings, "optim"):
        _check_schedule(settings.optim, settings.train.epochs)
    if not hasattr(settings, "method"):
        return
    method = plugins.find("method", settings.method.name).spec
    backbone = plugins.find("backbone", settings.backbone.name).spec
    if not isinstance(settings.data.image_size, int) and not method.rectangles:
        raise SettingsError(
            f"method {settings.method.name!r} is for square images, and data.image_size ="
            f" {size_word(settings.data.image_size)}; give one number, or use another method"
            f" ({_names('method', 'rectangles')})"
        )
    if method.needs_subset and not backbone.encodes_subset:
        raise SettingsError(
            f"method {settings.method.name!r} drops patches, and backbone {settings.backbone.name!r} cannot encode"
            f" a subset of them; {_others('needs_subset', 'encodes_subset')}"
        )
    if method.needs_mask_token and not backbone.takes_mask_token:
        raise SettingsError(
            f"method {settings.method.name!r} replaces patches by a mask token, and backbone"
            f" {settings.backbone.name!r} cannot take one; {_others('needs_mask_token', 'takes_mask_token')}"
        )


def _others(needs: str, can: str) -> str:
    """What goes together instead: backbones whose spec has `can`, or methods whose spec has not `needs`."""
    return f"use a backbone that can ({_names('backbone', can)}), or another method ({_names('method', needs, False)})"


def _names(kind: plugins.Kind, word: str, wanted: bool = True) -> str:
    """Plugins whose spec says so."""
    found = [p for p in plugins.discover(kind) if isinstance(p, plugins.Plugin)]
    return ", ".join(p.name for p in found if getattr(p.spec, word) is wanted)


def _check_schedule(optim: ResolvedOptim, epochs: int) -> None:
    if optim.warmup_epochs >= epochs:
        raise SettingsError(
            f"optim.warmup_epochs = {optim.warmup_epochs:g} must be below train.epochs = {epochs}; lower it or train"
            " longer"
        )
    if optim.min_lr > optim.lr:
        raise SettingsError(f"optim.min_lr = {optim.min_lr:g} must not exceed the peak rate {optim.lr:g}")
