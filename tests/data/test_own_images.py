"""Defaults fit a person's own images, few or large; what a person said stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import cli, masked_folder, train
from image_files import crops, png, write

from dsdmae_cli.ablation.sweep import Base, parse_axes
from dsdmae_cli.config.given import Given
from dsdmae_cli.config.own_images import remarks
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.config.schema import FINETUNE, PRETRAIN, Loaded
from dsdmae_cli.recipes.gather import judging, pretraining


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven photographs of 20x24 in two classes, of which one is held out."""
    images = [png(image[:20]) for image in crops(11, 24)]
    return write(tmp_path_factory.mktemp("few"), {f"{'ab'[k % 2]}/{k}.png": image for k, image in enumerate(images)})


def given(few: Path, **flags: Any) -> Loaded[Any]:
    return pretraining(Given(flags={"data.dataset": str(few), **flags}))


def test_the_batch_of_few_images_and_its_rate(few: Path) -> None:
    loaded = given(few)
    assert (loaded.settings.train.batch_size, loaded.settings.optim.lr) == (8, 1.5e-4)
    [said] = remarks(loaded, PRETRAIN)
    assert said.startswith("batches of 8 and a peak rate of 0.00015, for 10 images to learn from")
    assert given(few, **{"train.batch_size": "2"}).settings.optim.lr == "auto"
    assert remarks(given(few, **{"train.batch_size": "2"}), PRETRAIN) == []
    assert given(few, **{"optim.lr": "0.1"}).settings.optim.lr == 0.1
    assert given(few, **{"train.batch_size": "64"}).settings.train.batch_size == 64  # refused when the run begins
    digits = pretraining(Given(flags={"data.dataset": "digits"}))
    assert (digits.settings.train.batch_size, digits.settings.optim.lr) == (256, "auto")


def test_a_run_that_begins_with_weights_has_a_tenth_of_the_rate(few: Path, encoder_run: Path) -> None:
    loaded = given(few, **{"train.start": str(encoder_run)})
    assert (loaded.settings.train.batch_size, loaded.settings.optim.lr) == (8, pytest.approx(1.5e-5))


def some(folder: Path, count: int) -> Path:
    """A folder of so many training images, in which nobody looks."""
    return write(folder / "set", {f"train/{k}.png": b"" for k in range(count)} | {"test/0.png": b""})


@pytest.mark.parametrize(("count", "batch"), [(2, 1), (3, 2), (4, 2), (6, 4), (10, 8), (32, 16), (33, 32)])
def test_a_batch_leaves_room_for_an_unreadable_image(tmp_path: Path, count: int, batch: int) -> None:
    for method in ("dsdmae", "mocov3"):
        assert given(some(tmp_path / method, count), **{"method.name": method}).settings.train.batch_size == batch


@pytest.mark.parametrize(
    ("count", "batch", "compared"),
    [(100, 32, 64), (300, 32, 128), (570, 64, 128), (1024, 128, 128), (2047, 128, 128), (2048, 256, 256)],
)
def test_a_few_hundred_images_make_eight_steps_an_epoch(
    tmp_path: Path, count: int, batch: int, compared: int
) -> None:  # fmt: skip
    """But no smaller batch than the method can do with: losses that compare its images want more of them."""
    root = some(tmp_path, count)
    for method, wanted in (
        ("dsdmae", batch),
        ("mae", batch),
        ("mocov3", compared),
        ("msa", compared),
        ("tscae", compared),
    ):
        loaded = given(root, **{"method.name": method})
        resolved = loaded.settings
        assert resolved.train.batch_size == wanted
        if wanted < 256:
            assert resolved.optim.lr == resolved.optim.base_lr
            [said] = remarks(loaded, PRETRAIN)
            assert said.startswith(f"batches of {wanted} and a peak rate of ")
            assert f", for {count:,} images to learn from; --batch-size and --lr" in said
        else:
            assert (resolved.optim.lr, remarks(loaded, PRETRAIN)) == ("auto", [])


@pytest.mark.parametrize(
    ("preset", "count", "batch"),
    [("mae", 570, 64), ("mocov3", 570, 512), ("mocov3", 300, 128), ("quick", 570, 32), ("lejepa", 300, 256)],
)
def test_a_presets_batch_stands_where_there_are_so_many_images(
    tmp_path: Path, preset: str, count: int, batch: int
) -> None:
    flags = {"data.dataset": str(some(tmp_path, count))}
    assert pretraining(Given(flags=flags, preset=(preset,))).settings.train.batch_size == batch


def test_fine_tuning_counts_the_images_it_learns_from(few: Path) -> None:
    flags = {"data.dataset": str(few), "backbone.name": "vit-tiny"}
    for more, batch in (({}, 8), ({"finetune.validation": "0.5"}, 4), ({"finetune.labels": "0.3"}, 2)):
        loaded = judging(Given(subject="scratch", flags={**flags, **more}), FINETUNE, "finetune")
        assert loaded.settings.train.batch_size == batch


def test_a_share_of_labelled_images_is_counted_where_the_plugin_says_no_number(few: Path, tmp_path: Path) -> None:
    """In a split of another name too (STL-10 has 5,000 labelled images), and never by a download."""

    def batch(dataset: str, labels: str) -> int:
        flags = {"data.dataset": dataset, "data.data_dir": str(tmp_path), "backbone.name": "vit-tiny"}
        flags |= {"finetune.labels": labels, "backbone.patch_size": "8"}
        return int(judging(Given(subject="scratch", flags=flags), FINETUNE, "finetune").settings.train.batch_size)

    assert [batch("digits", labels) for labels in ("1", "0.5", "0.05", "0.01")] == [128, 128, 32, 8]
    assert [batch("stl10", labels) for labels in ("1", "0.02")] == [128, 32]
    assert not list(tmp_path.iterdir())


def test_a_study_has_the_batch_that_a_run_has(few: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One rule: in the trials' settings, in what is said, and not where a batch is said or swept."""
    base = Base(flags={"data.dataset": str(few), "backbone.patch_size": "8"})
    alone = given(few).settings
    [axis] = parse_axes([("mask-ratio", "0.5,0.75")], base)
    for point in ({"mask-ratio": "0.5"}, {"mask-ratio": "0.75"}):
        trial = base.load((axis,), point).settings
        assert (trial.train.batch_size, trial.optim.lr) == (alone.train.batch_size, alone.optim.lr) == (8, 1.5e-4)
    [swept] = parse_axes([("train.batch_size", "2,4")], base)
    trial = base.load((swept,), {"train.batch_size": "4"}).settings
    assert (trial.train.batch_size, trial.optim.lr) == (4, "auto")
    assert Base(flags={**(base.flags or {}), "train.batch_size": "64"}).load().settings.train.batch_size == 64
    code, out, err = cli(
        capfd, "ablate", "--dataset", few, "--sweep", "mask-ratio", "0.5,0.75", "--epochs", "1", "--dry-run",
        "--image-size", "16", "--out", tmp_path / "study",
    )  # fmt: skip
    assert code == 0, err
    assert "batches of 8 and a peak rate of 0.00015, for 10 images to learn from; --batch-size and --lr" in out
    assert "1 epoch, 1 step" in out


def test_a_probe_of_one_test_image_says_how_little_that_is(
    few: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ["--dataset", few, "--image-size", "16", "--kind", "knn", "--out", tmp_path / "probe", "--json"]
    code, out, err = cli(capfd, "probe", "pixels", *given)
    assert code == 0, err
    low, high = json.loads(out)["top1_interval"]
    assert high - low > 0.7
    assert "could not be made" not in err


def test_masks_are_no_labels_and_no_batch_is_made_of_them(tmp_path: Path) -> None:
    root = masked_folder(tmp_path / "masked")
    flags = {"data.dataset": str(root), "backbone.name": "vit-tiny"}
    loaded = judging(Given(subject="scratch", flags=flags), FINETUNE, "finetune")
    assert remarks(loaded, FINETUNE) == []  # it is refused where the labels are looked for


@pytest.mark.parametrize("preset", ["quick", "quick-ablate", "tokenizer-quick"])
def test_a_preset_made_for_digits_does_not_shrink_photographs(preset: str, few: Path) -> None:
    """Nor has it the mask ratio and the noise that are right for strokes; what a person says still counts."""
    found = resolve(pretraining(Given(flags={"data.dataset": str(few)}, preset=(preset,))).settings)
    assert (found.data.image_size, found.backbone.patch_size, found.train.batch_size) == (224, 16, 8)
    digits = resolve(pretraining(Given(preset=(preset,))).settings)
    assert (digits.data.image_size, digits.backbone.patch_size) == (16, 4)
    assert digits == resolve(pretraining(Given(flags={"data.dataset": "digits"}, preset=(preset,))).settings)
    said = {"data.dataset": str(few), "data.image_size": "32", "backbone.patch_size": "8"}
    own = resolve(pretraining(Given(flags=said, preset=(preset,))).settings)
    assert (own.data.image_size, own.backbone.patch_size) == (32, 8)


def test_a_preset_of_small_images_says_that_it_shrinks_others(few: Path) -> None:
    loaded = pretraining(Given(flags={"data.dataset": str(few)}, preset=("cifar10",)))
    assert (
        "brought to 32x32 px, which preset cifar10 has for cifar10; their own size is 224"
        in remarks(loaded, PRETRAIN)[1]
    )
    assert remarks(pretraining(Given(preset=("quick",))), PRETRAIN) == []


def test_a_dry_run_refuses_images_that_a_run_refuses(
    few: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One image alone, and more broken ones than a run passes over, in the same words."""
    content = next(few.rglob("*.png")).read_bytes()
    alone = write(tmp_path / "alone", {"a.png": content})
    broken, judged = (
        write(tmp_path / name, {f"{k}.png": content[:60] if k in bad else content for k in range(20)})
        for name, bad in (("broken", (0, 1, 2)), ("judged", (19,)))  # which is the one that is held out
    )
    for root, says in (
        (alone, "image"),
        (broken, "2 unreadable images so far, more than the limit of 1 of 19 (first: "),
        (judged, "the only held-out image cannot be read ("),
    ):
        given = ["--dataset", root, "--image-size", "16", "--epochs", "1", "--device", "cpu"]
        codes = [cli(capfd, "pretrain", *given, *more)[::2] for more in (["--dry-run"], ["--out", tmp_path / "run"])]
        assert codes[0][0] == codes[1][0] == 2
        assert says in codes[0][1]
        ends = [err.splitlines()[-1].partition(" (")[0] for _, err in codes]  # of a random order
        assert ends[0] == ends[1]


def test_few_images_are_pretrained_on_without_false_alarms(
    few: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = train(few, tmp_path / "run", "train.knn_every=1", "train.epochs=1", "optim.warmup_epochs=0.04")
    err = capfd.readouterr().err
    assert "collaps" not in err
    assert "the only step has a learning rate of 0 (warm-up), so that nothing is learned" in err
    assert (result["steps"], result["knn_images"]) == (1, 1)
    low, high = result["knn_interval"]
    assert high - low > 0.75
    train(few, tmp_path / "slow", "optim.lr=1e-6", "train.epochs=5")
    assert "next to nothing is learned" in capfd.readouterr().err
