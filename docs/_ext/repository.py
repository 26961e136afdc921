"""Links of a page to files of the repository that are no pages: the file goes along.

A link to a Markdown file at the root (CHANGELOG.md) leads to the page of docs/project that
includes it. Any other file (an example) is copied beside the pages, which MyST does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
PAGES = {
    "CHANGELOG.md": "project/changelog",
    "CONTRIBUTING.md": "project/contributing",
    "SECURITY.md": "project/security",
    "README.md": "index",
}


def lead_to_the_page(app: Sphinx, document: nodes.document) -> None:
    """Let links to what has a page at another place lead there."""
    for node in document.findall(addnodes.pending_xref):
        if node.get("refdomain") == "doc":
            path = Path(app.srcdir, node["reftarget"] + ".md").resolve()
            if path.parent == ROOT and path.name in PAGES:
                node["reftarget"] = PAGES[path.name]


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-read", lead_to_the_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
