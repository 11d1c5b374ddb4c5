"""What the checks share: tiny settings on real digits, and a spec that must be read without torch."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

from dsdmae_cli import plugins

if TYPE_CHECKING:
    from torch import Tensor

    from dsdmae_cli.config.schema import Loaded
    from dsdmae_cli.settings.models import Settings

SIDE = 16
# One block of width 32 on 16 tokens, on a CPU and in float32 alike everywhere.
_SMALL = (
    "data.image_size=16",
    "optim.lr=3e-3",
    "optim.warmup_epochs=0.5",
    "train.device=cpu",
    "train.precision=fp32",
    "train.epochs=2",
    "train.batch_size=64",
    "train.log_every=1",
    "train.knn_every=none",
)
_NETWORK = {"patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
# For the methods that have them.
_PARTS = {"decoder_depth": 1, "regressor_depth": 1, "hidden_dim": 24, "out_dim": 12}


def small(*more: str, method: str | None = None, backbone: str | None = None) -> Loaded[Settings]:
    """Settings of a tiny run on digits; `more` are texts as --set takes them, above all others."""
    from dsdmae_cli.config.compose import load

    given = ["data.dataset=digits", *_SMALL]
    if method is not None:
        spec = plugins.find("method", method).spec
        has = spec.settings.model_fields
        if spec.requires is not None:
            given.append(f"method.{spec.requires.epochs}=1")
        given += [f"method.name={method}", *(f"method.{k}={v}" for k, v in _PARTS.items() if k in has)]
    if backbone is not None:
        given.append(f"backbone.name={backbone}")
    else:
        given += [f"backbone.{key}={value}" for key, value in _NETWORK.items()]
    return load(assignments=[*given, *more], environ={})


def digit_images(count: int, side: int = SIDE) -> Tensor:
    """Real images, [b, 3, side, side] in [-1, 1]."""
    import torch
    from sklearn.datasets import load_digits

    grey = torch.from_numpy(load_digits().images[:count]).float() / 8 - 1
    return torch.nn.functional.interpolate(grey[:, None].expand(-1, 3, -1, -1), size=side, mode="bilinear")


def check_spec(kind: plugins.Kind, name: str) -> Any:
    """The plugin's spec, which must be found, say what it is, and be read without torch."""
    spec = plugins.find(kind, name).spec
    assert spec.summary.strip(), f"the summary of {kind} {name!r} is empty; `dsdmae plugins` shows it"
    assert "\n" not in spec.summary, f"the summary of {kind} {name!r} is more than one line"
    code = (
        f"import sys; from dsdmae_cli.plugins import find; find({kind!r}, {name!r}); sys.exit('torch' in sys.modules)"
    )
    read = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert read.returncode == 0, (
        f"the spec of {kind} {name!r} loads torch, which every --help would then wait for; import it in the module"
        f" that `build` names {read.stderr[-300:]}"
    )
    return spec
