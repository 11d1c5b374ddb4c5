"""Encoders that this program trained: those in files of finished runs, exported or copied, and the one in the newest
checkpoint of a run that has not ended.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dsdmae_cli import checkpoint
from dsdmae_cli.artifacts.classifier import read_head
from dsdmae_cli.artifacts.elsewhere import check_values
from dsdmae_cli.artifacts.format import holds_encoder
from dsdmae_cli.artifacts.header import image_size, number
from dsdmae_cli.artifacts.learned_from import Resolved
from dsdmae_cli.artifacts.opened import Opened, Request, fill, finished
from dsdmae_cli.artifacts.trained_method import method_in_denoiser
from dsdmae_cli.config.describe import tables
from dsdmae_cli.errors import CheckpointError, PluginError, SettingsError
from dsdmae_cli.files import parsed_json, read_within
from dsdmae_cli.runs.build import build_backbone, build_method
from dsdmae_cli.runs.rundir import REQUIRED, RESULT, RUN, RunDir
from dsdmae_cli.runtime import undisturbed
from dsdmae_cli.settings.models import BackboneSettings
from dsdmae_cli.settings.resolved import ResolvedFinetuneSettings, ResolvedProbeSettings, ResolvedSettings
from dsdmae_cli.work import measure_work

# Settings of a backbone that change neither its weights nor, in eval mode, what it computes.
_ONLY_IN_TRAINING = frozenset({"drop_path"})


def open_file(settings: Resolved, path: Path, request: Request) -> Opened:
    """The encoder in a file that this program wrote, be it in a denoiser.

    Args:
        settings: those written in it.

    Raises:
        CheckpointError: the weights do not fit them.
        SettingsError: what was given contradicts them.
    """
    if isinstance(settings, ResolvedFinetuneSettings):
        return _open_classifier(settings, path, request)
    assert isinstance(settings, ResolvedSettings)  # a probe leaves no weights
    backbone = _reconciled(settings.backbone, request).without_weights()
    metadata = request.subject.metadata
    method = None if holds_encoder(metadata) else method_in_denoiser(path, settings)[0]
    if method is not None:
        return replace(finished(method.encoder(), backbone, request), settings=tables(settings))
    encoder = build_backbone(backbone, image_size(path, metadata, settings.data.image_size), request.seed)
    fill(encoder, checkpoint.load_weights(path), str(path))
    opened = finished(encoder, backbone, request)
    result = _read_json(path.parent / RESULT)
    images_seen = number(path, metadata, "images_seen", 0) if "images_seen" in metadata else None
    return replace(
        opened,
        settings=tables(settings),
        epochs=settings.train.epochs,
        images_seen=images_seen,
        count_flops=partial(_flops, settings, images_seen, path.parent),
        seconds=result.get("seconds"),
        knn_accuracy=result.get("knn_accuracy"),
        device_name=device_beside(path),
    )


def _open_classifier(settings: ResolvedFinetuneSettings, path: Path, request: Request) -> Opened:
    """The backbone of a fine-tuned network, and its head where that is asked for."""
    backbone = _reconciled(settings.backbone, request).without_weights()
    metadata = request.subject.metadata
    encoder = build_backbone(backbone, image_size(path, metadata, settings.data.image_size), request.seed)
    state = checkpoint.load_weights(path)
    own = encoder.timm_state()
    head = {name: state.pop(name) for name in list(state) if name not in own}
    fill(encoder, state, str(path))
    beside = _read_json(path.parent / RESULT)
    tuned = read_head(encoder, head, tables(settings), metadata, path, beside)
    opened = finished(encoder, backbone, request)
    if request.head:
        return replace(opened, tuned=tuned)
    left_out = f"{path} was fine-tuned on {settings.data.dataset}; its head ({', '.join(head)}) is left out"
    return replace(opened, beheaded=tuned, notes=(left_out, *opened.notes))


def open_checkpoint(settings: Resolved | None, folder: Path, request: Request) -> Opened:
    """The encoder, or its moving average, in the newest whole checkpoint of a pre-training run.

    For the encoder of a run that has not ended, or is still going on; for the average of any.

    Raises:
        CheckpointError: it is no such run, or has no whole checkpoint.
        SettingsError: the method keeps no moving average.
    """
    if isinstance(settings, ResolvedProbeSettings):
        start = settings.probe.start
        raise CheckpointError(
            f"{folder} is a run of `dsdmae probe`, which leaves no weights; name what it judged: {start}"
        )
    if not isinstance(settings, ResolvedSettings):
        what = "has no teacher: it" if request.teacher else "has not ended, and"
        raise CheckpointError(
            f"{folder} {what} is no pre-training run" + ("" if request.teacher else "; let it end first")
        )
    found, complaints = checkpoint.load_newest_weights(folder / "checkpoints")
    if found is None:
        why = complaints[0] if complaints else "it has no checkpoint yet"
        raise CheckpointError(f"no encoder in {folder}: {why}; let the run go on first")
    offline = settings.model_copy(update={"backbone": _reconciled(settings.backbone, request).without_weights()})
    method = build_method(offline, folder / REQUIRED)
    checkpoint.load_into(method, found.model, str(folder / "checkpoints"))
    work = measure_work(method)[0]  # before the encoder is set to another image size
    epochs = _epochs_at(RunDir(folder), found.step)
    reached = f"step {found.step}" + (f", epoch {epochs:.4g} of {settings.train.epochs}" if epochs else "")
    encoder = method.averaged() if request.teacher else method.encoder()
    if encoder is None:
        raise SettingsError(f"method {settings.method.name} keeps no average of the encoder; leave --teacher out")
    check_values(encoder.state_dict(), {}, folder / "checkpoints")
    opened = finished(encoder, offline.backbone, request)
    which = "has a teacher, which" if request.teacher else "has not ended: its checkpoint"
    return replace(
        opened,
        name=f"{opened.name} (teacher)" if request.teacher else opened.name,
        settings=tables(settings),
        epochs=epochs,
        seconds=found.state.get("seconds"),
        images_seen=found.step * settings.train.batch_size,
        count_flops=lambda: work * found.step * settings.train.batch_size,
        device_name=device_beside(folder / RUN),
        notes=(*complaints, f"{folder} {which} at {reached} is used", *opened.notes),
    )


def device_beside(weights: Path) -> str | None:
    """What the run was trained on in whose directory a file lies, where known."""
    return _read_json(weights.parent / RUN).get("device_name")


def _epochs_at(run: RunDir, step: int) -> float | None:
    """From any line of metrics.jsonl: each says the step and the epoch."""
    ratio = [r["epoch"] / r["step"] for r in run.metrics() if r.get("step") and "epoch" in r]
    return step * ratio[-1] if ratio else None


def _read_json(path: Path) -> dict[str, Any]:
    """What a run says beside its weights; empty for weights that were copied elsewhere, where nothing says it."""
    if not path.is_file():
        return {}
    try:
        content = parsed_json(read_within(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it holds no JSON object")
    return content


def _flops(settings: ResolvedSettings, images_seen: int | None, folder: Path) -> float | None:
    if images_seen is None:
        return None
    try:
        with undisturbed():  # it is asked in the middle of other work
            return measure_work(build_method(settings.without_weights(), folder / REQUIRED))[0] * images_seen
    except (PluginError, SettingsError):  # an encoder is of use without the plugins that trained it
        return None


def _reconciled(own: BackboneSettings, request: Request) -> BackboneSettings:
    """The settings a backbone was trained with, but for those given that only matter while it is trained.

    Raises:
        SettingsError: what was given contradicts what it was trained with.
    """
    given = request.backbone
    if given is None:
        return own
    keys = [key for key in type(given).model_fields if key in given.model_fields_set - _ONLY_IN_TRAINING]
    for key in keys:
        was, now = getattr(own, key, None), getattr(given, key)
        if was != now and now != "auto":
            raise SettingsError(
                f"{request.subject.text} was trained with backbone.{key} = {was!r}, not {now!r}; leave that out"
            )
    return own.model_copy(update={key: getattr(given, key) for key in _ONLY_IN_TRAINING & given.model_fields_set})
