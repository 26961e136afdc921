"""docs/howto/ends.md: what there is, is on the page."""

from __future__ import annotations

from pathlib import Path

from xenpv.testing import End, faults

TEXT = (Path(__file__).parents[3] / "docs/howto/ends.md").read_text(encoding="utf-8")


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
