"""The host's block layer under one ring: I/Os that take their time, several at once.

An I/O does what it does at its end and not before. Those whose end has come finish one at a
time, in an order that the loop's chooser picks, as a disk's completions come in any order.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

import attrs

from xenpv.back.blkrules import Request
from xenpv.xen.domain import Domain
from xenpv.xen.loop import Task, Timer


class Kind(IntEnum):
    READ = 0
    WRITE = 1
    FLUSH = 2
    DISCARD = 3


@attrs.define(kw_only=True, eq=False)
class Io:
    """`length` bytes of the disk from `offset` on, for `requests`; `data` that were copied out
    of the guest before. `deadline`: its end, in virtual nanoseconds.
    """

    kind: Kind
    offset: int
    length: int
    requests: list[Request]
    data: bytearray | None = None
    deadline: int = 0

    def conflicts(self, other: Io) -> bool:
        """Whether the order of the two shows."""
        if self.kind is Kind.READ and other.kind is Kind.READ:
            return False
        return self.offset < other.offset + other.length and (
            other.offset < self.offset + self.length
        )


class Disk(Protocol):
    """Whose I/Os they are."""

    def perform(self, io: Io) -> None:
        """Its end has come."""


class BlockQueue:
    """`latency_ns` 0: an I/O is done when it is submitted. `ordered`: what overlaps ends in the
    order of submission.
    """

    def __init__(
        self, domain: Domain, disk: Disk, name: str, latency_ns: int, *, ordered: bool = False
    ) -> None:
        self._domain = domain
        self._disk = disk
        self._name = name
        self._latency_ns = latency_ns
        self._ordered = ordered
        self._task: Task | None = None
        self._timer: Timer | None = None
        self.pending: list[Io] = []  # in the order of submission, so also of their ends

    def submit(self, io: Io) -> None:
        if not self._latency_ns:
            self._disk.perform(io)
            return
        io.deadline = self._domain.loop.now + self._latency_ns
        self.pending.append(io)
        self._arm()

    def _arm(self) -> None:
        if self._task is None:
            self._task = self._domain.task(f"{self._name}-io", self._run)
            self._timer = self._domain.timer(self._task)
        timer = self._timer
        assert timer is not None
        left = self.pending[0].deadline - self._domain.loop.now
        if left <= 0:
            self._task.wake()
        elif not timer.armed:
            timer.arm(left)

    def _run(self) -> None:
        """One I/O that is due."""
        due = [io for io in self.pending if io.deadline <= self._domain.loop.now]
        if due:
            self._perform(self._pick(due))
        if self.pending:
            self._arm()

    def _pick(self, due: list[Io]) -> Io:
        if self._ordered:
            due = [io for at, io in enumerate(due) if not any(map(io.conflicts, due[:at]))]
        return due[self._domain.loop.chooser.choose(len(due)) if len(due) > 1 else 0]

    def _perform(self, io: Io) -> None:
        self.pending.remove(io)
        self._disk.perform(io)

    def drain(self) -> None:
        """End everything now: its disk goes, but what a disk was told it does."""
        while self.pending:
            self._perform(self._pick(self.pending))
        if self._task is not None:
            self._domain.forget(self._task)
            self._task = self._timer = None

    def end(self) -> None:
        """As `drain`, and nothing is submitted any more. The disk and this know one another: the
        disk's ring would outlive its connection for as long as nobody collects them.
        """
        self.drain()
        vars(self).pop("_disk", None)
