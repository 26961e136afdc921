"""Sums of the kernel that no driver uses yet, against the vectors of their specifications."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpv.abi._kernel import lib
from xenpv.host.packet import internet_checksum

# Microsoft, "Verifying the RSS Hash Calculation".
KEY = bytes.fromhex(
    "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
)
RSS = [
    (
        "42 09 95 bb  a1 8e 64 50  0a ea 06 e6",
        0x51CCC178,
    ),  # 66.9.149.187:2794 -> 161.142.100.80:1766
    ("42 09 95 bb  a1 8e 64 50", 0x323E8FC2),
    (
        "c7 5c 6f 02  41 45 8c 53  37 96 12 83",
        0xC626B0EA,
    ),  # 199.92.111.2:14230 -> 65.69.140.83:4739
    ("c7 5c 6f 02  41 45 8c 53", 0xD718262A),
    ("", 0),
]


@pytest.mark.parametrize(("data", "expected"), RSS)
def test_toeplitz(data: str, expected: int) -> None:
    raw = bytes.fromhex(data)
    assert lib.toeplitz(KEY, len(KEY), raw, len(raw)) == expected


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
