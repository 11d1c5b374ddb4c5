"""`dsdmae embed`: features of every image, in the dataset's order, as .npz and as Parquet."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import timm
import torch
from helpers import cli, listing, one_line
from PIL import Image

from dsdmae_builtin.backbones import TimmSettings
from dsdmae_builtin.timm_backbone import TimmBackbone
from dsdmae_cli.artifacts import embedding as embedding_module
from dsdmae_cli.errors import RunFailed, SettingsError
from dsdmae_cli.evaluation.features import encoder_digest
from dsdmae_cli.recipes.embed import Request, embed


@pytest.fixture
def digits(encoder_run: Path) -> Path:
    """The folder that the run learned from."""
    return encoder_run.parent / "digits"


def embedded(encoder_run: Path, out: Path, dataset: str | None = None, **more: Any) -> dict[str, np.ndarray]:
    flags = {"data.dataset": dataset}
    force, load = more.pop("force", False), more.pop("load", True)
    embed(Request(str(encoder_run), flags, precision="fp32", device="cpu", **more), out, force=force, as_json=True)
    if not load:
        return {}
    with np.load(out) as file:
        return dict(file)


def pixels_of(names: np.ndarray) -> torch.Tensor:
    """Files read with Pillow, in [-1, 1]."""
    pixels = np.stack([np.asarray(Image.open(name).convert("RGB")) for name in names]).astype(np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(0, 3, 1, 2)


def test_features_of_files(encoder_run: Path, digits: Path, tmp_path: Path) -> None:
    """Against timm's model of the same weights, on the files read with Pillow."""
    found = embedded(encoder_run, tmp_path / "f.npz", f"folder:{digits}", split="test")
    files = sorted((digits / "test").rglob("*.png"))
    assert found["names"].tolist() == [str(file) for file in files]
    assert found["classes"][found["labels"]].tolist() == [file.parent.name for file in files]
    assert set(found["split"]) == {"test"}
    result = json.loads((encoder_run / "result.json").read_text())
    model = eval(result["load_with"], {"timm": timm}).eval()
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels / 127.5 - 1).permute(0, 3, 1, 2)).numpy()
    assert found["features"].dtype == np.float32
    np.testing.assert_allclose(found["features"], expected, rtol=1e-4, atol=1e-5)


def test_the_runs_own_dataset_is_the_default(encoder_run: Path, digits: Path, tmp_path: Path) -> None:
    found = embedded(encoder_run, tmp_path / "f.npz", split="all")
    assert len(found["features"]) == 52
    assert found["split"].tolist() == ["train"] * 42 + ["test"] * 10
    assert json.loads(str(found["about"]))["dataset"] == f"folder:{digits}"
    test = embedded(encoder_run, tmp_path / "t.npz", split="test")
    np.testing.assert_array_equal(found["features"][42:], test["features"])


def test_parquet_holds_the_same(encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    monkeypatch.setattr(embedding_module, "_ROW_GROUP", 5)  # the last group is a short one
    expected = embedded(encoder_run, tmp_path / "f.npz", split="all")
    embed(Request(str(encoder_run), {}, split="all", precision="fp32", device="cpu"), tmp_path / "f.parquet")
    table = pq.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["name", "split", "label", "class", "features"]
    assert table["name"].to_pylist() == expected["names"].tolist()
    assert table["label"].to_pylist() == expected["labels"].tolist()
    assert table["class"].to_pylist() == expected["classes"][expected["labels"]].tolist()
    np.testing.assert_array_equal(np.array(table["features"].to_pylist(), dtype=np.float32), expected["features"])
    assert json.loads(table.schema.metadata[b"dsdmae"]) == json.loads(str(expected["about"]))


def test_parquet_holds_no_name_that_is_no_text(encoder_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (16, 16)).save(folder / "caf\udce9.png")
    request = Request(str(encoder_run), {"data.dataset": str(folder)}, precision="fp32", device="cpu")
    with pytest.raises(SettingsError, match=r"is no UTF-8, as text in Parquet has to be"):
        embed(request, tmp_path / "f.parquet")
    assert listing(tmp_path) == {"images", "images/caf\udce9.png"}
    embed(request, tmp_path / "f.npz")


def test_photographs_without_labels(encoder_run: Path, photos_folder: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    found = embedded(encoder_run, tmp_path / "f.npz", f"folder:{photos_folder}", split="test", image_size=32)
    assert found.keys() == {"features", "names", "split", "about"}
    assert found["features"].shape == (8, 32)
    flags = {"data.dataset": f"folder:{photos_folder}"}
    embed(Request(str(encoder_run), flags, split="test", device="cpu"), tmp_path / "f.parquet")
    assert pq.read_table(tmp_path / "f.parquet").column_names == ["name", "split", "features"]


def test_pools(encoder_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mean = embedded(encoder_run, tmp_path / "mean.npz", split="test")["features"]
    largest = embedded(encoder_run, tmp_path / "max.npz", split="test", pool="max")["features"]
    assert (largest >= mean).all()
    code, _, err = cli(capfd, "embed", encoder_run, "--pool", "cls", "--out", tmp_path / "cls.npz")
    assert code == 2
    assert "needs a class token" in one_line(err)


def test_unreadable_images_are_skipped_and_named(
    encoder_run: Path, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(digits, tmp_path / "digits")
    broken = sorted((folder / "test").rglob("*.png"))[3]
    broken.write_bytes(broken.read_bytes()[:60])
    command = ["embed", encoder_run, "--dataset", f"folder:{folder}", "--split", "test", "--json", "--force"]
    for _ in ("computed", "from the cache"):
        code, out, err = cli(capfd, *command, "--out", tmp_path / "f.npz")
        said = json.loads(out)
        assert (code, said["images"], said["unreadable_images"]) == (0, 9, 1)
        assert list(said["unreadable"]) == [str(broken)]
        assert f"skipped an unreadable image: {broken}" in err
        with np.load(tmp_path / "f.npz") as file:
            names = file["names"].tolist()
        assert len(names) == 9
        assert str(broken) not in names
    code, out, err = cli(capfd, *command, "--strict-data", "--no-cache", "--out", tmp_path / "g.npz")
    assert (code, out) == (2, "")
    assert str(broken) in one_line(err)
    assert not (tmp_path / "g.npz").exists()


def test_the_cache_gives_the_same(encoder_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = embedded(encoder_run, tmp_path / "1.npz")
    code, _, err = cli(
        capfd, "embed", encoder_run, "--out", tmp_path / "2.npz", "--precision", "fp32", "--device", "cpu"
    )
    assert code == 0
    assert "features of 42 of 42 train images from the cache" in err
    with np.load(tmp_path / "2.npz") as file:
        np.testing.assert_array_equal(file["features"], first["features"])
    other = embedded(encoder_run, tmp_path / "3.npz", image_size=32)
    assert not np.allclose(other["features"], first["features"])


def test_the_cache_knows_how_pixels_are_normalised() -> None:
    plain, own = (
        TimmBackbone(TimmSettings(name="timm:convnext_atto", normalization=word), 64) for word in ("none", "timm")
    )
    own.load_state_dict(plain.state_dict())
    assert encoder_digest(own) != encoder_digest(plain)


# -- what it refuses


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "f.csv"], "ends in neither of .npz and .parquet"),
        (["--out", "there.npz"], "exists; choose another path"),
        (["--out", "folder.npz"], "is a folder"),
        (["--out", "f.npz", "--set", "train.epochs=3"], "train"),
        (["--out", "f.npz", "--dataset", "folder:nowhere"], "nowhere"),
        (["--out", "f.npz", "--image-size", "30"], "no whole number of patches"),
        (["--out", "f.npz", "--backbone", "vit-small"], "was trained with backbone.name"),
    ],
)
def test_refusals(
    encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    arguments: list[str], says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("there.npz").write_text("")
    Path("folder.npz").mkdir()
    code, out, err = cli(capfd, "embed", encoder_run, *arguments)
    assert (code, out) == (2, "")
    assert says in one_line(err)
    assert listing(tmp_path) == {"there.npz", "folder.npz"}


def test_weights_that_know_no_dataset(encoder_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = cli(capfd, "embed", "timm:test_vit", "--set", "backbone.name=timm:test_vit", "--set",
                       "backbone.pretrained=false", "--out", tmp_path / "f.npz")  # fmt: skip
    assert code == 2
    assert "add --dataset" in one_line(err)


def test_parquet_without_its_extra(
    encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    code, _, err = cli(capfd, "embed", encoder_run, "--out", tmp_path / "f.parquet")
    assert code == 2
    assert "pip install 'dsdmae[parquet]'" in one_line(err)


def test_a_file_that_cannot_be_written(encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = embedded(encoder_run, tmp_path / "f.npz", split="test")["features"]

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(RunFailed, match="No space left on device; make room or choose another --out"):
        embedded(encoder_run, tmp_path / "f.npz", split="train", force=True)
    assert listing(tmp_path) == {"f.npz"}
    with np.load(tmp_path / "f.npz") as file:
        np.testing.assert_array_equal(file["features"], before)


def test_tokens_lie_on_their_grid(encoder_run: Path, digits: Path, tmp_path: Path) -> None:
    """Against the mean of the same tokens, and timm's own features."""
    found = embedded(encoder_run, tmp_path / "t.npz", f"folder:{digits}", split="test", pool="tokens")
    mean = embedded(encoder_run, tmp_path / "m.npz", f"folder:{digits}", split="test")
    about = json.loads(str(found["about"]))
    assert found["features"].shape == (10, *about["grid"], mean["features"].shape[1])
    np.testing.assert_allclose(found["features"].mean(axis=(1, 2)), mean["features"], rtol=1e-4, atol=1e-5)
    model = eval(json.loads((encoder_run / "result.json").read_text())["load_with"], {"timm": timm}).eval()
    with torch.no_grad():
        expected = model.forward_features(pixels_of(found["names"])).unflatten(1, about["grid"]).numpy()
    np.testing.assert_allclose(found["features"], expected, rtol=1e-4, atol=1e-5)
    embedded(encoder_run, tmp_path / "t.parquet", f"folder:{digits}", split="test", pool="tokens", load=False)
    table = pyarrow.parquet.read_table(tmp_path / "t.parquet")
    rows = np.stack(table["features"].to_pylist()).reshape(found["features"].shape)
    np.testing.assert_array_equal(rows, found["features"])


def test_attention_of_the_last_block(encoder_run: Path, digits: Path, tmp_path: Path) -> None:
    """Against the softmax that timm's own attention computes when it is told not to fuse."""
    found = embedded(encoder_run, tmp_path / "a.npz", f"folder:{digits}", split="test", attention=True)
    model = eval(json.loads((encoder_run / "result.json").read_text())["load_with"], {"timm": timm}).eval()
    block, seen = model.blocks[-1].attn, []
    block.fused_attn = False
    block.attn_drop.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]))
    with torch.no_grad():
        model(pixels_of(found["names"]))
    grid = json.loads(str(found["about"]))["grid"]
    expected = seen[0].mean(dim=2).unflatten(-1, grid).numpy()
    assert found["attention"].shape == expected.shape
    np.testing.assert_allclose(found["attention"], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["attention"].sum(axis=(2, 3)), 1, rtol=1e-4)
    drawn = tmp_path / "a.attention.png"
    with Image.open(drawn) as picture:
        assert picture.width > 8 * 96


def test_a_picture_in_the_place_of_that_of_attention_stays(
    encoder_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.attention.png").write_bytes(b"somebody's")
    code, _, err = cli(capfd, "embed", encoder_run, "--dataset", "digits", "--attention", "--out", tmp_path / "a.npz")
    assert code == 2
    assert "a.attention.png exists, where --attention draws beside --out" in one_line(err)
    assert (listing(tmp_path), (tmp_path / "a.attention.png").read_bytes()) == ({"a.attention.png"}, b"somebody's")


def test_attention_of_a_class_token_in_timms_models(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = TimmSettings(name="timm:vit_tiny_patch16_224", options={"depth": 2}, patch_size=8)
    backbone = TimmBackbone(settings, 32).eval()
    block, seen = backbone.model.blocks[-1].attn, []
    block.fused_attn = False
    block.attn_drop.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]))
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        found = backbone.attention(images)
        backbone.model(images)
    assert found is not None
    torch.testing.assert_close(found, seen[-1][:, :, 0, 1:].unflatten(-1, (4, 4)), rtol=1e-4, atol=1e-6)
    convolutional = TimmBackbone(TimmSettings(name="timm:resnet18"), 64)
    assert convolutional.attention(torch.zeros(1, 3, 64, 64)) is None


def test_thumbnails_are_pictures_that_viewers_know(encoder_run: Path, digits: Path, tmp_path: Path) -> None:
    embedded(encoder_run, tmp_path / "f.parquet", f"folder:{digits}", split="test", thumbnails=True, load=False)
    rows = pyarrow.parquet.read_table(tmp_path / "f.parquet").to_pylist()
    for row in rows:
        assert row["image"]["path"] == Path(row["name"]).name
        with Image.open(io.BytesIO(row["image"]["bytes"])) as small, Image.open(row["name"]) as whole:
            assert small.size == whole.size
            difference = np.abs(np.asarray(small.convert("L"), int) - np.asarray(whole.convert("L"), int))
            assert difference.mean() < 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--thumbnails", "--out", "f.npz"], "--thumbnails are a column of Parquet"),
        (["--attention", "--out", "f.npz", "pixels"], "--attention is for plain vision transformers"),
    ],
)
def test_what_cannot_be_added_is_said(
    encoder_run: Path, arguments: list[str], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    subject = arguments.pop() if arguments[-1] == "pixels" else str(encoder_run)
    arguments[-1] = str(tmp_path / arguments[-1])
    code, _, err = cli(capfd, "embed", subject, "--dataset", "digits", *arguments)
    assert code == 2
    assert words in one_line(err)
    assert listing(tmp_path) == set()
