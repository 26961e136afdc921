"""GNTTAB v2-4: every operation by its situations, and references under a peer that maps at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.world import World, make
from xenpv.abi._kernel import lib
from xenpv.bus.cache import CacheInterface
from xenpv.bus.gnttab import GnttabInterface, GrantCache, GrantEntry
from xenpv.bus.hole import Holes
from xenpv.bus.interface import InterfaceVersion, query_interface
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.suspend import SuspendInterface, SuspendPhase
from xenpv.errors import GrantError, LocalProtocolError
from xenpv.xen.loop import NS_PER_S

GUID = "763679C5-E5C2-4A6D-8B88-6BB02EC42D8E"
BUSY = UNSUCCESSFUL = 0xC000_0001
ASSERTED = "assert"
OK = None


@attrs.define(eq=False)
class Scene:
    """A guest with the interface, and dom0 as the domain that maps."""

    world: World
    gnttab: GnttabInterface
    version: InterfaceVersion
    cache: GrantCache
    pfn: int
    entry: GrantEntry
    here: int  # dom0's place
    told: list[str]

    def permit(self, cache: GrantCache | None = None, readonly: bool = False) -> GrantEntry:
        return self.version.permit_foreign_access(cache or self.cache, False, 0, self.pfn, readonly)

    def revoke(self, entry: GrantEntry | None = None) -> None:
        self.version.revoke_foreign_access(self.cache, False, entry or self.entry)

    def map(self, **how: bool) -> int:
        return self.world.dom0.gnttab.map(1, self.entry.ref, self.here, **how)

    def offer(self, count: int) -> list[int]:
        """References of dom0's to so many pages, for the guest to map."""
        refs = list(range(8, 8 + count))
        for ref in refs:
            pfn = self.world.dom0.pages.alloc()
            self.world.dom0.write(pfn, 0, b"page %d" % ref)
            lib.grant_entry_set(self.world.dom0.kernel, ref, 1, pfn, 1)
        return refs

    def exhaust(self) -> None:
        self.gnttab.reserve(64 * 512)

    def fill_memory(self) -> None:
        self.world.guest.pages.alloc_pages(5000)


def scene(world: World, version: int = 4) -> Scene:
    told: list[str] = []
    gnttab = GnttabInterface(world.guest, holes=Holes(world.guest, bugcheck=told.append))
    interface = query_interface([gnttab], GUID, version)
    interface.acquire()
    cache = interface.create_cache("c", 0)
    pfn = world.guest.pages.alloc()
    entry = interface.permit_foreign_access(cache, False, 0, pfn, False)
    return Scene(world, gnttab, interface, cache, pfn, entry, world.dom0.holes.alloc(), told)


def outcome(call: Callable[[], Any]) -> Any:
    try:
        call()
    except NtStatusError as error:
        return int(error.status)
    except LocalProtocolError:
        return ASSERTED
    return OK


def row(
    name: str,
    call: Callable[[Scene], Any],
    expected: Any,
    before: Callable[[Scene], Any] | None = None,
) -> Any:
    return pytest.param(call, expected, before, id=name)


def _capped(cap: int) -> Callable[[Scene], Any]:
    def call(s: Scene) -> Any:
        cache = s.version.create_cache("capped", 0, cap)
        try:
            return s.version.permit_foreign_access(cache, False, 0, s.pfn, False)
        finally:
            s.version.destroy_cache(cache)

    return call


def _destroyed(s: Scene) -> None:
    s.revoke()
    s.version.destroy_cache(s.cache)


def _other_cache(s: Scene) -> Any:
    return s.version.revoke_foreign_access(s.version.create_cache("other"), False, s.entry)


def _failing(status: int) -> Callable[[Scene], None]:
    def before(s: Scene) -> None:
        def fail(*_: Any, **__: Any) -> int:
            raise GrantError(status)

        s.world.guest.gnttab.map = fail  # type: ignore[method-assign]  # a status that Xen seldom gives

    return before


ROWS = [
    row("create: a reservation", lambda s: s.version.create_cache("x", 253), OK),
    row("create: a reservation takes no reference", lambda s: s.version.create_cache("x", 253), OK, lambda s: s.exhaust()),
    row("create: a reservation above the cap", lambda s: s.version.create_cache("x", 9, 8), 0xC000_000D),
    row("create: a reservation that a slab exceeds", lambda s: s.version.create_cache("x", 9, 252), 0xC000_009A),
    row("create: no page for a slab", lambda s: s.version.create_cache("x", 9), 0xC000_0017, lambda s: s.fill_memory()),
    row("permit", lambda s: s.permit(), OK),
    row("permit: read-only", lambda s: s.permit(readonly=True), OK),
    row("permit: a cap below 253", _capped(252), 0xC000_009A),
    row("permit: the table is full", lambda s: s.permit(), 0xC000_009A, lambda s: s.exhaust()),
    row("permit: the table is full, an entry is constructed", lambda s: s.permit(), OK, lambda s: (s.exhaust(), s.revoke())),
    row("permit: no page for a slab", lambda s: s.permit(s.version.create_cache("x")), 0xC000_009A, lambda s: s.fill_memory()),
    row("permit: the highest pfn", lambda s: s.version.permit_foreign_access(s.cache, False, 0, 0xFFFF_FFFF, False), OK),
    row("permit: a pfn of 33 bits", lambda s: s.version.permit_foreign_access(s.cache, False, 0, 1 << 32, False), ASSERTED),
    row("permit: a destroyed cache", lambda s: s.permit(), ASSERTED, _destroyed),
    row("revoke", lambda s: s.revoke(), OK),
    row("revoke: mapped", lambda s: s.revoke(), BUSY, lambda s: s.map()),
    row("revoke: mapped read-only", lambda s: s.revoke(), BUSY, lambda s: s.map(readonly=True)),
    row("revoke: was mapped", lambda s: s.revoke(), OK, lambda s: s.world.dom0.gnttab.unmap(s.map(), s.here)),
    row("revoke: twice", lambda s: s.revoke(), ASSERTED, lambda s: s.revoke()),
    row("revoke: into another cache", _other_cache, ASSERTED),
    row("revoke: into a destroyed cache", lambda s: s.revoke(), ASSERTED, _destroyed),
    row("reference", lambda s: s.version.get_reference(s.entry), OK),
    row("reference: revoked", lambda s: s.version.get_reference(s.entry), ASSERTED, lambda s: s.revoke()),
    row("reference: mapped, so not revoked", lambda s: s.version.get_reference(s.entry), OK, lambda s: (s.map(), outcome(s.revoke))),
    row("query: the last of the first frame", lambda s: s.version.query_reference(511), OK),
    row("query: beyond it", lambda s: s.version.query_reference(512), 0xC000_000D),
    row("query: in the second frame", lambda s: s.version.query_reference(1023), OK, lambda s: s.gnttab.reserve(512)),
    row("query: negative", lambda s: s.version.query_reference(-1), 0xC000_000D),
    row("destroy: an entry is out", lambda s: s.version.destroy_cache(s.cache), ASSERTED),
    row("destroy: a mapped entry is out", lambda s: s.version.destroy_cache(s.cache), ASSERTED, lambda s: (s.map(), outcome(s.revoke))),
    row("destroy", lambda s: s.version.destroy_cache(s.cache), OK, lambda s: s.revoke()),
    row("destroy: twice", lambda s: s.version.destroy_cache(s.cache), ASSERTED, _destroyed),
    row("map", lambda s: s.version.map_foreign_pages(0, 3, [8, 9, 10], False), OK, lambda s: s.offer(3)),
    row("map: read-only", lambda s: s.version.map_foreign_pages(0, 1, [8], True), OK, lambda s: s.offer(1)),
    row("map: no pages", lambda s: s.version.map_foreign_pages(0, 0, [], False), 0xC000_000D),
    row("map: fewer references than pages", lambda s: s.version.map_foreign_pages(0, 2, [8], False), ASSERTED, lambda s: s.offer(2)),
    row("map: no hole", lambda s: s.version.map_foreign_pages(0, 1, [8], False), 0xC000_0017, lambda s: (s.offer(1), s.fill_memory())),
    row("map: no domain", lambda s: s.version.map_foreign_pages(77, 1, [8], False), UNSUCCESSFUL),
    row("map: beyond their table", lambda s: s.version.map_foreign_pages(0, 1, [1 << 20], False), UNSUCCESSFUL),
    row("map: the last is not granted", lambda s: s.version.map_foreign_pages(0, 3, [8, 9, 10], False), UNSUCCESSFUL, lambda s: s.offer(2)),
    row("map: GNTST_bad_handle", lambda s: s.version.map_foreign_pages(0, 1, [8], False), 0xC000_0008, _failing(-4)),
    row("map: GNTST_permission_denied", lambda s: s.version.map_foreign_pages(0, 1, [8], False), 0xC000_0022, _failing(-8)),
    row("map: GNTST_eagain", lambda s: s.version.map_foreign_pages(0, 1, [8], False), 0xC000_022D, _failing(-12)),
    row("map: GNTST_no_space", lambda s: s.version.map_foreign_pages(0, 1, [8], False), UNSUCCESSFUL, _failing(-13)),
    row("unmap: nothing is there", lambda s: s.version.unmap_foreign_pages(0x1000), 0xC000_0034),
    row("unmap: not the first page's address", lambda s: s.version.unmap_foreign_pages(s.version.map_foreign_pages(0, 2, s.offer(2), False) + 4096), 0xC000_0034),
    row("release: an entry is out", lambda s: s.version.release(), ASSERTED),
    row("release: a cache is left", lambda s: s.version.release(), ASSERTED, lambda s: s.revoke()),
    row("release: pages are mapped", lambda s: s.version.release(), ASSERTED, lambda s: (_destroyed(s), s.version.map_foreign_pages(0, 1, s.offer(1), False))),
    row("release", lambda s: s.version.release(), OK, _destroyed),
]  # fmt: skip


@pytest.mark.parametrize(("call", "expected", "before"), ROWS)
def test_operation(world: World, call: Any, expected: Any, before: Any) -> None:
    s = scene(world)
    if before is not None:
        before(s)
    assert outcome(lambda: call(s)) == expected
    assert s.told == []


def test_versions_and_their_structures(world: World) -> None:
    gnttab = GnttabInterface(world.guest)
    assert [query_interface([gnttab], GUID, version).size for version in (2, 3, 4)] == [
        104,
        112,
        112,
    ]
    for version in (1, 5):
        with pytest.raises(NtStatusError, match="^NOT_SUPPORTED"):
            query_interface([gnttab], GUID, version)
    old = query_interface([gnttab], GUID, 2)
    old.acquire()
    with pytest.raises(AttributeError, match="GNTTAB v2 has no query_reference"):
        _ = old.query_reference


@pytest.mark.parametrize("version", [2, 3])
def test_before_version_4_a_cache_has_no_cap(world: World, version: int) -> None:
    interface = query_interface([GnttabInterface(world.guest)], GUID, version)
    interface.acquire()
    log: list[str] = []
    cache = interface.create_cache(
        "c", 2, lambda a: log.append(a), lambda a: log.append(f"~{a}"), "L"
    )
    assert (cache.cache.cap, cache.cache.reservation, cache.cache.total) == (0, 2, 253)
    interface.permit_foreign_access(cache, False, 0, 1, False)
    assert log == ["L", "~L"]


def test_every_operation_needs_a_reference_on_the_interface(world: World) -> None:
    s = scene(world)
    _destroyed(s)
    s.version.release()
    for name in s.version.operations:
        with pytest.raises(LocalProtocolError, match=f"GNTTAB {name}: it is not acquired"):
            getattr(s.version, name)


def test_a_cache_is_a_cache_of_16_bytes_named_gnttab(world: World) -> None:
    s = scene(world)
    assert (s.cache.cache.name, s.cache.cache.size, s.cache.cache.total) == ("c_gnttab", 16, 253)
    assert outcome(lambda: s.version.create_cache("d", 0, 253)) == OK


def test_entries_lie_in_the_table(world: World) -> None:
    s = scene(world)
    entry = s.permit(readonly=True)
    assert (s.entry.ref, entry.ref) == (32, 33)
    raw = world.guest.read(s.gnttab.frame_pfns[0], 33 * 8, 8)
    assert raw == b"\x05\0\0\0" + s.pfn.to_bytes(4, "little")
    assert s.version.query_reference(33) == (s.pfn, True)
    s.revoke(entry)
    assert world.guest.read(s.gnttab.frame_pfns[0], 33 * 8, 8) == bytes(8)


def test_references_are_taken_at_first_use_and_given_back_with_the_slab(world: World) -> None:
    s = scene(world)
    free = len(s.gnttab._free)
    cache = s.version.create_cache("r", 253)
    assert len(s.gnttab._free) == free
    entries = [s.permit(cache) for _ in range(5)]
    assert len(s.gnttab._free) == free - 5
    for entry in entries:
        s.version.revoke_foreign_access(cache, False, entry)
    assert len(s.gnttab._free) == free - 5
    s.version.destroy_cache(cache)
    assert len(s.gnttab._free) == free


def test_the_table_grows_under_a_cache_and_has_an_end(world: World) -> None:
    s = scene(world)
    entries = [s.permit() for _ in range(64 * 512 - 32 - 1)]
    assert len(s.gnttab.frame_pfns) == 64
    assert len({entry.ref for entry in entries} | {s.entry.ref}) == 64 * 512 - 32
    assert min(entry.ref for entry in entries) > 31
    assert outcome(s.permit) == 0xC000_009A
    s.revoke(entries[100])
    assert outcome(s.permit) == OK


def test_what_is_mapped_is_never_given_out_again(world: World) -> None:
    s = scene(world)
    handle = s.map()
    for _ in range(101):
        assert outcome(s.revoke) == BUSY
    assert s.entry.ref not in [s.permit().ref for _ in range(600)]
    world.dom0.gnttab.unmap(handle, s.here)
    s.revoke()
    assert s.permit().ref == s.entry.ref


def test_pages_of_others_are_adjacent_and_go_back(world: World) -> None:
    s = scene(world)
    before = world.guest.tot_pages
    refs = s.offer(3)
    address = s.version.map_foreign_pages(0, 3, refs[::-1], False)
    pfn = address // 4096
    assert [world.guest.read(pfn + n, 0, 7).rstrip(b"\0") for n in range(3)] == [
        b"page 10",
        b"page 9",
        b"page 8",
    ]
    assert world.guest.tot_pages == before - 3
    s.version.unmap_foreign_pages(address)
    assert world.dom0.gnttab.pinned() == 0
    assert world.guest.tot_pages == before
    assert world.guest.read(pfn, 0, 7) == bytes(7)


def test_a_failed_map_takes_back_what_it_did(world: World) -> None:
    s = scene(world)
    before = world.guest.tot_pages
    s.offer(2)
    assert outcome(lambda: s.version.map_foreign_pages(0, 3, [8, 9, 10], False)) == UNSUCCESSFUL
    assert world.guest.tot_pages == before
    assert world.dom0.gnttab.pinned() == 0
    assert world.guest.gnttab.maptrack == {}


def test_a_read_only_page_cannot_be_written(world: World) -> None:
    s = scene(world)
    pfn = s.version.map_foreign_pages(0, 1, s.offer(1), True) // 4096
    assert lib.p2m_type(world.guest.kernel, pfn) == lib.P2M_GRANT_RO


def test_an_unmap_that_xen_refuses_is_a_bugcheck(world: World) -> None:
    s = scene(world)
    address = s.version.map_foreign_pages(0, 1, s.offer(1), False)
    pfn, handles = s.gnttab._mapped[address]
    world.guest.gnttab.unmap(handles[0], pfn)
    s.version.unmap_foreign_pages(address)
    assert len(s.told) == 1
    assert "GNTST_bad_handle" in s.told[0]


def test_the_last_release_gives_every_frame_back_and_the_next_use_starts_anew(world: World) -> None:
    guest = world.guest
    before = guest.tot_pages
    gnttab = GnttabInterface(guest)
    version = query_interface([gnttab], GUID, 4)
    version.acquire()
    cache = version.create_cache("c")
    entries = [version.permit_foreign_access(cache, False, 0, 1, False) for _ in range(1000)]
    assert guest.tot_pages == before - 3
    for entry in entries:
        version.revoke_foreign_access(cache, False, entry)
    version.destroy_cache(cache)
    version.release()
    assert (guest.tot_pages, gnttab.frame_pfns, gnttab.leftovers()) == (before, [], [])
    version.acquire()
    assert version.query_reference(1) == (0xFEFFC, False)


def test_references_that_are_out_at_the_last_release_keep_their_table(world: World) -> None:
    gnttab = GnttabInterface(world.guest)
    gnttab.acquire()
    ref = gnttab.permit_foreign_access(0, 1)
    with pytest.raises(LocalProtocolError, match="GNTTAB is released with 1 references"):
        gnttab.release()
    gnttab.acquire()
    assert ref not in gnttab.reserve(479)


def test_after_a_suspend_the_frames_are_back_and_grants_are_made_anew(world: World) -> None:
    suspend = SuspendInterface(world.guest)
    gnttab = GnttabInterface(world.guest, suspend=suspend)
    version = query_interface([gnttab], GUID, 4)
    version.acquire()
    cache = version.create_cache("c")
    gnttab.reserve(512)
    pfn = world.guest.pages.alloc()
    entry = version.permit_foreign_access(cache, False, 0, pfn, False)
    # The new domain's table is empty, and nothing of it is in the physmap.
    for frame in gnttab.frame_pfns:
        world.guest.write(frame, 0, bytes(4096))
        world.guest.memory.remove_from_physmap(0x7FF0, frame)
    (callback,) = suspend.callbacks(SuspendPhase.EARLY)
    assert suspend.callbacks(SuspendPhase.LATE) == []
    callback.function()
    here = world.dom0.holes.alloc()
    with pytest.raises(GrantError):
        world.dom0.gnttab.map(1, entry.ref, here)
    version.revoke_foreign_access(cache, False, entry)
    again = version.permit_foreign_access(cache, False, 0, pfn, False)
    assert again.ref == entry.ref
    world.dom0.gnttab.map(1, again.ref, here)
    gnttab.references = 1
    with pytest.raises(LocalProtocolError):
        version.release()
    assert (suspend.leftovers(), suspend.references) == ([], 0)


def test_the_monitor_gives_the_references_of_empty_slabs_back(world: World) -> None:
    s = scene(world)
    entries = [s.permit() for _ in range(4 * 253)]
    for entry in entries:
        s.revoke(entry)
    free = len(s.gnttab._free)
    world.loop.advance(20 * NS_PER_S)
    assert s.cache.cache.total < 5 * 253
    assert len(s.gnttab._free) > free


class Peer(RuleBasedStateMachine):
    """Two owners grant pages of a guest; dom0 maps and unmaps what it will."""

    def __init__(self) -> None:
        super().__init__()
        self.world = make()
        self.gnttab = GnttabInterface(self.world.guest, cache=CacheInterface(self.world.guest))
        self.version = query_interface([self.gnttab], GUID, 4)
        self.version.acquire()
        self.caches = [self.version.create_cache(name) for name in "ab"]
        self.pfns = self.world.guest.pages.alloc_pages(8)
        self.out: list[tuple[GrantCache, GrantEntry, int]] = []
        self.numbers: list[int] = []  # references without a cache
        self.maps: list[tuple[int, int, int]] = []  # handle, place, reference
        self.known: list[int] = []  # what dom0 was ever told

    def teardown(self) -> None:
        self.world.hypervisor.close()

    def held(self) -> list[int]:
        return [entry.ref for _, entry, _ in self.out] + self.numbers

    def mapped(self) -> set[int]:
        return {ref for _, _, ref in self.maps}

    @rule(
        which=st.integers(0, 1),
        page=st.integers(0, 7),
        readonly=st.booleans(),
        count=st.integers(1, 20),
    )
    def permit(self, which: int, page: int, readonly: bool, count: int) -> None:
        cache = self.caches[which]
        for _ in range(count):
            entry = self.version.permit_foreign_access(cache, False, 0, self.pfns[page], readonly)
            assert entry.ref > 31
            assert entry.ref not in self.held()
            assert entry.ref not in self.mapped()
            self.out.append((cache, entry, self.pfns[page]))
            self.known.append(entry.ref)

    @rule(page=st.integers(0, 7))
    def permit_number(self, page: int) -> None:
        ref = self.gnttab.permit_foreign_access(0, self.pfns[page])
        assert ref not in self.held()
        assert ref not in self.mapped()
        self.numbers.append(ref)
        self.known.append(ref)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), readonly=st.booleans())
    def map(self, data: st.DataObject, readonly: bool) -> None:
        ref = data.draw(st.sampled_from(self.known[-30:]))
        here = self.world.dom0.holes.alloc()
        try:
            handle = self.world.dom0.gnttab.map(1, ref, here, readonly=readonly)
        except GrantError:
            self.world.dom0.holes.free(here)
            return
        assert ref in self.held()
        self.maps.append((handle, here, ref))

    @precondition(lambda self: self.maps)
    @rule(data=st.data())
    def unmap(self, data: st.DataObject) -> None:
        handle, here, _ = self.maps.pop(data.draw(st.integers(0, len(self.maps) - 1)))
        self.world.dom0.gnttab.unmap(handle, here)
        self.world.dom0.holes.free(here)

    @precondition(lambda self: self.out)
    @rule(data=st.data(), count=st.integers(1, 20))
    def revoke(self, data: st.DataObject, count: int) -> None:
        for _ in range(min(count, len(self.out))):
            at = data.draw(st.integers(0, len(self.out) - 1)) if count < 4 else 0
            cache, entry, pfn = self.out.pop(at)
            try:
                self.version.revoke_foreign_access(cache, False, entry)
            except NtStatusError as error:
                assert error.status is NTSTATUS.UNSUCCESSFUL
                assert entry.ref in self.mapped()
                self.out.append((cache, entry, pfn))
            else:
                assert entry.ref not in self.mapped()

    @precondition(lambda self: self.numbers)
    @rule()
    def revoke_number(self) -> None:
        ref = self.numbers.pop(0)
        if self.gnttab.revoke_foreign_access(ref):
            assert ref not in self.mapped()
        else:
            assert ref in self.mapped()
            self.numbers.append(ref)

    @rule()
    def monitor(self) -> None:
        self.world.loop.advance(5 * NS_PER_S)

    @rule(which=st.integers(0, 1))
    def destroy(self, which: int) -> None:
        cache = self.caches[which]
        if any(one is cache for one, _, _ in self.out):
            with pytest.raises(LocalProtocolError):
                self.version.destroy_cache(cache)
            return
        self.version.destroy_cache(cache)
        self.caches[which] = self.version.create_cache("again")

    @invariant()
    def references_are_in_one_place(self) -> None:
        constructed = [
            obj.value.ref
            for cache in self.caches
            for slab in cache.cache.slabs
            for obj in slab.objects
            if obj is not None
        ]
        everywhere = self.gnttab._free + constructed + self.numbers
        assert sorted(everywhere) == list(range(32, 512 * len(self.gnttab.frame_pfns)))
        assert self.mapped() <= set(self.held())
        for _, entry, pfn in self.out:
            assert self.gnttab.query_reference(entry.ref)[0] == pfn


Peer.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestPeer = Peer.TestCase
