"""Packets of any shape into a guest's rx ring, and what its XenVif makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from struct import pack

import attrs
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tests.vif.rawback import GUEST_MAC, PEER_MAC, Scene, rx, scene
from xenpv.vif.callbacks import Completion
from xenpv.vif.packet import Offload, ReceiverPacket

VALIDATED, BLANK, MORE, EXTRA = 1, 2, 4, 8
TCPV4, TCPV6 = 1, 2
ALL_SUMS = (
    Offload.IPV4_HEADER_CHECKSUM | Offload.IPV4_TCP_CHECKSUM | Offload.IPV4_UDP_CHECKSUM
    | Offload.IPV6_TCP_CHECKSUM | Offload.IPV6_UDP_CHECKSUM
)  # fmt: skip


def gso(mss: int, kind: int = TCPV4, *, more: bool = False) -> bytes:
    return pack("<BBHBBH", 1, more, mss, kind, 0, 0)


def hash_extra(bit: int, value: int, *, algorithm: int = 1, more: bool = False) -> bytes:
    return pack("<BBBBI", 4, more, bit, algorithm, value)


def ether(network: Packet, *, tci: int | None = None) -> bytes:
    """A frame to the guest; scapy fills in lengths and sums."""
    frame = bytes(Ether(dst=GUEST_MAC.hex(":"), src=PEER_MAC.hex(":")) / network)
    if tci is None:
        return frame
    return frame[:12] + b"\x81\x00" + tci.to_bytes(2, "big") + frame[12:]


V4 = IP(src="10.0.0.2", dst="10.0.0.1", id=7)
V6 = IPv6(src="fd00::2", dst="fd00::1")


def payload(size: int) -> bytes:
    return bytes(at * 7 + at // 251 & 0xFF for at in range(size))


def blank(frame: bytes, network: type[Packet], transport: type[Packet]) -> bytes:
    """The frame with the sum of its pseudo-header, which does not look at the payload, instead.

    Worked out over the frame's own bytes, with nothing of the code under test.
    """
    packet = Ether(frame)
    ip, at = packet[network], len(frame) - len(bytes(packet[transport]))
    size = len(bytes(packet[transport]))
    number = 6 if transport is TCP else 17
    if network is IP:
        pseudo = frame[len(packet) - len(ip) + 12 :][:8] + pack(">HH", number, size)
    else:
        pseudo = frame[len(packet) - len(ip) + 8 :][:32] + pack(">II", size, number)
    total = sum(int.from_bytes(pseudo[n : n + 2], "big") for n in range(0, len(pseudo), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    field = at + (16 if transport is TCP else 6)
    return frame[:field] + total.to_bytes(2, "big") + frame[field + 2 :]


def sums_right(frame: bytes) -> bool:
    """Whether scapy computes the same checksums over the frame."""
    packet = Ether(frame)
    for layer in (IP, TCP, UDP):
        if layer in packet:
            del packet[layer].chksum
    return bytes(packet) == frame


@attrs.define(eq=False)
class Upper:
    """A driver above XenVif that returns at once what it gets, unless it `keeps` it."""

    back: Callable[[Sequence[int]], None]
    keeps: bool = False
    got: list[ReceiverPacket] = attrs.field(factory=list)
    calls: list[int] = attrs.field(factory=list)

    def transmitter_return_packets(self, completions: Sequence[Completion]) -> None: ...

    def receiver_queue_packets(self, index: int, packets: Sequence[ReceiverPacket]) -> bool:
        assert index == 0
        self.got += packets
        self.calls.append(len(packets))
        if not self.keeps:
            self.back([packet.cookie for packet in packets])
        return False

    def mac_state_change(self) -> None: ...


def deliver(
    s: Scene,
    data: bytes,
    *,
    flags: int = 0,
    extras: Sequence[bytes] = (),
    sizes: Sequence[int] | None = None,
    offset: int = 0,
) -> None:
    """One packet over slots of `sizes` bytes, each but the last full unless said otherwise."""
    if sizes is None:
        sizes = [min(4096, len(data) - at) for at in range(0, len(data), 4096)]
    assert sum(sizes) == len(data)
    s.back.take_posted()
    responses = []
    at = 0
    for index, size in enumerate(sizes):
        number, ref = s.back.posted.pop(0)
        s.back.fill(ref, data[at : at + size], offset)
        at += size
        first = (flags | (EXTRA if extras else 0)) if not index else 0
        more = MORE if index + 1 < len(sizes) else 0
        responses.append(rx(number, size, offset=offset, flags=first | more))
        if not index:
            responses += extras
            del s.back.posted[: len(extras)]
    s.back.answer_rx(*responses)
    s.run()


@contextmanager
def upper_scene(
    offload: int = 0,
    *,
    personality: str = "windows",
    mtu: int | None = None,
    parameters: Mapping[str, int] | None = None,
    start: int = 0,
) -> Iterator[tuple[Scene, Upper]]:
    """A connected guest whose interface has `Upper` above it, with these offload options.

    `parameters` are values of ReceiverParameters, as if the registry had them.
    """
    with scene(personality, mtu=mtu, start=start) as s:
        frontend = s.pdo.frontend
        if parameters:
            receiver = attrs.evolve(frontend.parameters.receiver, **parameters)
            frontend.parameters = attrs.evolve(frontend.parameters, receiver=receiver)
        frontend.receiver_set_offload_options(offload)
        upper = Upper(frontend.receiver_return_packets)
        frontend.callbacks = upper
        yield s, upper
