"""A denoiser: the part of a trained method that restores images, as a file of its own and ready for work.

A run's checkpoint holds everything that training needs. A denoiser file holds only the networks that
`Method.denoise` calls (for DSdMAE encoder and decoder, no teacher, no regressor), with the settings that build them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import as_file
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsdmae_cli import checkpoint
from dsdmae_cli.artifacts.anonymous import anonymous
from dsdmae_cli.artifacts.elsewhere import check_values
from dsdmae_cli.artifacts.header import read_metadata, written_settings
from dsdmae_cli.artifacts.packaged import PHOTOGRAPHS, Packaged
from dsdmae_cli.artifacts.trained_method import open_method, settings_of
from dsdmae_cli.config.describe import tables
from dsdmae_cli.errors import CheckpointError, SettingsError
from dsdmae_cli.methods.base import Method
from dsdmae_cli.report import number_of
from dsdmae_cli.runs.build import build_method
from dsdmae_cli.settings.resolved import ResolvedSettings
from dsdmae_cli.settings.size import height_width, size_words

_OTHERS = "give --run DIR or --weights FILE"


@dataclass(frozen=True)
class Denoiser:
    """A network that takes noise away, on the CPU, in eval mode.

    Attributes:
        network: called by its `denoise`: [b, 3, h, w] in [-1, 1] to the same.
        settings: of its training, every "auto" resolved.
        sha256: of the tensors that are used, by name, as stored; names the weights in records.
        origin: where they came from, for messages.
    """

    network: Method
    settings: ResolvedSettings
    sha256: str
    origin: str

    @property
    def image_size(self) -> int:
        """Side of the squares that the network takes; where it takes any size, about as many as it learned from."""
        return max(height_width(self.network.encoder().image_size))  # _ready refused rectangles where they matter

    @property
    def size_multiple(self) -> int | None:
        """It takes any height and width that are multiples of this; None = squares of image_size alone."""
        return self.network.denoise_multiple

    @property
    def patch(self) -> tuple[int, int]:
        """(height, width) of a patch, in pixels."""
        return self.network.encoder().patch_shape

    def __call__(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        restored = self.network.denoise(images)
        assert restored is not None  # _parts looked
        return restored.float()


def save_denoiser(
    method: Method,
    settings: ResolvedSettings,
    path: Path,
    extra_metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float16,
) -> str:
    """Write what `method.denoise` needs, whole or not at all; the name of the weights in it, as Denoiser.sha256.

    A path in the settings (the images it learned from) keeps its last part only: weights travel, and so should no
    directory of the machine that trained them.

    Args:
        settings: of the training, every "auto" resolved.
        extra_metadata: more to say beside "settings".
        dtype: of the stored weights; half precision costs about 0.001 dB.

    Raises:
        SettingsError: the method has no denoiser.
        RunFailed: the file cannot be written.
    """
    state = {name: tensor.to(dtype) for name, tensor in _parts(method, settings.method.name).state_dict().items()}
    metadata = {"settings": json.dumps(anonymous(tables(settings))), **(extra_metadata or {})}
    checkpoint.save_weights(path, state, metadata)
    return checkpoint.weights_sha256(state)


def load_denoiser(run: Path | None = None, weights: Path | None = None, packaged: Packaged = PHOTOGRAPHS) -> Denoiser:
    """The denoiser of a run (its newest whole checkpoint), of a file, or by default one that is packaged.

    Raises:
        CheckpointError: there is none, it is damaged, or does not fit its own settings.
        SettingsError: the method restores no pixels.
    """
    if run is not None:
        return _from_run(run)
    if weights is not None:
        return _from_file(weights, str(weights))
    with as_file(packaged.find()) as path:
        found = _from_file(path, packaged.origin)
    if found.sha256 != packaged.sha256:
        raise CheckpointError(
            f"{packaged.origin} is damaged: its tensors are not those that were packaged; install dsdmae again"
        )
    return found


def _from_run(folder: Path) -> Denoiser:
    trained = open_method(folder)
    parts = _parts(trained.method, trained.settings.method.name, folder)
    return _ready(trained.method, trained.settings, parts.state_dict(), str(folder))


def _from_file(path: Path, origin: str) -> Denoiser:
    values = written_settings(read_metadata(path), origin)
    if values is None:
        raise CheckpointError(
            f"{origin} does not say which network it belongs to; it is no denoiser of dsdmae, {_OTHERS}"
        )
    settings = settings_of(values, origin)
    method = build_method(settings)
    state = checkpoint.load_weights(path)
    parts = _parts(method, settings.method.name)
    if "patch_embed.proj.weight" in state or not any(name in parts.state_dict() for name in state):
        raise CheckpointError(
            f"{origin} holds an encoder alone, without the decoder that restores pixels; give the run with --run DIR"
        )
    checkpoint.load_into(parts, state, origin)
    return _ready(method, settings, state, origin)


def _ready(method: Method, settings: ResolvedSettings, state: Mapping[str, Tensor], origin: str) -> Denoiser:
    if (channels := method.encoder().in_chans) != 3:
        raise SettingsError(
            f"{origin} was trained on images of {number_of(channels, 'channel')}, and only networks for"
            f" RGB denoise pictures; {_OTHERS}"
        )
    size = method.encoder().image_size
    if method.denoise_multiple is None and not isinstance(size, int):
        raise SettingsError(
            f"{origin} was trained on images of {size_words(size)} px, and pictures are denoised in squares; train"
            " on squares, or a unet, which takes any size"
        )
    check_values(dict(state), method.state_dict(), Path(origin))
    method.eval().requires_grad_(False)
    return Denoiser(method, settings, checkpoint.weights_sha256(state), origin)


def _parts(method: Method, name: str, run: Path | None = None) -> nn.ModuleDict:
    """The direct children of a method that `denoise` calls, under their own names: found by calling it once.

    Raises:
        SettingsError: it cannot denoise; the message says why, and what shows what a run can restore.
    """
    called: set[nn.Module] = set()
    hooks = [
        module.register_forward_hook(lambda part, given, out: called.add(part))
        for module in method.modules()
        if module is not method
    ]
    sides = height_width(method.denoise_multiple or method.encoder().image_size)
    with torch.inference_mode():
        restored = method.eval().denoise(torch.zeros(1, method.encoder().in_chans, *sides))
    for hook in hooks:
        hook.remove()
    if restored is None:
        able = run is not None and type(method).restore is not Method.restore and method.no_denoise != method.no_restore
        instead = f"; `dsdmae restore {run} PICTURE` shows what it restores" if able else ""
        raise SettingsError(f"method {name!r} cannot denoise: {method.no_denoise}{instead}; for a denoiser {_OTHERS}")
    return nn.ModuleDict(
        {child: part for child, part in method.named_children() if not called.isdisjoint(part.modules())}
    )
