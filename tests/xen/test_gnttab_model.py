"""Three domains grant, map, copy, revoke, change versions and die, in any order: after each step
the kernel's pins, status bits, entries, handles, frame references and bytes are the model's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.xen.conftest import domain
from tests.xen.grant_model import PERMIT, READING, TRANSITIVE, WRITING, Owner, Refused, World
from tests.xen.grants import UNTOUCHED, copies
from xenpv.abi._kernel import lib
from xenpv.errors import GrantError, HypercallError
from xenpv.xen.domain import Domain
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop

PFNS = range(0x100, 0x104)
PLACES = range(0x100000, 0x100006)
SELF = 0x7FF0

seats = st.integers(0, 2)
refs = st.sampled_from([8, 9, 10, 0, 7, 300, 600])
inside = st.sampled_from([8, 9, 10, 0, 7])
frames = st.sampled_from([*PFNS, *PFNS, 0x90000, 1 << 33])
offsets = st.sampled_from([0, 1, 64, 127, 128, 4095, 4096])
sizes = st.sampled_from([0, 1, 64, 128, 4096, 0xFFFF])
sides = st.tuples(
    st.one_of(refs, st.sampled_from([*PFNS, 0x90000, *PLACES])),
    st.sampled_from([0, 1, 2, SELF, SELF, 99]),
    offsets,
    st.booleans(),
)


class Grants(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.hypervisor = Hypervisor(Loop(seed=1), nr_frames=1 << 14)
        self.model = World()
        self.seats: list[Domain] = []
        self.domains: dict[int, Domain] = {}
        self.frames: dict[tuple[int, int], int] = {}
        for domid in range(3):
            self.seats.append(self.made(domid))

    def made(self, domid: int | None = None) -> Domain:
        new = domain(self.hypervisor, domid, max_grant_frames=4)
        ram = {pfn: bytearray([(new.domid * 16 + pfn - 0xFF) % 256] * 4096) for pfn in PFNS}
        for pfn, content in ram.items():
            new.write(pfn, 0, content)
        self.model.owners[new.domid] = Owner(new.domid, ram)
        self.domains[new.domid] = new
        for pfn in PFNS:
            self.frames[new.domid, pfn] = int(lib.p2m_lookup(new.kernel, pfn, 0))
        if new.domid in self.model.gone:  # the number of one that vanished
            self.model.gone.remove(new.domid)
        return new

    def owner(self, seat: int) -> Owner:
        return self.model.owners[self.seats[seat].domid]

    def name(self, seat: int) -> int:
        """Seats are drawn; whoever sits there now has a domid."""
        return self.seats[seat].domid if seat < 3 else seat

    def named_side(self, side: tuple[int, int, int, bool]) -> tuple[int, int, int, bool]:
        name, seat, offset, is_ref = side
        if not is_ref and name == 300:  # RAM of which the model keeps no bytes
            name = 0x90000
        return name, self.name(seat), offset, is_ref

    def same(self, call: Callable[[], Any], model: Callable[[], Any]) -> None:
        """Both succeed, with one result, or both fail, with one code."""
        try:
            expected, refused = model(), 0
        except Refused as answer:
            expected, refused = None, answer.status
        try:
            result, failed = call(), 0
        except GrantError as error:
            result, failed = None, error.status
        except HypercallError as error:
            result, failed = None, error.errno
        assert failed == refused
        if expected is not None:
            assert result == expected

    # the granter

    @rule(seat=seats, to=seats, ref=inside, frame=frames, readonly=st.booleans())
    def grant(self, seat: int, to: int, ref: int, frame: int, readonly: bool) -> None:
        granter, owner = self.seats[seat], self.owner(seat)
        entry = owner.entry(ref)
        if owner.version == 1:
            frame &= 0xFFFFFFFF
        entry.flags, entry.domid, entry.frame = PERMIT | 4 * readonly, self.name(to), frame
        raw = entry.flags | (entry.status if owner.version == 1 else 0)
        assert lib.grant_entry_set(granter.kernel, ref, entry.domid, frame, raw) == 0

    @rule(seat=seats, to=seats, ref=inside, pfn=st.sampled_from(PFNS), start=offsets, size=sizes)
    def grant_sub_page(self, seat: int, to: int, ref: int, pfn: int, start: int, size: int) -> None:
        granter, owner = self.seats[seat], self.owner(seat)
        done = lib.grant_entry_set_sub_page(
            granter.kernel, ref, self.name(to), pfn, start, size, PERMIT
        )
        assert done == (0 if owner.version == 2 else -22)
        if not done:
            entry = owner.entry(ref)
            entry.flags, entry.domid, entry.frame = PERMIT | 0x100, self.name(to), pfn
            entry.first, entry.second = start, size

    @rule(seat=seats, to=seats, ref=inside, via=seats, behind=refs, readonly=st.booleans())
    def grant_transitive(
        self, seat: int, to: int, ref: int, via: int, behind: int, readonly: bool
    ) -> None:
        granter, owner = self.seats[seat], self.owner(seat)
        done = lib.grant_entry_set_transitive(
            granter.kernel, ref, self.name(to), self.name(via), behind, 4 * readonly
        )
        assert done == (0 if owner.version == 2 else -22)
        if not done:
            entry = owner.entry(ref)
            entry.flags, entry.domid = TRANSITIVE | 4 * readonly, self.name(to)
            entry.first = self.name(via)
            entry.frame = entry.frame & ~0xFFFFFFFF | behind

    @rule(seat=seats, ref=inside)
    def revoke(self, seat: int, ref: int) -> None:
        granter, owner = self.seats[seat], self.owner(seat)
        self.same(
            lambda: granter.check(lib.grant_entry_revoke(granter.kernel, ref)),
            lambda: self.model.revoke(owner, ref),
        )

    @rule(seat=seats, ref=inside, readonly=st.booleans())
    def set_readonly(self, seat: int, ref: int, readonly: bool) -> None:
        granter, owner = self.seats[seat], self.owner(seat)
        self.same(
            lambda: granter.check(lib.grant_entry_readonly(granter.kernel, ref, readonly)),
            lambda: self.model.set_readonly(owner, ref, readonly),
        )

    @rule(seat=seats, a=refs, b=refs)
    def swap(self, seat: int, a: int, b: int) -> None:
        granter, owner = self.seats[seat], self.owner(seat)
        self.same(lambda: granter.gnttab.swap(a, b), lambda: self.model.swap(owner, a, b))

    @rule(seat=seats, version=st.integers(0, 3), chance=st.integers(0, 2))
    def set_version(self, seat: int, version: int, chance: int) -> None:
        if chance and not self.owner(seat).pins:
            return  # most of the time it would empty the table
        granter, owner = self.seats[seat], self.owner(seat)
        self.same(
            lambda: granter.gnttab.set_version(version),
            lambda: self.model.set_version(owner, version),
        )

    @rule(seat=seats)
    def grow(self, seat: int) -> None:
        owner = self.owner(seat)
        if owner.frames < 4:
            owner.frames += 1
        self.seats[seat].gnttab.setup_table(owner.frames)

    # the other end

    @rule(
        seat=seats, granter=seats, ref=refs, readonly=st.booleans(), place=st.sampled_from(PLACES)
    )
    def map(self, seat: int, granter: int, ref: int, readonly: bool, place: int) -> None:
        by, owner = self.seats[seat], self.owner(seat)
        if place in owner.mapped:
            return  # that would crash it
        theirs = self.owner(granter)
        self.same(
            lambda: by.gnttab.map(theirs.domid, ref, place, readonly=readonly),
            lambda: self.model.map(owner, theirs, ref, readonly, place),
        )

    def granted(self, which: int) -> tuple[int, int, int] | None:
        """One of the entries that permit something: (who may, whose, ref), by seat."""
        seat_of = {domain.domid: seat for seat, domain in enumerate(self.seats)}
        found = [
            (seat_of[entry.domid], seat, ref)
            for seat in range(3)
            for ref, entry in self.owner(seat).entries.items()
            if entry.flags & 3 and entry.domid in seat_of and self.owner(seat).has(ref)
        ]
        return found[which % len(found)] if found else None

    @rule(which=st.integers(0, 30), readonly=st.booleans(), place=st.sampled_from(PLACES))
    def map_what_is_granted(self, which: int, readonly: bool, place: int) -> None:
        granted = self.granted(which)
        if granted:
            self.map(*granted, readonly, place)

    @rule(
        seat=seats, to=seats, ref=inside, pfn=st.sampled_from(PFNS), places=st.permutations(PLACES)
    )
    def grant_and_map_twice(
        self, seat: int, to: int, ref: int, pfn: int, places: list[int]
    ) -> None:
        self.grant(seat, to, ref, pfn, readonly=False)
        self.map(to, seat, ref, True, places[0])
        self.map(to, seat, ref, False, places[1])

    @rule(which=st.integers(0, 9), pfn=st.sampled_from(PFNS), to=seats, mine=st.sampled_from(PFNS))
    def change_a_pinned_entry_and_write(self, which: int, pfn: int, to: int, mine: int) -> None:
        seat_of = {domain.domid: seat for seat, domain in enumerate(self.seats)}
        pinned = [
            (seat_of[pins.by], seat, ref)
            for seat in range(3)
            for ref, pins in self.owner(seat).pins.items()
            if self.owner(seat).has(ref) and pins.by in seat_of
        ]
        if pinned:
            by, seat, ref = pinned[which % len(pinned)]
            self.grant(seat, to, ref, pfn, readonly=False)
            self.copy(by, [((mine, SELF, 0, False), (ref, seat, 0, True), 64)])

    @rule(a=seats, b=seats, c=seats, ref=inside, behind=inside, to_it=st.booleans())
    def copy_by_a_hop(self, a: int, b: int, c: int, ref: int, behind: int, to_it: bool) -> None:
        if self.owner(b).version == 1:
            return
        self.grant(c, b, behind, 0x101, readonly=False)
        self.grant_transitive(b, a, ref, c, behind, readonly=False)
        sides = [(ref, b, 0, True), (0x102, SELF, 0, False)]
        self.copy(a, [(*(sides[::-1] if to_it else sides), 64)])

    @rule(a=seats, b=seats, ref=inside, offset=st.integers(62, 66), to_it=st.booleans())
    def copy_around_a_sub_page(self, a: int, b: int, ref: int, offset: int, to_it: bool) -> None:
        self.grant_sub_page(b, a, ref, 0x101, 64, 64)
        sides = [(ref, b, offset, True), (0x102, SELF, 0, False)]
        self.copy(a, [(*(sides[::-1] if to_it else sides), 63)])

    @rule(
        which=st.integers(0, 30),
        to_it=st.booleans(),
        mine=st.sampled_from([*PFNS, *PLACES[:2]]),
        offset=offsets,
        size=sizes,
    )
    def copy_what_is_granted(
        self, which: int, to_it: bool, mine: int, offset: int, size: int
    ) -> None:
        granted = self.granted(which)
        if granted:
            seat, granter, ref = granted
            sides = [(ref, granter, offset, True), (mine, SELF, 0, False)]
            self.copy(seat, [(*(sides[::-1] if to_it else sides), size)])

    @rule(seat=seats, which=st.integers(0, 9), elsewhere=st.none() | st.sampled_from(PLACES))
    def unmap(self, seat: int, which: int, elsewhere: int | None) -> None:
        by, owner = self.seats[seat], self.owner(seat)
        handles = [*owner.handles, which]
        handle = handles[which % len(handles)]
        place = elsewhere or PLACES[0]
        if elsewhere is None and handle in owner.handles:
            held = owner.handles[handle]
            page = self.model.owners[held.granter].pins[held.ref].page
            place = next(pfn for pfn, (there, _) in owner.mapped.items() if there == page)
        self.same(
            lambda: by.gnttab.unmap(handle, place), lambda: self.model.unmap(owner, handle, place)
        )

    @rule(seat=seats, wanted=st.lists(st.tuples(sides, sides, sizes), min_size=1, max_size=3))
    def copy(self, seat: int, wanted: list[Any]) -> None:
        named = [
            (*(self.named_side(side) for side in (source, dest)), size)
            for source, dest, size in wanted
        ]
        self.copy_named(seat, named)

    def copy_named(self, seat: int, named: list[Any]) -> None:
        by, owner = self.seats[seat], self.owner(seat)
        ops = copies(*named)
        by.gnttab.hypercall(5, ops)
        for op, (source, dest, size) in zip(ops, named, strict=True):
            assert op.status != UNTOUCHED
            status = 0
            try:
                self.model.copy(owner, source, dest, size)
            except Refused as refused:
                status = refused.status
            assert op.status == status

    @rule(seat=st.integers(1, 2), chance=st.integers(0, 3))
    def die(self, seat: int, chance: int) -> None:
        if chance:
            return
        dead = self.owner(seat)
        self.hypervisor.destroy_domain(self.seats[seat])
        self.model.kill(dead)
        self.seats[seat] = self.made() if dead.domid in self.model.gone else self.seats[seat]
        for ref, pins in list(dead.pins.items()):
            for one, sitting in enumerate(self.seats):
                if sitting.domid == pins.by:
                    here = (0x100, SELF, 0, False)
                    self.copy_named(one, [((ref, dead.domid, 0, True), here, 64)])
        if self.seats[seat].domid == dead.domid and not dead.alive:
            self.seats[seat] = self.made()

    # what must hold

    @invariant()
    def entries_pins_and_bits(self) -> None:
        for owner in self.model.owners.values():
            if owner.domid in self.model.gone:
                continue
            kernel = self.domains[owner.domid].kernel
            assert lib.grant_table_version(kernel) == owner.version
            assert lib.grant_table_status_frames(kernel) == (
                -(-owner.frames // 8) if owner.version == 2 else 0
            )
            for ref in (0, 7, 8, 9, 10):
                entry, pins = owner.entry(ref), owner.pins.get(ref)
                counters = pins.readers << 8 | pins.writers if pins else 0
                assert lib.grant_pins(kernel, ref) == counters
                assert lib.grant_entry_status(kernel, ref) == entry.status
                in_flags = READING | WRITING if owner.version == 1 else 0
                assert lib.grant_entry_flags(kernel, ref) & ~in_flags == entry.flags
                if pins:
                    assert lib.grant_pinned_frame(kernel, ref) == self.frames[pins.page]
            assert lib.grant_pinned_refs(kernel) == len(owner.pins)

    @invariant()
    def handles(self) -> None:
        for owner in self.model.owners.values():
            track = self.domains[owner.domid].gnttab.track
            assert track.free_handles + len(owner.handles) == 256 * track.nr_frames
            found = {
                handle: (mapping.granter.domid, mapping.ref, bool(mapping.flags & 4))
                for handle, mapping in self.domains[owner.domid].gnttab.maptrack.items()
            }
            assert found == {
                handle: (held.granter, held.ref, held.readonly)
                for handle, held in owner.handles.items()
            }

    @invariant()
    def frames_and_bytes(self) -> None:
        for owner in self.model.owners.values():
            for pfn, content in owner.ram.items():
                page = (owner.domid, pfn)
                frame = self.frames[page]
                wanted = self.model.references(page)
                if wanted:  # else it was freed, and may be another domain's by now
                    assert lib.frame_refs(self.hypervisor.machine, frame) == wanted
                if owner.alive:
                    assert self.domains[owner.domid].read(pfn, 0, 4096) == content
            for pfn, (page, _) in owner.mapped.items():
                there = self.domains[owner.domid].read(pfn, 0, 4096)
                assert there == self.model.bytes_of(page)
        assert [one.domid for one in self.hypervisor.dead] == [
            domid
            for domid, owner in self.model.owners.items()
            if not owner.alive and domid not in self.model.gone
        ]

    def teardown(self) -> None:
        if hasattr(self, "hypervisor"):
            self.hypervisor.close()


Grants.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestGrants = Grants.TestCase
