"""The pages of the Python API: every public name is there, and its docstring shows as it is."""

from __future__ import annotations

import html
import re
import zlib
from pathlib import Path

import pytest

import xenpv
from tests.docs.ext import ext
from xenpv import testing


def names(built: Path) -> set[str]:
    """What the inventory has: full names of classes, functions, methods, modules."""
    raw = (built / "objects.inv").read_bytes().split(b"\n", 4)[4]
    return {line.split(" ")[0] for line in zlib.decompress(raw).decode().splitlines()}


def test_every_public_name_has_its_entry(built: Path) -> None:
    found = names(built)
    modules = {"cases", "machines", "strategies", "scenarios", "zoo"}
    wanted = {f"xenpv.{name}" for name in xenpv.__all__ if name[0] != "_"}
    wanted |= {f"xenpv.testing.{name}" for name in testing.__all__ if name not in modules}
    missing = [name for name in sorted(wanted) if name not in found]
    missing = [name for name in missing if f"xenpv.errors.{name.rpartition('.')[2]}" not in found]
    assert missing == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("platform", ("class Platform(", "decides every choice", "run()")),
        ("ends", ("class End(", "map(")),
        ("fuzzing", ("blk_requests(", "hostile")),
        ("errors", ("HypercallError", "errno")),
    ],
)
def test_a_page_has_signatures_and_what_they_say(
    built: Path, name: str, words: tuple[str, ...]
) -> None:
    text = html.unescape(re.sub(r"<[^>]+>", "", (built / f"reference/api/{name}.html").read_text()))
    for word in words:
        assert word in text, word


@pytest.mark.parametrize(
    ("plain", "rest"),
    [
        (["`x` of `y`s, *args and __init__"], [r"``x`` of ``y``\ s, \*args and \_\_init\_\_", ""]),
        (["one", "two", "", "three"], ["one", "two", "", "three", ""]),
        (["as here:", "    a = 1", "    b"], ["as here:", "", "::", "", "        a = 1", "        b", ""]),
        (["    only = code"], ["::", "", "        only = code", ""]),
        (["- a", "- b_"], ["- a", r"- b\_", ""]),
        (["- no list"], ["- no list", ""]),
        (["a", "1. no list"], ["a", r"\1. no list", ""]),
        (["a `b", "c` d"], [r"a \`b", r"c\` d", ""]),
        (["0|1 ```c```"], [r"0\|1 ``c``", ""]),
        ([], []),
    ],
)  # fmt: skip
def test_a_docstring_is_shown_as_it_is_written(plain: list[str], rest: list[str]) -> None:
    assert ext("docstrings").as_rest(plain) == rest


def test_no_docstring_is_taken_for_markup(built: Path) -> None:
    for path in (built / "reference/api").glob("*.html"):
        assert "system-message" not in path.read_text(), path
