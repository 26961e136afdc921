"""OID requests: values, lengths and statuses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from xenpv.net.adapter import Adapter
from xenpv.net.oid import NdisStatus, OidError
from xenpv.platform import Platform, Vif


@pytest.fixture
def nic() -> Iterator[Adapter]:
    with Platform(seed=1) as xen:
        guest = xen.create(name="g", vifs=[Vif(mac="00:16:3e:00:00:01", mtu=1400)])
        guest.start()
        yield guest.nets[0]


VALUES = [
    (0x10102, "00000000"),
    (0x10103, "00000000"),
    (0x10104, "00000000"),
    (0x10106, (1400).to_bytes(4, "little").hex()),
    (0x10111, (1414).to_bytes(4, "little").hex()),
    (0x1010C, "53580000"),
    (0x1010E, "0d000000"),
    (0x10114, "01000000"),
    (0x20101, "0000000000000000"),
    (0x20102, "0000000000000000"),
    (0x20103, "00000000"),
    (0x20104, "00000000"),
    (0x1010101, "00163e000001"),
    (0x1010102, "00163e000001"),
    (0x1010103, ""),
    (0x1010104, "20000000"),
]


@pytest.mark.parametrize(
    ("oid", "value"), VALUES, ids=lambda one: f"{one:#x}" if isinstance(one, int) else ""
)
def test_a_query_has_ndis_layout(nic: Adapter, oid: int, value: str) -> None:
    assert nic.query(oid).hex() == value


def test_counters_are_eight_bytes(nic: Adapter) -> None:
    nic.send(b"\xff" * 6 + nic.mac + b"\x88\xb5" + bytes(46))
    nic._vif._frontend.bus.domain.loop.run()
    assert nic.query(0x20101) == (1).to_bytes(8, "little")


def test_media_is_disconnected_while_paused(nic: Adapter) -> None:
    nic.pause()
    assert nic.query(0x10114) == (2).to_bytes(4, "little")


@pytest.mark.parametrize("bits", [0, 1, 2, 3, 5, 8, 0xB, 0xD, 0x20])
def test_the_filter_reads_back_as_it_was_set(nic: Adapter, bits: int) -> None:
    nic.set(0x1010E, bits.to_bytes(4, "little"))
    assert nic.query(0x1010E) == bits.to_bytes(4, "little")


@pytest.mark.parametrize("bits", [0x10, 0x40, 0x80000000])
def test_an_unknown_filter_bit_is_invalid(nic: Adapter, bits: int) -> None:
    with pytest.raises(OidError) as caught:
        nic.set(0x1010E, bits.to_bytes(4, "little"))
    assert caught.value.status is NdisStatus.INVALID_PARAMETER
    assert nic.query(0x1010E) == b"\x0d\0\0\0"


@pytest.mark.parametrize("size", [0, 3, 5])
def test_a_filter_of_another_length_changes_nothing(nic: Adapter, size: int) -> None:
    nic.set(0x1010E, b"\xff" * size)
    assert nic.query(0x1010E) == b"\x0d\0\0\0"


def test_a_multicast_list_reads_back(nic: Adapter) -> None:
    nic.set(0x1010103, bytes.fromhex("01005e000001333300000002"))
    assert nic.query(0x1010103).hex() == "01005e000001333300000002"


@pytest.mark.parametrize(
    ("value", "status"),
    [("01005e0000", NdisStatus.INVALID_LENGTH), ("00163e000009", NdisStatus.INVALID_DATA)],
)
def test_a_wrong_multicast_list_is_refused(nic: Adapter, value: str, status: NdisStatus) -> None:
    with pytest.raises(OidError) as caught:
        nic.set(0x1010103, bytes.fromhex(value))
    assert caught.value.status is status


@pytest.mark.parametrize("oid", [0, 0x10117, 0x10205, 0x1021A, 0xFC010209, 0xFFFFFFFF])
def test_every_other_oid_is_not_supported(nic: Adapter, oid: int) -> None:
    for request in (lambda: nic.query(oid), lambda: nic.set(oid, b"")):
        with pytest.raises(OidError) as caught:
            request()
        assert caught.value.status is NdisStatus.NOT_SUPPORTED
