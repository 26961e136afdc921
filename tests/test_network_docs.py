"""docs/reference/network.md: it is one page."""

from __future__ import annotations

import re
from pathlib import Path

TEXT = (Path(__file__).parents[1] / "docs/reference/network.md").read_text(encoding="utf-8")
SECTIONS = (
    "Sending and receiving",
    "The XenNet adapter",
    "XenVif",
    "netback",
    "A bridge",
    "Hosts to talk to",
    "TAP ports and real stacks",
    "Speed",
)


def test_the_sections_are_in_the_order_that_a_frame_takes() -> None:
    assert tuple(re.findall(r"^## (.*)$", TEXT, re.MULTILINE)) == SECTIONS
