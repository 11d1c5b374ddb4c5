"""Fine-tuned networks as files: what `dsdmae finetune` writes and `dsdmae export` reads, under timm's parameter names.

Opening one starts in trained.py, which reads the backbone.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from dsdmae_cli import checkpoint
from dsdmae_cli.artifacts.format import architecture
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.data.masks import VOID
from dsdmae_cli.errors import CheckpointError
from dsdmae_cli.files import RESUME, parsed_json
from dsdmae_cli.settings.size import height_width
from dsdmae_cli.tasks.classifier import Network
from dsdmae_cli.tasks.segmenter import PixelNetwork

# How timm can be told to pool as we do. It is tried in this order, since what an architecture understands is its own.
_POOLING: dict[str, tuple[dict[str, Any], ...]] = {
    "mean": ({}, {"global_pool": "avg"}, {"global_pool": "avg", "fc_norm": False}),
    "cls": ({"global_pool": "token"}, {}),
}
# Largest difference of logits that is rounding: of what they owe to the image, and of all with the biases.
_SAME, _ROUNDING = 1e-4, 1e-6


@dataclass(frozen=True)
class Tuned:
    """What a fine-tuned network has beyond its backbone.

    Attributes:
        network: backbone and head, on the CPU: of images, or of pixels.
        classes: names, by index of the logits.
        settings: all tables of its fine-tuning, resolved.
        sha256: of its weights before any resampling of positions: `classifier_sha256` of the run's result.
        path: the file.
        result: of the run, where it lies beside the file and judged these weights; else empty.
        values: of the classes in files of masks, of a network that names pixels; else empty.
    """

    network: Network | PixelNetwork
    classes: tuple[str, ...]
    settings: dict[str, dict[str, Any]]
    sha256: str
    path: Path
    result: dict[str, Any]
    values: tuple[int, ...] = ()


def read_head(
    encoder: Backbone,
    head: dict[str, Tensor],
    settings: dict[str, dict[str, Any]],
    metadata: dict[str, str],
    path: Path,
    beside: dict[str, Any],
) -> Tuned:
    """A fine-tuned network from its backbone, loaded before, and what else is in its file.

    Args:
        head: the weights that are no part of the backbone.
        settings: tables of its fine-tuning, resolved.
        beside: result.json of the file's directory.

    Raises:
        CheckpointError: the head does not fit the backbone or the names of the classes.
    """
    try:
        classes = tuple(str(name) for name in parsed_json(metadata["classes"]))
        values = tuple(int(value) for value in parsed_json(metadata.get("values", "[]")))
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"the names of the classes in {path} are damaged: {error!r}") from error
    finetune = settings["finetune"]
    network: Network | PixelNetwork
    if finetune["task"] == "segment":
        if len(values) != len(classes) or not all(0 <= value < VOID + 1 for value in values):
            raise CheckpointError(f"the values of the classes in {path} are damaged: {list(values)[:8]}")
        network = PixelNetwork(encoder, len(classes), finetune["head_std"], finetune.get("blocks", "last"))
    else:
        network = Network(encoder, len(classes), finetune["pool"], finetune["head_std"])
    name = _head_name(encoder)
    own = {f"{name}.{key}": tensor for key, tensor in network.head.state_dict().items()}
    checkpoint.check_fit(own, head, str(path))
    network.head.load_state_dict({key.rpartition(".")[2]: tensor for key, tensor in head.items()})
    sha256 = checkpoint.weights_sha256(network.state_dict())
    result = beside if beside.get("classifier_sha256") == sha256 else {}
    return Tuned(network, classes, settings, sha256, path, result, values)


def save_classifier(
    network: Network | PixelNetwork,
    settings: dict[str, dict[str, Any]],
    classes: tuple[str, ...],
    path: Path,
    advice: str = RESUME,
    values: tuple[int, ...] | None = None,
) -> None:
    """Write a fine-tuned network under timm's parameter names, with its classes and settings.

    Args:
        settings: tables of its fine-tuning, resolved.
        advice: what to do where it cannot be written.
        values: of the classes in files of masks, of a network that names pixels.

    Raises:
        RunFailed: it cannot be written.
    """
    encoder = network.backbone
    metadata = {
        **architecture(encoder),
        "timm_kwargs": json.dumps({**encoder.timm_kwargs, "num_classes": len(classes)}),
        "classes": json.dumps(classes),
        **({} if values is None else {"values": json.dumps(values)}),
        "settings": json.dumps(settings),
    }
    checkpoint.save_weights(path, _timm_state(network), metadata, advice)


def _head_name(encoder: Backbone) -> str:
    config = timm.get_pretrained_cfg(encoder.timm_name, allow_unregistered=True) if encoder.timm_name else None
    return config.classifier if config is not None and isinstance(config.classifier, str) else "head"


def _timm_state(network: Network | PixelNetwork) -> dict[str, Tensor]:
    name, head = _head_name(network.backbone), network.head
    return {**network.backbone.timm_state(), f"{name}.weight": head.weight, f"{name}.bias": head.bias}


@torch.no_grad()
def timm_arguments(network: Network | PixelNetwork) -> dict[str, Any] | None:
    """Arguments with which timm's network of this name gives the same answers; None if there are none.

    There are where timm pools as we do: transformers. Most others put a norm between pooling and classifier, and none
    names pixels.
    """
    encoder = network.backbone
    if not encoder.timm_name or isinstance(network, PixelNetwork):
        return None
    was_training, device = network.training, network.head.weight.device
    network.eval().cpu()
    shape = (2, encoder.in_chans, *height_width(encoder.image_size))
    images = torch.linspace(-1, 1, math.prod(shape)).reshape(shape)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (encoder.mean, encoder.std))
    expected, state = network(images), _timm_state(network)
    # A head that has learned little says next to the same of whatever is pooled: what counts is what images change.
    changes = float((expected - network.head.bias).abs().max())
    allowed = _SAME * changes + _ROUNDING * float(expected.abs().max())
    found = None
    for pooling in _POOLING[network.pool]:
        arguments = {**encoder.timm_kwargs, **pooling, "num_classes": len(expected[0])}
        try:
            theirs = timm.create_model(encoder.timm_name, **arguments).eval()
            theirs.load_state_dict(state)
            answers = theirs(((images + 1) / 2 - mean) / std)
        except Exception:  # each of timm's architectures refuses arguments in its own way
            continue
        if float((answers - expected).abs().max()) <= allowed:
            found = arguments
            break
    network.to(device).train(was_training)
    return found


def load_with(network: Network | PixelNetwork, path: Path) -> str | None:
    """The Python expression by which timm loads a file of save_classifier, if its answers to [-1, 1] are then ours."""
    encoder = network.backbone
    arguments = timm_arguments(network) if set(encoder.mean) == set(encoder.std) == {0.5} else None
    if arguments is None:
        return None
    words = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return f"timm.create_model({encoder.timm_name!r}, {words}, checkpoint_path={str(path)!r})"
