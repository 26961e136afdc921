"""The XENIFACE device: driver keys, D0 and D3, suspends, security, the time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.iface.conftest import HOME, Scene
from xenpv import Platform
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.suspend import SuspendPhase
from xenpv.errors import LocalProtocolError
from xenpv.iface import security
from xenpv.iface.device import GUID_INTERFACE_XENIFACE, PowerState
from xenpv.iface.ioctl import Access, open_device
from xenpv.iface.security import DEVICE_SDDL, EVENT_SDDL, WMI_SDDL, Principal
from xenpv.iface.wmi_classes import WmiNamespace
from xenpv.iface.xencontrol import Win32Error, XenControl

OURS = "Xen_Project XENIFACE 9.1.0.0 "


def keys(scene: Scene) -> dict[str, str]:
    names = scene.xen.toolstack.xs.directory(f"{HOME}/drivers")
    return {name: scene.read(f"drivers/{name}") for name in names}


def resume(scene: Scene, result: int = 0) -> None:
    """Suspend and resume, as into a new domain, or with 1 cancelled."""
    scene.guest.bus.suspend.trigger()
    scene.xen.run()
    domid = scene.guest.domid
    if result:
        scene.xen.dom0.domctl.setvcpucontext(domid, 0, rax=result)
    scene.xen.dom0.domctl.resumedomain(domid)
    scene.xen.run()


# `drivers`


def test_the_entry_ends_in_a_space_and_goes_with_d3(scene: Scene) -> None:
    assert keys(scene) == {"0": "Xen_Project XENBUS 9.1.0.0 ", "1": OURS}
    scene.iface.to_d3()
    assert keys(scene) == {"0": "Xen_Project XENBUS 9.1.0.0 "}
    scene.iface.to_d0()
    assert keys(scene)["1"] == OURS


def test_every_entry_of_ours_goes_and_no_other(scene: Scene) -> None:
    others = {
        "5": "Xen_Project xenvif 1",
        "6": "xen_project XENIFACE 1",
        "7": "Xen_Project2 XENIFACE 1",
        "8": "Xen_Project",
        "9": "",
        "10": "Xen_Project XENIFACE2 1",
    }
    for name, value in {
        **others,
        "3": "Xen_Project xeniface",
        "4": "Xen_Project XenIface 1 (DEBUG)",
    }.items():
        scene.write(f"drivers/{name}", value)
    scene.iface.to_d3()
    assert keys(scene) == {"0": "Xen_Project XENBUS 9.1.0.0 ", **others}


def test_a_full_directory_is_no_error(scene: Scene) -> None:
    scene.iface.to_d3()
    for number in range(256):
        scene.write(f"drivers/{number}", "taken")
    scene.iface.to_d0()
    assert OURS not in keys(scene).values()
    assert scene.iface.power is PowerState.D0


def test_linux_has_no_xeniface() -> None:
    with Platform(seed=1) as xen:
        guest = xen.create(name="l", personality="linux")
        for booted in (False, True):
            if booted:
                guest.start()
            with pytest.raises(LocalProtocolError, match="has no XENIFACE"):
                _ = guest.iface


def test_identity() -> None:
    assert str(GUID_INTERFACE_XENIFACE) == "b2cfb085-aa5e-47e1-8bf7-9793f3154565"


def test_a_stop_ends_sessions_and_a_start_begins_anew(scene: Scene) -> None:
    scene.guest.wmi.add_session("x").SetWatch("data")
    scene.iface.stop()
    scene.iface.stop()
    assert scene.iface.stopped
    assert scene.guest.wmi.sessions == []
    assert [one.path for one in scene.guest.bus.store.watches()] == ["device"]
    scene.iface.start()
    assert scene.guest.wmi.add_session("x").SessionId == 0


def test_it_costs_no_request_at_the_start(scene: Scene) -> None:
    """But the entry in `drivers`: one look, one write."""
    scene.iface.to_d3()
    before = scene.guest.bus.store.requests
    scene.iface.to_d0()
    cost = scene.guest.bus.store.requests - before
    scene.iface.stop()
    assert cost <= 3
    assert "gnttab" not in vars(scene.iface)


# D3 and back (S3, S4)


def test_sessions_sleep_through_d3(scene: Scene) -> None:
    session = scene.guest.wmi.add_session("x")
    events = scene.guest.wmi.watch_events()
    session.SetWatch("data")
    session.SetWatch("data")
    session.StartTransaction()
    scene.xen.run()
    events.take()
    scene.iface.to_d3()
    assert "data" not in [one.path for one in scene.guest.bus.store.watches()]
    scene.write("data/a", "1")
    scene.xen.run()
    assert events.take() == []
    scene.iface.to_d0()
    scene.xen.run()
    assert [one.EventId for one in events.take()] == ["data", "data"]
    assert session.GetValue("data/a") == "1"
    with pytest.raises(NtStatusError) as caught:
        session.CommitTransaction()
    assert caught.value.status is NTSTATUS.REQUEST_OUT_OF_SEQUENCE


# suspend and resume


def test_after_a_resume_key_then_event_then_handles(scene: Scene) -> None:
    events = scene.guest.wmi.unsuspended_events()
    xc = scene.guest.xencontrol()
    event = xc.create_event(auto_reset=False)
    xc.suspend_register(event)
    xc.suspend_register(event)
    scene.xen.toolstack.xs.rm(f"{HOME}/drivers/1")
    seen: list[tuple[bool, int, int]] = []

    def look() -> None:
        seen.append(
            (OURS in keys(scene).values(), len(events.subscription.events), xc.event(event).sets)
        )

    scene.guest.bus.suspend.register(SuspendPhase.LATE, look)
    count = xc.suspend_get_count()
    for times in (1, 2):
        resume(scene)
        assert seen[-1] == (True, times, 2 * times)
        assert list(keys(scene).values()).count(OURS) == 1
        assert xc.suspend_get_count() != count
    assert len(events.take()) == 2


def test_a_cancelled_suspend_changes_nothing(scene: Scene) -> None:
    events = scene.guest.wmi.unsuspended_events()
    xc = scene.guest.xencontrol()
    event = xc.create_event()
    xc.suspend_register(event)
    session = scene.guest.wmi.add_session("x")
    session.StartTransaction()
    resume(scene, 1)
    assert events.take() == []
    assert not xc.event(event).wait()
    assert xc.suspend_get_count() == 0
    session.CommitTransaction()


def test_no_callback_while_in_d3(scene: Scene) -> None:
    events = scene.guest.wmi.unsuspended_events()
    scene.iface.to_d3()
    resume(scene)
    assert events.take() == []
    assert OURS not in keys(scene).values()


@pytest.mark.parametrize(
    "use",
    [
        lambda session: session.GetValue("data"),
        lambda session: session.GetChildren("data"),
        lambda session: session.SetValue("data/a", "1"),
        lambda session: session.RemoveValue("data/a"),
        lambda session: session.GetFirstChild("data"),
        lambda session: session.GetNextSibling("data/a"),
    ],
    ids=["GetValue", "GetChildren", "SetValue", "RemoveValue", "GetFirstChild", "GetNextSibling"],
)
def test_a_transaction_across_a_suspend_is_unsuccessful(
    scene: Scene, use: Callable[[object], object]
) -> None:
    session = scene.guest.wmi.add_session("x")
    session.StartTransaction()
    resume(scene)
    with pytest.raises(NtStatusError) as caught:
        use(session)
    assert caught.value.status is NTSTATUS.UNSUCCESSFUL


@pytest.mark.parametrize("end", ["CommitTransaction", "AbortTransaction"])
def test_ending_a_transaction_across_a_suspend_is_retry(scene: Scene, end: str) -> None:
    session = scene.guest.wmi.add_session("x")
    session.StartTransaction()
    resume(scene)
    with pytest.raises(NtStatusError) as caught:
        getattr(session, end)()
    assert caught.value.status is NTSTATUS.RETRY
    session.StartTransaction()
    session.SetValue("data/a", "1")
    session.CommitTransaction()
    assert scene.read("data/a") == "1"


def test_a_sessions_watches_are_registered_again_and_fire_once(scene: Scene) -> None:
    session = scene.guest.wmi.add_session("x")
    events = scene.guest.wmi.watch_events()
    session.SetWatch("data")
    session.SetWatch("data/a")
    scene.xen.run()
    events.take()
    resume(scene)
    assert sorted(one.EventId for one in events.take()) == ["data", "data/a"]
    scene.write("data/a", "1")
    scene.xen.run()
    assert sorted(one.EventId for one in events.take()) == ["data", "data/a"]
    session.EndSession()
    assert sorted(one.path for one in scene.guest.bus.store.watches() if "data" in one.path) == []


def test_a_handles_watch_fires_once_more_and_is_dead(scene: Scene) -> None:
    xc = scene.guest.xencontrol()
    event = xc.create_event(auto_reset=False)
    watch = xc.store_add_watch("data", event)
    scene.xen.run()
    assert xc.event(event).sets == 1
    resume(scene)
    assert xc.event(event).sets == 2
    scene.write("data/a", "1")
    scene.xen.run()
    assert xc.event(event).sets == 2
    xc.store_remove_watch(watch)
    xc.store_add_watch("data", event)
    scene.xen.run()
    assert xc.event(event).sets == 3


def test_ports_and_grants_across_a_suspend_can_be_closed(scene: Scene) -> None:
    peer = scene.xen.create(name="peer").start().xencontrol()
    xc = scene.guest.xencontrol()
    port = xc.evtchn_open_unbound(2, xc.create_event())
    address, _ = xc.gnttab_permit_foreign_access(2, 1)
    _, refs = peer.gnttab_permit_foreign_access(1, 1)
    mapped = xc.gnttab_map_foreign_pages(2, refs)
    resume(scene)
    xc.evtchn_notify(port)
    xc.evtchn_close(port)
    xc.gnttab_revoke_foreign_access(address)
    xc.gnttab_unmap_foreign_pages(mapped)
    assert xc.process.pending == []
    assert scene.iface.leftovers() == []


# security: principal x class x operation

ALLOWED = {Principal.SYSTEM: True, Principal.ADMINISTRATORS: True, Principal.USERS: False}
OPERATIONS = {
    "XenStoreBase XenTime": lambda wmi: wmi.base.XenTime,
    "XenStoreBase AddSession": lambda wmi: wmi.base.AddSession("y"),
    "XenStoreSession list": lambda wmi: wmi.sessions,
    "XenStoreSession GetValue": lambda wmi: wmi.provider and wmi.execute(*_get_value()),
}


def _get_value() -> tuple[object, ...]:
    from xenpv.iface import wmi, wnode

    return wmi.SESSION, r"XP0001 XENBUS IFACE\Session_x_0", 1, wnode.utf16("data")


@pytest.mark.parametrize("principal", Principal)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_data_classes_are_for_administrators(
    scene: Scene, principal: Principal, operation: str
) -> None:
    scene.guest.wmi.add_session("x")
    namespace = WmiNamespace(scene.iface, principal)
    if ALLOWED[principal]:
        OPERATIONS[operation](namespace)
        return
    with pytest.raises(NtStatusError) as caught:
        OPERATIONS[operation](namespace)
    assert caught.value.status is NTSTATUS.ACCESS_DENIED


@pytest.mark.parametrize("principal", Principal)
def test_event_classes_have_the_systems_default(scene: Scene, principal: Principal) -> None:
    namespace = WmiNamespace(scene.iface, principal)
    watch, unsuspended = namespace.watch_events(), namespace.unsuspended_events()
    scene.guest.wmi.add_session("x").SetWatch("data")
    scene.iface.wmi.fire_suspend_event()
    scene.xen.run()
    assert (len(watch.take()), len(unsuspended.take())) == (1, 1)


@pytest.mark.parametrize("access", [Access.NONE, Access.READ, Access.WRITE, Access.READ_WRITE])
@pytest.mark.parametrize("principal", Principal)
@pytest.mark.parametrize("power", PowerState)
def test_the_device_is_for_administrators_in_d0_and_d3(
    scene: Scene, principal: Principal, access: Access, power: PowerState
) -> None:
    if power is PowerState.D3:
        scene.iface.to_d3()
    process = scene.iface.process("p", principal)
    if ALLOWED[principal]:
        process.close_handle(open_device(scene.iface, process, access))
        return
    with pytest.raises(NtStatusError) as caught:
        open_device(scene.iface, process, access)
    assert caught.value.status is NTSTATUS.ACCESS_DENIED
    with pytest.raises(Win32Error) as refused:
        XenControl(scene.iface, process)
    assert refused.value.code == 5


def test_descriptors_are_those_of_the_driver() -> None:
    assert DEVICE_SDDL == "D:P(A;;GA;;;SY)(A;;GA;;;BA)"
    assert WMI_SDDL == "O:BAG:BAD:(A;;GA;;;BA)(A;;GA;;;SY)"
    # The owner and group at its front give nothing.
    assert not security.allows("O:BUG:BUD:(A;;GA;;;SY)", Principal.USERS)
    assert security.allows(EVENT_SDDL, Principal.USERS)


# the time

FILETIME_1970 = 116_444_736_000_000_000


def test_the_time_follows_the_virtual_clock(scene: Scene) -> None:
    """Within a tick of 100 ns, through wall clock changes and offsets of the domain."""
    xc = scene.guest.xencontrol()
    ctl, clock = scene.xen.dom0.domctl, scene.xen.hypervisor.clock
    domain = scene.guest.created.domain
    for step, change in enumerate(
        [
            lambda: None,
            lambda: scene.xen.advance(0.123456789),
            lambda: ctl.settimeoffset(1, 3600),
            lambda: scene.xen.advance(3.5),
            lambda: ctl.settimeoffset(1, -7),
            lambda: scene.xen.hypervisor.settime64(2_000_000_000, 999_999_999, scene.xen.loop.now),
            lambda: scene.xen.advance(86_400.000000101),
        ]
    ):
        change()
        wall = (clock.wc_sec + domain.time_offset_seconds) * 10**9 + clock.wc_nsec
        expected = (wall + scene.xen.loop.now) // 100 + FILETIME_1970
        for time in (scene.guest.wmi.base.XenTime, xc.get_time()[0]):
            assert abs(time - expected) <= 1, step


def test_the_time_is_0_in_d3(scene: Scene) -> None:
    scene.iface.to_d3()
    assert scene.guest.wmi.base.XenTime == 0
    with pytest.raises(Win32Error) as caught:
        scene.guest.xencontrol().get_time()
    assert caught.value.code == 21
