"""`dsdmae finetune --task segment`: what it trains, what it leaves and refuses, and that nothing is lost on the way."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import small_runs
import tifffile
import torch
from helpers import cli, digit_folder, listing, one_line, records, start, untimed, words
from PIL import Image
from sklearn.metrics import jaccard_score
from small_runs import stopped_after

from dsdmae_cli.config.schema import Loaded
from dsdmae_cli.errors import CheckpointError, DataError, SettingsError
from dsdmae_cli.evaluation.overlap import mean_iou
from dsdmae_cli.recipes.compare import compare
from dsdmae_cli.recipes.finetune import summary

SEGMENT = ("finetune.task=segment", "optim.lr=3e-3", "data.image_size=24,32")

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def tuned(masked_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "run"
    tune(masked_run, out, "train.epochs=8")
    return out


def load(subject: str | Path, *assignments: str, like: Path | None = None) -> Loaded[Any]:
    return small_runs.tuning(subject, *SEGMENT, *assignments, like=like)


def tune(
    subject: str | Path, out: Path, *assignments: str, like: Path | None = None, resume: bool = False
) -> dict[str, Any]:
    return small_runs.tune(subject, out, *SEGMENT, *assignments, like=like, resume=resume)


# -- what a run leaves


def test_the_files_and_the_result_of_a_run(masked_run: Path, tmp_path: Path, drawn: None) -> None:
    out = tmp_path / "tuned"
    result = tune(masked_run, out, "finetune.validation=0.2")
    left = {name for name in listing(out) if not name.startswith("checkpoints")}
    assert left == {
        "settings.toml", "run.json", "metrics.jsonl", "result.json", "classifier.safetensors", "counts.npz", ".lock",
        "report.html", "figures",
        *(f"figures/{name}.png" for name in ("segmentation", "confusion", "classes")),
        *(f"figures/{name}.svg" for name in ("loss", "accuracy", "learning-rate", "gradient")),
    }  # fmt: skip
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    assert (result["kind"], result["task"], result["num_images"]) == ("finetune", "segment", 6)
    assert (list(result["image_size"]), result["train_images"]) == ([24, 32], 19)  # of 24, 5 are held out
    assert "on 19 images with" in result["protocol"]
    low, high = result["mean_iou_interval"]
    assert low <= result["mean_iou"] <= high
    assert result["void_share"] == pytest.approx(55 / 768)
    assert result["pretrain_epochs"] == 2
    assert result["validation"].keys() == {"epoch", "mean_iou"}
    assert "crops (0.25, 1.0), flips" in result["protocol"]
    with np.load(out / "counts.npz") as kept:
        assert mean_iou(kept["counts"].sum(axis=0)) == result["mean_iou"]
    trained = [record for record in records(out) if "loss" in record]
    assert {"loss", "accuracy", "lr"} <= trained[-1].keys()
    scored = [record["mean_iou"] for record in records(out) if "mean_iou" in record]
    assert max(scored) == result["validation"]["mean_iou"]
    assert f"mean IoU       {result['mean_iou']:.1%} (95% interval" in summary(result)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"Mean IoU {result['mean_iou']:.1%} on 6 test images" in page
    assert "test images, their masks, and what was answered" in page


def test_its_masks_are_those_that_it_was_judged_by(tuned: Path, masked: Path, tmp_path: Path) -> None:
    """The way of `dsdmae predict` to a mask, and scikit-learn's to a mean IoU."""
    masks = tmp_path / "masks"
    answer = predict(tuned, masked / "images" / "test", "--out", masks, "--precision", "fp32", "--json")
    told = json.loads(answer.stdout)
    assert told["classes"] == ["paper", "shade", "ink"]
    predicted, truth = [], []
    for picture in told["pictures"]:
        with Image.open(picture["mask"]) as mask, Image.open(masked / "masks/test" / Path(picture["mask"]).name) as own:
            assert (mask.mode, mask.size) == ("P", own.size)
            predicted.append(np.asarray(mask).ravel())
            truth.append(np.asarray(own).ravel())
        assert sum(picture["shares"].values()) == pytest.approx(1, abs=1e-5)
    mine, theirs = np.concatenate(predicted), np.concatenate(truth)
    judged = theirs != 255
    result = json.loads((tuned / "result.json").read_text())
    assert jaccard_score(theirs[judged], mine[judged], average="macro") == pytest.approx(result["mean_iou"])
    assert np.mean(theirs[judged] == mine[judged]) == pytest.approx(result["pixel_accuracy"])
    assert result["mean_iou"] > 0.3  # a network that has learned nothing says paper everywhere: 0.2


def predict(*given: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dsdmae_cli", "predict", *map(str, given)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_pictures_of_any_size_and_what_cannot_be_read(
    tuned: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for name, (width, height) in {"wide": (150, 31), "tall": (9, 70), "grey": (32, 24)}.items():
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(pictures / f"{name}.png")
    (pictures / "broken.png").write_bytes(b"no picture")
    masks = tmp_path / "masks"
    code, _, err = cli(capfd, "predict", tuned, pictures, "--out", masks)
    assert code == 1
    assert "broken.png" in err
    shapes = {}
    for path in masks.iterdir():
        with Image.open(path) as mask:
            shapes[path.stem] = mask.size
    assert shapes == {"wide": (150, 31), "tall": (9, 70), "grey": (32, 24)}
    code, _, err = cli(capfd, "predict", tuned, pictures / "wide.png", "--out", masks)
    assert (code, "exists; --force replaces it" in err) == (2, True)
    assert cli(capfd, "predict", tuned, pictures / "wide.png", "--out", masks, "--force")[0] == 0
    one = tmp_path / "one.png"
    assert cli(capfd, "predict", tuned, pictures / "wide.png", "--out", one)[0] == 0
    assert one.read_bytes() == (masks / "wide.png").read_bytes()
    code, _, err = cli(capfd, "predict", tuned, pictures / "wide.png", "--out", tmp_path / "one.jpg")
    assert (code, "a mask is a PNG" in one_line(err)) == (2, True)


def test_the_range_and_the_pages_of_pictures_are_told(
    tuned: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page = np.random.default_rng(0).integers(0, 65535, (24, 32), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([page, page]))
    code, _, err = cli(capfd, "predict", tuned, tmp_path / "stack.tif", "--out", tmp_path / "masks")
    assert code == 0
    assert "values of 0 to 65535 are seen as black to white" in err
    assert "its first page is taken" in err


def test_pictures_of_other_bands_and_numbers_get_no_advice_about_settings(
    tuned: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As of a network that names images: `predict` has no --set."""
    bands = np.zeros((24, 32, 5), np.uint8)
    tifffile.imwrite(tmp_path / "five.tif", bands, photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((24, 32), np.float32))
    for name, what in (("five", "5 bands, neither grey nor RGB"), ("float", "floating-point pixels have no range")):
        code, _, err = cli(capfd, "predict", tuned, tmp_path / f"{name}.tif", "--out", tmp_path / "masks")
        assert code == 2
        assert what in err
        assert "this network reads pictures as it learned to, of 3 channels and with no range of values" in err
        assert "--set" not in err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "give a folder for the masks with --out DIR"),
        (("--out", "answers.csv"), "answers.csv is a file; give a folder"),
        (("--out", "-"), "--out - is standard output; give a folder"),
        (("--out", "one.png"), "--out one.png is one file and there are 6 pictures; name a folder"),
        (("--top", "3", "--out", "masks"), "--top 3: "),
    ],
)
def test_predict_says_what_it_cannot_do(
    given: tuple[str, ...], said: str, tuned: Path, masked: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = cli(capfd, "predict", tuned, masked / "images" / "test", *given)
    assert (code, out) == (2, "")
    assert said in one_line(err)


def test_masks_never_take_the_place_of_pictures(
    tuned: Path, masked: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pictures = shutil.copytree(masked / "images" / "test", tmp_path / "pictures")
    code, _, err = cli(capfd, "predict", tuned, pictures / "024.png", "--out", pictures, "--force")
    assert (code, "would take its place" in one_line(err)) == (2, True)


def test_it_is_exported_with_its_head_and_without(
    tuned: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime
    import timm

    file = tmp_path / "network.onnx"
    code, out, err = cli(capfd, "export", tuned, "--to", "onnx", "--out", file, "--json")
    assert code == 0, err
    assert json.loads(out)["outputs"] == {"logits": [3, 24, 32]}  # held against torch before it is written
    session = onnxruntime.InferenceSession(file)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == ["paper", "shade", "ink"]
    code, _, err = cli(capfd, "export", tuned, "--to", "timm", "--out", tmp_path / "timm")
    assert (code, "names pixels" in one_line(err)) == (2, True)
    assert cli(capfd, "export", tuned, "--to", "timm", "--no-head", "--out", tmp_path / "timm")[0] == 0
    encoder = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    mine = safetensors.torch.load_file(tuned / "classifier.safetensors")
    assert all(torch.equal(weights, mine[name]) for name, weights in encoder.state_dict().items())


@pytest.mark.slow
def test_a_head_on_two_blocks_is_written_read_and_exported(
    masked_run: Path, masked: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tuned"
    tune("scratch", out, "train.epochs=4", "finetune.blocks=last:2", "backbone.depth=2", like=masked_run)
    result = json.loads((out / "result.json").read_text())
    assert "every patch's token after blocks last:2, upsampled" in result["protocol"]
    told = json.loads(
        predict(out, masked / "images" / "test", "--out", tmp_path / "m", "--precision", "fp32", "--json").stdout
    )
    truth = [np.asarray(Image.open(masked / "masks/test" / Path(one["mask"]).name)) for one in told["pictures"]]
    mine = [np.asarray(Image.open(one["mask"])) for one in told["pictures"]]
    right = np.concatenate([(a == b)[b != 255] for a, b in zip(mine, truth, strict=True)])
    assert right.mean() == pytest.approx(result["pixel_accuracy"])
    code, said, err = cli(capfd, "export", out, "--to", "onnx", "--out", tmp_path / "network.onnx", "--json")
    assert (code, json.loads(said)["outputs"]) == (0, {"logits": [3, 24, 32]}), err


def test_what_judges_runs_understands_it(tuned: Path, masked_run: Path, tmp_path: Path) -> None:
    tune("scratch", tmp_path / "scratch", like=masked_run)
    found = compare([tuned, tmp_path / "scratch"])
    assert {row.kind for row in found.rows} == {"finetune"}
    assert all(row.mean_iou is not None for row in found.rows)
    assert any("points of mean IoU above" in words for words in found.remarks)


def test_runs_lists_it(tuned: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = cli(capfd, "runs", "--in", tuned.parent)
    assert code == 0
    assert f"mIoU {json.loads((tuned / 'result.json').read_text())['mean_iou']:.1%}" in out


# -- resumption


@pytest.mark.parametrize("more", [(), ("data.placement=streaming", "data.workers=1")], ids=["resident", "streaming"])
def test_a_resumed_run_equals_an_uninterrupted_one(more: tuple[str, ...], masked_run: Path, tmp_path: Path) -> None:
    strong = (
        "finetune.ema=0.9", "finetune.validation=0.3", "finetune.select=best", "finetune.random_erasing=0.5",
        "finetune.label_smoothing=0.1", "finetune.class_weights=balanced", "backbone.drop_path=0.2", "data.shift=2",
        "train.epochs=3", "train.micro_batch=4", *more,
    )  # fmt: skip
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    tune(masked_run, whole, *strong)
    with stopped_after(3, "dsdmae finetune --resume"):  # within the second epoch of two steps
        tune(masked_run, parted, *strong)
    tune(masked_run, parted, *strong, resume=True)
    assert untimed(parted) == untimed(whole)
    for name in ("classifier.safetensors", "counts.npz"):
        assert (parted / name).read_bytes() == (whole / name).read_bytes()


def test_a_run_goes_on_with_the_masks_that_it_began_with(masked_run: Path, masked: Path, tmp_path: Path) -> None:
    other = shutil.copytree(masked, tmp_path / "data")
    with stopped_after(1):
        tune(masked_run, tmp_path / "run", f"data.dataset=folder:{other}")
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(other / "masks/train/000.png")
    with pytest.raises(CheckpointError, match="are not those that"):
        tune(masked_run, tmp_path / "run", f"data.dataset=folder:{other}", resume=True)


@pytest.mark.slow
def test_two_processes_compute_what_one_does(masked_run: Path, tmp_path: Path) -> None:
    more = ("train.micro_batch=2", "train.epochs=3", "finetune.validation=0.25")
    chosen = words([*small_runs.TUNED_QUICKLY, *SEGMENT, *more])
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = start(*torchrun, "-m", "dsdmae_cli", "finetune", masked_run, *chosen, "--out", tmp_path / "two", "--json")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    expected = tune(masked_run, tmp_path / "one", *more)
    result = json.loads(out)
    assert result["mean_iou"] == pytest.approx(expected["mean_iou"], abs=0.02)
    losses = [[r["loss"] for r in records(tmp_path / name) if "loss" in r] for name in ("two", "one")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    mine, theirs = (safetensors.torch.load_file(tmp_path / name / "classifier.safetensors") for name in ("two", "one"))
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-3, msg=name)


# -- what is refused


def test_the_task_brings_its_preset(masked_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert load(masked_run).sources["data.crop_scale"] == "preset segment"
    assert load(masked_run, "finetune.task=classify").sources["data.crop_scale"] == "preset paper"
    code, out, err = cli(capfd, "finetune", masked_run, "--task", "segment", "--dry-run", "--json")
    assert code == 0, err
    plan = json.loads(out)
    assert (plan["train_images"], plan["effective_batch"], plan["epochs"]) == (24, 16, 100)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("finetune.mixup=0.8", "finetune.mixup = 0.8 is for whole images, and"),
        ("finetune.cutmix=1", "finetune.cutmix = 1"),
        ("finetune.rand_augment=rand-m9", "finetune.rand_augment = 'rand-m9'"),
        ("finetune.pool=cls", "finetune.pool = 'cls'"),
        ("finetune.task=detect", "finetune.task = 'detect'"),
        ("finetune.blocks=all", "it takes last, a number from 1 up, or last:N"),
    ],
)
def test_what_is_for_whole_images_is_refused(assignment: str, said: str, masked_run: Path) -> None:
    with pytest.raises(SettingsError) as error:
        load(masked_run, assignment)
    assert said in str(error.value)


def test_blocks_are_for_pixels(masked_run: Path) -> None:
    with pytest.raises(SettingsError, match=r"finetune\.blocks = 'last:2' is for finetune\.task = 'segment'"):
        load(masked_run, "finetune.task=classify", "finetune.blocks=last:2")


@pytest.fixture
def refuse(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    def refused(*given: str | Path) -> str:
        out = tmp_path / "refused"
        code, printed, err = cli(capfd, "finetune", *given, "--task", "segment", "--epochs", "1", "--out", out)
        assert (code, printed, out.exists()) == (2, "", False)
        return err

    return refused


def test_images_without_masks_are_refused(tmp_path: Path, refuse: Callable[..., str]) -> None:
    assert "have no masks" in refuse("scratch", "--dataset", digit_folder(tmp_path / "digits", 12, 4))


def test_damaged_masks_are_refused(masked: Path, tmp_path: Path, masked_run: Path, refuse: Callable[..., str]) -> None:
    other = shutil.copytree(masked, tmp_path / "data")
    for kind, size, said in (("sizes", (9, 9), "has 9x9 px and its image 32x24"), ("values", (32, 24), "the value 77")):
        Image.new("L", size, 77 if kind == "values" else 0).save(other / "masks/train/003.png")
        assert said in refuse(masked_run, "--dataset", other)


@pytest.mark.parametrize("placement", ["resident", "streaming"])
def test_a_mask_that_fails_on_the_way_is_one_line(
    placement: str, masked: Path, tmp_path: Path, masked_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many masks only some are looked at beforehand."""
    monkeypatch.setattr("dsdmae_cli.data.mask_account._HEADERS", 1)
    monkeypatch.setattr("dsdmae_cli.data.mask_account._DECODED", 1)
    other = shutil.copytree(masked, tmp_path / "data")
    Image.new("L", (32, 24), 77).save(other / "masks/train/003.png")
    with pytest.raises(DataError) as error:
        tune(
            masked_run,
            tmp_path / "run",
            f"data.dataset=folder:{other}",
            f"data.placement={placement}",
            "data.workers=1",
        )
    assert "003.png has the value 77" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not multiprocessing.active_children()  # which do not hear SIGTERM, and would hold whoever keeps the error


def test_what_follows_the_block_that_is_read_stays_as_it_was(masked_run: Path, tmp_path: Path) -> None:
    result = tune("scratch", tmp_path / "tuned", "finetune.blocks=1", "backbone.depth=2", like=masked_run)
    assert "token after blocks 1 (what follows in the network is not trained), upsampled" in result["protocol"]
    weights = safetensors.torch.load_file(tmp_path / "tuned/classifier.safetensors")
    # As they begin: biases are zero, and a norm's weights one.
    assert weights["blocks.0.mlp.fc1.bias"].any()
    assert not weights["blocks.1.mlp.fc1.bias"].any()
    assert bool((weights["norm.weight"] == 1).all())


def test_few_labels_are_a_share_of_the_images(masked_run: Path, tmp_path: Path) -> None:
    result = tune(masked_run, tmp_path / "tuned", "finetune.labels=0.5")
    assert (result["train_images"], result["steps"]) == (12, 2)


def test_its_encoder_is_judged_like_any_other(tuned: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    chosen = ("probe.learning_rates=[0.03]", "data.image_size=24,32", "train.precision=fp32")
    code, out, err = cli(
        capfd, "probe", tuned, "--kind", "segment", "--epochs", "2", "--out", tmp_path / "probed", "--json",
        *words([*chosen]),
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["subject"] == "run"
