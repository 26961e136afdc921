"""Whole devices over bad keys, backends that go, states that jump, hosts that want them back."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bus.handshake_scene import Honest, Mute, Scene, scene
from tests.vbd.rawback import read10
from xenpv.abi.xs import XS
from xenpv.back.xenbus import Device
from xenpv.bus.evtchn import ChannelType
from xenpv.bus.suspend import SuspendPhase
from xenpv.platform import Disk, Guest, Platform, Vif
from xenpv.vbd.frontend import FrontendState as VbdState
from xenpv.vbd.srb import Srb, SrbStatus
from xenpv.vif.frontend import FrontendState as VifState

KINDS = ["vif", "vbd"]


def rm_link(on: Scene) -> None:
    on.xen.toolstack.xs.rm(f"{on.frontend_path}/backend")


def link(text: str) -> Callable[[Scene], None]:
    def put(on: Scene) -> None:
        on.xen.toolstack.xs.write(f"{on.frontend_path}/backend", text)

    return put


def rm_backend(on: Scene) -> None:
    on.xen.toolstack.xs.rm(on.backend)


def hide_backend(on: Scene) -> None:
    for path in (on.backend, f"{on.backend}/state"):
        on.xen.toolstack.xs.set_permissions(path, ["n0"])


def mend(on: Scene) -> None:
    """Make right what is wrong: first the backend's directory, then the frontend's link to it."""
    xs, domid = on.xen.toolstack.xs, on.guest.domid
    keys = {"frontend": on.frontend_path, "frontend-id": str(domid), "online": "1", "state": "1"}
    xs.write(f"{on.frontend_path}/state", "1")
    for key, value in keys.items():
        if xs.read(f"{on.backend}/{key}") is None:
            xs.write(f"{on.backend}/{key}", value)
        xs.set_permissions(f"{on.backend}/{key}", ["n0", f"r{domid}"])
    xs.set_permissions(on.backend, ["n0", f"r{domid}"])
    on.xen.run()
    xs.write(f"{on.frontend_path}/backend", on.backend)
    on.xen.run()


BAD = {
    "no link": rm_link,
    "an empty link": link(""),
    "a link to nowhere": link("nowhere"),
    "a link to a path that cannot be": link("/a//b\x01"),
    "a link that is too long": link("/" + "x" * 1500),
    "no backend": rm_backend,
    "a backend that may not be read": hide_backend,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", BAD)
def test_a_device_that_cannot_connect_does_when_its_keys_are_right(kind: str, bad: str) -> None:
    with scene(kind, "2", driver=Honest, before=BAD[bad]) as on:
        assert not on.connected
        assert on.leftovers() == (0, 0, [])
        on.xen.advance(600)
        assert not on.connected
        mend(on)
        assert on.connected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [None, "", "x", "-1", "18446744073709551617", "\u0661"])
def test_a_backend_id_that_is_none_is_dom0(kind: str, text: str | None) -> None:
    def put(on: Scene) -> None:
        path = f"{on.frontend_path}/backend-id"
        if text is None:
            on.xen.toolstack.xs.rm(path)
        else:
            on.xen.toolstack.xs.write(path, text)

    with scene(kind, "2", driver=Honest, before=put) as on:
        assert on.connected


@pytest.mark.parametrize("kind", KINDS)
def test_a_link_may_come_before_its_backend(kind: str) -> None:
    def lose(on: Scene) -> None:
        rm_link(on)
        rm_backend(on)

    with scene(kind, "2", driver=Honest, before=lose) as on:
        link(on.backend)(on)
        on.xen.run()
        assert not on.connected
        xs = on.xen.toolstack.xs
        for key, value in {"frontend": on.frontend_path, "online": "1", "state": "1"}.items():
            xs.write(f"{on.backend}/{key}", value)
        on.xen.advance(600)
        assert not on.connected  # which the guest may not read
        xs.rm(on.backend)
        on.xen.run()
        xs.write(on.backend, "")
        xs.set_permissions(on.backend, ["n0", f"r{on.guest.domid}"])
        for key, value in {"frontend": on.frontend_path, "online": "1", "state": "1"}.items():
            xs.write(f"{on.backend}/{key}", value)
        on.xen.run()
        assert on.connected


def read_only(on: Scene) -> None:
    xs = on.xen.toolstack.xs
    for path in (on.frontend_path, f"{on.frontend_path}/state"):
        xs.set_permissions(path, ["n0", f"r{on.guest.domid}"])


def test_xenvbd_fails_for_good_where_it_may_not_write() -> None:
    with scene("vbd", "2", driver=Honest, before=read_only) as on:
        assert on.guest._vbd is not None
        assert on.guest._vbd.targets[0].state is VbdState.INVALID
        assert on.leftovers() == (0, 0, [])


def test_xenvif_does_not_look_and_waits_where_it_may_not_write() -> None:
    with scene("vif", "2", driver=Honest, before=read_only) as on:
        assert on.guest._vif is not None
        frontend = on.guest._vif.pdos[0].frontend
        assert [goal.value for goal in frontend.handshake.goals] == ["close", "prepare", "connect"]
        on.xen.toolstack.xs.set_permissions(f"{on.frontend_path}/state", [f"n{on.guest.domid}"])
        on.xen.toolstack.xs.set_permissions(on.frontend_path, [f"n{on.guest.domid}"])
        on.xen.advance(121)  # it writes again what it wrote
        assert on.connected


# a backend that goes at its nth frontend state


@attrs.define(eq=False)
class Vanishing(Honest):
    at: int = 0
    seen: int = 0

    def frontend_changed(self, state: object) -> None:
        if self.seen == self.at:
            self.device.store.remove(self.device.path)
        else:
            super().frontend_changed(state)
        self.seen += 1


def vanishing(at: int) -> Callable[[Device], Mute]:
    """Only the first backend goes; that which the toolstack makes later is honest."""
    made: list[Mute] = []

    def factory(device: Device) -> Mute:
        made.append(Honest(device) if made else Vanishing(device, at))
        return made[-1]

    return factory


# the frontend's states: 1 (the toolstack's), 5, 6, 1, 4 for XenVif; 1, 5, 6, 1, 3, 4 for XenVbd
STEPS = [("vif", at) for at in range(1, 5)] + [("vbd", at) for at in range(1, 5)]


@pytest.mark.parametrize(("kind", "at"), STEPS)
def test_a_backend_that_goes_at_any_step_leaves_nothing_and_may_come_back(
    kind: str, at: int
) -> None:
    with scene(kind, "2", driver=vanishing(at)) as on:
        assert not on.connected
        assert on.leftovers() == (0, 0, [])
        assert on.tree(f"attr/{kind}/0") is None
        on.xen.advance(300)
        mend(on)
        assert on.connected


def test_xenvif_is_ejected_when_its_connected_backend_goes() -> None:
    with scene("vif", "2", driver=Honest) as on:
        assert on.tree("attr/vif/0/name") == "Ethernet"
        rm_backend(on)
        on.xen.run()
        assert on.guest.nets == []
        assert on.leftovers() == (0, 0, [])
        assert on.tree("attr/vif/0/name") is None
        mend(on)
        assert on.connected


def test_xenvbd_does_not_notice() -> None:
    with scene("vbd", "2", driver=Honest) as on:
        rm_backend(on)
        on.xen.run()
        assert on.connected


# states that jump

PUT = st.tuples(
    st.sampled_from(["state", "online", "state", "state", "wait", "feature-sg", "sectors"]),
    st.sampled_from(["absent", "", "x", *map(str, range(10)), "-1", "9" * 30]),
)


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(KINDS), puts=st.lists(PUT, max_size=12))
def test_a_backend_that_writes_anything_ends_in_a_known_state(
    kind: str, puts: list[tuple[str, str]]
) -> None:
    with scene(kind, "2") as on:
        for key, value in puts:
            if key == "wait":
                on.xen.advance(121)
            else:
                on.put(key, value)
                on.xen.run()
        known = VifState if kind == "vif" else VbdState
        driver = on.guest._vif if kind == "vif" else on.guest._vbd
        assert driver is not None
        states = (
            [pdo.frontend.state for pdo in driver.pdos.values()]
            if kind == "vif"
            else [target.state for target in driver.targets.values()]
        )
        assert all(state in known for state in states)
        on.xen.toolstack.xs.rm(on.frontend_path)
        rm_backend(on)
        on.xen.run()
        assert on.leftovers() == (0, 0, [])
        assert not (driver.pdos if kind == "vif" else driver.targets)


# eject

ERRORS = {
    "vif": ("error/device/vif/0/error", "UNPLUG FAILED: device is still in use"),
    "vbd": ("device/vbd/51712/error", "Unplug failed due to open handle(s)!"),
}


def unplug(on: Scene) -> None:
    """What libxl writes, in its order."""
    on.put("online", "0")
    on.put("state", "5")
    on.xen.run()


def device(on: Scene) -> object:
    if on.kind == "vif":
        assert on.guest._vif is not None
        return on.guest._vif.pdos[0]
    assert on.guest._vbd is not None
    return on.guest._vbd.targets[0]


@pytest.mark.parametrize("kind", KINDS)
def test_an_unplug_that_is_agreed_to_closes_both_ends(kind: str) -> None:
    with scene(kind, "2", driver=Honest) as on:
        unplug(on)
        assert not on.connected
        assert on.xen.toolstack.xs.read(f"{on.backend}/state") == "6"
        assert on.tree(ERRORS[kind][0]) is None
        assert on.leftovers() == (0, 0, [])
        assert on.tree("device/vbd/51712/ejected") == ("1" if kind == "vbd" else None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_in_use_is_not_let_go_and_says_so(kind: str) -> None:
    with scene(kind, "2", driver=Honest) as on:
        device(on).handles += 1
        unplug(on)
        assert on.connected
        path, text = ERRORS[kind]
        assert on.tree(path) == text
        assert on.tree("device/vbd/51712/ejected") == ("1" if kind == "vbd" else None)


def test_a_refused_interface_may_be_asked_for_again() -> None:
    with scene("vif", "2", driver=Honest) as on:
        pdo = device(on)
        pdo.handles += 1
        on.put("online", "0")
        on.xen.run()
        pdo.handles -= 1
        on.put("online", "0")
        on.xen.run()
        assert on.guest.nets == []


def test_xenvif_is_ejected_by_online_alone_and_xenvbd_only_with_closing() -> None:
    for kind, connected in (("vif", False), ("vbd", True)):
        with scene(kind, "2", driver=Honest) as on:
            on.put("online", "0")
            on.xen.run()
            assert on.connected is connected


@pytest.mark.parametrize("kind", KINDS)
def test_the_driver_says_that_it_can_hotplug(kind: str) -> None:
    with scene(kind, "2", driver=Honest) as on:
        assert on.tree(f"feature/hotplug/{kind}") == "1"


# suspend


def boot(xen: Platform, *, fifo: bool | None = None) -> Guest:
    from xenpv.host.image import MemoryImage

    image = MemoryImage(bytearray(range(256)) * 2048)
    return xen.create(name="g", disks=[Disk(image)], vifs=[Vif()], fifo=fifo).start()


def suspend(xen: Platform, guest: Guest) -> None:
    """As `xl save` and a restore: asked for in the store, resumed with 0 in a new domain."""
    key = f"/local/domain/{guest.domid}/control/shutdown"
    xen.toolstack.xs.write(key, "suspend")
    xen.run()
    assert xen.toolstack.xs.read(key) == ""
    resume(xen, guest)


def resume(xen: Platform, guest: Guest) -> None:
    """In the new domain's store nobody knows of a watch, and Xen of no port of a device."""
    domain, bus = guest.created.domain, guest.bus
    assert bus is not None
    assert domain.shutdown_code == 2
    for channel in bus.evtchn.channels():
        if channel.type is not ChannelType.FIXED and channel.active:
            domain.evtchn.close(channel.port)
    for path, token in watches(guest):
        bus.store.request(XS.UNWATCH, path.encode() + b"\0" + token + b"\0")
    domain.suspend_result = 0
    domain.resume()
    xen.run()


def watches(guest: Guest) -> list[tuple[str, bytes]]:
    assert guest.bus is not None
    return [(one.path, one.token) for one in guest.bus.store.watches()]


def test_after_a_suspend_every_device_is_connected_again() -> None:
    with Platform(seed=4) as xen:
        guest = boot(xen)
        states: dict[str, list[int]] = {"vif": [], "vbd": []}

        class Sink:
            def store_op(
                self, conn_domid: int, op: int, _tx_id: int, payload: bytes, _error: bytes | None
            ) -> None:
                path, _, value = payload.partition(b"\0")
                if conn_domid and op == 11 and path.endswith(b"/state"):
                    states[path.split(b"/")[1].decode()].append(int(value))

        xen.xenstored.trace = Sink()
        owners = {
            phase.name: [one.owner for one in guest.bus.suspend.callbacks(phase)]
            for phase in SuspendPhase
        }
        # The interfaces' own first, then the bus and its three children, and their drivers.
        assert owners["EARLY"] == [
            "XENBUS EVTCHN", "XENBUS SHARED_INFO", "XENBUS GNTTAB", "XENBUS STORE", "XENVIF",
        ]  # fmt: skip
        assert owners["LATE"][:4] == ["XENBUS EVTCHN", "XENBUS STORE", "XENBUS CONSOLE", "XENBUS"]
        assert sorted(owners["LATE"][4:]) == [
            "XENBUS", "XENBUS", "XENBUS", "XENIFACE", "XENNET", "XENVBD", "XENVIF", "xenagent",
        ]  # fmt: skip
        suspend(xen, guest)
        assert states["vbd"] == [5, 6, 1, 3, 4]
        # The early callback only keeps it from shaking hands with the old backend.
        assert states["vif"] == [5, 6, 1, 5, 6, 1, 4]
        assert guest.disks[0].read(0, 1) == bytes(range(256)) * 2
        assert guest.nets[0].link_up
        entries = xen.toolstack.xs.directory(f"/local/domain/{guest.domid}/drivers")
        assert len(entries) == 5
        for one in guest.created.devices:  # the watches are there again
            xen.toolstack.xs.write(f"{one.backend_path}/online", "0")
            xen.toolstack.xs.write(f"{one.backend_path}/state", "5")
        xen.run()
        assert (guest.nets, guest.disks) == ([], [])
        assert guest.shutdown() == 0


@pytest.mark.parametrize("comes_back", [True, False])
def test_requests_that_waited_at_a_suspend_run_after_it(comes_back: bool) -> None:
    with scene("vbd", "2", driver=Honest) as on:  # it connects, and answers no request
        assert on.guest._vbd is not None
        target = on.guest._vbd.targets[0]
        srbs = [Srb(cdb=read10(at, 1), data=[(on.page(), 0, 512)]) for at in range(40)]
        for srb in srbs:
            on.guest._vbd.submit(srb)
        on.xen.run()
        (ring,) = target.frontend.rings
        submitted, waiting = len(ring.submitted), len(ring.queue)
        assert (submitted, submitted + waiting + len(ring.prepared)) == (32, 40)
        if not comes_back:
            rm_backend(on)
        suspend(on.xen, on.guest)
        statuses = [srb.srb_status for srb in srbs]
        assert statuses.count(SrbStatus.ERROR) == (40 - waiting if comes_back else 40)
        assert statuses.count(SrbStatus.PENDING) == (waiting if comes_back else 0)
        assert on.connected is comes_back


@pytest.mark.parametrize("fifo", [True, False])
def test_what_waited_for_a_slot_at_a_suspend_is_read_after_it(fifo: bool) -> None:
    with Platform(seed=4) as xen:
        guest = boot(xen, fifo=fifo)
        domain, adapter = guest.created.domain, guest._vbd
        assert adapter is not None
        assert guest.bus is not None
        (ring,) = adapter.targets[0].frontend.rings
        assert ring.front is not None
        free = ring.front.free
        srbs = [
            Srb(cdb=read10(at, 1), data=[(domain.pages.alloc(), 0, 512)]) for at in range(free + 8)
        ]
        for srb in srbs:
            adapter.submit(srb)
        ring.poll()
        assert (len(ring.submitted), len(ring.queue) + len(ring.prepared)) == (free, 8)
        waiting = [part.srb for part in ring.queue]
        guest.bus.suspend.trigger()
        xen.run()
        resume(xen, guest)
        for srb in srbs:
            if srb in waiting:
                assert srb.srb_status is SrbStatus.SUCCESS
                assert domain.read(srb.data[0][0], 0, 512) == bytes(range(256)) * 2
            else:
                assert srb.srb_status is SrbStatus.ERROR
        assert waiting
        assert guest.bus.problem == ""


def test_a_device_that_was_ejecting_at_the_suspend_goes() -> None:
    with scene("vif", "2", driver=Honest) as on:
        assert on.guest.bus is not None
        device(on).eject()
        on.guest.bus.suspend.trigger()
        on.xen.run()
        resume(on.xen, on.guest)
        assert on.guest.nets == []
        assert on.leftovers() == (0, 0, [])
