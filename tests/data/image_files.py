"""What the tests of this folder share: real photographs as bytes, files and archives, and errors of one line."""

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from dsdmae_builtin.datasets import FolderSettings
from dsdmae_cli.errors import DataError


def crops(count: int, side: int) -> np.ndarray:
    """[count, side, side, 3] real photographs, all different."""
    photo = load_sample_image("china.jpg")
    random = np.random.default_rng(count)
    corners = random.integers(0, [photo.shape[0] - side, photo.shape[1] - side], (count, 2))
    return np.stack([photo[y : y + side, x : x + side] for y, x in corners])


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG")
    return buffer.getvalue()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def tar_of(members: dict[str, bytes], mode: str = "w:gz", links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return buffer.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def of(path: Path, **more: Any) -> FolderSettings:
    return FolderSettings(dataset=f"folder:{path}", **more)


def message_of(call: Callable[[], Any]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message
