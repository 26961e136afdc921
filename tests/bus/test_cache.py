"""CACHE: every operation by its situations, the shape of slabs, the monitor, a simple model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.world import World, make
from xenpv.bus.cache import Cache, CacheInterface, CacheObject
from xenpv.bus.interface import InterfaceVersion, query_interface
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.errors import LocalProtocolError
from xenpv.xen.loop import NS_PER_S

GUID = "A98DFD78-416A-4949-92A5-E084F2F4B44E"
OK = 0
NOT_HERE = "LocalProtocolError"
NULL = "NULL"


def opened(world: World, version: int = 2) -> InterfaceVersion:
    interface = query_interface([CacheInterface(world.guest)], GUID, version)
    interface.acquire()
    return interface


def outcome(call: Callable[[], Any]) -> Any:
    try:
        result = call()
    except NtStatusError as error:
        return int(error.status)
    except LocalProtocolError:
        return NOT_HERE
    return NULL if result is None else OK


def _broke(_argument: object, _obj: CacheObject) -> NTSTATUS:
    return NTSTATUS.UNSUCCESSFUL


def _timeout(_argument: object, _obj: CacheObject) -> NTSTATUS:
    return NTSTATUS.TIMEOUT


def _no_pages(world: World) -> None:
    world.guest.pages.alloc_pages(5000)


# 4096 - 48 bytes hold 253 objects of 16, 84 of 48 (41 is rounded up to that), one of 4048.
CREATE = [
    ("plain", {"size": 16}, OK),
    ("the largest object", {"size": 4048}, OK),
    ("an object larger than a slab", {"size": 4049}, 0xC000_000D),
    ("no size", {"size": 0}, 0xC000_000D),
    ("a reservation", {"size": 16, "reservation": 1}, OK),
    ("a reservation above the cap", {"size": 16, "reservation": 300, "cap": 299}, 0xC000_000D),
    ("a reservation of the cap, in whole slabs", {"size": 16, "reservation": 253, "cap": 253}, OK),
    (
        "a reservation of the cap, a slab is larger",
        {"size": 16, "reservation": 252, "cap": 252},
        0xC000_009A,
    ),
    ("the second slab exceeds the cap", {"size": 16, "reservation": 254, "cap": 505}, 0xC000_009A),
    ("the second slab is the cap", {"size": 16, "reservation": 254, "cap": 506}, OK),
    ("a cap that no slab fits into, without reservation", {"size": 16, "cap": 1}, OK),
    ("more reserved than the guest has pages", {"size": 4048, "reservation": 5000}, 0xC000_0017),
]


@pytest.mark.parametrize(
    ("arguments", "expected"), [row[1:] for row in CREATE], ids=[row[0] for row in CREATE]
)
def test_create(world: World, arguments: dict[str, int], expected: Any) -> None:
    cache = opened(world)
    free = world.guest.pages.free_pages
    assert outcome(lambda: cache.create("c", **arguments)) == expected
    if expected != OK:
        assert cache.interface.leftovers() == []
        assert world.guest.pages.free_pages == free


SHAPES = [(16, 253), (8, 506), (1, 506), (41, 84), (48, 84), (2024, 2), (2025, 1), (4048, 1)]


@pytest.mark.parametrize(("size", "per_slab"), SHAPES)
def test_objects_in_a_slab(world: World, size: int, per_slab: int) -> None:
    cache = opened(world).create("c", size, 1)
    assert (cache.total, len(cache.slabs)) == (per_slab, 1)


GET = [
    ("plain", {}, None, OK),
    ("the cap holds no slab", {"cap": 252}, None, NULL),
    ("no page for a slab", {}, _no_pages, NULL),
    ("no page, but a slab is reserved", {"reservation": 1}, _no_pages, OK),
    ("the constructor fails", {"ctor": _broke}, None, NULL),
    ("the constructor's status counts as success", {"ctor": _timeout}, None, OK),
]


@pytest.mark.parametrize(
    ("arguments", "before", "expected"), [row[1:] for row in GET], ids=[row[0] for row in GET]
)
def test_get(world: World, arguments: dict[str, Any], before: Any, expected: Any) -> None:
    interface = opened(world)
    cache = interface.create("c", 16, **arguments)
    if before is not None:
        before(world)
    assert outcome(lambda: interface.get(cache, False)) == expected
    assert cache.objects == (expected == OK)


def test_the_cap_bounds_what_is_out(world: World) -> None:
    interface = opened(world)
    cache = interface.create("c", 2024, cap=5)
    out = [interface.get(cache) for _ in range(5)]
    assert [one is None for one in out] == [False] * 4 + [True]
    assert (cache.total, cache.objects, cache.objects_max, cache.slabs_max) == (4, 4, 4, 2)


def test_version_1_has_no_cap(world: World) -> None:
    interface = opened(world, 1)
    cache = interface.create("c", 16, 3, None, None, None, None, "argument")
    assert (cache.cap, cache.argument) == (0, "argument")


@pytest.mark.parametrize(("version", "size"), [(1, 80), (2, 80)])
def test_the_structures(world: World, version: int, size: int) -> None:
    assert query_interface([CacheInterface(world.guest)], GUID, version).size == size


@pytest.mark.parametrize("version", [0, 3])
def test_there_are_no_other_versions(world: World, version: int) -> None:
    with pytest.raises(NtStatusError, match="^NOT_SUPPORTED"):
        query_interface([CacheInterface(world.guest)], GUID, version)


def _another(i: InterfaceVersion, _c: Cache, _obj: CacheObject) -> Any:
    other = i.create("other", 16)
    i.put(other, _obj, False)


def _twice(i: InterfaceVersion, cache: Cache, obj: CacheObject) -> Any:
    i.put(cache, obj, False)
    i.put(cache, obj, False)


def _twice_past_the_magazine(i: InterfaceVersion, cache: Cache, obj: CacheObject) -> Any:
    others = [i.get(cache, False) for _ in range(6)]
    for one in (*others, obj, obj):
        i.put(cache, one, False)


def _after_destroy(i: InterfaceVersion, cache: Cache, obj: CacheObject) -> Any:
    i.put(cache, obj, False)
    i.destroy(cache)


MISUSE = [
    ("put: an object of another cache", _another, NOT_HERE),
    ("put: twice", _twice, NOT_HERE),
    ("put: twice, the magazine is full", _twice_past_the_magazine, NOT_HERE),
    ("destroy: one is out", lambda i, c, _o: i.destroy(c), NOT_HERE),
    ("destroy: all are back", _after_destroy, NULL),
    ("destroy: twice", lambda i, c, o: (_after_destroy(i, c, o), i.destroy(c)), NOT_HERE),
    (
        "get: of a destroyed cache",
        lambda i, c, o: (_after_destroy(i, c, o), i.get(c, False)),
        NOT_HERE,
    ),
    (
        "put: into a destroyed cache",
        lambda i, c, o: (_after_destroy(i, c, o), i.put(c, o, False)),
        NOT_HERE,
    ),
    ("release: a cache is left", lambda i, _c, _o: i.release(), NOT_HERE),
    (
        "release, then use",
        lambda i, c, o: (_after_destroy(i, c, o), i.release(), i.get(c, False)),
        NOT_HERE,
    ),
    ("release: none is left", lambda i, c, o: (_after_destroy(i, c, o), i.release())[1], NULL),
]


@pytest.mark.parametrize(
    ("misuse", "expected"), [row[1:] for row in MISUSE], ids=[row[0] for row in MISUSE]
)
def test_put_destroy_and_release(world: World, misuse: Any, expected: Any) -> None:
    interface = opened(world)
    cache = interface.create("c", 16)
    obj = interface.get(cache, False)
    assert outcome(lambda: misuse(interface, cache, obj)) == expected


def test_a_cache_with_objects_out_can_still_be_used_after_destroy_was_refused(world: World) -> None:
    interface = opened(world)
    cache = interface.create("c", 16)
    obj = interface.get(cache)
    with pytest.raises(LocalProtocolError, match="destroyed with 1 out"):
        interface.destroy(cache)
    interface.put(cache, obj)
    interface.destroy(cache)
    assert interface.interface.leftovers() == []


def test_objects_are_constructed_at_first_use_and_once(world: World) -> None:
    interface = opened(world)
    log: list[tuple[str, int]] = []

    def ctor(argument: str, obj: CacheObject) -> None:
        obj.value = len(log)
        log.append((argument, obj.value))

    def dtor(argument: str, obj: CacheObject) -> None:
        log.append((f"~{argument}", obj.value))

    cache = interface.create("c", 16, 10, 0, ctor, dtor, None, None, "a")
    assert log == []
    one, two = interface.get(cache), interface.get(cache)
    assert log == [("a", 0), ("a", 1)]
    one.value = 7
    interface.put(cache, one)
    again = interface.get(cache)
    assert (again, again.value) == (one, 7)
    assert len(log) == 2
    interface.put(cache, again)
    interface.put(cache, two)
    interface.destroy(cache)
    assert sorted(log[2:]) == [("~a", 1), ("~a", 7)]


def test_a_constructed_object_is_preferred_to_a_raw_one(world: World) -> None:
    interface = opened(world)
    made: list[CacheObject] = []
    cache = interface.create("c", 16, ctor=lambda _argument, obj: made.append(obj))
    objects = [interface.get(cache) for _ in range(10)]
    for obj in objects:
        interface.put(cache, obj)
    assert sorted(interface.get(cache).index for _ in range(10)) == list(range(10))
    assert len(made) == 10


def test_the_lock_is_taken_around_slabs_and_not_around_magazines(world: World) -> None:
    interface = opened(world)
    log: list[str] = []
    cache = interface.create(
        "c",
        16,
        lock=lambda a: log.append(f"{a}+"),
        unlock=lambda a: log.append(f"{a}-"),
        argument="L",
    )
    objects = [interface.get(cache, False) for _ in range(8)]
    assert log == ["L+", "L-"] * 8
    log.clear()
    for obj in objects[:6]:
        interface.put(cache, obj, False)
    assert log == []
    interface.put(cache, objects[6], False)
    assert log == ["L+", "L-"]
    log.clear()
    interface.put(cache, objects[7], True)
    assert log == []
    for _ in range(6):
        interface.get(cache, False)
    assert log == []
    interface.get(cache, True)
    assert log == []
    interface.get(cache, False)
    assert log == ["L+", "L-"]


def test_the_lock_is_given_back_when_nothing_can_be_got(world: World) -> None:
    interface = opened(world)
    log: list[str] = []
    cache = interface.create(
        "c", 16, cap=1, lock=lambda _: log.append("+"), unlock=lambda _: log.append("-")
    )
    assert interface.get(cache, False) is None
    assert log == ["+", "-"]


def test_each_processor_has_a_magazine_of_six(world: World) -> None:
    interface = opened(world)
    cache = interface.create("c", 16)
    objects = [interface.get(cache) for _ in range(14)]
    for obj in objects[:7]:
        interface.put(cache, obj, cpu=0)
    for obj in objects[7:]:
        interface.put(cache, obj, cpu=1)
    # Twelve wait in magazines and occupy their slab; two are back in it.
    assert cache.objects == 12
    assert [interface.get(cache, cpu=1) for _ in range(6)] == objects[12:6:-1]


def test_objects_come_from_the_fullest_slab(world: World) -> None:
    interface = opened(world)
    cache = interface.create("c", 2024)
    a, b, c, d = (interface.get(cache, cpu=n) for n in range(4))
    magazine = [interface.get(cache) for _ in range(6)]
    for obj in magazine:
        interface.put(cache, obj)
    assert [slab.allocated for slab in cache.slabs] == [2] * 5
    interface.put(cache, a)
    interface.put(cache, b)
    interface.put(cache, c)
    assert [slab.allocated for slab in cache.slabs] == [2, 2, 2, 1, 0]
    assert interface.get(cache, cpu=9) is c
    assert d.slab is c.slab


def test_the_monitor_gives_empty_slabs_back_down_to_half_or_the_reservation(world: World) -> None:
    interface = opened(world)
    cache = interface.create("c", 2024, 3)
    free = world.guest.pages.free_pages
    objects = [interface.get(cache) for _ in range(32)]
    for number, obj in enumerate(objects):
        interface.put(cache, obj, cpu=number // 6)
    for cpu in range(6):
        while (found := cache.magazines.get(cpu)) and (obj := found.pop()):
            interface.interface._put_object(obj)
    sizes = [cache.total]
    for _ in range(6):
        world.loop.advance(5 * NS_PER_S)
        sizes.append(cache.total)
    assert sizes == [32, 16, 8, 4, 4, 4, 4]
    assert world.guest.pages.free_pages == free
    assert (cache.slabs_max, cache.objects_max) == (16, 32)


def test_the_monitor_refills_what_is_reserved(world: World) -> None:
    interface = opened(world)
    log: list[str] = []
    cache = interface.create(
        "c", 2024, lock=lambda _: log.append("+"), unlock=lambda _: log.append("-")
    )
    cache.reservation = 5
    pages = world.guest.pages.alloc_pages(5000)
    world.loop.advance(5 * NS_PER_S)
    assert cache.total == 0
    for pfn in pages:
        world.guest.pages.free(pfn)
    world.loop.advance(5 * NS_PER_S)
    assert cache.total == 6
    assert log == ["+", "-"] * 2


def test_a_slab_with_an_object_in_a_magazine_is_not_empty(world: World) -> None:
    interface = opened(world)
    cache = interface.create("c", 16)
    interface.put(cache, interface.get(cache))
    world.loop.advance(20 * NS_PER_S)
    assert (cache.total, cache.objects) == (253, 1)


def test_there_is_no_timer_without_a_cache_and_none_keeps_the_loop(world: World) -> None:
    interface = opened(world)
    timers = len(world.guest.timers)
    cache = interface.create("c", 16)
    assert len(world.guest.timers) == timers + 1
    world.loop.run()
    assert world.loop.now == 0
    interface.destroy(cache)
    assert not world.guest.timers[-1].armed


class Model(RuleBasedStateMachine):
    """A cache is a multiset of objects with a cap, in whole slabs."""

    def __init__(self) -> None:
        super().__init__()
        self.world = make()
        self.free = self.world.guest.pages.free_pages
        self.interface = CacheInterface(self.world.guest)
        self.out: list[CacheObject] = []
        self.constructed = 0
        self.locks = 0
        self.ctor_fails = False

    def teardown(self) -> None:
        self.world.hypervisor.close()

    @initialize(
        size=st.sampled_from([16, 700, 2024, 4048]),
        reservation=st.integers(0, 12),
        cap=st.one_of(st.just(0), st.integers(12, 40)),
    )
    def create(self, size: int, reservation: int, cap: int) -> None:
        self.per_slab = (4096 - 48) // (-(-size // 8) * 8)
        self.reservation, self.cap = reservation, cap
        fits = not cap or -(-reservation // self.per_slab) * self.per_slab <= cap
        try:
            self.cache = self.interface.create(
                "m", size, reservation, cap, self.ctor, self.dtor, self.lock, self.unlock, "m"
            )
        except NtStatusError as error:
            assert not fits
            assert error.status is NTSTATUS.INSUFFICIENT_RESOURCES
            self.reservation = 0
            self.cache = self.interface.create(
                "m", size, 0, cap, self.ctor, self.dtor, self.lock, self.unlock, "m"
            )
        else:
            assert fits

    def ctor(self, argument: str, obj: CacheObject) -> NTSTATUS:
        assert argument == "m"
        assert obj.value is None
        if self.ctor_fails:
            return NTSTATUS.NO_MEMORY
        self.constructed += 1
        obj.value = True
        return NTSTATUS.SUCCESS

    def dtor(self, _argument: str, obj: CacheObject) -> None:
        assert obj.value is True
        assert obj not in self.out
        self.constructed -= 1
        obj.value = None

    def lock(self, _argument: str) -> None:
        assert self.locks == 0
        self.locks += 1

    def unlock(self, _argument: str) -> None:
        self.locks -= 1

    @rule(count=st.integers(1, 15), cpu=st.integers(0, 2), fails=st.booleans())
    def get(self, count: int, cpu: int, fails: bool) -> None:
        for _ in range(count):
            self.ctor_fails = fails
            waiting = sum(map(len, self.cache.magazines.values()))
            here = len(self.cache.magazines.get(cpu, []))
            obj = self.interface.get(self.cache, cpu=cpu)
            if obj is None:
                # Not from a magazine; the cap is reached or the constructor was asked.
                full = self.cache.cap and self.cache.total + self.per_slab > self.cache.cap
                assert not here
                assert fails or (full and len(self.out) + waiting == self.cache.total)
                continue
            assert obj not in self.out
            assert obj.value is True
            self.out.append(obj)

    @precondition(lambda self: self.out)
    @rule(data=st.data(), count=st.integers(1, 20), cpu=st.integers(0, 2))
    def put(self, data: st.DataObject, count: int, cpu: int) -> None:
        for _ in range(min(count, len(self.out))):
            at = data.draw(st.integers(0, len(self.out) - 1)) if count < 4 else 0
            self.interface.put(self.cache, self.out.pop(at), cpu=cpu)

    @rule()
    def monitor(self) -> None:
        before = self.cache.total
        self.world.loop.advance(5 * NS_PER_S)
        keep = max(self.cache.reservation, before // 2)
        assert self.cache.total >= min(before, keep)
        if self.cache.total - self.per_slab >= keep:
            assert all(slab.allocated for slab in self.cache.slabs)

    @rule()
    def destroy(self) -> None:
        if self.out:
            with pytest.raises(LocalProtocolError):
                self.interface.destroy(self.cache)
            return
        self.interface.destroy(self.cache)
        assert self.constructed == 0
        assert self.world.guest.pages.free_pages == self.free
        self.create(16, 0, 0)

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "cache"):
            return
        cache = self.cache
        waiting = sum(map(len, cache.magazines.values()))
        assert cache.total == self.per_slab * len(cache.slabs)
        assert cache.total >= cache.reservation
        assert not cache.cap or cache.total <= cache.cap
        assert cache.objects == len(self.out) + waiting
        assert cache.objects <= self.constructed <= cache.total
        assert all(len(one) <= 6 for one in cache.magazines.values())
        order = [slab.allocated for slab in cache.slabs]
        assert order == sorted(order, reverse=True)
        assert self.world.guest.pages.free_pages == self.free - len(cache.slabs)
        assert self.locks == 0


Model.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestModel = Model.TestCase
