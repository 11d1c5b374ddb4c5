"""What the commands do to pictures, from Python: `denoise`, `restore` and `predict`; the rest is in api.py."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, overload

from dsdmae_cli.api import given_from, path_of
from dsdmae_cli.errors import DataError, SettingsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from dsdmae_cli.pictures.paths import Source

    Pixels = TypeVar("Pixels", NDArray[np.uint8], NDArray[np.uint16])

Engine = Literal["auto", "torch", "onnx"]


class Restored(NamedTuple):
    """The square of a picture that a network saw.

    Attributes:
        corrupted, restored, original: arrays [height, width, 3] of uint8 where an array was given, else PIL images.
        changed: share of its pixels that were changed, 0 to 1.
        before, after: PSNR in dB of the pixels that were changed (of all, where none was), corrupted and restored.
    """

    corrupted: Any
    restored: Any
    original: Any
    changed: float
    before: float
    after: float


@overload
def denoise(picture: Pixels, *, strength: float | None = ..., passes: int = ..., run: str | Path | None = ...,
            weights: str | Path | None = ..., engine: Engine = ..., device: str = ...,
            precision: str = ...) -> Pixels: ...  # fmt: skip
@overload
def denoise(picture: Image.Image | str | Path, *, strength: float | None = ..., passes: int = ...,
            run: str | Path | None = ..., weights: str | Path | None = ..., engine: Engine = ..., device: str = ...,
            precision: str = ...) -> Image.Image: ...  # fmt: skip
def denoise(
    picture: Any,
    *,
    strength: float | None = None,
    passes: int = 1,
    run: str | Path | None = None,
    weights: str | Path | None = None,
    engine: Engine = "auto",
    device: str = "auto",
    precision: str = "auto",
) -> Any:
    """A picture without its noise.

    Args:
        picture: an array, uint8 or uint16, [height, width] or [height, width, channels] with 1 to 4 channels; a PIL
            image; or a file's path.
        strength: share of the correction to take, 0 to 1; None = all of it, less where next to no noise is found.
        passes: shifted, mirrored and turned passes to average: better, in as many times the time.
        run, weights: denoise with what a run has learned, or with a file of `dsdmae export --to denoiser` or
            `--to denoiser-onnx`; both None = the weights that ship with dsdmae.
        engine: "torch", "onnx" (onnxruntime on the CPU, without loading torch) or "auto", as `dsdmae denoise --engine`.
        device, precision: as train.device and train.precision.

    Returns:
        An array for an array, of its type and shape; else a PIL image, with colour profile, EXIF, XMP and resolution
        in its `info`.

    Raises:
        DataError: the picture cannot be read, is no picture, or is one that a PIL image cannot be (a stack of pages,
            16-bit colour).
        SettingsError, CheckpointError: there is no such denoiser or device, or `strength` is no share.
    """
    import numpy as np

    from dsdmae_cli.data.base import Refused
    from dsdmae_cli.pictures.depths import brought_back, limits_of, range_of, seen
    from dsdmae_cli.pictures.engines import choose_engine, open_restorer
    from dsdmae_cli.pictures.metadata import info_of
    from dsdmae_cli.pictures.picture import Picture, read, to_image

    if engine not in ("auto", "torch", "onnx"):
        raise SettingsError(f"engine = {engine!r} is not allowed; it takes auto, torch or onnx")
    if strength is not None and not 0 <= strength <= 1:
        raise SettingsError(f"strength = {strength!r} is not allowed; it takes a number from 0 to 1, or None")
    if passes < 1:
        raise SettingsError(f"passes = {passes!r} is not allowed; it takes a whole number from 1 up")
    if run is not None and weights is not None:
        raise SettingsError("run and weights both name a network; give one")
    try:
        given = read(Path(picture), str(picture)) if isinstance(picture, str | Path) else Picture.of(picture)
        if len(given.pages) > 1:
            raise Refused(f"{picture} is a stack of {len(given.pages)} pages; `dsdmae denoise` does them all")
        if not isinstance(picture, np.ndarray):
            to_image(given)  # before time is spent on what Pillow cannot hold
    except Refused as error:
        raise DataError(str(error)) from error
    where = (path_of(run), path_of(weights))
    with _undisturbed_by(choose_engine(engine, *where, device, precision)):
        restorer = open_restorer(*where, engine=engine, device=device, precision=precision, passes=passes)
        limits = range_of(given, limits_of([given]))
        shown = given if limits is None else seen(given, limits)
        try:
            restored = restorer(shown, strength).picture
            restored = restored if limits is None else brought_back(given, shown, restored, limits)
            if isinstance(picture, np.ndarray):
                return restored.pixels.reshape(picture.shape)
            image = to_image(restored)
            image.info.update(info_of(given.metadata))
            return image
        except Refused as error:
            raise DataError(str(error)) from error


def restore(
    run: str | Path,
    picture: Any,
    *,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    **settings: Any,
) -> Restored:
    """What a pre-training run has learned to restore: the middle square of a picture, masked or made noisy, and back.

    Args:
        run: the run's directory, also of one that has not ended.
        picture: an array, a PIL image or a file's path, as in denoise.
        seed: of masks and noise.
        device, precision: as train.device and train.precision.
        settings: of the method in place of the run's: mask_ratio, noise_std, or method={"name": value}.

    Raises:
        DataError: the picture cannot be read.
        SettingsError: the method restores no pixels, or has no such setting.
        CheckpointError: it is no run, or has no checkpoint yet.
    """
    import numpy as np

    from dsdmae_cli.artifacts.trained_method import open_method
    from dsdmae_cli.config.schema import PRETRAIN
    from dsdmae_cli.data.base import UnreadableImage
    from dsdmae_cli.pictures.by_method import MethodAtWork, how_its_data, read_as_data
    from dsdmae_cli.pictures.outcome import Changed
    from dsdmae_cli.pictures.picture import to_image
    from dsdmae_cli.runtime import choose_device, choose_precision, undisturbed

    flags = given_from("restore", PRETRAIN, settings).flags
    others = [name for name in flags if not name.startswith("method.")]
    if others:
        raise SettingsError(f"restore takes settings of the method, not {', '.join(others)}; leave that out")
    with undisturbed():
        trained, where = open_method(Path(run), flags), choose_device(device)
        work = MethodAtWork(trained, where, choose_precision(precision, where), seed)
        work.check()
        try:
            shown = work(read_as_data(_source(picture), how_its_data(trained.settings.data), own=True)[0])
        except UnreadableImage as error:
            raise DataError(str(error)) from error
    scores = Changed.of(*(part.pixels for part in shown))
    corrupted, restored, original = (
        part.pixels if isinstance(picture, np.ndarray) else to_image(part) for part in shown
    )
    return Restored(corrupted, restored, original, scores.share, scores.before, scores.after)


def predict(
    network: str | Path,
    pictures: Any,
    *,
    top: int = 1,
    device: str = "auto",
    precision: str = "auto",
) -> dict[str, Any]:
    """Classes of pictures by a fine-tuned network.

    Args:
        network: a run of finetune, or its classifier.safetensors.
        pictures: a picture or a sequence of them: paths (also of folders, and globs), PIL images, arrays of uint8 or
            uint16 [height, width] or [height, width, channels].
        top: how many classes of each, the most probable first.
        device, precision: as train.device and train.precision.

    Returns:
        What `dsdmae predict --json` prints: "pictures" has the predictions of each that could be read, in order, and
        "unreadable" the others.

    Raises:
        DataError: none of them could be read.
        SettingsError, CheckpointError: there is no such network or device, or `top` is none.
    """
    from dsdmae_cli.artifacts.subject import parse_classifier
    from dsdmae_cli.pictures.paths import Failure, Results, find
    from dsdmae_cli.pictures.predict import predict as run
    from dsdmae_cli.runtime import undisturbed

    if top < 1:
        raise SettingsError(f"top = {top!r} is not allowed; it takes a whole number from 1 up")
    many = pictures if isinstance(pictures, Sequence) and not isinstance(pictures, str) else [pictures]
    sources: list[Source] = []
    failures: list[Failure] = []
    for number, picture in enumerate(many):
        if isinstance(picture, str | Path):
            found, failed = find([str(picture)], Results(kind=""))
            sources, failures = [*sources, *found], [*failures, *failed]
        else:
            sources.append(_source(picture, f"picture {number}"))
    with undisturbed():
        told = run(parse_classifier(str(network)), sources, top=top, device=device, precision=precision)
    told = told.with_failures(failures)
    if not told.predictions:
        raise DataError(f"cannot read {', '.join(map(str, told.failures)) or 'any picture: none was given'}")
    return dict(told.told())


def _source(picture: Any, name: str = "the picture") -> Source:
    """A picture as the commands take one."""
    import io

    from dsdmae_cli.data.base import Refused
    from dsdmae_cli.pictures.paths import Source
    from dsdmae_cli.pictures.picture import Picture, write

    if isinstance(picture, str | Path):
        return Source(Path(picture))
    content = io.BytesIO()
    try:
        given = Picture.of(picture)
        write([given], content, given.suffix)
    except Refused as error:
        raise DataError(f"{name}: {error}") from error
    return Source(None, held=(name, content.getvalue()))


def _undisturbed_by(engine: str) -> AbstractContextManager[None]:
    """Random states as they were; only torch, which draws weights before it loads others, would change them."""
    if engine == "onnx":
        return nullcontext()
    from dsdmae_cli.runtime import undisturbed

    return undisturbed()
