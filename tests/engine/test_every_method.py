"""Every method over two and four processes: what one process computes, and one end for all where one of them sees
another checkpoint or other images.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from every_method import BATCH, drawing_as
from helpers import records, settings, start, train
from slices import apart, furthest
from test_agreement import TORCHRUN, ours

from dsdmae_cli import checkpoint, plugins
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.runs.build import build_method

pytestmark = [pytest.mark.faults, pytest.mark.long, pytest.mark.timeout(1000)]
METHODS = tuple(plugins.names("method"))
CHOSEN = ("train.checkpoint_every=1", "backbone.depth=2", "data.shift=1", f"train.batch_size={BATCH}")
# Of micro-batches of the same size each draws the same; stochastic depth too.
STEPS = 10  # two epochs of 42 images, eight at a time
# Ten steps of AdamW of up to 1e-3 each: a gradient that is rounding alone moves a weight as far as any other.
ROUNDING = {"losses": 1e-3, "first moments": 2e-3, "second moments": 2e-3, "weights": 1e-2}
SAID = {
    "nothing": "CheckpointError: in process {last} of {count}: checkpoint",
    "an older one": "CheckpointError: in process {last} of {count}: checkpoint",
    "other images": "DataError: the processes of this run do not see the same images: 42 images",
}
CUT = ("train.micro_batch=2", "backbone.drop_path=0.3")


def whole(name: str) -> bool:
    """Whether a method needs its batch whole, so that each process draws for its share at once."""
    return build_method(resolve(settings("digits", method=name).settings)).whole_batch


def of_one(folder: Path, digits: Path, name: str, given: list[str], world: int) -> Path:
    """The run of one process, drawn as several would where that is another draw."""
    run = folder / (f"{name} drawn as {world}" if whole(name) else name)
    if not run.exists():
        if whole(name):
            with drawing_as(world):
                train(digits, run, *given, method=name)
        else:
            train(digits, run, *given, method=name)
    return run


def apart_by(mine: Path, theirs: Path) -> dict[str, float]:
    """How far apart two runs are that differ by the order of sums alone."""
    found, expected = (checkpoint.load(checkpoint.newest_first(run / "checkpoints")[0]) for run in (mine, theirs))
    assert found.step == expected.step == STEPS
    lines = zip(records(mine), records(theirs), strict=True)
    pairs = [(one[key], other[key]) for one, other in lines for key in other.keys() - {"images_per_second"}]
    return {
        "losses": max(abs(one - other) / max(abs(other), 1e-3) for one, other in pairs),
        "first moments": furthest(found.training, expected.training, "optimizer/exp_avg/"),
        "second moments": furthest(found.training, expected.training, "optimizer/exp_avg_sq/"),
        "weights": apart(found.model, expected.model, expected.training),
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("alone")


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_compute_what_one_does_and_end_together(
    count: int, alone: Path, digits: Path, tmp_path: Path
) -> None:
    tokenizer = of_one(alone, digits, "tokenizer", [*CHOSEN], 2)
    given = {}
    for name in METHODS:
        asks = plugins.find("method", name).spec.requires is not None
        given[name] = [*CHOSEN, *(() if whole(name) else CUT), *([f"method.tokenizer={tokenizer}"] if asks else [])]
    here = Path(__file__).parent
    environ = {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])}
    process = start(
        *TORCHRUN, str(count), here / "every_method.py", tmp_path, digits, json.dumps(given), environ=environ
    )  # fmt: skip
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, ours(err)
    gaps = {name: apart_by(tmp_path / name, of_one(alone, digits, name, given[name], count)) for name in METHODS}
    print(json.dumps(gaps, indent=1))  # pytest shows it where the next line fails
    assert not [name for name, gap in gaps.items() if any(gap[what] > most for what, most in ROUNDING.items())]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(count)]
    for name in METHODS:
        for case, said in SAID.items():
            heard = {told[name][case] for told in ranks}
            assert len(heard) == 1, (name, case, heard)  # the first says it, the others are told the same
            assert said.format(last=count - 1, count=count) in heard.pop(), (name, case)
        assert not (tmp_path / f"{name} on other images").exists()
        assert {path.name for path in (tmp_path / name / "checkpoints").iterdir()} == {
            f"step-{step:08d}" for step in (STEPS // 2, STEPS)
        }
