"""Advisories about network frontends, each as the attack that it was."""

from __future__ import annotations

import pytest

from tests.vif.rawback import ANSWERS, FEATURES, MAC, RawBack, Scene, frame, rx, scene
from xenpv import Disk, Platform, Vif
from xenpv.abi.xenbus import XenbusState as State
from xenpv.back.xenbus import Device
from xenpv.errors import HypercallError
from xenpv.host.image import MemoryImage
from xenpv.host.libxl import ToolstackError
from xenpv.testing.census import leaks, take_census
from xenpv.vif.granter import Granter
from xenpv.vif.statistics import Statistic

PERSONALITIES = ("windows", "linux")
SLOTS = 256


def granted(s: Scene) -> int:
    """Grants that the guest has given to its backend's domain."""
    return take_census(s.xen).total("g", "grant")


@pytest.mark.parametrize("personality", PERSONALITIES)
def test_xsa_391_a_backend_that_never_stops_sending_events_starves_nobody(personality: str) -> None:
    """CVE-2021-28712: the poll ends after so many rounds, and a disk is served meanwhile."""
    with Platform(seed=3) as xen:
        backs: list[RawBack] = []

        def factory(device: Device) -> RawBack:
            backs.append(RawBack(device, FEATURES))
            return backs[-1]

        xen.backends.drivers = {**xen.backends.drivers, "vif": factory}
        disk = Disk(MemoryImage(bytes(range(256)) * 4096))
        guest = xen.create(name="g", vifs=[Vif(mac=MAC)], disks=[disk], personality=personality)
        guest.start()
        storm = backs[0].device.domain.task("storm", lambda: None)
        left = [2000]

        def again() -> None:
            left[0] -= 1
            backs[0].notify()
            if left[0]:
                storm.wake()

        storm.run = again  # type: ignore[method-assign]
        storm.wake()
        assert guest.disks[0].read(0, 8) == bytes(range(256)) * 16
        xen.run()
        assert left[0] == 0
        assert guest.nets[0].link_up


@pytest.mark.parametrize("personality", PERSONALITIES)
def test_xsa_396_a_page_that_the_backend_keeps_mapped_is_used_no_more(personality: str) -> None:
    """CVE-2022-23037: the reference is not recycled, nor the page, and nothing crashes."""
    with scene(personality) as s:
        s.nic.send(frame(200))
        s.run()
        requests = s.back.sent()
        ref, _, _, number, _ = requests[0]
        domain = s.back.device.domain
        pfn = domain.holes.alloc()
        handle = domain.gnttab.map(s.back.device.frontend_domid, ref, pfn, readonly=True)
        before = domain.read(pfn, 0, 200)
        s.back.answer_tx(*((one[3], 0) for one in requests))
        s.run()
        assert s.broken.endswith("was answered, yet its grant is in use")
        assert f"slot {number}" in s.broken
        s.guest.detach("vif", 0)
        s.run()
        assert domain.read(pfn, 0, 200) == before  # nobody else's bytes lie there now
        domain.gnttab.unmap(handle, pfn)


@pytest.mark.parametrize("personality", PERSONALITIES)
@pytest.mark.parametrize("fails", range(0, 24, 3))
def test_xsa_396_a_set_up_that_fails_halfway_leaks_nothing(
    personality: str, fails: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2022-23042: whatever call for a page or a reference fails, all before it are undone."""
    with scene(personality, connect=False) as s:
        calls = [0]
        add = Granter.add

        def failing(self: Granter, count: int) -> list[int]:
            calls[0] += 1
            if calls[0] > fails:
                raise HypercallError(12, "no more pages")
            return add(self, count)

        empty = take_census(s.xen)
        monkeypatch.setattr(Granter, "add", failing)
        try:
            s.guest.start()
        except ToolstackError as error:
            assert "not connected" in str(error)
        monkeypatch.undo()
        s.run()
        s.guest.detach("vif", 0)
        s.run()
        left = take_census(s.xen)
        held = [line for line in leaks(empty, left, lost=False) if "grant to dom0" in line]
        assert not [line for line in held if "vif" in line]
        assert not s.guest.nets


@pytest.mark.parametrize("personality", PERSONALITIES)
def test_xsa_403_what_the_backend_may_see_of_a_page_is_the_packet_alone(personality: str) -> None:
    """CVE-2022-33740, 33741: rx pages are zeroed before each post, tx pages have no remnants."""
    with scene(personality) as s:
        for _ in range(4):  # every rx page has been written more than once
            s.back.send(*[frame(1514)] * 200)
            s.run()
        s.back.take_posted()
        for _, ref in s.back.posted[:SLOTS]:
            assert s.back.payload(ref, 0, 4096) == bytes(4096)


@pytest.mark.parametrize("personality", PERSONALITIES)
def test_xsa_403_a_page_that_is_sent_holds_no_byte_of_the_guest_s_other_memory(
    personality: str,
) -> None:
    """CVE-2022-33741: what lay in the guest's free pages is not what a backend gets to read."""
    with scene(personality, connect=False) as s:
        pages = s.guest.created.domain.pages
        secret = [pages.alloc(1) for _ in range(600)]
        for pfn in secret:
            s.guest.created.domain.write(pfn, 0, b"\x5c" * 4096)
        for pfn in secret:
            pages.free(pfn)
        s.guest.start()
        for size in (60, 100, 700, 1514):
            s.nic.send(frame(size).replace(b"\x5c", b"\0"))
            s.run()
            sent = s.back.sent()
            for ref, *_ in sent:
                assert b"\x5c" not in s.back.payload(ref, 0, 4096), size
            s.back.answer_tx(*((one[3], 0) for one in sent))
            s.run()
        s.back.take_posted()
        assert all(b"\x5c" not in s.back.payload(ref, 0, 4096) for _, ref in s.back.posted)


@pytest.mark.parametrize("personality", PERSONALITIES)
def test_xsa_405_and_457_a_page_of_a_bad_packet_goes_back_to_the_ring_once(
    personality: str,
) -> None:
    """CVE-2022-33743, CVE-2024-27393: after 3,000 bad packets every slot has its own page, and
    there are no more pages than slots.
    """
    with scene(personality) as s:
        s.back.take_posted()
        pages = granted(s)
        for turn in range(30):
            s.back.take_posted()
            taken, s.back.posted = s.back.posted[:100], s.back.posted[100:]
            # An error, a packet without a frame's header, one whose second slot is an error.
            kinds = [
                [rx(number, -1) for number, _ in taken],
                [rx(number, 5) for number, _ in taken],
                [
                    rx(number, 100, flags=4) if at % 2 == 0 else rx(number, -1)
                    for at, (number, _) in enumerate(taken)
                ],
            ]
            s.back.answer_rx(*kinds[turn % 3])
            s.run()
        assert not s.broken
        s.back.take_posted()
        assert len(s.back.posted) == SLOTS
        assert len({ref for _, ref in s.back.posted}) == SLOTS
        assert granted(s) == pages
        s.back.send(frame(100))
        s.run()
        assert list(s.nic.received) == [frame(100)]
        count = s.nic.statistics
        assert count.received_frames == 1
        assert s.pdo.frontend.statistics.query(Statistic.RECEIVER_BACKEND_ERRORS) == 1000 + 500


@pytest.mark.parametrize("personality", PERSONALITIES)
def test_xsa_465_a_device_removed_after_a_resume_before_it_has_queues(personality: str) -> None:
    """CVE-2024-53240: the backend is silent, so that the frontend waits, with nothing open."""
    with scene(personality) as s:
        s.back.answers = {}
        s.guest.suspend()
        s.guest.resume(fast=False)
        assert not s.nic.link_up
        s.back.answers = dict(ANSWERS)
        s.guest.detach("vif", 0, mode="auto")
        assert not s.guest.nets
        s.guest.destroy()


@pytest.mark.parametrize("personality", PERSONALITIES)
@pytest.mark.parametrize("status", range(-9, 0))
def test_xsa_361_a_copy_that_failed_is_a_packet_that_failed(personality: str, status: int) -> None:
    """CVE-2021-26932: a backend hands on the grant's own status; whatever it is, one packet is
    lost and the ring goes on.
    """
    with scene(personality) as s:
        s.back.take_posted()
        number, _ = s.back.posted.pop(0)
        s.back.answer_rx(rx(number, status))
        s.back.send(frame(60))
        s.run()
        assert list(s.nic.received) == [frame(60)]
        assert not s.broken


@pytest.mark.parametrize("personality", PERSONALITIES)
def test_xsa_349_a_state_written_a_thousand_times_is_looked_at_as_it_is(personality: str) -> None:
    """CVE-2020-29568: events of one path are one, so that nothing grows."""
    with scene(personality) as s:
        for _ in range(500):
            for state in (State.CONNECTED, State.INIT_WAIT):
                s.back.device.write("state", str(int(state)))
        s.back.device.write("state", str(int(State.CONNECTED)))
        s.run()
        s.back.send(frame(60))
        s.run()
        assert list(s.nic.received) == [frame(60)]
