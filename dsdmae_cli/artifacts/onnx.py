"""A network as one ONNX file, held against torch before it is kept: an encoder, or a fine-tuned one with its head.

onnx_denoiser.py has denoisers, by the same `write_checked`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsdmae_cli import files
from dsdmae_cli.artifacts.classifier import Tuned
from dsdmae_cli.artifacts.onnx_denoiser import MOST_OF_ONNX
from dsdmae_cli.artifacts.opened import Opened
from dsdmae_cli.artifacts.seen import seen_by
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.data.square import to_square
from dsdmae_cli.errors import RunFailed, SettingsError
from dsdmae_cli.settings.size import Size, height_width, size_words

# Largest difference between onnxruntime and torch, of features whose scale is 1 or below; relative to it above.
TOLERANCE = 1e-4
_PHOTOGRAPHS = 8


def write_onnx(opened: Opened, out: Path, advice: str) -> dict[str, Any]:
    """Write what was opened, in eval mode; what was written and how it is loaded.

    Args:
        advice: what to do where it cannot be written.

    Raises:
        SettingsError: a package that it needs is missing, or the weights are too many for one file.
        RunFailed: it cannot be written, or onnxruntime computes something else than torch.
    """
    encoder, tuned = opened.encoder, opened.tuned
    size = sum(4 * tensor.numel() for tensor in (tuned.network if tuned else encoder).parameters())
    if size >= MOST_OF_ONNX:  # before minutes of tracing, at whose end protobuf refuses it
        raise SettingsError(
            f"--to onnx: the weights of {opened.name} have {size / 2**30:.2f} GiB in float32, and one ONNX file holds"
            f" less than {MOST_OF_ONNX / 2**30:.3g}; no other --to has such a limit"
        )
    module = (_Answers(tuned) if tuned else _Outputs(encoder)).eval()
    photographs = cut_photographs(encoder.image_size, encoder.in_chans)
    seen = seen_by(opened)
    shape = (encoder.in_chans, *height_width(encoder.image_size))
    what = (
        f"logits: one a class{' at every pixel' * bool(tuned.values)}; their names are in the metadata under `classes`,"
        " as JSON."
        if tuned
        else "features: mean of the patch tokens. tokens: patch tokens, row by row."
    )
    difference, outputs = write_checked(
        module,
        [photographs],
        out,
        advice,
        # The size of the batch is the one free dimension: positions belong to a size of images.
        free={0: torch.export.Dim("batch")},
        doc=f"images: NCHW, {size_words(encoder.image_size)} pixels, {seen.in_words(-1)}. {what}",
        metadata=seen.as_metadata() | ({"classes": json.dumps(tuned.classes)} if tuned else {}),
        form="onnx",
    )
    return {
        "files": [out.name],
        "input": f"images: float32 [{', '.join(map(str, ('batch', *shape)))}], {seen.in_words(-1)}",
        "outputs": outputs,
        "max_difference": difference,
        "compared_on": f"{len(photographs)} photographs",
        "load_with": f"onnxruntime.InferenceSession({str(out)!r})",
    }


class Traced(Protocol):
    """A module with named outputs, as `write_checked` takes it."""

    names: list[str]

    def __call__(self, images: Float[Tensor, "b c h w"]) -> tuple[Tensor, ...]: ...


def write_checked(
    module: Traced,
    compared: Sequence[Float[Tensor, "_ _ _ _"]],
    out: Path,
    advice: str,
    *,
    free: dict[int, Any],
    doc: str,
    metadata: dict[str, str],
    form: str,
) -> tuple[float, dict[str, list[int]]]:
    """Write a module as one ONNX file if onnxruntime computes with it what torch does.

    Args:
        module: in eval mode, on the CPU.
        compared: batches of images that both are given; the first one's first two are the example.
        free: dimensions of `images` that may vary, as torch.export names them.
        doc: what goes in and comes out, for who opens the file.
        form: as --to names it, for messages.

    Returns:
        The largest difference, and the shape of each output for one image of the first batch.

    Raises:
        SettingsError: a package that it needs is missing.
        RunFailed: it cannot be written, or onnxruntime computes something else than torch.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter needs it, and says so at length)
    except ImportError as error:
        raise SettingsError(f"--to {form} needs {error.name}; pip install 'dsdmae[onnx]'") from error
    with files.explained(out, advice):
        out.parent.mkdir(parents=True, exist_ok=True)
    worst = 0.0
    outputs: dict[str, list[int]] = {}
    with files.aside(out, advice) as partial:
        program = torch.onnx.export(
            module,  # type: ignore[arg-type]  # a module, of which the protocol says what counts
            (compared[0][:2],),
            input_names=["images"],
            output_names=module.names,
            dynamic_shapes={"images": free},
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.model.doc_string = f"Made by dsdmae. {doc}"
        program.model.metadata_props.update(metadata)
        program.save(str(partial), external_data=False)
        session = onnxruntime.InferenceSession(partial.read_bytes(), providers=["CPUExecutionProvider"])
        for images in compared:
            with torch.no_grad():
                expected = module(images)
            difference, allowed = _difference(expected, session.run(module.names, {"images": images.numpy()}))
            if not difference <= allowed:
                raise RunFailed(
                    f"onnxruntime differs from torch by {difference:.2g}, more than {allowed:.2g}; nothing was written"
                )
            worst = max(worst, difference)
            outputs = outputs or {n: list(map(int, e.shape[1:])) for n, e in zip(module.names, expected, strict=True)}
    return worst, outputs


class _Outputs(nn.Module):
    """What the ONNX file computes: mean of the patch tokens, the tokens, and the class token where there is one."""

    def __init__(self, encoder: Backbone) -> None:
        super().__init__()
        self.encoder = encoder
        self.names = ["features", "tokens", *(["class_token"] if encoder.has_class_token else [])]

    def forward(self, images: Float[Tensor, "b c h w"]) -> tuple[Tensor, ...]:
        tokens, class_token = self.encoder.forward_tokens(images)
        pooled = tokens.mean(dim=1)
        return (pooled, tokens) if class_token is None else (pooled, tokens, class_token)


class _Answers(nn.Module):
    """The same for a fine-tuned network: one logit a class, of the image or of each pixel."""

    def __init__(self, tuned: Tuned) -> None:
        super().__init__()
        self.network = tuned.network
        self.names = ["logits"]

    def forward(self, images: Float[Tensor, "b c h w"]) -> tuple[Tensor, ...]:
        return (self.network(images),)


def cut_photographs(size: Size, channels: int = 3) -> Float[Tensor, "n {channels} h w"]:
    """Cuts of scikit-learn's two photographs, in [-1, 1]: real images that every installation has.

    Args:
        channels: red, green and blue of a cut, and if there are more, those of the next ones.
    """
    from sklearn.datasets import load_sample_images

    cuts = []
    draw = np.random.default_rng(0)
    for index in range(_PHOTOGRAPHS):
        photograph = load_sample_images().images[index % 2]
        side = int(draw.integers(96, 400))
        top, left = (int(draw.integers(0, length - side)) for length in photograph.shape[:2])
        cuts.append(to_square(photograph[top : top + side, left : left + side], size))
    pixels = torch.from_numpy(np.stack(cuts)).permute(0, 3, 1, 2)
    pixels = torch.cat([pixels.roll(-shift, 0) for shift in range(-(-channels // 3))], dim=1)[:, :channels]
    return (pixels.float() / 127.5 - 1).contiguous()


def _difference(expected: tuple[Tensor, ...], got: list[np.ndarray]) -> tuple[float, float]:
    """(largest difference, what is allowed): relative to the largest feature where that exceeds 1."""
    worst = max(float(np.abs(e.numpy() - g).max()) for e, g in zip(expected, got, strict=True))
    return worst, TOLERANCE * max(1.0, max(float(e.abs().max()) for e in expected))
