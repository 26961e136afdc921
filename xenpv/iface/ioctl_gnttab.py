"""The grant codes of XENIFACE, 0x824 to 0x827: pending for the life of a mapping.

win-xeniface ioctl_gnttab.c, the V2 codes, keyed by process and address. A request completes
SUCCESS by a revoke or unmap, CANCELLED when it is cancelled or its thread ends.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.errors import GrantError, HypercallError
from xenpv.iface.ioctl import Irp, bad_parameter, bad_size
from xenpv.iface.store import statuses
from xenpv.xen.domain import PAGE_SIZE

if TYPE_CHECKING:
    from xenpv.iface.device import XenIface
    from xenpv.iface.process import Process

PAGES_MAX: Final = 1024 * 1024
PERMIT_IN: Final = struct.Struct("<H6xQ4I")
MAP_IN: Final = struct.Struct("<H2x4I")  # and the references
MAP_IN_SIZE_MIN: Final = 24  # with one
REFERENCE: Final = struct.Struct("<I")
ADDRESS: Final = struct.Struct("<Q")


class PageFlags(enum.IntFlag):
    """XENIFACE_GNTTAB_PAGE_FLAGS."""

    READONLY = 1
    USE_NOTIFY_OFFSET = 2
    USE_NOTIFY_PORT = 4


class Kind(enum.Enum):
    GRANT = "grant"
    MAP = "map"


@attrs.define(eq=False)
class GnttabContext:
    """A grant or a map, and the request that waits for its end.

    `allocated`: the driver made the pages. `handles` are those of the maptrack, by page.
    """

    kind: Kind
    process: Process
    domid: int
    nr_pages: int
    flags: PageFlags
    notify_offset: int
    notify_port: int
    address: int = 0
    allocated: bool = False
    pfns: list[int] = attrs.field(factory=list)
    refs: list[int] = attrs.field(factory=list)
    handles: list[int] = attrs.field(factory=list)
    irp: Irp | None = None

    @property
    def readonly(self) -> bool:
        return bool(self.flags & PageFlags.READONLY)


class IoctlGnttab:
    """The grants and maps of one device, oldest first.

    `mapped_still` are references that a peer holds after their revocation, with their page:
    neither is used again before it lets go.
    """

    def __init__(self, device: XenIface) -> None:
        self.device = device
        self.contexts: list[GnttabContext] = []
        self.mapped_still: list[tuple[int, int]] = []

    def handlers(self) -> dict[int, Callable[[Irp], bytes | None]]:
        return {0x824: self.permit, 0x825: self.revoke, 0x826: self.map, 0x827: self.unmap}

    def _find(self, kind: Kind, process: Process, address: int) -> GnttabContext | None:
        for context in self.contexts:
            if (context.kind, context.process, context.address) == (kind, process, address):
                return context
        return None

    def _pend(self, context: GnttabContext, irp: Irp, output: bytes) -> None:
        context.irp = irp
        irp.output, irp.information = output, len(output)
        irp.cancelled = self._cancelled
        self.contexts.append(context)

    def permit(self, irp: Irp) -> None:
        """Out: the address, and a reference for each page."""
        domid, address, nr_pages, flags, offset, port = PERMIT_IN.unpack(irp.buffer)
        _check_pages(nr_pages, flags, offset)
        if irp.out_size != ADDRESS.size + REFERENCE.size * nr_pages:
            raise bad_size(f"{irp.out_size} bytes out for {nr_pages} pages")
        self.retry_revokes()
        process = irp.process
        if address and self._find(Kind.GRANT, process, address):
            raise bad_parameter(f"{address:#x} is granted already")
        context = GnttabContext(
            Kind.GRANT, process, domid, nr_pages, PageFlags(flags), offset, port, address
        )
        self._take_pages(context)
        self._grant(context)
        if context.allocated:
            context.address = process.map(context.pfns)
        refs = b"".join(map(REFERENCE.pack, context.refs))
        self._pend(context, irp, ADDRESS.pack(context.address) + refs)

    def _take_pages(self, context: GnttabContext) -> None:
        """New pages, or those of the user's buffer, locked. NO_MEMORY, ACCESS_VIOLATION."""
        process = context.process
        if not context.address:
            context.allocated = True
            context.pfns = process.pages.take(context.nr_pages)
            return
        # As the driver's MDL: from the start of the page that the address is in.
        region = process.region(context.address, context.nr_pages * PAGE_SIZE)
        if not region.allocated or not (region.writable or context.readonly):
            reason = f"{context.address:#x} cannot be locked"
            raise NtStatusError(NTSTATUS.ACCESS_VIOLATION, reason)
        first = (context.address - region.base) // PAGE_SIZE
        context.pfns = list(region.pfns[first : first + context.nr_pages])

    def _grant(self, context: GnttabContext) -> None:
        gnttab, pages = self.device.bus.gnttab, context.process.pages
        try:
            for pfn in context.pfns:
                with statuses("GNTTAB PermitForeignAccess"):
                    ref = gnttab.permit_foreign_access(
                        context.domid, pfn, readonly=context.readonly
                    )
                context.refs.append(ref)
                pages.lock(pfn)
        except NtStatusError:
            self._stop_sharing(context)
            raise

    def _stop_sharing(self, context: GnttabContext) -> None:
        pages = context.process.pages
        for ref, pfn in zip(context.refs, context.pfns, strict=False):
            if self.device.bus.gnttab.revoke_foreign_access(ref):
                pages.unlock(pfn)
            else:
                self.mapped_still.append((ref, pfn))
        if context.allocated:
            pages.give_back(context.pfns)

    def retry_revokes(self) -> None:
        """Take back what a peer has let go of meanwhile."""
        waiting, self.mapped_still = self.mapped_still, []
        for ref, pfn in waiting:
            if self.device.bus.gnttab.revoke_foreign_access(ref):
                self.device.pages.unlock(pfn)
            else:
                self.mapped_still.append((ref, pfn))

    def revoke(self, irp: Irp) -> bytes:
        self.retry_revokes()
        self._finish(self._of(irp, Kind.GRANT), NTSTATUS.SUCCESS)
        return b""

    def unmap(self, irp: Irp) -> bytes:
        self._finish(self._of(irp, Kind.MAP), NTSTATUS.SUCCESS)
        return b""

    def _of(self, irp: Irp, kind: Kind) -> GnttabContext:
        (address,) = ADDRESS.unpack(irp.buffer)
        context = self._find(kind, irp.process, address)
        if context is None:
            raise NtStatusError(NTSTATUS.NOT_FOUND, f"no {kind.value} at {address:#x}")
        return context

    def _cancelled(self, irp: Irp) -> None:
        context = next(one for one in self.contexts if one.irp is irp)
        self._finish(context, NTSTATUS.CANCELLED)

    def _finish(self, context: GnttabContext, status: NTSTATUS) -> None:
        """Zero byte, then notify and end the grants, or unmap and notify; then the request."""
        self.contexts.remove(context)
        irp = context.irp
        assert irp is not None
        self._clear_byte(context)
        if context.kind is Kind.GRANT:
            self._notify(context)
            if context.allocated:
                context.process.unmap(context.address)
            self._stop_sharing(context)
        else:
            context.process.unmap(context.address)
            self._unmap_pages(context)
            self._notify(context)
        irp.complete(status)

    def _clear_byte(self, context: GnttabContext) -> None:
        if not context.flags & PageFlags.USE_NOTIFY_OFFSET:
            return
        at = context.notify_offset
        if context.kind is Kind.GRANT and not context.allocated:
            at += context.address % PAGE_SIZE
        page, offset = divmod(at, PAGE_SIZE)
        try:
            if page < len(context.pfns):
                self.device.bus.domain.write(context.pfns[page], offset, b"\0")
        except HypercallError as error:
            # Mapped read-only, or gone with a suspend: the driver would fault.
            self.device.log(f"notify offset {context.notify_offset:#x}: {error}")

    def _notify(self, context: GnttabContext) -> None:
        """A port of any file; failure is only logged."""
        if context.flags & PageFlags.USE_NOTIFY_PORT:
            try:
                self.device.evtchn.send(context.notify_port, None)
            except NtStatusError as error:
                self.device.log(f"notify port {context.notify_port}: {error.status.name}")

    def map(self, irp: Irp) -> None:
        """Out: the address of the pages in the process."""
        size = len(irp.buffer)
        if size < MAP_IN_SIZE_MIN:
            raise bad_size(f"{size} bytes in")
        domid, nr_pages, flags, offset, port = MAP_IN.unpack_from(irp.buffer)
        if nr_pages != (size - MAP_IN.size) // REFERENCE.size:
            raise bad_parameter(f"{nr_pages} pages, {size} bytes in")
        _check_pages(nr_pages, flags, offset)
        if (size - MAP_IN.size) % REFERENCE.size:
            raise bad_size(f"{size} bytes in for {nr_pages} pages")
        context = GnttabContext(
            Kind.MAP, irp.process, domid, nr_pages, PageFlags(flags), offset, port
        )
        context.refs = [ref for (ref,) in REFERENCE.iter_unpack(irp.buffer[MAP_IN.size :])]
        self._map_pages(context)
        context.address = irp.process.map(context.pfns, writable=not context.readonly)
        self._pend(context, irp, ADDRESS.pack(context.address))

    def _map_pages(self, context: GnttabContext) -> None:
        """MapForeignPages: all, or none and the status of the one that failed."""
        gnttab = self.device.bus.gnttab
        try:
            for ref in context.refs:
                with statuses("GNTTAB MapForeignPages"):
                    pfn, handle = gnttab.map_foreign_page(
                        context.domid, ref, readonly=context.readonly
                    )
                context.pfns.append(pfn)
                context.handles.append(handle)
        except NtStatusError:
            self._unmap_pages(context)
            raise

    def _unmap_pages(self, context: GnttabContext) -> None:
        for pfn, handle in zip(context.pfns, context.handles, strict=True):
            try:
                self.device.bus.gnttab.unmap_foreign_page(pfn, handle)
            except (GrantError, HypercallError) as error:
                # The driver asserts that this cannot be.
                self.device.log(f"unmap of pfn {pfn:#x}: {error}")


def _check_pages(nr_pages: int, flags: int, offset: int) -> None:
    if not 0 < nr_pages <= PAGES_MAX:
        raise bad_parameter(f"{nr_pages} pages")
    if flags & PageFlags.USE_NOTIFY_OFFSET and offset >= nr_pages * PAGE_SIZE:
        raise bad_parameter(f"notify offset {offset:#x} in {nr_pages} pages")
