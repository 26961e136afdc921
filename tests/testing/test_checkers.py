"""Each law is shown to hold on honest worlds, and to be missed when it is broken on purpose."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from xenpv.abi._kernel import lib
from xenpv.testing import CheckFailed, check_all, world_back, world_raw
from xenpv.testing.back_world import BackWorld
from xenpv.testing.checkers import check_grants, check_ports, check_slots, check_wakeups
from xenpv.testing.checks.pages import check_pages
from xenpv.testing.raw_world import RawWorld
from xenpv.view.rings import poke, rings_of
from xenpv.xen.evtchn import PortState


@pytest.fixture
def raw() -> Iterator[RawWorld]:
    with world_raw(seed=3) as world:
        yield world


@pytest.fixture
def back() -> Iterator[BackWorld]:
    with world_back(seed=3) as world:
        yield world


@pytest.fixture
def guest() -> Iterator:
    """Real drivers at both ends."""
    from xenpv import Disk, MemoryImage, Platform, Vif

    with Platform(seed=3) as xen:
        made = xen.create(name="g", disks=[Disk(MemoryImage(bytearray(1 << 16)))], vifs=[Vif()])
        yield made.start()


def test_all_hold_in_an_honest_world_with_traffic_and_after_it(guest) -> None:
    xen = guest.platform
    guest.disks[0].write(0, bytes(4096))
    guest.nets[0].send(b"\xff" * 6 + guest.nets[0].mac + b"\x88\xb5" + bytes(50))
    xen.run()
    check_all(xen)
    guest.destroy()
    check_all(xen)


def ring_page(raw: RawWorld) -> int:
    """dom0's handle of the vbd's ring page."""
    maptrack = raw.platform.dom0.gnttab.maptrack
    return next(handle for handle, one in maptrack.items() if one.ref == raw.vbd.refs[0])


def test_grants_a_pin_without_a_maptrack_entry(raw: RawWorld) -> None:
    ref, handle = raw.vbd.refs[0], ring_page(raw)
    lost = raw.platform.dom0.gnttab.maptrack.pop(handle)
    assert check_grants(raw.platform) == [
        f"d1 ref {ref}: pins 0x1, maptrack has 0x0",
        f"d1 ref {ref}: bits 0x18, expected 0x0",
    ]
    raw.platform.dom0.gnttab.maptrack[handle] = lost
    assert check_grants(raw.platform) == []


def test_grants_a_maptrack_entry_without_a_pin(raw: RawWorld) -> None:
    maptrack = raw.platform.dom0.gnttab.maptrack
    maptrack[9999] = maptrack[ring_page(raw)]
    assert check_grants(raw.platform) == [f"d1 ref {raw.vbd.refs[0]}: pins 0x1, maptrack has 0x2"]
    del maptrack[9999]


def test_grants_bits_that_the_guest_scribbled(raw: RawWorld) -> None:
    ref = raw.vbd.refs[0]
    raw.guest.set_grant(ref, flags=lib.GTF_permit_access, pfn=raw.vbd.sring.pfn)
    assert check_grants(raw.platform) == [f"d1 ref {ref}: bits 0x0, expected 0x18"]
    assert check_grants(raw.platform, hostile=[1]) == []


def second_frame(raw: RawWorld, ref: int, flags: int, pfn: int) -> None:
    """An entry of the guest's second grant table frame."""
    raw.guest.domain.add_to_physmap_grant(1, raw.guest.page())
    raw.guest.set_grant(ref, flags=flags, pfn=pfn)


def test_grants_bits_in_the_second_frame_of_a_table(raw: RawWorld) -> None:
    flags = lib.GTF_permit_access | lib.GTF_reading
    second_frame(raw, 515, flags, raw.guest.page())
    assert check_grants(raw.platform) == ["d1 ref 515: bits 0x8, expected 0x0"]


def test_pages_an_entry_of_the_second_frame_of_a_table(raw: RawWorld) -> None:
    second_frame(raw, 515, lib.GTF_permit_access, raw.guest.page())
    assert check_pages(raw.platform) == []
    free = next(run.start for run in raw.guest.domain.pages.free_runs() if run)
    raw.guest.set_grant(515, flags=lib.GTF_permit_access, pfn=free)
    assert check_pages(raw.platform) == [f"d1 ref 515: grants page {free:#x}, which is free"]


def test_grants_bits_of_a_table_of_version_2(raw: RawWorld) -> None:
    other = raw.platform.dom0.domctl.create_domain(vcpus=1, max_pages=64, max_grant_frames=2)
    other.gnttab.set_version(2)
    status = lib.grant_table_status_frame(other.kernel, 0)
    poke(raw.platform.hypervisor, status, 2 * 9, lib.GTF_writing.to_bytes(2, "little"))
    name = f"d{other.domid} ref 9"
    assert check_grants(raw.platform) == [f"{name}: bits 0x10, expected 0x0"]


@pytest.mark.parametrize(
    ("ahead", "found"),
    [
        (0x70000000, "more in flight than its 64 entries"),
        (2, "lost wake-up: d0 sleeps with 2 requests unconsumed"),
    ],
)
def test_all_looks_at_requests_that_nobody_published(guest, ahead: int, found: str) -> None:
    ring = next(one for one in rings_of(guest.platform) if one.kind.name == "blkif")
    spoil(guest.platform, 0, ring.back.cons + ahead)
    with pytest.raises(CheckFailed, match=found):
        check_all(guest.platform)


def test_all_looks_at_what_each_end_keeps_of_a_ring(guest) -> None:
    ring = next(one for one in rings_of(guest.platform) if one.kind.name == "blkif")
    lib.ring_seek(ring.front.handle, ring.front.index, ring.front.index + 1)
    with pytest.raises(CheckFailed, match="d1 took 0x"):
        check_all(guest.platform)


def test_ports_an_end_that_was_forgotten(raw: RawWorld) -> None:
    port = raw.guest.domain.evtchn.ports[raw.vbd.port]
    remote, number = port.remote, port.remote_port
    port.state = PortState.UNBOUND
    (line,) = check_ports(raw.platform)
    assert line == (
        f"d0 port {number}: bound to d1 port {raw.vbd.port}, which is unbound and does not name it"
    )
    assert remote is raw.platform.dom0


def test_ports_a_domain_that_is_gone(raw: RawWorld) -> None:
    number = raw.guest.domain.evtchn.ports[raw.vbd.port].remote_port
    raw.platform.dom0.evtchn.ports[number].remote = None
    assert f"d0 port {number}: bound to a domain that is gone" in check_ports(raw.platform)
    raw.platform.dom0.evtchn.ports[number].remote = raw.guest.domain


def spoil(world, offset: int, value: int) -> None:
    ring = next(one for one in rings_of(world) if one.kind.name == "blkif")
    poke(world.hypervisor, ring.frames[0], offset, value.to_bytes(4, "little"))


def test_slots_a_response_too_many(guest) -> None:
    guest.disks[0].read(0, 1)
    assert check_slots(guest.platform) == []
    spoil(guest.platform, 8, 9)
    lines = check_slots(guest.platform)
    assert any("0x9 responses, but 0x" in line for line in lines)
    assert any("rsp_prod is not what its backend published" in line for line in lines)
    assert check_slots(guest.platform, hostile=[0]) == []


def test_slots_a_request_that_nobody_published(guest) -> None:
    spoil(guest.platform, 0, 0x70000000)
    lines = check_slots(guest.platform)
    assert any("req_prod is not what its frontend published" in line for line in lines)
    assert any("more in flight than its" in line for line in lines)


def test_wakeups_a_request_that_the_backend_never_hears_of(guest) -> None:
    xen = guest.platform
    ring = next(one for one in rings_of(xen) if one.kind.name == "blkif")
    consumed = ring.back.cons
    spoil(xen, 0, consumed + 2)
    (line,) = check_wakeups(xen)
    assert line == (
        f"{ring.name}: lost wake-up: d0 sleeps with 2 requests unconsumed "
        f"(request producer {consumed + 2:#x}, consumer {consumed:#x}, "
        f"event index {consumed + 1:#x})"
    )
    # Whoever asked to be woken later only is right to sleep.
    spoil(xen, 4, consumed + 5)
    assert check_wakeups(xen) == []
    spoil(xen, 4, consumed + 1)
    xen.dom0.pause()
    assert check_wakeups(xen) == []  # it does not sleep, it is stopped
    xen.dom0.unpause()


def test_wakeups_a_response_that_the_frontend_never_hears_of(back: BackWorld) -> None:
    back.vbd.sring.rsp_prod = back.vbd.sring.rsp_prod + 1
    (line,) = check_wakeups(back.platform)
    assert "d1 sleeps with 1 responses unconsumed" in line


def test_an_end_in_a_tests_hand_owes_nothing(raw: RawWorld) -> None:
    raw.vbd.sring.push(bytes(112), 1)
    raw.vbd.notify()
    raw.run()
    assert raw.vbd.sring.ring.rsp_cons == 0  # the answer lies there
    check_all(raw.platform)


def test_a_broken_device_owes_nothing(raw: RawWorld) -> None:
    raw.vbd.sring.req_prod = 1000
    raw.vbd.notify()
    raw.run()
    assert raw.vbd.backend is not None
    assert raw.vbd.backend.broken
    check_all(raw.platform)


def test_check_all_lists_everything_that_is_wrong(raw: RawWorld) -> None:
    dom0, handle = raw.platform.dom0, ring_page(raw)
    lost = dom0.gnttab.maptrack.pop(handle)
    number = raw.guest.domain.evtchn.ports[raw.vbd.port].remote_port
    dom0.evtchn.ports[number].remote = None
    with pytest.raises(CheckFailed) as caught:
        check_all(raw.platform)
    assert isinstance(caught.value, AssertionError)
    assert len(caught.value.findings) == 4  # pins, bits, and both ends of the channel
    assert str(caught.value) == "\n".join(caught.value.findings)
    dom0.gnttab.maptrack[handle] = lost
    dom0.evtchn.ports[number].remote = raw.guest.domain
