"""Tapes of platforms that somebody else makes: those of a replay, of a case, of a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from xenpv.platform import Platform
from xenpv.view.tape import EVENTS_MAX, Tape

SEAM: Final = "__init__"


@contextmanager
def recording(limit: int = EVENTS_MAX) -> Iterator[list[Tape]]:
    """Give each loop that is made while the context lasts a tape; the list has them by age.

    A platform that joins another's loop is on that one's tape. Platforms that have a tape of
    their own keep it, and are not in the list.
    """
    tapes: list[Tape] = []
    make = Platform.__init__

    def made(platform: Platform, *, tape: Tape | None = None, **parameters: Any) -> None:
        if tape is None and parameters.get("loop") is None:
            tape = Tape(limit=limit)
            tapes.append(tape)
        make(platform, tape=tape, **parameters)

    setattr(Platform, SEAM, made)
    try:
        yield tapes
    finally:
        setattr(Platform, SEAM, make)
