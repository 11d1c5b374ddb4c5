"""The work of a step: floating-point operations and memory, counted on meta tensors and not run."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from dsdmae_cli.backbone import Backbone
from dsdmae_cli.data.source import seeded
from dsdmae_cli.methods.base import Method
from dsdmae_cli.settings.size import height_width


def measure_work(method: Method) -> tuple[float, int]:
    """(FLOP, bytes kept for the backward pass in float32) of one image's forward and backward, counted not run."""
    encoder = method.encoder()
    images = method.as_views(torch.zeros(1, encoder.in_chans, *height_width(encoder.image_size)))
    with torch.no_grad():
        corruption = method.corrupt(images, seeded(torch.device("cpu"), 0))
    ghost = copy.deepcopy(method).to("meta")
    saved: dict[int, int] = {}

    def remember(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter):
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(remember, lambda tensor: tensor):
        losses = ghost(images.to("meta"), tree_map_only(Tensor, lambda t: t.to("meta"), corruption))
        losses["loss"].backward()
    return float(counter.get_total_flops()), sum(saved.values())


def encoder_flops(encoder: Backbone) -> float:
    """FLOP of one image's forward pass, counted not run."""
    ghost = copy.deepcopy(encoder).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ghost(torch.zeros(1, encoder.in_chans, *height_width(encoder.image_size), device="meta"))
    return float(counter.get_total_flops())
