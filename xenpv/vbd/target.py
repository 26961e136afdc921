"""A XenVbd target: the SCSI device over one frontend (win-xenvbd target.c)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from xenpv.vbd import cdb
from xenpv.vbd.backend import Backend
from xenpv.vbd.frontend import After, Frontend, FrontendState
from xenpv.vbd.personality import Personality
from xenpv.vbd.pnp import TargetPnp
from xenpv.vbd.quirks import SCSISTATUS_40
from xenpv.vbd.request import Part
from xenpv.vbd.sense import Sense, attend
from xenpv.vbd.srb import ScsiStatus, Srb, SrbFunction, SrbStatus
from xenpv.vbd.storport import CONFIGURATION, Capabilities, LunQueue, StorPnpAction
from xenpv.xen.domain import Domain

if TYPE_CHECKING:
    from xenpv.bus.xenbus import XenBus
    from xenpv.vbd.adapter import Vbd


class Target:
    """One disk of the adapter. `missing`: its device went; every SRB ends as NO_DEVICE.

    `handles`: how many hold it open; while any does, the system does not let it go.
    `attentions`: what happened to it and was not told yet; None if it gives no sense data.
    `queue`: where SRBs wait for those before them.
    """

    __slots__ = (
        "_draining",
        "_resetting",
        "adapter",
        "attentions",
        "bus",
        "devid",
        "frontend",
        "handles",
        "missing",
        "personality",
        "pnp",
        "queue",
        "quirks",
        "target_id",
    )
    frontend: Frontend

    def __init__(
        self,
        adapter: Vbd,
        bus: XenBus,
        personality: Personality,
        devid: int,
        target_id: int,
    ) -> None:
        self.adapter = adapter
        self.bus = bus
        self.personality = personality
        self.devid = devid
        self.target_id = target_id
        self.missing = False
        self.handles = 0
        parameters = adapter.parameters
        self.quirks: frozenset[str] = frozenset(parameters.quirks)
        self.attentions: list[Sense] | None = [] if parameters.sense_data else None
        self.queue: LunQueue = LunQueue(self)
        self._draining: list[Srb] = []  # SHUTDOWN, FLUSH
        self._resetting: list[Srb] = []
        self.pnp = TargetPnp(self)
        self.frontend = Frontend(
            bus=self.bus, personality=self.personality, devid=self.devid, target=self
        )

    @property
    def domain(self) -> Domain:
        return self.bus.domain

    @property
    def state(self) -> FrontendState:
        return self.frontend.state

    @property
    def broken(self) -> str:
        return self.frontend.broken

    @property
    def backend(self) -> Backend:
        return self.frontend.backend

    @property
    def info(self) -> int:
        """VDISK_* bits."""
        return self.backend.info

    @property
    def sector_size(self) -> int:
        """Logical, in bytes."""
        return self.backend.sector_size

    @property
    def sectors(self) -> int:
        """Capacity in logical sectors."""
        return self.backend.capacity

    # SRBs

    def submit(self, srb: Srb) -> None:
        """BuildIo and StartIo. LocalProtocolError: a buffer beyond CONFIGURATION, which the
        adapter told the class driver not to send.
        """
        CONFIGURATION.check(srb)
        if srb.function == SrbFunction.EXECUTE_SCSI:
            self.queue.submit(srb)
        elif self.missing and srb.function in _NEEDS_DEVICE:
            srb.complete(SrbStatus.NO_DEVICE)
        else:
            _FUNCTIONS.get(srb.function, Target._unsupported)(self, srb)

    def start_io(self, srb: Srb) -> None:
        """One EXECUTE_SCSI that the port driver lets through."""
        if srb.path_id:
            srb.complete(SrbStatus.INVALID_PATH_ID)
        elif srb.lun:
            self.refuse(srb, Sense.LUN_NOT_SUPPORTED, SrbStatus.INVALID_LUN)
        elif self.missing:
            srb.complete(SrbStatus.NO_DEVICE)
        else:
            cdb.execute(self, srb)

    @property
    def takes_srbs(self) -> bool:
        """Whether an SRB finds its end now, be it an error; not while the rings come back."""
        frontend = self.frontend
        return frontend.is_enabled or self.missing or bool(frontend.broken) or self.is_closed

    def refuse(self, srb: Srb, why: Sense, status: SrbStatus = SrbStatus.ERROR) -> None:
        """It fails before anything is sent: with that sense, or as `status` without any."""
        if self.attentions is None:
            srb.complete(status)
        else:
            srb.check_condition(why)

    def queue_parts(self, srb: Srb, parts: list[Part], on_error: Sense) -> None:
        """To its ring; `on_error` is what it says if the backend fails one of them."""
        if self.attentions is not None:
            srb.on_error = on_error
        self.queue.hold(srb)
        srb.outstanding = len(parts)
        rings = self.frontend.rings
        ring = rings[srb.ring_index(len(rings))]
        for part in parts:
            ring.submit(part)

    def _unsupported(self, srb: Srb) -> None:
        srb.complete(SrbStatus.INVALID_REQUEST)

    def _abort(self, srb: Srb) -> None:
        srb.complete(SrbStatus.ABORT_FAILED)

    def _pnp(self, srb: Srb) -> None:
        if srb.pnp_action == StorPnpAction.QUERY_CAPABILITIES:
            removable = self.backend.removable
            srb.capabilities = Capabilities(removable=removable, eject_supported=removable)
        srb.complete(SrbStatus.SUCCESS)

    def _drain(self, srb: Srb) -> None:
        """SHUTDOWN and FLUSH: done when its ring is empty; BUSY while that is disabled."""
        if not self.frontend.is_enabled:
            srb.complete(SrbStatus.BUSY)
        elif self._is_drained(srb):
            self._drained(srb)
        else:
            self._draining.append(srb)

    def _is_drained(self, srb: Srb) -> bool:
        frontend = self.frontend
        if not frontend.is_enabled:
            return frontend.is_idle
        rings = frontend.rings
        return rings[srb.ring_index(len(rings))].is_idle

    def _drained(self, srb: Srb) -> None:
        bad = SCSISTATUS_40 in self.quirks
        srb.complete(SrbStatus.SUCCESS, ScsiStatus.TASK_ABORTED if bad else ScsiStatus.GOOD)

    def ring_idle(self) -> None:
        """A ring has nothing left to do, or never will."""
        if self._draining:
            draining, self._draining = self._draining, []
            for srb in draining:
                if self._is_drained(srb):
                    self._drained(srb)
                else:
                    self._draining.append(srb)
        if self.queue.waiting:
            self.queue.start()

    def reset(self, srb: Srb) -> None:
        """RESET_DEVICE: SUCCESS in the end, at once where there is nothing to reset."""
        if self.state is FrontendState.ENABLED:
            self._resetting.append(srb)
            self.frontend.disable(After.ENABLE)
        elif self._resetting:
            self._resetting.append(srb)
        else:
            srb.complete(SrbStatus.SUCCESS)

    def reset_done(self) -> None:
        """The rings are there again, or will not come."""
        resetting, self._resetting = self._resetting, []
        if resetting and self.attentions is not None:
            attend(self.attentions, Sense.RESET)
        for srb in resetting:
            srb.complete(SrbStatus.SUCCESS)

    def capacity_changed(self) -> None:
        """The size of a disk that was there before is another."""
        if self.attentions is not None:
            attend(self.attentions, Sense.CAPACITY_CHANGED)

    # life

    def start(self) -> None:
        """Power up: to ENABLED, asynchronously."""
        self.frontend.start()

    def stop(self) -> None:
        """Power down: to CLOSED, asynchronously."""
        self.frontend.close()

    def vanish(self) -> None:
        """The device is gone or going: no more SRBs."""
        if not self.missing:
            self.missing = True
            self.frontend.close()

    def frontend_closed(self) -> None:
        """The frontend came to rest in CLOSED or INVALID."""
        self.reset_done()
        self.ring_idle()
        self.adapter.target_closed(self)

    @property
    def has_failed(self) -> bool:
        """It did not connect: tried again when its directory changes or its backend comes."""
        down = not self.missing and self.is_closed and not self.pnp.is_stopped
        return down and self.state is not FrontendState.INITIALIZED

    @property
    def has_no_backend(self) -> bool:
        """It waits, and its directory does not say for whom."""
        return bool(self.frontend.handshake.goals) and not self.frontend.handshake.backend

    @property
    def is_closed(self) -> bool:
        """At rest: nothing is on its way, neither up nor down."""
        resting = (FrontendState.INITIALIZED, FrontendState.CLOSED, FrontendState.INVALID)
        return self.state in resting and not self.frontend.handshake.goals


class BusReset:
    """RESET_BUS: complete when every target's reset is."""

    __slots__ = ("_left", "srb")

    def __init__(self, srb: Srb, targets: list[Target]) -> None:
        self.srb = srb
        self._left = 1 + len(targets)
        for target in targets:
            target.reset(
                Srb(
                    function=SrbFunction.RESET_DEVICE,
                    target_id=target.target_id,
                    on_complete=self,
                )
            )
        self.wake()

    def wake(self) -> None:
        self._left -= 1
        if not self._left:
            self.srb.complete(SrbStatus.SUCCESS)


_NEEDS_DEVICE: Final = (SrbFunction.SHUTDOWN, SrbFunction.FLUSH, SrbFunction.RESET_DEVICE)
_FUNCTIONS: Final[Mapping[int, Callable[[Target, Srb], None]]] = {
    SrbFunction.SHUTDOWN: Target._drain,
    SrbFunction.FLUSH: Target._drain,
    SrbFunction.ABORT_COMMAND: Target._abort,
    SrbFunction.RESET_DEVICE: Target.reset,
    SrbFunction.PNP: Target._pnp,
}
