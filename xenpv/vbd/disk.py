"""A disk as an application of the guest sees it: blocks by SCSI commands.

Called from outside the loop: every method lets it run until the answer is there, but for
those that begin with `start_`. What stands in for the class driver splits transfers to what
the adapter takes and keeps several of them in flight. Unlike disk.sys it repeats nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpv.abi._kernel import ffi, lib
from xenpv.errors import HypercallError, LocalProtocolError, XenpvError
from xenpv.vbd.srb import ScsiStatus, Srb, SrbFunction, SrbStatus
from xenpv.xen.domain import PAGE_SIZE

if TYPE_CHECKING:
    from xenpv.vbd.pending import Pending
    from xenpv.vbd.target import Target

TRANSFER_MAX: Final = 4 << 20
IN_FLIGHT_MAX: Final = 4  # transfers of TRANSFER_MAX: 16 MiB of the guest's memory
REPLY_SIZE: Final = 512

INQUIRY: Final = 0x12
READ_10: Final = 0x28
WRITE_10: Final = 0x2A
SYNCHRONIZE_CACHE_10: Final = 0x35
READ_16: Final = 0x88
WRITE_16: Final = 0x8A
READ_CAPACITY_16: Final = 0x9E
U32_MAX: Final = (1 << 32) - 1
U16_MAX: Final = (1 << 16) - 1


class DiskError(XenpvError):
    """A command failed; `srb_status` and `scsi_status` are what the port set."""

    def __init__(self, what: str, srb: Srb) -> None:
        self.srb_status: SrbStatus = srb.srb_status
        self.scsi_status: ScsiStatus = srb.scsi_status
        super().__init__(
            f"{what}: SRB status {srb.srb_status.name}, SCSI status {srb.scsi_status.name}"
        )


class Buffer:
    """Adjacent pages of the guest; `pages` of them from `pfn`."""

    __slots__ = ("pages", "pfn")

    def __init__(self, pfn: int, pages: int) -> None:
        self.pfn = pfn
        self.pages = pages


class Disk:
    """One disk. Raises DiskError where a command fails, LocalProtocolError for a range of
    sectors that no disk has, and where the loop comes to rest without an answer.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self._idle: list[Buffer] = []  # kept from transfer to transfer, smallest first
        self._held: list[Buffer] = []  # the backend had a page of it when its transfer ended
        self._scratch = bytearray()
        self._gone = False  # nothing is kept for another transfer

    def __repr__(self) -> str:
        return f"<Disk {self.target.devid} target {self.target.target_id}>"

    @property
    def devid(self) -> int:
        return self.target.devid

    # commands

    @property
    def capacity(self) -> int:
        """Sectors, by READ CAPACITY(16)."""
        return int.from_bytes(self._read_capacity()[:8], "big") + 1

    @property
    def sector_size(self) -> int:
        """Bytes of a logical sector, by READ CAPACITY(16)."""
        return int.from_bytes(self._read_capacity()[8:12], "big")

    def _read_capacity(self) -> bytes:
        return self.command(bytes((READ_CAPACITY_16, 0x10)).ljust(16, b"\0"), 32)

    def inquiry(self, page: int | None = None) -> bytes:
        """Standard data, or a page of vital product data."""
        return self.command(bytes((INQUIRY, page is not None, page or 0, 0, 255, 0)), 255)

    def flush(self) -> None:
        """Everything written so far is on stable storage when this returns."""
        self.command(bytes((SYNCHRONIZE_CACHE_10,)).ljust(10, b"\0"))

    def command(self, cdb: bytes, reply_size: int = 0) -> bytes:
        """Send any CDB that moves at most a page to the guest; the bytes that came."""
        pages = self.target.domain.pages
        pfn = pages.alloc()
        data = [(pfn, 0, min(reply_size, PAGE_SIZE))] if reply_size else []
        srb = self._srb(cdb, data)
        self.target.submit(srb)
        self._wait([srb])
        reply = self.target.domain.read(pfn, 0, srb.data_transfer_length) if data else b""
        pages.free(pfn)
        self._check(f"command {cdb[0]:#04x}", srb)
        return reply

    def read(self, lba: int, count: int) -> bytes:
        """`count` sectors from sector `lba`."""
        if count < 0:
            raise LocalProtocolError(f"a read of {count} sectors")
        size = count * self.target.sector_size
        if size > TRANSFER_MAX:
            out = bytearray(size)
            self.read_into(lba, out)
            return bytes(out)
        # Fresh megabytes cost more page faults than the whole transfer does.
        if size > len(self._scratch):
            self._scratch = bytearray(size)
        view = memoryview(self._scratch)[:size]
        self.read_into(lba, view)
        return bytes(view)

    def read_into(self, lba: int, out: bytearray | memoryview) -> None:
        """Fill `out`, whose length is a multiple of the sector size, from sector `lba`."""
        self._transfer(lba, out, writes=False)

    def write(self, lba: int, data: bytes | bytearray | memoryview) -> None:
        """`data`, a multiple of the sector size, from sector `lba` on."""
        self._transfer(lba, data, writes=True)

    # commands that nobody waits for

    def start_read(self, lba: int, count: int) -> Pending:
        """Submit a read of `count` sectors and return; it goes on when the platform runs."""
        if count < 0:
            raise LocalProtocolError(f"a read of {count} sectors")
        return self._start(lba, count * self.target.sector_size, None)

    def start_write(self, lba: int, data: bytes | bytearray | memoryview) -> Pending:
        """Submit a write of `data`, which is copied, and return."""
        view = memoryview(data).cast("B")
        return self._start(lba, view.nbytes, view)

    def start_flush(self) -> Pending:
        """Submit SYNCHRONIZE CACHE and return."""
        from xenpv.vbd.pending import Pending, Piece

        pending = Pending(self, "flush", 0, reads=False)
        srb = self._srb(bytes((SYNCHRONIZE_CACHE_10,)).ljust(10, b"\0"), [])
        pending.pieces.append(Piece(pending, 0, None, srb))
        self.target.submit(srb)
        return pending

    def _start(self, lba: int, nr_bytes: int, data: memoryview | None) -> Pending:
        """The whole command is on its way, or LocalProtocolError and none of it is."""
        from xenpv.vbd.pending import Pending, Piece

        domain, size = self.target.domain, self.target.sector_size
        if nr_bytes % size or not 0 <= lba <= (1 << 64) - nr_bytes // size:
            raise LocalProtocolError(
                f"{nr_bytes} bytes at sector {lba}: expected whole sectors of {size}"
            )
        what = f"{'read' if data is None else 'write'} at sector {lba}"
        pending = Pending(self, what, nr_bytes, reads=data is None)
        at = 0
        while at < nr_bytes:
            buffer = self._buffer(nr_bytes - at, optional=True)
            if buffer is None:
                for piece in pending.pieces:
                    assert piece.buffer is not None
                    self.put(piece.buffer)
                raise LocalProtocolError(f"{what}: the guest has no memory for {nr_bytes} bytes")
            length = min(nr_bytes - at, buffer.pages * PAGE_SIZE)
            if data is not None:
                domain.write(buffer.pfn, 0, data[at : at + length])
            cdb = _cdb(lba + at // size, length // size, data is not None)
            srb = self._srb(cdb, [(buffer.pfn, 0, length)])
            pending.pieces.append(Piece(pending, at, buffer, srb))
            at += length
        for piece in list(pending.pieces):
            self.target.submit(piece.srb)
        return pending

    # transfers

    def _transfer(self, lba: int, data: bytes | bytearray | memoryview, *, writes: bool) -> None:
        size = self.target.sector_size
        view = memoryview(data).cast("B")
        if lba < 0 or view.nbytes % size:
            raise LocalProtocolError(
                f"{view.nbytes} bytes at sector {lba}: expected whole sectors of {size}"
            )
        at = 0
        while at < view.nbytes:
            at = self._window(lba, view, at, writes)

    def _window(self, lba: int, view: memoryview, at: int, writes: bool) -> int:
        """Transfers in flight together, from byte `at` on; where the next begin."""
        domain, size = self.target.domain, self.target.sector_size
        # A bare address: `view` keeps the memory where it is.
        memory = ffi.cast("uint8_t *", ffi.from_buffer(view))
        flying: list[tuple[int, int, Buffer, Srb]] = []
        while at < view.nbytes and len(flying) < IN_FLIGHT_MAX:
            buffer = self._buffer(view.nbytes - at, bool(flying))
            if buffer is None:
                break
            length = min(view.nbytes - at, buffer.pages * PAGE_SIZE)
            if writes:
                domain.write(buffer.pfn, 0, view[at : at + length])
            srb = self._srb(
                _cdb(lba + at // size, length // size, writes), [(buffer.pfn, 0, length)]
            )
            self.target.submit(srb)
            flying.append((at, length, buffer, srb))
            at += length
        self._wait([srb for _at, _length, _buffer, srb in flying])
        for start, length, buffer, srb in flying:
            if not writes and srb.srb_status is SrbStatus.SUCCESS:
                done = lib.page_read(domain.kernel, buffer.pfn, 0, memory + start, length)
                domain.check(done)
            self.put(buffer)
        for start, _length, _buffer, srb in flying:
            self._check(f"{'write' if writes else 'read'} at sector {lba + start // size}", srb)
        return at

    def _srb(self, cdb: bytes, data: list[tuple[int, int, int]]) -> Srb:
        return Srb(
            function=SrbFunction.EXECUTE_SCSI,
            cdb=cdb,
            data=data,
            target_id=self.target.target_id,
        )

    def _wait(self, srbs: list[Srb]) -> None:
        loop = self.target.domain.loop
        if all(srb.is_complete for srb in srbs):
            return
        loop.run()
        lost = sum(not srb.is_complete for srb in srbs)
        if lost:
            raise LocalProtocolError(
                f"{self!r}: nothing is left to run, and {lost} of {len(srbs)} commands are "
                f"unanswered (target {self.target.state.value})"
            )

    @staticmethod
    def _check(what: str, srb: Srb) -> None:
        if srb.srb_status is not SrbStatus.SUCCESS:
            raise DiskError(what, srb)

    # memory

    def _buffer(self, nr_bytes: int, optional: bool) -> Buffer | None:
        """Room for a transfer of up to `nr_bytes`; None if there is none and it is optional.

        A guest without that much memory in one piece gets smaller transfers.
        """
        if self._held:
            held, self._held = self._held, []
            for buffer in held:
                self.put(buffer)
        # Powers of two, so that the pool of pages does not fill with runs of every length.
        pages = 1 << (-(-min(nr_bytes, TRANSFER_MAX) // PAGE_SIZE) - 1).bit_length()
        if self._idle and self._idle[-1].pages >= pages:
            return self._idle.pop()
        while pages:
            try:
                return Buffer(self.target.domain.pages.alloc(pages), pages)
            except HypercallError:
                if self._idle:
                    return self._idle.pop()
                if optional:
                    return None
                pages //= 2
        raise LocalProtocolError("the guest has no page left for a transfer")

    def release(self) -> None:
        """The device is gone: no memory is kept. What is asked of it ends as NO_DEVICE."""
        self._gone = True
        idle, self._idle = self._idle, []
        held, self._held = self._held, []
        for buffer in [*idle, *held]:
            self.put(buffer)

    def put(self, buffer: Buffer) -> None:
        """Keep it for the next transfer, but not while the backend still holds a page of it."""
        if self.target.frontend.granter.holds(buffer.pfn, buffer.pages) and not self._gone:
            self._held.append(buffer)
            return
        if self._gone:
            self.target.frontend.granter.adopt(buffer.pfn, buffer.pages)
        elif len(self._idle) < IN_FLIGHT_MAX and (
            not self._idle or buffer.pages >= self._idle[-1].pages
        ):
            self._idle.append(buffer)
        else:
            self.target.domain.pages.free(buffer.pfn, buffer.pages)


def _cdb(lba: int, count: int, writes: bool) -> bytes:
    """READ or WRITE, of 10 bytes where LBA and count fit, else of 16."""
    if lba <= U32_MAX and count <= U16_MAX:
        head = bytes((WRITE_10 if writes else READ_10, 0))
        return head + lba.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"
    if lba >= 1 << 64:
        raise LocalProtocolError(f"sector {lba}")
    head = bytes((WRITE_16 if writes else READ_16, 0))
    return head + lba.to_bytes(8, "big") + count.to_bytes(4, "big") + b"\0\0"
