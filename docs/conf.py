"""Sphinx: how `make docs` makes pages of docs/*.md. It needs no network, and asks for none."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "xenpv"
author = "the xenpv project"
version = release = installed("xenpv")
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "repository",
    "docstrings",
    "generated",
    "protocol",
]
exclude_patterns = ["_ext", "_static"]
source_suffix = {".md": "markdown"}
root_doc = "index"

smartquotes = False  # a quote is one of a language here, and -- begins an option
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist", "attrs_inline"]
highlight_language = "text"  # of a fence without a name

suppress_warnings = ["ref.python"]  # a type that two modules have: either page says it
nitpicky = True
# Types in signatures that are another library's, or have no page: a link is missing, no fact.
nitpick_ignore_regex = [(r"py:.*", r".*")]

toc_object_entries = False  # each page carries all entries: twice the time to build
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autoclass_content = "class"
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_title = f"xenpv {release}"
html_copy_source = False
html_show_sphinx = False
