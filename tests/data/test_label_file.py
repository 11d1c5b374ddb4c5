"""Labels from a table: columns and delimiter guessed, names with and without folders and suffixes."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from image_files import message_of, of, png, write

from dsdmae_builtin import folder
from dsdmae_cli.data.label_file import LabelFile, read_labels
from dsdmae_cli.evaluation.judging import open_labelled

NAMES = ["a/1.png", "a/2.png", "b/3.jpg", "b/4.v2.jpg"]


def table(tmp_path: Path, text: str | bytes, names: list[str] = NAMES, columns: str | None = None) -> LabelFile:
    path = tmp_path / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_labels(path, names, columns)


@pytest.mark.parametrize("form", ["a/1.png", "1.png", "a/1", "1", "./a/1.png", "data/set/a/1.png", "C:\\x\\a\\1.png"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("heading", ["image{}species\n", ""])
def test_names_delimiters_and_headings(tmp_path: Path, form: str, delimiter: str, heading: str) -> None:
    given = [
        {
            "a/1.png": name,
            "1.png": name.split("/")[1],
            "a/1": name.rpartition(".")[0],
            "1": name.split("/")[1].rpartition(".")[0],
            "./a/1.png": f"./{name}",
            "data/set/a/1.png": f"data/set/{name}",
            "C:\\x\\a\\1.png": "C:\\x\\" + name.replace("/", "\\"),
        }[form]
        for name in NAMES
    ]
    rows = list(zip(given, ["cat", "dog", "cat", "dog"], strict=True))
    text = heading.format(delimiter) + "".join(f"{name}{delimiter}{label}\n" for name, label in rows)
    found = table(tmp_path, text)
    assert found.classes == ("cat", "dog")
    assert found.labels.tolist() == [0, 1, 0, 1]
    [note] = found.notes
    assert ("'species'" in note) == bool(heading)
    assert "labels of 4 of 4 images in 2 classes" in note


def test_what_does_not_fit_is_counted_and_named(tmp_path: Path) -> None:
    names = [*NAMES, "b/1.png", "c/9.png", "c/8.png"]
    text = "file,label\na/1.png,x\na/1.png,x\n2,y\n3.jpg,x\n3.jpg,y\n1.png,x\nnothing.png,x\nc/9.png,\n4.v2,y\nshort\n"
    found = table(tmp_path, text, names)
    assert found.labels.tolist() == [0, 1, -1, 1, -1, -1, -1]
    assert found.notes[1:] == (
        "2 images have no row in it: b/1.png, c/8.png",
        "1 row names no image here: nothing.png",
        "1 row names several images and is not used: 1.png",
        "1 image has rows that differ, and no label: b/3.jpg",
        "1 image has an empty label: c/9.png",
        "2 of its rows repeat an image",
        "1 of its rows have too few columns",
    )


def test_thousands_are_written_as_such(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(1200)]
    rows = [f"{name},{i % 1100}" for i, name in enumerate(names)] + [f"gone{i}.png,0" for i in range(1003)]
    first, second = table(tmp_path, "\n".join(["file,label", *rows]), names).notes
    assert first.startswith("labels of 1,200 of 1,200 images in 1,100 classes from ")
    assert second == "1,003 rows name no image here: gone0.png, gone1.png, gone2.png and 1,000 more"


def test_a_row_of_one_split_is_never_taken_for_an_image_of_another(tmp_path: Path) -> None:
    names = ["test/1.png", "test/2.png", "train/3.png"]
    found = table(tmp_path, "name,label\ntrain/1.png,x\ntrain/3.png,y\ntest/2.png,x\n", names)
    assert found.labels.tolist() == [-1, 0, 1]
    assert "1 row names no image here: train/1.png" in found.notes


def test_columns(tmp_path: Path) -> None:
    several = "id,age,species\n1,30,cat\n2,40,dog\n3,30,cat\n"
    assert table(tmp_path, several).classes == ("cat", "dog")
    assert table(tmp_path, several, columns="id,age").classes == ("30", "40")
    assert table(tmp_path, several, columns="1, 2").classes == ("30", "40")
    assert table(tmp_path, "1,x,cat\n2,y,dog\n", columns="1,3").labels.tolist() == [0, 1, -1, -1]
    assert "which column" in message_of(lambda: table(tmp_path, several.replace("species", "what")))
    for wrong in ("id", "id,nothing", "0,1", "1,9", "id,id"):
        assert "has the columns id, age, species" in message_of(lambda w=wrong: table(tmp_path, several, columns=w))


@pytest.mark.parametrize("columns", [None, "filename,class"])
def test_names_in_other_case(tmp_path: Path, columns: str | None) -> None:
    """All of them are: a table from a system that does not tell case; one that fits as it is stays so."""
    found = table(tmp_path, "filename,class\nIMG_1.PNG,cat\nIMG_2.PNG,dog\n", ["x/img_1.png", "x/img_2.png"], columns)
    assert found.labels.tolist() == [0, 1]
    assert "they fit by any case" in found.notes
    exact = table(tmp_path, "filename,class\na.png,cat\nA.png,dog\n", ["a.png", "A.png"], columns)
    assert (exact.labels.tolist(), "they fit by any case" in exact.notes) == ([0, 1], False)


def test_rows_that_fit_several_images_alone(tmp_path: Path) -> None:
    names = ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]
    message = message_of(lambda: table(tmp_path, "filename,class\n1.png,cat\n2.png,dog\n", names))
    assert "2 of the 2 rows of " in message
    assert "fit several images and none fits one: '1.png' may be a/1.png or b/1.png; write their folders" in message


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;"])
def test_excels_line_about_the_delimiter_is_no_heading(tmp_path: Path, line: str) -> None:
    found = table(tmp_path, f"{line}\nfilename;class\n1.png;cat\n2.png;dog\n", ["1.png", "2.png"])
    assert (found.classes, found.labels.tolist()) == (("cat", "dog"), [0, 1])
    assert "file names in column 'filename', labels in column 'class', between them ';'" in found.notes[0]


def test_labels_that_look_like_names_are_not_taken_for_them(tmp_path: Path) -> None:
    names = [f"{k}.png" for k in range(9)]
    text = "".join(f"{k % 3},{k}.png\n" for k in range(9))
    assert table(tmp_path, text, names).labels.tolist() == [0, 1, 2] * 3
    assert table(tmp_path, text.replace(".png", ""), names).labels.tolist() == [0, 1, 2] * 3


def test_numbers_are_sorted_by_value_and_quotes_and_encodings_read(tmp_path: Path) -> None:
    assert table(tmp_path, "1,10\n2,9\n3,10\n").classes == ("9", "10")
    assert table(tmp_path, '1,"cat, big"\n2,"dog, ""old"""\n').classes == ("cat, big", 'dog, "old"')
    for encoding in ("utf-8-sig", "utf-16"):
        assert table(tmp_path, "file;label\n1;Käfer\n2;Möwe\n".encode(encoding)).classes == ("Käfer", "Möwe")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "no text in UTF-8"),
        (b"a\0b,c\n", "is no text"),
        (b"only\nnames\n", "has one column"),
        (b"file,label\nx.png,1\ny.png,2\n", "holds names of the images"),
        (b"file,label\n1,cat\n2,cat\n", "has only the label 'cat'"),
        (b"file,label\n1,\n2,\n", "no label at all"),
    ],
)
def test_files_that_are_no_table_of_labels(tmp_path: Path, text: bytes, part: str) -> None:
    assert part in message_of(lambda: table(tmp_path, text))


def test_a_column_of_which_every_value_is_another_is_no_label(tmp_path: Path) -> None:
    names = [f"{k}.png" for k in range(20)]
    text = "".join(f"{k},{k * 3}\n" for k in range(20))
    assert "a label of its own" in message_of(lambda: table(tmp_path, text, names))


def test_a_folder_with_a_table_is_a_labelled_dataset(tmp_path: Path) -> None:
    grey = {f"{k:02}.png": png(np.full((8, 8, 3), k, dtype=np.uint8)) for k in range(20)}
    rows = "".join(f"{k:02},{'odd' if k % 2 else 'even'}\n" for k in range(19))
    root = write(tmp_path / "set", {**grey, "labels.csv": rows.encode()})
    settings = of(root, labels=root / "labels.csv", holdout=0.3)
    judged = open_labelled(settings)
    assert judged.classes == ("even", "odd")
    assert (len(judged.train) + len(judged.test), len(judged.notes)) == (19, 2)
    for part in (judged.train, judged.test):
        assert part.labels is not None
        assert [int(Path(part.name(i)).stem) % 2 for i in range(len(part))] == part.labels.tolist()
    before = folder.build(settings, "train").fingerprint()
    (root / "labels.csv").write_text(rows.replace("00,even", "00,odd").replace("01,odd", "01,even"))
    assert folder.build(settings, "train").fingerprint() != before
    assert "cannot read the labels" in message_of(lambda: open_labelled(of(root, labels=tmp_path / "none.csv")))


def test_names_in_another_form_of_unicode(tmp_path: Path) -> None:
    """macOS takes accents apart, spreadsheets do not."""
    names = [unicodedata.normalize("NFD", name) for name in ("ä/é1.png", "ä/é2.png")]
    found = table(tmp_path, "file,label\nä/é1.png,cat\né2.png,dog\n", names)
    assert found.labels.tolist() == [0, 1]
    assert "they fit by another Unicode form of their letters" in found.notes
    assert table(tmp_path, "file,label\nÄ/É1.PNG,cat\nÉ2.png,dog\n", names).labels.tolist() == [0, 1]


def test_names_with_ends_of_lines_in_them(tmp_path: Path) -> None:
    names = ["a\u2028b.png", "c\nd.png", "e\x0bf.png", "g\x85h.png"]
    rows = "".join(f'"{name}",{label}\n' for name, label in zip(names, ["cat", "dog"] * 2, strict=True))
    assert table(tmp_path, f"file,label\n{rows}", names).labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("empty", ["", "nan", "NaN", "NULL", "<NA>", "n/a"])
def test_what_stands_for_no_label(empty: str, tmp_path: Path) -> None:
    found = table(tmp_path, f"file,label\n1.png,cat\n2.png,{empty}\n3.jpg,dog\n")
    assert found.classes == ("cat", "dog")
    assert "1 image has an empty label: a/2.png" in found.notes


def test_the_images_are_named_where_no_column_fits(tmp_path: Path) -> None:
    said = message_of(lambda: table(tmp_path, "id,target\nx.tif,cat\ny.tif,dog\n"))
    assert "holds names of the images, which are called as 'a/1.png'; its first row is 'x.tif, cat'" in said


def test_a_column_of_splits_in_a_table(tmp_path: Path) -> None:
    """As of Parquet's, and asked about as folders are; it was passed over without a word."""
    grey = png(np.full((8, 8, 3), 90, np.uint8))
    root = write(tmp_path / "set", {f"{n}.png": grey for n in range(8)})
    rows = [f"{n}.png,{'cat' if n % 2 else 'dog'},{'Train' if n < 4 else 'VAL'}" for n in range(7)]
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(["file,label,Split", *rows]), encoding="utf-8")
    train, test = (folder.build(of(root, labels=path), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (4, 3)
    said = " ".join(train.notes)
    assert "splits are those of column 'Split', by its name" in said
    assert "1 image beside them left out ((none))" in said
    assert train.name(0) == str(root / "0.png")
    assert len(folder.build(of(root, labels=path, splits="none"), "train")) == 7
    path.write_text(path.read_text(encoding="utf-8").replace("VAL", "later"), encoding="utf-8")
    said = message_of(lambda: folder.build(of(root, labels=path), "train"))
    assert "column 'Split' of splits says (none), Train, later; understood is" in said
    assert len(folder.build(of(root, labels=path, splits="Train,later"), "test")) == 3


def test_rows_of_several_splits_are_of_none(tmp_path: Path) -> None:
    """The last row won, and an image was learned from and judged by as its rows happened to lie; an empty cell too."""
    root = write(tmp_path / "set", {f"{n}.png": png(np.full((8, 8, 3), n, np.uint8)) for n in range(6)})
    rows = [f"{n}.png,{'cat' if n % 2 else 'dog'},{'train' if n < 4 else 'test'}" for n in range(6)]
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(["file,label,split", *rows, "0.png,dog,test", "1.png,cat,", "2.png,dog,Train"]))
    found = [folder.build(of(root, labels=path), split) for split in ("train", "test")]
    names = [[Path(part.name(i)).stem for i in range(len(part))] for part in found]
    assert names == [["1", "2", "3"], ["4", "5"]]
    assert "1 image has rows of several splits: 0.png; taken for none of them" in found[0].notes
    assert not [
        note for note in folder.build(of(root, labels=path, splits="none"), "train").notes if "rows of several" in note
    ]


def test_a_first_row_of_an_image_that_is_not_there_is_no_heading(tmp_path: Path) -> None:
    found = table(tmp_path, "9.png,cat\n1.png,cat\n2.png,dog\n", ["1.png", "2.png"])
    assert found.notes[0].endswith("file names in column 1, labels in column 2, between them ','")
    assert found.notes[1:] == ("1 row names no image here: 9.png",)
    assert "column 'picture'" in table(tmp_path, "picture,what\n1.png,cat\n2.png,dog\n", ["1.png", "2.png"]).notes[0]


@pytest.mark.parametrize("legend", [False, True])
@pytest.mark.parametrize("wrapper", ["", "around/"])
def test_a_table_for_pictures_that_have_masks(tmp_path: Path, legend: bool, wrapper: str) -> None:
    """Its labels were dropped, and the masks learned from and judged by as pictures."""
    grey = {f"{n}.png": png(np.full((8, 8), n, np.uint8)) for n in range(12)}
    root = write(tmp_path / "set", {f"{wrapper}{kind}/{part}/{name}": content for kind in ("images", "masks")
                                    for name, content in grey.items()
                                    for part in ["train" if int(name[:-4]) < 8 else "val"]})  # fmt: skip
    if legend:
        (root / wrapper / "classes.txt").write_text("paper\nink\n")
    path = tmp_path / "labels.csv"
    path.write_text("file,label\n" + "".join(f"{n}.png,{'cat' if n % 2 else 'dog'}\n" for n in range(12)))
    train, test = (folder.build(of(root, labels=path), split) for split in ("train", "test"))
    assert [Path(part.name(i)).parent.parent.name for part in (train, test) for i in range(len(part))] == [
        "images"
    ] * 12
    assert (len(train), len(test), folder.count(of(root, labels=path))) == (8, 4, (8, 8))
    for part in (train, test):
        assert part.labels is not None
        assert [1 - int(Path(part.name(i)).stem) % 2 for i in range(len(part))] == part.labels.tolist()
    assert f"masks/ is passed over: labels are those of {path}" in train.notes
    assert "train/ is learned from and val/ evaluated on" in train.notes


@pytest.mark.parametrize("heading", [",filename,label", "nr,filename,label", "id,where,class"])
@pytest.mark.parametrize("missing", [0, 3])
def test_numbers_of_rows_are_no_names(tmp_path: Path, heading: str, missing: int) -> None:
    """As pandas writes them in front: of images 0.png, 1.png, ... they were taken, and labels were those of others."""
    rows = "".join(f"{k},{8 - k}.png,{'cat' if k < 4 else 'dog'}\n" for k in range(9))
    found = table(tmp_path, f"{heading}\n{rows}", [f"{k}.png" for k in range(missing, 9)])
    assert found.labels.tolist() == ([1] * 5 + [0] * 4)[missing:]


def test_columns_that_name_other_images_are_asked_about(tmp_path: Path) -> None:
    rows = "".join(f"{k},{8 - k},{'cat' if k < 4 else 'dog'}\n" for k in range(9))
    names = [f"{k}.png" for k in range(9)]
    said = message_of(lambda: table(tmp_path, f"nr,row,label\n{rows}", names))
    assert "holds names of the images? column 1 ('0', ...) and column 2 ('8', ...) do, and not of the same ones" in said
    assert table(tmp_path, f"nr,image,label\n{rows}", names).labels.tolist() == [1] * 5 + [0] * 4
    assert table(tmp_path, f"nr,row,label\n{rows}", names, "row,label").labels.tolist() == [1] * 5 + [0] * 4
    same = "".join(f"{k},{k},{'cat' if k < 4 else 'dog'}\n" for k in range(9))
    assert table(tmp_path, f"nr,row,label\n{same}", names).labels.tolist() == [0] * 4 + [1] * 5
