"""memory_op of two domains against a model: who has which page where, and who holds it.

The model knows pages, not frames: a page is freed when nothing refers to it any more. After
every step tot_pages, free memory, p2m types and reference counts are the model's, and every
free frame is zero; at the end every page that is left reads what was written last.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from xenpv.abi._kernel import ffi, lib
from xenpv.errors import GrantError, HypercallError
from xenpv.xen.domain import Domain
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop
from xenpv.xen.physmap import DOMID_SELF

NR_FRAMES = 64
MAX_PAGES = {0: 24, 1: 36}  # together more than there is
MAX_GRANT_FRAMES = 3
# Both sides of a border between two leaf tables.
PFNS = tuple(range(506, 518))
MARK = 4088  # where the mark of a page is: no grant entry or event bit in use lies there
RAM, XEN, FOREIGN, GRANT = "ram", "xen", "foreign", "grant"
TYPES = {RAM: lib.P2M_RAM, XEN: lib.P2M_XEN, FOREIGN: lib.P2M_FOREIGN, GRANT: lib.P2M_GRANT_RW}
ENXIO, EINVAL, EACCES, ENOENT, EPERM, EFAULT = 6, 22, 13, 2, 1, 14

pfns = st.sampled_from(PFNS)
sides = st.booleans()
lists = st.lists(pfns, min_size=1, max_size=4)


class Page:
    """`refs` as in frame_info; `xen`: made by Xen for its domain, `at` where that sees it."""

    def __init__(self, xen: bool) -> None:
        self.refs = 1
        self.mark = bytes(8)
        self.xen = xen
        self.at: int | None = None


class Side:
    """What the model knows of one domain."""

    def __init__(self, domain: Domain, max_pages: int) -> None:
        self.domain = domain
        self.max_pages = max_pages
        self.map: dict[int, tuple[str, Page]] = {}
        self.pages: list[Page] = []
        self.xen = [Page(xen=True), Page(xen=True)]  # shared_info, grant frame 0
        self.held: list[tuple[Any, Page]] = []

    @property
    def tot_pages(self) -> int:
        return sum(page.refs > 0 for page in self.pages)

    def new_page(self) -> Page:
        self.pages.append(Page(xen=False))
        return self.pages[-1]

    def blocked(self, pfn: int) -> bool:
        return pfn in self.map and self.map[pfn][0] in (FOREIGN, GRANT)

    def refuses(self, pfn: int) -> bool:
        """As blocked, but a page that Xen made for another domain may be replaced."""
        return self.blocked(pfn) and not self.map[pfn][1].xen

    def take_off(self, pfn: int, *, free_ram: bool) -> None:
        """What was there goes; RAM keeps its reference if it is only unhooked."""
        if pfn not in self.map:
            return
        kind, page = self.map.pop(pfn)
        if kind != RAM or free_ram:
            page.refs -= 1
        if kind == XEN and page.at == pfn:
            page.at = None


def errno(call: Callable[..., Any], *arguments: Any, **named: Any) -> int:
    """0, or the errno that the call failed with."""
    try:
        call(*arguments, **named)
    except HypercallError as error:
        return error.errno
    return 0


class PhysmapMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.hypervisor = Hypervisor(Loop(seed=1), nr_frames=NR_FRAMES)
        self.dom0 = self.create(0)
        self.guest = self.create(1)
        self.dead: list[Side] = []
        self.grants: list[tuple[int, int, Page]] = []  # handle, pfn of dom0, page
        self.stamp = 0
        self.refs_used = 8
        self.populate(of_dom0=False, gpfns=list(PFNS[:8]), order=0, by_dom0=True)
        self.populate(of_dom0=True, gpfns=list(PFNS[:3]), order=0, by_dom0=True)
        self.foreign([(PFNS[4], PFNS[4]), (PFNS[5], PFNS[5])])

    def create(self, domid: int | None) -> Side:
        maximum = MAX_PAGES[0 if domid == 0 else 1]
        made = self.hypervisor.create_domain(
            domid, vcpus=1, max_pages=maximum, max_grant_frames=MAX_GRANT_FRAMES
        )
        return Side(made, maximum)

    def side(self, of_dom0: bool) -> Side:
        return self.dom0 if of_dom0 else self.guest

    def everyone(self) -> list[Side]:
        return [self.dom0, self.guest, *self.dead]

    def free(self) -> int:
        alive = sum(page.refs > 0 for one in self.everyone() for page in one.pages + one.xen)
        return NR_FRAMES - alive

    # the reservation

    @rule(of_dom0=sides, gpfns=lists, order=st.integers(0, 2), by_dom0=sides)
    def populate(self, of_dom0: bool, gpfns: list[int], order: int, by_dom0: bool) -> None:
        side = self.side(of_dom0)
        done, crash = 0, False
        for pfn in gpfns:
            extent = range(pfn, pfn + (1 << order))
            if side.tot_pages + len(extent) > side.max_pages or len(extent) > self.free():
                break
            crash = any(side.blocked(one) for one in extent)
            if crash:
                break
            for one in extent:
                side.take_off(one, free_ram=False)
                side.map[one] = (RAM, side.new_page())
            done += 1
        caller = self.dom0.domain if by_dom0 else side.domain
        given = caller.memory.populate_physmap(side.domain.domid, gpfns, order=order)
        assert given == done
        if crash:
            assert side.domain.shutdown_code == 3

    @rule(of_dom0=sides, gpfns=lists, order=st.integers(0, 2))
    def decrease(self, of_dom0: bool, gpfns: list[int], order: int) -> None:
        side = self.side(of_dom0)

        def model() -> int:
            for done, pfn in enumerate(gpfns):
                for one in range(pfn, pfn + (1 << order)):
                    if one not in side.map or side.blocked(one):
                        return done
                    side.take_off(one, free_ram=True)
            return len(gpfns)

        expected = model()
        given = side.domain.memory.decrease_reservation(DOMID_SELF, gpfns, order=order)
        assert given == expected

    @rule(of_dom0=sides, count=st.integers(1, 3))
    def increase(self, of_dom0: bool, count: int) -> None:
        side = self.side(of_dom0)
        expected = min(count, side.max_pages - side.tot_pages, self.free())
        assert side.domain.memory.increase_reservation(DOMID_SELF, count) == expected
        for _ in range(expected):
            side.new_page()

    # the physmap

    @rule(of_dom0=sides, pfn=pfns)
    def remove(self, of_dom0: bool, pfn: int) -> None:
        side = self.side(of_dom0)
        if pfn in side.map and side.map[pfn][0] == GRANT:
            return  # allowed, but then unmap_grant_ref cannot find it: test_gnttab's matter
        expected = 0 if pfn in side.map else ENOENT
        assert errno(side.domain.memory.remove_from_physmap, DOMID_SELF, pfn) == expected
        side.take_off(pfn, free_ram=False)
        self.bury()

    @rule(of_dom0=sides, source=pfns, pfn=pfns)
    def move(self, of_dom0: bool, source: int, pfn: int) -> None:
        side = self.side(of_dom0)
        if source not in side.map or side.map[source][0] != RAM:
            expected = EACCES
        else:
            expected = ENXIO if side.refuses(pfn) else 0
        memory = side.domain.memory
        assert errno(memory.add_to_physmap, DOMID_SELF, 2, source, pfn) == expected
        if not expected and source != pfn:
            side.take_off(pfn, free_ram=True)
            side.map[pfn] = side.map.pop(source)
        self.bury()

    @rule(of_dom0=sides, frame=st.integers(-1, MAX_GRANT_FRAMES), pfn=pfns)
    def place(self, of_dom0: bool, frame: int, pfn: int) -> None:
        """shared_info for -1, else a grant frame, and one beyond the maximum."""
        side = self.side(of_dom0)
        index = frame + 1
        self.grow(side, index)
        exists = index < len(side.xen)
        expected = (ENXIO if side.refuses(pfn) else 0) if exists else EINVAL
        space, idx = (0, 0) if frame < 0 else (1, frame)
        memory = side.domain.memory
        assert errno(memory.add_to_physmap, DOMID_SELF, space, idx, pfn) == expected
        if not expected:
            page = side.xen[index]
            page.refs += 1
            side.take_off(pfn, free_ram=True)
            if page.at is not None:
                side.take_off(page.at, free_ram=False)
            page.at = pfn
            side.map[pfn] = (XEN, page)
        self.bury()

    def grow(self, side: Side, index: int) -> None:
        while index <= MAX_GRANT_FRAMES and len(side.xen) <= index and self.free():
            side.xen.append(Page(xen=True))

    @rule(pairs=st.lists(st.tuples(pfns, pfns), min_size=1, max_size=4))
    def foreign(self, pairs: list[tuple[int, int]]) -> None:
        dom0, guest = self.dom0, self.guest
        expected = []
        for source, pfn in pairs:
            if source not in guest.map or guest.blocked(source):
                expected.append(-EINVAL)
            elif dom0.refuses(pfn):
                expected.append(-ENXIO)
            else:
                page = guest.map[source][1]
                page.refs += 1
                dom0.take_off(pfn, free_ram=True)
                dom0.map[pfn] = (FOREIGN, page)
                expected.append(0)
        sources, targets = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        given = dom0.domain.memory.add_to_physmap_batch(
            DOMID_SELF, 4, sources, targets, foreign_domid=guest.domain.domid
        )
        assert given == expected
        self.bury()

    @rule(frame=st.integers(0, MAX_GRANT_FRAMES - 1), pfn=pfns)
    def acquire(self, frame: int, pfn: int) -> None:
        dom0, guest = self.dom0, self.guest
        self.grow(guest, frame + 1)
        exists = frame + 1 < len(guest.xen)
        expected = (EPERM if dom0.blocked(pfn) else 0) if exists else EINVAL
        domid = guest.domain.domid
        call = dom0.domain.memory.acquire_resource
        assert errno(call, domid, 1, 0, frame=frame, nr_frames=1, gpfns=[pfn]) == expected
        if expected == EPERM:
            assert dom0.domain.shutdown_code == 3
        if not expected:
            guest.xen[frame + 1].refs += 1
            dom0.take_off(pfn, free_ram=False)
            dom0.map[pfn] = (FOREIGN, guest.xen[frame + 1])

    # grants, holds and contents

    @rule(source=pfns, pfn=pfns)
    def grant_map(self, source: int, pfn: int) -> None:
        dom0, guest = self.dom0, self.guest
        if dom0.blocked(pfn) or self.refs_used > 400:
            return
        self.refs_used += 1
        domid = guest.domain.domid
        assert lib.grant_entry_set(guest.domain.kernel, self.refs_used, 0, source, 1) == 0
        mapped = source in guest.map and guest.map[source][0] == RAM
        try:
            handle = dom0.domain.gnttab.map(domid, self.refs_used, pfn)
        except GrantError:
            assert not mapped
            return
        assert mapped
        page = guest.map[source][1]
        page.refs += 2  # the pin, and the place in dom0's physmap
        dom0.take_off(pfn, free_ram=False)
        dom0.map[pfn] = (GRANT, page)
        self.grants.append((handle, pfn, page))

    @precondition(lambda self: self.grants)
    @rule(which=st.integers(0, 1000))
    def grant_unmap(self, which: int) -> None:
        handle, pfn, page = self.grants.pop(which % len(self.grants))
        self.dom0.domain.gnttab.unmap(handle, pfn)
        assert self.dom0.map.pop(pfn) == (GRANT, page)
        page.refs -= 2
        self.bury()

    @rule(of_dom0=sides, pfn=pfns)
    def hold(self, of_dom0: bool, pfn: int) -> None:
        side = self.side(of_dom0)
        address = lib.page_hold(side.domain.kernel, pfn)
        if pfn not in side.map or side.map[pfn][0] != RAM:
            assert address == ffi.NULL
            return
        side.map[pfn][1].refs += 1
        side.held.append((address, side.map[pfn][1]))

    @rule(of_dom0=sides)
    def drop(self, of_dom0: bool) -> None:
        side = self.side(of_dom0)
        if side.held:
            address, page = side.held.pop()
            assert bytes(ffi.buffer(address, 4096))[MARK:] == page.mark
            lib.page_drop(side.domain.kernel, address)
            page.refs -= 1

    @rule(of_dom0=sides, pfn=pfns)
    def write(self, of_dom0: bool, pfn: int) -> None:
        side = self.side(of_dom0)
        self.stamp += 1
        mark = self.stamp.to_bytes(8, "little")
        expected = 0 if pfn in side.map else EFAULT
        assert errno(side.domain.write, pfn, MARK, mark) == expected
        if not expected:
            side.map[pfn][1].mark = mark

    @rule(of_dom0=sides, pfn=pfns)
    def read(self, of_dom0: bool, pfn: int) -> None:
        side = self.side(of_dom0)
        if pfn in side.map:
            assert side.domain.read(pfn, MARK, 8) == side.map[pfn][1].mark
        else:
            assert errno(side.domain.read, pfn, MARK, 8) == EFAULT

    @rule()
    def the_guest_dies(self) -> None:
        guest = self.guest
        while guest.held:
            self.drop(of_dom0=False)
        self.hypervisor.destroy_domain(guest.domain)
        for kind, page in guest.map.values():
            page.refs -= kind != RAM
        guest.map.clear()
        mine = [page for _, page in self.dom0.map.values()]
        pinned = [page for _, _, page in self.grants]
        for page in guest.pages:
            page.refs = mine.count(page) + pinned.count(page)
        self.dead.append(guest)
        self.bury()
        if self.free() < 4:
            self.give_back()
        self.guest = self.create(None)
        self.refs_used = 8

    def give_back(self) -> None:
        """Room for the next guest."""
        memory = self.dom0.domain.memory
        for pfn in list(self.dom0.map):
            kind, page = self.dom0.map[pfn]
            if kind in (RAM, XEN) and page.refs == 1:
                assert memory.decrease_reservation(DOMID_SELF, [pfn]) == 1
                self.dom0.take_off(pfn, free_ram=True)
        if self.free() < 4:
            for pfn in list(self.dom0.map):
                if self.dom0.map[pfn][0] == FOREIGN:
                    self.remove(of_dom0=True, pfn=pfn)
            while self.grants:
                self.grant_unmap(0)

    def bury(self) -> None:
        """A dead guest goes when nobody holds a page of it, and then its Xen pages go."""
        for one in list(self.dead):
            if not one.tot_pages and all(page.refs == 1 for page in one.xen):
                self.dead.remove(one)

    # what must hold

    @invariant()
    def counts_are_conserved(self) -> None:
        if not hasattr(self, "guest"):
            return
        machine = self.hypervisor.machine
        assert lib.machine_free_pages(machine) == self.free()
        for one in self.everyone():
            assert lib.domain_tot_pages(one.domain.kernel) == one.tot_pages
        assert [one.domain for one in self.dead] == self.hypervisor.dead
        for one in self.dead:
            shared = sum(page.refs - 1 for page in one.xen)
            assert lib.domain_shared_frames(one.domain.kernel) == one.tot_pages + shared

    @invariant()
    def entries_are_the_models(self) -> None:
        if not hasattr(self, "guest"):
            return
        machine = self.hypervisor.machine
        frames: dict[int, Page] = {}
        for one in (self.dom0, self.guest):
            for pfn in range(PFNS[0], PFNS[-1] + 4):
                kind = lib.p2m_type(one.domain.kernel, pfn)
                if pfn not in one.map:
                    assert kind == lib.P2M_NONE
                    continue
                wanted, page = one.map[pfn]
                assert kind == TYPES[wanted]
                frame = lib.p2m_lookup(one.domain.kernel, pfn, 0)
                if frame < 0:  # never touched
                    assert page.refs == 1
                    assert page.mark == bytes(8)
                    continue
                assert frames.setdefault(frame, page) is page
                assert lib.frame_refs(machine, frame) == page.refs

    @invariant()
    def free_frames_are_zero(self) -> None:
        if not hasattr(self, "guest"):
            return
        machine, views = self.hypervisor.machine, self.hypervisor.arena.views
        for frame in range(lib.machine_high_water(machine)):
            if not lib.frame_refs(machine, frame):
                assert views[frame * 4096 : (frame + 1) * 4096] == bytes(4096)

    def teardown(self) -> None:
        if not hasattr(self, "guest"):
            return
        for one in (self.dom0, self.guest):
            for pfn, (_, page) in one.map.items():
                assert one.domain.read(pfn, MARK, 8) == page.mark
        for of_dom0 in (False, True):
            while self.side(of_dom0).held:
                self.drop(of_dom0)
        machine = self.hypervisor.machine
        with suppress(KeyError):
            self.hypervisor.destroy_domain(self.guest.domain)
        self.hypervisor.destroy_domain(self.dom0.domain)
        assert self.hypervisor.dead == []
        assert lib.machine_free_pages(machine) == NR_FRAMES
        assert lib.machine_used_frames(machine) == 0
        self.hypervisor.close()


PhysmapMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPhysmap = PhysmapMachine.TestCase


@pytest.mark.soak
def test_physmap_at_length() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        PhysmapMachine,
        settings=settings(max_examples=2000, stateful_step_count=100, deadline=None),
    )
