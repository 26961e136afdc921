"""What becomes of packets that came in, on their way to the driver above (win-xenvif receiver.c).

In order: headers that do not parse, the packet filter, large packets, frames longer than the
MTU allows, the tag, checksums, the hash. A packet handed up is lent until it is returned.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from xenpv.abi._kernel import ffi, lib
from xenpv.errors import LocalProtocolError, PeerProtocolError
from xenpv.vif.callbacks import CHECKSUM_SHIFT, PacketType
from xenpv.vif.mac import FilterLevel
from xenpv.vif.packet import (
    NO_HASH,
    Offload,
    PacketHash,
    ReceiverPacket,
)
from xenpv.vif.pending import Pending
from xenpv.vif.rxpacket import NO_EXTRAS, Batch, Loss
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
SUMS: Final = 0x1FF  # bits of Checksum

RUN_MAX: Final = 1024  # packets in one run of calls to a driver of version 8 or 9
# Bits of Offload as plain integers: an operation of an enum takes half a microsecond.
TAG_MANIPULATION: Final = int(Offload.TAG_MANIPULATION)
NEED_SPLIT: Final = int(Offload.NEED_LARGE_PACKET_SPLIT)
LARGE_IPV4: Final = int(Offload.IPV4_LARGE_PACKET)
LARGE_IPV6: Final = int(Offload.IPV6_LARGE_PACKET)
LARGE_PACKETS: Final = LARGE_IPV4 | LARGE_IPV6


class Verdict(enum.Enum):
    """What is to be done with packets of like headers."""

    PASS = "hand it up"  # noqa: S105 - a verdict, no password
    LOOK = "its group decides"
    DROP = "it is not for this interface"
    MALFORMED = "its headers do not parse"


class Receiver:
    """The receive side of `frontend`, as long as that lives; its rings come and go.

    `lent` has the cookies of packets that the driver above has not returned.
    """

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend
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
        more = True
        while queue.running and queue.receiver is not None and not queue.is_paused:
            if queue.pending.packets:
                run += len(queue.pending.packets)
                if not self._hand_up(queue) or (self.pauses_itself and run >= RUN_MAX):
                    break
            elif not more:
                return
            else:
                try:
                    batch, more = queue.receiver.receive()
                except PeerProtocolError as error:
                    queue.broken(f"{queue.name}: {error}")
                    return
                if batch is not None:
                    self._sort(batch, queue.pending)
        if queue.running and not queue.is_paused:
            queue.pollers[0].trigger()

    def _hand_up(self, queue: Queue) -> bool:
        """Lend packets to the driver above, RUN_MAX at a time; False if it wants a pause."""
        packets, facts = queue.pending.take(RUN_MAX)
        self._frontend.statistics.received(facts, packets)
        first = self._cookie
        self._cookie += len(packets)
        cookies = range(first, self._cookie)
        for cookie, packet in zip(cookies, packets, strict=True):
            packet.cookie = cookie
        self.lent.update(dict.fromkeys(cookies))
        callbacks = self._frontend.callbacks
        assert callbacks is not None  # it is enabled
        if not callbacks.receiver_queue_packets(queue.index, packets):
            return True
        # If all came back inside the call, no return is going to end the pause.
        queue.is_paused = bool(self.lent)
        return False

    def drop(self, queue: Queue) -> None:
        """What waits for the driver above is too late."""
        packets = queue.pending.take()[0]
        self._frontend.statistics.add(Statistic.RECEIVER_PACKETS_DROPPED, len(packets))

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

    def _sort(self, batch: Batch, pending: Pending) -> None:
        """Find out what is to become of each packet."""
        if batch.losses:
            self._lost(batch.losses)
        ends, flags, extras = batch.ends, batch.flags, batch.extras
        if not ends:
            return
        for position, told in extras.items():
            if told.mss:
                flags[position] |= LARGE
        facts = self._inspect(batch.data, ends, flags)
        data = bytes(batch.data)
        frames = [data[at:end] for at, end in zip((0, *ends), ends, strict=False)]
        verdicts = {one: self._verdict(one) for one in dict.fromkeys(facts)}
        if (
            len(verdicts) == 1
            and verdicts[facts[0]] is Verdict.PASS
            and not extras
            and not self._strips(facts[0])
            and max(map(len, frames)) <= self._frontend.mac.maximum_frame_size
        ):
            sums = facts[0] >> CHECKSUM_SHIFT & SUMS
            pending.facts += facts
            pending.packets += [ReceiverPacket(frame, sums) for frame in frames]
            return
        for position, frame in enumerate(frames):
            fact = facts[position]
            told = extras.get(position, NO_EXTRAS)
            if self._passes(verdicts[fact], frame, flags[position]):
                value = self._hash(told.hash)
                if flags[position] & LARGE:
                    self._large(frame, told.mss, flags[position] & ~LARGE, value, pending)
                else:
                    self._append(frame, fact, 0, value, pending)

    def _verdict(self, fact: int) -> Verdict:
        """By the facts alone."""
        levels = self._frontend.mac.levels
        if fact & MALFORMED:
            return Verdict.MALFORMED
        if fact & BROADCAST:
            passes = levels[PacketType.BROADCAST] is not FilterLevel.NONE
        elif fact & MULTICAST:
            level = levels[PacketType.MULTICAST]
            is_filtered = self._frontend.multicast_control.is_used  # by the backend already
            if level is FilterLevel.MATCHING and not is_filtered:
                return Verdict.LOOK
            passes = level is not FilterLevel.NONE
        else:
            level = levels[PacketType.UNICAST]
            passes = level is FilterLevel.ALL or (
                level is FilterLevel.MATCHING and bool(fact & MINE)
            )
        return Verdict.PASS if passes else Verdict.DROP

    def _strips(self, fact: int) -> bool:
        """Whether there is a tag that the driver above wants apart."""
        return bool(fact & TAGGED and self.offload & TAG_MANIPULATION)

    def _passes(self, verdict: Verdict, frame: bytes, flags: int) -> bool:
        """The packet filter and the length; what does not pass is counted."""
        if verdict is Verdict.MALFORMED:
            self._frontend.statistics.add(Statistic.RECEIVER_FRONTEND_ERRORS)
        mac = self._frontend.mac
        if (
            verdict is Verdict.MALFORMED
            or verdict is Verdict.DROP
            or (verdict is Verdict.LOOK and not mac.passes_group(frame))
            or (not flags & LARGE and len(frame) > mac.maximum_frame_size)
        ):
            self._frontend.statistics.add(Statistic.RECEIVER_PACKETS_DROPPED)
            return False
        return True

    def _large(
        self, frame: bytes, mss: int, flags: int, value: PacketHash, pending: Pending
    ) -> None:
        """A packet of several segments, as the driver above takes it."""
        try:
            parts = self._parts(LargePacket(frame, mss))
        except ValueError:
            self._lost([Loss.OFFLOAD])
            return
        data = bytearray().join([part for part, _ in parts])
        ends = list(accumulate([len(part) for part, _ in parts]))
        facts = self._inspect(data, ends, [flags] * len(ends))
        at = 0
        for end, fact, (_, rest) in zip(ends, facts, parts, strict=True):
            self._append(bytes(data[at:end]), fact | (GSO if rest else 0), rest, value, pending)
            at = end

    def _append(
        self, frame: bytes, fact: int, mss: int, value: PacketHash, pending: Pending
    ) -> None:
        """A packet that goes up; its tag is taken out if that is wanted."""
        tci = 0
        if self._strips(fact):
            tci = int.from_bytes(frame[14:16], "big")
            frame = frame[:12] + frame[16:]
            fact &= ~TAGGED
        pending.packets.append(
            ReceiverPacket(frame, fact >> CHECKSUM_SHIFT & SUMS, mss, tci, value)
        )
        pending.facts.append(fact)

    def _parts(self, packet: LargePacket) -> list[tuple[bytes, int]]:
        bit = LARGE_IPV4 if packet.is_ipv4 else LARGE_IPV6
        if not self.offload & bit:
            return packet.cut()
        return packet.peeled() if self.offload & NEED_SPLIT else packet.whole()

    def _hash(self, value: PacketHash) -> PacketHash:
        """A hash counts if the driver above asked for its kind."""
        return value if self._frontend.receive_hash.accepts(value.type) else NO_HASH

    # down

    def return_packets(self, cookies: Sequence[int]) -> None:
        """ReceiverReturnPacket. LocalProtocolError for one that is not lent, or named twice."""
        take = self.lent.pop
        for cookie in cookies:
            if take(cookie, self) is not None:
                raise LocalProtocolError(f"packet {cookie} is not lent")
        for queue in self._frontend.queues:
            if queue.is_paused:
                queue.is_paused = False
                if queue.running:
                    queue.pollers[0].trigger()
        if not self.lent:
            self._frontend.packets_returned()
