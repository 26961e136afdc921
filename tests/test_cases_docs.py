"""docs/reference/cases.md: it names every suite that there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from xenpv.testing.cases import SUITES, cases

TEXT = (Path(__file__).parents[1] / "docs/reference/cases.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_is_in_the_table(name) -> None:
    prefix = cases(name)[0].id.split("-")[0]
    assert f"`{name}`" in TEXT
    assert f"{prefix}-" in TEXT
