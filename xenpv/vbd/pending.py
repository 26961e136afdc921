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
    from xenpv.vbd.disk import Buffer, Disk


class Piece:
    """One SRB of a command: the bytes from `start` of its data, in `buffer`."""

    __slots__ = ("buffer", "pending", "srb", "start")

    def __init__(self, pending: Pending, start: int, buffer: Buffer | None, srb: Srb) -> None:
        self.pending = pending
        self.start = start
        self.buffer = buffer
        self.srb = srb
        srb.on_complete = self

    def wake(self) -> None:
        """The port completed it, perhaps within `submit`."""
        self.pending.completed(self)


class Pending:
    """One command: `start_read`, `start_write` or `start_flush` of a Disk.

    `what` names it in errors. `completions` counts SRBs that came back, of `srbs`.
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
        """What was read; nothing of other commands.

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
        """Take its bytes and give its memory back."""
        self.completions += 1
        assert self.completions <= len(self.pieces), "an SRB is completed once"
        buffer, piece.buffer = piece.buffer, None
        if buffer is None:
            return
        srb = piece.srb
        if self.reads and srb.srb_status is SrbStatus.SUCCESS:
            length = srb.data_transfer_length
            read = self.disk.target.domain.read(buffer.pfn, 0, length)
            self._data[piece.start : piece.start + length] = read
        self.disk.put(buffer)
