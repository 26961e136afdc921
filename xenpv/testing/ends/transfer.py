"""A program's request to a disk whose frontend is under test."""

from __future__ import annotations

import enum
from collections.abc import Callable

from xenpv.testing.ends.guard import Guard

SECTOR = 512


class Operation(enum.Enum):
    """What a program may ask of a disk."""

    READ = "read"
    WRITE = "write"
    FLUSH = "flush"
    DISCARD = "discard"


class Transfer:
    """One request: `sector` and `nr_sectors` count 512 bytes, `data` is what to write, or what
    was read once it is `done`. `okay` says whether it succeeded, None as long as nobody knows.
    """

    def __init__(
        self,
        guard: Guard,
        operation: Operation,
        sector: int = 0,
        nr_sectors: int = 0,
        data: bytes = b"",
    ) -> None:
        self._guard = guard
        self.operation = operation
        self.sector = sector
        self.nr_sectors = nr_sectors
        self.data = data
        self.okay: bool | None = None
        self.why = ""
        self.on_done: Callable[[], object] | None = None

    def __repr__(self) -> str:
        how = {None: "pending", True: "okay", False: f"failed: {self.why}"}[self.okay]
        return f"<Transfer {self.operation.value} of {self.nr_sectors} at {self.sector}: {how}>"

    @property
    def done(self) -> bool:
        return self.okay is not None

    def complete(self, data: bytes = b"") -> None:
        """It succeeded; `data` is what a READ brought, all of it. A second answer is refused."""
        if self.operation is Operation.READ:
            wanted = self.nr_sectors * SECTOR
            if len(data) != wanted:
                self._guard.refuse(f"{self!r} is completed with {len(data)} bytes, not {wanted}")
            self._answer(True, "")
            self.data = bytes(data)
        else:
            self._answer(True, "")

    def fail(self, why: str = "") -> None:
        """It failed. A second answer is refused."""
        self._answer(False, why)

    def _answer(self, okay: bool, why: str) -> None:
        if self.okay is not None:
            self._guard.refuse(f"{self!r} is completed a second time")
        self.okay = okay
        self.why = why
        if self.on_done is not None:
            self.on_done()
