"""Which offloads are on: after initialisation, by property, and by the two requests."""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack

import pytest

from xenpv import Guest
from xenpv.bus import inf
from xenpv.net.adapter import Adapter
from xenpv.net.link import Indication
from xenpv.net.ndis import NdisStatus
from xenpv.net.offload import OffloadConfiguration
from xenpv.net.oid import OidError
from xenpv.net.properties import Properties
from xenpv.platform import Platform, Vif
from xenpv.vif.interface import Offload

TAG, LARGE4, HEADER4, TCP4, UDP4, LARGE6, TCP6, UDP6, VALUE, SPLIT = (1 << bit for bit in range(10))
SUMS = HEADER4 | TCP4 | UDP4 | TCP6 | UDP6
LRO = LARGE4 | LARGE6 | SPLIT
FIRST = TAG | VALUE | LRO

ENCAPSULATION = 0x101010A
PARAMETERS = 0xFC01020C
ON = pack("<BBH6I", 0xA8, 1, 28, 1, 2, 14, 1, 2, 14)
NET = "Control\\Class\\{4d36e972-e325-11ce-bfc1-08002be10318}\\0000"


def made(xen: Platform, **values: int | str) -> Guest:
    """A guest whose adapter has these advanced properties in the registry."""
    registry = inf.installed()
    for name, value in values.items():
        registry.set(NET, name.replace("_", "*", 1) if name[0] == "_" else name, value)
    return xen.create(name="g", vifs=[Vif()], registry=registry).start()


@pytest.fixture
def nic() -> Iterator[Adapter]:
    with Platform(seed=1) as xen:
        yield made(xen).nets[0]


def bits(nic: Adapter) -> tuple[int, int]:
    return int(nic.offload.transmit), int(nic.offload.receive)


def below(nic: Adapter) -> int:
    """What XenVif was told."""
    return nic._vif._frontend.receiver_options.offload


def test_after_initialisation_tags_sums_written_and_large_packets_are_on(nic: Adapter) -> None:
    assert bits(nic) == (TAG, FIRST)
    assert below(nic) == FIRST
    assert [one.status for one in nic.indications] == [NdisStatus.LINK_STATE] * len(nic.indications)


def test_encapsulation_switches_the_rest_on_and_is_indicated(nic: Adapter) -> None:
    nic.set(ENCAPSULATION, ON)
    assert bits(nic) == (TAG | SUMS | LARGE4 | LARGE6, FIRST | SUMS)
    assert below(nic) == FIRST | SUMS
    assert nic.indications[-1] == Indication(
        status=NdisStatus.TASK_OFFLOAD_CURRENT_CONFIG,
        value=OffloadConfiguration(
            transmit=Offload(TAG | SUMS | LARGE4 | LARGE6),
            receive=Offload(FIRST | SUMS),
            lso_ipv4_size=65201,
            lso_ipv6_size=65201,
        ),
    )
    assert nic.indications[-1].status == 0x40020006
    assert nic.offload.segments_min == 2


# Property and value; initial rx; after OFFLOAD_ENCAPSULATION tx and rx.
PROPERTIES: list[tuple[str, int | str, int, int, int]] = [
    ("_IPChecksumOffloadIPv4", 0, FIRST, ~HEADER4, ~HEADER4),
    ("_IPChecksumOffloadIPv4", 1, FIRST, ~0, ~HEADER4),
    ("_IPChecksumOffloadIPv4", 2, FIRST, ~HEADER4, ~0),
    ("_IPChecksumOffloadIPv4", 3, FIRST, ~0, ~0),
    ("_IPChecksumOffloadIPv4", "1", FIRST, ~0, ~HEADER4),
    ("_IPChecksumOffloadIPv4", "no", FIRST, ~0, ~0),
    ("_TCPChecksumOffloadIPv4", 0, FIRST, ~TCP4, ~TCP4),
    ("_TCPChecksumOffloadIPv6", 1, FIRST, ~0, ~TCP6),
    ("_UDPChecksumOffloadIPv4", 2, FIRST, ~UDP4, ~0),
    ("_UDPChecksumOffloadIPv6", 0, FIRST, ~UDP6, ~UDP6),
    ("_LSOv2IPv4", 0, FIRST, ~LARGE4, ~0),
    ("_LSOv2IPv6", "0", FIRST, ~LARGE6, ~0),
    ("LROIPv4", 0, FIRST & ~LARGE4, ~0, ~LARGE4),
    ("LROIPv6", 0, FIRST & ~LARGE6, ~0, ~LARGE6),
    ("NeedChecksumValue", 0, FIRST & ~VALUE, ~0, ~VALUE),
    ("_RSS", 0, FIRST, ~0, ~0),
]


@pytest.mark.parametrize(("name", "value", "first", "transmit", "receive"), PROPERTIES)
def test_a_property_of_the_registry_holds_an_offload_back(
    name: str, value: int | str, first: int, transmit: int, receive: int
) -> None:
    with Platform(seed=1) as xen:
        nic = made(xen, **{name: value}).nets[0]
        assert bits(nic) == (TAG, first)
        nic.set(ENCAPSULATION, ON)
        assert bits(nic) == ((TAG | SUMS | LARGE4 | LARGE6) & transmit, (FIRST | SUMS) & receive)


def test_without_large_packets_of_either_kind_none_needs_a_split() -> None:
    with Platform(seed=1) as xen:
        nic = made(xen, LROIPv4=0, LROIPv6=0).nets[0]
        assert bits(nic) == (TAG, TAG | VALUE)


@pytest.mark.parametrize(("value", "queues"), [(0, 1), (1, 1), (8, 8), (9, 8), ("4", 4)])
def test_rss_queues_are_one_to_eight(value: int | str, queues: int) -> None:
    with Platform(seed=1) as xen:
        assert made(xen, _NumRSSQueues=value).nets[0].properties.num_rss_queues == queues


def test_defaults_are_those_of_the_driver(nic: Adapter) -> None:
    assert nic.properties == Properties(
        ip_checksum_ipv4=3,
        tcp_checksum_ipv4=3,
        tcp_checksum_ipv6=3,
        udp_checksum_ipv4=3,
        udp_checksum_ipv6=3,
        lso_v2_ipv4=1,
        lso_v2_ipv6=1,
        lro_ipv4=1,
        lro_ipv6=1,
        need_checksum_value=1,
        rss=1,
        num_rss_queues=8,
    )


def test_a_keyword_stands_for_the_registry(nic: Adapter) -> None:
    other = Adapter(nic._vif, properties=Properties(lro_ipv4=0, tcp_checksum_ipv4=1))
    assert bits(other) == (TAG, FIRST & ~LARGE4)
    other.set(ENCAPSULATION, ON)
    assert bits(other) == (TAG | SUMS | LARGE4 | LARGE6, (FIRST | SUMS) & ~LARGE4 & ~TCP4)


@pytest.mark.parametrize(
    ("profile", "offered"),
    [("linux", TAG | SUMS | LARGE4 | LARGE6), ("qemu", TAG | HEADER4 | TCP4 | UDP4)],
)
def test_what_the_backend_does_not_do_stays_off(profile: str, offered: int) -> None:
    with Platform(seed=1) as xen:
        guest = xen.create(name="g", vifs=[Vif(profile=profile)]).start()
        nic = guest.nets[0]
        nic.set(ENCAPSULATION, ON)
        assert bits(nic) == (offered, FIRST | SUMS)
        nic.set(PARAMETERS, b"\0\0\0\0" + b"\x04" * 5 + bytes(17))
        assert bits(nic) == (offered, FIRST | SUMS)


def parameters(**at: int) -> bytes:
    """TCP_OFFLOAD_PARAMETERS with some bytes set: _4=2 is byte 4."""
    value = bytearray(26)
    for name, one in at.items():
        value[int(name[1:])] = one
    return bytes(value)


ALL = TAG | SUMS | LARGE4 | LARGE6
# What is set, with everything on before; tx and rx after.
CHANGES = [
    (parameters(), ALL, FIRST | SUMS),
    (parameters(_4=1), ALL & ~HEADER4, (FIRST | SUMS) & ~HEADER4),
    (parameters(_4=2), ALL, (FIRST | SUMS) & ~HEADER4),
    (parameters(_4=3), ALL & ~HEADER4, FIRST | SUMS),
    (parameters(_4=4), ALL, FIRST | SUMS),
    (parameters(_5=1), ALL & ~TCP4, (FIRST | SUMS) & ~TCP4),
    (parameters(_6=2), ALL, (FIRST | SUMS) & ~UDP4),
    (parameters(_7=3), ALL & ~TCP6, FIRST | SUMS),
    (parameters(_8=1), ALL & ~UDP6, (FIRST | SUMS) & ~UDP6),
    (parameters(_8=5), ALL & ~UDP6, (FIRST | SUMS) & ~UDP6),  # no value of NDIS'
    (parameters(_11=1), ALL & ~LARGE4, FIRST | SUMS),
    (parameters(_12=1), ALL & ~LARGE6, FIRST | SUMS),
    (parameters(_11=2, _12=2), ALL, FIRST | SUMS),
    (parameters(_11=3), ALL, FIRST | SUMS),  # no value of NDIS'
    (parameters(_16=0xFF, _17=0xFF), ALL, FIRST | SUMS),  # flags
    (parameters(_22=1, _23=1, _24=1, _25=1), ALL, FIRST | SUMS),  # RSC, encapsulated packets
]


@pytest.mark.parametrize(("value", "transmit", "receive"), CHANGES)
def test_parameters_switch_one_by_one(
    nic: Adapter, value: bytes, transmit: int, receive: int
) -> None:
    nic.set(ENCAPSULATION, ON)
    told = len(nic.indications)
    nic.set(PARAMETERS, value)
    assert bits(nic) == (transmit, receive)
    assert below(nic) == receive
    assert len(nic.indications) == told + 1
    assert nic.indications[-1].value == nic.offload
    nic.set(PARAMETERS, parameters(_4=4, _5=4, _6=4, _7=4, _8=4, _11=2, _12=2))
    assert bits(nic) == (ALL, FIRST | SUMS)


@pytest.mark.parametrize("at", ["_9", "_10", "_13", "_14", "_20", "_21"])
def test_a_refused_set_of_parameters_changes_nothing(nic: Adapter, at: str) -> None:
    told = len(nic.indications)
    with pytest.raises(OidError) as caught:
        nic.set(PARAMETERS, parameters(**{"_4": 4, "_11": 2, at: 1}))
    assert caught.value.status is NdisStatus.INVALID_PARAMETER
    assert bits(nic) == (TAG, FIRST)
    assert len(nic.indications) == told


@pytest.mark.parametrize("at", ["_11", "_12"])
@pytest.mark.parametrize("value", [1, 2])
def test_large_packets_that_the_backend_does_not_take_cannot_be_switched(
    at: str, value: int
) -> None:
    with Platform(seed=1) as xen:
        nic = xen.create(name="g", vifs=[Vif(profile="qemu")]).start().nets[0]
        with pytest.raises(OidError) as caught:
            nic.set(PARAMETERS, parameters(**{at: value, "_4": 4}))
        assert caught.value.status is NdisStatus.INVALID_PARAMETER
        assert bits(nic) == (TAG, FIRST)


def test_what_stands_for_linux_has_all_from_the_start_and_keeps_its_tags() -> None:
    with Platform(seed=1) as xen:
        nic = xen.create(name="g", vifs=[Vif()], personality="linux").start().nets[0]
        assert bits(nic) == (SUMS | LARGE4 | LARGE6, VALUE | SUMS | LARGE4 | LARGE6)


def test_attributes_name_what_is_there_and_what_the_properties_leave() -> None:
    with Platform(seed=1) as xen:
        found = made(xen, _TCPChecksumOffloadIPv4=2, _UDPChecksumOffloadIPv6=1, _LSOv2IPv6=0)
        told = found.nets[0].attributes
        assert told.supported_offload == OffloadConfiguration(
            transmit=Offload(SUMS | LARGE4 | LARGE6),
            receive=Offload(SUMS),
            lso_ipv4_size=65201,
            lso_ipv6_size=65201,
        )
        assert told.default_offload == OffloadConfiguration(
            transmit=Offload((SUMS | LARGE4) & ~TCP4),
            receive=Offload(SUMS & ~UDP6),
            lso_ipv4_size=65201,
        )
