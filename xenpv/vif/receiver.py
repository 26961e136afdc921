"""What becomes of packets that came in, on their way to the driver above (win-xenvif receiver.c).

In order: headers that do not parse, the packet filter, large packets, frames longer than the
MTU allows, the tag, checksums, the hash. A packet handed up is lent until it is returned.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.abi._kernel import ffi, lib
from xenpv.errors import LocalProtocolError, PeerProtocolError
from xenpv.vif.callbacks import CHECKSUM_SHIFT, PacketType
from xenpv.vif.mac import FilterLevel
from xenpv.vif.packet import (
    NO_HASH,
    HashAlgorithm,
    Offload,
    PacketHash,
    ReceiverPacket,
)
from xenpv.vif.rxpacket import Batch, Extras, Loss
from xenpv.vif.segment import LargePacket
from xenpv.vif.statistics import Statistic

if TYPE_CHECKING:
    from xenpv.vif.frontend import Frontend
    from xenpv.vif.queue import Queue

net_receive: Final = lib.net_receive

TAGGED: Final[int] = lib.NET_TAGGED
GSO: Final[int] = lib.NET_GSO
MALFORMED: Final[int] = lib.NET_MALFORMED
MINE: Final[int] = lib.NET_MINE
MULTICAST: Final[int] = lib.NET_MULTICAST
BROADCAST: Final[int] = lib.NET_BROADCAST
LARGE: Final[int] = lib.NET_LARGE

RUN_MAX: Final = 1024  # packets in one run of calls to a driver of version 8 or 9
LARGE_PACKETS: Final = Offload.IPV4_LARGE_PACKET | Offload.IPV6_LARGE_PACKET


class Verdict(enum.Enum):
    """What is to be done with packets of like headers."""

    PASS = "hand it up"  # noqa: S105 - a verdict, no password
    LOOK = "its address or its tag decides"
    DROP = "it is not for this interface"
    MALFORMED = "its headers do not parse"


@attrs.define(eq=False)
class HandUp:
    """Packets to hand up, and the facts of each."""

    packets: list[ReceiverPacket] = attrs.field(factory=list)
    facts: list[int] = attrs.field(factory=list)


class Receiver:
    """The receive side of `frontend`, as long as that lives; its rings come and go.

    `lent` has the cookies of packets that the driver above has not returned.
    """

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend
        self.hash_algorithm: int = HashAlgorithm.NONE
        self.hash_types = 0  # mask of 1 << HashType
        self.pauses_itself = False  # the driver above cannot ask for it: versions 8 and 9
        self.lent: dict[int, None] = {}
        self._cookie = 0

    def set_offload_options(self, options: int) -> None:
        """ReceiverSetOffloadOptions; no large packets where AllowGsoPackets is 0."""
        if not self._frontend.parameters.receiver.allow_gso_packets:
            options &= ~LARGE_PACKETS
        self._frontend.receiver_options.offload = int(options)

    @property
    def offload(self) -> int:
        """Offload's bits."""
        return self._frontend.receiver_options.offload

    # up

    def poll(self, queue: Queue) -> None:
        """Hand up what its rx ring has, until that is empty or the driver above has enough."""
        run = 0
        while queue.running and queue.receiver is not None and not queue.is_paused:
            try:
                batch, more = queue.receiver.receive()
            except PeerProtocolError as error:
                queue.broken(f"{queue.name}: {error}")
                return
            if batch is not None:
                run += self._deliver(queue, batch)
            if not more:
                return
            if self.pauses_itself and run > RUN_MAX:
                queue.pollers[0].trigger()
                return

    def _deliver(self, queue: Queue, batch: Batch) -> int:
        """Hand a batch up; how many packets that were."""
        if batch.losses:
            self._lost(batch.losses)
        packets = self._packets(batch) if batch.ends else ()
        callbacks = self._frontend.callbacks
        if not packets or callbacks is None:
            return 0
        self.lent.update(dict.fromkeys(range(self._cookie - len(packets), self._cookie)))
        if callbacks.receiver_queue_packets(queue.index, packets):
            if self.lent:
                queue.is_paused = True
            elif queue.running:
                queue.pollers[0].trigger()  # all came back already
        return len(packets)

    def _lost(self, losses: Sequence[Loss]) -> None:
        count = self._frontend.statistics.add
        for loss in losses:
            if loss is Loss.BACKEND:
                count(Statistic.RECEIVER_BACKEND_ERRORS)
            else:
                count(Statistic.RECEIVER_FRONTEND_ERRORS)
                count(Statistic.RECEIVER_PACKETS_DROPPED)

    def _inspect(self, data: bytearray, ends: list[int], flags: list[int]) -> list[int]:
        """Facts of each frame, the bits of NET_*; sums that are wanted are written."""
        out = bytearray(4 * len(ends))
        calculates = self._frontend.parameters.receiver.calculate_checksums
        failed = net_receive(
            self.offload, calculates, self._frontend.mac.current, ffi.from_buffer(data),
            len(data), ends, flags, len(ends), ffi.from_buffer(out),
        )  # fmt: skip
        assert not failed
        return memoryview(out).cast("I").tolist()

    def _packets(self, batch: Batch) -> list[ReceiverPacket]:
        """Packets to hand up, counted."""
        ends, flags, extras = batch.ends, batch.flags, batch.extras
        for position, told in extras.items():
            if told.mss:
                flags[position] |= LARGE
        facts = self._inspect(batch.data, ends, flags)
        data = bytes(batch.data)
        frames = []
        at = 0
        for end in ends:
            frames.append(data[at:end])
            at = end
        verdicts = {one: self._verdict(one) for one in dict.fromkeys(facts)}
        longest = self._frontend.mac.maximum_frame_size
        if (
            len(verdicts) == 1
            and verdicts[facts[0]] is Verdict.PASS
            and not extras
            and max(map(len, frames)) <= longest
        ):
            self._frontend.statistics.received(facts, frames)
            sums = facts[0] >> CHECKSUM_SHIFT & 0x1FF
            first = self._cookie
            self._cookie += len(frames)
            return [
                ReceiverPacket(frame, sums, 0, 0, None, NO_HASH, cookie)
                for cookie, frame in enumerate(frames, first)
            ]
        hand_up = HandUp()
        for position, frame in enumerate(frames):
            fact = facts[position]
            self._sort(frame, fact, verdicts[fact], flags[position], extras.get(position), hand_up)
        packets = hand_up.packets
        self._frontend.statistics.received(hand_up.facts, [one.data for one in packets])
        for packet in packets:
            packet.cookie = self._cookie
            self._cookie += 1
        return packets

    def _verdict(self, fact: int) -> Verdict:
        """By the facts alone."""
        levels = self._frontend.mac.levels
        if fact & MALFORMED:
            return Verdict.MALFORMED
        if fact & BROADCAST:
            passes = levels[PacketType.BROADCAST] is not FilterLevel.NONE
        elif fact & MULTICAST:
            level = levels[PacketType.MULTICAST]
            if level is FilterLevel.MATCHING:
                return Verdict.LOOK
            passes = level is FilterLevel.ALL
        else:
            level = levels[PacketType.UNICAST]
            passes = level is FilterLevel.ALL or (
                level is FilterLevel.MATCHING and bool(fact & MINE)
            )
        if not passes:
            return Verdict.DROP
        if fact & TAGGED and self.offload & Offload.TAG_MANIPULATION:
            return Verdict.LOOK
        return Verdict.PASS

    def _sort(
        self,
        frame: bytes,
        fact: int,
        verdict: Verdict,
        flags: int,
        extras: Extras | None,
        hand_up: HandUp,
    ) -> None:
        """One packet of a batch in which not all are alike."""
        count = self._frontend.statistics.add
        if verdict is Verdict.MALFORMED:
            count(Statistic.RECEIVER_FRONTEND_ERRORS)
        mac = self._frontend.mac
        large = flags & LARGE
        if (
            verdict is Verdict.MALFORMED
            or verdict is Verdict.DROP
            or (verdict is Verdict.LOOK and fact & MULTICAST and not mac.passes_group(frame))
            or (not large and len(frame) > mac.maximum_frame_size)
        ):
            count(Statistic.RECEIVER_PACKETS_DROPPED)
            return
        value = NO_HASH if extras is None else self._hash(extras.hash)
        if not large:
            self._append(frame, fact, 0, value, hand_up)
            return
        assert extras is not None
        try:
            parts = self._parts(LargePacket(frame, extras.mss))
        except ValueError:
            count(Statistic.RECEIVER_FRONTEND_ERRORS)
            count(Statistic.RECEIVER_PACKETS_DROPPED)
            return
        data = bytearray().join([part for part, _ in parts])
        ends = []
        at = 0
        for part, _ in parts:
            at += len(part)
            ends.append(at)
        facts = self._inspect(data, ends, [flags & ~LARGE] * len(ends))
        at = 0
        for end, one, (_, mss) in zip(ends, facts, parts, strict=True):
            self._append(bytes(data[at:end]), one | (GSO if mss else 0), mss, value, hand_up)
            at = end

    def _append(
        self, frame: bytes, fact: int, mss: int, value: PacketHash, hand_up: HandUp
    ) -> None:
        """A packet that goes up; its tag is taken out if that is wanted."""
        tci = 0
        if fact & TAGGED and self.offload & Offload.TAG_MANIPULATION:
            tci = int.from_bytes(frame[14:16], "big")
            frame = frame[:12] + frame[16:]
            fact &= ~TAGGED
        hand_up.packets.append(
            ReceiverPacket(frame, fact >> CHECKSUM_SHIFT & 0x1FF, mss, tci, None, value)
        )
        hand_up.facts.append(fact)

    def _parts(self, packet: LargePacket) -> list[tuple[bytes, int]]:
        bit = Offload.IPV4_LARGE_PACKET if packet.is_ipv4 else Offload.IPV6_LARGE_PACKET
        if not self.offload & bit:
            return packet.cut()
        return packet.peeled() if self.offload & Offload.NEED_LARGE_PACKET_SPLIT else packet.whole()

    def _hash(self, value: PacketHash) -> PacketHash:
        """A hash counts if the driver above asked for its kind."""
        if self.hash_algorithm == HashAlgorithm.TOEPLITZ and self.hash_types >> value.type & 1:
            return value
        return NO_HASH

    # down

    def return_packets(self, cookies: Sequence[int]) -> None:
        """ReceiverReturnPacket. LocalProtocolError for one that is not lent."""
        lent = self.lent
        for cookie in cookies:
            if cookie not in lent:
                raise LocalProtocolError(f"packet {cookie} is not lent")
            del lent[cookie]
        for queue in self._frontend.queues:
            if queue.is_paused:
                queue.is_paused = False
                if queue.running:
                    queue.pollers[0].trigger()
