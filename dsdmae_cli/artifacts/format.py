"""The file format of encoders: timm's parameter names, and in the metadata what builds the network and what it learned
from. Fine-tuned networks (classifier.py) share its metadata.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dsdmae_cli import checkpoint
from dsdmae_cli.artifacts.header import BACKBONE
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.config.describe import table
from dsdmae_cli.files import RESUME
from dsdmae_cli.settings.models import BackboneSettings
from dsdmae_cli.settings.size import size_word


def save_encoder(
    encoder: Backbone,
    settings: dict[str, dict[str, Any]] | None,
    images_seen: int | None,
    path: Path,
    advice: str = RESUME,
    backbone: BackboneSettings | None = None,
) -> None:
    """Write an encoder under timm's parameter names, so that timm and `open_encoder` can load it.

    Args:
        settings: tables of its pre-training, resolved; None = it had none of ours.
        images_seen: in all steps of its pre-training, from which a reader can work out the compute.
        advice: what to do where it cannot be written.
        backbone: resolved, of an encoder without settings: what shapes do not tell of it (heads, pixels) was said or
            found when it was opened, and who reads the file must not guess it anew.

    Raises:
        RunFailed: it cannot be written.
    """
    metadata = architecture(encoder)
    if backbone is not None:
        metadata[BACKBONE] = json.dumps(table(backbone.without_weights()))
    if settings is not None:
        metadata["settings"] = json.dumps(settings)
    if images_seen is not None:
        metadata["images_seen"] = str(images_seen)
    checkpoint.save_weights(path, encoder.timm_state(), metadata, advice)


def architecture(encoder: Backbone) -> dict[str, str]:
    """The metadata that say how timm builds the network and which pixels it wants."""
    return {
        "timm_name": encoder.timm_name,
        "timm_kwargs": json.dumps(encoder.timm_kwargs),
        "image_size": size_word(encoder.image_size),
        "mean": json.dumps(encoder.mean),
        "std": json.dumps(encoder.std),
    }


def holds_encoder(metadata: dict[str, str]) -> bool:
    """Whether a file of ours is one of save_encoder, which says how timm builds the network. Else it is a denoiser's,
    with parts of a method under its own names."""
    return "timm_name" in metadata


def load_with(encoder: Backbone, path: Path) -> str:
    """The Python expression that loads a file of save_encoder."""
    if not encoder.timm_name:
        return f"safetensors.torch.load_file({str(path)!r})"
    arguments = ", ".join(f"{key}={value!r}" for key, value in encoder.timm_kwargs.items())
    return f"timm.create_model({encoder.timm_name!r}, {arguments}, checkpoint_path={str(path)!r})"
