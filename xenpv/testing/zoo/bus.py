"""What XenBus drivers get wrong: event channels, states and the keys of a device."""

from __future__ import annotations

from typing import Any, Final

from xenpv.abi._kernel import lib
from xenpv.abi.xenbus import XenbusState as State
from xenpv.back import netback
from xenpv.back import xenbus as back_xenbus
from xenpv.back.netback import Netback
from xenpv.back.netqueue import NetQueue
from xenpv.back.store import BackStore
from xenpv.back.xenbus import Device
from xenpv.bus import awaited, evtchn_2l, handshake
from xenpv.bus.evtchn_2l import Processor2L
from xenpv.bus.evtchn_channels import EvtchnChannels
from xenpv.testing.zoo.defect import BOTH, Defect, forgets

FIRST_DIGIT: Final = len("queue-0")


def _late(bus: Any, channel: Any) -> None:
    """Called back, which looks at the ring, and only then acknowledged."""
    channel.count = (channel.count + 1) & 0xFFFFFFFF
    channel.callback()
    if channel.active:
        lib.evtchn_clear_pending(bus.kernel, channel.port)


def _acknowledges_late(original: Any) -> Any:
    def drain(bus: Any, channel: Any) -> None:
        if not channel.active:
            original(bus, channel)
            return
        if channel.auto_mask:
            lib.evtchn_mask(bus.domain.kernel, channel.port)
        _late(bus.domain, channel)

    return drain


def _acknowledges_late_2l(_original: Any) -> Any:
    def upcall(processor: Any) -> None:
        port = evtchn_2l.upcall_take(processor.handle)
        channel = processor._channels.get(port)
        if channel is not None:
            _late(processor._domain, channel)
        elif port < 0:
            processor._several(port)

    return upcall


def _forgets_pending(_original: Any) -> Any:
    def unmask(bus: Any, channel: Any, **_how: Any) -> bool:
        if channel.active:
            bus.domain.check(lib.evtchn_guest_unmask(bus.domain.kernel, channel.port))
        return False

    return unmask


def _skips_closing(original: Any) -> Any:
    def switch_state(device: Any, state: State) -> None:
        skips = state is State.CLOSING and device.state is State.CONNECTED
        original(device, State.CLOSED if skips else state)

    return switch_state


def _misses_first(original: Any) -> Any:
    def watch(store: Any, path: str, changed: Any) -> Any:
        missed: list[str] = []

        def later(changed_path: str) -> None:
            if missed:
                changed(changed_path)
            missed.append(changed_path)

        return original(store, path, later)

    return watch


def _believes_state(original: Any) -> Any:
    def state_of(text: str | None) -> State:
        return original(None) if text is None else State(int(text))

    return state_of


def _one_digit(original: Any) -> Any:
    def queue_home(index: int) -> str:
        return f"{original(index)[:FIRST_DIGIT]}/"

    return queue_home


def _ignores_script(_original: Any) -> Any:
    def hotplug_changed(vif: Any) -> None:
        if vif.state is State.CONNECTED:
            vif.device.switch_state(State.CONNECTED)

    return hotplug_changed


def _waits_for_connection(original: Any) -> Any:
    """A backend that closes with nobody whom it was not connected with (mirage, qubes#230)."""

    def follow(vif: Any, state: State) -> None:
        if vif.state is not State.INIT_WAIT or state is not State.CLOSING:
            original(vif, state)

    return follow


def _keeps_ports(original: Any) -> Any:
    def release(queue: Any) -> None:
        queue._ports.clear()
        original(queue)

    return release


def _keeps_port(original: Any) -> Any:
    def close(bus: Any, channel: Any) -> None:
        original(bus, channel)
        for dpc in bus._dpcs.values():
            dpc.closed.clear()

    return close


DEFECTS: Final = (
    Defect(
        id="evtchn-ack-late",
        end="bus",
        mutation="pending bit cleared after the ring was scanned",
        hunt="scenario:evtchn_wakeups_2l",
        changes=(
            (EvtchnChannels, "_drain", _acknowledges_late),
            (Processor2L, "upcall", _acknowledges_late_2l),
        ),
    ),
    Defect(
        id="evtchn-unmask-forgets",
        end="bus",
        mutation="unmask ignores that the port became pending",
        hunt="scenario:evtchn_wakeups_2l",
        changes=((EvtchnChannels, "unmask", _forgets_pending),),
    ),
    Defect(
        id="bus-skip-closing",
        end="backend",
        mutation="Connected → Closed at once",
        hunt="scenario:bus_handshake",
        changes=((Device, "switch_state", _skips_closing),),
    ),
    Defect(
        id="bus-miss-first-watch",
        end="backend",
        mutation="ignores the event at registration",
        hunt="scenario:bus_handshake",
        changes=((BackStore, "watch", _misses_first),),
    ),
    Defect(
        id="bus-garbage-state",
        end=BOTH,
        mutation="a non-numeric or unknown state raises",
        hunt="scenario:bus_garbage",
        changes=(
            (back_xenbus, "state_of", _believes_state),
            (handshake, "parse_state", _believes_state),
            (awaited, "parse_state", _believes_state),
        ),
    ),
    Defect(
        id="bus-queue-ten",
        end="netback",
        mutation="queue keys of two digits not understood",
        hunt="scenario:net_queues",
        changes=((netback, "queue_home", _one_digit),),
    ),
    Defect(
        id="bus-hotplug-ignored",
        end="netback",
        mutation="Connected before the hotplug script is done",
        hunt="scenario:bus_hotplug",
        changes=((Netback, "hotplug_changed", _ignores_script),),
    ),
    Defect(
        id="bus-close-unconnected",
        end="netback",
        mutation="a frontend that closes before it was connected is not answered",
        hunt="scenario:bus_handshake",
        changes=((Netback, "_follow", _waits_for_connection),),
    ),
    Defect(
        id="bus-ports-kept",
        end="netback",
        mutation="ports stay bound when a connection ends",
        hunt="scenario:bus_handshake",
        changes=((NetQueue, "release", _keeps_ports),),
    ),
    Defect(
        id="bus-error-untold",
        end="backend",
        mutation="a device is shut for its frontend's misdeeds, and no error node says so",
        hunt="scenario:bus_broken",
        changes=((Device, "_tell", forgets),),
    ),
    Defect(
        id="evtchn-port-kept",
        end="bus",
        mutation="a closed channel's port is not closed at the hypervisor",
        hunt="scenario:evtchn_wakeups_2l",
        changes=((EvtchnChannels, "close", _keeps_port),),
    ),
)
