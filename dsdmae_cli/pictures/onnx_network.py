"""A denoiser that onnxruntime computes, on the CPU and in float32: from an .onnx file to pixels without any torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dsdmae_cli.artifacts.onnx_denoiser import IMAGES, MOST_OF_ONNX, RESTORED, About, read_about
from dsdmae_cli.errors import CheckpointError, SettingsError
from dsdmae_cli.files import read_within
from dsdmae_cli.pictures.network import Engine, Images

_FATAL = 4


@dataclass(frozen=True)
class OnnxNetwork:
    """See pictures/network.py; `open_onnx` makes one.

    Args:
        session: onnxruntime's.
        about: what the file says of itself.
    """

    session: Any
    about: About
    origin: str

    @property
    def engine(self) -> Engine:
        return "onnx"

    @property
    def device(self) -> str:
        return "cpu"

    @property
    def sha256(self) -> str:
        return self.about.sha256

    @property
    def image_size(self) -> int:
        return self.about.image_size

    @property
    def size_multiple(self) -> int | None:
        return self.about.size_multiple

    @property
    def patch(self) -> tuple[int, int]:
        return self.about.patch

    @property
    def batch_size(self) -> int:
        # One after the other each stays in the caches; threads share the work of one (4.4 s a megapixel where four went
        # at once, 3.7 one by one, on one core of an AMD EPYC with AVX2).
        return 1

    def begin(self, images: Images) -> Callable[[], Images]:
        return partial(self.predict, images)

    def predict(self, images: Images) -> Images:
        """All at once."""
        try:
            [restored] = self.session.run([RESTORED], {IMAGES: images})
        except Exception as error:  # each of onnxruntime's errors stands directly below Exception
            raise CheckpointError(
                f"{self.origin} cannot restore images of {images.shape[2:]}: {_short(error)}"
            ) from error
        if restored.shape != images.shape:
            raise CheckpointError(f"{self.origin} gives {restored.shape} for images of {images.shape}; export it again")
        return restored


def open_onnx(source: Path | bytes, origin: str) -> OnnxNetwork:
    """The network of an ONNX file that `dsdmae export --to denoiser-onnx` wrote.

    Args:
        source: the file, or what it holds.
        origin: where it came from, for messages.

    Raises:
        SettingsError: onnxruntime is not installed.
        CheckpointError: it cannot be read, is damaged, or is another network.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise SettingsError("--engine onnx needs onnxruntime; pip install 'dsdmae[onnx]'") from error
    try:
        content = source if isinstance(source, bytes) else read_within(source, MOST_OF_ONNX)
    except OSError as error:
        raise CheckpointError(f"cannot read {origin}: {error.strerror or error}") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    # Threads that spin while they wait take a core from whoever else works here.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _FATAL  # what it has to say comes as an exception too
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckpointError(f"{origin} is no readable ONNX file: {_short(error)}") from error
    about = read_about(session.get_modelmeta().custom_metadata_map, origin)
    names = [port.name for port in (*session.get_inputs(), *session.get_outputs())]
    if names != [IMAGES, RESTORED]:
        raise CheckpointError(f"{origin} takes and gives {names}, not {IMAGES} and {RESTORED}; export it again")
    return OnnxNetwork(session, about, origin)


def _threads() -> int:
    """As many as torch would use: those asked for, or those this process may have; 0 = onnxruntime's own choice."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return allowed if allowed is not None and allowed < (os.cpu_count() or 1) else 0


def _short(error: Exception) -> str:
    """The message without onnxruntime's numbers before it, in one line."""
    return str(error).rsplit(" : ", 1)[-1].splitlines()[0][:200]
