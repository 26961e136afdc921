"""A suspended guest as plain data, and that data as a guest that runs in a new domain."""

from __future__ import annotations

import json

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.migration import copy
from xenpv import Disk, Guest, Platform, Vif
from xenpv.abi._kernel import lib
from xenpv.bus import inf
from xenpv.bus.registry import Registry
from xenpv.host.image import MemoryImage
from xenpv.host.libxl import ToolstackError
from xenpv.iface.xencontrol import Win32Error
from xenpv.migration.context import capture
from xenpv.vbd.srb import SrbStatus
from xenpv.xen.loop import NS_PER_S

IMAGE = bytes(range(256)) * 256
XENBUS = "Services\\XENBUS\\Parameters"
XEN = "Services\\XEN\\Parameters"

# personality, fifo, vcpus
KERNELS = [
    ("windows", True, 1),
    ("windows", False, 1),
    ("windows", True, 4),
    ("windows", False, 3),
    ("linux", False, 1),
    ("linux", True, 2),
]


def made(
    xen: Platform,
    personality: str = "windows",
    fifo: bool = True,
    vcpus: int = 1,
    *,
    disks: int = 1,
    vifs: int = 1,
    memory_mib: int = 64,
    registry: Registry | None = None,
) -> Guest:
    return xen.create(
        name="web",
        disks=[Disk(MemoryImage(bytearray(IMAGE))) for _ in range(disks)],
        vifs=[Vif() for _ in range(vifs)],
        personality=personality,
        fifo=fifo,
        vcpus=vcpus,
        memory_mib=memory_mib,
        registry=registry,
    ).start()


def frames_flow(xen: Platform, guest: Guest) -> None:
    bridge = xen.bridge("xenbr0")
    for net in guest.nets:
        before = len(bridge.frames)
        net.send(b"\xff" * 6 + net.mac + b"\x88\xb5" + bytes(50))
        xen.run()
        assert len(bridge.frames) > before


def disks_verify(guest: Guest, marks: dict[int, bytes]) -> None:
    for index, disk in enumerate(guest.disks):
        assert disk.read(0, 8) == marks.get(index, IMAGE[:4096])
        assert disk.read(8, 8) == IMAGE[4096:8192]


def registry_of(**options: object) -> Registry:
    """That of a guest whose drivers ran before, with more values of XENBUS and XEN."""
    registry = inf.installed()
    for name, value in options.items():
        assert isinstance(value, int | str)
        if name == "start":
            registry.set("Control", "SystemStartOptions", value)
        else:
            registry.set(XEN if name == "RegisterVcpuInfo" else XENBUS, name, value)
    return registry


@pytest.mark.parametrize(("personality", "fifo", "vcpus"), KERNELS)
def test_a_guest_goes_on_in_a_new_domain(personality: str, fifo: bool, vcpus: int) -> None:
    with Platform(seed=3) as xen:
        guest = made(xen, personality, fifo, vcpus, disks=2, vifs=2)
        guest.disks[1].write(0, b"\x5a" * 4096)
        new = copy.moved(xen, guest)
        assert new.domid != guest.domid
        disks_verify(new, {1: b"\x5a" * 4096})
        frames_flow(xen, new)
        assert new.bus is not None
        assert new.bus.suspend.get_count() == 1
        assert new.bus.evtchn.is_fifo is fifo
        assert new.created.domain.vcpus == vcpus
        targets = xen.toolstack.xs.directory(f"/local/domain/{new.domid}/data/scsi/target")
        assert sorted(targets) == (["0", "1"] if personality == "windows" else []), (
            "it is WINDOWS still"
        )
        again = copy.moved(xen, new)
        disks_verify(again, {1: b"\x5a" * 4096})
        frames_flow(xen, again)
        assert again.shutdown() == 0


@pytest.mark.parametrize(("personality", "fifo", "vcpus"), KERNELS)
def test_what_is_rebuilt_is_captured_the_same(personality: str, fifo: bool, vcpus: int) -> None:
    with Platform(seed=3) as xen:
        guest = made(xen, personality, fifo, vcpus)
        guest.suspend()
        saved = copy.save(guest)
        assert copy.text_of(guest) == saved[0]
        guest.destroy()
        new = copy.load(xen, guest.created.config, saved)
        assert json.loads(copy.text_before_it_runs(new)) == json.loads(saved[0])


def test_a_guest_is_as_before_its_capture() -> None:
    with Platform(seed=3) as xen:
        guest = made(xen)
        guest.suspend()
        copy.save(guest)
        guest.resume()
        disks_verify(guest, {})
        frames_flow(xen, guest)
        assert guest.shutdown() == 0


@pytest.mark.parametrize(
    ("name", "registry"),
    [
        ("safe mode", {"start": "SAFEBOOT:MINIMAL"}),
        ("no balloon", {"start": "XEN:BALLOON=OFF"}),
        ("a watchdog", {"start": "XEN:WATCHDOG=20"}),
        ("holes of the BAR", {"UseMemoryHole": 0}),
        ("no vectors", {"UseEvtchnUpcall": 0}),
        ("vcpu_info of its own", {"RegisterVcpuInfo": 1}),
        ("emulated devices too", {"start": "XEN:BOOT_EMULATED=TRUE"}),
    ],
)
def test_guests_of_other_registries_go_on(name: str, registry: dict[str, object]) -> None:
    with Platform(seed=3) as xen:
        kept = registry_of(**registry)
        kept.set("Services\\mine", "Value", "kept")
        guest = made(xen, vcpus=2, registry=kept)
        tree = guest.device_tree
        assert tree is not None
        lines = tree.lines()
        new = copy.moved(xen, guest)
        disks_verify(new, {})
        frames_flow(xen, new)
        assert new.device_tree is not None
        assert new.device_tree.lines() == lines
        assert new.registry.string("Services\\mine", "Value") == "kept", name
        xen.advance(60)
        assert new.running
        assert new.reboot().shutdown() == 0


def test_a_second_boot_unplugs_again_after_it() -> None:
    """A new device model has every emulated device; the guest does not see them come back."""
    with Platform(seed=3) as xen:
        guest = made(xen, registry=Registry(inf.INF)).reboot()
        assert guest.device_model is not None
        masks = [int(mask) for mask in guest.device_model.unplugged]
        new = copy.moved(xen, guest)
        assert new.device_model is not None
        assert [int(mask) for mask in new.device_model.unplugged] == masks
        assert [one for one in new.device_model.functions() if one.class_code >> 16 == 2] == []
        disks_verify(new, {})


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_a_balloon_stays_as_large_as_it_is_and_deflates(personality: str) -> None:
    with Platform(seed=3) as xen:
        guest = made(xen, personality)
        target = f"/local/domain/{guest.domid}/memory/target"
        xen.toolstack.xs.write(target, str(48 << 10))
        xen.run()
        assert guest.bus is not None
        assert guest.bus.balloon is not None
        size = guest.bus.balloon.size
        assert size >= 7 << 8
        pages = guest.created.domain.tot_pages
        guest.suspend()
        saved = copy.save(guest)
        guest.destroy()
        new = copy.load(xen, guest.created.config, saved)
        xen.toolstack.xs.write(f"/local/domain/{new.domid}/memory/target", str(48 << 10))
        # shared_info and the table's frame are no pages of the domain before it maps them.
        assert abs(new.created.domain.tot_pages - pages) <= 2
        new.start()
        assert new.bus is not None
        assert new.bus.balloon is not None
        assert new.bus.balloon.size == size
        xen.toolstack.xs.write(f"/local/domain/{new.domid}/memory/target", str(64 << 10))
        xen.run()
        assert new.bus.balloon.size == 0
        disks_verify(new, {})
        assert new.shutdown() == 0


def test_timers_go_on_with_what_they_had_left() -> None:
    """XenAgent's is 30 minutes: of these 20 passed before, none pass while it is a file."""
    with Platform(seed=3) as xen:
        guest = made(xen)
        xen.advance(20 * 60)
        guest.suspend()
        saved = copy.save(guest)
        guest.destroy()
        left = [one[2] for one in json.loads(saved[0])["timers"] if one[2] is not None]
        assert any(9 * 60 * NS_PER_S < one <= 10 * 60 * NS_PER_S for one in left)
        xen.advance(3600)
        new = copy.load(xen, guest.created.config, saved)
        assert json.loads(copy.text_before_it_runs(new))["timers"] == json.loads(saved[0])["timers"]
        assert not any(timer.armed for timer in new.created.domain.timers)
        before = xen.loop.now
        new.created.domain.unpause()
        deadlines = [one.deadline - before for one in new.created.domain.timers if one.armed]
        assert sorted(deadlines) == sorted(left)


def test_its_tsc_goes_on_and_its_clock_is_set() -> None:
    with Platform(seed=3) as xen:
        guest = made(xen)
        xen.advance(100)
        guest.suspend()
        tsc = guest.created.domain.rdtsc()
        saved = copy.save(guest)
        guest.destroy()
    with Platform(seed=4) as xen:
        xen.images.register("image:1", MemoryImage(bytearray(IMAGE)))
        new = copy.load(xen, guest.created.config, saved)
        assert 0 <= new.created.domain.rdtsc() - tsc < NS_PER_S
        new.start()
        time, _local = new.iface.get_time()
        clock = new.iface.agent.xenagent.clock  # type: ignore[union-attr] # a Windows guest's
        assert abs(clock.local_now() - time) < 10_000_000 or abs(clock.now() - time) < 10_000_000


def test_an_open_xencontrol_goes_on() -> None:
    with Platform(seed=3) as xen:
        guest = made(xen)
        user = guest.xencontrol()
        changed, resumed = user.create_event(), user.create_event()
        user.store_write("data/x", "1")
        watch = user.store_add_watch("data/x", changed)
        user.suspend_register(resumed)
        address, refs = user.gnttab_permit_foreign_access(0, 3)
        xen.run()
        assert user.event(changed).wait()
        assert guest.bus is not None
        out = guest.bus.gnttab.permitted

        new = copy.moved(xen, guest)
        there = new.counterpart(user)
        assert there is new.counterpart(user)
        assert there is not user
        assert (there.handle, there.process.name) == (user.handle, user.process.name)
        assert there.event(changed).wait(), "each watch fires once"
        assert there.event(resumed).wait()
        assert there.suspend_get_count() == 1
        with pytest.raises(Win32Error, match="OBJECT_NAME_NOT_FOUND"):
            there.store_read("data/x")
        there.store_remove_watch(watch)
        assert new.bus is not None
        assert new.bus.gnttab.permitted == out
        there.gnttab_revoke_foreign_access(address)
        assert new.bus.gnttab.permitted == out - len(refs)
        there.exit()
        assert new.iface.leftovers() == []


def test_a_wmi_session_goes_on() -> None:
    with Platform(seed=3) as xen:
        guest = made(xen)
        session = guest.wmi.add_session("me")
        events, woken = guest.wmi.watch_events(), guest.wmi.unsuspended_events()
        session.SetWatch("data/y")
        xen.run()
        assert [one.EventId for one in events.take()] == ["data/y"]
        new = copy.moved(xen, guest)
        heard, session = new.counterpart(events), new.counterpart(session)
        assert len(new.counterpart(woken).take()) == 1
        assert [one.EventId for one in heard.take()] == ["data/y"], "its watch was added again"
        session.SetValue("data/y", "7")
        xen.run()
        assert [one.EventId for one in heard.take()] == ["data/y"]
        assert session.GetValue("data/y") == "7"
        assert new.iface.leftovers() == [f"session {session.InstanceName}"]


def test_a_port_that_a_suspend_closed_does_not_hide_one_of_its_number() -> None:
    with Platform(seed=3) as xen:
        guest = made(xen)
        user = guest.xencontrol()
        stale, rang = user.create_event(), user.create_event()
        port = user.evtchn_open_unbound(0, stale)
        new = copy.moved(xen, guest)
        there = new.counterpart(user)
        there.evtchn_notify(port)
        assert not there.event(stale).wait()
        while there.evtchn_open_unbound(0, rang) != port:
            pass
        bound = xen.dom0.evtchn.bind_interdomain(new.domid, port)
        lib.evtchn_take_pending(xen.dom0.kernel, bound)
        there.evtchn_notify(port)
        assert lib.evtchn_is_pending(xen.dom0.kernel, bound) == 1
        xen.dom0.evtchn.send(bound)
        xen.run()
        assert there.event(rang).wait()
        there.evtchn_close(port)
        there.evtchn_close(port)
        with pytest.raises(Win32Error, match="NOT_FOUND"):
            there.evtchn_close(port)


def test_its_log_is_on_the_console_of_the_new_domain() -> None:
    with Platform(seed=3) as xen:
        guest = made(xen)
        new = copy.moved(xen, guest)
        assert new.bus is not None
        new.bus.log("here I am\n")
        xen.run()
        assert new.console is not None
        assert new.console is not guest.console
        assert "here I am" in new.console.text


def test_pages_of_others_are_gone_and_their_place_is_free() -> None:
    with Platform(seed=3) as xen:
        guest, peer = made(xen), xen.create(name="peer").start()
        theirs = peer.xencontrol()
        _, refs = theirs.gnttab_permit_foreign_access(guest.domid, 2)
        user = guest.xencontrol()
        address = user.gnttab_map_foreign_pages(peer.domid, refs)
        assert guest.bus is not None
        holes = guest.bus.holes.pages
        new = copy.moved(xen, guest)
        assert new.bus is not None
        assert new.bus.holes.pages == holes
        there = new.counterpart(user)
        there.gnttab_unmap_foreign_pages(address)
        assert new.bus.holes.pages == holes - 2
        # What was granted to the domain that is gone is not the new one's.
        with pytest.raises(Win32Error):
            there.gnttab_map_foreign_pages(peer.domid, refs)
        assert new.shutdown() == 0


def test_commands_under_way_end_once() -> None:
    with Platform(seed=3) as xen:
        guest = made(xen)
        guest.disks[0].write(16, b"\x11" * 4096)
        commands = [guest.disks[0].start_read(8 * n, 8) for n in range(3)]
        assert guest.bus is not None
        guest.bus.suspend.trigger()
        xen.run()
        saved = copy.save(guest)
        guest.destroy()
        new = copy.load(xen, guest.created.config, saved)
        new.start()
        new.counterparts = copy.Counterparts(guest, new)
        for number, command in enumerate(commands):
            there = new.counterpart(command)
            assert there.is_complete
            assert there.completions == len(there.srbs)
            assert there.srb_status in (SrbStatus.SUCCESS, SrbStatus.ERROR)
            if there.srb_status is SrbStatus.SUCCESS:
                want = (
                    b"\x11" * 4096 if number == 2 else IMAGE[4096 * number : 4096 * number + 4096]
                )
                assert there.result() == want
        assert new.shutdown() == 0


def test_statistics_and_settings_survive() -> None:
    with Platform(seed=3) as xen:
        guest = made(xen)
        frames_flow(xen, guest)
        net = guest.nets[0]
        sent = net.statistics
        guest.os.freeze_ms = 7
        new = copy.moved(xen, guest)
        assert new.nets[0] is new.counterpart(net)
        assert new.nets[0].statistics == sent
        assert new.nets[0].mac == net.mac
        assert new.os.freeze_ms == 7
        assert new.os is new.iface.agent.system  # type: ignore[union-attr] # it has one


@settings(max_examples=20)
@given(data=st.data())
def test_random_guests_go_on(data: st.DataObject) -> None:
    draw = data.draw
    personality = draw(st.sampled_from(["windows", "linux"]))
    with Platform(seed=draw(st.integers(0, 9))) as xen:
        options: dict[str, object] = draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "UseMemoryHole": st.integers(0, 1),
                    "UseEvtchnUpcall": st.integers(0, 1),
                    "RegisterVcpuInfo": st.integers(0, 1),
                    "start": st.sampled_from(["XEN:BALLOON=OFF", "XEN:WATCHDOG=20"]),
                },
            )
        )
        guest = made(
            xen,
            personality,
            draw(st.booleans()),
            draw(st.integers(1, 3)),
            disks=draw(st.integers(0, 2)),
            vifs=draw(st.integers(0, 2)),
            registry=registry_of(**options) if personality == "windows" else None,
        )
        kept = []
        if personality == "windows" and draw(st.booleans()):
            kept.append(guest.xencontrol())
        marks = {}
        for _ in range(draw(st.integers(1, 2))):
            for index, disk in enumerate(guest.disks):
                marks[index] = bytes([draw(st.integers(0, 255))]) * 4096
                disk.write(0, marks[index])
            frames_flow(xen, guest)
            if draw(st.booleans()):
                kib = draw(st.integers(40, 64)) << 10
                xen.toolstack.xs.write(f"/local/domain/{guest.domid}/memory/target", str(kib))
                xen.run()
            xen.advance(draw(st.integers(0, 40)))
            new = copy.moved(xen, guest)
            kept = [new.counterpart(one) for one in kept]
            assert all(isinstance(one.suspend_get_count(), int) for one in kept)
            guest = new
        disks_verify(guest, marks)
        frames_flow(xen, guest)
        assert guest.shutdown() == 0


def keys_of(xen: Platform, guest: Guest) -> dict[str, str | None]:
    """Its home in the store, by path; values that name a domain or a port left out."""
    home, found, todo = f"/local/domain/{guest.domid}", {}, [""]
    while todo:
        path = todo.pop()
        todo += [f"{path}/{name}" for name in xen.toolstack.xs.directory(home + path)]
        own = any(word in path for word in ("domid", "backend", "ring-ref", "channel", "tty"))
        found[path] = None if own else xen.toolstack.xs.read(home + path)
    return found


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_everything_that_it_wrote_is_in_its_new_tree(personality: str) -> None:
    """Its agents say it all again, within two rounds of the slowest of them."""
    with Platform(seed=3) as xen:
        guest = made(xen, personality, vcpus=2)
        xen.advance(130)
        keys = keys_of(xen, guest)
        features = [path for path, value in keys.items() if "feature-" in path and value == "1"]
        assert "/control/feature-suspend" in features
        new = copy.moved(xen, guest)
        xen.advance(130)
        assert keys_of(xen, new) == keys


def test_a_sleeping_guest_is_woken_in_its_new_domain() -> None:
    """In S3 nobody in it answers: the hypervisor stops it, and no call waits to return."""
    with Platform(seed=3) as xen:
        guest = made(xen)
        assert guest.bus is not None
        guest.bus.sleep()
        xen.run()
        guest.created.domain.shutdown(2)
        saved = copy.save(guest)
        assert json.loads(saved[0])["kernel"]["waiter"] is None
        guest.destroy()
        new = copy.load(xen, guest.created.config, saved)
        new.created.domain.unpause()
        xen.run()
        assert new.bus is not None
        assert new.bus.is_asleep
        new.bus.wake()
        xen.run()
        disks_verify(new, {})
        frames_flow(xen, new)
        assert new.shutdown() == 0


def test_a_guest_of_more_vcpus_than_shared_info_has_room_for() -> None:
    with Platform(seed=3) as xen:
        new = copy.moved(xen, made(xen, vcpus=34))
        disks_verify(new, {})
        frames_flow(xen, new)
        assert new.shutdown() == 0


def test_devices_that_the_new_domain_has_not_are_gone() -> None:
    with Platform(seed=3) as xen:
        guest = made(xen, disks=2, vifs=2)
        guest.suspend()
        saved = copy.save(guest)
        config = guest.created.config
        guest.destroy()
        new = copy.load(
            xen, attrs.evolve(config, disks=config.disks[:1], vifs=config.vifs[1:]), saved
        )
        new.start()
        assert [disk.devid for disk in new.disks] == [51712]
        disks_verify(new, {})
        frames_flow(xen, new)
        assert new.shutdown() == 0


def test_a_driver_domain_is_not_saved() -> None:
    with Platform(seed=3) as xen:
        guest = xen.create(name="net", personality="linux", driver_domain=True).start()
        guest.suspend()
        with pytest.raises(ToolstackError, match="'net' is a driver domain: it cannot be saved"):
            capture(guest)
