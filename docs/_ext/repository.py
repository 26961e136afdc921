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
    """Replace downloads of what has a page by links to it."""
    env = app.env
    for node in list(document.findall(addnodes.download_reference)):
        _, path = env.relfn2path(node["reftarget"], env.docname)
        page = PAGES.get(Path(path).name) if Path(path).parent == ROOT else None
        if page is not None:
            link = addnodes.pending_xref(
                "", *node.children, refdomain="doc", reftype="myst", reftarget=page,
                reftargetid=None, refdoc=env.docname, refexplicit=True,
            )  # fmt: skip
            node.replace_self(link)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-read", lead_to_the_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
