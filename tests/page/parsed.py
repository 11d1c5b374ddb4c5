"""A page read back: its elements close, it fetches nothing; and names that nobody should obey."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from dsdmae_cli.page.blocks import Page
from dsdmae_cli.page.document import Places, html

_EMPTY = {"meta", "img", "input", "link", "br"}
HOSTILE = [
    "<script>alert(1)</script>",
    "$x^2$ & \"quoted\" 'too'",
    "漢字クラス",
    "\x1b[31mred",
    "</svg><img src=x>",
    "{{ 7*7 }}",
]


class Parsed(HTMLParser):
    """Elements that are open and close as they should, and all addresses and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(filter(None, self.words))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def parsed(page: Page, where: Places | None = None) -> Parsed:
    """The page, which fetches nothing."""
    text = html(page, where or Places())
    found = Parsed(text)
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    for _, attributes in found.tags:
        for name in ("src", "href"):
            assert not re.match(
                r"[a-z]+:(?!image/webp)|//", attributes.get(name) or "data:image/webp".replace("data:", "")
            )
    return found
