"""What a case says of the wire: what came, and what should have."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, TypeVar

from xenpv.errors import XenpvError

REPR_MAX: Final = 300
T = TypeVar("T")


class Wrong(XenpvError, AssertionError):  # noqa: N818 - it says what the end is
    """The end under test did something else than the case expects."""


def expect(got: Any, wanted: Any, what: str) -> None:
    """`what` came out as `wanted`. Raises Wrong, which names both."""
    if got != wanted:
        raise Wrong(f"{what}: got {_short(got)}, expected {_short(wanted)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= REPR_MAX else f"{text[:REPR_MAX]}..."


def expect_one(got: Any, wanted: Collection[Any], what: str) -> None:
    """`what` came out as one of `wanted`."""
    if got not in wanted:
        choices = " or ".join(repr(one) for one in wanted)
        raise Wrong(f"{what}: got {_short(got)}, expected {choices}")


def holds(true: object, what: str) -> None:
    """Raises Wrong(what) unless it is so."""
    if not true:
        raise Wrong(what)


def single(found: Collection[T], what: str) -> T:
    """The only one of them. Raises Wrong if there are none, or more."""
    if len(found) != 1:
        raise Wrong(f"{len(found)} {what}, expected one")
    return next(iter(found))
