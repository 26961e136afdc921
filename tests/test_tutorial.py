"""docs/tutorial/ring-bug.md, followed to the letter but for its installation; and what follows it.

`make package` follows it whole, from the wheel in an empty environment.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs" / "tutorial"
PAGE = (TUTORIAL / "ring-bug.md").read_text(encoding="utf-8")


def _follow():
    """docs/tutorial/follow.py as a module."""
    spec = importlib.util.spec_from_file_location("follow", TUTORIAL / "follow.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["follow"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


follow = _follow()


@pytest.fixture
def reader(tmp_path):
    made = follow.Reader(tmp_path, follow.environment(None))
    yield made
    made.close()


def test_all_appears_as_the_page_says(reader) -> None:
    seconds = follow.follow(follow.hurried(PAGE), reader, installs=False)
    assert len(seconds) == 8
    assert sum(seconds.values()) < 300


def test_the_test_of_its_last_step_fails_without_the_step_before(reader) -> None:
    """Undo step 7, as the page says."""
    saved = {}
    for block in follow.blocks(follow.hurried(PAGE)):
        if found := follow.SAVE.search(block.before):
            saved[found[1]] = block.text
    for name in ("mine.py", "test_mine.py"):
        reader.saves(name, saved[name])
    told = reader.types("python -m pytest -q test_mine.py -k order")
    assert "1 failed" in told
    assert "lost wake-up" in told


def test_the_page_speaks_of_the_line_that_the_kit_names() -> None:
    (mine,) = (one.text for one in follow.blocks(PAGE) if "class Backend" in one.text)
    numbers = set(re.findall(r"mine\.py:(\d+)", PAGE)) | set(re.findall(r"[Ll]ine (\d+)", PAGE))
    picture = (ROOT / "docs/_static/lost-wakeup.svg").read_text(encoding="utf-8")
    numbers |= set(re.findall(r"line (\d+)", picture))
    assert numbers == {"47"}
    assert "self.ring.final_check()" in mine.splitlines()[46]


def test_links_and_pictures_of_the_page_are_there() -> None:
    for target in re.findall(r"\]\(([\w./-]+)\)", PAGE):
        assert (TUTORIAL / target).is_file(), target


# The follower itself


def test_another_output_is_told_with_the_line_of_the_page(reader) -> None:
    page = "```console\n$ echo one; echo two\none\n2\n```\n"
    with pytest.raises(follow.Differs, match=r"line 2: \$ echo one"):
        follow.follow(page, reader, installs=True)


@pytest.mark.parametrize(
    ("output", "appeared", "fits"),
    [
        ((), "", True),
        ((), "x\n", False),
        (("a",), "a\n", True),
        (("a",), "a\nb\n", False),
        (("a", "..."), "a\nb\nc\n", True),
        (("...", "c"), "a\nb\nc\n", True),
        (("...", "c"), "a\nb\n", False),
        (("in 17 examples",), "in 3 examples\n", True),
        (("in 17 examples",), "in no examples\n", False),
        (("in 17 bytes",), "in 3 bytes\n", False),
        (("a.c",), "abc\n", False),
        (("read ..., written",), "read 5 MiB (fast), written\n", True),
        (("read ..., written",), "read 5 MiB\nfast, written\n", False),
    ],
)
def test_what_fits_an_output(output, appeared, fits) -> None:
    assert bool(follow.pattern(output).fullmatch(appeared)) is fits


def test_the_shell_keeps_what_was_set_and_how_a_command_ended(reader) -> None:
    assert reader.types("x=5; false") == ""
    assert reader.types("echo $? $x") == "1 5\n"
    assert reader.types("printf end") == "end"
    with pytest.raises(follow.Differs, match="the shell ended"):
        reader.types("exit 0")


def test_a_block_without_a_word_of_what_to_do_is_refused(reader) -> None:
    with pytest.raises(follow.Differs, match="does not say what to do"):
        follow.follow("Look:\n\n```yaml\nx: 1\n```\n", reader, installs=True)


def test_a_block_of_python_that_fails_is_told(reader) -> None:
    follow.follow("```python\nassert True\n```\n", reader, installs=True)
    with pytest.raises(follow.Differs, match=r"line 2: a block fails\n(.*\n)*AssertionError"):
        follow.follow("```python\nassert False\n```\n", reader, installs=True)


def test_a_method_is_replaced_where_it_was(reader) -> None:
    reader.saves("a.py", "class A:\n    def f(self):\n        return 1\n\n    def g(self): ...\n")
    reader.changes("a.py", "f", "    def f(self):\n        return 2\n")
    assert reader.types("cat a.py").splitlines()[1:3] == ["    def f(self):", "        return 2"]
    with pytest.raises(follow.Differs, match="0 methods h"):
        reader.changes("a.py", "h", "")
