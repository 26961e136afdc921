"""A XenVbd frontend: its states, its keys, its rings (win-xenvbd frontend.c, blockring).

Every wait of the driver is a row of a table here: a handshake's goal, or the drain of the
rings before they are disabled.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING

from xenpv.abi.xenbus import XenbusState as State
from xenpv.bus.handshake import Goal, Handshake, Seen
from xenpv.bus.store import StoreInterface
from xenpv.errors import HypercallError, PeerProtocolError, StoreError
from xenpv.vbd.advertisement import RING_PAGE_ORDER_MAX, write_keys, write_target_path
from xenpv.vbd.backend import Backend, number
from xenpv.vbd.backendwatch import BackendWatch
from xenpv.vbd.drain import After, Drain
from xenpv.vbd.granter import Granter
from xenpv.vbd.personality import WINDOWS, Personality
from xenpv.vbd.request import Part
from xenpv.vbd.ring import Ring
from xenpv.vbd.srb import SrbStatus
from xenpv.vbd.usage import Usage
from xenpv.xen.domain import Domain

if TYPE_CHECKING:
    from xenpv.bus.xenbus import XenBus
    from xenpv.vbd.target import Target

__all__ = ["After", "Frontend", "FrontendState"]


class FrontendState(enum.Enum):
    """XENVBD_STATE. INVALID: a start failed, and closing after it too."""

    INITIALIZED = "initialized"
    CLOSED = "closed"
    PREPARED = "prepared"
    CONNECTED = "connected"
    ENABLED = "enabled"
    CLOSING = "closing"
    INVALID = "invalid"


DOWN = (FrontendState.INITIALIZED, FrontendState.CLOSED, FrontendState.INVALID)


class Frontend:
    """The frontend of one device/vbd directory; `target` hears of what happens to it.

    `trusted`: the toolstack says that the backend may see what lies beside the data (XSA-403).
    """

    __slots__ = (
        "_kept",
        "_was_up",
        "backend",
        "backend_watch",
        "broken",
        "bus",
        "devid",
        "drain",
        "granter",
        "handshake",
        "parameters",
        "path",
        "personality",
        "rings",
        "state",
        "target",
        "trusted",
        "usage",
    )
    path: str
    granter: Granter
    handshake: Handshake

    def __init__(
        self,
        bus: XenBus,
        personality: Personality,
        devid: int,
        target: Target,
    ) -> None:
        self.bus = bus
        self.personality = personality
        self.parameters = target.adapter.parameters
        self.devid = devid
        self.target = target
        self.state: FrontendState = FrontendState.INITIALIZED
        self.broken = ""  # how the backend broke the protocol; nothing is sent to it any more
        self.trusted = True
        self.backend: Backend = Backend(self.parameters)
        self.rings: list[Ring] = []
        self.usage = Usage(self)
        self._was_up = False
        self._kept: deque[Part] = deque()  # what waited at a suspend or sleep, and runs after it
        self.path = f"device/vbd/{self.devid}"
        self.granter = Granter(self.domain, self.bus.gnttab)
        self.backend_watch = BackendWatch(self)
        self.handshake = Handshake(
            domain=self.domain,
            store=self.store,
            path=self.path,
            table=self.personality.table,
            driver=self,
            beside=self.backend_watch.heard,
        )
        self.drain = Drain(self)

    @property
    def domain(self) -> Domain:
        return self.bus.domain

    @property
    def store(self) -> StoreInterface:
        return self.bus.store

    @property
    def handle(self) -> int:
        """blkif_vdev_t is 16 bits wide, a devid may not be."""
        return self.devid & 0xFFFF

    @property
    def backend_path(self) -> str:
        """Its directory, "" where it is not known."""
        return self.handshake.backend or ""

    @property
    def is_enabled(self) -> bool:
        """SRBs are taken."""
        return self.state is FrontendState.ENABLED and not self.broken

    @property
    def is_up(self) -> bool:
        """Connected, perhaps with a backend that broke the protocol."""
        return self.state is FrontendState.ENABLED

    @property
    def is_down(self) -> bool:
        """Nothing of it is in the store."""
        return self.state in DOWN

    # goals

    def start(self) -> None:
        """Towards ENABLED, by the personality's steps; asynchronous. INVALID is for good."""
        if self.is_enabled or self.state is FrontendState.INVALID:
            return
        goals = self.personality.start
        if self.is_down:
            self.handshake.state = State.UNKNOWN  # what is in the directory may be another's
        if self.rings:
            # Stopped a moment ago, or broken: what is left of that connection goes first.
            self.state = FrontendState.CLOSING
            goals = (Goal.CLOSE, *(goal for goal in goals if goal is not Goal.CLOSE))
        self.broken = ""
        self.drain.after = None
        # With rings that the backend has mapped, it is waited for whatever can be written.
        self.handshake.strict = self.personality is WINDOWS and not self.rings
        self.handshake.start(goals)

    def close(self) -> None:
        """Towards CLOSED: drain, then the handshake's CLOSE; asynchronous."""
        if self.state is FrontendState.ENABLED:
            self.disable(After.CLOSE)
        elif self.drain.after is not None:
            self.drain.after = After.CLOSE
        elif self.handshake.goals:
            if self.handshake.goals != [Goal.CLOSE]:
                self._close()
        else:
            self.target.frontend_closed()

    def resume(self) -> None:
        """Late, after a migration: what was submitted ends as ERROR, what waited waits on; a
        Linux frontend does all of it again.

        The backend is another one and knows nothing of these rings; the whole handshake is
        walked all the same.
        """
        # Nothing was written into this directory, and what it says of a backend is news.
        self.handshake.state, self.handshake.backend = State.UNKNOWN, None
        idle = self.state is FrontendState.INITIALIZED and not self.handshake.goals
        if idle or self.state is FrontendState.INVALID:
            return
        # Stopped; or ejected, and only its directory is left.
        ends = self.target.missing or self.target.pnp.is_stopped
        if ends and self.target.is_closed:
            return
        closing = ends or self.drain.after is After.CLOSE or self.handshake.goals == [Goal.CLOSE]
        self.backend_watch.moved()
        self.handshake.unwatch()
        self.drain.cancel()
        for ring in self.rings:
            ring.disable()
            if self.personality.requeues and not closing:
                self._kept.extend(ring.take_back())
            else:
                ring.abandon()
            self._kept.extend(ring.queue)
            ring.queue.clear()
        self.broken = ""
        self.state = FrontendState.CLOSING
        goals = self.personality.start
        rest = tuple(goal for goal in goals if goal is not Goal.CLOSE)
        self.handshake.start((Goal.CLOSE,) if closing else (Goal.CLOSE, *rest))

    def before(self, goal: Goal) -> None:
        try:
            if goal is Goal.PREPARE:
                self._prepare()
            elif goal is Goal.CONNECT:
                self._connect()
            else:
                self.backend_watch.remove()
        except (HypercallError, StoreError) as error:
            self._give_up(str(error))

    def reached(self, goal: Goal) -> None:
        try:
            if goal is Goal.PREPARE:
                self.backend.read_features(self.store, self.backend_path)
                self.state = FrontendState.PREPARED
            elif goal is Goal.CONNECT:
                self._connected()
            else:
                self._closed(FrontendState.CLOSED)
        except (StoreError, PeerProtocolError) as error:
            self._give_up(str(error))

    def failed(self, goal: Goal, seen: Seen) -> None:
        if goal is Goal.CLOSE:
            self._closed(FrontendState.INVALID)
        else:
            self._give_up(f"cannot {goal.value}: the backend is at {seen.name.lower()}")

    def offline(self) -> None:
        """A row of other protocols' tables; XenVbd's have none."""

    def _give_up(self, why: str) -> None:
        self.bus.log(f"xenvbd: {self.path}: {why}\n")
        self._close()

    def _close(self) -> None:
        self.state = FrontendState.CLOSING
        self.handshake.start((Goal.CLOSE,))

    def _closed(self, state: FrontendState) -> None:
        asleep = self.bus.falls_asleep and not self.target.missing
        self._disconnect(keeps=asleep)
        self.granter.retry()
        self.backend.forget_features()
        self.state = state
        if not self.handshake.goals:
            if not asleep:
                self._take_kept(SrbStatus.ABORTED)
            self.target.frontend_closed()

    def _disconnect(self, *, keeps: bool) -> None:
        """Give back what the rings have; what waits there ends, or runs after a sleep."""
        for ring in self.rings:
            ring.disconnect()
            if keeps:
                self._kept.extend(ring.queue)
                ring.queue.clear()
            ring.fail_queue()
            self.domain.forget(ring.task)
        self.rings = []

    def _take_kept(self, status: SrbStatus | None) -> None:
        """End what waited at a suspend with that status, or put it on the rings."""
        kept, self._kept = self._kept, deque()
        for part in kept:
            if status is None:
                self.rings[part.srb.ring_index(len(self.rings))].submit(part)
            else:
                part.srb.part_done(status)

    def remove(self) -> None:
        """The target is deleted: nothing of it stays, in the store or the loop."""
        self.backend_watch.forget()
        self.handshake.stop()
        self.drain.cancel()
        if self.rings:
            # Its backend never let it close; nobody waits any longer.
            self._disconnect(keeps=False)
            self.state = FrontendState.INVALID
        self._take_kept(SrbStatus.ABORTED)
        self.target.reset_done()
        self.target.ring_idle()
        self.granter.retry()
        self.granter.release()
        self.drain.forget()

    # Prepare and Connect

    def _prepare(self) -> None:
        if self.personality is WINDOWS:
            write_target_path(self)
        if self.personality is WINDOWS or self.state is not FrontendState.INITIALIZED:
            self._switch_state(State.INITIALISING)

    def _switch_state(self, state: State) -> None:
        if not self.handshake.switch_state(state) and self.handshake.strict:
            raise StoreError("EACCES", "the state is not written", path=self.path)

    def _connect(self) -> None:
        trusted = self.store.get(f"{self.path}/trusted")
        self.trusted = trusted is None or number(trusted) != 0
        self.granter.backend_domid = self.handshake.backend_domid
        queues, order = self._shape()
        assert not self.rings
        self.broken = ""  # what an old ring said while it closed is not of these
        for index in range(queues):
            ring = Ring(self, index)
            self.rings.append(ring)
            ring.connect(order)
        write_keys(self, order)
        self._switch_state(State.INITIALISED)
        self.state = FrontendState.CONNECTED

    def _shape(self) -> tuple[int, int]:
        """How many queues, and the order of their pages: what all sides allow."""
        backend, vcpus = self.backend, self.domain.processors
        queues, order = self.parameters.queues, self.parameters.ring_page_order
        if queues is None:
            queues = self.personality.queues_max or vcpus
        if order is None:
            order = self.personality.ring_page_order_max
        order = min(backend.max_ring_page_order, order, RING_PAGE_ORDER_MAX)
        return max(1, min(vcpus, queues, backend.max_queues)), order

    def _connected(self) -> None:
        """The backend is Connected: its disk, then the frontend too. Raises PeerProtocolError."""
        self.backend_watch.listens = True
        before = self._disk
        self.backend.read_connected(self.store, self.backend_path)
        self.handshake.switch_state(State.CONNECTED)
        if self._was_up and self._disk != before:
            self.target.capacity_changed()
        self._was_up = True
        self._enable()

    @property
    def _disk(self) -> tuple[int, int]:
        """What READ CAPACITY says of it."""
        return self.backend.capacity, self.backend.sector_size

    # a connected frontend

    def _enable(self) -> None:
        """After Connect, and after a reset; a reset mends no broken ring."""
        self.state = FrontendState.ENABLED
        for ring in self.rings if not self.broken else ():
            ring.enable()
        self._take_kept(SrbStatus.ABORTED if self.broken else None)
        # A suspend may have come between a reset or flush and its end.
        self.target.reset_done()
        self.target.ring_idle()

    def read_disk(self) -> None:
        """The backend changed something. PeerProtocolError: to what cannot be."""
        before = self._disk
        self.backend.read_disk(self.store, self.backend_path)
        if self._disk != before:
            self.target.capacity_changed()

    def eject_failed(self) -> None:
        """Somebody has the disk open: the system did not let it go."""
        self.backend_watch.eject_failed()

    def fail(self, why: str) -> None:
        """The backend broke the protocol: every SRB ends as ERROR, and nothing goes out again."""
        self.broken = why
        self.bus.log(f"xenvbd: {self.path}: broken: {why}\n")
        self.domain.trace.note(self.domain.domid, f"{self.path}: broken: {why}")
        for ring in self.rings:
            ring.disable()
            ring.abandon()
            ring.fail_queue()
        self.ring_idle()

    # draining

    def disable(self, after: After) -> None:
        """Take no more SRBs, give those on the rings time to end, then go on with `after`."""
        self.state = FrontendState.CONNECTED
        for ring in self.rings:
            ring.disable()
        self.drain.begin(after)

    def drained(self, after: After) -> None:
        """What is still on the rings ends as ERROR."""
        for ring in self.rings:
            ring.abandon()
        if after is After.CLOSE:
            self._close()
            return
        self._enable()
        self.backend_watch.look()

    def ring_idle(self) -> None:
        """A ring has nothing left to do."""
        self.drain.ring_idle()
        self.target.ring_idle()

    @property
    def is_idle(self) -> bool:
        return not self._kept and all(ring.is_idle for ring in self.rings)
