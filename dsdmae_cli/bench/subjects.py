"""Whose step is measured: the settings of `dsdmae bench step`. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsdmae_cli.settings.resolved import ResolvedSettings

# Where nothing is named: the paper's small setting, on images that every installation has.
_BASE: dict[str, dict[str, Any]] = {
    "data": {"dataset": "digits", "image_size": 32, "channels": 3},
    "train": {"batch_size": 64, "epochs": 500},
}


def step_settings(
    *,
    method: str | None = None,
    preset: str | Sequence[str] | None = None,
    dataset: str | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    assignments: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> ResolvedSettings:
    """Settings of a pre-training run, of which a step is measured.

    Raises:
        SettingsError: an unknown key, or a value that is not allowed.
        PluginError: a plugin that is not there.
    """
    from dsdmae_cli.config.compose import compose
    from dsdmae_cli.config.resolve import resolve
    from dsdmae_cli.config.schema import PRETRAIN

    flags = {
        "method.name": method,
        "data.dataset": dataset,
        "train.batch_size": batch_size,
        "train.device": None if device == "auto" else device,
    }
    loaded = compose(
        PRETRAIN,
        preset=preset,
        flags={key: value for key, value in flags.items() if value is not None},
        assignments=assignments,
        base=(_BASE, "dsdmae bench"),
        use_default_preset=False,
        environ=environ,
    )
    return resolve(loaded.settings)
