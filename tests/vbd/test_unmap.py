"""UNMAP parameter lists, byte for byte, and what is read of those that lie."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpv.vbd import unmap

ONE = "0000000000000008 00000010 00000000"
TWO = "0000000000000064 00000001 00000000"


def test_a_list_and_its_command() -> None:
    data = unmap.build([(8, 16), (100, 1)])
    assert data == bytes.fromhex("0026 0020 00000000" + ONE + TWO)
    assert unmap.cdb(len(data)) == bytes.fromhex("42 00 00000000 00 0028 00")
    assert unmap.build([]) == bytes.fromhex("0006 0000 00000000")
    assert len(unmap.build([(0, 0)] * 4095)) == 65528
    assert unmap.DESCRIPTORS_MAX == 4095


LISTS = [
    # header and descriptors, what is read of them, whether the header promises more
    ("0006 0000 00000000", [], False),
    ("0016 0010 00000000" + ONE, [(8, 16)], False),
    ("0000 0010 ffffffff" + ONE, [(8, 16)], False),  # the data length is not looked at
    ("0026 0010 00000000" + ONE + TWO, [(8, 16)], False),
    ("0026 0020 00000000" + ONE + TWO, [(8, 16), (100, 1)], False),
    ("0026 0020 00000000" + ONE, [(8, 16)], True),
    ("0026 fff0 00000000" + ONE, [(8, 16)], True),
    ("0026 001f 00000000" + ONE + TWO, [(8, 16)], False),  # a descriptor that is not whole
    ("0026 0020 00000000" + ONE + TWO[:-2], [(8, 16)], True),
    ("0026 000f 00000000" + ONE, [], False),
    ("0026 0010 00000000", [], True),
]


@pytest.mark.parametrize(("text", "ranges", "more"), LISTS)
def test_what_is_read_of_a_list(text: str, ranges: list[tuple[int, int]], more: bool) -> None:
    data = bytes.fromhex(text)
    assert unmap.parse(data) == ranges
    assert unmap.promises_more(data) is more


@given(data=st.binary(min_size=8, max_size=100))
def test_no_list_is_read_past_its_end(data: bytes) -> None:
    assert len(unmap.parse(data)) <= (len(data) - 8) // 16


RANGES = st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)), max_size=20)


@given(ranges=RANGES)
def test_what_was_built_is_read_back(ranges: list[tuple[int, int]]) -> None:
    data = unmap.build(ranges)
    assert unmap.parse(data) == ranges
    assert not unmap.promises_more(data)
