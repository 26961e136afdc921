"""A Sphinx extension: the protocol reference, made from the tables of the code it documents.

`{struct}`, `{ring}`, `{states}`, `{keys}` and the other directives of directives.py ask xenpv for
every number, state, key and error at build time. What they show is what the code does: a page
cannot be out of date. Words come from text/*.toml and from the pages.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .directives import DIRECTIVES

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

HERE: Final = Path(__file__).parent
PAGES: Final = "reference/protocol/"


def _add_style(app: Sphinx) -> None:
    app.config.html_static_path.append(str(HERE / "static"))


def _always(_app: Sphinx, env: BuildEnvironment, *_changes: set[str]) -> list[str]:
    """Pages of ours are read anew at each build: what they are made of is all of the code."""
    return [name for name in env.found_docs if name.startswith(PAGES)]


def setup(app: Sphinx) -> dict[str, Any]:
    for name, directive in DIRECTIVES.items():
        app.add_directive(name, directive)
    app.connect("builder-inited", _add_style)
    app.connect("env-get-outdated", _always)
    app.add_css_file("protocol.css")
    return {"version": "1", "env_version": 1, "parallel_read_safe": True}
