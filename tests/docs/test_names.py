"""What pages name in running text is there: modules, classes, files, commands with their options."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from tests.docs.ext import ext
from tests.docs.fences import MARKDOWN, ROOT, pages

NAME = re.compile(r"(xenpv(?:\.\w+)+)(?:\(.*\))?")
PATH = re.compile(r"(?:tests|examples|docs|xenpv|\.ci)/[\w./-]+\w")
COMMAND = re.compile(r"xenpv ([a-z]+)\b(.*)", re.DOTALL)
OF_XEN = {"docs/misc/xenstore.txt"}  # a file of Xen's source


def spans(page: str) -> list[str]:
    """The words of code in running text."""
    tokens = MARKDOWN.parse((ROOT / page).read_text(encoding="utf-8"))
    inline = [child for token in tokens for child in token.children or []]
    return [child.content for child in inline if child.type == "code_inline"]


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for attribute in parts[count:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


@pytest.mark.parametrize("page", pages())
def test_every_module_class_and_file_is_there(page: str) -> None:
    for span in spans(page):
        if named := NAME.fullmatch(span):
            assert is_there(named[1]), span
        if PATH.fullmatch(span) and span not in OF_XEN:
            assert [*ROOT.glob(span)], span


@pytest.mark.parametrize("page", pages())
def test_every_command_and_option_is_one(page: str) -> None:
    options = known()
    for span in spans(page):
        named = COMMAND.fullmatch(span)
        if named is None:
            continue
        assert named[1] in options, span
        words = shlex.split(named[2].replace("[", " ").replace("]", " "))
        for word in words:
            if word.startswith("--"):
                assert word.split("=")[0] in options[named[1]], span


def known() -> dict[str, set[str]]:
    """The options of each command."""
    found = ext("cli").subcommands()
    return {
        name: {one for action in parser._actions for one in action.option_strings}
        for name, parser in found.items()
    }


@pytest.mark.parametrize("page", pages())
def test_no_path_is_broken_by_a_line(page: str) -> None:
    """In Markdown the end of a line in code is a space."""
    for span in spans(page):
        assert not re.search(r"\w/ \w", span), span


def test_every_package_has_its_row_in_the_architecture() -> None:
    text = (ROOT / "docs/explanation/architecture.md").read_text()
    table = text[text.index("| package |") :].split("\n\n")[0]
    for path in sorted((ROOT / "xenpv").iterdir()):
        if path.is_dir() and (path / "__init__.py").exists() and Path(path).name[0] != "_":
            assert f"`{path.name}`" in table, path.name
