"""`dsdmae finetune`: what it trains, what it leaves, and that nothing is lost on the way."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm  # noqa: F401  (load_with names it)
import torch
from helpers import (
    SLOW_DRIVER,
    cli,
    digit_folder,
    listing,
    one_line,
    records,
    start,
    steps_done,
    train,
    untimed,
    wait_until,
)
from PIL import Image
from small_runs import TUNED_QUICKLY, stopped_after, tune
from torch import Tensor

from dsdmae_cli.config.compose import compose
from dsdmae_cli.config.given import Given
from dsdmae_cli.config.schema import FINETUNE, PROBE, Schema
from dsdmae_cli.data.rand_augment import RandAugment
from dsdmae_cli.data.source import seeded
from dsdmae_cli.errors import SettingsError
from dsdmae_cli.evaluation import classifying, judging
from dsdmae_cli.methods.base import StepInfo
from dsdmae_cli.optim import parameter_groups
from dsdmae_cli.recipes import gather
from dsdmae_cli.runs.build import build_backbone
from dsdmae_cli.runs.run import Run
from dsdmae_cli.settings.judge import FinetuneSection
from dsdmae_cli.tasks.classifier import AttentiveProbe, Classifier, MixedBatch

FILES = {
    "settings.toml", "run.json", "metrics.jsonl", "result.json", "classifier.safetensors", ".lock", "figures",
    "report.html",
    *(f"figures/{name}.png" for name in ("confusion", "classes", "mistakes", "pca", "tsne")),
    *(f"figures/{name}.svg" for name in ("loss", "accuracy", "learning-rate", "gradient")),
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_folder(tmp_path_factory.mktemp("digits"), train=60, test=30)


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pre-training run."""
    out = tmp_path_factory.mktemp("pretrained")
    train(digits, out)
    return out


def small_backbone(depth: int = 2, seed: int = 0, class_token: bool = False) -> Any:
    flags = [f"backbone.depth={depth}", "backbone.embed_dim=16", "backbone.num_heads=2", "backbone.patch_size=4"]
    settings = compose(
        FINETUNE, assignments=["data.dataset=digits", *flags, f"backbone.class_token={str(class_token).lower()}"],
        environ={},
    ).settings  # fmt: skip
    return build_backbone(settings.backbone, 16, seed)


# -- what a run leaves


def test_the_files_and_the_result_of_a_run(run: Path, tmp_path: Path, drawn: None) -> None:
    out = tmp_path / "tuned"
    result = tune(run, out)
    left = {name for name in listing(out) if not name.startswith("checkpoints")}
    assert left == FILES
    assert json.loads((out / "result.json").read_text()) == result
    assert result["kind"] == "finetune"
    assert result["num_images"] == 30
    low, high = result["top1_interval"]
    assert low <= result["top1"] <= high
    assert np.trace(np.array(result["confusion"])) == round(result["top1"] * 30)
    assert result["pretrain_epochs"] == 2
    assert result["pretrain_flops"] > 0
    assert result["flops"] > 0
    assert "the last epoch is judged" in result["protocol"]
    assert "no augmentation" in result["protocol"]
    for record in records(out):
        assert {"loss", "accuracy", "lr"} <= record.keys()


def test_timm_loads_the_classifier(run: Path, tmp_path: Path, digits: Path) -> None:
    result = tune(run, tmp_path / "tuned", "train.epochs=6")
    network = eval(result["load_with"]).eval()  # what the program tells people to type
    right = total = 0
    for file in sorted((digits / "test").rglob("*.png")):
        pixels = torch.from_numpy(np.asarray(Image.open(file).convert("RGB")).copy()).permute(2, 0, 1).float()
        answer = int(network((pixels / 127.5 - 1).unsqueeze(0)).argmax())
        right, total = right + (answer == int(file.parent.name)), total + 1
    assert right / total == pytest.approx(result["top1"])


def test_from_scratch_has_the_architecture_of_another_run(run: Path, tmp_path: Path) -> None:
    result = tune("scratch", tmp_path / "tuned", like=run)
    assert result["method"] == "scratch"
    assert result["pretrain_epochs"] is None
    mine = safetensors.torch.load_file(tmp_path / "tuned" / "classifier.safetensors")
    theirs = safetensors.torch.load_file(run / "encoder.safetensors")
    assert {k: v.shape for k, v in mine.items() if "head" not in k} == {k: v.shape for k, v in theirs.items()}


def test_training_starts_from_the_pretrained_weights(run: Path, tmp_path: Path) -> None:
    tune(run, tmp_path / "tuned", "optim.lr=1e-12", "train.epochs=1")
    mine = safetensors.torch.load_file(tmp_path / "tuned" / "classifier.safetensors")
    theirs = safetensors.torch.load_file(run / "encoder.safetensors")
    for name, weights in theirs.items():
        assert torch.allclose(mine[name], weights, atol=1e-7), name
    other = tmp_path / "other"
    tune("scratch", other, "optim.lr=1e-12", "train.epochs=1", "train.seed=1", like=run)
    random = safetensors.torch.load_file(other / "classifier.safetensors")
    assert not torch.allclose(random["blocks.0.mlp.fc1.weight"], theirs["blocks.0.mlp.fc1.weight"], atol=1e-2)


# -- resumption


@pytest.mark.parametrize("more", [(), ("finetune.rand_augment=rand-m9-mstd0.5-inc1", "data.workers=1")], ids=["", "ra"])
def test_a_resumed_run_equals_an_uninterrupted_one(more: tuple[str, ...], run: Path, tmp_path: Path) -> None:
    strong = (
        "finetune.mixup=0.8", "finetune.cutmix=1.0", "finetune.random_erasing=0.5", "finetune.ema=0.9",
        "finetune.validation=0.3", "finetune.select=best", "backbone.drop_path=0.2", "data.flip=true",
        "optim.layer_decay=0.7", "train.epochs=3", "train.micro_batch=4", *more,
    )  # fmt: skip
    whole = tmp_path / "whole"
    tune(run, whole, *strong)

    parted = tmp_path / "parted"
    with stopped_after(7, "dsdmae finetune --resume"):  # within the second epoch
        tune(run, parted, *strong)
    tune(run, parted, *strong, resume=True)
    assert untimed(parted) == untimed(whole)
    name = "classifier.safetensors"
    assert (parted / name).read_bytes() == (whole / name).read_bytes()


def test_a_finished_run_is_not_judged_again(
    tuned_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = shutil.copytree(tuned_run, tmp_path / "copy")

    def judge(*given: Any) -> Any:
        raise AssertionError("the test images are looked at")

    monkeypatch.setattr(classifying.Classification, "judge", judge)
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    code, out, err = cli(capfd, "finetune", "--resume", "--out", copied)
    assert code == 0, err
    assert f"finished already, in {copied}" in err
    assert "top-1" in out
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def test_a_signal_stops_and_resume_goes_on(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    words = [word for text in (*TUNED_QUICKLY, "train.epochs=40") for word in ("--set", text)]
    process = start("-c", SLOW_DRIVER, "finetune", run, "--out", out, *words)
    wait_until(lambda: steps_done(out) >= 2, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"dsdmae finetune --resume --out {out}" in err


def test_the_best_epoch_is_chosen_without_the_test_images(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks at a test image before the last step has a choice to make by it."""
    seen: set[int] = set()
    now = [0]
    stepped, open_labelled = Run.stepped, judging.open_labelled

    def counted(self: Run, step: int) -> None:
        now[0] = step
        stepped(self, step)

    def watched(*given: Any) -> Any:
        judged = open_labelled(*given)
        load = judged.test.load

        def watched_load(index: int) -> Any:
            seen.add(now[0])
            return load(index)

        monkeypatch.setattr(judged.test, "load", watched_load)
        return judged

    monkeypatch.setattr(Run, "stepped", counted)
    monkeypatch.setattr(classifying, "open_labelled", watched)
    result = tune(run, tmp_path / "tuned", "finetune.validation=0.3", "finetune.select=best", "train.epochs=4")
    assert len([r for r in records(tmp_path / "tuned") if "validation" in r]) == 4
    seen.discard(0)  # before training they are compared with the training images, which is no choice
    assert seen == {result["steps"]}


def test_resume_takes_the_command_that_began_the_run(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copytree(run, tmp_path / "copy")
    code, _, err = cli(capfd, "finetune", "--resume", "--out", copied)
    assert code == 2
    assert "holds no run of `dsdmae finetune`" in one_line(err)


# -- what is refused


@pytest.fixture
def refuse(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    def refused(*words: str | Path) -> str:
        out = tmp_path / "refused"
        code, printed, err = cli(capfd, "finetune", *words, "--out", out)
        assert code == 2
        assert printed == ""
        assert not out.exists()
        return one_line(err)

    return refused


def test_bad_input_is_one_line_and_leaves_nothing(
    run: Path, digits: Path, tmp_path: Path, refuse: Callable[..., str]
) -> None:
    assert "say what to judge" in refuse()
    assert "there is no nowhere" in refuse("nowhere")
    assert "--like is for scratch and pixels" in refuse(run, "--like", run)
    assert "finetune.validation" in refuse(run, "--set", "finetune.select=best")
    assert "class token" in refuse(run, "--pool", "cls")
    assert "rand-m9-mstd0.5-inc1" in refuse(run, "--set", "finetune.rand_augment=nonsense")
    assert "trained with backbone.depth" in refuse(run, "--set", "backbone.depth=7")
    odd = refuse(run, "--set", "finetune.mixup=0.8", "--set", "train.batch_size=8", "--set", "train.micro_batch=1")
    assert "even --batch-size" in odd

    flat = tmp_path / "flat"
    flat.mkdir()
    for index, file in enumerate(sorted((digits / "train").rglob("*.png"))):
        shutil.copy(file, flat / f"{index}.png")
    assert "have no labels" in refuse(run, "--dataset", f"folder:{flat}")

    more = shutil.copytree(digits, tmp_path / "more")
    (more / "test" / "3").rename(more / "test" / "three")
    print(refuse(run, "--dataset", f"folder:{more}"))
    assert "three" in refuse(run, "--dataset", f"folder:{more}")


# -- the method, against formulas


def test_the_loss_is_soft_cross_entropy() -> None:
    method = Classifier(FinetuneSection(label_smoothing=0.1), small_backbone(), 5, 1.0).double()
    images = torch.rand(6, 3, 16, 16, dtype=torch.float64) * 2 - 1
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    corruption = method.corrupt_labelled(images, labels, seeded(torch.device("cpu"), 3))
    assert torch.equal(corruption.images, images)
    losses = method(images, MixedBatch(images, corruption.targets.double(), labels))
    logits = method.network(images).detach().float().numpy().astype(np.float64)
    expected = 0.0
    for row, label in zip(logits, labels.tolist(), strict=True):
        p = np.exp(row) / np.exp(row).sum()
        wanted = [0.1 / 5 + 0.9 * (k == label) for k in range(5)]
        expected -= sum(w * np.log(q) for w, q in zip(wanted, p, strict=True)) / 6
    assert float(losses["loss"].detach()) == pytest.approx(expected, rel=1e-5)
    assert float(losses["accuracy"]) == pytest.approx(np.mean(logits.argmax(1) == labels.numpy()))


def test_class_weights_are_those_of_the_targets() -> None:
    method = Classifier(FinetuneSection(label_smoothing=0.1), small_backbone(), 4, 1.0).double()
    before = set(method.state_dict())
    method.weigh_classes(torch.tensor([0] * 6 + [1] * 3 + [3]))
    weights = np.array([10 / 18, 10 / 9, 0.0, 10 / 3])
    images, labels = torch.rand(5, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 3, 0, 1])
    targets = method.corrupt_labelled(images, labels, seeded(torch.device("cpu"), 3)).targets.double()
    found = method(images, MixedBatch(images, targets, labels))["loss"]
    log_p = method.network(images).float().log_softmax(dim=1).detach().numpy()
    assert float(found.detach()) == pytest.approx(-(weights * targets.numpy() * log_p).sum() / 5, rel=1e-5)
    assert set(method.state_dict()) == before  # checkpoints are what they were


def test_mixup_mixes_images_and_labels_alike() -> None:
    method = Classifier(FinetuneSection(mixup=0.8), small_backbone(), 8, 1.0)
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8)
    mixed = method.corrupt_labelled(images, labels, seeded(torch.device("cpu"), 1))
    shares = mixed.targets.diagonal()
    assert torch.allclose(mixed.targets.sum(dim=1), torch.ones(8), atol=1e-6)
    expected = shares[:, None, None, None] * images + (1 - shares[:, None, None, None]) * images.flip(0)
    assert torch.allclose(mixed.images, expected, atol=1e-5)
    assert 0 < float(shares[0]) < 1
    again = method.corrupt_labelled(images, labels, seeded(torch.device("cpu"), 1))
    other = method.corrupt_labelled(images, labels, seeded(torch.device("cpu"), 2))
    assert torch.equal(again.images, mixed.images)
    assert not torch.equal(other.images, mixed.images)


def test_erasing_draws_a_rectangle_of_noise_and_leaves_the_batch_alone() -> None:
    method = Classifier(FinetuneSection(random_erasing=1.0), small_backbone(), 3, 1.0)
    images = torch.full((16, 3, 16, 16), 9.0)
    torch.manual_seed(0)
    erased = method.corrupt_labelled(images, torch.zeros(16, dtype=torch.int64), seeded(torch.device("cpu"), 5)).images
    assert bool((images == 9).all())
    touched = (erased != 9).any(dim=1)
    assert bool(touched.flatten(1).any(dim=1).all())
    for mask in touched:
        rows, columns = mask.any(dim=1), mask.any(dim=0)
        assert int(mask.sum()) == int(rows.sum()) * int(columns.sum())  # one rectangle


def test_layer_decay_is_beits() -> None:
    """lr of layer l = decay^(L + 1 - l): 0 the embedding, 1..L the blocks, L + 1 the head (BEiT, MAE)."""
    depth, decay = 3, 0.5
    method = Classifier(FinetuneSection(), small_backbone(depth, class_token=True), 4, decay)
    scales = method.lr_scales()
    for name, parameter in method.named_parameters():
        if not parameter.requires_grad:
            continue
        if ".blocks." in name:
            layer = int(name.split(".blocks.")[1].split(".")[0]) + 1
        else:
            stem = any(part in name for part in ("patch_embed", "cls_token", "pos_embed"))
            layer = 0 if stem else depth if ".norm." in name else depth + 1
        assert scales[name] == pytest.approx(decay ** (depth + 1 - layer)), name
    groups = parameter_groups(method, 0.05, scales)
    by_id = {id(p): group for group in groups for p in group["params"]}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert by_id[id(parameter)]["lr_scale"] == scales[name]
            spared = parameter.ndim < 2 or name.endswith("cls_token")
            assert by_id[id(parameter)]["weight_decay"] == (0 if spared else 0.05)


def test_the_average_of_the_weights_is_what_is_judged() -> None:
    method = Classifier(FinetuneSection(ema=0.75), small_backbone(), 3, 1.0)
    before = {name: p.clone() for name, p in method.network.named_parameters()}
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter.add_(1.0)
    method.after_step(StepInfo(50, 100, 5, torch.zeros(())))
    assert method.judged() is not method.network
    for name, parameter in method.judged().named_parameters():
        assert torch.allclose(parameter, before[name] + 0.25, atol=1e-6)
    assert method.encoder() is method.judged().backbone


def test_what_a_short_run_judges_is_not_its_first_weights() -> None:
    """`strong` keeps 0.9995, of which 100 steps would leave 95% of the weights that the run began with."""
    method = Classifier(FinetuneSection(ema=0.9995), small_backbone(), 3, 1.0)
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter.fill_(1.0)
    for step in range(1, 101):
        method.after_step(StepInfo(step, 100, 10, torch.zeros(())))
    for parameter in method.judged().parameters():
        assert torch.allclose(parameter, torch.ones(()), atol=1e-6)


def test_rand_augment_is_drawn_by_its_seed_alone() -> None:
    transform = RandAugment("rand-m9-mstd0.5-inc1", 32)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    first = [np.asarray(transform(image, seed)) for seed in range(20)]
    for seed, expected in enumerate(first):
        np.random.seed(seed + 7)
        assert np.array_equal(np.asarray(transform(image, seed)), expected)
    assert len({a.tobytes() for a in first}) > 10
    for seed in range(20, 300):  # every operation at every strength
        assert transform(image, seed).size == (32, 32)
    with pytest.raises(SettingsError, match="RandAugment"):
        RandAugment("magnitude", 32)


def test_attentive_heads_share_nothing_but_the_encoder() -> None:
    torch.manual_seed(0)
    probe = AttentiveProbe(small_backbone(), 4, [1e-3, 1e-2])
    images, labels = torch.rand(8, 3, 16, 16) * 2 - 1, torch.arange(8) % 4
    losses = probe(images, labels)
    losses["loss"].backward()
    assert all(p.grad is None for p in probe.backbone.parameters())
    gradients: list[list[Tensor]] = [[p.grad.clone() for p in head.parameters()] for head in probe.heads]  # type: ignore[union-attr]
    for index, head in enumerate(probe.heads):
        head.zero_grad()
        torch.nn.functional.cross_entropy(probe.logits(images)[index], labels).backward()
        for together, parameter in zip(gradients[index], head.parameters(), strict=True):
            assert parameter.grad is not None
            assert torch.allclose(together, parameter.grad, atol=1e-7)
    scales = probe.lr_scales()
    assert {scales[name] for name in scales if name.startswith("heads.0")} == {1e-3}
    assert {scales[name] for name in scales if name.startswith("heads.1")} == {1e-2}
    assert probe.train().backbone.training is False


def test_no_judging_code_is_loaded_for_help() -> None:
    done = start("-c", "import sys; from dsdmae_cli.cli import app; print([m for m in sys.modules if m in"
                 " ('torch', 'timm', 'sklearn', 'matplotlib')])")  # fmt: skip
    out, err = done.communicate(timeout=60)
    assert out.strip() == "[]", err
    assert sys.version_info >= (3, 11)


@pytest.mark.parametrize("schema", [FINETUNE, PROBE], ids=["finetune", "probe"])
def test_what_is_judged_is_what_the_command_names(schema: Schema[Any], tmp_path: Path) -> None:
    """And not what a file of another run's settings, or the environment, began with."""
    section = "finetune" if schema is FINETUNE else "probe"
    (tmp_path / "settings.toml").write_text(f'[{section}]\nstart = "runs/other"\n')
    found = gather.judging(Given(subject="scratch", config=tmp_path / "settings.toml"), schema, section)
    assert getattr(found.settings, section).start == "scratch"
    assert found.sources[f"{section}.start"] == "SUBJECT"
    with pytest.raises(SettingsError, match=f"--set {section}.start=a and scratch both say what to judge"):
        gather.judging(Given(subject="scratch", assignments=(f"{section}.start=a",)), schema, section)
