"""What the hardware decides: device, precision and micro-batch of a process, and how attention is computed there."""

from __future__ import annotations

import ctypes
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from dsdmae_cli import distributed
from dsdmae_cli.data.base import ImageDataset
from dsdmae_cli.data.open import place
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.methods.base import Method
from dsdmae_cli.settings.models import LoopSettings, Precision
from dsdmae_cli.sharding import obstacle

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Tokens x width of a micro-batch whose activations stay in a CPU's caches (docs/design/performance.md).
_CPU_MICRO_ELEMENTS = 16 * 256 * 192


@dataclass(frozen=True)
class Runtime:
    """What the hardware decides: settings with "auto" replaced.

    Attributes:
        automatic: the micro-batch was chosen here, so that a run that goes on keeps the one that it had.
        may_halve: the micro-batch is an estimate of what fits, and may become half of it where that was too much.
        sharded: each process keeps a slice of weights, gradients and moments (sharding.py).
        unshared: what a person should know where they are not, though that was asked for or they do not fit.
    """

    device: torch.device
    precision: str
    compile: bool
    micro_batch: int
    automatic: bool = False
    may_halve: bool = False
    sharded: bool = False
    unshared: str | None = None

    def receive(self, method: nn.Module) -> None:
        """The method on the device; one that is to be sharded goes there piece by piece, when the Trainer has it."""
        if not self.sharded:
            method.to(self.device)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The forward pass under it multiplies in bf16 or fp16; with fp32 nothing is cast."""
    dtype = _AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Python's, NumPy's and torch's random states, which a caller may rely on, are put back afterwards."""
    python, legacy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def choose_device(wanted: str) -> torch.device:
    """The device to train on; under torchrun each process takes the GPU of its local rank.

    Raises:
        SettingsError: there is no such device.
    """
    if wanted == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        # MPS has neither gloo nor NCCL.
        wanted = "cpu" if kind == "mps" and distributed.launched_by_torchrun() else kind
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise SettingsError(f"train.device = {wanted!r} is not a device; try auto, cpu, cuda or cuda:1") from error
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, False):
        have = [f"cuda:{i}" for i in range(torch.cuda.device_count())] + ["cpu"]
        raise SettingsError(f"train.device = {wanted!r} is not on this machine; there is {', '.join(have)}")
    if device.type == "cuda":
        device = torch.device("cuda", _own_gpu() if device.index is None else device.index)
        if distributed.local_processes() > 1 and ":" in wanted:
            raise SettingsError(
                f"train.device = {wanted!r} would put all {distributed.local_processes()} processes of this machine on"
                " one GPU; say cuda, and each takes its own"
            )
        torch.cuda.set_device(device)
    return device


def _own_gpu() -> int:
    """The GPU of a process: by its number on the machine, or the only one that its launcher lets it see.

    Raises:
        SettingsError: there are more processes than GPUs.
    """
    number, gpus = distributed.local_rank(), torch.cuda.device_count()
    if number < gpus:
        return number
    if gpus == 1 and not distributed.launched_by_torchrun_itself():
        return 0
    raise SettingsError(
        f"process {number} of this machine finds no GPU of its own: {gpus} can be seen; start at most {gpus}"
        f" (torchrun --nproc-per-node {gpus}), or let it see more (CUDA_VISIBLE_DEVICES)"
    )


def choose_precision(wanted: str, device: torch.device) -> str:
    """bf16 where the hardware multiplies it, else fp16 on CUDA, else fp32.

    Raises:
        SettingsError: there is no such precision, or fp16 off CUDA, where nothing gains from it.
    """
    if wanted not in get_args(Precision):
        raise SettingsError(f"train.precision = {wanted!r} is not allowed; it takes {', '.join(get_args(Precision))}")
    if wanted == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        return "bf16" if device.type == "cpu" and cpu_multiplies_bf16() else "fp32"
    if wanted == "fp16" and device.type != "cuda":
        raise SettingsError(f"train.precision = 'fp16' needs a CUDA device, this is {device.type}; use bf16 or fp32")
    return wanted


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for it: AMX or AVX512_BF16, on Arm BF16. Without them fp32 is faster."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capabilities:
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def choose_micro_batch(wanted: int | str, local_batch: int, tokens: int, width: int, device: torch.device) -> int:
    """Images per forward pass: on a CPU as many as its caches hold, elsewhere all of them.

    Of a training on CUDA `choose_runtime` decides by memory.
    """
    if not isinstance(wanted, str):
        return min(wanted, local_batch)
    if device.type != "cpu":
        return local_batch
    return dividing_power(local_batch, min(local_batch, _CPU_MICRO_ELEMENTS // (tokens * width)))


def seed_global(device: torch.device, seed: int) -> None:
    """Seed what draws from the global state on the device and on the host: stochastic depth, dropout.

    torch.manual_seed would seed all GPUs of the machine, every micro-batch.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)  # of this process's own
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def keep_freed_memory() -> None:
    """Tell glibc not to hand every freed activation back to the kernel, only to have it zeroed again.

    Worth 1.1x to 1.3x of a CPU step (docs/design/performance.md); costs nothing but memory that would be asked for
    again in the next step. Elsewhere than on glibc there is nothing to do.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3
        for option, value in (
            (m_mmap_threshold, 1 << 25),
            (m_trim_threshold, 2**31 - 1),
            (m_top_pad, 1 << 28),
        ):
            mallopt(option, value)


def choose_attention(module: nn.Module, runtime: Runtime) -> None:
    """On a CPU in bf16 plain matmul-softmax-matmul beats scaled_dot_product_attention; elsewhere the latter wins.

    A fixed rule and no timing at start-up: a resumed run must compute what the first one did.
    """
    if runtime.device.type == "cpu" and runtime.precision == "bf16":
        for part in module.modules():
            if hasattr(part, "fused_attn"):
                part.fused_attn = False  # type: ignore[assignment]


def resident_bytes(dataset: ImageDataset, settings: Any, *, masked: bool = False) -> int:
    """What the training images, with their masks if need be, will take on the device that the settings name."""
    return place(dataset, settings.data, choose_device(settings.train.device), masked=masked).num_bytes


def choose_runtime(settings: Any, method: Method, held: int = 0) -> Runtime:
    """Device, precision, compilation and micro-batch of this process.

    Args:
        held: bytes that images will take on the device.
    """
    device = choose_device(settings.train.device)
    world = distributed.world_size()
    if settings.train.batch_size % world:
        raise SettingsError(
            f"train.batch_size = {settings.train.batch_size} cannot be shared evenly by {world} processes;"
            f" use a multiple of {world}"
        )
    train = settings.train
    precision, local_batch = choose_precision(train.precision, device), train.batch_size // world
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0

    def most(shards: int) -> int:
        """Images that fit at once."""
        from dsdmae_cli.work import most_images  # its counter of FLOP brings torch's compiler

        # A batch that cannot be cut is refused where it is hopeless; any other may be halved later, and need not be.
        spare = 0.0 if method.whole_batch else 0.25
        return most_images(method, precision, free - held, train.checkpoint_activations, spare, shards)

    automatic = isinstance(train.micro_batch, str)
    least = local_batch if method.whole_batch else 1 if automatic else min(train.micro_batch, local_batch)
    muon = settings.optim.optimizer == "muon"
    sharded, unshared = _shards(train, method, muon, lambda: device.type != "cuda" or most(1) >= least)
    return Runtime(
        device=device,
        precision=precision,
        compile=device.type == "cuda" if train.compile == "auto" else train.compile,
        micro_batch=_micro_batch(train, method, local_batch, device, free, lambda: most(world if sharded else 1)),
        automatic=automatic and not method.whole_batch,
        may_halve=automatic and device.type == "cuda" and not method.whole_batch,
        sharded=sharded,
        unshared=unshared,
    )


def _shards(train: LoopSettings, method: Method, muon: bool, fits: Callable[[], bool]) -> tuple[bool, str | None]:
    """Whether to shard, and if not, what a person should know about that.

    Args:
        muon: the optimiser needs each matrix whole.
        fits: whether all of the weights, gradients and moments have room beside a micro-batch.
    """
    if train.shard == "none":
        return False, None
    if distributed.world_size() == 1:
        alone = "train.shard = full: this is the only process, and keeps all weights"
        return False, alone if train.shard == "full" else None
    if train.shard == "auto" and fits():
        return False, None
    why_not = "optim.optimizer = 'muon' needs each weight matrix whole" if muon else obstacle(method)
    if why_not is None:
        return True, None
    if train.shard == "full":
        other = "optim.optimizer=adamw" if muon else "another backbone"
        raise SettingsError(
            f"train.shard = 'full', but this cannot be divided: {why_not}; leave it out, or take {other}"
        )
    return False, f"weights, gradients and moments may not fit into memory, and cannot be divided: {why_not}"


def _micro_batch(
    train: LoopSettings, method: Method, local_batch: int, device: torch.device, free: int, most: Callable[[], int]
) -> int:
    wanted = train.micro_batch
    if method.whole_batch and not isinstance(wanted, str) and wanted < local_batch:
        raise SettingsError(
            f"train.micro_batch = {wanted} would cut the batch of {local_batch}, which this method needs"
            " whole; leave it at auto, or lower --batch-size"
        )
    if isinstance(wanted, str) and device.type == "cuda":
        fit = most()
        if method.whole_batch and fit < local_batch:
            raise SettingsError(_too_large(local_batch, fit, free, train))
        return local_batch if fit >= local_batch else dividing_power(local_batch, fit)
    if method.whole_batch:
        return local_batch
    return choose_micro_batch(wanted, local_batch, method.tokens_read, method.encoder().width, device)


def _too_large(local_batch: int, most: int, free: int, train: LoopSettings) -> str:
    """Why a batch that may not be cut is refused, and what would fit."""
    world = distributed.world_size()
    room = f"the {free / 2**30:.0f} GiB that are free on the GPU"
    if not most:
        share = "" if train.shard == "none" else ", or more processes (torchrun), which divide it (train.shard)"
        return f"the network does not fit into {room}; take a smaller one, or a larger GPU{share}"
    fits = 1 << (most.bit_length() - 1)
    processes = world * -(-local_batch // fits)
    return (
        f"this method needs its batch whole, and of {local_batch} images a process about {most} fit into {room}; take"
        f" --batch-size {fits * world}, or {processes} processes in place of {world} (torchrun)"
        + (", or keep less with --set train.checkpoint_activations=true" if not train.checkpoint_activations else "")
        + f"; --set train.micro_batch={local_batch} tries it all the same"
    )


def dividing_power(batch: int, most: int) -> int:
    """The largest power of two that is at most `most` and divides the batch; 1 in any case."""
    size = 1 << (max(1, most).bit_length() - 1)
    while batch % size:  # equal micro-batches: a compiled step has one shape
        size //= 2
    return size
