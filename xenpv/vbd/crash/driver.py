"""The crash driver: loaded with a dump or hibernation stack, started when all else stands still.

win-xenvbd src/xencrsh. `poll` walks through its states, each a step below; it returns how long
to wait for the next look, or None at rest. Nothing of it needs an interrupt, an allocation, or
anything that the normal driver left.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Final

import attrs

from xenpv.abi.xenbus import XenbusState
from xenpv.vbd.crash.backend import CrashBackend
from xenpv.vbd.crash.failure import UnansweredError
from xenpv.vbd.crash.frontend import CrashFrontend, devices, find_target
from xenpv.vbd.crash.gnttab import References
from xenpv.vbd.crash.heap import PAGES, PAGES_UNALIGNED, Heap
from xenpv.vbd.crash.ring import Ring
from xenpv.vbd.crash.store import ERRORS, CrashStore
from xenpv.vbd.crash.store import POLL_NS as STORE_POLL_NS
from xenpv.vbd.crash.target import CrashTarget
from xenpv.vbd.crash.walk import POLL_NS as STATE_POLL_NS
from xenpv.vbd.crash.walk import Goal, Walk
from xenpv.vbd.quirks import CRASH_STALE_FEATURES
from xenpv.vbd.storport import SpReturn
from xenpv.vbd.units import SPEC2024, SectorUnits
from xenpv.xen.domain import Domain

CRASH_PORT: Final = 0xED
CRASH_MAGIC: Final = 0x504C4548  # 'PLEH'


class Mode(enum.Enum):
    """What it is loaded for, and the key that says on which disk."""

    DUMP = "dump"
    HIBER = "hibernation"

    @classmethod
    def of_image(cls, path: str) -> Mode | None:
        """From the name that the image is loaded under; None: as the normal driver."""
        name = path.rpartition("\\")[2].lower()
        for prefix, mode in (("dump_", cls.DUMP), ("hiber_", cls.HIBER)):
            if name.startswith(prefix):
                return mode
        return None


class Step(enum.Enum):
    """Where the driver is."""

    LOADED = "loaded"
    LIST = "listing the disks"
    CLOSE_ALL = "closing every disk"
    FIND = "looking for the target"
    CLOSE = "closing the target"
    CLEAR = "removing stale keys"
    PREPARE = "preparing"
    PREPARING = "waiting for InitWait"
    RING = "making the ring"
    FEATURES = "reading features"
    CONNECT = "connecting"
    CONNECTING = "waiting for Connected"
    DISK = "reading what the disk is"
    READY = "ready"
    FAILING = "closing after a failure"
    FAILED = "failed"


@attrs.frozen
class CrashImage:
    """The pages of the image that are written to: one for the store's ring, one for grants,
    then the heap.
    """

    pfn: int
    is_aligned: bool = True

    @classmethod
    def load(cls, domain: Domain, *, is_aligned: bool = True) -> CrashImage:
        """In memory of the guest. HypercallError(ENOMEM)."""
        return cls(domain.pages.alloc(2 + PAGES), is_aligned)

    @property
    def pages(self) -> range:
        """Its pfns."""
        return range(self.pfn, self.pfn + 2 + PAGES)

    def heap(self, domain: Domain) -> Heap:
        return Heap(domain, self.pfn + 2, PAGES if self.is_aligned else PAGES_UNALIGNED)


class CrashDriver:
    """`failure` is why it failed. `skipped`: disks that could not be closed, and why."""

    def __init__(
        self,
        domain: Domain,
        mode: Mode,
        image: CrashImage,
        *,
        units: SectorUnits = SPEC2024,
        quirks: frozenset[str] = frozenset(),
    ) -> None:
        self.domain = domain
        self.mode = mode
        self.image = image
        self.step = Step.LOADED
        self.failure = ""
        self.failed_at: Step | None = None
        self.is_stopped = False  # another one takes over: nothing is done any more
        self.skipped: list[str] = []
        self.store = CrashStore(domain, image.pfn)
        self.references = References(domain)
        self.heap = image.heap(domain)
        self.backend = CrashBackend(units=units)
        self.frontend: CrashFrontend | None = None
        self.target = CrashTarget(domain, self.heap, self.references, self.backend, quirks)
        self._ring: Ring | None = None  # the target's, once it is connected
        self._walk: Walk | None = None
        self._devices: list[str] = []  # that are still to be closed

    @property
    def is_at_rest(self) -> bool:
        return self.step in (Step.READY, Step.FAILED)

    @property
    def sp_return(self) -> SpReturn:
        """What FindAdapter answers, once it is at rest. A target that was found and does not
        connect is no reason to fail: its SRBs do.
        """
        failed = self.failed_at in (Step.LOADED, Step.LIST, Step.FIND)
        return SpReturn.BAD_CONFIG if failed else SpReturn.FOUND

    def poll(self) -> int | None:
        """Go on as far as it goes now; the ns until it should be called again, None at rest.

        Nothing that a backend or xenstored does raises: the driver is FAILED then.
        """
        while not (self.is_at_rest or self.is_stopped):
            self.store.begin()
            try:
                wait = STEPS[self.step](self)
            except UnansweredError:
                return STORE_POLL_NS
            except ERRORS as error:
                self._fail(str(error))
                continue
            self.store.settle()
            if wait:
                return wait
        return None

    def log(self, text: str) -> None:
        """A line at Xen's console port."""
        self.domain.debugcons(f"xencrsh|{text}\n".encode("ascii", "replace"))

    def _fail(self, why: str) -> None:
        """The walks of a connect are closed after; anything else is the end."""
        self.store.settle()
        if self.step is Step.CLOSE_ALL:
            self._skip(why)
            return
        if self.step is not Step.FAILING:
            self.failure, self.failed_at = why, self.step
            self.log(f"{self.mode.value}: {why}")
        self._walk = None
        self.step = Step.FAILING if self.step in CLOSED_AFTER else Step.FAILED

    # The steps: each returns how long to wait, or nothing to go on. One that asks xenstored may
    # be repeated from its start, so what it changes it changes behind its last request.

    def _start(self) -> int | None:
        """DriverEntry and FindAdapter, as far as they ask nobody."""
        if self.mode is Mode.DUMP:
            self.domain.io_write(CRASH_PORT, 4, CRASH_MAGIC)
        self.log(f"{self.mode.value}: taking over")
        self.store.attach()
        self.references.attach(self.image.pfn + 1)
        self.step = Step.LIST
        return None

    def _list(self) -> int | None:
        self._devices = devices(self.store)
        self.step = Step.CLOSE_ALL
        return None

    def _close_all(self) -> int | None:
        """So that backends finish and unmap. What cannot be closed is left."""
        if not self._devices:
            self.step = Step.FIND
        elif self._walk is None:
            self._begin(Goal.CLOSE, CrashFrontend.find(self.store, self._devices[0], 0))
        elif not self._look():
            return STATE_POLL_NS
        else:
            self._walk = None
            del self._devices[0]
        return None

    def _skip(self, why: str) -> None:
        self.skipped.append(why)
        self.log(f"left: {why}")
        self._walk = None
        del self._devices[0]

    def _find(self) -> int | None:
        device, target_id = find_target(self.store, self.mode.value)
        self.frontend = CrashFrontend.find(self.store, device, target_id)
        self.log(f"{self.mode.value}: target {target_id} is {self.frontend.path}")
        self._begin(Goal.CLOSE, self.frontend)
        self.step = Step.CLOSE
        return None

    def _close(self) -> int | None:
        return self._walk_on(Step.CLEAR)

    def _clear(self) -> int | None:
        self._mine().clear()
        self.step = Step.PREPARE
        return None

    def _prepare(self) -> int | None:
        frontend = self._mine()
        frontend.prepare()
        self._begin(Goal.PREPARE, frontend)
        self.step = Step.PREPARING
        return None

    def _preparing(self) -> int | None:
        return self._walk_on(Step.RING)

    def _make_ring(self) -> int | None:
        frontend = self._mine()
        self._ring = Ring(
            self.domain,
            self.heap,
            self.references,
            frontend.backend_domid,
            frontend.handle,
        )
        self.step = Step.FEATURES
        return None

    def _features(self) -> int | None:
        path = self._mine().backend_path
        self.backend.read_pages(self.store, path)
        self.backend.read_features(self.store, path)
        self.step = Step.CONNECT
        return None

    def _connect(self) -> int | None:
        frontend = self._mine()
        assert self._ring is not None
        frontend.connect(self._ring, self.backend)
        self._begin(Goal.CONNECT, frontend)
        self.step = Step.CONNECTING
        return None

    def _connecting(self) -> int | None:
        return self._walk_on(Step.DISK)

    def _disk(self) -> int | None:
        """A backend of Linux or tapdisk says what it can only now."""
        frontend = self._mine()
        frontend.switch_state(XenbusState.CONNECTED)
        self.backend.read_disk(self.store, frontend.backend_path)
        if CRASH_STALE_FEATURES not in self.target.quirks:
            self.backend.read_features(self.store, frontend.backend_path)
        self.target.ring = self._ring
        self.step = Step.READY
        return None

    def _failing(self) -> int | None:
        """What was begun is closed, if that goes."""
        if self._walk is None:
            self._begin(Goal.CLOSE, self._mine())
            return None
        return self._walk_on(Step.FAILED)

    def _mine(self) -> CrashFrontend:
        assert self.frontend is not None
        return self.frontend

    def _begin(self, goal: Goal, frontend: CrashFrontend) -> None:
        self._walk = Walk(goal, frontend.path, frontend.backend_path)

    def _look(self) -> bool:
        assert self._walk is not None
        return self._walk.look(self.store)

    def _walk_on(self, then: Step) -> int | None:
        if not self._look():
            return STATE_POLL_NS
        self.step = then
        return None


STEPS: Final[Mapping[Step, Callable[[CrashDriver], int | None]]] = {
    Step.LOADED: CrashDriver._start,
    Step.LIST: CrashDriver._list,
    Step.CLOSE_ALL: CrashDriver._close_all,
    Step.FIND: CrashDriver._find,
    Step.CLOSE: CrashDriver._close,
    Step.CLEAR: CrashDriver._clear,
    Step.PREPARE: CrashDriver._prepare,
    Step.PREPARING: CrashDriver._preparing,
    Step.RING: CrashDriver._make_ring,
    Step.FEATURES: CrashDriver._features,
    Step.CONNECT: CrashDriver._connect,
    Step.CONNECTING: CrashDriver._connecting,
    Step.DISK: CrashDriver._disk,
    Step.FAILING: CrashDriver._failing,
}
# From which a failure is followed by a close.
CLOSED_AFTER: Final = (
    Step.PREPARE,
    Step.PREPARING,
    Step.RING,
    Step.FEATURES,
    Step.CONNECT,
    Step.CONNECTING,
    Step.DISK,
)
