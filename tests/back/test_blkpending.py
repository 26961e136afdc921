"""Connections and disks that go while requests are in flight; event storms; state storms."""

from __future__ import annotations

from contextlib import suppress

import pytest

from tests.back.blkprofiles import NAMES, held, renew, scene, states
from tests.vbd.rawfront import DEVID, FRONT, OKAY, READ, RawFront
from xenpv import Disk, MemoryImage, Platform, ToolstackError
from xenpv.back.blkserver import BlkServer
from xenpv.vbd.srb import Srb, SrbStatus

MS = 1_000_000
LATENCY = 10 * MS


class Closing(MemoryImage):
    """Counts how often it was given back."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


def begin(front: RawFront, count: int = 3) -> None:
    """Requests whose I/O takes its time."""
    assert front.ring is not None
    refs = [front.grant(front.page()) for _ in range(count)]
    slots = [front.request(READ, 8 * n, [(ref, 0, 7)], rid=n) for n, ref in enumerate(refs)]
    front.ring.push(b"".join(slots), count)
    front.world.guest.evtchn.send(front.port)
    front.world.loop.advance(MS)
    assert front.driver.queues[0].ring.in_flight == count


def say(front: RawFront, *states: int) -> None:
    """The frontend's states, one after the other, without that time passes."""
    for state in states:
        front.world.write(f"{FRONT}/state", str(state))
        front.world.loop.advance(0)


# profile: backend's state at once after the frontend's 6, what is still held then, how many of
# three requests are answered
CLOSES = [
    ("linux", 6, True, 3),  # busy is ignored, the ring stays till the last is answered
    ("qemu", 4, True, 3),  # its main loop waits for them
    ("tapdisk", 6, False, 0),
    ("mirage", 6, False, 0),
]


@pytest.mark.parametrize(("profile", "state", "holds", "answered"), CLOSES)
def test_a_close_with_requests_in_flight(
    profile: str, state: int, holds: bool, answered: int
) -> None:
    with scene(profile, latency_ns=LATENCY) as front:
        idle = held(front)
        front.connect()
        begin(front)
        say(front, 6)
        assert front.state == state
        assert (held(front) != idle) == holds
        front.world.loop.run()
        assert front.state == 6
        assert held(front) == idle
        assert [status for _id, _op, status in front.answers()] == [OKAY] * answered


# profile: what a new connection comes to while the old one's requests are in flight, and after
RECONNECTS = [("linux", 5, 4), ("qemu", 4, 4), ("tapdisk", 4, 4), ("mirage", 4, 4)]


@pytest.mark.parametrize(("profile", "during", "after"), RECONNECTS)
def test_a_new_connection_while_requests_of_the_old_are_in_flight(
    profile: str, during: int, after: int
) -> None:
    with scene(profile, latency_ns=LATENCY) as front:
        front.connect()
        begin(front)
        old = front.ring
        say(front, 6)
        guest = front.world.guest
        front.port = guest.evtchn.alloc_unbound(0)
        front.world.write(f"{FRONT}/event-channel", str(front.port))
        say(front, 1, 3)
        assert front.state == during
        assert ("pending I/O" in front.device.broken) == (profile == "linux")
        front.world.loop.run()
        if profile == "linux":
            say(front, 6, 1, 3)
        front.world.loop.run()
        assert front.state == after
        assert front.ring is old  # the frontend used its ring again, whose indices go on
        assert front.driver.leaving == []


def test_qemu_looks_at_no_state_while_it_waits_for_its_disk() -> None:
    with scene("qemu", latency_ns=LATENCY) as front:
        front.connect()
        begin(front)
        before = len(states(front))
        say(front, 6, 5)
        assert states(front)[before:] == []
        front.world.loop.run()
        assert states(front)[before:] == ["closed", "closing"]


def test_what_was_not_begun_stays_on_the_ring_of_linux() -> None:
    with scene("linux", latency_ns=LATENCY) as front:
        front.connect()
        begin(front)
        say(front, 6)
        assert front.ring is not None
        ref = front.grant(front.page())
        front.ring.push(front.request(READ, 0, [(ref, 0, 0)], rid=99), 1)
        front.world.guest.evtchn.send(front.port)
        front.world.loop.run()
        assert sorted(rid for rid, _op, _status in front.answers()) == [0, 1, 2]


@pytest.mark.parametrize("latency_ns", [0, 1])
def test_a_connection_that_goes_in_an_event_storm_leaves_no_timer(latency_ns: int) -> None:
    with scene("linux", latency_ns=latency_ns) as front:
        dom0 = front.world.dom0
        idle = (len(dom0.tasks), len(dom0.timers), held(front))
        front.connect()
        for _ in range(4):
            front.world.guest.evtchn.send(front.port)
            front.world.loop.advance(0)
        say(front, 6)
        assert (len(dom0.tasks), len(dom0.timers), held(front)) == idle


@pytest.mark.parametrize("profile", NAMES)
def test_a_driver_domain_that_dies_with_requests_in_flight(profile: str) -> None:
    with Platform(seed=3) as xen:
        other = xen.create(name="dd", personality="linux", driver_domain=True).start()
        image = MemoryImage(bytes(1 << 20))
        disk = Disk(image, profile=profile, latency_ns=LATENCY, backend="dd")
        guest = xen.create(name="g", disks=[disk]).start()
        (mine,) = guest.disks
        pages = [(guest.created.domain.pages.alloc(1), 0, 4096)]
        srb = Srb(cdb=bytes.fromhex("2a000000000000000800"), data=pages)
        mine.target.submit(srb)
        xen.advance(0.001)
        other.destroy()
        xen.run()
        assert image.buffer[:8] == bytes(8)
        guest.destroy()
        xen.run()
        assert len(xen.dom0.gnttab.maptrack) == 0


@pytest.mark.parametrize("profile", NAMES)
@pytest.mark.parametrize("how", ["remove", "vanish", "offline"])
def test_a_disk_that_goes_with_requests_in_flight(profile: str, how: str) -> None:
    image = Closing(bytearray(1 << 19))
    with scene(profile, image=image, latency_ns=LATENCY) as front:
        front.images.forget("image")
        idle = held(front)
        front.connect()
        begin(front)
        driver, store = front.driver, front.backends.store
        store.write(f"{front.back}/online", "0")
        if how == "remove":
            store.remove(front.back)
        elif how == "vanish":
            store.remove(FRONT)
        else:
            say(front, 5, 6)
        front.world.loop.advance(0)
        if driver.leaving:
            assert image.closed == 0  # what is in flight still wants it
        front.world.loop.run()
        if profile == "tapdisk" and how == "offline":
            store.remove(front.back)  # it lets go when the directory does
            front.world.loop.run()
        assert held(front) == idle
        assert (driver.queues, driver.leaving, driver.vbd) == ([], [], None)
        assert image.closed == 1


def test_a_queue_that_is_halted_is_not_waited_for() -> None:
    for profile in NAMES:
        with scene(profile, latency_ns=LATENCY) as front:
            idle = held(front)
            front.connect()
            begin(front)
            front.world.guest.write(front.ring.pfns[0], 0, b"\xff\xff\xff\x7f")  # type: ignore[union-attr]  # connected
            front.world.guest.evtchn.send(front.port)
            front.world.loop.advance(MS)
            assert front.driver.halted
            assert front.state == 4
            say(front, 6)
            assert front.state == 6
            assert held(front) == idle


@pytest.mark.parametrize("profile", NAMES)
def test_states_that_toggle_leak_nothing_and_end_where_the_last_says(profile: str) -> None:
    """XSA-350: every change is handled before the next one, in order."""
    with scene(profile, latency_ns=LATENCY) as front:
        idle = held(front)
        front.connect()
        begin(front)
        for state in (4, 6, 1, 3, 4, 5, 3, 6, 5, 6, 1, 4, 6) * 5:
            front.world.write(f"{FRONT}/state", str(state))
            if state == 5:
                front.world.loop.advance(0)
        front.world.loop.run()
        front.write("state", 6)
        assert front.state == 6
        assert held(front) == idle
        renew(front)
        front.write("state", 1)
        front.connect()
        assert front.state == 4
        assert states(front)[-1] == "connected"


# spurious events in a row, virtual milliseconds until the ring is looked at again
STORM = [(1, 0), (2, 4), (3, 8), (4, 16), (9, 512), (10, 1000), (40, 1000)]


@pytest.mark.parametrize(("events", "wait"), STORM)
@pytest.mark.parametrize("latency_ns", [0, 1])
def test_events_without_requests_are_looked_at_later_and_later(
    events: int, wait: int, latency_ns: int
) -> None:
    """XSA-332."""
    with scene("linux", latency_ns=latency_ns) as front:
        front.connect()
        world, queue = front.world, front.driver.queues[0]
        assert isinstance(queue.ring, BlkServer) == bool(latency_ns)
        for number in range(events):
            assert queue.ring.spurious == number
            world.guest.evtchn.send(front.port)
            world.loop.advance(0)
            if number < events - 1:
                world.loop.run()
        ref = front.grant(front.page())
        assert front.ring is not None
        front.ring.push(front.request(READ, 0, [(ref, 0, 0)]), 1)
        world.guest.evtchn.send(front.port)
        then = world.loop.now
        world.loop.advance(0)
        while not front.answers():
            assert world.loop.now - then <= wait * MS
            world.loop.advance(MS // 2)
        assert world.loop.now - then >= (wait - 1) * MS
        assert queue.ring.spurious == 0


@pytest.mark.parametrize("profile", NAMES)
@pytest.mark.parametrize("mode", ["safe", "forced"])
def test_a_guest_loses_a_disk_that_is_slow(profile: str, mode: str) -> None:
    with Platform(seed=3) as xen:
        disk = Disk(MemoryImage(bytes(1 << 20)), profile=profile, latency_ns=LATENCY)
        guest = xen.create(name="g", disks=[disk]).start()
        kind = guest.created.devices[0].backend_kind
        (mine,) = guest.disks
        mine.write(0, b"x" * 4096)
        pages = [(guest.created.domain.pages.alloc(1), 0, 4096)]
        srb = Srb(cdb=bytes.fromhex("28000000000000000800"), data=pages)
        mine.target.submit(srb)
        with suppress(ToolstackError):  # that it did not let go, of a forced one
            guest.detach(mine, mode=mode)
        xen.run()
        assert guest.disks == []
        assert srb.srb_status is not SrbStatus.PENDING
        assert xen.backends.device(kind, guest.domid, DEVID) is None
        assert xen.toolstack.xs.directory(f"/local/domain/0/backend/{kind}") == []
        assert len(xen.dom0.gnttab.maptrack) == 2  # its store and console rings
