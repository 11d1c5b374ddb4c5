"""An encoder, or a fine-tuned network with its head, as a folder for timm and the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm

from dsdmae_cli import files
from dsdmae_cli.artifacts.anonymous import anonymous
from dsdmae_cli.artifacts.classifier import save_classifier, timm_arguments
from dsdmae_cli.artifacts.format import save_encoder
from dsdmae_cli.artifacts.opened import Opened
from dsdmae_cli.artifacts.subject import EXPORTED, IN_RUNS
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.runs.rundir import SETTINGS
from dsdmae_cli.settings.size import height_width

CONFIG = "config.json"
CARD = "README.md"


def check_folder(out: Path, form: str, force: bool) -> None:
    """See that a folder may be written.

    Args:
        form: as --to names it, for messages.
        force: files may be there.

    Raises:
        SettingsError: it may not, or holds what would be read in place of an export.
    """
    if out.is_file():
        raise SettingsError(f"--out {out} is a file; --to {form} writes a folder")
    if (out / SETTINGS).exists():
        raise SettingsError(f"--out {out} is a run's directory; choose another folder")
    if (other := next((name for name in IN_RUNS if (out / name).exists()), None)) is not None:
        raise SettingsError(
            f"--out {out} holds {other}, which is read before the {EXPORTED} of an export; choose another folder"
        )
    if out.is_dir() and not all(map(files.is_partial, out.iterdir())) and not force:
        raise SettingsError(f"--out {out} is not empty; choose another folder, or write into it with --force")


def left_card(out: Path) -> list[str]:
    """A remark on a card that was in the folder before, where none was written."""
    if not (out / CARD).exists():
        return []
    return [f"{out / CARD} was there before and is about other weights; delete it, or write one by --to hf"]


def write_folder(
    opened: Opened, config: dict[str, Any], card: str | None, out: Path, advice: str, *, replace: bool
) -> list[str]:
    """Write weights, config and card; the names of the files.

    Args:
        config: see timm_config.
        card: the text of README.md; None = none.
        advice: what to do where it cannot be written.
        replace: files may be there.

    Raises:
        RunFailed: it cannot be written, or another process writes there; nothing of it is left.
    """
    with files.folder_at_once(out, advice, replace=replace) as draft:
        if (tuned := opened.tuned) is not None:
            save_classifier(tuned.network, anonymous(tuned.settings), tuned.classes, draft / EXPORTED, advice)
        else:
            settings = anonymous(opened.settings) if opened.settings else None
            backbone = opened.backbone if settings is None else None
            save_encoder(opened.encoder, settings, opened.images_seen, draft / EXPORTED, advice, backbone)
        files.write_bytes(draft / CONFIG, (json.dumps(config, indent=2) + "\n").encode(), advice)
        if card is not None:
            files.write_bytes(draft / CARD, card.encode(), advice)
    return [EXPORTED, CONFIG, *([] if card is None else [CARD])]


def timm_config(opened: Opened) -> dict[str, Any]:
    """What timm reads from config.json to build the same network and to prepare its images.

    Raises:
        SettingsError: timm has no such network, or its network would give other answers than a fine-tuned one.
    """
    encoder, tuned = opened.encoder, opened.tuned
    if not encoder.timm_name:
        raise SettingsError(
            f"timm has no architecture like backbone {opened.backbone.name}, and could not load it; use --to onnx"
        )
    if tuned and tuned.values:
        raise SettingsError(
            f"{opened.name} names pixels, and timm has no such networks; use --to onnx, or export the encoder alone"
            " with --no-head"
        )
    arguments = timm_arguments(tuned.network) if tuned else encoder.timm_kwargs
    if arguments is None:
        raise SettingsError(
            f"timm's {encoder.timm_name} pools its features in another way than {opened.name} was fine-tuned with, and"
            " would give other answers; use --to onnx, or export the encoder alone with --no-head"
        )
    num_classes = len(tuned.classes) if tuned else 0
    base = timm.get_pretrained_cfg(encoder.timm_name)
    known = base.to_dict() if base else {}
    own = {key: value for key, value in arguments.items() if key not in {"num_classes", "drop_path_rate"}}
    # timm's own default where we did not choose, so that its pooled output is that of the published architecture.
    pool = own.get("global_pool", "avg" if "global_pool" in encoder.timm_kwargs else None)
    return {
        "architecture": encoder.timm_name.partition(".")[0],
        "num_classes": num_classes,
        "num_features": encoder.width,
        **({"label_names": list(tuned.classes)} if tuned else {}),
        **({"global_pool": pool} if pool else {}),
        "model_args": own,
        "pretrained_cfg": {
            "tag": "dsdmae",
            "custom_load": False,
            "input_size": [encoder.in_chans, *height_width(encoder.image_size)],
            "fixed_input_size": "img_size" in own,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(encoder.mean),
            "std": list(encoder.std),
            "num_classes": num_classes,
            "pool_size": list(encoder.grid),
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
        },
    }
