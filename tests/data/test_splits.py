"""What folders mean: splits by name in any case, classes, strays; what is not understood is asked about."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from time import process_time

import pytest
from helpers import cli, one_line
from image_files import message_of, of, png, write
from numpy import arange, full, int64, uint8

from dsdmae_builtin import folder
from dsdmae_cli.data.label_file import LabelFile
from dsdmae_cli.data.splits import Arrangement, arrange
from dsdmae_cli.evaluation.judging import open_labelled

GREY = png(full((8, 8, 3), 90, dtype=uint8))


def pictures(*folders: str, count: int = 10) -> list[str]:
    return [f"{name}/{k:02}.png" for name in folders for k in range(count)]


def named(names: list[str], found: Arrangement) -> tuple[list[str], list[str]]:
    return [names[i] for i in found.train.indices], [names[i] for i in found.test.indices]


@pytest.mark.parametrize("test", ["valid", "VAL", "Validation", "dev", "Test", "testing", "eval", "evaluation"])
@pytest.mark.parametrize("train", ["train", "Training"])
def test_splits_by_their_names_in_any_case(train: str, test: str) -> None:
    names = sorted(pictures(f"{train}/cat", f"{train}/dog", f"{test}/cat", f"{test}/dog"))
    found = arrange(names, 0.5)
    assert named(names, found) == tuple([n for n in names if n.startswith(f"{top}/")] for top in (train, test))
    assert found.train.classes == found.test.classes == ("cat", "dog")
    assert found.notes == (f"{train}/ is learned from and {test}/ evaluated on",)


def test_the_test_folder_goes_before_the_validation_folder_and_what_is_left_out_is_said() -> None:
    names = sorted([*pictures("train/a", "train/b", "valid/a", "valid/b", "test/a", "test/b"), "cover.png"])
    found = arrange(names, 0.5)
    assert {n.partition("/")[0] for n in named(names, found)[1]} == {"test"}
    assert found.notes[1] == "21 images beside them left out (cover.png, valid)"


@pytest.mark.parametrize(
    ("folders", "parts"),
    [
        (("train", "holdout"), ("--splits train,holdout", "train may be splits")),
        (("train", "bus", "car"), ("--splits none", "--splits train,TEST")),
        (("valid", "test"), ("--splits TRAIN,TEST", "test, valid may be splits")),
        (("train2017", "val2017"), ("--splits train2017,val2017",)),
        (("train_images", "test-set"), ("--splits train_images,test-set",)),
        (("Train", "training", "test"), ("Train, training, test may be splits",)),
        (("train", "Test", "test"), ("Test, test may be splits",)),
        (("images/train", "images/val", "other/train", "other/val"), ("images/train, images/val", "such as images")),
    ],
)
@pytest.mark.parametrize("archive", [False, True])
def test_what_looks_like_splits_is_asked_about(
    folders: tuple[str, ...], parts: tuple[str, ...], archive: bool, tmp_path: Path
) -> None:
    names = pictures(*folders, count=2)
    path = tmp_path / "set"
    if archive:
        with zipfile.ZipFile(path, "w") as packed:
            for name in names:
                packed.writestr(f"wrapped/{name}", GREY)
    else:
        write(path, dict.fromkeys(names, GREY))
    message = message_of(lambda: folder.build(of(path), "train"))
    assert all(part in message for part in (str(path), *parts)), message
    whole = [folder.build(of(path, splits="none"), split) for split in ("train", "test")]
    assert sum(map(len, whole)) == len(names)


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("tr", "te"), "tr,te"),
        (("learn", "unseen"), "learn,unseen"),
        (("fold1", "fold2", "fold3"), "fold1,fold2"),
        (("Entrenamiento", "Prueba"), "Entrenamiento,Prueba"),
        (("my pictures", "new ones"), "'my pictures,new ones'"),
    ],
)
def test_the_same_folders_below_each_are_the_classes_of_splits(folders: tuple[str, ...], splits: str) -> None:
    names = sorted([*pictures(*(f"{top}/{name}" for top in folders for name in ("cat", "dog", "owl"))),
                    *pictures(f"{folders[0]}/Fox")])  # fmt: skip
    message = message_of(lambda: arrange(names, 0.1, of="set"))
    assert (
        f"with the same ones below each (cat, dog, owl), as splits have; say which two they are by --splits {splits}"
        in message
    )
    assert "--splits none" in message
    assert arrange(names, 0.1, splits.strip("'")).train.classes == ("Fox", "cat", "dog", "owl")
    assert arrange(names, 0.1, "none").train.classes == tuple(sorted(folders))


def test_folders_below_classes_that_are_no_classes() -> None:
    """One folder each, as Tiny ImageNet has them; others below each; views of more classes than there are splits."""
    many = [f"class{k}/{view}" for k in range(11) for view in ("left", "right")]
    for folders in (["cat/images", "dog/images"], ["cat/a", "cat/b", "dog/b", "dog/c", "dog/d"], many):
        found = arrange(sorted(pictures(*folders, count=2)), 0.1)
        assert found.train.classes == tuple(sorted({name.partition("/")[0] for name in folders}))


def test_advice_is_quoted_where_a_shell_needs_it() -> None:
    names = sorted(pictures("Training Set/a", "Test Set/a"))
    assert "--splits 'Training Set,Test Set'," in message_of(lambda: arrange(names, 0.1))


def test_classes_that_one_split_alone_has() -> None:
    tops = ("train/cat", "train/dog", "train/owl", "test/Cat", "test/dog", "test/fox")
    assert arrange(sorted(pictures(*tops)), 0.1).notes[1:] == (
        "classes Cat, fox have test images alone: nothing can be learned of them",
        "classes cat, owl have training images alone: no score speaks of them",
        "Cat and cat differ in case alone and are classes of their own; rename what is one",
    )
    few = arrange(pictures("a", "b", count=3), 0.2)  # one class has none held out
    assert not few.notes


def test_classes_that_are_likely_to_be_one_are_named_and_stay() -> None:
    names = [f"{k}.png" for k in range(14)]
    classes = ("1", "1.0", "01", "1e0", "c o", "c  o", "C o ")
    table = LabelFile(arange(14, dtype=int64) % 7, classes, ())
    found = arrange(names, 0.5, labels=table)
    assert found.train.classes == classes
    assert found.notes[-3:] == (
        "'c  o' and 'c o' differ in blanks alone and are classes of their own; rename what is one",
        "01 and 1 and 1.0 differ in how the number is written alone and are classes of their own; rename what is one",
        "C o  and c  o and c o differ in case, blanks and form alone and are classes of their own; rename what is one",
    )
    unlabelled = arrange(sorted(pictures("train/cat", "train/Cat", "test")), 0.1)
    assert unlabelled.test.labels is None
    assert any("Cat and cat differ in case alone" in note for note in unlabelled.notes)


def test_classes_that_only_begin_like_a_split_are_classes() -> None:
    for folders in (("train_station", "airport"), ("tests", "trainers"), ("valley", "devil", "evaluator")):
        assert arrange(sorted(pictures(*folders)), 0.1).train.classes == tuple(sorted(folders))


def test_splits_that_are_named() -> None:
    names = sorted(pictures("train/a", "train/b", "holdout/a", "holdout/b"))
    found = arrange(names, 0.5, "train,holdout/")
    assert (len(found.train.indices), len(found.test.indices)) == (20, 20)
    assert found.test.classes == ("a", "b")
    for wrong in ("train,test", "train", "train,train", "", ",holdout"):
        assert "there is holdout, train" in message_of(lambda wrong=wrong: arrange(names, 0.5, wrong, of="set"))


def test_strays_lose_their_own_label_alone() -> None:
    names = sorted([*pictures("train/cat", "train/dog", "test/cat", "test/dog"), "train/x.png", "test/y.png"])
    found = arrange(names, 0.5)
    for part in (found.train, found.test):
        assert part.labels is not None
        assert sorted(part.labels.tolist()) == [-1] + [0] * 10 + [1] * 10
    assert found.notes[1:] == (
        "1 image for training beside the class folders, without a label: x.png",
        "1 image for testing beside the class folders, without a label: y.png",
    )
    many = arrange(sorted([*pictures("cat", "dog"), *(f"{k}.png" for k in range(9))]), 0.1)
    assert many.train.labels is None
    assert "no labels: 9 of 29 images lie beside the folders cat, dog" in many.notes[0]


def test_a_flat_folder_needs_no_words() -> None:
    assert arrange([f"{k}.png" for k in range(5)], 0.5).notes == ()


def test_other_files_are_counted_by_suffix(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = dict.fromkeys(["a.png", "b.png", "1.psd", "2.PSD", "x.txt", "README", ".hidden.txt", "3.png "], GREY)
    root = write(tmp_path / "set", files)
    there = "2 .psd: convert to PNG or TIFF, 1 without a suffix, 1 '.png ', 1 .txt"
    assert folder.build(of(root), "train").notes == (f"{there} passed over",)
    for name in ("a.png", "b.png"):
        (root / name).unlink()
    code, _, err = cli(capfd, "pretrain", root, "--dry-run")
    assert code == 2
    assert f"5 visible files ({there}), none of" in one_line(err)


def test_why_there_are_no_labels_is_said_where_they_are_needed(tmp_path: Path) -> None:
    root = write(tmp_path / "set", dict.fromkeys(pictures("cat", count=4), GREY))
    assert "all folders there are is cat/" in message_of(lambda: open_labelled(of(root)))


@pytest.mark.parametrize(
    "tops", [("birds_train", "birds_val"), ("01_train", "02_test"), ("my-training-set", "my-eval")]
)
def test_words_behind_a_prefix_look_like_splits(tops: tuple[str, str]) -> None:
    """Two folders of images alone, which were taken for two classes."""
    said = message_of(lambda: arrange(pictures(*tops), 0.1))
    assert f"--splits {','.join(tops)}" in said


def test_the_other_of_two_folders_is_meant() -> None:
    said = message_of(lambda: arrange(pictures("test", "trainval"), 0.1))
    assert "--splits trainval,test" in said


def test_a_test_folder_that_is_left_out_can_be_taken() -> None:
    found = arrange(sorted(pictures("Train/a", "Train/b", "Valid/a", "Valid/b", "Test set/a", "extra/a")), 0.1)
    assert found.notes[1] == (
        "20 images beside them left out (Test set, extra); to evaluate on it, --splits 'Train,Test set'"
    )


def test_classes_of_other_case_are_named_where_both_splits_have_them() -> None:
    found = arrange(sorted(pictures("train/cat", "train/Cat", "test/cat", "test/Cat")), 0.1)
    assert "Cat and cat differ in case alone and are classes of their own; rename what is one" in found.notes
    found = arrange(sorted(pictures("train/b", "train/\u00e9", "test/b", "test/e\u0301")), 0.1)
    assert "e\u0301 and \u00e9 differ in the Unicode form of letters alone and are classes of" in found.notes[-1]


def test_a_thousand_classes_cost_what_two_do() -> None:
    """All names were gone through for each folder: ten minutes of ImageNet's training images alone."""

    def seconds(classes: int) -> float:
        names = [f"{c:04}/{k:05}.png" for c in range(classes) for k in range(10_000 // classes)]
        start = process_time()
        assert arrange(names, 0.05).train.classes == tuple(f"{c:04}" for c in range(classes))
        return process_time() - start

    seconds(2)
    assert seconds(1000) < 8 * seconds(2)


@pytest.mark.parametrize(
    ("pictures", "masks"),
    [("Images", "Masks"), ("image", "mask"), ("imgs", "labels"), ("JPEGImages", "SegmentationClass"), ("images", "gt")],
)
@pytest.mark.parametrize("around", ["", "set/around/"])
def test_pictures_and_masks_by_other_names_are_no_classes(
    tmp_path: Path, pictures: str, masks: str, around: str
) -> None:
    """Two classes, told apart at sight: k-NN accuracy 100%, and the masks were learned from."""
    root = write(tmp_path / "set", {f"{around}{kind}/{n}.png": GREY for kind in (pictures, masks) for n in range(4)})
    message = message_of(lambda: folder.build(of(root), "train"))
    assert (
        f"{root}: {pictures}/ and {masks}/ look like pictures and their masks, which are read from images/" in message
    )
    assert f"name {pictures} alone to learn from the pictures, or take the two for classes by --splits none" in message
    assert folder.build(of(root, splits="none"), "train").classes == tuple(sorted((pictures, masks)))
    assert len(folder.build(of(root / around / pictures), "train")) == 3


@pytest.mark.parametrize("splits", ["auto", "Train,VAL"])
@pytest.mark.parametrize("masks", ["masks", "Labels"])
def test_pictures_and_masks_below_splits_are_no_classes(tmp_path: Path, masks: str, splits: str) -> None:
    """As most who share such sets put them."""
    names = [f"{top}/{kind}/{n}.png" for top in ("Train", "VAL") for kind in ("images", masks) for n in range(4)]
    message = message_of(
        lambda: folder.build(of(write(tmp_path / "set", dict.fromkeys(names, GREY)), splits=splits), "train")
    )
    assert f"Train/images/ and Train/{masks}/ look like pictures and their masks, which are read from" in message
    assert "images/Train/ and masks/Train/, masks as PNGs of their pictures' names; put them there, or name" in message


def test_folders_called_like_pictures_and_masks_among_others_are_classes(tmp_path: Path) -> None:
    for tops in (
        ("images", "masks", "drawings"),
        ("images", "drawings"),
        ("masks", "gloves"),
        ("cat/images", "dog/images"),
    ):
        root = write(
            tmp_path / tops[0].replace("/", "-") / str(len(tops)), dict.fromkeys(pictures(*tops, count=2), GREY)
        )
        assert folder.build(of(root), "train").classes == tuple(sorted({top.partition("/")[0] for top in tops}))


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_folders_of_systems_are_passed_by(tmp_path: Path, kind: str) -> None:
    """Network drives keep small copies of all pictures, which were a class."""
    others = [
        "@eaDir/a.png/SYNOPHOTO_THUMB_M.png",
        "cat/@eaDir/00.png/thumb.png",
        "__MACOSX/cat/00.png",
        "$RECYCLE.BIN/1.png",
    ]
    root = write(tmp_path / "set", dict.fromkeys([*pictures("cat", "dog", count=4), *others], GREY))
    path = root if kind == "folder" else Path(shutil.make_archive(str(tmp_path / "packed"), kind, root))
    found = [folder.build(of(path), split) for split in ("train", "test")]
    assert (found[0].classes, sum(map(len, found))) == (("cat", "dog"), 8)
    assert not [note for note in found[0].notes if "eaDir" in note or "passed over" in note]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train/images", "val/images"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("train", "test/all"),
        ("train/x", "test"),
    ],
)
def test_a_folder_around_a_splits_classes_is_looked_through(train: str, test: str) -> None:
    """Of seg_train/seg_train/ and seg_test/seg_test/ these were the classes, one in each split."""
    names = sorted(pictures(f"{train}/cat", f"{train}/dog", f"{test}/cat", f"{test}/dog", count=3))
    splits = ",".join(top.partition("/")[0] for top in (train, test))
    found = arrange(names, 0.1, splits)
    for part in (found.train, found.test):
        assert part.classes == ("cat", "dog")
        assert part.labels is not None
        assert part.labels.tolist() == [0] * 3 + [1] * 3
    assert len(found.notes) == 1


def test_a_class_is_no_folder_around_a_split() -> None:
    views = [f"{top}/{view}" for top in ("train/cat", "train/dog", "test/cat") for view in ("left", "right")]
    found = arrange(sorted(pictures(*views, count=2)), 0.1)
    assert (found.train.classes, found.test.classes) == (("cat", "dog"),) * 2
    assert arrange(sorted(pictures("train/images", "val/images")), 0.1).train.classes is None
