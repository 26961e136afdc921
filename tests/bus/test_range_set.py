"""RANGE_SET: every operation by its situations, and against a set of integers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpv.bus.interface import InterfaceVersion, query_interface
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.range_set import RangeSet, RangeSetInterface
from xenpv.errors import LocalProtocolError

GUID = "EE7E78A2-6847-48C5-B123-BB012F0EABF4"
NONE = 0xC000_000D
NO_RUN = 0xC000_009A
ASSERTED = "assert"

MIN, MAX = -(1 << 63), (1 << 63) - 1


def opened() -> tuple[InterfaceVersion, RangeSet]:
    interface = query_interface([RangeSetInterface()], GUID, 1)
    interface.acquire()
    return interface, interface.create("r")


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except NtStatusError as error:
        return int(error.status)
    except LocalProtocolError:
        return ASSERTED


def put(*ranges: tuple[int, int]) -> Any:
    return [("put", start, count) for start, count in ranges]


# What was done before, the operation, what it answers, the ranges then.
ROWS = [
    ("put: into an empty set", [], ("put", 10, 5), None, [(10, 14)]),
    ("put: nothing", [], ("put", 10, 0), NONE, []),
    ("put: a negative count", [], ("put", 10, -1), NONE, []),
    ("put: negative numbers", [], ("put", -3, 2), None, [(-3, -2)]),
    ("put: all there are", [], ("put", MIN, 1 << 64), None, [(MIN, MAX)]),
    ("put: the lowest", [], ("put", MIN, 1), None, [(MIN, MIN)]),
    ("put: the highest", [], ("put", MAX, 1), None, [(MAX, MAX)]),
    ("put: beyond the highest", [], ("put", MAX, 2), ASSERTED, []),
    ("put: below the lowest", [], ("put", MIN - 1, 2), ASSERTED, []),
    ("put: apart", put((10, 5)), ("put", 16, 2), None, [(10, 14), (16, 17)]),
    ("put: apart, below", put((10, 5)), ("put", 7, 2), None, [(7, 8), (10, 14)]),
    ("put: touches the end", put((10, 5)), ("put", 15, 2), None, [(10, 16)]),
    ("put: touches the start", put((10, 5)), ("put", 8, 2), None, [(8, 14)]),
    ("put: fills a gap", put((10, 5), (17, 3)), ("put", 15, 2), None, [(10, 19)]),
    ("put: fills a gap around zero", put((-5, 5), (1, 3)), ("put", 0, 1), None, [(-5, 3)]),
    ("put: is there", put((10, 5)), ("put", 12, 1), ASSERTED, [(10, 14)]),
    ("put: overlaps the end", put((10, 5)), ("put", 14, 2), ASSERTED, [(10, 14)]),
    ("put: overlaps the start", put((10, 5)), ("put", 9, 2), ASSERTED, [(10, 14)]),
    ("put: spans a range", put((10, 5)), ("put", 5, 100), ASSERTED, [(10, 14)]),
    ("put: from the same start", put((10, 5)), ("put", 10, 1), ASSERTED, [(10, 14)]),
    ("pop: one of a range", put((10, 5)), ("pop", 1), 10, [(11, 14)]),
    ("pop: the lowest", put((10, 5), (-4, 2)), ("pop", 1), -4, [(-3, -3), (10, 14)]),
    (
        "pop: the first that fits",
        put((10, 2), (20, 5), (30, 3)),
        ("pop", 3),
        20,
        [(10, 11), (23, 24), (30, 32)],
    ),
    ("pop: a whole range", put((10, 2), (20, 5)), ("pop", 5), 20, [(10, 11)]),
    ("pop: none", put((10, 2)), ("pop", 0), NONE, [(10, 11)]),
    ("pop: no run is long enough", put((10, 2), (20, 2)), ("pop", 3), NO_RUN, [(10, 11), (20, 21)]),
    ("pop: an empty set", [], ("pop", 1), NO_RUN, []),
    ("get: the first", put((10, 5)), ("get", 10, 1), None, [(11, 14)]),
    ("get: the last", put((10, 5)), ("get", 14, 1), None, [(10, 13)]),
    ("get: the middle splits", put((10, 5)), ("get", 12, 1), None, [(10, 11), (13, 14)]),
    ("get: all but the last", put((10, 5)), ("get", 11, 3), None, [(10, 10), (14, 14)]),
    ("get: all of it", put((10, 5)), ("get", 10, 5), None, []),
    ("get: none", put((10, 5)), ("get", 10, 0), NONE, [(10, 14)]),
    ("get: is not there", put((10, 5)), ("get", 15, 1), ASSERTED, [(10, 14)]),
    ("get: below all", put((10, 5)), ("get", 9, 1), ASSERTED, [(10, 14)]),
    ("get: runs past the end", put((10, 5)), ("get", 13, 3), ASSERTED, [(10, 14)]),
    ("get: over a gap", put((10, 5), (16, 5)), ("get", 13, 5), ASSERTED, [(10, 14), (16, 20)]),
    ("get: of an empty set", [], ("get", 1, 1), ASSERTED, []),
    ("destroy: is empty", [], ("destroy",), None, []),
    ("destroy: is not", put((10, 5)), ("destroy",), ASSERTED, [(10, 14)]),
    ("put: destroyed", [("destroy",)], ("put", 1, 1), ASSERTED, []),
    ("pop: destroyed", [("destroy",)], ("pop", 1), ASSERTED, []),
    ("get: destroyed", [("destroy",)], ("get", 1, 1), ASSERTED, []),
    ("destroy: destroyed", [("destroy",)], ("destroy",), ASSERTED, []),
]


@pytest.mark.parametrize(
    ("before", "call", "answer", "ranges"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_operation(before: list[Any], call: Any, answer: Any, ranges: list[Any]) -> None:
    interface, range_set = opened()
    for name, *arguments in before:
        getattr(interface, name)(range_set, *arguments)
    name, *arguments = call
    assert outcome(lambda: getattr(interface, name)(range_set, *arguments)) == answer
    assert range_set.ranges() == ranges


def test_a_set_that_is_left_is_told_at_the_last_release() -> None:
    interface, range_set = opened()
    with pytest.raises(LocalProtocolError, match="RANGE_SET is released with range set r"):
        interface.release()
    with pytest.raises(LocalProtocolError, match="it is not acquired"):
        interface.pop(range_set, 1)


def test_the_structure_and_its_versions() -> None:
    assert query_interface([RangeSetInterface()], GUID, 1).size == 88
    for version in (0, 2):
        with pytest.raises(NtStatusError, match="^NOT_SUPPORTED"):
            query_interface([RangeSetInterface()], GUID, version)


def _first_fit(model: set[int], count: int) -> int | None:
    return next((n for n in sorted(model) if model.issuperset(range(n, n + count))), None)


STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "pop", "get"]), st.integers(-6, 6), st.integers(0, 5)),
    max_size=60,
)


@given(STEPS)
def test_it_is_a_set_of_integers(steps: list[tuple[str, int, int]]) -> None:
    interface = RangeSetInterface()
    range_set = interface.create("m")
    model: set[int] = set()
    for operation, start, count in steps:
        numbers = set(range(start, start + count))
        expected: Any = None
        if count == 0:
            expected = NTSTATUS.INVALID_PARAMETER
        elif operation == "put":
            expected = ASSERTED if model & numbers else None
            model = model if expected else model | numbers
        elif operation == "get":
            expected = None if numbers <= model else ASSERTED
            model = model if expected else model - numbers
        else:
            expected = _first_fit(model, count)
            if expected is None:
                expected = NTSTATUS.INSUFFICIENT_RESOURCES
            else:
                model -= set(range(expected, expected + count))
        if operation == "pop":
            assert outcome(lambda: interface.pop(range_set, count)) == expected  # noqa: B023 - called here
        else:
            call = getattr(interface, operation)
            assert outcome(lambda: call(range_set, start, count)) == expected  # noqa: B023 - called here
        ranges = range_set.ranges()
        assert [n for first, last in ranges for n in range(first, last + 1)] == sorted(model)
        # No two touch, none is empty.
        assert all(last + 1 < first for (_, last), (first, _) in pairwise(ranges))
        assert all(first <= last for first, last in ranges)
