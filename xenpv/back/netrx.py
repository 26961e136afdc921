"""What a guest receives: frames go into the slots that it posted (Linux netback rx.c).

Frames wait in a backlog until there are slots, no more than BACKLOG_MAX bytes and no longer
than the expiry (XSA-392). Responses keep the order of the requests, and the producer moves
at the end of a packet only, so that the guest never sees half of one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import cache
from struct import Struct
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.layout import packer, struct_format
from xenpv.back.nethash import NONE as NO_HASH
from xenpv.back.netpack import RESPONSE, Packing, mark_failed
from xenpv.back.ring import BackRing
from xenpv.host.network import Frame
from xenpv.xen.loop import NS_PER_MS, NS_PER_S, Task

if TYPE_CHECKING:
    from xenpv.back.netback import Netback

REQUEST: Final = packer("netif_rx_request")
RESPONSE_SIZE: Final = RESPONSE.size
ERROR: Final[int] = lib.NETIF_RSP_ERROR

BATCH: Final = 64  # packets (RX_BATCH_SIZE)
BACKLOG_MAX: Final = 524_288  # bytes: half the slots, a page each
EXPIRY_NS: Final = 10 * NS_PER_S  # rx_drain_timeout_msecs
EXPIRY_UNNOTIFIED_NS: Final = 30 * NS_PER_MS  # without feature-rx-notify
STALL_NS: Final = 60 * NS_PER_S  # rx_stall_timeout_msecs


@cache
def responses_packer(count: int) -> Struct:
    """`count` rx responses from their fields in one flat list."""
    return Struct("<" + struct_format("netif_rx_response")[1:] * count)


class RxQueue:
    """The rx ring of one queue of `vif`, from connect to disconnect. `task` polls it.

    `stalled`: the guest posts no slots for what waits, and the vif has no carrier. So it is
    until `start`. `stopped`: the backlog is full.
    """

    def __init__(self, vif: Netback, ring: BackRing, port: int, task: Task, index: int) -> None:
        self._vif = vif
        self._ring = ring
        self._port = port
        self._task = task
        self._index = index
        self._timer = vif.domain.timer(task)
        self._expires = vif.profile.rx_expires
        self._stalls = self._expires and vif.offer.rx_notify
        self._expiry_ns = EXPIRY_NS if vif.offer.rx_notify else EXPIRY_UNNOTIFIED_NS
        self._packing = Packing.of(vif.profile, vif.offer.headroom)
        self._backlog: deque[tuple[int, Frame]] = deque()  # when it expires, and what
        self._slots: list[tuple[int, ...]] = []  # requests taken and not answered
        self._status = bytearray(2 * self._ring.size)
        self._last_rx_ns = 0
        self.backlog_bytes = 0
        self.stalled = True
        self.stopped = False

    def start(self) -> None:
        """Nothing waits, so nothing is short of slots: it is ready."""
        self._ready()

    def reconfigure(self) -> None:
        """The frontend wants other room before its packets, of the next one on."""
        self._packing = Packing.of(self._vif.profile, self._vif.offer.headroom)

    def queue(self, frames: Sequence[Frame]) -> None:
        """Take frames for the guest; those beyond the limit are dropped."""
        expires = self._vif.domain.loop.now + self._expiry_ns
        size = sum([len(frame.data) for frame in frames])
        if self.backlog_bytes + size <= BACKLOG_MAX:
            self._backlog.extend([(expires, frame) for frame in frames])
            self.backlog_bytes += size
            for frame in frames:
                if frame.lease is not None:
                    frame.lease.hold()
        else:
            lost = 0
            for frame in frames:
                if self.backlog_bytes >= BACKLOG_MAX:
                    self.stopped = True
                    lost += 1
                else:
                    self._backlog.append((expires, frame))
                    self.backlog_bytes += len(frame.data)
                    if frame.lease is not None:
                        frame.lease.hold()
            self._vif.lose(lost)
        self._task.wake()

    def _left(self, size: int) -> None:
        """Bytes left the backlog."""
        self.backlog_bytes -= size
        if self.stopped and self.backlog_bytes < BACKLOG_MAX:
            self.stopped = False

    def poll(self) -> None:
        """Hand over what fits; an event from the guest, or the expiry, comes back here."""
        while True:
            while self._backlog and (self._batch() or self._ring.final_check()):
                pass
            if self._stalls:
                self._judge()
            if not self._drop_expired():
                break
        self._await_expiry()

    def _await_expiry(self) -> None:
        """Come back here when the head of the backlog has waited too long."""
        if self._backlog and self._expires:
            self._timer.arm(self._backlog[0][0] - self._vif.domain.loop.now)
        else:
            self._timer.cancel()

    def _judge(self) -> None:
        """Whether the guest is stalled. A backlog after a pass is short of slots."""
        short = bool(self._backlog)
        if self.stalled:
            if not short:
                self._ready()
        elif short and self._vif.domain.loop.now - self._last_rx_ns > STALL_NS:
            self.stalled = True
            self._vif.queue_stalled()

    def _ready(self) -> None:
        self.stalled = False
        self._last_rx_ns = self._vif.domain.loop.now
        self._vif.queue_ready()

    def _drop_expired(self) -> bool:
        """Drop what waited too long; whether there was anything."""
        if not self._expires:
            return False
        now = self._vif.domain.loop.now
        dropped = 0
        while self._backlog and self._backlog[0][0] <= now:
            self._drop_head()
            dropped += 1
        return bool(dropped)

    def _drop_head(self) -> None:
        _, frame = self._backlog.popleft()
        if frame.lease is not None:
            frame.lease.drop()
        self._left(len(frame.data))
        self._vif.lose(1)

    def _batch(self) -> bool:
        """Up to BATCH packets; False if not even one finds the slots it needs."""
        backlog, slots, packing = self._backlog, self._slots, self._packing
        ops: list[int] = []
        responses: list[int] = []
        parts: list[bytes] = []
        used = at = 0
        room_in_page, start, offset = packing.room, packing.start, packing.offset
        sums = packing.sums
        posted = len(slots)
        hashed = self._vif.hash.algorithm != NO_HASH
        plain = not hashed and not packing.headroom
        places: list[tuple[Frame, int]] | None = [] if self._vif.captured else None
        while backlog and len(parts) < BATCH:
            frame = backlog[0][1]
            data = frame.data
            size = len(data)
            chained = not plain or size > room_in_page or frame.gso_type
            extras = packing.extras(frame, hashed=hashed) if chained else ()
            need = packing.slots(frame, extras) if chained else 1
            if used + need > posted:
                posted += self._take()
                if used + need > posted:
                    if need > self._ring.size:
                        self._drop_head()  # the ring never has so many
                        continue
                    break
            backlog.popleft()
            parts.append(data)
            if frame.lease is not None:
                frame.lease.drop()
            if places is not None:
                places.append((frame, used))
            if chained:
                packing.chain(frame, extras, slots[used : used + need], ops, responses, at)
            else:
                number, _, ref = slots[used]
                blank = sums and (frame.csum_blank or frame.data_validated)
                ops += (ref, start | size << 16, at)
                responses += (number, offset, packing.flags(frame) if blank else 0, size)
            used += need
            at += size
        if not used:
            return False
        del slots[:used]
        self._left(at)
        self._last_rx_ns = self._vif.domain.loop.now
        first = self._ring.rsp_prod if places else 0
        self._finish(ops, responses, parts)
        if places:
            self._show(places, first)
        return True

    def _show(self, places: Sequence[tuple[Frame, int]], first: int) -> None:
        """Tell captures of frames, each in the slot that is so many after `first`."""
        size = self._ring.size
        self._vif.placed(
            [
                attrs.evolve(frame, queue=self._index, slot=(first + at) % size)
                for frame, at in places
            ]
        )

    def _take(self) -> int:
        """Take what the guest posted; how many."""
        count, raw = self._ring.take()
        self._slots += REQUEST.iter_unpack(raw)
        return count

    def _finish(self, ops: list[int], responses: list[int], parts: list[bytes]) -> None:
        """Copy, then publish the responses."""
        vif = self._vif
        data = b"".join(parts)
        count = len(ops) // 3
        status = ffi.from_buffer("int8_t[]", self._status)
        failed = lib.grant_copy_local(
            vif.domain.kernel, vif.granter().kernel, 1, ops, count, ffi.from_buffer(data),
            len(data), status,
        )  # fmt: skip
        if failed < 0:
            vif.domain.check(failed)
        if failed:
            # Linux hands on the grant's status; others have one error for all.
            statuses = [status[number] for number in range(count)]
            if not self._expires:
                statuses = [ERROR if one else 0 for one in statuses]
            mark_failed(responses, statuses)
        vif.counters.rx_packets += len(parts)
        vif.counters.rx_bytes += len(data)
        self._publish(responses)

    def _publish(self, responses: Sequence[int]) -> None:
        """Responses of whole packets, their fields in one flat list; a notice if it is due."""
        count = len(responses) // 4
        if self._ring.push(responses_packer(count).pack(*responses), count):
            self._vif.domain.evtchn.send(self._port)

    def release(self) -> None:
        """Forget what waits."""
        self._timer.cancel()
        self._vif.domain.timers.remove(self._timer)
        self._vif.lose(len(self._backlog))
        for _, frame in self._backlog:
            if frame.lease is not None:
                frame.lease.drop()
        self._backlog.clear()
        self.backlog_bytes = 0
