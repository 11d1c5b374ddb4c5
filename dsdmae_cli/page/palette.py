"""Colours and style of pages and charts, light and dark."""

from __future__ import annotations

from collections.abc import Sequence

# Against the page's ground each has a contrast of 4.5 at least (tests/page/test_document.py).
LIGHT = ("#1f5fa8", "#b3401f", "#1b7837", "#7b3fa0", "#7d5a00", "#00707a", "#a0306a", "#555555")
DARK = ("#7ab5ff", "#ff9a70", "#74d391", "#c9a0ff", "#e2bb55", "#5fd2da", "#ff94c6", "#b9bec7")


def style(*, alone: bool = False) -> str:
    """CSS of charts. A page has the variables already (document.py)."""
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
    return (variables() if alone else "") + charts + rules


def variables() -> str:
    """Colours of light and dark."""

    def of(ground: str, ink: str, soft: str, line: str, colours: Sequence[str]) -> str:
        named = "".join(f"--c{i}:{colour};" for i, colour in enumerate(colours))
        return f":root{{--ground:{ground};--ink:{ink};--soft:{soft};--line:{line};{named}}}"

    light = of("#ffffff", "#1a1d21", "#565c66", "#d9dce1", LIGHT)
    dark = of("#14171c", "#e8eaed", "#a8afba", "#363b45", DARK)
    return f"{light}@media (prefers-color-scheme:dark){{{dark}}}"
