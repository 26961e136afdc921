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


def active() -> tuple[str, ...]:
    """The defects that are on now, in the order in which they were turned on."""
    return tuple(_active)


@contextmanager
def turned_on(found: Defect) -> Iterator[Defect]:
    """Make its changes while the context lasts. LocalProtocolError: it is on already."""
    if found.id in _active:
        raise LocalProtocolError(f"the defect {found.id} is on already")
    saved: list[tuple[Any, str, Any]] = []
    _active.append(found.id)
    try:
        for where, attribute, change in found.changes:
            # vars() and not getattr: what is put back must be what the class itself has.
            before = vars(where)[attribute]
            saved.append((where, attribute, before))
            setattr(where, attribute, change(before))
        yield found
    finally:
        for where, attribute, before in reversed(saved):
            setattr(where, attribute, before)
        _active.remove(found.id)
