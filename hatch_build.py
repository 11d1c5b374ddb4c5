"""Makes of README.md the page that a package index shows, where a relative link leads nowhere.

Links and pictures get the repository's address from one place, [tool.hatch.metadata.hooks.custom] in pyproject.toml.
While it is empty a link to a file becomes its plain text, and a picture goes with its caption.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

# A paragraph of its own; an italic paragraph that follows is its caption.
_PICTURE = re.compile(r"!\[[^\]]*\]\((?!https?:)[^)\s]+\)\n\n(?:\*(?!\*)[^*]+\*\n\n)?")
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)\s]+)\)")


class IndexPage(MetadataHookInterface):
    """Sets `readme` and `urls`, which pyproject.toml names as dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        repository = self.config["repository"]
        if repository and not re.fullmatch(r"https://[^\s/]+(/[^\s/]+)+", repository):
            raise ValueError(
                f"tool.hatch.metadata.hooks.custom.repository is {repository!r}: give an address like"
                " https://HOST/OWNER/NAME without a slash at its end, or nothing"
            )
        page = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": absolute(page, repository) if repository else plain(page),
        }
        metadata["urls"] = {"Paper": self.config["paper"]}
        if repository:
            metadata["urls"] |= {
                "Repository": repository,
                "Documentation": f"{repository}/blob/HEAD/docs/running.md",
                "Changelog": f"{repository}/blob/HEAD/CHANGELOG.md",
                "Issues": f"{repository}/issues",
            }


def absolute(page: str, repository: str) -> str:
    """The page with every relative link and picture below the repository's address."""
    page = re.sub(r"(!\[[^\]]*\]\()(?!https?:)([^)\s]+\))", rf"\1{repository}/raw/HEAD/\2", page)
    return _LINK.sub(rf"[\1]({repository}/blob/HEAD/\2)", page)


def plain(page: str) -> str:
    """The page without relative links and without pictures and their captions."""
    return _LINK.sub(r"\1", _PICTURE.sub("", page))
