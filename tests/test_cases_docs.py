"""docs/reference/cases.md: its examples run, and it names every suite that there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from xenpv.testing.cases import SUITES, cases

TEXT = (Path(__file__).parents[1] / "docs/reference/cases.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_example_does_what_it_says(number) -> None:
    source = EXAMPLES[number]
    exec(compile(source, f"docs/reference/cases.md: {number}", "exec"), {})  # noqa: S102 - our own page


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_is_in_the_table(name) -> None:
    prefix = cases(name)[0].id.split("-")[0]
    assert f"`{name}`" in TEXT
    assert f"{prefix}-" in TEXT
