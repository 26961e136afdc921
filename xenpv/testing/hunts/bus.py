"""Scenarios of the bus: wake-ups of both ABIs, handshakes, states that are none."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from xenpv.abi.xenbus import XenbusState as State
from xenpv.back.xenbus import Device
from xenpv.bus.evtchn import Channel, EvtchnInterface
from xenpv.testing.census import FREE, leaks, take_census
from xenpv.testing.explorer import Explorer
from xenpv.testing.hunts.netwire import wired
from xenpv.testing.hunts.steps import Steps
from xenpv.testing.raw_back import RawNetBack
from xenpv.testing.raw_front import RawFront
from xenpv.testing.raw_world import RawWorld
from xenpv.xen.domain import Domain
from xenpv.xen.loop import Task

TURNS: Final = 3
PAGES: Final = 16


class Listener:
    """A guest's end of a channel, which tells of a number in a page. `seen` is the last read.

    With `masks` it works as a DPC does: the channel is masked from the event on, until the
    task that read the number unmasks it. Without, the callback reads. `meanwhile` is what the
    teller does, on another processor, right after the first read.
    """

    def __init__(self, evtchn: EvtchnInterface, pfn: int, *, masks: bool) -> None:
        self.seen = 0
        self.told = 0
        self.meanwhile: list[Callable[[], object]] = []
        self._evtchn = evtchn
        self._domain: Domain = evtchn.domain
        self.pfn = pfn
        self._task: Task = self._domain.task("listener", self._poll)
        called = self._task.wake if masks else self.read
        self.channel: Channel = evtchn.open_unbound(0, called, mask=masks)
        evtchn.unmask(self.channel, force=True)

    def read(self) -> None:
        self.seen = self._domain.load32(self.pfn, 0)
        if self.meanwhile:
            self.meanwhile.pop()()

    def _poll(self) -> None:
        self.read()
        while self._evtchn.unmask(self.channel):
            self.read()


def _wakeups(x: Explorer, *, fifo: bool) -> None:
    """Dom0 changes a number in a guest's page and sends an event each time: whatever happens
    between the two, the guest has seen the last number when nothing happens any more.
    """
    xen = x.platform()
    domain = xen.dom0.domctl.create_domain(vcpus=1, max_pages=2 * PAGES, max_grant_frames=1)
    domain.populate(PAGES)
    domain.unpause()
    evtchn = EvtchnInterface(domain, fifo=fifo)
    listeners = []
    steps: list[Callable[[], object]] = []
    for masks in (False, True):
        pfn = domain.pages.alloc()
        listener = Listener(evtchn, pfn, masks=masks)
        listeners.append(listener)
        port = xen.dom0.evtchn.bind_interdomain(domain.domid, listener.channel.port)

        def tell(to: Listener = listener, port: int = port) -> None:
            to.told += 1
            domain.store32(to.pfn, 0, to.told)
            xen.dom0.evtchn.send(port)

        listener.meanwhile.append(tell)
        steps += [tell] * (TURNS - 1)
    Steps(steps).start(xen.dom0.task, "teller")
    x.run()
    Steps([partial(evtchn.close, one.channel) for one in listeners]).start(domain.task, "closer")
    x.run()
    used = [number for number, port in enumerate(domain.evtchn.ports) if port.state not in FREE]
    evtchn.forget()
    assert not used, f"ports {used} are in use, and no channel is open"
    for listener, how in zip(listeners, ("its callback reads", "masked meanwhile"), strict=True):
        # Of two tellers at once the earlier may be the last to write.
        last = domain.load32(listener.pfn, 0)
        assert listener.seen == last, f"a wake-up was lost ({how}): {listener.seen}, not {last}"


def evtchn_wakeups_2l(x: Explorer) -> None:
    """By the 2-level ABI."""
    _wakeups(x, fifo=False)


def evtchn_wakeups_fifo(x: Explorer) -> None:
    """By the FIFO ABI."""
    _wakeups(x, fifo=True)


# Handshakes


def _show(x: Explorer, world: RawWorld, front: RawFront, state: str | int) -> State:
    """A state of the frontend, written by its guest; what the backend's is then."""
    text = str(int(state)) if isinstance(state, int) else state
    Steps([lambda: front.write_key("state", text)]).start(world.guest.domain.task, "frontend")
    x.run()
    return front.backend_state


# What a frontend of a connected device writes, and the state that its backend ends up in.
CLOSE: Final = (
    (State.CLOSING, State.CLOSING),
    (State.CLOSED, State.CLOSED),
    (State.INITIALISING, State.INIT_WAIT),
    (State.CLOSING, State.CLOSING),
    (State.CLOSED, State.CLOSED),
    (State.INITIALISING, State.INIT_WAIT),
)


def bus_handshake(x: Explorer) -> None:
    """Frontends connect, close, open, close before they connected, and connect again: the
    backend goes where each state asks it to go, and by no shorter way.
    """
    world = wired(x)
    before = take_census(world.platform)
    x.begin()
    for front in (world.vif, world.vbd):
        for state, expected in CLOSE:
            found = _show(x, world, front, state)
            said = f"{front.kind}: its frontend is {state.name.lower()}"
            assert found is expected, f"{said}, it is {found.name.lower()}"
        front.attach()
        front.announce()
        x.run()
        assert front.backend_state is State.CONNECTED, f"{front.kind} does not connect again"
    left = [one for one in leaks(before, take_census(world.platform)) if one.startswith("dom0")]
    assert not left, "; ".join(left)


def bus_hotplug(x: Explorer) -> None:
    """A frontend connects before the hotplug script of its backend is done: the backend says
    that it is connected when it is, and not before.
    """
    world = wired(x, connect=False)
    front, xs = world.vif, world.guest.xs
    status = f"{front.backend_path}/hotplug-status"
    xs.rm(status)
    x.begin()
    x.run()
    front.attach()
    front.announce()
    x.run()
    early = front.backend_state
    assert early is State.INIT_WAIT, f"{early.name.lower()} before the script is done"
    Steps([lambda: xs.write(status, "connected")]).start(world.platform.dom0.task, "script")
    x.run()
    assert front.backend_state is State.CONNECTED, "the script is done, and it does not connect"


def bus_broken(x: Explorer) -> None:
    """Frontends name a ring that nobody granted, or no ring: the backend closes, and says why."""
    world = wired(x, connect=False)
    x.begin()
    x.run()
    for front, key in ((world.vif, "rx-ring-ref"), (world.vbd, "ring-ref")):
        front.attach()
        front.announce({key: "1000"})
        x.run()
        assert front.backend_key("error"), f"{front.kind}: no error says what is wrong"
        state = front.backend_state
        assert state is State.CLOSING, f"{front.kind}: it is {state.name.lower()}"


GARBAGE: Final = ("", "x", "9", "99999999999999999999", "-1", "4x", " 4", "\x00", "\xff")


def bus_garbage(x: Explorer) -> None:
    """A frontend writes states that are none: its backend goes on, and so do others."""
    world = wired(x, connect=False)
    x.begin()
    x.run()
    for text in GARBAGE:
        _show(x, world, world.vif, text)
    world.vbd.attach()
    world.vbd.announce()
    x.run()
    world.vbd.finish()


def _unconnected(device: Device) -> RawNetBack:
    """A backend that does not answer a connected frontend."""
    back = RawNetBack(device)
    del back.answers[State.CONNECTED]
    return back


def bus_garbage_back(x: Explorer) -> None:
    """A backend writes states that are none while its frontend waits: the guest goes on."""
    world = x.world_back(connect=False, vif=_unconnected)
    world.boot()
    assert world.vif.connected
    x.begin()
    back = world.vif
    for text in GARBAGE:
        Steps([partial(back.write_key, "state", text)]).start(back.domain.task, "backend")
        x.run()
    assert world.disk.read(0, 1) == bytes(512)


SCENARIOS: Final = (
    evtchn_wakeups_2l,
    evtchn_wakeups_fifo,
    bus_handshake,
    bus_hotplug,
    bus_broken,
    bus_garbage,
    bus_garbage_back,
)
