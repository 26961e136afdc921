"""Sums of the kernel, against the vectors of their specifications."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rss import KEY, VECTORS, Vector
from xenpv.abi._kernel import lib
from xenpv.host.packet import internet_checksum


@pytest.mark.parametrize("vector", VECTORS, ids=lambda one: one.source)
def test_toeplitz(vector: Vector) -> None:
    for data, expected in (
        (vector.packed, vector.addresses),
        (vector.packed + vector.ports, vector.with_tcp),
    ):
        assert lib.toeplitz(KEY, len(KEY), data, len(data)) == expected


@given(st.binary(max_size=40), st.binary(max_size=36), st.binary(max_size=36))
def test_toeplitz_is_linear_in_its_input(key: bytes, one: bytes, other: bytes) -> None:
    size = min(len(one), len(other))
    both = bytes(a ^ b for a, b in zip(one, other, strict=False))
    hashes = [lib.toeplitz(key, len(key), data[:size], size) for data in (one, other, both)]
    assert hashes[0] ^ hashes[1] == hashes[2]


def test_toeplitz_with_an_empty_key_or_input_is_0() -> None:
    assert lib.toeplitz(b"", 0, b"\xff" * 36, 36) == 0
    assert lib.toeplitz(KEY, len(KEY), b"", 0) == 0


def test_the_sum_of_rfc_1071() -> None:
    data = bytes.fromhex("0001f203f4f5f6f7")
    assert lib.checksum_internet(data, 8, 0) == 0xDDF2


@given(st.binary(max_size=70), st.binary(max_size=70))
def test_the_sum_is_that_of_the_packets_in_python(head: bytes, tail: bytes) -> None:
    head += bytes(len(head) % 2)  # the tail begins on an even byte
    partial = lib.checksum_internet(head, len(head), 0)
    whole = lib.checksum_internet(tail, len(tail), partial)
    # 0 and 0xffff are one sum: the two differ in which they give.
    assert whole % 0xFFFF == (internet_checksum(head + tail) ^ 0xFFFF) % 0xFFFF
