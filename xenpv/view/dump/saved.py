"""Saved guests (`xenpv run --save`): their rings, found by their own drivers' objects.

A save file has the guest's memory and its objects as data (docs/reference/save-file.md). A ring is
an object with the pages it lies in; what it belongs to is the nearest object that holds it and
has a device's number. Grant table and event channels are Xen's, and in no save file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs

from xenpv.errors import ConfigError
from xenpv.migration import savefile
from xenpv.migration.pages import runs_of
from xenpv.migration.stream import HEADER, Record, RecordType, StreamError
from xenpv.view.dump.memory import PAGE_SIZE, SPECIAL, Known, Memory, select
from xenpv.view.dump.slots import SLOTS
from xenpv.view.dump.source import Selection
from xenpv.view.dump.table import Dumps

FRONT_RING: Final = ("xenpv.bus.ring", "FrontRing")
# Who has a device's number, as an object of which class under which name.
OWNERS: Final = {
    ("xenpv.vbd.target", "Target"): ("vbd", "devid"),
    ("xenpv.vbd.frontend", "Frontend"): ("vbd", "devid"),
    ("xenpv.vif.frontend", "Frontend"): ("vif", "number"),
    ("xenpv.vif.adapter", "Pdo"): ("vif", "number"),
}
STEPS_MAX: Final = 10_000  # from a ring to who has it
RINGS_MAX: Final = 4096
WRONG: Final = (TypeError, ValueError, LookupError, AttributeError)


def dumps(path: Path, wanted: Selection) -> Dumps:
    """What is found in a saved guest. ConfigError: the file is damaged, or of another version."""
    file = savefile.open_file(path)
    places: dict[int, int] = {}
    context: Any = None
    for record in file.records():
        try:
            if record.type == RecordType.PAGE_DATA:
                places.update(_places(record))
            elif record.type == RecordType.GUEST_CONTEXT:
                context = record.json()
        except StreamError as error:
            raise file.error(str(error)) from None
    memory = Memory(path, places)
    return select(memory, lambda: _known(context, path), wanted)


def _places(record: Record) -> Iterator[tuple[int, int]]:
    body = record.offset + HEADER.size
    for first, count, at in runs_of(record):
        for number in range(count):
            yield first + number, at and body + at + number * PAGE_SIZE


def _known(context: Any, path: Path) -> list[Known]:
    try:
        rings = list(_Objects(context).rings())
    except WRONG as error:
        text = f"its objects are not what this version saves: {type(error).__name__}"
        raise ConfigError(text, file=str(path)) from None
    return [*SPECIAL, *sorted(rings, key=lambda one: one.name)]


@attrs.frozen
class _Objects:
    """The tables of a guest's objects (xenpv.migration.encoding). Any of WRONG where it is none."""

    context: Any

    def rings(self) -> Iterator[Known]:
        objects = self.context["objects"]
        holders = self._holders(objects)
        found = 0
        for number, entry in enumerate(objects):
            if self._class(entry) != FRONT_RING or found >= RINGS_MAX:
                continue
            found += 1
            state = self._state(entry)
            pfns = tuple(int(pfn) for pfn in self._plain(state["pfns"]))
            kind = self._kind(state)
            if not kind or not pfns:
                continue
            owner = self._owner(number, holders)
            yield Known(f"{owner} {kind}" if owner else f"{kind} at pfn {pfns[0]:#x}", kind, pfns)

    def _class(self, entry: Any) -> tuple[str, str] | None:
        if entry and entry[0] in ("o", "s"):
            module, name, *_ = self.context["classes"][entry[1]]
            return module, name
        return None

    def _state(self, entry: Any) -> dict[str, Any]:
        """The fields of an object: of one that says what its state is, a dict's pairs."""
        if entry[0] == "o":
            _, _, names = self.context["classes"][entry[1]]
            return dict(zip(names, entry[2], strict=True))
        tag, number = entry[2]
        if tag != "r":
            raise ValueError(tag)
        return {str(key): value for key, value in self.context["objects"][number][1]}

    def _plain(self, value: Any) -> Any:
        """A tuple or a list of numbers."""
        tag, inner = value
        return inner if tag == "t" else self.context["objects"][inner][1]

    def _kind(self, state: dict[str, Any]) -> str:
        """By its name, else by its sizes."""
        name = state.get("kind", "")
        if name in SLOTS:
            return str(name)
        size = max(state["req_size"], state["rsp_size"])
        return next((one.name for one in SLOTS.values() if one.entry_size == size), "")

    @staticmethod
    def _holders(objects: Any) -> dict[int, list[int]]:
        """By object: those that refer to it."""
        found: dict[int, list[int]] = {}
        for number, entry in enumerate(objects):
            for reference in _references(entry):
                found.setdefault(reference, []).append(number)
        return found

    def _owner(self, ring: int, holders: dict[int, list[int]]) -> str:
        """`vbd/51712`: the nearest holder that has a device's number."""
        seen = {ring}
        waiting = [ring]
        for number in waiting:
            if len(waiting) > STEPS_MAX:
                break
            owner = OWNERS.get(self._class(self.context["objects"][number]) or ("", ""))
            if owner is not None:
                device, field = owner
                value = self._state(self.context["objects"][number]).get(field)
                if type(value) is int:
                    return f"{device}/{value}"
            for holder in holders.get(number, ()):
                if holder not in seen:
                    seen.add(holder)
                    waiting.append(holder)
        return ""


def _references(value: Any) -> Iterator[int]:
    """Numbers of the objects that a value, or an entry, refers to."""
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, list):
            if len(one) == 2 and one[0] == "r" and type(one[1]) is int:
                yield one[1]
            else:
                stack += one
