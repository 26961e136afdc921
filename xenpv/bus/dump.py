"""What XenBus prints of itself when VIRQ_DEBUG comes or the guest crashes, by section.

The order and the contents are those of the drivers' debug callbacks; what a developer looks for
in a guest that hangs is added: bits of ports, bytes that nobody has taken, references that are
out. Nothing here changes anything or believes a peer: numbers are printed as they are found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from xenpv.abi._kernel import lib
from xenpv.abi.evtchn import EVTCHNSTAT
from xenpv.abi.layout import offsetof
from xenpv.abi.xenbus import XenbusState
from xenpv.bus.console import IN_SIZE, OUT_SIZE
from xenpv.bus.debug import DebugCallback
from xenpv.bus.evtchn import Channel, ChannelType
from xenpv.bus.handshake import Do, Handshake, Seen
from xenpv.bus.ring import FrontRing, RingIndices
from xenpv.bus.store_transport import REQ, RING_SIZE, RSP
from xenpv.bus.suspend import SuspendPhase
from xenpv.errors import HypercallError
from xenpv.xen.domain import PAGE_SIZE
from xenpv.xen.loop import Task

if TYPE_CHECKING:
    from xenpv.bus.xenbus import XenBus

U32: Final = 0xFFFF_FFFF
OWNER: Final = "XENBUS"

RANGES_MAX: Final = 9
U64: Final = (1 << 64) - 1
# By is_32bit, in shared_info: the pending words, the mask words, the bytes of either.
EVTCHN_BITS: Final = {
    False: (offsetof("shared_info", "evtchn_pending"), offsetof("shared_info", "evtchn_mask"), 512),
    True: (
        offsetof("shared_info_x86_32", "evtchn_pending"),
        offsetof("shared_info_x86_32", "evtchn_mask"),
        128,
    ),
}
SELECTOR: Final = {
    False: offsetof("vcpu_info", "evtchn_pending_sel"),
    True: offsetof("vcpu_info_x86_32", "evtchn_pending_sel"),
}

Section = Callable[["XenBus", bool], Iterator[str]]


def address(pfn: int) -> str:
    """PHYSICAL_ADDRESS of a page, as the drivers print one: high and low half."""
    at = pfn * PAGE_SIZE
    return f"{at >> 32:08x}.{at & U32:08x}"


def module_of(callback: object) -> str:
    """ModuleLookup: where a callback is from, `module + function`; a task's has its name."""
    task = getattr(callback, "__self__", None)
    if isinstance(task, Task):
        return f"{module_of(task.run)} ({task.name})"
    if isinstance(callback, partial):
        callback = callback.func
    module = getattr(callback, "__module__", None) or type(callback).__module__
    name = getattr(callback, "__qualname__", None) or type(callback).__qualname__
    return f"{module.removeprefix('xenpv.')} + {name}"


def stream(prod: int, cons: int, size: int) -> str:
    """Bytes of a ring that its consumer has not taken."""
    there = (prod - cons) & U32
    return f"{there} not taken" if there <= size else "WRONG: more than the ring holds"


# The sections, in the drivers' order


def suspend(bus: XenBus, _crashing: bool) -> Iterator[str]:
    """The count; EARLY, then LATE callbacks."""
    yield f"Count = {bus.suspend.count}"
    for phase in SuspendPhase:
        for handle in bus.suspend.callbacks(phase):
            yield f"{phase.name}: {module_of(handle.function)} ({handle.owner})"


def range_set(bus: XenBus, _crashing: bool) -> Iterator[str]:
    """Per set its name and first ranges, `*` at the one last looked at."""
    if not bus.range_set.sets:
        yield "NONE"
    for one in bus.range_set.sets:
        ranges = one.ranges()
        yield f"- {one.name}: {len(ranges) or 'EMPTY'}"
        for at, (first, last) in enumerate(ranges[:RANGES_MAX]):
            cursor = "*" * (at == one.cursor)
            yield f"  {{{first & U64:016x} - {last & U64:016x}}}{cursor}"


def shared_info(bus: XenBus, crashing: bool) -> Iterator[str]:
    """Address; per CPU its upcall; words that have a bit which is pending, or not masked."""
    page = bus.shared_info.page
    if page is None:
        yield "NONE"
        return
    yield f"Address = {address(page.pfn)}"
    if crashing:
        return
    domain, is_32bit = bus.domain, bus.domain.is_32bit
    for vcpu in range(domain.processors):
        if not page.has_vcpu_info(vcpu):
            yield f"CPU {vcpu}: no vcpu_info"
            continue
        pfn, at = page.vcpu_info_at(vcpu)
        pending = domain.load32(pfn, at) & 0xFF
        selector = _word(bus, pfn, at + SELECTOR[is_32bit], 4 if is_32bit else 8)
        yield f"CPU {vcpu}: PENDING = {pending:02x} SELECTOR = {selector:016x}"
    first, masks, size = EVTCHN_BITS[is_32bit]
    width = 4 if is_32bit else 8
    for word in range(size // width):
        pending = _word(bus, page.pfn, first + word * width, width)
        unmasked = ~_word(bus, page.pfn, masks + word * width, width) & ((1 << 8 * width) - 1)
        if pending or unmasked:
            yield f"WORD[{word:02x}]: PENDING = {pending:016x} UNMASKED = {unmasked:016x}"


def _word(bus: XenBus, pfn: int, offset: int, width: int) -> int:
    load = bus.domain.load32
    low = load(pfn, offset)
    return low if width == 4 else low | load(pfn, offset + 4) << 32


def cache(bus: XenBus, _crashing: bool) -> Iterator[str]:
    """Per cache: how much there is, and the most that there was."""
    if not bus.cache.caches:
        yield "NONE"
    for one in bus.cache.caches:
        yield (
            f"- {one.name}: Total = {one.total} Reservation = {one.reservation}"
            f" Objects = {one.objects}/{one.objects_max}"
            f" Slabs = {len(one.slabs)}/{one.slabs_max}"
        )


def evtchn(bus: XenBus, crashing: bool) -> Iterator[str]:
    """Per channel: port, owner, flags and bits; its other end; its count."""
    channels = bus.evtchn.channels()
    if channels:
        yield f"EVENT CHANNELS ({'FIFO' if bus.evtchn.is_fifo else '2-level'}):"
    for channel in channels:
        flags = ["AUTO-MASK"] * channel.auto_mask + ["ACTIVE"] * channel.active
        if not crashing and channel.active:
            flags += _bits(bus, channel.port)
        owner = module_of(channel.callback)
        yield " ".join([f"- ({channel.port:04x})", "BY", owner, *flags])
        yield f"  {_other_end(bus, channel)}, CPU = {channel.vcpu}, Count = {channel.count}"


def _bits(bus: XenBus, port: int) -> list[str]:
    kernel = bus.domain.kernel
    pending = lib.evtchn_is_pending(kernel, port) == 1
    masked = lib.evtchn_is_masked(kernel, port) == 1
    return ["PENDING"] * pending + ["MASKED"] * masked


def _other_end(bus: XenBus, channel: Channel) -> str:
    """Its type, and what EVTCHNOP_status says is bound to it."""
    kind = channel.type.name
    if not channel.active:
        return kind
    try:
        status = bus.domain.evtchn.status(channel.port)
    except HypercallError:
        return f"{kind}: Xen has no such port"
    if status.status is EVTCHNSTAT.closed:
        return f"{kind}: closed at Xen"
    if channel.type is ChannelType.VIRQ:
        return f"{kind}: Index = {status.virq}"
    if status.status is EVTCHNSTAT.interdomain:
        return f"{kind}: RemoteDomain = {status.remote_domid} RemotePort = {status.remote_port}"
    return f"{kind}: RemoteDomain = {status.remote_domid}, nobody bound it"


def gnttab(bus: XenBus, _crashing: bool) -> Iterator[str]:
    """Address of each frame; how many references are out."""
    table = bus.gnttab
    for index, pfn in enumerate(table.frame_pfns):
        yield f"FRAME[{index}]: Address = {address(pfn)}"
    yield f"REFERENCES: {table.permitted} out"
    for one in table.caches:
        yield f"- {one.cache.name}: {one.cache.objects} out or kept"


def store(bus: XenBus, crashing: bool) -> Iterator[str]:
    """Address and indices of the ring, what is open."""
    interface = bus.store
    yield f"Address = {address(interface.pfn)}"
    if not crashing:
        load, pfn = bus.domain.load32, interface.pfn
        req_cons, req_prod, rsp_cons, rsp_prod = (
            load(pfn, at) for at in (REQ[2], REQ[3], RSP[2], RSP[3])
        )
        taken = stream(req_prod, req_cons, RING_SIZE)
        yield f"req_cons = {req_cons:08x} req_prod = {req_prod:08x} ({taken})"
        taken = stream(rsp_prod, rsp_cons, RING_SIZE)
        yield f"rsp_cons = {rsp_cons:08x} rsp_prod = {rsp_prod:08x} ({taken})"
    events = interface.channel.count
    yield f"Events = {events} Requests = {interface.requests} Dropped = {interface.dropped}"
    if interface.broken:
        yield f"BROKEN: {interface.broken}"
    yield from _open_in_store(bus)


def _open_in_store(bus: XenBus) -> Iterator[str]:
    buffers = bus.store.buffers()
    if buffers:
        yield "BUFFERS:"
    for buffer in buffers:
        yield f"- {len(buffer.data)} bytes"
    watches = bus.store.watches()
    if watches:
        yield "WATCHES:"
    for watch in watches:
        state = "EXPIRED" if watch.expired else "ACTIVE"
        due = " DUE" if watch.task.queued or watch.task.due else ""
        yield f"- ({watch.id:04X}) ON {watch.path} BY {module_of(watch.task.run)} {state}{due}"
    transactions = bus.store.transactions()
    if transactions:
        yield "TRANSACTIONS:"
    for transaction in transactions:
        yield f"- ({transaction.id:08X}) {'EXPIRED' if transaction.expired else 'ACTIVE'}"


def console(bus: XenBus, crashing: bool) -> Iterator[str]:
    """Address and indices of the page, wakeups."""
    interface = bus.console
    if interface.channel is None:
        yield "NONE"
        return
    yield f"Address = {address(interface.pfn)}"
    if not crashing:
        at = interface.indices()
        taken = stream(at["out_prod"], at["out_cons"], OUT_SIZE)
        yield f"out_cons = {at['out_cons']:08x} out_prod = {at['out_prod']:08x} ({taken})"
        taken = stream(at["in_prod"], at["in_cons"], IN_SIZE)
        yield f"in_cons = {at['in_cons']:08x} in_prod = {at['in_prod']:08x} ({taken})"
    yield f"Events = {interface.events} Dropped = {interface.dropped}"
    if interface.broken:
        yield f"BROKEN: {interface.broken}"
    if interface.wakeups:
        yield "WAKEUPS:"
    for wakeup in interface.wakeups:
        yield f"- {module_of(wakeup.task.run)}"


def fdo(bus: XenBus, _crashing: bool) -> Iterator[str]:
    """Per VIRQ: name, CPU, count; then watchdog, balloon, who keeps it from a suspend, children."""
    virq = bus.debug_virq.virq
    for one in [*([] if virq is None else [virq]), *bus.watchdog.timers]:
        yield f"VIRQ {one.name}: CPU = {one.vcpu} Count = {one.count}"
    if bus.watchdog.id:
        yield f"WATCHDOG: {bus.watchdog.timeout_s} s, Pats = {bus.watchdog.pats}"
    balloon, thread = bus.balloon, bus.balloon_thread
    if balloon is not None and thread is not None:
        yield f"BALLOON: {thread.state.name} Size = {balloon.size} Target = {balloon.target}"
    yield f"BALLOON/SUSPEND: held by {bus.suspend.mutex.owner or 'NOBODY'}"
    for name, pdo in bus.pdos.items():
        yield f"PDO {name}: {pdo.state.name}"


STORE: Final = "xenbus|STORE"
# The prefix, the section.
SECTIONS: Final[Sequence[tuple[str, Section]]] = (
    ("xenbus|SUSPEND", suspend),
    ("xenbus|RANGE_SET", range_set),
    ("xenbus|EVTCHN", evtchn),
    ("xenbus|SHARED_INFO", shared_info),
    ("xenbus|CACHE", cache),
    ("xenbus|GNTTAB", gnttab),
    (STORE, store),
    ("xenbus|CONSOLE", console),
    ("xenbus|FDO", fdo),
)


class Dump:
    """The sections of one bus, registered with its DEBUG interface while it is in D0."""

    def __init__(self, bus: XenBus) -> None:
        self.bus = bus
        self.handles: list[DebugCallback] = []

    def start(self) -> None:
        """D0: before any driver registers."""
        for prefix, section in SECTIONS:
            callback = partial(self._print, section)
            self.handles.append(self.bus.debug.register(prefix, callback, OWNER))

    def stop(self) -> None:
        """D3."""
        for handle in self.handles:
            self.bus.debug.deregister(handle)
        self.handles.clear()

    def print_store(self) -> None:
        """STORE's section alone, as the store's watchdog wants it. Nothing in D3."""
        for handle in self.handles:
            if handle.prefix == STORE:
                self.bus.debug.trigger(handle)

    def _print(self, section: Section, crashing: bool) -> None:
        print_lines(self.bus, section(self.bus, crashing))


def print_lines(bus: XenBus, lines: Iterable[str]) -> None:
    """To the dump, from inside a DEBUG callback."""
    for line in lines:
        bus.debug.printf(line)


# What the drivers above have in common


def ring_lines(
    name: str, ring: FrontRing | None, crashing: bool, *, posted: bool = False
) -> Iterator[str]:
    """A ring, and who keeps whom waiting: the indices of the page are not read in a crash.

    `posted`: requests are room for what the backend may have to say, not work for it.
    """
    if ring is None:
        yield f"{name}: NONE"
        return
    if crashing:
        free, flight = ring.free, ring.in_flight
        yield f"{name}: {flight} in flight, {free} free; {address(ring.pfns[0])}"
        return
    try:
        at = ring.indices()
    except HypercallError as error:
        yield f"{name}: its page is gone: {error}"
        return
    yield f"{name}: req_prod = {at.req_prod:08x} req_event = {at.req_event:08x}"
    yield f"{name}: rsp_prod = {at.rsp_prod:08x} rsp_event = {at.rsp_event:08x}"
    yield f"{name}: rsp_cons = {at.rsp_cons:08x}, {at.in_flight} of {at.size} in flight"
    if at.wrong:
        yield f"{name}: WRONG: {at.wrong}"
        return
    waits = f"{at.unanswered} posted and not used" if posted else _waits(at)
    yield f"{name}: {waits}; {at.responses} responses not taken by us"


def _waits(at: RingIndices) -> str:
    not_taken = at.not_taken
    if not_taken is None:
        return f"{at.unanswered} unanswered, the backend is at work"
    taken = at.unanswered - not_taken
    return f"{not_taken} not taken by the backend, {taken} taken and not answered"


def handshake_lines(handshake: Handshake) -> Iterator[str]:
    """Where both ends are as far as this one knows, and what it waits for."""
    seen = handshake.seen
    backend = f"backend {handshake.backend} last seen {state_text(seen)}"
    ours = state_text(handshake.state)
    yield f"state = {ours}; {backend if handshake.backend else 'no backend'}"
    if not handshake.goals:
        yield "no goal: it waits for nothing"
        return
    goal = handshake.goals[0]
    rows = dict(handshake.table[goal])
    if handshake.wrote is not None:
        rows |= handshake.table.get((goal, handshake.wrote), {})
    acts = [state.name for state, step in rows.items() if step is not Do.WAIT and state is not seen]
    yield f"goals = {', '.join(one.value for one in handshake.goals)}"
    yield f"waits for the backend to be one of {', '.join(acts)}"


def state_text(state: Seen) -> str:
    """CONNECTED(4)."""
    return f"{state.name}({state.value})" if isinstance(state, XenbusState) else state.name
