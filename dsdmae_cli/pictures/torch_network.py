"""A denoiser that torch computes, on any device and in any precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dsdmae_cli.artifacts.denoiser import Denoiser
from dsdmae_cli.pictures.network import Engine, Images
from dsdmae_cli.runtime import Runtime, autocast, choose_attention, choose_micro_batch
from dsdmae_cli.transfer import Coming, sent

_GPU_TILES = 256


@dataclass(frozen=True)
class TorchNetwork:
    """See pictures/network.py.

    Args:
        denoiser: its network is moved to the device.
        where: the device.
        precision: bf16, fp16 or fp32; of the network alone, pictures are put together in float32.
    """

    denoiser: Denoiser
    where: torch.device
    precision: str

    def __post_init__(self) -> None:
        network = self.denoiser.network.to(self.where)
        choose_attention(network, Runtime(self.where, self.precision, compile=False, micro_batch=self.batch_size))

    @property
    def engine(self) -> Engine:
        return "torch"

    @property
    def device(self) -> str:
        return str(self.where)

    @property
    def origin(self) -> str:
        return self.denoiser.origin

    @property
    def sha256(self) -> str:
        return self.denoiser.sha256

    @property
    def image_size(self) -> int:
        return self.denoiser.image_size

    @property
    def size_multiple(self) -> int | None:
        return self.denoiser.size_multiple

    @property
    def patch(self) -> tuple[int, int]:
        return self.denoiser.patch

    @property
    def batch_size(self) -> int:
        encoder = self.denoiser.network.encoder()
        return choose_micro_batch("auto", _GPU_TILES, encoder.num_tokens, encoder.width, self.where)

    def begin(self, images: Images) -> Callable[[], Images]:
        if self.where.type != "cuda":
            return lambda: self._run(images)().numpy()
        coming = self._run(images)
        return lambda: coming().numpy()

    @torch.inference_mode()
    def _run(self, images: Images) -> Coming:
        try:
            with autocast(self.where, self.precision):
                return Coming(self.denoiser(sent(torch.from_numpy(images), self.where)))
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error)) from None
