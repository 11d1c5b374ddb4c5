"""`dsdmae denoise`: pictures in, pictures without their noise out.

Which pictures a command line means is found before (pictures/paths.py), since a mistyped name should cost no second.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from PIL import Image

from dsdmae_cli.data.decode import MAX_PIXELS
from dsdmae_cli.data.values import Ranges
from dsdmae_cli.errors import DataError
from dsdmae_cli.pictures import picture as pictures
from dsdmae_cli.pictures.contact_sheet import Panel, draw, with_magnified
from dsdmae_cli.pictures.depths import brought_back, left_out, limits_of, limits_of_all, range_of, seen
from dsdmae_cli.pictures.each import Made, check_free, each
from dsdmae_cli.pictures.engines import Wanted, open_restorer
from dsdmae_cli.pictures.outcome import Done, Outcome, Scores
from dsdmae_cli.pictures.page import RestoredPage
from dsdmae_cli.pictures.paths import Failure, Source, Target, reference_of
from dsdmae_cli.pictures.picture import Picture
from dsdmae_cli.pictures.restore import Restorer
from dsdmae_cli.report.counted import Advance, Counted

if TYPE_CHECKING:
    from dsdmae_cli.pictures.corrupting import Corruption


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
        page: a folder, of all results, that gets a page of them.
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
    page: Path | None = None
    limits: Ranges | Literal["auto", "batch"] | None = "auto"
    max_pixels: int = MAX_PIXELS
    quiet: bool = False


def denoise(sources: list[Source], targets: list[Target], failed: list[Failure], options: Options) -> Outcome:
    """Denoise pictures one after the other; what goes wrong with one is noted and the next one taken.

    Args:
        targets: one for each source.
        failed: what failed before.

    Raises:
        CheckpointError, SettingsError: there is no denoiser, no such device.
        RunFailed: the sheet has no place that can be written to.
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
    if options.limits == "batch":
        options = replace(options, limits=limits_of_all(sources, options.max_pixels))
    about = {
        "weights": {"origin": network.origin, "sha256": network.sha256},
        "engine": network.engine,
        "passes": options.passes,
    }
    outcome = Outcome(about, "denoised", failed=list(failed))
    page = RestoredPage(options.page, report.warn)

    def make(number: int) -> Made:
        made = _one(sources[number], targets[number], restorer, options, report)
        assert isinstance(made.record, Done)
        page.add(made.record, made.panels)
        return made

    size = "; raise --max-megapixels"
    each(sources, make, outcome, report, device=network.device, sheet=options.sheet, advice_on_size=size)
    outcome.seconds = time.monotonic() - began
    page.write(outcome)
    return outcome


class _Page(NamedTuple):
    """What comes of a page: what to write, what to say of it, and its row of the sheet."""

    made: Picture | Image.Image
    done: Done
    panels: list[Panel]


def _one(source: Source, target: Target, restorer: Restorer, options: Options, report: Counted) -> Made:
    """Read, restore and compare a picture, or every page of a stack."""
    pages = pictures.read_pages(source.content(), str(source), options.max_pixels)
    file = target.file(pages[0])
    if file is not None:
        check_free(file, force=options.force)
        if not options.corrupt:
            pictures.check_format(pages[0], file.suffix.lower())
    if len(pages) > 1 and (options.corrupt or options.reference):
        raise DataError(f"a stack of {len(pages)} pages is compared with nothing; leave --reference and --corrupt out")
    limits = limits_of(pages) if options.limits == "auto" else options.limits
    assert limits != "batch"
    parts = [report.part(number, len(pages)) for number in range(len(pages))]
    results = [_page(source, page, limits, restorer, options, part) for page, part in zip(pages, parts, strict=True)]
    first = results[0]
    done = replace(
        first.done,
        output=file,
        noise_level=float(np.sqrt(np.mean([one.done.noise_level**2 for one in results]))),
        found=next((one.done.found for one in results if one.done.found), ""),
        strength=float(np.mean([one.done.strength for one in results])),
        changed=any(one.done.changed for one in results),
    )
    made = first.made if isinstance(first.made, Image.Image) else [one.made for one in results]
    rows = with_magnified(first.panels) if options.sheet is not None else []
    return Made([(made, file)], done, rows, first.panels)  # type: ignore[list-item]


def _page(
    source: Source, page: Picture, limits: Ranges | None, restorer: Restorer, options: Options, advance: Advance
) -> _Page:
    """A picture as the network sees it, from black to white, is compared and shown; what was changed goes back."""
    asked, limits = limits, range_of(page, limits)
    given = page if limits is None else seen(page, limits)
    original, noisy, strength = _original(source, page, given, limits, options), given, options.strength
    if options.corrupt:
        from dsdmae_cli.pictures.corrupting import corrupted

        noisy = corrupted(given, options.corrupt, restorer.network.patch)
        # Noise that was added on purpose is there whatever the estimate says, which goes by the calmest patches.
        strength = 1.0 if strength is None else strength
    result = restorer(noisy, strength, advance, white=True if options.corrupt else None)
    restored = result.picture
    back = restored if limits is None else brought_back(page, given, restored, limits)
    scores = None if original is None else Scores.of(noisy, restored, original, on_purpose=options.corrupt is not None)
    done = Done(
        source=str(source),
        output=None,
        width=page.width,
        height=page.height,
        mode=page.mode,
        depth=page.depth,
        frames=page.frames,
        pages=len(page.pages),
        beside=page.beside,
        limits=None if given is page or asked is None else limits,
        noise_level=result.noise_level,
        found=result.found,
        strength=result.strength,
        changed=not np.array_equal(restored.pixels, noisy.pixels) and not np.array_equal(back.pixels, page.pixels),
        scores=scores,
        left_out=() if limits is None else left_out(page, limits),
        weights=result.network.sha256,
    )
    panels = _panels(noisy, restored, original, scores)
    return _Page(draw([panels]) if options.corrupt else back, done, panels)


def _original(source: Source, page: Picture, given: Picture, limits: Ranges | None, options: Options) -> Picture | None:
    """What the result is compared with: the picture before noise was added, a reference, or nothing."""
    if options.corrupt:
        return given
    if options.reference is None:
        return None
    path = reference_of(source, options.reference)
    original = pictures.read(path, str(path), options.max_pixels)
    if original.shape != page.shape:
        raise DataError(f"its reference {path} is {original.shape}, not {page.shape}")
    return original if limits is None else seen(original, limits, itself=given is page)


def _panels(noisy: Picture, restored: Picture, original: Picture | None, scores: Scores | None) -> list[Panel]:
    if original is None or scores is None:
        return [Panel(noisy, "given"), Panel(restored, "restored")]
    return [
        Panel(noisy, f"noisy  {scores.noisy}"),
        Panel(restored, f"restored  {scores.restored}"),
        Panel(original, "original"),
    ]
