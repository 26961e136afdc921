"""SHARED_INFO by version and operation (xenbus spec 2.5), and the guest's clock through it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.xen.conftest import NR_FRAMES, domain
from xenpv.abi._kernel import lib
from xenpv.bus.interface import InterfaceVersion, query_interface
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.registry import Registry
from xenpv.bus.shared_info import SharedInfoInterface
from xenpv.bus.suspend import SuspendInterface
from xenpv.errors import LocalProtocolError
from xenpv.xen.domain import RAM_FIRST_PFN, Domain
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop

S = 1_000_000_000
BOOT_1970_S = 1_767_225_600  # the machine's clock at virtual time 0
EPOCH_S = 11_644_473_600
ZONE = "Control\\TimeZoneInformation"


@attrs.define(eq=False)
class Scene:
    hypervisor: Hypervisor
    dom0: Domain
    guest: Domain
    suspend: SuspendInterface
    info: SharedInfoInterface
    registry: Registry

    def view(self, version: int = 4) -> InterfaceVersion:
        found = query_interface([self.info], SharedInfoInterface.GUID, version)
        found.acquire()
        return found


def make(*, vcpus: int = 2, is_32bit: bool = False, khz: int = 1_000_000) -> Scene:
    hypervisor = Hypervisor(Loop(), nr_frames=NR_FRAMES, tsc_khz=khz)
    dom0 = domain(hypervisor, 0)
    guest = domain(hypervisor, vcpus=vcpus, is_32bit=is_32bit)
    suspend = SuspendInterface(guest)
    registry = Registry()
    info = SharedInfoInterface(guest, suspend=suspend, registry=registry)
    return Scene(hypervisor, dom0, guest, suspend, info, registry)


@pytest.fixture(params=[False, True], ids=["64", "32"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    made = make(is_32bit=request.param)
    yield made
    made.hypervisor.close()


OPERATIONS = [
    "upcall_pending",
    "evtchn_poll",
    "evtchn_ack",
    "evtchn_mask",
    "evtchn_unmask",
    "get_time",
]


@pytest.mark.parametrize(("version", "slots"), [(2, 6), (3, 6), (4, 7)])
def test_a_version_has_its_operations(scene: Scene, version: int, slots: int) -> None:
    view = scene.view(version)
    assert view.size == 32 + 8 * (2 + slots)
    assert [name for name in view.operations if name != "upcall_supported"] == OPERATIONS
    assert ("upcall_supported" in view.operations) == (version == 4)


@pytest.mark.parametrize("version", [1, 5])
def test_other_versions_are_not_supported(scene: Scene, version: int) -> None:
    with pytest.raises(NtStatusError) as caught:
        scene.view(version)
    assert caught.value.status is NTSTATUS.NOT_SUPPORTED


def test_the_page_comes_with_the_first_reference_and_goes_with_the_last(scene: Scene) -> None:
    guest = scene.guest
    view = scene.view()
    assert scene.info.page is not None
    pfn = scene.info.page.pfn
    assert not RAM_FIRST_PFN <= pfn < guest.pages.end
    kernel = guest.kernel
    last = 1023 if guest.is_32bit else 4095
    for port in (1, 31, 32, last):
        assert lib.evtchn_is_masked(kernel, port) == 1
    guest.read(pfn, 0, 4096)
    again = scene.view()
    view.release()
    again.get_time()
    again.release()
    with pytest.raises(Exception, match="EFAULT"):
        guest.read(pfn, 0, 1)
    with pytest.raises(LocalProtocolError, match="^SHARED_INFO get_time: it is not acquired$"):
        again.get_time()
    with pytest.raises(LocalProtocolError, match="^SHARED_INFO is not acquired$"):
        scene.info.get_time()
    assert scene.view().get_time()[0] > 0
    assert scene.info.page.pfn == pfn


@pytest.mark.parametrize("port", [1, 31, 32, 63, 64, 1000])
def test_bits_are_those_that_xen_looks_at(scene: Scene, port: int) -> None:
    view, kernel = scene.view(), scene.guest.kernel
    lib.evtchn_set_pending(kernel, port, 0)
    assert view.evtchn_unmask(port) is True
    assert lib.evtchn_is_masked(kernel, port) == 0
    view.evtchn_ack(port)
    assert lib.evtchn_is_pending(kernel, port) == 0
    assert view.evtchn_unmask(port) is False
    view.evtchn_mask(port)
    assert lib.evtchn_is_masked(kernel, port) == 1
    neighbours = [lib.evtchn_is_masked(kernel, one) for one in (port - 1, port + 1)]
    assert neighbours == [1, 1]


def test_ports_beyond_the_page_are_the_callers_fault(scene: Scene) -> None:
    view = scene.view()
    last = 1023 if scene.guest.is_32bit else 4095
    view.evtchn_mask(last)
    for port in (-1, last + 1):
        for operation in (view.evtchn_ack, view.evtchn_mask, view.evtchn_unmask):
            with pytest.raises(LocalProtocolError, match=f"^port {port} has no bit"):
                operation(port)


def test_upcall_pending_is_an_exchange(scene: Scene) -> None:
    view, kernel = scene.view(), scene.guest.kernel
    view.evtchn_unmask(5)
    assert view.upcall_pending(1) is False
    lib.evtchn_set_pending(kernel, 5, 1)
    assert [view.upcall_pending(1), view.upcall_pending(1)] == [True, False]
    assert [view.upcall_pending(0), view.upcall_pending(9)] == [False, False]


def test_poll_finds_what_is_pending_and_not_masked(scene: Scene) -> None:
    view, kernel = scene.view(), scene.guest.kernel
    ports = [3, 31, 32, 64, 700]
    for port in ports:
        view.evtchn_unmask(port)
    for port in [*ports, 65]:
        lib.evtchn_set_pending(kernel, port, 0)
    found: list[int] = []
    assert view.evtchn_poll(1, found.append) is False
    assert found == []
    assert view.evtchn_poll(0, lambda port: found.append(port) or port == 32) is True
    assert found == ports
    assert view.evtchn_poll(0, found.append) is False  # the selector was taken
    assert len(found) == len(ports)
    assert lib.evtchn_is_pending(kernel, 3) == 1  # nothing is acknowledged
    assert view.evtchn_poll(9, found.append) is False


def test_poll_begins_where_the_last_one_ended(scene: Scene) -> None:
    view, kernel = scene.view(), scene.guest.kernel
    width = 32 if scene.guest.is_32bit else 64
    for word in (1, 4, 6):
        view.evtchn_unmask(word * width)
    found: list[int] = []

    def event(port: int) -> bool:
        view.evtchn_ack(port)
        found.append(port // width)
        return True

    for words in ((4,), (1, 6), (6, 1, 4)):
        for word in words:
            lib.evtchn_set_pending(kernel, word * width, 0)
        view.evtchn_poll(0, event)
    assert found == [4, 6, 1, 4, 6, 1]


def test_cpus_above_31_have_upcalls_once_their_vcpu_info_is_registered() -> None:
    scene = make(vcpus=34)
    view = scene.view()
    assert [view.upcall_supported(cpu) for cpu in (-1, 0, 31, 32, 33, 34)] == [
        False,
        True,
        True,
        False,
        False,
        False,
    ]
    pfn = scene.guest.pages.alloc()
    scene.guest.vcpu_op.register_vcpu_info(33, pfn, 64)
    scene.info.moved_vcpu_info(33, pfn, 64)
    assert view.upcall_supported(33)
    assert view.upcall_pending(33) is True  # registration says so
    assert view.upcall_pending(32) is False
    scene.hypervisor.close()


def test_after_a_suspend_the_page_is_mapped_again_and_all_ports_are_masked(scene: Scene) -> None:
    view = scene.view()
    view.evtchn_unmask(7)
    scene.suspend.acquire()
    for result, masked in ((1, 0), (0, 1)):
        scene.suspend.trigger()
        scene.dom0.domctl.setvcpucontext(scene.guest.domid, 0, rax=result)
        if result == 0:
            page = scene.info.page
            assert page is not None
            scene.guest.memory.remove_from_physmap(scene.guest.DOMID_SELF, page.pfn)
        scene.dom0.domctl.resumedomain(scene.guest.domid)
        scene.hypervisor.loop.run()
        assert lib.evtchn_is_masked(scene.guest.kernel, 7) == masked
    assert view.get_time()[0] > 0


# time


@pytest.mark.parametrize(
    ("universal", "local"), [(None, True), (0, True), (1, False), (1 << 40, False), ("1", True)]
)
def test_the_time_is_local_unless_the_registry_says_universal(
    scene: Scene, universal: Any, local: bool
) -> None:
    if universal is not None:
        scene.registry.set(ZONE, "RealTimeIsUniversal", universal)
    time = (BOOT_1970_S + EPOCH_S) * 10_000_000
    assert scene.view(3).get_time() == (time, local)
    assert scene.view(4).get_time() == (time, local)
    assert scene.view(2).get_time() == time


def test_the_driver_would_wrap_in_2106_and_this_does_not(scene: Scene) -> None:
    secs = (1 << 32) + 5
    scene.hypervisor.settime64(secs, 0, scene.hypervisor.loop.now)
    assert scene.view().get_time()[0] == (secs + EPOCH_S) * 10_000_000


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("advance"), st.integers(0, 400 * 24 * 3600 * S)),
        st.tuples(st.just("wallclock"), st.integers(0, 1 << 34)),
        st.tuples(st.just("offset"), st.integers(-(1 << 20), 1 << 20)),
        st.tuples(st.just("suspend"), st.integers(0, 1)),
    ),
    max_size=8,
)


@given(STEPS, st.booleans(), st.integers(0, 1 << 32))
def test_the_guests_clock_is_the_virtual_one_through_changes_and_races(
    steps: list[tuple[str, int]], is_32bit: bool, races: int
) -> None:
    """Whatever changes, also between any two loads of the reader, it reads a time that was
    right at one moment of its reading, to 100 ns, or spins."""
    scene = make(vcpus=1, is_32bit=is_32bit)
    hypervisor, guest, loop = scene.hypervisor, scene.guest, scene.hypervisor.loop
    view = scene.view()
    scene.suspend.acquire()
    start_s, offset_s = BOOT_1970_S, 0
    draw = random.Random(races)

    def expected() -> int:
        return (start_s + offset_s + EPOCH_S) * 10_000_000 + loop.now // 100

    def wallclock(secs: int) -> None:
        nonlocal start_s
        start_s = secs + (1 << 21) - offset_s  # not before 1970
        hypervisor.settime64(start_s, 0, 0)

    def offset(seconds: int) -> None:
        nonlocal offset_s
        offset_s = seconds
        hypervisor.set_time_offset(guest, seconds)

    def suspend(result: int) -> None:
        scene.suspend.trigger()
        scene.dom0.domctl.setvcpucontext(guest.domid, 0, rax=result)
        scene.dom0.domctl.resumedomain(guest.domid)
        loop.run()

    does = {"advance": loop.advance, "wallclock": wallclock, "offset": offset, "suspend": suspend}
    left = 0
    moments: list[int] = []

    def hook(_actor: int, kind: int, _frame: int, _offset: int, _size: int) -> None:
        nonlocal left
        if kind & lib.ACCESS_HYPERVISOR or not left:
            return
        if draw.random() < 0.3:
            left -= 1
            hypervisor.set_hook(None)
            if draw.random() < 0.5:
                offset(draw.randrange(1 << 20))
            else:
                wallclock(draw.randrange(1 << 34))
            guest.vcpu[0].publish_time(force=True)
            hypervisor.set_hook(hook)
            moments.append(expected())

    for name, value in steps:
        does[name](value)
        assert abs(view.get_time()[0] - expected()) <= 1
        moments[:] = [expected()]
        left = 4
        hypervisor.set_hook(hook)
        time = view.get_time()[0]
        hypervisor.set_hook(None)
        assert min(abs(time - moment) for moment in moments) <= 1
        assert abs(view.get_time()[0] - expected()) <= 1
    hypervisor.close()
