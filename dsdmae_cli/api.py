"""dsdmae from Python: what the commands do, as functions that return results and raise dsdmae's errors.

`import dsdmae_cli as dsdmae` has all of them; docs/python.md shows them. What pictures get is in api_pictures.py.
Nothing heavy is loaded before one is called. None of them ends the process, prints (warnings go through `warnings`,
progress to stderr where it is asked for), or leaves the random states of Python, NumPy and torch other than they were.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from keyword import iskeyword
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from dsdmae_cli import plugins
from dsdmae_cli.config.flags import flags_of
from dsdmae_cli.config.given import Given
from dsdmae_cli.data.once import opened_once
from dsdmae_cli.errors import SettingsError, nearest
from dsdmae_cli.report import Report
from dsdmae_cli.report.training import PlainReport
from dsdmae_cli.settings.size import Size, as_size

if TYPE_CHECKING:
    from dsdmae_cli.artifacts.embedding import Embedding
    from dsdmae_cli.artifacts.pyramid import FeaturePyramid
    from dsdmae_cli.backbone import Backbone
    from dsdmae_cli.config.schema import Schema

Presets = str | Sequence[str] | None
Data = str | Path | Mapping[str, Any] | None


class DsdmaeWarning(UserWarning):
    """What the command line says as a warning."""


class _Quiet(Report):
    """No progress."""

    def warn(self, text: str) -> None:
        warnings.warn(text, DsdmaeWarning, stacklevel=2)


class _Telling(PlainReport):
    """Lines on stderr, as a log file gets them."""

    def warn(self, text: str) -> None:
        warnings.warn(text, DsdmaeWarning, stacklevel=2)


def pretrain(
    data: Data = None,
    *,
    method: str | Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    accept_changes: bool = False,
    preset: Presets = None,
    progress: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Pre-train a backbone on images, without labels.

    Args:
        data: a folder or archive of images, a dataset's name, or the table of [data] ({"dataset": "cifar10", "strict":
            True}); None = the preset's.
        method: name of the method, or its table of settings ({"name": "mae", "mask_ratio": 0.6}).
        out: the run's directory, new or empty; None = one of its own under the user's data directory.
        resume: go on with the run in `out`, by its own settings.
        accept_changes: go on though its settings.toml or the images are not those of its newest checkpoint.
        preset: packaged settings to start from, one or several.
        progress: lines on stderr.
        settings: named as the flags are (epochs, batch_size; lambda_ and from_, which Python has words of its own for),
            or a section's table (optim={"min_lr": 1e-6}).

    Returns:
        What result.json holds.

    Raises:
        SettingsError, PluginError, DataError, CheckpointError, RunFailed: as the command line says them.
        RunInterrupted: Ctrl-C in the main thread; the run is saved.
    """
    from dsdmae_cli.config.schema import PRETRAIN
    from dsdmae_cli.recipes.gather import pretraining
    from dsdmae_cli.recipes.pretrain import pretrain as run
    from dsdmae_cli.runtime import undisturbed

    with opened_once(), undisturbed():
        given = given_from("pretrain", PRETRAIN, {**_named(data), **_but_none(method=method), **settings},
                           out=path_of(out), resume=resume, accept_changes=accept_changes,
                           preset=_presets(preset))  # fmt: skip
        loaded = pretraining(given)
        return run(loaded, out=given.out, resume=resume, overridden=given.any_setting, accept_changes=accept_changes,
                   report=_report(progress))  # fmt: skip


def finetune(
    subject: str | Path = "scratch",
    *,
    data: Data = None,
    out: str | Path | None = None,
    like: str | Path | None = None,
    resume: bool = False,
    accept_changes: bool = False,
    preset: Presets = None,
    progress: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Train a whole network on labels and judge it on the test images.

    Args:
        subject: where its weights start: a run, a weights file, "timm:NAME" or "scratch".
        data: as in pretrain; None = what the subject learned from.
        like: for "scratch": another subject, whose data and backbone are meant.
        out, resume, accept_changes, preset, progress, settings: as in pretrain.

    Returns:
        What result.json holds: top1, top1_interval, classifier, ...; with task="segment" mean_iou in place of top1.

    Raises:
        As pretrain.
    """
    from dsdmae_cli.config.schema import FINETUNE
    from dsdmae_cli.recipes.finetune import finetune as run
    from dsdmae_cli.recipes.gather import judging
    from dsdmae_cli.runtime import undisturbed

    with opened_once(), undisturbed():
        given = given_from("finetune", FINETUNE, {**_named(data), **settings}, subject=str(subject), like=_text(like),
                           out=path_of(out), resume=resume, accept_changes=accept_changes,
                           preset=_presets(preset))  # fmt: skip
        loaded = judging(given, FINETUNE, "finetune")
        return run(loaded, out=given.out, resume=resume, overridden=given.any_setting, accept_changes=accept_changes,
                   report=_report(progress))  # fmt: skip


def probe(
    subject: str | Path,
    *,
    kind: str | None = None,
    data: Data = None,
    like: str | Path | None = None,
    out: str | Path | None = None,
    progress: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Judge a frozen backbone.

    Args:
        subject: a run, a weights file, "timm:NAME", "scratch" or "pixels".
        kind: "linear" (default), "knn", "logistic", "attentive", "ep", or any installed probe.
        data, like, out, progress, settings: as in finetune.

    Returns:
        What result.json holds: top1, top1_interval, chosen, protocol, ...

    Raises:
        As pretrain.
    """
    from dsdmae_cli.config.schema import PROBE
    from dsdmae_cli.recipes.gather import judging
    from dsdmae_cli.recipes.probe import probe as run
    from dsdmae_cli.runtime import undisturbed

    with opened_once(), undisturbed():
        given = given_from("probe", PROBE, {**_named(data), **_but_none(kind=kind), **settings}, subject=str(subject),
                       like=_text(like), out=path_of(out))  # fmt: skip
        return run(judging(given, PROBE, "probe"), out=given.out, report=_report(progress))


def embed(
    subject: str | Path,
    data: Data = None,
    *,
    split: str = "train",
    pool: str = "mean",
    image_size: Size | None = None,
    device: str = "auto",
    precision: str = "auto",
    cache: bool = True,
    progress: bool = False,
    **settings: Any,
) -> Embedding:
    """Features of every image of a dataset, in its order, with names and labels.

    Args:
        subject: a run, a weights file or "timm:NAME".
        data: as in pretrain; None = what the subject learned from.
        split: "train", "test", "labelled" or "all" (train, then test).
        pool: of the patch tokens "mean" or "max", the class token "cls", "mean+cls", or all "tokens".
        image_size: of the images that the encoder sees: a side, or (height, width); None = that of its training.
        device, precision: as train.device and train.precision.
        cache: keep the features in the user's cache, and look for them there.
        settings: of [data] and [backbone], as in pretrain.

    Returns:
        `features` float32 [n, width] (of tokens [n, rows, columns, width]), `names`, `splits`, `labels` (-1 = none) and
        `classes`.

    Raises:
        As pretrain.
    """
    from dsdmae_cli.config.use import USE
    from dsdmae_cli.recipes.embed import Request, Split, compute
    from dsdmae_cli.runtime import undisturbed

    with opened_once(), undisturbed():
        given = given_from("embed", USE, {**_named(data), **settings})
        if split not in get_args(Split):
            raise SettingsError(f"split = {split!r} is not allowed; it takes {', '.join(get_args(Split))}")
        request = Request(
            subject=str(subject), flags=given.flags, split=split, pool=pool, image_size=_size(image_size),  # type: ignore[arg-type]
            device=device, precision=precision, cache=cache,
        )  # fmt: skip
        return compute(request, _report(progress)).embedding


def load_encoder(
    subject: str | Path,
    *,
    image_size: Size | None = None,
    backbone: str | Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Backbone:
    """A backbone as a torch module: on the CPU, in eval mode, for images [b, channels, height, width] in [-1, 1].

    Args:
        subject: a run, a weights file, "timm:NAME", or "scratch".
        image_size: of the images that it shall take: a side, or (height, width); None = that of its training.
        backbone: architecture of weights that do not name theirs, and of "scratch": its name or its table of settings.
        seed: of weights that are drawn.

    Returns:
        `encoder(images)` gives [b, tokens, width]; `encoder.forward_tokens(images)` the class token beside them.

    Raises:
        CheckpointError, SettingsError, PluginError: there is no such thing, or it does not fit.
    """
    from dsdmae_cli.artifacts.open import open_encoder
    from dsdmae_cli.config.use import USE, given
    from dsdmae_cli.runtime import undisturbed

    with undisturbed():
        flags = given_from("export", USE, _but_none(backbone=backbone)).flags
        named, size = given(flags, None)[1], _size(image_size)
        opened = open_encoder(str(subject), None, backbone=named, image_size=size, seed=seed)
    for note in opened.notes:
        warnings.warn(note, DsdmaeWarning, stacklevel=2)
    return opened.encoder.eval()


def feature_pyramid(
    subject: str | Path, *, out_channels: int = 256, frozen: bool = False, **how: Any
) -> FeaturePyramid:
    """An encoder with ViTDet's pyramid of maps, as torchvision's detectors take a backbone (docs/detection.md).

    Args:
        out_channels, frozen: see artifacts.pyramid.FeaturePyramid; the rest as load_encoder.
    """
    from dsdmae_cli.artifacts.pyramid import FeaturePyramid

    return FeaturePyramid(load_encoder(subject, **how), out_channels, frozen=frozen)


def given_from(command: str, schema: Schema[Any], settings: Mapping[str, Any], **places: Any) -> Given:
    """What keyword arguments say of settings, under the settings' names.

    Raises:
        SettingsError: there is no such argument.
    """
    names = {flag.word.replace("-", "_"): flag.setting for flag in flags_of(command)}
    names = {(f"{name}_" if iskeyword(name) else name): setting for name, setting in names.items()}
    flags: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and name in schema.sections:
            said = {f"{name}.{key}": _plain(item) for key, item in value.items()}
        elif name in names:
            said = {} if value is None else {names[name]: _plain(value)}
        else:
            known = [*names, *schema.sections]
            raise SettingsError(
                f"{command} has no argument {name!r}{nearest(name, known)}; settings are {', '.join(names)}, or the"
                f" tables of {', '.join(schema.sections)}, as optim={{'weight_decay': 0.1}}"
            )
        flags |= said
        origins |= dict.fromkeys(said, f"argument {name}")
    return Given(flags=flags, origins=origins, **places)


def _plain(value: Any) -> Any:
    """As a TOML file would have it."""
    if value is None:
        return "none"
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _named(data: Data) -> dict[str, Any]:
    """A dataset by its name; what is a path and no installed dataset is a folder."""
    if data is None or isinstance(data, Mapping):
        return {} if data is None else {"data": data}
    text = str(data)
    known = not isinstance(data, Path) and text.partition(":")[0] in plugins.names("dataset")
    return {"dataset": text if known else plugins.of_path(text)}


def _but_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _size(value: Any) -> Size | None:
    """An image size as it is kept; NumPy's numbers and a list are as good."""
    if value is None:
        return None
    sides = value if isinstance(value, list | tuple) else (value,)
    if not 1 <= len(sides) <= 2 or not all(isinstance(side, Integral) and int(side) > 0 for side in sides):
        raise SettingsError(f"image_size = {value!r} is not allowed; it takes a number of pixels or (height, width)")
    return as_size(int(sides[0]), int(sides[-1]))


def path_of(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


def _text(value: str | Path | None) -> str | None:
    return None if value is None else str(value)


def _presets(preset: Presets) -> tuple[str, ...] | None:
    return None if preset is None else (preset,) if isinstance(preset, str) else tuple(preset)


def _report(progress: bool) -> Report:
    return _Telling() if progress else _Quiet()
