"""Plain text of the code as Markdown that shows the same."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

SPECIAL = re.compile(r"([\\`*_\[\]<>|~#$&])")
CASE = re.compile(r"\b(BLKB|BLKF|NETB|NETF|STORE|BUSB|BUSF|EVT|GNT)-(\d{3})\b")
XSA = re.compile(r"\bXSA-(\d+)\b")


def plain(text: str) -> str:
    """Nothing in it is markup, but advisories are links."""
    return XSA.sub(
        lambda found: f"[{found[0]}](https://xenbits.xen.org/xsa/advisory-{found[1]}.html)",
        SPECIAL.sub(r"\\\1", text),
    )


def code(text: str) -> str:
    """A word of code, in a cell too."""
    return "`" + text.replace("|", "\\|") + "`" if text else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
