"""Weights, gradients and moments divided among the processes, for what does not fit whole into each of them (FSDP2,
Zhao et al. 2023, arXiv:2304.11277; torch's fully_shard).

Every process keeps a slice of each parameter, and of its gradient and moments. The blocks of networks, heads and
teachers are the units: a block is gathered for its forward and again for its backward pass, and its gradient is
averaged and divided at once; what lies outside the blocks stays gathered from the one to the other. Slices are float32,
whatever autocast makes of a gathered weight. Who looks at the network between steps, or writes it down, has it whole
(`Sharded.gathered`).

Tensors know themselves whether they are slices, so that the functions here do for plain ones too, and load nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from dsdmae_cli import distributed
from dsdmae_cli.errors import RunFailed
from dsdmae_cli.methods.recomputing import blocks_of

_OUTSIDE = -1  # the unit of what is in no block
# What fully_shard changes of a module, beside what it adds.
_CHANGED = (
    "forward", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
)  # fmt: skip


def _units(method: nn.Module) -> Iterator[tuple[int, str, nn.Parameter]]:
    """(number of the innermost block, name, parameter), a parameter once for each name it has."""
    number_of = {id(block): number for number, block in enumerate(blocks_of(method))}
    within: dict[str, int] = {"": _OUTSIDE}
    for prefix, part in method.named_modules(remove_duplicate=False):
        within[prefix] = number_of.get(id(part), within[prefix.rpartition(".")[0]])
        for name, parameter in part.named_parameters(prefix, recurse=False):
            yield within[prefix], name, parameter


def obstacle(method: nn.Module) -> str | None:
    """Why a method cannot be sharded, as a person should read it; None where it can."""
    unit_of: dict[int, int] = {}
    for unit, name, parameter in _units(method):
        if parameter.ndim == 0:
            return f"its weight {name} is a single number, which has no slices"
        if parameter.dtype != torch.float32:
            return f"its weight {name} is of {str(parameter.dtype).removeprefix('torch.')}, not float32"
        if unit_of.setdefault(id(parameter), unit) != unit:
            return f"its weight {name} belongs to several blocks, which are gathered at different times"
    if all(unit == _OUTSIDE for unit in unit_of.values()):
        return "it has no blocks, as vision transformers have, to be gathered one at a time"
    return None


def gathered_bytes(method: nn.Module) -> int:
    """What a step holds beside the slices, in float32: all that is outside the blocks, with its gradient; the largest
    block, the one gathered ahead of it, and its gradient; and the buffers in which they travel."""
    numel: dict[int, int] = {}
    for unit, parameter in {id(p): (unit, p) for unit, _, p in _units(method)}.values():
        numel[unit] = numel.get(unit, 0) + parameter.numel()
    outside = numel.pop(_OUTSIDE, 0)
    return 4 * (4 * outside + 6 * max(numel.values(), default=0))


# -- tensors and their slices


def is_slice(tensor: Tensor) -> bool:
    """Whether other processes have the rest of it (torch's DTensor)."""
    return hasattr(tensor, "full_tensor")


def own_slice(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in its own memory; a plain one as it is."""
    mine: Tensor = cast(Any, tensor).to_local() if is_slice(tensor) else tensor
    return mine


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, where every process asks for it; a plain one as it is."""
    full: Tensor = cast(Any, tensor.detach()).full_tensor() if is_slice(tensor) else tensor
    return full


def slice_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor divided as another of its shape is; as it is where that is plain, or of another shape."""
    if not is_slice(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    mesh = like.device_mesh
    slices, number = tensor.chunk(mesh.size()), mesh.get_local_rank()
    mine = slices[number] if number < len(slices) else tensor[:0]  # of less rows than processes the last get none
    mine = mine.to(like.device, copy=True)  # a view would hold the whole
    return DTensor.from_local(mine, mesh, like.placements, shape=like.shape, stride=like.stride())


def joined(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Tensors as a checkpoint has them, whole and on the host where they were slices; one is gathered at a time.

    Args:
        keep: whether this process wants them; all take part.
    """
    found: dict[str, Tensor] = {}
    for name in sorted(tensors):  # what was read from a file lies in another order in each process
        tensor = tensors[name]
        full = whole(tensor)
        if keep:
            found[name] = full.cpu() if is_slice(tensor) else full
    return found


# -- a method


class Sharded:
    """Divides a method in place and puts the slices on the device, block by block: it is never there as a whole.

    Args:
        method: one that has no obstacle, whole and the same in every process of the group.
        compiled: compile each block; what is outside them is not.
    """

    def __init__(self, method: nn.Module, device: torch.device, *, compiled: bool = False) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self._parts = list(method.modules())
        known = [set(vars(part)) for part in self._parts]
        self._plain = [_face(part, _CHANGED) for part in self._parts]
        for part in self._parts:  # fully_shard registers hooks, which the plain faces must not get
            vars(part).update({key: vars(part)[key].copy() for key in _CHANGED[1:]})
        mesh = init_device_mesh(device.type, (distributed.world_size(),))
        for block in reversed(blocks_of(method)):  # the inner ones first
            if compiled:
                block.forward = torch.compile(block.forward)
            fully_shard(block, mesh=mesh)
        fully_shard(method, mesh=mesh)
        added = [vars(part).keys() - before for part, before in zip(self._parts, known, strict=True)]
        self._keys = [(*_CHANGED, *keys) for keys in added]
        self._whole = False

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """The method as if it had never been divided, with whole weights: any of its parts may be run, copied or saved,
        in one process alone too. All processes enter at the same time, between two steps; what is changed is lost.

        Raises:
            RunFailed: the device has not the memory for that.
        """
        if self._whole:
            yield
            return
        slices = [dict(part._parameters) for part in self._parts]
        sharded = [_face(part, keys) for part, keys in zip(self._parts, self._keys, strict=True)]
        made = self._whole_parameters()
        for part, own in zip(self._parts, slices, strict=True):
            part._parameters.update({name: None if p is None else made[id(p)] for name, p in own.items()})
        self._wear(self._plain)
        self._whole = True
        try:
            yield
        finally:
            self._whole = False
            self._wear(sharded)
            for part, own in zip(self._parts, slices, strict=True):
                part._parameters.update(own)

    def _whole_parameters(self) -> dict[int, nn.Parameter]:
        """By the identity of those that are divided."""
        divided = list(self._parts[0].parameters())
        try:
            return {id(p): nn.Parameter(whole(p), p.requires_grad) for p in divided}
        except torch.OutOfMemoryError as error:
            size = 4 * sum(p.numel() for p in divided) / 2**30
            raise RunFailed(
                f"the whole weights ({size:.1f} GiB), which pictures and scores need between two steps, do not fit"
                f" beside the slices of {distributed.world_size()} processes; start more processes, or take a smaller"
                " network"
            ) from error

    def _wear(self, faces: list[tuple[type, dict[str, Any]]]) -> None:
        for part, keys, (kind, attributes) in zip(self._parts, self._keys, faces, strict=True):
            part.__class__ = kind
            for key in keys:
                vars(part).pop(key, None)
            vars(part).update(attributes)


def _face(part: nn.Module, keys: tuple[str, ...]) -> tuple[type, dict[str, Any]]:
    """A module's class, and the attributes of these names that it has."""
    return type(part), {key: vars(part)[key] for key in keys if key in vars(part)}
