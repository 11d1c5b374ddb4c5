"""`dsdmae export`: an encoder, or a fine-tuned network with its head, in the form that other programs read.

timm      a folder with model.safetensors and config.json, for timm.create_model("local-dir:PATH")
hf        the same with a model card, ready to be uploaded to the Hugging Face hub
onnx      one file, compared with torch on photographs before it is kept
denoiser  the part of a run that restores images, for `dsdmae denoise --weights`
denoiser-onnx  the same as one ONNX file, of a run, of a file of the form before, or of the weights that ship

The forms themselves are in artifacts/: timm_folder.py, card.py, onnx.py, denoiser.py, onnx_denoiser.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dsdmae_cli import files
from dsdmae_cli.artifacts import hub
from dsdmae_cli.artifacts.card import found_results, model_card, short_list
from dsdmae_cli.artifacts.denoiser import Denoiser, load_denoiser, save_denoiser
from dsdmae_cli.artifacts.elsewhere import check_values
from dsdmae_cli.artifacts.onnx import write_onnx
from dsdmae_cli.artifacts.onnx_denoiser import write_onnx_denoiser
from dsdmae_cli.artifacts.open import open_encoder
from dsdmae_cli.artifacts.opened import Opened
from dsdmae_cli.artifacts.packaged import ALL
from dsdmae_cli.artifacts.seen import Seen, seen_by
from dsdmae_cli.artifacts.subject import Subject, parse
from dsdmae_cli.artifacts.timm_folder import check_folder, left_card, timm_config, write_folder
from dsdmae_cli.errors import CheckpointError, SettingsError
from dsdmae_cli.runs.rundir import CLASSIFIER
from dsdmae_cli.settings.models import BackboneSettings
from dsdmae_cli.settings.size import Size, size_words

Form = Literal["timm", "hf", "onnx", "denoiser", "denoiser-onnx"]
# The forms that are one file, and its ending.
_FILES = {"onnx": ".onnx", "denoiser": ".safetensors", "denoiser-onnx": ".onnx"}
_ADVICE = "make room or choose another --out"


@dataclass(frozen=True)
class Request:
    """What to export and how.

    Attributes:
        subject: see artifacts/subject.py; and `head` for a fine-tuned network.
        form: see Form.
        out: the folder (timm, hf) or file (onnx, denoiser, denoiser-onnx) to write; None = not said, which is refused
            where everything else can be done.
        image_size: of the images it shall take; None = as it is.
        backbone: of weights that do not name theirs.
        force: replace what is there.
        licence: of the weights, a Hugging Face identifier; None = not stated.
        results: result.json files of probes and fine-tuning for the model card.
        head: keep the head of a fine-tuned network.
        push: OWNER/NAME on the Hugging Face hub, where the folder goes too.
        private: whether a repository that is made for it is.
    """

    subject: str
    form: Form
    out: Path | None
    image_size: Size | None = None
    backbone: BackboneSettings | None = None
    force: bool = False
    licence: str | None = None
    results: tuple[Path, ...] = ()
    head: bool = True
    push: str | None = None
    private: bool = False


def export(request: Request) -> dict[str, Any]:
    """Write a network in another form; what was written and how it is loaded, as --json prints it.

    What the network cannot become is said before anything about --out, which another word would mend.

    Raises:
        SettingsError: the path is taken, or the form and the network do not go together.
        CheckpointError, PluginError: see open_encoder.
        RunFailed: it cannot be written, or ONNX computes something else than torch.
    """
    _check_push(request)
    if request.form in {"denoiser", "denoiser-onnx"}:
        denoiser = _denoiser(request)
        return _export_denoiser(denoiser, request, _free(request))
    subject = parse(request.subject)
    opened = open_encoder(
        subject, None, backbone=request.backbone, image_size=request.image_size, seed=0, head=request.head
    )
    encoder, tuned = opened.encoder, opened.tuned
    config = {} if request.form == "onnx" else timm_config(opened)
    out = _free(request)
    if request.push is not None:
        hub.check_pushable(request.push)
    state = dict((tuned.network if tuned else encoder).state_dict())
    check_values(state, state, Path(request.subject))
    (tuned.network if tuned else encoder).eval().requires_grad_(False)
    if request.form == "onnx":
        said = write_onnx(opened, out, _ADVICE)
    else:
        said = _export_folder(opened, subject, request, config, out)
    if tuned is not None:
        said = {"classes": list(tuned.classes), "classifier_sha256": tuned.sha256, **said}
    return {
        "form": request.form,
        "path": str(out),
        "image_size": encoder.image_size,
        "features": encoder.width,
        "weights_sha256": opened.weights_sha256,
        "seen": seen_by(opened).as_values(),
        **said,
        "notes": [*opened.notes, *said.get("notes", [])],
    }


def _check_push(request: Request) -> None:
    if request.push is not None and request.form != "hf":
        raise SettingsError(f"--push {request.push} is for --to hf, a folder with a card; got --to {request.form}")
    if request.private and request.push is None:
        raise SettingsError("--private is about the repository of --push OWNER/NAME; add that, or leave it out")


def _free(request: Request) -> Path:
    """Where to write.

    Raises:
        SettingsError: it is not said, taken, or no such thing as the form is.
    """
    out, ending = request.out, _FILES.get(request.form)
    if out is None:
        what = "the folder" if ending is None else f"a file that ends in {ending}"
        raise SettingsError(f"say what to write: --out PATH, {what} for --to {request.form}")
    if ending is not None:
        if out.suffix != ending:
            raise SettingsError(f"--out {out} must end in {ending} for --to {request.form}")
        if out.is_dir():
            raise SettingsError(f"--out {out} is a folder; name a file in it")
        if out.exists() and not request.force:
            raise SettingsError(f"--out {out} exists; choose another path, or replace it with --force")
    else:
        check_folder(out, request.form, request.force)
    return out


def _export_folder(
    opened: Opened, subject: Subject, request: Request, config: dict[str, Any], out: Path
) -> dict[str, Any]:
    results, notes = found_results(opened, subject, request.results)
    with_card = request.form == "hf"
    card = model_card(opened, results, request.licence, out.resolve().name) if with_card else None
    if card is not None and request.push is not None:
        card = card.replace("YOUR-NAME/THIS-MODEL", request.push)
    written = write_folder(opened, config, card, out, _ADVICE, replace=request.force)
    notes += [] if with_card else left_card(out)
    if with_card and request.licence is None:
        notes.append("no --license was given: the card says that none is stated")
    said: dict[str, Any] = {
        "files": written,
        "load_with": f"timm.create_model({f'local-dir:{out}'!r}, pretrained=True)",
        "mean": opened.mean,
        "std": opened.std,
        "notes": notes,
    }
    if request.push is not None:
        return {**said, "pushed_to": hub.push(out, written, request.push, request.private)}
    return (
        {**said, "upload_with": f"hf upload YOUR-NAME/{out.resolve().name} {files.typed(out)}"} if with_card else said
    )


def _export_denoiser(denoiser: Denoiser, request: Request, out: Path) -> dict[str, Any]:
    if request.image_size is not None:
        raise SettingsError(f"--to {request.form} takes no --image-size: `dsdmae denoise` takes pictures of any size")
    with files.explained(out, _ADVICE):
        out.parent.mkdir(parents=True, exist_ok=True)
    if request.form == "denoiser-onnx":
        said = write_onnx_denoiser(denoiser, out, _ADVICE)
    else:
        sha256 = save_denoiser(denoiser.network, denoiser.settings, out)
        load_with = f"dsdmae denoise --weights {files.typed(out)} PICTURE"
        said = {"files": [out.name], "load_with": load_with, "weights_sha256": sha256}
    return {
        "form": request.form,
        "path": str(out),
        "image_size": denoiser.image_size,
        "weights_sha256": denoiser.sha256,
        **said,
        "notes": [],
    }


def _denoiser(request: Request) -> Denoiser:
    """What a person named: a run; as ONNX also a denoiser's file or the one that ships.

    Raises:
        CheckpointError: it is none of these, or restores no pixels.
    """
    to_onnx = request.form == "denoiser-onnx"
    for packaged in ALL:
        if to_onnx and request.subject == packaged.word and not Path(packaged.word).exists():
            return load_denoiser(packaged=packaged)
    subject = parse(request.subject)
    if to_onnx and subject.kind == "weights" and subject.weights is not None:
        return load_denoiser(weights=subject.weights)
    if subject.kind != "run" or subject.path is None:
        more = (
            f", a denoiser's .safetensors file, or the word {' or '.join(packaged.word for packaged in ALL)}"
            if to_onnx
            else ""
        )
        raise CheckpointError(
            f"--to {request.form} needs a run's directory with its checkpoints{more}, and {subject.text} is none"
        )
    if (subject.path / CLASSIFIER).is_file():
        raise CheckpointError(
            f"--to {request.form} needs a run of pre-training, and {subject.path} fine-tuned a classifier; name the"
            " run before"
        )
    return load_denoiser(run=subject.path)


def summary(said: dict[str, Any]) -> str:
    """The lines for people."""
    lines = [f"wrote          {said['path']}: {', '.join(said['files'])}"]
    if "classes" in said:
        lines.append(f"classes        {len(said['classes'])}: {short_list(said['classes'])}")
    if said["form"] == "denoiser-onnx":
        lines.append(f"takes          {said['input']}")
    else:
        of_encoder = "seen" in said
        pixels = f", {Seen(**said['seen']).pixels(said.get('mean'), said.get('std'))}" if of_encoder else ""
        lines.append(f"images         {size_words(said['image_size'])} px{pixels}")
    if "max_difference" in said:
        lines.append(
            f"checked        differs from torch by at most {said['max_difference']:.1e} on {said['compared_on']}"
        )
        shapes = ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in said["outputs"].items())
        lines.append(f"outputs        {shapes}, per image")
    lines.append(f"load it with   {said['load_with']}")
    if "pushed_to" in said:
        lines.append(f"pushed to      {said['pushed_to']}")
    if "upload_with" in said:
        lines.append(f"upload it with {said['upload_with']}")
    return "\n".join(lines)
