"""What a probe leaves, whatever it judges: what result.json says of its choice, run.json, and its page."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

from dsdmae_cli.config.describe import tables
from dsdmae_cli.config.schema import Loaded
from dsdmae_cli.errors import RunInterrupted, signal_words
from dsdmae_cli.evaluation.dense import DenseResult
from dsdmae_cli.evaluation.probes import ProbeResult
from dsdmae_cli.page.run import Story, write_page
from dsdmae_cli.report import Report
from dsdmae_cli.runs.rundir import PAGE, RESULT, RUN, RunDir, environment
from dsdmae_cli.settings.judge import ProbeSettings
from dsdmae_cli.settings.resolved import ResolvedProbeSettings
from dsdmae_cli.signals import Stopped


def describe_probe(
    run: RunDir,
    loaded: Loaded[ProbeSettings],
    settings: ResolvedProbeSettings,
    report: Report,
    *,
    device: object,
    precision: str,
) -> dict[str, Any]:
    """Write run.json; what it holds."""
    about = environment() | {
        "run": "probe",
        "device": str(device),
        "precision": precision,
        "resolved_settings": tables(settings),
        "sources": loaded.sources,
        "account": dict(report.accounted),
    }
    run.write_json(RUN, about)
    return about


def write_probe_page(
    run: RunDir, loaded: Loaded[ProbeSettings], about: Mapping[str, Any], result: Mapping[str, Any], report: Report
) -> None:
    """The page, when all figures are drawn; where it cannot be written, a warning."""
    with report.spared(f"the page {PAGE}"):
        told = Story(
            run.path, "probe", "done", seconds=result["seconds"], settings=about["resolved_settings"],
            asked=tables(loaded.settings), about=about, result=result, warnings=report.warnings,
        )  # fmt: skip
        write_page(told)


def choice(
    block: str, held_out_by_block: Mapping[str, float], input_noise: float, found: ProbeResult | DenseResult
) -> dict[str, Any]:
    """What result.json says of what was chosen on held-out images.

    Args:
        block: the one whose features were taken.
        held_out_by_block: accuracy, or mean IoU, by block; empty where there was no choice among blocks.
        input_noise: σ of the noise on the images that the encoder saw.
        found: what the probe found in that block.
    """
    return {
        "block": block,
        "held_out_by_block": held_out_by_block,
        "input_noise": input_noise,
        "epochs": found.epochs,
        "chosen": dict([found.chosen]) if found.chosen else None,
        "held_out": {f"{value:g}": score for value, score in found.held_out.items()},
    }


def after_result(ended: BaseException, run: RunDir) -> RunInterrupted | None:
    """What is said of a probe that a signal stopped when its result was written; None of any other end."""
    if not isinstance(ended, KeyboardInterrupt) or not (run.path / RESULT).exists():
        return None
    number = Stopped.by or int(signal.SIGINT)
    return RunInterrupted(
        f"stopped by {signal_words(number)} when its result was written, in {run.path}; figures and the page may be"
        " missing",
        number,
    )
