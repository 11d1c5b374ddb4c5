"""The tokenizer of a run whose method predicts visual words: which one it is, where it is kept, how it is opened.

A tokenizer is a run of its own, made by `dsdmae tokenizer` or, where the settings say "auto", by the run that needs it
(pretrain.py). Those that "auto" made are kept under the user's data directory, named after what they are made of, and
serve every later run on the same images with the same patches.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from platformdirs import user_data_path

from dsdmae_cli import checkpoint, distributed, plugins
from dsdmae_cli.config.describe import tables
from dsdmae_cli.config.load import PRETRAIN, Loaded, compose, from_tables, read_toml
from dsdmae_cli.data.open import open_dataset
from dsdmae_cli.errors import CheckpointError, SettingsError
from dsdmae_cli.methods.base import Method
from dsdmae_cli.methods.tokens import FrozenTokenizer
from dsdmae_cli.runs.rundir import RESULT, RunDir
from dsdmae_cli.settings.models import MAY_CHANGE_ON_RESUME, Settings, TokenSettings

# Steps that "auto" gives a tokenizer at least.
_LEAST_STEPS = 1000


def needs_tokenizer(settings: Settings) -> bool:
    """Whether the method of a run predicts visual words."""
    return bool(plugins.find("method", settings.method.name).spec.needs_tokenizer)


def tokenizer_settings(
    settings: Settings, train_images: int | None = None, kept: Path | None = None
) -> Loaded[Settings]:
    """The settings of a run's tokenizer: those of the run that is named, or those that "auto" stands for.

    Args:
        settings: of the run that needs it, resolved.
        train_images: number of training images, which "auto" epochs depend on; None where epochs do not matter.
        kept: the copy of its tokenizer's settings that a run keeps; the tokenizer's own directory may be gone.

    Raises:
        SettingsError: method.tokenizer names no run of a tokenizer.
    """
    wanted = _wanted(settings)
    if kept is not None and kept.is_file():
        return from_tables(read_toml(kept), str(kept))
    if wanted.tokenizer != "auto":
        return _named(Path(wanted.tokenizer))
    data, train, patch = tables(settings)["data"], settings.train, settings.backbone.patch_size
    if isinstance(patch, str):
        raise SettingsError(
            f"backbone {settings.backbone.name!r} chooses its patches itself, and a tokenizer must have the same; say"
            " backbone.patch_size, or name a tokenizer of them as method.tokenizer"
        )
    base: dict[str, dict[str, Any]] = {
        "data": data,
        "backbone": {"patch_size": patch},
        "method": {"name": "tokenizer", "levels": list(wanted.levels)},
        "train": {
            "device": train.device,
            "precision": train.precision,
            "compile": train.compile,
            "micro_batch": train.micro_batch,
            # A few images at the end say what its words keep.
            "knn_every": 1_000_000,
            "knn_images": 512,
            "epochs": 1,
        },
    }
    loaded = compose(PRETRAIN, preset="tokenizer", base=(base, "the run's tokenizer"), environ={})
    return loaded if train_images is None else _fitted(loaded, wanted, train.epochs, train_images)


def _fitted(loaded: Loaded[Settings], wanted: TokenSettings, epochs: int, train_images: int) -> Loaded[Settings]:
    """Batch and epochs for a number of images."""
    settings = loaded.settings
    world = distributed.world_size()
    batch = min(settings.train.batch_size, max(world, train_images // 2))  # some images may turn out unreadable
    batch -= batch % world
    least = -(-_LEAST_STEPS // max(1, train_images // max(1, batch)))
    own = max(round(epochs / 10), least) if wanted.tokenizer_epochs == "auto" else wanted.tokenizer_epochs
    train = settings.train.model_copy(update={"batch_size": batch, "epochs": own})
    return Loaded(settings.model_copy(update={"train": train}), loaded.sources)


def _wanted(settings: Settings) -> TokenSettings:
    method = settings.method
    assert isinstance(method, TokenSettings), f"{method.name} needs a tokenizer, but its settings are no TokenSettings"
    return method


def _named(path: Path) -> Loaded[Settings]:
    try:
        loaded = RunDir(path).settings()
    except CheckpointError as error:
        raise SettingsError(
            f"method.tokenizer = {str(path)!r} is no run directory; make one with: dsdmae tokenizer --out DIR"
        ) from error
    if not isinstance(loaded.settings, Settings):
        raise SettingsError(f"method.tokenizer = {str(path)!r} is no run of `dsdmae tokenizer`")
    return loaded


def tokenizer_folder(settings: Settings) -> tuple[Path, Loaded[Settings]]:
    """Where the tokenizer of a run is or will be, and its settings.

    Args:
        settings: of the run that needs it, resolved.

    Raises:
        SettingsError: method.tokenizer names no run of a tokenizer, or one that has not ended.
        DataError: the images are not there.
    """
    wanted = _wanted(settings)
    if wanted.tokenizer != "auto":
        path = Path(wanted.tokenizer)
        loaded = _named(path)
        if not is_trained(path):
            raise SettingsError(
                f"method.tokenizer = {str(path)!r} has not ended; go on with: dsdmae tokenizer --resume --out {path}"
            )
        return path, loaded
    dataset = open_dataset(settings.data, "train")
    loaded = tokenizer_settings(settings, len(dataset))
    found = tables(loaded.settings)
    for dotted in MAY_CHANGE_ON_RESUME:
        section, _, key = dotted.partition(".")
        found[section].pop(key, None)
    text = json.dumps([found, dataset.fingerprint()], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    name = settings.data.dataset.rstrip("/").rsplit("/", 1)[-1]
    clean = "".join(c if c.isalnum() or c in "-._" else "-" for c in name)
    return user_data_path("dsdmae") / "tokenizers" / f"{clean}-{settings.data.image_size}px-{digest}", loaded


def is_trained(folder: Path) -> bool:
    """Whether a tokenizer's run has ended."""
    return (folder / RESULT).is_file()


def give_tokenizer(method: Method, folder: Path) -> None:
    """Put the weights of a trained tokenizer into a method that holds an untrained one of its shape.

    Raises:
        CheckpointError: no checkpoint of it is whole.
    """
    found, complaints = checkpoint.load_newest(folder / "checkpoints")
    # A checkpoint before the last would do, but be another tokenizer than the one that other runs learned from.
    if found is None or complaints:
        why = complaints[0] if complaints else "it has no checkpoint"
        raise CheckpointError(
            f"the tokenizer {folder} cannot be read: {why}; delete that directory and make it anew, or name another one"
            " as method.tokenizer"
        )
    frozen = frozen_tokenizer(method)
    checkpoint.check_fit(frozen.module.state_dict(), found.model, str(folder))
    if not all(bool(tensor.isfinite().all()) for tensor in found.model.values()):
        raise CheckpointError(f"the tokenizer {folder} has weights that are not finite; delete it and make it anew")
    frozen.give(found.model)


def frozen_tokenizer(method: Method) -> FrozenTokenizer:
    """The tokenizer that a method holds."""
    return next(part for part in method.modules() if isinstance(part, FrozenTokenizer))
