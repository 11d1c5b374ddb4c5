"""Values of a sweep that are one computation, and so one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import cli

from dsdmae_cli.ablation.definition import Definition, find_metric
from dsdmae_cli.ablation.dry_run import dry_run
from dsdmae_cli.ablation.plans import Plans
from dsdmae_cli.ablation.sweep import Base, parse_axes
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.runs.build import build_method


def of_sixteen(sweeps: list[tuple[str, str]], **more: Any) -> Plans:
    """The plans of digits at 16 px in patches of 4, by a network of one narrow block."""
    flags = {"data.dataset": "digits", "data.image_size": "16", "backbone.name": "vit-tiny", "backbone.patch_size": "4",
             "backbone.embed_dim": "16", "backbone.num_heads": "2", "backbone.depth": "1"}  # fmt: skip
    base = Base(preset=(), flags=flags).sweeping(sweeps)
    return Plans(Definition(base, parse_axes(sweeps, base), find_metric("knn"), **more))


@pytest.mark.slow
def test_values_that_are_one_computation_are_run_once(tmp_path: Path) -> None:
    once = of_sixteen([("mask-ratio", "0.5,0.85,0.9")]).once()
    assert [point["mask-ratio"] for point in once.points] == ["0.5", "0.85"]
    assert once.twins == {"mask-ratio 0.9": "mask-ratio 0.85"}
    # They are: by each method's own count of the patches.
    maskfeat = ("maskfeat", "0.84,0.85,0.9", ["0.84", "0.85"])
    for method, ratios, kept in (("mae", "0.74,0.7,0.8", ["0.74", "0.8"]), maskfeat):
        found = of_sixteen([("method", method), ("mask-ratio", ratios)]).once()
        assert [point["mask-ratio"] for point in found.points] == kept
        for ratio in ratios.split(","):
            settings = found.settings({"method": method, "mask-ratio": ratio}, 0).settings
            network = build_method(resolve(settings))
            corruption: Any = network.corrupt(torch.zeros(1, 3, 16, 16), torch.Generator().manual_seed(0))
            said = resolve(settings).method.rounded(16)["mask_ratio"]
            assert corruption.ids_masked.shape == (1, round(16 * said))
    # Of other settings nothing is said.
    assert of_sixteen([("lambda", "0.2,0.4"), ("mask-ratio", "0.5,0.75")]).once().twins == {}
    assert of_sixteen([("mask-ratio", "[0.85,0.9],0.9")]).once().twins == {}


def test_a_dry_run_says_which_values_are_one(tmp_path: Path) -> None:
    definition = of_sixteen([("mask-ratio", "0.85,0.9")], seeds=2).definition
    plan, text, _ = dry_run(definition, tmp_path / "study", workers=1, parallel=False)
    assert plan["same"] == {"mask-ratio 0.9": "mask-ratio 0.85"}
    assert [trial["settings"] for trial in plan["trials"]] == [{"mask-ratio": "0.85"}] * 2
    assert "mask-ratio 0.9 is the same computation as mask-ratio 0.85" in text
    assert "total: 2 runs to do" in text


@pytest.mark.slow
def test_a_study_of_the_paper_reads_all_patches_unless_told(digits: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def work(*more: str) -> float:
        tiny = ("backbone.embed_dim=16", "backbone.num_heads=2", "backbone.depth=1", "data.image_size=16", *more)
        given = [word for one in tiny for word in ("--set", one)]
        study = ("--paper", "table3", "--seeds", "1", "--epochs", "1", "--dataset", f"folder:{digits}")
        code, out, err = cli(capfd, "ablate", *study, "--dry-run", "--json", *given)
        assert code == 0, err
        return float(json.loads(out)["trials"][0]["gflop"])

    assert work() == work("method.patch_dropout=0") > 1.5 * work("method.patch_dropout=0.5")
