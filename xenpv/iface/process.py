"""A process of the guest: its handles, its memory, its threads' pending requests.

As much of Windows as XENIFACE's callers need. Memory is pages of the domain at addresses of
the process; a handle is a multiple of 4, as in Windows, and neither is ever used twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import attrs

from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.errors import HypercallError, LocalProtocolError
from xenpv.iface.security import Principal
from xenpv.xen.domain import PAGE_SIZE, Domain

FIRST_HANDLE: Final = 0x40
FIRST_ADDRESS: Final = 0x1_0000_0000
GUARD_PAGES: Final = 1  # between two regions: running over an end is a fault
HANDLES_MAX: Final = 1 << 24  # of one process


class Event:
    """An event object. An auto-reset one is taken by the first `wait` that finds it set."""

    __slots__ = ("auto_reset", "is_set", "sets")

    def __init__(self, *, auto_reset: bool = False) -> None:
        self.auto_reset = auto_reset
        self.is_set = False
        self.sets = 0  # how often it was set

    def set(self) -> None:
        self.is_set = True
        self.sets += 1

    def reset(self) -> None:
        self.is_set = False

    def wait(self) -> bool:
        """WaitForSingleObject with a timeout of 0: whether it was set."""
        found = self.is_set
        if self.auto_reset:
            self.is_set = False
        return found


@attrs.define(eq=False)
class Region:
    """Pages at adjacent addresses from `base` on. `allocated`: by the process, not a driver."""

    base: int
    pfns: tuple[int, ...]
    writable: bool = True
    allocated: bool = False

    @property
    def size(self) -> int:
        return len(self.pfns) * PAGE_SIZE


class LockedPages:
    """Pages of a domain for its processes. One that is locked goes back when it is unlocked.

    A granted page is locked until its reference is revoked, so that a peer that still maps it
    never sees it used for something else (XSA-396).
    """

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self._locks: dict[int, int] = {}
        self._given_back: dict[int, None] = {}

    def take(self, count: int) -> list[int]:
        """So many zeroed pages. Raises NtStatusError NO_MEMORY."""
        pool = self.domain.pages
        pfns: list[int] = []
        try:
            while len(pfns) < count:
                pfns += pool.alloc_pages(count - len(pfns))
        except HypercallError as error:
            self.give_back(pfns)
            raise NtStatusError(NTSTATUS.NO_MEMORY, f"no {count} pages") from error
        zero = bytes(PAGE_SIZE)
        for pfn in pfns:
            self.domain.write(pfn, 0, zero)
        return pfns

    def give_back(self, pfns: Sequence[int]) -> None:
        for pfn in pfns:
            if pfn in self._locks:
                self._given_back[pfn] = None
            else:
                self.domain.pages.free(pfn)

    def lock(self, pfn: int) -> None:
        self._locks[pfn] = self._locks.get(pfn, 0) + 1

    def unlock(self, pfn: int) -> None:
        self._locks[pfn] -= 1
        if not self._locks[pfn]:
            del self._locks[pfn]
            if self._given_back.pop(pfn, pfn) is None:
                self.domain.pages.free(pfn)

    @property
    def locked(self) -> int:
        """How many pages are: for leak checks."""
        return len(self._locks)


class Pending(Protocol):
    """A request that its thread waits for."""

    thread: int

    def cancel(self) -> None: ...


class Process:
    """One process, of one principal. It ends by `exit`, as if it was killed."""

    def __init__(
        self, pages: LockedPages, name: str, principal: Principal = Principal.ADMINISTRATORS
    ) -> None:
        self.pages = pages
        self.domain = pages.domain
        self.name = name
        self.principal = principal
        self.alive = True
        self.pending: list[Pending] = []
        self._handles: dict[int, object] = {}
        self._next_handle = FIRST_HANDLE
        self._regions: dict[int, Region] = {}
        self._next_address = FIRST_ADDRESS

    # handles

    def insert(self, thing: object) -> int:
        """A new handle of `thing`. INSUFFICIENT_RESOURCES beyond HANDLES_MAX open ones."""
        self._check_alive()
        if len(self._handles) >= HANDLES_MAX:
            raise NtStatusError(NTSTATUS.INSUFFICIENT_RESOURCES, f"{HANDLES_MAX} open handles")
        handle = self._next_handle
        self._next_handle += 4
        self._handles[handle] = thing
        opened = getattr(thing, "handle_opened", None)
        if opened is not None:
            opened()
        return handle

    def create_event(self, *, auto_reset: bool = False) -> int:
        """CreateEvent, not set: its handle."""
        return self.insert(Event(auto_reset=auto_reset))

    def event(self, handle: int) -> Event:
        """The event object of a handle. INVALID_HANDLE, OBJECT_TYPE_MISMATCH."""
        thing = self.object(handle)
        if not isinstance(thing, Event):
            reason = f"handle {handle:#x} is no event"
            raise NtStatusError(NTSTATUS.OBJECT_TYPE_MISMATCH, reason)
        return thing

    def object(self, handle: int) -> object:
        """What a handle refers to. Raises NtStatusError INVALID_HANDLE."""
        try:
            return self._handles[handle]
        except KeyError:
            reason = f"{handle:#x} is no handle of {self.name}"
            raise NtStatusError(NTSTATUS.INVALID_HANDLE, reason) from None

    def duplicate_handle(self, handle: int, to: Process | None = None) -> int:
        """DuplicateHandle: another handle of the same object, in process `to` or this one."""
        return (self if to is None else to).insert(self.object(handle))

    def close_handle(self, handle: int) -> None:
        """CloseHandle. Raises NtStatusError INVALID_HANDLE."""
        thing = self.object(handle)
        del self._handles[handle]
        closed = getattr(thing, "handle_closed", None)
        if closed is not None:
            closed()

    @property
    def handles(self) -> list[int]:
        """Open handles, oldest first."""
        return list(self._handles)

    # memory

    def alloc(self, size: int, *, writable: bool = True) -> int:
        """VirtualAlloc: the address of so many zero bytes, in whole pages. NO_MEMORY."""
        if size <= 0:
            raise LocalProtocolError(f"{size} bytes to allocate")
        self._check_alive()
        pfns = self.pages.take(-(-size // PAGE_SIZE))
        return self.map(pfns, writable=writable, allocated=True)

    def map(self, pfns: Sequence[int], *, writable: bool = True, allocated: bool = False) -> int:
        """Put pages into the address space: their address. They stay the caller's."""
        self._check_alive()
        base = self._next_address
        self._next_address += (len(pfns) + GUARD_PAGES) * PAGE_SIZE
        self._regions[base] = Region(base, tuple(pfns), writable, allocated)
        return base

    def unmap(self, address: int) -> Region:
        """Take a region out of the address space again; its pages are the caller's."""
        return self._regions.pop(address)

    def free(self, address: int) -> None:
        """VirtualFree of what `alloc` gave; LocalProtocolError for any other address."""
        region = self._regions.get(address)
        if region is None or not region.allocated:
            raise LocalProtocolError(f"{address:#x} is nothing that {self.name} may free")
        self.pages.give_back(self.unmap(address).pfns)

    def region(self, address: int, size: int) -> Region:
        """The region that has all of these bytes. Raises NtStatusError ACCESS_VIOLATION."""
        for base, region in self._regions.items():
            if base <= address and address + size <= base + region.size:
                return region
        reason = f"{size} bytes at {address:#x} of {self.name}"
        raise NtStatusError(NTSTATUS.ACCESS_VIOLATION, reason)

    def read(self, address: int, size: int) -> bytes:
        """Memory of the process. Raises NtStatusError ACCESS_VIOLATION."""
        region = self.region(address, size)
        parts = self._pieces(region, address, size)
        return b"".join(self.domain.read(pfn, offset, count) for pfn, offset, count in parts)

    def write(self, address: int, data: bytes) -> None:
        """Into memory of the process. Raises NtStatusError ACCESS_VIOLATION."""
        region = self.region(address, len(data))
        if not region.writable:
            raise NtStatusError(NTSTATUS.ACCESS_VIOLATION, f"{address:#x} is read-only")
        done = 0
        for pfn, offset, count in self._pieces(region, address, len(data)):
            self.domain.write(pfn, offset, data[done : done + count])
            done += count

    def _pieces(self, region: Region, address: int, size: int) -> list[tuple[int, int, int]]:
        """pfn, offset and size of what the bytes lie in."""
        pieces = []
        at, end = address - region.base, address - region.base + size
        while at < end:
            page, offset = divmod(at, PAGE_SIZE)
            count = min(PAGE_SIZE - offset, end - at)
            pieces.append((region.pfns[page], offset, count))
            at += count
        return pieces

    # life

    def exit_thread(self, thread: int) -> None:
        """One thread ends: what it asked for and waits for is cancelled."""
        for request in [one for one in self.pending if one.thread == thread]:
            request.cancel()

    def exit(self) -> None:
        """All threads end, then all handles are closed, then the memory goes."""
        if not self.alive:
            return
        for request in list(self.pending):
            request.cancel()
        for handle in self.handles:
            self.close_handle(handle)
        for region in list(self._regions.values()):
            assert region.allocated, "a request outlived its thread"
            self.pages.give_back(self.unmap(region.base).pfns)
        self.alive = False

    def _check_alive(self) -> None:
        if not self.alive:
            raise LocalProtocolError(f"process {self.name} has ended")
