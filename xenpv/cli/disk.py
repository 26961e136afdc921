"""A disk exercised through the guest's SCSI commands, and compared with the host's file."""

from __future__ import annotations

import hashlib
import time
from typing import Final

from xenpv.cli.hostfile import Backing, Borrowed, Progress
from xenpv.cli.report import DiskFound
from xenpv.errors import Livelock, XenpvError
from xenpv.vbd.disk import Disk

CHUNK_BYTES: Final = 8 << 20
# At the end of the disk, so that its last sector is among what is written.
SCRATCH_BYTES: Final = 1 << 20
# Sectors of one write, again and again: one, an odd number, a page, the most that one ring
# request takes (11 pages), one more, and what needs several.
SCRATCH_PIECES: Final = (1, 7, 8, 88, 89, 256)


class DiskCheck:
    """One disk of a guest; what it finds goes into `found`."""

    def __init__(
        self,
        disk: Disk,
        file: Backing,
        sha256: str,
        found: DiskFound,
        progress: Progress,
    ) -> None:
        self.disk = disk
        self.file = file
        self.sha256 = sha256
        self.found = found
        self.progress = progress
        self.borrowed: Borrowed | None = None
        self.capacity = 0

    def run(self, *, write: bool, seed: bytes) -> None:
        """Read all of it, and if `write` write the scratch area; `seed` makes the pattern."""
        disk, found = self.disk, self.found
        try:
            self.capacity = disk.capacity
            found.sector_size = disk.sector_size
            found.size_bytes = self.capacity * found.sector_size
            self._read()
            if write and not found.readonly:
                self._write(seed)
            found.exercised = True
        except Livelock:
            raise
        except XenpvError as error:
            found.failures.append(str(error))

    def _read(self) -> None:
        disk, found = self.disk, self.found
        if found.size_bytes != self.file.size_bytes:
            found.failures.append(
                f"{found.size_bytes} bytes long, the file has {self.file.size_bytes}"
            )
        digest = hashlib.sha256()
        step = CHUNK_BYTES // found.sector_size
        label = f"reading {found.name} of domain {found.domid}"
        for lba in range(0, self.capacity, step):
            begin = time.perf_counter()
            data = disk.read(lba, min(step, self.capacity - lba))
            found.seconds += time.perf_counter() - begin
            digest.update(data)
            found.bytes_read += len(data)
            self.progress(label, found.bytes_read, found.size_bytes)
        found.sha256 = digest.hexdigest()
        if found.sha256 != self.sha256:
            found.failures.append(f"reads differently from the file, whose sha256 is {self.sha256}")

    def _write(self, seed: bytes) -> None:
        disk, found, file = self.disk, self.found, self.file
        sector = found.sector_size
        count = min(SCRATCH_BYTES // sector, self.capacity)
        first = self.capacity - count
        original = disk.read(first, count)
        pattern = hashlib.shake_128(seed).digest(count * sector)
        self.borrowed = Borrowed(file, first * sector, file.read(first * sector, count * sector))
        self._write_in_pieces(first, pattern)
        if disk.read(first, count) != pattern:
            found.failures.append("the scratch area reads differently from what was written")
        if file.read(first * sector, count * sector) != pattern:
            found.failures.append("what was written and flushed is not in the file")
        self._write_in_pieces(first, original)
        found.bytes_written = count * sector
        if self.borrowed.restored:
            self.borrowed = None
        else:
            found.failures.append("the scratch area was written back, but not into the file")

    def _write_in_pieces(self, first: int, data: bytes) -> None:
        disk, sector = self.disk, self.found.sector_size
        at = turn = 0
        while at < len(data):
            size = SCRATCH_PIECES[turn % len(SCRATCH_PIECES)] * sector
            disk.write(first + at // sector, data[at : at + size])
            at += size
            turn += 1
        disk.flush()
