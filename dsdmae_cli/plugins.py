"""Plugins: what a backbone, dataset, method, probe or tracker declares about itself, and how they are found.

A spec is cheap and free of torch; the code that needs torch is named as "module:attribute" and imported by `load` when
a run begins. Plugins, ours too, are found by the entry points below alone; a broken one harms nobody who leaves it be.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar, get_args

from pydantic import BaseModel

from dsdmae_cli.errors import PluginError, nearest, of_a_plugin
from dsdmae_cli.files import beside, is_pattern, looks_like_path
from dsdmae_cli.settings.judge import ProbeSection
from dsdmae_cli.settings.models import BackboneSettings, DataSettings, MethodSettings

Kind = Literal["backbone", "dataset", "method", "probe", "tracker"]
KINDS: tuple[Kind, ...] = get_args(Kind)
M = TypeVar("M")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What every plugin says about itself.

    Args:
        summary: one line for `dsdmae plugins`.
        build: "module:attribute" of the function that makes the real thing (see the subclasses).
        argument: what follows the colon in `name:ARGUMENT`, in one word for help ("PATH"); None = no argument.
    """

    summary: str
    build: str
    argument: str | None = None


@dataclass(frozen=True, kw_only=True)
class Recognized:
    """A backbone as the names and shapes of weights tell it.

    Args:
        settings: that build it, `name` and all that shapes decide among them.
        image_size: that its positions are for; None = it has none.
        words: what was read off the shapes, what was guessed, and which setting changes a guess.
        renamed: weights that the backbone knows under another name, {theirs: its own}.
    """

    settings: BackboneSettings
    image_size: int | tuple[int, int] | None
    words: str
    renamed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BackboneSpec(Spec):
    """A backbone; `build(settings, image_size) -> dsdmae_cli.backbone.Backbone`.

    Args:
        encodes_subset: it can encode only some of the patches (MAE needs that, DSdMAE does not).
        takes_mask_token: it can replace patches by a mask token (MaskFeat and BEiT need that).
        own_patch_size: backbone.patch_size "auto" is left to the architecture instead of making a 16x16 grid.
        image_size: "module:attribute" of a function(settings) -> int, the side in pixels of the images that published
            weights were made for; None = there are none. Such a backbone can be named wherever a command takes an
            encoder (NAME, or NAME:ARGUMENT if it takes one). Its settings have a boolean `pretrained`, with which
            `build` fetches the weights, and a patch size "auto" is that of the published ones (see own_patch_size).
        any_channels: it takes images of `settings.in_chans` channels, whatever the number; False = RGB alone.
        rectangles: `build` and `set_image_size` take (height, width) beside a number; False = squares alone.
        recognize: "module:attribute" of a torch-free function(shapes, origin) -> Recognized | None that tells the
            architecture of somebody's weights: {timm's name: shape}, heads and decoders among them, and whose names
            they had before ("" = timm's own). None = its weights are opened by name alone.
    """

    settings: type[BackboneSettings] = BackboneSettings
    encodes_subset: bool = False
    takes_mask_token: bool = False
    own_patch_size: bool = False
    image_size: str | None = None
    any_channels: bool = False
    rectangles: bool = False
    recognize: str | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetSpec(Spec):
    """A dataset; `build(settings, split) -> dsdmae_cli.data.base.ImageDataset`, split "train" or "test".

    What both splits and `image_size` need, such as a listing, `dsdmae_cli.data.once.shared` gets once.

    Args:
        image_size: its own side in pixels, or "module:attribute" of a torch-free function(settings) -> int.
        augment: what "auto" means for data.crop_scale, data.flip and data.shift.
        labelled_split: the training split whose images have labels, where that is not "train".
        channels: of the images that `load` gives while data.channels is "auto", or "module:attribute" of a torch-free
            function(settings) -> int. A dataset that has a function obeys data.channels; of another, images are made
            grey where that is 1.
        value_range: "module:attribute" of a torch-free function(settings) -> (low, high), one such pair a channel, or
            None, which is what data.range = auto means; None = all images have 8 bits.
        num_images: official number of images by split, labelled_split too, for a plan while there are no files.
        count: "module:attribute" of a torch-free, quick function(settings) -> (training images, those with a label) of
            a person's own images; None = `num_images` says, or nobody.
        reads_paths: a path alone, where a dataset is named, means this dataset; one of all that are installed says so.
        marker: a folder that holds a file of this name, where it is named by its path alone, is this dataset.
    """

    settings: type[DataSettings] = DataSettings
    image_size: int | str
    augment: Mapping[str, Any] = field(default_factory=lambda: {"crop_scale": (0.2, 1.0), "flip": True, "shift": 0})
    labelled_split: str = "train"
    channels: int | str = 3
    value_range: str | None = None
    num_images: Mapping[str, int] = field(default_factory=dict)
    count: str | None = None
    reads_paths: bool = False
    marker: str | None = None


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A run of another method that must have ended before a method can begin (BEiT needs a tokenizer).

    The program trains one before the run, or takes the one that the settings name.

    Args:
        method: the method plugin that is trained.
        setting: key under [method] that names a run of it, a path; "auto" = one is trained where there is none yet.
        epochs: key under [method] of the epochs that "auto" trains it for; "auto" = a tenth of the run's, and 1000
            steps at least.
        preset: what "auto" starts from, beside the run's own data and patches.
        passed_on: keys under [method] that the two have in common.
        command: what a person types to train one by hand.
    """

    method: str
    setting: str
    epochs: str
    preset: str
    passed_on: tuple[str, ...] = ()
    command: str


@dataclass(frozen=True, kw_only=True)
class NamedSweep:
    """Names for values of one setting, for `dsdmae ablate --sweep NAME WORD,WORD`.

    Args:
        setting: key under [method].
        values: what each word sets, as on the command line; None = the setting stays as it is.
    """

    setting: str
    values: Mapping[str, str | None]


@dataclass(frozen=True, kw_only=True)
class MethodSpec(Spec):
    """A pre-training method; `build(settings, backbone) -> dsdmae_cli.methods.base.Method`.

    Args:
        needs_subset: it drops patches, so that its backbone must encode subsets.
        needs_mask_token: it replaces patches by a mask token, which its backbone must take.
        requires: what must be trained on the same images beforehand; `build` is then given that, untrained, as third
            argument, and its Method holds it in a dsdmae_cli.methods.frozen.Frozen.
        augment: what "auto" means for data.crop_scale, data.flip and data.shift with this method, over what it means
            for the dataset. Where that says None or False, it stands: it knows its images, and a method does not.
        any_channels: it learns from images of any number of channels (`backbone.in_chans`); False = RGB alone.
        rectangles: it learns from images that are no squares too: `backbone.image_size` may be (height, width).
        colour: settings that vary colours, and the values that switch them off for images that are not RGB.
        fewest_in_batch: of a batch that nobody says, where images are few; more where losses compare its images.
        named_sweeps: what `--sweep` may call values of a setting, by name ("heads"); a flag's name is no such name.
        paper: what to cite.
    """

    settings: type[MethodSettings] = MethodSettings
    needs_subset: bool = False
    needs_mask_token: bool = False
    requires: Requirement | None = None
    augment: Mapping[str, Any] = field(default_factory=dict)
    any_channels: bool = False
    rectangles: bool = False
    colour: Mapping[str, Any] = field(default_factory=dict)
    fewest_in_batch: int = 32
    named_sweeps: Mapping[str, NamedSweep] = field(default_factory=dict)
    paper: str = ""


@dataclass(frozen=True, kw_only=True)
class TrackerSpec(Spec):
    """A tracker; `build(run: dsdmae_cli.tracking.TrackedRun) -> dsdmae_cli.tracking.Tracker`, before the first step."""


@dataclass(frozen=True, kw_only=True)
class ProbeSpec(Spec):
    """A probe of frozen features; `build` names its function fit(settings, data) -> ProbeResult (evaluation/probes.py),
    or -> DenseResult of one that labels pixels (dense; evaluation/dense.py)."""

    settings: type[ProbeSection] = ProbeSection
    dense: bool = False


SPECS: dict[Kind, type[Spec]] = {
    "backbone": BackboneSpec,
    "dataset": DatasetSpec,
    "method": MethodSpec,
    "probe": ProbeSpec,
    "tracker": TrackerSpec,
}
S = TypeVar("S", bound=Spec)


@dataclass(frozen=True)
class Plugin(Generic[S]):
    """A plugin as found: its spec and where it came from."""

    kind: Kind
    name: str
    spec: S
    distribution: str
    version: str


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that could not be imported or is not what its group promises."""

    kind: Kind
    name: str
    reason: str
    distribution: str
    version: str


def group(kind: Kind) -> str:
    """The entry-point group of a kind."""
    return f"dsdmae.{kind}s"


class _Entry(NamedTuple):
    """An entry point, and the distribution and version it came from."""

    point: EntryPoint
    distribution: str
    version: str


def _entries(kind: Kind) -> tuple[_Entry, ...]:
    return _installed(group(kind), tuple((place, _changed(place)) for place in sys.path))


@lru_cache(maxsize=len(KINDS))
def _installed(group: str, places: tuple[tuple[str, int], ...]) -> tuple[_Entry, ...]:
    """Of all distributions at these places; to open a denoiser takes fifteen look-ups, and each would read them all."""
    origins: dict[int, tuple[str, str]] = {}  # by distribution, whose name means to parse its metadata
    found = []
    for point in entry_points(group=group):
        if id(point.dist) not in origins:
            # An entry point is without a distribution only when it was made by hand.
            origins[id(point.dist)] = (point.dist.name, point.dist.version) if point.dist else ("unknown", "")
        found.append(_Entry(point, *origins[id(point.dist)]))
    return tuple(found)


def _changed(place: str) -> int:
    """When something was last installed there, so that a session that goes on sees it."""
    try:
        return Path(place).stat().st_mtime_ns
    except OSError:
        return 0


def _examine(kind: Kind, found: _Entry) -> Plugin[Any] | BrokenPlugin:
    entry, distribution, version = found
    try:
        with redirect_stdout(sys.stderr):  # stdout is ours, and may be one JSON object
            spec = entry.load()
    except BaseException as error:  # a plugin may fail in any way, and all are its own fault
        if isinstance(error, KeyboardInterrupt):  # not to be told from a person's
            raise
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")
        return BrokenPlugin(kind, entry.name, reason, distribution, version)
    if wrong := _wrong(spec, SPECS[kind]):
        return BrokenPlugin(kind, entry.name, f"{entry.value} {wrong}", distribution, version)
    return Plugin(kind, entry.name, spec, distribution, version)


def _wrong(spec: Any, wanted: type[Spec]) -> str | None:
    if not isinstance(spec, wanted):
        return f"is a {type(spec).__name__}, not a {wanted.__name__}"
    own = getattr(spec, "settings", BaseModel)
    if not (isinstance(own, type) and issubclass(own, BaseModel)):
        return f"has settings {own!r}, not a pydantic class"
    odd = [name for name in ("summary", "build") if not isinstance(getattr(spec, name), str)]
    return f"has {odd[0]} {getattr(spec, odd[0])!r}, not a text" if odd else None


def made_by(reference: str, kind: type[M], *given: Any) -> M:
    """What the callable that a spec names makes; raises PluginError where it is not there or makes something else."""
    with of_a_plugin(reference):
        made = load(reference)(*given)
    if not isinstance(made, kind):
        raise PluginError(f"a plugin's {reference!r} made a {type(made).__name__}, not a {kind.__name__}")
    return made


def names(kind: Kind) -> list[str]:
    """The names of all plugins of a kind, sorted; none of them is imported."""
    return sorted({entry.point.name for entry in _entries(kind)})


def discover(kind: Kind) -> list[Plugin[Any] | BrokenPlugin]:
    """All plugins of a kind, sorted by name; the broken ones as BrokenPlugin."""
    return [_examine(kind, entry) for entry in sorted(_entries(kind), key=lambda e: e.point.name)]


def find(kind: Kind, full_name: str) -> Plugin[Any]:
    """The plugin called `full_name`, which may carry an argument after a colon ("folder:PATH").

    Raises:
        PluginError: no such plugin, two distributions claim the name, it is broken, or the argument does not fit.
    """
    name, colon, argument = full_name.partition(":")
    found = sorted((e for e in _entries(kind) if e.point.name == name), key=lambda e: (e.distribution, e.version))
    if not found:
        raise PluginError(_not_there(kind, full_name))
    if len(found) > 1:
        claims = " and ".join(f"{e.distribution} {e.version}" for e in found)
        raise PluginError(f"{kind} {name!r} is claimed by {claims}; uninstall one of them")
    plugin = _examine(kind, found[0])
    if isinstance(plugin, BrokenPlugin):
        raise PluginError(
            f"{kind} {name!r} of {plugin.distribution} {plugin.version} is broken: {plugin.reason};"
            " reinstall or remove that package"
        )
    wanted = plugin.spec.argument
    if wanted and not argument:
        raise PluginError(f"{kind} {name!r} needs an argument: {name}:{wanted}")
    if colon and not wanted:
        raise PluginError(f"{kind} {name!r} takes no argument, got {full_name!r}; write {name}")
    return plugin


def _not_there(kind: Kind, full_name: str) -> str:
    """What to say where no plugin has this name; a dataset may have been meant as a path."""
    name, there = full_name.partition(":")[0], names(kind)
    if kind == "dataset" and looks_like_path(full_name):
        return f"there is no folder or archive {full_name}{beside(Path(full_name).expanduser())}; give one that exists"
    path = f", and there is no folder or archive ./{full_name}" if kind == "dataset" and full_name else ""
    path = " (docs/datasets.md says how: pip install ./plugins/dsdmae-hf in a clone)" if path and name == "hf" else path
    what = f"{kind} {name!r} is not installed{nearest(name, there)}{path}"
    return f"{what}; there is {', '.join(there) or 'none'} (see `dsdmae plugins`)"


def spelled_out(kind: Kind, text: str) -> str:
    """The whole name of what a person named: a path that exists and is no plugin's name stands for the dataset of it.

    What is neither stays as it is, and `find` says so.
    """
    if kind != "dataset" or not text.strip() or text.partition(":")[0] in names(kind):
        return text
    try:
        exists = is_pattern(text) or Path(text).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long a name, no such user, a null byte
        return text
    return of_path(text) if exists else text


def of_path(path: str) -> str:
    """The whole name of the dataset that reads a path: the one whose marker lies there, or "folder:PATH"; PluginError
    where none that is installed reads paths."""
    found, place = [p for p in discover("dataset") if isinstance(p, Plugin)], Path(path).expanduser()
    marked = [p for p in found if p.spec.marker and (place / p.spec.marker).is_file()]
    for plugin in (*marked, *(p for p in found if p.spec.reads_paths)):
        return f"{plugin.name}:{path}"
    raise PluginError(f"no dataset that is installed reads a path such as {path}; install dsdmae anew")


def argument_of(full_name: str) -> str:
    """What follows the first colon: "PATH" of "folder:PATH"."""
    return full_name.partition(":")[2]


def load(reference: str) -> Callable[..., Any]:
    """Import the callable that a spec names as "module:attribute", which is where torch comes in; PluginError where
    there is no such module or attribute."""
    module_name, _, attribute = reference.partition(":")
    try:
        with of_a_plugin(reference):
            return getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise PluginError(f"a plugin names {reference!r}, which cannot be imported: {error}") from error
