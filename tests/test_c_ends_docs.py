"""docs/howto/c-ends.md: what it says of the header is so."""

from __future__ import annotations

import re
from pathlib import Path

from xenpv.testing.cends import INCLUDE

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/howto/c-ends.md").read_text(encoding="utf-8")


def test_what_it_names_is_in_the_header() -> None:
    header = (INCLUDE / "xenpv_end.h").read_text()
    named = set(re.findall(r"xenpv_\w+", TEXT)) - {"xenpv_end", "xenpv_io"}
    assert len(named) > 5
    assert not [name for name in sorted(named) if name not in header]


def test_the_lines_that_it_shows_are_those_of_the_example() -> None:
    lines = (ROOT / "examples/c_backend/blkback.c").read_text().splitlines()
    for number, function in re.findall(r"blkback\.c:(\d+) in (\w+)", TEXT):
        above = "\n".join(lines[: int(number)])
        assert re.findall(r"^(?:static \w+ )+\*?(\w+)\(", above, re.MULTILINE)[-1] == function
