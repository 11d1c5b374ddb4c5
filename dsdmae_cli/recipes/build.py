"""Things that several recipes build from settings."""

from __future__ import annotations

from typing import Any

import torch

from dsdmae_cli import distributed, plugins
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.data.source import derive_seed
from dsdmae_cli.engine import Runtime, choose_device, choose_micro_batch, choose_precision
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.methods.base import Method
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


def build_method(settings: Settings) -> Method:
    """The method around its backbone, on the CPU, with first weights drawn from the seed.

    Raises:
        SettingsError: the backbone or method refuses its settings.
        PluginError: a plugin cannot be imported.
    """
    method_spec = plugins.find("method", settings.method.name).spec
    assert not isinstance(settings.data.image_size, str)
    # The method's own parts are drawn from where the backbone left off.
    backbone = build_backbone(settings.backbone, settings.data.image_size, settings.train.seed)
    method: Method = plugins.load(method_spec.build)(settings.method, backbone)
    return method


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
