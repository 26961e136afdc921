"""A XenVbd frontend: its states, its keys, its rings (win-xenvbd frontend.c, blockring).

Every wait of the driver is a row of a table here: a handshake's goal, or the drain of the
rings before they are disabled.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING, Final

from xenpv.abi.xenbus import XenbusState as State
from xenpv.bus.handshake import Goal, Handshake, Seen, parse_flag, parse_state
from xenpv.bus.store import StoreInterface, Transaction, Watch
from xenpv.errors import HypercallError, PeerProtocolError, StoreError
from xenpv.vbd import blkif
from xenpv.vbd.backend import Backend
from xenpv.vbd.granter import Granter
from xenpv.vbd.personality import WINDOWS, Personality
from xenpv.vbd.ring import Part, Ring
from xenpv.vbd.srb import SrbStatus
from xenpv.xen.domain import Domain
from xenpv.xen.loop import NS_PER_MS, Task, Timer

if TYPE_CHECKING:
    from xenpv.bus.xenbus import XenBus
    from xenpv.vbd.target import Target

RING_PAGE_ORDER_MAX: Final = 4
COMMIT_RETRIES_MAX: Final = 1000  # the driver's are without limit
EJECT_RETRIES_MAX: Final = 10
UNPLUG_FAILED: Final = "Unplug failed due to open handle(s)!"
DRAIN_ROUNDS: Final = 100
DRAIN_ROUND_NS: Final = NS_PER_MS


class FrontendState(enum.Enum):
    """XENVBD_STATE. INVALID: a start failed, and closing after it too."""

    INITIALIZED = "initialized"
    CLOSED = "closed"
    PREPARED = "prepared"
    CONNECTED = "connected"
    ENABLED = "enabled"
    CLOSING = "closing"
    INVALID = "invalid"


class After(enum.Enum):
    """What follows when the rings are drained."""

    ENABLE = "enable"  # a reset
    CLOSE = "close"


class Frontend:
    """The frontend of one device/vbd directory; `target` hears of what happens to it."""

    __slots__ = (
        "_after",
        "_backend_task",
        "_drain_rounds",
        "_drain_timer",
        "_ejected",
        "_kept",
        "_watch",
        "backend",
        "broken",
        "bus",
        "devid",
        "granter",
        "handshake",
        "path",
        "personality",
        "rings",
        "state",
        "target",
    )
    path: str
    granter: Granter
    handshake: Handshake
    _backend_task: Task
    _drain_timer: Timer

    def __init__(
        self,
        bus: XenBus,
        personality: Personality,
        devid: int,
        target: Target,
    ) -> None:
        self.bus = bus
        self.personality = personality
        self.devid = devid
        self.target = target
        self.state: FrontendState = FrontendState.INITIALIZED
        self.broken = ""  # how the backend broke the protocol; nothing is sent to it any more
        self.backend: Backend = Backend()
        self.rings: list[Ring] = []
        self._watch: Watch | None = None
        self._drain_rounds: int = 0
        self._after: After | None = None
        self._ejected: bool = False
        self._kept: deque[Part] = deque()  # what waited at a suspend or sleep, and runs after it
        self.path = f"device/vbd/{self.devid}"
        self.granter = Granter(self.domain, self.bus.gnttab)
        self.handshake = Handshake(
            domain=self.domain,
            store=self.store,
            path=self.path,
            table=self.personality.table,
            driver=self,
        )
        self._backend_task = self.domain.task(f"{self.path} backend", self._backend_changed)
        drain = self.domain.task(f"{self.path} drain", self._drain)
        self._drain_timer = self.domain.timer(drain)

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
    def is_enabled(self) -> bool:
        return self.state is FrontendState.ENABLED and not self.broken

    # goals

    def start(self) -> None:
        """Towards ENABLED, by the personality's steps; asynchronous. INVALID is for good."""
        if self.is_enabled or self.state is FrontendState.INVALID:
            return
        goals = self.personality.start
        if self.rings:
            # Stopped a moment ago, or broken: what is left of that connection goes first.
            self.state = FrontendState.CLOSING
            goals = (Goal.CLOSE, *(goal for goal in goals if goal is not Goal.CLOSE))
        self.broken = ""
        self._after = None
        # With rings that the backend has mapped, it is waited for whatever can be written.
        self.handshake.strict = self.personality is WINDOWS and not self.rings
        self.handshake.start(goals)

    def close(self) -> None:
        """Towards CLOSED: drain, then the handshake's CLOSE; asynchronous."""
        if self.state is FrontendState.ENABLED:
            self.disable(After.CLOSE)
        elif self._after is not None:
            self._after = After.CLOSE
        elif self.handshake.goals:
            if self.state is not FrontendState.CLOSING:
                self._close()
        else:
            self.target.frontend_closed()

    def resume(self) -> None:
        """Late, after a migration: what was submitted ends as ERROR, what waited waits on; a
        Linux frontend does all of it again.

        The backend is another one and knows nothing of these rings; the whole handshake is
        walked all the same.
        """
        idle = self.state is FrontendState.INITIALIZED and not self.handshake.goals
        if idle or self.state is FrontendState.INVALID:
            return
        if self.target.missing and self.target.is_closed:
            return  # ejected, and only its directory is left
        closing = (
            self.target.missing
            or self._after is After.CLOSE
            or self.handshake.goals == [Goal.CLOSE]
        )
        self._unwatch()
        self.handshake.unwatch()
        self._drain_timer.cancel()
        self._after = None
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
                self._unwatch()
        except (HypercallError, StoreError) as error:
            self._give_up(str(error))

    def reached(self, goal: Goal) -> None:
        try:
            if goal is Goal.PREPARE:
                self.backend.read_features(self.store, self._backend_path)
                self.state = FrontendState.PREPARED
            elif goal is Goal.CONNECT:
                self.backend.read_connected(self.store, self._backend_path)
                self.handshake.switch_state(State.CONNECTED)
                self._enable()
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
        for ring in self.rings:
            ring.disconnect()
            if asleep:
                self._kept.extend(ring.queue)
                ring.queue.clear()
            ring.fail_queue()
            self.domain.forget(ring.task)
        self.rings = []
        self.granter.retry()
        self.backend.forget_features()
        self.state = state
        if not self.handshake.goals:
            if not asleep:
                self._take_kept(SrbStatus.ERROR)
            self.target.frontend_closed()

    def _take_kept(self, status: SrbStatus | None) -> None:
        """End what waited at a suspend with that status, or put it on the rings."""
        kept, self._kept = self._kept, deque()
        for part in kept:
            if status is None:
                self.rings[part.srb.queue_tag % len(self.rings)].submit(part)
            else:
                part.end(self.granter, status)

    def remove(self) -> None:
        """The target is deleted: nothing of it stays, in the store or the loop."""
        self._unwatch()
        self.handshake.stop()
        self.granter.retry()
        self.granter.release()
        self.domain.forget(self._backend_task)
        self.domain.forget_timer(self._drain_timer)

    # keys

    @property
    def _backend_path(self) -> str:
        return self.handshake.backend or ""

    def _prepare(self) -> None:
        if self._backend_path and self._watch is None:
            self._watch = self.store.watch_add(self._backend_path, self._backend_task)
        if self.personality is WINDOWS:
            self._write_target_path()
        if self.personality is WINDOWS or self.state is not FrontendState.INITIALIZED:
            self._switch_state(State.INITIALISING)

    def _switch_state(self, state: State) -> None:
        if not self.handshake.switch_state(state) and self.handshake.strict:
            raise StoreError("EACCES", "the state is not written", path=self.path)

    def _write_target_path(self) -> None:
        home = f"data/scsi/target/{self.target.target_id}"
        values = {"frontend": self.path, "device": str(self.devid)}
        values |= dict.fromkeys(("paging", "hibernation", "dump"), "0")
        for key, value in values.items():
            self.store.write(f"{home}/{key}", value)

    def _unwatch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is None:
            return
        try:
            self.store.watch_remove(watch)
        except StoreError as error:
            self.bus.log(f"xenvbd: {self.path}: {error}\n")

    def _connect(self) -> None:
        backend, personality, vcpus = self.backend, self.personality, self.domain.processors
        self.granter.backend_domid = self.handshake.backend_domid
        queues = min(vcpus, personality.queues_max or vcpus, backend.max_queues)
        order = min(
            backend.max_ring_page_order, personality.ring_page_order_max, RING_PAGE_ORDER_MAX
        )
        assert not self.rings
        for index in range(queues):
            ring = Ring(self, index)
            self.rings.append(ring)
            ring.connect(order)
        for _ in range(COMMIT_RETRIES_MAX):
            transaction = self.store.transaction_start()
            try:
                self._write_keys(transaction, order)
            except StoreError:
                self.store.transaction_end(transaction, commit=False)
                raise
            if self.store.transaction_end(transaction, commit=True):
                break
        else:
            raise StoreError("EAGAIN", f"no commit in {COMMIT_RETRIES_MAX} tries")
        self._switch_state(State.INITIALISED)
        self.state = FrontendState.CONNECTED

    def _write_keys(self, transaction: Transaction, order: int) -> None:
        queues = len(self.rings)
        keys: dict[str, int | str] = {}
        for ring in self.rings:
            prefix = f"queue-{ring.index}/" if queues > 1 else ""
            keys[f"{prefix}event-channel"] = ring.port
            for index, gref in enumerate(ring.grefs):
                keys[f"{prefix}ring-ref{index if order else ''}"] = gref
        if self.personality is WINDOWS or queues > 1:
            keys["multi-queue-num-queues"] = queues
        if order:
            keys["ring-page-order"] = order
        elif self.store.get(f"{self.path}/ring-page-order", transaction) is not None:
            # Left by an earlier connection, it would make the backend look for ring-ref0.
            self.store.remove(f"{self.path}/ring-page-order", transaction)
        keys["protocol"] = blkif.PROTOCOL
        if self.personality is WINDOWS:
            keys["target-id"] = self.target.target_id
            keys["feature-surprise-remove"] = 1
            keys["feature-online-resize"] = 1
            keys["feature-large-sector-size"] = 1
        else:
            keys["feature-persistent"] = 0
        for key, value in keys.items():
            self.store.write(f"{self.path}/{key}", str(value), transaction)

    # a connected frontend

    def _enable(self) -> None:
        self.state = FrontendState.ENABLED
        for ring in self.rings:
            ring.enable()
        self._take_kept(None)
        # A suspend may have come between a reset or flush and its end.
        self.target.reset_done()
        self.target.ring_idle()

    def _backend_changed(self) -> None:
        """Something in the backend's directory was written."""
        if self.state is not FrontendState.ENABLED:
            return
        try:
            if self.handshake.backend_state() is State.CLOSING:
                self._backend_closes()
            elif not self.broken:
                self.backend.read_disk(self.store, self._backend_path)
        except PeerProtocolError as error:
            self.fail(str(error))
        except StoreError as error:
            self.bus.log(f"xenvbd: {self.path}: {error}\n")

    def _backend_closes(self) -> None:
        if self.personality.closes_with_backend:
            self.target.eject()
        elif not self._ejected and self._is_eject_asked():
            self._ejected = True
            self.target.request_eject()

    def _is_eject_asked(self) -> bool:
        """Both the backend's state and `online`, of one moment; `ejected` is written with them."""
        for _ in range(EJECT_RETRIES_MAX):
            transaction = self.store.transaction_start()
            try:
                online = self.store.get(f"{self._backend_path}/online", transaction)
                state = self.store.get(f"{self._backend_path}/state", transaction)
                asked = not parse_flag(online) and parse_state(state) is State.CLOSING
                if asked:
                    self.store.write(f"{self.path}/ejected", "1", transaction)
            except StoreError:
                self.store.transaction_end(transaction, commit=False)
                raise
            if self.store.transaction_end(transaction, commit=asked) or not asked:
                return asked
        return False

    def eject_failed(self) -> None:
        """Somebody has the disk open: the system did not let it go."""
        try:
            self.store.write(f"{self.path}/error", UNPLUG_FAILED)
        except StoreError as error:
            self.bus.log(f"xenvbd: {self.path}: {error}\n")

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
        self._after = after
        self._drain_rounds = 0
        for ring in self.rings:
            ring.disable()
        self._drain()

    def ring_idle(self) -> None:
        """A ring has nothing left to do."""
        if self._after is not None:
            self._drain_timer.task.wake()
        self.target.ring_idle()

    @property
    def is_idle(self) -> bool:
        return not self._kept and all(ring.is_idle for ring in self.rings)

    def _drain(self) -> None:
        if self._after is None:
            return
        busy = [ring for ring in self.rings if ring.in_flight]
        if busy and self._drain_rounds < DRAIN_ROUNDS and self._backend_answers():
            self._drain_rounds += 1
            for ring in busy:
                ring.kick()
                ring.task.wake()
            self._drain_timer.arm(DRAIN_ROUND_NS)
            return
        self._drain_timer.cancel()
        after, self._after = self._after, None
        for ring in self.rings:
            ring.abandon()
        if after is After.CLOSE:
            self._close()
            return
        self._enable()

    def _backend_answers(self) -> bool:
        return not self.broken and self.handshake.backend_state() is State.CONNECTED
