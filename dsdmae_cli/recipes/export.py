"""`dsdmae export`: an encoder, or a fine-tuned network with its head, in the form that other programs read. The model
card is written in card.py.

timm      a folder with model.safetensors and config.json, for timm.create_model("local-dir:PATH")
hf        the same with a model card, ready to be uploaded to the Hugging Face hub
onnx      one file, compared with torch on photographs before it is kept
denoiser  the part of a run that restores images, for `dsdmae denoise --weights`
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsdmae_cli import files
from dsdmae_cli.artifacts.card import found_results, model_card, short_list
from dsdmae_cli.artifacts.classifier import Tuned, save_classifier, timm_arguments
from dsdmae_cli.artifacts.denoiser import anonymous, load_denoiser, save_denoiser
from dsdmae_cli.artifacts.open import EXPORTED, Opened, open_encoder, save_encoder
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.data.square import to_square
from dsdmae_cli.errors import CheckpointError, RunFailed, SettingsError
from dsdmae_cli.runs.rundir import CLASSIFIER, SETTINGS
from dsdmae_cli.settings.models import BackboneSettings

Form = Literal["timm", "hf", "onnx", "denoiser"]
CONFIG = "config.json"
CARD = "README.md"
_ADVICE = "make room or choose another --out"
# Largest difference between onnxruntime and torch, of features whose scale is 1 or below; relative to it above.
TOLERANCE = 1e-4
_PHOTOGRAPHS = 8


@dataclass(frozen=True)
class Request:
    """What to export and how.

    Attributes:
        subject: what `open_encoder` takes; see `head` for a fine-tuned network.
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
    if request.form == "denoiser":
        return _export_denoiser(request)
    opened = open_encoder(
        request.subject, None, backbone=request.backbone, image_size=request.image_size, seed=0, head=request.head
    )
    encoder, tuned = opened.encoder, opened.tuned
    (tuned.network if tuned else encoder).eval().requires_grad_(False)
    said = _export_onnx(opened, request.out) if request.form == "onnx" else _export_folder(opened, request)
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


# ------------------------------------------------------------------------------------------------ timm and hf


def _export_folder(opened: Opened, request: Request) -> dict[str, Any]:
    encoder, out = opened.encoder, request.out
    if not encoder.timm_name:
        raise SettingsError(
            f"timm has no architecture like backbone {opened.backbone.name}, so that --to {request.form} could not be"
            " loaded; use --to onnx"
        )
    config = timm_config(opened)
    results, notes = found_results(opened, request.subject, request.results)
    card = model_card(opened, results, request.licence, out.resolve().name) if request.form == "hf" else None
    with files.explained(out, _ADVICE):
        out.mkdir(parents=True, exist_ok=True)
    if (tuned := opened.tuned) is not None:
        save_classifier(tuned.network, anonymous(tuned.settings), tuned.classes, out / EXPORTED, _ADVICE)
    else:
        settings = anonymous(opened.settings) if opened.settings else None
        save_encoder(encoder, settings, opened.images_seen, out / EXPORTED, _ADVICE)
    files.write_bytes(out / CONFIG, (json.dumps(config, indent=2) + "\n").encode(), _ADVICE)
    written = [EXPORTED, CONFIG]
    if card is not None:
        files.write_bytes(out / CARD, card.encode(), _ADVICE)
        written.append(CARD)
        if request.licence is None:
            notes.append("no --license was given: the card says that none is stated")
    said: dict[str, Any] = {
        "files": written,
        "load_with": f"timm.create_model({f'local-dir:{out}'!r}, pretrained=True)",
        "mean": encoder.mean,
        "std": encoder.std,
        "notes": notes,
    }
    if card is not None:
        said["upload_with"] = f"hf upload YOUR-NAME/{out.resolve().name} {out}"
    return said


def timm_config(opened: Opened) -> dict[str, Any]:
    """What timm reads from config.json to build the same network and to prepare its images.

    Raises:
        SettingsError: timm's network would give other answers than a fine-tuned one.
    """
    encoder, tuned = opened.encoder, opened.tuned
    arguments = timm_arguments(tuned.network) if tuned else encoder.timm_kwargs
    if arguments is None:
        raise SettingsError(
            f"timm's {encoder.timm_name} pools its features in another way than {opened.name} was fine-tuned with, and"
            " would give other answers; use --to onnx, or export the encoder alone with --no-head"
        )
    num_classes = len(tuned.classes) if tuned else 0
    base = timm.get_pretrained_cfg(encoder.timm_name)
    known = base.to_dict() if base else {}
    side = encoder.image_size
    own = {key: value for key, value in arguments.items() if key not in {"num_classes", "drop_path_rate"}}
    # timm's own default where we did not choose, so that its pooled output is that of the published architecture.
    pool = own.get("global_pool", "avg" if "global_pool" in encoder.timm_kwargs else None)
    return {
        "architecture": encoder.timm_name.partition(".")[0],
        "num_classes": num_classes,
        "num_features": encoder.width,
        **({"label_names": list(tuned.classes)} if tuned else {}),
        **({"global_pool": pool} if pool else {}),
        "model_args": own,
        "pretrained_cfg": {
            "tag": "dsdmae",
            "custom_load": False,
            "input_size": [3, side, side],
            "fixed_input_size": "img_size" in own,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(encoder.mean),
            "std": list(encoder.std),
            "num_classes": num_classes,
            "pool_size": list(encoder.grid),
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
        },
    }


# ----------------------------------------------------------------------------------------------------- ONNX


class _Outputs(nn.Module):
    """What the ONNX file computes: mean of the patch tokens, the tokens, and the class token where there is one."""

    def __init__(self, encoder: Backbone) -> None:
        super().__init__()
        self.encoder = encoder
        self.names = ["features", "tokens", *(["class_token"] if encoder.has_class_token else [])]

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> tuple[Tensor, ...]:
        tokens, class_token = self.encoder.forward_tokens(images)
        pooled = tokens.mean(dim=1)
        return (pooled, tokens) if class_token is None else (pooled, tokens, class_token)


class _Answers(nn.Module):
    """The same for a fine-tuned network: one logit a class."""

    def __init__(self, tuned: Tuned) -> None:
        super().__init__()
        self.network = tuned.network
        self.names = ["logits"]

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> tuple[Tensor, ...]:
        return (self.network(images),)


def _export_onnx(opened: Opened, out: Path) -> dict[str, Any]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter needs it, and says so at length)
    except ImportError as error:
        raise SettingsError(f"--to onnx needs {error.name}; pip install 'dsdmae[onnx]'") from error
    encoder, tuned = opened.encoder, opened.tuned
    module = (_Answers(tuned) if tuned else _Outputs(encoder)).eval()
    photographs = _photographs(encoder.image_size)
    with files.explained(out, _ADVICE):
        out.parent.mkdir(parents=True, exist_ok=True)
    with files.aside(out, _ADVICE) as partial:
        _write_onnx(module, photographs[:2], partial, tuned.classes if tuned else ())
        session = onnxruntime.InferenceSession(partial.read_bytes(), providers=["CPUExecutionProvider"])
        with torch.no_grad():
            expected = module(photographs)
        got = session.run(module.names, {"images": photographs.numpy()})
        difference, allowed = _difference(expected, got)
        if not difference <= allowed:
            raise RunFailed(
                f"onnxruntime differs from torch by {difference:.2g}, more than {allowed:.2g}; nothing was written"
            )
    return {
        "files": [out.name],
        "input": f"images: float32 [batch, 3, {encoder.image_size}, {encoder.image_size}], RGB in [-1, 1]",
        "outputs": {name: list(map(int, e.shape[1:])) for name, e in zip(module.names, expected, strict=True)},
        "max_difference": difference,
        "compared_on": f"{len(photographs)} photographs",
        "load_with": f"onnxruntime.InferenceSession({str(out)!r})",
    }


def _write_onnx(
    module: _Outputs | _Answers, example: Float[Tensor, "2 3 s s"], path: Path, classes: tuple[str, ...]
) -> None:
    # The size of the batch is the one free dimension: positions belong to a size of images.
    program = torch.onnx.export(
        module,
        (example,),
        input_names=["images"],
        output_names=module.names,
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    what = (
        "logits: one a class; their names are in the metadata under `classes`, as JSON."
        if classes
        else "features: mean of the patch tokens. tokens: patch tokens, row by row."
    )
    program.model.doc_string = (
        f"Made by dsdmae. images: RGB, NCHW, {example.shape[-1]} pixels square, in [-1, 1]. {what}"
    )
    if classes:
        program.model.metadata_props["classes"] = json.dumps(classes)
    program.save(str(path), external_data=False)


def _photographs(size: int) -> Float[Tensor, "n 3 s s"]:
    """Cuts of scikit-learn's two photographs, in [-1, 1]: real images that every installation has."""
    from sklearn.datasets import load_sample_images

    cuts = []
    draw = np.random.default_rng(0)
    for index in range(_PHOTOGRAPHS):
        photograph = load_sample_images().images[index % 2]
        side = int(draw.integers(96, 400))
        top, left = (int(draw.integers(0, length - side)) for length in photograph.shape[:2])
        cuts.append(to_square(photograph[top : top + side, left : left + side], size))
    pixels = torch.from_numpy(np.stack(cuts)).permute(0, 3, 1, 2)
    return (pixels.float() / 127.5 - 1).contiguous()


def _difference(expected: tuple[Tensor, ...], got: list[np.ndarray]) -> tuple[float, float]:
    """(largest difference, what is allowed): relative to the largest feature where that exceeds 1."""
    worst = max(float(np.abs(e.numpy() - g).max()) for e, g in zip(expected, got, strict=True))
    return worst, TOLERANCE * max(1.0, max(float(e.abs().max()) for e in expected))


# ------------------------------------------------------------------------------------------------- denoiser


def _export_denoiser(request: Request) -> dict[str, Any]:
    run = Path(request.subject)
    if not (run / SETTINGS).is_file():
        raise CheckpointError(f"--to denoiser needs a run's directory with its checkpoints, and {run} is none")
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
