"""The access hook: told before each shared access, may change memory, may end the call."""

from __future__ import annotations

import pytest

from tests.xen.conftest import domain
from tests.xen.grants import HOLE, HOST, Scene, copies
from tests.xen.test_ring import REQ, Pair, pair, requests
from xenpv.abi._kernel import ffi, lib
from xenpv.xen.hypervisor import Hypervisor

Access = tuple[int, int, int, int]  # actor, kind, offset, size


@pytest.fixture
def ring(hypervisor: Hypervisor) -> Pair:
    domain(hypervisor, 0)
    domain(hypervisor)
    return pair(hypervisor)


def frame_of(ring: Pair) -> int:
    return int(lib.p2m_lookup(ring.guest.kernel, ring.pfn, 0))


def test_a_backend_pass_shows_every_access_in_order(hypervisor: Hypervisor, ring: Pair) -> None:
    ring.front.push(requests(1, 2), 2)
    seen: list[Access] = []
    mine = frame_of(ring)

    def hook(actor: int, kind: int, frame: int, offset: int, size: int) -> None:
        assert frame == mine
        seen.append((actor, kind, offset, size))

    hypervisor.set_hook(hook)
    ring.back.take()
    ring.back.push(bytes(32), 2)
    ring.back.final_check()
    hypervisor.set_hook(None)
    read, write = lib.ACCESS_READ, lib.ACCESS_WRITE
    assert seen == [
        (0, read, 0, 4),  # req_prod, once
        (0, read, 64, REQ),  # each request, once
        (0, read, 64 + REQ, REQ),
        (0, write, 64, REQ),  # the responses
        (0, write, 64 + REQ, REQ),
        (0, write, 8, 4),  # rsp_prod after them
        (0, read, 12, 4),  # rsp_event after that
        (0, read, 0, 4),
        (0, write, 4, 4),  # req_event, then look again
        (0, read, 0, 4),
    ]


def test_the_hook_comes_before_the_access(hypervisor: Hypervisor, ring: Pair) -> None:
    ring.front.push(requests(1), 1)

    def race(_actor: int, _kind: int, _frame: int, offset: int, _size: int) -> None:
        if offset == 64:
            hypervisor.set_hook(None)
            ring.guest.write(ring.pfn, 64, b"\x99")

    hypervisor.set_hook(race)
    _, raw = ring.back.take()
    assert raw[0] == 0x99


def test_a_page_accessor_is_seen_too(hypervisor: Hypervisor, ring: Pair) -> None:
    seen: list[Access] = []
    hypervisor.set_hook(lambda *access: seen.append((access[0], access[1], *access[3:])))
    ring.guest.store32(ring.pfn, 16, 5)
    ring.guest.load32(ring.pfn, 16)
    ring.guest.write(ring.pfn, 100, b"abc")
    ring.guest.read(ring.pfn, 100, 3)
    hypervisor.set_hook(None)
    assert seen == [(1, 1, 16, 4), (1, 0, 16, 4), (1, 1, 100, 3), (1, 0, 100, 3)]


def test_hypervisor_accesses_are_marked(hypervisor: Hypervisor, ring: Pair) -> None:
    kinds: list[int] = []
    hypervisor.set_hook(lambda _a, kind, *_: kinds.append(kind))
    lib.evtchn_set_pending(ring.guest.kernel, 5, 0)
    hypervisor.set_hook(None)
    assert kinds
    assert all(kind & lib.ACCESS_HYPERVISOR for kind in kinds)


def test_what_the_hook_raises_comes_out_where_the_kernel_was_called(
    hypervisor: Hypervisor, ring: Pair
) -> None:
    ring.front.push(requests(1, 2, 3), 3)
    calls = 0

    def stop(*_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyError("stop here")

    hypervisor.set_hook(stop)
    with pytest.raises(KeyError, match="stop here"):
        ring.back.take()
    assert calls == 2  # the call ended: no later access was begun
    hypervisor.set_hook(None)
    assert ring.back.req_cons == 0
    assert ring.back.take()[0] == 3


def test_an_aborted_push_publishes_nothing(hypervisor: Hypervisor, ring: Pair) -> None:
    def stop(_actor: int, _kind: int, _frame: int, offset: int, _size: int) -> None:
        if offset == 64 + REQ:
            raise KeyError("second slot")

    hypervisor.set_hook(stop)
    with pytest.raises(KeyError):
        ring.front.push(requests(1, 2), 2)
    hypervisor.set_hook(None)
    assert ring.front.req_prod == 0
    assert ring.guest.load32(ring.pfn, 0) == 0


def test_the_hook_may_run_the_other_end_in_between(hypervisor: Hypervisor, ring: Pair) -> None:
    """The race that FINAL_CHECK is for: work arrives after the event index was set."""
    pushed = False

    def peer(_actor: int, kind: int, _frame: int, offset: int, _size: int) -> None:
        nonlocal pushed
        if kind == lib.ACCESS_READ and offset == 0 and not pushed and armed:
            pushed = True
            assert ring.front.push(requests(7), 1)

    armed = False
    ring.back.take()

    def arm(_actor: int, kind: int, _frame: int, offset: int, _size: int) -> None:
        nonlocal armed
        peer(_actor, kind, _frame, offset, _size)
        if kind == lib.ACCESS_WRITE and offset == 4:
            armed = True

    hypervisor.set_hook(arm)
    more = ring.back.final_check()
    hypervisor.set_hook(None)
    assert pushed
    assert more


# grant operations: accesses to (table, status or page; offset), in order

HELD, COPY = lib.ACCESS_HYPERVISOR, lib.ACCESS_COPY
READ, WRITE, ATOMIC = lib.ACCESS_READ, lib.ACCESS_WRITE, lib.ACCESS_ATOMIC
MINE = (0x104, 0x7FF0, 0, False)
# One acquisition and one release of entry 8: of its table, of its status array.
PIN = {
    1: [("table", READ | HELD, 64, 4), ("table", ATOMIC | HELD, 64, 4), ("table", READ | HELD, 68, 4)],
    2: [
        ("table", READ | HELD, 128, 4), ("status", ATOMIC | HELD, 16, 2),
        ("table", READ | HELD, 128, 4), ("table", READ | HELD, 136, 8),
    ],
}  # fmt: skip
UNPIN = {1: [("table", ATOMIC | HELD, 64, 2)], 2: [("status", ATOMIC | HELD, 16, 2)]}


def watched(scene: Scene) -> list[tuple[str, int, int, int]]:
    """What the hook is told from here on; None of it may be of another frame."""
    kernel = scene.guest.kernel
    names = {
        int(lib.grant_table_frame(kernel, 0)): "table",
        int(lib.p2m_lookup(kernel, scene.page, 0)): "page",
        int(lib.p2m_lookup(scene.dom0.kernel, 0x104, 0)): "mine",
    }
    if scene.version == 2:
        names[int(lib.grant_table_status_frame(kernel, 0))] = "status"
    seen: list[tuple[str, int, int, int]] = []
    scene.hypervisor.set_hook(
        lambda actor, kind, frame, offset, size: seen.append((names[frame], kind, offset, size))
    )
    return seen


@pytest.mark.parametrize("version", [1, 2])
def test_every_access_of_map_and_unmap_is_seen(hypervisor: Hypervisor, version: int) -> None:
    scene = Scene(hypervisor, version)
    entry = 8 * (8 if version == 1 else 16)
    seen = watched(scene)
    assert scene.map() == 0
    assert seen == [*PIN[version], ("table", READ | HELD, entry, 2)]
    seen.clear()
    assert scene.unmap(0, HOLE << 12) == 0
    assert seen == UNPIN[version]
    hypervisor.set_hook(None)


@pytest.mark.parametrize("version", [1, 2])
def test_every_access_of_a_copy_is_seen_and_its_data_without_the_lock(
    hypervisor: Hypervisor, version: int
) -> None:
    scene = Scene(hypervisor, version)
    entry = 8 * (8 if version == 1 else 16)
    kind_of_entry = [] if version == 1 else [("table", READ | HELD, entry, 2)]
    pin = [*kind_of_entry, *PIN[version][:-1], *kind_of_entry, PIN[version][-1]]
    seen = watched(scene)
    assert scene.copy((8, 1, 100, True), MINE, 32) == 0
    data = [("page", READ | COPY, 100, 32), ("mine", WRITE | COPY, 0, 32)]
    assert seen == [*pin, *data, *UNPIN[version]]
    seen.clear()
    ops = copies((MINE, (8, 1, 100, True), 32), (MINE, (8, 1, 200, True), 16))
    assert scene.dom0.gnttab.copy(ops) == 0
    first = [("mine", READ | COPY, 0, 32), ("page", WRITE | COPY, 100, 32)]
    second = [("mine", READ | COPY, 0, 16), ("page", WRITE | COPY, 200, 16)]
    assert seen == [*pin, *first, *second, *UNPIN[version]]
    hypervisor.set_hook(None)


@pytest.mark.parametrize("version", [1, 2])
def test_every_access_of_a_local_copy_is_seen(hypervisor: Hypervisor, version: int) -> None:
    scene = Scene(hypervisor, version)
    seen = watched(scene)
    status = ffi.new("int8_t[1]")
    buffer = bytearray(64)
    lib.grant_copy_local(
        scene.dom0.kernel, scene.guest.kernel, 0, [8, 100 | 64 << 16, 0], 1,
        ffi.from_buffer(buffer), 64, status,
    )  # fmt: skip
    assert ("page", READ | COPY, 100, 64) in seen
    assert all(kind & HELD for name, kind, *_ in seen if name != "page")
    hypervisor.set_hook(None)


@pytest.mark.parametrize("version", [1, 2])
def test_every_access_of_the_granter_is_seen(hypervisor: Hypervisor, version: int) -> None:
    scene = Scene(hypervisor, version)
    entry = 8 * (8 if version == 1 else 16)
    seen = watched(scene)
    scene.entry(8)
    frame = ("table", WRITE, entry + 4, 4) if version == 1 else ("table", WRITE, entry + 8, 8)
    assert seen == [("table", WRITE, entry + 2, 2), frame, ("table", WRITE, entry, 2)]
    seen.clear()
    assert lib.grant_entry_revoke(scene.guest.kernel, 8) == 0
    assert seen == (
        [("table", READ, entry, 2), ("table", ATOMIC, entry, 2)]
        if version == 1
        else [("table", WRITE, entry, 2), ("status", READ, 16, 2)]
    )
    seen.clear()
    assert scene.swap(8, 9) == 0
    words = 2 if version == 1 else 4
    assert len(seen) == 4 * words + (4 if version == 2 else 0)
    assert all(kind & HELD for _, kind, *_ in seen)
    hypervisor.set_hook(None)


def stop_at(hypervisor: Hypervisor, number: int) -> None:
    """Raise KeyError at the access of that number."""
    count = 0

    def stop(*_: int) -> None:
        nonlocal count
        count += 1
        if count == number:
            raise KeyError(number)

    hypervisor.set_hook(stop)


@pytest.mark.parametrize("version", [1, 2])
def test_a_grant_operation_that_the_hook_ends_leaves_no_pin_and_no_bit(
    hypervisor: Hypervisor, version: int
) -> None:
    scene = Scene(hypervisor, version)
    scene.map()
    for operation in (
        lambda: scene.copy((9, 1, 0, True), (8, 1, 0, True)),
        lambda: scene.map(9, HOST | 4, addr=(HOLE + 1) << 12),
        lambda: scene.swap(20, 21),
    ):
        before = {**scene.snapshot(), "arena": None}  # the data of a copy may be half there
        bits = [lib.grant_entry_status(scene.guest.kernel, ref) for ref in (8, 9)]
        for number in range(1, 30):
            stop_at(hypervisor, number)
            try:
                operation()
                break
            except KeyError:
                assert {**scene.snapshot(), "arena": None} == before
                kernel = scene.guest.kernel
                assert bits == [lib.grant_entry_status(kernel, ref) for ref in (8, 9)]
        hypervisor.set_hook(None)
        assert number > 4


# races that the hook plays: the granter acts between the accesses of an operation


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("at", range(1, 6))
def test_a_revoke_at_any_moment_of_a_map_wins_or_loses_whole(
    hypervisor: Hypervisor, version: int, at: int
) -> None:
    scene = Scene(hypervisor, version)
    count = 0
    revoked: list[int] = []

    def race(*_: int) -> None:
        nonlocal count
        count += 1
        if count == at:
            hypervisor.set_hook(None)
            revoked.append(lib.grant_entry_revoke(scene.guest.kernel, 8))

    hypervisor.set_hook(race)
    status = scene.map()
    hypervisor.set_hook(None)
    if not revoked:
        assert status == 0
        return
    if revoked == [0]:  # the granter may use its page again
        assert status == -1
    if status == 0:
        assert revoked == [-16]
    assert lib.grant_entry_status(scene.guest.kernel, 8) == (0 if status else 0x18)
    assert lib.grant_pins(scene.guest.kernel, 8) == (0 if status else 1)


def test_an_entry_that_never_stays_the_same_is_refused(hypervisor: Hypervisor) -> None:
    scene = Scene(hypervisor, 1)
    table = scene.guest.gnttab.physmap_frame(0)

    def flicker(_actor: int, kind: int, frame: int, offset: int, _size: int) -> None:
        if frame == table and offset == 64 and kind & 3 == ATOMIC:
            hypervisor.set_hook(None)
            flags = lib.grant_entry_flags(scene.guest.kernel, 8)
            scene.entry(8, flags ^ 0x20)
            hypervisor.set_hook(flicker)

    hypervisor.set_hook(flicker)
    assert scene.copy((8, 1, 0, True), MINE) == -1
    hypervisor.set_hook(None)
    assert lib.grant_pins(scene.guest.kernel, 8) == 0
    assert scene.copy((8, 1, 0, True), MINE) == 0
