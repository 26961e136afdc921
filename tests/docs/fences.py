"""The pages of the documentation, and what is fenced in them."""

from __future__ import annotations

from pathlib import Path

import attrs
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
AT_THE_ROOT = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
MARKDOWN = MarkdownIt("commonmark")


@attrs.frozen
class Fence:
    page: str  # its path from the root
    line: int  # of the opening fence
    language: str  # the word behind it; "" of an indented block
    text: str

    @property
    def first(self) -> str:
        """Its first line that is not empty."""
        return next((line for line in self.text.splitlines() if line.strip()), "")

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {self.language}"


def pages() -> list[str]:
    found = sorted((ROOT / "docs").rglob("*.md"))
    return [*AT_THE_ROOT, *(str(path.relative_to(ROOT)) for path in found)]


def fences(page: str) -> list[Fence]:
    """All of a page, without directives of MyST (`{toctree}`), which Sphinx runs."""
    tokens = MARKDOWN.parse((ROOT / page).read_text(encoding="utf-8"))
    return [
        Fence(page, token.map[0] + 1, token.info.strip(), token.content)
        for token in tokens
        if token.type in ("fence", "code_block") and token.map is not None
        if not token.info.startswith("{")
    ]


def directives(page: str) -> list[str]:
    """The names of those of MyST."""
    tokens = MARKDOWN.parse((ROOT / page).read_text(encoding="utf-8"))
    return [
        token.info[1:].split("}")[0]
        for token in tokens
        if token.type == "fence" and token.info.startswith("{")
    ]
