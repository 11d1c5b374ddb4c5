"""`dsdmae denoise`: pictures in, pictures without their noise out.

Which pictures a command line means is found before (pictures/paths.py), since a mistyped name should cost no second.
"""

from __future__ import annotations

import io
import sys
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np
from PIL import Image

from dsdmae_cli.data.base import Refused, UnreadableImage
from dsdmae_cli.data.decode import MAX_PIXELS
from dsdmae_cli.data.values import Range
from dsdmae_cli.errors import DataError, DsdmaeError, RunFailed
from dsdmae_cli.files import aside
from dsdmae_cli.pictures import picture as pictures
from dsdmae_cli.pictures.contact_sheet import Panel, draw, with_magnified
from dsdmae_cli.pictures.depths import brought_back, limits_of, seen, thinned
from dsdmae_cli.pictures.engines import Wanted, open_restorer
from dsdmae_cli.pictures.outcome import Done, Outcome, Scores
from dsdmae_cli.pictures.paths import Failure, Source, Target, reference_of
from dsdmae_cli.pictures.picture import Picture
from dsdmae_cli.pictures.restore import Restorer
from dsdmae_cli.pictures.stopping import stoppable
from dsdmae_cli.report.counted import Counted

if TYPE_CHECKING:
    from dsdmae_cli.pictures.corrupting import Corruption

_ADVICE = "make room, or write elsewhere with --out, and run it again"


@dataclass(frozen=True)
class Options:
    """What a person asked for.

    Attributes:
        force: existing files may be replaced.
        run, weights: whose denoiser; both None = the packaged one.
        passes: shifted and turned passes to average.
        strength: 0..1; None = by the estimated noise.
        engine: what computes; see pictures/engines.py.
        corrupt: noise to add first, for a triptych.
        reference: a clean picture, or a folder of them, to compare with.
        sheet: one more file, with all pictures beside their results.
        limits: values that are black and white in pictures of more than 8 bits: these, each picture's own ("auto"), one
            range for all of them ("batch"), or what the format says (None).
        max_pixels: larger pictures are refused.
        quiet: nothing on stderr but warnings.
    """

    force: bool = False
    run: Path | None = None
    weights: Path | None = None
    passes: int = 1
    strength: float | None = None
    engine: Wanted = "auto"
    device: str = "auto"
    precision: str = "auto"
    corrupt: Corruption | None = None
    reference: Path | None = None
    sheet: Path | None = None
    limits: Range | Literal["auto", "batch"] | None = "auto"
    max_pixels: int = MAX_PIXELS
    quiet: bool = False


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
    began = time.monotonic()
    report = Counted("denoising", len(sources), quiet=options.quiet)
    restorer = open_restorer(
        options.run, options.weights, engine=options.engine, device=options.device, precision=options.precision,
        passes=options.passes, say=lambda text: report.note(text, to_stdout=False),
    )  # fmt: skip
    network = restorer.network
    if network.engine == "torch" and network.device == "cpu":
        from dsdmae_cli.runtime import keep_freed_memory

        keep_freed_memory()
    outcome = Outcome(network, options.passes, failed=list(failed))
    rows: list[list[Panel]] = []
    if options.limits == "batch":
        options = replace(options, limits=_of_all(sources, options.max_pixels))
    with stoppable(outcome, len(sources)) as stop, report:
        for source, target in zip(sources, targets, strict=True):
            started = time.monotonic()
            report.begin(str(source))
            try:
                result = _one(source, target, restorer, options, report)
                # A reader of standard output may keep us waiting; that must not make Ctrl-C wait too.
                with nullcontext() if result.done.output is None else stop.hold():
                    _write(result.made, result.done.output)
                    outcome.done.append(replace(result.done, seconds=time.monotonic() - started))
                    report.note(str(outcome.done[-1]), to_stdout=result.done.output is not None)
            except (DsdmaeError, Refused) as error:
                outcome.failed.append(Failure(str(source), _reason(error), not isinstance(error, RunFailed)))
                if len(sources) > 1:  # one alone is in the error that follows
                    report.warn(str(outcome.failed[-1]))
                continue
            except MemoryError:
                advice = "end other programs, or cut it" if network.device == "cpu" else "try --device cpu"
                raise RunFailed(f"{network.device} ran out of memory at {source}; {advice}") from None
            if options.sheet is not None:
                rows += with_magnified(result.panels)
        if options.sheet is not None and rows:
            _write(draw(rows), options.sheet)
            outcome.sheet = options.sheet
    outcome.seconds = time.monotonic() - began
    return outcome


@dataclass(frozen=True)
class _Result:
    """What comes of one picture: what to write, what to say of it, and its row of the sheet."""

    made: list[Picture] | Image.Image
    done: Done
    panels: list[Panel]


def _one(source: Source, target: Target, restorer: Restorer, options: Options, report: Counted) -> _Result:
    """Read, restore and compare a picture, or every page of a stack."""
    pages = _read(source.path, str(source), options.max_pixels)
    file = target.file(pages[0])
    if file is not None:
        _check_target(file, pages[0], options)
    if len(pages) > 1 and (options.corrupt or options.reference):
        raise DataError(f"a stack of {len(pages)} pages is compared with nothing; leave --reference and --corrupt out")
    limits = limits_of(pages) if options.limits == "auto" else options.limits
    assert limits != "batch"
    results = [_page(source, page, limits, restorer, options, report) for page in pages]
    first = results[0]
    levels = [one.done.noise_level for one in results]
    done = replace(
        first.done,
        output=file,
        noise_level=float(np.sqrt(np.mean(np.square(levels)))),
        found=next((one.done.found for one in results if one.done.found), ""),
        strength=float(np.mean([one.done.strength for one in results])),
        changed=any(one.done.changed for one in results),
    )
    made = first.made if options.corrupt else [page for one in results for page in one.made]  # type: ignore[union-attr]
    return _Result(made, done, first.panels)


def _page(
    source: Source, page: Picture, limits: Range | None, restorer: Restorer, options: Options, report: Counted
) -> _Result:
    """A picture as the network sees it, from black to white, is compared and shown; what was changed goes back."""
    given = page if limits is None else seen(page, limits)
    original = _original(source, page, given, limits, options)
    noisy, strength = given, options.strength
    if options.corrupt:
        from dsdmae_cli.pictures.corrupting import corrupted

        noisy = corrupted(given, options.corrupt, restorer.network.patch)
        # Noise that was added on purpose is there whatever the estimate says, which goes by the calmest patches.
        strength = 1.0 if strength is None else strength
    result = restorer(noisy, strength, report.advance)
    restored = result.picture
    back = restored if limits is None else brought_back(page, given, restored, limits)
    scores = None if original is None else Scores.of(noisy, restored, original)
    done = Done(
        source=str(source),
        output=None,
        width=page.width,
        height=page.height,
        mode=page.mode,
        depth=page.depth,
        frames=page.frames,
        pages=page.pages,
        limits=None if given is page else limits,
        noise_level=result.noise_level,
        found=result.found,
        strength=result.strength,
        changed=not np.array_equal(restored.pixels, noisy.pixels) and not np.array_equal(back.pixels, page.pixels),
        scores=scores,
    )
    panels = _panels(noisy, restored, original, scores)
    return _Result(draw([panels]) if options.corrupt else [back], done, panels)


def _read(path: Path | None, name: str, max_pixels: int) -> list[Picture]:
    """A picture, or all pages of a stack."""
    content = sys.stdin.buffer.read() if path is None else path
    first = pictures.read(content, name, max_pixels)
    return [first, *(pictures.read(content, name, max_pixels, page) for page in range(1, first.pages))]


def _of_all(sources: list[Source], max_pixels: int) -> Range | None:
    """One range for all pictures; those that cannot be read are met again."""
    found: list[Picture] = []
    for source in sources:
        if source.path is None:
            raise DataError("--range batch is for several pictures; standard input is one")
        with suppress(UnreadableImage, Refused):
            found += (thinned(page) for page in _read(source.path, str(source), max_pixels))
    return limits_of(found)


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


def _original(source: Source, page: Picture, given: Picture, limits: Range | None, options: Options) -> Picture | None:
    """What the result is compared with: the picture before noise was added, a reference, or nothing."""
    if options.corrupt:
        return given
    if options.reference is None:
        return None
    path = reference_of(source, options.reference)
    original = pictures.read(path, str(path), options.max_pixels)
    if _shape(original) != _shape(page):
        raise DataError(f"its reference {path} is {_shape(original)}, not {_shape(page)}")
    return original if limits is None else seen(original, limits)


def _shape(picture: Picture) -> str:
    colors = picture.mode.removesuffix("A")
    return f"{picture.width}x{picture.height}, {picture.depth}-bit {colors}"


def _panels(noisy: Picture, restored: Picture, original: Picture | None, scores: Scores | None) -> list[Panel]:
    if original is None or scores is None:
        return [Panel(noisy, "given"), Panel(restored, "restored")]
    return [
        Panel(noisy, f"noisy  {scores.noisy}"),
        Panel(restored, f"restored  {scores.restored}"),
        Panel(original, "original"),
    ]


def _write(result: list[Picture] | Image.Image, file: Path | None) -> None:
    def save(stream: BinaryIO, suffix: str) -> None:
        if isinstance(result, list):
            pictures.write(result, stream, suffix)
        else:
            kind, options = pictures.WRITERS[suffix]
            result.save(stream, format=kind, **options)

    if file is None:
        content = io.BytesIO()
        save(content, result[0].suffix if isinstance(result, list) else ".png")
        sys.stdout.buffer.write(content.getbuffer())
        sys.stdout.buffer.flush()
        return
    with aside(file, _ADVICE) as partial, partial.open("wb") as stream:
        save(stream, file.suffix.lower())


def _reason(error: Exception) -> str:
    if not isinstance(error, UnreadableImage):
        return str(error)
    more = "; raise --max-megapixels" if error.reason.endswith("million pixels") else ""
    return f"{error.reason}{more}"
