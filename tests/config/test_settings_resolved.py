"""What "auto" becomes: sizes, patches, rates, schedules and augmentation, by dataset, method and length of the run."""

from __future__ import annotations

import pytest
from gathered import PRESETS, loaded, resolved

from dsdmae_cli.config.resolve import resolve, resolve_data


@pytest.mark.parametrize(("dataset", "size"), [("digits", 16), ("cifar10", 32), ("cifar100", 32), ("stl10", 96),
                                               ("imagenet", 224)])  # fmt: skip
def test_images_keep_their_datasets_size(dataset: str, size: int) -> None:
    assert resolved(f"data.dataset={dataset}").data.image_size == size
    assert resolved(f"data.dataset={dataset}", "data.image_size=48").data.image_size == 48


@pytest.mark.parametrize(
    ("size", "patch"), [(8, 1), (16, 1), (32, 2), (64, 4), (96, 6), (128, 8), (144, 16), (224, 16), (512, 16)]
)
def test_patches_make_the_papers_grid_of_small_images(size: int, patch: int) -> None:
    found = resolved("data.dataset=cifar10", f"data.image_size={size}")
    assert found.backbone.patch_size == patch


@pytest.mark.parametrize("size", [28, 40, 72, 100, 120, 150, 192, 200, 250, 300])
def test_patches_of_auto_fit_the_image(size: int) -> None:
    patch = resolved("data.dataset=cifar10", f"data.image_size={size}").backbone.patch_size
    assert size % int(patch) == 0


def test_a_patch_size_that_is_given_stays() -> None:
    assert resolved("data.dataset=cifar10", "backbone.patch_size=8").backbone.patch_size == 8


def test_timm_models_keep_their_own_patch_size() -> None:
    found = resolved("data.dataset=cifar10", "backbone.name=timm:convnext_atto")
    assert found.backbone.patch_size == "auto"


def test_the_learning_rate_grows_with_the_batch() -> None:
    at = {batch: resolved(f"train.batch_size={batch}", "data.dataset=cifar10").optim.lr for batch in (256, 1024, 2048)}
    assert at == pytest.approx({256: 1.5e-4, 1024: 6e-4, 2048: 1.2e-3})
    assert resolved("optim.base_lr=1e-3", "train.batch_size=64", "data.dataset=cifar10").optim.lr == 2.5e-4
    assert resolved("optim.lr=0.5", "train.batch_size=2048", "data.dataset=cifar10").optim.lr == 0.5


@pytest.mark.parametrize(("epochs", "warmup"), [(500, 20), (100, 4), (1, 0.04)])
def test_warm_up_is_the_papers_share_of_the_run(epochs: int, warmup: float) -> None:
    assert resolved(f"train.epochs={epochs}").optim.warmup_epochs == pytest.approx(warmup)


def augment(*assignments: str) -> tuple[object, ...]:
    data = resolved(*assignments).data
    return data.crop_scale, data.flip, data.shift


def test_augmentation_is_the_datasets() -> None:
    assert augment() == (None, False, 1)
    assert augment("data.dataset=cifar10") == ((0.2, 1.0), True, 0)
    plain = ("data.crop_scale=none", "data.flip=false", "data.shift=2")
    assert augment("data.dataset=cifar10", *plain) == (None, False, 2)
    assert augment("data.crop_scale=0.5,1", "data.flip=true", "data.shift=0") == ((0.5, 1.0), True, 0)


def test_a_method_has_crops_of_its_own_where_the_dataset_has_any() -> None:
    moco = "method.name=mocov3"
    assert augment("data.dataset=cifar10", moco) == ((0.08, 1.0), True, 0)
    assert augment("data.dataset=cifar10", "method.name=msa") == ((0.2, 1.0), True, 0)
    assert augment("data.dataset=cifar10", moco, "data.crop_scale=[0.5, 1]") == ((0.5, 1.0), True, 0)
    assert augment("data.dataset=cifar10", moco, "data.crop_scale=none") == (None, True, 0)
    # Digits are never cropped unless somebody says so.
    assert augment(moco) == (None, False, 1)
    assert augment(moco, "data.crop_scale=[0.4, 1]") == ((0.4, 1.0), False, 1)


def test_without_a_method_augmentation_is_the_datasets() -> None:
    """A probe or fine-tuning learns by no method, whatever pre-trained the network."""
    asked = loaded("data.dataset=cifar10", "method.name=mocov3").settings
    assert resolve_data(asked.data).crop_scale == (0.2, 1.0)
    assert resolve_data(asked.data, asked.method).crop_scale == (0.08, 1.0)


@pytest.mark.parametrize(("epochs", "every"), [(500, 50), (100, 10), (5, 1), (1, 1)])
def test_scores_and_checkpoints_come_ten_times_a_run(epochs: int, every: int) -> None:
    train = resolved(f"train.epochs={epochs}").train
    assert (train.knn_every, train.checkpoint_every) == (every, every)
    given_train = resolved(f"train.epochs={epochs}", "train.knn_every=none", "train.checkpoint_every=3").train
    assert (given_train.knn_every, given_train.checkpoint_every) == (None, 3)


def test_the_hardwares_words_are_left_to_the_run() -> None:
    train = resolved().train
    assert (train.device, train.precision, train.compile, train.micro_batch) == ("auto",) * 4


@pytest.mark.parametrize("preset", PRESETS)
def test_resolving_twice_changes_nothing(preset: str) -> None:
    once = resolved(preset=preset)
    assert resolve(once) == once
