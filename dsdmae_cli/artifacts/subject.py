"""SUBJECT, the word for a backbone that a command judges, trains on or writes elsewhere: one grammar for all of them.

RUN          a run's directory, also of a pre-training run that has not ended; or its name, where runs go by default
FILE         weights: what pretrain, finetune and export write, or anybody's, as .safetensors or by torch.save
FOLDER       a folder with encoder.safetensors, classifier.safetensors, model.safetensors or pytorch_model.bin
NAME[:ARG]   published weights, of any backbone plugin that has them
hf:OWNER/NAME[@REVISION]  a repository of the Hugging Face hub with one of these files
packaged, packaged-white-noise  the encoders of the denoisers that ship
scratch      no pre-training: weights drawn from a seed
pixels       no network at all: the baseline of a probe

What is there on disk wins over a word or a plugin of the same name. No torch here: artifacts/open.py loads the weights.
Only somebody else's weights are looked into before that (elsewhere.py), since nothing but they say what they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from dsdmae_cli import plugins
from dsdmae_cli.artifacts import hub
from dsdmae_cli.artifacts.header import image_size, read_metadata, written_settings
from dsdmae_cli.artifacts.learned_from import Resolved, resolved, resolved_with_weights
from dsdmae_cli.artifacts.packaged import ALL
from dsdmae_cli.config.compose import load
from dsdmae_cli.config.describe import plain, tables
from dsdmae_cli.config.resolve import RGB, resolve_backbone
from dsdmae_cli.config.schema import Values
from dsdmae_cli.config.sources import read_toml
from dsdmae_cli.errors import CheckpointError, DataError, PluginError, SettingsError, nearest
from dsdmae_cli.files import require_file, typed
from dsdmae_cli.plugins import BackboneSpec, Plugin
from dsdmae_cli.runs.near import near
from dsdmae_cli.runs.rundir import CLASSIFIER, ENCODER, SETTINGS, default_folder, where_they_lie
from dsdmae_cli.settings.judge import PIXELS, SCRATCH
from dsdmae_cli.settings.models import BackboneSettings
from dsdmae_cli.settings.resolved import ResolvedFinetuneSettings

Kind = Literal["run", "weights", "published", "scratch", "pixels"]
# The weights of a folder that `dsdmae export` (or the Hugging Face hub) made.
EXPORTED = "model.safetensors"
# The weights of a run, which are read before those of an export.
IN_RUNS = (ENCODER, CLASSIFIER)
_IN_FOLDERS = (*IN_RUNS, EXPORTED, "pytorch_model.bin")
_SAFE = ".safetensors"
# The denoisers that ship, by their words.
_SHIPPED = {packaged.word: packaged for packaged in ALL}
# What torch.save's files are called, ".pth.tar" among them.
_PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".tar")
# How training images are varied and fetched is the new command's business, not the old run's.
_NOT_TAKEN_OVER = {"crop_scale", "crop_ratio", "flip", "shift", "placement", "workers", "strict", "max_unreadable"}


@dataclass(frozen=True)
class Subject:
    """What a person named; `parse` makes it.

    Attributes:
        text: as it was typed.
        kind: run, weights (a file or a folder with one), published, scratch or pixels.
        path: of a run or weights, as named.
        weights: the file with the weights; None for a run that has left none yet, and for what is no file.
    """

    text: str
    kind: Kind
    path: Path | None = None
    weights: Path | None = None

    @property
    def name(self) -> str:
        """What to call it in tables: a run or folder by its own name, a file without its ending."""
        if self.kind == "run":
            assert self.path is not None
            return self.path.resolve().name
        if self.weights is None or hub.is_hub(self.text) or self.text in _SHIPPED:
            return self.text
        if self.weights.name in _IN_FOLDERS:
            return self.weights.resolve().parent.name
        return self.weights.stem.removesuffix(".pth")

    @cached_property
    def metadata(self) -> dict[str, str]:
        """Of the file with the weights; empty where there is none, or it is no safetensors file.

        Raises:
            CheckpointError: it is damaged.
        """
        return read_metadata(self.weights) if self.weights is not None and is_safe(self.weights) else {}

    def settings(self) -> Resolved | None:
        """All settings it was trained with, resolved; None where it was not trained by this program.

        Raises:
            CheckpointError, SettingsError, PluginError, DataError: they are damaged, or name what is not here.
        """
        found = self._written()
        return None if found is None else self._resolved(*found)

    def _resolved(self, values: Values, origin: str) -> Resolved:
        if self.weights is not None:
            return resolved_with_weights(values, origin)
        try:
            return resolved(values, origin)
        except DataError as error:
            raise DataError(
                f"{self.text} has not ended, and what it is depends on its images ({error}); put them back for now"
            ) from error

    def _written(self) -> tuple[Values, str] | None:
        # Those beside the weights are resolved already: they do not ask for the images that a run learned from.
        if self.weights is not None:
            values = written_settings(self.metadata, str(self.weights))
            return None if values is None else (values, str(self.weights))
        if self.kind == "run":
            assert self.path is not None
            return read_toml(self.path / SETTINGS), str(self.path / SETTINGS)
        return None

    def taken_over(self) -> tuple[Values, str]:
        """[data] and [backbone] for a command that judges it, and where they come from; those it does not say are left
        out, and scratch and pixels have the quick preset's. Of somebody's weights they are read off the shapes.

        Raises:
            CheckpointError, SettingsError, PluginError, DataError: as settings.
        """
        if self.kind in (SCRATCH, PIXELS):
            return _shared(tables(load(environ={}).settings)), "preset quick"
        if self.kind == "published":
            return {"backbone": _published_table(self.text)}, self.text
        found = self._written()
        if found is not None:
            said = tables(self._resolved(*found))
            if self.weights is not None:  # an exported network may be for other images than those it learned from
                size = image_size(self.weights, self.metadata, said["data"]["image_size"])
                said["data"]["image_size"] = plain(size)
            return _shared(where_they_lie(said, self.path) if self.kind == "run" and self.path else said), found[1]
        if self.weights is None:
            return {}, self.text
        from dsdmae_cli.artifacts.elsewhere import recognized_tables  # with torch

        return recognized_tables(self.weights), self.text


def is_safe(path: Path) -> bool:
    """Whether a file is called as safetensors files are, in any case."""
    return path.suffix.lower() == _SAFE


def parse(text: str, *, trained: bool = False) -> Subject:
    """What a person named; see the module's first lines for what that may be.

    Args:
        trained: something that has learned: the words scratch and pixels are none.

    Raises:
        CheckpointError: it is none of these.
        SettingsError, PluginError: it names a plugin that has no published weights, or is broken.
    """
    path, called = Path(text), run_called(text)
    try:
        if path.is_dir():
            try:
                return _in_folder(text, path)
            except CheckpointError:
                if called is None:  # a folder of images often lends its name to the run that learns from it
                    raise
                return _in_folder(str(called), called)
        if path.exists():
            return _of_file(text, path)
    except OSError as error:
        raise CheckpointError(f"cannot read {text}: {error.strerror or error}") from error
    if text in _SHIPPED:
        file = Path(str(_SHIPPED[text].find()))
        return Subject(text, "weights", file, file)
    if hub.is_hub(text):
        return replace(_in_folder(text, hub.fetched(text, _IN_FOLDERS)), kind="weights")
    if text in (SCRATCH, PIXELS) and trained:
        raise CheckpointError(f"{text} has learned nothing; give {allowed(trained=True)}")
    if text == SCRATCH:
        return Subject(text, "scratch")
    if text == PIXELS:
        return Subject(text, "pixels")
    if text.partition(":")[0] in plugins.names("backbone"):
        published_spec(text)
        return Subject(text, "published")
    if called is not None:
        return _in_folder(str(called), called)
    raise CheckpointError(f"there is no {text}{_nearest(text, trained)}; give {allowed(trained)}")


def run_called(text: str) -> Path | None:
    """The run of that name, where runs go by default; None where there is none."""
    called = default_folder() / text
    return called if len(Path(text).parts) == 1 and (called / SETTINGS).is_file() else None


def parse_classifier(text: str) -> Subject:
    """A fine-tuned network that a person named, which knows classes.

    Raises:
        CheckpointError: it is none, or has not ended; and see parse.
    """
    parsed = parse(text, trained=True)
    settings = None if parsed.kind == "published" else parsed.settings()
    if not isinstance(settings, ResolvedFinetuneSettings):
        raise CheckpointError(f"{text} is no fine-tuned network and knows no classes; `dsdmae finetune` makes one")
    if parsed.weights is None:
        raise CheckpointError(
            f"{text} has not ended, and its network is written at the end; go on with it by: dsdmae finetune --resume"
            f" --out {typed(str(parsed.path))}"
        )
    return parsed


def names_pixels(subject: Subject) -> bool:
    """Whether what parse_classifier gave names the pixels of pictures, not the pictures."""
    settings = subject.settings()
    return isinstance(settings, ResolvedFinetuneSettings) and settings.finetune.task == "segment"


def taken_over(subject: str, like: str | None = None) -> tuple[Values, str]:
    """[data] and [backbone] of what is judged, and where they come from.

    Args:
        like: for scratch and pixels: another subject, whose data and backbone are meant; None = the quick preset's.

    Raises:
        SettingsError: `like` beside a subject that has data of its own; and see Subject.taken_over.
    """
    parsed = parse(subject)
    if like is None:
        return parsed.taken_over()
    if parsed.kind not in (SCRATCH, PIXELS):
        raise SettingsError(f"--like is for scratch and pixels, which have no data of their own; {subject} has")
    return parse(like).taken_over()


def to_adapt(values: Values, *, other_images: bool) -> Values:
    """[data] and [backbone] of a network whose first layer is adapted to the images' channels (artifacts/open.py): it
    does not say how many it takes; nor, where that is RGB, how many other images than its own have."""
    data, backbone = (dict(values.get(section, {})) for section in ("data", "backbone"))
    backbone.pop("in_chans", None)
    if other_images and data.get("channels") == RGB:
        del data["channels"]
    return {**values, "data": data, "backbone": backbone}


def published_spec(name: str) -> BackboneSpec:
    """The spec of a backbone with published weights.

    Args:
        name: NAME or NAME:ARGUMENT.

    Raises:
        SettingsError: it has none.
        PluginError: the plugin is missing or broken, or its argument is.
    """
    plugin: Plugin[BackboneSpec] = plugins.find("backbone", name)
    if plugin.spec.image_size is None:
        raise SettingsError(
            f"backbone {name} has no published weights; for random ones use {SCRATCH} --backbone {name}"
        )
    if not _can_fetch(plugin):
        raise PluginError(
            f"backbone {plugin.name!r} of {plugin.distribution} {plugin.version} says what images its published weights"
            " are for, and its settings have no `pretrained` to ask for them; its author must add it"
        )
    return plugin.spec


def published_backbone(name: str, given: BackboneSettings | None = None) -> BackboneSettings:
    """The settings of a backbone with its published weights, "auto" patches being those of the weights.

    Args:
        given: what is known of them; `pretrained` counts where it was set.
    """
    spec = published_spec(name)
    backbone = given if given is not None else spec.settings.model_validate({"name": name})
    if "pretrained" not in backbone.model_fields_set:
        backbone = backbone.model_copy(update={"pretrained": True})
    if backbone.patch_size == "auto" and not spec.own_patch_size:
        backbone = resolve_backbone(backbone, published_size(backbone))
    return backbone


def published_size(backbone: BackboneSettings) -> int:
    """The side in pixels of the images that a backbone's published weights are for."""
    reference = published_spec(backbone.name).image_size
    assert reference is not None  # published_spec looked
    size: int = plugins.load(reference)(backbone)
    return size


def allowed(trained: bool = False) -> str:
    """What a subject may be, in words for a message; see parse."""
    published = ", ".join(_published())
    forms = [
        "a run's directory",
        f"a file of weights ({_SAFE}, {', '.join(_PICKLED)}) or a folder with one",
        *([f"published weights ({published})"] if published else []),
        "hf:OWNER/NAME",
        *_SHIPPED,
        *(() if trained else (SCRATCH, PIXELS)),
    ]
    return f"{', '.join(forms[:-1])} or {forms[-1]}"


def completions(incomplete: str) -> list[str]:
    """Subjects that begin with what was typed so far and are no paths: the words, plugins with weights."""
    published = [text.partition(":")[0] + ":" if ":" in text else text for text in _published()]
    words = [SCRATCH, PIXELS, *published, hub.PREFIX, *_SHIPPED]
    return [word for word in words if word.startswith(incomplete)]


def _in_folder(text: str, path: Path) -> Subject:
    run = (path / SETTINGS).is_file()
    weights = next((path / name for name in (IN_RUNS if run else _IN_FOLDERS) if (path / name).is_file()), None)
    if run:
        return Subject(text, "run", path, weights)
    if weights is None:
        raise CheckpointError(
            f"{path} holds no run and no weights: it has neither {SETTINGS} nor {' nor '.join(_IN_FOLDERS)};"
            f" give {allowed()}"
        )
    return Subject(text, "weights", path, weights)


def _of_file(text: str, path: Path) -> Subject:
    if path.suffix.lower() not in (_SAFE, *_PICKLED):
        raise CheckpointError(f"{path} is no file of weights; give {allowed()}")
    require_file(path)
    return Subject(text, "weights", path, path)


def _published() -> list[str]:
    """How the published weights of all plugins are named: NAME or NAME:ARGUMENT."""
    found = [plugin for plugin in plugins.discover("backbone") if isinstance(plugin, Plugin)]
    return [
        f"{plugin.name}:{plugin.spec.argument}" if plugin.spec.argument else plugin.name
        for plugin in found
        if plugin.spec.image_size is not None and _can_fetch(plugin)
    ]


def _can_fetch(plugin: Plugin[BackboneSpec]) -> bool:
    return "pretrained" in plugin.spec.settings.model_fields


def _published_table(name: str) -> dict[str, Any]:
    backbone = published_backbone(name)
    table: dict[str, Any] = {"name": name, "pretrained": True}
    return table if backbone.patch_size == "auto" else {**table, "patch_size": backbone.patch_size}


def _nearest(text: str, trained: bool) -> str:
    published = [known.partition(":")[0] for known in _published()]
    name, colon, _ = text.partition(":")
    if colon:  # an argument in common would make any two plugins alike
        return nearest(name, [*published, hub.PREFIX.removesuffix(":")])
    words = [] if trained else [SCRATCH, PIXELS]
    return near(text, _SAFE, *_PICKLED, words=(*words, *published, *_SHIPPED))


def _shared(values: Values) -> Values:
    data = {key: value for key, value in values["data"].items() if key not in _NOT_TAKEN_OVER}
    if data.get("range") in (None, "none"):  # there were 8 bits alone; the new images may have more
        data.pop("range", None)
    return {"data": data, "backbone": values["backbone"]}
