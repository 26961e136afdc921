"""A guest's transmit side in a test's hands: packets with offloads in, slots or frames out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import attrs
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.back.netfront import Sink
from tests.vif.rawback import MAC, Scene, rings_at
from xenpv import Guest, Platform, Vif
from xenpv.vif.frontend import Frontend
from xenpv.vif.packet import ReceiverPacket, TransmitterPacket

CSUM_BLANK, DATA_VALIDATED, MORE, EXTRA = 1, 2, 4, 8
BLANK = CSUM_BLANK | DATA_VALIDATED
OKAY, DROPPED, ERROR, NULL = 0, -2, -1, 1
OK_STATUS, DROPPED_STATUS, ERROR_STATUS = 2, 3, 4

# A backend with everything that Linux offers but several queues.
LINUX_FEATURES = {
    "feature-sg": "1",
    "feature-rx-copy": "1",
    "feature-gso-tcpv4": "1",
    "feature-gso-tcpv6": "1",
    "feature-ipv6-csum-offload": "1",
    "feature-ctrl-ring": "1",
}

TAG, LSO4, HEADER4, TCP4, UDP4, LSO6, TCP6, UDP6 = (1 << bit for bit in range(8))

V4 = {"src": "192.0.2.1", "dst": "198.51.100.2"}
V6 = {"src": "2001:db8::1", "dst": "2001:db8::2"}


def ether() -> Packet:
    return Ether(dst="00:16:3e:00:00:ee", src=MAC)


def payload(size: int) -> bytes:
    return bytes(at * 7 + at // 251 & 0xFF for at in range(size))


def tcp4(size: int, **fields: object) -> bytes:
    """Headers of 54 bytes and `size` of payload, every sum right."""
    return bytes(ether() / IP(**V4) / TCP(sport=1, dport=2, **fields) / Raw(payload(size)))


def udp4(size: int) -> bytes:
    return bytes(ether() / IP(**V4) / UDP(sport=1, dport=2) / Raw(payload(size)))


def tcp6(size: int) -> bytes:
    return bytes(ether() / IPv6(**V6) / TCP(sport=1, dport=2) / Raw(payload(size)))


def udp6(size: int) -> bytes:
    return bytes(ether() / IPv6(**V6) / UDP(sport=1, dport=2) / Raw(payload(size)))


def without_sums(frame: bytes, *fields: int) -> bytes:
    """The same with junk where these sums are, as a driver leaves them."""
    raw = bytearray(frame)
    for at in fields:
        raw[at : at + 2] = b"\xde\xad"
    return bytes(raw)


@attrs.define(eq=False)
class Keeper:
    """A driver above the interface that keeps what comes back, by its cookie."""

    done: dict[int, tuple[int, ...]] = attrs.field(factory=dict)

    def transmitter_return_packets(self, completions: Sequence[tuple[int, ...]]) -> None:
        for cookie, *rest in completions:
            assert cookie not in self.done, "a packet came back twice"
            self.done[cookie] = tuple(rest)

    def receiver_queue_packets(self, _index: int, packets: Sequence[ReceiverPacket]) -> bool:
        del packets
        return False

    def mac_state_change(self) -> None: ...


def keep(frontend: Frontend) -> Keeper:
    """Take the place of XenNet."""
    keeper = Keeper()
    frontend.callbacks = keeper
    return keeper


def send(s: Scene, *packets: bytes | TransmitterPacket, first: int = 0) -> None:
    s.pdo.frontend.send(packets, range(first, first + len(packets)))


def answer_chain(s: Scene, slots: Sequence[tuple[int, ...]], status: int = OKAY) -> None:
    """Answer slots that hold whole packets as Linux does, NULL behind the first for each extra."""
    responses = []
    extras = 0
    for slot in slots:
        if extras:
            responses.append((slot[3], NULL))  # a stale id
            extras = slot[0] >> 8 & 1
            continue
        responses.append((slot[3], status))
        extras = slot[2] & EXTRA
    s.back.answer_tx(*responses)
    s.run()


@attrs.define(eq=False)
class Wire:
    """A guest whose frames go through the real netback to a station that keeps them."""

    xen: Platform
    guest: Guest
    frontend: Frontend
    keeper: Keeper
    sink: Sink

    def send(self, *packets: bytes | TransmitterPacket) -> None:
        self.frontend.send(packets, range(len(packets)))
        self.xen.run()


@contextmanager
def wire(
    personality: str = "windows",
    *,
    mtu: int | None = None,
    vcpus: int = 1,
    seed: int = 5,
    start: int = 0,
) -> Iterator[Wire]:
    """Rings begin at index `start`; there is a queue for each vcpu."""
    with Platform(seed=seed, dom0_vcpus=vcpus) as xen, rings_at(start):
        guest = xen.create(
            name="g", vifs=[Vif(mac=MAC, mtu=mtu)], personality=personality, vcpus=vcpus
        ).start()
        sink = Sink()
        xen.bridge("xenbr0").attach(sink)
        assert guest._vif is not None
        frontend = guest._vif.pdos[0].frontend
        sink.frames.clear()
        yield Wire(xen, guest, frontend, keep(frontend), sink)
