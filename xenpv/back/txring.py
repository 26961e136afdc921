"""The tx ring of one queue and where its packets go: what every way of serving it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from xenpv.abi._kernel import ffi, lib
from xenpv.back.ring import BackRing
from xenpv.back.txpacket import CSUM_BLANK, Extras, offloads, responses_packer
from xenpv.host.network import Frame

if TYPE_CHECKING:
    from xenpv.back.netback import Netback


class TxRing:
    """`ring` of the vif's queue number `queue`, answered through `port`."""

    def __init__(self, vif: Netback, ring: BackRing, port: int, queue: int = 0) -> None:
        self.vif = vif
        self.queue = queue
        self.ring = ring
        self.port = port
        self._local = bytearray()
        self._status = bytearray()

    def copy(self, ops: Any, count: int, size: int) -> tuple[bytes, list[int]]:
        """The bytes that `count` operations of grant_copy_local fetch, `size` in all, and the
        numbers of those that failed.
        """
        domain = self.vif.domain
        granter = self.vif.granter()
        if len(self._local) < size:
            self._local = bytearray(size)
        if len(self._status) < count:
            self._status = bytearray(count)
        local, status = self._local, self._status
        failed = lib.grant_copy_local(
            domain.kernel, granter.kernel, 0, ops, count, ffi.from_buffer(local), size,
            ffi.from_buffer("int8_t[]", status),
        )  # fmt: skip
        if failed < 0:
            domain.check(failed)
        data = bytes(memoryview(local)[:size])
        return data, [number for number in range(count) if status[number]] if failed else []

    def frame(self, data: bytes, flags: int, told: Extras | None, slot: int) -> Frame | None:
        """A packet with what its sender said of it; None if that cannot be."""
        if told is not None and told.gso_type and not flags & CSUM_BLANK:
            self.vif.counters.rx_gso_checksum_fixup += 1
        frame = offloads(data, flags, told)
        if frame is not None:
            frame.queue = self.queue
            frame.slot = slot
        return frame

    def slot(self, index: int, count: int) -> int:
        """Where on the ring request `index` of the last `count` taken lay."""
        return (self.ring.req_cons - count + index) % self.ring.size

    def answer(self, responses: list[int]) -> None:
        """Publish ids and statuses, in that order, and notify if the guest asked for it."""
        count = len(responses) // 2
        if count and self.ring.push(responses_packer(count).pack(*responses), count):
            self.vif.domain.evtchn.send(self.port)

    def pass_on(self, frames: Sequence[Frame], size: int) -> None:
        """To the bridge; `size` bytes in all."""
        if frames:
            vif = self.vif
            vif.counters.tx_packets += len(frames)
            vif.counters.tx_bytes += size
            vif.transmit(frames)

    @property
    def is_full(self) -> bool:
        """Whether a slot must be answered before another can be taken."""
        return self.ring.in_flight >= self.ring.size
