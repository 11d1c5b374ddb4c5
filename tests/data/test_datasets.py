"""The built-in datasets that need no network, what their specs promise, and real data in place."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from image_files import md5, of
from sklearn.datasets import load_digits

from dsdmae_builtin import datasets, digits, folder
from dsdmae_cli.data.once import opened_once
from dsdmae_cli.settings.models import DataSettings

SRC = Path(__file__).parents[2]


def test_digits() -> None:
    train, test = digits.build(DataSettings(), "train"), digits.build(DataSettings(), "test")
    assert (len(train), len(test)) == (1400, 397)
    assert train.arrays().shape == (1400, 16, 16, 3)
    assert train.arrays().dtype == np.uint8
    assert train.classes == tuple("0123456789")
    original = np.bincount(load_digits().target) / 1797
    for part in (train, test):
        assert np.abs(np.bincount(part.labels) / len(part) - original).max() < 0.01
    # The split is a promise: figures from two versions can be compared.
    assert md5(test.labels.astype("<i8").tobytes()) == "66ab875e5c943392c33d59329265b3f5"
    seen = {image.tobytes() for image in train.arrays()}
    assert not [i for i in range(len(test)) if test.load(i).tobytes() in seen]
    np.testing.assert_array_equal(digits.build(DataSettings(), "labelled").arrays(), train.arrays())
    image = train.load(0)
    image[:] = 0
    assert train.load(0).any()


def python(code: str) -> str:
    path = os.pathsep.join([str(SRC), str(SRC / "plugins"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_specs_load_no_torch() -> None:
    loaded = json.loads(python("import dsdmae_builtin.datasets, sys, json; print(json.dumps(sorted(sys.modules)))"))
    assert not {"torch", "torchvision", "sklearn", "timm", "numpy", "PIL"} & set(loaded)
    code = (
        "import sys; from dsdmae_builtin import datasets, folder; from dsdmae_cli.plugins import load;"
        "from dsdmae_cli.settings.models import DataSettings;"
        f"print(load(datasets.FOLDER.image_size)(DataSettings(dataset='folder:{SRC / 'nothing'}')))"
    )
    with pytest.raises(subprocess.CalledProcessError) as caught:
        python(code)
    assert "does not exist" in caught.value.stderr
    python("import dsdmae_builtin.folder, dsdmae_builtin.digits, sys; assert 'torch' not in sys.modules")
    parts = "arrays, files, archives, splits, square, decode, once"
    python(f"from dsdmae_cli.data import {parts}; import sys; assert 'torch' not in sys.modules")


def test_specs_name_what_exists() -> None:
    from dsdmae_cli.plugins import DatasetSpec, load

    specs = {name: spec for name, spec in vars(datasets).items() if isinstance(spec, DatasetSpec)}
    assert sorted(specs) == [
        "CIFAR10", "CIFAR100", "COCO_STUFF", "DIGITS", "FOLDER", "IDX", "IMAGENET", "PACKED", "PARQUET", "STL10", "VOC",
    ]  # fmt: skip
    for spec in specs.values():
        assert callable(load(spec.build))
        assert len(spec.summary) < 120
    sizes = [specs[name].image_size for name in ("CIFAR10", "CIFAR100", "STL10", "IMAGENET", "DIGITS")]
    assert sizes == [32, 32, 96, 224, 16]
    assert specs["DIGITS"].augment == {"crop_scale": None, "flip": False, "shift": 1}


def test_real_photographs_in_place(test_data: Path) -> None:
    source = of(test_data / "photos.tar")
    train, test = folder.build(source, "train"), folder.build(source, "test")
    assert (len(train), len(test)) == (900, 100)
    assert train.labels is None
    assert folder.native_size(source) == 224
    for i in range(0, 900, 60):
        image = train.load(i)
        assert image.shape[2] == 3
        assert image.std() > 5, train.name(i)


@pytest.mark.slow
def test_real_cifar_in_place(test_data: Path) -> None:
    source = of(test_data / "cifar10.tar.xz")
    with opened_once():
        train, test = folder.build(source, "train"), folder.build(source, "test")
        assert folder.native_size(source) == 32
    assert (len(train), len(test)) == (50_000, 10_000)
    assert len(train.classes) == 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
