"""The closing sentences of a pre-training run: is it better than untrained, by how much, and what to try."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dsdmae_cli.report import number_of
from dsdmae_cli.report.lines import in_directions

# Neighbours that vote in the k-NN score which a run has on the way and at its end; a k-NN probe chooses among several.
NEIGHBOURS = 20
# What to do with masks, where there are no classes of images.
BY_MASKS = (
    "dsdmae probe RUN --kind segment judges by them (beside it: dsdmae probe scratch --like RUN --kind segment), and"
    " dsdmae finetune RUN --task segment learns from them"
)
# Of a normal distribution: 95% lie within so many standard deviations.
_WIDE = 1.96


DIVERGED = (
    "The features are not finite at the end: the run diverged, and its weights are worth nothing. Try a lower --lr,"
    " --set optim.clip_grad=1, or --precision bf16 or fp32."
)


def closing_words(
    records: Sequence[Mapping[str, float]],
    num_queries: int,
    before: str = "untrained",
    labels: str | None = None,
) -> str:
    """What the features came to, for people; empty where nothing was measured.

    Args:
        records: of the metrics, in order; those with "knn" (accuracy from 0 to 1) or "rank" are looked at, the first
            of them being of the network as it began.
        num_queries: test images behind a k-NN score. Two scores of n images are told apart by Agresti and Caffo's
            interval (2000): 1.96 √((p(1-p) + q(1-q))/(n + 2)) with one right and one wrong answer added to each, which
            holds for a handful of images too; since both are of the same images, that is on the safe side.
        before: what the network was as it began.
        labels: "classes" or "masks" of training images; masks judge, classes only where held-out images have them too.
    """
    ranks = [r["rank"] for r in records if "rank" in r]
    scores = [(r["epoch"], r["knn"]) for r in records if "knn" in r]
    if any(not math.isfinite(knn) for _, knn in scores):
        return ""
    if scores and scores[0][0] == 0 and len(scores) > 1 and num_queries:
        return _with_labels(scores, num_queries).replace("untrained", before)
    if scores or not ranks:
        return ""
    was = f" ({ranks[0]:.0f} {before})" if len(ranks) > 1 else ""
    found = f"the features vary in {in_directions(ranks[-1])}{was}"
    if labels == "masks":
        return f"The masks can say whether this is better than {before}; {found}. {BY_MASKS}."
    if labels == "classes":
        return (
            f"No held-out image has a label that could say whether this is better than {before}; {found}. A table of"
            " labels for them too tells: dsdmae probe RUN --labels FILE.csv. Without it: dsdmae embed RUN --out"
            " NAME.npz."
        )
    return (
        f"Without labels nobody can say whether this is better than {before}: {found}. A few hundred labelled images"
        " tell: dsdmae worth RUN --dataset folder:LABELLED, or dsdmae probe RUN --labels FILE.csv. Without any: dsdmae"
        " embed RUN --out NAME.npz."
    )


def last_words(result: Mapping[str, Any], name: str) -> list[str]:
    """The last lines for people: what the features came to, and a command to type next.

    Args:
        result: result.json of a pre-training run.
        name: what commands may call the run.
    """
    said = str(result["closing"])
    judged = result["labels"] == "classes" and result["knn_accuracy"] is not None  # else no held-out image has one
    after = [f"go on with     dsdmae probe {name}"] if said and judged else []
    return [*([said.replace("RUN", name)] if said else []), *after]


def _with_labels(scores: list[tuple[float, float]], n: int) -> str:
    (_, before), (_, after) = scores[0], scores[-1]
    gain, margin = after - before, _margin(before, after, n)
    measured = f"k-NN {after:.1%}, untrained {before:.1%}"
    # Of a handful of images the interval of the difference is wider than differences can be.
    open_ = f"{min(100 * margin, 100.0):.1f} points are what {_images(n)} leave{'s' if n == 1 else ''} open"
    if gain > margin:
        return f"Better than untrained by {100 * gain:.1f} points ({measured}; {open_}). {_further(scores, n)}".rstrip()
    if gain < -margin:
        lowest = min(scores[1:], key=lambda score: score[1])
        if after - lowest[1] > _margin(lowest[1], after, n) / 2:
            return (
                f"Worse than untrained by {-100 * gain:.1f} points ({measured}), and rising since epoch {lowest[0]:.4g}"
                f" ({lowest[1]:.1%}): too early. Networks learn to blur first; give it more --epochs."
            )
        return (
            f"Worse than untrained by {-100 * gain:.1f} points ({measured}), and not rising. Try a lower --lr, more"
            " --epochs, smaller patches, or another --method; docs/which-method.md says which for what."
        )
    further = _further(scores, n)
    early = "Too early to say" if further else "No difference that these images show"
    return f"{early}: {measured}, and {open_}. {further or 'Try more --epochs.'} dsdmae worth RUN asks more closely."


def _further(scores: list[tuple[float, float]], n: int) -> str:
    """Whether it was still getting better, by more over the last third of the run than half of what n images leave open
    and a tenth of what it had gained."""
    end, after = scores[-1]
    earlier = [knn for epoch, knn in scores if epoch <= end * 2 / 3]
    gained = after - earlier[-1]
    enough = max(_margin(earlier[-1], after, n) / 2, 0.1 * abs(after - scores[0][1]))
    return "It was still rising: more --epochs may pay." if gained > enough else ""


def _margin(p: float, q: float, n: int) -> float:
    """Beyond which the scores p and q of n images differ; the added answers shrink a difference by n / (n + 2)."""
    p, q = ((share * n + 1) / (n + 2) for share in (p, q))
    return _WIDE * math.sqrt((p * (1 - p) + q * (1 - q)) / (n + 2)) * (n + 2) / n


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95% interval of an accuracy of n images (Wilson 1927), which has a width at 0 and 1 and for a handful too."""
    z = _WIDE**2 / n
    middle, half = (share + z / 2) / (1 + z), math.sqrt(share * (1 - share) * z + z * z / 4) / (1 + z)
    return max(0.0, middle - half), min(1.0, middle + half)


def diverged(records: Sequence[Mapping[str, float]], steps: int) -> bool:
    """Whether features were looked at on the way, and not after the last of so many steps, as they were not finite:
    what was found before is of another network than the one that is left."""
    looked = [record["step"] for record in records if "knn" in record or "rank" in record]
    return bool(looked) and looked[-1] < steps


def knn_entries(
    records: Sequence[Mapping[str, float]], num_queries: int, began_with_weights: bool, *, lost: bool = False
) -> dict[str, Any]:
    """Entries of result.json about k-NN: the last score, how far it can be trusted, and that of the first weights.

    Args:
        records: the lines of metrics.jsonl.
        began_with_weights: whether those were somebody's, and not random ones.
        lost: the run has `diverged`, and so has no last score.
    """
    scores = [record for record in records if "knn" in record]
    first = scores[0]["knn"] if scores and scores[0]["step"] == 0 else None
    scores = [] if lost else scores
    known = bool(scores and num_queries and math.isfinite(scores[-1]["knn"]))
    interval = wilson_interval(scores[-1]["knn"], num_queries) if known else None
    return {
        "knn_accuracy": scores[-1]["knn"] if scores else None,
        "knn_interval": None if interval is None else list(interval),
        "knn_images": num_queries or None,
        "knn_accuracy_untrained": None if began_with_weights else first,
        "knn_accuracy_start": first if began_with_weights else None,
    }


def _images(number: int) -> str:
    return number_of(number, "test image")


def open_words(result: Mapping[str, Any]) -> str:
    """The same for people; empty where it is not known."""
    if result["knn_interval"] is None:
        return ""
    low, high = result["knn_interval"]
    return f", of {_images(result['knn_images'])} (95% interval {low:.0%} to {high:.0%})"
