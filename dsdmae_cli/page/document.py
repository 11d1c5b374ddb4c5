"""A page as one HTML file: nothing is fetched, everything from outside is escaped, no path of the machine is in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from dsdmae_cli import __version__
from dsdmae_cli.files import aside, open_file
from dsdmae_cli.page.blocks import Page
from dsdmae_cli.page.chart import Chart
from dsdmae_cli.page.palette import style, variables
from dsdmae_cli.report import shown

# An absolute path, of which the last part is kept; an address such as http://host/path is none.
_PATH = re.compile(
    r"""(?<![\w./~\\<…])(?:~(?=/)|[A-Za-z]:(?=[\\/]))?[\\/](?:[^\s/\\'"<>|,;:()\[\]{}]+[\\/])*([^\s/\\'"<>|,;:()\[\]{}]+)"""
)
STATES = {"running": "▶", "done": "✓", "stopped": "■", "failed": "✕"}


class Places:
    """Takes paths of the machine out of texts.

    Args:
        known: paths by what is written in their place, however many parts and blanks they have.
    """

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        found = {path.rstrip("/\\"): word for path, word in (known or {}).items() if len(path) > 1}
        self._known = sorted(found.items(), key=lambda item: -len(item[0]))

    def __call__(self, text: str) -> str:
        for path, word in self._known:
            text = word.join(re.split(rf"{re.escape(path)}(?![\w.-])", text))
        return _PATH.sub(r"…/\1", text)


def places(folder: Path, word: str, others: Iterable[str] = ()) -> Places:
    """Those of a page in `folder`, which is called `word` in it; others keep their last part, blanks and all."""
    # A relative one may be a word of the text, or a part of one: it says nothing of the machine and stays.
    own = {str(path): word for path in (folder.absolute(), folder.resolve())}
    home = {str(Path.home()): "~"}
    return Places({path: f"…/{Path(path).name}" for path in others if Path(path).is_absolute()} | home | own)


def html(page: Page, where: Places) -> str:
    """The file's text."""

    def written(text: str) -> str:
        return shown(where(text))

    template = _environment().get_template("page.html")
    return template.render(
        page=page,
        w=written,
        svg=lambda chart: chart.svg(where),
        css=variables() + style(),
        sign=STATES,
        version=__version__,
    )


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("dsdmae_cli.page"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=True,
    )  # fmt: skip


def is_ours(path: Path) -> bool:
    """Whether a file is a page of this program's, and may be replaced by another one."""
    with open_file(path) as file:
        return b'<meta name="generator" content="dsdmae ' in file.read(2000)


def write(page: Page, path: Path, where: Places) -> None:
    """Write the file, whole or as it was before.

    Raises:
        RunFailed: it cannot be written.
    """
    with aside(path) as partial:
        partial.write_text(html(page, where), encoding="utf-8")


def write_charts(charts: Iterable[Chart], folder: Path, where: Places) -> list[Path]:
    """Each figure as KEY.svg in a folder; those that are empty are left out.

    Raises:
        RunFailed: one cannot be written.
    """
    written = []
    for chart in charts:
        if text := chart.svg(where, alone=True):
            folder.mkdir(parents=True, exist_ok=True)
            written.append(folder / f"{chart.key}.svg")
            with aside(written[-1]) as partial:
                partial.write_text(text, encoding="utf-8")
    return written
