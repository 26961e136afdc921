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

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.layout import packer, struct_format
from xenpv.back.nethash import NONE as NO_HASH
from xenpv.back.nethash import TOEPLITZ
from xenpv.back.ring import BackRing
from xenpv.host.network import Frame
from xenpv.xen.domain import PAGE_SIZE
from xenpv.xen.loop import NS_PER_MS, NS_PER_S, Task

if TYPE_CHECKING:
    from xenpv.back.netback import Netback

REQUEST: Final = packer("netif_rx_request")
RESPONSE: Final = packer("netif_rx_response")
EXTRA_GSO: Final = packer("netif_extra_info", "u.gso")
EXTRA_HASH: Final = packer("netif_extra_info", "u.hash")

DATA_VALIDATED: Final[int] = lib.NETRXF_data_validated
CSUM_BLANK: Final[int] = lib.NETRXF_csum_blank
MORE_DATA: Final[int] = lib.NETRXF_more_data
EXTRA_INFO: Final[int] = lib.NETRXF_extra_info
TYPE_GSO: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_GSO
TYPE_HASH: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_HASH
FLAG_MORE: Final[int] = lib.XEN_NETIF_EXTRA_FLAG_MORE

BATCH: Final = 64  # packets (RX_BATCH_SIZE)
BACKLOG_MAX: Final = 524_288  # bytes: half the slots, a page each
EXPIRY_NS: Final = 10 * NS_PER_S  # rx_drain_timeout_msecs
EXPIRY_UNNOTIFIED_NS: Final = 30 * NS_PER_MS  # without feature-rx-notify


@cache
def responses_packer(count: int) -> Struct:
    """`count` rx responses from their fields in one flat list."""
    return Struct("<" + struct_format("netif_rx_response")[1:] * count)


class RxQueue:
    """The rx ring of one queue of `vif`, from connect to disconnect. `task` polls it."""

    def __init__(self, vif: Netback, ring: BackRing, port: int, task: Task) -> None:
        self._vif = vif
        self._ring = ring
        self._port = port
        self._task = task
        self._timer = vif.domain.timer(task)
        self._expiry_ns = EXPIRY_NS if vif.offer.rx_notify else EXPIRY_UNNOTIFIED_NS
        self._backlog: deque[tuple[int, Frame]] = deque()  # when it expires, and what
        self._slots: list[tuple[int, ...]] = []  # requests taken and not answered
        self._status = bytearray(2 * self._ring.size)
        self.backlog_bytes = 0

    def queue(self, frames: Sequence[Frame]) -> None:
        """Take frames for the guest; those beyond the limit are dropped."""
        expires = self._vif.domain.loop.now + self._expiry_ns
        size = sum([len(frame.data) for frame in frames])
        if self.backlog_bytes + size <= BACKLOG_MAX:
            self._backlog.extend([(expires, frame) for frame in frames])
            self.backlog_bytes += size
        else:
            for frame in frames:
                if self.backlog_bytes >= BACKLOG_MAX:
                    self._vif.counters.rx_dropped += 1
                else:
                    self._backlog.append((expires, frame))
                    self.backlog_bytes += len(frame.data)
        self._task.wake()

    def poll(self) -> None:
        """Hand over what fits; an event from the guest, or the expiry, comes back here."""
        self._expire()
        while self._backlog:
            if self._batch():
                continue
            if not self._ring.final_check():
                self._timer.arm(self._backlog[0][0] - self._vif.domain.loop.now)
                return
        self._timer.cancel()

    def _expire(self) -> None:
        now = self._vif.domain.loop.now
        while self._backlog and self._backlog[0][0] <= now:
            _, frame = self._backlog.popleft()
            self.backlog_bytes -= len(frame.data)
            self._vif.counters.rx_dropped += 1

    def _batch(self) -> bool:
        """Up to BATCH packets; False if not even one finds the slots it needs."""
        backlog, slots = self._backlog, self._slots
        ops: list[int] = []
        responses: list[int] = []
        parts: list[bytes] = []
        used = at = 0
        room = BATCH
        posted = len(slots)
        hashed = self._vif.hash.algorithm != NO_HASH
        while backlog and room:
            frame = backlog[0][1]
            data = frame.data
            size = len(data)
            chained = size > PAGE_SIZE or frame.gso_type or hashed
            extras = _extras(frame, hashed=hashed) if chained else ()
            need = (size + PAGE_SIZE - 1) // PAGE_SIZE + len(extras) if chained else 1
            if used + need > posted:
                posted += self._take()
                if used + need > posted:
                    break
            room -= 1
            backlog.popleft()
            parts.append(data)
            if chained:
                _chain(frame, extras, slots[used : used + need], ops, responses, at)
            else:
                number, _, ref = slots[used]
                flags = _sums(frame) if frame.csum_blank or frame.data_validated else 0
                ops += (ref, size << 16, at)
                responses += (number, 0, flags, size)
            used += need
            at += size
        if not used:
            return False
        del slots[:used]
        self.backlog_bytes -= at
        self._finish(ops, responses, parts)
        return True

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
            _mark_failed(responses, [status[number] for number in range(count)])
        vif.counters.rx_packets += len(parts)
        vif.counters.rx_bytes += len(data)
        nr_slots = len(responses) // 4
        if self._ring.push(responses_packer(nr_slots).pack(*responses), nr_slots):
            vif.domain.evtchn.send(self._port)

    def release(self) -> None:
        """Forget what waits."""
        self._timer.cancel()
        self._vif.domain.timers.remove(self._timer)
        self._vif.counters.rx_dropped += len(self._backlog)
        self._backlog.clear()


def _extras(frame: Frame, *, hashed: bool) -> list[bytes]:
    """What goes into the slots behind the first: GSO, then HASH."""
    hash_is = frame.hash if hashed else None
    extras = []
    if frame.gso_type:
        flags = 0 if hash_is is None else FLAG_MORE
        extras.append(EXTRA_GSO.pack(TYPE_GSO, flags, frame.gso_size, frame.gso_type, 0, 0))
    if hash_is is not None:
        kind, value = hash_is
        extras.append(EXTRA_HASH.pack(TYPE_HASH, 0, kind, TOEPLITZ, value.to_bytes(4, "little")))
    return extras


def _sums(frame: Frame) -> int:
    """Flags of a first response. The bits are not those of tx."""
    if frame.csum_blank:
        return CSUM_BLANK | DATA_VALIDATED
    return DATA_VALIDATED if frame.data_validated else 0


def _chain(
    frame: Frame,
    extras: Sequence[bytes],
    slots: list[tuple[int, ...]],
    ops: list[int],
    responses: list[int],
    at: int,
) -> None:
    """Responses of a packet with extras or more than a page: each page but the last is full."""
    flags = _sums(frame) | (EXTRA_INFO if extras else 0)
    left = len(frame.data)
    for index, (number, _, ref) in enumerate(slots):
        if 0 < index <= len(extras):
            responses += RESPONSE.unpack(extras[index - 1])
            continue
        size = min(left, PAGE_SIZE)
        left -= size
        ops += (ref, size << 16, at)
        at += size
        responses += (number, 0, flags | (MORE_DATA if left else 0), size)
        flags = 0


def _mark_failed(responses: list[int], statuses: list[int]) -> None:
    """Put the grant status of each failed copy into its response; extras have no copy."""
    at = 0
    extras = False
    for status in statuses:
        while extras:  # an extra's flags are the high byte of what is an id elsewhere
            extras = bool(responses[at] >> 8 & FLAG_MORE)
            at += 4
        extras = bool(responses[at + 2] & EXTRA_INFO)
        if status:
            responses[at + 3] = status
        at += 4
