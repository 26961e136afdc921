"""Queries of OIDs: value, BytesNeeded and what a short buffer gets, one row for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpv.net.adapter import Adapter
from xenpv.net.ndis import NdisStatus, NdisVersion
from xenpv.net.oid import RequestType
from xenpv.platform import Platform, Vif

QUERY = RequestType.QUERY_INFORMATION
OK = NdisStatus.SUCCESS
SHORT = NdisStatus.BUFFER_TOO_SHORT
NOT_SUPPORTED = NdisStatus.NOT_SUPPORTED
MAC = "00163e000001"
GROUP = bytes.fromhex("01005e000001")


def frame(destination: bytes, source: bytes, size: int) -> bytes:
    return (destination + source + b"\x88\xb5").ljust(size, b"\0")


@pytest.fixture(scope="module")
def nic() -> Iterator[Adapter]:
    """An adapter that sent 2 unicast frames of 100 bytes, a multicast one of 70 and a broadcast
    one of 60; it got 3 of 200, 2 of 90 and 1 of 64, and one that it does not want.
    """
    with Platform(seed=1) as xen:
        made = [
            xen.create(name=name, vifs=[Vif(mac=mac, mtu=1400)])
            for name, mac in (("a", "00:16:3e:00:00:01"), ("b", "00:16:3e:00:00:02"))
        ]
        one, other = (guest.start().nets[0] for guest in made)
        everybody = b"\xff" * 6
        ours = [(other.mac, 100)] * 2 + [(GROUP, 70), (everybody, 60)]
        one.send_many([frame(to, one.mac, size) for to, size in ours])
        theirs = [(one.mac, 200)] * 3 + [(GROUP, 90)] * 2 + [(everybody, 64), (b"\0" * 6, 60)]
        other.send_many([frame(to, other.mac, size) for to, size in theirs])
        xen.run()
        one.set(0x1010103, GROUP + bytes.fromhex("333300000002"))
        one.set(0x1010F, b"\x78\x56\x34\x12")
        yield one


# u32: OID, value.
U32 = [
    (0x10102, 0), (0x10103, 0), (0x10104, 0), (0x10105, 1418), (0x10106, 1400), (0x10108, 363008),
    (0x10109, 363008), (0x1010A, 1418), (0x1010B, 1418), (0x1010C, 0x5853), (0x1010E, 0x0D),
    (0x1010F, 0x12345678), (0x10110, 0x0655), (0x10111, 1414), (0x10113, 0xCD), (0x10114, 1),
    (0x10115, 16), (0x10116, 0x00090001), (0x20103, 0), (0x20104, 0), (0x20105, 0), (0x2020D, 0),
    (0x2020E, 0), (0x20201, 200), (0x20202, 2), (0x20203, 70), (0x20204, 1), (0x20205, 60),
    (0x20206, 1), (0x20207, 600), (0x20208, 3), (0x20209, 180), (0x2020A, 2), (0x2020B, 64),
    (0x2020C, 1), (0x1020101, 0), (0x1020102, 0), (0x1020103, 0), (0x1010104, 32),
]  # fmt: skip

# Header and flags; ifInDiscards, ifInErrors; in: octets (844) and packets; out: octets (330) and
# packets; ifOutErrors, ifOutDiscards; octets in (600, 180, 64) and out (200, 70, 60) by kind.
STATISTICS = bytes.fromhex("""
    80019800 ff873f00
    0100000000000000 0000000000000000
    4c03000000000000 0300000000000000 0200000000000000 0100000000000000
    4a01000000000000 0200000000000000 0100000000000000 0100000000000000
    0000000000000000 0000000000000000
    5802000000000000 b400000000000000 4000000000000000
    c800000000000000 4600000000000000 3c00000000000000
""").hex()

SUPPORTED = [
    0x10101, 0x10102, 0x10103, 0x10104, 0x10202, 0x10213, 0x1010F, 0x10105, 0x10106, 0x10111,
    0x1010B, 0x1010A, 0x10113, 0x10114, 0x1010D, 0x10116, 0x10110, 0x10115, 0x1010C, 0x1010E,
    0x20101, 0x20102, 0x20103, 0x20104, 0x2020D, 0x20105, 0x2020E, 0x10108, 0x10109, 0x20106,
    0x20201, 0x20202, 0x20203, 0x20204, 0x20205, 0x20206, 0x20207, 0x20208, 0x20209, 0x2020A,
    0x2020B, 0x2020C, 0x10209, 0x1020101, 0x1020102, 0x1020103, 0x101010A, 0xFC01020C, 0xFD010107,
    0xFD010102, 0xFD010101, 0x10204, 0x1021F,
]  # fmt: skip
LIST = b"".join(number.to_bytes(4, "little") for number in SUPPORTED).hex()

# OID, length of the buffer, status, BytesNeeded, what is written.
ROWS = [
    (0x10101, 212, OK, 212, LIST),
    (0x10101, 999, OK, 212, LIST),
    (0x10101, 211, SHORT, 212, LIST[:422]),
    (0x10101, 5, SHORT, 212, "0101010002"),
    (0x10101, 0, SHORT, 212, ""),
    (0x1010D, 12, OK, 12, b"Xen Project\0".hex()),
    (0x1010D, 11, SHORT, 12, b"Xen Project".hex()),
    (0x1010D, 0, SHORT, 12, ""),
    (0x20101, 8, OK, 8, "0400000000000000"),
    (0x20101, 100, OK, 8, "0400000000000000"),
    (0x20101, 7, OK, 8, "04000000"),
    (0x20101, 4, OK, 8, "04000000"),
    (0x20101, 3, SHORT, 8, ""),
    (0x20101, 0, SHORT, 8, ""),
    (0x20102, 8, OK, 8, "0600000000000000"),
    (0x20102, 4, OK, 8, "06000000"),
    (0x20102, 3, SHORT, 8, ""),
    (0x20106, 152, OK, 152, STATISTICS),
    (0x20106, 200, OK, 152, STATISTICS),
    (0x20106, 151, SHORT, 152, ""),
    (0x20106, 0, SHORT, 152, ""),
    (0x10209, 12, OK, 12, "80010c000000000001000000"),
    (0x10209, 13, OK, 12, "80010c000000000001000000"),
    (0x10209, 11, SHORT, 12, ""),
    (0x1021F, 60, OK, 20, "800114000000000001000000" + "00000000" + "14000000"),
    (0x1021F, 59, SHORT, 20, ""),
    (0x1021F, 20, SHORT, 20, ""),
    (0x1010101, 6, OK, 6, MAC),
    (0x1010101, 5, SHORT, 6, MAC[:10]),
    (0x1010101, 0, SHORT, 6, ""),
    (0x1010102, 6, OK, 6, MAC),
    (0x1010102, 7, OK, 6, MAC),
    (0x1010102, 4, SHORT, 6, MAC[:8]),
    (0x1010103, 12, OK, 12, "01005e000001333300000002"),
    (0x1010103, 11, NdisStatus.INVALID_LENGTH, 12, ""),
    (0x1010103, 0, NdisStatus.INVALID_LENGTH, 12, ""),
    (0xFD010107, 60, OK, 60, "80023c00" + "00" * 56),
    (0xFD010107, 59, SHORT, 60, "80023c00" + "00" * 55),
    (0xFD010107, 2, SHORT, 60, "8002"),
    (0xFD010102, 4, OK, 4, ""),
    (0xFD010102, 0, OK, 4, ""),
    # listed, and not answered
    (0x10202, 4, NOT_SUPPORTED, 0, ""),
    (0x10213, 4, NOT_SUPPORTED, 0, ""),
    (0x101010A, 28, NOT_SUPPORTED, 0, ""),
    (0xFC01020C, 26, NOT_SUPPORTED, 0, ""),
    (0xFD010101, 4, NOT_SUPPORTED, 0, ""),
    (0x10204, 44, NOT_SUPPORTED, 0, ""),
    # silently
    (0xFC010209, 4, NOT_SUPPORTED, 0, ""),
    (0xFC01020A, 4, NOT_SUPPORTED, 0, ""),
    (0x10117, 4, NOT_SUPPORTED, 0, ""),
    (0x10205, 4, NOT_SUPPORTED, 0, ""),
    (0x10206, 4, NOT_SUPPORTED, 0, ""),
    (0x20213, 4, NOT_SUPPORTED, 0, ""),
    (0x20214, 4, NOT_SUPPORTED, 0, ""),
    (0x20215, 4, NOT_SUPPORTED, 0, ""),
    # unknown
    (0, 4, NOT_SUPPORTED, 0, ""),
    (0xFFFFFFFF, 4, NOT_SUPPORTED, 0, ""),
    (0x1021A, 4, NOT_SUPPORTED, 0, ""),
]


def name(one: object) -> str:
    return f"{one:#x}" if isinstance(one, int) and not isinstance(one, NdisStatus) else ""


@pytest.mark.parametrize(("oid", "value"), U32, ids=name)
@pytest.mark.parametrize(
    ("length", "status", "written"),
    [(0, SHORT, 0), (3, SHORT, 0), (4, OK, 4), (7, OK, 4), (4096, OK, 4)],
)
def test_a_number_is_written_in_whole(
    nic: Adapter, oid: int, value: int, length: int, status: NdisStatus, written: int
) -> None:
    answer = nic.oid_request(QUERY, oid, length=length)
    assert (answer.status, answer.bytes_needed) == (status, 4)
    assert answer.data == value.to_bytes(4, "little")[:written]


@pytest.mark.parametrize(("oid", "length", "status", "needed", "data"), ROWS, ids=name)
@pytest.mark.parametrize("kind", [QUERY, RequestType.QUERY_STATISTICS])
def test_a_query_writes_what_fits(
    nic: Adapter,
    oid: int,
    length: int,
    status: NdisStatus,
    needed: int,
    data: str,
    kind: RequestType,
) -> None:
    answer = nic.oid_request(kind, oid, length=length)
    assert (answer.status, answer.bytes_needed, answer.data.hex()) == (status, needed, data)


def test_all_in_the_list_and_four_others_have_a_row() -> None:
    rows = {oid for oid, *_ in U32} | {oid for oid, _, status, *_ in ROWS if status == OK}
    unlisted = {0x1010101, 0x1010102, 0x1010103, 0x1010104}
    unanswered = {0x10202, 0x10213, 0x101010A, 0xFC01020C, 0xFD010101, 0x10204}
    assert len(SUPPORTED) == 53
    assert rows == set(SUPPORTED) - unanswered | unlisted


@pytest.mark.parametrize("kind", [3, 4, 12, -1])
def test_a_request_of_another_type_is_not_supported(nic: Adapter, kind: int) -> None:
    assert nic.oid_request(kind, 0x10102, length=4).status == 0xC00000BB


@given(oid=st.sampled_from(SUPPORTED) | st.integers(0, 0xFFFFFFFF), length=st.integers(0, 300))
def test_no_query_writes_more_than_fits(nic: Adapter, oid: int, length: int) -> None:
    answer = nic.oid_request(QUERY, oid, length=length)
    assert len(answer.data) <= min(length, answer.bytes_needed)
    whole = nic.oid_request(QUERY, oid)
    assert whole.data.startswith(answer.data)
    if answer.status == OK and len(answer.data) < len(whole.data):
        assert oid in (0x20101, 0x20102)


@pytest.mark.parametrize(
    ("version", "value"), [("V6_30", 0x61E), ("V6_60", 0x63C), ("V6_85", 0x655)]
)
def test_the_driver_version_is_the_systems(version: str, value: int) -> None:
    with Platform(seed=1) as xen:
        guest = xen.create(name="g", vifs=[Vif()])
        guest.start()
        nic = Adapter(guest.nets[0]._vif, version=NdisVersion[version])
        assert nic.query(0x10110) == value.to_bytes(4, "little")


@pytest.mark.parametrize(
    ("uname", "version"),
    [("6.2.9200", 0x61E), ("6.3.9600", 0x61E), ("10.0.14392", 0x61E), ("10.0.14393", 0x63C), ("10.0.20347", 0x63C), ("10.0.20348", 0x655), ("10.0.26100", 0x655), ("", 0x655), ("10.0.x", 0x655)],
)  # fmt: skip
def test_a_windows_has_the_ndis_of_its_build(uname: str, version: int) -> None:
    with Platform(seed=1) as xen:
        guest = xen.create(name="g", vifs=[Vif()])
        guest.os.uname = uname
        assert guest.start().nets[0].query(0x10110) == version.to_bytes(4, "little")
