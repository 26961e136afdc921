"""Every kind of value that a driver may hold, there and back; what is one object stays one."""

from __future__ import annotations

import enum
import json
import math
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.migration import copy
from xenpv import Guest, Platform
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.host.libxl import ToolstackError

TRUSTED = ("tests.migration.test_values",)


class Colour(enum.Enum):
    RED = 1


class Bits(enum.IntFlag):
    A = 1
    B = 2
    C = 4


class Pair(NamedTuple):
    left: object
    right: object


@attrs.frozen
class Frozen:
    name: str
    number: int = 0


@attrs.define(eq=False)
class Slots:
    value: object = None


class Here:
    """With a dict, and a method that is a callback."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def call(self, *arguments: object) -> None:
        self.calls.append(arguments)


NAMED = Frozen("named")


def function(*arguments: object) -> object:
    return arguments


def there_and_back(value: object) -> Any:
    """A value of a guest, in the guest that was rebuilt."""
    with Platform(seed=1) as xen:
        guest = xen.create(name="web", personality="linux").start()
        guest.suspend()
        put(guest, value)
        saved = copy.save(guest, TRUSTED)
        guest.destroy()
        return taken(copy.load(xen, guest.created.config, saved, TRUSTED))


def put(guest: Guest, value: object) -> None:
    vars(guest.bus)["problem"] = Slots(value)


def taken(guest: Guest) -> Any:
    return vars(guest.bus)["problem"].value


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -1, 1 << 80, "", "a\0\u20ac\ud800", 1.5, -0.0, math.inf, -math.inf,
        b"", b"\0\xff", bytearray(b"ab"), UUID(int=7), (), (1, (2, "x")), [1, [2]], {},
        {1: "a", "1": "b", (1, 2): "c", None: 4}, {3, 1, 2}, frozenset({"a", "b"}),
        deque([1, 2], maxlen=3), Colour.RED, Bits.A | Bits.C, Bits(0), NTSTATUS.TIMEOUT,
        Pair(1, [2]), Frozen("x", 3), {Frozen("key"): 1}, {Frozen("one"), Frozen("two")},
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)  # fmt: skip
def test_a_value_is_equal_and_of_its_type(value: object) -> None:
    back = there_and_back([value])
    assert back == [value]
    assert type(back[0]) is type(value)
    if isinstance(value, deque):
        assert back[0].maxlen == value.maxlen
    if isinstance(value, float):
        assert math.copysign(1, back[0]) == math.copysign(1, value)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.binary(), st.floats()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.builds(Slots, inner),
        st.builds(Pair, inner, inner),
    ),
    max_leaves=12,
)


def test_values_in_values_are_equal() -> None:
    with Platform(seed=1) as xen:
        guest = xen.create(name="web", personality="linux").start()
        guest.suspend()
        put(guest, None)
        _, domain, pages = copy.save(guest, TRUSTED)

        @settings(max_examples=40)
        @given(VALUES)
        def check(value: object) -> None:
            put(guest, value)
            text = copy.text_of(guest, TRUSTED)
            config = attrs.evolve(guest.created.config, name="other", uuid=None)
            new = copy.load(xen, config, (text, domain, pages), TRUSTED)
            assert repr(taken(new)) == repr(value)
            assert json.loads(copy.text_before_it_runs(new, TRUSTED)) == json.loads(text)
            new.destroy()

        check()


def test_nan_is_none_of_json() -> None:
    assert math.isnan(there_and_back(math.nan))


def test_what_is_one_object_stays_one() -> None:
    shared: list[object] = [1]
    ring: list[object] = [shared, shared, {"again": shared}]
    ring.append(ring)
    slots = Slots()
    slots.value = (slots, ring)
    back = there_and_back(slots)
    again, ring = back.value
    assert again is back
    assert ring[3] is ring
    assert ring[0] is ring[1] is ring[2]["again"]
    assert ring[0] == [1]


def test_equal_objects_stay_two() -> None:
    first, second = there_and_back([[1], [1]])
    assert first == second
    assert first is not second


def test_functions_methods_and_classes_are_found_by_name() -> None:
    here = Here()
    back = there_and_back([here, here.call, function, Here, partial(here.call, 1, b=2), NAMED])
    other, call, found, kind, part, named = back
    call(7)
    assert (other.calls, here.calls) == ([(7,)], [])
    assert found is function
    assert kind is Here
    assert part.func.__self__ is other
    assert (part.args, part.keywords) == ((1,), {"b": 2})
    assert named is NAMED, "a constant of its module"


def test_an_exception_is_what_it_was_without_where_it_was_raised() -> None:
    def fail() -> None:
        raise NtStatusError(NTSTATUS.NOT_SUPPORTED, "no", operation="XENBUS")

    with pytest.raises(NtStatusError) as raised:
        fail()
    back = there_and_back(raised.value)
    assert (str(back), back.status) == (str(raised.value), NTSTATUS.NOT_SUPPORTED)
    assert back.__traceback__ is None


def closure() -> Callable[[], object]:
    return lambda: None


class Int(int):
    """A subclass of what is written as itself."""


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (closure(), "function tests.migration.test_values.closure.<locals>.<lambda>"),
        (print, "print()"),
        ([].append, "list.append()"),
        ((n for n in (1, 2)), "an open generator <genexpr>"),
        (memoryview(b""), "an object of builtins.memoryview"),
        (json, "an object of builtins.module"),
        (object, "class builtins.object"),
        (Int(3), "an object of tests.migration.test_values.Int"),
        (complex(1, 2), "an object of builtins.complex"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_anything_else_is_refused(value: object, said: str) -> None:
    with pytest.raises(ToolstackError) as refused:
        there_and_back({"key": [value]})
    assert str(refused.value).endswith(
        f"bus.problem.value['key'][0]: {said} of the caller cannot be saved"
    )


def test_no_constructor_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    value = [Here(), Frozen("x")]

    def ran(*_arguments: object, **_named: object) -> None:
        raise AssertionError("a constructor")

    for kind in (Here, Frozen):
        monkeypatch.setattr(kind, "__init__", ran)
    assert [type(one) for one in there_and_back(value)] == [Here, Frozen]
