"""The defect zoo: known mistakes of real drivers, put back into ours one at a time.

    with zoo.defect("ring-back-no-final-check"):
        assert hunt().found

Off unless a `with` says otherwise, restored whatever happens in it: there is no other way to
turn one on. Each is one small mutation, applied to the driver from outside, so that the
drivers' code knows nothing of it. `DEFECTS` holds all of them by id; `MANDATORY` are those of
which the kit promises that it finds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Final

from xenpv.errors import LocalProtocolError
from xenpv.testing.zoo.defect import Defect, active, turned_on

__all__ = ["ROOMS", "Defect", "active", "all_defects", "defect"]

# Modules with a tuple `DEFECTS`; imported only when the zoo is entered.
ROOMS: Final = ("rings", "ids", "blk", "grants", "net", "bus", "store", "lifecycle")


def all_defects() -> dict[str, Defect]:
    """Every entry by id, in the order of ROOMS."""
    return {one.id: one for room in ROOMS for one in import_module(f"{__name__}.{room}").DEFECTS}


@contextmanager
def defect(name: str) -> Iterator[Defect]:
    """Turn one on while the context lasts. LocalProtocolError: unknown, or on already."""
    known = all_defects()
    if name not in known:
        raise LocalProtocolError(f"no defect is called {name!r}: expected {', '.join(known)}")
    with turned_on(known[name]) as found:
        yield found
