"""A domain's pages as its own kernel reaches them, by page frame number.

Every access goes through the kernel and its hook (abi/kernel/page.c), but for a `view`.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from errno import EFAULT, ENOMEM
from typing import TYPE_CHECKING, Any

from xenpv.abi._kernel import ffi, lib
from xenpv.errors import HypercallError, LocalProtocolError, PeerProtocolError
from xenpv.xen.arena import PAGE_SIZE
from xenpv.xen.memory import (
    HOLE_END_PFN,
    RAM_FIRST_PFN,
    SPECIAL_FIRST_PFN,
    SPECIAL_NR_PAGES,
    PagePool,
)

if TYPE_CHECKING:
    from xenpv.xen.hypervisor import Hypervisor


class Pages:
    """What Domain has of its pages, and what the results of kernel calls stand for."""

    domid: int
    kernel: Any
    pages: PagePool
    # Every ring handle that lives, and what it is over: how the test kit finds the rings.
    rings: dict[weakref.ref[Any], tuple[tuple[int, ...], int, int, str]]
    _hypervisor: Hypervisor

    def populate(self, nr_pages: int) -> None:
        """RAM of `nr_pages` from RAM_FIRST_PFN, at creation; HypercallError(ENOMEM) if short.

        What does not fit below the special pages is above the holes.
        """
        low = min(nr_pages, SPECIAL_FIRST_PFN - RAM_FIRST_PFN)
        done = self.check(lib.domain_populate(self.kernel, RAM_FIRST_PFN, low))
        if done == low < nr_pages:
            high = nr_pages - low
            done += self.check(lib.domain_populate(self.kernel, HOLE_END_PFN, high))
        if done != nr_pages:
            raise HypercallError(
                ENOMEM,
                f"{done} of {nr_pages} pages: the machine or max_pages has no more",
                operation="XENMEM_populate_physmap",
                arguments={"domid": self.domid, "nr_extents": nr_pages},
            )
        self.take_over(nr_pages)

    def take_over(self, nr_pages: int) -> list[range]:
        """A kernel starts: nobody in it has any of its RAM yet, whose pfns these are."""
        low, high = self.ram_runs(nr_pages)
        self.pages = PagePool(low.start, low.stop)
        if high:
            self.pages.add(high.start, len(high))
        return [low, high]

    @staticmethod
    def ram_runs(nr_pages: int) -> list[range]:
        """Where RAM of so many pages is, as the firmware's memory map has it; both may be empty."""
        low = min(nr_pages, SPECIAL_FIRST_PFN - RAM_FIRST_PFN)
        return [
            range(RAM_FIRST_PFN, RAM_FIRST_PFN + low),
            range(HOLE_END_PFN, HOLE_END_PFN + nr_pages - low),
        ]

    def populate_run(self, pfn: int, count: int) -> None:
        """RAM at `count` pfns from `pfn` on; HypercallError(ENOMEM) if not all of it is there."""
        done = self.check(lib.domain_populate(self.kernel, pfn, count))
        if done != count:
            raise HypercallError(
                ENOMEM,
                f"{done} of {count} pages at pfn {pfn:#x}",
                operation="XENMEM_populate_physmap",
                arguments={"domid": self.domid, "nr_extents": count},
            )

    def populate_special(self) -> None:
        """The pages between a guest and its store, console and device model."""
        self.check(lib.domain_populate(self.kernel, SPECIAL_FIRST_PFN, SPECIAL_NR_PAGES))

    def read(self, pfn: int, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` of page `pfn` on, running on into following pages."""
        out = bytearray(size)
        done = lib.page_read(self.kernel, pfn, offset, ffi.from_buffer(out), size)
        if done < 0:
            self.fail(done, f"read of {size} bytes at pfn {pfn:#x}+{offset:#x}")
        return bytes(out)

    def write(self, pfn: int, offset: int, data: bytes | bytearray | memoryview) -> None:
        done = lib.page_write(self.kernel, pfn, offset, ffi.from_buffer(data), len(data))
        if done < 0:
            self.fail(done, f"write of {len(data)} bytes at pfn {pfn:#x}+{offset:#x}")

    def load32(self, pfn: int, offset: int) -> int:
        """One aligned u32, read once."""
        value = lib.page_load32(self.kernel, pfn, offset)
        if value < 0:
            self.fail(value, f"load at pfn {pfn:#x}+{offset:#x}")
        return int(value)

    def store32(self, pfn: int, offset: int, value: int) -> None:
        done = lib.page_store32(self.kernel, pfn, offset, value)
        if done < 0:
            self.fail(done, f"store at pfn {pfn:#x}+{offset:#x}")

    def update32(self, pfn: int, offset: int, how: int, value: int) -> int:
        """A locked operation on one aligned u32, UPDATE_* of the kernel: what was there before."""
        before = lib.page_update32(self.kernel, pfn, offset, how, value)
        if before < 0:
            self.fail(before, f"update at pfn {pfn:#x}+{offset:#x}")
        return int(before)

    def view(self, pfn: int) -> memoryview:
        """The page itself; read-only if it is a read-only grant.

        Accesses through it bypass the hook. An arena with live views is not used again.
        """
        frame = self.check(lib.p2m_lookup(self.kernel, pfn, 1))
        start = frame * PAGE_SIZE
        page = memoryview(self._hypervisor.arena.views)[start : start + PAGE_SIZE]
        readonly = lib.p2m_type(self.kernel, pfn) == lib.P2M_GRANT_RO
        return page.toreadonly() if readonly else page

    def gather(self, pieces: Sequence[int], size: int) -> bytes:
        """The bytes of pieces, given flat as pfn, offset, size, pfn, offset, size, ..."""
        return bytes(self.collect(pieces, size))

    def collect(self, pieces: Sequence[int], size: int) -> bytearray:
        """`gather` for one who changes the bytes."""
        out = bytearray(size)
        count = len(pieces) // 3
        done = lib.page_gather(self.kernel, pieces, count, ffi.from_buffer(out), size)
        if done < 0:
            self.fail(done, f"gather of {count} pieces")
        return out

    def scatter(self, pieces: Sequence[int], data: bytes | bytearray | memoryview) -> None:
        """`data` into pieces, given as for `gather`."""
        count = len(pieces) // 3
        done = lib.page_scatter(self.kernel, pieces, count, ffi.from_buffer(data), len(data))
        if done < 0:
            self.fail(done, f"scatter of {count} pieces")

    def ring(self, pfns: Sequence[int], entry_size: int, rsp_size: int, kind: str = "") -> Any:
        """The kernel's handle on a ring in pages of this domain, in order. `kind` names what it
        carries, for who looks at it: "blkif", a protocol of one's own, or nothing.

        Freed with the last reference; HypercallError(EFAULT) if a page is not there.
        """
        handle = lib.ring_attach(self.kernel, list(pfns), len(pfns), entry_size, rsp_size)
        if handle == ffi.NULL:
            raise HypercallError(EFAULT, f"a ring of {entry_size}-byte entries at {list(pfns)}")
        # Not lib.ring_detach itself: the handle has a pointer to this domain and must keep it.
        handle = ffi.gc(handle, self._detach)
        self.rings[weakref.ref(handle, self.rings.pop)] = (tuple(pfns), entry_size, rsp_size, kind)
        return handle

    def _detach(self, ring: Any) -> None:
        lib.ring_detach(ring)

    # failures

    def check(self, result: int) -> int:
        """A kernel result, or the exception that it stands for."""
        if result < 0:
            self.fail(result, "")
        return result

    def fail(self, result: int, what: str) -> None:
        """Raise what a negative kernel result stands for."""
        if result == lib.KERNEL_E_ABORTED:
            self._hypervisor.raise_from_hook()
        if result == lib.KERNEL_E_OVERFLOW:
            raise PeerProtocolError(f"{what}: the peer's index runs past the ring")
        if result == lib.KERNEL_E_FORKED:
            raise LocalProtocolError(
                "this platform belongs to the parent process: make one after the fork"
            )
        raise HypercallError(-result, what)

    def fail_unless_gntst(self, status: int) -> None:
        """Kernel codes beyond the GNTST_ range are no grant status: raise them."""
        if status <= lib.KERNEL_E_FORKED:
            self.fail(status, "grant operation")
