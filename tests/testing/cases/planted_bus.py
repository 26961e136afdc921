"""Changes of either side of xenbus that the suites "xenbus-backend" and "xenbus-frontend" notice.

Not a test module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.testing.cases.planted import Change, always, nothing
from xenpv.abi.xenbus import XenbusState as State
from xenpv.back import blkback, netback
from xenpv.back import xenbus as back_xenbus
from xenpv.back.store import BackStore
from xenpv.back.xenbus import BackendBus, Device
from xenpv.bus import handshake
from xenpv.bus.gnttab import GnttabInterface
from xenpv.bus.handshake import Handshake
from xenpv.bus.store_client import StoreClient
from xenpv.errors import StoreError
from xenpv.vif import features
from xenpv.xen.evtchn import EventChannels
from xenpv.xen.gnttab import GrantTable


def _keeps_ports(original: Any) -> Any:
    """A backend's port is not closed with its device."""

    def close(channels: Any, port: int) -> None:
        if channels.domain.domid:
            original(channels, port)

    return close


def _keeps_maps(original: Any) -> Any:
    def unmap(table: Any, handle: int, pfn: int, **how: Any) -> None:
        if table.domain.domid:
            original(table, handle, pfn, **how)

    return unmap


def _states_as(change: Callable[[State, State], State | None]) -> Callable[[Any], Any]:
    """(what it was, what it is to be): the state that is written, None for none."""

    def make(original: Any) -> Any:
        def switch_state(device: Any, state: State) -> Any:
            found = change(device.state, state)
            return None if found is None else original(device, found)

        return switch_state

    return make


def _connects_always(original: Any) -> Any:
    """Whatever went wrong, it says Connected."""

    def fatal(device: Any, why: str) -> None:
        original(device, why)
        device.switch_state(State.CONNECTED)

    return fatal


def _default(value: int) -> Callable[[Any], Any]:
    return lambda _original: lambda text, _default: int(text) if (text or "").isdecimal() else value


def _raises(_original: Any) -> Any:
    def state_of(text: str | None) -> State:
        return State.UNKNOWN if text is None else State(int(text))

    return state_of


BACK: list[tuple[str, list[Change], str]] = [
    ("ports are kept", [(EventChannels, "close", _keeps_ports)], "BUSB-012 BUSB-021"),
    ("maps are kept", [(GrantTable, "unmap", _keeps_maps)], "BUSB-015 BUSB-021"),
    ("no InitWait", [(Device, "switch_state", _states_as(lambda old, new: None if new is State.INIT_WAIT else new))], "BUSB-001 BUSB-006 BUSB-007 BUSB-016"),
    ("InitWait once", [(Device, "switch_state", _states_as(lambda old, new: None if new is State.INIT_WAIT and old is State.CLOSED else new))], "BUSB-004 BUSB-005 BUSB-019"),
    ("no Closed", [(Device, "switch_state", _states_as(lambda old, new: None if new is State.CLOSED else new))], "BUSB-014 BUSB-020"),
    ("Closing is Closed", [(Device, "switch_state", _states_as(lambda old, new: State.CLOSED if new is State.CLOSING else new))], "BUSB-002 BUSB-003"),
    ("a failed device says Connected", [(Device, "fatal", _connects_always)], "BUSB-008 BUSB-009 BUSB-010 BUSB-011"),
    ("a failed device says InitWait", [(Device, "fatal", lambda old: lambda device, why: device.switch_state(State.INIT_WAIT))], "BUSB-018"),
    ("no number is 8", [(back_xenbus, "number_of", _default(8))], "BUSB-012 BUSB-015"),
    ("a directory that goes is not noticed", [(BackendBus, "_remove", nothing)], "BUSB-013 BUSB-017 BUSB-021"),
    ("a state that is none is unheard", [(Device, "_frontend", lambda old: lambda device, path: old(device, path) if (device.frontend_get("state") or "x").isdecimal() else None)], "BUSB-012"),
    ("netback keeps what it has at Closed", [(netback.Netback, "_disconnect", nothing)], "BUSB-015 BUSB-021"),
    ("blkback keeps what it has at Closed", [(blkback.Blkback, "_disconnect", nothing)], "BUSB-015 BUSB-021"),
    ("the toolstack's state is overwritten", [(BackStore, "exists", always(False))], "BUSB-012 BUSB-015"),
]  # fmt: skip


def _never_sees(*states: State) -> Callable[[Any], Any]:
    def make(original: Any) -> Any:
        def look(walk: Any) -> Any:
            seen = original(walk)
            return State.INITIALISING if seen in states else seen

        return look

    return make


def _answers_late(original: Any) -> Any:
    """The keys are written when the state is."""

    def switch_state(walk: Any, state: State) -> bool:
        if state in (State.INITIALISED, State.CONNECTED):
            walk.store.write(f"{walk.path}/ring-ref", "0")
            walk.store.write(f"{walk.path}/tx-ring-ref", "0")
        return bool(original(walk, state))

    return switch_state


def _dies(original: Any) -> Any:
    del original
    return lambda walk: walk.domain.sched.shutdown(3)


def _offline_is_connected(original: Any) -> Any:
    def go_offline(walk: Any, goal: Any, seen: Any) -> None:
        original(walk, goal, seen)
        walk.switch_state(State.CONNECTED)

    return go_offline


def _conflict_raises(original: Any) -> Any:
    def end(store: Any, transaction: Any, *, commit: bool) -> bool:
        if not original(store, transaction, commit=commit):
            raise StoreError("EAGAIN", "somebody wrote there")
        return True

    return end


FRONT: list[tuple[str, list[Change], str]] = [
    ("states are not written", [(Handshake, "switch_state", always(True))], "BUSF-002 BUSF-007 BUSF-008 BUSF-010 BUSF-015"),
    ("InitWait is not seen", [(Handshake, "look", _never_sees(State.INIT_WAIT))], "BUSF-002 BUSF-007"),
    ("Closing is not seen", [(Handshake, "look", _never_sees(State.CLOSING))], "BUSF-002 BUSF-007"),
    ("keys are wrong", [(Handshake, "switch_state", _answers_late)], "BUSF-001 BUSF-005 BUSF-011 BUSF-012 BUSF-013 BUSF-014 BUSF-017"),
    ("a state that is none raises", [(handshake, "parse_state", lambda old: lambda text: State(int(text)))], "BUSF-004 BUSF-005"),
    ("a number of queues is read with int", [(features, "_queues", lambda _: int)], "BUSF-016"),
    ("after 120 s of waiting the guest dies", [(Handshake, "_repeat", _dies)], "BUSF-003"),
    ("who has no backend is Connected", [(Handshake, "_go_offline", _offline_is_connected)], "BUSF-009"),
    ("a commit that conflicts is an error", [(StoreClient, "transaction_end", _conflict_raises)], "BUSF-018"),
    ("grants are not revoked", [(GnttabInterface, "revoke_foreign_access", always(True))], "BUSF-006"),
]  # fmt: skip
