"""What a probe leaves beside its result: run.json and its page, whatever it judges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsdmae_cli.config.describe import tables
from dsdmae_cli.config.schema import Loaded
from dsdmae_cli.page.run import Story, write_page
from dsdmae_cli.report import Report
from dsdmae_cli.runs.rundir import PAGE, RUN, RunDir, environment
from dsdmae_cli.settings.judge import ProbeSettings
from dsdmae_cli.settings.resolved import ResolvedProbeSettings


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
