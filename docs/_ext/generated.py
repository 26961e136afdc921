"""Parts of pages that are written from the code each time, so that they cannot go stale.

A line `<!-- from the code: NAME ARGUMENT... -->` of a page becomes the Markdown that WRITERS give.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import advisories
import cases
import cli
import profiles
import zoo
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

PLACE = re.compile(r"^<!-- from the code: ([\w-]+)(?: (.*?))? -->$", re.MULTILINE)
WRITERS: dict[str, Callable[..., str]] = {
    "suites": cases.suites,
    "cases": cases.of_suite,
    "advisories": advisories.about,
    "zoo": zoo.of_room,
    "commands": cli.commands,
    "commands-in-full": cli.in_full,
    "keys": cli.keys,
    "quirks": profiles.quirks,
    "profiles": profiles.of,
}


def fill(text: str) -> str:
    """The text of a page with its places written."""
    return PLACE.sub(lambda found: WRITERS[found[1]](*(found[2] or "").split()), text)


def read(_app: Sphinx, _page: str, source: list[str]) -> None:
    source[0] = fill(source[0])


def outdated(
    _app: Sphinx, env: BuildEnvironment, _added: set[str], _changed: set[str], _removed: set[str]
) -> Iterable[str]:
    """These pages are written in every build: the code may have changed."""
    marked = (
        page for page in env.found_docs if PLACE.search(env.doc2path(page).read_text("utf-8"))
    )
    return sorted(marked)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", read)
    app.connect("env-get-outdated", outdated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
