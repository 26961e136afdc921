"""Fault devices: what goes wrong around drivers that do everything right.

Each stands at a seam of one platform, asks `decide` whether something happens now, and does
nothing else. `decide(what, count)` is an index below `count`, and 0 is: all is well.

    def scenario(x):
        guest = x.platform().create(name="guest", disks=[Disk(image)])
        events = Events(guest.created.domain, x.decide)   # before the drivers start
        guest.start()
        ...

`Explorer.decide` makes faults part of the schedule: they shrink and replay as all else does.
`seeded` draws them from a seed, and under Hypothesis `lambda what, count: data.draw(
st.integers(0, count - 1))` does. What must survive each is said with it.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from xenpv.abi._kernel import lib
from xenpv.abi.gnttab import GNTST
from xenpv.errors import GrantError, HypercallError, LocalProtocolError
from xenpv.host.faultyimage import Fault as ImageFault
from xenpv.host.faultyimage import FaultyImage
from xenpv.host.xs import XsHandle
from xenpv.xen.evtchn_port import PortState

if TYPE_CHECKING:
    from xenpv.bus.gnttab import GnttabInterface
    from xenpv.host.image import Image
    from xenpv.platform import Platform
    from xenpv.store.connection import Connection
    from xenpv.testing.raw_front import RawGuest
    from xenpv.xen.domain import Domain
    from xenpv.xen.loop import Task

# An index below `count` for what is asked in words; 0: nothing happens.
Decide = Callable[[str, int], int]

NS_PER_MS: Final = 1_000_000
XS_TRANSACTION_END: Final[int] = lib.XS_TRANSACTION_END


def seeded(seed: int, one_in: int = 4) -> Decide:
    """Decisions of a seed: something happens once in `one_in` times, whatever it is."""
    draw = random.Random(seed).random

    def decide(_what: str, count: int) -> int:
        if count < 2 or draw() * one_in >= 1:
            return 0
        return 1 + int(draw() * (count - 1))

    return decide


class Device:
    """Something at a seam. `fired` says what it did, oldest first; `close` takes it away."""

    def __init__(self, decide: Decide) -> None:
        self.decide = decide
        self.fired: list[str] = []
        self._replaced: list[tuple[Any, str, Callable[..., Any], Any]] = []

    def happens(self, what: str, *how: str) -> str:
        """Which of `how` happens to `what`, "" for none."""
        index = self.decide(f"{what}: {', '.join(how)}", len(how) + 1)
        if not index:
            return ""
        self.fired.append(f"{what}: {how[index - 1]}")
        return how[index - 1]

    def replace(self, owner: Any, method: str, by: Callable[..., Any]) -> Callable[..., Any]:
        """Put `by` in the place of a method of one object; the method."""
        found: Callable[..., Any] = getattr(owner, method)
        self._replaced.append((owner, method, by, vars(owner).get(method)))
        setattr(owner, method, by)
        return found

    def close(self) -> None:
        """All is well from now on; a second call does nothing.

        Under another device at the same seam it stays in place, and does nothing.
        """
        self.decide = _never
        for owner, method, by, before in self._replaced:
            if vars(owner).get(method) is not by:
                continue
            if before is None:
                delattr(owner, method)
            else:
                setattr(owner, method, before)
        self._replaced.clear()


def _never(_what: str, _count: int) -> int:
    return 0


class Events(Device):
    """Events that `domain` sends come late, twice, or not at all.

    In it before the domain's drivers start, since they keep the call. What is bound then (the
    store's port, the console's) is spared: their protocols survive no loss. XenVif looks every
    30 s for packets that nobody completes, so `ALL` may happen to its events and its netback's.
    XenVbd looks only for answers that came while it took none, Linux' frontends for nothing.
    """

    HOW: Final = ("late", "twice")
    ALL: Final = (*HOW, "lost")

    def __init__(
        self,
        domain: Domain,
        decide: Decide,
        *,
        how: Sequence[str] = HOW,
        late_ns: int = 5 * NS_PER_MS,
    ) -> None:
        super().__init__(decide)
        self.domain = domain
        self.how = tuple(how)
        self.late_ns = late_ns
        free = (PortState.FREE, PortState.RESERVED)
        self._spared = {port.number for port in domain.evtchn.ports if port.state not in free}
        self._send = self.replace(domain.evtchn, "send", self.send)

    def send(self, port: int) -> None:
        """EVTCHNOP_send, or what becomes of it."""
        what = "" if port in self._spared else self.happens(f"event of port {port}", *self.how)
        if what in ("", "twice"):
            self._send(port)
        if what in ("late", "twice"):
            task = self.domain.task(f"late event {port}", lambda: None)
            timer = self.domain.timer(task)

            def arrive() -> None:
                self.domain.forget_timer(timer)
                if self.domain.evtchn.ports[port].state is PortState.INTERDOMAIN:
                    self._send(port)

            task.run = arrive
            timer.arm(self.late_ns)


class Slow(Device):
    """Tasks that are woken and do not run before some time has passed: a peer that is slow.

    What must survive it: everything, as long as it is below the drivers' own timeouts.
    """

    def __init__(
        self, domain: Domain, name: str, decide: Decide, *, delay_ns: int = 20 * NS_PER_MS
    ) -> None:
        """Those tasks of `domain` that have `name` in theirs: "vbd5", "upcall"."""
        super().__init__(decide)
        self.domain = domain
        self.delay_ns = delay_ns
        self._slowed: list[tuple[Task, Callable[[], object]]] = []
        for task in list(domain.tasks):
            if name in task.name:
                self._slow(task)
        if not self._slowed:
            raise LocalProtocolError(f"domain {domain.domid} has no task of the name {name!r}")

    def _slow(self, task: Task) -> None:
        run = task.run
        waits, may_run = False, False

        def later() -> None:
            nonlocal waits, may_run
            waits, may_run = False, True
            task.wake()

        timer = self.domain.timer(self.domain.task(f"delay of {task.name}", later))

        def slowly() -> object:
            nonlocal waits, may_run
            if waits:
                return None  # woken again meanwhile
            if not may_run and self.happens(task.name, "slow"):
                waits = True
                timer.arm(self.delay_ns)
                return None
            may_run = False
            return run()

        task.run = slowly
        self._slowed.append((task, run))

    def close(self) -> None:
        for task, run in self._slowed:
            if not task.held:
                task.run = run
        self._slowed.clear()
        super().close()


class Maps(Device):
    """Grant maps of `domain` fail: out of maptrack, or whatever else Xen finds.

    What must survive it: the mapper (XSA-361, XSA-367); the device is refused, or one packet is.
    """

    HOW: Final = (GNTST.general_error, GNTST.no_space, GNTST.eagain)

    def __init__(self, domain: Domain, decide: Decide) -> None:
        super().__init__(decide)
        self._map = self.replace(domain.gnttab, "map", self.map)

    def map(self, domid: int, ref: int, pfn: int, **options: Any) -> int:
        """GNTTABOP_map_grant_ref, or its failure."""
        how = self.happens(f"map of reference {ref}", *(one.name for one in self.HOW))
        if how:
            status = int(GNTST[how])
            raise GrantError(status, "a fault of the kit's", operation="GNTTABOP_map_grant_ref")
        handle: int = self._map(domid, ref, pfn, **options)
        return handle


class Grants(Device):
    """References of a raw guest that are none any more when the backend comes to use them."""

    HOW: Final = ("revoked", "read-only", "another domain's")

    def __init__(self, guest: RawGuest, decide: Decide) -> None:
        super().__init__(decide)
        self.guest = guest

    def spoil(self, ref: int, pfn: int) -> str:
        """Perhaps. What happened to it, one of HOW, or "": then it is a good one."""
        how = self.happens(f"reference {ref}", *self.HOW)
        flags = lib.GTF_permit_access
        if how == "revoked":
            self.guest.set_grant(ref, flags=0)
        elif how == "read-only":
            self.guest.set_grant(ref, flags=flags | lib.GTF_readonly, pfn=pfn)
        elif how:
            self.guest.set_grant(ref, flags=flags, pfn=pfn, domid=self.guest.domid)
        return how


class Conflicts(Device):
    """Commits of one client's transactions fail with EAGAIN, for somebody wrote what they saw.

    At most `most` times in all: XenVif gives up after 10 tries of one. What must survive it:
    the client tries again, and nothing it wrote is lost.
    """

    def __init__(
        self, platform: Platform, client: Connection, decide: Decide, *, most: int = 9
    ) -> None:
        super().__init__(decide)
        self.most = most
        self._client = client
        self._rival = XsHandle(platform.xenstored.connect_local("rival"))
        self._handlers = client.handlers
        commit, in_transaction = self._handlers[XS_TRANSACTION_END]

        def end(server: Any, conn: Any, tx: Any, payload: bytes) -> Any:
            if payload[:1] == b"T" and tx is not None and len(self.fired) < self.most:
                self._interfere(tx)
            return commit(server, conn, tx, payload)

        client.handlers = {**self._handlers, XS_TRANSACTION_END: (end, in_transaction)}

    def _interfere(self, tx: Any) -> None:
        """Write a node that it has touched once more, with the value that it has."""
        for path in tx.accesses:
            value = self._rival.read(path.decode())
            if value is not None:
                if self.happens(f"commit that touched {path.decode()}", "somebody writes there"):
                    self._rival.write(path.decode(), value)
                return

    def close(self) -> None:
        self._client.handlers = self._handlers
        super().close()


class WatchFlood(Device):
    """Somebody writes a node again and again, each time what it has: a storm of watch events.

    What must survive it: xenstored and whoever watches coalesce or bound what waits (XSA-349).
    """

    SIZES: Final = (1, 16, 256)

    def __init__(self, platform: Platform, decide: Decide) -> None:
        super().__init__(decide)
        self._xs = XsHandle(platform.xenstored.connect_local("flood"))

    def strike(self, path: str) -> int:
        """Perhaps; how many times it wrote. Nothing happens to a node that is not there."""
        value = self._xs.read(path)
        how = "" if value is None else self.happens(path, *(f"{one} times" for one in self.SIZES))
        count = int(how.split()[0]) if how else 0
        for _ in range(count):
            assert value is not None
            self._xs.write(path, value)
        return count


class UnreliableImage(FaultyImage):
    """A disk of the host's whose operations fail: whole, half done, or for want of space.

    What must survive it: the request ends with an error, and in the image each sector is as it
    was or as it was written.
    """

    def __init__(self, image: Image, decide: Decide) -> None:
        super().__init__(image)
        self._device = Device(decide)

    @property
    def fired(self) -> list[str]:
        return self._device.fired

    def _fault(self, operation: str, offset: int, length: int) -> ImageFault | None:
        how = self._device.happens(f"{operation} of {length} at {offset}", "EIO", "half", "ENOSPC")
        if not how:
            return super()._fault(operation, offset, length)
        error = errno.ENOSPC if how == "ENOSPC" else errno.EIO
        done = length // 2 // self.sector_size * self.sector_size if how == "half" else 0
        return ImageFault(operation=operation, error=error, done=done, times=1)


class Restart(Device):
    """A backend's driver goes and comes again, between any two steps of the platform.

    As sysfs' unbind and bind: nobody asks its frontend to close. What must survive it: the
    frontend sees its backend begin anew, and every request ends once.
    """

    def __init__(
        self, platform: Platform, kind: str, domid: int, devid: int, decide: Decide, *, steps: int
    ) -> None:
        """It may happen at each of `steps` runs of a task of dom0, once `start` was called."""
        super().__init__(decide)
        self._platform = platform
        self._key = kind, domid, devid
        self._steps = steps
        self.task: Task = platform.dom0.task(f"restart of {kind}{domid}", self._step)

    def start(self) -> None:
        self.task.wake()

    def _step(self) -> None:
        self._steps -= 1
        if self._platform.backends.device(*self._key) is None:
            return
        if self.happens("{}{}.{}".format(*self._key), "restarted"):
            self._platform.backends.rebind(*self._key)
        if self._steps > 0:
            self.task.wake()


class Hoard(Device):
    """Somebody else in a domain has all that there was, but a few: pages, ports or references.

    `take` is when it happens, `close` gives everything back. What must survive it: whoever asks
    for more is refused, and goes on when there is something again.
    """

    LEFT: Final = (0, 1, 2, 8)

    def __init__(self, domain: Domain, decide: Decide) -> None:
        super().__init__(decide)
        self.domain = domain
        self._back: list[Callable[[], object]] = []

    def _left(self, what: str) -> int:
        """How many are left; -1: nothing happens."""
        how = self.happens(what, *(f"{one} left" for one in self.LEFT))
        return int(how.split()[0]) if how else -1

    def pages(self) -> None:
        """Free pages of the domain. Perhaps."""
        left = self._left(f"pages of domain {self.domain.domid}")
        pool = self.domain.pages
        if left < 0 or pool.free_pages <= left:
            return
        taken = pool.alloc_pages(pool.free_pages - left)

        def back() -> None:
            for pfn in taken:
                pool.free(pfn)

        self._back.append(back)

    def ports(self) -> None:
        """Event channels that the domain could still open. Perhaps."""
        left = self._left(f"ports of domain {self.domain.domid}")
        if left < 0:
            return
        evtchn = self.domain.evtchn
        most, free = evtchn.max_port, (PortState.FREE, PortState.RESERVED)
        evtchn.max_port = max(p.number for p in evtchn.ports if p.state not in free) + left
        self._back.append(lambda: setattr(evtchn, "max_port", most))

    def references(self, gnttab: GnttabInterface) -> None:
        """Entries of the domain's grant table that nobody has. Perhaps."""
        left = self._left(f"references of domain {self.domain.domid}")
        if left < 0:
            return
        table, taken = self.domain.gnttab, []
        most, table.max_frames = table.max_frames, len(gnttab.frame_pfns)
        try:
            while True:
                taken += gnttab.reserve(1)
        except HypercallError:
            pass
        for ref in taken[:left]:
            gnttab.revoke_foreign_access(ref)

        def back() -> None:
            table.max_frames = most
            for ref in taken[left:]:
                gnttab.revoke_foreign_access(ref)

        self._back.append(back)

    def close(self) -> None:
        for back in self._back:
            back()
        self._back.clear()
        super().close()
