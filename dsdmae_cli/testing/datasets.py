"""What every dataset promises."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import numpy as np

from dsdmae_cli import plugins
from dsdmae_cli.settings.size import height_width
from dsdmae_cli.testing.material import check_spec

if TYPE_CHECKING:
    from dsdmae_cli.data.base import ImageDataset

_LOOK_AT = 16


def check_dataset(name: str, *assignments: str) -> None:
    """See that an installed dataset keeps what datasets promise; sixteen images of each split are looked at.

    Args:
        name: as --dataset takes it, with its argument if it has one ("folder:PATH").
        assignments: its settings, as --set takes them ("data.data_dir=/somewhere").

    Raises:
        AssertionError: a promise is not kept.
        DataError: it is not there.
    """
    from dsdmae_cli.config.compose import load
    from dsdmae_cli.config.resolve import resolve
    from dsdmae_cli.data.open import open_dataset

    spec = check_spec("dataset", name)
    unknown = set(spec.augment) - {"crop_scale", "flip", "shift"}
    assert not unknown, f"augment says what auto means for {', '.join(unknown)}; it is about crop_scale, flip and shift"
    data = resolve(load(assignments=[f"data.dataset={name}", *assignments], environ={}).settings).data
    assert min(height_width(data.image_size)) >= 4, f"image_size is {data.image_size}"
    splits = {split: open_dataset(data, split) for split in dict.fromkeys(("train", spec.labelled_split, "test"))}
    for split, dataset in splits.items():
        _images_are_rgb(dataset, split)
        _labels_fit(dataset, split)
        _is_the_same_every_time(dataset, open_dataset(data, split), split)
    with_classes = [dataset.classes for dataset in splits.values() if dataset.classes is not None]
    assert len(set(with_classes)) <= 1, "the splits have different classes, so that a label means two things"
    same = splits["train"].fingerprint() == splits["test"].fingerprint()
    assert not same, "the training and test images have one fingerprint: are they the same images?"
    if (official := plugins.find("dataset", name).spec.num_images) and "train" in official:
        got = len(splits["train"])
        assert got == official["train"], f"num_images says {official['train']} training images, there are {got}"


def _some(dataset: ImageDataset) -> list[int]:
    return np.unique(np.linspace(0, len(dataset) - 1, _LOOK_AT).astype(int)).tolist()


def _images_are_rgb(dataset: ImageDataset, split: str) -> None:
    names = {dataset.name(index) for index in _some(dataset)}
    assert len(names) == len(_some(dataset)), f"two {split} images have one name"
    for index in _some(dataset):
        image = dataset.load(index)
        what = f"{split} image {index}"
        assert isinstance(image, np.ndarray), f"{what} is a {type(image).__name__}, not a NumPy array"
        assert image.dtype == np.uint8, f"{what} is {image.dtype}, not uint8"
        assert image.ndim == 3, f"{what} has the shape {image.shape}, not [height, width, 3]"
        assert image.shape[2] == 3, f"{what} has {image.shape[2]} channels, not 3"
    arrays = dataset.arrays()
    if arrays is not None:
        assert len(arrays) == len(dataset), f"arrays() of {split} has {len(arrays)} images of {len(dataset)}"
        for index in _some(dataset):
            equal = np.array_equal(arrays[index], dataset.load(index))
            assert equal, f"arrays()[{index}] of {split} is not what load({index}) gives"


def _labels_fit(dataset: ImageDataset, split: str) -> None:
    assert (dataset.labels is None) == (dataset.classes is None), f"{split} has labels or classes, and not both"
    if dataset.labels is None or dataset.classes is None:
        return
    assert dataset.labels.dtype == np.int64, f"labels of {split} are {dataset.labels.dtype}, not int64"
    assert dataset.labels.shape == (len(dataset),), f"labels of {split} have the shape {dataset.labels.shape}"
    low, high = int(dataset.labels.min()), int(dataset.labels.max())
    assert low >= -1, f"a label of {split} is {low}; -1 stands for none"
    assert high < len(dataset.classes), f"a label of {split} is {high}, and there are {len(dataset.classes)} classes"


def _is_the_same_every_time(dataset: ImageDataset, again: ImageDataset, split: str) -> None:
    copy: ImageDataset = pickle.loads(pickle.dumps(dataset))  # as processes that decode get it
    for index in _some(dataset):
        image = dataset.load(index)
        assert np.array_equal(image, again.load(index)), f"{split} image {index} is another one when it is opened anew"
        assert np.array_equal(image, copy.load(index)), f"{split} image {index} of a pickled dataset is another one"
    assert dataset.fingerprint() == again.fingerprint(), f"the fingerprint of {split} changes by itself"
