"""A target as the PnP manager has it: requests, states, eject (win-xenvbd TargetDispatchPnp)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpv.bus import pnpstate
from xenpv.bus.devicetree import Irp
from xenpv.bus.ntstatus import NTSTATUS
from xenpv.bus.pnpstate import Back, Life, PnpState

if TYPE_CHECKING:
    from xenpv.vbd.target import Target

_P, _S, _SP = PnpState.PRESENT, PnpState.STARTED, PnpState.STOP_PENDING
_ST, _RP, _SR = PnpState.STOPPED, PnpState.REMOVE_PENDING, PnpState.SURPRISE_REMOVE_PENDING
_ANY: Final = (_P, _S, _SP, _ST, _RP, _SR)

# What is not in a row leaves the state as it is.
TARGET: Final[pnpstate.Transitions] = {
    Irp.START_DEVICE: dict.fromkeys(_ANY, _S),
    Irp.QUERY_STOP_DEVICE: dict.fromkeys(_ANY, _SP),
    Irp.CANCEL_STOP_DEVICE: {_SP: Back.PREVIOUS},
    Irp.STOP_DEVICE: dict.fromkeys(_ANY, _ST),
    Irp.QUERY_REMOVE_DEVICE: dict.fromkeys(_ANY, _RP),
    Irp.CANCEL_REMOVE_DEVICE: {_RP: Back.PREVIOUS},
    Irp.SURPRISE_REMOVAL: dict.fromkeys(_ANY, _SR),
    Irp.REMOVE_DEVICE: dict.fromkeys(_ANY, PnpState.DELETED),
    Irp.EJECT: dict.fromkeys(_ANY, PnpState.DELETED),
}
ENDS: Final = (Irp.REMOVE_DEVICE, Irp.EJECT)


class TargetPnp:
    """Of one target. `reason`: why it is Missing. `pending`: the request that waits for the
    frontend to be closed.
    """

    __slots__ = ("_eject_pending", "_target", "eject_requested", "life", "pending", "reason")

    def __init__(self, target: Target) -> None:
        self._target = target
        self.life = Life(TARGET, PnpState.PRESENT)
        self.pending: Irp | None = None
        self.reason = ""
        self.eject_requested = False
        self._eject_pending = False  # the PnP manager does not know it yet

    @property
    def state(self) -> PnpState:
        return self.life.state

    @property
    def is_stopped(self) -> bool:
        """It is in D3, or on its way, until START_DEVICE."""
        return self.state is PnpState.STOPPED or self.pending is Irp.STOP_DEVICE

    def request(self, irp: Irp) -> NTSTATUS:
        """A request of the PnP manager.

        PENDING: what is on the rings ends first, and the frontend closes. DEVICE_NOT_READY: an
        earlier request is not complete. NO_SUCH_DEVICE: it is deleted.
        """
        if self.state is PnpState.DELETED or irp not in TARGET:
            return pnpstate.refusal(TARGET, self.state, irp)
        if self.pending is not None:
            return NTSTATUS.DEVICE_NOT_READY
        self._look_for_eject()
        target = self._target
        if irp is Irp.START_DEVICE and (self.is_stopped or target.is_closed):
            target.start()  # else it is in D0: it connects from its creation on
        elif irp is Irp.STOP_DEVICE:
            self.pending = irp
            target.stop()
        elif irp in ENDS:
            self.pending = irp
            self._end(irp)
        elif irp is Irp.CANCEL_REMOVE_DEVICE and self.eject_requested:
            self.eject_requested = False
            target.frontend.eject_failed()
        if self.pending is None:
            self.life.move(irp)
        return NTSTATUS.SUCCESS if self.poll() else NTSTATUS.PENDING

    def _end(self, irp: Irp) -> None:
        if irp is Irp.EJECT:
            self.reason = "ejected"
        elif self.state is PnpState.SURPRISE_REMOVE_PENDING:
            self.reason = "surprise remove"
        else:
            self.reason = "removed"
        self._target.bus.log(f"xenvbd: target {self._target.target_id}: {self.reason}\n")
        self._target.vanish()

    def poll(self) -> bool:
        """Complete what waits, if the frontend is at rest; False while it waits."""
        irp = self.pending
        if irp is None:
            return True
        if not self._target.is_closed:
            return False
        self.pending = None
        self.life.move(irp)
        return True

    def disappeared(self, why: str) -> None:
        """Its directory went: one that nobody knew is deleted, others are removed by surprise."""
        target = self._target
        self.reason = self.reason or why
        if self.state is PnpState.PRESENT:
            self.life.enter(PnpState.DELETED)
        elif self.pending is None:
            self.life.move(Irp.SURPRISE_REMOVAL)
            self.pending = Irp.REMOVE_DEVICE
        elif self.pending is Irp.STOP_DEVICE:
            self.pending = Irp.REMOVE_DEVICE
        target.vanish()
        self.poll()

    def rest(self) -> None:
        """The adapter stops: so do its children, but for those that end anyway."""
        if self.state is not PnpState.DELETED and self.pending is None:
            self.request(Irp.STOP_DEVICE)

    def rise(self) -> None:
        """The adapter starts again: one that still closes for its stop connects after that."""
        if self.pending is Irp.STOP_DEVICE:
            self.pending = None
            self.life.enter(PnpState.STOPPED)
        if self.state is not PnpState.DELETED and self.pending is None:
            self.request(Irp.START_DEVICE)

    # eject

    def request_eject(self) -> None:
        """IoRequestDeviceEject; of a device that was never started, with its next request."""
        if self.state is PnpState.PRESENT:
            self._eject_pending = True
        else:
            self.eject_requested = True
        self._target.adapter.bus_changed(self._target)

    def _look_for_eject(self) -> None:
        if self._eject_pending:
            self._eject_pending = False
            self.eject_requested = True
            self._target.adapter.bus_changed(self._target)

    def manage(self) -> None:
        """What the PnP manager does with it at a bus change: start it, or let it go.

        Not if it is in use: a program has it open, or the system keeps files of its own there.
        """
        target = self._target
        if self.state is PnpState.PRESENT:
            self.request(Irp.START_DEVICE)
        if not self.eject_requested or target.missing or self.pending is not None:
            return
        self.request(Irp.QUERY_REMOVE_DEVICE)
        in_use = target.handles or target.frontend.usage.is_used
        self.request(Irp.CANCEL_REMOVE_DEVICE if in_use else Irp.EJECT)
