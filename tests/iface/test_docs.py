"""docs/reference/xeniface.md: its tables are the code's."""

from __future__ import annotations

from pathlib import Path

from xenpv.iface import wmi
from xenpv.iface.ioctl import IOCTLS

TEXT = (Path(__file__).parent.parent.parent / "docs/reference/xeniface.md").read_text(
    encoding="utf-8"
)


def rows(first: str) -> list[list[str]]:
    """The cells of the table whose header begins with that cell."""
    start = TEXT.index(f"| {first} |")
    table = TEXT[start:].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def test_the_table_of_methods() -> None:
    said = [(int(row[0]), row[1], row[2], row[3], row[4]) for row in rows("id")]
    answer = {True: "yes", False: "no"}
    assert said == [
        (
            method.id,
            f"`{method.name}({', '.join(method.arguments)})`",
            method.result or "-",
            answer[method.interfaces],
            answer[method.session],
        )
        for method in wmi.SESSION_METHODS.values()
    ]


def test_the_table_of_codes() -> None:
    said = [(int(row[0], 16), row[1], int(row[2], 16), row[3], row[4]) for row in rows("function")]
    assert said == [
        (
            ioctl.function,
            ioctl.name,
            ioctl.code,
            "-" if ioctl.in_size is None else str(ioctl.in_size),
            "-" if ioctl.out_size is None else str(ioctl.out_size),
        )
        for ioctl in IOCTLS
    ]
