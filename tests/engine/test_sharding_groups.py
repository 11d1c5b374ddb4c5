"""Two and four processes that divide weights, gradients and moments train as those that have all, and what they saved
one process takes up.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import start
from slices import apart, furthest, listener, made
from test_distributed import TORCHRUN

from dsdmae_cli import checkpoint


def several(count: int, folder: Path, *methods: str) -> dict[str, Any]:
    """What the processes found; what each holds is the most of any of them."""
    here = Path(__file__).parent
    environ = {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])}
    process = start(*TORCHRUN[:-1], str(count), here / "slices.py", folder, *methods, environ=environ)
    _, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    found = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(count)]
    for name in methods:
        for key in ("held", "moments"):
            found[0][name][key] = max(told[name][key] for told in found)
    return found[0]  # type: ignore[no-any-return]


def agrees(found: dict[str, Any], count: int, *methods: str) -> None:
    for name in methods:
        told = found[name]
        # Rounding: sums over micro-batches and processes in another order. A step of AdamW is up to 1e-3 here, of a
        # gradient that is rounding alone (a bias of keys) too.
        assert told["first"] < 2e-5, (name, told)
        assert told["second"] < 2e-5, (name, told)
        assert told["losses"] < 1e-5, (name, told)
        assert told["weights"] < 1e-4, (name, told)
        # Of few rows the first processes have more.
        assert told["held"] < 1.25 / count, (name, told)
        assert told["moments"] < 2.5 / count, (name, told)
    assert found["resumed"] == []
    count_of_one, same, far = found["skipped"]
    assert (count_of_one, same) == (1, 1)
    assert far < 1e-4


def goes_on_alone(folder: Path, name: str) -> None:
    """What several processes saved, one process takes up, and it ends as theirs."""
    alone = made(name, "full")
    found = checkpoint.load(folder / "checkpoints" / "step-00000002")
    checkpoint.load_into(alone.method, found.model, "the checkpoint")
    alone.restore(2, found.training, found.state)
    listener(alone).step = 2
    alone.fit()
    theirs = torch.load(folder / "end.pt")
    ours = {**alone.state()[0], **alone.state()[1]}
    assert furthest(ours, theirs, "optimizer/exp_avg/") < 2e-5
    weights = {key: value for key, value in theirs.items() if "/" not in key}
    assert apart({key: ours[key] for key in weights}, weights, theirs) < 1e-4


@pytest.mark.slow
def test_two_processes_with_slices_train_as_two_with_all(tmp_path: Path) -> None:
    """One cuts its batch, has a teacher and heads; the other's processes exchange features in the midst of a pass."""
    methods = ("dsdmae", "mocov3")
    agrees(several(2, tmp_path, *methods), 2, *methods)
    goes_on_alone(tmp_path, methods[0])


@pytest.mark.slow
def test_four_processes_with_slices_train_as_four_with_all(tmp_path: Path) -> None:
    methods = ("dsdmae", "mae", "sdae", "mocov3")
    agrees(several(4, tmp_path, *methods), 4, *methods)
    goes_on_alone(tmp_path, methods[0])


@pytest.mark.slow
def test_so_do_the_other_methods(tmp_path: Path) -> None:
    methods = ("mae", "sdae", "maskfeat", "beit", "cae", "msa", "tscae", "lejepa", "tokenizer")
    agrees(several(2, tmp_path, *methods), 2, *methods)
