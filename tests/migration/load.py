"""A program of a guest that writes to disk, network and memory without end, and migrates with it.

It is plain data, so a guest can be saved with it: trusted=("tests.migration.load",).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xenpv import Guest, MemoryImage, Platform
from xenpv.vbd.srb import SrbStatus
from xenpv.vif.interface import TransmitterStatus

if TYPE_CHECKING:
    from xenpv.vbd.pending import Pending
    from xenpv.vif.interface import Completion

TRUSTED = ("tests.migration.load",)
PERIOD_NS = 1_000_000
FIRST_LBA = 256  # what `verify` writes is below
SLOTS = 16  # of 8 sectors
MEMORY_PAGES = 64
ETHERTYPE = b"\x88\xb6"


class Load:
    """Each millisecond: a write to the disk, a frame, and 64 pages of memory changed."""

    def __init__(self, guest: Guest, *, memory: bool = False) -> None:
        domain = guest.created.domain
        self.domain = domain
        self.disk = guest.disks[0]
        self.net = guest.nets[0]
        self.net.sender = self
        self.ticks = 0
        self.pending: list[tuple[int, int, Pending]] = []  # slot, value
        self.acceptable: dict[int, list[int]] = {slot: [0] for slot in range(SLOTS)}
        self.failed = 0
        self.numbers: list[tuple[int, int]] = []  # of the adapter, and in the frame
        self.results: dict[int, list[str]] = {}  # of frames, by the adapter's number
        self.memory = domain.pages.alloc(MEMORY_PAGES) if memory else 0
        self.task = domain.task("load", self.tick)
        self.timer = domain.timer(self.task, PERIOD_NS)
        self.timer.arm(PERIOD_NS)

    def tick(self) -> None:
        self.ticks += 1
        value = self.ticks
        self._reap()
        slot = value % SLOTS
        if not any(one[0] == slot for one in self.pending):
            self.acceptable[slot].append(value)
            data = block(value)
            self.pending.append((slot, value, self.disk.start_write(FIRST_LBA + 8 * slot, data)))
        if self.net.link_up:
            frame = b"\xff" * 6 + self.net.mac + ETHERTYPE + value.to_bytes(8, "big") + bytes(38)
            self.numbers.append((self.net.send(frame), value))
        if self.memory:
            for page in range(MEMORY_PAGES):
                self.domain.write(self.memory + page, 8 * page, value.to_bytes(8, "big"))

    def sent(self, completions: Sequence[Completion]) -> None:
        for cookie, status, *_ in completions:
            self.results.setdefault(cookie, []).append(TransmitterStatus(status).name)

    def _reap(self) -> None:
        """Of a write that succeeded the slot has its value; of one that failed, or the old one."""
        left = []
        for slot, value, pending in self.pending:
            if not pending.is_complete:
                left.append((slot, value, pending))
            elif pending.srb_status is SrbStatus.SUCCESS:
                self.acceptable[slot] = [value]
            else:
                self.failed += 1
        self.pending = left

    def stop(self) -> None:
        self.timer.cancel()

    def check(self, image: MemoryImage, hosts: Sequence[Platform]) -> None:
        """Stopped and settled: every write and frame is accounted for, once, and is right."""
        self._reap()
        assert not self.pending
        for slot, values in self.acceptable.items():
            at = (FIRST_LBA + 8 * slot) * 512
            found = bytes(image.buffer[at : at + 4096])
            assert found in [block(value) for value in values], f"slot {slot}: {values}"
            assert self.disk.read(FIRST_LBA + 8 * slot, 8) == found
        assert [len(one) for one in self.results.values()] == [1] * len(self.numbers)
        seen = [
            int.from_bytes(frame[14:22], "big")
            for xen in hosts
            for frame in xen.bridge("xenbr0").frames
            if frame[12:14] == ETHERTYPE
        ]
        assert len(seen) == len({*seen}), "a frame was sent twice"
        for number, value in self.numbers:
            if self.results[number] == ["OK"]:
                assert value in seen
        if self.memory:
            for page in range(MEMORY_PAGES):
                data = self.domain.read(self.memory + page, 8 * page, 8)
                assert int.from_bytes(data, "big") == self.ticks


def block(value: int) -> bytes:
    return value.to_bytes(4, "big") * 1024 if value else bytes(4096)
