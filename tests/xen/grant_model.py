"""Grant tables by spec/xen-core §3, without a shared page: what each operation must answer and
what pins, status bits, references and bytes must be after it. Knows nothing of xenpv.
"""

from __future__ import annotations

import attrs

PERMIT, ACCEPT, TRANSITIVE, TYPE, NO_OTHER = 1, 2, 3, 3, 4
READONLY, READING, WRITING, SUB_PAGE = 4, 8, 0x10, 0x100
EBUSY, ERANGE, EINVAL = 16, 34, 22
GENERAL, BAD_DOMAIN, BAD_REF, BAD_HANDLE, DENIED, BAD_PAGE, BAD_COPY, EAGAIN = (
    -1, -2, -3, -4, -8, -9, -10, -12,
)  # fmt: skip
RESERVED = 8
PAGE = 4096
Page = tuple[int, int]  # whose, which pfn


class Refused(Exception):  # noqa: N818 - it is an answer, not a mistake
    def __init__(self, status: int) -> None:
        self.status = status


@attrs.define
class Entry:
    """`first` and `second` are the two u16 of version 2 behind the header."""

    flags: int = 0
    domid: int = 0
    frame: int = 0
    first: int = 0
    second: int = 0
    status: int = 0


@attrs.define
class Pins:
    by: int
    page: Page
    readers: int = 0
    writers: int = 0


@attrs.define
class Handle:
    granter: int
    ref: int
    readonly: bool


@attrs.define
class Owner:
    domid: int
    ram: dict[int, bytearray]  # content outlives the pfn's owner for as long as it is mapped
    version: int = 1
    frames: int = 1
    alive: bool = True
    entries: dict[int, Entry] = attrs.Factory(dict)
    pins: dict[int, Pins] = attrs.Factory(dict)
    handles: dict[int, Handle] = attrs.Factory(dict)
    mapped: dict[int, tuple[Page, bool]] = attrs.Factory(dict)  # pfn: page, readonly
    handles_taken: int = 0

    def has(self, ref: int) -> bool:
        return ref < self.frames * (512 if self.version == 1 else 256)

    def entry(self, ref: int) -> Entry:
        return self.entries.setdefault(ref, Entry())


class World:
    def __init__(self) -> None:
        self.owners: dict[int, Owner] = {}
        self.gone: list[int] = []  # dead, and nobody holds a page of it any more

    def bytes_of(self, page: Page) -> bytearray:
        return self.owners[page[0]].ram[page[1]]

    def references(self, page: Page) -> int:
        """How many hold the frame: its living owner, each pin, each place it is mapped at."""
        count = int(self.owners[page[0]].alive)
        for owner in self.owners.values():
            count += sum(
                pins.readers + pins.writers for pins in owner.pins.values() if pins.page == page
            )
            count += sum(there == page for there, _ in owner.mapped.values())
        return count

    # pins

    def _status(self, granter: Owner, ref: int, by: int, readonly: bool, *, types: int) -> None:
        """The entry must permit; then its bits are set. A pinned one: only readonly counts."""
        entry = granter.entry(ref)
        if ref not in granter.pins:
            mapping = types == PERMIT
            if mapping and entry.flags & (TYPE | SUB_PAGE) != PERMIT:
                raise Refused(GENERAL)
            if entry.flags & TYPE != PERMIT and (mapping or entry.flags & TYPE != types):
                raise Refused(GENERAL)
            if entry.domid != by:
                raise Refused(GENERAL)
        if not readonly and entry.flags & READONLY:
            raise Refused(GENERAL)
        entry.status |= READING if readonly else READING | WRITING

    def _clear(self, granter: Owner, ref: int, readonly: bool) -> None:
        pins = granter.pins.get(ref)
        if not readonly and not (pins and pins.writers):
            granter.entry(ref).status &= ~WRITING
        if pins is None:
            granter.entry(ref).status &= ~READING

    def _page(self, granter: Owner, frame: int) -> Page:
        if not granter.alive or frame not in granter.ram:
            raise Refused(BAD_PAGE)
        return granter.domid, frame

    def _unpin(self, granter: Owner, ref: int, readonly: bool) -> None:
        pins = granter.pins[ref]
        if readonly:
            pins.readers -= 1
        else:
            pins.writers -= 1
        if not pins.readers and not pins.writers:
            del granter.pins[ref]
        self._clear(granter, ref, readonly)

    # operations

    def map(self, by: Owner, granter: Owner, ref: int, readonly: bool, pfn: int) -> int:
        """The handle. A granter that is dead is the caller's affair."""
        by.handles_taken += 1
        if not granter.has(ref):
            raise Refused(BAD_REF)
        pins = granter.pins.get(ref)
        if pins and (pins.by != by.domid or not granter.alive):
            raise Refused(GENERAL)
        if pins and (pins.readers if readonly else pins.writers) >= 128:
            raise Refused(GENERAL)
        if not pins or not (readonly or pins.writers):
            self._status(granter, ref, by.domid, readonly, types=PERMIT)
        if not pins:
            try:
                page = self._page(granter, granter.entry(ref).frame)
            except Refused:
                self._clear(granter, ref, readonly)
                raise
            pins = granter.pins[ref] = Pins(by.domid, page)
        if readonly:
            pins.readers += 1
        else:
            pins.writers += 1
        by.mapped[pfn] = (pins.page, readonly)
        handle = by.handles_taken - 1
        by.handles[handle] = Handle(granter.domid, ref, readonly)
        return handle

    def unmap(self, by: Owner, handle: int, pfn: int) -> None:
        held = by.handles.get(handle)
        if held is None:
            raise Refused(BAD_HANDLE)
        granter = self.owners[held.granter]
        if pfn not in by.mapped or by.mapped[pfn][0] != granter.pins[held.ref].page:
            raise Refused(GENERAL)
        del by.mapped[pfn], by.handles[handle]
        self._unpin(granter, held.ref, held.readonly)
        self.bury()

    def _window(
        self, granter: Owner, ref: int, by: int, readonly: bool, hops: int
    ) -> tuple[Page, int, int]:
        """What a copy gets of an entry: its page, and from which byte to which."""
        if not granter.has(ref):
            raise Refused(BAD_REF)
        entry, pins = granter.entry(ref), granter.pins.get(ref)
        if pins and (pins.by != by or (pins.readers if readonly else pins.writers) >= 128):
            raise Refused(GENERAL)
        new_right = not pins or not (readonly or pins.writers)
        transitive = granter.version == 2 and entry.flags & TYPE == TRANSITIVE
        if not new_right and not transitive:
            assert pins
            if not granter.alive:
                raise Refused(BAD_DOMAIN)
            return pins.page, 0, PAGE
        if new_right:
            kinds = TRANSITIVE if granter.version == 2 else NO_OTHER
            self._status(granter, ref, by, readonly, types=kinds)
        try:
            if transitive:
                found = self._behind(granter, entry, readonly, hops)
            else:
                found = self._page(granter, entry.frame), 0, PAGE
                if granter.version == 2 and entry.flags & SUB_PAGE:
                    found = found[0], entry.first, entry.first + entry.second
            # A page pinned whole, as every map pins it, must still be what the entry says.
            if pins and (
                transitive
                or found != (pins.page, 0, PAGE)
                or (granter.version == 2 and entry.flags & SUB_PAGE)
            ):
                raise Refused(GENERAL)
        finally:
            self._clear(granter, ref, readonly)
        return found

    def _behind(
        self, granter: Owner, entry: Entry, readonly: bool, hops: int
    ) -> tuple[Page, int, int]:
        next_owner = self.owners.get(entry.first)
        if not hops or next_owner is None or next_owner is granter or entry.first in self.gone:
            raise Refused(GENERAL)
        return self._window(next_owner, entry.frame & 0xFFFFFFFF, granter.domid, readonly, hops - 1)

    def copy(
        self, by: Owner, source: tuple[int, int, int, bool], dest: tuple[int, int, int, bool],
        size: int,
    ) -> None:  # fmt: skip
        if not size:
            return
        owners = [self._side_owner(by, side) for side in (source, dest)]
        windows = [
            self._side(by, owner, side, readonly)
            for owner, side, readonly in zip(owners, (source, dest), (True, False), strict=True)
        ]
        if source[2] + size > PAGE or dest[2] + size > PAGE:
            raise Refused(BAD_COPY)
        for (_, start, end), side in zip(windows, (source, dest), strict=True):
            if side[2] < start or side[2] + size > end:
                raise Refused(GENERAL)
        data = bytes(self.bytes_of(windows[0][0])[source[2] : source[2] + size])
        self.bytes_of(windows[1][0])[dest[2] : dest[2] + size] = data

    def _side_owner(self, by: Owner, side: tuple[int, int, int, bool]) -> Owner:
        _, domid, _, is_ref = side
        if domid == 0x7FF0:
            return by
        if not is_ref:
            raise Refused(DENIED)
        if domid not in self.owners or domid in self.gone:
            raise Refused(BAD_DOMAIN)
        return self.owners[domid]

    def _side(
        self, by: Owner, owner: Owner, side: tuple[int, int, int, bool], readonly: bool
    ) -> tuple[Page, int, int]:
        name, _, _, is_ref = side
        if is_ref:
            return self._window(owner, name, by.domid, readonly, 1)
        if name in by.mapped:
            page, mapped_readonly = by.mapped[name]
            if mapped_readonly and not readonly:
                raise Refused(BAD_PAGE)
            return page, 0, PAGE
        return self._page(by, name), 0, PAGE

    def revoke(self, owner: Owner, ref: int) -> None:
        entry = owner.entry(ref)
        if owner.version == 2 or not entry.status:
            entry.flags = 0
        if entry.status:
            raise Refused(EBUSY)

    def set_readonly(self, owner: Owner, ref: int, readonly: bool) -> None:
        entry = owner.entry(ref)
        if readonly and entry.status & WRITING:
            if owner.version == 2:
                entry.flags &= ~READONLY
            raise Refused(EBUSY)
        entry.flags = entry.flags | READONLY if readonly else entry.flags & ~READONLY

    def swap(self, owner: Owner, a: int, b: int) -> None:
        if not owner.has(a) or not owner.has(b):
            raise Refused(BAD_REF)
        if a == b:
            return
        if a in owner.pins or b in owner.pins:
            raise Refused(EAGAIN)
        owner.entries[a], owner.entries[b] = owner.entry(b), owner.entry(a)

    def set_version(self, owner: Owner, version: int) -> None:
        if version not in (1, 2):
            raise Refused(EINVAL)
        if version == owner.version:
            return
        if any(ref >= RESERVED for ref in owner.pins):
            raise Refused(EBUSY)
        kept = {ref: owner.entry(ref) for ref in range(RESERVED)}
        if version == 1:
            for entry in kept.values():
                wide = entry.flags & TYPE == PERMIT and entry.frame >> 32
                if entry.flags & TYPE == TRANSITIVE or wide:
                    raise Refused(ERANGE)
            kept = {ref: e for ref, e in kept.items() if e.flags & TYPE == PERMIT}
        for entry in kept.values():
            entry.first = entry.second = 0
        owner.entries = kept
        owner.version = version

    def kill(self, owner: Owner) -> None:
        owner.alive = False
        owner.mapped.clear()
        for held in owner.handles.values():
            self._unpin(self.owners[held.granter], held.ref, held.readonly)
        owner.handles.clear()
        self.bury()

    def bury(self) -> None:
        for owner in self.owners.values():
            held = any(self.references((owner.domid, pfn)) for pfn in owner.ram)
            if not owner.alive and not held and owner.domid not in self.gone:
                self.gone.append(owner.domid)
