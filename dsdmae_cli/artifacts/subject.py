"""What a command that judges a backbone takes over from where that came from. No torch here.

The files themselves are opened, and their weights loaded, by artifacts/open.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dsdmae_cli.config.compose import load, written
from dsdmae_cli.config.describe import tables
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.config.schema import Values, schema_of
from dsdmae_cli.config.sources import read_toml
from dsdmae_cli.errors import CheckpointError

# How training images are varied and fetched is the new command's business, not the old run's.
_NOT_TAKEN_OVER = {"crop_scale", "crop_ratio", "flip", "shift", "placement", "workers", "strict", "max_unreadable"}
_WEIGHTS = ("encoder.safetensors", "classifier.safetensors", "model.safetensors")


def taken_over(subject: str, like: str | None = None) -> tuple[Values, str]:
    """[data] and [backbone] of what is judged, and where they come from.

    Args:
        subject: a run's directory, a .safetensors file or a folder with one, timm:NAME, or scratch.
        like: for scratch and pixels: another subject, whose data and backbone are meant; None = the quick preset's.

    Raises:
        CheckpointError: there is no such run or file, or it is damaged.
    """
    if subject in ("scratch", "pixels") and not Path(subject).exists():
        return taken_over(like) if like is not None else (_of(tables(load(environ={}).settings)), "preset quick")
    path = Path(subject)
    if (path / "settings.toml").is_file():
        return _of_settings(read_toml(path / "settings.toml"), str(path / "settings.toml"))
    if path.is_dir():
        found = next((path / name for name in _WEIGHTS if (path / name).is_file()), None)
        if found is None:
            raise CheckpointError(f"{path} is no run: it has neither settings.toml nor {' nor '.join(_WEIGHTS)}")
        path = found
    if path.is_file():
        return _of_file(path)
    if subject.partition(":")[0] == "timm" and ":" in subject:
        return {"backbone": {"name": subject, "pretrained": True}}, subject
    raise CheckpointError(
        f"there is no {subject}: give a run's directory, an encoder's .safetensors file, timm:NAME, or scratch"
    )


def _of_settings(values: Values, origin: str) -> tuple[Values, str]:
    schema = schema_of(values)
    return _of(tables(resolve(written(schema, values, origin).settings))), origin


def _of_file(path: Path) -> tuple[Values, str]:
    """From the metadata of a safetensors file; its header is JSON behind its own length."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(min(length, 1 << 27)))
        text = header.get("__metadata__", {}).get("settings")
        values = json.loads(text) if text else {}
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is no readable safetensors file: {error}") from error
    return (_of_settings(values, str(path))) if values else ({}, str(path))


def _of(values: Values) -> Values:
    data = {key: value for key, value in values["data"].items() if key not in _NOT_TAKEN_OVER}
    return {"data": data, "backbone": values["backbone"]}
