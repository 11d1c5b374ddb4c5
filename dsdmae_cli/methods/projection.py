"""Projectors and predictors: MLPs with batch norm between pooled features and a contrastive loss."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn

from dsdmae_cli import distributed
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.methods.exchange import mean_over_processes


def mlp(width: int, hidden: int, out: int, layers: int) -> nn.Sequential:
    """MoCo v3's projector (3 layers) or predictor (2): Linear without bias, batch norm and ReLU between.

    The last batch norm has neither scale nor shift. Weights keep torch's own initialisation, as in the public code.
    """
    widths = [width, *[hidden] * (layers - 1), out]
    parts: list[nn.Module] = []
    for i in range(layers):
        last = i == layers - 1
        parts += [nn.Linear(widths[i], widths[i + 1], bias=False), GlobalBatchNorm(widths[i + 1], affine=not last)]
        if not last:
            parts.append(nn.ReLU())
    return nn.Sequential(*parts)


class GlobalBatchNorm(nn.Module):
    """Batch norm with the mean and variance of the whole batch over all processes, in every mode.

    Three defects of batch norm beside a contrastive loss cannot occur. With statistics of a process's own share an
    image could tell by them which keys come from its own process, and solve the task by that. With running statistics
    (a teacher in eval mode) student and teacher would normalise differently. And buffers that differ between processes
    would be saved from one of them. So: one set of statistics, gradients through it from all processes, no buffers.
    torch's SyncBatchNorm computes the same on GPUs in training mode; it does not run on a CPU.

    Of a batch of one image nothing is left but the shift: its variance is zero.
    """

    def __init__(self, width: int, affine: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        wide = x.float()
        # In two passes: a mean of squares less the square of the mean would cancel.
        centred = wide - mean_over_processes(wide.mean(dim=0))
        var = mean_over_processes(centred.square().mean(dim=0))
        normal = centred * (var + self.eps).rsqrt()
        if self.weight is not None and self.bias is not None:
            normal = normal * self.weight + self.bias
        return normal.to(x.dtype)


class TrackingBatchNorm(nn.BatchNorm1d):
    """torch's, without scale and shift, whose statistics in training are of the whole batch over all processes.

    The running ones, which stand in for them afterwards, are then the same in every process. A method that trains with
    it sets `whole_batch`: cut into micro-batches, the same settings would train another function.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, affine=False)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        wide = x.float()
        mean = mean_over_processes(wide.mean(dim=0))
        centred = wide - mean
        var = mean_over_processes(centred.square().mean(dim=0))
        with torch.no_grad():
            count = len(x) * distributed.world_size()
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / max(1, count - 1), self.momentum)
            self.num_batches_tracked += 1
        return (centred * (var + self.eps).rsqrt()).to(x.dtype)


def synchronized(module: Any) -> Any:
    """A module whose batch norms take their statistics over all processes; as it was where there is but one.

    Raises:
        SettingsError: torch cannot do that on this machine.
    """
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if distributed.world_size() == 1 or not norms:
        return module
    if not torch.cuda.is_available():
        raise SettingsError(
            "this method compares the images of a batch, and the backbone's batch norms can take it as a whole over"
            " several processes on GPUs only; use one process, or a backbone without batch norm, such as a plain ViT"
        )
    return convert_sync_batchnorm(module)  # timm's: torch's own would drop the activations in timm's norms
