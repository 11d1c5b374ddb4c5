"""timm's published weights where the Hugging Face hub cannot be reached: out of its cache, or one line.

Left to itself the hub's library tries each file six times, half a minute, and says so in a dozen lines.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import timm

from dsdmae_cli.errors import PluginError

_PATIENCE = 20  # seconds
_FILES = ("model.safetensors", "pytorch_model.bin")


def where_from(name: str) -> dict[str, Any]:
    """What timm.create_model is to be told of where a model's weights are; empty where it finds them itself.

    Raises:
        PluginError: they are on the hub, which cannot be reached, and were never fetched.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id or (why := _absence(repo := config.hf_hub_id)) is None:
        return {}
    for file in (config.hf_hub_filename, *_FILES):
        kept = try_to_load_from_cache(repo, file) if file else None
        if isinstance(kept, str):
            return {"pretrained_cfg_overlay": {"file": kept}}
    raise PluginError(
        f"cannot fetch timm's weights for {name}: {constants.ENDPOINT} cannot be reached ({why}), and they are not in"
        f" {constants.HF_HUB_CACHE}; with no network, use a machine that has one, copy its cache, or set"
        " backbone.pretrained=false for random weights"
    )


@lru_cache(maxsize=16)  # a command builds its network several times
def _absence(repo: str) -> str | None:
    """Why the hub cannot be reached, by one request; None where it answers, whatever it says."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(repo, timeout=_PATIENCE)
    except Exception as error:  # of HTTP libraries of two generations
        if getattr(error, "response", None) is None:
            return type(error).__name__
    return None
