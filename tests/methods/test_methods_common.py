"""What every method promises, whoever wrote it: one suite over all that are installed, found as users find them.

What a method computes is in a test file of its own; this one asks no method for its name.
"""

from __future__ import annotations

import json
import math
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import cli, digit_folder, records, settings, train, untimed
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from dsdmae_cli import checkpoint
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.data.source import seeded
from dsdmae_cli.methods.base import Method, StepInfo
from dsdmae_cli.methods.ema import EMATeacher
from dsdmae_cli.methods.frozen import Frozen
from dsdmae_cli.plugins import BrokenPlugin, discover
from dsdmae_cli.runs.build import build_method

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


def digit_images(count: int) -> Tensor:
    """Real images, [b, 3, 16, 16] in [-1, 1]."""
    from sklearn.datasets import load_digits

    grey = torch.from_numpy(load_digits().images[:count]).float() / 8 - 1
    return torch.nn.functional.interpolate(grey[:, None].expand(-1, 3, -1, -1), size=16, mode="bilinear")


def batch_of(method: Method, count: int = 8) -> tuple[Tensor, Any]:
    images = method.as_views(digit_images(count))
    return images, method.corrupt(images, seeded(CPU, 1))


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


def test_all_but_teachers_learn(name: str) -> None:
    """Every trained weight has a gradient, or DistributedDataParallel waits for it in vain; no teacher's has one."""
    method = build(name).train()
    losses = method(*batch_of(method))
    assert [key for key, value in losses.items() if value.requires_grad] == ["loss"]
    losses["loss"].backward()
    teachers = [part for part in method.modules() if isinstance(part, EMATeacher | Frozen)]
    taught = {id(p) for part in teachers for p in part.parameters()}
    for key, parameter in method.named_parameters():
        if id(parameter) in taught:
            assert not parameter.requires_grad, key
        assert (parameter.grad is not None) == parameter.requires_grad, key
    assert not any(part.training for teacher in teachers for part in teacher.modules())
    assert all(p.requires_grad or id(p) in taught or "pos_embed" in k or "patch_embed" in k
               for k, p in method.named_parameters())  # fmt: skip


def test_a_skipped_step_leaves_teachers_alone(name: str) -> None:
    method = build(name)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    method.after_step(StepInfo(1, 10, 5, torch.ones(())))
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())


def test_randomness_is_the_generators_alone(name: str) -> None:
    method = build(name)
    images = method.as_views(digit_images(8))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, again, other = (tree_leaves(method.corrupt(images, seeded(CPU, seed))) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    # A method that draws nothing (a tokenizer) has nothing that could differ.
    assert not first or not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    corruption = method.corrupt(images, seeded(CPU, 1))
    values = [method.eval()(images, corruption)["loss"].item() for _ in range(2)]
    assert values[0] == values[1]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_may_be_cut_unless_it_says_otherwise(name: str) -> None:
    """The engine accumulates micro-batches: the mean of their losses must be the loss of the batch."""
    method = build(name).eval()
    with torch.no_grad():
        images, corruption = batch_of(method)
        whole = method(images, corruption)
        parts = [
            method(images[half], tree_map_only(Tensor, lambda tensor, half=half: tensor[half], corruption))
            for half in (slice(None, 4), slice(4, None))
        ]
    for key, value in whole.items():
        mean = (parts[0][key] + parts[1][key]) / 2
        if not method.whole_batch:
            torch.testing.assert_close(mean, value, rtol=1e-5, atol=1e-6)
    if method.whole_batch:
        assert abs((parts[0]["loss"] + parts[1]["loss"]) / 2 - whole["loss"]) > 1e-3 * whole["loss"]


def losses_and_gradient(method: Method, autocast: Any) -> tuple[dict[str, float], Tensor]:
    method.zero_grad()
    with autocast:
        losses = method(*batch_of(method, 16))
    losses["loss"].backward()
    encoder = [p.grad.flatten() for p in method.encoder().parameters() if p.grad is not None]
    return {key: value.item() for key, value in losses.items()}, torch.cat(encoder)


def test_bf16_stays_near_fp32(name: str) -> None:
    method = build(name)
    exact, right = losses_and_gradient(method, nullcontext())
    rounded, gradient = losses_and_gradient(method, torch.autocast("cpu", torch.bfloat16))
    for key, value in rounded.items():
        assert value == pytest.approx(exact[key], rel=0.03, abs=0.003), key
    assert torch.nn.functional.cosine_similarity(gradient, right, dim=0) > 0.9


def test_its_pictures_are_pictures(name: str) -> None:
    method = build(name).eval()
    with torch.no_grad():
        shown = method.show(*batch_of(method, 3))
    for row, tiles in shown.items():
        assert tiles.shape[:2] == (3, 3), row
        assert tiles.isfinite().all(), row
    assert len({tuple(tiles.shape) for tiles in shown.values()}) <= 2  # at most one enlarged kind


def test_a_run_leaves_its_pictures(name: str, runs: Any) -> None:
    """Whatever it shows, at five moments and all of them on one page."""
    folder, result = runs(name)
    files = {path.name for path in (folder / "figures").glob("*.png")}
    [page] = files & {"restored.png", "shown.png"}
    stem = page.removesuffix(".png")
    assert files == {page, "curves.png", *(f"{stem}-step-{step:08d}.png" for step in (0, 12, 24, 36, 48))}
    method = build(name).eval()
    with torch.no_grad():
        shown = method.show(*batch_of(method, 3))
    rows = {}
    for file in files - {"curves.png"}:
        with Image.open(folder / "figures" / file) as picture:
            rows[file] = picture.height // 100  # of a row of tiles, with its gap
    assert {height for file, height in rows.items() if file != page} == {len(shown) + 1}
    assert len(shown) + 1 <= rows[page] <= 5 * len(shown) + 1
    assert result["pictures"] == str(folder / "figures")


@pytest.mark.slow
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
