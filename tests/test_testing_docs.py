"""docs/howto/testing.md: each of its examples runs by itself, and what it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from xenpv import cli
from xenpv.testing import cases

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/howto/testing.md").read_text(encoding="utf-8")


def examples() -> dict[str, str]:
    """By the heading that they are under."""
    found = {}
    for section in TEXT.split("\n## ")[1:]:
        for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
            found[section.splitlines()[0]] = block
    return found


EXAMPLES = examples()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_does_what_it_says(name, tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[name], f"docs/howto/testing.md: {name}", "exec"), {"__name__": "example"})  # noqa: S102 - our own page


def test_pages_and_cases_that_it_names_are_there() -> None:
    for page in re.findall(r"\]\((\w[\w-]*\.md)\)", TEXT):
        assert (ROOT / "docs/howto" / page).is_file(), page
    for number in re.findall(r"[A-Z]{3,5}-\d{3}", TEXT):
        assert cases.case(number)


def test_commands_that_it_names_are_understood() -> None:
    for command in re.findall(r"`xenpv ((?:hunt|cases|zoo|replay)[^`]*)`", TEXT):
        words = [word for word in command.split() if not word.startswith("[")]
        assert cli.parser().parse_args(words).command == words[0]
