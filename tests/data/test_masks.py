"""Segmentation datasets: images/ and masks/, VOC's and COCO-Stuff's official layouts, and what is wrong with some."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import masked_folder
from numpy.typing import NDArray
from PIL import Image

from dsdmae_cli.config.compose import compose
from dsdmae_cli.config.schema import PROBE
from dsdmae_cli.data.base import ImageDataset
from dsdmae_cli.data.mask_account import look_at_masks
from dsdmae_cli.data.masks import VOID, MaskedImages, labels_of, legend_of
from dsdmae_cli.data.open import open_dataset
from dsdmae_cli.errors import DataError
from dsdmae_cli.report import Report
from dsdmae_cli.segmentation.splits import hold_out_images, open_masked
from dsdmae_cli.settings.models import DataSettings


def data(dataset: str | Path, *more: str) -> DataSettings:
    name = dataset if isinstance(dataset, str) else f"folder:{dataset}"
    return compose(PROBE, assignments=[f"data.dataset={name}", *more], environ={}).settings.data


def test_what_there_is_to_judge_by(tmp_path: Path) -> None:
    assert labels_of(open_dataset(data(masked_folder(tmp_path / "masked")), "train")) == "masks"
    assert labels_of(open_dataset(data("digits"), "train")) == "classes"
    (tmp_path / "flat").mkdir()
    for number in range(20):
        Image.new("RGB", (8, 8)).save(tmp_path / "flat" / f"{number}.png")
    assert labels_of(open_dataset(data(tmp_path / "flat"), "train")) is None


def masked(dataset: ImageDataset) -> MaskedImages:
    assert isinstance(dataset, MaskedImages)
    return dataset


def stored_in(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture).copy()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return masked_folder(tmp_path / "digits")


def test_images_and_masks_are_no_classes(folder: Path) -> None:
    for split, count in (("train", 12), ("test", 5)):
        found = masked(open_dataset(data(folder), split))
        assert (len(found), found.labels, found.classes) == (count, None, None)
        assert all("/images/" in found.name(i) for i in range(count))
        assert found.legend.classes == ("paper", "shade", "ink")
        assert any("dataset for segmentation" in note for note in found.notes)
        stem = Path(found.name(0)).stem
        assert found.mask_name(0) == str(folder / "masks" / split / f"{stem}.png")
        stored = stored_in(folder / "masks" / split / f"{stem}.png")
        assert (found.load_mask(0) == stored).all()
        assert found.load(0).shape[:2] == found.load_mask(0).shape == (24, 32)
        assert found.mask_size(0) == found.size(0) == (32, 24)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip", "wrapped"])
def test_archives_of_one_are_read_in_place(kind: str, folder: Path, tmp_path: Path) -> None:
    packed = tmp_path / f"packed.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(packed, "w") as archive:
            for file in sorted(folder.rglob("*.*")):
                archive.write(file, file.relative_to(folder))
    elif kind == "wrapped":
        packed = shutil.copytree(folder, tmp_path / "outer" / "inner").parent
    else:
        with tarfile.open(packed, "w:gz" if kind == "tar.gz" else "w") as archive:
            archive.add(folder, "digits")
    mine, theirs = (open_masked(data(path)) for path in (packed, folder))
    assert mine.legend == theirs.legend
    assert mine.masks == theirs.masks
    for i in range(12):
        assert (mine.train.load_mask(i) == theirs.train.load_mask(i)).all()


def test_a_palette_is_read_by_its_numbers(folder: Path) -> None:
    path = next((folder / "masks" / "train").iterdir())
    values = stored_in(path)
    mask = Image.fromarray(values)
    mask.putpalette([7, 8, 9] * 256)
    mask.save(path)
    with Image.open(path) as again:
        assert again.mode == "P"
    found = masked(open_dataset(data(folder), "train"))
    assert (found.load_mask(0) == values).all()


def test_void_may_have_a_line_in_classes_or_a_setting(folder: Path) -> None:
    (folder / "classes.txt").write_text("paper\nvoid\nink\n", encoding="utf-8")
    found = masked(open_dataset(data(folder), "train"))
    assert (found.legend.classes, found.legend.values, found.legend.void) == (("paper", "ink"), (0, 2), (1, 255))
    stored = stored_in(Path(found.mask_name(0) or ""))
    expected = np.select([stored == 0, stored == 2], [0, 1], VOID)
    assert (found.load_mask(0) == expected).all()
    (folder / "classes.txt").write_text("paper\nshade\n", encoding="utf-8")
    declared = masked(open_dataset(data(folder, "data.void=[2,255]"), "train"))
    assert (declared.load_mask(0) == np.where(stored >= 2, VOID, stored)).all()


def test_the_account_names_classes_void_and_what_lacks_a_mask(folder: Path) -> None:
    (folder / "masks" / "train" / "003.png").unlink()
    settings = data(folder, "data.without_mask=skip")
    splits = open_masked(settings)
    assert len(splits.train_indices) == 11
    share = (24 + 32 - 1) / (24 * 32)
    assert splits.masks.void_share == pytest.approx(share)
    assert splits.masks.line() == (
        f"masks     3 classes: paper, shade, ink; void (255) is {share:.1%} of 16 masks; 1 image without a mask is left"
        " out"
    )


def spoil_size(folder: Path) -> None:
    Image.new("L", (32, 23)).save(folder / "masks" / "train" / "004.png")


def spoil_value(folder: Path) -> None:
    Image.new("L", (32, 24), 7).save(folder / "masks" / "train" / "004.png")


def spoil_missing(folder: Path) -> None:
    (folder / "masks" / "train" / "004.png").unlink()


def spoil_colours(folder: Path) -> None:
    Image.new("RGB", (32, 24)).save(folder / "masks" / "train" / "004.png")


def spoil_bytes(folder: Path) -> None:
    (folder / "masks" / "train" / "004.png").write_bytes(b"no picture")


def spoil_names(folder: Path) -> None:
    (folder / "classes.txt").write_text("paper\n\nink\n", encoding="utf-8")


def spoil_one_name(folder: Path) -> None:
    (folder / "classes.txt").write_text("paper\nvoid\n", encoding="utf-8")


def spoil_no_names(folder: Path) -> None:
    (folder / "classes.txt").unlink()


FAULTS = {
    spoil_size: r"masks/train/004\.png has 32x23 px and its image 32x24; make it again in the image's size",
    spoil_value: r"004\.png has the value 7; classes\.txt names 3 classes \(0 to 2\) and void is 255: name the value"
    r" there, or declare it void with --set data\.void=\[7,255\]",
    spoil_missing: r"an image has no mask \(.*images/train/004\.png\): .*--set data\.without_mask=skip",
    spoil_colours: r"004\.png is a picture of mode RGB; a mask is a PNG of one channel",
    spoil_bytes: r"004\.png cannot be read: .*; mend it, or remove it and its image",
    spoil_names: r"classes\.txt: line 2 is empty",
    spoil_one_name: r"classes\.txt names 1 classes; it takes 2 to 255",
    spoil_no_names: r"have no masks \(.*classes\.txt beside it would name the classes",
}


@pytest.mark.parametrize("spoil", FAULTS)
def test_what_cannot_be_used_is_said_in_a_line(spoil: object, folder: Path) -> None:
    assert callable(spoil)
    spoil(folder)
    with pytest.raises(DataError, match=FAULTS[spoil]) as error:
        open_masked(data(folder))
    assert "\n" not in str(error.value)


def test_masks_that_are_no_pngs_are_named_and_no_split_is_asked_for(folder: Path) -> None:
    for mask in sorted((folder / "masks").rglob("*.png")):
        Image.fromarray(stored_in(mask)).save(mask.with_suffix(".jpg"))
        mask.unlink()
    with pytest.raises(DataError, match=r"17 of 17 masks are no PNGs \(masks/.*\.jpg\); a mask is a PNG"):
        open_dataset(data(folder), "train")
    plain = open_dataset(data(folder, "data.splits=none"), "train")
    assert plain.classes == ("images", "masks")


def test_a_dataset_without_masks_is_refused() -> None:
    with pytest.raises(DataError, match="the images of digits have no masks; segmentation takes a folder with images/"):
        open_masked(data("digits"))


def test_a_value_beyond_the_sample_is_found_where_it_is_used(folder: Path) -> None:
    spoil_value(folder)
    found = masked(open_dataset(data(folder), "train"))
    with pytest.raises(DataError, match="has the value 7"):
        found.load_mask(4)


def test_names_may_not_repeat() -> None:
    with pytest.raises(DataError, match="names 'a' twice"):
        legend_of(["a", "b", "a"], (255,), "classes.txt")


def test_an_ordinary_folder_of_those_names_and_others_stays_one_of_classes(folder: Path) -> None:
    (folder / "others").mkdir()
    shutil.copy(next((folder / "images" / "train").iterdir()), folder / "others" / "x.png")
    assert not isinstance(open_dataset(data(folder, "data.splits=none"), "train"), MaskedImages)


# -------------------------------------------------------------------------------------------- official layouts


def voc(root: Path) -> Path:
    """VOCdevkit/VOC2012 with two training images, one to validate, and one without a mask."""
    year = root / "VOCdevkit" / "VOC2012"
    rng = np.random.default_rng(0)
    for stem in ("2007_000032", "2007_000039", "2007_000033", "2008_000001"):
        (year / "JPEGImages").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(year / "JPEGImages" / f"{stem}.jpg")
        if stem == "2008_000001":
            continue
        mask = rng.integers(0, 21, (12, 16), dtype=np.uint8)
        mask[0] = 255
        picture = Image.fromarray(mask)
        picture.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tolist())
        for kind in ("SegmentationClass", "SegmentationObject"):
            (year / kind).mkdir(exist_ok=True)
            picture.save(year / kind / f"{stem}.png")
    lists = year / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000032\n2007_000039\n")
    (lists / "val.txt").write_text("2007_000033\n")
    (lists / "trainval.txt").write_text("2007_000032\n2007_000033\n2007_000039\n")
    return root


@pytest.mark.parametrize("given", ["VOCdevkit", "VOCdevkit/VOC2012", "VOCtrainval_11-May-2012.tar"])
def test_voc_in_its_official_layout(given: str, tmp_path: Path) -> None:
    root = voc(tmp_path)
    with tarfile.open(root / "VOCtrainval_11-May-2012.tar", "w") as archive:
        archive.add(root / "VOCdevkit", "VOCdevkit")
    splits = open_masked(data(f"voc:{root / given}"))
    assert [Path(splits.train.name(i)).stem for i in range(2)] == ["2007_000032", "2007_000039"]
    assert [Path(splits.test.name(i)).stem for i in range(len(splits.test))] == ["2007_000033"]
    assert (len(splits.legend.classes), splits.legend.classes[0], splits.legend.classes[20]) == (
        21, "background", "tvmonitor"
    )  # fmt: skip
    stored = stored_in(root / "VOCdevkit/VOC2012/SegmentationClass/2007_000039.png")
    assert (splits.train.load_mask(1) == stored).all()
    assert splits.masks.void_share == pytest.approx(1 / 12)


def test_of_two_years_one_has_to_be_named(tmp_path: Path) -> None:
    root = voc(tmp_path)
    shutil.copytree(root / "VOCdevkit/VOC2012", root / "VOCdevkit/VOC2007")
    with pytest.raises(DataError, match=r"more than once, in '.*VOC2007/', '.*VOC2012/'; name one of these folders"):
        open_masked(data(f"voc:{root / 'VOCdevkit'}"))
    assert len(open_masked(data(f"voc:{root / 'VOCdevkit/VOC2007'}")).train) == 2


def test_a_copy_has_the_identity_of_what_it_was_made_from(folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "copied")
    mine, theirs = (open_masked(data(path)).train for path in (folder, copied))
    assert mine.identity() == theirs.identity()
    assert mine.encoded(0) == Path(mine.name(0)).read_bytes()


@pytest.mark.parametrize(
    ("split", "value", "said"),
    [
        ("train", 255, r"every pixel of the training masks of .* is void; void is 255 \(data.void\)"),
        ("train", 0, r"every pixel of the training masks of .* is of one class, paper, and void; void is 255"),
        ("test", 255, r"every pixel of the test masks of .* is void, so nothing can be judged"),
    ],
)
def test_masks_of_which_nothing_can_be_learned_or_judged_are_refused(
    split: str, value: int, said: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mask in (folder / "masks" / split).iterdir():
        Image.new("L", (32, 24), value).save(mask)
    for decoded in (32, 1):
        monkeypatch.setattr("dsdmae_cli.data.mask_account._DECODED", decoded)
        with pytest.raises(DataError, match=said):
            open_masked(data(folder))


def test_one_mask_among_many_that_has_another_class_is_enough(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsdmae_cli.data.mask_account._DECODED", 1)
    *_, odd, _last = sorted((folder / "masks" / "train").iterdir())
    for mask in (folder / "masks" / "train").iterdir():
        Image.new("L", (32, 24), 2 if mask == odd else 0).save(mask)
    assert len(open_masked(data(folder)).train) == 12


def test_masks_of_0_and_255_say_what_to_do_and_then_are_two_classes(folder: Path) -> None:
    """What most tools write for a foreground, whose 255 is void by itself."""
    for mask in (folder / "masks").rglob("*.png"):
        Image.fromarray((stored_in(mask) == 2).astype(np.uint8) * 255).save(mask)
    (folder / "classes.txt").write_text("background\ncar\n")
    with pytest.raises(DataError, match=r"of one class, background, and void; .* in classes.txt .* 255: car"):
        open_masked(data(folder))
    (folder / "classes.txt").write_text("0: background\n255: car\n")
    found = open_masked(data(folder))
    assert (found.classes, found.legend.values, found.legend.void) == (("background", "car"), (0, 255), ())
    assert (found.train.load_mask(0) == (stored_in(Path(found.train.mask_name(0) or "")) == 255)).all()
    assert "void (no value)" in found.masks.line()


def test_a_class_that_no_training_mask_has_is_named(folder: Path) -> None:
    class Heard(Report):
        said: tuple[str, ...] = ()

        def warn(self, text: str) -> None:
            self.said = (*self.said, text)

    for mask in (folder / "masks" / "train").iterdir():
        Image.fromarray(np.minimum(stored_in(mask), 1)).save(mask)
    heard = Heard()
    found = open_masked(data(folder), heard)
    assert heard.said == ("no training mask has a pixel of ink: nothing of that can be learned",)
    assert found.masks.line().endswith("no pixel of ink in training ones")


def test_a_class_that_the_masks_which_were_looked_at_lack_is_not_said_of_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsdmae_cli.data.mask_account._DECODED", 1)
    first, *_ = sorted((folder / "masks" / "train").iterdir())
    Image.fromarray(np.minimum(stored_in(first), 1)).save(first)
    assert open_masked(data(folder)).masks.line().endswith("no pixel of ink in training ones of these")


def test_values_before_names_may_not_repeat() -> None:
    with pytest.raises(DataError, match="names the value 1 twice"):
        legend_of(["1: a", "1: b"], (255,), "classes.txt")
    assert legend_of(["1: a", "b"], (255,), "classes.txt").classes == ("1: a", "b"), "not every line has a value"


def test_a_folder_that_is_not_vocs(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no JPEGImages and SegmentationClass side by side"):
        open_masked(data(f"voc:{folder}"))
    root = voc(tmp_path / "voc")
    (root / "VOCdevkit/VOC2012/JPEGImages/2007_000039.jpg").unlink()
    with pytest.raises(DataError, match=r"2007_000039\.jpg, which its list names"):
        open_masked(data(f"voc:{root}"))


def test_coco_stuff_in_its_official_layout(tmp_path: Path) -> None:
    root, rng = tmp_path / "cocostuff" / "dataset", np.random.default_rng(0)
    for part, stems in (("train2017", ("000000000009", "000000000025")), ("val2017", ("000000000139",))):
        for kind in ("images", "annotations"):
            (root / kind / part).mkdir(parents=True)
        for stem in stems:
            picture = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            picture.save(root / "images" / part / f"{stem}.jpg")
            mask = rng.integers(0, 182, (12, 16), dtype=np.uint8)
            mask[:, :2] = 255
            Image.fromarray(mask).save(root / "annotations" / part / f"{stem}.png")
    names = ["unlabeled", "person", *(f"thing {i}" for i in range(2, 182)), "wood"]
    (root.parent / "labels.txt").write_text("".join(f"{i}: {name}\n" for i, name in enumerate(names)))
    splits = open_masked(data(f"coco-stuff:{root}"))
    assert (len(splits.train), len(splits.test), len(splits.legend.classes)) == (2, 1, 182)
    assert (splits.legend.classes[0], splits.legend.classes[181]) == ("person", "wood")
    stored = stored_in(root / "annotations/val2017/000000000139.png")
    assert (splits.test.load_mask(0) == stored).all()
    assert splits.masks.void_share == pytest.approx(2 / 16)
    (root.parent / "labels.txt").unlink()
    with pytest.raises(DataError, match=r"has no labels\.txt; fetch it from COCO-Stuff's repository"):
        open_masked(data(f"coco-stuff:{root}"))


def test_a_share_of_images_is_held_out() -> None:
    split = hold_out_images(20, 0.1, 3)
    assert (len(split.held), sorted([*split.fit, *split.held])) == (2, list(range(20)))
    assert not np.array_equal(split.held, hold_out_images(20, 0.1, 4).held)
    assert len(hold_out_images(1, 0.1, 0).held) == 0
    assert len(hold_out_images(2, 0.9, 0).held) == 1


def test_masks_of_a_camvid_as_it_is_shared(test_data: Path) -> None:
    """CamVid's own: 11 = void where classes.txt does not say so."""
    splits = {"training": masked(open_dataset(data(test_data / "camvid.tar", "data.void=11"), "train"))}
    found = look_at_masks(splits)
    assert (len(splits["training"]), len(found.classes), found.faults) == (367, 11, ())
    assert 0.01 < found.void_share < 0.1


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("voc", "give VOCdevkit, or VOC2012 in it"),
        ("coco-stuff", "give the folder that holds images/ and annotations/"),
    ],
)
def test_a_dataset_that_is_not_there_says_what_it_wants(name: str, advice: str, tmp_path: Path) -> None:
    """It asked for a folder of images, or of shards."""
    with pytest.raises(DataError) as error:
        open_masked(data(f"{name}:{tmp_path / 'gone'}"))
    assert str(error.value) == f"{tmp_path / 'gone'} does not exist; {advice}"
