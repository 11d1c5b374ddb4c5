"""A probe's plugin at work: on one block's features or the best of several, with all labels or draws of a few."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from dsdmae_cli import plugins
from dsdmae_cli.evaluation.metrics import Scores, score, spread
from dsdmae_cli.evaluation.probe_data import Truth, Unlabelled, drawn
from dsdmae_cli.evaluation.probes import ProbeData, ProbeResult, best_of
from dsdmae_cli.evaluation.split import few_shot, require_held_out
from dsdmae_cli.report import Report, number_of
from dsdmae_cli.settings.judge import ProbeSection


def fit(settings: ProbeSection, data: ProbeData) -> ProbeResult:
    """What the probe's plugin finds."""
    return plugins.made_by(plugins.find("probe", settings.kind).spec.build, ProbeResult, settings, data)


@dataclass(frozen=True)
class Best:
    """The block that was chosen, by name, what its probe found, and held-out accuracy by block (empty: no choice)."""

    block: str
    found: ProbeResult
    held_out: dict[str, float]

    def best_held_out(self) -> float | None:
        """The held-out accuracy of what was chosen; None where nothing was."""
        return max(self.held_out.values() or self.found.held_out.values(), default=None)


def fit_best(settings: ProbeSection, tried: dict[str, ProbeData]) -> Best:
    """What the probe finds in the features of one block; of several, in those that are best on held-out images.

    Raises:
        DataError: there is a block to choose and no held-out image to choose it on.
    """
    if len(tried) == 1:
        [(block, data)] = tried.items()
        return Best(block, fit(settings, data), {})
    require_held_out(next(iter(tried.values())).split, "block", range(len(tried)))
    found = {block: fit(settings, data) for block, data in tried.items()}
    held_out = {
        block: max(found[block].held_out.values()) if found[block].held_out else held_out_accuracy(settings, data)
        for block, data in tried.items()
    }
    block = best_of(held_out)
    words = (
        f"{found[block].protocol}; features after block {block}, chosen from {len(tried)} by the same held-out images"
    )
    return Best(block, replace(found[block], protocol=words), held_out)


def held_out_accuracy(settings: ProbeSection, data: ProbeData) -> float:
    """Of a probe that has nothing to choose itself, fitted to the fitting part."""
    held = torch.from_numpy(data.split.held)
    part = replace(
        drawn(data, data.split.fit, settings.validation),
        test_features=data.train_features[held],
        test_images=Unlabelled(data.train_images, data.split.held),
    )
    answers = fit(settings, part).logits.argmax(dim=1)
    return float((answers == data.train_labels[held]).double().mean())


def few_labels(
    settings: ProbeSection, tried: dict[str, ProbeData], truth: Truth, seed: int, report: Report
) -> tuple[list[dict[str, Any]], Scores, Best]:
    """Repeated draws for each share, as rows for result.json; scores and answers of the largest share's first draw."""
    rows, shown = [], None
    labels = next(iter(tried.values())).train_labels.numpy()
    for share in sorted(settings.few_shot):
        scores, held_out = [], []
        for number in range(settings.draws):
            chosen = few_shot(labels, share, seed, number)
            parts = {block: drawn(data, chosen, settings.validation) for block, data in tried.items()}
            # With a single image a class there is nothing to choose on.
            held = all(len(part.split.held) for part in parts.values())
            best = fit_best(settings if held else settings.without_choice(), parts)
            held_out.append(best.best_held_out())
            scores.append(score(best.found.logits, truth.labels))
            shown = (scores[-1], best) if number == 0 else shown
        of = spread([s.top1 for s in scores])
        rows.append(
            {"share": share, "images": len(chosen), "draws": len(of.values), "top1": of.mean, "std": of.std,
             "values": list(of.values), "held_out": held_out}
        )  # fmt: skip
        report.note(f"{share:.3g} of the labels ({number_of(len(chosen), 'image')}): {plus_minus(of.mean, of.std)}")
    assert shown is not None
    return rows, *shown


def with_few_labels(protocol: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What result.json has of a probe with few labels, whose other scores are of one draw of the most; else nothing."""
    if not rows:
        return {}
    row = rows[-1]
    of = f"{100 * row['share']:.3g}% of the labels, the first of {number_of(row['draws'], 'draw')}"
    return {"few_shot": rows, "train_images": row["images"], "protocol": f"{of}: {protocol}"}


def plus_minus(mean: float, std: float | None) -> str:
    """Mean and standard deviation in percent, as text."""
    return f"{mean:.1%}" + (f" ± {std:.1%}" if std is not None else "")
