"""The work of a step: floating-point operations and memory, counted on meta tensors and not run."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from dsdmae_cli.backbone import Backbone
from dsdmae_cli.data.source import seeded
from dsdmae_cli.methods.base import Method
from dsdmae_cli.methods.recomputing import blocks_of, keep_all
from dsdmae_cli.settings.size import height_width
from dsdmae_cli.sharding import gathered_bytes

# Of a GPU's free memory: the rest is libraries' work space, and what lies in pieces too small to use.
_USABLE = 0.9


def measure_work(method: Method, *, fused_attention: bool = False, recomputed: bool = False) -> tuple[float, int]:
    """(FLOP, bytes kept for the backward pass in float32) of one image's forward and backward, counted not run.

    Args:
        fused_attention: attention keeps no matrix of all tokens by all tokens, as on CUDA.
        recomputed: blocks keep their inputs, and one of them at a time all else (methods/recomputing.py).
    """
    encoder = method.encoder()
    images = method.as_views(torch.zeros(1, encoder.in_chans, *height_width(encoder.image_size)))
    with torch.no_grad():
        corruption = method.corrupt(images, seeded(torch.device("cpu"), 0))
    ghost = _ghost(method)
    # Of a parameter a view is kept, which is not one itself.
    own = {tensor.untyped_storage()._cdata for tensor in (*ghost.parameters(), *ghost.buffers())}
    blocks = blocks_of(ghost) if recomputed else []
    saved: dict[int, int] = {}
    of_block: list[dict[int, int]] = [{} for _ in blocks]
    into = saved

    def remember(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            into[storage._cdata] = storage.nbytes()
        return tensor

    def enter(number: int, given: Any) -> None:
        nonlocal into
        into = saved
        if torch.is_grad_enabled():  # not a teacher's
            for tensor in tree_leaves(given):
                if isinstance(tensor, Tensor):
                    remember(tensor)
            into = of_block[number]

    def leave() -> None:
        nonlocal into
        into = saved

    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda _, given, number=number: enter(number, given))
        block.register_forward_hook(lambda *_: leave())

    attention = _FusedAttention() if fused_attention else nullcontext()
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(remember, lambda tensor: tensor), attention:
        losses = ghost(images.to("meta"), tree_map_only(Tensor, lambda t: t.to("meta"), corruption))
        losses["loss"].backward()
    largest = max((sum(kept.values()) for kept in of_block), default=0)
    return float(counter.get_total_flops()), sum(saved.values()) + largest


M = TypeVar("M", bound=nn.Module)


def _ghost(module: M) -> M:
    """A copy on the meta device; the weights themselves are not copied on the way."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is not None:
                made = torch.empty_like(tensor, device="meta")
                is_parameter = isinstance(tensor, nn.Parameter)
                memo[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if is_parameter else made
    ghost = copy.deepcopy(module, memo).to("meta")
    keep_all(ghost)
    for part in ghost.modules():
        if isinstance(part, nn.SyncBatchNorm):  # which looks for the other processes' GPUs
            part.__class__ = _BatchNorm  # type: ignore[assignment]
    return ghost


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Of any number of dimensions."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


class _FusedAttention(TorchFunctionMode):
    """Attention by the fused kernel, which the meta device would not choose."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        found = torch.ops.aten._scaled_dot_product_flash_attention(*args[:3], scale=(kwargs or {}).get("scale"))
        return found[0]


def state_bytes(method: Method, shards: int = 1) -> int:
    """What weights, gradients and AdamW's moments take, in float32; of parts that are not trained the weights alone.

    Args:
        shards: processes that divide them, and what a step gathers is added (sharding.py); 1 = each has all.
    """
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    everything = 16 * trained + 4 * sum(p.numel() for p in method.parameters() if not p.requires_grad)
    return everything if shards == 1 else -(-everything // shards) + gathered_bytes(method)


def step_bytes(
    method: Method, precision: str, recomputed: bool = False, spare: float = 0.25, shards: int = 1
) -> tuple[float, float]:
    """(Bytes of a step whatever its images, bytes for each image) that are reckoned with on a GPU, uncompiled: weights,
    gradients and moments, the weights' casts under autocast; and what is kept for the backward pass.

    Args:
        recomputed, spare, shards: as in most_images.
    """
    _, kept = measure_work(method, fused_attention=True, recomputed=recomputed)
    halved = 1.0 if precision == "fp32" else 0.5
    casts = 0 if precision == "fp32" else 2 * sum(p.numel() for p in method.parameters())  # weights, for a pass
    return state_bytes(method, shards) + casts, (1 + spare) * halved * kept


def most_images(
    method: Method, precision: str, free: int, recomputed: bool = False, spare: float = 0.25, shards: int = 1
) -> int:
    """How many images a forward and backward pass may hold at once on a GPU with `free` bytes to give; may be 0.

    Args:
        recomputed: as in measure_work.
        shards: as in state_bytes.
        spare: for what comes and goes, as a share of what is kept for the backward pass. The latter is an estimate
            too: a compiler keeps less.
    """
    always, per_image = step_bytes(method, precision, recomputed, spare, shards)
    return max(0, int((_USABLE * free - always) / per_image))


def encoder_flops(encoder: Backbone) -> float:
    """FLOP of one image's forward pass, counted not run."""
    ghost = _ghost(encoder)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ghost(torch.zeros(1, encoder.in_chans, *height_width(encoder.image_size), device="meta"))
    return float(counter.get_total_flops())
