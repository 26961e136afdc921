"""Commands that a user of a disk has under way: submitted, and looked at later.

What a class driver keeps of an IRP until its SRBs are complete. A command ends once: with
what the port set, or never, where its domain is destroyed before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpv.errors import LocalProtocolError
from xenpv.vbd.disk import DiskError
from xenpv.vbd.srb import Srb, SrbStatus

if TYPE_CHECKING:
    from xenpv.vbd.buffers import Buffer
    from xenpv.vbd.disk import Disk


class Piece:
    """One SRB of a command: the bytes from `start` of its data, in `buffer`."""

    __slots__ = ("buffer", "pending", "srb", "start", "tries")

    def __init__(self, pending: Pending, start: int, buffer: Buffer | None, srb: Srb) -> None:
        self.pending = pending
        self.start = start
        self.buffer = buffer
        self.srb = srb
        self.tries = 0  # that came after the first
        srb.on_complete = self

    def repeat(self) -> None:
        """Another SRB for the same, which waits to be sent."""
        self.tries += 1
        old = self.srb
        self.srb = Srb(
            function=old.function,
            cdb=old.cdb,
            data=old.data,
            target_id=old.target_id,
            queue_tag=old.queue_tag,
            on_complete=self,
        )

    def wake(self) -> None:
        """The port completed it, perhaps within `submit`."""
        self.pending.completed(self)


class Pending:
    """One command: what a `start_` method of a Disk gives.

    `what` names it in errors. `completions` counts SRBs that came back, of `srbs`; one that is
    sent again is not back yet.
    """

    __slots__ = ("_data", "completions", "disk", "pieces", "reads", "what")

    def __init__(self, disk: Disk, what: str, nr_bytes: int, *, reads: bool) -> None:
        self.disk = disk
        self.what = what
        self.reads = reads
        self.pieces: list[Piece] = []
        self.completions = 0
        self._data = bytearray(nr_bytes if reads else 0)

    def __repr__(self) -> str:
        return f"<Pending {self.what}: {self.srb_status.name}>"

    @property
    def srbs(self) -> list[Srb]:
        return [piece.srb for piece in self.pieces]

    @property
    def is_complete(self) -> bool:
        return self.completions == len(self.pieces)

    @property
    def srb_status(self) -> SrbStatus:
        """PENDING until all of it is complete; then of the first SRB that failed, else SUCCESS."""
        failed = self._failed()
        if not self.is_complete:
            return SrbStatus.PENDING
        return SrbStatus.SUCCESS if failed is None else failed.srb_status

    def result(self) -> bytes:
        """What was read, of a command as many bytes as came; nothing of others.

        Raises DiskError if it failed. A write that failed may be on the disk, in part or
        whole. LocalProtocolError: it is not complete; nothing completes it any more once its
        domain is destroyed.
        """
        if not self.is_complete:
            raise LocalProtocolError(f"{self.disk!r}: {self.what} is not complete")
        failed = self._failed()
        if failed is not None:
            raise DiskError(self.what, failed)
        return bytes(self._data)

    def _failed(self) -> Srb | None:
        good = (SrbStatus.SUCCESS, SrbStatus.PENDING)
        return next((srb for srb in self.srbs if srb.srb_status not in good), None)

    def completed(self, piece: Piece) -> None:
        """Take its bytes and give its memory back, or send it again."""
        disk, srb = self.disk, piece.srb
        good = srb.srb_status is SrbStatus.SUCCESS
        if not good and disk.retries and disk.again(piece):
            return
        self.completions += 1
        assert self.completions <= len(self.pieces), "an SRB is completed once"
        buffer, piece.buffer = piece.buffer, None
        if buffer is None:
            return
        if self.reads and good:
            length = srb.data_transfer_length
            read = disk.target.domain.read(buffer.pfn, 0, length)
            self._data[piece.start : piece.start + length] = read
            if len(self.pieces) == 1:
                del self._data[length:]
        disk.buffers.put(buffer)
