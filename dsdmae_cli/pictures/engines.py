"""Which engine restores: torch anywhere, onnxruntime on a CPU, which starts in a fraction of the time. No torch here.

onnxruntime reads an .onnx file. One of a .safetensors file, the packaged ones among them, is made by torch the first
time that it is asked for and kept in the user's cache, with the SHA-256 of both in its name: so other weights are
another file, and a damaged one is seen and made again.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dsdmae_cli.artifacts.onnx_denoiser import FORMAT, MOST_OF_ONNX
from dsdmae_cli.artifacts.packaged import ALL, PHOTOGRAPHS, WHITE_NOISE, Packaged
from dsdmae_cli.errors import CheckpointError, RunFailed, SettingsError
from dsdmae_cli.files import beside, open_file, write_bytes
from dsdmae_cli.pictures.network import Engine, Network
from dsdmae_cli.pictures.restore import Restorer

if TYPE_CHECKING:
    from dsdmae_cli.artifacts.denoiser import Denoiser

Wanted = Literal["auto", "torch", "onnx"]
Say = Callable[[str], None]
_ADVICE = "--engine torch needs no such file"
_SHORT = 16


def open_restorer(
    run: Path | None = None,
    weights: Path | None = None,
    *,
    engine: Wanted = "auto",
    device: str = "auto",
    precision: str = "auto",
    passes: int = 1,
    say: Say | None = None,
) -> Restorer:
    """The denoiser of a run, of a file, or by default those that are packaged, at work on a device.

    Args:
        weights: a .safetensors or .onnx file.
        engine: see `choose_engine`.
        device, precision: as in the settings of a training; "auto" = what the machine has and what is fast there.
        passes: shifted and turned passes to average.
        say: told what takes time and happens once.

    Raises:
        CheckpointError: there is no denoiser, it is damaged, or does not fit its own settings.
        SettingsError: there is no such device, the method restores no pixels, or the engine cannot do it.
        RunFailed: the file for onnxruntime cannot be made.
    """
    chosen = choose_engine(engine, run, weights, device, precision)

    def opened(named: Path | Packaged) -> Network:
        return _onnx(named, say) if chosen == "onnx" else _torch(named, device, precision)

    if run is not None:
        return Restorer(_torch(run, device, precision, of_run=True), passes)
    if weights is not None:
        return Restorer(opened(weights), passes)
    return Restorer(opened(PHOTOGRAPHS), passes, lambda: opened(WHITE_NOISE))


def choose_engine(engine: Wanted, run: Path | None, weights: Path | None, device: str, precision: str) -> Engine:
    """onnx or torch. "auto" is onnx for an .onnx file, and for other weights where onnxruntime is installed, has been
    asked for before with these weights (its file is in the cache), and there is no GPU that torch might use.

    Raises:
        SettingsError: they do not go together.
    """
    named_onnx = weights is not None and weights.suffix.lower() == ".onnx"
    if engine == "torch" and named_onnx:
        raise SettingsError(f"--engine torch cannot read {weights}; leave it out, or name a run or a .safetensors file")
    if engine == "torch":
        return "torch"
    if engine == "onnx" or named_onnx:
        _check_onnx(run, device, precision)
        return "onnx"
    on_cpu = device == "cpu" or (device == "auto" and not _maybe_gpu())
    able = run is None and on_cpu and precision in ("auto", "fp32") and find_spec("onnxruntime") is not None
    return "onnx" if able and all(map(_kept, ALL if weights is None else (weights,))) else "torch"


def _check_onnx(run: Path | None, device: str, precision: str) -> None:
    if run is not None:
        raise SettingsError(
            f"--engine onnx reads a file, and a run changes; `dsdmae export {run} --to denoiser-onnx --out FILE.onnx`,"
            " then --weights FILE.onnx"
        )
    if device not in ("auto", "cpu"):
        raise SettingsError(f"--engine onnx computes on the CPU, not on {device}; leave out --device or --engine")
    if precision not in ("auto", "fp32"):
        raise SettingsError(f"--engine onnx computes in fp32, not {precision}; leave out --precision or --engine")


def _loaded(named: Path | Packaged, *, of_run: bool = False) -> Denoiser:
    from dsdmae_cli.artifacts.denoiser import load_denoiser

    if isinstance(named, Packaged):
        return load_denoiser(packaged=named)
    return load_denoiser(run=named) if of_run else load_denoiser(weights=named)


def _torch(named: Path | Packaged, device: str, precision: str, *, of_run: bool = False) -> Network:
    from dsdmae_cli.pictures.torch_network import TorchNetwork
    from dsdmae_cli.runtime import choose_device, choose_precision

    where = choose_device(device)
    return TorchNetwork(_loaded(named, of_run=of_run), where, choose_precision(precision, where))


def _onnx(named: Path | Packaged, say: Say | None) -> Network:
    from dsdmae_cli.pictures.onnx_network import open_onnx

    if isinstance(named, Path) and named.suffix.lower() == ".onnx":
        return open_onnx(named, str(named))
    origin = named.origin if isinstance(named, Packaged) else str(named)
    for path in _kept(named):
        if (content := _whole(path)) is not None:
            return open_onnx(content, origin)
        path.unlink(missing_ok=True)
    return open_onnx(_made(named, origin, say), origin)


def onnx_folder() -> Path:
    """Where ONNX files that were made from weights are kept."""
    from platformdirs import user_cache_path

    return user_cache_path("dsdmae") / "onnx"


def _stem(named: Path | Packaged) -> str:
    """What the kept file's name begins with: which weights, and how it was made of them.

    Raises:
        CheckpointError: they cannot be read.
    """
    try:
        if isinstance(named, Packaged):
            digest = hashlib.sha256(named.read()).hexdigest()
        else:
            with open_file(named) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        meant = beside(named) if isinstance(named, Path) else ""
        raise CheckpointError(f"cannot read {named}: {error.strerror or error}{meant}") from error
    return f"denoiser{FORMAT}-{digest[:_SHORT]}"


def _kept(named: Path | Packaged) -> list[Path]:
    """Files made of these weights; none where the cache cannot be looked into, or there can be none of any so large."""
    if isinstance(named, Path) and named.exists() and named.stat().st_size > MOST_OF_ONNX:
        return []
    stem = _stem(named)
    with suppress(OSError):
        return sorted(onnx_folder().glob(f"{stem}-*.onnx"))
    return []


def _whole(path: Path) -> bytes | None:
    """What a kept file holds; None where it is not what was written."""
    try:
        with open_file(path) as file:
            content = file.read()
    except OSError:
        return None
    digest = path.stem.rpartition("-")[2]
    return content if hashlib.sha256(content).hexdigest()[:_SHORT] == digest else None


def _made(named: Path | Packaged, origin: str, say: Say | None) -> bytes:
    """The ONNX file of weights, made by torch and kept."""
    from tempfile import TemporaryDirectory

    if say is not None:
        say(f"making an ONNX file of {origin}, once; it is kept in {onnx_folder()}")
    from dsdmae_cli.artifacts.onnx_denoiser import write_onnx_denoiser
    from dsdmae_cli.runtime import undisturbed

    with TemporaryDirectory() as folder, undisturbed():
        denoiser = _loaded(named)
        path = Path(folder) / "denoiser.onnx"
        write_onnx_denoiser(denoiser, path, _ADVICE)
        content = path.read_bytes()
    target = onnx_folder() / f"{_stem(named)}-{hashlib.sha256(content).hexdigest()[:_SHORT]}.onnx"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, content, _ADVICE)
    except (OSError, RunFailed) as error:  # it costs the time to make it once more, and no picture
        if say is not None:
            say(f"the ONNX file could not be kept: {error}")
    return content


def _maybe_gpu() -> bool:
    """Whether torch might find a GPU, by what drivers leave in the file system: to ask torch would be to load it."""
    if sys.platform == "darwin":
        return True
    if sys.platform == "win32":
        return (Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32" / "nvcuda.dll").exists()
    return any(Path("/dev", name).exists() for name in ("nvidiactl", "kfd", "dxg"))
