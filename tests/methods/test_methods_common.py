"""What every method promises, whoever wrote it: one suite over all that are installed, found as users find them.

What a method computes is in a test file of its own; this one asks no method for its name.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import cli, digit_folder, records, settings, train, untimed
from PIL import Image

from dsdmae_cli import checkpoint
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.methods.base import Method
from dsdmae_cli.plugins import BrokenPlugin, discover
from dsdmae_cli.runs.build import build_method
from dsdmae_cli.testing import methods as testing
from dsdmae_cli.testing.material import digit_images
from dsdmae_cli.testing.methods import batch_of, losses_and_gradient

METHODS = [plugin.name for plugin in discover("method") if not isinstance(plugin, BrokenPlugin)]
CPU = torch.device("cpu")
# Twelve epochs of four steps, with all the rates a run of this size can bear.
RUN = (
    *("train.epochs=12", "train.checkpoint_every=6", "optim.lr=3e-3", "optim.warmup_epochs=1"),
    *("data.shift=1", "data.crop_scale=[0.2,1.0]"),  # the same for all, also for those that want smaller crops
)

pytestmark = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_folder(tmp_path_factory.mktemp("digits"), train=34, test=4)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits with every class in both splits; too few to draw a map of, which would take longer than all the rest."""
    return digit_folder(tmp_path_factory.mktemp("judged"), train=75, test=19)


@pytest.fixture(scope="module")
def runs(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One run of each method on real images, made when it is first asked for: (folder, result)."""
    made: dict[str, tuple[Path, dict[str, Any]]] = {}

    def run(name: str) -> tuple[Path, dict[str, Any]]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name) / "run"
            made[name] = (folder, train(digits, folder, *RUN, method=name))
        return made[name]

    return run


def build(name: str, *more: str) -> Method:
    return build_method(resolve(settings("digits", *more, method=name).settings))


def test_its_loss_falls(name: str, runs: Any) -> None:
    folder, result = runs(name)
    losses = [record["loss"] for record in records(folder) if "loss" in record]
    assert len(losses) == 48
    assert all(map(math.isfinite, losses))
    assert sum(losses[-12:]) < 0.95 * sum(losses[:12])
    assert result["skipped_steps"] == 0


def test_a_resumed_run_is_the_same_run(name: str, runs: Any, digits: Path, tmp_path: Path) -> None:
    whole, _ = runs(name)
    half = tmp_path / "run"
    shutil.copytree(whole, half)
    newest, earlier = checkpoint.newest_first(half / "checkpoints")
    shutil.rmtree(newest)
    (half / "encoder.safetensors").unlink()
    (half / "result.json").unlink()
    train(digits, half, *RUN, method=name, resume=True)
    assert earlier.name == "step-00000024"
    assert untimed(half) == untimed(whole)
    weights = "encoder.safetensors", f"checkpoints/{newest.name}/model.safetensors"
    for file in (*weights, f"checkpoints/{newest.name}/training.safetensors"):
        assert (half / file).read_bytes() == (whole / file).read_bytes(), file


def test_timm_loads_its_encoder(name: str, runs: Any) -> None:
    folder, result = runs(name)
    model = eval(result["load_with"], {"timm": timm}).eval()  # what the program tells people to type
    method = build(name)
    found, _ = checkpoint.load_newest(folder / "checkpoints")
    assert found is not None
    checkpoint.load_into(method, found.model, str(folder))
    encoder = method.encoder().eval()
    assert isinstance(encoder, Backbone)
    with torch.no_grad():
        assert torch.equal(model.forward_features(digit_images(3))[:, -16:], encoder(digit_images(3)))


def test_probe_reads_its_encoder(
    name: str, runs: Any, judged: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, _ = runs(name)
    command = ["probe", folder, "--kind", "knn", "--dataset", f"folder:{judged}", "--set", "probe.k=[1,3]"]
    code, out, err = cli(capfd, *command, "--device", "cpu", "--out", tmp_path / "probed", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert (result["method"], result["subject"], result["num_images"]) == (name, "run", 19)
    weights = checkpoint.load_weights(folder / "encoder.safetensors")
    assert result["weights_sha256"] == checkpoint.weights_sha256(weights)
    assert 0.3 < result["top1"] <= 1  # of ten digits, seven or eight training images each


@pytest.mark.parametrize(
    "promise",
    [
        testing.all_but_teachers_learn, testing.skipped_step_changes_nothing, testing.randomness_is_the_generators,
        testing.batch_may_be_cut, testing.bf16_is_near_fp32, testing.shows_pictures,
    ],
    ids=lambda promise: promise.__name__,
)  # fmt: skip
def test_it_keeps_what_methods_promise(name: str, promise: Callable[[Method], None]) -> None:
    """The functions that check_method runs for a plugin's author; test_testing.py shows that they can fail."""
    promise(build(name))


def test_it_learns_from_rectangles(name: str) -> None:
    testing.learns_from_rectangles(name)


def test_only_one_kind_of_picture_is_enlarged(name: str) -> None:
    with torch.no_grad():
        shown = build(name).eval().show(*batch_of(build(name), 3))
    assert len({tuple(tiles.shape) for tiles in shown.values()}) <= 2


def test_a_run_leaves_its_pictures(name: str, runs: Any) -> None:
    """Whatever it shows, at five moments and all of them on one page."""
    folder, result = runs(name)
    files = {path.name for path in (folder / "figures").glob("*.png")}
    [page] = files & {"restored.png", "shown.png"}
    method = build(name).eval()
    patches = {file for file in files if file.startswith("patches")}
    assert len(patches) == (6 if method.learns_features and min(method.encoder().grid) >= 4 else 0)
    files -= patches
    stem = page.removesuffix(".png")
    assert files == {page, *(f"{stem}-step-{step:08d}.png" for step in (0, 12, 24, 36, 48))}
    with torch.no_grad():
        shown = method.show(*batch_of(method, 3))
    rows = {}
    for file in files:
        with Image.open(folder / "figures" / file) as picture:
            rows[file] = picture.height // 100  # of a row of tiles, with its gap
    assert {height for file, height in rows.items() if file != page} == {len(shown) + 1}
    assert len(shown) + 1 <= rows[page] <= 5 * len(shown) + 1
    assert result["pictures"] == str(folder / "figures")


@pytest.mark.slow
@pytest.mark.long_but("dsdmae", "mae")
@pytest.mark.timeout(1200)  # a loaded machine takes minutes to compile
@pytest.mark.usefixtures("unchecked_shapes")
def test_compiled_is_as_eager(name: str) -> None:
    method = build(name)
    eager, right = losses_and_gradient(method, nullcontext())
    torch._dynamo.reset()
    method.compile()
    compiled, gradient = losses_and_gradient(method, nullcontext())
    for key, value in compiled.items():
        assert value == pytest.approx(eager[key], rel=1e-4), key
    torch.testing.assert_close(gradient, right, rtol=1e-3, atol=1e-5)
