"""`dsdmae probe`: what a frozen backbone's features are worth, in figures that can be compared and published.

What is fitted to the features is a plugin's (dsdmae_cli.evaluation.probes says what one is); here is what all of them
share: opening, features, few labels, scores, and what is left.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsdmae_cli import plugins
from dsdmae_cli.artifacts.open import open_encoder
from dsdmae_cli.artifacts.opened import Opened
from dsdmae_cli.artifacts.subject import parse
from dsdmae_cli.backbone import Backbone
from dsdmae_cli.config.describe import tables
from dsdmae_cli.config.resolve import resolve
from dsdmae_cli.config.schema import Loaded
from dsdmae_cli.evaluation.features import check_pools
from dsdmae_cli.evaluation.fitting import Best, few_labels, fit_best, plus_minus, with_few_labels
from dsdmae_cli.evaluation.inner import candidates, seen_in_words
from dsdmae_cli.evaluation.judging import LabelledSplits, base_result, draw, open_labelled, warn_of_twins
from dsdmae_cli.evaluation.metrics import Scores, score
from dsdmae_cli.evaluation.probe_data import gather
from dsdmae_cli.evaluation.probes import ProbeResult
from dsdmae_cli.figures import scores as figures
from dsdmae_cli.page.words import more_lines, page_line
from dsdmae_cli.report import Report, make_report, number_of
from dsdmae_cli.runs.judged import after_result, choice, closing_lines, describe_probe, write_probe_page
from dsdmae_cli.runs.observers.trackers import Told, check_usable
from dsdmae_cli.runs.rundir import RESULT, RunDir, default_path
from dsdmae_cli.runtime import choose_device, choose_precision
from dsdmae_cli.segmentation import probing
from dsdmae_cli.settings.judge import ProbeSettings
from dsdmae_cli.settings.resolved import ResolvedProbeSettings
from dsdmae_cli.settings.size import size_words
from dsdmae_cli.work import encoder_flops


@dataclass(frozen=True)
class Subject:
    """An encoder and the data that it is judged by."""

    settings: ResolvedProbeSettings
    report: Report
    device: torch.device
    precision: str
    judged: LabelledSplits
    opened: Opened
    began: float = field(default_factory=time.monotonic)


def probe(
    loaded: Loaded[ProbeSettings], *, out: Path | None, as_json: bool = False, report: Report | None = None
) -> dict[str, Any]:
    """Judge a frozen encoder and leave result.json and figures.

    Args:
        out: a new or empty directory; None = one of its own under the user's data directory.

    Returns:
        What result.json holds.
    """
    report = report or make_report(as_json=as_json, main_process=True)
    settings = resolve(loaded.settings)
    path = out or default_path(datetime.now(), f"probe-{settings.probe.kind}", settings.backbone.name, settings.data)
    run = RunDir(path)
    run.clear_probe()
    run.check_free()
    told, result = Told(settings.train.trackers, report), None
    try:
        check_usable(settings.train.trackers)
        # Opened before a directory is made: most mistakes are found there.
        judging = (
            partial(probing.judge, probing.open_subject(settings, report), run, loaded)
            if is_dense(settings)
            else partial(judge, open_subject(settings, report), run, loaded)
        )
        run.create(loaded.settings)
        told.begin(path, "probe", tables(settings))
        result = judging()
        for file in sorted(run.figures.glob("*.png")):
            told.picture(file, 0)
        return result
    except BaseException as ended:  # Ctrl-C too: nothing was found, so nothing should be in the way of another try
        run.take_back(made=out is None)
        if (stopped := after_result(ended, run)) is not None:
            raise stopped from ended
        raise
    finally:
        told.close(result)
        run.release()


def is_dense(settings: ResolvedProbeSettings) -> bool:
    """Whether the probe labels pixels; its story is segmentation/probing.py."""
    return bool(plugins.find("probe", settings.probe.kind).spec.dense)


def open_subject(settings: ResolvedProbeSettings, report: Report) -> Subject:
    """What is judged and by which images; nothing is computed."""
    device = choose_device(settings.train.device)
    judged = open_labelled(settings.data)
    report.account(judged.account(settings.data).rows())
    opened = open_encoder(
        parse(settings.probe.start), settings.data, backbone=settings.backbone, image_size=settings.data.image_size,
        seed=settings.train.seed, teacher=settings.probe.teacher,
    )  # fmt: skip
    for note in (*judged.notes, *opened.notes):
        report.note(note)
    warn_of_twins(judged.twins, report)
    check_pools(opened.encoder, [settings.probe.pool])
    candidates(opened.encoder, settings.probe.blocks, settings.probe.input_noise)
    return Subject(settings, report, device, choose_precision(settings.train.precision, device), judged, opened)


def judge(subject: Subject, run: RunDir, loaded: Loaded[ProbeSettings]) -> dict[str, Any]:
    """Features, the probe, its scores, and all that is left in the run's directory."""
    settings, judged = subject.settings, subject.judged
    subject.report.note(
        f"{settings.probe.kind} probe of {subject.opened.name} on {settings.data.dataset}: {len(judged.train):,}"
        f" training and {number_of(len(judged.test), 'test image')} on {subject.device} in {subject.precision}"
    )
    subject.opened.encoder.to(subject.device).eval().requires_grad_(False)
    encoders = candidates(subject.opened.encoder, settings.probe.blocks, settings.probe.input_noise)
    tried, truth = gather(encoders, judged, settings, subject.device, subject.precision, subject.report)
    rows: list[dict[str, Any]] = []
    if settings.probe.few_shot:
        rows, scores, best = few_labels(settings.probe, tried, truth, settings.train.seed, subject.report)
    else:
        best = fit_best(settings.probe, tried)
        scores = score(best.found.logits, truth.labels)
    words = seen_in_words(settings.probe.blocks, settings.probe.input_noise)
    best = replace(best, found=replace(best.found, protocol=best.found.protocol + words))
    found, data = best.found, tried[best.block]
    for note in found.notes:
        subject.report.warn(note)
    result = describe(subject, run, best, data.encoder, scores) | with_few_labels(found.protocol, rows)
    about = describe_probe(run, loaded, settings, subject.report, device=subject.device, precision=subject.precision)
    run.write_json(RESULT, result)
    draw(
        run.figures, judged, scores, found.logits, truth.labels, truth.indices, data.test_features, settings.data,
        subject.report,
    )  # fmt: skip
    with subject.report.spared("the picture of what was chosen"):
        draw_choice(run, found)
    write_probe_page(run, loaded, about, result, subject.report)
    return result


def describe(subject: Subject, run: RunDir, best: Best, encoder: Backbone, scores: Scores) -> dict[str, Any]:
    """What result.json holds.

    Args:
        encoder: as it was probed.
    """
    settings, judged, found = subject.settings, subject.judged, best.found
    return {
        "run": str(run.path),
        **base_result("probe", found.protocol, subject.opened.described(), settings, judged, scores),
        "probe": settings.probe.kind,
        "pool": settings.probe.pool,
        **choice(best.block, best.held_out, settings.probe.input_noise, found),
        "features_width": encoder.width,
        "flops": encoder_flops(encoder) * (len(judged.train) + len(judged.test)),
        "seconds": round(time.monotonic() - subject.began, 1),
        "notes": list(found.notes),
        "figures": str(run.figures),
    }


def draw_choice(run: RunDir, found: ProbeResult) -> None:
    """Figures of the choice on held-out images, where there was one."""
    if found.chosen is None or len(found.held_out) < 2:
        return
    name, value = found.chosen
    figures.selection(found.held_out, value, name, run.figures / "choice.png")
    if found.curves is not None:
        names = [f"{tried:g}" for tried in found.curves.values]
        chosen = int(np.argmin([abs(tried - value) for tried in found.curves.values]))
        figures.head_curves(found.curves.loss, found.curves.held_out, names, chosen, run.figures / "curves.png")


def plan_text(settings: ResolvedProbeSettings) -> tuple[dict[str, Any], str]:
    """--dry-run: what resolved settings amount to, as an object and as lines; nothing is computed or written."""
    check_usable(settings.train.trackers)
    if is_dense(settings):
        return probing.plan_text(settings)
    subject = open_subject(settings, Report())
    judged = subject.judged
    # Of several blocks to choose from the last, which is most work.
    *_, encoder = candidates(subject.opened.encoder, settings.probe.blocks, settings.probe.input_noise).values()
    flop = encoder_flops(encoder)
    plan: dict[str, Any] = {
        "subject": subject.opened.name,
        "kind": settings.probe.kind,
        "dataset": settings.data.dataset,
        "train_images": len(judged.train),
        "test_images": len(judged.test),
        "classes": len(judged.classes),
        "image_size": encoder.image_size,
        "width": encoder.width,
        "gflop_per_image": flop / 1e9,
        "device": str(subject.device),
        "precision": subject.precision,
        "account": judged.planned(settings.data),
    }
    text = "\n".join(f"{name:<10}{words}" for name, words in plan["account"].items()) + (
        f"\n{plan['kind']} probe of {plan['subject']} on {plan['dataset']}: {len(judged.train)} training and"
        f" {number_of(len(judged.test), 'test image')} of {len(judged.classes)} classes\n"
        f"{encoder.width} features of {size_words(encoder.image_size)} px, {flop / 1e9:.3g} GFLOP an image, on"
        f" {subject.device} in {subject.precision}"
    )
    return plan, text


def summary(result: dict[str, Any]) -> str:
    """The lines for people."""
    if "mean_iou" in result:
        return probing.summary(result)
    low, high = result["top1_interval"]
    lines = [
        f"{result['subject']} on {result['dataset']}, {result['probe']} probe",
        f"top-1          {result['top1']:.1%} (95% interval over test images {low:.1%} to {high:.1%})",
        *more_lines(result),
    ]
    if "few_shot" in result:
        lines = [lines[0]] + [
            f"{row['share']:<14.3g} {plus_minus(row['top1'], row['std'])} over {number_of(row['draws'], 'draw')} of"
            f" {number_of(row['images'], 'image')}"
            for row in result["few_shot"]
        ]
    return "\n".join([*lines, *closing_lines(result), *page_line(Path(result["figures"]).parent)])
