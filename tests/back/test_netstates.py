"""What each netback writes as its frontend goes from state to state."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.back.netfront import Net, frame, slot
from tests.back.netscene import connect, scene, states
from xenpv.abi.xenbus import XenbusState as State
from xenpv.back.xenbus import Device
from xenpv.host.xs import XsHandle

# From (the frontend's states that lead there), the next state, what is written.
LINUX = [
    ([4], 7, ["reconfigured"]),
    ([4, 7], 4, []),
    ([4, 7], 7, []),
    ([4, 7], 5, ["closing"]),
    ([4, 7], 6, ["closing", "closed"]),
    ([4, 7], 1, ["closing", "closed", "init_wait"]),
    ([4, 5], 7, ["reconfigured"]),
    ([4, 6], 7, ["reconfigured"]),
    ([4], 0, ["closing", "closed"]),
    ([4, 5], 0, ["closed"]),
    ([4], 2, ["closing"]),
    ([4], 8, ["closing"]),
    ([4], 9, ["closing", "closed"]),
    ([6, 1], 4, ["connected"]),
    ([5, 1], 4, ["connected"]),
    ([6], 4, ["init_wait", "connected"]),
    ([5], 4, ["closed", "init_wait", "connected"]),
    ([6, 1, 6, 1], 5, ["closing"]),
]
QEMU = [
    ([], 4, ["connected"]),
    ([], 3, []),
    ([], 1, []),
    ([], 5, ["closing"]),
    ([], 6, ["closed"]),
    ([6], 1, ["init_wait"]),
    ([6], 4, ["connected"]),
    ([6], 5, ["closing"]),
    ([5], 1, []),
    ([5], 4, ["connected"]),
    ([5], 6, ["closed"]),
    ([4], 1, []),
    ([4], 3, []),
    ([4], 5, ["closing"]),
    ([4], 6, ["closed"]),
    ([4], 7, []),
    ([4], 2, []),
    ([4, 5], 6, ["closed"]),
    ([4, 6], 1, ["init_wait"]),
    ([4, 6, 1], 4, ["connected"]),
]
MIRAGE = [
    ([], 3, ["connected"]),
    ([], 4, ["connected"]),
    ([], 1, []),
    ([], 5, ["closed"]),
    ([], 6, ["closed"]),
    ([5], 6, []),
    ([5, 6], 1, ["init_wait"]),
    ([6], 4, ["init_wait", "connected"]),
    ([6, 1], 4, ["connected"]),
    ([4], 1, []),
    ([4], 5, ["closed"]),
    ([4], 6, ["closed"]),
]
ROWS = [
    *(("linux", *row) for row in LINUX),
    *(("qemu", *row) for row in QEMU),
    *(("mirage", *row) for row in MIRAGE),
]


@pytest.mark.parametrize(("profile", "lead", "to", "written"), ROWS)
def test_what_is_written(profile: str, lead: list[int], to: int, written: list[str]) -> None:
    with scene(profile) as net:
        front = net.world.vif
        for key, value in front.keys().items():
            if key != "state":
                front.write_key(key, value)
        before = 0
        back = net.back
        for state in [*lead, to]:
            before = len(states(net, back.name))
            front.state = state
            net.world.run()
        assert states(net, back.name)[before:] == written


@pytest.mark.parametrize(("profile", "first"), [("linux", "2"), ("qemu", "2"), ("mirage", "2")])
def test_a_new_device_goes_to_init_wait(profile: str, first: str) -> None:
    with scene(profile) as net:
        assert net.world.vif.backend_key("state") == first


@pytest.mark.parametrize(
    ("profile", "waits"), [("linux", True), ("qemu", False), ("mirage", False)]
)
def test_whether_it_waits_for_its_frontend_to_be_initialising(profile: str, waits: bool) -> None:
    with scene(profile) as net:
        front, xs = net.world.vif, net.world.guest.xs
        keys = {name: xs.read(f"{front.backend_path}/{name}") for name in
                ("frontend", "frontend-id", "script", "mac", "bridge", "online")}  # fmt: skip
        front.state = State.UNKNOWN
        xs.rm(front.backend_path)
        net.world.run()
        xs.write_all(front.backend_path, {name: text or "" for name, text in keys.items()})
        xs.write(f"{front.backend_path}/state", "1")
        net.world.run()
        assert front.backend_key("state") == ("1" if waits else "2")


# What is in the directory, beside the toolstack's keys.
KEYS = {
    "linux": {
        "feature-sg": "1", "feature-gso-tcpv4": "1", "feature-gso-tcpv6": "1",
        "feature-ipv6-csum-offload": "1", "feature-rx-copy": "1", "feature-rx-flip": "0",
        "feature-multicast-control": "1", "feature-dynamic-multicast-control": "1",
        "feature-xdp-headroom": "1", "feature-split-event-channels": "1",
        "multi-queue-max-queues": "1", "feature-ctrl-ring": "1",
    },
    "qemu": {"feature-rx-copy": "1", "feature-rx-flip": "0"},
    "mirage": {
        "feature-sg": "1", "feature-gso-tcpv4": "0", "feature-rx-copy": "1",
        "feature-rx-flip": "0", "feature-rx-notify": "1", "feature-smart-poll": "0",
    },
}  # fmt: skip


@pytest.mark.parametrize("profile", list(KEYS))
def test_the_features_that_each_writes(profile: str) -> None:
    with scene(profile) as net:
        xs = net.world.guest.xs
        names = xs.directory(net.world.vif.backend_path)
        found = {
            name: net.world.vif.backend_key(name)
            for name in names
            if name.startswith(("feature-", "multi-queue"))
        }
    assert found == KEYS[profile]


# What is written when the directory is new, in order; "state" is InitWait.
ORDER = {
    "linux": [
        "feature-sg", "feature-gso-tcpv4", "feature-gso-tcpv6", "feature-ipv6-csum-offload",
        "feature-rx-copy", "feature-rx-flip", "feature-multicast-control",
        "feature-dynamic-multicast-control", "feature-xdp-headroom",
        "feature-split-event-channels", "multi-queue-max-queues", "feature-ctrl-ring", "state",
    ],
    "qemu": ["feature-rx-copy", "feature-rx-flip", "state"],
    "mirage": [
        "feature-sg", "feature-gso-tcpv4", "feature-rx-copy", "feature-rx-flip",
        "feature-rx-notify", "feature-smart-poll", "state",
    ],
}  # fmt: skip


@pytest.mark.parametrize("profile", list(ORDER))
def test_the_order_of_what_is_written(profile: str) -> None:
    with scene(profile) as net:
        front, xs = net.world.vif, net.world.guest.xs
        keys = {name: xs.read(f"{front.backend_path}/{name}") or "" for name in
                ("frontend", "frontend-id", "script", "mac", "bridge", "online")}  # fmt: skip
        xs.rm(front.backend_path)
        net.world.run()
        xs.write_all(front.backend_path, {**keys, "state": "1"})
        watcher = XsHandle(net.world.platform.xenstored.connect_local("a test"))
        watcher.watch(front.backend_path, "t")
        watcher.connection.events.clear()
        net.world.run()
        seen = [path.decode().rpartition("/")[2] for path, _ in watcher.connection.events]
        assert seen == ORDER[profile]


@pytest.mark.parametrize("to", [5, 6, 1])
def test_rings_and_ports_are_given_back_before_the_state_is_left(to: int) -> None:
    with scene() as net:
        connect(net)
        held: list[tuple[str | None, int, int]] = []
        front, guest = net.world.vif, net.world.guest
        dom0 = net.world.platform.dom0
        ports = dom0.evtchn.bound()
        device = front.backend
        assert device is not None
        switch = device.switch_state

        def look(state: State) -> None:
            held.append((str(int(state)), guest.domain.gnttab.pinned(), dom0.evtchn.bound()))
            switch(state)

        net.back.device = Shown(device, look)  # type: ignore[assignment]  # all but one method
        front.state = to
        net.world.run()
        assert held[0] == ("5", 0, ports - 1)


class Shown:
    """A device, with another switch_state."""

    def __init__(self, device: Device, look: Callable[[State], None]) -> None:
        self._device = device
        self.switch_state = look

    def __getattr__(self, name: str) -> object:
        return getattr(self._device, name)


def test_qemu_writes_the_address_for_the_frontend() -> None:
    with scene("qemu") as net:
        assert net.world.vif.read_key("mac") == "00:16:3e:00:00:01"


def test_mirage_deletes_the_directory_of_one_that_was_connected() -> None:
    with scene("mirage") as net:
        connect(net)
        assert net.world.vif.backend_state is State.CONNECTED
        net.world.vif.state = State.CLOSING
        net.world.run()
        assert net.world.vif.backend_key("state") is None
        assert net.world.vif.backend is None
        assert net.world.guest.domain.gnttab.pinned() == 0


@pytest.mark.parametrize("profile", ["qemu", "mirage"])
def test_only_linux_waits_for_a_script(profile: str) -> None:
    with scene(profile) as net:
        net.world.guest.xs.write(f"{net.world.vif.backend_path}/hotplug-status", "")
        connect(net)
        assert net.world.vif.backend_state is State.CONNECTED


def test_a_script_that_ends_twice_says_connected_once() -> None:
    with scene() as net:
        path = f"{net.world.vif.backend_path}/hotplug-status"
        net.world.guest.xs.write(path, "")
        connect(net)
        assert net.world.vif.backend_key("state") == "2"
        net.world.guest.xs.write(path, "connected")
        net.world.run()
        net.world.vif.state = State.RECONFIGURING
        net.world.run()
        net.world.guest.xs.write(path, "connected")
        net.world.run()
        assert states(net)[-2:] == ["connected", "reconfigured"]


def test_a_frontend_that_closes_before_the_script_is_done() -> None:
    with scene() as net:
        path = f"{net.world.vif.backend_path}/hotplug-status"
        net.world.guest.xs.write(path, "")
        connect(net)
        net.world.vif.state = State.CLOSED
        net.world.run()
        net.world.guest.xs.write(path, "connected")
        net.world.run()
        assert states(net)[-2:] == ["closing", "closed"]
        assert net.world.vif.backend_state is State.CLOSED


@pytest.mark.parametrize("state", [2, 8])
def test_a_state_that_no_frontend_has_ends_in_closing_with_nothing_held(state: int) -> None:
    with scene() as net:
        connect(net)
        net.world.vif.state = state
        net.world.run()
        assert net.world.vif.backend_key("state") == "5"
        assert net.world.vif.backend_key("error") == f"22 saw state {state} at frontend"
        assert net.back.queues == []
        net.world.vif.state = State.CLOSED
        net.world.run()
        assert net.world.vif.backend_state is State.CLOSED


@pytest.mark.parametrize("profile", ["linux", "qemu", "mirage"])
@settings(max_examples=40, deadline=None)
@given(walk=st.lists(st.integers(0, 9), max_size=12))
def test_a_connection_works_after_any_walk(profile: str, walk: list[int]) -> None:
    """Closed to Initialising loops, states that are none, and all in between."""
    with scene(profile) as net:
        dom0, front = net.world.platform.dom0, net.world.vif
        idle = (dom0.evtchn.bound(), len(dom0.gnttab.maptrack), len(dom0.tasks), len(dom0.timers))
        for key, value in front.keys().items():
            if key != "state":
                front.write_key(key, value)
        back = net.back
        for state in walk:
            front.state = state
            net.world.run()
            assert (back.state is State.CONNECTED) == bool(back.queues)
        front.state = State.CLOSED
        net.world.run()
        # A vanished frontend ends the device, and mirage's goes when it closes.
        if 0 not in walk and 9 not in walk and front.backend is not None:
            front.state = State.INITIALISING
            net.world.run()
            front.attach()
            connect(net)
            front.finish()
            data = frame(60)
            assert net.send([slot(net.page(data), 0, 0, 1, 60)]) == [(1, 0)]
            assert net.sink.data == [data]
            front.state = State.CLOSED
            net.world.run()
        assert idle == (
            dom0.evtchn.bound(), len(dom0.gnttab.maptrack), len(dom0.tasks), len(dom0.timers)
        )  # fmt: skip


@pytest.mark.parametrize("profile", ["linux", "qemu", "mirage"])
@pytest.mark.parametrize("lead", [[], [4], [4, 5], [4, 6], [5], [6], [6, 1]])
def test_a_directory_that_goes_at_any_step_leaves_nothing(profile: str, lead: list[int]) -> None:
    with scene(profile) as net:
        dom0, front = net.world.platform.dom0, net.world.vif
        idle = (dom0.evtchn.bound(), len(dom0.gnttab.maptrack), len(dom0.tasks), len(dom0.timers))
        for key, value in front.keys().items():
            if key != "state":
                front.write_key(key, value)
        for state in lead:
            front.state = state
            net.world.run()
        net.world.guest.xs.rm(front.backend_path)
        net.world.run()
        front.state = State.CONNECTED
        net.world.run()
        assert front.backend is None
        assert front.backend_key("state") is None
        assert idle == (
            dom0.evtchn.bound(), len(dom0.gnttab.maptrack), len(dom0.tasks), len(dom0.timers)
        )  # fmt: skip


def port_of(net: Net) -> bool:
    return net.back.name in net.world.bridge.ports


@pytest.mark.parametrize("profile", ["linux", "qemu", "mirage"])
def test_it_is_a_port_of_its_bridge_while_it_is_connected(profile: str) -> None:
    with scene(profile) as net:
        assert not port_of(net)
        connect(net)
        assert port_of(net)
        name = net.back.name
        net.world.vif.state = State.CLOSED
        net.world.run()
        assert name not in net.world.bridge.ports
