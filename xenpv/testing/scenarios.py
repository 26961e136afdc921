"""Scenarios of our own: what the zoo's defects are found with, and what users may start from."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

import attrs

from xenpv.abi.blkif import BLKIF_OP
from xenpv.abi.layout import packer
from xenpv.errors import LocalProtocolError, PeerProtocolError
from xenpv.guest import Guest
from xenpv.host.image import MemoryImage
from xenpv.platform import Disk, Vif
from xenpv.testing.checks.posted import check_posted
from xenpv.testing.explorer import Explorer
from xenpv.testing.raw_front import RawBlkFront
from xenpv.vbd import blkif
from xenpv.vbd.disk import DiskError
from xenpv.vbd.pending import Pending
from xenpv.vbd.srb import SrbStatus
from xenpv.xen.loop import Task

REQUESTS: Final = 4
FRAMES: Final = 4
TRANSFERS: Final = 4
SECTORS_PER_PAGE: Final = 8
READ: Final = int(BLKIF_OP.READ)
WRITE: Final = int(BLKIF_OP.WRITE)
RESPONSE: Final = packer("blkif_response")


@attrs.define(eq=False)
class BlkClient:
    """An honest block frontend: a request each time its task runs, answers as events come.

    Writes and reads of a page, in turn over the disk; `answers` are (id, status). A `spoilt`
    one stops listening when its ring's indices cannot be: its own memory is being changed.
    """

    front: RawBlkFront
    requests: int
    spoilt: bool = False
    sent: int = 0
    answers: list[tuple[int, int]] = attrs.field(factory=list)
    ref: int = 0
    task: Task = attrs.field(init=False)

    def start(self) -> None:
        """Make the task due; nothing is sent yet."""
        guest = self.front.guest
        self.ref = guest.grant(guest.page())
        self.task = self.front.domain.task("blk client", self.send)
        self.front.on_event = self.complete
        self.task.wake()

    def send(self) -> None:
        """One request; the next one in another run of the task."""
        operation = (WRITE, READ)[self.sent % 2]
        sector = self.sent * SECTORS_PER_PAGE
        request = blkif.request(1).pack(
            operation, 1, 0, self.sent, sector, self.ref, 0, SECTORS_PER_PAGE - 1
        )
        self.sent += 1
        if self.front.sring.push(request, 1):
            self.front.notify()
        if self.sent < self.requests:
            self.task.wake()

    def complete(self) -> None:
        """What is answered by now."""
        try:
            responses = self.front.sring.take()
        except PeerProtocolError:
            if not self.spoilt:
                raise
            return
        for raw in responses:
            rid, _operation, status = RESPONSE.unpack(raw)
            self.answers.append((rid, status))


def blk_requests(x: Explorer) -> None:
    """Requests from a frontend that sends while earlier ones are worked on: each is answered
    once, and well.
    """
    world = x.world_raw()
    client = BlkClient(world.vbd, REQUESTS)
    client.start()
    x.run()
    assert sorted(client.answers) == [(rid, 0) for rid in range(REQUESTS)]


def blk_attacked(x: Explorer) -> None:
    """The same from a frontend whose memory changes at any moment: blkback survives, touches
    nothing that was not granted, and every law holds.
    """
    world = x.world_raw()
    BlkClient(world.vbd, REQUESTS, spoilt=True).start()
    x.attack(world.platform.dom0)
    x.run()


def guest_devices(x: Explorer) -> None:
    """A Windows guest reads its disk and sends frames while both are worked on."""
    xen = x.platform()
    guest = xen.create(name="guest", disks=[Disk(MemoryImage(bytearray(1 << 16)))], vifs=[Vif()])
    guest.start()
    net = guest.nets[0]
    frame = b"\xff" * 6 + net.mac + b"\x88\xb5" + bytes(50)
    app = guest.created.domain.task("app", lambda: net.send(frame))
    app.wake()
    x.begin()
    assert guest.disks[0].read(0, 8) == bytes(4096)
    x.run()
    assert len(xen.bridge("xenbr0").frames) == 1


@attrs.define(eq=False)
class DiskClient:
    """A guest's program that writes a sector and reads it back each time its task runs, each
    transfer an SRB of its own; `busy` are those under way.
    """

    guest: Guest
    first: int
    busy: list[Pending] = attrs.field(factory=list)
    wrote: list[bytes] = attrs.field(factory=list)
    task: Task = attrs.field(init=False)

    def start(self) -> None:
        """Make the task due; nothing is sent yet."""
        self.task = self.guest.created.domain.task("disk client", self.send)
        self.task.wake()

    def send(self) -> None:
        disk = self.guest.disks[0]
        number = len(self.wrote)
        self.wrote.append(bytes([number + 1]) * 512)
        self.busy.append(disk.start_write(self.first + number, self.wrote[-1]))
        self.busy.append(disk.start_read(self.first, 1))
        if number % 2:
            self.busy.append(disk.start_flush())
        if len(self.wrote) < TRANSFERS:
            self.task.wake()


def disk_traffic(x: Explorer, **shape: Any) -> None:
    """A program sends SRBs while earlier ones are on their way: each ends once and well, and what
    was written is there, however the ends of the ring interleave. `shape`: of its Disk.
    """
    xen = x.platform()
    image = MemoryImage(bytearray(1 << 16))
    guest = xen.create(name="guest", memory_mib=16, disks=[Disk(image, **shape)]).start()
    client = DiskClient(guest, 8)
    client.start()
    x.begin()
    x.run()
    assert [one.srb_status for one in client.busy] == [SrbStatus.SUCCESS] * len(client.busy)
    assert len(client.wrote) == TRANSFERS
    whole = b"".join(client.wrote)
    assert bytes(image.buffer[8 * 512 :][: len(whole)]) == whole


@attrs.define(eq=False)
class NetClient:
    """A guest's program that sends a frame each time its task runs, to `peer`'s address."""

    guest: Guest
    peer: bytes
    sent: list[bytes] = attrs.field(factory=list)
    task: Task = attrs.field(init=False)

    def start(self) -> None:
        """Make the task due; nothing is sent yet."""
        self.task = self.guest.created.domain.task("net client", self.send)
        self.task.wake()

    def send(self) -> None:
        nic = self.guest.nets[0]
        number = len(self.sent).to_bytes(2, "big")
        self.sent.append(self.peer + nic.mac + b"\x88\xb5" + number + bytes(44))
        nic.send(self.sent[-1])
        if len(self.sent) < FRAMES:
            self.task.wake()


def net_traffic(x: Explorer) -> None:
    """Two guests send to one another while earlier frames are on their way: every frame arrives,
    once, unchanged and in order, however the ends of the four rings interleave.
    """
    xen = x.platform()
    macs = [bytes.fromhex("00163e000001"), bytes.fromhex("00163e000002")]
    guests = [
        xen.create(name=name, memory_mib=16, vifs=[Vif(mac=mac.hex(":"))]).start()
        for name, mac in zip("ab", macs, strict=True)
    ]
    clients = [NetClient(guest, mac) for guest, mac in zip(guests, macs[::-1], strict=True)]
    for client in clients:
        client.start()
    x.begin()
    x.run()
    for client, other in zip(clients, guests[::-1], strict=True):
        assert list(other.nets[0].received) == client.sent
    posted = check_posted(xen)
    assert not posted, posted[0]


def frontends_attacked(x: Explorer) -> None:
    """XenVbd and XenVif under backends whose memory changes at any moment: the guest survives,
    and every law holds.
    """
    world = x.world_back()
    domain = world.guest.created.domain
    x.attack(domain)
    x.begin()
    frame = b"\xff" * 6 + world.net.mac + b"\x88\xb5" + bytes(50)
    world.net.send(frame)
    domain.task("app", lambda: world.net.send(frame)).wake()
    with suppress(DiskError, LocalProtocolError):  # the disk may be gone by now
        world.disk.read(0, 8)
    x.run()
