"""Weights from elsewhere: the file read, its wrapping taken off (layouts.py), its names made timm's (naming.py), and
the backbone found that they belong to. foreign.py builds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isclose
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from dsdmae_cli import checkpoint, plugins
from dsdmae_cli.artifacts.header import image_size, read_metadata, written_backbone
from dsdmae_cli.artifacts.layouts import counted, unwrapped, without_prefix
from dsdmae_cli.artifacts.naming import under_timm_names
from dsdmae_cli.artifacts.pickled import read_pickled
from dsdmae_cli.config.describe import plain
from dsdmae_cli.config.schema import Values
from dsdmae_cli.errors import CheckpointError
from dsdmae_cli.files import parsed_json, read_within
from dsdmae_cli.plugins import BackboneSpec, Plugin, Recognized
from dsdmae_cli.settings.models import BackboneSettings

# What a checkpoint has beside its backbone: what was trained on top of it, and what is computed anew.
_BESIDE = (
    "attn_pool", "classifier", "cls_pt_layers", "decoder", "dist_head", "dino_head", "fc", "head", "ibot_head",
    "lm_head", "mask_token", "masked_embed", "pooler", "pre_logits", "prediction_head", "predictor", "proj",
    "projection_head", "projector", "rope_embed",
)  # fmt: skip
# Beside the weights of Hugging Face's models, and of timm's: how their pixels are normalised, of which their names say
# nothing.
_PREPROCESSOR, _CONFIG = "preprocessor_config.json", "config.json"
_ON_THE_HUB = ("model.safetensors", "pytorch_model.bin")
# Not timm's constants: to load timm would double the denoiser's start. A test holds them against it.
_NORMALIZATIONS = {"imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "none": ((0.5,) * 3, (0.5,) * 3)}
_COMPUTED = ("relative_position_index", "attn_mask", "bias_mask")


@dataclass(frozen=True)
class Pixels:
    """How a network wants its pixels, from [0, 1], by channel; and the file that says so."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    file: str

    def are(self, mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
        """Whether these are the same."""
        own, others = (*self.mean, *self.std), (*mean, *std)
        return len(own) == len(others) and all(isclose(a, b, abs_tol=1e-4) for a, b in zip(own, others, strict=True))

    def cannot_be_said(self) -> str:
        """In words."""
        return (
            f"{self.file} beside it wants mean {self.mean} and std {self.std}, which backbone.normalization cannot say"
        )


@dataclass(frozen=True)
class Elsewhere:
    """Weights that somebody else's code wrote.

    Attributes:
        path: of the file.
        state: under timm's names, as far as they are known; heads and decoders among them.
        origin: whose names they had; "" for timm's own.
        notes: which part of the file they are.
        pixels: how a file beside them says that pixels are normalised; None where none says so.
        written: the backbone that this program has opened them as before it wrote the file; None = it did not.
    """

    path: Path
    state: dict[str, Tensor]
    origin: str
    notes: tuple[str, ...]
    pixels: Pixels | None = None
    written: Recognized | None = None

    def recognized(self, name: str | None = None) -> Recognized | None:
        """The backbone whose weights they are, as their file says or by their shapes; None where no plugin knows them.

        Args:
            name: of the only backbone that it may be; None = any.
        """
        if self.written is not None and name in (None, self.written.settings.name):
            return self.written
        shapes = {key: tuple(tensor.shape) for key, tensor in self.state.items()}
        for plugin in _backbones(name):
            if plugin.spec.recognize is not None:
                with _contradictions(self.path):
                    found: Recognized | None = plugins.load(plugin.spec.recognize)(shapes, self.origin)
                if found is not None and (name is None or found.settings.name == name):
                    return self._with_pixels(found)
        return None

    def _with_pixels(self, found: Recognized) -> Recognized:
        """With the normalisation that stands beside the weights in place of the one of most networks of these names."""
        taken, pixels = getattr(found.settings, "normalization", None), self.pixels
        if pixels is None or taken is None:
            return found
        said = next((word for word, known in _NORMALIZATIONS.items() if pixels.are(*known)), None)
        # Another library's own are known when the network is built (foreign.py); [-1, 1] all backbones can be told.
        if said == taken or (taken not in _NORMALIZATIONS and said != "none"):
            return found
        if said is None:
            return replace(found, words=f"{found.words}; {pixels.cannot_be_said()}")
        settings = found.settings.model_copy(update={"normalization": said})
        return replace(found, settings=settings, words=f"{found.words}; but normalization = {said} by {pixels.file}")

    def other_pixels(self, settings: BackboneSettings, mean: tuple[float, ...], std: tuple[float, ...]) -> list[str]:
        """What to say of a network that has another library's own pixels, where a file beside its weights says others.

        Args:
            mean, std: of the network.
        """
        taken, pixels = getattr(settings, "normalization", None), self.pixels
        if pixels is None or taken in (None, "auto", *_NORMALIZATIONS) or len(mean) != len(pixels.mean):
            return []
        return [] if pixels.are(mean, std) else [pixels.cannot_be_said()]

    def first_names(self) -> str:
        """A few names as the file has them, for a message."""
        return ", ".join(list(self.state)[:3])


def read_elsewhere(path: Path) -> Elsewhere:
    """Read somebody's weights.

    Raises:
        CheckpointError: the file cannot be read, or holds no weights by name.
    """
    content: Any = checkpoint.load_weights(path) if path.suffix.lower() == ".safetensors" else read_pickled(path)
    state, notes = unwrapped(content)
    if state is None:
        kind = f"a {type(content).__name__}" if not isinstance(content, dict) else _keys(content)
        raise CheckpointError(f"{path} holds no weights by name but {kind}; give a file with a network's state dict")
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            kind = "meta" if tensor.is_meta else "quantised" if tensor.is_quantized else "sparse"
            raise CheckpointError(f"{path} has {name} as a {kind} tensor; give one with all values, as floating point")
    state, beside, cut = without_prefix(state)
    with _contradictions(path):
        named, origin = under_timm_names(state, beside)
    whose = [f"named as in {origin}"] if origin else []
    pixels = _pixels_beside(path, _PREPROCESSOR if origin.startswith("Hugging Face") else _CONFIG)
    return Elsewhere(path, named, origin, (*notes, *cut, *whose), pixels, _written(path))


@contextmanager
def _contradictions(path: Path) -> Iterator[None]:
    """Shapes are read as one kind of network has them, by plugins too; what does not go together fails in many ways."""
    try:
        yield
    except (ArithmeticError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is damaged: shapes of its weights contradict each other ({why})") from error


def _written(path: Path) -> Recognized | None:
    metadata = read_metadata(path) if path.suffix.lower() == ".safetensors" else {}
    table = written_backbone(metadata, str(path))
    if table is None:
        return None
    try:
        kind: type[BackboneSettings] = plugins.find("backbone", table["name"]).spec.settings
        settings = kind.model_validate(table)
    except ValidationError as error:
        raise CheckpointError(f"the backbone in {path} is damaged: {error.errors()[0]['msg'].lower()}") from error
    return Recognized(settings=settings, image_size=image_size(path, metadata, 0) or None, words="as the file says")


def _pixels_beside(path: Path, file: str) -> Pixels | None:
    if file == _CONFIG and path.name not in _ON_THE_HUB:  # a folder of many files
        return None
    try:
        said = parsed_json(read_within(path.parent / file))
        keys = ("image_mean", "image_std")
        if file == _CONFIG:  # timm's, of today and of before
            said, keys = said.get("pretrained_cfg", said), ("mean", "std")
        mean, std = (tuple(float(value) for value in said[key]) for key in keys)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # not there, or of a model that has another way
    return Pixels(mean, std, file) if said.get("do_normalize", True) else None


def recognized_tables(path: Path) -> Values:
    """[backbone] and [data] that somebody's weights say; empty where no plugin knows them.

    Raises:
        CheckpointError: as read_elsewhere.
    """
    found = read_elsewhere(path).recognized()
    if found is None:
        return {}
    # What shapes do not tell is left to presets.
    backbone = {key: plain(getattr(found.settings, key)) for key in sorted(found.settings.model_fields_set)}
    data = {"image_size": found.image_size, "channels": backbone.get("in_chans")}
    data = {key: value for key, value in data.items() if value is not None}
    return {"backbone": backbone, **({"data": data} if data else {})}


def left_out(own: Iterable[str], state: dict[str, Tensor], classifier: tuple[str, ...] = ()) -> str:
    """Take what is no part of the backbone out of `state`: heads, decoders, mask tokens, tables that are computed.

    Args:
        own: names of the backbone's weights.
        classifier: what its architecture calls its own head.

    Returns:
        What was taken out, in words; empty for nothing.
    """
    mine = set(own)
    others = [key for key in state if key not in mine]
    taken = [
        key
        for key in others
        if key.split(".")[0].startswith(_BESIDE)
        or key.rsplit(".", 1)[-1] in _COMPUTED
        or any(key.startswith(f"{name}.") for name in classifier)
    ]
    for key in taken:
        del state[key]
    return counted(taken)


def check_values(state: Mapping[str, Tensor], own: Mapping[str, Tensor], origin: Path | str) -> None:
    """See that weights are numbers that a network can begin with.

    Raises:
        CheckpointError: they are of another kind than the network's (integers, complex numbers), or not finite.
    """
    for name, tensor in state.items():
        if name in own and own[name].is_floating_point() != tensor.is_floating_point():
            kind, mine = (str(one.dtype).removeprefix("torch.") for one in (tensor, own[name]))
            quantised = own[name].is_floating_point() and not tensor.is_complex()
            why = "quantised weights; give those it was made from" if quantised else f"here it is {mine}; give others"
            raise CheckpointError(f"{origin} has {name} as {kind}: {why}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{origin} has values in {name} that are not finite; its training had diverged")


def _backbones(name: str | None) -> list[Plugin[BackboneSpec]]:
    if name is not None:
        return [plugins.find("backbone", name)]
    return [plugin for plugin in plugins.discover("backbone") if isinstance(plugin, Plugin)]


def _keys(content: dict[Any, Any]) -> str:
    return "an empty table" if not content else f"a table of {', '.join(str(key) for key in list(content)[:6])}"
