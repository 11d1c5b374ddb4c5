"""What all drawn figures share: a canvas without a screen, plain axes, and a file that is whole or not there."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from dsdmae_cli.files import aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 120


def blank(width: float, height: float) -> Figure:
    """An empty figure of a size in inches. No pyplot, which keeps figures alive and may look for a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(axes: Axes) -> None:
    """No frame above and to the right, a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def save(figure: Figure, path: Path) -> None:
    """As PNG, its folder made if it is not there.

    Words are words: a class may be called $5, which matplotlib would read as a formula. Letters that its font has not
    are drawn as boxes, without a warning for each.
    """
    import matplotlib as mpl
    from matplotlib.text import Text

    path.parent.mkdir(parents=True, exist_ok=True)
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with aside(path) as partial, mpl.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        figure.savefig(partial, format="png", dpi=DOTS_PER_INCH)
