"""The documentation builds without a warning and without network, and hangs together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.ext import ext
from tests.docs.fences import ROOT

fill = ext("generated").fill
ATTRIBUTE = re.compile(r"""<(\w+)\b[^>]*?\s(href|src|srcset|data|poster)=["']([^"']*)["']""")
IDS = re.compile(r"""\s(?:id|name)=["']([^"']+)["']""")
CODE = re.compile(r"<(script|style)\b[^>]*>.*?</\1>", re.DOTALL)


@pytest.fixture(scope="session")
def pages(built: Path) -> dict[Path, str]:
    return {path: path.read_text(encoding="utf-8") for path in sorted(built.rglob("*.html"))}


def links(text: str) -> Iterator[tuple[str, str]]:
    """(element, what it refers to) of a page."""
    for element, _attribute, value in ATTRIBUTE.findall(text):
        yield element, value


def test_every_page_of_the_source_is_there(built: Path) -> None:
    for path in (ROOT / "docs").rglob("*.md"):
        assert (built / path.relative_to(ROOT / "docs")).with_suffix(".html").is_file(), path


def test_every_page_is_reached_from_the_first_by_its_toctrees(
    built: Path, pages: dict[Path, str]
) -> None:
    side = re.search(
        r'<div class="sidebar-tree">.*?</ul>\s*</div>', pages[built / "index.html"], re.DOTALL
    )
    assert side is not None
    listed = {(built / link.split("#")[0]).resolve() for _a, link in links(side[0])}
    generated = {"genindex.html", "search.html", "py-modindex.html", "index.html"}
    missing = [path for path in pages if path not in listed and path.name not in generated]
    missing += [path for path in pages if path.name == "index.html" and path not in listed]
    assert missing == [built / "index.html"]


def test_every_link_and_every_anchor_leads_somewhere(built: Path, pages: dict[Path, str]) -> None:
    ids = {path: {*IDS.findall(text)} for path, text in pages.items()}
    lost = []
    for path, text in pages.items():
        for _element, link in {*links(CODE.sub("", text))}:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                lost.append(f"{path.relative_to(built)}: {link}: no file")
            elif parts.fragment and target in ids and unquote(parts.fragment) not in ids[target]:
                lost.append(f"{path.relative_to(built)}: {link}: no such anchor")
    assert lost == []


def test_nothing_but_links_to_click_leads_out(built: Path, pages: dict[Path, str]) -> None:
    for path, text in pages.items():
        for element, link in links(text):
            assert element == "a" or not urlsplit(link).netloc, f"{path.relative_to(built)}: {link}"
        assert not re.search(r"@import|url\(\s*[\"']?(?:https?:)?//", text), path
    for path in built.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"@import|url\(\s*[\"']?(?:https?:)?//", text), path


def test_the_version_is_that_of_the_distribution(built: Path, pages: dict[Path, str]) -> None:
    from importlib.metadata import version

    assert f"xenpv {version('xenpv')}" in pages[built / "index.html"]


def test_every_page_has_one_title_and_begins_with_a_sentence() -> None:
    for path in sorted((ROOT / "docs").rglob("*.md")):
        lines = path.read_text(encoding="utf-8").splitlines()
        if lines[0].startswith("```{include}"):
            continue
        assert lines[0].startswith("# "), path
        assert not lines[2].startswith(("#", "|", "-", "`" * 3, "<", "!")), f"{path}: {lines[2]!r}"


def test_every_page_has_a_row_that_says_which_question_it_answers() -> None:
    """In the index of its section, by a link to it, where that does not show its toctree."""
    for path in sorted((ROOT / "docs").rglob("*.md")):
        index = path.parent / "index.md"
        if path == index:
            index = path.parent.parent / "index.md"
        if path == ROOT / "docs/index.md" or ":hidden:" not in index.read_text():
            continue
        assert f"]({path.relative_to(index.parent)})" in fill(index.read_text()), path
