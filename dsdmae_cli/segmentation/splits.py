"""Images with masks, checked before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64

from dsdmae_cli.data.account import Account, take_account
from dsdmae_cli.data.masks import Legend, MaskAccount, MaskedImages, look_at_masks
from dsdmae_cli.data.open import open_dataset
from dsdmae_cli.data.source import derive_seed
from dsdmae_cli.data.twins import Twins, find_twins
from dsdmae_cli.errors import DataError
from dsdmae_cli.evaluation.split import HeldOut
from dsdmae_cli.report import Report
from dsdmae_cli.settings.models import DataSettings
from dsdmae_cli.settings.resolved import ResolvedData


@dataclass(frozen=True)
class MaskedSplits:
    """Training and test images of one dataset with masks of the same classes.

    Attributes:
        masks: what was seen of them.
        train_indices, test_indices: of the images that have a mask.
    """

    train: MaskedImages
    test: MaskedImages
    masks: MaskAccount
    train_indices: Int64[np.ndarray, " n"]
    test_indices: Int64[np.ndarray, " m"]

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, by label."""
        return self.legend.classes

    @property
    def notes(self) -> tuple[str, ...]:
        """How the images were found."""
        return self.train.notes

    @property
    def legend(self) -> Legend:
        """Names of the classes."""
        return self.train.legend

    @cached_property
    def twins(self) -> Twins | None:
        """Test images that are training images too; None where too many would have to be read."""
        return find_twins(self.train, self.test)

    def account(self, settings: ResolvedData) -> Account:
        """What images these are."""
        return take_account({"training": self.train, "test": self.test}, settings.range)

    def rows(self, settings: ResolvedData) -> dict[str, str]:
        """The account by its words, of the images and of the masks."""
        return self.account(settings).rows() | {"masks": self.masks.line().removeprefix("masks").strip()}

    def lines(self, settings: ResolvedData) -> list[str]:
        """The opening account: of the images, and of the masks."""
        return [*self.account(settings).lines(), self.masks.line()]


def open_masked(settings: DataSettings, report: Report | None = None) -> MaskedSplits:
    """The splits of a dataset with masks.

    Args:
        report: is told of each further kind of fault, where there are several.

    Raises:
        DataError: it has no masks, or some cannot be used.
    """
    splits = {}
    for name, split in (("training", "train"), ("test", "test")):
        dataset = open_dataset(settings, split)
        if not isinstance(dataset, MaskedImages):
            why = f" ({'; '.join(dataset.notes)})" if dataset.notes else ""
            raise DataError(
                f"the images of {settings.dataset} have no masks{why}; segmentation takes a folder with images/, masks/"
                " and classes.txt, or a dataset that has masks (docs/segmentation.md)"
            )
        splits[name] = dataset
    masks = look_at_masks(splits)
    if masks.faults:
        for line in masks.faults[1:]:
            if report is not None:
                report.warn(line)
        raise DataError(masks.faults[0])
    if masks.void_share == 1:
        raise DataError(
            f"every pixel of the masks of {settings.dataset} that were looked at is void: nothing could be learned or"
            " judged; say by data.void which values are"
        )
    train, test = splits["training"], splits["test"]
    if train.legend.classes != test.legend.classes:
        raise DataError(f"training and test masks of {settings.dataset} have other classes; give both the same names")
    return MaskedSplits(train, test, masks, _with_mask(train), _with_mask(test))


def _with_mask(dataset: MaskedImages) -> Int64[np.ndarray, " n"]:
    found = [index for index in range(len(dataset)) if dataset.mask_name(index) is not None]
    if not found:
        raise DataError(
            f"no image has a mask (the first is {dataset.name(0)}); put masks of the same names into masks/"
        )
    return np.array(found, dtype=np.int64)


def hold_out_images(num_images: int, share: float, seed: int) -> HeldOut:
    """A random share of the images, at least one and never all; of a single image nothing is held out."""
    order = np.random.default_rng(derive_seed(seed, "hold out")).permutation(num_images)
    taken = min(num_images - 1, max(1, round(share * num_images)))
    return HeldOut(np.sort(order[taken:]), np.sort(order[:taken]))


def drawn_share(num_images: int, share: float, seed: int) -> Int64[np.ndarray, " k"]:
    """A share of the images, at least two, as ascending indices; that of a smaller share is part of it."""
    order = np.random.default_rng(derive_seed(seed, "few shot", 0)).permutation(num_images)
    return np.sort(order[: max(2, round(share * num_images))])
