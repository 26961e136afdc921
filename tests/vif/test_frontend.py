"""The walk to Connected and back, the keys on the way, and what is left at the end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.vif.rawback import MAC, RawBack, Scene, frame, scene
from xenpv.abi.xenbus import XenbusState as State
from xenpv.bus.handshake import ABSENT, Do, Goal
from xenpv.bus.store import StoreInterface
from xenpv.bus.store_client import RM, WRITE
from xenpv.errors import StoreError
from xenpv.host.device import Device as HostDevice
from xenpv.platform import Platform, Vif
from xenpv.vif.frontend import FrontendState
from xenpv.vif.states import LINUX, WINDOWS
from xenpv.xen.loop import NS_PER_S

# spec: XENVIF's columns; what is not here is waited out.
XENVIF = [
    (Goal.PREPARE, ABSENT, Do.OFFLINE),
    (Goal.PREPARE, State.UNKNOWN, Do.OFFLINE),
    (Goal.PREPARE, State.INIT_WAIT, Do.DONE),
    (Goal.PREPARE, State.CONNECTED, State.CLOSING),
    (Goal.PREPARE, State.CLOSING, State.CLOSED),
    (Goal.PREPARE, State.CLOSED, Do.REOPEN),
    (Goal.CONNECT, ABSENT, Do.OFFLINE),
    (Goal.CONNECT, State.UNKNOWN, Do.OFFLINE),
    (Goal.CONNECT, State.INIT_WAIT, State.CONNECTED),
    (Goal.CONNECT, State.INITIALISED, State.CONNECTED),
    (Goal.CONNECT, State.CONNECTED, Do.DONE),
    (Goal.CONNECT, State.CLOSING, State.CLOSED),
    (Goal.CLOSE, ABSENT, Do.OFFLINE),
    (Goal.CLOSE, State.UNKNOWN, Do.OFFLINE),
    (Goal.CLOSE, State.INIT_WAIT, State.CLOSING),
    (Goal.CLOSE, State.CONNECTED, State.CLOSING),
    (Goal.CLOSE, State.CLOSING, State.CLOSED),
    (Goal.CLOSE, State.CLOSED, Do.DONE),
]


def test_the_windows_table_is_xenvif_s() -> None:
    rows = [(goal, state, step) for goal, row in WINDOWS.items() for state, step in row.items()]
    assert rows == XENVIF


def test_a_linux_frontend_never_asks_to_be_ejected() -> None:
    assert Do.OFFLINE not in [step for row in LINUX.values() for step in row.values()]


def test_windows_closes_before_it_connects() -> None:
    with scene() as s:
        assert [int(state) for state in s.back.states] == [1, 5, 6, 1, 4]


def test_linux_connects_at_once() -> None:
    with scene("linux") as s:
        assert [int(state) for state in s.back.states] == [1, 4]


def written(personality: str, features: dict[str, str], *, vcpus: int = 1) -> list[str]:
    """Keys below the frontend's directory in the order of their writing, state included."""
    keys: list[str] = []
    request, many = StoreInterface.request, StoreInterface.request_many

    def note(kind: int, payload: bytes) -> None:
        path, _, value = payload.decode().partition("\0")
        if path.startswith("device/vif/0/") and kind in (WRITE, RM):
            keys.append(f"{path[13:]}={value}" if kind == WRITE else f"-{path[13:]}")

    def record(self: StoreInterface, kind: int, payload: bytes, tx_id: int = 0) -> bytes:
        note(kind, payload)
        return request(self, kind, payload, tx_id)

    def record_many(
        self: StoreInterface, requests: Sequence[tuple[int, bytes]], tx_id: int = 0
    ) -> list[bytes | StoreError]:
        for one in requests:
            note(*one)
        return many(self, requests, tx_id)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreInterface, "request", record)
        patch.setattr(StoreInterface, "request_many", record_many)
        with scene(personality, features, vcpus=vcpus):
            pass
    last = max(at for at, key in enumerate(keys) if key == "state=4")
    first = max(at for at, key in enumerate(keys[:last]) if key.startswith("state="))
    return keys[first + 1 : last + 1]


def names(keys: list[str]) -> list[str]:
    """Without the values that are references and ports."""
    return [key.split("=")[0] if "ref" in key or "channel" in key else key for key in keys]


COMMON = [
    "request-rx-copy=1",
    "feature-sg=1",
    "feature-rx-notify=1",
    "-feature-gso-tcpv4-prefix",
    "feature-gso-tcpv4=1",
    "-feature-gso-tcpv6-prefix",
    "feature-gso-tcpv6=1",
    "feature-no-csum-offload=0",
    "feature-ipv6-csum-offload=1",
]


def test_windows_writes_its_keys_in_xenvif_s_order() -> None:
    keys = names(written("windows", {"feature-sg": "1"}))
    assert keys == [
        *COMMON, "rx-ring-ref", "event-channel", "tx-ring-ref", "multi-queue-num-queues=1",
        "state=4",
    ]  # fmt: skip


def test_split_channels_have_a_key_each() -> None:
    keys = names(written("windows", {"feature-split-event-channels": "1"}))
    assert keys == [
        *COMMON, "rx-ring-ref", "event-channel-rx", "tx-ring-ref", "event-channel-tx",
        "multi-queue-num-queues=1", "state=4",
    ]  # fmt: skip


def test_two_queues_have_directories_and_no_flat_keys() -> None:
    keys = names(written("windows", {"multi-queue-max-queues": "2"}, vcpus=4))
    assert keys == [
        *COMMON,
        "queue-0/rx-ring-ref", "queue-0/event-channel",
        "queue-1/rx-ring-ref", "queue-1/event-channel",
        "queue-0/tx-ring-ref", "queue-1/tx-ring-ref",
        "multi-queue-num-queues=2", "state=4",
    ]  # fmt: skip


def test_linux_writes_queues_first_and_their_number_only_if_asked() -> None:
    assert names(written("linux", {}))[:4] == [
        "tx-ring-ref", "rx-ring-ref", "event-channel", "request-rx-copy=1",
    ]  # fmt: skip
    assert names(written("linux", {"multi-queue-max-queues": "1"}))[0] == "multi-queue-num-queues=1"


@pytest.mark.parametrize(
    ("personality", "feature", "told"),
    [
        ("linux", "1", "0"),
        ("linux", "0", None),
        ("linux", None, None),
        ("linux", "", None),
        ("windows", "1", None),
    ],
)
def test_linux_tells_a_backend_that_asks_that_it_needs_no_headroom(
    personality: str, feature: str | None, told: str | None
) -> None:
    features = {} if feature is None else {"feature-xdp-headroom": feature}
    with scene(personality, features) as s:
        assert s.key("xdp-headroom") == told
        s.back.send(frame(100))
        s.run()
        assert list(s.nic.received) == [frame(100)]


@pytest.mark.parametrize(
    ("offered", "vcpus", "queues"),
    [(None, 4, 1), ("1", 4, 1), ("4", 2, 2), ("2", 8, 2), ("99", 16, 8)],
)
def test_queues_are_limited_by_backend_vcpus_and_eight(
    offered: str | None, vcpus: int, queues: int
) -> None:
    features = {} if offered is None else {"multi-queue-max-queues": offered}
    with scene(features=features, vcpus=vcpus) as s:
        assert len(s.pdo.frontend.queues) == queues


@pytest.mark.parametrize(
    ("value", "on"), [("1", True), ("1x", True), ("10", True), ("0", False), ("2", False), ("", False), ("x1", False)]
)  # fmt: skip
def test_windows_reads_flags_in_base_2(value: str, on: bool) -> None:
    with scene(features={"feature-split-event-channels": value}) as s:
        assert len(s.pdo.frontend.queues[0].pollers) == (2 if on else 1)


def test_an_interface_is_advertised_while_it_is_connected() -> None:
    with scene() as s:
        assert s.attr("attr/vif/0/name") == "Ethernet"
        assert s.attr("attr/vif/0/mac/0") == MAC
        assert s.attr("feature/hotplug/vif") == "1"
        drivers = [s.attr(f"drivers/{index}") for index in range(4)]
        assert "Xen_Project XENVIF 9.1.0.0 " in drivers
        s.pdo.eject()
        s.run()
        assert s.attr("attr/vif/0/name") is None
        assert s.attr("attr/vif/0/mac/0") is None


def test_linux_advertises_nothing() -> None:
    with scene("linux") as s:
        assert s.attr("attr/vif/0/name") is None
        assert s.attr("feature/hotplug/vif") is None


def test_a_multicast_list_is_advertised_behind_the_address() -> None:
    with scene() as s:
        s.nic.set(0x1010103, bytes.fromhex("01005e000001 333300000001"))
        listed = [s.attr(f"attr/vif/0/mac/{index}") for index in range(4)]
        assert listed == [MAC, "01:00:5e:00:00:01", "33:33:00:00:00:01", None]


def held(s: Scene) -> tuple[int, list[int], list[str], int]:
    """References out, ports of devices, watches, pages that somebody maps."""
    bus = s.guest.bus
    assert bus is not None
    ports = [
        channel.port
        for channel in bus.evtchn.channels()
        if channel.type.name not in ("FIXED", "VIRQ")
    ]
    paths = [watch.path for watch in bus.store.watches() if "vif" in watch.path]
    return bus.gnttab.permitted, ports, paths, len(s.pdo.frontend.queues) if s.guest.nets else 0


@pytest.mark.parametrize("personality", ["windows", "linux"])
@pytest.mark.parametrize("split", ["0", "1"])
def test_closing_leaves_nothing_behind(personality: str, split: str) -> None:
    with scene(personality, {"feature-sg": "1", "feature-split-event-channels": split}) as s:
        s.nic.send_many([frame(1000)] * 30)
        s.back.send(*[frame(200)] * 30)
        s.run()
        domain = s.guest.created.domain
        tasks, pages = len(domain.tasks), len(domain.pages._free.get(1, []))
        vif = s.guest._vif
        assert vif is not None
        vif.stop()
        s.run()
        assert vif.stopped
        permitted, ports, paths, _ = held(s)
        assert (permitted, ports, paths) == (0, [], [])
        assert len(domain.tasks) < tasks
        assert len(domain.pages._free[1]) > pages
        assert [int(state) for state in s.back.states][-2:] == [5, 6]


def test_the_rings_are_given_back_after_the_close_handshake() -> None:
    with scene() as s:
        assert s.guest.bus is not None
        before = s.guest.bus.gnttab.permitted
        s.back.answers[State.CLOSED] = State.CLOSING  # it never gets to Closed
        s.pdo.eject()
        s.run()
        assert s.guest.bus.gnttab.permitted == before
        s.back.device.switch_state(State.CLOSED)
        s.run()
        assert s.guest.bus.gnttab.permitted == 0


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_packets_in_flight_come_back_when_the_interface_closes(personality: str) -> None:
    with scene(personality) as s:
        nic = s.nic
        nic.send_many([frame(1000)] * 300)
        s.pdo.eject()
        s.run()
        assert nic.in_flight == 0
        assert nic.statistics.sent_dropped == 300


def test_online_0_ejects_the_device_and_it_is_not_made_again() -> None:
    with scene() as s:
        xs = s.xen.toolstack.xs
        path = s.back.device.path
        xs.write(f"{path}/online", "0")
        s.run()
        assert s.guest.nets == []
        assert s.back.device.state is State.CLOSED
        permitted, ports, _, _ = held(s)
        assert (permitted, ports) == (0, [])
        s.xen.advance(600)
        assert s.guest.nets == []


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_the_toolstack_s_unplug_closes_both_ends(personality: str) -> None:
    with scene(personality) as s:
        xs, path = s.xen.toolstack.xs, s.back.device.path
        xs.write(f"{path}/online", "0")
        xs.write(f"{path}/state", "5")
        s.run()
        assert s.guest.nets == []
        assert xs.read(f"{path}/state") == "6"
        assert held(s)[:2] == (0, [])


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_a_directory_that_vanishes_takes_the_device_along(personality: str) -> None:
    with scene(personality) as s:
        nic = s.nic
        nic.send(frame(100))
        s.xen.toolstack.xs.rm(f"/local/domain/{s.guest.domid}/device/vif/0")
        s.run()
        assert s.guest.nets == []
        assert nic.in_flight == 0
        assert held(s)[:3] == (0, [], ["device/vif"])


def plug(s: Scene, devid: int) -> None:
    """A second interface, as the toolstack would add it."""
    old = s.guest.created.devices[0]
    new = HostDevice(
        kind="vif", devid=devid, domid=old.domid, backend_domid=0, back=dict(old.back),
        front={**old.front, "mac": "00:16:3e:00:00:02"}, front_ro=dict(old.front_ro),
    )  # fmt: skip
    new.add(s.xen.toolstack.xs)
    s.run()


def test_an_interface_may_be_plugged_in_later() -> None:
    with scene() as s:
        plug(s, 1)
        assert [nic.number for nic in s.guest.nets] == [0, 1]
        assert s.guest.nets[1].mac == bytes.fromhex("00163e000002")
        assert s.attr("attr/vif/1/name") == "Ethernet 2"


@pytest.mark.parametrize("mac", ["", "junk", "01:00:5e:00:00:01", "00:16:3e:00:00", None])
def test_a_mac_that_is_none_makes_no_device(mac: str | None) -> None:
    with scene(connect=False) as s:
        path = f"/local/domain/{s.guest.domid}/device/vif/0/mac"
        if mac is None:
            s.xen.toolstack.xs.rm(path)
        else:
            s.xen.toolstack.xs.write(path, mac)
        s.xen.toolstack.unpause(s.guest.created)
        s.run()
        assert s.guest.nets == []


REFUSED = [
    ({"multi-queue-max-queues": "0"}, None),
    ({"multi-queue-max-queues": "x"}, None),
    ({}, "59"),
    ({}, "junk"),
    ({}, "-1"),
]


@pytest.mark.parametrize(("features", "mtu"), REFUSED)
def test_what_cannot_be_connected_is_closed_again(
    features: dict[str, str], mtu: str | None
) -> None:
    with scene(features=features, connect=False) as s:
        if mtu is not None:
            s.xen.toolstack.xs.write(f"/local/domain/{s.guest.domid}/device/vif/0/mtu", mtu)
        s.xen.toolstack.unpause(s.guest.created)
        s.run()
        assert s.guest.nets == []
        assert s.pdo.frontend.error
        assert s.pdo.frontend.state is FrontendState.CLOSED
        assert s.back.device.state is State.CLOSED
        assert held(s)[:2] == (0, [])


def test_references_that_run_out_close_the_device_again() -> None:
    with scene(connect=False) as s:
        s.guest.created.domain.gnttab.max_frames = 1
        s.xen.toolstack.unpause(s.guest.created)
        s.run()
        taken = s.guest.bus
        assert taken is not None
        # One frame of references holds one interface's rx slots: the rings and pages of it.
        assert s.nic.link_up
        plug(s, 1)
        assert s.guest._vif is not None
        assert "ENOSPC" in s.guest.nets[1].error
        assert not s.guest.nets[1].link_up


def test_mtu_says_how_long_a_frame_may_be() -> None:
    with scene(mtu=9000) as s:
        assert s.nic.mtu == 9000
        assert s.pdo.frontend.mac.maximum_frame_size == 9018


def test_an_unchanged_backend_is_asked_again_after_120_seconds() -> None:
    with scene(connect=False) as s:
        s.back.answers[State.INITIALISING] = State.INITIALISING
        s.back.device.switch_state(State.INITIALISING)
        s.xen.toolstack.unpause(s.guest.created)
        s.run()
        assert s.guest.nets == []
        back: RawBack = s.back
        back.answers[State.INITIALISING] = State.INIT_WAIT
        back.device.state = State.INIT_WAIT  # written where the guest has no watch
        back.device.write("state", "2")
        s.xen.loop.advance(121 * NS_PER_S)
        assert len(s.guest.nets) == 1


@pytest.mark.parametrize("personality", ["windows", "linux"])
@pytest.mark.parametrize("seed", range(5))
def test_both_personalities_connect_under_any_schedule(personality: str, seed: int) -> None:
    with Platform(seed=seed) as xen:
        guest = xen.create(name="g", vifs=[Vif(), Vif()], personality=personality)
        guest.start()
        assert [nic.link_up for nic in guest.nets] == [True, True]
        assert guest.shutdown() == 0


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_queues_carry_every_flow_both_ways(personality: str) -> None:
    with Platform(seed=2) as xen:
        xen.dom0.vcpus = 4
        ends = [
            xen.create(name=name, vifs=[Vif()], vcpus=4, personality=personality).start()
            for name in "ab"
        ]
        one, other = (guest.nets[0] for guest in ends)
        vif = ends[0]._vif
        assert vif is not None
        queues = vif.pdos[0].frontend.queues
        assert len(queues) == 4
        flows = [
            other.mac + one.mac
            + bytes.fromhex("0800 4500 0064 0001 0000 4011 0000 0a000001 0a000002")
            + bytes((port >> 8, port & 0xFF)) + bytes.fromhex("0007 0050 0000") + bytes(72)
            for port in range(1000, 1200)
        ]  # fmt: skip
        one.send_many(flows)
        xen.run()
        assert sorted(other.received) == sorted(flows)
        used = [queue for queue in queues if queue.transmitter and queue.transmitter.posted]
        assert len(used) > 1
        assert one.in_flight == 0
