"""Pooled features against timm, their cache against damage, and fingerprints against what they promise to notice."""

from __future__ import annotations

import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers import digit_folder
from torch import Tensor

from dsdmae_builtin.backbones import TimmSettings, ViTSettings
from dsdmae_builtin.timm_backbone import TimmBackbone
from dsdmae_builtin.vit import ViT
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.config.compose import load
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.data.augment import prepare
from dsdmae_cli.data.base import ImageDataset, Subset
from dsdmae_cli.data.open import open_dataset
from dsdmae_cli.data.source import Unreadable
from dsdmae_cli.errors import DataError, RunFailed, SettingsError
from dsdmae_cli.evaluation.features import (
    FORMAT_VERSION,
    POOLS,
    Cached,
    FeatureKey,
    Features,
    cached_features,
    encoder_digest,
    extract,
    indices_digest,
    mean_features,
    square_batches,
)
from dsdmae_cli.settings.models import DataSettings

CPU = torch.device("cpu")


def _vit(class_token: bool = True, num_heads: int = 2) -> ViT:
    torch.manual_seed(0)
    settings = ViTSettings(
        name="vit-tiny", patch_size=4, embed_dim=32, depth=1, num_heads=num_heads, class_token=class_token
    )
    return ViT(settings, 16)


def _data(folder: Path, *more: str) -> DataSettings:
    assignments = [f"data.dataset=folder:{folder}", "data.image_size=16", *more]
    return resolve(load(assignments=assignments, environ={}).settings).data


def _train(folder: Path, *more: str) -> ImageDataset:
    return open_dataset(_data(folder, *more), "train")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return digit_folder(tmp_path / "digits", 20, 5)


def _features(encoder: Backbone, folder: Path, **more: object) -> Features:
    settings = _data(folder)
    dataset = open_dataset(settings, "train")
    batches = square_batches(dataset, range(len(dataset)), 16, 7, CPU, Unreadable(len(dataset), settings))
    pools = POOLS if encoder.has_class_token else ("mean", "max")
    return extract([encoder], batches, pools, **more)[0]  # type: ignore[arg-type]


def _images(folder: Path) -> Tensor:
    dataset = _train(folder)
    return torch.from_numpy(np.stack([dataset.load(i).transpose(2, 0, 1) for i in range(len(dataset))]))


# ------------------------------------------------------------------------------------------------ extraction


def test_pools_are_what_timm_gives(folder: Path) -> None:
    encoder = _vit()
    found = _features(encoder, folder)
    reference = timm.create_model(encoder.timm_name, **encoder.timm_kwargs).eval()
    reference.load_state_dict(encoder.timm_state())
    with torch.no_grad():
        tokens = reference.forward_features(prepare(_images(folder), 16, "bicubic"))
    expected = {"mean": tokens[:, 1:].mean(1), "cls": tokens[:, 0], "max": tokens[:, 1:].amax(1)}
    expected["mean+cls"] = torch.cat([expected["mean"], expected["cls"]], dim=1)
    expected["tokens"] = tokens[:, 1:]
    assert set(found.by_pool) == set(expected)
    for pool, features in found.by_pool.items():
        torch.testing.assert_close(features, expected[pool], atol=2e-5, rtol=1e-5)
    assert found.indices.tolist() == list(range(20))
    torch.testing.assert_close(found.by_pool["mean"], mean_features(encoder, _images(folder), 20))


def test_the_encoder_is_left_as_it_was(folder: Path) -> None:
    encoder = _vit().train()
    _features(encoder, folder)
    assert encoder.training
    half = _features(encoder, folder, dtype=torch.float16).by_pool["mean"]
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), _features(encoder, folder).by_pool["mean"], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "size", "token"),
    [("deit_tiny_distilled_patch16_224", 32, True), ("vit_tiny_patch16_224", 32, True), ("resnet10t", 64, False)],
)
def test_timm_backbones_say_whether_they_have_a_class_token(name: str, size: int, token: bool) -> None:
    torch.manual_seed(0)
    encoder = TimmBackbone(TimmSettings(name=f"timm:{name}"), size).eval()
    assert encoder.has_class_token is token
    images = torch.rand(2, 3, size, size) * 2 - 1
    with torch.no_grad():
        patches, first = encoder.forward_tokens(images)
        torch.testing.assert_close(patches, encoder(images))
        assert (first is not None) is token
        if first is not None:
            torch.testing.assert_close(first, encoder.model.forward_features(images)[:, 0])


def test_a_missing_class_token_or_pool_is_told(folder: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"--pool cls needs a class token and this encoder has none; use mean or max"
    ):
        extract([_vit(class_token=False)], iter(()), ("cls",))
    with pytest.raises(SettingsError, match=r"no pooling 'sum'; there are mean, cls, max, mean\+cls"):
        extract([_vit()], iter(()), ("sum",))  # type: ignore[arg-type]


def test_features_that_are_not_finite_are_told(folder: Path) -> None:
    encoder = _vit(class_token=False)
    encoder.vit.norm.weight.data.fill_(1e6)
    with pytest.raises(RunFailed, match=r"not finite \(kept as float16\)"):
        _features(encoder, folder, dtype=torch.float16)
    assert _features(encoder, folder).by_pool["mean"].isfinite().all()


def test_unreadable_images_are_left_out_even_alone_in_a_batch(folder: Path) -> None:
    settings = _data(folder, "data.max_unreadable=0.2")
    dataset = open_dataset(settings, "train")
    for index in (3, 19):
        Path(dataset.name(index)).write_bytes(b"no image")
    unreadable = Unreadable(len(dataset), settings)
    batches = list(square_batches(dataset, range(20), 16, 1, CPU, unreadable))
    kept = [int(batch.indices) for batch in batches]
    assert kept == [i for i in range(20) if i not in (3, 19)]
    assert len(unreadable) == 2
    strict = Unreadable(20, _data(folder, "data.strict=true"))
    with pytest.raises(DataError, match="unreadable image"):
        list(square_batches(dataset, range(20), 16, 4, CPU, strict))


def test_images_of_which_none_can_be_read_are_told(folder: Path) -> None:
    """A single one is below every limit, and may be all there is."""
    settings = _data(folder)
    dataset = open_dataset(settings, "train")
    Path(dataset.name(3)).write_bytes(b"no image")
    with pytest.raises(DataError, match="none of 1 image can be read"):
        list(square_batches(dataset, [3], 16, 4, CPU, Unreadable(len(dataset), settings)))
    assert list(square_batches(dataset, [3], 16, 4, CPU, Unreadable(20, settings), may_be_none=True)) == []


# ----------------------------------------------------------------------------------------------------- cache


class _Computation:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self, places: list[int]) -> list[Features]:
        self.times += 1
        return [self._features(place) for place in places]

    def _features(self, seed: int) -> Features:
        generator = torch.Generator().manual_seed(seed)
        pools = {"mean": torch.randn(5, 3, generator=generator), "max": torch.randn(5, 3, generator=generator)}
        return Features(pools, torch.arange(5))


KEY = FeatureKey("a", "b", "c", 16, "bicubic", ("mean", "max"), "fp32", "float32", "cpu")


def _same(a: Features, b: Features) -> bool:
    return a.indices.equal(b.indices) and all(a.by_pool[pool].equal(b.by_pool[pool]) for pool in a.by_pool)


def test_features_are_computed_once(tmp_path: Path) -> None:
    compute = _Computation()
    (first,) = cached_features([KEY], compute, tmp_path / "cache")
    (second,) = cached_features([KEY], compute, tmp_path / "cache")
    assert (first.found, second.found, compute.times) == (False, True, 1)
    assert _same(first.features, second.features)
    assert second.num_bytes == (tmp_path / "cache" / f"{KEY.digest()}.safetensors").stat().st_size
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_what_is_missing_is_computed_at_once(tmp_path: Path) -> None:
    """Of several, those that are kept already are not computed again."""
    asked: list[list[int]] = []
    computation = _Computation()

    def compute(places: list[int]) -> list[Features]:
        asked.append(places)
        return computation(places)

    keys = [replace(KEY, encoder=name) for name in "abcd"]
    first = cached_features([keys[1]], lambda places: computation([1]), tmp_path)
    found = cached_features(keys, compute, tmp_path)
    assert asked == [[0, 2, 3]]
    assert [one.found for one in found] == [False, True, False, False]
    assert _same(found[1].features, first[0].features)
    again = cached_features(keys, compute, tmp_path)
    assert asked == [[0, 2, 3]]
    assert all(_same(a.features, b.features) for a, b in zip(found, again, strict=True))


def test_they_are_kept_in_the_users_cache() -> None:
    path = cached_features([KEY], _Computation())[0].path
    assert path is not None
    assert path.parent == Path(os.environ["XDG_CACHE_HOME"]) / "dsdmae" / "features"


@pytest.mark.parametrize(
    "change",
    [
        {"encoder": "x"}, {"dataset": "x"}, {"indices": "x"}, {"image_size": 32}, {"interpolation": "bilinear"},
        {"pools": ("mean",)}, {"precision": "bf16"}, {"dtype": "float16"}, {"device": "cuda"},
        {"version": FORMAT_VERSION + 1},
    ],
)  # fmt: skip
def test_every_part_of_the_key_counts(change: dict[str, object]) -> None:
    assert replace(KEY, **change).digest() != KEY.digest()  # type: ignore[arg-type]


@pytest.mark.parametrize("harm", ["cut", "flip", "empty"])
def test_a_damaged_file_is_computed_anew(tmp_path: Path, harm: str) -> None:
    compute = _Computation()
    path = cached_features([KEY], compute, tmp_path)[0].path
    assert path is not None
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes({"cut": bytes(content[:-5]), "flip": bytes(content), "empty": b""}[harm])
    (again,) = cached_features([KEY], compute, tmp_path)
    assert (again.found, compute.times) == (False, 2)
    assert again.note == f"cached features in {path} were damaged and have been computed anew"
    assert cached_features([KEY], compute, tmp_path)[0].found


def test_what_another_process_kept_meanwhile_is_not_called_damaged(tmp_path: Path) -> None:
    """Two probes of one run that begin at once compute the same features."""
    computation = _Computation()

    def compute(places: list[int]) -> list[Features]:
        cached_features([KEY], computation, tmp_path)  # the other's, which is done first
        return computation(places)

    (found,) = cached_features([KEY], compute, tmp_path)
    assert (found.found, found.note) == (False, None)
    assert cached_features([KEY], computation, tmp_path)[0].found


def test_a_cache_that_cannot_be_written_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (found,) = cached_features([KEY], _Computation(), tmp_path / "file" / "cache")
    assert isinstance(found, Cached)
    assert (found.path, found.num_bytes) == (None, 0)
    assert found.note is not None
    assert found.note.startswith(f"features were not cached in {tmp_path}/file/cache: ")


def test_an_encoder_is_known_by_weights_and_architecture() -> None:
    one, other = _vit(), _vit(num_heads=4)
    assert encoder_digest(one) == encoder_digest(_vit())
    other.vit.load_state_dict(one.vit.state_dict())  # the same numbers, in other heads
    assert encoder_digest(other) != encoder_digest(one)
    one.vit.norm.bias.data[0] += 1e-6
    assert encoder_digest(one) != encoder_digest(_vit())
    assert indices_digest([1, 2]) != indices_digest([2, 1])


# ---------------------------------------------------------------------------------------------- fingerprints


def test_a_folders_fingerprint_notices_what_changes_features(folder: Path) -> None:
    before = _train(folder).fingerprint()
    assert before == _train(folder).fingerprint()
    assert before != open_dataset(_data(folder), "test").fingerprint()
    moved = folder.rename(folder.with_name("moved"))
    assert _train(moved).fingerprint() == before
    image = Path(_train(moved).name(0))
    found = image.stat()
    os.utime(image, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    touched = _train(moved).fingerprint()
    assert touched != before
    os.utime(image, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert _train(moved).fingerprint() == before
    image.rename(image.with_name("0000.png"))
    assert _train(moved).fingerprint() != before


def test_a_file_that_is_gone_does_not_stop_a_fingerprint(folder: Path) -> None:
    dataset = _train(folder)
    Path(dataset.name(0)).unlink()
    assert len(dataset.fingerprint()) == 64


def test_an_archives_fingerprint_goes_by_size_and_time(folder: Path) -> None:
    archive = folder.with_suffix(".tar")
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, "digits")
    before = _train(archive).fingerprint()
    assert before == _train(archive).fingerprint()
    with tarfile.open(archive, "a") as tar:
        info = tarfile.TarInfo("digits/test/0/more.png")
        tar.addfile(info, io.BytesIO(b""))
    assert _train(archive).fingerprint() != before


class _Held(ImageDataset):
    """Images from memory, one of them unreadable if asked for."""

    def __init__(self, images: np.ndarray, labels: np.ndarray | None = None) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> np.ndarray:
        return self.images[index]

    def name(self, index: int) -> str:
        return f"image {index}"


class _Array(_Held):
    def arrays(self) -> np.ndarray:
        return self.images


@pytest.mark.parametrize("kind", [_Held, _Array])
def test_other_datasets_are_known_by_every_pixel(kind: type[_Held]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)
    labels = np.arange(4)
    before = kind(images, labels).fingerprint()
    assert before == kind(images.copy(), labels).fingerprint()
    # What torchvision gives for STL-10 is a transposed view.
    view = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    assert before == kind(view, labels).fingerprint()
    changed = images.copy()
    changed[3, 5, 7, 2] ^= 1
    others = [
        kind(changed, labels), kind(images, labels[::-1].copy()), kind(images), kind(images[:3], labels[:3]),
        kind(images.reshape(4, 8, 6, 3), labels), kind(images[::-1], labels),
    ]  # fmt: skip
    assert len({before, *(other.fingerprint() for other in others)}) == 7
    parts = {Subset(kind(images, labels), np.array(i)).fingerprint() for i in ([0, 1], [1, 0], [0, 1, 2, 3])}
    assert len(parts) == 3
