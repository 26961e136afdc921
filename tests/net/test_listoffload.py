"""Lists with offloads, over the rings to a bridge and from it."""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from tests.back.netfront import Sink
from tests.net.test_lists import Lists
from tests.net.test_offload import ENCAPSULATION, ON
from tests.vif.rxscene import blank, sums_right
from tests.vif.txscene import tcp4, tcp6, udp4
from xenpv import Guest
from xenpv.host.network import GSO_TCPV4, GSO_TCPV6, Frame
from xenpv.net.adapter import Adapter
from xenpv.net.nbl import ChecksumRequest, NetBufferList
from xenpv.net.ndis import NdisStatus
from xenpv.platform import Platform, Vif
from xenpv.vif.interface import PacketHash

MAC = "00:16:3e:00:00:01"
PEER = bytes.fromhex("00163e0000ee")
V4_TCP = ChecksumRequest.IS_IPV4 | ChecksumRequest.TCP
V4_UDP = ChecksumRequest.IS_IPV4 | ChecksumRequest.UDP
V6_TCP = ChecksumRequest.IS_IPV6 | ChecksumRequest.TCP
SUCCESS, NOT_ACCEPTED, FAILURE = 0, 0x00010003, 0xC0000001


@attrs.define(eq=False)
class Scene:
    xen: Platform
    nic: Adapter
    sink: Sink
    lists: Lists

    def send(self, nbl: NetBufferList) -> list[Frame]:
        """What comes to the bridge of it."""
        self.nic.send_lists([nbl])
        self.xen.run()
        frames = list(self.sink.frames)
        self.sink.frames.clear()
        return frames

    def receive(self, *frames: Frame) -> list[NetBufferList]:
        """What comes up of frames from the bridge."""
        self.xen.bridge("xenbr0").transmit(self.sink, frames, self.xen.loop.now)
        self.xen.run()
        got, self.lists.got = self.lists.got, []
        return got


@pytest.fixture
def s() -> Iterator[Scene]:
    with Platform(seed=1) as xen:
        guest: Guest = xen.create(name="g", vifs=[Vif(mac=MAC)]).start()
        nic = guest.nets[0]
        sink = Sink()
        xen.bridge("xenbr0").attach(sink)
        nic.list_receiver = nic.list_sender = lists = Lists()
        nic.set(ENCAPSULATION, ON)
        yield Scene(xen, nic, sink, lists)


# down


def test_a_blank_sum_comes_to_the_bridge_blank(s: Scene) -> None:
    whole = tcp4(700)
    (frame,) = s.send(NetBufferList((whole,), checksum=V4_TCP))
    assert (frame.csum_blank, frame.gso_type) == (True, 0)
    assert frame.data == blank(whole, IP, TCP)


def test_a_list_without_requests_comes_as_it_is(s: Scene) -> None:
    (frame,) = s.send(NetBufferList((udp4(700),)))
    assert (frame.data, frame.csum_blank, frame.gso_type, frame.hash) == (udp4(700), False, 0, None)


@pytest.mark.parametrize(
    ("whole", "checksum", "is_ipv6", "kind"),
    [(tcp4(9000), V4_TCP, False, GSO_TCPV4), (tcp6(9000), V6_TCP, True, GSO_TCPV6)],
)
def test_a_large_packet_comes_whole(
    s: Scene, whole: bytes, checksum: int, is_ipv6: bool, kind: int
) -> None:
    nbl = NetBufferList((whole,), checksum=checksum, mss=1400, is_ipv6=is_ipv6)
    (frame,) = s.send(nbl)
    assert (frame.gso_type, frame.gso_size, len(frame.data)) == (kind, 1400, len(whole))
    assert nbl.status == SUCCESS


@pytest.mark.parametrize("priority", range(1, 8))
def test_a_priority_becomes_a_tag(s: Scene, priority: int) -> None:
    whole = udp4(100)
    (frame,) = s.send(NetBufferList((whole,), priority=priority))
    tag = b"\x81\x00" + (priority << 13).to_bytes(2, "big")
    assert frame.data == whole[:12] + tag + whole[12:]


def test_priority_0_makes_no_tag(s: Scene) -> None:
    (frame,) = s.send(NetBufferList((udp4(100),), priority=0))
    assert frame.data == udp4(100)


# Hash of the list: (bit number, value) that the bridge sees.
@pytest.mark.parametrize(
    ("given_hash", "seen"),
    [
        (PacketHash(2, 2, 0x12345678), (1, 0x12345678)),
        (PacketHash(2, 4, 0xFFFFFFFF), (3, 0xFFFFFFFF)),
        (PacketHash(0, 2, 0x12345678), None),
        (PacketHash(1, 2, 0x12345678), None),
        (PacketHash(2, 0, 0x12345678), None),
        (PacketHash(2, 5, 0x12345678), None),
        (PacketHash(2, 2, 1 << 32), None),
        (PacketHash(2, -1, -1), None),
    ],
)
def test_only_a_toeplitz_hash_goes_down(
    s: Scene, given_hash: PacketHash, seen: tuple[int, int] | None
) -> None:
    (frame,) = s.send(NetBufferList((tcp4(100),), hash=given_hash))
    assert frame.hash == seen


# What is sent, how much comes to the bridge, and the status.
MALFORMED = [
    (NetBufferList((bytes(13),)), NOT_ACCEPTED),
    (NetBufferList((tcp4(1465),)), NOT_ACCEPTED),  # a frame of 1,519 bytes
    (NetBufferList((tcp4(65000),), checksum=V4_TCP), NOT_ACCEPTED),
    (NetBufferList((bytes(66000),), checksum=V4_TCP, mss=1400), NOT_ACCEPTED),
    (NetBufferList((b"",)), NOT_ACCEPTED),
    (NetBufferList((tcp4(100),), mss=1 << 16, checksum=V4_TCP), FAILURE),
    (NetBufferList((tcp4(100),), priority=8), FAILURE),
]


@pytest.mark.parametrize("at", range(len(MALFORMED)))
def test_a_malformed_list_has_a_status_and_nothing_comes(s: Scene, at: int) -> None:
    nbl, status = MALFORMED[at]
    nbl = attrs.evolve(nbl)
    assert s.send(nbl) == []
    assert nbl.status == status
    assert s.lists.done == [nbl]
    assert s.nic.in_flight == 0


@pytest.mark.parametrize("offload", [{"mss": 1400}, {"checksum": V4_TCP}, {"checksum": V4_UDP}])
def test_what_was_switched_off_cannot_be_asked_for(s: Scene, offload: dict[str, int]) -> None:
    s.nic.set(0xFC01020C, bytes(4) + b"\1" * 5 + b"\0\0\1\1" + bytes(13))
    nbl = NetBufferList((tcp4(5000 if "mss" in offload else 100),), **offload)
    assert s.send(nbl) == []
    assert nbl.status == FAILURE


# up


def frame_to_guest(network: type[IP | IPv6], size: int = 500) -> bytes:
    data = tcp4(size) if network is IP else tcp6(size)
    return bytes.fromhex(MAC.replace(":", "")) + PEER + data[12:]


TCP_OK, UDP_OK, IP_OK = 1 << 3, 1 << 4, 1 << 5
TCP_BAD, IP_BAD = 1 << 0, 1 << 2


def broken(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x5A]) + data[at + 1 :]


def test_checksums_come_up_as_ndis_has_them(s: Scene) -> None:
    good = frame_to_guest(IP)
    got = s.receive(
        Frame(good, data_validated=True),
        Frame(broken(good, 50), data_validated=False),
        Frame(broken(good, 24), data_validated=True),
        Frame(frame_to_guest(IPv6), data_validated=True),
    )
    assert [nbl.checksum for nbl in got] == [
        TCP_OK | IP_OK, TCP_BAD | IP_OK, TCP_OK | IP_BAD, TCP_OK,
    ]  # fmt: skip


def test_a_blank_sum_comes_up_written(s: Scene) -> None:
    good = frame_to_guest(IP)
    (nbl,) = s.receive(Frame(blank(good, IP, TCP), csum_blank=True, data_validated=True))
    assert nbl.buffers == (good,)
    assert nbl.checksum == TCP_OK | IP_OK


@pytest.mark.parametrize("network", [IP, IPv6])
def test_of_a_large_packet_one_segment_is_peeled_and_the_rest_comes_whole(
    s: Scene, network: type[IP | IPv6]
) -> None:
    data = blank(frame_to_guest(network, 4000), network, TCP)
    kind = GSO_TCPV4 if network is IP else GSO_TCPV6
    got = s.receive(Frame(data, csum_blank=True, data_validated=True, gso_type=kind, gso_size=1000))
    head = len(data) - 4000
    assert [(len(nbl.buffers[0]) - head, nbl.mss) for nbl in got] == [(1000, 0), (3000, 1000)]
    assert [nbl.is_ipv6 for nbl in got] == [False, network is IPv6]
    assert all(sums_right(nbl.buffers[0]) for nbl in got)


@pytest.mark.parametrize(
    ("tci", "priority"), [(0xE000, 7), (0x2000, 1), (0x0000, 0), (0x1000, 0), (0xF000, 7)]
)
def test_a_priority_tag_is_taken_out(s: Scene, tci: int, priority: int) -> None:
    good = frame_to_guest(IP)
    (nbl,) = s.receive(Frame(good[:12] + b"\x81\x00" + pack(">H", tci) + good[12:]))
    assert (nbl.buffers, nbl.priority) == ((good,), priority)


@pytest.mark.parametrize("tci", [1, 0xFFF, 0xE001])
def test_a_frame_of_a_vlan_is_dropped_and_its_packet_returned(s: Scene, tci: int) -> None:
    good = frame_to_guest(IP)
    got = s.receive(
        Frame(good),
        Frame(good[:12] + b"\x81\x00" + pack(">H", tci) + good[12:]),
        Frame(frame_to_guest(IP, 300)),
    )
    assert [nbl.buffers for nbl in got] == [(good,), (frame_to_guest(IP, 300),)]
    s.nic.return_lists(got)
    assert s.nic._vif._frontend.receiver.lent == {}


def test_each_packet_is_an_indication_of_its_own(s: Scene) -> None:
    calls: list[int] = []

    class Counting(Lists):
        def receive_lists(self, lists: object) -> None:
            calls.append(len(lists))  # type: ignore[arg-type]

    s.nic.list_receiver = Counting()
    s.receive(*[Frame(frame_to_guest(IP))] * 5)
    assert calls == [1] * 5


# conservation

LISTS = st.lists(
    st.builds(
        NetBufferList,
        st.lists(
            st.sampled_from([tcp4(10), tcp4(1400), tcp4(9000), tcp6(5000), udp4(700), b"", b"x" * 13, bytes(60), bytes(66000)]),
            max_size=4,
        ).map(tuple),
        checksum=st.integers(0, 31),
        mss=st.sampled_from([0, 0, 1, 536, 1400, 65535, 65536]),
        is_ipv6=st.booleans(),
        priority=st.sampled_from([0, 0, 0, 1, 7, 8]),
        hash=st.sampled_from([PacketHash(), PacketHash(2, 1, 7), PacketHash(9, 9, 1 << 40)]),
    ),
    max_size=12,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(lists=LISTS, seed=st.integers(0, 1 << 16), paused=st.booleans())
def test_every_list_is_completed_once_whatever_it_holds(
    lists: list[NetBufferList], seed: int, paused: bool
) -> None:
    with Platform(seed=seed) as xen:
        nic = xen.create(name="g", vifs=[Vif(mac=MAC)]).start().nets[0]
        nic.set(ENCAPSULATION, ON)
        nic.list_sender = ours = Lists()
        nic.send_lists(lists)
        if paused:
            nic.pause()
        xen.run()
        assert sorted(map(id, ours.done)) == sorted(map(id, lists))
        for nbl in lists:
            assert nbl.status in (SUCCESS, NOT_ACCEPTED, FAILURE)
            assert nbl.status is not NdisStatus.PENDING
            assert nbl.pending == 0
        assert nic.in_flight == 0
        assert nic._vif._frontend.broken == ""
