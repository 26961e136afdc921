"""Three domains with grants between them, their operations as the ABI's structures, and what
must not change when one of those fails.
"""

from __future__ import annotations

from typing import Any

from tests.xen.conftest import domain
from xenpv.abi._kernel import ffi, lib
from xenpv.errors import HypercallError
from xenpv.xen.domain import PAGE_SIZE, Domain
from xenpv.xen.hypervisor import Hypervisor

SELF = 0x7FF0
PERMIT, ACCEPT, TRANSITIVE, READONLY, READING, WRITING, SUB_PAGE = 1, 2, 3, 4, 8, 0x10, 0x100
DEVICE, HOST, RO, APPLICATION, PTE = 1, 2, 4, 8, 16
MAP, UNMAP, SETUP, TRANSFER, COPY, QUERY, REPLACE, SET_VERSION, STATUS_FRAMES, GET_VERSION, SWAP = (
    0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11,
)  # fmt: skip
HOLE = 0x100000  # the first pfn of dom0 where nothing is
UNTOUCHED = 77  # what a status is before its operation
Side = tuple[int, int, int, bool]  # ref or gmfn, domid, offset, is it a ref


def snapshot(hypervisor: Hypervisor, domains: list[Domain]) -> dict[str, Any]:
    """Everything a grant operation may touch: what a failed one must leave as it was."""
    machine = hypervisor.machine
    frames = lib.machine_high_water(machine)
    view = memoryview(hypervisor.arena.views)
    arena = bytes(view[: frames * PAGE_SIZE])
    view.release()
    seen: dict[str, Any] = {
        "arena": arena,
        "refs": [lib.frame_refs(machine, frame) for frame in range(frames)],
        "owners": [lib.frame_owner(machine, frame) for frame in range(frames)],
        "free": lib.machine_free_pages(machine),
    }
    for one in domains:
        table = one.gnttab
        seen[f"domain {one.domid}"] = {
            "pins": [lib.grant_pins(one.kernel, ref) for ref in range(table.nr_entries)],
            "maptrack": {
                handle: (mapping.granter.domid, mapping.ref, mapping.flags, mapping.pfn)
                for handle, mapping in table.maptrack.items()
            },
            "free handles": table.track.free_handles + 256 * -table.track.nr_frames,
            "frames": (table.nr_frames, table.nr_status_frames, table.version),
            "pages": lib.domain_tot_pages(one.kernel),
            "types": [lib.p2m_type(one.kernel, pfn) for pfn in (*range(0x140), *HOLES)],
            "shutdown": one.shutdown_code,
        }
    return seen


HOLES = range(HOLE, HOLE + 0x140)


class Scene:
    """dom0 maps and copies, `guest` (1) grants, `other` (2) is a third.

    Entries of `guest`, in its table's version; all for dom0 and of `page` unless they say so.
    """

    def __init__(self, hypervisor: Hypervisor, version: int = 1, **limits: Any) -> None:
        self.hypervisor = hypervisor
        self.dom0 = domain(hypervisor, 0, **limits)
        self.guest = domain(hypervisor, 1, max_grant_frames=4)
        self.other = domain(hypervisor, 2)
        self.domains = [self.dom0, self.guest, self.other]
        for one in self.domains:  # so that no operation takes a frame at its first touch
            for pfn in range(0x100, 0x110):
                one.write(pfn, 0, bytes([one.domid + 1]) * PAGE_SIZE)
        if version == 2:
            self.guest.gnttab.set_version(2)
        self.version = version
        self.page = 0x102
        self.entry(8)
        self.entry(9, PERMIT | READONLY)
        self.entry(10, 0)
        self.entry(11, ACCEPT)
        self.entry(12, domid=2)
        self.entry(14, frame=0x90000)
        self.entry(18, frame=0xFFFF_FFFF)
        self.entry(19, PERMIT | 0x40)  # PCD
        if version == 2:
            self.sub_page(13, 100, 50)
            self.transitive(15, 2, 20)
            self.entry(16, frame=1 << 40)
        else:
            self.entry(13, PERMIT | SUB_PAGE)
            self.entry(15, TRANSITIVE)
        self.entry(20, domid=1, owner=self.other)

    def entry(
        self, ref: int, flags: int = PERMIT, domid: int = 0, frame: int = -1, owner: Any = None
    ) -> None:
        kernel = (owner or self.guest).kernel
        frame = self.page if frame < 0 else frame
        assert lib.grant_entry_set(kernel, ref, domid, frame, flags) == 0

    def sub_page(self, ref: int, offset: int, size: int, flags: int = PERMIT) -> None:
        kernel = self.guest.kernel
        assert lib.grant_entry_set_sub_page(kernel, ref, 0, self.page, offset, size, flags) == 0

    def transitive(self, ref: int, domid: int, behind: int, flags: int = 0) -> None:
        kernel = self.guest.kernel
        assert lib.grant_entry_set_transitive(kernel, ref, 0, domid, behind, flags) == 0

    def snapshot(self) -> dict[str, Any]:
        return snapshot(self.hypervisor, self.domains)

    def call(self, cmd: int, ops: Any, count: int | None = None, by: Domain | None = None) -> Any:
        """The status of the only operation, or the name of the hypercall's errno."""
        if len(ops) == 1 and hasattr(ops[0], "status"):
            ops[0].status = UNTOUCHED
        try:
            (by or self.dom0).gnttab.hypercall(cmd, ops, count)
        except HypercallError as error:
            assert error.operation
            return error.name
        return ops[0].status if hasattr(ops[0], "status") else 0

    def map(
        self, ref: int = 8, flags: int = HOST, dom: int = 1, addr: int = HOLE << 12, by: Any = None
    ) -> Any:
        ops = ffi.new("struct gnttab_map_grant_ref[1]", [(addr, flags, ref, dom)])
        status = self.call(MAP, ops, by=by)
        self.handle, self.bus = ops[0].handle, ops[0].dev_bus_addr
        return status

    def maps(self, count: int, ref: int = 8, flags: int = HOST, first: int = HOLE) -> None:
        for pfn in range(first, first + count):
            assert self.map(ref, flags, addr=pfn << 12) == 0

    def fill_maptrack(self) -> None:
        for ref, pfns in ((8, range(HOLE, HOLE + 128)), (9, range(HOLE + 128, HOLE + 255))):
            for pfn in pfns:
                assert self.map(ref, HOST | RO, addr=pfn << 12) == 0

    def unmap(self, handle: int, host: int = 0, dev: int = 0, by: Any = None) -> Any:
        ops = ffi.new("struct gnttab_unmap_grant_ref[1]", [(host, dev, handle)])
        return self.call(UNMAP, ops, by=by)

    def replace(self, handle: int, host: int = 0, new: int = 0) -> Any:
        return self.call(
            REPLACE, ffi.new("struct gnttab_unmap_and_replace[1]", [(host, new, handle)])
        )

    def setup(
        self, nr: int, dom: int = SELF, address: int = 0x105000, by: Any = None, count: int = 1
    ) -> Any:
        ops = ffi.new("struct gnttab_setup_table[]", [(dom, nr, 0, address)] * max(count, 1))
        return self.call(SETUP, ops, count, by)

    def status_frames(
        self, nr: int, dom: int = SELF, address: int = 0x105000, by: Any = None, count: int = 1
    ) -> Any:
        ops = ffi.new("struct gnttab_get_status_frames[]", [(nr, dom, 0, address)] * max(count, 1))
        return self.call(STATUS_FRAMES, ops, count, by)

    def query(self, dom: int = SELF, by: Any = None, count: int = 1) -> Any:
        ops = ffi.new("struct gnttab_query_size[]", [(dom,)] * max(count, 1))
        return self.call(QUERY, ops, count, by)

    def set_version(self, version: int, by: Any = None) -> Any:
        ops = ffi.new("struct gnttab_set_version[1]", [(version,)])
        code = self.call(SET_VERSION, ops, by=by or self.guest)
        self.version_told = ops[0].version
        return code

    def get_version(self, dom: int = SELF, by: Any = None) -> Any:
        ops = ffi.new("struct gnttab_get_version[1]", [(dom,)])
        code = self.call(GET_VERSION, ops, by=by)
        self.version_told = ops[0].version
        return code

    def swap(self, a: int, b: int, by: Any = None) -> Any:
        ops = ffi.new("struct gnttab_swap_grant_ref[1]", [(a, b)])
        return self.call(SWAP, ops, by=by or self.guest)

    def transfer(self, frame: int, dom: int = 1, ref: int = 11, by: Any = None) -> Any:
        return self.call(TRANSFER, ffi.new("struct gnttab_transfer[1]", [(frame, dom, ref)]), by=by)

    def copy(self, source: Side, dest: Side, size: int = 8, by: Any = None) -> Any:
        return self.call(COPY, copies((source, dest, size)), by=by)

    def behind(self, ref: int, flags: int = PERMIT, domid: int = 1, frame: int = 0x103) -> None:
        """An entry of `other`, to which `guest` may refer by a transitive one."""
        self.entry(ref, flags, domid, frame, self.other)


def copies(*wanted: tuple[Side, Side, int]) -> Any:
    ops = ffi.new("struct gnttab_copy[]", len(wanted))
    for op, (source, dest, size) in zip(ops, wanted, strict=True):
        for side, (name, domid, offset, is_ref) in ((op.source, source), (op.dest, dest)):
            if is_ref:
                side.u.ref = name
            else:
                side.u.gmfn = name
            side.domid = domid
            side.offset = offset
        op.len = size
        op.flags = source[3] | dest[3] << 1
        op.status = UNTOUCHED
    return ops
