#!/usr/bin/env python3
"""Builds the site of docs/ into build/site/html; a broken link, or a page that the menu lacks, fails the build.

The pages stay as they are read in the repository. What they link to beyond docs/ is code, which has no page here: it
gets the repository's address where pyproject.toml has one, and becomes plain text where not, as in README.md
on an index.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGE = ROOT / "build" / "site"
_NAMED = re.compile(r"^(```\w+) (\S+)$", re.MULTILINE)  # a block of code that is a file: its name becomes its title
_BEYOND = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]+)?\)")


def main() -> int:
    """Lay out and build; the builder's exit code."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    repository = config["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"]
    shutil.rmtree(STAGE, ignore_errors=True)
    shutil.copytree(ROOT / "docs", STAGE / "docs", ignore=shutil.ignore_patterns("zensical.toml"))
    shutil.copy(ROOT / "CHANGELOG.md", STAGE / "docs")
    shutil.copy(ROOT / "docs" / "zensical.toml", STAGE)
    menu = (STAGE / "zensical.toml").read_text(encoding="utf-8")
    for page in sorted((STAGE / "docs").rglob("*.md")):
        name = page.relative_to(STAGE / "docs").as_posix()
        if f'"{name}"' not in menu:
            print(f"docs/{name} is missing from the menu in docs/zensical.toml", file=sys.stderr)
            return 1
        page.write_text(within(page.read_text(encoding="utf-8"), name, repository), encoding="utf-8")
    build = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", "zensical.toml"],
        cwd=STAGE, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    return build.returncode


def within(text: str, name: str, repository: str) -> str:
    """The page `name` of docs/ with links beyond docs/ turned outwards."""
    docs = STAGE / "docs"

    def turned(found: re.Match[str]) -> str:
        label, target, anchor = found[1], found[2], found[3] or ""
        place = Path(os.path.normpath(docs / Path(name).parent / target))
        if place.is_relative_to(docs) or place == STAGE / "CHANGELOG.md":
            return found[0]
        if not repository:
            return label
        return f"[{label}]({repository}/blob/HEAD/{place.relative_to(STAGE).as_posix()}{anchor})"

    return _NAMED.sub(r'\1 title="\2"', _BEYOND.sub(turned, text))


if __name__ == "__main__":
    sys.exit(main())
