"""Things that several recipes build from settings."""

from __future__ import annotations

import torch

from dsdmae_cli import distributed, plugins
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.data.source import derive_seed
from dsdmae_cli.engine import Runtime, choose_device, choose_micro_batch, choose_precision
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.methods.base import Method
from dsdmae_cli.settings.models import Settings


def build_method(settings: Settings) -> Method:
    """The method around its backbone, on the CPU, with first weights drawn from the seed.

    Raises:
        SettingsError: the backbone or method refuses its settings.
        PluginError: a plugin cannot be imported.
    """
    torch.manual_seed(derive_seed(settings.train.seed, "weights"))
    backbone_spec = plugins.find("backbone", settings.backbone.name).spec
    method_spec = plugins.find("method", settings.method.name).spec
    assert not isinstance(settings.data.image_size, str)
    backbone: Backbone = plugins.load(backbone_spec.build)(settings.backbone, settings.data.image_size)
    method: Method = plugins.load(method_spec.build)(settings.method, backbone)
    return method


def choose_runtime(settings: Settings, method: Method) -> Runtime:
    """Device, precision, compilation and micro-batch of this process."""
    device = choose_device(settings.train.device)
    encoder = method.encoder()
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
        micro_batch=choose_micro_batch(
            settings.train.micro_batch,
            settings.train.batch_size // world,
            encoder.num_tokens,
            encoder.width,
            device,
        ),
    )
