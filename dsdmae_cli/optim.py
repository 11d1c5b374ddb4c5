"""AdamW as masked autoencoders use it: parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import AdamW

from dsdmae_cli.settings.models import OptimSettings

# Two-dimensional or larger, but no weight matrices: they shrink toward zero for no reason under decay.
_NEVER_DECAYED = ("pos_embed", "cls_token", "mask_token")


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Trained parameters in two groups: weight matrices with decay; biases, norms and tokens without."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        spared = parameter.ndim < 2 or name.endswith(_NEVER_DECAYED)
        (free if spared else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(module: nn.Module, settings: OptimSettings) -> AdamW:
    """Fused AdamW, which can skip a step by a flag on the device instead of a question to it."""
    assert not isinstance(settings.lr, str)
    return AdamW(
        parameter_groups(module, settings.weight_decay),
        lr=settings.lr,
        betas=settings.betas,
        fused=True,
    )


def learning_rate(step: int, total_steps: int, warmup_steps: float, peak: float, lowest: float) -> float:
    """Rate of the step number `step` (from 0): linear warm-up from 0, then half a cosine down to `lowest`.

    The formula of facebookresearch/mae (util/lr_sched.py), with steps for epochs.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return lowest + (peak - lowest) * 0.5 * (1 + math.cos(math.pi * progress))
