"""Docstrings of xenpv are plain text: made reStructuredText here, before autodoc reads them.

Paragraphs are flowing text in which `x` is code; what is indented stays as it is written; lines
that begin with `- ` are lists.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

CODE = re.compile(r"`+([^`]+)`+")
SPECIAL = re.compile(r"([\\*|_])")


def inline(text: str) -> str:
    """A line of plain text, so that nothing in it is markup but `code`."""
    parts = CODE.split(text)
    for at in range(0, len(parts), 2):
        parts[at] = SPECIAL.sub(r"\\\1", parts[at]).replace("`", "\\`")
    for at in range(1, len(parts), 2):
        before, after = parts[at - 1][-1:], parts[at + 1][:1]
        parts[at] = ("\\ " if before and before not in " (" else "") + f"``{parts[at]}``"
        if after and (after.isalnum() or after in "\\_"):
            parts[at] += "\\ "
    return "".join(parts)


def blocks(lines: list[str]) -> list[list[str]]:
    """Runs of lines between empty ones."""
    found: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            found[-1].append(line.rstrip())
        elif found[-1]:
            found.append([])
    return [block for block in found if block]


def as_rest(lines: list[str]) -> list[str]:
    """A whole docstring."""
    out: list[str] = []
    for block in blocks(lines):
        out += [*of_block(block), ""]
    return out


def of_block(block: list[str]) -> list[str]:
    if all(line.startswith(" ") for line in block):
        return ["::", "", *("    " + line for line in block)]
    if block[0].startswith("- "):
        return [line[:2] + inline(line[2:]) for line in block]
    out: list[str] = []
    for line in block:
        if line.startswith((" ", "- ")) and out:  # a table or a list under its first line
            return [*out, "", "::", "", *("    " + rest for rest in block[len(out) :])]
        text = inline(line)
        out.append("\\" + text if re.match(r"[-+=.:>#]|\w+[.)] ", text) else text)
    return out


def process(
    _app: Sphinx, _what: str, name: str, _thing: Any, _options: Any, lines: list[str]
) -> None:
    if name.startswith(("xenpv", "_xenpv")):
        lines[:] = as_rest(lines)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
