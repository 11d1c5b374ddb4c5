"""Segmentation datasets of files: a folder with images/ and masks/, and the official layouts of VOC and COCO-Stuff.

What a mask is and how it is read is dsdmae_cli.data.masks. No torch here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from dsdmae_cli.data.archives import read_text
from dsdmae_cli.data.files import FileImages, Files, open_files
from dsdmae_cli.data.masks import Legend, MaskedFiles, legend_of, paired
from dsdmae_cli.data.once import shared
from dsdmae_cli.data.values import asked_bands
from dsdmae_cli.errors import DataError
from dsdmae_cli.plugins import argument_of
from dsdmae_cli.settings.models import DataSettings

CLASSES = "classes.txt"
_IMAGES, _MASKS = "images", "masks"
_RGB = 3
# What people call the two, beside images and masks, in small letters.
_PICTURE_WORDS = frozenset({"image", "images", "img", "imgs", "jpegimages", "picture", "pictures"})
_MASK_WORDS = frozenset({
    "mask", "masks", "label", "labels", "annotation", "annotations", "ann", "anns", "gt", "groundtruth", "ground_truth",
    "seg", "segmentation", "segmentations", "segmentationclass",
})  # fmt: skip


# ------------------------------------------------------------------------------------------ images/ and masks/


class Layout(NamedTuple):
    """A folder of images/ and masks/.

    Attributes:
        wrapper: the folder around both, with a slash; "" = there is none.
        pictures, masks: which of the files they are, ascending.
    """

    wrapper: str
    pictures: Int64[np.ndarray, " n"]
    masks: Int64[np.ndarray, " m"]

    def below(self, names: Sequence[str], which: Int64[np.ndarray, " k"]) -> list[str]:
        """Names of some of the files below images/ or masks/."""
        start = len(self.wrapper)
        return [names[i][start:].partition("/")[2] for i in which.tolist()]


def layout_of(names: Sequence[str]) -> Layout | None:
    """The layout, where images/ and masks/ are all that lies there and every mask is a PNG; else None.

    Two folders of those names would otherwise be two classes to tell apart.
    """
    every = list(names)
    tops = {name.partition("/")[0] for name in every}
    wrapper = ""
    if len(tops) == 1 and all(name.count("/") >= 2 for name in every):
        wrapper = f"{tops.pop()}/"
        tops = {name[len(wrapper) :].partition("/")[0] for name in every}
    if tops != {_IMAGES, _MASKS}:
        return None
    is_mask = np.array([name.startswith(f"{wrapper}{_MASKS}/") for name in every])
    if not all(name.lower().endswith(".png") for name, mask in zip(every, is_mask, strict=True) if mask):
        return None
    return Layout(wrapper, np.flatnonzero(~is_mask), np.flatnonzero(is_mask))


def no_png(names: Sequence[str]) -> str | None:
    """What to say of images/ and masks/ with a mask of each image's name, of which some are no PNGs; None otherwise.

    A JPEG's pixels are near the numbers of classes, and no longer these numbers.
    """
    parts = (name.split("/", 2)[:2] for name in names)
    if not any(_MASKS in folders for folders in parts):  # before a million paths are taken apart
        return None
    every = [PurePosixPath(name) for name in names]
    if len({name.parts[0] for name in every}) == 1 and all(len(name.parts) > 2 for name in every):
        every = [PurePosixPath(*name.parts[1:]) for name in every]
    pictures = {PurePosixPath(*name.parts[1:]).with_suffix("") for name in every if name.parts[0] == _IMAGES}
    masks = [name for name in every if name.parts[0] == _MASKS]
    if not masks or len({name.parts[0] for name in every}) > 2:
        return None
    other = [name for name in masks if name.suffix.lower() != ".png"]
    if not other or any(PurePosixPath(*name.parts[1:]).with_suffix("") not in pictures for name in masks):
        return None
    return (
        f"{len(other)} of {len(masks)} masks are no PNGs ({other[0]}); a mask is a PNG, whose values are numbers of"
        " classes, which JPEG and its like change: write them anew from their source under the same names as .png, or"
        " take all files for pictures by --splits none"
    )


def almost(names: Sequence[str], *, below_splits: bool) -> str | None:
    """What to say of pictures and masks in other folders than images/ and masks/; None where nothing looks like that.

    They would be two classes, which nothing is easier than to tell apart.

    Args:
        below_splits: look no further than there, since somebody has said what the first level is.
    """
    folders = {tuple(name.split("/")[:-1]) for name in names}
    first, last = min(folders), max(folders)  # what these two share in front, all share
    around = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    below: dict[str, set[str]] = {}
    for folder in folders:
        if len(folder) > around:
            below.setdefault(folder[around], set()).update(folder[around + 1 : around + 2])
    found = None if below_splits else _pictures_and_masks(below)
    if found is not None:
        return (
            f"{found[0]}/ and {found[1]}/ look like pictures and their masks, which are read from {_IMAGES}/ and"
            f" {_MASKS}/, masks as PNGs of their pictures' names; call them so, or name {found[0]} alone to learn from"
            " the pictures, or take the two for classes by --splits none"
        )
    for split, inner in sorted(below.items()):
        if (found := _pictures_and_masks(inner)) is not None:
            return (
                f"{split}/{found[0]}/ and {split}/{found[1]}/ look like pictures and their masks, which are read from"
                f" {_IMAGES}/{split}/ and {_MASKS}/{split}/, masks as PNGs of their pictures' names; put them there, or"
                f" name a folder that holds pictures alone, such as {split}/{found[0]}"
            )
    return None


def _pictures_and_masks(folders: Collection[str]) -> tuple[str, str] | None:
    """Which of two folders is called as one of pictures, and which as one of masks."""
    pictures = [folder for folder in folders if folder.lower() in _PICTURE_WORDS]
    masks = [folder for folder in folders if folder.lower() in _MASK_WORDS]
    return (pictures[0], masks[0]) if len(folders) == 2 and len(pictures) == len(masks) == 1 else None


def legend_beside(path: Path, layout: Layout, void: Sequence[int]) -> Legend | None:
    """What classes.txt beside images/ and masks/ says; None where there is none.

    Raises:
        DataError: it names no classes.
    """
    text = read_text(path, layout.wrapper + CLASSES)
    return None if text is None else legend_of(text.splitlines(), void, CLASSES)


def with_masks(
    pictures: FileImages,
    files: Files,
    layout: Layout,
    chosen: Int64[np.ndarray, " n"],
    legend: Legend,
    may_lack: bool,
) -> MaskedFiles:
    """Some of the pictures with their masks.

    Args:
        chosen: which of the files they are.
    """
    mine = paired(layout.below(files.names, chosen), layout.below(files.names, layout.masks))
    masks = np.where(mine < 0, -1, layout.masks[mine])
    return MaskedFiles(pictures, files, masks, legend, may_lack=may_lack)


# -------------------------------------------------------------------------------------------- official layouts

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_VOC = "give VOCdevkit, or VOC2012 in it"
_COCO = "give the folder that holds images/ and annotations/"


def _only_root(path: Path, folders: Collection[str], masks: str, images: str, advice: str) -> str:
    """The one folder that holds both of these, "" or with a slash at its end.

    Raises:
        DataError: there is none, or more than one.
    """
    roots = sorted(
        name.removesuffix(masks)
        for name in folders
        if name.endswith(f"/{masks}") or name == masks
        if f"{name.removesuffix(masks)}{images}" in folders
    )
    if not roots:
        raise DataError(f"{path} has no {images.rstrip('/')} and {masks.rstrip('/')} side by side; {advice}")
    if len(roots) > 1:
        raise DataError(f"{path} has them more than once, in {', '.join(map(repr, roots))}; name one of these folders")
    return roots[0]


def build_voc(settings: DataSettings, split: str) -> MaskedFiles:
    """`voc:PATH`: VOCdevkit, a year's folder in it, or the archive of it; lists train and val of its segmentation.

    Masks are PNGs of a palette, 0 the background, 1 to 20 the classes, 255 the void around objects (Everingham et al.,
    the development kit of 2012).

    Raises:
        DataError: the folder is not VOC's, or lacks what its lists name.
    """
    path, files, names = _opened(settings, _VOC)
    root = _only_root(path, _folders(names), "SegmentationClass/", "JPEGImages/", _VOC)
    listing = f"{root}ImageSets/Segmentation/{'val' if split == 'test' else 'train'}.txt"
    text = read_text(path, listing)
    if text is None:
        raise DataError(f"{path} has no {listing}; fetch VOC's development kit again")
    stems = text.split()
    legend = Legend(VOC_CLASSES, tuple(range(len(VOC_CLASSES))), (255,), "VOC")
    wanted = [(f"{root}JPEGImages/{stem}.jpg", f"{root}SegmentationClass/{stem}.png") for stem in stems]
    return _listed(settings, path, files, names, wanted, legend)


def build_coco_stuff(settings: DataSettings, split: str) -> MaskedFiles:
    """`coco-stuff:PATH`: the folder `dataset` of its official repository: images/train2017 and val2017 (JPEG), beside
    annotations/train2017 and val2017 as stuffthingmaps_trainval2017.zip holds them (PNG, values 0 to 181, 255 void).

    Names of the classes come from labels.txt there or one folder up ("1: person"); a value is one less than its number
    there. The eleven that no picture shows keep their place.

    Raises:
        DataError: the folder is not COCO-Stuff's.
    """
    path, files, names = _opened(settings, _COCO)
    part = "val2017" if split == "test" else "train2017"
    root = _only_root(path, _folders(names), f"annotations/{part}/", f"images/{part}/", _COCO)
    legend = _coco_legend(path, root)
    images = sorted(name for name in names if name.startswith(f"{root}images/{part}/"))
    wanted = [(name, f"{root}annotations/{part}/{Path(name).stem}.png") for name in images]
    return _listed(settings, path, files, names, wanted, legend)


def _coco_legend(path: Path, root: str) -> Legend:
    text = read_text(path, f"{root}labels.txt")
    if text is None and path.is_dir():
        text = read_text(path.parent, "labels.txt")
    if text is None:
        raise DataError(f"{path} has no labels.txt; fetch it from COCO-Stuff's repository and put it beside images/")
    pairs = [line.partition(":")[::2] for line in text.splitlines() if ":" in line]
    try:
        named = {int(number) - 1: name.strip() for number, name in pairs if int(number) > 0}
    except ValueError as error:
        raise DataError(f"labels.txt in {path} is not COCO-Stuff's, of lines as '1: person': {error}") from error
    return Legend(tuple(named.values()), tuple(named), (255,), "labels.txt")


def _opened(settings: DataSettings, advice: str) -> tuple[Path, Files, dict[str, int]]:
    path = Path(argument_of(settings.dataset)).expanduser().absolute()
    if not path.exists():
        raise DataError(f"{path} does not exist; {advice}")
    files = open_files(path)
    return path, files, shared(_places, path)


def _places(path: Path) -> dict[str, int]:
    return {name: index for index, name in enumerate(open_files(path).names)}


def _folders(names: dict[str, int]) -> set[str]:
    return {f"{name.rpartition('/')[0]}/" for name in names}


def _listed(
    settings: DataSettings,
    path: Path,
    files: Files,
    names: dict[str, int],
    wanted: list[tuple[str, str]],
    legend: Legend,
) -> MaskedFiles:
    lacking = [image for image, _ in wanted if image not in names]
    if lacking or not wanted:
        what = f"{lacking[0]}, which its list names" if lacking else "images in that split"
        raise DataError(f"{path} has no {what}; fetch the dataset again")
    reading = asked_bands(settings.bands, settings.channels, lambda: _RGB)
    images = FileImages(files, np.array([names[image] for image, _ in wanted], dtype=np.int64), reading=reading)
    masks = np.array([names.get(mask, -1) for _, mask in wanted], dtype=np.int64)
    return MaskedFiles(images, files, masks, legend)
