"""The backend of a disk in a case's hands: it decodes what comes, and serves it if it is told to.

What every frontend must keep to, whatever a case is about, is looked at in each request:
`findings` are what does not hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from xenpv.abi.blkif import BLKIF_OP
from xenpv.abi.layout import packer
from xenpv.abi.xenbus import XenbusState as State
from xenpv.back.xenbus import Device
from xenpv.errors import GrantError, PeerProtocolError
from xenpv.testing.blk_layout import SEGMENT, SEGMENTS_MAX, SEGMENTS_PER_PAGE, Segment
from xenpv.testing.cases.blkpeer import DISCARD, INDIRECT, OKAY, READ, SECTOR, SUFFIXES, WRITE
from xenpv.testing.raw_back import RawBlkBack
from xenpv.testing.sring import RawBackSring
from xenpv.xen.domain import PAGE_SIZE

INDIRECT_PAGES: Final = 8
OPERATIONS: Final = {
    BLKIF_OP.WRITE_BARRIER: "feature-barrier",
    BLKIF_OP.FLUSH_DISKCACHE: "feature-flush-cache",
    BLKIF_OP.DISCARD: "feature-discard",
}


@attrs.define(eq=False)
class Taken:
    """A request as the backend read it. `operation` is what it does: of an INDIRECT the inner
    one. `count` are the sectors of a DISCARD.
    """

    queue: int
    rid: int
    operation: int
    sector: int
    indirect: bool = False
    segments: list[Segment] = attrs.Factory(list)
    tables: list[int] = attrs.Factory(list)
    count: int = 0

    @property
    def nr_sectors(self) -> int:
        return self.count or sum(last - first + 1 for _, first, last in self.segments)

    @property
    def refs(self) -> list[int]:
        """Every reference it names."""
        return [*(ref for ref, _, _ in self.segments), *self.tables]


class BlkBackPeer(RawBlkBack):
    """A backend of as many rings as the frontend makes, in the layout that it names.

    `disk` is what it serves, in 512-byte sectors, while `hold` is False. `requests` are all that
    came, `in_flight` those that are not answered.
    """

    def __init__(self, device: Device, disk: bytearray) -> None:
        super().__init__(device)
        self.disk = disk
        self.keys["sectors"] = str(len(disk) // SECTOR)
        self.srings: list[RawBackSring] = []
        self.requests: list[Taken] = []
        self.in_flight: list[Taken] = []
        self.findings: list[str] = []
        self.ring_refs: list[int] = []
        self.notices = 0  # events that a frontend had to be sent

    # connection

    def attach(self) -> None:
        device = self.device
        suffix = SUFFIXES.get(device.frontend_get("protocol") or "", "")
        queues = device.frontend_number("multi-queue-num-queues", 1)
        order = device.frontend_number("ring-page-order", -1)
        self._look_at_shape(queues, order)
        names = [f"ring-ref{at}" for at in range(1 << order)] if order >= 0 else ["ring-ref"]
        self.srings, self.in_flight, self.ring_refs = [], [], []
        self._request = packer(f"blkif_request{suffix}")
        self._table = packer(f"blkif_request_indirect{suffix}")
        self._discard = packer(f"blkif_request_discard{suffix}")
        self._response = packer(f"blkif_response{suffix}")
        for index in range(queues):
            prefix = f"queue-{index}/" if queues > 1 else ""
            refs = [device.frontend_number(prefix + name, 0) for name in names]
            self.ring_refs += refs
            ring = self._ring(refs, f"blkif_request{suffix}", f"blkif_response{suffix}")
            self.srings.append(ring)
            self.bind(device.frontend_number(f"{prefix}event-channel", 0))
        self.sring = self.srings[0]
        for key, value in self.keys.items():
            device.write(key, value)

    def frontend_changed(self, state: State) -> None:
        # One that says Closed has unmapped everything, whatever else is odd about it.
        self.maps_late = self.answers.get(state) is State.CLOSED
        super().frontend_changed(state)

    def _look_at_shape(self, queues: int, order: int) -> None:
        most = self._offers("max-ring-page-order")
        self._law(order <= most, f"ring-page-order {order}, {most} is offered")
        most = max(self._offers("multi-queue-max-queues"), 1)
        self._law(0 < queues <= most, f"{queues} queues, {most} are offered")

    def _offers(self, key: str) -> int:
        text = self.keys.get(key) or self.features.get(key) or "0"
        return int(text) if text.isdecimal() else 0

    def _law(self, holds: object, what: str) -> None:
        if not holds:
            self.findings.append(what)

    def detach(self) -> None:
        super().detach()
        self.srings = []

    # requests

    def event(self) -> None:
        self.events += 1
        if self.on_event is not None:
            self.on_event()
        elif not self.hold:
            self.serve()

    def serve(self) -> None:
        """Take what came and answer it OKAY, with its data moved."""
        for taken in self.take():
            self.answer_to(taken)

    def take(self) -> list[Taken]:
        """What came on any ring."""
        found = []
        for queue, sring in enumerate(self.srings):
            try:
                slots = sring.take()
            except PeerProtocolError as error:
                self.findings.append(f"ring {queue}: {error}")
                continue
            found += [self._take(queue, slot) for slot in slots]
        return found

    def _take(self, queue: int, slot: bytes) -> Taken:
        taken = self._parse(queue, slot)
        self._look_at(taken, slot)
        same = [one for one in self.in_flight if (one.queue, one.rid) == (queue, taken.rid)]
        self._law(not same, f"id {taken.rid:#x} is in flight twice")
        self.requests.append(taken)
        self.in_flight.append(taken)
        return taken

    def _parse(self, queue: int, slot: bytes) -> Taken:
        operation = slot[0]
        if operation == DISCARD:
            _, _, _, rid, sector, count = self._discard.unpack_from(slot)[:6]
            return Taken(queue, rid, operation, sector, count=count)
        if operation == INDIRECT:
            _, inner, count, rid, sector, _, *refs = self._table.unpack_from(slot)
            tables = refs[: min(-(-count // SEGMENTS_PER_PAGE), INDIRECT_PAGES)]
            most = self._offers("feature-max-indirect-segments")
            self._law(0 < count <= most, f"an INDIRECT of {count} segments, {most} are offered")
            self._law(inner in (READ, WRITE), f"an INDIRECT of {inner}")
            segments = self._segments(tables, count)
            return Taken(queue, rid, inner, sector, True, segments, tables)
        _, count, _, rid, sector, *flat = self._request.unpack_from(slot)
        self._law(count <= SEGMENTS_MAX, f"{count} segments")
        flat = flat[: 3 * min(count, SEGMENTS_MAX)]
        segments = list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))
        return Taken(queue, rid, operation, sector, segments=segments)

    def _segments(self, tables: Sequence[int], count: int) -> list[Segment]:
        try:
            raw = b"".join([self.read(ref) for ref in tables])
        except GrantError as error:
            self.findings.append(f"a table of segments: {error}")
            return []
        size = min(count * SEGMENT.size, len(raw))
        return [(ref, first, last) for ref, first, last in SEGMENT.iter_unpack(raw[:size])]

    def _look_at(self, taken: Taken, slot: bytes) -> None:
        """What holds of every request, whoever sends it."""
        name = f"operation {slot[0]} at {taken.sector}"
        key = OPERATIONS.get(BLKIF_OP(slot[0])) if slot[0] in list(BLKIF_OP) else "no key"
        self._law(key is None or self._offers(key), f"{name}: {key} is not offered")
        writes = taken.operation not in (READ, BLKIF_OP.FLUSH_DISKCACHE)
        readonly = self._offers("info") & 4
        self._law(not (writes and readonly), f"{name}: the disk is read-only")
        for _, first, last in taken.segments:
            self._law(first <= last < PAGE_SIZE // SECTOR, f"{name}: sectors {first} to {last}")
        if taken.operation in (READ, WRITE):
            self._law(taken.segments, f"{name}: no segments")

    # answers

    def answer_to(self, taken: Taken, status: int = OKAY) -> None:
        """Move its data if that is OKAY, and answer. An event if the frontend asks for one."""
        if status == OKAY:
            self.perform(taken)
        self.publish(taken.queue, taken.rid, taken.operation, status)
        self.in_flight.remove(taken)

    def response(self, rid: int, operation: int, status: int) -> bytes:
        """As it lies in the ring."""
        packed: bytes = self._response.pack(rid, operation, status)
        return packed

    def publish(self, queue: int, rid: int, operation: int, status: int) -> None:
        """Any response, in the next entry; an event if the frontend asks."""
        if self.srings[queue].push(self.response(rid, operation, status), 1):
            self.notices += 1
            self.notify()

    def perform(self, taken: Taken) -> None:
        """What it asks for, on `disk`."""
        at = taken.sector * SECTOR
        if taken.operation == DISCARD:
            end = min(at + taken.count * SECTOR, len(self.disk))
            self.disk[at:end] = bytes(max(end - at, 0))
            return
        for ref, first, last in taken.segments:
            size = (last - first + 1) * SECTOR
            try:
                if taken.operation == READ:
                    self.fill(ref, bytes(self.disk[at : at + size]).ljust(size, b"\0"), first * 512)
                else:
                    self.disk[at : at + size] = self.read(ref, first * SECTOR, size)
            except GrantError as error:
                self.findings.append(f"operation {taken.operation} at {taken.sector}: {error}")
            at += size

    # what the frontend granted

    def grants(self, ref: int, *, readonly: bool) -> bool:
        """Whether the reference may be mapped so, now."""
        try:
            self.unmap(self.map(ref, readonly=readonly))
        except GrantError:
            return False
        return True
