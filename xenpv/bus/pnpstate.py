"""The life of a device of XENBUS as a table: what a PnP request makes of each state.

win-xenbus pdo.c and fdo.c (DEVICE_PNP_STATE). The originals set a state without looking at the
one before, since the PnP manager asks only for what makes sense; what it never asks for has an
answer here all the same. A state that a table does not have for a request stays as it is.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from xenpv.bus.devicetree import Irp
from xenpv.bus.ntstatus import NTSTATUS


class PnpState(enum.Enum):
    """DEVICE_PNP_STATE. A PDO begins as PRESENT, the FDO as ADDED."""

    PRESENT = "present"
    ADDED = "added"
    ENUMERATED = "enumerated"
    STARTED = "started"
    STOP_PENDING = "stop pending"
    STOPPED = "stopped"
    REMOVE_PENDING = "remove pending"
    SURPRISE_REMOVE_PENDING = "surprise remove pending"
    DELETED = "deleted"


class Back(enum.Enum):
    """Where a table says that the state before a query comes back."""

    PREVIOUS = "previous"


Next = PnpState | Back
Transitions = Mapping[Irp, Mapping[PnpState, Next]]

_P, _A, _E, _S = PnpState.PRESENT, PnpState.ADDED, PnpState.ENUMERATED, PnpState.STARTED
_SP, _ST, _RP = PnpState.STOP_PENDING, PnpState.STOPPED, PnpState.REMOVE_PENDING
_SR, _D = PnpState.SURPRISE_REMOVE_PENDING, PnpState.DELETED

# REMOVE_DEVICE of a PDO that is missing leads to DELETED instead: see pdo.Pdo.
PDO: Final[Transitions] = {
    Irp.START_DEVICE: dict.fromkeys((_P, _E, _S, _SP, _ST, _RP, _SR), _S),
    Irp.QUERY_STOP_DEVICE: dict.fromkeys((_P, _E, _S, _ST, _RP, _SR), _SP),
    Irp.CANCEL_STOP_DEVICE: {_SP: Back.PREVIOUS},
    Irp.STOP_DEVICE: dict.fromkeys((_P, _E, _S, _SP, _ST, _RP, _SR), _ST),
    Irp.QUERY_REMOVE_DEVICE: dict.fromkeys((_P, _E, _S, _SP, _ST, _SR), _RP),
    Irp.CANCEL_REMOVE_DEVICE: {_RP: Back.PREVIOUS},
    Irp.SURPRISE_REMOVAL: dict.fromkeys((_P, _E, _S, _SP, _ST, _RP), _SR),
    Irp.REMOVE_DEVICE: dict.fromkeys((_P, _E, _S, _SP, _ST, _RP, _SR), _E),
    Irp.EJECT: dict.fromkeys((_P, _E, _S, _SP, _ST, _RP, _SR), _D),
}
FDO: Final[Transitions] = {
    Irp.START_DEVICE: dict.fromkeys((_A, _S, _SP, _ST, _RP, _SR), _S),
    Irp.QUERY_STOP_DEVICE: dict.fromkeys((_A, _S, _ST, _RP, _SR), _SP),
    Irp.CANCEL_STOP_DEVICE: {_SP: Back.PREVIOUS},
    Irp.STOP_DEVICE: dict.fromkeys((_A, _S, _SP, _ST, _RP, _SR), _ST),
    Irp.QUERY_REMOVE_DEVICE: dict.fromkeys((_A, _S, _SP, _ST, _SR), _RP),
    Irp.CANCEL_REMOVE_DEVICE: {_RP: Back.PREVIOUS},
    Irp.SURPRISE_REMOVAL: dict.fromkeys((_A, _S, _SP, _ST, _RP), _SR),
    Irp.REMOVE_DEVICE: dict.fromkeys((_A, _S, _SP, _ST, _RP, _SR), _D),
}

# To D0, and to D3.
POWERS_UP: Final = (Irp.START_DEVICE,)
POWERS_DOWN: Final = (Irp.STOP_DEVICE, Irp.REMOVE_DEVICE, Irp.EJECT)
# What a deleted device still answers with SUCCESS; all else is NO_SUCH_DEVICE.
OF_DELETED: Final = (Irp.SURPRISE_REMOVAL, Irp.REMOVE_DEVICE)


def refusal(table: Transitions, state: PnpState, irp: Irp) -> NTSTATUS:
    """SUCCESS if a device in that state takes the request at all."""
    if state is PnpState.DELETED:
        return NTSTATUS.SUCCESS if irp in OF_DELETED else NTSTATUS.NO_SUCH_DEVICE
    return NTSTATUS.SUCCESS if irp in table else NTSTATUS.NOT_SUPPORTED


class Life:
    """The state of one device, with the states that its cancelled queries return to."""

    __slots__ = ("_before", "state", "table")

    def __init__(self, table: Transitions, state: PnpState) -> None:
        self.table = table
        self.state = state
        self._before: dict[PnpState, PnpState] = {}

    def move(self, irp: Irp, *, missing: bool = False) -> None:
        """Take the request. `missing`: the bus has lost the device, so REMOVE_DEVICE ends it."""
        found = self.table[irp].get(self.state, self.state)
        if missing and irp is Irp.REMOVE_DEVICE:
            found = PnpState.DELETED
        self.enter(self._before[self.state] if isinstance(found, Back) else found)

    def enter(self, state: PnpState) -> None:
        """Be in that state, which is terminal if it is DELETED."""
        if self.state is PnpState.DELETED or state is self.state:
            return
        if state in (PnpState.STOP_PENDING, PnpState.REMOVE_PENDING):
            # A query inside a query returns to the first one, and that to what was before it.
            self._before.setdefault(state, self.state)
        else:
            self._before.clear()
        self.state = state
