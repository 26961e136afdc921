"""One ring of a disk while it is connected: its pages, its port and its thread.

struct xen_blkif_ring with xenblkd; what becomes of requests in flight when it goes is the
profile's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from xenpv.back.blkif import Abi
from xenpv.back.blkkeys import RingKeys
from xenpv.back.blkprofile import Pending, Settings
from xenpv.back.blkring import BlkRing, Bounce, Vbd
from xenpv.back.ring import BackRing
from xenpv.back.xenbus import Device
from xenpv.errors import GrantError, HypercallError, PeerProtocolError
from xenpv.xen.domain import Domain
from xenpv.xen.loop import NS_PER_MS, NS_PER_S, Task, Timer

if TYPE_CHECKING:
    from xenpv.back.blkserver import BlkServer

# xen_irq_lateeoi: the second event without work in a row is acknowledged a tick late (HZ=250),
# each one after it twice as late, at most a second.
TICK_NS: Final = 4 * NS_PER_MS
DELAY_SHIFT_MAX: Final = 8
DELAY_MAX_NS: Final = NS_PER_S

Mapped = list[tuple[int, int]]  # (handle, pfn) of each page


class Owner(Protocol):
    """Whose queue it is."""

    device: Device
    bounce: Bounce
    settings: Settings
    vbd: Vbd | None

    def features_lost(self, names: list[str]) -> None:
        """The image cannot do what these keys offer."""

    def ring_broken(self, queue: Queue, why: str) -> None:
        """The frontend broke the ring: it is not looked at again."""

    def queue_idle(self, queue: Queue) -> None:
        """The last request of a queue that is stopped has ended."""


class Queue:
    """A mapped ring, and who serves it. `halted`: it is not looked at any more. `stopped`: its
    connection went, and what is in flight is still to end.
    """

    __slots__ = ("_timer", "driver", "halted", "mapped", "ring", "stopped", "task")
    task: Task

    def __init__(self, driver: Owner, ring: BlkRing | BlkServer, mapped: Mapped) -> None:
        self.driver = driver
        self.ring = ring
        self.mapped = mapped
        self.halted = False
        self.stopped = False
        self._timer: Timer | None = None  # to the end of a late interrupt

    def run(self) -> None:
        """One pass over the ring; the task is due again while there is more."""
        driver, ring = self.driver, self.ring
        if driver.vbd is None or self.halted:
            return
        try:
            more = ring.service(driver.vbd)
        except (PeerProtocolError, HypercallError) as error:
            self.halted = True
            driver.ring_broken(self, str(error))
            more = False
        if ring.lost:
            lost, ring.lost = ring.lost, []
            driver.features_lost(lost)
        if self.stopped:
            if self.halted or not ring.in_flight:
                self.release()
                driver.queue_idle(self)
        elif more:
            self.task.wake()
        elif ring.spurious > 1:
            self._defer(ring.spurious)

    def _defer(self, spurious: int) -> None:
        """The end of interrupt comes late, where events come without requests (XSA-332)."""
        delay = min(TICK_NS << min(spurious - 2, DELAY_SHIFT_MAX), DELAY_MAX_NS)
        domain = self.driver.device.domain
        if self._timer is None:
            self._timer = domain.timer(domain.task(f"{self.task.name}-eoi", self.task.release))
        if not self._timer.armed:
            self.task.hold()
            self._timer.arm(delay)

    def stop(self) -> bool:
        """The connection goes. True: nothing is in flight, and all is given back."""
        dropped = self.halted or self.driver.settings.profile.pending is Pending.DROPPED
        if not dropped and not self.ring.stop():
            self.stopped = True
            return False
        self.release()
        return True

    def release(self) -> None:
        """Give back port, thread and pages; what is in flight is not answered any more."""
        device = self.driver.device
        self.ring.abandon()
        if self._timer is not None:
            device.domain.forget_timer(self._timer)
        self.task.retire()
        device.dispatcher.unbind(self.ring.port)
        device.domain.evtchn.close(self.ring.port)
        self._unmap()

    def _unmap(self) -> None:
        unmap(self.driver.device.domain, self.mapped)


def connect(driver: Owner, keys: RingKeys, abi: Abi, name: str, *, persistent: bool) -> Queue:
    """Map a ring and bind its port. PeerProtocolError, HypercallError: nothing is held then."""
    device, domain = driver.device, driver.device.domain
    mapped: Mapped = []
    try:
        for gref in keys.grefs:
            mapped.append(_map_page(device, gref))
        pfns = [pfn for _handle, pfn in mapped]
        ring = BackRing(
            domain, pfns, req_size=abi.request_size, rsp_size=abi.response_size, kind=abi.ring
        )
        local = domain.evtchn.bind_interdomain(device.frontend_domid, keys.port)
    except BaseException:
        unmap(domain, mapped)
        raise
    granter = domain.find(device.frontend_domid)
    assert granter is not None, "a page of it is mapped"
    server = serve(driver, ring, local, abi, granter, name=name, persistent=persistent)
    queue = Queue(driver, server, mapped)
    try:
        queue.task = server.task = device.dispatcher.bind(local, name, queue.run)
    except HypercallError:
        domain.evtchn.close(local)
        unmap(domain, mapped)
        raise
    return queue


def serve(
    driver: Owner,
    ring: BackRing,
    port: int,
    abi: Abi,
    granter: Domain,
    *,
    name: str,
    persistent: bool,
) -> BlkRing | BlkServer:
    """Who serves a ring: in batches where that does it all, else request by request."""
    if driver.settings.batches and not persistent:
        return BlkRing(ring, port, abi, granter, driver.bounce)
    from xenpv.back.blkserver import BlkServer

    return BlkServer(
        ring,
        port,
        abi,
        granter,
        driver.bounce,
        driver.settings,
        name=name,
        persistent=persistent,
    )


def _map_page(device: Device, gref: int) -> tuple[int, int]:
    domain = device.domain
    pfn = domain.holes.alloc()
    try:
        return domain.gnttab.map(device.frontend_domid, gref, pfn), pfn
    except GrantError as error:
        domain.holes.free(pfn)
        raise PeerProtocolError(f"mapping a ring page: {error}") from error


def unmap(domain: Domain, mapped: Mapped) -> None:
    """Give back pages of a ring."""
    for handle, pfn in mapped:
        domain.gnttab.unmap(handle, pfn)
        domain.holes.free(pfn)
