"""Images that are no squares, from the settings to what people take away.

tests/plugins/test_image_sizes.py has networks of any size, tests/methods/test_methods_common.py all methods.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers import cli, one_line, records, train, untimed
from PIL import Image
from safetensors import safe_open
from sklearn.datasets import load_sample_images
from timm.layers import resample_abs_pos_embed
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resized_crop

from dsdmae_cli import checkpoint
from dsdmae_cli.artifacts.open import open_encoder
from dsdmae_cli.config.resolve import resolve_data
from dsdmae_cli.data.augment import Augmentation, augment, prepare
from dsdmae_cli.data.open import open_dataset, place
from dsdmae_cli.data.square import to_square
from dsdmae_cli.settings.models import DataSettings

# Height and width: of the files, and three quarters of them.
FILES, SIZE = (48, 64), (36, 48)
CPU = torch.device("cpu")
RUN = ("data.image_size=[36,48]", "backbone.patch_size=12", "train.checkpoint_every=1", "data.crop_scale=[0.3,1.0]")


def photographs(folder: Path, train: int = 10, test: int = 4) -> Path:
    """train/ and test/ of two classes: parts of scikit-learn's two photographs, 64 pixels wide and 48 high."""
    draw = np.random.default_rng(0)
    for name, photograph in zip(("china", "flower"), load_sample_images().images, strict=True):
        for index in range(train + test):
            part = folder / ("train" if index < train else "test") / name
            part.mkdir(parents=True, exist_ok=True)
            top, left = (
                int(draw.integers(0, length - 3 * side)) for length, side in zip(photograph.shape, FILES, strict=False)
            )
            cut = Image.fromarray(photograph[top : top + 3 * FILES[0], left : left + 3 * FILES[1]])
            cut.resize(FILES[::-1], Image.Resampling.BICUBIC).save(part / f"{index:02d}.png")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(images, folder, *RUN)
    return folder


@pytest.fixture(scope="module")
def tuned(run: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dsdmae_cli.__main__ import main

    folder = tmp_path_factory.mktemp("runs") / "tuned"
    with pytest.raises(SystemExit) as ended:
        main(["finetune", str(run), "--dataset", f"folder:{images}", "--epochs", "1", "--batch-size", "4", "--device",
              "cpu", "--out", str(folder), "--set", "optim.warmup_epochs=0", "--set",
              "finetune.validation=0"])  # fmt: skip
    assert ended.value.code == 0
    return folder


def test_what_a_run_leaves(run: Path, images: Path) -> None:
    with safe_open(run / "encoder.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["image_size"] == "36,48"
    result = json.loads((run / "result.json").read_text())
    model = eval(result["load_with"], {"timm": timm}).eval()
    encoder = open_encoder(str(run), None, backbone=None, image_size=None, seed=0).encoder.eval()
    assert (encoder.image_size, encoder.grid) == (SIZE, (3, 4))
    batch = torch.rand(2, 3, *SIZE) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(batch)[:, -12:], encoder(batch), rtol=1e-4, atol=1e-5)
    with Image.open(run / "figures" / "restored.png") as shown:
        assert shown.width > shown.height
    assert all(np.isfinite(record["loss"]) for record in records(run) if "loss" in record)


def test_a_resumed_run_is_the_same_run(run: Path, images: Path, tmp_path: Path) -> None:
    half = shutil.copytree(run, tmp_path / "run")
    newest = checkpoint.newest_first(half / "checkpoints")[0]
    shutil.rmtree(newest)
    (half / "result.json").unlink()
    train(images, half, *RUN, resume=True)
    assert untimed(half) == untimed(run)
    assert (half / "encoder.safetensors").read_bytes() == (run / "encoder.safetensors").read_bytes()


def test_images_of_many_sizes_are_streamed(images: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(images, tmp_path / "mixed")
    with Image.open(folder / "train" / "china" / "00.png") as picture:
        picture.resize((50, 50)).save(folder / "train" / "china" / "00.png")
    settings = data_of(folder, image_size=SIZE)
    assert place(open_dataset(settings, "train"), settings, CPU).word == "streaming"
    train(folder, tmp_path / "run", *RUN, "data.workers=0", "train.epochs=1", "optim.warmup_epochs=0")
    assert all(np.isfinite(record["loss"]) for record in records(tmp_path / "run") if "loss" in record)


def data_of(images: Path, **more: Any) -> Any:
    return resolve_data(DataSettings.model_validate({"dataset": f"folder:{images}", **more}))


@pytest.mark.parametrize(
    ("size", "resident"), [(SIZE, FILES), ((24, 32), FILES), ((48, 36), None), (36, None), ((36, 40), None)]
)
def test_only_images_of_its_shape_are_resident(images: Path, size: Any, resident: Any) -> None:
    """What would have to be cut is streamed, so that a resident image is never squeezed."""
    settings = data_of(images, image_size=size)
    assert place(open_dataset(settings, "train"), settings, CPU).size == resident
    asked = data_of(images, image_size=size, placement="resident")
    assert place(open_dataset(asked, "train"), asked, CPU).size == (resident or size)


def test_the_middle_is_cut_out_as_pillow_does() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    whole = Image.fromarray(pixels)
    wide = whole.resize((40, 20), Image.Resampling.BICUBIC, (0, 17.5, 50, 42.5))
    tall = whole.resize((20, 40), Image.Resampling.BICUBIC, (10, 0, 40, 60))
    np.testing.assert_array_equal(to_square(pixels, (20, 40)), np.asarray(wide))
    np.testing.assert_array_equal(to_square(pixels, (40, 20)), np.asarray(tall))
    assert to_square(pixels, (60, 50)) is pixels
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    found = (prepare(batch, (40, 20), "bicubic")[0].permute(1, 2, 0) + 1) * 127.5
    # Pillow's resize with a box looks beyond its edge, and rounds and clips between rows and columns.
    cut = resized_crop(batch.float(), 0, 10, 60, 30, [40, 20], InterpolationMode.BICUBIC, antialias=True)
    torch.testing.assert_close(found.permute(2, 0, 1), cut[0].clamp(0, 255), rtol=0, atol=1e-2)


def test_crops_are_of_the_images_own_shape() -> None:
    """The ratio of a crop is spread evenly about that of the images, and flips and shifts keep to the frame."""
    plan = Augmentation((30, 60), (0.2, 1.0), (3 / 4, 4 / 3), "bilinear", flip=True, shift=0)
    boxes = plan.boxes(4000, 300, 600, torch.Generator().manual_seed(0))
    height, width = boxes.sides
    ratios = (width / height).log()
    small = height * width < 0.5 * 300 * 600  # larger ones do not fit in every shape
    assert abs(float(ratios[small].mean()) - np.log(2)) < 0.02
    assert float(ratios.max()) <= np.log(8 / 3) + 0.02
    images = torch.randint(0, 256, (3, 3, 30, 60), dtype=torch.uint8)
    moved = augment(images, Augmentation((30, 60), None, (1, 1), "bilinear", True, 3), torch.Generator().manual_seed(0))
    assert moved.shape == (3, 3, 30, 60)
    squares = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    cut = Augmentation((30, 60), None, (1, 1), "bilinear", False, 0, crop_from=64)
    found = ((augment(squares, cut, torch.Generator().manual_seed(0)) + 1) * 127.5).round().byte()
    windows = squares[0].unfold(1, 30, 1).unfold(2, 60, 1)
    assert (windows == found[0][:, None, None]).all(dim=(0, 3, 4)).any()


def test_probe_and_embed(run: Path, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = cli(capfd, "probe", run, "--kind", "knn", "--device", "cpu", "--out", tmp_path / "p", "--json",
                         "--set", "probe.k=[1,3]")  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["image_size"] == list(SIZE)
    code, out, err = cli(
        capfd, "embed", run, "--split", "test", "--pool", "tokens", "--attention", "--out", tmp_path / "t.npz",
        "--picture", tmp_path / "t.png", "--point", "china/11.png:60,40", "--json", "--device", "cpu",
    )  # fmt: skip
    assert code == 0, err
    said = json.loads(out)
    with np.load(tmp_path / "t.npz") as file:
        tokens, attention, names = file["features"], file["attention"], file["names"].tolist()
    assert tokens.shape == (8, 3, 4, 32)
    assert attention.shape[2:] == (3, 4)
    chosen = next(i for i, name in enumerate(names) if name.endswith("china/11.png"))
    centred = tokens - tokens.mean(axis=(0, 1, 2))
    unit = centred / np.linalg.norm(centred, axis=-1, keepdims=True)
    cosines = unit @ unit[chosen, 2, 3]  # 60 of 64 pixels to the right, 40 of 48 down
    best = [i for i in np.argsort(-cosines.reshape(8, -1).max(axis=1)) if i != chosen]
    assert [near["picture"] for near in said["nearest"]] == [names[i] for i in best]
    for near, i in zip(said["nearest"], best, strict=True):
        assert cosines[i, near["row"], near["column"]] == pytest.approx(near["cosine"], abs=1e-3)
    with Image.open(tmp_path / "t.png") as picture, Image.open(tmp_path / "t.attention.png") as looks:
        assert picture.width > 8 * 224
        assert picture.height < 5 * 224
        assert looks.width > 8 * 96


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pool", "mean", "--picture", "p.png"], "--picture colours patches, and --pool mean keeps none"),
        (["--pool", "tokens", "--picture", "p.jpg"], "must end in .png"),
        (["--pool", "tokens", "--out", "f.npz", "--point", "x.png:1,2"], "add --picture FILE.png"),
        (["--pool", "tokens", "--picture", "p.png", "--point", "x.png"], "PICTURE:X,Y"),
        (["--pool", "tokens", "--picture", "p.png", "--point", "13.png:1,2"], "2 of the pictures have the name 13.png"),
        (["--pool", "tokens", "--picture", "p.png", "--point", "99.png:1,2"], "none of the pictures have the name"),
        (["--pool", "tokens", "--picture", "p.png", "--point", "china/13.png:90,2"], "sees x from 0 to 64"),
        (["--pool", "tokens"], "nothing to write"),
        (["--pool", "tokens", "--picture", "p.png", "--image-size", "40,60"], "no whole number of patches of 12 px"),
        (["--pool", "tokens", "--picture", "p.png", "--image-size", "40x60"], "--image-size 40x60 is not allowed"),
    ],
)
def test_what_no_picture_can_be_made_of(
    run: Path, arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, _, err = cli(capfd, "embed", run, "--split", "test", "--device", "cpu", *arguments)
    assert code == 2
    assert words in one_line(err)
    assert not list(tmp_path.iterdir())


def test_pixels_have_no_patches(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = cli(capfd, "embed", "pixels", "--dataset", f"folder:{images}", "--image-size", "36,48", "--pool",
                       "tokens", "--picture", tmp_path / "p.png")  # fmt: skip
    assert code == 2
    assert "pixels makes a grid of 1x1 of an image" in one_line(err)


def test_restore(run: Path, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    picture = images / "test" / "china" / "11.png"
    code, out, err = cli(capfd, "restore", run, picture, "--out", tmp_path, "--sheet", tmp_path / "s.png", "--json")
    assert code == 0, err
    [told] = json.loads(out)["pictures"]
    assert told["side"] == list(SIZE)
    for file in told["files"].values():
        with Image.open(file) as part:
            assert part.size == SIZE[::-1]


def test_predict_gives_the_answers_of_fine_tuning(tuned: Path, images: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = json.loads((tuned / "result.json").read_text())
    code, out, err = cli(capfd, "predict", tuned, images / "test", "--json", "--device", "cpu", "--precision", "fp32")
    assert code == 0, err
    told = json.loads(out)
    assert told["image_size"] == list(SIZE)
    right = [Path(one["picture"]).parent.name == one["predictions"][0]["class"] for one in told["pictures"]]
    assert sum(right) / len(right) == pytest.approx(result["top1"])


@pytest.mark.parametrize("size", [None, "48,60"])
def test_timm_loads_what_is_exported(
    run: Path, size: str | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = [] if size is None else ["--image-size", size]
    code, _, err = cli(capfd, "export", run, "--to", "hf", "--out", tmp_path / "hf", *more)
    assert code == 0, err
    shape = (3, *((48, 60) if size else SIZE))
    model: Any = timm.create_model(f"local-dir:{tmp_path / 'hf'}", pretrained=True).eval()
    assert tuple(model.pretrained_cfg["input_size"]) == shape
    card = (tmp_path / "hf" / "README.md").read_text()
    assert f"{shape[1]}x{shape[2]} pixels to a grid of {shape[1] // 12}x{shape[2] // 12} tokens" in card
    assert f"torch.rand(1, 3, {shape[1]}, {shape[2]})" in card
    encoder = open_encoder(str(run), None, backbone=None, image_size=shape[1:], seed=0).encoder.eval()
    batch = torch.rand(2, *shape) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(batch)[:, -encoder.num_tokens :], encoder(batch))


@pytest.mark.parametrize("size", ["48,36", "60"])
def test_a_run_begins_with_it_at_another_size(
    run: Path, images: Path, size: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The other way round too, and what `export` writes is opened as what it is."""
    code, _, err = cli(capfd, "export", run, "--to", "timm", "--out", tmp_path / "timm")
    assert code == 0, err
    sides = [int(side) for side in size.split(",")]
    wanted = (sides[0], sides[-1])
    for subject in (run, tmp_path / "timm"):
        own = open_encoder(str(subject), None, backbone=None, image_size=None, seed=0).encoder.timm_state()["pos_embed"]
        begun = tmp_path / f"begun-{subject.name}"
        train(images, begun, f"data.image_size=[{wanted[0]},{wanted[1]}]", *RUN[1:], f"train.start={subject}",
              "train.epochs=1", "optim.warmup_epochs=0", "optim.lr=1e-12", "optim.min_lr=0")  # fmt: skip
        table = checkpoint.load_weights(begun / "encoder.safetensors")["pos_embed"]
        grid = (wanted[0] // 12, wanted[1] // 12)
        prefix = own.shape[1] - 12
        want = resample_abs_pos_embed(own, grid, (3, 4), num_prefix_tokens=prefix)
        torch.testing.assert_close(table, want)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_shapes")
def test_onnx(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = cli(capfd, "export", run, "--to", "onnx", "--out", tmp_path / "e.onnx", "--json")
    assert code == 0, err
    said = json.loads(out)
    assert "[batch, 3, 36, 48]" in said["input"]
    assert said["outputs"]["tokens"] == [12, 32]


def test_pictures_are_denoised_in_squares(run: Path, images: Path, capfd: pytest.CaptureFixture[str]) -> None:
    picture = images / "test" / "china" / "11.png"
    code, _, err = cli(capfd, "denoise", picture, "--run", run)
    assert code == 2
    assert "was trained on images of 36x48 px, and pictures are denoised in squares" in one_line(err)


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (("data.image_size=40,36", "backbone.patch_size=16"), "16 does not divide data.image_size = 40,36; it may be"),
        (
            ("data.image_size=36,48", "data.crop_from=40"),
            "data.crop_from = 40 must be at least data.image_size = 36,48",
        ),
        (
            ("data.image_size=36,48", "backbone.name=timm:vit_tiny_patch16_224"),
            "has patches of 16x16 px, of which data.image_size",
        ),
    ],
)
def test_sizes_that_cannot_be(
    images: Path, assignments: tuple[str, ...], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = [word for text in assignments for word in ("--set", text)]
    code, _, err = cli(capfd, "pretrain", "--dataset", f"folder:{images}", *given, "--out", tmp_path / "run")
    assert code == 2
    assert words in one_line(err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["backbone", "method"])
def test_who_takes_squares_alone_says_so(
    kind: Any, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from dsdmae_cli import plugins

    spec = plugins.find(kind, {"backbone": "vit-tiny", "method": "mae"}[kind]).spec
    monkeypatch.setattr(type(spec), "__setattr__", object.__setattr__)
    monkeypatch.setattr(spec, "rectangles", False)
    code, _, err = cli(capfd, "pretrain", "--dataset", f"folder:{images}", "--method", "mae", "--backbone", "vit-tiny",
                       "--set", "data.image_size=32,48", "--out", tmp_path / "run")  # fmt: skip
    assert code == 2
    assert "is for square images, and data.image_size = 32,48; give one number, or use another" in one_line(err)
