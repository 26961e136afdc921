"""Grants between the domains of a machine: entries as bytes of a table, operations by number."""

from __future__ import annotations

from typing import Any, Final

from xenpv.abi._kernel import ffi
from xenpv.testing.cases.claims import expect
from xenpv.testing.cases.machinescene import (
    GRANTS_PFN,
    HOLE_PFN,
    SELF,
    SPACE_GRANT_TABLE,
    STATUS_FRAME,
    STATUS_PFN,
    Machine,
    MachineScene,
)
from xenpv.testing.cases.suite import Factory

PERMIT, ACCEPT, TRANSITIVE = 1, 2, 3
READONLY, READING, WRITING, SUB_PAGE = 4, 8, 0x10, 0x100
MAP_DEVICE, MAP_HOST, MAP_READONLY, MAP_APPLICATION, MAP_PTE = 1, 2, 4, 8, 16
(MAP, UNMAP, SETUP, TRANSFER, COPY, QUERY, REPLACE, SET_VERSION, STATUS_FRAMES, GET_VERSION,
 SWAP, CACHE_FLUSH) = 0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12  # fmt: skip
UNTOUCHED: Final = 77  # what a status is before its operation
V1_BYTES, V2_BYTES = 8, 16
FIRST_REF: Final = 8  # those before are Xen's

# One side of a copy: (reference or gmfn, domid, offset, is it a reference)
Side = tuple[int, int, int, bool]


class Granter:
    """A domain and its own grant table, version 1 or 2, mapped where it can write it."""

    def __init__(self, machine: Machine, version: int = 1) -> None:
        self.machine = machine
        self.version = version
        if version == 2:
            expect(self.set_version(2), 0, "set_version 2")
        self.map_table()

    def map_table(self) -> None:
        machine = self.machine
        expect(machine.add_to_physmap(SPACE_GRANT_TABLE, 0, GRANTS_PFN), 0, "frame 0 of the table")
        if self.version == 2:
            done = machine.add_to_physmap(SPACE_GRANT_TABLE, STATUS_FRAME, STATUS_PFN)
            expect(done, 0, "status frame 0")

    @property
    def domid(self) -> int:
        return self.machine.domid

    @property
    def nr_entries(self) -> int:
        """References of one frame."""
        return 4096 // (V1_BYTES if self.version == 1 else V2_BYTES)

    def set_version(self, version: int) -> int | str:
        name = "gnttab_set_version"
        ops = self.machine.grant_op(SET_VERSION, name, self.machine.struct(name, version=version))
        self.told = int(self.machine.memory.load(name, self.machine.arg)[0].version)
        return ops if isinstance(ops, str) else 0

    def _write(self, ref: int, at: int, value: int, size: int) -> None:
        width = V1_BYTES if self.version == 1 else V2_BYTES
        data = value.to_bytes(size, "little")
        self.machine.domain.write(GRANTS_PFN, ref * width + at, data)

    def entry(self, ref: int, to: int, page: int, flags: int = PERMIT) -> None:
        """A full page: `page` is a pfn. Flags come last, as a granter writes them."""
        self._write(ref, 2, to, 2)
        self._write(ref, 4 if self.version == 1 else 8, page, 4 if self.version == 1 else 8)
        self._write(ref, 0, flags, 2)

    def sub_page(self, ref: int, to: int, page: int, offset: int, size: int) -> None:
        """Version 2: a window of a page."""
        self.entry(ref, to, page, 0)
        self._write(ref, 4, offset, 2)
        self._write(ref, 6, size, 2)
        self._write(ref, 0, PERMIT | SUB_PAGE, 2)

    def transitive(self, ref: int, to: int, domid: int, behind: int, flags: int = 0) -> None:
        """Version 2: what `domid` granted to this one under `behind`."""
        self._write(ref, 2, to, 2)
        self._write(ref, 4, domid, 2)
        self._write(ref, 8, behind, 4)
        self._write(ref, 0, TRANSITIVE | flags, 2)

    def flags(self, ref: int, flags: int) -> None:
        self._write(ref, 0, flags, 2)

    def bits(self, ref: int) -> int:
        """READING and WRITING: of the flags in version 1, of the status in version 2."""
        if self.version == 1:
            data = self.machine.domain.read(GRANTS_PFN, ref * V1_BYTES, 2)
        else:
            data = self.machine.domain.read(STATUS_PFN, 2 * ref, 2)
        return int.from_bytes(data, "little") & (READING | WRITING)


class GrantScene(MachineScene):
    """`dom0` maps and copies, `guest` grants, `other` is a third domain.

    `granter(version)` is the guest's table, with entries of `page`: 8 may be written, 9 read.
    """

    def __init__(self, factory: Factory | None, seed: int) -> None:
        super().__init__(factory, seed)
        self.page = self.guest.page(0)
        self.mine = self.dom0.page(0)
        self.handle = 0

    def granter(self, version: int = 1) -> Granter:
        made = Granter(self.guest, version)
        made.entry(8, 0, self.page)
        made.entry(9, 0, self.page, PERMIT | READONLY)
        return made

    # operations of dom0, or of `by`

    def map(
        self, ref: int, *, flags: int = MAP_HOST, dom: int | None = None, at: int = 0,
        by: Machine | None = None,
    ) -> int | str:  # fmt: skip
        """One map at the hole's page `at`: its status. `handle` is what it gave."""
        fields = [((HOLE_PFN + at) << 12, flags, ref, self._granter(dom), UNTOUCHED)]
        name = "gnttab_map_grant_ref"
        ops = (by or self.dom0).grant_op(MAP, name, ffi.new(f"struct {name}[]", fields))
        if isinstance(ops, str):
            return ops
        self.handle = int(ops[0].handle)
        return int(ops[0].status)

    def _granter(self, dom: int | None) -> int:
        return self.guest.domid if dom is None else dom

    def maps(self, rows: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
        """One call of many maps, rows (ref, flags, at): (status, handle) of each."""
        name = "gnttab_map_grant_ref"
        fields = [
            ((HOLE_PFN + at) << 12, flags, ref, self.guest.domid, UNTOUCHED)
            for ref, flags, at in rows
        ]
        ops = self.dom0.grant_op(MAP, name, ffi.new(f"struct {name}[]", fields))
        expect(isinstance(ops, str), False, "maps that fault")
        return [(int(op.status), int(op.handle)) for op in ops]

    def unmap(self, handle: int, at: int = 0, *, host: int | None = None) -> int | str:
        """One unmap: its status."""
        return self.unmaps([(handle, (HOLE_PFN + at) << 12 if host is None else host)])[0]

    def unmaps(self, rows: list[tuple[int, int]]) -> list[int | str]:
        """One call of many, rows (handle, host_addr): the statuses."""
        name = "gnttab_unmap_grant_ref"
        fields = [(host, 0, handle, UNTOUCHED) for handle, host in rows]
        ops = self.dom0.grant_op(UNMAP, name, ffi.new(f"struct {name}[]", fields))
        return [ops] if isinstance(ops, str) else [int(op.status) for op in ops]

    def copy(self, source: Side, dest: Side, size: int = 8) -> int | str:
        """One copy of dom0: its status."""
        return self.copies([(source, dest, size)])[0]

    def copies(self, rows: list[tuple[Side, Side, int]]) -> list[int | str]:
        """One call of many: the statuses."""
        name = "gnttab_copy"
        ops = ffi.new(f"struct {name}[]", len(rows))
        for op, (source, dest, size) in zip(ops, rows, strict=True):
            for side, (number, domid, offset, is_ref) in ((op.source, source), (op.dest, dest)):
                setattr(side.u, "ref" if is_ref else "gmfn", number)
                side.domid = domid
                side.offset = offset
            op.len = size
            op.flags = source[3] | dest[3] << 1
            op.status = UNTOUCHED
        done = self.dom0.grant_op(COPY, name, ops)
        return [done] if isinstance(done, str) else [int(op.status) for op in done]

    def ref(self, ref: int, offset: int = 0, dom: int | None = None) -> Side:
        """The guest's reference as a side of a copy."""
        return ref, self._granter(dom), offset, True

    def own(self, offset: int = 0) -> Side:
        """dom0's page `mine` as a side of a copy."""
        return self.mine, SELF, offset, False

    def single(self, cmd: int, name: str, by: Machine, **fields: Any) -> int | str:
        """An operation of one struct with a status: that, or the errno's name."""
        ops = by.grant_op(cmd, name, by.struct(name, **fields))
        return ops if isinstance(ops, str) else int(ops[0].status)

    def read_hole(self, at: int = 0, size: int = 8) -> bytes:
        """What dom0 sees where it mapped."""
        return self.dom0.domain.read(HOLE_PFN + at, 0, size)

    def write_hole(self, data: bytes, at: int = 0) -> None:
        self.dom0.domain.write(HOLE_PFN + at, 0, data)
