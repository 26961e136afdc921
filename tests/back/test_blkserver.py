"""Requests served one by one: what is done, when, and how it is answered."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import attrs
import pytest

from tests.back.blkscene import (
    MS,
    LoggedImage,
    Scene,
    content,
    grant_bits,
    scene,
    sectors_of,
    serve,
)
from tests.vbd.rawfront import (
    BARRIER,
    DISCARD,
    EOPNOTSUPP,
    ERROR,
    FLUSH,
    INDIRECT,
    OKAY,
    READ,
    READONLY,
    WRITE,
    make,
)
from tests.world import World
from tests.world import make as make_world
from xenpv.abi._kernel import lib
from xenpv.host.image import ImageError, ImageUnsupportedError, RawImage

PROFILES = ["linux", "qemu", "tapdisk", "mirage"]
MAPPING, COPYING = ["linux", "mirage"], ["qemu", "tapdisk"]
MAPPED_READ, MAPPED_WRITE = 0x08, 0x18  # GTF_reading; and GTF_writing


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("protocol", ["x86_64-abi", "x86_32-abi", "arm-abi"])
@pytest.mark.parametrize("latency_ns", [0, 5 * MS])
def test_data_goes_to_the_disk_and_comes_back(
    world: World, profile: str, protocol: str, latency_ns: int
) -> None:
    one = scene(world, profile, protocol=protocol, latency_ns=latency_ns)
    front = one.front
    _, out = one.page(b"w" * 4096, readonly=True)
    target, back = one.page()
    assert front.send(front.request(WRITE, 16, [(out, 0, 7)], rid=2**64 - 1)) == [
        (2**64 - 1, WRITE, OKAY)
    ]
    assert front.send(front.request(READ, 15, [(back, 2, 4)], rid=3)) == [(3, READ, OKAY)]
    assert one.read(target) == bytes(1024) + sectors_of(15, 1) + b"w" * 1024 + bytes(1536)
    assert one.now == 2 * latency_ns
    assert (one.maps(), one.pinned(), one.server.in_flight) == (0, 0, 0)


@pytest.mark.parametrize("order", range(5))
def test_every_ring_order_is_served_to_its_last_slot(world: World, order: int) -> None:
    one = scene(world, order=order, latency_ns=MS)
    pages = [one.page() for _ in range(8)]  # a page is mapped 255 times at most
    count = 32 << order
    slots = [
        one.front.request(READ, n, [(pages[n % 8][1], n // 8 % 8, n // 8 % 8)], rid=n)
        for n in range(count)
    ]
    assert one.start(*slots) == []
    assert one.server.in_flight == count
    answers = one.wait(MS)
    assert sorted(answers) == [(n, READ, OKAY) for n in range(count)]
    assert one.read(pages[5][0], 3 * 512, 512) in [sectors_of(n, 1) for n in range(29, count, 64)]


# sector units: (sector number, first, last) that name the logical sectors 2 and 3 of a disk


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    ("units", "sector", "first", "last"),
    [
        ("spec2024", 16, 0, 7),
        ("linux", 16, 0, 7),
        ("ss2019", 2, 0, 0),
        ("freebsd", 2, 0, 7),
        ("minios", 16, 0, 7),
    ],
)
def test_a_sector_is_what_the_units_say(
    world: World, profile: str, units: str, sector: int, first: int, last: int
) -> None:
    one = scene(world, profile, units=units, sector_size=4096)
    pfn, ref = one.page()
    assert one.front.status(one.front.request(READ, sector, [(ref, first, last)])) == OKAY
    assert one.read(pfn) == sectors_of(16, 8)
    _, ref = one.page(b"x" * 4096)
    assert one.front.status(one.front.request(WRITE, sector, [(ref, first, last)])) == OKAY
    assert bytes(one.image.data[16 * 512 : 24 * 512]) == b"x" * 4096
    assert bytes(one.image.data[24 * 512 : 25 * 512]) == sectors_of(24, 1)


@pytest.mark.parametrize(
    ("units", "sector", "count"),
    [("spec2024", 16, 8), ("linux", 16, 8), ("ss2019", 2, 1), ("freebsd", 2, 1)],
)
def test_a_discard_counts_in_the_unit_of_requests(
    world: World, units: str, sector: int, count: int
) -> None:
    one = scene(world, units=units, sector_size=4096)
    assert one.front.status(one.front.discard(sector, count)) == OKAY
    assert one.image.log == [("discard", 16 * 512, 4096)]


# pages


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    ("operation", "bits"), [(READ, MAPPED_WRITE), (WRITE, MAPPED_READ)], ids=["read", "write"]
)
def test_a_page_is_mapped_until_its_request_is_answered_unless_it_is_copied(
    world: World, profile: str, operation: int, bits: int
) -> None:
    one = scene(world, profile, latency_ns=MS)
    _, ref = one.page()
    one.start(one.front.request(operation, 0, [(ref, 0, 7)] * 2))
    mapped = profile in MAPPING
    assert (one.maps(), one.pinned()) == ((2, 1) if mapped else (0, 0))
    assert grant_bits(world, ref) == (bits if mapped else 0)
    assert one.wait(MS) == [(7, operation, OKAY)]
    assert (one.maps(), one.pinned(), grant_bits(world, ref)) == (0, 0, 0)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_request_of_which_one_page_fails_does_nothing(
    world: World, profile: str, bad: int
) -> None:
    one = scene(world, profile)
    refs = [one.page()[1] for _ in range(3)]
    refs[bad] = 4000
    segments = [(ref, 0, 7) for ref in refs]
    assert one.front.status(one.front.request(WRITE, 0, segments)) == ERROR
    assert one.image.log == []
    assert (one.maps(), one.pinned()) == (0, 0)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_page_granted_read_only_takes_no_data(world: World, profile: str) -> None:
    one = scene(world, profile)
    pfn, ref = one.page(readonly=True)
    assert one.front.status(one.front.request(READ, 0, [(ref, 0, 7)])) == ERROR
    assert one.read(pfn) == bytes(4096)
    assert (one.maps(), one.pinned()) == (0, 0)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("latency_ns", [0, MS])
def test_data_is_there_and_pages_are_given_back_before_the_answer_shows(
    world: World, profile: str, latency_ns: int
) -> None:
    one = scene(world, profile, latency_ns=latency_ns)
    pfn, ref = one.page()
    assert one.front.ring is not None
    ring = lib.p2m_lookup(world.guest.kernel, one.front.ring.pfns[0], 0)
    seen: list[tuple[int, bool]] = []

    def hook(actor: int, kind: int, number: int, offset: int, _size: int) -> None:
        if (actor, kind & 3, number, offset) == (0, 1, ring, 8):  # rsp_prod is stored
            seen.append((grant_bits(world, ref), one.read(pfn) == sectors_of(0, 8)))

    world.hypervisor.set_hook(hook)
    assert one.front.send(one.front.request(READ, 0, [(ref, 0, 7)])) == [(7, READ, OKAY)]
    world.hypervisor.set_hook(None)
    assert seen == [(0, True)]


@pytest.mark.parametrize("profile", COPYING)
def test_a_copying_backend_has_what_is_written_from_the_beginning(
    world: World, profile: str
) -> None:
    one = scene(world, profile, latency_ns=MS)
    pfn, ref = one.page(b"a" * 4096)
    one.start(one.front.request(WRITE, 0, [(ref, 0, 7)]))
    world.guest.write(pfn, 0, b"b" * 4096)
    assert one.front.revoke(ref) == 0
    assert one.wait(MS) == [(7, WRITE, OKAY)]
    assert bytes(one.image.data[:4096]) == b"a" * 4096


@pytest.mark.parametrize("profile", COPYING)
def test_a_copying_backend_cannot_give_what_it_read_to_a_page_that_is_gone(
    world: World, profile: str
) -> None:
    one = scene(world, profile, latency_ns=MS)
    pfn, ref = one.page()
    one.start(one.front.request(READ, 0, [(ref, 0, 7)]))
    assert one.front.revoke(ref) == 0
    assert one.wait(MS) == [(7, READ, ERROR)]
    assert one.read(pfn) == bytes(4096)


@pytest.mark.parametrize("profile", MAPPING)
def test_a_mapped_page_cannot_be_revoked_before_the_answer(world: World, profile: str) -> None:
    one = scene(world, profile, latency_ns=MS)
    pfn, ref = one.page()
    one.start(one.front.request(READ, 0, [(ref, 0, 7)]))
    assert one.front.revoke(ref) < 0
    assert one.wait(MS) == [(7, READ, OKAY)]
    assert one.front.revoke(ref) == 0
    assert one.read(pfn) == sectors_of(0, 8)


# indirect requests


@pytest.mark.parametrize("profile", MAPPING)
@pytest.mark.parametrize("latency_ns", [0, MS])
@pytest.mark.parametrize("count", [1, 11, 12, 256])
def test_an_indirect_request_moves_all_its_segments(
    world: World, profile: str, latency_ns: int, count: int
) -> None:
    one = scene(world, profile, latency_ns=latency_ns)
    pages = [one.page() for _ in range(count)]
    slot = one.front.indirect(READ, 5, [(ref, n % 8, n % 8) for n, (_, ref) in enumerate(pages)])
    assert one.front.send(slot) == [(7, READ, OKAY)]  # the inner operation
    got = [one.read(pfn, n % 8 * 512, 512) for n, (pfn, _) in enumerate(pages)]
    assert b"".join(got) == sectors_of(5, count)
    assert (one.maps(), one.pinned()) == (0, 0)


@pytest.mark.parametrize("count", [512, 513, 1025])
def test_a_table_may_have_several_pages_where_so_many_segments_are_offered(
    world: World, count: int
) -> None:
    one = scene(world)
    one.server.rules = attrs.evolve(one.server.rules, indirect_max=4096)
    pfn = one.front.page()
    refs = [one.front.grant(pfn) for _ in range(8)]  # a reference is mapped 255 times at most
    segments = [(refs[n % 8], n % 8, n % 8) for n in range(count)]
    assert one.front.status(one.front.indirect(READ, 0, segments)) == (
        OKAY if count <= 1024 else ERROR
    )
    if count <= 1024:
        last = [max(n for n in range(count) if n % 8 == place) for place in range(8)]
        assert one.read(pfn) == b"".join(sectors_of(n, 1) for n in last)


def test_an_indirect_table_is_given_back_before_the_data_moves(world: World) -> None:
    one = scene(world, latency_ns=MS)
    pfn, ref = one.page()
    table = one.front.grant(one.front.page(struct.pack("<IBB2x", ref, 0, 7)), READONLY)
    one.start(one.front.indirect(READ, 0, [], nr=1, table=[table]))
    assert one.front.revoke(table) == 0
    assert one.wait(MS) == [(7, READ, OKAY)]
    assert one.read(pfn) == sectors_of(0, 8)


@pytest.mark.parametrize("profile", MAPPING)
def test_an_indirect_request_whose_table_is_not_granted_errs(world: World, profile: str) -> None:
    one = scene(world, profile)
    assert one.front.status(one.front.indirect(READ, 0, [], nr=1, table=[4000])) == ERROR
    assert (one.maps(), one.pinned()) == (0, 0)


@pytest.mark.parametrize(("profile", "status"), [("qemu", ERROR), ("tapdisk", EOPNOTSUPP)])
def test_who_copies_knows_no_indirect_request(world: World, profile: str, status: int) -> None:
    one = scene(world, profile)
    _, ref = one.page()
    assert one.front.send(one.front.indirect(READ, 0, [(ref, 0, 7)])) == [(7, INDIRECT, status)]


# flushes and barriers


@pytest.mark.parametrize("profile", ["linux", "qemu"])
@pytest.mark.parametrize("latency_ns", [0, MS])
def test_a_flush_with_data_flushes_then_writes(world: World, profile: str, latency_ns: int) -> None:
    one = scene(world, profile, latency_ns=latency_ns)
    _, ref = one.page(b"f" * 4096)
    assert one.front.status(one.front.request(FLUSH, 8, [(ref, 0, 7)])) == OKAY
    assert one.image.log == [("flush", 0, 0), ("write", 4096, 4096)]
    assert one.now == 2 * latency_ns
    one.image.flush_error = ImageError("EIO")
    assert one.front.status(one.front.request(FLUSH, 8, [(ref, 0, 7)])) == ERROR
    assert one.image.log[2:] == [("flush", 0, 0)]
    assert one.front.status(one.front.request(FLUSH)) == ERROR
    assert (one.maps(), one.pinned()) == (0, 0)


def test_a_flush_comes_after_every_write_that_was_answered_before(world: World) -> None:
    one = scene(world, latency_ns=2 * MS)
    _, ref = one.page(b"f" * 4096)
    one.start(one.front.request(WRITE, 0, [(ref, 0, 7)], rid=1))
    one.wait(MS)
    one.start(one.front.request(WRITE, 8, [(ref, 0, 7)], rid=2))
    assert one.wait(MS) == [(1, WRITE, OKAY)]
    one.start(one.front.request(FLUSH, rid=3))
    assert one.wait(MS) == [(2, WRITE, OKAY)]
    assert one.wait(MS) == [(3, FLUSH, OKAY)]
    assert [what for what, _, _ in one.image.log] == ["write", "write", "flush"]


@pytest.mark.parametrize("profile", ["linux", "tapdisk"])
@pytest.mark.parametrize("segments", [0, 1])
def test_a_barrier_waits_for_what_came_before_it_on_its_ring(
    world: World, profile: str, segments: int
) -> None:
    for seed in range(6):  # whatever order the disk ends its I/Os in
        one = scene(make_world(seed), profile, latency_ns=MS)
        _, ref = one.page(b"f" * 4096)
        one.start(
            *(one.front.request(WRITE, 8 * n, [(ref, 0, 7)], rid=n) for n in range(3)),
            one.front.request(BARRIER, 80, [(ref, 0, 7)] * segments, rid=3),
            one.front.request(WRITE, 160, [(ref, 0, 7)], rid=4),
        )
        assert one.server.in_flight == 5
        answers = one.wait(10 * MS)
        order = [rid for rid, _, _ in answers]
        assert sorted(order[:3]) == [0, 1, 2]
        assert sorted(order[3:]) == [3, 4]
        assert {status for _, _, status in answers} == {OKAY}
        places = [offset // 512 for what, offset, _ in one.image.log if what == "write"]
        at = one.image.log.index(("flush", 0, 0))
        assert sorted(places[:3]) == [0, 8, 16]
        assert at == 3 or profile == "linux"
        if profile == "tapdisk":  # takes nothing off the ring until its barrier is done
            assert order[3:] == [3, 4]
            assert places[3:] == [80] * segments + [160]


def test_a_barrier_that_errs_waits_for_nothing(world: World) -> None:
    one = scene(world, latency_ns=MS)
    _, ref = one.page()
    answers = one.start(
        one.front.request(WRITE, 0, [(ref, 0, 7)], rid=1),
        one.front.request(BARRIER, 1024, [(ref, 0, 7)], rid=2),
    )
    assert answers == [(2, BARRIER, ERROR)]


@pytest.mark.parametrize(
    ("profile", "operation", "status"),
    [
        ("linux", 4, EOPNOTSUPP),
        ("linux", 7, EOPNOTSUPP),
        ("linux", 255, EOPNOTSUPP),
        ("qemu", BARRIER, ERROR),
        ("qemu", 4, ERROR),
        ("qemu", 255, ERROR),
        ("tapdisk", FLUSH, EOPNOTSUPP),
        ("tapdisk", DISCARD, EOPNOTSUPP),
        ("tapdisk", 255, EOPNOTSUPP),
        ("mirage", BARRIER, EOPNOTSUPP),
        ("mirage", FLUSH, EOPNOTSUPP),
        ("mirage", DISCARD, EOPNOTSUPP),
        ("mirage", 255, EOPNOTSUPP),
    ],
)
def test_an_operation_that_a_backend_does_not_know_is_told_as_it_came(
    world: World, profile: str, operation: int, status: int
) -> None:
    one = scene(world, profile)
    assert one.start(one.front.request(operation)) == [(7, operation, status)]
    assert one.image.log == []


@pytest.mark.parametrize(("profile", "status"), [("qemu", ERROR), ("mirage", EOPNOTSUPP)])
def test_a_barrier_that_is_not_known_waits_for_nothing(
    world: World, profile: str, status: int
) -> None:
    one = scene(world, profile, latency_ns=MS)
    _, ref = one.page()
    assert one.start(one.front.request(READ, 0, [(ref, 0, 7)], rid=1)) == []
    barrier = one.front.request(BARRIER, 8, [(ref, 0, 7)], rid=2)
    assert one.start(barrier) == [(2, BARRIER, status)]


# back-off


def test_linux_rests_a_millisecond_after_an_error(world: World) -> None:
    one = scene(world)
    _, ref = one.page()
    bad = [one.front.request(READ, 5000, [(ref, 0, 7)], rid=n) for n in range(2)]
    good = one.front.request(READ, 0, [(ref, 0, 7)], rid=2)
    assert one.start(*bad, good) == [(0, READ, ERROR)]
    assert one.wait(MS - 1) == []
    assert one.wait(1) == [(1, READ, ERROR)]
    assert one.start(good) == []  # behind the first
    assert one.wait(MS) == [(2, READ, OKAY)] * 2
    assert one.front.status(good) == OKAY  # nobody is asleep


def test_what_comes_while_linux_rests_stays_on_the_ring(world: World) -> None:
    """Not even copied: what the frontend writes over it in the meantime counts."""
    one = scene(world)
    pfn, ref = one.page()
    assert one.start(one.front.request(READ, 5000, [(ref, 0, 7)], rid=1)) == [(1, READ, ERROR)]
    one.wait(MS // 2)
    assert one.start(one.front.request(READ, 0, [(ref, 0, 7)], rid=2)) == []
    world.guest.evtchn.send(one.front.port)  # although nobody asked for it
    assert one.wait(0) == []
    assert one.server.in_flight == 0
    assert one.front.ring is not None
    other = one.front.request(READ, 8, [(ref, 0, 7)], rid=3)
    world.guest.write(one.front.ring.pfns[0], 64 + 112, other)
    assert one.wait(MS // 2 - 1) == []
    assert one.wait(1) == [(3, READ, OKAY)]
    assert one.read(pfn) == sectors_of(8, 8)


@pytest.mark.parametrize("situation", ["unknown operation", "discard", "i/o error", "no such page"])
def test_what_linux_rests_after(world: World, situation: str) -> None:
    one = scene(world)
    _, ref = one.page()
    one.image.bad.add(3)
    slot = {
        "unknown operation": one.front.request(4),
        "discard": one.front.discard(5000, 1),
        "i/o error": one.front.request(READ, 0, [(ref, 0, 7)]),
        "no such page": one.front.request(READ, 0, [(4000, 0, 7)]),
    }[situation]
    answers = one.start(slot, one.front.request(READ, 8, [(ref, 0, 7)], rid=8))
    assert len(answers) == (1 if situation == "no such page" else 2)
    assert one.wait(MS) == [(8, READ, OKAY)][len(answers) - 1 :]


@pytest.mark.parametrize("profile", ["qemu", "tapdisk", "mirage"])
def test_others_go_on_after_an_error(world: World, profile: str) -> None:
    one = scene(world, profile)
    _, ref = one.page()
    bad = one.front.request(READ, 5000, [(ref, 0, 7)], rid=1)
    good = one.front.request(READ, 0, [(ref, 0, 7)], rid=2)
    assert sorted(one.start(bad, good)) == [(1, READ, ERROR), (2, READ, OKAY)]


# time


@pytest.mark.parametrize("latency_ns", [0, MS])
def test_an_answer_is_told_by_an_event_where_the_frontend_asked_for_one(
    world: World, latency_ns: int
) -> None:
    one = scene(world, latency_ns=latency_ns)
    front, guest = one.front, world.guest
    flush = front.request(FLUSH)
    assert front.ring is not None
    for asked in (True, False, True):
        if asked:
            front.ring.final_check()
        else:
            guest.store32(front.ring.pfns[0], 12, 1000)  # rsp_event
        front.ring.push(flush, 1)
        guest.evtchn.send(front.port)
        lib.evtchn_take_pending(guest.kernel, front.port)
        world.loop.advance(latency_ns)
        assert lib.evtchn_take_pending(guest.kernel, front.port) == asked
        front.ring.take()


def test_ios_end_after_their_time_in_an_order_that_is_drawn(world: World) -> None:
    orders = []
    for seed in range(8):
        one = scene(make_world(seed), latency_ns=MS)
        _, ref = one.page()
        one.start(*(one.front.request(READ, n, [(ref, 0, 0)], rid=n) for n in range(6)))
        assert one.wait(MS - 1) == []
        orders.append([rid for rid, _, _ in one.wait(1)])
        assert sorted(orders[-1]) == [0, 1, 2, 3, 4, 5]
        again = scene(make_world(seed), latency_ns=MS)
        _, ref = again.page()
        again.start(*(again.front.request(READ, n, [(ref, 0, 0)], rid=n) for n in range(6)))
        assert [rid for rid, _, _ in again.wait(MS)] == orders[-1]
    assert len({tuple(order) for order in orders}) > 4
    del world


def test_an_io_does_what_it_does_at_its_end(world: World) -> None:
    one = scene(world, latency_ns=MS)
    pfn, ref = one.page(b"n" * 4096)
    one.start(one.front.request(WRITE, 0, [(ref, 0, 7)]))
    assert one.wait(MS - 1) == []
    assert one.image.log == []
    assert one.wait(1) == [(7, WRITE, OKAY)]
    assert bytes(one.image.data[:4096]) == b"n" * 4096
    assert one.read(pfn) == b"n" * 4096


def test_a_full_ring_in_flight_leaves_requests_where_they_are(world: World) -> None:
    """The frontend has room again only when answers are there: then they are seen."""
    one = scene(world, latency_ns=MS)
    _, ref = one.page()
    one.start(*(one.front.request(READ, n, [(ref, 0, 0)], rid=n) for n in range(32)))
    assert one.server.in_flight == 32
    assert len(one.wait(MS)) == 32
    assert len(one.front.send(one.front.request(READ, 0, [(ref, 0, 0)]))) == 1


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("latency_ns", [0, MS])
def test_an_error_of_the_host_is_an_error_of_that_request(
    world: World, profile: str, latency_ns: int
) -> None:
    one = scene(world, profile, latency_ns=latency_ns)
    one.image.bad.add(100)
    pages = [one.page(b"p" * 4096) for _ in range(4)]
    slots = [
        one.front.request(READ if n % 2 else WRITE, at, [(pages[n][1], 0, 7)], rid=n)
        for n, at in enumerate((96, 97, 200, 300))
    ]
    assert sorted((rid, status) for rid, _, status in one.front.send(*slots)) == [
        (0, ERROR), (1, ERROR), (2, OKAY), (3, OKAY),
    ]  # fmt: skip
    assert one.read(pages[1][0]) == b"p" * 4096
    assert bytes(one.image.data[96 * 512 : 104 * 512]) == sectors_of(96, 8)
    assert (one.maps(), one.pinned(), one.server.in_flight) == (0, 0, 0)


@pytest.mark.parametrize("path", ["batch", *PROFILES])
def test_a_file_that_became_shorter_is_an_error_where_it_ends(
    world: World, path: str, tmp_path: Path
) -> None:
    file = tmp_path / "disk.img"
    file.write_bytes(content())
    image = RawImage(str(file), writable=True)
    front = make(world, image).connect()
    if path != "batch":
        serve(front, path)
    os.truncate(file, 100 * 512)
    pfn = front.page(b"p" * 4096)
    ref = front.grant(pfn)
    assert front.status(front.request(READ, 96, [(ref, 0, 7)])) == ERROR
    assert world.guest.read(pfn, 0, 4096) == b"p" * 4096
    assert front.status(front.request(READ, 92, [(ref, 0, 7)])) == OKAY
    assert world.guest.read(pfn, 0, 4096) == sectors_of(92, 8)
    image.close()


# discards


@pytest.mark.parametrize(
    ("profile", "mode", "enable", "sector", "count", "status", "log"),
    [
        ("linux", "w", "1", 8, 16, OKAY, [("discard", 4096, 8192)]),
        ("linux", "w", "1", 8, 0, OKAY, [("discard", 4096, 0)]),
        ("linux", "w", "0", 8, 16, EOPNOTSUPP, []),
        ("linux", "w", "0", 8, 5000, ERROR, []),
        ("linux", "r", "1", 8, 16, ERROR, []),
        ("linux", "w", "1", 2**64 - 1, 2, ERROR, []),
        ("qemu", "w", "1", 8, 16, OKAY, [("discard", 4096, 8192)]),
        ("qemu", "w", "0", 8, 16, OKAY, []),  # bdrv_co_pdiscard without BDRV_O_UNMAP
        ("qemu", "r", "1", 8, 16, ERROR, []),
        ("qemu", "w", "1", 8, 5000, ERROR, []),
        ("qemu", "w", "1", 2**64 - 1, 2, ERROR, []),
    ],
)
def test_discard(
    world: World, profile: str, mode: str, enable: str, sector: int, count: int, status: int,
    log: list[tuple[str, int, int]],
) -> None:  # fmt: skip
    one = scene(world, profile, mode=mode, discard_enable=enable)
    assert one.front.send(one.front.discard(sector, count)) == [(7, DISCARD, status)]
    assert one.image.log == log


@pytest.mark.parametrize(("profile", "status"), [("linux", EOPNOTSUPP), ("qemu", OKAY)])
def test_a_discard_that_the_image_cannot_do(world: World, profile: str, status: int) -> None:
    one = scene(world, profile)
    one.image.discards = False
    assert one.front.status(one.front.discard(8, 8)) == status


def test_a_secure_discard_is_a_discard_where_secure_ones_are_not_offered(world: World) -> None:
    one = scene(world)
    assert one.front.status(one.front.discard(8, 8, flag=1)) == OKAY
    assert one.image.log == [("discard", 4096, 4096)]


@pytest.mark.parametrize("path", ["batch", "linux"])
@pytest.mark.parametrize(
    ("sector", "count", "status"), [(8, 8, OKAY), (1, 8, ERROR), (8, 7, ERROR), (1, 0, OKAY)]
)
def test_linux_discards_whole_logical_sectors(
    world: World, path: str, sector: int, count: int, status: int
) -> None:
    front = make(world, LoggedImage(content(), sector_size=4096)).connect()
    if path != "batch":
        serve(front, path)
    assert front.status(front.discard(sector, count)) == status


# mirage


def test_mirage_makes_neighbours_one_io_and_gives_all_its_end(world: World) -> None:
    one = scene(world, "mirage")
    pages = [one.page(bytes([n]) * 4096) for n in range(4)]
    slots = [
        one.front.request(WRITE, at, [(pages[n][1], 0, 7)], rid=n)
        for n, at in enumerate((0, 8, 16, 32))
    ]
    one.image.bad.add(9)
    assert sorted((rid, status) for rid, _, status in one.start(*slots)) == [
        (0, ERROR), (1, ERROR), (2, ERROR), (3, OKAY),
    ]  # fmt: skip
    assert one.image.log == [("write", 0, 12288), ("write", 16384, 4096)]


def test_mirage_makes_no_io_larger_than_its_room(world: World) -> None:
    one = scene(world, "mirage", data=bytearray(5 << 20))
    pfn = one.front.page(b"m" * 4096)
    refs = [one.front.grant(pfn) for _ in range(16)]  # a reference is mapped 255 times at most
    segments = [(refs[n % 16], 0, 7) for n in range(256)]
    slots = [one.front.indirect(WRITE, 2048 * n, segments, rid=n) for n in range(5)]
    assert sorted(one.start(*slots)) == [(n, WRITE, OKAY) for n in range(5)]
    assert one.image.log == [("write", 0, 4 << 20), ("write", 4 << 20, 1 << 20)]
    assert bytes(one.image.data) == b"m" * (5 << 20)


def test_mirage_reads_neighbours_into_their_own_pages(world: World) -> None:
    one = scene(world, "mirage", latency_ns=MS)
    pages = [one.page() for _ in range(3)]
    slots = [one.front.request(READ, 3 * n, [(pages[n][1], 1, 3)], rid=n) for n in range(3)]
    assert len(one.front.send(*slots)) == 3
    assert one.image.log == [("read", 0, 4608)]
    for n, (pfn, _) in enumerate(pages):
        assert one.read(pfn) == bytes(512) + sectors_of(3 * n, 3) + bytes(2048)


def test_mirage_does_what_overlaps_in_the_order_of_the_ring() -> None:
    for seed in range(8):
        one = scene(make_world(seed), "mirage", latency_ns=MS)
        old, first = one.page()
        new, last = one.page()
        _, data = one.page(b"d" * 4096)
        one.start(
            one.front.request(READ, 4, [(first, 0, 7)], rid=1),
            one.front.request(WRITE, 0, [(data, 0, 7)], rid=2),
            one.front.request(READ, 7, [(last, 0, 0)], rid=3),
        )
        assert len(one.wait(MS)) == 3
        assert one.read(old) == sectors_of(4, 8)
        assert one.read(new, 0, 512) == b"d" * 512


@pytest.mark.parametrize(
    ("operations", "places"),
    [((READ, READ), (0, 4)), ((READ, WRITE), (0, 8)), ((WRITE, READ), (8, 0))],
)
def test_mirage_does_what_does_not_overlap_in_any_order(
    operations: tuple[int, int], places: tuple[int, int]
) -> None:
    orders = []
    for seed in range(12):
        one = scene(make_world(seed), "mirage", latency_ns=MS)
        slots = [
            one.front.request(operation, place, [(one.page()[1], 0, 7)], rid=n)
            for n, (operation, place) in enumerate(zip(operations, places, strict=True))
        ]
        one.start(*slots)
        assert len(one.wait(MS)) == 2
        orders.append([(what, at) for what, at, _ in one.image.log])
    assert [order for order in orders if order != orders[0]]


def test_mirage_answers_a_pass_when_all_of_it_is_done(world: World) -> None:
    """Those that waited for others, and those that were refused at once."""
    one = scene(world, "mirage", latency_ns=4 * MS)
    pages = [one.page() for _ in range(3)]
    refs = [ref for _, ref in pages]
    one.start(one.front.request(READ, 0, [(refs[0], 0, 7)], rid=1))
    one.wait(MS)
    assert one.start(
        one.front.request(READ, 5000, [(refs[0], 0, 7)], rid=2),
        one.front.request(READ, 80, [(refs[1], 0, 7)], rid=3),
        one.front.request(READ, 40, [(refs[2], 0, 7)], rid=4),
        one.front.request(9, rid=5),
    ) == []  # fmt: skip
    assert (one.maps(), one.server.in_flight) == (3, 5)
    assert one.wait(3 * MS) == [(1, READ, OKAY)]
    assert (one.maps(), one.server.in_flight) == (2, 4)
    assert sorted(one.wait(MS)) == [
        (2, READ, ERROR), (3, READ, OKAY), (4, READ, OKAY), (5, 9, EOPNOTSUPP),
    ]  # fmt: skip
    assert (one.maps(), one.server.in_flight) == (0, 0)


def test_mirage_maps_a_pass_in_one_batch(world: World) -> None:
    one = scene(world, "mirage", latency_ns=MS)
    _, ref = one.page()
    calls: list[int] = []
    table = world.dom0.gnttab
    original = table.hypercall

    def counted(cmd: int, ops: object, count: int | None = None, *, vcpu: int = 0) -> None:
        calls.append(len(ops))  # type: ignore[arg-type] # a cffi array
        original(cmd, ops, count, vcpu=vcpu)

    table.hypercall = counted  # type: ignore[method-assign] # counts what goes through
    one.start(*(one.front.request(WRITE, 32 * n, [(ref, 0, 0)] * 11) for n in range(3)))
    assert calls == [33]
    assert len(one.wait(MS)) == 3
    assert calls == [33, 33]


def test_linux_maps_a_request_in_batches_of_11(world: World) -> None:
    one = scene(world, latency_ns=MS)
    _, ref = one.page()
    calls: list[int] = []
    table = world.dom0.gnttab
    original = table.hypercall

    def counted(cmd: int, ops: object, count: int | None = None, *, vcpu: int = 0) -> None:
        calls.append(len(ops))  # type: ignore[arg-type] # a cffi array
        original(cmd, ops, count, vcpu=vcpu)

    table.hypercall = counted  # type: ignore[method-assign] # counts what goes through
    one.start(one.front.indirect(WRITE, 0, [(ref, 0, 0)] * 24))
    assert calls == [1, 1, 11, 11, 2]  # the table, mapped and unmapped, and the segments


# the end of a connection


def busy(world: World, profile: str) -> Scene:
    """Requests in every stage: under way, behind a barrier, done and not told."""
    one = scene(world, profile, latency_ns=MS)
    _, ref = one.page(b"o" * 4096)
    one.start(
        one.front.request(WRITE, 0, [(ref, 0, 7)], rid=0),
        one.front.request(READ, 500, [(ref, 0, 7)], rid=1),
        one.front.request(FLUSH, 600, [(ref, 0, 7)], rid=2),
        one.front.request(BARRIER, 700, [(ref, 0, 7)], rid=3),
        one.front.request(WRITE, 800, [(ref, 0, 7)], rid=4),
    )
    return one


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("after_ns", [0, MS // 2, MS, MS + MS // 2])
def test_nothing_is_mapped_or_answered_after_the_connection_went(
    world: World, profile: str, after_ns: int
) -> None:
    one = busy(world, profile)
    one.wait(after_ns)
    one.server.abandon()
    assert (one.maps(), one.pinned(), one.server.in_flight) == (0, 0, 0)
    assert bytes(one.image.data[:4096]) != sectors_of(0, 8)  # the disk was told to write it
    log = list(one.image.log)
    assert [task.name for task in world.dom0.tasks if task.name in ("vbd-io", "vbd-lru")] == []
    one.server.abandon()
    assert one.wait(100 * MS) == []
    assert one.image.log == log


@pytest.mark.parametrize("path", ["batch", "linux"])
@pytest.mark.parametrize(
    ("operation", "key"), [(FLUSH, "feature-flush-cache"), (BARRIER, "feature-barrier")]
)
def test_an_image_that_cannot_flush_takes_its_key_back(
    world: World, path: str, operation: int, key: str
) -> None:
    image = LoggedImage(content())
    front = make(world, image).connect()
    if path != "batch":
        serve(front, path)
    image.flush_error = ImageUnsupportedError("no cache here")
    other = {"feature-flush-cache": "feature-barrier"}.get(key, "feature-flush-cache")
    assert (front.key(key), front.key(other)) == ("1", "1")
    ref = front.grant(front.page())
    assert front.status(front.request(operation)) == EOPNOTSUPP
    assert (front.key(key), front.key(other)) == ("0", "1")
    assert front.status(front.request(operation, 0, [(ref, 0, 7)])) == EOPNOTSUPP
    assert [what for what, _, _ in image.log] == ["flush", "flush"]


@pytest.mark.parametrize(("profile", "operation"), [("qemu", FLUSH), ("tapdisk", BARRIER)])
def test_others_call_that_an_error(world: World, profile: str, operation: int) -> None:
    one = scene(world, profile)
    one.image.flush_error = ImageUnsupportedError("no cache here")
    assert one.front.status(one.front.request(operation)) == ERROR
    assert one.server.lost == []


def test_what_was_not_begun_is_not_done_after_the_connection_went(world: World) -> None:
    one = busy(world, "linux")
    one.server.abandon()
    assert sorted(one.image.log) == [
        ("flush", 0, 0), ("read", 500 * 512, 4096), ("write", 0, 4096), ("write", 600 * 512, 4096),
    ]  # fmt: skip


def test_a_thread_that_ends_answers_what_it_began_and_leaves_the_rest(world: World) -> None:
    one = busy(world, "linux")
    assert one.server.in_flight == 5
    assert not one.server.stop()
    assert one.server.in_flight == 3
    one.start(one.front.request(WRITE, 900, rid=5))
    assert sorted(one.wait(100 * MS)) == [(0, WRITE, OKAY), (1, READ, OKAY), (2, FLUSH, OKAY)]
    assert (one.maps(), one.pinned(), one.server.in_flight) == (0, 0, 0)
    assert one.server.stop()


@pytest.mark.parametrize("profile", PROFILES)
def test_a_dead_guest_has_its_requests_ended_and_its_pages_back(world: World, profile: str) -> None:
    one = busy(world, profile)
    world.hypervisor.destroy_domain(world.guest)
    world.loop.advance(100 * MS)
    one.server.abandon()
    assert one.maps() == -1  # xenstored let go of its ring
    assert (one.server.data.pages.held, one.server.in_flight) == (0, 0)
