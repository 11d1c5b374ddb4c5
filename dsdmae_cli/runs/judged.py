"""What a probe leaves, whatever it judges: what result.json says of its choice, run.json, and its page."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsdmae_cli.config.describe import tables
from dsdmae_cli.config.schema import Loaded
from dsdmae_cli.errors import RunInterrupted, signal_words
from dsdmae_cli.evaluation.dense import DenseResult
from dsdmae_cli.evaluation.judging import twins_line
from dsdmae_cli.evaluation.probes import ProbeResult
from dsdmae_cli.page.run import Story, write_page
from dsdmae_cli.report import Report, duration
from dsdmae_cli.runs.environment import environment
from dsdmae_cli.runs.rundir import PAGE, RESULT, RUN, SETTINGS, RunDir
from dsdmae_cli.settings.judge import PIXELS, SCRATCH, ProbeSettings
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


def closing_lines(result: dict[str, Any]) -> list[str]:
    """The last lines of a probe's summary: the block where one was chosen, twins, protocol, figures, time."""
    lines = []
    if result["held_out_by_block"]:
        shares = (f"{block}: {share:.1%}" for block, share in result["held_out_by_block"].items())
        lines.append(f"block          {result['block']} (held out: {', '.join(shares)})")
    return [
        *lines,
        *twins_line(result),
        f"protocol       {result['protocol']}",
        f"time           {duration(result['seconds'])}",
        *untrained_line(result),
    ]


def untrained_line(result: dict[str, Any]) -> list[str]:
    """The line of a summary with the command that judges the same network untrained: a figure by itself says little."""
    if result["method"] in (SCRATCH, PIXELS):
        return []
    # Its settings, so that nothing else differs: epochs, labels, blocks, preset.
    words = [result["kind"], SCRATCH, "--like", result["start"], "--config", str(Path(result["run"]) / SETTINGS)]
    if str(result.get("subject")).endswith("(teacher)"):  # which a network without a run has not
        words += ["--set", "probe.teacher=false"]
    if result["kind"] == "finetune":  # lower rates for lower blocks are for blocks that have learned something
        words += ["--layer-decay", "1"]
    return [f"untrained      dsdmae {shlex.join(words)}"]
