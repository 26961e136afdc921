"""Cases of grant tables: maps, pins, the bits in the table, versions, death. Copies and what a
guest's own drivers make of grants are in grantcopy.
"""

from __future__ import annotations

from xenpv.testing.cases.claims import expect, expect_one
from xenpv.testing.cases.grantscene import (
    ACCEPT,
    CACHE_FLUSH,
    GET_VERSION,
    MAP,
    MAP_APPLICATION,
    MAP_DEVICE,
    MAP_HOST,
    MAP_PTE,
    MAP_READONLY,
    PERMIT,
    QUERY,
    READING,
    READONLY,
    SETUP,
    STATUS_FRAMES,
    SUB_PAGE,
    SWAP,
    TRANSFER,
    TRANSITIVE,
    UNMAP,
    WRITING,
    Granter,
    GrantScene,
)
from xenpv.testing.cases.machinescene import (
    GRANT_TABLE_OP,
    GRANTS_PFN,
    HOLE_PFN,
    MEMORY_OP,
    NOBODY,
    REMOVE_FROM_PHYSMAP,
    SELF,
    SPACE_GRANT_TABLE,
    STATUS_FRAME,
    STATUS_PFN,
)
from xenpv.testing.cases.suite import Suite

SUITE = Suite("grant", "GNT-", GrantScene)

HEADER = "public/grant_table.h"
CODE = "xen/common/grant_table.c"
UNTOUCHED_WORD = 0x5555_5555
BAD_ADDRESS = 0xDEAD_0000_0000
ACQUIRE_RESOURCE = 28
GENERAL, BAD_DOMAIN, BAD_REF, BAD_HANDLE, NO_SPACE_LEFT, DENIED, BAD_PAGE, BUSY = (
    -1, -2, -3, -4, -13, -8, -9, -12,
)  # fmt: skip


def each_version(s: GrantScene) -> list[Granter]:
    """The guest's table in version 1, and that of a second guest in version 2."""
    first = s.granter(1)
    machine = s.domain()
    second = Granter(machine, 2)
    second.entry(8, 0, machine.page(0))
    second.entry(9, 0, machine.page(0), PERMIT | READONLY)
    return [first, second]


@SUITE.case(
    "GNT-001",
    "a map gives the granter's page, and the table says so until it is unmapped",
    source=f"{CODE}, map_grant_ref, unmap_common",
    expected="bytes go both ways; reading and writing are set, then clear",
    hostile=False,
)
def _map(s: GrantScene) -> None:
    for granter in each_version(s):
        machine = granter.machine
        machine.domain.write(machine.page(0), 0, b"granter.")
        expect(s.map(8, dom=granter.domid), 0, "map")
        expect(s.read_hole(), b"granter.", "what the mapper reads")
        s.write_hole(b"mapper..")
        expect(machine.domain.read(machine.page(0), 0, 8), b"mapper..", "what the granter reads")
        expect(granter.bits(8), READING | WRITING, "bits while mapped")
        expect(s.unmap(s.handle), 0, "unmap")
        expect(granter.bits(8), 0, "bits afterwards")


@SUITE.case(
    "GNT-002",
    "references that give nothing",
    source=f"{CODE}, map_grant_ref",
    expected="a negative status each, no bits, nothing mapped",
)
def _refused(s: GrantScene) -> None:
    for granter in each_version(s):
        page = granter.machine.page(0)
        for ref, to, flags in ((10, 0, 0), (11, 0, ACCEPT), (12, 2, PERMIT), (13, 0, TRANSITIVE),
                               (14, 0, PERMIT | SUB_PAGE)):  # fmt: skip
            granter.entry(ref, to, page, flags)
        granter.entry(15, 0, 0xFFFF_FFF0)
        end = granter.nr_entries
        for ref, status in (
            (10, GENERAL), (11, GENERAL), (12, GENERAL), (13, GENERAL), (14, GENERAL),
            (15, BAD_PAGE), (end, BAD_REF), (0xFFFFFFFF, BAD_REF),
        ):  # fmt: skip
            expect(s.map(ref, dom=granter.domid), status, f"map of reference {ref:#x}")
        expect(s.map(9, dom=granter.domid), GENERAL, "map to write of one that is read-only")
        expect([granter.bits(ref) for ref in range(8, 16)], [0] * 8, "bits")
        expect(s.map(8, dom=granter.domid), 0, "map of a good one")
        s.unmap(s.handle)


@SUITE.case(
    "GNT-003",
    "maps of nobody, of oneself, and with flags that are not an HVM guest's",
    source=f"{CODE}, map_grant_ref",
    expected="bad_domain, bad_gntref without a kind of map, general_error",
)
def _flags(s: GrantScene) -> None:
    granter = s.granter()
    expect(s.map(8, dom=NOBODY), BAD_DOMAIN, "map of nobody's")
    expect(s.map(8, flags=0), BAD_REF, "map with neither device nor host")
    for flags in (MAP_DEVICE, MAP_HOST | MAP_DEVICE, MAP_HOST | MAP_APPLICATION,
                  MAP_HOST | MAP_PTE):  # fmt: skip
        expect(s.map(8, flags=flags), GENERAL, f"map with flags {flags}")
    expect(granter.bits(8), 0, "bits")


@SUITE.case(
    "GNT-004",
    "pins are exact: bits follow the last map of their kind",
    source="XSA-224, XSA-230, XSA-236",
    expected="writing goes with the last writer, reading with the last map; copies leave nothing",
)
def _pins(s: GrantScene) -> None:
    for granter in each_version(s):
        dom = granter.domid
        handles = []
        for at, flags in enumerate((MAP_HOST | MAP_READONLY, MAP_HOST, MAP_HOST)):
            expect(s.map(8, flags=flags, at=at, dom=dom), 0, f"map {at}")
            handles.append(s.handle)
        expect(s.copy(s.ref(8, dom=dom), s.own()), 0, "copy from it")
        expect(s.copy(s.own(), s.ref(8, dom=dom)), 0, "copy to it")
        seen = [granter.bits(8)]
        for at in (1, 2, 0):
            expect(s.unmap(handles[at], at), 0, f"unmap {at}")
            seen.append(granter.bits(8))
        both = READING | WRITING
        expect(seen, [both, both, READING, 0], "bits after each")


@SUITE.case(
    "GNT-005",
    "handles are unique, whichever vcpu maps",
    source="XSA-228",
    expected="no handle twice while it is in use",
)
def _handles(s: GrantScene) -> None:
    s.granter()
    rows = [(8 + at % 2, MAP_HOST | MAP_READONLY, at) for at in range(200)]
    results = s.maps(rows)
    expect([status for status, _ in results], [0] * 200, "statuses")
    handles = [handle for _, handle in results]
    expect(len(dict.fromkeys(handles)), 200, "different handles")
    expect(s.unmap(handles[7], 7), 0, "unmap")
    expect(s.map(8, at=7), 0, "map in its place")
    expect_one(s.handle, [one for one in range(1 << 10) if one not in handles or one == handles[7]],
               "a handle that is free")  # fmt: skip


@SUITE.case(
    "GNT-006",
    "handles that are not in use, twice in a batch, or with another address",
    source="XSA-394; public/grant_table.h, GNTTABOP_unmap_grant_ref",
    expected="bad_handle, general_error; each map is dropped once",
)
def _unmaps(s: GrantScene) -> None:
    granter = s.granter()
    for handle in (0, 5, 0x3FFFF, 0xFFFFFFFF):
        expect(s.unmap(handle), BAD_HANDLE, f"unmap of handle {handle:#x}")
    s.map(8)
    first = s.handle
    s.map(8, at=1)
    expect(s.unmap(first, 50), GENERAL, "unmap with an address where nothing is")
    expect(s.unmap(first, host=0), 0, "unmap of neither half")
    expect((granter.bits(8), s.read_hole(0, 1)), (READING | WRITING, b"\0"), "still mapped")
    host = HOLE_PFN << 12
    expect(s.unmaps([(first, host), (first, host)]), [0, BAD_HANDLE], "the same twice")
    expect(granter.bits(8), READING | WRITING, "bits with the second map left")
    expect(s.unmap(s.handle, 1), 0, "unmap of the second")
    expect(granter.bits(8), 0, "bits at the end")


@SUITE.case(
    "GNT-007",
    "a batch with bad ones in it",
    source="XSA-316",
    expected="each has its own status, and the failed ones a negative one",
)
def _batch(s: GrantScene) -> None:
    granter = s.granter()
    rows = [(8, MAP_HOST, 0), (10, MAP_HOST, 1), (9, MAP_HOST | MAP_READONLY, 2),
            (9, MAP_HOST, 3), (5000, MAP_HOST, 4), (8, 0, 5), (8, MAP_HOST, 6)]  # fmt: skip
    results = s.maps(rows)
    expected = [0, GENERAL, 0, GENERAL, BAD_REF, BAD_REF, 0]
    expect([status for status, _ in results], expected, "statuses")
    for (status, handle), (_, _, at) in zip(results, rows, strict=True):
        if not status:
            expect(s.unmap(handle, at), 0, "unmap")
    expect((granter.bits(8), granter.bits(9)), (0, 0), "bits at the end")


@SUITE.case(
    "GNT-008",
    "one entry is mapped 128 times and no more",
    source=f"{CODE}, act_pin counters",
    expected="general_error for the next; one unmap makes room for one",
)
def _counters(s: GrantScene) -> None:
    granter = s.granter()
    results = s.maps([(8, MAP_HOST, at) for at in range(130)])
    expect([status for status, _ in results], [0] * 128 + [GENERAL] * 2, "statuses")
    expect(s.unmap(results[0][1], 0), 0, "unmap")
    expect(s.map(8, at=200), 0, "map")
    for (_, handle), at in list(zip(results, range(128), strict=False))[1:]:
        s.unmap(handle, at)
    s.unmap(s.handle, 200)
    expect(granter.bits(8), 0, "bits at the end")


@SUITE.case(
    "GNT-009",
    "the granter changes an entry that is mapped",
    source=f'{HEADER}, "Removing a grant entry"; XSA-500',
    expected="the map stays, of the page it was made of; nobody maps it anew against the entry",
)
def _changed(s: GrantScene) -> None:
    for granter in each_version(s):
        machine, dom = granter.machine, granter.domid
        machine.domain.write(machine.page(0), 0, b"mapped..")
        machine.domain.write(machine.page(1), 0, b"other...")
        s.map(8, flags=MAP_HOST | MAP_READONLY, dom=dom)
        handle = s.handle
        kept = granter.bits(8) if granter.version == 1 else 0
        granter.entry(8, 0, machine.page(1), PERMIT | kept)
        expect(s.read_hole(), b"mapped..", "the page that is mapped")
        expect(s.copy(s.own(), s.ref(8, dom=dom)), GENERAL, "copy to a pinned entry that changed")
        expect(machine.domain.read(machine.page(1), 0, 8), b"other...", "the page it names now")
        granter.flags(8, 0)
        expect(s.unmap(handle), 0, "unmap of what was revoked by force")
        expect(s.map(8, dom=dom), GENERAL, "map afterwards")


@SUITE.case(
    "GNT-010",
    "no handle is left",
    source=f"{CODE}, get_maptrack_handle",
    expected="no_device_space or no_space of the one too many; what is mapped stays",
)
def _maptrack(s: GrantScene) -> None:
    granter = s.granter()
    mapper = s.domain(max_maptrack_frames=1)
    for ref in (10, 11):
        granter.entry(ref, mapper.domid, s.page)
    done = [s.map(10 + at % 2, at=at, by=mapper) for at in range(257)]
    expect([one for one in done if one not in (0, NO_SPACE_LEFT)], [], "other statuses")
    expect(done.count(0), 255, "maps with 256 handles, one of them spare")
    expect(done[-1], NO_SPACE_LEFT, "the last one")
    expect(mapper.domain.read(HOLE_PFN, 0, 1), b"\0", "the first one is mapped")


# tables


@SUITE.case(
    "GNT-011",
    "a version is not changed while something is mapped",
    source=f"{CODE}, gnttab_set_version; XSA-255, XSA-379",
    expected="EBUSY, and the version in force is told; afterwards 0, and the entries are cleared",
)
def _version(s: GrantScene) -> None:
    granter = s.granter()
    s.map(8)
    expect((granter.set_version(2), granter.told), ("EBUSY", 1), "set_version while mapped")
    for version in (0, 3, 0xFFFFFFFF):
        expect(
            (granter.set_version(version), granter.told), ("EINVAL", 1), f"set_version {version}"
        )
    expect(s.unmap(s.handle), 0, "unmap")
    expect((granter.set_version(1), granter.told), (0, 1), "set_version to the same")
    expect((granter.set_version(2), granter.told), (0, 2), "set_version 2")
    expect(s.map(8), GENERAL, "map of an entry of before")
    narrow = Granter(s.domain(max_grant_version=1))
    expect((narrow.set_version(2), narrow.told), ("ENOSYS", 1), "set_version 2 where 1 is the most")


@SUITE.case(
    "GNT-012",
    "somebody holds a status frame while its domain goes back to version 1",
    source="XSA-255, XSA-379, XSA-486, XSA-501",
    expected="EBUSY; once it is let go, 0; its own map of them is taken away",
)
def _status_pages(s: GrantScene) -> None:
    granter = s.granter(2)
    memory, dom0 = s.dom0.memory, s.dom0
    memory.store_words(dom0.list, [HOLE_PFN])
    name = "xen_mem_acquire_resource"
    ops = dom0.struct(name, domid=granter.domid, type=1, id=1, nr_frames=1, frame_list=dom0.list)
    done = dom0.call(MEMORY_OP, ACQUIRE_RESOURCE, dom0.pass_structs(name, ops))
    expect(done, 0, "acquire_resource of a status frame")
    expect((granter.set_version(1), granter.told), ("EBUSY", 2), "set_version while it is held")
    name = "xen_remove_from_physmap"
    ops = dom0.struct(name, domid=SELF, gpfn=HOLE_PFN)
    dom0.call(MEMORY_OP, REMOVE_FROM_PHYSMAP, dom0.pass_structs(name, ops))
    expect((granter.set_version(1), granter.told), (0, 1), "set_version afterwards")
    again = granter.machine.add_to_physmap(SPACE_GRANT_TABLE, STATUS_FRAME, STATUS_PFN)
    expect(again, "EINVAL", "add_to_physmap of a status frame in version 1")


@SUITE.case(
    "GNT-013",
    "more status frames than there are",
    source="XSA-382",
    expected="general_error, and nothing is written; one is given",
)
def _status_frames(s: GrantScene) -> None:
    s.granter(2)
    guest = s.guest
    for nr in (2, 64, 1 << 16, 0xFFFFFFFF):
        guest.memory.store_words(guest.list, [UNTOUCHED_WORD] * 4)
        name = "gnttab_get_status_frames"
        done = s.single(STATUS_FRAMES, name, guest, nr_frames=nr, dom=SELF, frame_list=guest.list)
        expect(done, GENERAL, f"get_status_frames of {nr}")
        expect(guest.memory.words(guest.list, 4), [UNTOUCHED_WORD] * 4, "the list")


@SUITE.case(
    "GNT-014",
    "swapping",
    source="XSA-18, XSA-134",
    expected="bad_gntref beyond either version's table, eagain while pinned; else both move whole",
)
def _swap(s: GrantScene) -> None:
    for granter in each_version(s):

        def swap(a: int, b: int, by: Granter = granter) -> int | str:
            return s.single(SWAP, "gnttab_swap_grant_ref", by.machine, ref_a=a, ref_b=b)

        end = granter.nr_entries
        for a, b in ((8, end), (end, 8), (8, 0xFFFFFFFF), (end, end)):
            expect(swap(a, b), BAD_REF, f"swap of {a:#x} and {b:#x}")
        expect((swap(8, 8), swap(end - 1, 8), swap(8, end - 1)), (0, 0, 0), "swaps")
        s.map(8, dom=granter.domid)
        expect((swap(8, 10), swap(10, 8)), (BUSY, BUSY), "swap of a pinned one")
        expect(s.unmap(s.handle), 0, "unmap")
        expect((swap(8, 10), s.map(10, dom=granter.domid)), (0, 0), "swap, and map of the other")
        expect(s.unmap(s.handle), 0, "unmap")


@SUITE.case(
    "GNT-015",
    "operations that are none, faults and counts",
    source=f"XSA-232; {CODE}, do_grant_table_op",
    expected="ENOSYS for cache_flush on x86, EINVAL for a count of 2^31, EFAULT",
)
def _faults(s: GrantScene) -> None:
    guest = s.guest
    for cmd in (3, CACHE_FLUSH, 13, 99):
        expect(guest.call(GRANT_TABLE_OP, cmd, guest.arg, 1), "ENOSYS", f"operation {cmd}")
    for cmd in (MAP, UNMAP, TRANSFER, SWAP, GET_VERSION):
        expect(guest.call(GRANT_TABLE_OP, cmd, BAD_ADDRESS, 1), "EFAULT", f"operation {cmd}")
        for count in (1 << 31, 0xFFFFFFFF):
            done = guest.call(GRANT_TABLE_OP, cmd, guest.arg, count)
            expect(done, "EINVAL", f"operation {cmd}, {count:#x} times")
    for cmd in (SETUP, QUERY, STATUS_FRAMES):
        expect(guest.call(GRANT_TABLE_OP, cmd, guest.arg, 2), "EINVAL", f"operation {cmd} twice")


@SUITE.case(
    "GNT-016",
    "tables of others, and frames beyond the most",
    source=f"{CODE}, gnttab_setup_table, gnttab_query_size",
    expected="permission_denied, bad_domain, general_error; EINVAL of add_to_physmap",
)
def _tables(s: GrantScene) -> None:
    guest = s.domain(max_grant_frames=4)
    for dom, status in ((s.other.domid, DENIED), (NOBODY, BAD_DOMAIN)):
        done = s.single(QUERY, "gnttab_query_size", guest, dom=dom)
        expect(done, status, f"query_size of d{dom}")
        done = s.single(
            SETUP, "gnttab_setup_table", guest, dom=dom, nr_frames=1, frame_list=guest.list
        )
        expect(done, status, f"setup_table of d{dom}")
    for nr in (5, 0xFFFFFFFF):
        done = s.single(
            SETUP, "gnttab_setup_table", guest, dom=SELF, nr_frames=nr, frame_list=guest.list
        )
        expect(done, GENERAL, f"setup_table of {nr} frames")
    for index in range(4):
        expect(guest.add_to_physmap(SPACE_GRANT_TABLE, index, GRANTS_PFN + index), 0, "a frame")
    for index in (4, 0x7FFFFFFF, STATUS_FRAME):
        done = guest.add_to_physmap(SPACE_GRANT_TABLE, index, GRANTS_PFN + 8)
        expect(done, "EINVAL", f"frame {index:#x}")


# death


@SUITE.case(
    "GNT-017",
    "the granter dies while its page is mapped",
    source=f"{CODE}, grant_table_destroy; xen-core 7.4",
    expected="the page stays for who maps it; its domid is taken until the unmap",
)
def _granter_dies(s: GrantScene) -> None:
    s.granter()
    s.guest.domain.write(s.page, 0, b"kept....")
    s.map(8)
    handle, domid = s.handle, s.guest.domid
    s.destroy(s.guest)
    expect(s.read_hole(), b"kept....", "the page")
    done = s.map(9, flags=MAP_HOST | MAP_READONLY, at=1)
    expect_one(done, (GENERAL, BAD_DOMAIN, BAD_REF, BAD_PAGE), "a new map of the dead domain")
    expect(domid in s.hypervisor.domains, True, "the dead domain is held")
    expect(s.unmap(handle), 0, "unmap")
    expect(domid in s.hypervisor.domains, False, "it is held afterwards")
    expect(s.unmap(handle), BAD_HANDLE, "unmap again")


@SUITE.case(
    "GNT-018",
    "the mapper dies",
    source=f"{CODE}, gnttab_release_mappings",
    expected="its maps are released: the bits are clear, and the granter's memory is its own",
)
def _mapper_dies(s: GrantScene) -> None:
    granter = s.granter()
    mapper = s.other
    granter.entry(10, mapper.domid, s.page)
    for at in range(3):
        expect(s.map(10, at=at, by=mapper), 0, "map")
    expect(granter.bits(10), READING | WRITING, "bits while mapped")
    s.destroy(mapper)
    expect(granter.bits(10), 0, "bits afterwards")
    granter.entry(10, 0, s.page)
    expect(s.map(10), 0, "map of somebody else")
    s.unmap(s.handle)


@SUITE.case(
    "GNT-019",
    "a page is given away by a transfer that nobody accepts",
    source=f"{CODE}, gnttab_transfer",
    expected="an HVM guest's is general_error, an empty frame bad_page; the page stays",
)
def _transfer(s: GrantScene) -> None:
    granter = s.granter()
    granter.entry(10, 0, 0, ACCEPT)
    s.dom0.domain.write(s.mine, 0, b"my own..")
    for mfn, status in ((s.mine, GENERAL), (0x7FFFF, BAD_PAGE)):
        done = s.single(TRANSFER, "gnttab_transfer", s.dom0, mfn=mfn, domid=granter.domid, ref=10)
        expect(done, status, f"transfer of {mfn:#x}")
    expect(s.dom0.domain.read(s.mine, 0, 8), b"my own..", "the page")


@SUITE.case(
    "GNT-020",
    "a page that is mapped elsewhere is given back by its granter",
    source="xen/common/memory.c, decrease_reservation; XSA-224",
    expected="the mapper keeps it until it unmaps; a new map is bad_page",
)
def _ballooned(s: GrantScene) -> None:
    granter = s.granter()
    s.guest.domain.write(s.page, 0, b"lent out")
    s.map(8)
    handle, guest = s.handle, s.guest
    guest.memory.store_words(guest.list, [s.page])
    name = "xen_memory_reservation"
    ops = guest.struct(name, nr_extents=1, domid=SELF, extent_start=guest.list)
    expect(guest.call(MEMORY_OP, 1, guest.pass_structs(name, ops)), 1, "decrease_reservation")
    expect(s.read_hole(), b"lent out", "the page")
    expect(s.map(9, flags=MAP_HOST | MAP_READONLY, at=1), BAD_PAGE, "a new map")
    expect(s.unmap(handle), 0, "unmap")
    expect(granter.bits(8), 0, "bits")
