"""End: all that a driver under test has of its machine, whichever side of a device it is.

    class MyBackend:
        def __init__(self, end, image):
            self.end = end
            self.image = image

        def probe(self):
            self.end.switch_state(XenbusState.INIT_WAIT)

        def frontend_changed(self, state):
            if state is XenbusState.INITIALISED:
                page = self.end.map(self.end.peer_number("ring-ref"))
                self.ring = self.end.back_ring([page], 112, 16)
                self.port = self.end.bind_port(self.end.peer_number("event-channel"), self.event)
                self.end.switch_state(XenbusState.CONNECTED)

Pages are named by their number in the end's own domain (pfn). Every access goes through the
access hook: it can be preempted, changed by the peer before it is made, and counted. What is
not the end's it cannot touch: that is a UserEndError which names the line that tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from xenpv.abi._kernel import lib
from xenpv.abi.xenbus import XenbusState
from xenpv.back.ring import BackRing
from xenpv.back.xenbus import number_of, state_of
from xenpv.bus.ring import FrontRing
from xenpv.errors import GrantError
from xenpv.testing.ends.guard import PEER, Guard
from xenpv.testing.ends.held import Held, Holding
from xenpv.testing.ends.machine import Machine
from xenpv.testing.ends.store import EndStore
from xenpv.view.rings import kind_of
from xenpv.xen.domain import PAGE_SIZE
from xenpv.xen.gnttab import CopySide
from xenpv.xen.loop import Timer


class EndDevice(Protocol):
    """The device that an end is of, as its bus has it."""

    kind: str
    devid: int
    path: str
    broken: str
    state: XenbusState

    @property
    def name(self) -> str: ...

    @property
    def peer_path(self) -> str: ...

    @property
    def peer_domid(self) -> int: ...

    def switch_state(self, state: XenbusState) -> None: ...

    def fatal(self, why: str) -> None: ...


class EndTimer:
    """A handler that is due at a moment of virtual time, once."""

    __slots__ = ("_end", "_timer")

    def __init__(self, end: End, timer: Timer) -> None:
        self._end = end
        self._timer = timer

    def cancel(self) -> None:
        """It is not called any more; nothing happens if it was."""
        self._end.cancel(self._timer)


class End:
    """One driver's machine. `kind` is vbd or vif, `path` the device's directory in the store.

    Handlers are called by the loop, one at a time, without arguments unless it is said here.
    A handler returns; it never waits. A PeerProtocolError that comes out of one is `fatal`.
    """

    def __init__(self, machine: Machine, device: EndDevice, guard: Guard) -> None:
        self._machine = machine
        self._domain = machine.domain
        self._device = device
        self._guard = guard
        self._held = Held(guard)
        self._aside: list[tuple[int, int]] = []  # pfn, reference: what the peer holds on to
        self._bounce = 0  # a page for copies, once one was needed
        self.store: EndStore = EndStore(machine.store, self._held, self._guarded)

    def __repr__(self) -> str:
        return f"<End {self._device.name} of domain {self.domid}>"

    # who it is

    @property
    def kind(self) -> str:
        return self._device.kind

    @property
    def devid(self) -> int:
        return self._device.devid

    @property
    def domid(self) -> int:
        return self._domain.domid

    @property
    def peer_domid(self) -> int:
        return self._device.peer_domid

    # the device's keys and states

    @property
    def path(self) -> str:
        """The device's own directory."""
        return self._device.path

    @property
    def peer_path(self) -> str:
        """The directory of the device on the other end."""
        return self._device.peer_path

    def read_key(self, key: str) -> str | None:
        return self.store.read(f"{self.path}/{key}")

    def number(self, key: str, default: int = 0) -> int:
        """A key of its own as a decimal number."""
        return number_of(self.read_key(key), default)

    def write_key(self, key: str, value: str) -> None:
        self.store.write(f"{self.path}/{key}", value)

    def write_keys(self, keys: Mapping[str, str]) -> None:
        """In one transaction."""
        self.store.transaction(lambda tx_id: self.store.write_all(self.path, keys, tx_id))

    def peer_key(self, key: str) -> str | None:
        """What the peer wrote: worth no trust."""
        return self.store.read(f"{self.peer_path}/{key}")

    def peer_number(self, key: str, default: int = 0) -> int:
        """A key of the peer's as a decimal number of at most 64 bits."""
        return number_of(self.peer_key(key), default)

    @property
    def state(self) -> XenbusState:
        """What it wrote last."""
        return self._device.state

    @property
    def peer_state(self) -> XenbusState:
        """What the peer's `state` says; UNKNOWN for anything that is no state."""
        return state_of(self.peer_key("state"))

    def switch_state(self, state: XenbusState) -> None:
        """xenbus_switch_state: written only on a change, and if the node is still there."""
        if state in (XenbusState.INITIALISING, XenbusState.INIT_WAIT):
            self._device.broken = ""
        self._device.switch_state(state)

    @property
    def broken(self) -> str:
        """Why `fatal` was called; "" again once it begins anew (Initialising, InitWait)."""
        return self._device.broken

    def fatal(self, why: str) -> None:
        """xenbus_dev_fatal: the error node, then Closing. Handlers of ports, watches and timers
        are not called any more; the peer's states are told as ever.
        """
        self._device.fatal(why)

    # memory

    def page(self, count: int = 1) -> int:
        """First pfn of `count` adjacent pages, with what was in them. HypercallError(ENOMEM)."""
        pfn = self._domain.pages.alloc(count)
        for page in range(pfn, pfn + count):
            self._held.take("page", page, None, f"page {page:#x}")
        return pfn

    def free(self, pfn: int, count: int = 1) -> None:
        """Give pages back. One that is still granted is refused: the peer would write into it."""
        granted = {one.value: ref for ref, one in self._held.each("reference")}
        for page in range(pfn, pfn + count):
            if page in granted:
                self._guard.refuse(
                    f"page {page:#x} is freed while reference {granted[page]} is out"
                )
            self._held.drop("page", page)
            self._domain.pages.free(page)

    def read(self, pfn: int, offset: int, size: int) -> bytes:
        """`size` bytes, running on into following pages."""
        self._check(pfn, offset, size, "read")
        return self._domain.read(pfn, offset, size)

    def write(self, pfn: int, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._check(pfn, offset, len(data), "write")
        self._domain.write(pfn, offset, data)

    def load32(self, pfn: int, offset: int) -> int:
        """One aligned u32, read once."""
        self._check(pfn, offset, 4, "load")
        return self._domain.load32(pfn, offset)

    def store32(self, pfn: int, offset: int, value: int) -> None:
        """One aligned u32, written once."""
        self._check(pfn, offset, 4, "store")
        self._domain.store32(pfn, offset, value)

    def _check(self, pfn: int, offset: int, size: int, what: str) -> None:
        """Its own pages and what it has mapped, no others; what it mapped read-only it reads."""
        held, writes = self._held, what in ("write", "store")
        if offset < 0 or size < 0 or (what in ("load", "store") and offset % 4):
            self._guard.refuse(f"{what} of {size} bytes at pfn {pfn:#x}, offset {offset}")
        for page in range(pfn + offset // PAGE_SIZE, pfn + (offset + size - 1) // PAGE_SIZE + 1):
            if held.has("page", page):
                continue
            if not held.has("map", page):
                self._guard.refuse(
                    f"{what} of {size} bytes at pfn {pfn:#x}+{offset:#x}: page {page:#x} is none "
                    "of this end's"
                )
            if writes and held.find("map", page)[1]:
                self._guard.refuse(f"{what} at pfn {page:#x}, which is mapped read-only")

    # grants

    def grant(self, pfn: int, *, readonly: bool = False) -> int:
        """A reference by which the peer may map or copy a page of this end's.

        HypercallError(ENOSPC): the table is full.
        """
        self._held.find("page", pfn)
        ref = self._machine.gnttab.permit_foreign_access(self.peer_domid, pfn, readonly=readonly)
        self._held.take("reference", ref, pfn, f"reference {ref} to page {pfn:#x}")
        return ref

    def revoke(self, ref: int) -> bool:
        """Take a reference back; False while the peer has it mapped, and it stays this end's."""
        self._held.find("reference", ref)
        if not self._machine.gnttab.revoke_foreign_access(ref):
            return False
        self._held.drop("reference", ref)
        return True

    def share(self, data: bytes = b"", *, readonly: bool = False) -> tuple[int, int]:
        """A page with `data` and zeros behind it, and the peer's reference to it: pfn, reference.

        Nothing else that was in the page is seen by the peer (XSA-403).
        """
        pfn = self.page()
        self.write(pfn, 0, data.ljust(PAGE_SIZE, b"\0"))
        return pfn, self.grant(pfn, readonly=readonly)

    def unshare(self, pfn: int, ref: int) -> None:
        """Take back what `share` gave. What the peer has mapped still is set aside, reference and
        page, and is given back when it is not (XSA-396): at a later `unshare`, or at the end.
        """
        self._held.find("page", pfn)
        self._held.find("reference", ref)
        self._aside = [one for one in (*self._aside, (pfn, ref)) if not self._take_back(*one)]

    def _take_back(self, pfn: int, ref: int) -> bool:
        if not self.revoke(ref):
            return False
        self.free(pfn)
        return True

    def map(self, ref: int, *, readonly: bool = False) -> int:
        """Map a page of the peer's: its pfn here. GrantError."""
        holes = self._domain.holes
        pfn = holes.alloc()
        try:
            handle = self._domain.gnttab.map(self.peer_domid, ref, pfn, readonly=readonly)
        except (GrantError, OverflowError) as error:
            holes.free(pfn)
            if isinstance(error, OverflowError):
                # No guest can name such a reference: the peer's key has a number of its own making.
                raise GrantError(lib.GNTST_bad_gntref, f"{ref} is no reference") from error
            raise
        self._held.take("map", pfn, (handle, readonly), f"reference {ref}, mapped at pfn {pfn:#x}")
        return pfn

    def unmap(self, pfn: int) -> None:
        """Undo a `map`."""
        handle, _ = self._held.drop("map", pfn)
        self._domain.gnttab.unmap(handle, pfn)
        self._domain.holes.free(pfn)

    def copy_from(self, ref: int, offset: int, size: int) -> bytes:
        """GNTTABOP_copy out of a page of the peer's, at most to its end. GrantError."""
        local = CopySide(gmfn=self._copies())
        peer = CopySide(domid=self.peer_domid, ref=ref, offset=offset)
        self._copy(peer, local, size)
        return self._domain.read(self._bounce, 0, size)

    def copy_to(self, ref: int, offset: int, data: bytes | bytearray | memoryview) -> None:
        """GNTTABOP_copy into a page of the peer's, at most to its end. GrantError."""
        local = CopySide(gmfn=self._copies())
        if len(data) <= PAGE_SIZE:
            self._domain.write(self._bounce, 0, data)
        self._copy(local, CopySide(domid=self.peer_domid, ref=ref, offset=offset), len(data))

    def _copy(self, source: CopySide, dest: CopySide, size: int) -> None:
        try:
            self._domain.gnttab.copy_bytes(source, dest, size)
        except OverflowError as error:
            raise GrantError(lib.GNTST_bad_copy_arg, f"{error}") from error

    def _copies(self) -> int:
        if not self._bounce:
            self._bounce = self._domain.pages.alloc()
        return self._bounce

    # rings

    def back_ring(
        self, pfns: Sequence[int], request_size: int, response_size: int, *, kind: str = ""
    ) -> BackRing:
        """The backend's half of a ring over mapped pages. PeerProtocolError: no ring's indices.

        `kind`: what reports call it; "": what devices of its class have with such slots.
        """
        self._ring_pages(pfns)
        kind = kind or kind_of(self.kind, request_size, response_size)
        sizes = {"req_size": request_size, "rsp_size": response_size}
        return BackRing(self._domain, pfns, **sizes, kind=kind)

    def front_ring(
        self, pfns: Sequence[int], request_size: int, response_size: int, *, kind: str = ""
    ) -> FrontRing:
        """The frontend's half, initialised, over pages of its own.

        `kind`: what reports call it; "": what devices of its class have with such slots.
        """
        self._ring_pages(pfns)
        kind = kind or kind_of(self.kind, request_size, response_size)
        sizes = {"req_size": request_size, "rsp_size": response_size}
        return FrontRing(self._domain, pfns, **sizes, kind=kind)

    def _ring_pages(self, pfns: Sequence[int]) -> None:
        for pfn in pfns:
            self._check(pfn, 0, PAGE_SIZE, "write")

    # event channels

    def open_port(self, handler: Callable[[], object]) -> int:
        """EVTCHNOP_alloc_unbound for the peer; its events call `handler`. HypercallError."""
        return self._bind(self._domain.evtchn.alloc_unbound(self.peer_domid), handler)

    def bind_port(self, port: int, handler: Callable[[], object]) -> int:
        """EVTCHNOP_bind_interdomain to a port of the peer's: the local one. HypercallError.

        It is pending at once, so that `handler` is called for what came before.
        """
        return self._bind(self._domain.evtchn.bind_interdomain(self.peer_domid, port), handler)

    def _bind(self, port: int, handler: Callable[[], object]) -> int:
        self._machine.ports.bind(port, f"{self._device.name} port", self._guarded(handler))
        self._held.take("port", port, None, f"event channel port {port}")
        return port

    def notify(self, port: int) -> None:
        """EVTCHNOP_send."""
        self._held.find("port", port)
        self._domain.evtchn.send(port)

    def mask(self, port: int) -> None:
        """Events stay pending until `unmask`."""
        self._held.find("port", port)
        self._domain.check(lib.evtchn_mask(self._domain.kernel, port))

    def unmask(self, port: int) -> None:
        """EVTCHNOP_unmask: what is pending is delivered."""
        self._held.find("port", port)
        self._domain.evtchn.unmask(port)

    def close_port(self, port: int) -> None:
        """EVTCHNOP_close; its handler is not called any more."""
        self._held.drop("port", port)
        self._machine.ports.unbind(port)
        self._domain.evtchn.close(port)

    # virtual time

    @property
    def now(self) -> int:
        """Virtual nanoseconds."""
        return self._domain.loop.now

    def after(self, ns: int, handler: Callable[[], object]) -> EndTimer:
        """Call `handler` so many virtual nanoseconds from now, once."""
        task = self._domain.task(f"{self._device.name} timer", lambda: None)
        timer = self._domain.timer(task)
        guarded = self._guarded(handler)

        def fire() -> None:
            self.cancel(timer)
            guarded()

        task.run = fire
        self._held.take("timer", id(timer), timer, "a timer")
        timer.arm(ns)
        return EndTimer(self, timer)

    def soon(self, handler: Callable[[], object]) -> EndTimer:
        """Call `handler` in a task of its own, after whatever else is due now or among it."""
        return self.after(0, handler)

    def cancel(self, timer: Timer) -> None:
        if self._held.has("timer", id(timer)):
            self._held.drop("timer", id(timer))
            self._domain.forget_timer(timer)

    # what the kit does with it

    def _guarded(self, handler: Callable[..., object]) -> Callable[..., object]:
        """What the loop may call in the place of a user's handler."""

        def run(*arguments: Any) -> None:
            if not self._device.broken:
                self._guard.call(handler, *arguments, breaks=self.fatal, unfit=PEER)

        return run

    def leftovers(self) -> list[str]:
        """What it holds now, a line each, with where it took that."""
        return [f"{one.place}: {one.what}" for one in self._left()]

    def _left(self) -> list[Holding]:
        aside = [("page", pfn) for pfn, _ in self._aside]
        aside += [("reference", ref) for _, ref in self._aside]
        return [one for number, one in self._held.each() if (one.kind, number) not in aside]

    def end(self) -> None:
        """Its device is gone: what it left behind is given back, and is the driver's failure."""
        self._aside = [one for one in self._aside if not self._take_back(*one)]
        left = self._left()
        release(self)
        if left and self._guard.failed is None:
            lines = "".join(f"\n  {one.place}: {one.what}" for one in left)
            self._guard.fail(left[0].place, f"{self._device.name} is closed, and left:{lines}")


def release(end: End) -> None:
    """Everything that an end still holds goes back to its domain."""
    held, domain = end._held, end._domain
    for number, one in held.each("timer"):
        held.drop("timer", number)
        domain.forget_timer(one.value)
    for _number, one in held.each("watch"):
        end.store.unwatch(one.value)
    for port, _one in held.each("port"):
        end.close_port(port)
    for pfn, _one in held.each("map"):
        end.unmap(pfn)
    kept = [one.value for ref, one in held.each("reference") if not end.revoke(ref)]
    for pfn, _one in held.each("page"):
        if pfn not in kept:
            end.free(pfn)
    if end._bounce:
        domain.pages.free(end._bounce)
        end._bounce = 0
