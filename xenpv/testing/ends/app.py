"""What a program above a frontend does, alike for ours and for a user's.

A case drives a frontend by this and by nothing else of it, and judges it by what the wire and
the store show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from xenpv.errors import LocalProtocolError, XenpvError
from xenpv.net.adapter import Adapter
from xenpv.testing.ends.guard import PEER, Guard
from xenpv.testing.ends.protocols import BlkFrontend, NetFrontend
from xenpv.testing.ends.transfer import SECTOR, Operation, Transfer
from xenpv.vbd.disk import Disk, DiskError
from xenpv.vbd.pending import Pending


class TransferError(XenpvError):
    """A program's request failed, or nothing is left to run that would answer it."""


class Started(Protocol):
    """A request under way. `okay` is None until it is `done`; `data` is what was read."""

    @property
    def done(self) -> bool: ...

    @property
    def okay(self) -> bool | None: ...

    @property
    def data(self) -> bytes: ...


class DiskApp(Protocol):
    """A program that has the disk. Sectors are of 512 bytes.

    Calls that begin with `start_` only ask; the others run the world, and raise TransferError.
    """

    def start_read(self, sector: int, nr_sectors: int) -> Started: ...

    def start_write(self, sector: int, data: bytes) -> Started: ...

    def start_flush(self) -> Started: ...

    def start_discard(self, sector: int, nr_sectors: int) -> Started: ...

    def read(self, sector: int, nr_sectors: int) -> bytes: ...

    def write(self, sector: int, data: bytes) -> None: ...

    def flush(self) -> None: ...


class NetApp(Protocol):
    """A program that has the interface: `received` are the frames that came up to it."""

    @property
    def received(self) -> Sequence[bytes]: ...

    def send(self, frame: bytes) -> None:
        """Nobody says whether it was sent."""


class _Waits:
    """The calls that run the world."""

    _run: Callable[[], object]

    def start_read(self, sector: int, nr_sectors: int) -> Started:
        raise NotImplementedError

    def start_write(self, sector: int, data: bytes) -> Started:
        raise NotImplementedError

    def start_flush(self) -> Started:
        raise NotImplementedError

    def read(self, sector: int, nr_sectors: int) -> bytes:
        return self._wait(self.start_read(sector, nr_sectors)).data

    def write(self, sector: int, data: bytes) -> None:
        self._wait(self.start_write(sector, data))

    def flush(self) -> None:
        self._wait(self.start_flush())

    def _wait(self, started: Started) -> Started:
        self._run()
        if not started.okay:
            why = "failed" if started.done else "is not answered, and nothing is left to run"
            raise TransferError(f"{started!r} {why}")
        return started


class UserDiskApp(_Waits):
    """Over a user's BlkFrontend."""

    def __init__(
        self,
        guard: Guard,
        driver: Callable[[], BlkFrontend],
        run: Callable[[], object],
        breaks: Callable[[str], object],
    ) -> None:
        self._guard = guard
        self._driver = driver
        self._run = run
        self._breaks = breaks

    def _submit(self, transfer: Transfer) -> Transfer:
        self._guard.method(self._driver(), "submit", transfer, breaks=self._breaks, unfit=PEER)
        return transfer

    def start_read(self, sector: int, nr_sectors: int) -> Transfer:
        return self._submit(Transfer(self._guard, Operation.READ, sector, nr_sectors))

    def start_write(self, sector: int, data: bytes) -> Transfer:
        count = len(data) // SECTOR
        return self._submit(Transfer(self._guard, Operation.WRITE, sector, count, data))

    def start_flush(self) -> Transfer:
        return self._submit(Transfer(self._guard, Operation.FLUSH))

    def start_discard(self, sector: int, nr_sectors: int) -> Transfer:
        return self._submit(Transfer(self._guard, Operation.DISCARD, sector, nr_sectors))


class OwnTransfer:
    """A command of XenVbd's disk."""

    def __init__(self, pending: Pending) -> None:
        self.pending = pending

    def __repr__(self) -> str:
        return repr(self.pending)

    @property
    def done(self) -> bool:
        return self.pending.is_complete

    @property
    def okay(self) -> bool | None:
        if not self.done:
            return None
        try:
            self.pending.result()
        except DiskError:
            return False
        return True

    @property
    def data(self) -> bytes:
        return self.pending.result()


class OwnDiskApp(_Waits):
    """Over XenVbd, in a Windows guest."""

    def __init__(self, disk: Callable[[], Disk], run: Callable[[], object]) -> None:
        self._disk = disk
        self._run = run

    def start_read(self, sector: int, nr_sectors: int) -> OwnTransfer:
        disk = self._disk()
        return OwnTransfer(disk.start_read(*_blocks(disk, sector, nr_sectors)))

    def start_write(self, sector: int, data: bytes) -> OwnTransfer:
        disk = self._disk()
        return OwnTransfer(disk.start_write(_blocks(disk, sector, len(data) // SECTOR)[0], data))

    def start_flush(self) -> OwnTransfer:
        return OwnTransfer(self._disk().start_flush())

    def start_discard(self, sector: int, nr_sectors: int) -> OwnTransfer:
        disk = self._disk()
        return OwnTransfer(disk.start_unmap([_blocks(disk, sector, nr_sectors)]))


def _blocks(disk: Disk, sector: int, nr_sectors: int) -> tuple[int, int]:
    """In sectors of the disk. LocalProtocolError: no whole number of them."""
    per = disk.target.sector_size // SECTOR
    if sector % per or nr_sectors % per:
        raise LocalProtocolError(f"{nr_sectors} at {sector}: the disk has sectors of {per} x 512")
    return sector // per, nr_sectors // per


class UserNetApp:
    """Over a user's NetFrontend."""

    def __init__(
        self, guard: Guard, driver: Callable[[], NetFrontend], breaks: Callable[[str], object]
    ) -> None:
        self._guard = guard
        self._driver = driver
        self._breaks = breaks
        self.received: list[bytes] = []

    def send(self, frame: bytes) -> None:
        self._guard.method(self._driver(), "send", frame, breaks=self._breaks, unfit=PEER)


class OwnNetApp:
    """Over XenNet and XenVif, in a Windows guest."""

    def __init__(self, adapter: Callable[[], Adapter]) -> None:
        self._adapter = adapter

    @property
    def received(self) -> Sequence[bytes]:
        return list(self._adapter().received)

    def send(self, frame: bytes) -> None:
        self._adapter().send(frame)
