"""Packets of any make through the real netback, and backends of any mind: nothing is lost or
told twice, and what arrives on the wire is what the driver above meant.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from tests.vif.rawback import scene
from tests.vif.txscene import (
    DROPPED,
    ERROR,
    EXTRA,
    HEADER4,
    LINUX_FEATURES,
    LSO4,
    LSO6,
    NULL,
    OK_STATUS,
    OKAY,
    TAG,
    TCP4,
    TCP6,
    UDP4,
    UDP6,
    V4,
    V6,
    Wire,
    ether,
    keep,
    payload,
    send,
    tcp4,
    udp4,
    wire,
)
from xenpv.host.network import Frame
from xenpv.host.offload import to_wire
from xenpv.vif.packet import HashAlgorithm, HashType, PacketHash, TransmitterPacket

NEAR_WRAP = 0xFFFFFFF0
VLAN = b"\x81\x00"


@st.composite
def meant(draw: st.DrawFn) -> tuple[TransmitterPacket, bytes]:
    """A packet with offloads, and the frame that is meant, every sum right."""
    ipv4, tcp = draw(st.booleans()), draw(st.booleans())
    large = tcp and draw(st.booleans())
    size = draw(st.integers(2, 20000) if large else st.integers(0, 1300))
    layer = IP(**V4) if ipv4 else IPv6(**V6)
    if draw(st.booleans()):
        if ipv4:
            layer.options = [IPOption_NOP()] * draw(st.integers(1, 9))
        else:
            layer = layer / IPv6ExtHdrDestOpt()
    options = [("NOP", None)] * draw(st.integers(0, 8)) if tcp else []
    upper = (
        TCP(sport=7, dport=9, seq=draw(st.integers(0, 2**32 - 1)), options=options)
        if tcp
        else UDP()
    )
    inner = layer / upper / Raw(payload(size))
    inline = draw(st.booleans())
    link = ether() / Dot1Q(vlan=5) if inline else ether()
    right = bytes(link / inner)
    offload = draw(st.sampled_from([0, HEADER4])) if ipv4 else 0
    sums = (TCP4 if tcp else UDP4) if ipv4 else (TCP6 if tcp else UDP6)
    offload |= draw(st.sampled_from([0, sums]))
    mss = 0
    if large:
        offload |= LSO4 if ipv4 else LSO6
        mss = draw(st.integers(max(1, size // 60), 1400))
    sent = bytearray(right)
    junk = draw(st.binary(min_size=2, max_size=2))
    at = 18 if inline else 14
    if ipv4 and (large or offload & HEADER4):
        sent[at + 10 : at + 12] = junk
    if offload & sums or large:
        lead = len(bytes(link / layer))
        field = lead + (16 if tcp else 6)
        sent[field : field + 2] = junk
    if large and ipv4:
        sent[at + 2 : at + 4] = bytes(2)  # the length is whatever the driver likes
    tci = 0
    if draw(st.booleans()):
        offload |= TAG
        tci = draw(st.integers(0, 0xFFFF))
        right = right[:12] + b"\x81\x00" + tci.to_bytes(2, "big") + right[12:]
    runs = draw(st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 4000)), max_size=24))
    told = draw(
        st.sampled_from([PacketHash(), PacketHash(HashAlgorithm.TOEPLITZ, HashType.IPV6, 1 << 31)])
    )
    one = TransmitterPacket(bytes(sent), offload, mss, tci, told, tuple(runs))
    return one, right


def check(got: Frame, one: TransmitterPacket, right: bytes) -> None:
    parts = to_wire(got)
    if len(parts) == 1:
        assert parts[0][: len(right)] == right
        return
    # Each segment by scapy's own sums, and the payload as a whole.
    whole = Ether(right)
    joined = b""
    for part in parts:
        parsed = Ether(part)
        again = parsed.copy()
        for layer in (IP, TCP):
            if layer in again:
                del again[layer].chksum
        assert bytes(again) == part
        assert parsed[TCP].seq == (whole[TCP].seq + len(joined)) % 2**32
        assert 0 < len(bytes(parsed[TCP].payload)) <= one.mss
        joined += bytes(parsed[TCP].payload)
    assert joined == bytes(whole[TCP].payload)


@pytest.fixture(scope="module", params=["windows", "linux"])
def both(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    with wire(request.param, start=NEAR_WRAP) as w:
        yield w


@settings(max_examples=100, deadline=None)
@given(batch=st.lists(meant(), min_size=1, max_size=5))
def test_what_is_meant_is_on_the_wire(
    both: Wire, batch: list[tuple[TransmitterPacket, bytes]]
) -> None:
    both.sink.frames.clear()
    both.keeper.done.clear()
    both.send(*[one for one, _ in batch])
    arrives = []
    for cookie, (one, right) in enumerate(batch):
        large = one.mss and one.mss < len(Ether(right)[TCP].payload)
        assert (both.keeper.done[cookie][0] == OK_STATUS) == bool(large or len(right) <= 1518)
        # Linux' backend finds no TCP behind a tag, and loses a large packet that it took.
        if both.keeper.done[cookie][0] == OK_STATUS and not (large and right[12:14] == VLAN):
            arrives.append((one, right))
    for frame, (one, right) in zip(both.sink.frames, arrives, strict=True):
        check(frame, one, right)
    ring = both.frontend.queues[0].transmitter
    assert ring is not None
    assert ring.posted == ring.answered
    assert not both.frontend.broken


PACKETS = [
    udp4(0),
    udp4(900),
    TransmitterPacket(tcp4(9000), offload=LSO4, mss=1460),
    TransmitterPacket(tcp4(5000), offload=LSO4, mss=1460, hash=PacketHash(2, 2, 5)),
    TransmitterPacket(tcp4(700), offload=TCP4, layout=((4000, 400), (1, 354))),
    TransmitterPacket(b"too short"),
    TransmitterPacket(udp4(3000)),
]
STEPS = st.one_of(
    st.tuples(st.just("send"), st.lists(st.integers(0, len(PACKETS) - 1), max_size=30)),
    st.tuples(st.just("answer"), st.integers(0, 90)),
    st.tuples(st.just("reorder"), st.integers(0, 90)),
    st.tuples(st.just("fail"), st.integers(0, 20)),
    st.tuples(st.just("group"), st.integers(0, 5)),
    st.tuples(st.just("junk"), st.integers(0, 0xFFFFFFFF)),
    st.tuples(st.just("producer"), st.integers(0, 0xFFFFFFFF)),
    st.tuples(st.just("kick"), st.none()),
)
HONEST = st.one_of(*[step for index, step in enumerate(STEPS.original_strategies) if index < 5])


class Play:
    """A script against a raw backend that answers what it is told to answer."""

    def __init__(self, personality: str, script: list[tuple[str, object]]) -> None:
        features = {**LINUX_FEATURES, "feature-dynamic-multicast-control": "1"}
        with scene(personality, features, start=NEAR_WRAP) as s:
            self.s = s
            self.keeper = keep(s.pdo.frontend)
            self.sent = 0
            self.owed: list[tuple[int, int]] = []
            ring = s.pdo.frontend.queues[0].transmitter
            assert ring is not None
            self.ring = ring
            for what, value in script:
                getattr(self, what)(value)
                s.run()
                self.conserved()
            self.broken = s.broken
            assert s.guest.shutdown() == 0
            assert sorted(self.keeper.done) == list(range(self.sent))
            assert ring.posted == ring.answered + ring.faked

    def conserved(self) -> None:
        """Posted = answered + in flight, of slots, an extra's NULL apart."""
        ring = self.ring
        if not self.s.broken:
            assert ring.posted == ring.answered + ring.in_flight + ring.slots.nulls
            assert ring.posted - ring.answered == ring.ring.in_flight <= 256

    def send(self, which: list[int]) -> None:
        if not self.s.broken:
            send(self.s, *[PACKETS[one] for one in which], first=self.sent)
            self.sent += len(which)

    def take(self) -> None:
        slots = self.s.back.sent()
        extra = False
        for ref, _, flags, number, _ in slots:
            self.owed.append((number, NULL if extra else OKAY))
            extra = bool(ref >> 8 & 1) if extra else bool(flags & EXTRA)

    def answer(self, count: int) -> None:
        if not self.s.broken:
            self.take()
            now, self.owed = self.owed[:count], self.owed[count:]
            ring = self.s.back.tx
            if ring is not None:  # junk may have taken an answer's place on it
                now = now[: ring.in_flight]
            if now:
                self.s.back.answer_tx(*now)

    def reorder(self, count: int) -> None:
        self.take()
        self.owed.reverse()
        self.answer(count)

    def fail(self, count: int) -> None:
        self.take()
        failed = (ERROR, DROPPED)
        self.owed = [
            (number, failed[index % 2] if index < count and status == OKAY else status)
            for index, (number, status) in enumerate(self.owed)
        ]

    def group(self, number: int) -> None:
        groups = [bytes.fromhex(f"01005e0000{n:02x}") for n in range(number)]
        self.s.pdo.frontend.set_multicast(groups)

    def junk(self, value: int) -> None:
        back = self.s.back.tx
        if back is not None and back.in_flight:
            self.s.back.answer_tx((value & 0xFFFF, (value >> 16) % 7 - 3))

    def producer(self, value: int) -> None:
        self.s.back.store(self.s.back.tx, 8, value)
        self.s.back.notify()

    def kick(self, _value: None) -> None:
        self.s.back.notify()


@settings(max_examples=60, deadline=None)
@given(script=st.lists(STEPS, max_size=14), personality=st.sampled_from(["windows", "linux"]))
def test_whatever_a_backend_does_every_packet_comes_back_once(
    script: list[tuple[str, object]], personality: str
) -> None:
    Play(personality, script)


@settings(max_examples=40, deadline=None)
@given(script=st.lists(HONEST, max_size=14), personality=st.sampled_from(["windows", "linux"]))
def test_an_honest_backend_in_any_order_is_never_called_broken(
    script: list[tuple[str, object]], personality: str
) -> None:
    assert Play(personality, script).broken == ""
