"""What the hardware decides: device, precision and micro-batch of a process, and how attention is computed there."""

from __future__ import annotations

import ctypes
import random
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from dsdmae_cli import distributed
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.methods.base import Method
from dsdmae_cli.settings.models import LoopSettings

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Tokens x width of a micro-batch whose activations stay in a CPU's caches (docs/design/performance.md).
_CPU_MICRO_ELEMENTS = 16 * 256 * 192


@dataclass(frozen=True)
class Runtime:
    """What the hardware decides: settings with "auto" replaced."""

    device: torch.device
    precision: str
    compile: bool
    micro_batch: int


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
        SettingsError: fp16 off CUDA, where nothing gains from it.
    """
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
    """Images per forward pass: all of them on a GPU, on a CPU as many as its caches hold."""
    if not isinstance(wanted, str):
        return min(wanted, local_batch)
    if device.type != "cpu":
        return local_batch
    fits = max(1, _CPU_MICRO_ELEMENTS // (tokens * width))
    size = 1 << (fits.bit_length() - 1)
    while local_batch % size:  # equal micro-batches: a compiled step has one shape
        size //= 2
    return min(size, local_batch)


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


def _micro_batch(train: LoopSettings, method: Method, local_batch: int, device: torch.device) -> int:
    if not method.whole_batch:
        encoder = method.encoder()
        return choose_micro_batch(train.micro_batch, local_batch, encoder.num_tokens, encoder.width, device)
    if not isinstance(train.micro_batch, str) and train.micro_batch < local_batch:
        raise SettingsError(
            f"train.micro_batch = {train.micro_batch} would cut the batch of {local_batch}, which this method needs"
            " whole; leave it at auto, or lower --batch-size"
        )
    return local_batch
