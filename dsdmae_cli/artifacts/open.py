"""Open an encoder for a command that judges, exports or uses one: a run's, a file's, a published one, or a new one.
And the file format of encoders, which pre-training and export write.

RUN                  a run directory, also of a run that has not ended
ENCODER.safetensors  what `dsdmae pretrain` and `dsdmae export --to timm` write, or anyone's weights with --backbone
timm:NAME            published weights, of any backbone plugin that has them
scratch              no pre-training: weights drawn from a seed
pixels               no network at all: the baseline of a probe
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor

from dsdmae_cli import checkpoint, plugins
from dsdmae_cli.artifacts.classifier import Tuned, read_head
from dsdmae_cli.backbone import Backbone, Pixels
from dsdmae_cli.config.compose import from_tables, written
from dsdmae_cli.config.describe import tables
from dsdmae_cli.config.resolve import resolve, resolve_backbone, resolve_data
from dsdmae_cli.config.schema import FINETUNE, schema_of
from dsdmae_cli.errors import CheckpointError, PluginError, SettingsError
from dsdmae_cli.files import RESUME
from dsdmae_cli.runs.build import build_backbone, build_method
from dsdmae_cli.runs.rundir import CLASSIFIER, ENCODER, REQUIRED, RESULT, RUN, SETTINGS, RunDir
from dsdmae_cli.settings.models import BackboneSettings, DataSettings, Settings
from dsdmae_cli.settings.resolved import ResolvedSettings
from dsdmae_cli.work import measure_work

# The weights of a folder that `dsdmae export` (or the Hugging Face hub) made.
EXPORTED = "model.safetensors"
SCRATCH = "scratch"
PIXELS = "pixels"
# Settings of a backbone that change neither its weights nor, in eval mode, what it computes.
_ONLY_IN_TRAINING = frozenset({"drop_path"})
Kind = Literal["run", "file", "published", "scratch", "pixels"]


@dataclass(frozen=True)
class Opened:
    """An encoder on the CPU, and what is known of where it came from.

    Attributes:
        encoder: takes images in [-1, 1], as every backbone does.
        kind: which of the five it was.
        name: what to call it in tables.
        backbone: its settings, "auto" resolved.
        settings: all tables of its pre-training, resolved; None where it had none or none is known.
        weights_sha256: of its weights under timm's names, before any resampling of positions.
        epochs, seconds, images_seen, flops: of its pre-training, where known; FLOP of forward and backward passes.
        device_name: what it was pre-trained on, where known.
        knn_accuracy: at the end of its pre-training, where known.
        tuned: of a fine-tuned network that was opened with its head.
        notes: what a person should be told.
    """

    encoder: Backbone
    kind: Kind
    name: str
    backbone: BackboneSettings
    weights_sha256: str
    settings: dict[str, dict[str, Any]] | None = None
    epochs: float | None = None
    seconds: float | None = None
    images_seen: int | None = None
    flops: float | None = None
    device_name: str | None = None
    knn_accuracy: float | None = None
    tuned: Tuned | None = None
    notes: tuple[str, ...] = ()

    @property
    def method(self) -> str | None:
        """The pre-training method, where known."""
        return self.settings["method"]["name"] if self.settings else None

    @property
    def dataset(self) -> str | None:
        """What it was pre-trained on, where known."""
        return self.settings["data"]["dataset"] if self.settings else None

    def described(self) -> dict[str, Any]:
        """What a result says of the network that it judges, and of what its pre-training took."""
        return {
            "subject": self.name,
            "method": self.method or self.kind,
            "backbone": self.backbone.name,
            "image_size": self.encoder.image_size,
            "weights_sha256": self.weights_sha256,
            "pretrain_dataset": self.dataset,
            "pretrain_epochs": self.epochs,
            "pretrain_seconds": self.seconds,
            "pretrain_flops": self.flops,
        }

    @property
    def mean(self) -> tuple[float, float, float]:
        """Of the pixels that the network under timm's names wants; `encoder` itself wants [-1, 1]."""
        return self.encoder.mean

    @property
    def std(self) -> tuple[float, float, float]:
        """See mean."""
        return self.encoder.std


def open_encoder(
    subject: str,
    data: DataSettings | None,
    *,
    backbone: BackboneSettings | None,
    image_size: int | None,
    seed: int,
    head: bool = False,
) -> Opened:
    """Open what a person named; see the module's first lines for what that may be.

    Args:
        data: what it will look at; gives the image size of `scratch`.
        backbone: the architecture of `scratch` and of weights that say nothing of theirs; settings of timm:NAME
            (pretrained = false for random weights); for the others only drop_path, which is no part of what was
            trained: what else is set must be as it was. None = not given.
        image_size: side of the images it should take, in pixels; None = those it was trained on.
        seed: of the weights that are drawn.
        head: keep the head of a fine-tuned network in `Opened.tuned`; otherwise it is left out, and a note says so.

    Raises:
        CheckpointError: no such run or file, it is damaged, or the weights do not fit.
        SettingsError: what was given does not go together, or the image size cannot be.
        PluginError: a plugin is missing, or published weights cannot be fetched.
    """
    open_it = _kind(subject)
    return open_it(_Request(subject, data, backbone, image_size, seed, head))


@dataclass(frozen=True)
class _Request:
    subject: str
    data: DataSettings | None
    backbone: BackboneSettings | None
    image_size: int | None
    seed: int
    head: bool

    def wanted_size(self) -> int | None:
        """The side of the images it will see, where that is known before it is opened."""
        if self.image_size is not None or self.data is None:
            return self.image_size
        return resolve_data(self.data).image_size


def _kind(subject: str) -> Callable[[_Request], Opened]:
    path = Path(subject)
    if subject == SCRATCH and not path.exists():
        return _open_scratch
    if subject == PIXELS and not path.exists():
        return _open_pixels
    if path.is_dir():
        return _open_folder
    if path.exists() or path.suffix == ".safetensors":
        return _open_file
    if ":" in subject:
        return _open_published
    raise CheckpointError(
        f"there is no {subject}; give a run directory, an {ENCODER}, timm:NAME, or {SCRATCH} for random weights"
    )


# ------------------------------------------------------------------------------------------- run directories


def _open_folder(request: _Request) -> Opened:
    folder = Path(request.subject)
    if (folder / SETTINGS).is_file():
        return _open_run(folder, request)
    if (folder / EXPORTED).is_file():
        return _open_file(replace(request, subject=str(folder / EXPORTED)))
    raise CheckpointError(
        f"{folder} holds no run: it has neither {SETTINGS} nor {EXPORTED}; give a run directory, an {ENCODER},"
        f" timm:NAME, or {SCRATCH}"
    )


def _open_run(folder: Path, request: _Request) -> Opened:
    if (folder / ENCODER).is_file():
        opened = _open_file(replace(request, subject=str(folder / ENCODER)))
        return replace(opened, kind="run", name=_folder_name(folder))
    if (folder / CLASSIFIER).is_file():
        opened = _open_file(replace(request, subject=str(folder / CLASSIFIER)))
        return replace(opened, kind="run", name=_folder_name(folder))
    return _open_unfinished(folder, request)


def _open_unfinished(folder: Path, request: _Request) -> Opened:
    """The encoder in the newest whole checkpoint of a run that has not ended, or is still going on."""
    asked = RunDir(folder).settings().settings
    if not isinstance(asked, Settings):
        raise CheckpointError(f"{folder} has not ended, and is no pre-training run; let it end first")
    settings = resolve(asked)
    found, complaints = checkpoint.load_newest(folder / "checkpoints")
    if found is None:
        why = complaints[0] if complaints else "it has no checkpoint yet"
        raise CheckpointError(f"no encoder in {folder}: {why}; let the run go on first")
    offline = settings.model_copy(update={"backbone": _reconciled(settings.backbone, request).without_weights()})
    method = build_method(offline, folder / REQUIRED)
    checkpoint.load_into(method, found.model, str(folder / "checkpoints"))
    work = measure_work(method)[0]  # before the encoder is set to another image size
    epochs = _epochs_at(RunDir(folder), found.step)
    reached = f"step {found.step}" + (f", epoch {epochs:.4g} of {settings.train.epochs}" if epochs else "")
    opened = _finished(method.encoder(), "run", _folder_name(folder), offline.backbone, request)
    return replace(
        opened,
        settings=tables(settings),
        epochs=epochs,
        seconds=found.state.get("seconds"),
        images_seen=found.step * settings.train.batch_size,
        flops=work * found.step * settings.train.batch_size,
        device_name=device_beside(folder / RUN),
        notes=(*complaints, f"{folder} has not ended: its checkpoint at {reached} is used", *opened.notes),
    )


def _epochs_at(run: RunDir, step: int) -> float | None:
    """From any line of metrics.jsonl: each says the step and the epoch."""
    ratio = [r["epoch"] / r["step"] for r in run.metrics() if r.get("step") and "epoch" in r]
    return step * ratio[-1] if ratio else None


def _folder_name(folder: Path) -> str:
    return folder.resolve().name


# ----------------------------------------------------------------------------------------------------- files


def _open_file(request: _Request) -> Opened:
    path = Path(request.subject)
    if path.is_file() and path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is no .safetensors file; pickled weights are never loaded here, convert them with"
            " safetensors.torch.save_file"
        )
    metadata = checkpoint.read_metadata(path)
    if "settings" not in metadata:
        return _open_foreign(path, request)
    values = _parsed(metadata["settings"], path)
    if schema_of(values) is FINETUNE:
        return _open_classifier(path, values, metadata, request)
    settings = _settings(values, str(path))
    backbone = _reconciled(settings.backbone, request).without_weights()
    # An exported file may be for images of another size than those it learned from.
    encoder = build_backbone(backbone, int(metadata.get("image_size", settings.data.image_size)), request.seed)
    _fill(encoder, checkpoint.load_weights(path), str(path))
    opened = _finished(encoder, "file", _file_name(path), backbone, request)
    result = _result(path.parent)
    seen = metadata.get("images_seen", result.get("images_seen"))  # files of 0.1 did not have it
    images_seen = None if seen is None else int(seen)
    return replace(
        opened,
        settings=tables(settings),
        epochs=settings.train.epochs,
        images_seen=images_seen,
        flops=_flops(settings, images_seen, path.parent),
        seconds=result.get("seconds"),
        knn_accuracy=result.get("knn_accuracy"),
        device_name=device_beside(path),
    )


def _open_classifier(
    path: Path, values: dict[str, dict[str, Any]], metadata: dict[str, str], request: _Request
) -> Opened:
    """The backbone of a fine-tuned network, and its head where that is asked for."""
    settings = resolve(written(FINETUNE, values, str(path)).settings)
    backbone = _reconciled(settings.backbone, request).without_weights()
    encoder = build_backbone(backbone, int(metadata.get("image_size", settings.data.image_size)), request.seed)
    state = checkpoint.load_weights(path)
    own = encoder.timm_state()
    head = {name: state.pop(name) for name in list(state) if name not in own}
    _fill(encoder, state, str(path))
    beside = _result(path.parent)
    tuned = read_head(encoder, head, tables(settings), metadata, path, beside) if request.head else None
    opened = _finished(encoder, "file", _file_name(path), backbone, request)
    left_out = f"{path} was fine-tuned on {settings.data.dataset}; its head ({', '.join(head)}) is left out"
    return replace(opened, tuned=tuned, notes=(*(() if tuned else (left_out,)), *opened.notes))


def _parsed(text: str, path: Path) -> dict[str, dict[str, Any]]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"the settings in {path} are damaged: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"the settings in {path} are damaged: they are no tables")
    return values


def _settings(values: dict[str, dict[str, Any]], origin: str) -> ResolvedSettings:
    return resolve(from_tables(values, origin).settings)


def _file_name(path: Path) -> str:
    return _folder_name(path.parent) if path.name in {ENCODER, CLASSIFIER, EXPORTED} else path.stem


def _result(folder: Path) -> dict[str, Any]:
    """What the run says beside its weights; weights that were copied elsewhere have nothing there."""
    return _read_json(folder / RESULT)


def device_beside(weights: Path) -> str | None:
    """What the run was trained on in whose directory a file lies, where known."""
    return _read_json(weights.parent / RUN).get("device_name")


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it holds no JSON object")
    return content


def _flops(settings: ResolvedSettings, images_seen: int | None, folder: Path) -> float | None:
    if images_seen is None:
        return None
    try:
        offline = settings.model_copy(update={"backbone": settings.backbone.without_weights()})
        method = build_method(offline, folder / REQUIRED)
    except (PluginError, SettingsError):  # an encoder is of use without the plugins that trained it
        return None
    return measure_work(method)[0] * images_seen


def _open_foreign(path: Path, request: _Request) -> Opened:
    """Somebody else's weights under timm's names, which say nothing of their architecture."""
    if request.backbone is None:
        raise SettingsError(
            f"{path} does not say which network it belongs to; name it with --backbone (vit-tiny, timm:NAME, ...)"
        )
    state = checkpoint.load_weights(path)
    wanted = request.wanted_size() or _published_size(request.backbone)
    if wanted is None:
        raise SettingsError(f"{path} does not say which images it is for; give their side with --image-size")
    backbone = resolve_backbone(request.backbone.without_weights(), wanted)
    encoder = build_backbone(backbone, wanted, request.seed)
    native = _native_size(encoder, state)
    if native not in (None, wanted):
        assert native is not None
        encoder = build_backbone(backbone, native, request.seed)
    dropped = _without_classifier(encoder, state)
    _fill(encoder, state, str(path))
    opened = _finished(encoder, "file", _file_name(path), backbone, replace(request, image_size=wanted))
    notes = [f"left out {', '.join(dropped)}: the classifier of {path}"] if dropped else []
    if opened.mean == opened.std == (0.5, 0.5, 0.5) and "normalization" in type(backbone).model_fields:
        notes.append(
            f"{path} does not say how it wants its pixels; it gets them in [-1, 1]. If it was trained as timm's own"
            " weights were, add --set backbone.normalization=timm"
        )
    return replace(opened, notes=(*notes, *opened.notes))


def _native_size(encoder: Backbone, state: dict[str, Tensor]) -> int | None:
    """The image size that a plain position table was made for; None where there is none, or it fits as it is."""
    own, other = encoder.timm_state().get("pos_embed"), state.get("pos_embed")
    if own is None or other is None or own.ndim != 3 or other.ndim != 3 or own.shape == other.shape:
        return None
    side = round((other.shape[1] - own.shape[1] + encoder.num_tokens) ** 0.5)
    square = side * side + own.shape[1] - encoder.num_tokens == other.shape[1]
    return side * encoder.patch_shape[0] if square and side > 1 else None


def _without_classifier(encoder: Backbone, state: dict[str, Tensor]) -> list[str]:
    """Take the classifier out of `state`, by timm's name for it, where the encoder has none; what was taken."""
    config = timm.get_pretrained_cfg(encoder.timm_name) if encoder.timm_name else None
    named = config.classifier if config and config.classifier else ()
    names = (named,) if isinstance(named, str) else tuple(named)
    own = encoder.timm_state()
    taken = [key for key in state if key not in own and any(key.startswith(f"{name}.") for name in names)]
    for key in taken:
        del state[key]
    return taken


# ------------------------------------------------------------------------------------ published, and from scratch


def _open_published(request: _Request) -> Opened:
    spec = plugins.find("backbone", request.subject).spec
    if spec.image_size is None:
        raise SettingsError(
            f"backbone {request.subject} has no published weights; for random ones use"
            f" {SCRATCH} --backbone {request.subject}"
        )
    given = request.backbone
    if given is not None and given.name != request.subject:
        raise SettingsError(f"--backbone {given.name} contradicts {request.subject}; leave it out")
    backbone = given if given is not None else spec.settings(name=request.subject)
    if "pretrained" not in backbone.model_fields_set:
        backbone = backbone.model_copy(update={"pretrained": True})
    size = request.image_size or plugins.load(spec.image_size)(backbone)
    encoder = build_backbone(backbone, size, request.seed)
    opened = _finished(encoder, "published", request.subject, backbone, request)
    if not getattr(backbone, "pretrained"):  # noqa: B009  (a setting of the plugin's own class)
        opened = replace(opened, notes=(*opened.notes, f"{request.subject} with random weights: pretrained = false"))
    return opened


def _published_size(backbone: BackboneSettings) -> int | None:
    reference = plugins.find("backbone", backbone.name).spec.image_size
    return plugins.load(reference)(backbone) if reference else None


def _open_scratch(request: _Request) -> Opened:
    backbone = request.backbone or BackboneSettings.model_validate({})
    if getattr(backbone, "pretrained", False):
        raise SettingsError(
            f"{SCRATCH} means random weights; leave backbone.pretrained = true out, or name {backbone.name}"
        )
    size = request.wanted_size()
    if size is None:
        raise SettingsError(f"{SCRATCH} needs the side of its images: give --dataset or --image-size")
    spec = plugins.find("backbone", backbone.name).spec
    if not isinstance(backbone, spec.settings):
        backbone = spec.settings(**backbone.model_dump())
    backbone = resolve_backbone(backbone, size)
    return _finished(build_backbone(backbone, size, request.seed), "scratch", SCRATCH, backbone, request)


def _open_pixels(request: _Request) -> Opened:
    size = request.wanted_size()
    if size is None:
        raise SettingsError(f"{PIXELS} needs the side of its images: give --dataset or --image-size")
    none = BackboneSettings.model_validate({"name": PIXELS})
    return Opened(Pixels(size), "pixels", PIXELS, none, checkpoint.weights_sha256({}))


# ----------------------------------------------------------------------------------------------------- written


def save_encoder(
    encoder: Backbone,
    settings: dict[str, dict[str, Any]] | None,
    images_seen: int | None,
    path: Path,
    advice: str = RESUME,
) -> None:
    """Write an encoder under timm's parameter names, so that timm and `open_encoder` can load it.

    Args:
        settings: tables of its pre-training, resolved; None = it had none of ours.
        images_seen: in all steps of its pre-training, from which a reader can work out the compute.
        advice: what to do where it cannot be written.

    Raises:
        RunFailed: it cannot be written.
    """
    metadata = {
        "timm_name": encoder.timm_name,
        "timm_kwargs": json.dumps(encoder.timm_kwargs),
        "image_size": str(encoder.image_size),
        "mean": json.dumps(encoder.mean),
        "std": json.dumps(encoder.std),
    }
    if settings is not None:
        metadata["settings"] = json.dumps(settings)
    if images_seen is not None:
        metadata["images_seen"] = str(images_seen)
    checkpoint.save_weights(path, encoder.timm_state(), metadata, advice)


def load_with(encoder: Backbone, path: Path) -> str:
    """The Python expression that loads a file of save_encoder."""
    if not encoder.timm_name:
        return f"safetensors.torch.load_file({str(path)!r})"
    arguments = ", ".join(f"{key}={value!r}" for key, value in encoder.timm_kwargs.items())
    return f"timm.create_model({encoder.timm_name!r}, {arguments}, checkpoint_path={str(path)!r})"


# -------------------------------------------------------------------------------------------------- all of them


def _reconciled(own: BackboneSettings, request: _Request) -> BackboneSettings:
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
                f"{request.subject} was trained with backbone.{key} = {was!r}, not {now!r}; leave that out"
            )
    return own.model_copy(update={key: getattr(given, key) for key in _ONLY_IN_TRAINING & given.model_fields_set})


@torch.no_grad()
def _fill(encoder: Backbone, state: dict[str, Tensor], origin: str) -> None:
    own = encoder.timm_state()
    checkpoint.check_fit(own, state, origin)
    for name, tensor in own.items():
        tensor.copy_(state[name])


def _finished(encoder: Backbone, kind: Kind, name: str, backbone: BackboneSettings, request: _Request) -> Opened:
    """The encoder at the image size that is asked for."""
    sha256 = checkpoint.weights_sha256(encoder.timm_state())
    before, resampled = encoder.image_size, False
    if request.image_size is not None and request.image_size != before:
        encoder.set_image_size(request.image_size)
        resampled = checkpoint.weights_sha256(encoder.timm_state()) != sha256
    note = f"position embeddings resampled for images of {encoder.image_size} px, from {before} px"
    return Opened(encoder, kind, name, backbone, sha256, notes=(note,) if resampled else ())
