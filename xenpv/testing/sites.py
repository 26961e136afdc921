"""Where in somebody's driver an access is made: file and line, of Python and of C.

    result = explore(scenario)
    print(result.failure)   # d0 fetches ... twice: first at mine.py:41 in serve, then at ...

A line costs a walk over the stack, so an exploration does not keep them: a failing run is run
once more with `Sites` on it, which is told of every access and keeps who read each byte first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.testing.ends import blame

if TYPE_CHECKING:
    from xenpv.testing.access import DoubleFetch
    from xenpv.testing.ends.blame import Place

PACKAGE: Final = str(Path(__file__).parents[1]) + "/"
# Below a driver: accessors, rings, what a grant table does; and the kit itself.
BELOW: Final = ("xen/", "testing/", "bus/ring.py", "back/ring.py")
# Around a handler: what called it.
AROUND: Final = (f"{PACKAGE}xen/loop.py", f"{PACKAGE}testing/interleave.py")
READ: Final[int] = lib.ACCESS_READ
WRITE: Final[int] = lib.ACCESS_WRITE
COPY: Final[int] = lib.ACCESS_COPY

# A place that is looked up when somebody asks: addresses of C cost a program each.
Site = Callable[[], "Place | None"]


@lru_cache(maxsize=1024)
def _is_below(file: str) -> bool:
    return file.startswith(("<frozen ", *(PACKAGE + one for one in BELOW)))


def site(frame: FrameType | None = None) -> Site:
    """Of the access under way: the innermost line of a user's in the handler that runs, or of our
    own driver's if it is none of a user's.
    """
    at: FrameType | None = sys._getframe(1) if frame is None else frame
    ours: tuple[CodeType, int] | None = None
    while at is not None:
        code = at.f_code
        foreign = blame.FOREIGN.get(code)
        if foreign is not None:
            return foreign(at)
        file = code.co_filename
        if file in AROUND:
            break
        if blame.is_users(file):
            return _at(code, at.f_lineno)
        if ours is None and not _is_below(file):
            ours = (code, at.f_lineno)
        at = at.f_back
    return _at(*ours) if ours is not None else _nowhere


def _at(code: CodeType, line: int) -> Site:
    return lambda: blame.Place(code.co_filename, line, code.co_name)


def _nowhere() -> None:
    return None


def users_site() -> Place | None:
    """The same, but only of a user's driver."""
    place = site()()
    return place if place is not None and blame.is_users(place.file) else None


class Sites:
    """Of one machine: who fetched each byte first in its delivery, and who fetched it again."""

    def __init__(self) -> None:
        # By actor and whether Xen reads for it, then frame and byte.
        self._first: dict[tuple[int, int], dict[int, dict[int, Site]]] = {}
        self._twice: dict[tuple[int, int, int, int], tuple[Site, Site]] = {}

    def deliver(self, actor: int) -> None:
        """What `actor` read before may be read again (log.c)."""
        for by in (0, COPY):
            self._first.pop((actor, by), None)

    def access(self, actor: int, kind: int, frame: int, offset: int, size: int) -> None:
        """Before it happens; kinds as the hook has them."""
        if kind & 3 == READ:
            self._read(actor, kind & COPY, frame, offset, size)
        elif kind & 3 == WRITE:
            known = self._first.get((actor, kind & COPY), {}).get(frame)
            if known:
                for at in range(offset, offset + size):
                    known.pop(at, None)

    def _read(self, actor: int, by: int, frame: int, offset: int, size: int) -> None:
        known = self._first.setdefault((actor, by), {}).setdefault(frame, {})
        now = site()
        again = [at for at in range(offset, offset + size) if at in known]
        if again:
            key = (actor, frame, again[0], again[-1] + 1 - again[0])
            self._twice.setdefault(key, (known[again[0]], now))
        for at in range(offset, offset + size):
            known.setdefault(at, now)

    def locate(self, twice: DoubleFetch) -> DoubleFetch:
        """With the lines of both fetches, if they were seen."""
        found = self._twice.get((twice.actor, twice.frame, twice.offset, twice.size))
        if found is None:
            return twice
        return attrs.evolve(twice, first=found[0](), again=found[1]())
