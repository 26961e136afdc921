"""What a driver under test has taken and not given back, and which line of it did."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from xenpv.testing.ends.blame import Place, caller
from xenpv.testing.ends.guard import Guard


@attrs.frozen(eq=False)
class Holding:
    """A page, a reference, a mapping, a port, a watch or a timer; `value` is what undoes it."""

    kind: str
    value: Any
    what: str
    place: Place | None


class Held:
    """Everything that one driver holds, by its kind and number, oldest first."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._all: dict[tuple[str, int], Holding] = {}

    def take(self, kind: str, number: int, value: Any, what: str) -> None:
        self._all[kind, number] = Holding(kind, value, what, caller())

    def has(self, kind: str, number: int) -> bool:
        return (kind, number) in self._all

    def find(self, kind: str, number: int) -> Any:
        """Its value. What is not there is refused."""
        found = self._all.get((kind, number))
        if found is None:
            self._guard.refuse(f"{kind} {number:#x} is none of this end's")
        return found.value

    def drop(self, kind: str, number: int) -> Any:
        """Its value, and it is gone. What is not there is refused."""
        value = self.find(kind, number)
        del self._all[kind, number]
        return value

    def each(self, kind: str = "") -> Iterator[tuple[int, Holding]]:
        """Of a kind ("": of all), oldest first: numbers and what they are."""
        return iter([(number, one) for (of, number), one in self._all.items() if kind in ("", of)])
