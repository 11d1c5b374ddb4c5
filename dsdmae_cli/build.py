"""Things that several recipes build from settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dsdmae_cli import distributed, plugins
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.config.load import resolve
from dsdmae_cli.data.source import derive_seed
from dsdmae_cli.engine import Runtime, choose_device, choose_micro_batch, choose_precision
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.methods.base import Method
from dsdmae_cli.methods.tokens import ImageTokenizer
from dsdmae_cli.runs.tokenizer import needs_tokenizer, tokenizer_settings
from dsdmae_cli.settings.models import BackboneSettings, LoopSettings, Settings


def build_backbone(settings: BackboneSettings, image_size: int, seed: int) -> Backbone:
    """A backbone of resolved settings, on the CPU, with first weights drawn from the seed.

    Raises:
        SettingsError: it refuses its settings or the images' size.
        PluginError: its plugin cannot be imported, or published weights cannot be fetched.
    """
    spec = plugins.find("backbone", settings.name).spec
    torch.manual_seed(derive_seed(seed, "weights"))
    backbone: Backbone = plugins.load(spec.build)(settings, image_size)
    return backbone


def build_method(settings: Settings, words: Path | None = None) -> Method:
    """The method around its backbone, on the CPU, with first weights drawn from the seed.

    A tokenizer inside is untrained; a run that goes by it gives it its weights (recipes/pretrain.py).

    Args:
        settings: resolved.
        words: the copy of its tokenizer's settings that a run keeps, if there is one.

    Raises:
        SettingsError: the backbone or method refuses its settings.
        PluginError: a plugin cannot be imported.
    """
    method_spec = plugins.find("method", settings.method.name).spec
    assert not isinstance(settings.data.image_size, str)
    tokenizer = (build_tokenizer(settings, words),) if needs_tokenizer(settings) else ()
    # The method's own parts are drawn from where the backbone left off.
    backbone = build_backbone(settings.backbone, settings.data.image_size, settings.train.seed)
    for net in (part.encoder() for part in tokenizer):
        if (net.grid, net.image_size) != (backbone.grid, backbone.image_size):
            raise SettingsError(
                f"the tokenizer makes {_tokens(net)}, and the backbone {_tokens(backbone)}; choose"
                " backbone.patch_size and data.image_size as they are there, or another method.tokenizer"
            )
    method: Method = plugins.load(method_spec.build)(settings.method, backbone, *tokenizer)
    return method


def build_tokenizer(settings: Settings, kept: Path | None = None) -> ImageTokenizer:
    """The tokenizer of a run whose method needs one, untrained.

    Raises:
        SettingsError: what method.tokenizer names makes no visual words.
    """
    loaded = tokenizer_settings(settings, kept=kept)
    own = resolve(loaded.settings)
    own = own.model_copy(update={"backbone": own.backbone.without_weights()})
    # A method that needs a tokenizer is none, and may name itself.
    tokenizer = None if needs_tokenizer(own) else build_method(own)
    if not isinstance(tokenizer, ImageTokenizer):
        raise SettingsError(
            f"method.tokenizer is a run of {loaded.settings.method.name}, which makes no visual words;"
            " make one with: dsdmae tokenizer --out DIR"
        )
    return tokenizer


def _tokens(net: Backbone) -> str:
    return f"{net.grid[0]}x{net.grid[1]} tokens of {net.image_size} px"


def _micro_batch(train: LoopSettings, method: Method, local_batch: int, device: torch.device) -> int:
    if not method.whole_batch:
        encoder = method.encoder()
        return choose_micro_batch(train.micro_batch, local_batch, encoder.num_tokens, encoder.width, device)
    if not isinstance(train.micro_batch, str) and train.micro_batch < local_batch:
        raise SettingsError(
            f"train.micro_batch = {train.micro_batch} would cut the batch of {local_batch} whose images this method"
            " compares with each other; leave it at auto, or lower --batch-size"
        )
    return local_batch


def choose_runtime(settings: Any, method: Method) -> Runtime:
    """Device, precision, compilation and micro-batch of this process."""
    device = choose_device(settings.train.device)
    world = distributed.world_size()
    if settings.train.batch_size % world:
        raise SettingsError(
            f"train.batch_size = {settings.train.batch_size} cannot be shared evenly by {world} processes;"
            f" use a multiple of {world}"
        )
    return Runtime(
        device=device,
        precision=choose_precision(settings.train.precision, device),
        compile=device.type == "cuda" if settings.train.compile == "auto" else settings.train.compile,
        micro_batch=_micro_batch(settings.train, method, settings.train.batch_size // world, device),
    )
