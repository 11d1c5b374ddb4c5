"""A CUDA device that is not there: our own code on FakeTensors that say "cuda:0", with every operator watched.

No GPU is needed. What a run on one would wait for is found by the operators that it calls: a value read back (item,
tolist, bool, shapes that depend on data), a copy from pageable host memory or one that is not asked to overlap. Each is
told with our own line that asked for it. How many operators are launched is counted too, the forward pass's apart.

What it cannot tell: numbers, time, what a compiler makes of it, and the backward pass (torch's engine asks the driver
for streams; here every leaf gets an empty gradient). An operator on a list of tensors counts once, as it is launched.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
_OURS = ("/dsdmae_cli/", "/dsdmae_builtin/", "/fake_cuda/test_")
# The host needs the result of these before it can go on: a number, or a shape that depends on data.
_READS = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::bincount",
    "aten::equal",
    "aten::is_nonzero",
    "aten::repeat_interleave.Tensor",
}
_TO = {"aten::_to_copy", "aten::to"}  # the latter where it is seen whole, in inference mode
_WITHOUT_FAKES = {"aten::_fused_sgd_"}  # changes its arguments and returns nothing
_NO_KERNEL = {
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::detach",
    "aten::lift_fresh",
}


@dataclass
class Audit:
    """What was seen since the last `clear`.

    Attributes:
        waits: where the host waits for the device, and why.
        copies: between host and device that nobody waits for.
        faults: what would fail: a generator of another device than the tensor that it fills.
        around, forward: operators outside and inside the method's forward pass, by our line that called them.
        operators: the same by name, all together.
    """

    waits: list[str] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    around: Counter[str] = field(default_factory=Counter)
    forward: Counter[str] = field(default_factory=Counter)
    operators: Counter[str] = field(default_factory=Counter)
    in_forward: bool = False

    def clear(self) -> None:
        """Forget what was seen."""
        for part in (self.waits, self.copies, self.faults, self.around, self.forward, self.operators):
            part.clear()


def _where(most: int = 3) -> str:
    """Our innermost lines: "file:line function < ..."."""
    found: list[str] = []
    frame = sys._getframe(1)
    while frame is not None and len(found) < most:
        name = frame.f_code.co_filename
        if any(folder in name for folder in _OURS):
            found.append(f"{name.rpartition('/')[2]}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(found)


class _Generators:
    """Generators that say they are CUDA's, and the seeds they were given: operators get them without their class."""

    def __init__(self) -> None:
        self.seeds: set[int] = set()
        seeds, of_torch = self.seeds, torch.Generator

        class Generator(of_torch):  # type: ignore[valid-type]
            def __new__(cls, device: Any = "cpu") -> Any:
                made = super().__new__(cls)
                made.said = torch.device(device)
                return made

            @property
            def device(self) -> torch.device:
                return CUDA if self.said.type == "cuda" else torch.device("cpu")

            def manual_seed(self, seed: int) -> Any:
                if self.said.type == "cuda":
                    seeds.add(seed)
                super().manual_seed(seed)
                return self

        self.kind = Generator


class _NoDevice(FakeTensorMode):
    avoid_device_init = True


class _Watch(TorchDispatchMode):
    """Stands above the fakes and sees every operator."""

    def __init__(self, audit: Audit, generators: _Generators, pinned: set[int]) -> None:
        super().__init__()
        self.audit, self.generators, self.pinned = audit, generators, pinned

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, audit = dict(kwargs or {}), self.audit
        name = func._schema.name
        full = f"{name}.{func._schema.overload_name}".removesuffix(".")
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_cuda = any(tensor.is_cuda for tensor in given)
        if (generator := kwargs.get("generator")) is not None:
            self._note_generator(
                full, generator, torch.device(kwargs.get("device") or (given or [torch.empty(0)])[0].device)
            )
            kwargs["generator"] = None  # fakes take none
        if on_cuda and (name in _READS or full in _READS):
            audit.waits.append(f"{full}: {_where()}")
        if name == "aten::_local_scalar_dense" and isinstance(given[0], FakeTensor):
            kind = given[0].dtype
            return kind is torch.bool or (1.0 if kind.is_floating_point else 1)
        out = None if name in _WITHOUT_FAKES else func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self._note_copy(func, args, kwargs, given, made)
        if on_cuda or any(tensor.is_cuda for tensor in made):
            count = _launched(func, args, given, made)
            (audit.forward if audit.in_forward else audit.around)[_where(1)] += count
            audit.operators[full] += count
        return out

    def _note_generator(self, full: str, generator: torch.Generator, device: torch.device) -> None:
        kind = "cuda" if generator.initial_seed() in self.generators.seeds else "cpu"
        if device.type != kind:
            self.audit.faults.append(f"{full}: tensors on {device.type}, generator on {kind}: {_where()}")

    def _note_copy(self, func: Any, args: tuple, kwargs: dict, given: list, made: list) -> None:
        name = func._schema.name
        if name in _TO:
            source, target = given[0], made[0]
        elif name == "aten::copy_":
            target, source = args[:2]
        else:
            return
        named = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        free = named.get("non_blocking", False)
        if source.device.type == target.device.type:
            return
        # torch pins what it makes itself for a copy to the host that need not be waited for.
        host = target if source.is_cuda else source
        of_torch = source.is_cuda and name in _TO
        free = free and (of_torch or host.untyped_storage()._cdata in self.pinned)
        text = (
            f"{source.device.type} -> {target.device.type}, {source.numel() * source.element_size()} bytes: {_where()}"
        )
        (self.audit.copies if free else self.audit.waits).append(text)


def _launched(func: Any, args: tuple, given: list, made: list) -> int:
    """How many operators run on the device: 1; 0 of a view; of one for a list of tensors as many as there are of them
    where its arguments' shapes take it off its multi-tensor kernel."""
    name = func._schema.name
    if name in _NO_KERNEL or name.startswith("prim::") or func.is_view:
        return 0
    if name.startswith("aten::_foreach_"):
        lists = [arg for arg in args if isinstance(arg, list | tuple) and arg and isinstance(arg[0], Tensor)]
        alike = all(len({tensor.shape for tensor in row}) == 1 for row in zip(*lists, strict=True))
        return 1 if alike else len(lists[0])
    own = {tensor.untyped_storage()._cdata for tensor in given}
    aliases = bool(made) and all(tensor.untyped_storage()._cdata in own for tensor in made)
    return int(func._schema.is_mutable or not aliases)


def on_fake_cuda(module: nn.Module) -> nn.Module:
    """The module's tensors replaced by fakes on CUDA, within `no_cuda`; shared tensors stay shared."""
    done: dict[int, tuple[Tensor, Tensor]] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in done:
            new: Tensor = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, tensor.requires_grad)
            done[id(tensor)] = (tensor, new)
        return done[id(tensor)][1]

    for part in module.modules():
        for table in (part._parameters, part._buffers):
            table.update({name: fake(tensor) for name, tensor in table.items() if tensor is not None})
    return module


def _backward(loss: Tensor, *args: Any, **kwargs: Any) -> None:
    """An empty gradient for every leaf."""
    assert loss.requires_grad
    seen, stack = set(), [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            leaf.grad = torch.empty_like(leaf)
        stack += [following for following, _ in node.next_functions]


@contextlib.contextmanager
def no_cuda(free_bytes: int = 70 << 30, total_bytes: int = 80 << 30) -> Iterator[Audit]:
    """Within, torch says that there is one CUDA device, tensors on it are fakes, and what is done to them is noted."""
    audit, generators, pinned = Audit(), _Generators(), set[int]()
    tolist, array = torch.Tensor.tolist, torch.Tensor.numpy

    def read(tensor: Tensor) -> Any:
        if not isinstance(tensor, FakeTensor):
            return tolist(tensor)
        if tensor.is_cuda:
            audit.waits.append(f"tolist: {_where()}")
        value = 0.0 if tensor.dtype.is_floating_point else 0

        def nested(shape: tuple[int, ...]) -> Any:
            return [nested(shape[1:]) for _ in range(shape[0])] if shape else value

        return nested(tuple(tensor.shape))

    def pin(tensor: Tensor, device: Any = None) -> Tensor:
        assert not tensor.is_cuda
        copy = tensor.clone()
        pinned.add(copy.untyped_storage()._cdata)
        kept.append(copy)  # or its storage's address would be another's later
        return copy

    def as_array(tensor: Tensor, *, force: bool = False) -> np.ndarray:
        if not isinstance(tensor, FakeTensor):
            return array(tensor, force=force)
        assert not tensor.is_cuda
        return np.zeros(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    def launched() -> int:
        return sum(audit.around.values()) + sum(audit.forward.values())

    class Event:
        """Waiting for it is a wait only where the device was given nothing since: it would stand idle afterwards."""

        def record(self) -> None:
            self.at = launched()

        def synchronize(self) -> None:
            if launched() == self.at:
                audit.waits.append(f"event: {_where()}")

    kept: list[Tensor] = []
    cuda = {
        "Event": Event,
        "is_available": lambda: True,
        "is_initialized": lambda: False,
        "is_bf16_supported": lambda including_emulation=True: True,
        "device_count": lambda: 1,
        "set_device": lambda device: None,
        "mem_get_info": lambda device=None: (free_bytes, total_bytes),
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "synchronize": lambda device=None: audit.waits.append(f"synchronize: {_where()}"),
    }
    with contextlib.ExitStack() as stack:

        def patch(owner: Any, name: str, new: Any) -> None:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, new)

        torch._C._ensureCUDADeviceGuardSet()  # type: ignore[attr-defined]
        for name, new in cuda.items():
            patch(torch.cuda, name, new)
        patch(torch, "Generator", generators.kind)
        for kind in (torch.Tensor, FakeTensor):  # the latter has a tolist of its own, element by element
            patch(kind, "tolist", read)
        patch(torch.Tensor, "numpy", as_array)
        patch(torch.Tensor, "pin_memory", pin)
        patch(torch.Tensor, "backward", _backward)
        # Plain tensors on CUDA go through multi-tensor kernels, and so must their fakes.
        patch(_foreach_utils, "_foreach_supported_types", [*_foreach_utils._foreach_supported_types, FakeTensor])
        with _NoDevice(allow_non_fake_inputs=True), _Watch(audit, generators, pinned):
            yield audit


@contextlib.contextmanager
def told_apart(method: nn.Module, audit: Audit) -> Iterator[None]:
    """Operators of the method's forward pass are counted apart in the block."""

    def begins(*given: Any) -> None:
        audit.in_forward = True

    def ends(*given: Any) -> None:
        audit.in_forward = False

    hooks = method.register_forward_pre_hook(begins), method.register_forward_hook(ends)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
