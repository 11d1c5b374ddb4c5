"""What a safetensors file says of itself. No torch here; tensors are loaded by checkpoint.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsdmae_cli.errors import CheckpointError
from dsdmae_cli.files import parsed_json


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, which is seen to be whole.

    Raises:
        CheckpointError: it cannot be read or is no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is no readable safetensors file: {error}") from error


def written_settings(metadata: dict[str, str], origin: str) -> dict[str, dict[str, Any]] | None:
    """The tables of settings that this program wrote with the weights; None = it did not write them.

    Raises:
        CheckpointError: they are damaged.
    """
    if "settings" not in metadata:
        return None
    try:
        values = parsed_json(metadata["settings"])
    except ValueError as error:
        raise CheckpointError(f"the settings in {origin} are damaged: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"the settings in {origin} are damaged: they are no tables")
    return values
