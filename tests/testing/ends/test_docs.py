"""docs/howto/ends.md: each of its examples runs by itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from xenpv.testing import End, faults

TEXT = (Path(__file__).parents[3] / "docs/howto/ends.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_example_does_what_it_says(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "page.py"  # so that errors have a line of it
    path.write_text(EXAMPLES[number])
    exec(compile(EXAMPLES[number], str(path), "exec"), {"__name__": "page"})  # noqa: S102 - our own page


def test_every_name_of_an_end_is_on_the_page():
    names = [name for name in vars(End) if not name.startswith("_")]
    kits = {"end", "leftovers", "cancel"}
    missing = [name for name in names if f"`{name}`" not in TEXT and f"{name}(" not in TEXT]
    assert set(missing) <= kits | {"kind", "devid", "domid", "broken"}


def test_every_fault_device_is_on_the_page():
    kinds = [
        name
        for name, one in vars(faults).items()
        if isinstance(one, type) and one.__module__ == faults.__name__
    ]
    assert [name for name in kinds if f"| `{name}` |" not in TEXT] == ["Device"]
