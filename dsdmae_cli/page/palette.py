"""Colours and style of pages and charts, light and dark."""

from __future__ import annotations

import re
from collections.abc import Mapping

# Against the page's ground each has a contrast of 4.5 at least (tests/page/test_document.py).
LIGHT = ("#1f5fa8", "#b3401f", "#1b7837", "#7b3fa0", "#7d5a00", "#00707a", "#a0306a", "#555555")
DARK = ("#7ab5ff", "#ff9a70", "#74d391", "#c9a0ff", "#e2bb55", "#5fd2da", "#ff94c6", "#b9bec7")


_NAMES = ("ground", "ink", "soft", "line", *(f"c{i}" for i in range(len(LIGHT))))
_LIGHT = dict(zip(_NAMES, ("#ffffff", "#1a1d21", "#565c66", "#d9dce1", *LIGHT), strict=True))
_DARK = dict(zip(_NAMES, ("#14171c", "#e8eaed", "#a8afba", "#363b45", *DARK), strict=True))
_WHERE_DARK = "@media (prefers-color-scheme:dark)"


def style(*, alone: bool = False) -> str:
    """CSS of charts. A page has the variables already (document.py).

    Args:
        alone: of a file of its own, whose colours stand in its rules: many programs that show an SVG know no variables,
            and would paint it black.
    """
    rules = "".join(f".s{i}{{stroke:var(--c{i})}}.f{i}{{fill:var(--c{i})}}" for i in range(len(LIGHT)))
    charts = (
        ".chart{font:12px system-ui,sans-serif;fill:var(--ink);display:block;width:100%;height:auto}"
        ".chart text{fill:var(--ink)}.chart .t{font-size:13.5px;font-weight:600}.chart .q{fill:var(--soft)}"
        ".chart .e{text-anchor:end;fill:var(--soft)}.chart .m{text-anchor:middle;fill:var(--soft)}"
        ".chart .g{stroke:var(--line);stroke-width:1}.chart .a{stroke:var(--soft);stroke-width:1}"
        ".chart .n{fill:none;stroke-width:2;stroke-linejoin:round}.chart .i{fill:none;stroke-width:1.6}"
        ".chart .r{fill:none;stroke-width:1.6;stroke-dasharray:5 4}.chart .b{opacity:.18}"
        ".chart .d{fill:var(--ground);stroke-width:1.3;opacity:.9}.chart .k{stroke:var(--ground);stroke-width:1}"
        ".chart .ground{fill:var(--ground)}"
    )
    css = charts + rules
    return f"{_with(css, _LIGHT)}{_WHERE_DARK}{{{_with(css, _DARK)}}}" if alone else css


def _with(css: str, colours: Mapping[str, str]) -> str:
    return re.sub(r"var\(--(\w+)\)", lambda found: colours[found[1]], css)


def variables() -> str:
    """Colours of light and dark."""

    def of(colours: Mapping[str, str]) -> str:
        return ":root{" + "".join(f"--{name}:{colour};" for name, colour in colours.items()) + "}"

    return f"{of(_LIGHT)}{_WHERE_DARK}{{{of(_DARK)}}}"
