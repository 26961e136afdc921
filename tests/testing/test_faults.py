"""Fault devices: each reaches the wire, each can be taken away, and what must survive it does."""

from __future__ import annotations

import pytest

from xenpv import Disk, MemoryImage, Platform, Vif
from xenpv.errors import GrantError, HypercallError, LocalProtocolError
from xenpv.host.imageio import ImageError
from xenpv.testing import faults, world_raw
from xenpv.testing.hunts import faults as scenarios
from xenpv.testing.run import run_schedule
from xenpv.testing.schedule import Action, Schedule, Step
from xenpv.vbd import blkif
from xenpv.xen.loop import NS_PER_S

MS = 1_000_000


class Told:
    """Decisions as they are told: for each word, what happens next; else nothing."""

    def __init__(self, **answers):
        self.answers = {key: list(value) for key, value in answers.items()}
        self.asked = []

    def __call__(self, what, count):
        self.asked.append((what, count))
        for word, queue in self.answers.items():
            if word in what and queue:
                return queue.pop(0)
        return 0


def raw(decide, device=faults.Events, side="guest", **options):
    """A connected raw world with a device on one domain's events."""
    from xenpv.testing.raw_world import RawWorld

    platform = Platform()
    world = RawWorld(platform, MemoryImage(bytearray(1 << 16)), "xenbr0")
    domain = world.guest.domain if side == "guest" else platform.dom0
    made = device(domain, decide, **options)
    world.connect()
    return world, made


def asks(world):
    """One READ on the ring, and an event for it."""
    ref = world.guest.grant(world.guest.page())
    world.vbd.sring.push(blkif.request(1).pack(0, 1, 0, 1, 0, ref, 0, 0), 1)
    world.vbd.notify()


@pytest.mark.parametrize(
    ("how", "at_once", "later"),
    [
        (0, 1, 1),  # as it should be
        (1, 0, 1),  # late
        (2, 1, 1),  # twice: the second finds nothing
        (3, 0, 0),  # lost
    ],
)
def test_an_event_of_the_guest_is_late_twice_or_lost(how, at_once, later):
    told = Told()
    world, device = raw(told, how=faults.Events.ALL)
    with world:
        told.answers["event"] = [how]
        asks(world)
        sent = len(told.asked)
        world.platform.loop.advance(1 * MS)
        assert len(world.vbd.sring.take()) == at_once
        world.platform.loop.advance(10 * MS)
        assert at_once + len(world.vbd.sring.take()) == later
        assert told.asked[sent - 1][1] == 4
        assert len(device.fired) == bool(how)


def test_a_doubled_event_of_dom0_arrives_twice():
    told = Told()
    world, _ = raw(told, side="dom0")
    with world:
        told.answers["event"] = [2]
        before = world.vbd.events
        asks(world)
        world.platform.loop.advance(1 * MS)
        assert world.vbd.events == before + 1
        world.platform.loop.advance(10 * MS)
        assert world.vbd.events == before + 2


def test_ports_that_were_bound_before_are_spared():
    told = Told()
    with Platform() as xen:
        guest = xen.create(name="guest", vifs=[Vif()])
        faults.Events(guest.created.domain, told)
        faults.Events(xen.dom0, told)
        guest.start()
        assert told.asked, "the interface's events"
        told.asked.clear()
        assert guest.bus is not None
        guest.bus.store.write("data/x", "1")
        assert told.asked == []


def test_a_closed_device_asks_nothing_more():
    told = Told()
    world, device = raw(told)
    with world:
        device.close()
        told.asked.clear()
        asks(world)
        world.run()
        assert told.asked == []
        assert len(world.vbd.sring.take()) == 1


def test_a_slow_backend_answers_after_its_delay_and_once():
    told = Told()
    with world_raw() as world:
        device = faults.Slow(world.platform.dom0, f"vbd{world.guest.domid}.", told, delay_ns=7 * MS)
        told.answers["slow"] = [1]
        asks(world)
        world.platform.loop.advance(6 * MS)
        assert world.vbd.sring.take() == []
        world.platform.loop.advance(2 * MS)
        assert len(world.vbd.sring.take()) == 1
        device.close()
        told.answers["slow"] = [1]
        asks(world)
        world.platform.loop.advance(0)
        assert len(world.vbd.sring.take()) == 1


def test_there_must_be_a_task_to_slow():
    with world_raw() as world, pytest.raises(LocalProtocolError, match="no task of the name 'vdb'"):
        faults.Slow(world.platform.dom0, "vdb", Told())


@pytest.mark.parametrize(("index", "name"), [(1, "general_error"), (2, "no_space"), (3, "eagain")])
def test_a_refused_map_breaks_the_device_with_its_status(index, name):
    from xenpv.testing.raw_world import RawWorld

    platform = Platform()
    with RawWorld(platform, MemoryImage(bytearray(1 << 16)), "xenbr0") as world:
        device = faults.Maps(platform.dom0, Told(map=[index]))
        with pytest.raises(LocalProtocolError, match=f"GNTST_{name}"):
            world.vbd.connect()
        assert world.vbd.backend_key("error") is not None
        assert len(device.fired) == 1
        assert platform.dom0.gnttab.maptrack == {}


@pytest.mark.parametrize(("index", "how"), list(enumerate(faults.Grants.HOW, 1)))
def test_a_spoilt_reference_fails_its_request_alone(index, how):
    with world_raw() as world:
        device = faults.Grants(world.guest, Told(reference=[index]))
        answers = []
        for number in (1, 2):
            pfn = world.guest.page()
            ref = world.guest.grant(pfn)
            assert device.spoil(ref, pfn) == (how if number == 1 else "")
            world.vbd.sring.push(blkif.request(1).pack(0, 1, 0, number, 0, ref, 0, 0), 1)
            world.vbd.notify()
            world.run()
            answers += [raw[10:12] for raw in world.vbd.sring.take()]
        assert answers == [b"\xff\xff", b"\x00\x00"]


def test_a_commit_conflicts_for_real_and_is_tried_again():
    told = Told(commit=[1] * 20)
    with Platform() as xen:
        guest = xen.create(name="guest", vifs=[Vif()])
        (client,) = (
            one
            for one in xen.xenstored.connections.values()
            if one.domid == guest.domid and not one.local
        )
        device = faults.Conflicts(xen, client, told, most=5)
        guest.start()
        assert len(device.fired) == 5
        assert guest.nets[0].link_up
        device.close()
        told.asked.clear()
        guest.suspend()
        guest.resume(fast=False)
        assert told.asked == []


def test_a_flood_is_so_many_writes_of_the_same_value():
    with world_raw() as world:
        flood = faults.WatchFlood(world.platform, Told(state=[3, 1]))
        path = f"{world.vbd.path}/state"
        generation = world.platform.xenstored.tree.nodes[path.encode()].generation
        assert flood.strike(path) == 256
        assert flood.strike(path) == 1
        assert flood.strike(path) == 0
        assert flood.strike("/no/such/state") == 0
        world.run()
        assert world.platform.xenstored.tree.nodes[path.encode()].generation > generation
        assert world.vbd.backend_state == 4


@pytest.mark.parametrize(
    ("index", "words", "left"),
    [(1, "Input/output error", 0), (2, "Input/output error", 2), (3, "No space left", 0)],
)
def test_a_write_fails_whole_half_done_or_for_want_of_space(index, words, left):
    image = MemoryImage(bytearray(4096))
    bad = faults.UnreliableImage(image, Told(write=[index]))
    with pytest.raises(ImageError, match=words):
        bad.write_from(memoryview(bytearray(b"\x01" * 2048)), 0)
    assert bytes(image.buffer).count(1) == left * 512
    bad.write_from(memoryview(bytearray(b"\x01" * 2048)), 0)
    assert bytes(image.buffer).count(1) == 2048
    assert len(bad.fired) == 1


def test_a_restart_makes_a_new_driver_and_the_disk_goes_on():
    with Platform() as xen:
        guest = xen.create(name="guest", disks=[Disk(MemoryImage(bytearray(1 << 16)))]).start()
        key = ("vbd", guest.domid, 51712)
        before = xen.backends.devices[key].driver
        device = faults.Restart(xen, *key, Told(restarted=[0, 1]), steps=3)
        device.start()
        xen.run()
        assert device.fired == [f"vbd{guest.domid}.51712: restarted"]
        assert xen.backends.devices[key].driver is not before
        assert guest.disks[0].read(0, 1) == bytes(512)


def test_hoarded_pages_are_gone_and_come_back():
    with world_raw() as world:
        domain = world.guest.domain
        free = domain.pages.free_pages
        hoard = faults.Hoard(domain, Told(pages=[3]))
        hoard.pages()
        assert domain.pages.free_pages == 2
        hoard.close()
        assert domain.pages.free_pages == free


def test_hoarded_ports_are_gone_and_come_back():
    with world_raw() as world:
        domain = world.guest.domain
        hoard = faults.Hoard(domain, Told(ports=[2]))
        hoard.ports()
        domain.evtchn.alloc_unbound(0)
        with pytest.raises(HypercallError, match="ENOSPC"):
            domain.evtchn.alloc_unbound(0)
        hoard.close()
        domain.evtchn.alloc_unbound(0)


def test_hoarded_references_are_gone_and_come_back():
    with world_raw() as world:
        guest = world.guest
        before = guest.gnttab.permitted
        hoard = faults.Hoard(guest.domain, Told(references=[2]))
        hoard.references(guest.gnttab)
        pfn = guest.page()
        ref = guest.grant(pfn)
        with pytest.raises(HypercallError, match="ENOSPC"):
            guest.grant(pfn)
        hoard.close()
        guest.revoke(ref)
        assert guest.gnttab.permitted == before
        guest.grant(pfn)


def test_nothing_is_taken_where_nothing_is_decided():
    with world_raw() as world:
        hoard = faults.Hoard(world.guest.domain, Told())
        hoard.pages()
        hoard.ports()
        hoard.references(world.guest.gnttab)
        assert hoard.fired == []
        world.guest.grant(world.guest.page())


def test_a_seed_decides_alike_and_about_as_often_as_it_says():
    def draws(seed):
        decide = faults.seeded(seed, one_in=4)
        return [decide("x", 3) for _ in range(1000)]

    assert draws(1) == draws(1) != draws(2)
    assert 150 < sum(map(bool, draws(1))) < 350
    assert set(draws(1)) == {0, 1, 2}
    assert {faults.seeded(0)("x", 1) for _ in range(10)} == {0}


def test_two_devices_at_one_seam_both_go():
    with world_raw() as world:
        gnttab = world.platform.dom0.gnttab
        devices = [faults.Maps(world.platform.dom0, Told()) for _ in range(2)]
        devices[1].close()
        devices[0].close()
        assert "map" not in vars(gnttab)


def test_a_device_under_another_does_nothing_once_it_is_closed():
    with world_raw() as world:
        under, over = Told(map=[1]), Told()
        below = faults.Maps(world.platform.dom0, under)
        above = faults.Maps(world.platform.dom0, over)
        below.close()
        pfn = world.guest.page()
        hole = world.platform.dom0.holes.alloc()
        handle = world.platform.dom0.gnttab.map(world.guest.domid, world.guest.grant(pfn), hole)
        world.platform.dom0.gnttab.unmap(handle, hole)
        assert under.asked == []
        assert len(over.asked) == 1
        above.close()


@pytest.mark.parametrize("scenario", scenarios.SCENARIOS, ids=lambda one: one.__name__)
def test_a_scenario_holds_and_its_faults_happen(scenario):
    """By default, and with each of its own decisions once."""
    run = run_schedule(scenario)
    assert not run.failed, run.failure_text
    own = [
        (at, point)
        for at, point in enumerate(run.points)
        if point.is_choice and point.place and isinstance(point.place[0], str)
    ]
    assert own, "nothing is decided in it"
    happened = 0
    for at, _ in own[:2]:
        again = run_schedule(scenario, Schedule((Step(at, Action.RUN, 1),)))
        assert not again.failed, again.failure_text
        happened += any(":" in word for word in again.words)
    assert happened


def test_a_fault_is_part_of_the_schedule_and_replays():
    found = run_schedule(scenarios.events_lost)
    at = next(
        at for at, one in enumerate(found.points) if one.place and "event" in str(one.place[0])
    )
    runs = [
        run_schedule(scenarios.events_lost, Schedule((Step(at, Action.RUN, 3),))) for _ in range(2)
    ]
    assert runs[0].words == runs[1].words == (runs[0].words[0],)
    assert "lost" in runs[0].words[0]
    assert runs[0].digest == runs[1].digest != found.digest


def test_lost_events_are_found_by_the_watchdog_and_not_before():
    with Platform() as xen:
        guest = xen.create(name="guest", vifs=[Vif()])
        told = Told()
        faults.Events(guest.created.domain, told, how=faults.Events.ALL)
        guest.start()
        told.answers["event"] = [3] * 50
        frame = b"\xff" * 6 + guest.nets[0].mac + b"\x88\xb5" + bytes(46)
        guest.nets[0].send(frame)
        xen.run()
        assert list(xen.bridge("xenbr0").frames) == []
        told.answers["event"] = []
        xen.loop.advance(61 * NS_PER_S)
        assert list(xen.bridge("xenbr0").frames) == [frame]


def test_a_grant_error_of_the_kit_looks_like_xens():
    with world_raw() as world:
        device = faults.Maps(world.platform.dom0, Told(map=[1]))
        with pytest.raises(GrantError, match="GNTST_general_error: GNTTABOP_map_grant_ref"):
            world.platform.dom0.gnttab.map(world.guest.domid, 8, 5)
        device.close()
