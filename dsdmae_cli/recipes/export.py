"""`dsdmae export`: an encoder, or a fine-tuned network with its head, in the form that other programs read.

timm      a folder with model.safetensors and config.json, for timm.create_model("local-dir:PATH")
hf        the same with a model card, ready to be uploaded to the Hugging Face hub
onnx      one file, compared with torch on photographs before it is kept
denoiser  the part of a run that restores images, for `dsdmae denoise --weights`

The forms themselves are in artifacts/: timm_folder.py, card.py, onnx.py, denoiser.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dsdmae_cli import files
from dsdmae_cli.artifacts.card import found_results, model_card, short_list
from dsdmae_cli.artifacts.denoiser import load_denoiser, save_denoiser
from dsdmae_cli.artifacts.onnx import write_onnx
from dsdmae_cli.artifacts.open import open_encoder
from dsdmae_cli.artifacts.opened import Opened
from dsdmae_cli.artifacts.subject import Subject, parse
from dsdmae_cli.artifacts.timm_folder import timm_config, write_folder
from dsdmae_cli.errors import CheckpointError, SettingsError
from dsdmae_cli.runs.rundir import CLASSIFIER, SETTINGS
from dsdmae_cli.settings.models import BackboneSettings

Form = Literal["timm", "hf", "onnx", "denoiser"]
_ADVICE = "make room or choose another --out"


@dataclass(frozen=True)
class Request:
    """What to export and how.

    Attributes:
        subject: see artifacts/subject.py; and `head` for a fine-tuned network.
        form: see Form.
        out: the folder (timm, hf) or file (onnx, denoiser) to write.
        image_size: side of the images it shall take; None = as it is.
        backbone: of weights that do not name theirs.
        force: replace what is there.
        licence: of the weights, a Hugging Face identifier; None = not stated.
        results: result.json files of probes and fine-tuning for the model card.
        head: keep the head of a fine-tuned network.
    """

    subject: str
    form: Form
    out: Path
    image_size: int | None = None
    backbone: BackboneSettings | None = None
    force: bool = False
    licence: str | None = None
    results: tuple[Path, ...] = ()
    head: bool = True


def export(request: Request) -> dict[str, Any]:
    """Write a network in another form; what was written and how it is loaded, as --json prints it.

    Raises:
        SettingsError: the path is taken, or the form and the network do not go together.
        CheckpointError, PluginError: see open_encoder.
        RunFailed: it cannot be written, or ONNX computes something else than torch.
    """
    _check_free(request)
    subject = parse(request.subject)
    if request.form == "denoiser":
        return _export_denoiser(subject, request)
    opened = open_encoder(
        subject, None, backbone=request.backbone, image_size=request.image_size, seed=0, head=request.head
    )
    encoder, tuned = opened.encoder, opened.tuned
    (tuned.network if tuned else encoder).eval().requires_grad_(False)
    if request.form == "onnx":
        said = write_onnx(opened, request.out, _ADVICE)
    else:
        said = _export_folder(opened, subject, request)
    if tuned is not None:
        said = {"classes": list(tuned.classes), "classifier_sha256": tuned.sha256, **said}
    return {
        "form": request.form,
        "path": str(request.out),
        "image_size": encoder.image_size,
        "features": encoder.width,
        "weights_sha256": opened.weights_sha256,
        **said,
        "notes": [*opened.notes, *said.get("notes", [])],
    }


def _check_free(request: Request) -> None:
    out = request.out
    if request.form in {"onnx", "denoiser"}:
        ending = ".onnx" if request.form == "onnx" else ".safetensors"
        if out.suffix != ending:
            raise SettingsError(f"--out {out} must end in {ending} for --to {request.form}")
        if out.is_dir():
            raise SettingsError(f"--out {out} is a folder; name a file in it")
        if out.exists() and not request.force:
            raise SettingsError(f"--out {out} exists; choose another path, or replace it with --force")
    elif out.is_file():
        raise SettingsError(f"--out {out} is a file; --to {request.form} writes a folder")
    elif (out / SETTINGS).exists():
        raise SettingsError(f"--out {out} is a run's directory; choose another folder")
    elif out.is_dir() and any(out.iterdir()) and not request.force:
        raise SettingsError(f"--out {out} is not empty; choose another folder, or write into it with --force")


def _export_folder(opened: Opened, subject: Subject, request: Request) -> dict[str, Any]:
    out = request.out
    config = timm_config(opened)
    results, notes = found_results(opened, subject, request.results)
    with_card = request.form == "hf"
    card = model_card(opened, results, request.licence, out.resolve().name) if with_card else None
    written = write_folder(opened, config, card, out, _ADVICE)
    if with_card and request.licence is None:
        notes.append("no --license was given: the card says that none is stated")
    said: dict[str, Any] = {
        "files": written,
        "load_with": f"timm.create_model({f'local-dir:{out}'!r}, pretrained=True)",
        "mean": opened.mean,
        "std": opened.std,
        "notes": notes,
    }
    return {**said, "upload_with": f"hf upload YOUR-NAME/{out.resolve().name} {out}"} if with_card else said


def _export_denoiser(subject: Subject, request: Request) -> dict[str, Any]:
    run = subject.path
    if subject.kind != "run" or run is None:
        raise CheckpointError(f"--to denoiser needs a run's directory with its checkpoints, and {subject.text} is none")
    if (run / CLASSIFIER).is_file():
        raise CheckpointError(
            f"--to denoiser needs a run of pre-training, and {run} fine-tuned a classifier; name the run before"
        )
    if request.image_size is not None:
        raise SettingsError("--to denoiser takes no --image-size: `dsdmae denoise` works on pictures of any size")
    denoiser = load_denoiser(run=run)
    with files.explained(request.out, _ADVICE):
        request.out.parent.mkdir(parents=True, exist_ok=True)
    save_denoiser(denoiser.network, denoiser.settings, request.out)
    return {
        "form": "denoiser",
        "path": str(request.out),
        "image_size": denoiser.image_size,
        "weights_sha256": denoiser.sha256,
        "files": [request.out.name],
        "load_with": f"dsdmae denoise --weights {request.out} PICTURE",
        "notes": [],
    }


def summary(said: dict[str, Any]) -> str:
    """The lines for people."""
    lines = [f"wrote          {said['path']}: {', '.join(said['files'])}"]
    if "classes" in said:
        lines.append(f"classes        {len(said['classes'])}: {short_list(said['classes'])}")
    lines.append(f"images         {said['image_size']}x{said['image_size']} px" + _pixels(said))
    if "max_difference" in said:
        lines.append(
            f"checked        differs from torch by at most {said['max_difference']:.1e} on {said['compared_on']}"
        )
        shapes = ", ".join(f"{name} {shape}" for name, shape in said["outputs"].items())
        lines.append(f"outputs        {shapes}, per image")
    lines.append(f"load it with   {said['load_with']}")
    if "upload_with" in said:
        lines.append(f"upload it with {said['upload_with']}")
    return "\n".join(lines)


def _pixels(said: dict[str, Any]) -> str:
    if "mean" in said:
        return f", pixels in [0, 1] normalised by mean {list(said['mean'])} and std {list(said['std'])}"
    return ", RGB in [-1, 1]" if "input" in said else ""
