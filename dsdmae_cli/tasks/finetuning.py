"""What all fine-tuning has in common: every weight of a network is trained on labels, and what is judged in the end is
the network, or a moving average of it.
"""

from __future__ import annotations

from typing import Generic, TypeVar, cast

from timm.optim._param_groups import param_groups_layer_decay
from torch import Tensor, nn

from dsdmae_cli.backbone import Backbone
from dsdmae_cli.methods.base import StepInfo, SupervisedMethod
from dsdmae_cli.methods.ema import EMATeacher
from dsdmae_cli.settings.judge import FinetuneSection


class Headed(nn.Module):
    """A backbone under a linear layer.

    Args:
        std: of the layer's first weights.
        width: of what it reads; None = that of the backbone's features.
    """

    def __init__(self, backbone: Backbone, num_classes: int, std: float, width: int | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.width if width is None else width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=std)
        nn.init.zeros_(self.head.bias)


N = TypeVar("N", bound=Headed)


class FineTuning(SupervisedMethod, Generic[N]):
    """All weights of a network, trained on labels.

    Args:
        layer_decay: factor on the learning rate from each block to the one before it (Clark et al. 2020, BEiT, MAE).
    """

    class_weights: Tensor | None

    def __init__(self, settings: FinetuneSection, network: N, layer_decay: float) -> None:
        super().__init__()
        self.settings = settings
        self.num_classes = network.head.out_features
        self.layer_decay = layer_decay
        self.network = network
        momentum = settings.ema
        self.average = None if momentum is None else EMATeacher(network, (momentum, momentum), warmup=True)
        # Found anew from the labels wherever a run begins, so that no checkpoint has it.
        self.register_buffer("class_weights", None, persistent=False)

    def after_step(self, info: StepInfo) -> None:
        if self.average is not None:
            self.average.follow(self.network, info)

    def encoder(self) -> Backbone:
        return self.judged().backbone

    def judged(self) -> N:
        """The network whose answers count: the average of the weights, where one is kept."""
        return self.network if self.average is None else cast(N, self.average.module)

    def lr_scales(self) -> dict[str, float]:
        if self.layer_decay == 1:
            return {}
        # timm numbers the layers of what it is given, the last 1; here the head is one above. Its last norm counts
        # to the last block, where BEiT's and MAE's own code counts it to the head.
        groups = param_groups_layer_decay(self.network.backbone.body, layer_decay=self.layer_decay)
        if len({group["lr_scale"] for group in groups}) == 1:  # a backbone that does not say which layers it has
            return {}
        scales = {id(p): group["lr_scale"] * self.layer_decay for group in groups for p in group["params"]}
        return {name: scales.get(id(p), 1.0) for name, p in self.named_parameters()}

    def _weigh(self, weights: Tensor) -> None:
        self.class_weights = weights.float().to(self.network.head.weight.device)
