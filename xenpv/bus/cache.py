"""XenBus' CACHE interface: objects of one size out of slabs of a page (win-xenbus cache.c).

A slab is one page with a header. Objects are constructed when they are first got and stay so
until their slab goes. Six that were put back wait in each processor's magazine, for which no
lock is taken; they still occupy their slab. A monitor looks every 5 s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Final, NoReturn

from xenpv.bus.interface import Interface
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.errors import HypercallError, LocalProtocolError
from xenpv.xen.domain import PAGE_SIZE, Domain
from xenpv.xen.loop import NS_PER_S, Task, Timer

SLAB_HEADER_SIZE: Final = 48  # bytes
OBJECT_ALIGNMENT: Final = 8
MAGAZINE_SLOTS: Final = 6
MONITOR_PERIOD_NS: Final = 5 * NS_PER_S

Ctor = Callable[[Any, "CacheObject"], NTSTATUS | None]
Dtor = Callable[[Any, "CacheObject"], object]
Lock = Callable[[Any], object]


class CacheObject:
    """One object. `value` is its memory: what its users leave there stays until its slab goes."""

    __slots__ = ("index", "slab", "value")

    def __init__(self, slab: Slab, index: int) -> None:
        self.slab = slab
        self.index = index
        self.value: Any = None


class Slab:
    """One page of objects. `objects[i]` is None until it is constructed."""

    __slots__ = ("allocated", "cache", "free", "number", "objects", "pfn", "taken")

    def __init__(self, cache: Cache, number: int, pfn: int) -> None:
        self.cache = cache
        self.number = number
        self.pfn = pfn
        self.objects: list[CacheObject | None] = [None] * cache.per_slab
        self.taken = [False] * cache.per_slab
        self.allocated = 0  # objects that are out or in a magazine
        self.free = cache.per_slab

    def choose(self) -> int:
        """Index of the object to give. Constructed ones come first: raw ones lie behind them."""
        return self.taken.index(False)


class Cache:
    """A cache, as `create` makes it; for dumps its counts, with the most there were.

    `total` is the capacity of its slabs in objects, `objects` those that are out or in a
    magazine.
    """

    def __init__(self, name: str, size: int, reservation: int, cap: int) -> None:
        self.name = name
        self.size = -(-size // OBJECT_ALIGNMENT) * OBJECT_ALIGNMENT
        self.per_slab = (PAGE_SIZE - SLAB_HEADER_SIZE) // self.size
        self.reservation = reservation
        self.cap = cap  # 0: unlimited
        self.ctor: Ctor | None = None
        self.dtor: Dtor | None = None
        self.lock: Lock | None = None
        self.unlock: Lock | None = None
        self.argument: Any = None
        self.slabs: list[Slab] = []  # fullest first
        self.magazines: dict[int, list[CacheObject]] = {}
        self.total = 0
        self.objects = 0
        self.objects_max = 0
        self.slabs_max = 0
        self.slabs_made = 0
        self.alive = True

    def __repr__(self) -> str:
        return f"<Cache {self.name}>"


class CacheInterface(Interface):
    """CACHE of one guest. Slabs are pages of the guest."""

    NAME = "CACHE"
    GUID = "A98DFD78-416A-4949-92A5-E084F2F4B44E"
    OPERATIONS: ClassVar[Mapping[int, Sequence[str]]] = {
        1: ("create", "get", "put", "destroy"),
        2: ("create", "get", "put", "destroy"),
    }
    ADAPTED: ClassVar[Mapping[tuple[int, str], str]] = {(1, "create"): "create_v1"}

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.caches: list[Cache] = []
        self._monitor_task: Task | None = None
        self._timer: Timer | None = None

    # operations

    def create(
        self,
        name: str,
        size: int,
        reservation: int = 0,
        cap: int = 0,
        ctor: Ctor | None = None,
        dtor: Dtor | None = None,
        lock: Lock | None = None,
        unlock: Lock | None = None,
        argument: Any = None,
    ) -> Cache:
        """A cache of objects of `size` bytes, with slabs for `reservation` of them at once.

        `cap` bounds the objects that its slabs have room for, in whole slabs; 0 does not.
        `ctor(argument, object)` answers a status or None. NtStatusError INVALID_PARAMETER for
        a size that a slab has no room for or a reservation above the cap,
        INSUFFICIENT_RESOURCES where the slabs for it exceed the cap, NO_MEMORY.
        """
        if not 0 < size <= PAGE_SIZE - SLAB_HEADER_SIZE:
            _refuse(NTSTATUS.INVALID_PARAMETER, f"{name}: objects of {size} bytes")
        if reservation < 0 or cap < 0 or (cap and reservation > cap):
            reason = f"{name}: a reservation of {reservation}, a cap of {cap}"
            _refuse(NTSTATUS.INVALID_PARAMETER, reason)
        cache = Cache(name, size, reservation, cap)
        cache.ctor, cache.dtor = ctor, dtor
        cache.lock, cache.unlock, cache.argument = lock, unlock, argument
        try:
            self._fill(cache)
        except NtStatusError:
            self._spill(cache, 0)
            raise
        self.caches.append(cache)
        self._watch_over()
        return cache

    def create_v1(
        self,
        name: str,
        size: int,
        reservation: int = 0,
        ctor: Ctor | None = None,
        dtor: Dtor | None = None,
        lock: Lock | None = None,
        unlock: Lock | None = None,
        argument: Any = None,
    ) -> Cache:
        """Version 1 has no cap."""
        return self.create(name, size, reservation, 0, ctor, dtor, lock, unlock, argument)

    def get(self, cache: Cache, locked: bool = False, *, cpu: int = 0) -> CacheObject | None:
        """An object; None where neither memory nor the cap allow one, or its ctor fails.

        `locked`: the caller holds the cache's lock. `cpu` is the one that runs the caller.
        """
        self._check(cache)
        magazine = cache.magazines.get(cpu)
        if magazine:
            return magazine.pop()
        if not locked and cache.lock is not None:
            cache.lock(cache.argument)
        try:
            return self._get_object(cache)
        except NtStatusError:
            return None
        finally:
            if not locked and cache.unlock is not None:
                cache.unlock(cache.argument)

    def put(self, cache: Cache, obj: CacheObject, locked: bool = False, *, cpu: int = 0) -> None:
        """Back it goes. LocalProtocolError if it is not out, or of another cache."""
        self._check(cache)
        slab, index = obj.slab, obj.index
        if slab.cache is not cache or slab.objects[index] is not obj:
            raise LocalProtocolError(f"CACHE {cache.name}: an object of another cache is put back")
        magazine = cache.magazines.setdefault(cpu, [])
        if not slab.taken[index] or any(obj in one for one in cache.magazines.values()):
            raise LocalProtocolError(f"CACHE {cache.name}: an object is put back twice")
        if len(magazine) < MAGAZINE_SLOTS:
            magazine.append(obj)
            return
        if not locked and cache.lock is not None:
            cache.lock(cache.argument)
        self._put_object(obj)
        if not locked and cache.unlock is not None:
            cache.unlock(cache.argument)

    def destroy(self, cache: Cache) -> None:
        """LocalProtocolError while objects are out; the cache stays then."""
        self._check(cache)
        for cpu in sorted(cache.magazines):
            for obj in cache.magazines.pop(cpu):
                self._put_object(obj)
        if cache.objects:
            raise LocalProtocolError(f"CACHE {cache.name}: destroyed with {cache.objects} out")
        self._spill(cache, 0)
        cache.alive = False
        self.caches.remove(cache)
        if not self.caches and self._timer is not None:
            self._timer.cancel()

    def leftovers(self) -> list[str]:
        return [f"cache {cache.name}" for cache in self.caches]

    def _check(self, cache: Cache) -> None:
        if not cache.alive:
            raise LocalProtocolError(f"CACHE {cache.name}: it is destroyed")

    # slabs

    def _get_object(self, cache: Cache) -> CacheObject | None:
        """From the fullest slab that is not full; None if the constructor fails."""
        slab = next((one for one in cache.slabs if one.free), None) or self._add_slab(cache)
        index = slab.choose()
        obj = slab.objects[index]
        if obj is None:
            obj = CacheObject(slab, index)
            status = cache.ctor(cache.argument, obj) if cache.ctor is not None else None
            if status is not None and not NTSTATUS(status).is_success:
                return None
            slab.objects[index] = obj
        slab.taken[index] = True
        slab.free -= 1
        slab.allocated += 1
        self._settle(slab)
        cache.objects += 1
        cache.objects_max = max(cache.objects_max, cache.objects)
        return obj

    def _put_object(self, obj: CacheObject) -> None:
        slab = obj.slab
        slab.taken[obj.index] = False
        slab.free += 1
        slab.allocated -= 1
        slab.cache.objects -= 1
        self._settle(slab)

    @staticmethod
    def _settle(slab: Slab) -> None:
        """Put a slab where it belongs by how full it is; behind those as full as it."""
        slabs = slab.cache.slabs
        slabs.remove(slab)
        at = next((n for n, one in enumerate(slabs) if one.allocated < slab.allocated), len(slabs))
        slabs.insert(at, slab)

    def _add_slab(self, cache: Cache) -> Slab:
        """INSUFFICIENT_RESOURCES at the cap, NO_MEMORY."""
        total = cache.total + cache.per_slab
        if cache.cap and total > cache.cap:
            reason = f"{cache.name}: a slab of {cache.per_slab} to {cache.total}, cap {cache.cap}"
            _refuse(NTSTATUS.INSUFFICIENT_RESOURCES, reason)
        try:
            pfn = self.domain.pages.alloc()
        except HypercallError as error:
            raise NtStatusError(
                NTSTATUS.NO_MEMORY, f"{cache.name}: no page for a slab", operation="CACHE"
            ) from error
        slab = Slab(cache, cache.slabs_made, pfn)
        cache.slabs_made += 1
        cache.total = total
        cache.slabs.append(slab)
        cache.slabs_max = max(cache.slabs_max, len(cache.slabs))
        return slab

    def _fill(self, cache: Cache) -> None:
        while cache.total < cache.reservation:
            self._add_slab(cache)

    def _spill(self, cache: Cache, keep: int) -> None:
        """Free empty slabs from the tail while there is room for `keep` objects in the rest."""
        while cache.slabs and not cache.slabs[-1].allocated:
            if cache.total - cache.per_slab < keep:
                return
            slab = cache.slabs.pop()
            cache.total -= cache.per_slab
            if cache.dtor is not None:
                for obj in slab.objects:
                    if obj is not None:
                        cache.dtor(cache.argument, obj)
            self.domain.pages.free(slab.pfn)

    # the monitor

    def _watch_over(self) -> None:
        """Its timer runs only while there is a cache."""
        if self._timer is None or self._monitor_task is None:
            self._monitor_task = self.domain.task("cache monitor", self._monitor)
            self._timer = self.domain.timer(self._monitor_task, MONITOR_PERIOD_NS)
        if not self._timer.armed:
            self._timer.arm(MONITOR_PERIOD_NS)

    def _monitor(self) -> None:
        for cache in self.caches:
            if cache.lock is not None:
                cache.lock(cache.argument)
            if cache.total < cache.reservation:
                with suppress(NtStatusError):  # it is tried again in 5 s
                    self._fill(cache)
            else:
                self._spill(cache, max(cache.reservation, cache.total // 2))
            if cache.unlock is not None:
                cache.unlock(cache.argument)


def _refuse(status: NTSTATUS, reason: str) -> NoReturn:
    raise NtStatusError(status, reason, operation="CACHE")
