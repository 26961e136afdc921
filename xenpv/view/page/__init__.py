"""One self-contained page of a recording: timeline, rings, store and packets at any moment.

    tape = Tape()
    with Platform(tape=tape) as xen:
        ...
    page.write(tape, "run.html")

The page loads nothing and is the same for the same tape. Jinja2 is needed: extra `report`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xenpv.view.page import document, render
from xenpv.view.page.render import missing
from xenpv.view.tape import Tape


def html(
    tape: Tape,
    found: Mapping[str, Any] | None = None,
    *,
    title: str = "xenpv: a recording",
    repeat: str = "",
) -> str:
    """The page. `found` is the document that `xenpv run --json` prints, shown as its report;
    `repeat` the command that repeats the run. ModuleNotFoundError without Jinja2.
    """
    return render.page_of(document.of_tape(tape), found, title=title, repeat=repeat)


def write(
    tape: Tape,
    file: str | Path,
    found: Mapping[str, Any] | None = None,
    *,
    title: str = "xenpv: a recording",
    repeat: str = "",
) -> None:
    """`html` into a file; OSError if it cannot be written."""
    text = html(tape, found, title=title, repeat=repeat)
    Path(file).write_text(text, encoding="utf-8", newline="\n")


__all__ = ["html", "missing", "write"]
