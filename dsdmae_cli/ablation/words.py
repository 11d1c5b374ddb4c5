"""What is said of a study: which setting is best, whether that is more than noise, and what a reader must know."""

from __future__ import annotations

from dsdmae_cli.ablation.definition import Metric
from dsdmae_cli.ablation.plans import FAR_BEYOND
from dsdmae_cli.ablation.results import Results
from dsdmae_cli.ablation.sweep import describe
from dsdmae_cli.evaluation.statistics import Summary, summarise
from dsdmae_cli.report import number_of


def verdict(results: Results) -> str:
    """The best setting, and what may be said of it."""
    if not results.ranked:
        return "No run is done yet." if results.unfinished else "No run came to a value."
    if results.unfinished:
        done = sum(row.state == "done" for row in results.rows)
        return f"So far, with {done} of {number_of(results.total, 'run')} done. {_verdict(results)}"
    return _verdict(results)


def _verdict(results: Results) -> str:
    if results.incomparable:
        return (
            f"No verdict: the pre-training loss of one {' and '.join(results.incomparable)} is not that of another, so"
            " that a lower one is not better. Judge by --metric knn, or by a probe."
        )
    best, metric = results.ranked[0], results.definition.metric
    value = f"{metric.label} {interval(best.summary, metric)}"
    if len(results.first) > 1:
        *names, last = [describe(one.point) for one in results.first]
        if results.is_uneven:
            shared = [best.by_seed[seed] for seed in sorted(results.shared_seeds)]
            value = f"{metric.label} {interval(summarise(shared), metric)} over the seeds that all settings have"
        return f"No best: {', '.join(names)} and {last} came out equal, {value}."
    text = f"Best: {describe(best.point)}, {value}"
    if results.contrast is None:
        return f"{text}."
    other, c = results.ranked[1], results.contrast
    if other.is_pruned:
        return f"{text}. Runs of the next, {describe(other.point)}, were pruned: others were better."
    gap = f"{100 * c.difference:.2f} points" if metric.is_share else f"{c.difference:.4f}"
    text += f". The next, {describe(other.point)}, is {gap} worse"
    if results.is_uneven:
        text += f" over the seed{'s' * (c.seeds > 1)} that all settings have ({_seeds(results)})"
    if c.p is None and c.seeds > 1:
        return f"{text}, the very same in each of {c.seeds} seeds, so that their noise cannot be told (--seeds 5)."
    if c.p is None:
        return f"{text}; without two seeds of both nothing can be said of the noise between runs (--seeds 3)."
    said = "larger" if c.larger_than_noise else "not larger"
    text += f": {said} than the noise between seeds (t-test paired by seed, p = {c.p:.2g})."
    if c.larger_than_noise and len(results.ranked) > 2:
        text += (
            f" The best was picked from {number_of(len(results.ranked), 'setting')} after the fact, so p flatters it."
        )
    return text


def caveats(results: Results) -> list[str]:
    """What a reader must know before quoting the figures."""
    metric = results.definition.metric
    found = []
    if any(setting.summary is not None and setting.summary.half is not None for setting in results.settings):
        found.append(
            "± is the 95% interval of the mean over seeds (Student's t); it says nothing of other test images."
        )
    costs = "Epochs, work" if results.definition.equal == "compute" else "Work"
    found.append(f"{costs} and time are those of pre-training, for one run.")
    if results.definition.equal == "compute":
        found.append(_equal_compute(results))
    found += [f"{said}." for said in results.definition.said_of_twins()]
    for group in results.alike:
        *names, last = [describe(s.point) for s in group]
        found.append(
            f"{', '.join(names)} and {last} gave the same runs to the last digit: here they are one setting, as"
            " where a share of few patches is rounded to whole ones."
        )
    if metric.name == "loss":
        found.append(
            "The loss is the training loss of the last logged steps; of what features are worth it says nothing."
        )
    if any(row.state == "pruned" for row in results.rows):
        watched = "training loss" if metric.name == "loss" else "k-NN accuracy"
        found.append(
            f"Pruned runs were stopped where their best {watched} so far was worse than the median of the finished"
            " runs at the same share of the run."
        )
    if results.is_uneven:
        found.append(
            f"Not all settings have all seeds: they are ranked and compared by those that all have"
            f" ({_seeds(results)}); means are over the runs that each has."
        )
    if metric.name != "loss" and results.definition.search == "grid" and len(results.ranked) > 1:
        found.append(
            "The best is chosen by the very images that its value is of: with many settings that value is a little"
            " optimistic."
        )
    if results.definition.search != "grid":
        found.append(
            f"Settings were drawn by {results.definition.search}, guided by the very values reported: the best one's"
            " value is optimistic. Repeat it with fresh seeds before quoting it."
        )
    if results.unfinished:
        found.append(
            f"{results.unfinished} of {number_of(len(results.rows), 'trial')}"
            f" {'is' if results.unfinished == 1 else 'are'} not done; the same command goes on."
        )
    return found


def _equal_compute(results: Results) -> str:
    common = results.definition.common()
    text = (
        f"Equal compute: every setting was given the epochs whose pre-training work, counted in FLOP, comes nearest"
        f" to that of the shared settings ({common.method.name}, {number_of(common.train.epochs, 'epoch')})."
    )
    shares = [share for s in results.settings if (share := s.gflop_to_budget) is not None]
    if shares:
        text += f" Since epochs are whole, it is {min(shares):.2f} to {max(shares):.2f} of that."
    beyond = [describe(s.point) for s in results.settings if (s.gflop_to_budget or 0) > FAR_BEYOND]
    if beyond:
        text += f" Not at equal compute, since a single epoch takes more: {', '.join(beyond)}."
    return f"{text} Neither the metric nor what a method needs trained beforehand is in it."


def _seeds(results: Results) -> str:
    return ", ".join(map(str, sorted(results.shared_seeds)))


def interval(s: Summary | None, metric: Metric) -> str:
    """ "88.30% ± 1.20 (3 runs)", "88.30% (one run)", "-" of none."""
    if s is None:
        return "-"
    if s.half is None:
        return f"{metric.show(s.mean)} (one run)"
    half = f"{100 * s.half:.2f}" if metric.is_share else f"{s.half:.4f}"
    return f"{metric.show(s.mean)} ± {half} ({number_of(s.count, 'run')})"


def flop(gflop: float) -> str:
    """12.3 TFLOP, 4.56 PFLOP."""
    for unit, size in (("EFLOP", 1e9), ("PFLOP", 1e6), ("TFLOP", 1e3)):
        if gflop >= size:
            return f"{gflop / size:.3g} {unit}"
    return f"{gflop:.3g} GFLOP"
