"""The advisories of spec/xen-core §5 that concern grants, and test-resource of §4."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.xen.conftest import domain
from tests.xen.grants import (
    COPY,
    DEVICE,
    HOLE,
    HOST,
    MAP,
    PERMIT,
    READONLY,
    RO,
    SELF,
    UNMAP,
    Scene,
    copies,
)  # fmt: skip
from tests.xen.test_gnttab_table import PV
from xenpv.abi._kernel import ffi, lib
from xenpv.errors import GrantError, HypercallError
from xenpv.xen.domain import Domain
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop
from xenpv.xen.maptrack import Maptrack

AT = HOLE << 12
MINE = (0x104, SELF, 0, False)
V = pytest.mark.parametrize("version", [1, 2])


def pins(scene: Scene, ref: int = 8, owner: Domain | None = None) -> int:
    return int(lib.grant_pins((owner or scene.guest).kernel, ref))


def bits(scene: Scene, ref: int = 8, owner: Domain | None = None) -> int:
    return int(lib.grant_entry_status((owner or scene.guest).kernel, ref))


def test_xsa_18_134_swap_knows_the_bounds_of_either_version(hypervisor: Hypervisor) -> None:
    scene = Scene(hypervisor)
    assert scene.swap(8, 300) == 0
    assert scene.swap(8, 512) == -3
    assert scene.set_version(2) == 0
    assert scene.swap(8, 300) == -3
    assert scene.swap(255, 8) == 0


@V
def test_xsa_134_swap_moves_the_whole_entry_and_its_status(
    hypervisor: Hypervisor, version: int
) -> None:
    scene = Scene(hypervisor, version)
    size = 8 if version == 1 else 16
    scene.guest.add_to_physmap_grant(0, 0x310)
    if version == 2:
        lib.grant_entry_set_sub_page(scene.guest.kernel, 9, 2, 0x103, 7, 9, READONLY)
    a, b = (scene.guest.read(0x310, ref * size, size) for ref in (8, 9))
    assert a != b
    scene.guest.gnttab.swap(8, 9)
    assert [scene.guest.read(0x310, ref * size, size) for ref in (8, 9)] == [b, a]


@V
def test_xsa_224_230_236_pins_and_bits_are_exact(hypervisor: Hypervisor, version: int) -> None:
    scene = PV(hypervisor, version)
    seen = []
    handles = []
    for flags, pfn in ((HOST | RO, 0), (DEVICE | HOST, 1), (DEVICE | RO, 2), (HOST, 3)):
        assert scene.map(flags=flags, addr=AT + (pfn << 12)) == 0
        handles.append(scene.handle)
        seen.append((pins(scene), bits(scene)))
    assert seen == [(0x0100, 8), (0x10101, 0x18), (0x1010101, 0x18), (0x1010102, 0x18)]
    assert scene.copy((8, 1, 0, True), MINE) == 0
    assert scene.copy(MINE, (8, 1, 0, True)) == 0
    assert (pins(scene), bits(scene)) == seen[-1]
    assert scene.unmap(handles[3], AT + 0x3000) == 0
    assert scene.unmap(handles[1], AT + 0x1000) == 0
    assert (pins(scene), bits(scene)) == (0x1010100, 0x18)  # the device half still writes
    assert scene.unmap(handles[1], 0, scene.bus) == 0
    assert (pins(scene), bits(scene)) == (0x1000100, 8)
    assert scene.unmap(handles[0], AT) == 0
    assert (pins(scene), bits(scene)) == (0x1000000, 8)
    assert scene.unmap(handles[2], 0, scene.bus) == 0
    assert (pins(scene), bits(scene)) == (0, 0)


def test_xsa_226_a_transitive_grant_goes_one_hop(hypervisor: Hypervisor) -> None:
    scene = Scene(hypervisor, 2)
    last = domain(hypervisor)
    scene.other.gnttab.set_version(2)
    scene.entry(8, domid=2, owner=last)
    assert lib.grant_entry_set_transitive(scene.other.kernel, 20, 1, last.domid, 8, 0) == 0
    scene.domains.append(last)
    before = scene.snapshot()
    assert scene.copy((15, 1, 0, True), MINE) == -1
    assert scene.copy(MINE, (15, 1, 0, True)) == -1
    assert scene.snapshot() == before


def test_xsa_226_411_a_ring_of_transitive_grants_ends(hypervisor: Hypervisor) -> None:
    scene = Scene(hypervisor, 2)
    scene.other.gnttab.set_version(2)
    assert lib.grant_entry_set_transitive(scene.other.kernel, 20, 1, 1, 15, 0) == 0
    before = scene.snapshot()
    assert scene.copy((15, 1, 0, True), MINE) == -1
    assert scene.snapshot() == before


def test_xsa_411_two_tables_that_refer_to_each_other(hypervisor: Hypervisor) -> None:
    """dom0's entry goes through the guest's while the guest's goes through dom0's."""
    scene = Scene(hypervisor, 2)
    scene.dom0.gnttab.set_version(2)
    scene.transitive(15, 0, 30)
    scene.entry(30, domid=1, frame=0x107, owner=scene.dom0)
    assert lib.grant_entry_set_transitive(scene.dom0.kernel, 31, 0, 1, 8, 0) == 0
    scene.dom0.write(0x107, 0, b"from dom0")
    ops = copies(((15, 1, 0, True), (31, 0, 100, True), 9))
    assert scene.dom0.gnttab.copy(ops) == 0
    assert scene.guest.read(0x102, 100, 9) == b"from dom0"
    assert [one.gnttab.pinned() for one in scene.domains] == [0, 0, 0]


def test_xsa_228_handles_are_unique_across_vcpus(hypervisor: Hypervisor) -> None:
    scene = Scene(hypervisor, vcpus=3, max_maptrack_frames=2)
    given: list[int] = []
    for pfn, ref in zip(range(HOLE, HOLE + 300), [8, 9, 8, 9] * 75, strict=True):
        if len(given) >= 250:
            break
        try:
            given.append(scene.dom0.gnttab.map(1, ref, pfn, readonly=True, vcpu=pfn % 3))
        except GrantError:
            break
    assert len(given) == len(set(given)) == 250


def test_xsa_232_cache_flush_is_not_there(hypervisor: Hypervisor) -> None:
    scene = Scene(hypervisor)
    before = scene.snapshot()
    assert scene.call(12, ffi.new("struct gnttab_cache_flush[1]")) == "ENOSYS"
    assert scene.snapshot() == before


def test_xsa_255_379_486_501_live_status_frames_stop_the_version_switch(
    hypervisor: Hypervisor,
) -> None:
    scene = Scene(hypervisor, 2)
    frame = lib.grant_table_status_frame(scene.guest.kernel, 0)
    domid, resource = scene.guest.domid, scene.dom0.memory.acquire_resource
    assert resource(domid, 1, 1, nr_frames=1, gpfns=[HOLE]) == 1
    before = scene.snapshot()
    assert scene.set_version(1) == "EBUSY"
    assert scene.version_told == 2
    assert scene.snapshot() == before
    scene.dom0.memory.remove_from_physmap(0, HOLE)
    assert scene.set_version(1) == 0
    assert lib.frame_refs(hypervisor.machine, frame) == 0


def test_xsa_255_own_status_frames_leave_the_physmap(hypervisor: Hypervisor) -> None:
    scene = Scene(hypervisor, 2)
    scene.guest.add_to_physmap_grant(1 << 31, 0x311)
    assert scene.guest.read(0x311, 0, 4) == bytes(4)
    assert scene.set_version(1) == 0
    with pytest.raises(HypercallError, match="EFAULT"):
        scene.guest.read(0x311, 0, 4)
    with pytest.raises(HypercallError, match="EINVAL"):
        scene.guest.add_to_physmap_grant(1 << 31, 0x311)


@V
def test_xsa_486_a_version_switch_within_an_operation_is_eagain(
    hypervisor: Hypervisor, version: int
) -> None:
    scene = Scene(hypervisor, version)
    answers = []

    def race(*_: int) -> None:
        hypervisor.set_hook(None)
        answers.append(scene.set_version(3 - version))

    hypervisor.set_hook(race)
    assert scene.copy((8, 1, 0, True), MINE) == 0
    assert answers == ["EAGAIN"]
    hypervisor.set_hook(race)
    assert scene.map() == 0
    assert answers == ["EAGAIN"] * 2


ops_of_map = st.tuples(
    st.sampled_from([AT, AT + 4096, 0x106 << 12, 0, 1 << 60]),
    st.integers(0, 31) | st.integers(0, 2**32 - 1),
    st.sampled_from([8, 9, 10, 13, 14, 15, 255, 256, 512, 2**32 - 1]),
    st.sampled_from([0, 1, 2, 99, SELF, 0xFFFF]),
)


@settings(max_examples=60, deadline=None)
@given(ops=st.lists(ops_of_map, min_size=1, max_size=8), version=st.integers(1, 2))
def test_xsa_316_a_failed_map_has_a_negative_status(ops: list[Any], version: int) -> None:
    hypervisor = Hypervisor(Loop(seed=1), nr_frames=1 << 12)
    try:
        scene = Scene(hypervisor, version)
        array = ffi.new("struct gnttab_map_grant_ref[]", ops)
        for op in array:
            op.status = 77
        scene.dom0.gnttab.hypercall(MAP, array)
        okay = [op.handle for op in array if not op.status]
        assert all(-13 <= op.status <= 0 for op in array)
        assert sorted(scene.dom0.gnttab.maptrack) == sorted(okay)
        assert scene.guest.gnttab.pinned() == len({op.ref for op in array if not op.status})
    finally:
        hypervisor.close()


@V
def test_xsa_318_every_copy_of_a_long_batch_gets_its_status(
    hypervisor: Hypervisor, version: int
) -> None:
    scene = Scene(hypervisor, version)
    wanted = [((8 if i % 7 else 10, 1, 0, True), MINE, i % 5000 or 1) for i in range(10000)]
    ops = copies(*wanted)
    failed = scene.dom0.gnttab.copy(ops)
    expected = [-1 if ref == 10 else -10 if size > 4096 else 0 for (ref, *_), _, size in wanted]
    assert [op.status for op in ops] == expected
    assert failed == sum(status != 0 for status in expected)
    assert scene.guest.gnttab.pinned() == 0


def test_xsa_382_status_frames_are_bounded(hypervisor: Hypervisor) -> None:
    scene = Scene(hypervisor, 2)
    before = scene.snapshot()
    for nr in (2, 64, 1 << 16, (1 << 32) - 1):
        assert scene.status_frames(nr, by=scene.guest) == -1
    assert scene.snapshot() == before


@V
def test_xsa_394_a_half_unmapped_grant_is_dropped_once(
    hypervisor: Hypervisor, version: int
) -> None:
    scene = PV(hypervisor, version)
    frame = lib.p2m_lookup(scene.guest.kernel, scene.page, 0)
    refs = lib.frame_refs(hypervisor.machine, frame)
    assert scene.map(flags=DEVICE | HOST) == 0
    assert scene.unmap(0, AT) == 0
    after_host = scene.snapshot()
    assert scene.unmap(0, AT) == 0  # that half is not mapped: it is skipped
    assert scene.snapshot() == after_host
    assert pins(scene) == 1 << 16
    assert scene.unmap(0, AT, scene.bus) == 0
    assert scene.unmap(0, AT, scene.bus) == -4
    assert pins(scene) == 0
    assert lib.frame_refs(hypervisor.machine, frame) == refs


@V
def test_xsa_394_one_handle_twice_in_a_batch(hypervisor: Hypervisor, version: int) -> None:
    scene = Scene(hypervisor, version)
    assert scene.map() == 0
    ops = ffi.new("struct gnttab_unmap_grant_ref[2]", [(AT, 0, 0), (AT, 0, 0)])
    scene.dom0.gnttab.hypercall(UNMAP, ops)
    assert [op.status for op in ops] == [0, -4]
    assert pins(scene) == 0


@V
def test_xsa_500_a_pinned_entry_that_changed_is_not_copied_to(
    hypervisor: Hypervisor, version: int
) -> None:
    scene = Scene(hypervisor, version)
    assert scene.map(flags=HOST | RO) == 0
    flags = PERMIT | (8 if version == 1 else 0)
    scene.entry(8, flags, frame=0x103)
    before = scene.snapshot()
    assert scene.copy(MINE, (8, 1, 0, True)) == -1
    assert scene.snapshot() == before
    scene.entry(8, flags)
    assert scene.copy(MINE, (8, 1, 0, True)) == 0


def test_resource_forty_frames(hypervisor: Hypervisor) -> None:
    """tools/tests/resource: size, map, one grant per frame, forty references in one call."""
    dom0 = domain(hypervisor, 0)
    guest = domain(hypervisor, max_grant_frames=40)
    dom0.gnttab.setup_table(40, guest.domid)
    assert dom0.gnttab.query_size(guest.domid) == (40, 40)
    assert dom0.gnttab.get_version(guest.domid) == 1
    for index in range(40):
        guest.add_to_physmap_grant(index, 0x400 + index)
    with pytest.raises(HypercallError, match="EINVAL"):
        guest.add_to_physmap_grant(40, 0x400 + 40)
    refs = []
    for index in range(40):
        offset = index * 8
        entry = ffi.new("struct grant_entry_v1 *", (PERMIT, 0, 0x100 + index))
        guest.write(0x100 + index, 0, bytes([index]))
        guest.write(0x400 + index, offset, bytes(ffi.buffer(entry)))
        refs.append(index * 512 + index)
    maps = ffi.new(
        "struct gnttab_map_grant_ref[40]",
        [((HOLE + i) << 12, HOST, ref, guest.domid) for i, ref in enumerate(refs)],
    )
    dom0.gnttab.hypercall(MAP, maps)
    assert [(op.status, op.handle) for op in maps] == [(0, i) for i in range(40)]
    assert [dom0.read(HOLE + i, 0, 1)[0] for i in range(40)] == list(range(40))
    assert guest.gnttab.pinned() == 40
    unmaps = ffi.new(
        "struct gnttab_unmap_grant_ref[40]", [((HOLE + i) << 12, 0, i) for i in range(40)]
    )
    dom0.gnttab.hypercall(UNMAP, unmaps)
    assert [op.status for op in unmaps] == [0] * 40
    assert guest.gnttab.pinned() == 0


def test_resource_status_frames_fail_in_version_1(hypervisor: Hypervisor) -> None:
    scene = Scene(hypervisor)
    assert scene.status_frames(1, by=scene.guest) == -1
    with pytest.raises(HypercallError, match="EINVAL"):
        scene.guest.add_to_physmap_grant(1 << 31, 0x311)


# maptrack


def test_maptrack_ascends_and_keeps_one_handle_per_list() -> None:
    track = Maptrack(2, 1)
    given = [track.take(0) for _ in range(512)]
    assert given == [*range(255), *range(256, 511), 511, None] or given[:255] == list(range(255))
    assert sum(handle is not None for handle in given) == 511
    assert given[-1] is None
    assert len({handle for handle in given if handle is not None}) == 511


def test_maptrack_freed_handles_join_the_tail() -> None:
    track = Maptrack(1, 1)
    first = [track.take(0) for _ in range(4)]
    assert first == [0, 1, 2, 3]
    for handle in (2, 0):
        track.give_back(handle)
    assert [track.take(0) for _ in range(254)][-3:] == [255, 2, None]
    assert track.take(0) is None  # 0 is the spare one


def test_maptrack_a_vcpu_without_frames_takes_from_another() -> None:
    track = Maptrack(1, 2)
    assert track.take(0) == 0
    assert track.take(1) == 2  # 1 became its own spare handle
    track.give_back(2)
    assert track.take(1) == 1
    assert track.take(1) == 3  # 2 is the spare one now: from vcpu 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.integers(0, 600)), max_size=900))
def test_maptrack_never_gives_a_handle_twice(steps: list[tuple[bool, int, int]]) -> None:
    track = Maptrack(3, 3)
    out: list[int] = []
    for take, vcpu, which in steps:
        if take or not out:
            for _ in range(3):
                handle = track.take(vcpu)
                if handle is not None:
                    assert handle not in out
                    out.append(handle)
        else:
            track.give_back(out.pop(which % len(out)))
        assert track.free_handles + len(out) == 256 * track.nr_frames
        assert len(out) <= 768 - 3


# what a batch keeps


@V
def test_consecutive_copies_of_one_page_keep_their_pin(
    hypervisor: Hypervisor, version: int
) -> None:
    """The granter revokes while the first operation moves its data; the second is not checked."""
    scene = Scene(hypervisor, version)
    ops = copies(((8, 1, 0, True), MINE, 8), ((8, 1, 0, True), MINE, 8), ((8, 1, 0, True), MINE, 8))
    data = lib.p2m_lookup(scene.guest.kernel, scene.page, 0)
    seen = 0

    def race(_actor: int, _kind: int, frame: int, _offset: int, _size: int) -> None:
        nonlocal seen
        if frame == data:
            seen += 1
        if frame == data and seen == 1:
            scene.entry(8, 0 if version == 2 else 8)

    hypervisor.set_hook(race)
    assert scene.dom0.gnttab.copy(ops) == 0
    hypervisor.set_hook(None)
    assert seen == 3
    assert scene.copy((8, 1, 0, True), MINE) == -1
    assert pins(scene) == 0


@V
def test_an_error_in_a_batch_drops_both_sides(hypervisor: Hypervisor, version: int) -> None:
    scene = Scene(hypervisor, version)
    ops = copies(
        ((8, 1, 0, True), MINE, 8), ((8, 1, 4095, True), MINE, 8), ((8, 1, 0, True), MINE, 8)
    )
    table = lib.grant_table_frame(scene.guest.kernel, 0)
    reads = 0

    def count(_actor: int, kind: int, frame: int, offset: int, _size: int) -> None:
        nonlocal reads
        wanted = 8 * (8 if version == 1 else 16)
        reads += frame == table and offset == wanted and not kind & 3

    hypervisor.set_hook(count)
    assert scene.dom0.gnttab.copy(ops) == 1
    hypervisor.set_hook(None)
    assert [op.status for op in ops] == [0, -10, 0]
    once = {1: 1, 2: 4}[version]  # loads of the entry's header in one acquisition
    assert reads == 2 * once


# a peer's copies


garbage = st.binary(min_size=40, max_size=40)
side_of_copy = st.tuples(
    st.sampled_from([8, 9, 10, 12, 13, 14, 15, 20, 0x102, 0x103, 0x104, HOLE, 2**32 - 1]),
    st.sampled_from([SELF, SELF, 0, 1, 1, 2, 99]),
    st.sampled_from([0, 99, 100, 149, 150, 4000, 4095]) | st.integers(0, 0xFFFF),
    st.booleans(),
)
near = st.tuples(
    side_of_copy, side_of_copy, st.sampled_from([0, 1, 50, 96, 4096]) | st.integers(0, 0xFFFF)
)


@settings(max_examples=150, deadline=None)
@given(
    ops=st.lists(garbage | near, min_size=1, max_size=12),
    version=st.integers(1, 2),
    mapped=st.booleans(),
)
def test_copies_of_garbage_touch_only_what_is_granted(
    ops: list[Any], version: int, mapped: bool
) -> None:
    hypervisor = Hypervisor(Loop(seed=1), nr_frames=1 << 12)
    try:
        scene = Scene(hypervisor, version)
        if mapped:
            assert scene.map(8, HOST | RO) == 0
        array = ffi.new("struct gnttab_copy[]", len(ops))
        for index, op in enumerate(ops):
            raw = op if isinstance(op, bytes) else bytes(ffi.buffer(copies(op)))
            ffi.memmove(ffi.addressof(array, index), raw, 40)
            array[index].status = 77
        before = scene.snapshot()
        scene.dom0.gnttab.hypercall(COPY, array)
        after = scene.snapshot()
        assert all(-13 <= op.status <= 0 for op in array)
        old, new = before.pop("arena"), bytearray(after.pop("arena"))
        assert after == before
        for kernel, pfn, start, end in writable(scene):
            at = lib.p2m_lookup(kernel, pfn, 0) * 4096
            new[at + start : at + end] = old[at + start : at + end]
        assert new == old
    finally:
        hypervisor.close()


def writable(scene: Scene) -> list[tuple[Any, int, int, int]]:
    """(whose, pfn, from, to): dom0's own pages, and what is granted to it to write."""
    mine = [(scene.dom0.kernel, pfn, 0, 4096) for pfn in range(0x100, 0x110)]
    theirs = [(scene.guest.kernel, scene.page, 0, 4096)]  # by 8; and 13's window is inside it
    if scene.version == 2:
        theirs.append((scene.other.kernel, scene.page, 0, 4096))  # by 15, through 20
    return mine + theirs
