"""Projectors and predictors: MLPs with batch norm between pooled features and a contrastive loss."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsdmae_cli import distributed
from dsdmae_cli.methods.exchange import moments_over_processes


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
        _, var, centred = _moments(x.float(), [0])
        normal = centred * (var + self.eps).rsqrt()
        if self.weight is not None and self.bias is not None:
            normal = normal * self.weight + self.bias
        return normal.to(x.dtype)


def _moments(x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of the whole batch over all processes, and x less the mean."""
    # In two passes: a mean of squares less the square of the mean would cancel.
    own = x.mean(dim=dims, keepdim=True)
    centred = x - own
    mean, var = moments_over_processes(own.flatten(), centred.square().mean(dim=dims))
    return mean, var, centred if distributed.world_size() == 1 else x - mean.view_as(own)


def _normalized_over_all(norm: Any, x: Tensor) -> Tensor:
    """What torch's batch norm gives in training, before scale and shift, with the statistics of the whole batch over
    all processes; they move its running ones, which are then the same in every process."""
    mean, var, centred = _moments(x.float(), [dim for dim in range(x.ndim) if dim != 1])
    if norm.track_running_stats:
        with torch.no_grad():
            norm.num_batches_tracked += 1
            rate = 1 / norm.num_batches_tracked.float() if norm.momentum is None else norm.momentum
            count = x.numel() // x.shape[1] * distributed.world_size()
            norm.running_mean.lerp_(mean, rate)
            norm.running_var.lerp_(var * count / max(1, count - 1), rate)
    return centred * (var.view([1, -1, *[1] * (x.ndim - 2)]) + norm.eps).rsqrt()


class TrackingBatchNorm(nn.BatchNorm1d):
    """torch's, without scale and shift, whose statistics in training are of the whole batch over all processes.

    The running ones, which stand in for them afterwards, are then the same in every process. A method that trains with
    it sets `whole_batch`: cut into micro-batches, the same settings would train another function.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, affine=False)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return _normalized_over_all(self, x).to(x.dtype) if self.training else super().forward(x)


class _WholeBatchNorm(nn.modules.batchnorm._BatchNorm):
    """In place of one of torch's or timm's batch norms, with its parameters, buffers and what timm has it do after."""

    def __init__(self, norm: Any) -> None:
        nn.Module.__init__(self)
        self.num_features, self.eps, self.momentum = norm.num_features, norm.eps, norm.momentum
        self.affine, self.track_running_stats = norm.affine, norm.track_running_stats
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        self.drop, self.act = getattr(norm, "drop", None), getattr(norm, "act", None)
        self.training = norm.training

    def _check_input_dim(self, x: Tensor) -> None:
        """Any number of dimensions will do."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            normal = _normalized_over_all(self, x)
            if self.affine:
                shape = [1, -1, *[1] * (x.ndim - 2)]
                normal = normal * self.weight.view(shape) + self.bias.view(shape)
            normal = normal.to(x.dtype)
        else:
            normal = super().forward(x)
        for after in (self.drop, self.act):
            normal = normal if after is None else after(normal)
        return normal


def synchronized(module: Any) -> Any:
    """A module whose batch norms take their statistics over all processes, in training as in what is saved of them; as
    it was where there is but one process."""
    if distributed.world_size() == 1:
        return module
    if torch.cuda.is_available() and not any(isinstance(part, nn.SyncBatchNorm) for part in module.modules()):
        from timm.layers.norm_act import convert_sync_batchnorm  # seconds, which a denoiser need not wait for

        return convert_sync_batchnorm(module)  # timm's: torch's own would drop the activations in timm's norms
    return _with_whole_batch_norms(module)


def is_synchronized(module: nn.Module) -> bool:
    """Whether batch norms wait for the other processes in its forward pass, in the mode that they are in."""
    waiting = (GlobalBatchNorm, TrackingBatchNorm, _WholeBatchNorm, nn.SyncBatchNorm)
    norms = (part for part in module.modules() if isinstance(part, waiting) and part.training)
    return distributed.world_size() > 1 and any(True for _ in norms)


def _with_whole_batch_norms(module: nn.Module) -> nn.Module:
    own = (TrackingBatchNorm, _WholeBatchNorm, nn.SyncBatchNorm)
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, own):
        return _WholeBatchNorm(module)
    for name, part in module.named_children():
        found = _with_whole_batch_norms(part)
        if found is not part:
            setattr(module, name, found)
    return module
