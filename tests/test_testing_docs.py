"""docs/howto/testing.md: what it names is there."""

from __future__ import annotations

import re
from pathlib import Path

from xenpv import cli
from xenpv.testing import cases

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/howto/testing.md").read_text(encoding="utf-8")


def test_pages_and_cases_that_it_names_are_there() -> None:
    for page in re.findall(r"\]\((\w[\w-]*\.md)\)", TEXT):
        assert (ROOT / "docs/howto" / page).is_file(), page
    for number in re.findall(r"[A-Z]{3,5}-\d{3}", TEXT):
        assert cases.case(number)


def test_commands_that_it_names_are_understood() -> None:
    for command in re.findall(r"`xenpv ((?:hunt|cases|zoo|replay)[^`]*)`", TEXT):
        words = [word for word in command.split() if not word.startswith("[")]
        assert cli.parser().parse_args(words).command == words[0]
