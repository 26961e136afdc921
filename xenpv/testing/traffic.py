"""Traffic that runs while a toolstack does what it does, and a model of what must come of it.

Requests are submitted between the steps of whatever else runs, by a task of its own, and
never waited for. Each is accounted for exactly once. A sector must be what was last
acknowledged there, or what a write left that failed or is not answered yet. A frame arrives
at most once, unchanged and in order, and if nothing happened to either end it arrives.
"""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.errors import LocalProtocolError
from xenpv.vbd.srb import SrbStatus
from xenpv.xen.loop import Loop, Task

if TYPE_CHECKING:
    from xenpv.guest import Guest
    from xenpv.host.image import MemoryImage
    from xenpv.net.adapter import Adapter
    from xenpv.vbd.disk import Disk as GuestDisk
    from xenpv.vbd.pending import Pending

SECTOR: Final = 512
STAMP: Final = struct.Struct("<QQ")  # serial number of the write, sector
SECTORS_MAX: Final = 100  # of a request: above 88 it is indirect
DEPTH_MAX: Final = 40  # requests under way on one disk: more than its ring has slots
ETHERTYPE: Final = b"\x88\xb5"
FRAME: Final = struct.Struct("<QH")  # serial number, bytes that follow
KEPT_MAX: Final = 1000  # frames to guests that do not run


def runs(guest: Guest) -> bool:
    """Whether code of the guest runs now: not paused, not shut down, no CPU captured."""
    domain = guest.created.domain
    return not domain.dying and bool(domain.upcalls) and not domain.upcalls[0].held


@attrs.define(eq=False)
class Io:
    """One request under way. `serial` is 0 for a read; `allowed` what each sector may read as."""

    pending: Pending
    lba: int
    count: int
    serial: int = 0
    allowed: list[list[int]] = attrs.field(factory=list)


class DiskTraffic:
    """Requests to whatever serves one image, and what the image may hold by now.

    `issued` is `done` and `failed` and `lost` and those under way: lost ones went with their
    domain. `connected`: it has been, so nothing fails without a reason from then on.
    """

    def __init__(self, name: str, image: MemoryImage) -> None:
        self.name = name
        self.image = image
        self.sectors = image.size_bytes // SECTOR
        self.settled = [0] * self.sectors
        self.maybe: list[list[int]] = [[] for _ in range(self.sectors)]
        self.under_way: list[Io] = []
        self.issued = self.done = self.failed = self.lost = 0
        self.connected = False
        self.findings: list[str] = []
        self._serial = 0
        # What the image holds if all that was not acknowledged did not happen.
        self.expected = bytearray(b"".join([_sector(0, lba) for lba in range(self.sectors)]))
        image.buffer[:] = self.expected

    def issue(self, disk: GuestDisk, chance: random.Random) -> None:
        """One request, if there is room for it: a write where none is under way, else a read."""
        self.settle()
        if len(self.under_way) >= DEPTH_MAX or disk.target.missing:
            return
        count = min(1 + int(chance.random() ** 4 * SECTORS_MAX), self.sectors)
        lba = int(chance.random() * (self.sectors - count + 1))
        free = not any(
            io.serial and io.lba < lba + count and lba < io.lba + io.count for io in self.under_way
        )
        try:
            if free and chance.random() < 0.6:
                self._write(disk, lba, count)
            else:
                self._read(disk, lba, count)
        except LocalProtocolError:
            return  # no memory left in the guest
        self.issued += 1
        self.settle()

    def _write(self, disk: GuestDisk, lba: int, count: int) -> None:
        serial = self._serial + 1
        io = Io(disk.start_write(lba, _stamped(serial, lba, count)), lba, count, serial)
        self._serial = serial
        for other in self.under_way:
            if not other.serial:
                for at in range(max(lba, other.lba), min(lba + count, other.lba + other.count)):
                    other.allowed[at - other.lba].append(serial)
        self.under_way.append(io)

    def _read(self, disk: GuestDisk, lba: int, count: int) -> None:
        allowed = [self._allowed(at) for at in range(lba, lba + count)]
        self.under_way.append(Io(disk.start_read(lba, count), lba, count, allowed=allowed))

    def _allowed(self, lba: int) -> list[int]:
        writing = [io.serial for io in self.under_way if io.lba <= lba < io.lba + io.count]
        return [self.settled[lba], *self.maybe[lba], *filter(None, writing)]

    def settle(self) -> None:
        """Look at what is complete by now."""
        complete = [io for io in self.under_way if io.pending.is_complete]
        if not complete:
            return
        self.under_way = [io for io in self.under_way if io not in complete]
        for io in complete:
            if io.pending.srb_status is SrbStatus.SUCCESS:
                self.done += 1
                self._succeeded(io)
            else:
                self.failed += 1
                self._uncertain(io)

    def _succeeded(self, io: Io) -> None:
        if io.serial:
            for lba in range(io.lba, io.lba + io.count):
                self.settled[lba] = io.serial
                self.maybe[lba].clear()
            stamped = _stamped(io.serial, io.lba, io.count)
            self.expected[io.lba * SECTOR : (io.lba + io.count) * SECTOR] = stamped
            return
        data = io.pending.result()
        for at, allowed in enumerate(io.allowed):
            found = data[at * SECTOR : (at + 1) * SECTOR]
            self._judge("read", io.lba + at, found, allowed)

    def _uncertain(self, io: Io) -> None:
        """A write that was not acknowledged may be on the disk, whole or in part."""
        if io.serial:
            for lba in range(io.lba, io.lba + io.count):
                self.maybe[lba].append(io.serial)

    def lose(self) -> None:
        """The domain is gone, and with it every answer that did not come."""
        self.settle()
        for io in self.under_way:
            self._uncertain(io)
        self.lost += len(self.under_way)
        self.under_way.clear()

    def check(self) -> list[str]:
        """What is wrong, a line each: in what was read so far, and in the image."""
        self.settle()
        if self.image.buffer != self.expected:
            self._look()
        accounted = self.done + self.failed + self.lost + len(self.under_way)
        if self.issued != accounted:
            self.findings.append(f"{self.name}: {self.issued} requests, {accounted} accounted for")
        found_wrong, self.findings = self.findings, []
        return found_wrong

    def _look(self) -> None:
        """Sector by sector: what is not answered or failed may be there."""
        for lba in range(self.sectors):
            at = slice(lba * SECTOR, (lba + 1) * SECTOR)
            found = bytes(self.image.buffer[at])
            if found == self.expected[at]:
                continue
            serial = self._judge("image", lba, found, self._allowed(lba))
            if serial is not None and not self.under_way:
                self.settled[lba] = serial
                self.maybe[lba].clear()
                self.expected[at] = found

    def _judge(self, what: str, lba: int, found: bytes, allowed: list[int]) -> int | None:
        serial, stamped = STAMP.unpack_from(found)
        if serial in allowed and stamped == lba and found == _sector(serial, lba):
            return int(serial)
        expected = " or ".join(str(one) for one in allowed)
        self.findings.append(
            f"{self.name}: {what}: sector {lba} is of write {serial} (stamped {stamped}), "
            f"expected {expected}"
        )
        return None


def _sector(serial: int, lba: int) -> bytes:
    return STAMP.pack(serial, lba) * (SECTOR // STAMP.size)


def _stamped(serial: int, lba: int, count: int) -> bytes:
    return b"".join([_sector(serial, at) for at in range(lba, lba + count)])


@attrs.define(eq=False)
class Sent:
    """A frame on its way. `disturbed`: something happened to an end, so it may be lost."""

    serial: int
    sender: Station
    receiver: Station
    data: bytes
    disturbed: bool = False
    delivered: bool = False


@attrs.define(eq=False)
class Station:
    """One interface of a guest. `adapter` is what serves it now, if anything does; frames reach
    the stations of its `network`.
    """

    name: str
    mac: bytes
    network: int = 0
    adapter: Adapter | None = None
    issued: int = 0  # through this adapter
    last: dict[str, int] = attrs.field(factory=dict)  # serial by sender


class NetTraffic:
    """Frames between stations of one bridge, and where each of them is."""

    def __init__(self) -> None:
        self.stations: list[Station] = []
        self.sent: dict[int, Sent] = {}
        self.findings: list[str] = []
        self.issued = self.delivered = self.lost = 0
        self._serial = 0

    def issue(self, sender: Station, chance: random.Random) -> None:
        """A few frames to another station, if the adapter's link is up."""
        others = [
            one for one in self.stations if one is not sender and one.network == sender.network
        ]
        adapter = sender.adapter
        if adapter is None or not others or not adapter.link_up:
            return
        receiver = others[int(chance.random() * len(others))]
        frames = []
        for _ in range(1 + int(chance.random() * 4)):
            self._serial += 1
            size = int(chance.random() * 1400) + 50
            body = FRAME.pack(self._serial, size) + bytes((self._serial & 0xFF,)) * size
            data = receiver.mac + sender.mac + ETHERTYPE + body
            self.sent[self._serial] = Sent(self._serial, sender, receiver, data)
            frames.append(data)
        sender.issued += len(frames)
        self.issued += len(frames)
        adapter.send_many(frames)

    def serve(self, station: Station, adapter: Adapter | None) -> None:
        """What serves a station changed: another adapter, or none."""
        if station.adapter is not adapter:
            self.collect(station)
            self.disturb(station)
            station.adapter = adapter
            station.issued = 0

    def disturb(self, station: Station) -> None:
        """Frames from it and to it that have not arrived by now may be lost."""
        for one in self.sent.values():
            if station in (one.sender, one.receiver):
                one.disturbed = True

    def collect(self, station: Station) -> None:
        """Take what arrived at a station."""
        adapter = station.adapter
        if adapter is None:
            return
        while adapter.received:
            self._arrived(station, adapter.received.popleft())

    def _arrived(self, station: Station, data: bytes) -> None:
        if data[12:14] != ETHERTYPE:
            return
        serial, _size = FRAME.unpack_from(data, 14)
        one = self.sent.get(serial)
        if one is None or one.data != data:
            self.findings.append(f"{station.name}: frame {serial} arrived, which was not sent so")
            return
        if one.delivered or one.receiver is not station:
            why = "a second time" if one.delivered else f"and was for {one.receiver.name}"
            self.findings.append(f"{station.name}: frame {serial} arrived {why}")
            return
        one.delivered = True
        self.delivered += 1
        last = station.last.get(one.sender.name, 0)
        if serial < last:
            self.findings.append(
                f"{station.name}: frame {serial} of {one.sender.name} arrived after {last}"
            )
        station.last[one.sender.name] = max(last, serial)

    def check(self, awake: list[Station]) -> list[str]:
        """What is wrong, a line each. `awake`: stations of guests that run, at quiescence."""
        for station in awake:
            self.collect(station)
        kept: dict[int, Sent] = {}
        for serial, one in self.sent.items():
            if one.delivered:
                continue
            asleep = one.receiver not in awake or one.sender not in awake
            if one.disturbed or asleep:
                one.disturbed = True
                if asleep and len(kept) < KEPT_MAX:
                    kept[serial] = one  # it may arrive yet
                else:
                    self.lost += 1
                continue
            self.findings.append(
                f"{one.receiver.name}: frame {serial} of {one.sender.name} did not arrive"
            )
        self.sent = kept
        for station in awake:
            self._account(station)
        found, self.findings = self.findings, []
        return found

    def _account(self, station: Station) -> None:
        adapter = station.adapter
        if adapter is None:
            return
        if adapter.in_flight:
            self.findings.append(f"{station.name}: {adapter.in_flight} frames never came back")
        counted = adapter.statistics
        total = counted.sent_frames + counted.sent_dropped + counted.sent_errors
        if total != station.issued:
            self.findings.append(
                f"{station.name}: {station.issued} frames, {total} counted ({counted})"
            )


class Pump:
    """The task that keeps traffic up while something else runs: rounds, each a few requests.

    It is nobody's: neither a pause nor a suspend stops it, and what it does in a guest it does
    only while that guest runs.
    """

    def __init__(self, loop: Loop, seed: int) -> None:
        self.random = random.Random(f"traffic {seed}")
        self.task = Task(loop, 0, "traffic", self._round)
        self.rounds = 0
        self.sources: list[Source] = []

    def pour(self, rounds: int) -> None:
        """So many rounds, between the steps of all else that runs."""
        self.rounds = rounds
        if rounds:
            self.task.wake()

    def _round(self) -> None:
        if not self.rounds:
            return
        self.rounds -= 1
        ready = [one for one in self.sources if not one.quiet and runs(one.guest)]
        if ready:
            ready[int(self.random.random() * len(ready))].issue(self.random)
        if self.rounds:
            self.task.wake()


class Source:
    """A guest with its disks and stations, as the pump knows it; a `quiet` one is left alone."""

    guest: Guest
    quiet: bool

    def issue(self, chance: random.Random) -> None:
        """Submit something; runs in a handler."""
        raise NotImplementedError
