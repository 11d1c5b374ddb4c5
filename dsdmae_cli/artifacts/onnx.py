"""An encoder, or a fine-tuned network with its head, as one ONNX file that is held against torch before it is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsdmae_cli import files
from dsdmae_cli.artifacts.classifier import Tuned
from dsdmae_cli.artifacts.opened import Opened
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.data.square import to_square
from dsdmae_cli.errors import RunFailed, SettingsError

# Largest difference between onnxruntime and torch, of features whose scale is 1 or below; relative to it above.
TOLERANCE = 1e-4
_PHOTOGRAPHS = 8


def write_onnx(opened: Opened, out: Path, advice: str) -> dict[str, Any]:
    """Write what was opened, in eval mode; what was written and how it is loaded.

    Args:
        advice: what to do where it cannot be written.

    Raises:
        SettingsError: a package that it needs is missing.
        RunFailed: it cannot be written, or onnxruntime computes something else than torch.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter needs it, and says so at length)
    except ImportError as error:
        raise SettingsError(f"--to onnx needs {error.name}; pip install 'dsdmae[onnx]'") from error
    encoder, tuned = opened.encoder, opened.tuned
    module = (_Answers(tuned) if tuned else _Outputs(encoder)).eval()
    photographs = _photographs(encoder.image_size)
    with files.explained(out, advice):
        out.parent.mkdir(parents=True, exist_ok=True)
    with files.aside(out, advice) as partial:
        _trace(module, photographs[:2], partial, tuned.classes if tuned else ())
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


def _trace(
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
