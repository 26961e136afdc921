"""docs/reference/disk.md: it is one page."""

from __future__ import annotations

import re
from pathlib import Path

TEXT = (Path(__file__).parents[1] / "docs/reference/disk.md").read_text(encoding="utf-8")
SECTIONS = (
    "Reading and writing",
    "SCSI",
    "The frontend",
    "Rings, segments and requests",
    "What a sector is",
    "The crash driver",
    "Backends",
    "Images",
    "How fast",
)


def test_the_sections_are_in_the_order_that_a_block_takes() -> None:
    assert tuple(re.findall(r"^## (.*)$", TEXT, re.MULTILINE)) == SECTIONS
