"""memory_op by table: operation x situation -> count or errno (public/memory.h; xen-core 7.1).

A row whose operation fails, or does nothing, must leave every domain's memory as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.xen.conftest import domain
from xenpv.abi._kernel import lib
from xenpv.errors import HypercallError
from xenpv.xen.domain import Domain
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop
from xenpv.xen.physmap import DOMID_SELF, INVALID_GFN

NR_FRAMES = 4096
NOBODY = 99
SHARED_INFO, GRANT_TABLE, GMFN, GMFN_RANGE, FOREIGN, MMIO = range(6)
STATUS = 1 << 31

# What the guest of every row has besides RAM at 0x100..0x1ff, of which 0x1f8.. was touched.
FREE = 0x200
SPECIAL_AT = 0x300
GRANT_FRAME_AT = 0x301
GRANT_AT = 0x302
# What dom0 has besides the same RAM.
FOREIGN_AT = 0x303
RESOURCE_AT = 0x304
WATCHED = (*range(0xF8, 0x108), *range(0x1F0, 0x210), *range(0x2FF, 0x308), 0x3FF, 0x400, 0x1FFFFF)


class World:
    """dom0, a guest, its device model, another guest and a PV guest; things mapped about."""

    def __init__(self) -> None:
        self.hypervisor = Hypervisor(Loop(seed=1), nr_frames=NR_FRAMES)
        make = self.hypervisor
        self.dom0 = domain(make, 0)
        self.guest = domain(make, 1, max_grant_frames=4)
        self.other = domain(make, 2)
        self.stub = domain(make, 3)
        self.stub.target = self.guest
        self.pv = domain(make, 4, flags=0)
        self.guest.write(0x1F8, 0, b"touched")
        self.guest.memory.add_to_physmap(DOMID_SELF, SHARED_INFO, 0, SPECIAL_AT)
        self.guest.memory.add_to_physmap(DOMID_SELF, GRANT_TABLE, 0, GRANT_FRAME_AT)
        assert lib.grant_entry_set(self.other.kernel, 9, 1, 0x100, 1) == 0
        self.handle = self.guest.gnttab.map(2, 9, GRANT_AT)
        foreign = self.dom0.memory.add_to_physmap_batch
        assert foreign(DOMID_SELF, FOREIGN, [0x1F8], [FOREIGN_AT], foreign_domid=1) == [0]
        assert self.dom0.memory.acquire_resource(1, 1, 0, nr_frames=1, gpfns=[RESOURCE_AT]) == 1

    @property
    def domains(self) -> tuple[Domain, ...]:
        return (self.dom0, self.guest, self.other, self.stub, self.pv)

    def state(self) -> Any:
        machine = self.hypervisor.machine
        return (
            lib.machine_free_pages(machine),
            lib.machine_used_frames(machine),
            [lib.frame_refs(machine, frame) for frame in range(lib.machine_high_water(machine))],
            [
                (
                    one.memory.current_reservation(),
                    one.memory.maximum_reservation(),
                    one.memory.maximum_gpfn(),
                    lib.domain_outstanding_pages(one.kernel),
                    lib.p2m_tables(one.kernel),
                    one.gnttab.nr_frames,
                    one.shutdown_code,
                    [
                        (lib.p2m_type(one.kernel, p), lib.p2m_lookup(one.kernel, p, 0))
                        for p in WATCHED
                    ],
                )
                for one in self.domains
            ],
        )


def refused(call: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    with pytest.raises(HypercallError):
        call(*arguments, **named)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.hypervisor.close()


# fmt: off
Row = tuple[str, Callable[[World], Any], Any]

# Counts: populate, decrease, increase. The guest has 256 of max 512 pages.
COUNTS: list[Row] = [
    ("populate: new pages", lambda w: w.guest.memory.populate_physmap(DOMID_SELF, [FREE, FREE + 1]), 2),
    ("populate: by its own domid", lambda w: w.guest.memory.populate_physmap(1, [FREE]), 1),
    ("populate: dom0 for the guest", lambda w: w.dom0.memory.populate_physmap(1, [FREE]), 1),
    ("populate: its device model", lambda w: w.stub.memory.populate_physmap(1, [FREE]), 1),
    ("populate: another domain", lambda w: w.other.memory.populate_physmap(1, [FREE]), 0),
    ("populate: a guest for dom0", lambda w: w.guest.memory.populate_physmap(0, [FREE]), 0),
    ("populate: unknown domain", lambda w: w.dom0.memory.populate_physmap(NOBODY, [FREE]), 0),
    ("populate: no extents", lambda w: w.guest.memory.populate_physmap(DOMID_SELF, []), 0),
    ("populate: order 9 of a domU", lambda w: w.dom0.memory.populate_physmap(1, [0x400], order=9), 0),
    ("populate: order 8 of a domU", lambda w: w.guest.memory.populate_physmap(DOMID_SELF, [0x400], order=8), 1),
    ("populate: order 10 of a domU", lambda w: w.guest.memory.populate_physmap(DOMID_SELF, [0x400], order=10), 0),
    ("populate: order 19 of dom0", lambda w: w.dom0.memory.populate_physmap(1, [0x400], order=19), 0),
    ("populate: past max_pages", lambda w: w.guest.memory.populate_physmap(DOMID_SELF, list(range(FREE, FREE + 257))), 256),
    ("populate: last extent past max_pages", lambda w: w.guest.memory.populate_physmap(DOMID_SELF, [0x400, 0x500, 0x600], order=7), 2),
    ("populate: pfn of 28 bits", lambda w: w.guest.memory.populate_physmap(DOMID_SELF, [(1 << 28) - 1]), 1),
    ("populate: pfn beyond 28 bits", lambda w: w.guest.memory.populate_physmap(DOMID_SELF, [1 << 28]), 0),
    ("populate: extent that ends beyond 28 bits", lambda w: w.guest.memory.populate_physmap(DOMID_SELF, [(1 << 28) - 1], order=1), 0),
    ("populate: INVALID_GFN", lambda w: w.guest.memory.populate_physmap(DOMID_SELF, [INVALID_GFN]), 0),
    ("populate: stops at the bad one", lambda w: w.guest.memory.populate_physmap(DOMID_SELF, [FREE, INVALID_GFN, FREE + 1]), 1),
    ("populate: RAM is there", lambda w: w.guest.memory.populate_physmap(DOMID_SELF, [0x1F8]), 1),
    ("populate: shared_info is there", lambda w: w.guest.memory.populate_physmap(DOMID_SELF, [SPECIAL_AT]), 1),
    ("populate: address width of a page", lambda w: w.guest.memory.populate_physmap(DOMID_SELF, [FREE], mem_flags=12), 0),
    ("populate: address width 32", lambda w: w.guest.memory.populate_physmap(DOMID_SELF, [FREE], mem_flags=32), 1),
    ("populate: domU asks for a node", lambda w: w.guest.memory.populate_physmap(DOMID_SELF, [FREE], mem_flags=1 << 8), 1),
    ("populate: domU insists on a node", lambda w: w.guest.memory.populate_physmap(DOMID_SELF, [FREE], mem_flags=1 << 8 | 1 << 17), 0),
    ("populate: dom0 insists on a node", lambda w: w.dom0.memory.populate_physmap(1, [FREE], mem_flags=1 << 8 | 1 << 17), 1),
    ("populate: dom0 asks for node 64", lambda w: w.dom0.memory.populate_physmap(1, [FREE], mem_flags=65 << 8), 0),
    ("populate: on demand for itself", lambda w: w.guest.memory.populate_physmap(DOMID_SELF, [FREE], mem_flags=1 << 16), 0),
    ("populate: on demand by dom0", lambda w: w.dom0.memory.populate_physmap(1, [FREE], mem_flags=1 << 16), 1),
    ("decrease: touched and untouched", lambda w: w.guest.memory.decrease_reservation(DOMID_SELF, [0x1F8, 0x1F9]), 2),
    ("decrease: order 3", lambda w: w.guest.memory.decrease_reservation(DOMID_SELF, [0x1F8, 0x100], order=3), 2),
    ("decrease: no page", lambda w: w.guest.memory.decrease_reservation(DOMID_SELF, [FREE]), 0),
    ("decrease: stops at a hole", lambda w: w.guest.memory.decrease_reservation(DOMID_SELF, [0x1FE, 0x1FF, FREE, 0x1FD]), 2),
    ("decrease: the same page twice", lambda w: w.guest.memory.decrease_reservation(DOMID_SELF, [0x1FE, 0x1FE]), 1),
    ("decrease: grant page", lambda w: w.guest.memory.decrease_reservation(DOMID_SELF, [GRANT_AT]), 0),
    ("decrease: foreign page", lambda w: w.dom0.memory.decrease_reservation(DOMID_SELF, [FOREIGN_AT]), 0),
    ("decrease: resource page", lambda w: w.dom0.memory.decrease_reservation(DOMID_SELF, [RESOURCE_AT]), 0),
    ("decrease: shared_info is unhooked", lambda w: w.guest.memory.decrease_reservation(DOMID_SELF, [SPECIAL_AT]), 1),
    ("decrease: beyond 28 bits", lambda w: w.guest.memory.decrease_reservation(DOMID_SELF, [1 << 28, INVALID_GFN]), 0),
    ("decrease: order 10 of a domU", lambda w: w.guest.memory.decrease_reservation(DOMID_SELF, [0x100], order=10), 0),
    ("decrease: no extents", lambda w: w.guest.memory.decrease_reservation(DOMID_SELF, []), 0),
    ("decrease: unknown domain", lambda w: w.dom0.memory.decrease_reservation(NOBODY, [0x100]), 0),
    ("decrease: another domain", lambda w: w.other.memory.decrease_reservation(1, [0x100]), 0),
    ("decrease: dom0 for the guest", lambda w: w.dom0.memory.decrease_reservation(1, [0x100]), 1),
    ("increase: pages at no pfn", lambda w: w.guest.memory.increase_reservation(DOMID_SELF, 3), 3),
    ("increase: past max_pages", lambda w: w.guest.memory.increase_reservation(DOMID_SELF, 300), 256),
    ("increase: order 7", lambda w: w.guest.memory.increase_reservation(DOMID_SELF, 3, order=7), 2),
    ("increase: order 10 of a domU", lambda w: w.guest.memory.increase_reservation(DOMID_SELF, 1, order=10), 0),
    ("increase: no extents", lambda w: w.guest.memory.increase_reservation(DOMID_SELF, 0), 0),
    ("increase: too many to be continued", lambda w: w.dom0.memory.increase_reservation(1, 1 << 26), 0),
    ("increase: another domain", lambda w: w.other.memory.increase_reservation(1, 1), 0),
    ("increase: unknown domain", lambda w: w.dom0.memory.increase_reservation(NOBODY, 1), 0),
]

# Values.
VALUES: list[Row] = [
    ("current_reservation: own", lambda w: w.guest.memory.current_reservation(), 256),
    ("current_reservation: dom0 asks", lambda w: w.dom0.memory.current_reservation(1), 256),
    ("current_reservation: device model asks", lambda w: w.stub.memory.current_reservation(1), 256),
    ("current_reservation: unknown domain", lambda w: w.guest.memory.current_reservation(NOBODY), "ESRCH"),
    ("current_reservation: another domain", lambda w: w.guest.memory.current_reservation(2), "EPERM"),
    ("maximum_reservation: own", lambda w: w.guest.memory.maximum_reservation(), 512),
    ("maximum_reservation: unknown domain", lambda w: w.guest.memory.maximum_reservation(NOBODY), "ESRCH"),
    ("maximum_reservation: dom0", lambda w: w.guest.memory.maximum_reservation(0), "EPERM"),
    ("maximum_gpfn: own", lambda w: w.guest.memory.maximum_gpfn(), GRANT_AT),
    ("maximum_gpfn: unknown domain", lambda w: w.guest.memory.maximum_gpfn(NOBODY), "ESRCH"),
    ("maximum_gpfn: another domain", lambda w: w.other.memory.maximum_gpfn(1), "EPERM"),
]

# claim_pages: the machine has 4,096 frames, five domains of 256 pages.
CLAIMS: list[Row] = [
    ("claim: within max_pages", lambda w: w.dom0.memory.claim_pages(1, 512), None),
    ("claim: given up without one", lambda w: w.dom0.memory.claim_pages(1, 0), None),
    ("claim: not above tot_pages", lambda w: w.dom0.memory.claim_pages(1, 256), "EINVAL"),
    ("claim: above max_pages", lambda w: w.dom0.memory.claim_pages(1, 513), "EINVAL"),
    ("claim: order", lambda w: w.dom0.memory.claim_pages(1, 512, order=1), "EINVAL"),
    ("claim: flags", lambda w: w.dom0.memory.claim_pages(1, 512, mem_flags=1), "EINVAL"),
    ("claim: unknown domain", lambda w: w.dom0.memory.claim_pages(NOBODY, 512), "EINVAL"),
    ("claim: SELF", lambda w: w.dom0.memory.claim_pages(DOMID_SELF, 512), "EINVAL"),
    ("claim: a guest for itself", lambda w: w.guest.memory.claim_pages(1, 512), "EPERM"),
    ("claim: a device model", lambda w: w.stub.memory.claim_pages(1, 512), "EPERM"),
]

# add_to_physmap.
ADDS: list[Row] = [
    ("shared_info: a free pfn", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, SHARED_INFO, 0, FREE), None),
    ("shared_info: where it is", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, SHARED_INFO, 0, SPECIAL_AT), None),
    ("shared_info: on RAM", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, SHARED_INFO, 0, 0x1F8), None),
    ("shared_info: on the grant table", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, SHARED_INFO, 0, GRANT_FRAME_AT), None),
    ("shared_info: on a grant", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, SHARED_INFO, 0, GRANT_AT), "ENXIO"),
    ("shared_info: on a foreign page", lambda w: w.dom0.memory.add_to_physmap(DOMID_SELF, SHARED_INFO, 0, FOREIGN_AT), "ENXIO"),
    ("shared_info: on a resource page", lambda w: w.dom0.memory.add_to_physmap(DOMID_SELF, SHARED_INFO, 0, RESOURCE_AT), None),
    ("shared_info: idx 1", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, SHARED_INFO, 1, FREE), "EINVAL"),
    ("shared_info: INVALID_GFN", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, SHARED_INFO, 0, INVALID_GFN), "EINVAL"),
    ("shared_info: pfn beyond 28 bits", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, SHARED_INFO, 0, 1 << 28), "EINVAL"),
    ("shared_info: dom0 for the guest", lambda w: w.dom0.memory.add_to_physmap(1, SHARED_INFO, 0, FREE), None),
    ("shared_info: another domain", lambda w: w.other.memory.add_to_physmap(1, SHARED_INFO, 0, FREE), "EPERM"),
    ("shared_info: unknown domain", lambda w: w.guest.memory.add_to_physmap(NOBODY, SHARED_INFO, 0, FREE), "ESRCH"),
    ("shared_info: PV", lambda w: w.pv.memory.add_to_physmap(DOMID_SELF, SHARED_INFO, 0, FREE), "EACCES"),
    ("shared_info: PV of no privilege", lambda w: w.guest.memory.add_to_physmap(4, SHARED_INFO, 0, FREE), "EACCES"),
    ("grant_table: frame 0", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, GRANT_TABLE, 0, FREE), None),
    ("grant_table: grows to the last frame", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, GRANT_TABLE, 3, FREE), None),
    ("grant_table: frame beyond the maximum", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, GRANT_TABLE, 4, FREE), "EINVAL"),
    ("grant_table: status frame in v1", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, GRANT_TABLE, STATUS, FREE), "EINVAL"),
    ("grant_table: on a grant", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, GRANT_TABLE, 0, GRANT_AT), "ENXIO"),
    ("grant_table: idx of 64 bits", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, GRANT_TABLE, INVALID_GFN, FREE), "EINVAL"),
    ("gmfn: a touched page", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, GMFN, 0x1F8, FREE), None),
    ("gmfn: an untouched page", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, GMFN, 0x1F0, FREE), None),
    ("gmfn: onto itself", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, GMFN, 0x1F8, 0x1F8), None),
    ("gmfn: onto RAM", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, GMFN, 0x1F8, 0x1F9), None),
    ("gmfn: onto a grant", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, GMFN, 0x1F8, GRANT_AT), "ENXIO"),
    ("gmfn: from a hole", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, GMFN, FREE, FREE + 1), "EACCES"),
    ("gmfn: from shared_info", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, GMFN, SPECIAL_AT, FREE), "EACCES"),
    ("gmfn: from a grant", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, GMFN, GRANT_AT, FREE), "EACCES"),
    ("gmfn: from a foreign page", lambda w: w.dom0.memory.add_to_physmap(DOMID_SELF, GMFN, FOREIGN_AT, FREE), "EACCES"),
    ("gmfn: from beyond 28 bits", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, GMFN, 1 << 28, FREE), "EACCES"),
    ("gmfn: to beyond 28 bits", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, GMFN, 0x1F8, 1 << 28), "EINVAL"),
    ("range: of four", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, GMFN_RANGE, 0x1F0, FREE, size=4), None),
    ("range: of none", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, GMFN_RANGE, FREE, FREE, size=0), None),
    ("range: wraps", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, GMFN_RANGE, INVALID_GFN, FREE, size=2), "EOVERFLOW"),
    ("range: first is a hole", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, GMFN_RANGE, FREE, 0x300, size=2), "EACCES"),
    ("foreign: not here", lambda w: w.dom0.memory.add_to_physmap(DOMID_SELF, FOREIGN, 0x100, FREE), "ENOSYS"),
    ("foreign: before the domain is looked up", lambda w: w.guest.memory.add_to_physmap(NOBODY, FOREIGN, 0x100, FREE), "ENOSYS"),
    ("mmio: a guest's", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, MMIO, 0x100, FREE), "EACCES"),
    ("mmio: dom0's, on x86", lambda w: w.dom0.memory.add_to_physmap(DOMID_SELF, MMIO, 0x100, FREE), "EINVAL"),
    ("space 6", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, 6, 0, FREE), "EINVAL"),
]

# add_to_physmap_batch: errs, or the errno of the whole.
BATCHES: list[Row] = [
    ("batch: two foreign pages", lambda w: w.dom0.memory.add_to_physmap_batch(DOMID_SELF, FOREIGN, [0x1F8, 0x100], [FREE, FREE + 1], foreign_domid=1), [0, 0]),
    ("batch: device model maps its target", lambda w: w.stub.memory.add_to_physmap_batch(DOMID_SELF, FOREIGN, [0x1F8], [FREE], foreign_domid=1), [0]),
    ("batch: foreign, an err each", lambda w: w.dom0.memory.add_to_physmap_batch(DOMID_SELF, FOREIGN, [0x50, 0x100, GRANT_AT], [FREE, FREE, FREE + 1], foreign_domid=1), [-22, 0, -22]),
    ("batch: a page of Xen's as foreign", lambda w: w.dom0.memory.add_to_physmap_batch(DOMID_SELF, FOREIGN, [SPECIAL_AT], [FREE], foreign_domid=1), [0]),
    ("batch: foreign, unknown domain", lambda w: w.dom0.memory.add_to_physmap_batch(DOMID_SELF, FOREIGN, [0x100], [FREE], foreign_domid=NOBODY), [-3]),
    ("batch: foreign of its own", lambda w: w.dom0.memory.add_to_physmap_batch(DOMID_SELF, FOREIGN, [0x100], [FREE], foreign_domid=0), [-1]),
    ("batch: foreign of SELF", lambda w: w.dom0.memory.add_to_physmap_batch(DOMID_SELF, FOREIGN, [0x100], [FREE], foreign_domid=DOMID_SELF), [-1]),
    ("batch: foreign without privilege", lambda w: w.other.memory.add_to_physmap_batch(DOMID_SELF, FOREIGN, [0x100], [FREE], foreign_domid=1), [-1]),
    ("batch: dom0 into a guest without privilege", lambda w: w.dom0.memory.add_to_physmap_batch(2, FOREIGN, [0x100], [FREE], foreign_domid=1), [-1]),
    ("batch: foreign, no RAM there", lambda w: w.dom0.memory.add_to_physmap_batch(DOMID_SELF, FOREIGN, [FREE], [FREE], foreign_domid=1), [-22]),
    ("batch: foreign of a grant", lambda w: w.dom0.memory.add_to_physmap_batch(DOMID_SELF, FOREIGN, [GRANT_AT], [FREE], foreign_domid=1), [-22]),
    ("batch: foreign onto a foreign page", lambda w: w.dom0.memory.add_to_physmap_batch(DOMID_SELF, FOREIGN, [0x100], [FOREIGN_AT], foreign_domid=1), [-6]),
    ("batch: foreign pfn beyond 28 bits", lambda w: w.dom0.memory.add_to_physmap_batch(DOMID_SELF, FOREIGN, [0x100], [1 << 28], foreign_domid=1), [-22]),
    ("batch: grant frames", lambda w: w.guest.memory.add_to_physmap_batch(DOMID_SELF, GRANT_TABLE, [0, 1, 4], [FREE, FREE + 1, FREE + 2]), [0, 0, -22]),
    ("batch: empty", lambda w: w.guest.memory.add_to_physmap_batch(DOMID_SELF, GMFN, [], []), []),
    ("batch: range", lambda w: w.guest.memory.add_to_physmap_batch(DOMID_SELF, GMFN_RANGE, [0x1F8], [FREE]), "EOPNOTSUPP"),
    ("batch: range before the domain is looked up", lambda w: w.guest.memory.add_to_physmap_batch(NOBODY, GMFN_RANGE, [0x1F8], [FREE]), "EOPNOTSUPP"),
    ("batch: unknown domain", lambda w: w.guest.memory.add_to_physmap_batch(NOBODY, GMFN, [0x1F8], [FREE]), "ESRCH"),
    ("batch: PV", lambda w: w.pv.memory.add_to_physmap_batch(DOMID_SELF, GMFN, [0x1F8], [FREE]), "EACCES"),
    ("batch: another domain", lambda w: w.other.memory.add_to_physmap_batch(1, GMFN, [0x1F8], [FREE]), "EPERM"),
    ("batch: INVALID_GFN first", lambda w: w.guest.memory.add_to_physmap_batch(DOMID_SELF, GMFN, [0x1F8, 0x1F0], [INVALID_GFN, FREE]), "EINVAL"),
]

REMOVES: list[Row] = [
    ("remove: RAM", lambda w: w.guest.memory.remove_from_physmap(DOMID_SELF, 0x1F8), None),
    ("remove: untouched RAM", lambda w: w.guest.memory.remove_from_physmap(DOMID_SELF, 0x1F0), None),
    ("remove: shared_info", lambda w: w.guest.memory.remove_from_physmap(DOMID_SELF, SPECIAL_AT), None),
    ("remove: grant frame, by dom0", lambda w: w.dom0.memory.remove_from_physmap(1, GRANT_FRAME_AT), None),
    ("remove: foreign page", lambda w: w.dom0.memory.remove_from_physmap(DOMID_SELF, FOREIGN_AT), None),
    ("remove: resource page", lambda w: w.dom0.memory.remove_from_physmap(DOMID_SELF, RESOURCE_AT), None),
    ("remove: a hole", lambda w: w.guest.memory.remove_from_physmap(DOMID_SELF, FREE), "ENOENT"),
    ("remove: beyond 28 bits", lambda w: w.guest.memory.remove_from_physmap(DOMID_SELF, INVALID_GFN), "ENOENT"),
    ("remove: unknown domain", lambda w: w.guest.memory.remove_from_physmap(NOBODY, 0x1F8), "ESRCH"),
    ("remove: PV", lambda w: w.pv.memory.remove_from_physmap(DOMID_SELF, 0x1F8), "EACCES"),
    ("remove: another domain", lambda w: w.other.memory.remove_from_physmap(1, 0x1F8), "EPERM"),
]

RESOURCES: list[Row] = [
    ("resource: size of the grant table", lambda w: w.dom0.memory.acquire_resource(1, 1, 0), 4),
    ("resource: size of the status frames", lambda w: w.dom0.memory.acquire_resource(1, 1, 1), 1),
    ("resource: all, the table grown", lambda w: w.dom0.memory.acquire_resource(1, 1, 0, nr_frames=4, gpfns=[FREE, FREE + 1, FREE + 2, FREE + 3]), 4),
    ("resource: the last frame only", lambda w: w.dom0.memory.acquire_resource(1, 1, 0, frame=3, nr_frames=1, gpfns=[FREE]), 1),
    ("resource: by its device model", lambda w: w.stub.memory.acquire_resource(1, 1, 0, nr_frames=1, gpfns=[FREE]), 1),
    ("resource: pad", lambda w: w.dom0.memory.acquire_resource(1, 1, 0, pad=1), "EINVAL"),
    ("resource: pad before the domain", lambda w: w.dom0.memory.acquire_resource(NOBODY, 1, 0, pad=1), "EINVAL"),
    ("resource: frame of 33 bits", lambda w: w.dom0.memory.acquire_resource(1, 1, 0, frame=1 << 32, nr_frames=1, gpfns=[FREE]), "EINVAL"),
    ("resource: frame + nr of 33 bits", lambda w: w.dom0.memory.acquire_resource(1, 1, 0, frame=(1 << 32) - 1, nr_frames=1, gpfns=[FREE]), "EINVAL"),
    ("resource: unknown domain", lambda w: w.dom0.memory.acquire_resource(NOBODY, 1, 0), "ESRCH"),
    ("resource: SELF", lambda w: w.dom0.memory.acquire_resource(DOMID_SELF, 1, 0), "ESRCH"),
    ("resource: its own", lambda w: w.dom0.memory.acquire_resource(0, 1, 0), "EPERM"),
    ("resource: another domain", lambda w: w.other.memory.acquire_resource(1, 1, 0), "EPERM"),
    ("resource: type 3", lambda w: w.dom0.memory.acquire_resource(1, 3, 0), "EINVAL"),
    ("resource: type 3 without privilege", lambda w: w.other.memory.acquire_resource(1, 3, 0), "EPERM"),
    ("resource: id 2", lambda w: w.dom0.memory.acquire_resource(1, 1, 2), "EINVAL"),
    ("resource: list of none", lambda w: w.dom0.memory.acquire_resource(1, 1, 0, gpfns=[]), "EINVAL"),
    ("resource: frames without a list", lambda w: w.dom0.memory.acquire_resource(1, 1, 0, nr_frames=1), "EINVAL"),
    ("resource: a list that is shorter", lambda w: w.dom0.memory.acquire_resource(1, 1, 0, nr_frames=2, gpfns=[FREE]), "EFAULT"),
    ("resource: beyond the maximum", lambda w: w.dom0.memory.acquire_resource(1, 1, 0, frame=4, nr_frames=1, gpfns=[FREE]), "EINVAL"),
    ("resource: status frames in v1", lambda w: w.dom0.memory.acquire_resource(1, 1, 1, nr_frames=1, gpfns=[FREE]), "EINVAL"),
    ("resource: pfn beyond 28 bits", lambda w: w.dom0.memory.acquire_resource(1, 1, 0, nr_frames=1, gpfns=[1 << 28]), "EINVAL"),
    ("resource: another than the first", lambda w: w.dom0.memory.acquire_resource(1, 1, 0, nr_frames=2, gpfns=[RESOURCE_AT + 1, 1 << 28]), "EIO"),
]

ROWS = COUNTS + VALUES + CLAIMS + ADDS + BATCHES + REMOVES + RESOURCES
# Their first entries are done when a later one fails.
PARTIAL = {"resource: another than the first"}


@pytest.mark.parametrize(("call", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_memory_op(world: World, request: pytest.FixtureRequest, call: Callable[[World], Any], expected: Any) -> None:
    before = world.state()
    if isinstance(expected, str):
        with pytest.raises(HypercallError) as caught:
            call(world)
        assert caught.value.name == expected
        assert caught.value.operation.startswith("XENMEM_")
        assert caught.value.arguments["domid"] is not None
        changes = request.node.callspec.id in PARTIAL
    else:
        assert call(world) == expected
        failed = isinstance(expected, list) and all(one < 0 for one in expected)
        changes = expected != 0 and not failed
    if not changes:
        assert world.state() == before


# What else an operation does: (situation, operation, what must hold then).
EFFECTS: list[tuple[str, Callable[[World], Any], Callable[[World], bool]]] = [
    ("populate over RAM unhooks it, which still counts", lambda w: w.guest.memory.populate_physmap(DOMID_SELF, [0x1F8]), lambda w: w.guest.memory.current_reservation() == 257 and w.guest.read(0x1F8, 0, 7) == bytes(7)),
    ("populate over a grant crashes the domain", lambda w: w.guest.memory.populate_physmap(DOMID_SELF, [GRANT_AT]), lambda w: w.guest.shutdown_code == 3 and w.guest.memory.current_reservation() == 256),
    ("populate over a foreign page crashes the domain", lambda w: w.dom0.memory.populate_physmap(DOMID_SELF, [FOREIGN_AT]), lambda w: w.dom0.shutdown_code == 3),
    ("an extent over a grant crashes the target, not the caller", lambda w: w.dom0.memory.populate_physmap(1, [GRANT_AT & ~3], order=2), lambda w: w.guest.shutdown_code == 3 and w.dom0.shutdown_code is None),
    ("a resource over a grant crashes the caller", lambda w: refused(w.dom0.memory.acquire_resource, 1, 1, 0, nr_frames=1, gpfns=[RESOURCE_AT]), lambda w: w.dom0.shutdown_code == 3),
    ("a resource over RAM unhooks it", lambda w: w.dom0.memory.acquire_resource(1, 1, 0, nr_frames=1, gpfns=[0x100]), lambda w: w.dom0.memory.current_reservation() == 256 and lib.p2m_type(w.dom0.kernel, 0x100) == lib.P2M_FOREIGN),
    ("populate over shared_info unhooks it", lambda w: w.guest.memory.populate_physmap(DOMID_SELF, [SPECIAL_AT]), lambda w: lib.p2m_type(w.guest.kernel, SPECIAL_AT) == lib.P2M_RAM),
    ("decrease gives up a partial extent", lambda w: w.guest.memory.decrease_reservation(DOMID_SELF, [0x1FE], order=2), lambda w: w.guest.memory.current_reservation() == 254),
    ("shared_info moves", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, SHARED_INFO, 0, FREE), lambda w: lib.p2m_type(w.guest.kernel, SPECIAL_AT) == lib.P2M_NONE and lib.p2m_type(w.guest.kernel, FREE) == lib.P2M_XEN),
    ("shared_info frees the RAM at its place", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, SHARED_INFO, 0, 0x1F9), lambda w: w.guest.memory.current_reservation() == 255),
    ("a grant frame moves", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, GRANT_TABLE, 0, FREE), lambda w: lib.p2m_type(w.guest.kernel, GRANT_FRAME_AT) == lib.P2M_NONE),
    ("the grant table grows", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, GRANT_TABLE, 2, FREE), lambda w: w.guest.gnttab.nr_frames == 3),
    ("gmfn takes the contents along and frees what was there", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, GMFN, 0x1F8, 0x1F9), lambda w: w.guest.read(0x1F9, 0, 7) == b"touched" and w.guest.memory.current_reservation() == 255),
    ("a range moves upwards onto itself", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, GMFN_RANGE, 0x1F8, 0x1FA, size=6), lambda w: w.guest.read(0x1FA, 0, 7) == b"touched" and w.guest.memory.current_reservation() == 254),
    ("a range moves downwards onto itself", lambda w: w.guest.memory.add_to_physmap(DOMID_SELF, GMFN_RANGE, 0x1F8, 0x1F6, size=8), lambda w: w.guest.read(0x1F6, 0, 7) == b"touched" and w.guest.memory.current_reservation() == 254),
    ("a foreign page is the same page", lambda w: w.dom0.write(FOREIGN_AT, 0, b"written"), lambda w: w.guest.read(0x1F8, 0, 7) == b"written"),
    ("a foreign page frees the RAM at its place", lambda w: w.dom0.memory.add_to_physmap_batch(DOMID_SELF, FOREIGN, [0x100], [0x100], foreign_domid=1), lambda w: w.dom0.memory.current_reservation() == 255),
    ("a ballooned page that is mapped still counts", lambda w: w.guest.memory.decrease_reservation(DOMID_SELF, [0x1F8]), lambda w: w.guest.memory.current_reservation() == 256 and w.dom0.read(FOREIGN_AT, 0, 7) == b"touched"),
    ("remove keeps RAM in tot_pages", lambda w: w.guest.memory.remove_from_physmap(DOMID_SELF, 0x1F8), lambda w: w.guest.memory.current_reservation() == 256 and lib.p2m_type(w.guest.kernel, 0x1F8) == lib.P2M_NONE),
    ("increase counts pages at no pfn", lambda w: w.guest.memory.increase_reservation(DOMID_SELF, 5), lambda w: w.guest.memory.current_reservation() == 261),
    ("maximum_gpfn never falls", lambda w: w.guest.memory.populate_physmap(DOMID_SELF, [0x5000]) + w.guest.memory.decrease_reservation(DOMID_SELF, [0x5000]), lambda w: w.guest.memory.maximum_gpfn() == 0x5000),
    ("INVALID_GFN ends a batch after what was done", lambda w: refused(w.guest.memory.add_to_physmap_batch, DOMID_SELF, GMFN, [0x1F8, 0x1F9], [FREE, INVALID_GFN]), lambda w: w.guest.read(FREE, 0, 7) == b"touched"),
    ("a claim keeps others from the memory", lambda w: [w.dom0.memory.claim_pages(1, 512), lib.domain_set_max_pages(w.other.kernel, 1 << 20), w.other.memory.increase_reservation(DOMID_SELF, NR_FRAMES)], lambda w: lib.machine_free_pages(w.hypervisor.machine) == 256),
    ("a claim is used up by its domain", lambda w: [w.dom0.memory.claim_pages(1, 512), w.guest.memory.populate_physmap(DOMID_SELF, [FREE])], lambda w: lib.domain_outstanding_pages(w.guest.kernel) == 255),
    ("a claim is given up", lambda w: [w.dom0.memory.claim_pages(1, 512), w.dom0.memory.claim_pages(1, 0)], lambda w: lib.domain_outstanding_pages(w.guest.kernel) == 0),
    ("a second claim is EINVAL", lambda w: [w.dom0.memory.claim_pages(1, 512), refused(w.dom0.memory.claim_pages, 1, 400)], lambda w: lib.domain_outstanding_pages(w.guest.kernel) == 256),
    ("a claim beyond the machine is ENOMEM", lambda w: [lib.domain_set_max_pages(w.guest.kernel, 1 << 20), refused(w.dom0.memory.claim_pages, 1, NR_FRAMES)], lambda w: lib.domain_outstanding_pages(w.guest.kernel) == 0),
    ("the machine runs out: a short count", lambda w: lib.domain_set_max_pages(w.guest.kernel, 1 << 20) or w.guest.memory.increase_reservation(DOMID_SELF, NR_FRAMES), lambda w: lib.machine_free_pages(w.hypervisor.machine) == 0 and w.other.memory.populate_physmap(DOMID_SELF, [FREE]) == 0),
    ("max_pages below tot_pages: no growth", lambda w: lib.domain_set_max_pages(w.guest.kernel, 10), lambda w: w.guest.memory.populate_physmap(DOMID_SELF, [FREE]) == 0 and w.guest.memory.current_reservation() == 256),
    ("a PV caller gets frames from populate", lambda w: w.pv.memory.populate_physmap(DOMID_SELF, [FREE]), lambda w: lib.frame_owner(w.hypervisor.machine, lib.p2m_lookup(w.pv.kernel, FREE, 0)) == 4),
]


@pytest.mark.parametrize(("call", "holds"), [row[1:] for row in EFFECTS], ids=[row[0] for row in EFFECTS])
def test_memory_op_leaves(world: World, call: Callable[[World], Any], holds: Callable[[World], bool]) -> None:
    call(world)
    assert holds(world)
