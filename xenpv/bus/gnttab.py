"""XenBus' GNTTAB interface: references, and pages of other domains (win-xenbus gnttab.c).

Version 1 tables only, as the driver. References 0-31 are left alone: Xen reserves 8, the
driver the rest for its crash path.

The operations of the interface's versions go over caches of entries. Our own drivers keep
references of their own and use the methods that take and give numbers.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from errno import EBUSY, ENOSPC
from typing import Any, ClassVar, Final

from xenpv.abi._kernel import ffi, lib
from xenpv.bus.cache import Cache, CacheInterface, CacheObject, Lock
from xenpv.bus.hole import Holes
from xenpv.bus.interface import Interface
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError, status_of
from xenpv.bus.suspend import SuspendCallback, SuspendInterface, SuspendPhase
from xenpv.errors import GrantError, HypercallError, LocalProtocolError
from xenpv.xen.domain import PAGE_SIZE, Domain
from xenpv.xen.gnttab import ENTRIES_PER_FRAME, GTF_permit_access, GTF_readonly

RESERVED_REFS: Final = 32
ENTRY_SIZE: Final = 16  # bytes of what a cache keeps of a reference: 253 in a slab
REVOKE_ATTEMPTS: Final = 100
PFN_MAX: Final = (1 << 32) - 1


class GrantEntry:
    """A reference of a cache: what `permit_foreign_access` of the interface gives."""

    __slots__ = ("obj", "permitted", "ref")

    def __init__(self, ref: int, obj: CacheObject) -> None:
        self.ref = ref
        self.obj = obj
        self.permitted = False


class GrantCache:
    """What `create_cache` gives: a CACHE whose objects have a reference each."""

    __slots__ = ("alive", "cache", "gnttab")

    def __init__(self, gnttab: GnttabInterface) -> None:
        self.gnttab = gnttab
        self.cache: Cache
        self.alive = True

    def construct(self, _argument: Any, obj: CacheObject) -> NTSTATUS:
        """A reference at its first use; INSUFFICIENT_RESOURCES with a full table."""
        try:
            ref = self.gnttab.pop_reference()
        except HypercallError as error:
            return status_of(error)
        obj.value = GrantEntry(ref, obj)
        return NTSTATUS.SUCCESS

    def destruct(self, _argument: Any, obj: CacheObject) -> None:
        self.gnttab.push_reference(obj.value.ref)


_ENTRIES: Final = (
    "create_cache",
    "permit_foreign_access",
    "revoke_foreign_access",
    "get_reference",
    "destroy_cache",
    "map_foreign_pages",
    "unmap_foreign_pages",
)
_QUERYING: Final = (*_ENTRIES[:4], "query_reference", *_ENTRIES[4:])


class GnttabInterface(Interface):
    """Grants of one guest; grows its table a frame at a time by XENMEM_add_to_physmap.

    The first frame is there from the start: it has the references of the store and the console.
    """

    NAME = "GNTTAB"
    GUID = "763679C5-E5C2-4A6D-8B88-6BB02EC42D8E"
    OPERATIONS: ClassVar[Mapping[int, Sequence[str]]] = {2: _ENTRIES, 3: _QUERYING, 4: _QUERYING}
    ADAPTED: ClassVar[Mapping[tuple[int, str], str]] = {
        (2, "create_cache"): "create_cache_v2",
        (3, "create_cache"): "create_cache_v2",
        **{
            (version, name): method
            for version in (2, 3, 4)
            for name, method in (
                ("permit_foreign_access", "permit_entry"),
                ("revoke_foreign_access", "revoke_entry"),
                ("query_reference", "query_entry"),
            )
        },
    }

    def __init__(
        self,
        domain: Domain,
        *,
        holes: Holes | None = None,
        cache: CacheInterface | None = None,
        suspend: SuspendInterface | None = None,
    ) -> None:
        self.domain = domain
        self.holes = Holes(domain) if holes is None else holes
        self.suspend = suspend
        self.frame_pfns: list[int] = []
        self.caches: list[GrantCache] = []
        self._cache = CacheInterface(domain) if cache is None else cache
        self._free: list[int] = []
        self._permitted = 0
        self.deferred: list[tuple[int, int]] = []  # ref, pfn that a peer holds, of nobody now
        # Mapped pages of others by their address: first pfn and handles.
        self._mapped: dict[int, tuple[int, list[int]]] = {}
        self._mapped_at: dict[int, int] = {}  # first pfn: SUSPEND's count then
        self._early: SuspendCallback | None = None
        self._expand()

    def _start(self) -> None:
        if not self.frame_pfns:
            self._expand()
        self._cache.acquire()
        if self.suspend is not None:
            self.suspend.acquire()
            self._early = self.suspend.register(
                SuspendPhase.EARLY, self.resume, owner="XENBUS GNTTAB"
            )

    def _stop(self) -> None:
        early, self._early = self._early, None
        if self.suspend is not None and early is not None:
            self.suspend.deregister(early)
            self.suspend.release()
        # A reference that is out keeps the table: it must not be given out a second time.
        if not self._permitted and not self.caches:
            self._contract()
        self._cache.release()

    def leftovers(self) -> list[str]:
        self.defer(())
        left = [f"cache {one.cache.name}" for one in self.caches]
        left += [f"pages of others at {address:#x}" for address in self._mapped]
        if self._permitted:
            left.append(f"{self._permitted} references")
        return left

    def resume(self) -> None:
        """After a suspend, early: the frames go where they were.

        Their entries are those of a new table: what was granted before is void, and its
        owner revokes it and grants anew.
        """
        for index, pfn in enumerate(self.frame_pfns):
            self.domain.add_to_physmap_grant(index, pfn)

    def _contract(self) -> None:
        while self.frame_pfns:
            pfn = self.frame_pfns.pop()
            self.domain.memory.remove_from_physmap(self.domain.DOMID_SELF, pfn)
            self.holes.free(pfn)
        self._free.clear()

    def _expand(self) -> None:
        index = len(self.frame_pfns)
        if index >= self.domain.gnttab.max_frames:
            raise HypercallError(
                ENOSPC,
                f"all {index} grant frames are in use",
                operation="XENMEM_add_to_physmap",
                arguments={"space": "grant_table", "idx": index},
            )
        pfn = self.holes.alloc()
        try:
            self.domain.add_to_physmap_grant(index, pfn)
        except HypercallError:
            self.holes.free(pfn)
            raise
        self.frame_pfns.append(pfn)
        first = max(index * ENTRIES_PER_FRAME, RESERVED_REFS)
        # Lowest first, so that a table in a dump reads from the top.
        self._free[:0] = range((index + 1) * ENTRIES_PER_FRAME - 1, first - 1, -1)

    def permit_foreign_access(self, domid: int, pfn: int, *, readonly: bool = False) -> int:
        """A reference by which `domid` may map or copy page `pfn`.

        Raises HypercallError ENOSPC when every reference is out, ERANGE for a pfn beyond the
        32 bits of a version 1 entry.
        """
        if not self._free:
            self._expand()
        ref = self._free.pop()
        flags = GTF_permit_access | GTF_readonly if readonly else GTF_permit_access
        done = lib.grant_entry_set(self.domain.kernel, ref, domid, pfn, flags)
        if done < 0:
            self._free.append(ref)
            self.domain.check(done)
        self._permitted += 1
        return ref

    def permit_run(self, domid: int, pfn: int, count: int, *, readonly: bool = False) -> list[int]:
        """As `permit_foreign_access`, for adjacent pages: references to all of them, or none."""
        refs = self.reserve(count)
        if len(refs) < count:
            self.revoke_run(refs)
            self._expand()  # says that every reference is out
        flags = GTF_permit_access | GTF_readonly if readonly else GTF_permit_access
        words = ffi.from_buffer("uint32_t[]", array("I", refs))
        done = lib.grant_entries_set_run(self.domain.kernel, words, count, domid, pfn, flags)
        if done < 0:
            self.revoke_run(refs)
            self.domain.check(done)
        return refs

    def revoke_run(self, refs: list[int]) -> list[int]:
        """As `revoke_foreign_access`, for many; those that the peer still maps."""
        held: list[int] = []
        words = ffi.from_buffer("uint32_t[]", array("I", refs))
        at, count = 0, len(refs)
        while at < count:
            done = lib.grant_entries_revoke(self.domain.kernel, words + at, count - at)
            self.domain.check(done)
            self._free += refs[at : at + done]
            self._permitted -= done
            at += done
            if at < count:
                held.append(refs[at])
                at += 1
        return held

    def reserve(self, count: int) -> list[int]:
        """Up to `count` references that give no access yet: their owner writes the entries.

        They go back by `revoke_foreign_access`. HypercallError(ENOSPC) when there is not one.
        """
        refs: list[int] = []
        if self.deferred:
            self.defer(())
        while len(refs) < count:
            if not self._free:
                try:
                    self._expand()
                except HypercallError:
                    if not refs:
                        raise
                    break
            free, want = self._free, count - len(refs)
            refs += free[: -want - 1 : -1]
            del free[-want:]
        self._permitted += len(refs)
        return refs

    def revoke_foreign_access(self, ref: int) -> bool:
        """Take a reference back; False while the peer still maps it.

        Then the reference stays the caller's, and so must the page (XSA-396). The driver tries
        100 times and takes the 101st failure for success: here a reference that is mapped is
        never given out again.
        """
        done = lib.grant_entry_revoke(self.domain.kernel, ref)
        if done < 0:
            if done == -EBUSY:
                return False
            self.domain.check(done)
        self._free.append(ref)
        self._permitted -= 1
        return True

    def end_foreign_access(self, ref: int) -> bool:
        """End access but keep the reference, which somebody may still name; False while mapped.

        It goes back by `revoke_foreign_access`.
        """
        done = lib.grant_entry_revoke(self.domain.kernel, ref)
        if done < 0 and done != -EBUSY:
            self.domain.check(done)
        return bool(done >= 0)

    def retry(self, held: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Take back what a peer held on to, references and pages; what it holds still."""
        left = []
        for ref, pfn in held:
            if self.revoke_foreign_access(ref):
                self.domain.pages.free(pfn)
            else:
                left.append((ref, pfn))
        return left

    def defer(self, held: Sequence[tuple[int, int]]) -> None:
        """(ref, pfn) that a peer holds, of an owner that goes: tried again now and then, as
        Linux does by a timer (gnttab_handle_deferred).
        """
        self.deferred = self.retry([*self.deferred, *held])

    @property
    def permitted(self) -> int:
        """References out now: what a leak check counts."""
        return self._permitted

    def query_reference(self, ref: int) -> tuple[int, bool]:
        """pfn and read-only flag of an entry; how the store and console pages are found."""
        if not self.frame_pfns:
            self._expand()
        frame, offset = divmod(ref, ENTRIES_PER_FRAME)
        if frame >= len(self.frame_pfns):
            raise LocalProtocolError(f"reference {ref} is beyond the mapped grant frames")
        pfn = self.frame_pfns[frame]
        flags = self.domain.load32(pfn, offset * 8) & 0xFFFF
        return self.domain.load32(pfn, offset * 8 + 4), bool(flags & GTF_readonly)

    def map_foreign_page(self, domid: int, ref: int, *, readonly: bool = False) -> tuple[int, int]:
        """Map one page of another domain: its pfn here, and the handle. Raises GrantError."""
        pfn, handles = self._map(domid, [ref], readonly=readonly)
        return pfn, handles[0]

    def unmap_foreign_page(self, pfn: int, handle: int) -> None:
        """Raises GrantError. In a new domain there is no mapping: its place is free again."""
        self._unmap(pfn, [handle])

    def _unmap(self, pfn: int, handles: Sequence[int]) -> None:
        is_void = self._mapped_at.pop(pfn) != self._suspends
        for page, handle in enumerate(handles, pfn):
            try:
                self.domain.gnttab.unmap(handle, page)
            except GrantError:
                if not is_void:
                    raise
        self.holes.free(pfn, len(handles))

    @property
    def _suspends(self) -> int:
        return 0 if self.suspend is None else self.suspend.count

    def _map(
        self, domid: int, references: Sequence[int], *, readonly: bool
    ) -> tuple[int, list[int]]:
        """First pfn and handles of pages that are mapped, all or none."""
        gnttab = self.domain.gnttab
        count = len(references)
        pfn = self.holes.alloc(count)
        handles: list[int] = []
        try:
            for page, ref in enumerate(references, pfn):
                handles.append(gnttab.map(domid, ref, page, readonly=readonly))
        except BaseException:
            for page, handle in enumerate(handles, pfn):
                gnttab.unmap(handle, page)
            self.holes.free(pfn, count)
            raise
        self._mapped_at[pfn] = self._suspends
        return pfn, handles

    # the interface's operations, where they differ from the above

    def pop_reference(self) -> int:
        """For an entry of a cache. HypercallError(ENOSPC) at the table's end."""
        if not self._free:
            self._expand()
        return self._free.pop()

    def push_reference(self, ref: int) -> None:
        self._free.append(ref)

    def create_cache(
        self,
        name: str,
        reservation: int = 0,
        cap: int = 0,
        lock: Lock | None = None,
        unlock: Lock | None = None,
        argument: Any = None,
    ) -> GrantCache:
        """A cache of entries, `name` with _gnttab behind it; statuses as CACHE create.

        References are taken at an entry's first use, so a reservation reserves none. A cap
        below a slab's 253 entries never yields one.
        """
        made = GrantCache(self)
        made.cache = self._cache.create(
            f"{name}_gnttab",
            ENTRY_SIZE,
            reservation,
            cap,
            made.construct,
            made.destruct,
            lock,
            unlock,
            argument,
        )
        self.caches.append(made)
        return made

    def create_cache_v2(
        self,
        name: str,
        reservation: int = 0,
        lock: Lock | None = None,
        unlock: Lock | None = None,
        argument: Any = None,
    ) -> GrantCache:
        """Versions 2 and 3 have no cap."""
        return self.create_cache(name, reservation, 0, lock, unlock, argument)

    def permit_entry(
        self, cache: GrantCache, locked: bool, domid: int, pfn: int, readonly: bool
    ) -> GrantEntry:
        """An entry by which `domid` may reach page `pfn`; INSUFFICIENT_RESOURCES without one.

        `locked`: the caller holds the cache's lock. LocalProtocolError for a pfn that an
        entry has no room for.
        """
        self._check(cache)
        if not 0 <= pfn <= PFN_MAX:
            raise LocalProtocolError(f"GNTTAB {cache.cache.name}: pfn {pfn:#x} has over 32 bits")
        obj = self._cache.get(cache.cache, locked)
        if obj is None:
            reason = f"{cache.cache.name}: no entry"
            raise NtStatusError(NTSTATUS.INSUFFICIENT_RESOURCES, reason, operation="GNTTAB")
        entry: GrantEntry = obj.value
        flags = GTF_permit_access | GTF_readonly if readonly else GTF_permit_access
        self.domain.check(lib.grant_entry_set(self.domain.kernel, entry.ref, domid, pfn, flags))
        entry.permitted = True
        return entry

    def revoke_entry(self, cache: GrantCache, locked: bool, entry: GrantEntry) -> None:
        """Take an entry back; UNSUCCESSFUL while the peer maps it, and it stays the caller's.

        The driver tries 100 times, takes the 101st failure for success and success in the
        100th try for failure: here an entry that is mapped is never given out again.
        """
        self._check(cache)
        self._check_entry(cache, entry)
        for _ in range(REVOKE_ATTEMPTS):
            done = lib.grant_entry_revoke(self.domain.kernel, entry.ref)
            if done >= 0:
                self.domain.check(lib.grant_entry_set(self.domain.kernel, entry.ref, 0, 0, 0))
                entry.permitted = False
                self._cache.put(cache.cache, entry.obj, locked)
                return
            if done != -EBUSY:
                self.domain.check(done)
        reason = f"{cache.cache.name}: reference {entry.ref} is mapped"
        raise NtStatusError(NTSTATUS.UNSUCCESSFUL, reason, operation="GNTTAB")

    def get_reference(self, entry: GrantEntry) -> int:
        if not entry.permitted:
            raise LocalProtocolError(f"GNTTAB: reference {entry.ref} is revoked")
        return entry.ref

    def query_entry(self, ref: int) -> tuple[int, bool]:
        """As `query_reference`; INVALID_PARAMETER beyond the frames that are mapped."""
        if not 0 <= ref < len(self.frame_pfns) * ENTRIES_PER_FRAME:
            reason = f"reference {ref} is beyond the mapped grant frames"
            raise NtStatusError(NTSTATUS.INVALID_PARAMETER, reason, operation="GNTTAB")
        return self.query_reference(ref)

    def destroy_cache(self, cache: GrantCache) -> None:
        """Every entry must be back: LocalProtocolError, and the cache stays."""
        self._check(cache)
        self._cache.destroy(cache.cache)
        cache.alive = False
        self.caches.remove(cache)

    def map_foreign_pages(
        self, domid: int, number_pages: int, references: Sequence[int], readonly: bool
    ) -> int:
        """Physical address here of adjacent pages of another domain, all of them or none.

        NO_MEMORY without a hole for them, INVALID_PARAMETER for none, or what the mapping
        answers: INVALID_HANDLE, ACCESS_DENIED, RETRY, UNSUCCESSFUL.
        """
        if number_pages != len(references):
            reason = f"GNTTAB: {len(references)} references for {number_pages} pages"
            raise LocalProtocolError(reason)
        if not number_pages:
            raise NtStatusError(NTSTATUS.INVALID_PARAMETER, "no pages", operation="GNTTAB")
        pfn, handles = self._map(domid, references, readonly=readonly)
        address = pfn * PAGE_SIZE
        self._mapped[address] = pfn, handles
        return address

    def unmap_foreign_pages(self, address: int) -> None:
        """OBJECT_NAME_NOT_FOUND for an address that `map_foreign_pages` did not give.

        A mapping that Xen does not know of is a bugcheck; in the driver also after a suspend.
        """
        found = self._mapped.pop(address, None)
        if found is None:
            reason = f"nothing is mapped at {address:#x}"
            raise NtStatusError(NTSTATUS.OBJECT_NAME_NOT_FOUND, reason, operation="GNTTAB")
        pfn, handles = found
        try:
            self._unmap(pfn, handles)
        except GrantError as error:
            self.holes.bugcheck(f"GNTTAB: {error}")

    @staticmethod
    def _check(cache: GrantCache) -> None:
        if not cache.alive:
            raise LocalProtocolError(f"GNTTAB {cache.cache.name}: it is destroyed")

    @staticmethod
    def _check_entry(cache: GrantCache, entry: GrantEntry) -> None:
        if not entry.permitted:
            raise LocalProtocolError(f"GNTTAB: reference {entry.ref} is revoked twice")
        if entry.obj.slab.cache is not cache.cache:
            raise LocalProtocolError(
                f"GNTTAB {cache.cache.name}: reference {entry.ref} is of another cache"
            )
