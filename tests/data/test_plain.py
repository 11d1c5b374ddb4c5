"""Plain pictures have the pixels that decode.py gives them, whole; at a fraction, those of a whole one made smaller."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsdmae_cli.data.augment import Augmentation, crop_boxes
from dsdmae_cli.data.base import UnreadableImage
from dsdmae_cli.data.cutting import LEAST_REDUCTION, Box, Picture, crop_box, crops
from dsdmae_cli.data.decode import decode
from dsdmae_cli.data.files import Directory, FileImages
from dsdmae_cli.data.plain import plain
from dsdmae_cli.data.values import Reading


def photograph(width: int = 401, height: int = 299, mode: str = "RGB") -> Image.Image:
    """Edges, gradients and texture, since flat colours would hide a shift."""
    rows, columns = np.mgrid[:height, :width]
    squares = 30 * ((rows // 23 + columns // 31) % 2)
    waves = [128 + 90 * np.sin(columns / 9 + rows / (13 + 4 * c)) + squares for c in range(3)]
    image = Image.fromarray(np.stack(waves, axis=2).clip(0, 255).astype(np.uint8))
    return image.convert(mode)


def saved(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, **{"format": "JPEG", "quality": 90, **options})
    return stream.getvalue()


KINDS: dict[str, Callable[[], bytes]] = {
    "baseline": lambda: saved(photograph()),
    "progressive": lambda: saved(photograph(), progressive=True),
    "444": lambda: saved(photograph(), subsampling=0),
    "grey": lambda: saved(photograph(mode="L")),
    "comment": lambda: saved(photograph(), comment=b"seen"),
    "one pixel": lambda: saved(photograph(1, 1)),
    "ppm": lambda: saved(photograph(), format="PPM"),
    **{f"turned {n}": (lambda n=n: saved(photograph(), exif=turned(n))) for n in range(1, 9)},
}  # fmt: skip


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_picture_is_what_decode_makes_of_it(kind: str) -> None:
    content = KINDS[kind]()
    found = plain(content)
    assert found is not None
    whole = decode(content, kind)
    assert (found.height, found.width) == whole.shape[:2]
    assert np.array_equal(found.pixels(), whole)
    assert np.array_equal(plain(memoryview(content)).pixels(), whole)


ODD: dict[str, Callable[[], bytes]] = {
    "cmyk": lambda: saved(photograph(mode="CMYK")),
    "torn": lambda: saved(photograph())[:4000],
    "header alone": lambda: saved(photograph())[:30],
    "png": lambda: saved(photograph(), format="PNG"),
    "grey ppm": lambda: saved(photograph(mode="L"), format="PPM"),
    "torn ppm": lambda: saved(photograph(), format="PPM")[:-1],
    "12 bits": lambda: saved(photograph()).replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
    "lossless": lambda: saved(photograph()).replace(b"\xff\xc0\x00\x11", b"\xff\xc3\x00\x11"),
    "too large": lambda: saved(photograph()).replace(b"\x08\x01\x2b\x01\x91", b"\x08\xff\xff\xff\xff"),
    "adobe rgb": lambda: saved(photograph(), keep_rgb=True),
    "empty": lambda: b"",
}


@pytest.mark.parametrize("kind", ODD)
def test_others_are_left_to_decode(kind: str) -> None:
    content = ODD[kind]()
    assert kind in ("torn", "header alone", "torn ppm", "empty") or b"\xff\xd9" in content[-2:] or "p" in kind
    assert plain(content) is None


def images(tmp_path: Path, *contents: bytes, suffix: str = ".jpg", reading: Reading | None = None) -> FileImages:
    names = [f"{number}{suffix}" for number in range(len(contents))]
    for name, content in zip(names, contents, strict=True):
        (tmp_path / name).write_bytes(content)
    return FileImages(Directory(tmp_path, names), np.arange(len(names)), reading=reading or Reading())


def test_only_rgb_of_all_bands_is_offered_undecoded(tmp_path: Path) -> None:
    content = KINDS["baseline"]()
    assert images(tmp_path, content).encoded(0) == content
    assert images(tmp_path, content, reading=Reading(channels=1)).encoded(0) is None
    assert images(tmp_path, content, reading=Reading(bands=(3, 2, 1))).encoded(0) is None
    missing = images(tmp_path, content)
    shutil.rmtree(tmp_path)
    assert missing.encoded(0) is None
    with pytest.raises(UnreadableImage, match="no such file"):
        Picture(missing, 0)


def test_damage_inside_is_told_as_ever(tmp_path: Path) -> None:
    """Data that libjpeg refuses goes to decode.py, and what Pillow lets pass is let pass, with the same pixels."""
    content = KINDS["baseline"]()
    start = content.index(b"\xff\xda")
    tables = content.replace(b"\xff\xdb", b"\xff\xfe")  # no tables of quantisation
    with pytest.raises(UnreadableImage, match="damaged"):
        Picture(images(tmp_path, tables), 0).whole()
    torn = content[: start + 3000] + b"\xff\xd9"
    try:
        expected = decode(torn, "torn")
    except UnreadableImage:
        with pytest.raises(UnreadableImage):
            Picture(images(tmp_path, torn), 0).whole()
    else:
        assert np.array_equal(Picture(images(tmp_path, torn), 0).whole(), expected)


def reference(pixels: np.ndarray, box: Box, size: int) -> np.ndarray:
    cut = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    return np.asarray(Image.fromarray(cut).resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)


@pytest.mark.parametrize("kind", ["baseline", "turned 6", "ppm"])
def test_crops_that_are_not_shrunk_are_those_of_pillow(kind: str, tmp_path: Path) -> None:
    content = KINDS[kind]()
    whole, box = decode(content, kind), Box(17, 40, 200, 180)
    found = Picture(images(tmp_path, content), 0).crops([box], 96, "bicubic")[0].numpy()
    assert np.abs(found - reference(whole, box, 96)).max() <= 1


@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("kind", ["420", "444", "turned"])
def test_shrunk_crops_are_near_those_of_a_whole_picture(kind: str, shrink: int, tmp_path: Path) -> None:
    """Within a level or two of the crop at the same place; a shift by one pixel of the crop would be far off."""
    options = {"420": {}, "444": {"subsampling": 0}, "turned": {"exif": turned(8)}}[kind]
    content = saved(photograph(1000, 800), **options)
    whole, size = decode(content, kind), 48
    side = int(shrink * LEAST_REDUCTION * size)
    box = Box(6 * shrink, 10 * shrink, side, side + 2 * shrink)
    picture = Picture(images(tmp_path, content), 0)
    assert picture._affordable(side / size) == shrink
    found = picture.crops([box], size, "bicubic")[0].numpy().astype(np.float64)
    expected = reference(whole, box, size)
    assert np.abs(found - expected).mean() < 3
    moved = reference(whole, box._replace(left=box.left + shrink), size)
    assert np.abs(found - expected).mean() < 0.2 * np.abs(found - moved).mean()


def test_the_smallest_of_several_crops_decides_how_far_a_picture_is_shrunk(tmp_path: Path) -> None:
    found = images(tmp_path, saved(photograph(1000, 800)))
    small, large = Box(0, 0, 100, 100), Box(0, 0, 800, 800)
    both = Picture(found, 0).crops([large, small], 64, "bicubic")
    assert torch.equal(both[1], Picture(found, 0).crops([small], 64, "bicubic")[0])
    assert not torch.equal(both[0], Picture(found, 0).crops([large], 64, "bicubic")[0])


@pytest.mark.parametrize(("height", "width"), [(299, 401), (40, 300), (32, 32), (1, 1)])
def test_a_box_is_the_one_that_a_batch_of_one_would_have(height: int, width: int) -> None:
    scale, ratio, same = (0.2, 1.0), (3 / 4, 4 / 3), 0
    for seed in range(300):
        box = crop_box(height, width, scale, ratio, torch.Generator().manual_seed(seed))
        batch = crop_boxes(1, height, width, scale, ratio, torch.Generator().manual_seed(seed))
        same += list(box) == torch.cat([*batch]).flatten().tolist()
        assert 0 <= box.top <= height - box.height
        assert 0 <= box.left <= width - box.width
        assert box.height > 0 < box.width
    assert same >= 298  # a batch is computed in float32, which may round a half the other way


@pytest.mark.parametrize("plan", [(None, None), (None, 64)])
def test_without_a_random_crop_nothing_is_shrunk(plan: tuple[None, int | None], tmp_path: Path) -> None:
    """Squares are Pillow's, to the bit, whatever the size of the picture."""
    from dsdmae_cli.data.square import to_square

    content = saved(photograph(1000, 800))
    augmentation = Augmentation(48, plan[0], (3 / 4, 4 / 3), "bicubic", False, 0, plan[1])
    found = crops(Picture(images(tmp_path, content), 0), augmentation, [torch.Generator().manual_seed(3)])[0].numpy()
    square = to_square(decode(content, "x"), plan[1] or 48)
    if plan[1] is None:
        assert np.array_equal(found, square)
    else:
        windows = np.lib.stride_tricks.sliding_window_view(square, (48, 48, 3))[:, :, 0]
        assert (windows == found).all(axis=(2, 3, 4)).any()
