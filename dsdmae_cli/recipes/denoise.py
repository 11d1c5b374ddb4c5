"""`dsdmae denoise`: pictures in, pictures without their noise out."""

from __future__ import annotations

import io
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import torch
from PIL import Image

from dsdmae_cli.artifacts.denoiser import Denoiser, load_denoiser
from dsdmae_cli.data.base import UnreadableImage
from dsdmae_cli.data.decode import MAX_PIXELS, Refused
from dsdmae_cli.errors import DataError, DsdmaeError, RunFailed, RunInterrupted
from dsdmae_cli.files import aside
from dsdmae_cli.pictures import picture as pictures
from dsdmae_cli.pictures.contact_sheet import Panel, draw
from dsdmae_cli.pictures.noise_level import noise_level
from dsdmae_cli.pictures.paths import Failure, Source, Target, reference_of
from dsdmae_cli.pictures.picture import Picture
from dsdmae_cli.pictures.quality import Likeness, compare
from dsdmae_cli.pictures.restore import Corruption, Restorer, corrupted
from dsdmae_cli.report import Counted
from dsdmae_cli.runtime import choose_device, choose_precision, keep_freed_memory

# What the network takes from a photograph that carries no noise, root mean square, of 255 (docs/denoise.md).
_TAKEN = 2.5
_ADVICE = "make room, or write elsewhere with --out, and run it again"


@dataclass(frozen=True)
class Options:
    """What a person asked for.

    Attributes:
        force: existing files may be replaced.
        run, weights: whose denoiser; both None = the packaged one.
        passes: shifted and turned passes to average.
        strength: 0..1; None = by the estimated noise.
        corrupt: noise to add first, for a triptych.
        reference: a clean picture, or a folder of them, to compare with.
        sheet: one more file, with all pictures beside their results.
        max_pixels: larger pictures are refused.
        quiet: nothing on stderr but warnings.
    """

    force: bool = False
    run: Path | None = None
    weights: Path | None = None
    passes: int = 1
    strength: float | None = None
    device: str = "auto"
    precision: str = "auto"
    corrupt: Corruption | None = None
    reference: Path | None = None
    sheet: Path | None = None
    max_pixels: int = MAX_PIXELS
    quiet: bool = False


@dataclass
class Outcome:
    """What became of it: `done` has a record for each picture written, `failed` what was not and why."""

    denoiser: Denoiser
    done: list[dict[str, Any]] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)


@dataclass(frozen=True)
class _Scores:
    """A picture before and after, against its original."""

    noisy: Likeness
    restored: Likeness

    def record(self) -> dict[str, Any]:
        """For JSON, which has no infinity: null where the pictures are equal."""
        return {
            f"{kind}_{name}": value if value is not None and math.isfinite(value) else None
            for kind, likeness in (("noisy", self.noisy), ("restored", self.restored))
            for name, value in likeness._asdict().items()
        }


def denoise(sources: list[Source], targets: list[Target], failed: list[Failure], options: Options) -> Outcome:
    """Denoise pictures one after the other; what goes wrong with one is noted and the next one taken.

    Args:
        targets: one for each source.
        failed: what failed before.

    Raises:
        CheckpointError, SettingsError: there is no denoiser, no such device.
        RunFailed: the sheet cannot be written.
        RunInterrupted: by a signal; what was written by then is whole.
    """
    device = choose_device(options.device)
    denoiser = load_denoiser(options.run, options.weights)
    restorer = Restorer(denoiser, device, choose_precision(options.precision, device), options.passes)
    if device.type == "cpu":
        keep_freed_memory()
    outcome = Outcome(denoiser, failed=list(failed))
    rows: list[list[Panel]] = []
    with _stoppable(outcome, len(sources)) as stop, Counted("denoising", quiet=options.quiet) as report:
        for source, target in zip(sources, targets, strict=True):
            began = time.monotonic()
            try:
                result = _one(source, target, restorer, options, report)
                # A reader of standard output may keep us waiting; that must not make Ctrl-C wait too.
                with nullcontext() if result.file is None else stop.hold():
                    _write(result.picture, result.file)
                    result.record["seconds"] = round(time.monotonic() - began, 2)
                    outcome.done.append(result.record)
                    report.note(line(result.record), to_stdout=result.file is not None)
            except (DsdmaeError, Refused) as error:
                outcome.failed.append(Failure(str(source), _reason(error, options)))
                report.warn(str(outcome.failed[-1]))
                continue
            except torch.OutOfMemoryError:
                raise RunFailed(f"{device} ran out of memory at {source}; try --device cpu") from None
            if options.sheet is not None:
                rows.append(result.panels)
        if options.sheet is not None and rows:
            page = draw(rows, crop=True)
            with aside(options.sheet, _ADVICE) as partial, partial.open("wb") as file:
                page.save(file, format=pictures.WRITERS[options.sheet.suffix.lower()][0])
    return outcome


@dataclass(frozen=True)
class _Result:
    """What comes of one picture: what to write and where (None = standard output), its record, and its panels."""

    picture: Picture | Image.Image
    file: Path | None
    record: dict[str, Any]
    panels: list[Panel]


def _one(source: Source, target: Target, restorer: Restorer, options: Options, report: Counted) -> _Result:
    """Read, restore and compare a picture."""
    given = _read(source.path, str(source), options.max_pixels)
    file = target.file(given)
    if file is not None:
        _check_target(file, given, options)
    original = _original(source, given, options)
    noisy = corrupted(given, options.corrupt, restorer.denoiser.patch) if options.corrupt else given
    level = noise_level(noisy.pixels[..., : noisy.num_colors])
    strength = _chosen_strength(level, options)
    report.begin(str(source))
    restored = restorer(noisy, strength, report.advance)
    scores = None
    if original is not None:
        n = given.num_colors
        reference = original.pixels[..., :n]
        scores = _Scores(*(compare(p.pixels[..., :n], reference) for p in (noisy, restored)))
    panels = _panels(noisy, restored, original, scores)
    record = {
        "source": str(source),
        "output": str(file) if file else None,
        "width": given.width,
        "height": given.height,
        "mode": given.mode,
        "depth": given.depth,
        "frames": given.frames,
        "noise_level": round(level, 2),
        "strength": round(strength, 3),
        **(scores.record() if scores else {}),
    }
    return _Result(draw([panels], crop=False) if options.corrupt else restored, file, record, panels)


def _read(path: Path | None, name: str, max_pixels: int) -> Picture:
    return pictures.read(sys.stdin.buffer.read() if path is None else path, name, max_pixels)


def _check_target(file: Path, picture: Picture, options: Options) -> None:
    """See, before time is spent, that the result can be written."""
    if file.exists() and not options.force:
        raise DataError(f"{file} exists; --force replaces it")
    if not options.corrupt:
        pictures.check_format(picture, file.suffix.lower())
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFailed(f"cannot make {file.parent}: {error.strerror or error}") from error


def _original(source: Source, given: Picture, options: Options) -> Picture | None:
    """What the result is compared with: the picture before noise was added, a reference, or nothing."""
    if options.corrupt:
        return given
    if options.reference is None:
        return None
    path = reference_of(source, options.reference)
    original = _read(path, str(path), options.max_pixels)
    if _shape(original) != _shape(given):
        raise DataError(f"its reference {path} is {_shape(original)}, not {_shape(given)}")
    return original


def _shape(picture: Picture) -> str:
    colors = picture.mode.removesuffix("A")
    return f"{picture.width}x{picture.height}, {picture.depth}-bit {colors}"


def _chosen_strength(level: float, options: Options) -> float:
    if options.strength is not None:
        return options.strength
    # Noise that was added on purpose is there whatever the estimate says, which goes by the calmest patches.
    return 1.0 if options.corrupt else _strength(level)


def _strength(level: float) -> float:
    """How much of the network's correction to take where nobody said it.

    The given picture errs by its noise, σ² a pixel; the network by the finest texture that it takes for noise. Of two
    estimates with independent errors the best mixture gives the second one σ² / (σ² + its own error). Where there is
    much noise this is all of it, and where there is none the picture is left as it is.
    """
    return level**2 / (level**2 + _TAKEN**2)


def _panels(noisy: Picture, restored: Picture, original: Picture | None, scores: _Scores | None) -> list[Panel]:
    def caption(word: str, likeness: Likeness | None) -> str:
        return f"{word}  {_likeness(likeness)}" if likeness else word

    panels = [
        Panel(noisy, caption("noisy" if scores else "given", scores.noisy if scores else None)),
        Panel(restored, caption("restored", scores.restored if scores else None)),
    ]
    return [*panels, Panel(original, "original")] if original else panels


def _likeness(likeness: Likeness) -> str:
    psnr = f"{likeness.psnr:.2f} dB" if math.isfinite(likeness.psnr) else "equal"
    return psnr if likeness.ssim is None else f"{psnr}, SSIM {likeness.ssim:.3f}"


def _write(result: Picture | Image.Image, file: Path | None) -> None:
    def save(stream: BinaryIO, suffix: str) -> None:
        if isinstance(result, Picture):
            pictures.write(result, stream, suffix)
        else:
            kind, options = pictures.WRITERS[suffix]
            result.save(stream, format=kind, **options)

    if file is None:
        content = io.BytesIO()
        save(content, result.suffix if isinstance(result, Picture) else ".png")
        sys.stdout.buffer.write(content.getbuffer())
        sys.stdout.buffer.flush()
        return
    with aside(file, _ADVICE) as partial, partial.open("wb") as stream:
        save(stream, file.suffix.lower())


def _reason(error: Exception, options: Options) -> str:
    if not isinstance(error, UnreadableImage):
        return str(error)
    more = "; raise --max-megapixels" if error.reason.endswith("million pixels") else ""
    return f"{error.reason}{more}"


class _Stop:
    """Ctrl-C and SIGTERM end the work at once, but never between a file and its record: `hold` puts them off."""

    def __init__(self) -> None:
        self.number: signal.Signals | None = None
        self.held = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.number = signal.Signals(number)
        if not self.held:
            raise KeyboardInterrupt

    @contextmanager
    def hold(self) -> Iterator[None]:
        """No interruption inside; one that was asked for meanwhile follows."""
        self.held = True
        try:
            yield
        finally:
            self.held = False
        if self.number is not None:
            raise KeyboardInterrupt


@contextmanager
def _stoppable(outcome: Outcome, total: int) -> Iterator[_Stop]:
    stop = _Stop()
    before = {which: signal.signal(which, stop) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    except KeyboardInterrupt:
        number = stop.number or signal.SIGINT
        raise RunInterrupted(
            f"stopped by signal {number.value}: {len(outcome.done)} of {total} pictures are done and whole, nothing of"
            " the others was written",
            number,
        ) from None
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def line(record: dict[str, Any]) -> str:
    """A record in words, for people."""
    depth = f" {record['depth']}-bit" if record["depth"] != 8 else ""
    words = [
        f"{record['width']}x{record['height']} {record['mode']}{depth}",
        f"noise about {record['noise_level']:.1f}/255",
    ]
    if record["strength"] < 0.995:
        words.append(f"strength {record['strength']:.2g}")
    if "noisy_psnr" in record:
        before, after = (
            _likeness(
                Likeness(math.inf if record[f"{kind}_psnr"] is None else record[f"{kind}_psnr"], record[f"{kind}_ssim"])
            )
            for kind in ("noisy", "restored")
        )
        words.append(f"{before} -> {after}")
    if record["frames"] > 1:
        words.append(f"the first of {record['frames']} pictures in the file")
    return f"{record['output'] or 'standard output'}  {', '.join(words)}, {record['seconds']:.1f} s"


def failure(outcome: Outcome) -> RunFailed | None:
    """What to end with where something failed."""
    if not outcome.failed:
        return None
    names = "; ".join(map(str, outcome.failed))
    if not outcome.done:
        return RunFailed(f"nothing was denoised: {names}")
    return RunFailed(f"{len(outcome.failed)} of {len(outcome.failed) + len(outcome.done)} failed: {names}")


def result(outcome: Outcome, options: Options, seconds: float) -> dict[str, Any]:
    """What --json prints."""
    return {
        "weights": {"origin": outcome.denoiser.origin, "sha256": outcome.denoiser.sha256},
        "passes": options.passes,
        "pictures": outcome.done,
        "failed": [asdict(failure) for failure in outcome.failed],
        "sheet": str(options.sheet) if options.sheet and outcome.done else None,
        "seconds": round(seconds, 2),
    }
