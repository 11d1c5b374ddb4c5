"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) as timm has it.

The momentum of a weight matrix [out, in], or of a convolution as [out, in x rows x columns], is brought to singular
values of about one by five Newton-Schulz steps, and scaled by 0.2 sqrt(its longer side), so that entries move about as
far as AdamW's do, whose rates and decay therefore hold (Liu et al. 2025, arXiv:2502.16982).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import timm.optim
import torch
from torch import Tensor

_MOMENTUM = 0.95
# Of the groups that are not Muon's: AdamW without Nesterov's momentum, and with its own epsilon.
_ADAMW = {"nesterov": False, "eps": 1e-8}


class Muon(timm.optim.Muon):
    """Muon for the groups that say so ("use_muon"), AdamW for the others.

    Args:
        groups: as optim.parameter_groups makes them.
        lr, betas: AdamW's; the rate is Muon's too.
    """

    # Set by the engine before each step, as on torch's fused optimisers: 1 = leave weights, momentum and counts
    # untouched. The host reads it, once a step: Muon is hundreds of small products, and no kernel of them looks at it.
    found_inf: Tensor | None = None

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        divided = [group if group["use_muon"] else {**group, **_ADAMW} for group in groups]
        super().__init__(divided, lr=lr, betas=betas, momentum=_MOMENTUM, nesterov=True)
        # timm makes them in the first step, which may be one that is left out; a checkpoint is not without them.
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = _zeros(parameter, group["use_muon"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if self.found_inf is not None and self.found_inf.item():
            return None
        return super().step(closure)


def _zeros(parameter: Tensor, muon: bool) -> dict[str, Tensor]:
    """What timm keeps of a parameter before its first step."""
    if muon:
        return {"momentum_buffer": torch.zeros_like(parameter)}
    return {
        "step": torch.tensor(0.0),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }
