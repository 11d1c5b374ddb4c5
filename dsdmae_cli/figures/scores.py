"""Pictures of what a classifier does: where it errs, class by class, and how its head was chosen and trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int64, UInt8

from dsdmae_cli.figures.page import blank, plain, save
from dsdmae_cli.report import number_of, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Beyond this many classes there is no room for a number in every cell, or a name at every row.
_MOST_NUMBERED = 20
_MOST_NAMED = 50
# Classes in a scatter that a person can tell apart: tab20's colours.
_MOST_COLOURS = 20
_LONGEST_NAME = 18


def confusion(matrix: Int64[np.ndarray, "c c"], classes: Sequence[str], path: Path, of: str = "image") -> None:
    """Shares of each true class (row) by predicted class (column), in percent; colours by their square root.

    Mistakes are a few percent each, spread over many classes, and would not be seen beside the diagonal otherwise.

    Up to 20 classes have their numbers written in; with more than 50 only every tenth label is named by its number.
    """
    from matplotlib.colors import PowerNorm

    num_classes = len(classes)
    totals = matrix.sum(axis=1, keepdims=True)
    shares = 100 * matrix / np.maximum(totals, 1)
    side = min(
        9.0 if num_classes > _MOST_NAMED else 11.0,
        2.6 + (0.48 if num_classes <= _MOST_NUMBERED else 0.19) * num_classes,
    )
    figure = blank(side + 0.9, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    _class_ticks(axes, classes)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"{np.trace(matrix) / matrix.sum():.1%} of {number_of(matrix.sum(), of)} right", fontsize=11)
    if num_classes <= _MOST_NUMBERED:
        _write_numbers(axes, shares)
    figure.colorbar(image, ax=axes, shrink=0.75, label="% of the true class")
    save(figure, path)


def _class_ticks(axes: Axes, classes: Sequence[str]) -> None:
    num_classes = len(classes)
    if num_classes > _MOST_NAMED:
        ticks = np.arange(0, num_classes, 10 if num_classes <= 200 else 100)
        axes.set_xticks(ticks, ticks)
        axes.set_yticks(ticks, ticks)
        return
    names = [shortened(name) for name in classes]
    size = 9 if num_classes <= _MOST_NUMBERED else 7
    axes.set_xticks(range(num_classes), names, rotation=90 if num_classes > 12 else 45, fontsize=size)
    if num_classes <= 12:
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(num_classes), names, fontsize=size)


def _write_numbers(axes: Axes, shares: Float[np.ndarray, "c c"]) -> None:
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.5:  # zeros are seen best as empty cells
            colour = "white" if share > 35 else "black"
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=colour, fontsize=8)


def per_class(accuracy: Sequence[float | None], classes: Sequence[str], path: Path, what: str = "accuracy") -> None:
    """Accuracy (or `what`) of each class as a bar, best first; up to 50 classes, else the 25 best and the 25 worst."""
    pairs = [(a, name) for a, name in zip(accuracy, classes, strict=True) if a is not None]
    known = sorted(pairs, key=lambda found: -found[0])  # equal ones stay in the order of the classes
    mean = sum(a for a, _ in known) / len(known)
    half = _MOST_NAMED // 2
    drawn = known if len(known) <= _MOST_NAMED else [*known[:half], *known[-half:]]
    figure = blank(6.5, 1.0 + 0.24 * len(drawn))
    axes = figure.subplots()
    rows = np.arange(len(drawn))
    blank_out = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # the dotted line may pass behind a number
    bars = axes.barh(rows, [100 * a for a, _ in drawn], height=0.75, color="#4c78a8")
    axes.bar_label(bars, [f"{100 * a:.1f}" for a, _ in drawn], padding=3, fontsize=8, bbox=blank_out)
    axes.set_yticks(rows, [shortened(name) for _, name in drawn], fontsize=9 if len(drawn) <= 25 else 7)
    axes.axvline(100 * mean, color="black", linewidth=1, linestyle=":")
    # The title is where the rule is explained: a legend would lie on bars.
    left_out = f", {half} best and {half} worst of {len(known)} classes" if len(drawn) < len(known) else ""
    axes.set_title(f"{what} by class, % (dotted: mean {100 * mean:.1f}){left_out}", fontsize=11)
    axes.set_xlim(0, 105)
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    plain(axes)
    axes.grid(False, axis="y")
    save(figure, path)


def selection(held_out: Mapping[float, float], chosen: float, name: str, path: Path, what: str = "accuracy") -> None:
    """Accuracy on held-out training images over the values of a setting, the chosen one marked.

    Args:
        held_out: accuracy by value; values above zero, drawn on a log scale.
        name: of the setting, as the axis says it ("base learning rate").
    """
    values = sorted(held_out)
    figure = blank(5, 3.4)
    axes = figure.subplots()
    axes.plot(values, [100 * held_out[v] for v in values], marker="o", markersize=4, linewidth=1.3)
    axes.plot([chosen], [100 * held_out[chosen]], "o", markersize=10, fillstyle="none", color="#d62728")
    axes.annotate(
        f"{chosen:g}", (chosen, 100 * held_out[chosen]), xytext=(0, 9), textcoords="offset points", ha="center",
        color="#d62728",
    )  # fmt: skip
    axes.margins(y=0.15)
    axes.set(xlabel=name, xscale="log")
    axes.xaxis.set_major_formatter("{x:g}")  # matplotlib's own are formulas, and save() has texts stand for themselves
    axes.set_title(f"{what} on held-out training images, %", fontsize=11)
    plain(axes)
    save(figure, path)


def head_curves(
    loss: Sequence[Sequence[float | None]],
    held_out: Sequence[Sequence[float]],
    names: Sequence[str],
    chosen: int,
    path: Path,
) -> None:
    """Training loss and held-out accuracy of every head by epoch, the chosen one bold.

    Args:
        loss: [epochs][heads]; None once a head has diverged.
        held_out: [epochs][heads] shares; empty draws the loss alone.
        names: of the heads, as the legend says them.
        chosen: index of a head.
    """
    from matplotlib import colormaps

    figure = blank(10 if held_out else 6, 3.6)
    left, *more = figure.subplots(1, 2 if held_out else 1, squeeze=False)[0]
    epochs = range(1, len(loss) + 1)
    colours = colormaps["viridis"](np.linspace(0, 0.92, len(names)))
    for head, (name, colour) in enumerate(zip(names, colours, strict=True)):
        style: dict[str, Any] = (
            {"color": "#d62728", "linewidth": 2, "zorder": 3} if head == chosen else {"color": colour, "linewidth": 1}
        )
        left.plot(epochs, [math.nan if row[head] is None else row[head] for row in loss], label=name, **style)
        for right in more:
            right.plot(epochs, [100 * row[head] for row in held_out], **style)
    # A rate that is too high may pass through losses a hundred times the first; they would flatten all the rest.
    highest = 1.5 * max((value for value in loss[0] if value is not None), default=math.inf)
    left.set(xlabel="epoch")
    left.set_ylim(0, min(left.get_ylim()[1], highest))
    left.set_title("training loss", fontsize=11)
    for right in more:
        right.set(xlabel="epoch")
        right.set_title("accuracy on held-out training images, %", fontsize=11)
    for axes in (left, *more):
        plain(axes)
    if len(names) > 1:
        figure.legend(loc="outside right center", frameon=False, fontsize=8)
    save(figure, path)


def scatter(
    points: Float[np.ndarray, "n 2"], labels: Int64[np.ndarray, " n"], classes: Sequence[str], title: str, path: Path
) -> None:
    """Images as points, coloured by class. With more than 20 classes the 20 most frequent have colours, the rest grey.

    Args:
        title: how the two coordinates were made; axes have no units worth a tick.
    """
    from matplotlib import colormaps

    counts = np.bincount(labels, minlength=len(classes))
    coloured = np.sort(np.argsort(-counts, kind="stable")[: min(_MOST_COLOURS, int((counts > 0).sum()))])
    palette = colormaps["tab10" if len(coloured) <= 10 else "tab20"]
    figure = blank(7.6, 6)
    axes = figure.subplots()
    size = float(np.clip(8000 / len(points), 3, 25))
    rest = ~np.isin(labels, coloured)
    axes.scatter(points[rest, 0], points[rest, 1], s=size, color="#dddddd", linewidths=0)
    # In random order, so that the last class does not lie on top of all others.
    order = np.random.default_rng(0).permutation(np.flatnonzero(~rest))
    colour_of = {label: palette(i) for i, label in enumerate(coloured.tolist())}
    colours = [colour_of[label] for label in labels[order].tolist()]
    axes.scatter(points[order, 0], points[order, 1], s=size, c=colours, linewidths=0, alpha=0.8)
    for label in coloured.tolist():
        axes.scatter([], [], s=30, color=colour_of[label], label=shortened(classes[label]))
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=11)
    axes.spines[:].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    save(figure, path)


def mistakes(
    images: UInt8[np.ndarray, "n 3 h w"],
    truth: Sequence[str],
    predicted: Sequence[str],
    confidence: Sequence[float],
    path: Path,
    columns: int = 6,
) -> None:
    """A page of wrongly classified images: what was said, how surely, and what it is.

    Args:
        images: RGB, in the order in which they are laid out (the most confident first, say); one at least.
        confidence: probability given to the predicted class.
    """
    from matplotlib.layout_engine import PlaceHolderLayoutEngine

    # All in one pair of axes, whose unit is an image's side: forty of their own take ten times as long to lay out.
    rows, gap, head = -(-len(images) // columns), 0.08, 0.42
    figure = blank(1.35 * columns, 1.35 * rows * (1 + head) + 0.4)
    figure.set_layout_engine(PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=False))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1 - 0.4 / figure.get_figheight()))
    axes.set(xlim=(0, columns), ylim=(rows * (1 + head), 0), aspect="auto")
    axes.set_axis_off()
    for number, (image, right, said, sure) in enumerate(zip(images, truth, predicted, confidence, strict=True)):
        row, left = divmod(number, columns)
        top = row * (1 + head) + head
        tall, wide = (side / max(image.shape[1:]) * (1 - gap) for side in image.shape[1:])
        axes.imshow(
            image.transpose(1, 2, 0),
            extent=(left + (1 - wide) / 2, left + (1 + wide) / 2, top + tall, top),
            aspect="auto",
            # Small images are shown pixel by pixel; larger ones than their place are smoothed.
            interpolation="nearest" if max(image.shape) <= 96 else "antialiased",
        )
        words = f"{shortened(said)} {sure:.0%}\nis {shortened(right)}"
        axes.text(left + 0.5, top - 0.04, words, fontsize=9, ha="center", va="bottom")
    axes.set(xlim=(0, columns), ylim=(rows * (1 + head), 0))
    figure.suptitle("most confident mistakes: what was said, what it is", fontsize=11)
    save(figure, path)


def shortened(name: str) -> str:
    """A class name that fits beside a picture: ImageNet's are lists of synonyms, of which the first will do."""
    first = shown(name.split(",")[0], one_line=True)  # no font takes the bytes of a name that is no UTF-8
    return first if len(first) <= _LONGEST_NAME else first[: _LONGEST_NAME - 1] + "…"
