"""The machine that figures are of: what it is, and how fast it multiplies and copies in this very run."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from dsdmae_cli.bench.turns import short
from dsdmae_cli.data.cores import cpu_name, usable_cores

if TYPE_CHECKING:
    import torch

_PACKAGES = ("torch", "timm", "torchvision", "dsdmae")


@dataclass(frozen=True)
class Card:
    """What a maker says of a GPU: dense bf16 TFLOP/s, fp32 TFLOP/s without tensor cores, and TB/s of its memory."""

    bf16: float
    fp32: float
    bandwidth: float


# From NVIDIA's data sheets, without sparsity. Of several names that fit a card the longest counts.
CARDS = {
    "NVIDIA H200": Card(989, 67, 4.8),
    "NVIDIA H100 80GB HBM3": Card(989, 67, 3.35),
    "NVIDIA H100 PCIe": Card(756, 51, 2.0),
    "NVIDIA H100 NVL": Card(835, 60, 3.9),
    "NVIDIA A100-SXM4-80GB": Card(312, 19.5, 2.039),
    "NVIDIA A100-SXM4-40GB": Card(312, 19.5, 1.555),
    "NVIDIA A100-PCIE-40GB": Card(312, 19.5, 1.555),
    "NVIDIA L4": Card(121, 30.3, 0.3),
    "NVIDIA L40S": Card(362, 91.6, 0.864),
}


def card_of(name: str) -> Card | None:
    """The data sheet of a GPU by the name that its driver gives; None of one that is not listed."""
    fitting = [known for known in CARDS if f"{name} ".startswith(f"{known} ") and "NVL" not in name.removeprefix(known)]
    return CARDS[max(fitting, key=len)] if fitting else None


def described(device: torch.device) -> dict[str, str]:
    """Hardware and versions, for a heading."""
    import torch

    facts = {"processor": f"{cpu_name()}, {usable_cores()} cores, {torch.get_num_threads()} threads"}
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        facts["device"] = f"{torch.cuda.get_device_name(device)}, {memory:.0f} GiB, CUDA {torch.version.cuda}"
    elif device.type != "cpu":
        facts["device"] = str(device)
    facts["Python"] = platform.python_version()
    facts |= {name: version(name) for name in _PACKAGES}
    return facts


@dataclass(frozen=True)
class Rates:
    """What a device reached when it was calibrated.

    Attributes:
        fp32, bf16: TFLOP/s of a matrix product.
        copy: TB/s of a copy, read and written bytes together.
    """

    fp32: float
    bf16: float
    copy: float

    def text(self) -> str:
        products = f"matrix products {_tera(self.fp32)} in fp32, {_tera(self.bf16)} in bf16"
        return f"{products}; copies {short(1e3 * self.copy)} GB/s"

    def json(self) -> dict[str, float]:
        return {"matmul_fp32_tflops": self.fp32, "matmul_bf16_tflops": self.bf16, "copy_tb_per_s": self.copy}


def _tera(rate: float) -> str:
    return f"{rate:.0f} TFLOP/s" if rate >= 10 else f"{1e3 * rate:.0f} GFLOP/s"


def calibrate(device: torch.device, side: int | None = None) -> Rates:
    """Time matrix products and a copy of random numbers; a GPU is given larger ones.

    Args:
        side: of the matrices; by default 2048 on a CPU, 8192 on a GPU.
    """
    import torch

    side = side or (8192 if device.type == "cuda" else 2048)

    def product(kind: torch.dtype) -> float:
        a, b = (torch.rand(side, side, device=device).sub_(0.5).to(kind) for _ in range(2))
        return 2 * side**3 / best(device, lambda: a @ b) / 1e12

    source = torch.rand(side * side, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / best(device, lambda: target.copy_(source)) / 1e12
    return Rates(product(torch.float32), product(torch.bfloat16), copied)


def best(device: torch.device, work: Callable[[], Any], repeats: int = 5) -> float:
    """The least seconds of several tries of some work, after one that does not count."""
    timed(device, work)
    return min(timed(device, work) for _ in range(repeats))


def timed(device: torch.device, work: Callable[[], Any]) -> float:
    """Seconds of some work, waited for."""
    import torch

    if device.type != "cuda":
        wait = torch.mps.synchronize if device.type == "mps" else lambda: None
        wait()
        began = time.perf_counter()
        work()
        wait()
        return time.perf_counter() - began
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize(device)
    return float(begin.elapsed_time(end)) / 1e3
