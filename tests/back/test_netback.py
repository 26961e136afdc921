"""netback as a device: its keys, its states, what it holds and gives back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.back.netfront import Net, frame, slot
from xenpv.abi.xenbus import XenbusState as State
from xenpv.back.netprofile import PATHS, TARGET
from xenpv.back.xenbus import Device
from xenpv.errors import LocalProtocolError
from xenpv.host.network import Frame
from xenpv.testing.raw_world import world_raw


@pytest.fixture
def net() -> Iterator[Net]:
    with world_raw(seed=4) as world:
        yield Net(world)


def pinned(net: Net) -> int:
    """Pages of the guest that a backend has mapped; the block ring is one of them."""
    return net.world.guest.domain.gnttab.pinned()


def device_of(net: Net) -> Device:
    device = net.world.vif.backend
    assert device is not None
    return device


def states(net: Net) -> list[str]:
    """Each state that the device was written into, in order."""
    prefix = f"{net.back.name}: "
    names = {state.name.lower() for state in State}
    notes = [note.text for note in net.world.platform.loop.trace.notes]
    texts = [text.removeprefix(prefix) for text in notes if text.startswith(prefix)]
    return [text for text in texts if text in names]


def test_the_features_it_has_are_in_the_store(net: Net) -> None:
    expected = {
        "feature-sg": "1",
        "feature-gso-tcpv4": "1",
        "feature-gso-tcpv6": "1",
        "feature-ipv6-csum-offload": "1",
        "feature-rx-copy": "1",
        "feature-rx-flip": "0",
        "feature-multicast-control": "1",
        "feature-dynamic-multicast-control": "1",
        "feature-xdp-headroom": "1",
        "feature-split-event-channels": "1",
        "multi-queue-max-queues": "1",
    }
    assert {key: net.world.vif.backend_key(key) for key in expected} == expected


@pytest.mark.parametrize("key", ["feature-no-csum-offload", "carrier"])
def test_what_it_has_not_is_not_claimed(net: Net, key: str) -> None:
    assert net.world.vif.backend_key(key) is None


def test_it_joins_its_bridge_while_connected(net: Net) -> None:
    assert net.back.name in net.world.bridge.ports
    net.world.vif.state = State.CLOSED
    net.world.run()
    assert "vif1.0" not in net.world.bridge.ports


# What the backend writes when the frontend goes to a state, from each state of its own.
WALKS = [
    ([], 1, ["closing", "closed", "init_wait"]),
    ([], 3, []),
    ([], 4, []),
    ([], 5, ["closing"]),
    ([], 6, ["closing", "closed"]),
    ([5], 1, ["closed", "init_wait"]),
    ([5], 4, ["closed", "init_wait", "connected"]),
    ([5], 5, []),
    ([5], 6, ["closed"]),
    ([6], 1, ["init_wait"]),
    ([6], 4, ["init_wait", "connected"]),
    ([6], 5, ["closing"]),
    ([6], 6, []),
    ([6, 1], 1, []),
    ([6, 1], 4, ["connected"]),
    ([6, 1], 5, ["closing"]),
    ([6, 1], 6, ["closing", "closed"]),
]


@pytest.mark.parametrize(("lead", "to", "written"), WALKS)
def test_every_intermediate_state_is_written(
    net: Net, lead: list[int], to: int, written: list[str]
) -> None:
    for state in [*lead, to]:
        before = len(states(net))
        net.world.vif.state = state
        net.world.run()
    assert states(net)[before:] == written


def test_a_path_exists_from_every_state_to_every_other() -> None:
    reachable = set(TARGET.values())
    own = {State.INITIALISING, State.INIT_WAIT, State.CONNECTED, State.CLOSING, State.CLOSED}
    assert set(PATHS) == {(here, there) for here in own for there in reachable if here is not there}
    for (_, there), steps in PATHS.items():
        assert steps[-1] is there


def test_connected_waits_for_the_hotplug_script(net: Net) -> None:
    front = net.world.vif
    path = f"{front.backend_path}/hotplug-status"
    front.state = State.CLOSED
    net.world.run()
    net.world.guest.xs.write(path, "")
    front.state = State.INITIALISING
    net.world.run()
    front.attach()
    front.announce()
    net.world.run()
    assert front.backend_key("state") == "2"
    net.world.guest.xs.write(path, "busy")
    net.world.run()
    assert front.backend_key("state") == "2"
    net.world.guest.xs.write(path, "connected")
    net.world.run()
    assert front.backend_state is State.CONNECTED


@pytest.mark.parametrize("close_with", [5, 6])
def test_closing_gives_rings_and_ports_back(net: Net, close_with: int) -> None:
    dom0 = net.world.platform.dom0
    ports, maps = dom0.evtchn.bound(), len(dom0.gnttab.maptrack)
    tasks, timers = len(dom0.tasks), len(dom0.timers)
    net.world.vif.state = close_with
    net.world.run()
    assert pinned(net) == 1
    assert dom0.evtchn.bound() == ports - 1
    assert len(dom0.gnttab.maptrack) == maps - 2
    assert len(dom0.tasks) == tasks - 3
    assert len(dom0.timers) == timers - 1
    assert net.world.vif.backend is not None


def test_a_hundred_reconnections_leave_nothing_behind(net: Net) -> None:
    front, dom0 = net.world.vif, net.world.platform.dom0
    before = (dom0.evtchn.bound(), len(dom0.gnttab.maptrack), len(dom0.tasks), len(dom0.timers))
    first = front.keys()
    for _ in range(100):
        front.state = State.CLOSED
        net.world.run()
        front.state = State.INITIALISING
        net.world.run()
        front.tx.ring.seek(0)
        for key, value in first.items():
            front.write_key(key, value)
        net.world.run()
        assert front.backend_state is State.CONNECTED
    after = (dom0.evtchn.bound(), len(dom0.gnttab.maptrack), len(dom0.tasks), len(dom0.timers))
    assert before == after


BAD_KEYS = [
    {"tx-ring-ref": None},
    {"rx-ring-ref": None},
    {"event-channel": None},
    {"tx-ring-ref": "junk"},
    {"tx-ring-ref": "99999"},
    {"rx-ring-ref": "4294967295"},
    {"rx-ring-ref": "4294967296"},
    {"rx-ring-ref": "-1"},
    {"event-channel": "0"},
    {"event-channel": "1022"},
    {"event-channel": "18446744073709551616"},
    {"multi-queue-num-queues": "0"},
    {"multi-queue-num-queues": "2"},
    {"multi-queue-num-queues": "4294967295"},
]


@pytest.mark.parametrize("bad", BAD_KEYS, ids=str)
def test_keys_that_cannot_be_end_in_closing_with_nothing_held(
    net: Net, bad: dict[str, str | None]
) -> None:
    front, dom0 = net.world.vif, net.world.platform.dom0
    front.state = State.CLOSED
    net.world.run()
    idle = (dom0.evtchn.bound(), len(dom0.gnttab.maptrack), len(dom0.tasks), len(dom0.timers))
    for key in front.keys():
        if key != "state":
            front.remove_key(key)
    front.state = State.INITIALISING
    net.world.run()
    front.attach()
    front.announce(bad)
    net.world.run()
    assert front.backend_key("state") == "5"
    assert device_of(net).broken
    assert front.backend_key("error")
    assert idle == (
        dom0.evtchn.bound(), len(dom0.gnttab.maptrack), len(dom0.tasks), len(dom0.timers)
    )  # fmt: skip
    front.state = State.CLOSED
    net.world.run()
    assert front.backend_state is State.CLOSED


def test_a_ring_with_more_requests_than_slots_is_refused(net: Net) -> None:
    front = net.world.vif
    front.state = State.CLOSED
    net.world.run()
    front.state = State.INITIALISING
    net.world.run()
    front.attach()
    front.rx.req_prod = 257
    front.announce()
    net.world.run()
    assert front.backend_state is State.CLOSING
    assert pinned(net) == 1


def test_a_disabled_vif_comes_back_with_a_new_connection(net: Net) -> None:
    front = net.world.vif
    front.tx.req_prod = 1000
    front.notify()
    net.world.run()
    assert net.back.disabled
    front.state = State.CLOSED
    net.world.run()
    front.state = State.INITIALISING
    net.world.run()
    front.attach()
    front.announce()
    net.world.run()
    front.finish()
    assert not device_of(net).broken
    data = frame(60)
    assert net.send([slot(net.page(data), 0, 0, 1, 60)]) == [(1, 0)]
    assert net.sink.data == [data]


def test_an_offline_device_is_done_when_its_frontend_closes(net: Net) -> None:
    front = net.world.vif
    net.world.guest.xs.write(f"{front.backend_path}/online", "0")
    front.state = State.CLOSED
    net.world.run()
    assert front.backend_state is State.CLOSED
    assert front.backend_key("hotplug-status") is None
    front.state = State.INITIALISING
    net.world.run()
    assert front.backend_state is State.CLOSED


def test_a_frontend_that_vanishes_closes_the_device(net: Net) -> None:
    back = net.back
    net.world.vif.remove_key("")
    net.world.run()
    assert net.world.vif.backend_state is State.CLOSED
    assert pinned(net) == 1
    assert back.queues == []


def test_a_backend_directory_that_goes_is_a_hot_unplug(net: Net) -> None:
    net.world.guest.xs.rm(net.world.vif.backend_path)
    net.world.run()
    assert net.world.vif.backend is None
    assert pinned(net) == 1


@pytest.mark.parametrize("key", ["script", "mac"])
def test_a_device_without_what_the_toolstack_owes_is_an_error(net: Net, key: str) -> None:
    front, xs = net.world.vif, net.world.guest.xs
    keys = {name: xs.read(f"{front.backend_path}/{name}") for name in
            ("frontend", "frontend-id", "script", "mac", "bridge", "online")}  # fmt: skip
    xs.rm(front.backend_path)
    net.world.run()
    front.state = State.INITIALISING
    for name, value in keys.items():
        if name != key and value is not None:
            xs.write(f"{front.backend_path}/{name}", value)
    xs.write(f"{front.backend_path}/state", "1")
    net.world.run()
    assert front.backend_state is State.CLOSING
    assert front.backend_key("error") == f"22 reading {key}"


def test_the_guest_dies_while_connected(net: Net) -> None:
    domain = net.world.guest.domain
    net.world.platform.dom0.domctl.destroy_domain(domain)
    net.world.bridge.transmit(net.sink, [Frame(frame(60))], 0)
    net.world.run()
    net.world.vif.remove_key("")
    net.world.run()
    assert net.back.queues == []


def test_two_event_channels_serve_the_two_rings(net: Net) -> None:
    front, guest = net.world.vif, net.world.guest
    front.state = State.CLOSED
    net.world.run()
    front.state = State.INITIALISING
    net.world.run()
    front.attach()
    heard: list[str] = []
    tx = guest.evtchn.open_unbound(0, lambda: heard.append("tx"))
    rx = guest.evtchn.open_unbound(0, lambda: heard.append("rx"))
    for channel in (tx, rx):
        guest.evtchn.unmask(channel, force=True)
    front.announce(
        {
            "event-channel": None,
            "event-channel-tx": str(tx.port),
            "event-channel-rx": str(rx.port),
        }
    )
    net.world.run()
    front.finish()
    net.world.run()
    heard.clear()
    data = frame(60)
    front.tx.push(slot(net.page(data), 0, 0, 1, 60), 1)
    guest.domain.evtchn.send(tx.port)
    net.world.run()
    assert heard == ["tx"]
    assert net.sink.data == [data]
    net.post_silently(1)
    guest.domain.evtchn.send(rx.port)
    net.deliver(Frame(frame(61)))
    assert heard == ["tx", "rx"]


def test_a_port_of_the_same_name_is_a_bug_of_ours(net: Net) -> None:
    with pytest.raises(LocalProtocolError):
        net.world.bridge.attach(net.back)
