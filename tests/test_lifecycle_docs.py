"""docs/reference/lifecycle.md: it is one page."""

from __future__ import annotations

import re
from pathlib import Path

TEXT = (Path(__file__).parents[1] / "docs/reference/lifecycle.md").read_text(encoding="utf-8")
SECTIONS = (
    "Domains",
    "Devices",
    "Pause, shutdown, reboot",
    "Suspend and resume",
    "Save and restore",
    "Migration",
    "Driver domains",
    "Your own driver",
    "Listings",
    "What is checked",
)


def test_the_sections_are_in_the_order_of_a_life() -> None:
    assert tuple(re.findall(r"^## (.*)$", TEXT, re.MULTILINE)) == SECTIONS
