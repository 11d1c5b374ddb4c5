"""What a method needs trained beforehand (plugins.Requirement): which run that is, where it is kept, how it is opened.

It is an ordinary run of another method, made by hand or, where the settings say "auto", by the run that needs it
(recipes/pretrain.py), before that one begins. Those that "auto" made are kept under the user's data directory, named
after what they are made of, and serve every later run on the same images with the same patches.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from platformdirs import user_data_path

from dsdmae_cli import checkpoint, distributed, plugins
from dsdmae_cli.config.compose import compose, from_tables
from dsdmae_cli.config.describe import tables
from dsdmae_cli.config.schema import PRETRAIN, Loaded
from dsdmae_cli.config.sources import read_toml
from dsdmae_cli.data.open import open_dataset
from dsdmae_cli.errors import CheckpointError, SettingsError
from dsdmae_cli.files import typed
from dsdmae_cli.methods.base import Method
from dsdmae_cli.methods.frozen import Frozen
from dsdmae_cli.plugins import Requirement
from dsdmae_cli.runs.near import near
from dsdmae_cli.runs.rundir import RESULT, RunDir, file_name
from dsdmae_cli.settings.models import MAY_CHANGE_ON_RESUME, Settings
from dsdmae_cli.settings.resolved import ResolvedSettings
from dsdmae_cli.settings.size import size_words

# Steps that "auto" gives it at least.
_LEAST_STEPS = 1000


def requirement(settings: Settings) -> Requirement | None:
    """What the method of a run needs trained beforehand, if anything."""
    found: Requirement | None = plugins.find("method", settings.method.name).spec.requires
    return found


def required_settings(
    settings: ResolvedSettings, needs: Requirement, train_images: int | None = None, kept: Path | None = None
) -> Loaded[Settings]:
    """The settings of the run that is needed: of the one that is named, or those that "auto" stands for.

    Args:
        settings: of the run that needs it.
        train_images: number of training images, which "auto" epochs depend on; None where epochs do not matter.
        kept: the copy of these settings that a run keeps; the directory of what it needed may be gone.

    Raises:
        SettingsError: the setting names no run of pre-training.
    """
    if kept is not None and kept.is_file():
        return from_tables(read_toml(kept), str(kept))
    named = _named(settings, needs)
    if named is not None:
        return _settings_of(named, needs)
    own = settings.method
    data, train, patch = tables(settings)["data"], settings.train, settings.backbone.patch_size
    if isinstance(patch, str):
        raise SettingsError(
            f"backbone {settings.backbone.name!r} chooses its patches itself, and a {needs.method} must have the same;"
            f" say backbone.patch_size, or name a {needs.method} of them as method.{needs.setting}"
        )
    base: dict[str, dict[str, Any]] = {
        "data": data,
        "backbone": {"patch_size": patch},
        "method": {"name": needs.method, **{key: tables(settings)["method"][key] for key in needs.passed_on}},
        "train": {
            "device": train.device,
            "precision": train.precision,
            "compile": train.compile,
            # A few images at the end say what it has learned.
            "knn_every": 1_000_000,
            "knn_images": 512,
            "epochs": 1,
        },
    }
    loaded = compose(PRETRAIN, preset=needs.preset, base=(base, f"the run's {needs.method}"), environ={})
    if train_images is None:
        return loaded
    return _fitted(loaded, getattr(own, needs.epochs), train.epochs, train_images)


def _fitted(loaded: Loaded[Settings], wanted: int | str, epochs: int, train_images: int) -> Loaded[Settings]:
    """Batch and epochs for a number of images."""
    settings = loaded.settings
    world = distributed.world_size()
    batch = min(settings.train.batch_size, max(world, train_images // 2))  # some images may turn out unreadable
    batch -= batch % world
    least = -(-_LEAST_STEPS // max(1, train_images // max(1, batch)))
    own = max(round(epochs / 10), least) if wanted == "auto" else wanted
    train = settings.train.model_copy(update={"batch_size": batch, "epochs": own})
    return Loaded(settings.model_copy(update={"train": train}), loaded.sources)


def _named(settings: Settings, needs: Requirement) -> Path | None:
    """The run that the settings name; None for "auto"."""
    wanted = getattr(settings.method, needs.setting)
    return None if wanted == "auto" else Path(wanted)


def _settings_of(path: Path, needs: Requirement) -> Loaded[Settings]:
    said = f"method.{needs.setting} = {str(path)!r}"
    try:
        loaded = RunDir(path).settings()
    except CheckpointError as error:
        meant = "" if path.exists() else near(str(path))
        raise SettingsError(f"{said} is no run directory{meant}; make one with: {needs.command} --out DIR") from error
    if not isinstance(loaded.settings, Settings) or requirement(loaded.settings) is not None:
        raise SettingsError(f"{said} is no run of `{needs.command}`")
    return loaded


def required_folder(settings: ResolvedSettings, needs: Requirement) -> tuple[Path, Loaded[Settings]]:
    """Where the run that is needed is or will be, and its settings.

    Args:
        settings: of the run that needs it.

    Raises:
        SettingsError: the setting names no run of it, or one that has not ended.
        DataError: the images are not there.
    """
    path = _named(settings, needs)
    if path is not None:
        loaded = _settings_of(path, needs)
        if not has_ended(path):
            raise SettingsError(
                f"method.{needs.setting} = {str(path)!r} has not ended; go on with:"
                f" {needs.command} --resume --out {typed(path)}"
            )
        return path, loaded
    dataset = open_dataset(settings.data, "train")
    loaded = required_settings(settings, needs, len(dataset))
    found = tables(loaded.settings)
    for dotted in MAY_CHANGE_ON_RESUME:
        section, _, key = dotted.partition(".")
        found[section].pop(key, None)
    text = json.dumps([found, dataset.fingerprint()], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    name = f"{file_name(settings.data.dataset)}-{size_words(settings.data.image_size)}px-{digest}"
    return user_data_path("dsdmae") / f"{needs.method}s" / name, loaded


def has_ended(folder: Path) -> bool:
    """Whether a run has come to its end."""
    return (folder / RESULT).is_file()


def give_weights(method: Method, folder: Path, needs: Requirement) -> None:
    """Put the weights of the run that is needed into a method that holds an untrained network of its shape.

    Raises:
        CheckpointError: no checkpoint of it is whole.
    """
    what = f"the {needs.method} {folder}"
    found, complaints = checkpoint.load_newest_weights(folder / "checkpoints")
    # A checkpoint before the last would do, but be another network than the one that other runs learned from.
    if found is None or complaints:
        why = complaints[0] if complaints else "it has no checkpoint"
        raise CheckpointError(
            f"{what} cannot be read: {why}; delete that directory and make it anew, or name another one as"
            f" method.{needs.setting}"
        )
    frozen = frozen_part(method)
    checkpoint.check_fit(frozen.module.state_dict(), found.model, str(folder))
    if not all(bool(tensor.isfinite().all()) for tensor in found.model.values()):
        raise CheckpointError(f"{what} has weights that are not finite; delete it and make it anew")
    frozen.give(found.model)


def frozen_part(method: Method) -> Frozen:
    """The trained network that a method holds."""
    return next(part for part in method.modules() if isinstance(part, Frozen))
