"""AdamW as masked autoencoders use it, or Muon: parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from dsdmae_cli.errors import CheckpointError
from dsdmae_cli.methods.base import Method
from dsdmae_cli.settings.resolved import ResolvedOptim
from dsdmae_cli.sharding import slice_like, whole

# Two-dimensional or larger, but no weight matrices: they shrink toward zero for no reason under decay.
_NEVER_DECAYED = ("pos_embed", "cls_token", "mask_token")


def parameter_groups(
    module: nn.Module, weight_decay: float, lr_scales: Mapping[str, float] | None = None, muon: bool = False
) -> list[dict[str, Any]]:
    """Trained parameters in groups: weight matrices with decay; biases, norms and tokens without.

    Args:
        lr_scales: factors on the learning rate by parameter name; each makes groups of its own ("lr_scale").
        muon: what Muon moves and what it leaves to AdamW are groups of their own ("use_muon").
    """
    scales = lr_scales or {}
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        spared = parameter.ndim < 2 or name.endswith(_NEVER_DECAYED) or _is_every_images(name, parameter)
        by_muon = muon and not spared and _maps_features(name, parameter)
        groups.setdefault((spared, scales.get(name, 1.0), by_muon), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": 0.0 if spared else weight_decay, "lr_scale": scale}
        | ({"use_muon": by_muon} if muon else {})
        for (spared, scale, by_muon), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def _maps_features(name: str, parameter: Tensor) -> bool:
    """Whether it is a matrix from features to features; a table of positions is none, and a depthwise convolution maps
    each channel to itself.
    """
    return name.endswith("weight") and (parameter.ndim == 2 or parameter.shape[1] > 1)


def _is_every_images(name: str, parameter: Tensor) -> bool:
    """Whether it is added to, or stands beside, what every image of a batch has, as registers, the query of a pooling
    and tables of positions do by whatever name: [1, n, d] or [1, c, h, w]. A convolution's to one channel is a weight.
    """
    return parameter.ndim > 2 and parameter.shape[0] == 1 and not name.endswith("weight")


def build_optimizer(method: Method, settings: ResolvedOptim) -> Optimizer:
    """Fused AdamW, which can skip a step by a flag on the device instead of a question to it; or Muon, which asks."""
    muon = settings.optimizer == "muon"
    groups = parameter_groups(method, settings.weight_decay, method.lr_scales(), muon)
    if muon:
        # It comes with timm, which takes longer to import than torch.
        from dsdmae_cli.muon import Muon

        return Muon(groups, lr=settings.lr, betas=settings.betas)
    return AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)


def clipped_norm(parameters: Sequence[nn.Parameter], largest: float | None) -> Tensor:
    """The norm of all gradients together, which are then scaled down to `largest` where it is more; None = never."""
    norm = whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if largest is not None:
        nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm


def learning_rate(step: int, total_steps: int, warmup_steps: float, peak: float, lowest: float) -> float:
    """Rate of the step number `step` (from 0): linear warm-up from 0, then half a cosine down to `lowest`.

    The formula of facebookresearch/mae (util/lr_sched.py), with steps for epochs.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return lowest + (peak - lowest) * 0.5 * (1 + math.cos(math.pi * progress))


def reach(settings: ResolvedOptim, total_steps: int, steps_per_epoch: int) -> float:
    """How far a weight can move in a run, about: AdamW moves it by no more than the step's learning rate, so their sum.

    Weights begin with a standard deviation of about 0.02.
    """
    warmup = settings.warmup_epochs * steps_per_epoch
    rates = (learning_rate(step, total_steps, warmup, settings.lr, settings.min_lr) for step in range(total_steps))
    return sum(rates)


# -- what a checkpoint keeps of it


def optimizer_tensors(optimizer: Optimizer, names: dict[int, str]) -> dict[str, Tensor]:
    """An optimiser's state as flat tensors "optimizer/<entry>/<parameter's name>"; `names` maps id(parameter).

    What belongs to a sharded parameter is sharded too (sharding.joined).
    """
    return {
        f"optimizer/{entry}/{names[id(parameter)]}": value
        for parameter, state in optimizer.state.items()
        for entry, value in state.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: Optimizer, names: dict[int, str], tensors: dict[str, Tensor]) -> None:
    """The inverse of optimizer_tensors.

    Raises:
        CheckpointError: a parameter's moments are missing, of another shape or not floating: fused kernels trust them,
            and would write beyond a smaller tensor.
    """
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, rest = key.partition("/")
        if kind == "optimizer":
            entry, _, name = rest.partition("/")
            by_name.setdefault(name, {})[entry] = value
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            # Muon has its moments from the beginning, and AdamW's counts on the host, which would else wait for each.
            begun = optimizer.state.get(parameter, {})
            state = by_name.pop(name, None)
            if state is None and begun:
                raise CheckpointError(_not_its_own(f"knows nothing of {name}"))
            if state is None:  # one that no gradient has reached
                continue
            _check_moments(name, parameter, state, group.get("use_muon", False))
            optimizer.state[parameter] = {
                entry: slice_like(value, parameter).to(begun.get(entry, parameter).device)
                for entry, value in state.items()
            }
    if by_name:
        raise CheckpointError(_not_its_own(f"knows {sorted(by_name)[0]}, which is not trained here"))
    if not optimizer.state:
        raise CheckpointError(_not_its_own("knows none of the weights that are trained"))


def _check_moments(name: str, parameter: Tensor, state: dict[str, Tensor], muon: bool) -> None:
    """Whether what a checkpoint holds for a parameter is what AdamW, or Muon, keeps of it."""
    found = {entry: (tuple(value.shape), value.is_floating_point()) for entry, value in state.items()}
    whole = (tuple(parameter.shape), True)
    kept = {"momentum_buffer": whole} if muon else {"exp_avg": whole, "exp_avg_sq": whole, "step": ((), True)}
    if found != kept:
        what = ", ".join(f"{entry} {list(shape)}" for entry, (shape, _) in sorted(found.items()))
        raise CheckpointError(_not_its_own(f"holds {what} for {name} of shape {list(parameter.shape)}"))


def _not_its_own(what: str) -> str:
    return f"the checkpoint's optimiser {what}; it is damaged or another run's: remove its folder to use the one before"
