"""`dsdmae restore`: pictures as a run's method corrupts them, and as it restores them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dsdmae_cli.artifacts.trained_method import open_method
from dsdmae_cli.data.values import Ranges
from dsdmae_cli.pictures.by_method import MethodAtWork, Restored, how_its_data, read_as_data, row_of
from dsdmae_cli.pictures.each import Made, check_free, each
from dsdmae_cli.pictures.outcome import Changed, Outcome
from dsdmae_cli.pictures.paths import Failure, Source, Target
from dsdmae_cli.report.counted import Counted
from dsdmae_cli.runtime import choose_device, choose_precision
from dsdmae_cli.settings.size import as_size


@dataclass(frozen=True)
class Options:
    """What a person asked for.

    Attributes:
        flags: settings of the method in place of the run's: {"method.mask_ratio": "0.5"}.
        sheet: the file that shows all pictures; None = none.
        limits: values that are black and white in pictures of more than 8 bits; "auto" = the run's, else each picture's
            own; None = what the format says.
    """

    flags: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    sheet: Path | None = None
    force: bool = False
    limits: Ranges | Literal["auto"] | None = "auto"
    quiet: bool = False


def restore(
    run: Path, sources: list[Source], targets: dict[str, list[Target]], failed: list[Failure], options: Options
) -> Outcome:
    """Restore pictures one after the other; what goes wrong with one is noted and the next one taken.

    Args:
        targets: for each of corrupted, restored, original where these go to files; empty where they do not.
        failed: what failed before.

    Raises:
        CheckpointError: the run has no weights.
        SettingsError: its method restores no pixels, or does not take what was given.
        RunFailed, RunInterrupted: see pictures/each.py.
    """
    began = time.monotonic()
    report = Counted("restoring", len(sources), quiet=options.quiet)
    trained, where = open_method(run, options.flags), choose_device(options.device)
    work = MethodAtWork(trained, where, choose_precision(options.precision, where), options.seed)
    work.check()
    for complaint in trained.complaints:
        report.warn(complaint)
    about = {
        "run": str(run),
        "method": trained.settings.method.name,
        "step": trained.step,
        "weights_sha256": trained.sha256,
        "given": {setting.partition(".")[2]: value for setting, value in options.flags.items()},
        "seed": options.seed,
    }
    outcome = Outcome(about, "restored", failed=list(failed))
    how = how_its_data(trained.settings.data, options.limits)

    def make(number: int) -> Made:
        files = {part: of[number].named(".png") for part, of in targets.items()}
        for file in files.values():
            check_free(file, force=options.force)
        rgb, pages = read_as_data(sources[number], how, own=options.limits == "auto")
        shown = work(rgb)
        scores = Changed.of(*(picture.pixels for picture in shown))
        size = rgb.shape[1], rgb.shape[0]
        side = as_size(shown.original.height, shown.original.width)
        record = Restored(str(sources[number]), files, *size, side, scores, pages)
        rows = [row_of(rgb, shown, scores)] if options.sheet is not None else []
        return Made([([getattr(shown, part)], file) for part, file in files.items()], record, rows)

    each(sources, make, outcome, report, device=str(where), sheet=options.sheet)
    if outcome.sheet is not None:
        report.note(str(outcome.sheet), to_stdout=True)
    outcome.seconds = time.monotonic() - began
    return outcome
