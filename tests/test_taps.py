"""TAPs on a platform, with sockets for descriptors and a clock of the test's own."""

from __future__ import annotations

import io
import socket
import struct

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from xenpv import Platform, Vif
from xenpv.errors import LocalProtocolError
from xenpv.host import packet, vnet
from xenpv.host.journal import JournalReader, JournalWriter, Setup
from xenpv.host.libxl import ToolstackError
from xenpv.host.network import GSO_TCPV4, Frame
from xenpv.host.offload import blank_checksum
from xenpv.host.tap import Mode, Played, Tap
from xenpv.taps import Pump, Taps

GUEST_MAC = "00:16:3e:00:00:01"
MAC = packet.mac_bytes(GUEST_MAC)
KERNEL = packet.mac_bytes("02:00:00:00:00:09")
IP4, KERNEL4 = bytes([10, 9, 0, 2]), bytes([10, 9, 0, 1])
STRANGER = packet.mac_bytes("02:00:00:00:00:0a")
OTHER = b"\xff" * 6 + KERNEL + b"\x88\xb5" + bytes(range(46))


def ping(sequence=1, size=56):
    return packet.icmp_echo_request(KERNEL, MAC, KERNEL4, IP4, 7, sequence, bytes(size))


class Wire:
    """A TAP whose kernel is the test."""

    def __init__(self, name, mode=Mode.PLAIN):
        self.kernel, self._ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.kernel, self._ours):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.tap = Tap(self._ours.fileno(), name, mode, headed=mode is not Mode.PLAIN)
        self.tap.set_mac = lambda mac: True

    def received(self):
        found = []
        while True:
            try:
                found.append(self.kernel.recv(70_000))
            except BlockingIOError:
                return found

    def close(self):
        self.kernel.close()
        self._ours.close()


@pytest.fixture
def wire():
    made = Wire("tap0")
    yield made
    made.close()


@pytest.fixture
def wire1():
    made = Wire("tap1")
    yield made
    made.close()


def started(xen, **settings):
    guest = xen.create(name="web", vifs=[Vif(mac=GUEST_MAC, **settings)])
    guest.start()
    return guest


class Clock:
    """Each look at it takes ten milliseconds."""

    def __init__(self):
        self.now = 10**15

    def __call__(self):
        self.now += 10_000_000
        return self.now


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """The host's own time is not waited for."""
    monkeypatch.setattr("xenpv.taps.NAP_NS", 0)


def serve(taps, seconds=0.05):
    pump = Pump(taps, Clock())
    pump.serve(seconds)
    pump.close()


def test_a_kernel_on_a_bridge_pings_a_guest(wire):
    with Platform() as xen, Taps(xen) as taps:
        started(xen, ip="10.9.0.2/24")
        taps.join(xen.bridge("xenbr0"), wire.tap)
        sizes = (0, 1, 56, 1472)
        for sequence, size in enumerate(sizes):
            wire.kernel.send(ping(sequence, size))
        serve(taps)
        echoes = [packet.parse_echo_reply(raw) for raw in wire.received()]
        assert [(one.sequence, one.payload) for one in echoes] == [
            (sequence, bytes(size)) for sequence, size in enumerate(sizes)
        ]
        (tap,) = taps.attached
        assert (tap.where, tap.end.frames_in, wire.tap.frames_out) == ("xenbr0", 4, 4)


def test_a_kernel_behind_a_guest_sees_all_and_is_the_guest(wire):
    with Platform() as xen, Taps(xen) as taps:
        guest = started(xen, ip="10.9.0.2/24")
        station = xen.respond("xenbr0", ipv4="10.9.0.1")
        taps.give(guest, 0, wire.tap)
        asks = packet.arp_request(MAC, IP4, KERNEL4)
        wire.kernel.send(asks)
        serve(taps)
        (answer,) = wire.received()
        assert packet.parse_arp(answer).sender_mac == station.mac
        xen.bridge("xenbr0").transmit(station, [Frame(STRANGER + OTHER[6:])], xen.loop.now)
        # The responder that was bound before does not answer beside the kernel.
        xen.bridge("xenbr0").transmit(
            station, [Frame(packet.arp_request(station.mac, KERNEL4, IP4))], xen.loop.now
        )
        serve(taps)
        assert len(wire.received()) == 2
        assert guest.nets[0].statistics.sent_frames == 1


def test_two_kernels_talk_through_a_guest_and_a_bridge(wire, wire1):
    with Platform() as xen, Taps(xen) as taps:
        taps.join(xen.bridge("xenbr0"), wire.tap)
        taps.give(started(xen), 0, wire1.tap)
        assert [tap.where for tap in taps.attached] == ["xenbr0", "web.0"]
        frames = [OTHER[:14] + bytes([n]) * 100 for n in range(200)]
        for frame in frames:
            wire.kernel.send(frame)
        serve(taps)
        assert wire1.received() == frames
        back = [KERNEL + MAC + b"\x88\xb5" + bytes([n]) * 100 for n in range(200)]
        for frame in back:
            wire1.kernel.send(frame)
        serve(taps)
        assert wire.received() == back
        adapter = xen.guest("web").nets[0]
        assert (adapter._lists_in.indicated >= 200, adapter._lists_in.outstanding) == (True, 0)


@pytest.mark.parametrize("modes", [(a, b) for a in Mode for b in Mode], ids=str)
def test_a_large_packet_arrives_whole_or_in_segments_with_right_sums(modes):
    wires = [Wire(f"tap{n}", mode) for n, mode in enumerate(modes)]
    with Platform() as xen, Taps(xen) as taps:
        taps.join(xen.bridge("xenbr0"), wires[0].tap)
        taps.give(started(xen), 0, wires[1].tap)
        for here, there, source, target in ((0, 1, KERNEL, MAC), (1, 0, MAC, KERNEL)):
            ether = Ether(src=source.hex(":"), dst=target.hex(":"))
            payload = bytes(n % 251 for n in range(9000))
            tcp = ether / IP(src="10.9.0.1", dst="10.9.0.2") / TCP(sport=1, dport=2, seq=1)
            if modes[here] is Mode.PLAIN:
                sends = [bytes(tcp / payload[:1400])]
            elif modes[here] is Mode.CSUM:
                head, data = vnet.emit(blank_checksum(Frame(bytes(tcp / payload[:1400]))))
                sends = [head + data]
            else:
                large = Frame(bytes(tcp / payload), gso_type=GSO_TCPV4, gso_size=1448)
                sends = [b"".join(vnet.emit(large))]
            for raw in sends:
                wires[here].kernel.send(raw)
            serve(taps)
            parse = vnet.plain if modes[there] is Mode.PLAIN else vnet.parse
            got = [parse(raw) for raw in wires[there].received()]
            segments = []
            for frame in got:
                headers = packet.parse_headers(frame.data)
                body = frame.data[headers.transport + 20 : headers.end]
                segments.append((int.from_bytes(frame.data[38:42], "big"), body))
            whole = b"".join(body for _, body in sorted(segments))
            assert whole == (payload if modes[here] is Mode.TSO else payload[:1400])
            for frame in got:
                if not frame.csum_blank:
                    again = Ether(frame.data)
                    del again[TCP].chksum
                    assert bytes(again) == frame.data
        assert [
            sum((tap.end.malformed, tap.end.unfinished, tap.unsent)) for tap in taps.attached
        ] == [0, 0]
    for wire in wires:
        wire.close()


def recorded(seed, wire, wire1):
    """(digest, journal) of a run with traffic at both ends."""
    file = io.BytesIO()
    with Platform(seed=seed) as xen, Taps(xen) as taps:
        guest = started(xen)
        taps.join(xen.bridge("xenbr0"), wire.tap)
        taps.give(guest, 0, wire1.tap)
        taps.journal = JournalWriter(file, Setup(seed, taps.described()))
        for n in range(30):
            wire.kernel.send(OTHER + bytes([n]))
            wire1.kernel.send(KERNEL + MAC + b"\x88\xb5" + bytes([n]) * 60)
            serve(taps, 0.004)
            taps.step(xen.loop.now + 2 * 10**9)  # so that watchdogs run at their times between
        digest = xen.digest
        taps.journal.end(digest)
    return digest, file.getvalue()


def played(raw):
    """(digest, that of the journal, frames written)"""
    reader = JournalReader(io.BytesIO(raw), "a.journal")
    with Platform(seed=reader.setup.seed) as xen, Taps(xen) as taps:
        guest = started(xen)
        devices = [Played(tap.name, headed=tap.headed) for tap in reader.setup.taps]
        taps.join(xen.bridge("xenbr0"), devices[0])
        taps.give(guest, 0, devices[1])
        expected = taps.play(reader)
        return xen.digest, expected, [device.frames_out for device in devices]


def test_a_run_that_is_played_back_has_its_digest(wire, wire1):
    digest, raw = recorded(7, wire, wire1)
    assert played(raw) == (digest, digest, [30, 30])


def test_another_byte_from_outside_gives_another_digest(wire, wire1):
    digest, raw = recorded(7, wire, wire1)
    at = raw.rindex(OTHER + bytes([29])) + 30
    ours, expected, counts = played(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    assert (expected, counts) == (digest, [30, 30])
    assert ours != digest


def test_a_journal_without_an_end_is_played_as_far_as_it_goes(wire, wire1):
    digest, raw = recorded(7, wire, wire1)
    assert played(raw[:-39])[:2] == (digest, "")


def test_time_goes_on_by_the_hosts_clock_and_watchdogs_run(wire):
    with Platform() as xen, Taps(xen) as taps:
        guest = started(xen)
        taps.give(guest, 0, wire.tap)
        before = xen.loop.now
        clock = Clock()
        looked = clock.now
        pump = Pump(taps, clock)
        pump.serve(0.195)
        pump.close()
        assert xen.loop.now - before == 195_000_000
        assert clock.now - looked >= 195_000_000


def test_a_stop_ends_it_and_comes_from_anywhere(wire):
    with Platform() as xen, Taps(xen) as taps:
        taps.join(xen.bridge("xenbr0"), wire.tap)
        pump = Pump(taps)
        pump.stop()
        pump.serve(None)
        pump.close()


def test_a_guest_that_goes_away_and_comes_back_keeps_its_tap(wire):
    with Platform() as xen, Taps(xen) as taps:
        guest = started(xen)
        station = xen.respond("xenbr0", ipv4="10.9.0.1")
        tap = taps.give(guest, 0, wire.tap)
        asks = packet.arp_request(MAC, IP4, KERNEL4)
        guest.nets[0].pause()
        wire.kernel.send(asks)
        serve(taps)
        assert (wire.received(), tap.unsent) == ([], 1)
        guest.nets[0].restart()
        wire.kernel.send(asks)
        serve(taps)
        assert [packet.parse_arp(raw).sender_mac for raw in wire.received()] == [station.mac]
        guest.detach(guest.nets[0])
        wire.kernel.send(asks)
        serve(taps)
        assert (wire.received(), tap.unsent) == ([], 2)
        guest.attach(Vif(mac=GUEST_MAC))
        wire.kernel.send(asks)
        serve(taps)
        assert [packet.parse_arp(raw).sender_mac for raw in wire.received()] == [station.mac]


def test_what_is_left_alone_when_the_taps_are_closed(wire, wire1):
    with Platform() as xen:
        guest = started(xen, ip="10.9.0.2/24")
        with Taps(xen) as taps:
            taps.join(xen.bridge("xenbr0"), wire.tap)
            taps.give(guest, 0, wire1.tap)
        assert (guest.nets[0].list_receiver, guest.nets[0].list_sender) == (None, None)
        assert "tap0" not in xen.bridge("xenbr0").ports
        station = xen.respond("xenbr0", ipv4="10.9.0.1")
        xen.bridge("xenbr0").transmit(
            station, [Frame(packet.arp_request(station.mac, KERNEL4, IP4))], xen.loop.now
        )
        xen.run()
        assert packet.parse_arp(xen.bridge("xenbr0").frames[-1]).sender_mac == MAC
        taps.close()


def test_one_end_has_one_tap(wire, wire1):
    with Platform() as xen, Taps(xen) as taps:
        guest = started(xen)
        taps.give(guest, 0, wire.tap)
        with pytest.raises(LocalProtocolError, match="adapter 0 of guest 'web' has a TAP already"):
            taps.give(guest, 0, wire1.tap)
        taps.join(xen.bridge("xenbr0"), wire1.tap)
        with pytest.raises(LocalProtocolError, match="port tap1 is attached already"):
            taps.join(xen.bridge("xenbr0"), wire1.tap)


def test_frames_that_no_adapter_takes_are_counted(wire):
    with Platform() as xen, Taps(xen) as taps:
        tap = taps.give(started(xen), 0, wire.tap)
        wire.kernel.send(OTHER + bytes(1500))
        wire.kernel.send(b"short")
        serve(taps)
        assert (tap.unsent, tap.end.malformed) == (1, 1)


def test_an_interface_that_was_removed_is_not_asked_again(wire):
    with Platform() as xen, Taps(xen) as taps:
        taps.join(xen.bridge("xenbr0"), wire.tap)
        wire.tap.gone = True
        wire.kernel.send(OTHER)
        serve(taps)
        assert taps.attached[0].end.frames_in == 0


def test_a_guest_that_is_behind_lets_the_kernel_wait(wire, monkeypatch):
    """What does not fit stays in the TAP, where the kernel counts it."""
    with Platform() as xen, Taps(xen) as taps:
        guest = started(xen)
        tap = taps.give(guest, 0, wire.tap)
        assert not tap.busy
        monkeypatch.setattr("xenpv.guesttap.IN_FLIGHT_MAX", 0)
        wire.kernel.send(OTHER)
        serve(taps)
        assert (tap.busy, tap.end.frames_in) == (True, 0)
        monkeypatch.setattr("xenpv.guesttap.IN_FLIGHT_MAX", 1)
        serve(taps)
        assert (tap.busy, tap.end.frames_in) == (False, 1)


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_a_guest_that_reboots_is_suspended_and_destroyed(wire, personality):
    with Platform() as xen, Taps(xen) as taps:
        guest = xen.create(name="web", vifs=[Vif(mac=GUEST_MAC)], personality=personality)
        guest.start()
        station = xen.respond("xenbr0", ipv4="10.9.0.1")
        tap = taps.give(guest, 0, wire.tap)
        asks = packet.arp_request(MAC, IP4, KERNEL4)

        def answered():
            wire.kernel.send(asks)
            serve(taps)
            return [packet.parse_arp(raw).sender_mac for raw in wire.received()]

        guest.suspend()
        assert answered() == []
        guest.resume()
        serve(taps)
        assert station.mac in [packet.parse_arp(raw).sender_mac for raw in wire.received()]
        guest.pause()
        assert answered() == []
        guest.unpause()
        serve(taps)
        assert [packet.parse_arp(raw).sender_mac for raw in wire.received()] == [station.mac]
        guest.reboot()
        # Bound again before anything came from the TAP.
        serve(taps)
        xen.bridge("xenbr0").transmit(station, [Frame(STRANGER + OTHER[6:])], xen.loop.now)
        serve(taps)
        assert wire.received() == [STRANGER + OTHER[6:]]
        assert answered() == [station.mac]
        assert tap.unsent == 0
        with pytest.raises(ToolstackError, match="an object of xenpv.guesttap.GuestTap"):
            guest.save("web.save")
        guest.destroy()
        assert answered() == []
        assert tap.unsent == 1


@pytest.mark.parametrize("encapsulated", [True, False])
def test_what_an_adapter_does_not_do_is_done_before_it(wire, wire1, encapsulated):
    """A large packet, a blank sum, and large ones beyond what LSO takes."""
    with Platform() as xen, Taps(xen) as taps:
        guest = started(xen)
        taps.join(xen.bridge("xenbr0"), wire1.tap)
        tap = taps.give(guest, 0, Played("tap1", headed=True))
        (adapter,) = guest.nets
        if not encapsulated:
            adapter.set(0x101010A, bytes(4) + struct.pack("<6I", 0, 0, 0, 0, 0, 0))
            off = bytearray(26)
            off[4:9] = b"\1" * 5  # no sums, by TCP_OFFLOAD_PARAMETERS
            off[11:13] = b"\1\1"  # no LSO
            adapter.set(0xFC01020C, bytes(off))
        assert bool(adapter.offload.transmit & ~1) is encapsulated
        tcp = Ether(src=GUEST_MAC, dst=KERNEL.hex(":")) / IP(src="10.9.0.2", dst="10.9.0.1") / TCP()
        for size in (6, 9000, 65_400):
            large = Frame(bytes(tcp / bytes(size)), gso_type=GSO_TCPV4 if size > 1460 else 0,
                          gso_size=1460 if size > 1460 else 0)  # fmt: skip
            taps.arrived(1, [b"".join(vnet.emit(blank_checksum(large)))])
            got = wire1.received()
            assert sum(len(raw) - 54 for raw in got) == size
            for raw in got:
                again = Ether(raw)
                del again[TCP].chksum
                assert bytes(again) == raw
        assert (tap.unsent, adapter.in_flight) == (0, 0)


@pytest.mark.parametrize(("payload", "frames"), [(65_201, 1), (65_202, 45)])
def test_a_large_packet_goes_down_whole_up_to_what_the_adapter_says(payload, frames):
    """MaxOffLoadSize counts TCP payload, 65,201 bytes by XenVif."""
    wire = Wire("tap0", Mode.TSO)
    with Platform() as xen, Taps(xen) as taps:
        taps.join(xen.bridge("xenbr0"), wire.tap)
        taps.give(started(xen), 0, Played("tap1", headed=True))
        tcp = Ether(src=GUEST_MAC, dst=KERNEL.hex(":")) / IP(src="10.9.0.2", dst="10.9.0.1") / TCP()
        large = Frame(bytes(tcp / bytes(payload)), gso_type=GSO_TCPV4, gso_size=1460)
        taps.arrived(1, [b"".join(vnet.emit(blank_checksum(large)))])
        assert len(wire.received()) == frames
    wire.close()
