"""What must hold of a network device whatever is sent: both real ends, with a bridge between.

Each law is that of netif and its drivers, not of our code: nothing is lost or made twice, rings
keep count over the wrap of their indices, offloads change nothing of what a program sent.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vif.rawback import rings_at
from xenpv import Platform, Vif
from xenpv.guest import Guest
from xenpv.host import packet
from xenpv.host.libxl import ToolstackError
from xenpv.host.packet import (
    TCP,
    UDP,
    internet_checksum,
    ip_addresses,
    parse_headers,
    pseudo_header,
)
from xenpv.host.pcapng import PcapngCapture, PcapngWriter
from xenpv.net.nbl import ChecksumRequest, ChecksumResult, NetBufferList
from xenpv.net.ndis import NdisStatus
from xenpv.testing.census import leaks, take_census
from xenpv.xen.domain import Domain
from xenpv.xen.loop import Loop, Task

A, B = bytes.fromhex("00163e000001"), bytes.fromhex("00163e000002")
NET4 = (bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2)))
NET6 = (packet.link_local(A), packet.link_local(B))
OFFLOAD_ENCAPSULATION = 0x101010A
# NDIS_OFFLOAD_ENCAPSULATION: on, of 802.3 with 14 bytes, for IPv4 and for IPv6.
ETHERNET_II = struct.pack("<BBHIIIIII", 0xA8, 1, 28, 1, 2, 14, 1, 2, 14)
STARTS = (0, 0x7FFFFFF1, 0xFFFFFFF0)
SLOTS = 256


@attrs.define(eq=False)
class Protocol:
    """Takes every list, and gives it back."""

    guest: Guest
    lists: list[NetBufferList] = attrs.Factory(list)
    done: list[NetBufferList] = attrs.Factory(list)

    def __attrs_post_init__(self) -> None:
        self.guest.nets[0].list_receiver = self
        self.guest.nets[0].list_sender = self
        self.guest.nets[0].set(OFFLOAD_ENCAPSULATION, ETHERNET_II)

    def receive_lists(self, lists: Sequence[NetBufferList]) -> None:
        self.lists += lists
        self.guest.nets[0].return_lists(lists)

    def sent_lists(self, lists: Sequence[NetBufferList]) -> None:
        self.done += lists


@contextmanager
def pair(
    *, start: int = 0, seed: int = 0, personalities: Sequence[str] = ("windows", "windows")
) -> Iterator[tuple[Platform, Protocol, Protocol]]:
    with Platform(seed=seed) as xen, rings_at(start):
        ends = [
            xen.create(
                name=name,
                memory_mib=16,
                vcpus=2,
                personality=personality,
                vifs=[Vif(mac=mac.hex(":"))],
            ).start()
            for name, mac, personality in zip("ab", (A, B), personalities, strict=True)
        ]
        here, there = (Protocol(end) for end in ends)
        yield xen, here, there


@attrs.frozen
class Sent:
    """A program's packet: `payload` behind the transport header is what must arrive."""

    net: int  # 4 or 6
    protocol: int
    ports: tuple[int, int]
    sequence: int
    payload: bytes
    mss: int

    def list(self, source_mac: bytes = A, destination_mac: bytes = B) -> NetBufferList:
        source, destination = NET4 if self.net == 4 else NET6
        if self.protocol == UDP:
            transport = struct.pack(">HHHH", *self.ports, 8 + len(self.payload), 0)
        else:
            transport = struct.pack(
                ">HHIIBBHHH", *self.ports, self.sequence, 0, 0x50, 0x18, 1000, 0, 0
            )
        whole = transport + self.payload
        if self.net == 4:
            network = packet.ipv4_packet(source, destination, self.protocol, whole)
            kind = packet.ETHERTYPE_IPV4
        else:
            network = packet.ipv6_packet(source, destination, self.protocol, whole)
            kind = packet.ETHERTYPE_IPV6
        frame = packet.ethernet_frame(destination_mac, source_mac, kind, network)
        asked = ChecksumRequest.IS_IPV4 if self.net == 4 else ChecksumRequest.IS_IPV6
        asked |= ChecksumRequest.UDP if self.protocol == UDP else ChecksumRequest.TCP
        if self.mss:
            return NetBufferList((frame,), mss=self.mss, is_ipv6=self.net == 6)
        return NetBufferList((frame,), checksum=asked)


@st.composite
def sent(draw: st.DrawFn) -> Sent:
    protocol = draw(st.sampled_from((TCP, UDP)))
    net = draw(st.sampled_from((4, 6)))
    large = protocol == TCP and draw(st.booleans())
    # What 40 bytes of IPv6 and 20 of TCP leave of the MTU; sizes of 0, of an odd end, of a page.
    size = draw(st.integers(0, 1440) | st.sampled_from((0, 1, 26, 1440)))
    if large:
        size = draw(st.integers(1441, 60000) | st.sampled_from((4096, 8192, 60000)))
    fill = draw(st.sampled_from((b"\0", b"\xff", bytes(range(251)))))
    payload = (fill * (size // len(fill) + 1))[:size]
    return Sent(
        net=net,
        protocol=protocol,
        ports=(draw(st.integers(1, 0xFFFF)), draw(st.integers(1, 0xFFFF))),
        sequence=draw(st.sampled_from((0, 1, 0xFFFFFF00))),
        payload=payload,
        mss=draw(st.sampled_from((536, 1220, 1440))) if large else 0,
    )


def transport_of(frame: bytes) -> tuple[int, int, bytes, int]:
    """IP version, protocol, the transport's bytes, where the payload starts in them.

    Its sums are right, in the frame's own bytes.
    """
    headers = parse_headers(frame)
    assert headers is not None
    if headers.version == 4:
        assert internet_checksum(frame[headers.network : headers.transport]) == 0
    segment = frame[headers.transport : headers.end]
    over = pseudo_header(*ip_addresses(frame, headers), headers.protocol, len(segment))
    assert internet_checksum(over + segment) == 0
    at = 8 if headers.protocol == UDP else (segment[12] >> 4) * 4
    return headers.version, headers.protocol, segment, at


def arrived(lists: Sequence[NetBufferList]) -> list[tuple[int, int, tuple[int, int], int, bytes]]:
    """Packets as their program sent them: segments that follow one another are joined."""
    found: list[tuple[int, int, tuple[int, int], int, bytes]] = []
    expects = None
    for one in lists:
        (frame,) = one.buffers
        version, protocol, segment, at = transport_of(frame)
        assert one.checksum & (ChecksumResult.TCP_SUCCEEDED | ChecksumResult.UDP_SUCCEEDED)
        ports = struct.unpack_from(">HH", segment)
        payload = segment[at:]
        sequence = 0
        pushed = True
        if protocol == TCP:
            (sequence,) = struct.unpack_from(">I", segment, 4)
            pushed = bool(segment[13] & 0x08)
        key = (version, protocol, ports, sequence)
        if expects == key:
            *head, before = found[-1]
            found[-1] = (*head, before + payload)  # type: ignore[assignment]
        else:
            found.append((version, protocol, ports, sequence, payload))
        after = (sequence + len(payload)) & 0xFFFFFFFF
        expects = None if pushed else (version, protocol, ports, after)
    return found


def assert_slots_are_kept(guest: Guest) -> None:
    """Slots posted are those answered and those outstanding, on every ring of the guest."""
    pdo = guest._vif.pdos[0]
    for queue in pdo.frontend.queues:
        tx, rx = queue.transmitter, queue.receiver
        assert tx.posted == tx.answered + tx.in_flight
        assert rx.posted - rx.answered == SLOTS


@settings(max_examples=80)
@given(
    packets=st.lists(sent(), min_size=1, max_size=12),
    start=st.sampled_from(STARTS),
    personalities=st.sampled_from((("windows", "windows"), ("windows", "linux"))),
    seed=st.integers(0, 7),
)
def test_offloads_change_nothing_of_what_a_program_sent(
    packets: list[Sent], start: int, personalities: tuple[str, str], seed: int
) -> None:
    with pair(start=start, seed=seed, personalities=personalities) as (xen, here, there):
        xen.run()
        lists = [one.list() for one in packets]
        here.guest.nets[0].send_lists(lists)
        xen.run()
        assert sorted(map(id, here.done)) == sorted(map(id, lists))  # each exactly once
        assert {one.status for one in lists} == {NdisStatus.SUCCESS}
        # Queues keep the order of a flow, not that between flows.
        expected = [(p.net, p.protocol, p.ports, p.sequence * (p.protocol == TCP), p.payload)
                    for p in packets]  # fmt: skip
        assert sorted(arrived(there.lists)) == sorted(expected)
        for end in (here, there):
            assert_slots_are_kept(end.guest)


@pytest.mark.filterwarnings("ignore:Field type should not be:DeprecationWarning")  # python-pcapng
def test_a_capture_names_the_slots_of_both_directions(tmp_path) -> None:
    """As tcpdump on the vif of the receiver: two pages take two slots, and the ring goes around."""
    from pcapng import FileScanner
    from pcapng.blocks import EnhancedPacket

    path = tmp_path / "b.pcapng"
    with pair(start=0xFFFFFFFE) as (xen, here, there), path.open("wb") as file:
        capture = PcapngCapture(PcapngWriter(file), port="vif2.0")
        xen.bridge("xenbr0").taps.append(capture)
        adapter = here.guest.nets[0]
        for _ in range(3):
            adapter.send(B + A + b"\x88\xb5" + bytes(100))
        xen.run()
        there.guest.nets[0].send(A + B + b"\x88\xb5" + bytes(100))
        xen.run()
    with path.open("rb") as file:
        packets = [block for block in FileScanner(file) if isinstance(block, EnhancedPacket)]
    assert [packet.options["opt_comment"] for packet in packets] == [
        "queue 0 slot 254", "queue 0 slot 255", "queue 0 slot 0", "queue 0 slot 254",
    ]  # fmt: skip
    assert [packet.options["epb_flags"].inout for packet in packets] == [
        "outbound", "outbound", "outbound", "inbound",
    ]  # fmt: skip


@attrs.define(eq=False)
class Scribbler:
    """Between two steps of the loop it writes into pages that both ends of a vif share.

    `data`: where and what, four bytes a time, until there are no more.
    """

    domain: Domain
    pages: Sequence[int]
    data: Sequence[tuple[int, int, int, int]]
    at: int = 0
    steps: int = 0

    def drain(self, loop: Loop, limit: int) -> int:
        done = 0
        while loop.ready and done < limit:
            self.scribble()
            count = len(loop.ready)
            task = loop.ready[loop.chooser.choose(count) if count > 1 else 0]
            loop.start(task)
            task.run()
            done += 1
        return done

    def pump(self, loop: Loop, task: Task) -> bool:
        if task.queued:
            loop.start(task)
            task.run()
            return True
        return False

    def scribble(self) -> None:
        self.steps += 1
        if self.at < len(self.data):
            wait, page, offset, value = self.data[self.at]
            if self.steps % (wait + 1) == 0:
                self.at += 1
                self.domain.store32(self.pages[page % len(self.pages)], offset * 4, value)


# The indices and events of a ring, and its first slots, more often than the rest.
PLACE = st.sampled_from((0, 1, 2, 3)) | st.integers(16, 30) | st.integers(0, 1023)
WORD = st.sampled_from((0, 1, 2, 255, 256, 257, 0xFFFF, 0xFFFFFFFF, 0x0004_0000)) | st.integers(
    0, 0xFFFFFFFF
)


@settings(max_examples=150)
@given(
    data=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7), PLACE, WORD), max_size=30),
    start=st.sampled_from(STARTS),
    seed=st.integers(0, 7),
)
def test_bytes_that_change_under_both_ends_end_in_a_state_that_has_a_name(
    data: list[tuple[int, int, int, int]], start: int, seed: int
) -> None:
    """Every frame comes back once, an end that cannot go on says why, and others go on."""
    with pair(start=start, seed=seed) as (xen, here, there):
        bystander = Protocol(
            xen.create(name="c", memory_mib=16, vifs=[Vif(mac="00:16:3e:00:00:03")]).start()
        )
        domain = here.guest.created.domain
        rings = [page for queue in here.guest._vif.pdos[0].frontend.queues
                 for ring in (queue.transmitter, queue.receiver) for page in ring._page.pfns]  # fmt: skip
        here_nic, there_nic = here.guest.nets[0], there.guest.nets[0]
        xen.loop.scheduler = Scribbler(domain, rings, data)
        lists = []
        for size in (60, 1514, 200):
            for _ in range(4):
                if here_nic.link_up:
                    one = NetBufferList((B + A + b"\x88\xb5" + bytes(size - 14),))
                    lists.append(one)
                    here_nic.send_lists([one])
                there_nic.send_lists([NetBufferList((A + B + b"\x88\xb5" + bytes(size - 14),))])
            xen.run()
        xen.loop.scheduler = None
        xen.loop.advance(61 * 10**9)  # watchdogs, expiry and stall
        there.lists.clear()
        bystander.guest.nets[0].send(B + bytes.fromhex("00163e000003") + b"\x88\xb5" + bytes(46))
        xen.run()
        assert len(there.lists) == 1
        here.guest.detach("vif", 0, mode="forced" if here_nic.link_up else "auto")
        xen.run()
        assert sorted(map(id, here.done)) == sorted(map(id, lists))
        assert NdisStatus.PENDING not in [one.status for one in lists]


def send_some(here: Protocol, count: int = 6) -> list[NetBufferList]:
    """Plain, summed and large packets, if the link is up."""
    nic = here.guest.nets[0] if here.guest.nets else None
    mac = A if nic is None else nic.mac
    lists = []
    for number in range(count):
        large = number % 3 == 2
        one = Sent(
            net=4 if number % 2 else 6,
            protocol=TCP,
            ports=(number + 1, 80),
            sequence=0,
            payload=bytes([number]) * (20000 if large else 100 * number),
            mss=1220 if large else 0,
        ).list(mac, A if mac == B else B)
        if nic is not None and nic.link_up:
            lists.append(one)
            nic.send_lists([one])
    return lists


def suspend(xen: Platform, end: Protocol) -> None:
    end.guest.suspend()
    end.guest.resume()


def plug_again(xen: Platform, end: Protocol) -> None:
    end.guest.detach("vif", 0)
    end.guest.attach(Vif(mac=(A if end.guest.name == "a" else B).hex(":")))
    end.__attrs_post_init__()


def pause_adapter(xen: Platform, end: Protocol) -> None:
    end.guest.nets[0].pause()
    xen.run()
    end.guest.nets[0].restart()


def rewrite_backend(xen: Platform, end: Protocol) -> None:
    """A backend that closes by itself, as one whose driver is unloaded and loaded."""
    xen.backends.rebind("vif", end.guest.domid, 0)


EVENTS = (suspend, plug_again, pause_adapter, rewrite_backend)


@settings(max_examples=40)
@given(
    events=st.lists(st.tuples(st.sampled_from(EVENTS), st.booleans(), st.booleans()), max_size=4),
    start=st.sampled_from(STARTS),
    seed=st.integers(0, 7),
)
def test_after_the_end_nothing_is_left_and_every_packet_came_back_once(
    events: list[tuple[object, bool, bool]], start: int, seed: int
) -> None:
    with Platform(seed=seed) as empty_world, rings_at(start):
        empty = take_census(empty_world)
    with pair(start=start, seed=seed) as (xen, here, there):
        sent = {id(here): [], id(there): []}
        for event, at_there, loaded in events:
            for end in (here, there):
                sent[id(end)] += send_some(end)
            if not loaded:
                xen.run()
            event(xen, there if at_there else here)
            xen.run()
        for end in (here, there):
            sent[id(end)] += send_some(end)
        xen.run()
        for end in (here, there):
            end.guest.shutdown()
            end.guest.destroy()
        xen.run()
        for end in (here, there):
            assert sorted(map(id, end.done)) == sorted(map(id, sent[id(end)]))
            assert NdisStatus.PENDING not in [one.status for one in end.done]
        left = [line for line in leaks(empty, take_census(xen), lost=False)
                if ": node" not in line and ": task" not in line]  # fmt: skip
        assert left == []
        assert not any("attr/vif" in line for line in leaks(empty, take_census(xen)))


KEYS = (
    "feature-sg", "feature-gso-tcpv4", "feature-gso-tcpv6", "feature-ipv6-csum-offload",
    "feature-no-csum-offload", "feature-split-event-channels", "multi-queue-max-queues",
    "feature-ctrl-ring", "feature-multicast-control", "feature-dynamic-multicast-control",
    "feature-rx-copy", "feature-xdp-headroom",
)  # fmt: skip
VALUES = (None, "0", "1", "2", "", "18446744073709551616", "-1", "1x", "10", "\xff")


@pytest.mark.parametrize("personality", ["windows", "linux"])
@pytest.mark.parametrize("key", KEYS)
def test_whatever_a_key_of_the_backend_says_the_ends_agree_or_say_why(
    key: str, personality: str
) -> None:
    for value in VALUES:
        with Platform(seed=1) as xen:
            other = Protocol(
                xen.create(name="b", memory_mib=16, vifs=[Vif(mac=B.hex(":"))]).start()
            )
            guest = xen.create(
                name="a",
                memory_mib=16,
                vcpus=4,
                personality=personality,
                vifs=[Vif(mac=A.hex(":"))],
            )
            xen.run()  # the backend writes its features
            path = f"/local/domain/0/backend/vif/{guest.domid}/0/{key}"
            xs = xen.toolstack.ctx.xs
            if value is not None:
                xs.write(path, value)
            elif xs.read(path) is not None:
                xs.rm(path)
            try:
                guest.start()
            except ToolstackError:
                device = guest._vif.pdos[0].frontend
                back = xen.backends.device("vif", guest.domid, 0)
                assert device.error or device.broken or back.broken, (key, value)
                continue
            here = Protocol(guest)
            if not guest.nets[0].link_up:
                assert guest.nets[0].error or guest._vif.pdos[0].frontend.error, (key, value)
                continue
            lists = [
                NetBufferList((B + A + b"\x88\xb5" + bytes(size),)) for size in (46, 100, 1500)
            ]
            guest.nets[0].send_lists(lists)
            other.guest.nets[0].send_lists(
                [NetBufferList((A + B + b"\x88\xb5" + bytes(size),)) for size in (46, 100, 1500)]
            )
            back = send_some(other)
            xen.run()
            assert {one.status for one in (*lists, *back)} == {NdisStatus.SUCCESS}, (key, value)
            assert [len(one.buffers[0]) for one in other.lists] == [60, 114, 1514], (key, value)
            plain = [one for one in here.lists if one.buffers[0][12:14] == b"\x88\xb5"]
            assert [len(one.buffers[0]) for one in plain] == [60, 114, 1514], (key, value)
            rest = [one for one in here.lists if one.buffers[0][12:14] != b"\x88\xb5"]
            assert sorted(len(one[4]) for one in arrived(rest)) == sorted(
                (0, 100, 20000, 300, 400, 20000)
            ), (key, value)
