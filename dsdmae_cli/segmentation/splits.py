"""Images with masks, checked before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64

from dsdmae_cli.data.account import Account, take_account
from dsdmae_cli.data.mask_account import MaskAccount, look_at_masks, present
from dsdmae_cli.data.masks import Legend, MaskedImages, listed
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
        return self.account(settings).rows() | self.mask_row()

    def mask_row(self) -> dict[str, str]:
        """That of the masks."""
        return {"masks": self.masks.line().removeprefix("masks").strip()}

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
    train, test = splits["training"], splits["test"]
    if train.legend.classes != test.legend.classes:
        raise DataError(f"training and test masks of {settings.dataset} have other classes; give both the same names")
    found = MaskedSplits(train, test, masks, _with_mask(train), _with_mask(test))
    _check_pixels(found, settings, report)
    return found


def _check_pixels(found: MaskedSplits, settings: DataSettings, report: Report | None) -> None:
    """See that there is something to tell apart, and something to judge.

    Raises:
        DataError: training masks have pixels of one class or none, or test masks of none.
    """
    legend, unseen = found.legend, found.masks.unseen
    void = ", ".join(map(str, legend.void)) or "no value"
    advice = (
        f"void is {void} (data.void): if a class has such a value, name it in {legend.origin} with its value, a line as"
        " 255: car"
    )
    # Of a sample one may be left that has what no other has: all are looked at before it is refused.
    if len(legend.classes) - len(unseen["training"]) < 2 and len(only := present(found.train, 2)) < 2:
        one = f"of one class, {legend.classes[only.pop()]}, and void" if only else "void"
        raise DataError(f"every pixel of the training masks of {settings.dataset} is {one}; {advice}")
    if len(legend.classes) == len(unseen["test"]) and not present(found.test, 1):
        raise DataError(
            f"every pixel of the test masks of {settings.dataset} is void, so nothing can be judged; {advice}"
        )
    missing = unseen["training"]
    if missing and found.masks.all_decoded["training"] and report is not None:
        report.warn(f"no training mask has a pixel of {listed(missing)}: nothing of that can be learned")


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
