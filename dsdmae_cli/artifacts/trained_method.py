"""The whole method of a run, networks and task: what restores pictures. An encoder alone is opened by open.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dsdmae_cli import checkpoint, plugins
from dsdmae_cli.artifacts.elsewhere import check_values
from dsdmae_cli.artifacts.subject import run_called
from dsdmae_cli.config.compose import compose, from_tables
from dsdmae_cli.config.describe import key_of, tables
from dsdmae_cli.config.flags import flags_of
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.config.schema import PRETRAIN
from dsdmae_cli.errors import CheckpointError, SettingsError
from dsdmae_cli.methods.base import Method
from dsdmae_cli.runs.build import build_method
from dsdmae_cli.runs.near import near
from dsdmae_cli.runs.rundir import REQUIRED, SETTINGS, RunDir
from dsdmae_cli.settings.models import Settings
from dsdmae_cli.settings.resolved import ResolvedSettings


@dataclass(frozen=True)
class TrainedMethod:
    """A method with the weights of a run's newest whole checkpoint, on the CPU.

    Attributes:
        settings: of the run, every "auto" resolved, and what was given in their place.
        step: of the checkpoint.
        sha256: of its weights.
        complaints: newer checkpoints that were passed over, and why.
    """

    method: Method
    settings: ResolvedSettings
    step: int
    sha256: str
    complaints: tuple[str, ...]


def open_method(run: Path, flags: Mapping[str, Any] | None = None, *, command: str = "restore") -> TrainedMethod:
    """The method of a run.

    Args:
        run: its directory, or its name.
        flags: settings of [method] in place of the run's that change no weights: {"method.mask_ratio": "0.5"}.
        command: whose flags these are, for messages.

    Raises:
        CheckpointError: it is no pre-training run, or has no whole checkpoint.
        SettingsError: the method has no such setting, or refuses the value.
    """
    if not (run / SETTINGS).is_file():
        run = run_called(str(run)) or run
    if not (run / SETTINGS).is_file():
        meant = "" if run.exists() else near(str(run))
        raise CheckpointError(
            f"{run} is no run's directory: it holds no {SETTINGS}{meant}; name one of `dsdmae pretrain`"
        )
    written = RunDir(run).settings().settings
    if not isinstance(written, Settings):
        raise CheckpointError(f"{run} is no pre-training run; name one of `dsdmae pretrain`")
    settings = settings_of(tables(_with(written, flags or {}, run, command)), str(run))
    found, complaints = checkpoint.load_newest_weights(run / "checkpoints")
    if found is None:
        why = complaints[0] if complaints else "it has no checkpoint yet"
        raise CheckpointError(f"no weights in {run}: {why}; let the run go on first")
    method = build_method(settings, run / REQUIRED)
    checkpoint.load_into(method, found.model, str(run / "checkpoints"))
    method.eval().requires_grad_(False)
    sha256 = checkpoint.weights_sha256(found.model)
    return TrainedMethod(method, settings, found.step, sha256, tuple(complaints))


def method_in_denoiser(path: Path, settings: ResolvedSettings) -> tuple[Method | None, dict[str, Tensor]]:
    """A method with those of its parts that a denoiser's file holds, and these; None for a file of another kind.

    Args:
        settings: those written in it.

    Raises:
        CheckpointError: it is damaged, the weights do not fit its settings, or the encoder's are not all there.
    """
    state = checkpoint.load_weights(path)
    method = build_method(settings.without_weights())
    own = method.state_dict()
    if not state or not set(state) <= set(own):
        return None, {}
    encoder = {id(tensor) for tensor in method.encoder().state_dict(keep_vars=True).values()}
    needed = {key for key, tensor in method.state_dict(keep_vars=True).items() if id(tensor) in encoder}
    checkpoint.check_fit({key: own[key] for key in own if key in needed or key in state}, state, str(path))
    check_values(state, own, path)
    method.load_state_dict({**own, **{key: tensor.to(own[key]) for key, tensor in state.items()}})
    return method, state


def settings_of(values: dict[str, dict[str, Any]], origin: str) -> ResolvedSettings:
    """Settings that were written down whole, for a network whose weights come from elsewhere."""
    return resolve(from_tables(values, origin).settings).without_weights()


def _with(settings: Settings, flags: Mapping[str, Any], run: Path, command: str) -> Settings:
    """The settings with others of the method's.

    Raises:
        SettingsError: the method has no such setting, or it does not take the value.
    """
    if not flags:
        return settings
    name = settings.method.name
    known = {key_of(*item) for item in plugins.find("method", name).spec.settings.model_fields.items()}
    names = {flag.setting: flag.name for flag in flags_of(command)}
    for setting in flags:
        if setting.removeprefix("method.") not in known:
            able = [flag for key, flag in names.items() if key.startswith("method.") and key[7:] in known]
            instead = f"; it has {' and '.join(able)}" if able else ""
            raise SettingsError(
                f"{names.get(setting, setting)}: method {name!r} of {run} has no {setting.partition('.')[2]}{instead}"
            )
    origins = {setting: flag for setting, flag in names.items() if setting in flags}
    loaded = compose(
        PRETRAIN, flags=flags, origins=origins, environ={}, base=(tables(settings), str(run)), use_default_preset=False
    )
    return loaded.settings
