"""Whose line it was: the innermost frame that is neither xenpv's nor the standard library's."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any, Final

import attrs

from xenpv.errors import XenpvError

PACKAGE: Final = str(Path(__file__).parents[2]) + "/"
STDLIB: Final = sysconfig.get_paths()["stdlib"] + "/"
# Installed below the standard library's directory, and yet no part of it.
INSTALLED: Final = ("site-packages", "dist-packages")


@attrs.frozen
class Place:
    """A line of a user's driver."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


class UserEndError(XenpvError):
    """A driver under test broke a rule of the kit; `file`, `line` and `function` are its own.

    The exception that it raised, if it raised one, is the cause.
    """

    def __init__(self, place: Place, what: str) -> None:
        self.file = place.file
        self.line = place.line
        self.function = place.function
        self.what = what
        super().__init__(f"{place}: {what}")


# Functions of ours that run a user's code in another language: where in that code it is now.
FOREIGN: Final[dict[CodeType, Callable[[FrameType], Callable[[], Place]]]] = {}


@lru_cache(maxsize=1024)
def is_users(file: str) -> bool:
    """Whether a file is neither of xenpv nor of Python."""
    if file.startswith((PACKAGE, "<frozen ")):
        return False
    return not file.startswith(STDLIB) or any(part in file for part in INSTALLED)


def caller(frame: FrameType | None = None) -> Place | None:
    """Where the innermost code of a user is, from `frame` (None: here) outwards."""
    at = sys._getframe(1) if frame is None else frame
    inner: FrameType | None = at
    while inner is not None:
        code = inner.f_code
        foreign = FOREIGN.get(code)
        if foreign is not None:
            return foreign(inner)()
        if is_users(code.co_filename):
            return Place(code.co_filename, inner.f_lineno, code.co_name)
        inner = inner.f_back
    return None


def raised_at(traceback: TracebackType | None) -> Place | None:
    """The innermost line of a user's that an exception came through."""
    found = None
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if is_users(code.co_filename):
            found = Place(code.co_filename, traceback.tb_lineno, code.co_name)
        traceback = traceback.tb_next
    return found


def defined_at(function: Any) -> Place:
    """Where something callable is written: for what fails before its first line."""
    while isinstance(function, partial):
        function = function.func
    if isinstance(function, type):
        function = function.__init__  # type: ignore[misc]  # it is looked at, not called
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if isinstance(code, CodeType):
        return Place(code.co_filename, code.co_firstlineno, code.co_name)
    kind = type(function)
    call = getattr(kind.__call__, "__code__", None)
    if isinstance(call, CodeType):
        return Place(call.co_filename, call.co_firstlineno, call.co_name)
    return Place(str(getattr(function, "__module__", kind.__module__)), 0, repr(function))
