"""docs/reference/xenbus.md: its tables are the code's, and it is one page."""

from __future__ import annotations

import re
from pathlib import Path

from xenpv.bus.balloon import BalloonInterface
from xenpv.bus.cache import CacheInterface
from xenpv.bus.console import ConsoleInterface
from xenpv.bus.debug import DebugInterface
from xenpv.bus.dump import SECTIONS
from xenpv.bus.evtchn import EvtchnInterface
from xenpv.bus.gnttab import GnttabInterface
from xenpv.bus.interface import Interface
from xenpv.bus.range_set import RangeSetInterface
from xenpv.bus.shared_info import SharedInfoInterface
from xenpv.bus.store import StoreInterface
from xenpv.bus.suspend import SuspendInterface
from xenpv.bus.unplug import UnplugInterface
from xenpv.bus.xenbus import EXPORTED
from xenpv.bus.xenfilt import EmulatedInterface

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/reference/xenbus.md").read_text(encoding="utf-8")

INTERFACES: tuple[type[Interface], ...] = (
    EvtchnInterface, GnttabInterface, StoreInterface, SuspendInterface, SharedInfoInterface, DebugInterface,
    CacheInterface, RangeSetInterface, UnplugInterface, ConsoleInterface, EmulatedInterface, BalloonInterface,
)  # fmt: skip


def rows(first: str) -> list[list[str]]:
    """The cells of the table whose header begins with that cell."""
    table = TEXT[TEXT.index(f"| {first} |") :].split("\n\n", 1)[0].splitlines()[2:]
    return [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        for row in table
    ]


def versions(one: type[Interface]) -> str:
    first, last = min(one.OPERATIONS), max(one.OPERATIONS)
    return str(first) if first == last else f"{first}-{last}"


def test_the_table_of_interfaces() -> None:
    assert [tuple(row[at] for at in (0, 2, 3)) for row in rows("interface")] == [
        (one.NAME, one.GUID, versions(one)) for one in INTERFACES
    ]


def test_no_interface_is_missing_in_the_table() -> None:
    """Those of the package, by what a module says of itself."""
    found = {
        name
        for path in (ROOT / "xenpv/bus").glob("*.py")
        for name in re.findall(r'^    NAME = "(\w+)"$', path.read_text(), re.MULTILINE)
    }
    assert found == {row[0] for row in rows("interface")}


def test_what_children_may_ask_for_and_where_it_is() -> None:
    for name, attribute, _guid, _versions, children, module in rows("interface"):
        if name == "EMULATED":
            continue
        attribute = attribute.strip("`")
        assert attribute == name.lower()
        assert (children == "yes") == (attribute in EXPORTED), name
        for one in re.findall(r"`(\w+)`", module):
            assert (ROOT / f"xenpv/bus/{one}.py").exists(), one


def test_the_table_of_the_dump_is_in_its_order() -> None:
    said = [row[0].strip("`") for row in rows("prefix")]
    assert said[: len(SECTIONS)] == [prefix for prefix, _section in SECTIONS]


def test_the_sections_are_in_the_order_in_which_they_are_needed() -> None:
    assert re.findall(r"^## (.*)$", TEXT, re.MULTILINE) == [
        "The interfaces",
        "The bus and its children",
        "Platform devices, xenfilt and unplug",
        "Event channels, store, suspend and time",
        "Caches, range sets, grants and the balloon",
        "Logs, crashes and the debug dump",
    ]
    assert (
        len(re.findall(r"^# ", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL), re.MULTILINE)) == 1
    )


def test_no_paragraph_is_there_twice() -> None:
    paragraphs = [one for one in TEXT.split("\n\n") if len(one) > 60]
    assert len(paragraphs) == len(set(paragraphs))


def test_the_architecture_names_every_module_of_the_bus_and_of_iface() -> None:
    text = (ROOT / "docs/explanation/architecture.md").read_text(encoding="utf-8")
    for package in ("bus", "iface"):
        start = text.index(f"| module of `{package}` |")
        table = text[start:].split("\n\n", 1)[0].splitlines()[2:]
        named = [one for row in table for one in re.findall(r"`(\w+)`", row.split("|")[1])]
        there = {path.stem for path in (ROOT / "xenpv" / package).glob("*.py")} - {"__init__"}
        assert sorted(named) == sorted(there)
