"""Tensors between host and device without either waiting for the other.

CUDA copies while the host goes on, but only from and to host memory that is pinned. Elsewhere these are plain copies.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's, on the device."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


class Coming:
    """A result of a device on its way to the host, which is waited for when it is asked for."""

    def __init__(self, tensor: Tensor) -> None:
        self._there: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            tensor = tensor.to("cpu", non_blocking=True)  # into pinned memory
            self._there = torch.cuda.Event()
            self._there.record()
        self._tensor = tensor

    def __call__(self) -> Tensor:
        if self._there is not None:
            self._there.synchronize()  # what the device was given since goes on
        return self._tensor.cpu()


class Gathered:
    """Results of a device, batch by batch, on their way to the host; waited for once, when all are asked for."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._device: torch.device | None = None

    def add(self, tensor: Tensor) -> None:
        """One more; what is on the host already is kept as it is."""
        if tensor.device.type == "cuda":
            self._device = tensor.device
            tensor = tensor.to("cpu", non_blocking=True)  # into pinned memory
        self._parts.append(tensor.cpu())

    def cat(self, dim: int = 0) -> Tensor:
        """All of them one after the other, on the host."""
        if self._device is not None:
            torch.cuda.synchronize(self._device)
            self._device = None
        return torch.cat(self._parts, dim=dim)
