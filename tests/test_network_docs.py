"""docs/reference/network.md: each of its examples runs by itself, and it is one page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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


def examples() -> dict[str, str]:
    """By the heading that they are under, with a number where it has several."""
    found = {}
    for section in TEXT.split("\n## ")[1:]:
        heading = section.splitlines()[0]
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", section, re.DOTALL)):
            found[f"{heading} {number}" if number else heading] = block
    return found


EXAMPLES = examples()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_does_what_it_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[name], f"docs/reference/network.md: {name}", "exec"), {})  # noqa: S102 - our own page


def test_the_sections_are_in_the_order_that_a_frame_takes() -> None:
    assert tuple(re.findall(r"^## (.*)$", TEXT, re.MULTILINE)) == SECTIONS
