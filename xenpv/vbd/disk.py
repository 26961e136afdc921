"""A disk as an application of the guest sees it: blocks by SCSI commands.

Called from outside the loop: every method lets it run until the answer is there, but for
those that begin with `start_`. What stands in for the class driver splits transfers to what
the adapter takes and keeps several of them in flight. Unlike disk.sys it sends nothing again
unless `retries` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xenpv.abi._kernel import ffi, lib
from xenpv.errors import LocalProtocolError, XenpvError
from xenpv.vbd import commands, unmap
from xenpv.vbd.buffers import KEPT_MAX, TRANSFER_MAX, Buffer, Buffers
from xenpv.vbd.commands import U64_MAX
from xenpv.vbd.sense import describe
from xenpv.vbd.srb import ScsiStatus, Srb, SrbFunction, SrbStatus
from xenpv.vbd.storport import Capabilities, StorPnpAction
from xenpv.xen.domain import PAGE_SIZE

if TYPE_CHECKING:
    from xenpv.vbd.pending import Pending, Piece
    from xenpv.vbd.retry import Retry
    from xenpv.vbd.target import Target
    from xenpv.vbd.xendisk import XenDisk


class DiskError(XenpvError):
    """A command failed. `srb_status`, `scsi_status` and `sense_info` are what the port set, the
    last empty unless the disk gives sense data.
    """

    def __init__(self, what: str, srb: Srb) -> None:
        self.srb_status: SrbStatus = srb.srb_status
        self.scsi_status: ScsiStatus = srb.scsi_status
        self.sense_info: bytes = srb.sense_info
        text = f"{what}: SRB status {srb.srb_status.name}, SCSI status {srb.scsi_status.name}"
        if srb.sense_info:
            text += f", {describe(srb.sense_info)}"
        super().__init__(text)


class Disk:
    """One disk. Raises DiskError where a command fails, LocalProtocolError for a range of
    sectors that no disk has, and where the loop comes to rest without an answer.

    `retries`: how often a command that failed for a reason that may pass (xenpv.vbd.retry) is
    sent again, a second later each time. 0 shows what XenVbd does; disk.sys has 8.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.retries: int = 0
        self.buffers: Buffers = Buffers(target)
        self._scratch = bytearray()
        self._retry: Retry | None = None  # once something is to be sent again

    def __repr__(self) -> str:
        return f"<Disk {self.target.devid} target {self.target.target_id}>"

    @property
    def devid(self) -> int:
        return self.target.devid

    # what it says of itself

    @property
    def capacity(self) -> int:
        """Sectors, by READ CAPACITY(16): the size of now, however it was at the last look."""
        return int.from_bytes(self._read_capacity()[:8], "big") + 1 & U64_MAX

    @property
    def sector_size(self) -> int:
        """Bytes of a logical sector, by READ CAPACITY(16)."""
        return int.from_bytes(self._read_capacity()[8:12], "big")

    @property
    def physical_sector_size(self) -> int:
        """Bytes of a physical sector, by READ CAPACITY(16)."""
        reply = self._read_capacity()
        return int.from_bytes(reply[8:12], "big") << (reply[13] & 0x0F)

    def _read_capacity(self) -> bytes:
        return self.command(commands.READ_CAPACITY_16, 32)

    def inquiry(self, page: int | None = None) -> bytes:
        """Standard data, or a page of vital product data."""
        return self.command(commands.inquiry(page), 255)

    def mode_sense(
        self, page: int = 0x3F, *, descriptor: bool = False, long: bool = False
    ) -> bytes:
        """Mode parameter header and pages; by MODE SENSE(10) if `long`."""
        return self.command(commands.mode_sense(page, descriptor=descriptor, long=long), 255)

    def report_luns(self) -> list[int]:
        return commands.luns(self.command(commands.REPORT_LUNS, 16))

    def request_sense(self) -> bytes:
        """18 bytes; of a disk with sense data the oldest unit attention, which that ends."""
        return self.command(commands.REQUEST_SENSE, 18)

    def test_unit_ready(self) -> None:
        self.command(commands.TEST_UNIT_READY)

    def capabilities(self) -> Capabilities:
        """StorQueryCapabilities, as the system asks before it lets somebody eject the disk."""
        srb = self._function(SrbFunction.PNP, pnp_action=StorPnpAction.QUERY_CAPABILITIES)
        assert srb.capabilities is not None
        return srb.capabilities

    # commands

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

    def flush(self) -> None:
        """Everything written so far is on stable storage when this returns."""
        self.command(commands.SYNCHRONIZE_CACHE)

    def unmap(self, ranges: Sequence[tuple[int, int]]) -> None:
        """UNMAP of (lba, sectors) each: what they hold is not needed any more.

        A disk whose backend has no discard succeeds, and keeps it.
        """
        self._finish(self.start_unmap(ranges))

    def trim(self, lba: int, count: int) -> bool:
        """Sectors that a file system does not use any more, by way of the filter XenDisk; False
        if that does not take trims.
        """
        from xenpv.bus.ntstatus import NTSTATUS
        from xenpv.vbd.xendisk import DSM_ACTION_TRIM

        size = self.target.sector_size
        some = [(lba * size, count * size)]
        return self.filter.manage_data_set_attributes(DSM_ACTION_TRIM, some) is NTSTATUS.SUCCESS

    @property
    def filter(self) -> XenDisk:
        """The driver between disk.sys and this disk."""
        from xenpv.vbd.xendisk import XenDisk

        return XenDisk(self)

    def reset(self) -> None:
        """RESET_DEVICE: what the backend does not answer in 100 ms fails."""
        self._function(SrbFunction.RESET_DEVICE)

    def shutdown(self) -> None:
        """SRB_FUNCTION_SHUTDOWN: returns when nothing is under way any more."""
        self._function(SrbFunction.SHUTDOWN)

    def command(
        self, cdb: bytes, reply_size: int = 0, *, data: bytes | bytearray | memoryview = b""
    ) -> bytes:
        """Send any CDB, with a buffer of `reply_size` bytes or with `data`; the bytes that came."""
        return self._finish(self.start_command(cdb, reply_size, data=data))

    def _function(self, function: SrbFunction, pnp_action: int = 0) -> Srb:
        srb = Srb(function=function, target_id=self.target.target_id, pnp_action=pnp_action)
        self.target.submit(srb)
        self._wait([srb])
        self._check(f"{function.name}", srb)
        return srb

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
        return self.start_command(commands.SYNCHRONIZE_CACHE, what="flush")

    def start_unmap(self, ranges: Sequence[tuple[int, int]]) -> Pending:
        """Submit UNMAP of at most 4,095 (lba, sectors) and return."""
        for lba, count in ranges:
            if not (0 <= lba <= U64_MAX and 0 <= count <= unmap.COUNT_MAX):
                raise LocalProtocolError(f"unmap of {count} sectors at {lba}: no disk has them")
        if len(ranges) > unmap.DESCRIPTORS_MAX:
            raise LocalProtocolError(
                f"unmap of {len(ranges)} ranges: at most {unmap.DESCRIPTORS_MAX} fit"
            )
        data = unmap.build(ranges)
        return self.start_command(unmap.cdb(len(data)), data=data, what="unmap")

    def start_command(
        self,
        cdb: bytes,
        reply_size: int = 0,
        *,
        data: bytes | bytearray | memoryview = b"",
        what: str = "",
    ) -> Pending:
        """Submit any CDB and return; `result` has the bytes that came. `what` names it."""
        from xenpv.vbd.pending import Pending, Piece

        view = memoryview(data).cast("B")
        size = reply_size or view.nbytes
        if reply_size and view.nbytes:
            raise LocalProtocolError(f"{reply_size} bytes in and {view.nbytes} out: one or other")
        if not 0 <= size <= TRANSFER_MAX:
            raise LocalProtocolError(f"a command with {size} bytes: at most {TRANSFER_MAX} fit")
        opcode = f"{cdb[0]:#04x}" if cdb else "of no length"
        pending = Pending(self, what or f"command {opcode}", reply_size, reads=reply_size > 0)
        buffer = None
        if size:
            buffer = self.buffers.get(size)
            assert buffer is not None
            if buffer.pages * PAGE_SIZE < size:
                self.buffers.put(buffer)
                raise LocalProtocolError(f"the guest has no {size} bytes in one piece")
            self.target.domain.write(buffer.pfn, 0, view)
        srb = self._srb(cdb, [] if buffer is None else [(buffer.pfn, 0, size)])
        piece = Piece(pending, 0, buffer, srb)
        pending.pieces.append(piece)
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
            buffer = self.buffers.get(nr_bytes - at, optional=True)
            if buffer is None:
                for piece in pending.pieces:
                    assert piece.buffer is not None
                    self.buffers.put(piece.buffer)
                raise LocalProtocolError(f"{what}: the guest has no memory for {nr_bytes} bytes")
            length = min(nr_bytes - at, buffer.pages * PAGE_SIZE)
            if data is not None:
                domain.write(buffer.pfn, 0, data[at : at + length])
            cdb = commands.transfer(lba + at // size, length // size, writes=data is not None)
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
            if self.retries:
                at = self._insist(lba, view, at, writes)
            else:
                at = self._window(lba, view, at, writes)

    def _insist(self, lba: int, view: memoryview, at: int, writes: bool) -> int:
        """One transfer from byte `at` on, again if it must be; where the next begins."""
        piece = view[at : at + TRANSFER_MAX]
        first = lba + at // self.target.sector_size
        pending = self._start(first, piece.nbytes, piece if writes else None)
        got = self._finish(pending)
        if not writes:
            piece[:] = got
        return at + piece.nbytes

    def _window(self, lba: int, view: memoryview, at: int, writes: bool) -> int:
        """Transfers in flight together, from byte `at` on; where the next begin."""
        domain, size = self.target.domain, self.target.sector_size
        # A bare address: `view` keeps the memory where it is.
        memory = ffi.cast("uint8_t *", ffi.from_buffer(view))
        flying: list[tuple[int, int, Buffer, Srb]] = []
        while at < view.nbytes and len(flying) < KEPT_MAX:
            buffer = self.buffers.get(view.nbytes - at, optional=bool(flying))
            if buffer is None:
                break
            length = min(view.nbytes - at, buffer.pages * PAGE_SIZE)
            if writes:
                domain.write(buffer.pfn, 0, view[at : at + length])
            srb = self._srb(
                commands.transfer(lba + at // size, length // size, writes=writes),
                [(buffer.pfn, 0, length)],
            )
            self.target.submit(srb)
            flying.append((at, length, buffer, srb))
            at += length
        self._wait([srb for _at, _length, _buffer, srb in flying])
        for start, length, buffer, srb in flying:
            if not writes and srb.srb_status is SrbStatus.SUCCESS:
                done = lib.page_read(domain.kernel, buffer.pfn, 0, memory + start, length)
                domain.check(done)
            self.buffers.put(buffer)
        for start, _length, _buffer, srb in flying:
            self._check(f"{'write' if writes else 'read'} at sector {lba + start // size}", srb)
        return at

    def _srb(self, cdb: bytes, data: list[tuple[int, int, int]]) -> Srb:
        return Srb(
            function=SrbFunction.EXECUTE_SCSI,
            cdb=cdb,
            data=data,
            target_id=self.target.target_id,
            queue_tag=self.target.queue.tag(),
        )

    def _finish(self, pending: Pending) -> bytes:
        """Run until it is complete; its result."""
        if not pending.is_complete:
            self.target.domain.loop.run()
            self._lost(sum(not srb.is_complete for srb in pending.srbs), len(pending.srbs))
        return pending.result()

    def _wait(self, srbs: list[Srb]) -> None:
        if all(srb.is_complete for srb in srbs):
            return
        self.target.domain.loop.run()
        self._lost(sum(not srb.is_complete for srb in srbs), len(srbs))

    def _lost(self, lost: int, count: int) -> None:
        if lost:
            raise LocalProtocolError(
                f"{self!r}: nothing is left to run, and {lost} of {count} commands are "
                f"unanswered (target {self.target.state.value})"
            )

    @staticmethod
    def _check(what: str, srb: Srb) -> None:
        if srb.srb_status is not SrbStatus.SUCCESS:
            raise DiskError(what, srb)

    # what outlives a command

    def again(self, piece: Piece) -> bool:
        """Whether an SRB that came back goes once more, later."""
        from xenpv.vbd.retry import Retry, may_pass

        buffer = piece.buffer
        if piece.tries >= self.retries or not may_pass(piece.srb):
            return False
        if buffer is not None and self.target.frontend.granter.holds(buffer.pfn, buffer.pages):
            return False  # its backend could still write to it
        if self._retry is None:
            self._retry = Retry(self.target)
        self._retry.later(piece)
        return True

    def release(self) -> None:
        """The device is gone: no memory is kept. What is asked of it ends as NO_DEVICE."""
        if self._retry is not None:
            self._retry.forget()
            self._retry = None
        self.buffers.release()
