"""Grants that blkback keeps mapped: which, for how long, and that none is forgotten."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.back.blkscene import MS, Scene, grant_bits, scene, sectors_of
from tests.vbd.rawfront import ERROR, OKAY, READ, READONLY, WRITE
from tests.world import World
from xenpv.back.persistent import Page, PersistentGrants

SECOND = 1_000_000_000
MINUTE = 60 * SECOND


def kept(most: int, *refs: int) -> PersistentGrants:
    """Idle since the beginning."""
    grants = PersistentGrants(most)
    for ref in refs:
        page = Page(ref, 0x1000 + ref, ref)
        assert grants.add(page)
        grants.put(page, 0)
    return grants


def refs_of(pages: list[Page]) -> list[int]:
    return [page.ref for page in pages]


# the tree


def test_a_page_is_one_requests_at_a_time() -> None:
    grants = kept(4, 7)
    page = grants.get(7)
    assert page is not None
    assert grants.get(7) is None
    assert grants.in_use == 1
    grants.put(page, 5)
    assert grants.get(7) is page
    assert grants.get(8) is None


def test_a_reference_is_kept_once_and_no_more_than_there_is_room_for() -> None:
    grants = kept(2, 7)
    assert not grants.add(Page(7, 0x2000, 99))
    assert grants.add(Page(8, 0x2001, 100))
    assert not grants.add(Page(9, 0x2002, 101))
    assert (len(grants), 7 in grants, 9 in grants) == (2, True, False)


@pytest.mark.parametrize(
    ("count", "overflow", "gone"),
    [
        (1055, False, 0),
        (1056, False, 0),  # full, and nobody wanted more
        (1056, True, 50),
        (3, False, 0),
    ],
)
def test_a_full_tree_gives_up_five_percent_once_somebody_found_no_room(
    count: int, overflow: bool, gone: int
) -> None:
    grants = kept(1056, *range(count, 0, -1))
    if overflow:
        assert not grants.add(Page(5000, 1, 1))
    assert refs_of(grants.purge(SECOND)) == list(range(1, gone + 1))
    assert len(grants) == count - gone
    for ref in range(6000, 6000 + gone):
        assert grants.add(Page(ref, 1, 1))
    assert grants.purge(SECOND) == []  # the overflow is forgotten


def test_what_is_in_use_is_never_given_up() -> None:
    grants = kept(1056, *range(1056))
    for ref in range(1056):
        if ref % 2:
            assert grants.get(ref) is not None
    assert not grants.add(Page(5000, 1, 1))
    assert refs_of(grants.purge(SECOND)) == list(range(0, 100, 2))
    assert refs_of(grants.purge(2 * MINUTE)) == list(range(100, 1056, 2))
    assert len(grants) == 528


@pytest.mark.parametrize(("now", "gone"), [(MINUTE - 1, []), (MINUTE, [1, 2])])
def test_what_was_not_used_for_a_minute_is_given_up(now: int, gone: list[int]) -> None:
    grants = kept(1056, 2, 1)
    late = Page(3, 3, 3)
    assert grants.add(late)
    grants.put(late, 1)
    assert refs_of(grants.purge(now)) == gone


def test_the_expired_are_given_up_first_and_count() -> None:
    grants = kept(100, *range(1, 101))
    for ref in (98, 99):
        page = grants.get(ref)
        assert page is not None
        grants.put(page, SECOND)
    assert not grants.add(Page(5000, 1, 1))
    gone = refs_of(grants.purge(MINUTE))
    assert gone == [*range(1, 98), 100]
    assert len(grants) == 2


def test_a_purge_takes_what_is_missing_to_five_percent_from_the_rest() -> None:
    grants = kept(100, *range(1, 101))
    for ref in range(1, 101):
        page = grants.get(ref)
        assert page is not None
        grants.put(page, 0 if ref == 50 else SECOND)
    assert not grants.add(Page(5000, 1, 1))
    assert refs_of(grants.purge(MINUTE)) == [50, 1, 2, 3, 4]


# on a ring


@pytest.fixture
def one(world: World) -> Scene:
    return scene(world, persistent=True)


def test_a_page_stays_mapped_writable_whatever_it_was_for(world: World, one: Scene) -> None:
    pfn, ref = one.page(b"x" * 4096)
    assert one.front.status(one.front.request(WRITE, 0, [(ref, 0, 7)])) == OKAY
    assert (one.maps(), grant_bits(world, ref)) == (1, 0x18)
    world.guest.write(pfn, 0, b"y" * 4096)
    assert one.front.status(one.front.request(WRITE, 8, [(ref, 0, 7)])) == OKAY
    assert one.front.status(one.front.request(READ, 0, [(ref, 0, 7)])) == OKAY
    assert one.read(pfn) == b"x" * 4096
    assert bytes(one.image.data[4096:8192]) == b"y" * 4096
    assert one.maps() == 1
    assert one.front.revoke(ref) < 0


def test_a_page_that_may_only_be_read_cannot_be_kept(one: Scene) -> None:
    _, ref = one.page(readonly=True)
    assert one.front.status(one.front.request(WRITE, 0, [(ref, 0, 7)])) == ERROR
    assert one.maps() == 0


def test_the_pages_of_an_indirect_table_are_kept_too(one: Scene) -> None:
    _, ref = one.page()
    table = one.front.grant(one.front.page(bytes((ref & 255, ref >> 8, 0, 0, 0, 7, 0, 0))))
    slot = one.front.indirect(READ, 0, [], nr=1, table=[table])
    assert one.front.send(slot, slot) == [(7, READ, OKAY)] * 2
    assert one.maps() == 2
    readonly = one.front.grant(one.front.page(), READONLY)
    assert one.front.status(one.front.indirect(READ, 0, [], nr=1, table=[readonly])) == ERROR


def test_a_reference_that_is_in_use_is_mapped_once_more_and_not_kept(world: World) -> None:
    one = scene(world, persistent=True, latency_ns=MS)
    pfn, ref = one.page()
    one.start(
        one.front.request(READ, 0, [(ref, 0, 0), (ref, 1, 1)], rid=1),
        one.front.request(READ, 2, [(ref, 2, 2)], rid=2),
    )
    assert one.maps() == 3
    assert len(one.wait(MS)) == 2
    assert one.maps() == 1
    assert one.read(pfn, 0, 1536) == sectors_of(0, 3)


def test_what_idles_for_a_minute_is_unmapped(world: World, one: Scene) -> None:
    refs = [one.page()[1] for _ in range(3)]
    assert one.front.status(one.front.request(READ, 0, [(ref, 0, 7) for ref in refs])) == OKAY
    world.loop.advance(MINUTE // 2)
    assert one.front.status(one.front.request(READ, 0, [(refs[1], 0, 7)])) == OKAY
    world.loop.advance(MINUTE // 2 - 1)
    assert one.maps() == 3
    world.loop.advance(100 * MS)
    assert one.maps() == 1
    assert [one.front.revoke(ref) == 0 for ref in refs] == [True, False, True]
    world.loop.advance(MINUTE)
    assert one.maps() == 0
    assert not any(timer.armed for timer in world.dom0.timers if timer.period_ns == 100 * MS)
    before = one.now
    world.loop.run()
    assert one.now == before  # the tick does not keep the loop


def test_beyond_1056_a_page_is_mapped_for_its_request_alone(world: World, one: Scene) -> None:
    world.guest.gnttab.grow(3)
    pfn = one.front.page()
    refs = [one.front.grant(pfn) for _ in range(1056 + 8)]
    for start in range(0, len(refs), 8):
        segments = [(ref, 0, 0) for ref in refs[start : start + 8]]
        assert one.front.status(one.front.request(READ, 0, segments)) == OKAY
    assert one.maps() == 1056
    assert one.front.revoke(refs[-1]) == 0
    world.loop.advance(100 * MS)
    assert one.maps() == 1056 - 50
    assert one.front.revoke(refs[0]) == 0


@pytest.mark.parametrize("latency_ns", [0, MS])
def test_all_of_them_go_with_the_ring(world: World, latency_ns: int) -> None:
    one = scene(world, persistent=True, latency_ns=latency_ns)
    refs = [one.page()[1] for _ in range(6)]
    for ref in refs[:3]:
        one.front.send(one.front.request(READ, 0, [(ref, 0, 7)]))
    one.start(one.front.request(WRITE, 0, [(ref, 0, 7) for ref in refs]))
    one.server.abandon()
    assert (one.maps(), one.pinned()) == (0, 0)
    assert [task.name for task in world.dom0.tasks if task.name == "vbd-lru"] == []
    assert all(one.front.revoke(ref) == 0 for ref in refs)
    world.loop.advance(2 * MINUTE)


@pytest.mark.parametrize("profile", ["qemu", "tapdisk", "mirage"])
def test_only_linux_keeps_grants(world: World, profile: str) -> None:
    one = scene(world, profile, persistent=True)
    assert one.server.persistent is None
    _, ref = one.page()
    assert one.front.status(one.front.request(READ, 0, [(ref, 0, 7)])) == OKAY
    assert one.maps() == 0


def test_no_timer_ticks_where_nothing_is_kept(world: World) -> None:
    timers = len(world.dom0.timers)
    one = scene(world, persistent=True)
    one.front.send(one.front.request(READ, 0, [(4000, 0, 7)]))
    assert [timer for timer in world.dom0.timers[timers:] if timer.period_ns and timer.armed] == []


class Keeping(RuleBasedStateMachine):
    """Against a list of what each request holds: nothing is kept twice, lost or over the limit."""

    def __init__(self) -> None:
        super().__init__()
        self.grants = PersistentGrants(8)
        self.mapped: list[Page] = []  # everything that is mapped
        self.held: list[Page] = []  # by requests
        self.now = 0

    @rule(ref=st.integers(0, 12))
    def use(self, ref: int) -> None:
        page = self.grants.get(ref)
        if page is None:
            page = Page(ref, len(self.mapped), len(self.mapped))
            self.mapped.append(page)
            self.grants.add(page)
        self.held.append(page)

    @precondition(lambda self: self.held)
    @rule(at=st.integers(0, 100))
    def end(self, at: int) -> None:
        page = self.held.pop(at % len(self.held))
        if page.kept:
            self.grants.put(page, self.now)
        else:
            self.mapped.remove(page)

    @rule(ns=st.sampled_from([1, MINUTE // 2, MINUTE]))
    def tick(self, ns: int) -> None:
        self.now += ns
        for page in self.grants.purge(self.now):
            assert page not in self.held
            self.mapped.remove(page)

    @invariant()
    def nothing_is_lost(self) -> None:
        kept = [page for page in self.mapped if page.kept]
        assert len(kept) == len(self.grants) <= 8
        assert len({page.ref for page in kept}) == len(kept)
        assert self.grants.in_use == len([page for page in self.held if page.kept])
        loose = [page for page in self.mapped if not page.kept]
        assert all(page in self.held for page in loose)


TestKeeping = Keeping.TestCase
TestKeeping.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
