"""dsdmae: pre-train vision backbones on your own images.

    import dsdmae_cli as dsdmae

gives `pretrain`, `finetune`, `probe`, `embed`, `load_encoder` and `feature_pyramid` (dsdmae_cli.api), `denoise`,
`restore` and `predict` (dsdmae_cli.api_pictures), and the errors that they raise; each is imported when it is first
asked for. docs/python.md shows them, and the rooms are in docs/design/architecture.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from dsdmae_cli.api import DsdmaeWarning, embed, feature_pyramid, finetune, load_encoder, pretrain, probe
    from dsdmae_cli.api_pictures import denoise, predict, restore
    from dsdmae_cli.errors import (
        CheckpointError,
        DataError,
        DsdmaeError,
        PluginError,
        RunFailed,
        RunInterrupted,
        SettingsError,
    )

_FROM = {
    **dict.fromkeys(
        ("DsdmaeWarning", "embed", "feature_pyramid", "finetune", "load_encoder", "pretrain", "probe"), "api"
    ),
    **dict.fromkeys(("denoise", "predict", "restore"), "api_pictures"),
    **dict.fromkeys(
        ("CheckpointError", "DataError", "DsdmaeError", "PluginError", "RunFailed", "RunInterrupted", "SettingsError"),
        "errors",
    ),
}
__all__ = [
    "CheckpointError",
    "DataError",
    "DsdmaeError",
    "DsdmaeWarning",
    "PluginError",
    "RunFailed",
    "RunInterrupted",
    "SettingsError",
    "denoise",
    "embed",
    "feature_pyramid",
    "finetune",
    "load_encoder",
    "predict",
    "pretrain",
    "probe",
    "restore",
]


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"dsdmae_cli.{_FROM[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
