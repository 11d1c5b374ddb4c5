"""A denoiser as one ONNX file, and what such a file says of itself. Writing needs torch, the rest does not."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsdmae_cli.errors import CheckpointError
from dsdmae_cli.files import parsed_json, typed

if TYPE_CHECKING:
    from dsdmae_cli.artifacts.denoiser import Denoiser

# The one key of the file's metadata, its input and its output.
KEY, IMAGES, RESTORED = "dsdmae_denoiser", "images", "restored"
# Raised when what is written changes, so that no file made before is taken for one made now.
FORMAT = 1
MOST_OF_ONNX = 2**31  # bytes of a file, as protobuf has them


@dataclass(frozen=True)
class About:
    """What the file says of the network.

    Attributes:
        image_size: side of the images it was trained on, in pixels, and of those it takes where size_multiple is None.
        size_multiple: it takes any height and width that are multiples of this.
        patch: (height, width) of a patch, in pixels.
        sha256: of the weights it was made from, as artifacts/denoiser.py computes it.
        settings: of its training, without the directories of the machine; tables as JSON.
    """

    image_size: int
    size_multiple: int | None
    patch: tuple[int, int]
    sha256: str
    settings: dict[str, Any]

    def written(self) -> dict[str, str]:
        """As metadata."""
        return {KEY: json.dumps({"format": FORMAT, **asdict(self)})}


def read_about(metadata: dict[str, str], origin: str) -> About:
    """The inverse of About.written.

    Raises:
        CheckpointError: it is no denoiser of this program, is damaged, or was made by a newer program.
    """
    if KEY not in metadata:
        raise CheckpointError(
            f"{origin} is an ONNX file, but no denoiser of dsdmae; make one with"
            " `dsdmae export RUN --to denoiser-onnx --out FILE.onnx`"
        )
    try:
        found = parsed_json(metadata[KEY])
        if found.pop("format") != FORMAT:
            raise CheckpointError(f"{origin} has a format this program does not know; update dsdmae")
        height, width = found.pop("patch")
        about = About(**found, patch=(height, width))
        numbers = (about.image_size, *about.patch, *(() if about.size_multiple is None else (about.size_multiple,)))
        if not all(isinstance(n, int) and n > 0 for n in numbers):
            raise ValueError(f"{numbers} are no sizes")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"what {origin} says of itself is damaged: {error}; export it again") from error
    return about


def write_onnx_denoiser(denoiser: Denoiser, out: Path, advice: str) -> dict[str, Any]:
    """Write a denoiser as ONNX; what was written and how it is used.

    The batch is free, and height and width where the network allows (`Method.denoise_multiple`).

    Args:
        advice: what to do where it cannot be written.

    Raises:
        SettingsError: a package that it needs is missing.
        RunFailed: it cannot be written, or onnxruntime computes something else than torch.
    """
    import torch
    from torch import nn

    from dsdmae_cli.artifacts.anonymous import anonymous
    from dsdmae_cli.artifacts.onnx import cut_photographs, write_checked
    from dsdmae_cli.config.describe import tables

    class Restores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.names = denoiser.network, [RESTORED]

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (denoiser(images),)

    about = About(
        denoiser.image_size, denoiser.size_multiple, denoiser.patch, denoiser.sha256,
        anonymous(tables(denoiser.settings)),
    )  # fmt: skip
    side, multiple = about.image_size, about.size_multiple
    photographs = cut_photographs(side)
    compared, free = [photographs], {0: torch.export.Dim("batch")}
    takes = f"float32 [batch, 3, {side}, {side}], RGB in [-1, 1]"
    if multiple is not None:
        rows, columns = torch.export.Dim("rows", min=1), torch.export.Dim("columns", min=1)
        free |= {2: multiple * rows, 3: multiple * columns}
        takes = f"float32 [batch, 3, height, width], both multiples of {multiple}, RGB in [-1, 1]"
        # Another shape, and a single image, than those it is traced with.
        compared.append(cut_photographs(2 * side)[:1, :, : side + multiple, :])
    difference, outputs = write_checked(
        Restores().eval(),
        compared,
        out,
        advice,
        free=free,
        doc=f"{IMAGES}: {takes}. {RESTORED}: the same without noise.",
        metadata=about.written(),
        form="denoiser-onnx",
    )
    return {
        "files": [out.name],
        "input": f"{IMAGES}: {takes}",
        "outputs": outputs if multiple is None else {RESTORED: [3, "height", "width"]},
        "max_difference": difference,
        "compared_on": f"{sum(map(len, compared))} photographs",
        "load_with": f"dsdmae denoise --weights {typed(out)} PICTURE",
    }
