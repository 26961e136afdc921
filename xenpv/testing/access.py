"""The access log: every load and store of shared memory, and what was fetched twice.

    with AccessLog(platform) as log:
        disk.read(0, 8)
    assert log.double_fetches() == []

Recording and detection are the kernel's (abi/kernel/log.c); names are found when asked for.
A double fetch is a byte that one domain reads twice in one delivery (one run of one task)
without having written it in between: what it checked need not be what it uses. Producer and
event indices are read again by design (RING_FINAL_CHECK), as are event channel bits and the
grant table, and a byte stream's page holds new bytes in old places: none of these count.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import attrs

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.hvm import HVM_PARAM
from xenpv.errors import HypercallError, Livelock, LocalProtocolError
from xenpv.platform import Platform
from xenpv.view.rings import FIRST_SLOT, KnownRing, rings
from xenpv.xen.loop import Loop, Task
from xenpv.xen.trace import CHUNK_WORDS, Event, mark

if TYPE_CHECKING:
    from xenpv.testing.ends.blame import Place

CAPACITY: Final = 1 << 16
DOUBLE_FETCHES_MAX: Final = 256
DOMID_XEN: Final[int] = lib.DOMID_XEN
COPY: Final[int] = lib.ACCESS_COPY
PFNS_SEARCHED: Final = 1 << 16
KINDS: Final = {
    lib.ACCESS_READ: "reads",
    lib.ACCESS_WRITE: "writes",
    lib.ACCESS_ATOMIC: "changes",
}


@attrs.frozen
class Access:
    """One access: who, what, where; sizes in bytes. `under_lock`: the hypervisor's own.

    `delivery` numbers the task runs since the log was opened; 0 is what came before any.
    """

    delivery: int
    actor: int
    kind: int
    under_lock: bool
    frame: int
    offset: int
    size: int


@attrs.frozen
class DoubleFetch:
    """Bytes [offset, offset + size) of a frame, read again by `actor`.

    `pfn` is the page in the frame's owner, domain `domid`; `where` names the first byte if it
    is a known ring's (`blkif_request[3].nr_segments`), `in_slot` if it is in an entry of one and
    the driver reads it, not Xen for a copy. `first` and `again`: the lines that fetched it,
    where they are known (testing/sites.py).
    """

    actor: int
    frame: int
    domid: int
    pfn: int
    offset: int
    size: int
    count: int
    where: str = ""
    in_slot: bool = False
    first: Place | None = None
    again: Place | None = None

    def __str__(self) -> str:
        place = f"d{self.domid} pfn {self.pfn:#x}+{self.offset:#x}"
        named = f"{self.where} ({place})" if self.where else place
        sites = "" if self.first is None else f": first at {self.first}, then at {self.again}"
        return f"d{self.actor} fetches {named} twice in one delivery, {self.size} bytes{sites}"


class LoggedOrder:
    """The loop's own order, with each delivery told to the log of its machine.

    `logged` are the kernel's machines that have one, by their number on the loop.
    """

    def __init__(self) -> None:
        self.logged: dict[int, Any] = {}

    def drain(self, loop: Loop, limit: int) -> int:
        """As Loop does it."""
        done = 0
        while loop.ready:
            count = len(loop.ready)
            index = loop.chooser.choose(count) if count > 1 else 0
            if count > 1:
                loop.trace.words.append(mark(Event.DRAW, 0, count) | index)
            self._run(loop, loop.ready[index])
            done += 1
            if done >= limit and loop.ready:
                raise Livelock(
                    f"{done} tasks ran and more are due", seed=loop.seed, tail=loop.trace.tail()
                )
        return done

    def _run(self, loop: Loop, task: Task) -> None:
        loop.start(task)
        self._tell(task)
        task.run()
        if len(loop.trace.words) >= CHUNK_WORDS:
            loop.trace.flush()

    def _tell(self, task: Task) -> None:
        machine = self.logged.get(task.machine)
        if machine is not None:
            lib.log_delivery(machine, task.domid)

    def pump(self, loop: Loop, task: Task) -> bool:
        """As Loop.pump; a delivery of its own."""
        if not task.queued:
            return False
        loop.start(task)
        self._tell(task)
        task.run()
        return True


class AccessLog:
    """The log of one platform, while the context lasts; what it found stays readable after.

    `capacity`: entries kept, a power of two; older ones are overwritten (double fetches are
    not). One log at a time: LocalProtocolError if one is open, or `capacity` is no such number.
    """

    def __init__(self, platform: Platform, *, capacity: int = CAPACITY) -> None:
        self.platform = platform
        self.capacity = capacity
        self._hypervisor = platform.hypervisor
        self._machine = platform.hypervisor.machine
        self._kept: tuple[list[Access], list[DoubleFetch]] | None = None
        self._seated = False

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def open(self) -> None:
        """Begin. The loop's order stays what it is; an explorer tells of deliveries itself."""
        try:
            self.platform.dom0.check(lib.machine_log(self._machine, self.capacity))
        except HypercallError as error:
            raise LocalProtocolError(
                f"an access log of {self.capacity} entries: {error}"
            ) from error
        loop = self.platform.loop
        if loop.scheduler is None:
            loop.scheduler = LoggedOrder()
        if isinstance(loop.scheduler, LoggedOrder):
            loop.scheduler.logged[self._hypervisor.number] = self._machine
            self._seated = True

    def close(self) -> None:
        """End, and keep what was found; a second call does nothing."""
        if self._kept is None:
            self._kept = self.entries(), self.double_fetches()
            self._end()

    def drop(self) -> None:
        """End, and keep nothing."""
        self._kept = ([], [])
        self._end()

    @property
    def _lives(self) -> bool:
        """False also when the platform is closed: its machine may be another's by now."""
        return self._kept is None and not self._hypervisor.closed

    def _end(self) -> None:
        if not self._hypervisor.closed:
            lib.machine_unlog(self._machine)
        order = self.platform.loop.scheduler
        if self._seated and isinstance(order, LoggedOrder):
            del order.logged[self._hypervisor.number]
            if not order.logged:
                self.platform.loop.scheduler = None
        self._seated = False

    @property
    def total(self) -> int:
        """Accesses so far; 0 once it is closed."""
        return int(lib.log_total(self._machine)) if self._lives else 0

    def entries(self) -> list[Access]:
        """The accesses that are kept, oldest first."""
        return self._entries() if self._lives else self._kept[0] if self._kept else []

    def double_fetches(self) -> list[DoubleFetch]:
        """What was fetched twice so far, in order; at most DOUBLE_FETCHES_MAX places."""
        return self._double_fetches() if self._lives else self._kept[1] if self._kept else []

    def _entries(self) -> list[Access]:
        raw = ffi.new("struct access_entry[]", self.capacity)
        count = lib.log_entries(self._machine, raw, self.capacity)
        return [
            Access(
                delivery=one.delivery,
                actor=one.actor,
                kind=one.kind & 3,
                under_lock=bool(one.kind & lib.ACCESS_HYPERVISOR),
                frame=one.frame,
                offset=one.offset,
                size=one.size,
            )
            for one in raw[0:count]
        ]

    def _double_fetches(self) -> list[DoubleFetch]:
        raw = ffi.new("struct double_fetch[]", DOUBLE_FETCHES_MAX)
        count = lib.log_double_fetches(self._machine, raw, DOUBLE_FETCHES_MAX)
        if not count:
            return []
        known = rings(self._hypervisor)
        streams = _stream_frames(self._hypervisor)
        found = []
        for one in raw[0:count]:
            owner = int(lib.frame_owner(self._machine, one.frame))
            if owner in (DOMID_XEN, -2) or one.frame in streams or _is_index(known, one):
                continue
            domain = self._hypervisor.domains.get(owner)
            if domain is not None and lib.fifo_has_frame(domain.kernel, one.frame):
                continue
            found.append(self._named(one, owner, known))
        return found

    def _named(self, one: Any, owner: int, known: list[KnownRing]) -> DoubleFetch:
        where, in_slot = "", False
        for ring in known:
            where = ring.where(one.frame, one.offset) or ""
            in_slot = ring.is_slot(one.frame, one.offset) and not one.kind & COPY
            if where:
                break
        return DoubleFetch(
            actor=one.actor,
            frame=one.frame,
            domid=owner,
            pfn=self._pfn(owner, one.frame),
            offset=one.offset,
            size=one.size,
            count=one.count,
            where=where,
            in_slot=in_slot,
        )

    def _pfn(self, domid: int, frame: int) -> int:
        """Where the owner has the frame; -1 if nowhere now."""
        domain = self._hypervisor.domains.get(domid)
        if domain is None:
            return -1
        last = min(domain.pages.end, domain.pages.start + PFNS_SEARCHED)
        for pfn in range(domain.pages.start, last):
            if lib.p2m_lookup(domain.kernel, pfn, 0) == frame:
                return pfn
        return -1


def _is_index(known: list[KnownRing], one: Any) -> bool:
    """Whether all of it lies in the header of a ring."""
    return any(
        one.frame == ring.frames[0] and one.offset + one.size <= FIRST_SLOT for ring in known
    )


def _stream_frames(hypervisor: Any) -> list[int]:
    """The frames of store and console rings."""
    frames = []
    for domain in hypervisor.domains.values():
        for parameter in (HVM_PARAM.STORE_PFN, HVM_PARAM.CONSOLE_PFN):
            pfn = domain.hvm.params[parameter]
            if pfn:
                frames.append(int(lib.p2m_lookup(domain.kernel, pfn, 0)))
    return frames
