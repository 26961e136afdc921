"""A defect of the zoo, and the one way to turn it on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import attrs

from xenpv.errors import LocalProtocolError

# (where, name of the attribute, what takes its place given what was there)
Mutation = tuple[Any, str, Callable[[Any], Any]]

BOTH: Final = "both"


def becomes(value: Any) -> Callable[[Any], Any]:
    """A constant that is another."""
    return lambda _original: value


def forgets(_original: Any) -> Any:
    """A method that does nothing of what it should."""

    def nothing(*_arguments: Any) -> None:
        """What should be done here is not."""

    return nothing


@attrs.frozen
class Defect:
    """One entry. `end` has the mistake, `mutation` says it.

    `hunt` is the hunt of the kit that finds it soonest: `scenario:blk_requests`,
    `case:BLKB-012`, `overlay:blk-backend` or, of a life cycle, its steps: `lifecycle:reboot:0:1`.
    """

    id: str
    end: str
    mutation: str
    hunt: str
    changes: tuple[Mutation, ...]


_active: list[str] = []
# What was there before, oldest first, of every defect that is on.
_saved: dict[str, list[tuple[Any, str, Any]]] = {}


def active() -> tuple[str, ...]:
    """The defects that are on now, in the order in which they were turned on."""
    return tuple(_active)


@contextmanager
def turned_on(found: Defect) -> Iterator[Defect]:
    """Make its changes while the context lasts. LocalProtocolError: it is on already."""
    if found.id in _active:
        raise LocalProtocolError(f"the defect {found.id} is on already")
    saved = _saved[found.id] = []
    _active.append(found.id)
    try:
        for where, attribute, change in found.changes:
            # vars() and not getattr: what is put back must be what the class itself has.
            before = vars(where)[attribute]
            saved.append((where, attribute, before))
            setattr(where, attribute, change(before))
        yield found
    finally:
        _put_back(found.id)


def _put_back(name: str) -> None:
    for where, attribute, before in reversed(_saved.pop(name, [])):
        setattr(where, attribute, before)
    if name in _active:
        _active.remove(name)


def turn_off() -> None:
    """Put everything back, where a `with` was left open: newest first."""
    for name in reversed(_active.copy()):
        _put_back(name)
