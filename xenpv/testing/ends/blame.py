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
# What xenpv itself is made with.
LIBRARIES: Final = tuple(f"{part}/{name}/" for part in INSTALLED for name in ("attr", "cffi"))


def shown(file: str) -> str:
    """A file as people are told of it: from the working directory where it is below that."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


@attrs.frozen
class Place:
    """A line of a user's driver."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{shown(self.file)}:{self.line} in {self.function}"


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
    if file.startswith((PACKAGE, "<frozen ", "<attrs ")) or any(part in file for part in LIBRARIES):
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
    """Where something callable is written: for what fails before or beyond its lines.

    A method that a user's class has from one of ours is at that class.
    """
    while isinstance(function, partial):
        function = function.func
    if isinstance(function, type):
        return _of_class(function)
    code = _code(getattr(function, "__func__", function))
    if code is not None and is_users(code.co_filename):
        return Place(code.co_filename, code.co_firstlineno, code.co_name)
    owner = getattr(function, "__self__", function)
    return _of_class(type(owner))


def _code(function: Any) -> CodeType | None:
    code = getattr(function, "__code__", None)
    return code if isinstance(code, CodeType) else None


def _of_class(kind: type) -> Place:
    """The first function that is written in a class, or in one that it is made of."""
    for one in kind.__mro__:
        for found in vars(one).values():
            code = _code(found)
            if code is not None and is_users(code.co_filename):
                named = found.__name__ if found.__name__ == "__init__" else one.__name__
                return Place(code.co_filename, code.co_firstlineno, named)
    return Place(kind.__module__, 0, kind.__qualname__)
