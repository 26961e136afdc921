"""Large packets from the backend: whole, peeled, cut; scapy builds what is right."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.packet import Packet

from tests.vif.rawback import scene
from tests.vif.rxscene import (
    ALL_SUMS,
    BLANK,
    TCPV4,
    TCPV6,
    V4,
    V6,
    VALIDATED,
    blank,
    deliver,
    ether,
    gso,
    payload,
    upper_scene,
)
from xenpv.vif.packet import Checksum, Offload
from xenpv.vif.statistics import Statistic

MSS = 1000
WHOLE, PEELED, CUT = "whole", "peeled", "cut"


def network_of(version: int) -> Packet:
    return V4 if version == 4 else V6


def large(version: int, size: int, flags: str = "PAFCE") -> bytes:
    packet = network_of(version) / TCP(seq=0xFFFFFF00, flags=flags) / payload(size)
    return blank(ether(packet), IP if version == 4 else IPv6, TCP)


def segment(
    version: int, start: int, end: int, flags: str, number: int = 0, tci: int | None = None
) -> bytes:
    """What scapy makes of these bytes of the payload."""
    network = network_of(version).copy()
    if version == 4:
        network.id = 7 + number
    tcp = TCP(seq=(0xFFFFFF00 + start) % 2**32, flags=flags)
    return ether(network / tcp / payload(end)[start:], tci=tci)


MODES: dict[str, tuple[int, int, str]] = {
    "no option, IPv4": (4, 0, CUT),
    "no option, IPv6": (6, 0, CUT),
    "the other version's, IPv4": (4, Offload.IPV6_LARGE_PACKET, CUT),
    "the other version's, IPv6": (6, Offload.IPV4_LARGE_PACKET, CUT),
    "large packets, IPv4": (4, Offload.IPV4_LARGE_PACKET, WHOLE),
    "large packets, IPv6": (6, Offload.IPV6_LARGE_PACKET, WHOLE),
    "large and split, IPv4": (4, Offload.IPV4_LARGE_PACKET | Offload.NEED_LARGE_PACKET_SPLIT, PEELED),
    "large and split, IPv6": (6, Offload.IPV6_LARGE_PACKET | Offload.NEED_LARGE_PACKET_SPLIT, PEELED),
    "split alone": (4, Offload.NEED_LARGE_PACKET_SPLIT, CUT),
}  # fmt: skip

# payload, mode: (start, end, TCP flags, number, MSS) of each packet that goes up
SHAPES: dict[tuple[str, int], list[tuple[int, int, str, int, int]]] = {
    (WHOLE, 1): [(0, 1, "PAFCE", 0, 0)],
    (WHOLE, 999): [(0, 999, "PAFCE", 0, 0)],
    (WHOLE, 1000): [(0, 1000, "PAFCE", 0, MSS)],
    (WHOLE, 2500): [(0, 2500, "PAFCE", 0, MSS)],
    (PEELED, 1): [(0, 1, "PAFCE", 0, 0)],
    (PEELED, 999): [(0, 999, "PAFCE", 0, 0)],
    (PEELED, 1000): [(0, 1000, "PAFCE", 0, 0)],
    (PEELED, 1001): [(0, 1000, "ACE", 0, 0), (1000, 1001, "PAFE", 1, 0)],
    (PEELED, 1999): [(0, 1000, "ACE", 0, 0), (1000, 1999, "PAFE", 1, 0)],
    (PEELED, 2000): [(0, 1000, "ACE", 0, 0), (1000, 2000, "PAFE", 1, MSS)],
    (PEELED, 5000): [(0, 1000, "ACE", 0, 0), (1000, 5000, "PAFE", 1, MSS)],
    (CUT, 1): [(0, 1, "PAFCE", 0, 0)],
    (CUT, 1000): [(0, 1000, "PAFCE", 0, 0)],
    (CUT, 1001): [(0, 1000, "ACE", 0, 0), (1000, 1001, "PAFE", 1, 0)],
    (CUT, 2000): [(0, 1000, "ACE", 0, 0), (1000, 2000, "PAFE", 1, 0)],
    (CUT, 2500): [(0, 1000, "ACE", 0, 0), (1000, 2000, "AE", 1, 0), (2000, 2500, "PAFE", 2, 0)],
}


@pytest.mark.parametrize(("version", "offload", "mode"), MODES.values(), ids=MODES)
def test_a_large_packet_goes_up_as_the_options_say(version: int, offload: int, mode: str) -> None:
    kind = TCPV4 if version == 4 else TCPV6
    with upper_scene(int(offload)) as (s, upper):
        for (which, size), parts in SHAPES.items():
            if which != mode:
                continue
            upper.got.clear()
            deliver(s, large(version, size), flags=VALIDATED | BLANK, extras=[gso(MSS, kind)])
            expected = [
                (segment(version, start, end, flags, number), mss)
                for start, end, flags, number, mss in parts
            ]
            assert [(one.data, one.mss) for one in upper.got] == expected


@pytest.mark.parametrize("size", [60, 9000, 20000, 65495])
def test_all_of_it_arrives_cut_and_in_order(size: int) -> None:
    with upper_scene(int(ALL_SUMS)) as (s, upper):
        deliver(s, large(4, size), flags=VALIDATED | BLANK, extras=[gso(1460)])
        assert b"".join(one.data[54:] for one in upper.got) == payload(size)
        assert {one.flags for one in upper.got} == {Checksum.IP_SUCCEEDED | Checksum.TCP_SUCCEEDED}
        assert len(upper.got) == -(-size // 1460)


@pytest.mark.parametrize("strips", [False, True])
def test_a_tag_is_in_every_segment_or_beside_it(strips: bool) -> None:
    packet = ether(V4 / TCP(seq=0xFFFFFF00, flags="PAFCE") / payload(1500), tci=0x6005)
    data = packet[:4 + 14] + blank(packet[:12] + packet[16:], IP, TCP)[14:]  # fmt: skip
    with upper_scene(int(Offload.TAG_MANIPULATION) if strips else 0) as (s, upper):
        deliver(s, data, flags=VALIDATED | BLANK, extras=[gso(MSS)])
        tci = None if strips else 0x6005
        assert [(one.data, one.tci) for one in upper.got] == [
            (segment(4, 0, 1000, "ACE", 0, tci), 0x6005 if strips else 0),
            (segment(4, 1000, 1500, "PAFE", 1, tci), 0x6005 if strips else 0),
        ]


def test_options_and_extension_headers_are_in_every_segment() -> None:
    v4 = IP(src="10.0.0.2", dst="10.0.0.1", id=0xFFFF, options=[IPOption_NOP()] * 4)
    v6 = V6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt()
    options = [("Timestamp", (1, 2)), ("NOP", None), ("NOP", None)]
    for network, kind, layer in ((v4, TCPV4, IP), (v6, TCPV6, IPv6)):
        with upper_scene() as (s, upper):
            body = payload(1200)
            data = ether(network / TCP(seq=5, flags="PA", options=options) / body)
            deliver(s, blank(data, layer, TCP), flags=VALIDATED | BLANK, extras=[gso(MSS, kind)])
            second = network.copy()
            if layer is IP:
                second.id = 0  # it wraps
            assert [one.data for one in upper.got] == [
                ether(network / TCP(seq=5, flags="A", options=options) / body[:1000]),
                ether(second / TCP(seq=1005, flags="PA", options=options) / body[1000:]),
            ]


def test_what_follows_the_ip_packet_is_no_payload() -> None:
    with upper_scene() as (s, upper):
        deliver(s, large(4, 1500) + b"\xee" * 7, flags=VALIDATED | BLANK, extras=[gso(MSS)])
        assert [one.data for one in upper.got] == [
            segment(4, 0, 1000, "ACE"), segment(4, 1000, 1500, "PAFE", 1)
        ]  # fmt: skip


def test_each_packet_that_goes_up_counts_and_gso_where_it_has_an_mss() -> None:
    options = int(Offload.IPV4_LARGE_PACKET | Offload.NEED_LARGE_PACKET_SPLIT)
    with upper_scene(options) as (s, upper):
        deliver(s, large(4, 5000), flags=VALIDATED | BLANK, extras=[gso(MSS)])
        query = s.pdo.frontend.statistics.query
        assert query(Statistic.RECEIVER_UNICAST_PACKETS) == 2
        assert query(Statistic.RECEIVER_UNICAST_OCTETS) == sum(len(one.data) for one in upper.got)
        assert query(Statistic.RECEIVER_GSO_PACKETS) == 1
        assert query(Statistic.RECEIVER_TCP_PACKETS) == 2


def test_allow_gso_packets_0_clears_the_large_packet_options() -> None:
    options = int(
        Offload.IPV4_LARGE_PACKET | Offload.IPV6_LARGE_PACKET | Offload.NEED_CHECKSUM_VALUE
    )
    with upper_scene(options, parameters={"allow_gso_packets": False}) as (s, upper):
        assert s.pdo.frontend.receiver.offload == Offload.NEED_CHECKSUM_VALUE
        deliver(s, large(4, 2500), flags=VALIDATED | BLANK, extras=[gso(MSS)])
        assert [one.mss for one in upper.got] == [0, 0, 0]


@pytest.mark.parametrize("flags", [0, BLANK])
def test_segments_of_an_unvalidated_packet_carry_its_sum_and_are_found_wrong(flags: int) -> None:
    """A backend that forgets data_validated: TCP above drops what it gets, and goes at a crawl."""
    data = ether(V4 / TCP(flags="A") / payload(2500))
    with upper_scene(int(ALL_SUMS)) as (s, upper):
        deliver(s, data, flags=flags, extras=[gso(MSS)])
        assert [one.data[50:52] for one in upper.got] == [data[50:52]] * 3
        assert {one.flags for one in upper.got} == {Checksum.IP_SUCCEEDED | Checksum.TCP_FAILED}


def test_a_validated_packet_that_is_not_blank_is_cut_with_right_sums() -> None:
    with upper_scene() as (s, upper):
        data = ether(V4 / TCP(seq=0xFFFFFF00, flags="PAFCE") / payload(1500))
        deliver(s, data, flags=VALIDATED, extras=[gso(MSS)])
        assert [one.data for one in upper.got] == [
            segment(4, 0, 1000, "ACE"), segment(4, 1000, 1500, "PAFE", 1)
        ]  # fmt: skip


@pytest.mark.parametrize(("size", "passes"), [(1464, True), (1465, False)])
def test_an_mss_of_0_makes_no_large_packet(size: int, passes: bool) -> None:
    data = large(4, size)
    with upper_scene() as (s, upper):
        deliver(s, data, flags=VALIDATED | BLANK, extras=[gso(0)])
        assert [(len(one.data), one.mss) for one in upper.got] == [(1518, 0)] * passes
        assert s.nic.statistics.received_dropped == (not passes)


NO_TCP = {
    "UDP": ether(V4 / UDP() / payload(2000)),
    "ICMP": ether(V4 / ICMP() / payload(2000)),
    "no IP": ether(V4 / TCP() / payload(2000)).replace(b"\x08\x00\x45", b"\x88\xb5\x45"),
    "a fragment": ether(IP(dst="10.0.0.1", flags="MF") / TCP() / payload(2000)),
    "a fragment over IPv6": ether(V6 / IPv6ExtHdrFragment(m=1) / TCP() / payload(2000)),
}


@pytest.mark.parametrize("data", NO_TCP.values(), ids=NO_TCP)
@pytest.mark.parametrize("kind", [TCPV4, TCPV6])
def test_a_large_packet_that_is_not_tcp_is_a_frontend_error(data: bytes, kind: int) -> None:
    with upper_scene() as (s, upper):
        deliver(s, data, flags=VALIDATED | BLANK, extras=[gso(MSS, kind)])
        query = s.pdo.frontend.statistics.query
        assert (upper.got, s.broken) == ([], "")
        assert query(Statistic.RECEIVER_FRONTEND_ERRORS) == 1
        assert query(Statistic.RECEIVER_PACKETS_DROPPED) == 1


def test_a_large_packet_for_somebody_else_is_dropped_once() -> None:
    data = bytes(6) + large(4, 5000)[6:]
    with upper_scene() as (s, upper):
        deliver(s, data, flags=VALIDATED | BLANK, extras=[gso(MSS)])
        assert upper.got == []
        assert s.nic.statistics.received_dropped == 1
        assert s.nic.statistics.received_errors == 0


OFFERED = {
    "neither": ({"ReceiverDisableIpVersion4Gso": 1, "ReceiverDisableIpVersion6Gso": 1}, "0", "0"),
    "IPv4": ({"ReceiverDisableIpVersion6Gso": 1}, "1", "0"),
    "IPv6": ({"ReceiverDisableIpVersion4Gso": 1}, "0", "1"),
    "both": ({"ReceiverCalculateChecksums": 1}, "1", "1"),
}


@pytest.mark.parametrize(("values", "v4", "v6"), OFFERED.values(), ids=OFFERED)
def test_the_registry_takes_an_offer_back(values: dict[str, int], v4: str, v6: str) -> None:
    with scene(connect=False) as s:
        for name, value in values.items():
            s.guest.registry.set("Services\\XENVIF\\Parameters", name, value)
        s.guest.start()
        assert s.key("feature-gso-tcpv4") == v4
        assert s.key("feature-gso-tcpv6") == v6
        for version, kind, offered in ((4, TCPV4, v4), (6, TCPV6, v6)):
            s.nic.received.clear()
            deliver(s, large(version, 1500), flags=VALIDATED | BLANK, extras=[gso(MSS, kind)])
            assert bool(s.nic.received) is (offered == "1")


@settings(max_examples=60, deadline=None)
@given(
    version=st.sampled_from([4, 6]),
    size=st.integers(1, 12_000),
    mss=st.integers(90, 3000),
    ident=st.integers(0, 0xFFFF),
    sequence=st.integers(0, 0xFFFFFFFF),
    flags=st.integers(0, 255),
    mode=st.sampled_from([CUT, PEELED, WHOLE]),
)
def test_nothing_of_a_large_packet_is_lost_or_changed(
    version: int, size: int, mss: int, ident: int, sequence: int, flags: int, mode: str
) -> None:
    bit = Offload.IPV4_LARGE_PACKET if version == 4 else Offload.IPV6_LARGE_PACKET
    options = {CUT: 0, PEELED: bit | Offload.NEED_LARGE_PACKET_SPLIT, WHOLE: bit}[mode]
    network = network_of(version).copy()
    if version == 4:
        network.id = ident
    data = ether(network / TCP(seq=sequence, flags=flags) / payload(size))
    layer = IP if version == 4 else IPv6
    with upper_scene(int(options)) as (s, upper):
        extra = gso(mss, TCPV4 if version == 4 else TCPV6)
        deliver(s, blank(data, layer, TCP), flags=VALIDATED | BLANK, extras=[extra])
        at = 0
        for number, one in enumerate(upper.got):
            end = at + len(one.data) - len(data) + size
            expected = flags
            if at:
                expected &= ~0x80
            if end < size:
                expected &= ~0x09
            if version == 4:
                network.id = (ident + number) & 0xFFFF
            tcp = TCP(seq=(sequence + at) & 0xFFFFFFFF, flags=expected)
            assert one.data == ether(network / tcp / payload(end)[at:])
            at = end
        assert at == size
