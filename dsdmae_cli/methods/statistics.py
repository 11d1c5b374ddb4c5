"""Running statistics of batch norms, which a forward pass changes before anyone knows whether its step counts."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningStatistics:
    """Puts the statistics of a network in training back where a step was skipped: what was not finite in a batch would
    otherwise stay in them for good, and every later evaluation would be of NaN.

    Args:
        module: in training mode; parts of it that are not (teachers, frozen ones) do not count.
    """

    def __init__(self, module: nn.Module) -> None:
        norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._NormBase)]
        found = [(norm.running_mean, norm.running_var) for norm in norms if norm.training and norm.track_running_stats]
        self._now = [tensor for pair in found for tensor in pair if tensor is not None]
        self._sizes = [tensor.numel() for tensor in self._now]
        self.keep()

    def _flat(self) -> Tensor:
        return torch.cat([tensor.flatten() for tensor in self._now])

    @torch.no_grad()
    def keep(self) -> None:
        """Take them as they are for good, as after loading a checkpoint."""
        if self._now:
            self._kept = self._flat()

    @torch.no_grad()
    def after_step(self, skipped: Tensor) -> None:
        """Keep those of a step that counts; of a skipped one put back those of before. The device is not waited for.

        Args:
            skipped: 1.0 or 0.0.
        """
        if self._now:
            self._kept = torch.where(skipped > 0, self._kept, self._flat())  # in one piece: norms are many and small
            kept = zip(self._now, self._kept.split(self._sizes), strict=True)
            torch._foreach_copy_(self._now, [part.view_as(own) for own, part in kept])
