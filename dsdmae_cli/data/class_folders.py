"""Which class each image file belongs to, by the first folder of its name below its split. No torch here."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from jaxtyping import Int64

from dsdmae_cli.report import number_of

# A share of a split's images that may lie beside its class folders without a label; one image always may.
_FEW = 0.1
_SHOWN = 4
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")

Pairs = list[tuple[int, str]]  # the index of a file, and its name below its split
Members = dict[str, Pairs]  # by split: train and test


@dataclass(frozen=True)
class Part:
    """One split: which files, and what they show if the folders say so.

    Attributes:
        indices: of the names, ascending.
        labels: one for each index (-1 = none), or None.
        classes: names by label, or None.
    """

    indices: Int64[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"] | None
    classes: tuple[str, ...] | None


def class_notes(train: Part, test: Part, *, said: bool) -> list[str]:
    """Classes that only one split has images of, and those that are likely to be one; those without test images only
    where splits are `said`, for of few images not every class gets one held out.
    """
    alike = _alike(train.classes or ())
    if train.labels is None or test.labels is None or train.classes is None:
        return alike
    learned, judged = (set(np.unique(labels[labels >= 0]).tolist()) for labels in (train.labels, test.labels))
    only = {
        "test": sorted(train.classes[label] for label in judged - learned),
        "training": sorted(train.classes[label] for label in learned - judged) if said else [],
    }
    what = {"test": "nothing can be learned of {}", "training": "no score speaks of {}"}
    notes = []
    for which, classes in only.items():
        if classes:
            one = len(classes) == 1
            them = what[which].format("it" if one else "them")
            notes.append(
                f"{'class' if one else 'classes'} {some(classes)} {'has' if one else 'have'} {which} images alone:"
                f" {them}"
            )
    return notes + alike


def _alike(classes: Sequence[str]) -> list[str]:
    """Classes that are likely to be one: they differ in case, in the Unicode form of their letters, which looks the
    same, in blanks, or in how a number is written; or in several of these."""
    kinds: dict[str, Callable[[str], object]] = {
        "case": str.lower,
        "the Unicode form of letters": lambda name: unicodedata.normalize("NFC", name),
        "blanks": lambda name: " ".join(name.split()),
        "how the number is written": lambda name: Decimal(name) if _NUMBER.fullmatch(name) else name,
        "case, blanks and form": lambda name: " ".join(unicodedata.normalize("NFC", name).lower().split()),
    }
    notes = []
    said = set[tuple[str, ...]]()
    for what, plain in kinds.items():
        groups: dict[object, list[str]] = {}
        for name in sorted(classes):
            groups.setdefault(plain(name), []).append(name)
        found = {tuple(names) for names in groups.values() if len(names) > 1} - said
        said |= found
        shown = repr if what == "blanks" else str  # they are seen between quotes alone
        if pairs := [" and ".join(map(shown, names)) for names in sorted(found)]:
            notes.append(f"{some(pairs)} differ in {what} alone and are classes of their own; rename what is one")
    return notes


def parts_by_folders(members: Members, wrapper: str) -> tuple[dict[str, Part], list[str]]:
    """Parts with the classes that folders say, and what is to be said of them."""
    members = _unwrapped(members)
    # Classes are gathered over both splits, so that a label means the same in each.
    loose = {split: [name for _, name in pairs if "/" not in name] for split, pairs in members.items()}
    labelled = {
        split for split, pairs in members.items() if len(pairs) - len(loose[split]) > 0 and _few(loose[split], pairs)
    }
    classes = tuple(sorted({n.partition("/")[0] for split in labelled for _, n in members[split] if "/" in n}))
    beside = sum(map(len, loose.values()))
    if len(classes) < 2:
        return {split: Part(indices_of(pairs), None, None) for split, pairs in members.items()}, _why_none(
            members, classes, beside, wrapper
        )
    label_of = {name: label for label, name in enumerate(classes)}
    parts, notes = {}, []
    for split, pairs in members.items():
        if split not in labelled:
            parts[split] = Part(indices_of(pairs), None, None)
            if pairs:
                lie = f"{len(loose[split])} of {images_words(len(pairs))}"
                notes.append(f"the {_WHICH[split]} images have no labels: {lie} lie in no class folder")
            continue
        labels = [label_of[name.partition("/")[0]] if "/" in name else -1 for _, name in pairs]
        parts[split] = Part(indices_of(pairs), np.array(labels, dtype=np.int64), classes)
        if loose[split]:
            notes.append(
                f"{images_words(len(loose[split]))} for {_FOR[split]} beside the class folders, without a label:"
                f" {some(loose[split])}"
            )
    return parts, notes


def _unwrapped(members: Members) -> Members:
    """Without a folder around all images of a split, as in train/images/cat/ and test/images/cat/, or seg_train/ in
    seg_train/: where the splits have classes in common below such folders, and none as they are.
    """
    train, test = members["train"], members["test"]
    inner_train, inner_test = _below_the_only(train), _below_the_only(test)
    for one, other in ((train, test), (inner_train, inner_test), (inner_train, test), (train, inner_test)):
        if len(_folders(one) & _folders(other)) > 1:
            return {"train": one, "test": other}
    return members


def _below_the_only(pairs: Pairs) -> Pairs:
    folders = _folders(pairs)
    if len(folders) != 1 or not all("/" in name for _, name in pairs):
        return pairs
    start = len(folders.pop()) + 1
    return [(i, name[start:]) for i, name in pairs]


def _folders(pairs: Pairs) -> set[str]:
    return {name.partition("/")[0] for _, name in pairs if "/" in name}


_WHICH = {"train": "training", "test": "test"}
_FOR = {"train": "training", "test": "testing"}


def _few(loose: Collection[str], pairs: Collection[object]) -> bool:
    return len(loose) <= max(1, int(_FEW * len(pairs)))


def _why_none(members: Members, classes: tuple[str, ...], beside: int, wrapper: str) -> list[str]:
    """Why the folders say no classes, where somebody might have expected some."""
    counts = Counter(name.partition("/")[0] for pairs in members.values() for _, name in pairs if "/" in name)
    total = sum(map(len, members.values()))
    if len(counts) > 1:
        lie = f"{beside} of {images_words(total)} lie beside the folders {some(sorted(counts))}"
        advice = "move them into one, or give labels by --labels FILE.csv"
        return [f"no labels: {lie}, too many to take those for classes; {advice}"]
    only = classes[0] if classes else next(iter(counts), wrapper.rstrip("/").rpartition("/")[2])
    return [f"no labels: all folders there are is {only}/, and one class is none to tell apart"] if only else []


def indices_of(pairs: Pairs) -> Int64[np.ndarray, " n"]:
    """Which files these are."""
    return np.array([i for i, _ in pairs], dtype=np.int64)


def images_words(count: int) -> str:
    """ "1 image", "2 images"."""
    return number_of(count, "image")


def some(names: Sequence[str], most: int = _SHOWN) -> str:
    """At most so many names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
