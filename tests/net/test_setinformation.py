"""Sets of OIDs: BytesNeeded, BytesRead, status and what is left behind, one row for each."""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenpv.guest import Guest
from xenpv.net.adapter import Adapter
from xenpv.net.ndis import NdisStatus, NdisVersion
from xenpv.net.oid import OidAnswer, OidError, RequestType
from xenpv.platform import Platform, Vif

OK = NdisStatus.SUCCESS
PARAMETER = NdisStatus.INVALID_PARAMETER
LENGTH = NdisStatus.INVALID_LENGTH
DATA = NdisStatus.INVALID_DATA
NOT_SUPPORTED = NdisStatus.NOT_SUPPORTED

FILTER, LOOKAHEAD, LIST = 0x1010E, 0x1010F, 0x1010103
ENCAPSULATION, PARAMETERS, POWER = 0x101010A, 0xFC01020C, 0xFD010101
SCALE, HASH = 0x10204, 0x1021F
ON = pack("<BBH6I", 0xA8, 1, 28, 1, 2, 14, 1, 2, 14)
KEEP = bytes(26)


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Platform(seed=1) as xen:
        yield xen.create(name="g", vifs=[Vif(mtu=1400)]).start()


@pytest.fixture
def nic(guest: Guest) -> Adapter:
    return guest.nets[0]


def set_oid(nic: Adapter, oid: int, value: bytes) -> OidAnswer:
    return nic.oid_request(RequestType.SET_INFORMATION, oid, value)


# OID, value, status, BytesNeeded, BytesRead.
ROWS = [
    (FILTER, b"\x2f\0\0\0", OK, 4, 4),
    (FILTER, b"\0\0\0\0", OK, 4, 4),
    (FILTER, b"\x10\0\0\0", PARAMETER, 4, 0),
    (FILTER, b"\x40\0\0\0", PARAMETER, 4, 0),
    (FILTER, b"\0\0\0\x80", PARAMETER, 4, 0),
    (FILTER, b"", OK, 4, 0),
    (FILTER, b"\xff" * 3, OK, 4, 0),
    (FILTER, b"\xff" * 5, OK, 4, 0),
    (LOOKAHEAD, b"\x01\x02\0\0", OK, 4, 4),
    (LOOKAHEAD, b"", OK, 4, 0),
    (LOOKAHEAD, b"\x01\x02\0", OK, 4, 0),
    (LOOKAHEAD, b"\x01\x02\0\0\0", OK, 4, 0),
    (LIST, b"", OK, 6, 0),
    (LIST, bytes.fromhex("01005e000001"), OK, 6, 6),
    (LIST, bytes.fromhex("01005e000001") * 40, OK, 6, 240),
    (LIST, bytes.fromhex("01005e0000"), LENGTH, 6, 0),
    (LIST, bytes.fromhex("01005e00000133"), LENGTH, 6, 0),
    (LIST, bytes.fromhex("00163e000009"), DATA, 6, 0),
    (LIST, bytes.fromhex("01005e00000100163e000009"), DATA, 6, 0),
    (ENCAPSULATION, ON, OK, 28, 28),
    (ENCAPSULATION, ON + b"\xff", OK, 28, 28),
    (ENCAPSULATION, ON[:27], LENGTH, 28, 0),
    (ENCAPSULATION, b"", LENGTH, 28, 0),
    (ENCAPSULATION, pack("<4x6I", 1, 1, 14, 1, 2, 14), PARAMETER, 28, 0),
    (ENCAPSULATION, pack("<4x6I", 1, 2, 14, 1, 0, 14), PARAMETER, 28, 0),
    (ENCAPSULATION, pack("<4x6I", 0, 7, 14, 2, 9, 14), OK, 28, 28),
    (PARAMETERS, KEEP, OK, 26, 26),
    (PARAMETERS, KEEP + b"\xff" * 9, OK, 26, 26),
    (PARAMETERS, KEEP[:25], LENGTH, 26, 0),
    (PARAMETERS, b"", LENGTH, 26, 0),
    (SCALE, bytes(43), LENGTH, 44, 0),
    (HASH, bytes(19), LENGTH, 20, 0),
    (POWER, b"", OK, 4, 0),
    (POWER, b"\x01\0\0\0", OK, 4, 0),
    (POWER, b"\xff" * 9, OK, 4, 0),
    (0x10209, bytes(12), NOT_SUPPORTED, 0, 0),
    (0x1021A, b"", NOT_SUPPORTED, 0, 0),
    (0x10118, b"", NOT_SUPPORTED, 0, 0),
    (0x10101, b"", NOT_SUPPORTED, 0, 0),
    (0x1010101, bytes(6), NOT_SUPPORTED, 0, 0),
    (0x1010102, bytes(6), NOT_SUPPORTED, 0, 0),
    (0xFD010102, bytes(4), NOT_SUPPORTED, 0, 0),
    (0xFD010107, bytes(60), NOT_SUPPORTED, 0, 0),
    (0, b"", NOT_SUPPORTED, 0, 0),
    (0xFFFFFFFF, b"", NOT_SUPPORTED, 0, 0),
]
# Bytes of TCP_OFFLOAD_PARAMETERS that may hold nothing but 0: LsoV1, IPsecV1, TcpConnection for
# IPv4 and 6, IPsecV2 and IPsecV2IPv4.
FORBIDDEN = (9, 10, 13, 14, 20, 21)
ROWS += [(PARAMETERS, KEEP[:at] + b"\x01" + KEEP[at + 1 :], PARAMETER, 26, 0) for at in FORBIDDEN]


@pytest.mark.parametrize(("oid", "value", "status", "needed", "read"), ROWS)
def test_a_set_has_its_status_and_lengths(
    nic: Adapter, oid: int, value: bytes, status: NdisStatus, needed: int, read: int
) -> None:
    answer = set_oid(nic, oid, value)
    assert (answer.status, answer.bytes_needed, answer.bytes_read) == (status, needed, read)
    if status == OK:
        nic.set(oid, value)
    else:
        with pytest.raises(OidError) as caught:
            nic.set(oid, value)
        assert caught.value.status is status


@pytest.mark.parametrize(("version", "needed"), [("V6_30", 40), ("V6_60", 44), ("V6_85", 44)])
def test_scale_parameters_are_as_long_as_the_systems_ndis_has_them(
    nic: Adapter, version: str, needed: int
) -> None:
    other = Adapter(nic._vif, version=NdisVersion[version])
    answer = set_oid(other, SCALE, bytes(needed - 1))
    assert (answer.status, answer.bytes_needed) == (LENGTH, needed)
    assert set_oid(other, SCALE, bytes(needed)).status is not LENGTH


@pytest.mark.parametrize(
    ("value", "left"),
    [(b"\x01\x02\0\0", 0x201), (b"\x01\x02\0", 1418), (b"", 1418), (b"\xff" * 5, 1418)],
)
def test_a_lookahead_of_another_length_is_the_longest_frame(
    nic: Adapter, value: bytes, left: int
) -> None:
    assert nic.query(LOOKAHEAD) == bytes(4)
    nic.set(LOOKAHEAD, value)
    assert nic.query(LOOKAHEAD) == left.to_bytes(4, "little")


# Filter: what reads back.
@pytest.mark.parametrize(
    ("bits", "left"),
    [(0, 0), (1, 1), (2, 2), (4, 4), (6, 4), (8, 8), (0xB, 0xB), (0xD, 0xD), (0x20, 0x20), (0x2F, 0x20), (0x21, 0x20)],
)  # fmt: skip
def test_a_filter_reads_back_from_its_levels(nic: Adapter, bits: int, left: int) -> None:
    nic.set(FILTER, bits.to_bytes(4, "little"))
    assert nic.query(FILTER) == left.to_bytes(4, "little")


@pytest.mark.parametrize("value", [b"\x10\0\0\0", b"\xff\xff\xff", b"\xff" * 5, b""])
def test_a_filter_that_is_not_set_changes_nothing(nic: Adapter, value: bytes) -> None:
    set_oid(nic, FILTER, value)
    assert nic.query(FILTER) == b"\x0d\0\0\0"


def test_a_refused_list_leaves_the_old_one(nic: Adapter) -> None:
    nic.set(LIST, bytes.fromhex("01005e000001"))
    assert set_oid(nic, LIST, bytes.fromhex("01005e00000200163e000009")).status is DATA
    assert set_oid(nic, LIST, bytes.fromhex("01005e00000233")).status is LENGTH
    assert nic.query(LIST) == bytes.fromhex("01005e000001")


WARNED = [
    ("query", 0x10202, True),
    ("query", 0x12345, True),
    ("query", 0x10117, False),
    ("query", 0x10205, False),
    ("query", 0x10206, False),
    ("query", 0x20213, False),
    ("query", 0x20214, False),
    ("query", 0x20215, False),
    ("query", 0xFC010209, False),
    ("query", 0xFC01020A, False),
    ("query", 0x1021A, True),
    ("set", 0x10117, True),
    ("set", 0x12345, True),
    ("set", 0x10209, False),
    ("set", 0x1021A, False),
    ("set", 0x10118, False),
]


@pytest.mark.parametrize(("way", "oid", "warned"), WARNED)
def test_an_unknown_oid_is_warned_of_but_for_a_few(
    guest: Guest, nic: Adapter, way: str, oid: int, warned: bool
) -> None:
    kind = RequestType.SET_INFORMATION if way == "set" else RequestType.QUERY_INFORMATION
    assert nic.oid_request(kind, oid, length=4).status is NOT_SUPPORTED
    guest.platform.run()
    assert guest.console is not None
    assert (f"UNSUPPORTED OID {oid:08x}" in guest.console.text) == warned


OIDS = [FILTER, LOOKAHEAD, LIST, ENCAPSULATION, PARAMETERS, SCALE, HASH, POWER]
NEEDED = {FILTER: 4, LOOKAHEAD: 4, LIST: 6, ENCAPSULATION: 28, PARAMETERS: 26, SCALE: 44, HASH: 20, POWER: 4}  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.sampled_from(OIDS) | st.integers(0, 0xFFFFFFFF), st.binary(max_size=64)),
        max_size=8,
    )
)
def test_no_value_does_more_than_its_status_says(requests: list[tuple[int, bytes]]) -> None:
    with Platform(seed=1) as xen:
        nic = xen.create(name="g", vifs=[Vif()]).start().nets[0]
        for oid, value in requests:
            before = [nic.query(one) for one in (FILTER, LOOKAHEAD, LIST)]
            told = len(nic.indications)
            answer = set_oid(nic, oid, value)
            assert answer.bytes_needed == NEEDED.get(oid, 0)
            assert answer.bytes_read <= len(value)
            if answer.status != OK:
                assert answer.bytes_read == 0
                assert [nic.query(one) for one in (FILTER, LOOKAHEAD, LIST)] == before
                assert len(nic.indications) == told
        frame = b"\xff" * 6 + nic.mac + b"\x88\xb5" + bytes(46)
        nic.send(frame)
        xen.run()
        assert nic.in_flight == 0
