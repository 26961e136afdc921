"""The frontend of a disk in a case's hands: rings in either layout, and no policy.

Everything is io/blkif.h's. What a slot says is what the case said: an honest request is as long
to write as a hostile one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import attrs

from xenpv.abi.blkif import BLKIF_OP, BLKIF_RSP
from xenpv.bus.evtchn import Channel
from xenpv.testing.blk_layout import Layout, Segment, tables
from xenpv.testing.cases.claims import expect
from xenpv.testing.raw_front import BACKEND_DOMID, RawFront, RawGuest
from xenpv.testing.sring import RawSring
from xenpv.xen.domain import PAGE_SIZE

READ: Final = int(BLKIF_OP.READ)
WRITE: Final = int(BLKIF_OP.WRITE)
BARRIER: Final = int(BLKIF_OP.WRITE_BARRIER)
FLUSH: Final = int(BLKIF_OP.FLUSH_DISKCACHE)
DISCARD: Final = int(BLKIF_OP.DISCARD)
INDIRECT: Final = int(BLKIF_OP.INDIRECT)
OKAY: Final = int(BLKIF_RSP.OKAY)
ERROR: Final = int(BLKIF_RSP.ERROR)
EOPNOTSUPP: Final = int(BLKIF_RSP.EOPNOTSUPP)

SECTOR: Final = 512
WHOLE: Final = (0, PAGE_SIZE // SECTOR - 1)  # first_sect, last_sect of a page
FIRST_ID: Final = 0x1122_3344_5566_0000
SUFFIXES: Final = {"x86_64-abi": "", "x86_32-abi": "_x86_32"}


@attrs.frozen
class Answer:
    """A response as it lay in the ring."""

    rid: int
    operation: int
    status: int


@attrs.define(eq=False)
class PeerRing:
    """One ring of the frontend. `sent` counts requests that were pushed."""

    sring: RawSring
    refs: list[int]
    channel: Channel
    events: int = 0
    sent: int = 0

    def heard(self) -> None:
        """The backend's notification was delivered."""
        self.events += 1


class BlkPeer(RawFront):
    """A frontend of `queues` rings of `1 << order` pages, in the layout of `protocol`.

    `page` gives memory, `grant` a reference; `rw`, `discard` and `indirect` give slots, each
    with an id of its own unless told which; `send` publishes them and gives the answers.
    """

    kind = "vbd"

    def __init__(
        self,
        guest: RawGuest,
        devid: int,
        *,
        backend_kind: str,
        run: Callable[[], object],
        protocol: str = "x86_64-abi",
        order: int = 0,
        queues: int = 1,
        persistent: bool = False,
    ) -> None:
        super().__init__(guest, devid, backend_kind)
        self.run = run  # the world's, which tells what is wrong with a user's driver
        self.handle = devid & 0xFFFF
        self.protocol = protocol
        self.order = order
        self.nr_queues = queues
        self.persistent = persistent
        self.suffix = SUFFIXES[protocol]
        self.layout = Layout(self.suffix)
        self.rings: list[PeerRing] = []
        self._next_id = FIRST_ID

    # connection

    def attach(self) -> None:
        """Rings, grants and ports, in place of those of an earlier connection."""
        self.detach()
        self.rings = [self._ring() for _ in range(self.nr_queues)]
        self._channel = self.rings[0].channel

    def _ring(self) -> PeerRing:
        guest, pages = self.guest, 1 << self.order
        pfn = guest.page(pages)
        refs = [guest.grant(pfn + at) for at in range(pages)]
        sring = RawSring(
            self.domain, pfn, pages,
            req=f"blkif_request{self.suffix}", rsp=f"blkif_response{self.suffix}",
        )  # fmt: skip
        channel = guest.evtchn.open_unbound(BACKEND_DOMID, lambda: None)
        ring = PeerRing(sring, refs, channel)
        channel.callback = partial(PeerRing.heard, ring)
        guest.evtchn.unmask(channel, force=True)
        return ring

    def detach(self) -> None:
        """Close the ports; references stay as they are."""
        for ring in self.rings:
            if ring.channel.active:
                self.guest.evtchn.close(ring.channel)
        self.rings = []

    def keys(self) -> dict[str, str]:
        """What an honest frontend writes, its state last."""
        keys: dict[str, str] = {}
        if self.nr_queues > 1:
            keys["multi-queue-num-queues"] = str(self.nr_queues)
        if self.order:
            keys["ring-page-order"] = str(self.order)
        for index, ring in enumerate(self.rings):
            prefix = f"queue-{index}/" if self.nr_queues > 1 else ""
            for page, ref in enumerate(ring.refs):
                keys[f"{prefix}ring-ref{page if self.order else ''}"] = str(ref)
            keys[f"{prefix}event-channel"] = str(ring.channel.port)
        if self.persistent:
            keys["feature-persistent"] = "1"
        return {**keys, "protocol": self.protocol, "state": "3"}

    def connect(self, overrides: Mapping[str, str | None] | None = None) -> None:
        """All of it, as far as the backend lets it come: `backend_state` says how far."""
        self.run()
        self.attach()
        self.announce(overrides)
        self.run()
        if self.is_connected:
            self.state = 4
            self.run()

    @property
    def is_connected(self) -> bool:
        return self.backend_key("state") == "4"

    def number(self, key: str, default: int = 0) -> int:
        """A key of the backend's; `default` where it is not there or no number."""
        text = self.backend_key(key)
        return int(text) if text is not None and text.isdecimal() else default

    # memory

    def page(self, data: bytes = b"") -> int:
        """A page of the guest with that, and zeros."""
        pfn = self.guest.page()
        self.domain.write(pfn, 0, data.ljust(PAGE_SIZE, b"\0"))
        return pfn

    def read_page(self, pfn: int, offset: int = 0, size: int = PAGE_SIZE) -> bytes:
        return self.domain.read(pfn, offset, size)

    def granted(self, data: bytes = b"", *, readonly: bool = False) -> tuple[int, int]:
        """A page as of `page`, and a reference to it."""
        pfn = self.page(data)
        return pfn, self.guest.grant(pfn, readonly=readonly)

    @property
    def mapped(self) -> int:
        """References of the guest that somebody has mapped, those of rings among them."""
        return self.domain.gnttab.pinned()

    # slots

    def new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def rw(
        self,
        operation: int,
        sector: int,
        segments: Sequence[Segment] = (),
        *,
        rid: int | None = None,
        nr_segments: int | None = None,
    ) -> bytes:
        """Any operation in the layout of READ and WRITE; `nr_segments` other than there are."""
        rid = self.new_id() if rid is None else rid
        slot = self.layout.direct(operation & 0xFF, self.handle, rid, sector, segments)
        if nr_segments is None:
            return slot
        return slot[:1] + bytes((nr_segments,)) + slot[2:]

    def discard(self, sector: int, count: int, *, flag: int = 0) -> bytes:
        slot = self.layout.discard(self.handle, self.new_id(), sector, count)
        return slot[:1] + bytes((flag,)) + slot[2:]

    def indirect(
        self,
        operation: int,
        sector: int,
        segments: Sequence[Segment],
        *,
        count: int | None = None,
        refs: Sequence[int] | None = None,
    ) -> bytes:
        """An INDIRECT of these segments, whose tables lie in pages of their own unless `refs`
        says where; `count` other than there are.
        """
        if refs is None:
            refs = [self.granted(table, readonly=True)[1] for table in tables(segments)]
        count = len(segments) if count is None else count
        return self.layout.indirect(operation, self.handle, self.new_id(), sector, count, refs)

    def id_of(self, slot: bytes) -> int:
        at = 4 if self.suffix else 8
        return int.from_bytes(slot[at : at + 8], "little")

    # traffic

    def publish(self, *slots: bytes, queue: int = 0) -> bool:
        """Put requests on a ring; True: the backend wants a notice. Nothing runs."""
        ring = self.rings[queue]
        ring.sent += len(slots)
        return ring.sring.push(b"".join(slots), len(slots))

    def kick(self, queue: int = 0) -> None:
        """EVTCHNOP_send, asked for or not."""
        self.domain.evtchn.send(self.rings[queue].channel.port)

    def answers(self, queue: int = 0) -> list[Answer]:
        """Responses that were not taken yet. PeerProtocolError: more than requests."""
        raw = b"".join(self.rings[queue].sring.take())
        return [Answer(*one) for one in self.layout.responses(raw)]

    def send(self, *slots: bytes, queue: int = 0) -> list[Answer]:
        """Publish, notify if that is asked for, run, and take what was answered."""
        if self.publish(*slots, queue=queue):
            self.kick(queue)
        self.run()
        return self.answers(queue)

    def statuses(self, *slots: bytes, queue: int = 0) -> list[int]:
        """As `send`: the status of each, in their order. Wrong unless each has exactly one
        answer.
        """
        got = self.send(*slots, queue=queue)
        ids = [self.id_of(slot) for slot in slots]
        expect(sorted(one.rid for one in got), sorted(ids), "ids of the responses")
        by_id = {one.rid: one.status for one in got}
        return [by_id[rid] for rid in ids]

    def status(self, slot: bytes, queue: int = 0) -> int:
        """Of one request."""
        return self.statuses(slot, queue=queue)[0]

    # an honest frontend's work, for cases that need the disk to be as it should

    def read(self, sector: int, count: int, queue: int = 0) -> bytes:
        """At most a page of sectors of 512 bytes, by one READ that must succeed."""
        pfn, ref = self.granted(b"\xaa" * PAGE_SIZE)
        status = self.status(self.rw(READ, sector, [(ref, 0, count - 1)]), queue)
        expect(status, OKAY, f"status of a READ of {count} sectors at {sector}")
        data = self.read_page(pfn, 0, count * SECTOR)
        self.give_back(pfn, ref)
        return data

    def write(self, sector: int, data: bytes, queue: int = 0) -> None:
        """At most a page, by one WRITE that must succeed."""
        pfn, ref = self.granted(data, readonly=not self.persistent)
        last = len(data) // SECTOR - 1
        status = self.status(self.rw(WRITE, sector, [(ref, 0, last)]), queue)
        expect(status, OKAY, f"status of a WRITE of {last + 1} sectors at {sector}")
        self.give_back(pfn, ref)

    def give_back(self, pfn: int, ref: int) -> None:
        """A page and its reference, if nobody has it mapped."""
        if self.guest.revoke(ref):
            self.domain.pages.free(pfn)
