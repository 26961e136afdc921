"""Scenarios in which drivers are right and what is around them is not: one for each fault device.

By default nothing goes wrong in them; the schedule says what does. Whatever that is, each request
ends once, with its data or an error, nothing waits for ever, and every law holds.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from xenpv.abi.blkif import BLKIF_OP, BLKIF_RSP
from xenpv.abi.layout import packer
from xenpv.abi.xenbus import XenbusState
from xenpv.errors import LocalProtocolError
from xenpv.host.memoryimage import MemoryImage
from xenpv.platform import Disk, Platform, Vif
from xenpv.testing import faults
from xenpv.testing.linux_blk import LinuxBlk
from xenpv.testing.linux_net import LinuxNet
from xenpv.testing.raw_world import DEVID_XVDA, RawWorld
from xenpv.testing.scenarios import DiskClient, NetClient
from xenpv.vbd import blkif
from xenpv.vbd.srb import SrbStatus

if TYPE_CHECKING:
    from xenpv.guest import Guest
    from xenpv.testing.explorer import Explorer
    from xenpv.testing.run import Scenario

NS_PER_S: Final = 1_000_000_000
WATCHDOG_S: Final = 30  # of XenVif and XenVbd
IMAGE_BYTES: Final = 1 << 16
MEMORY_MIB: Final = 16
MAC: Final = "00:16:3e:00:00:01"
PEER: Final = b"\x02\x00\x00\x00\x00\x02"
SECTOR: Final = 512
REQUESTS: Final = 4
READ: Final = int(BLKIF_OP.READ)
OKAY: Final = int(BLKIF_RSP.OKAY)
ERROR: Final = int(BLKIF_RSP.ERROR)
RESPONSE: Final = packer("blkif_response")
FIRST: Final = 8  # the sector at which a DiskClient begins


def _guest(xen: Platform, image: MemoryImage) -> Guest:
    return xen.create(name="guest", memory_mib=MEMORY_MIB, disks=[Disk(image)], vifs=[Vif(mac=MAC)])


def _traffic(guest: Guest) -> tuple[DiskClient, NetClient]:
    disk, net = DiskClient(guest, FIRST), NetClient(guest, PEER)
    disk.start()
    net.start()
    return disk, net


def _ended_well(disk: DiskClient, net: NetClient, image: MemoryImage) -> None:
    """Every SRB, and every frame, whatever happened on the way."""
    statuses = [one.srb_status for one in disk.busy]
    assert statuses == [SrbStatus.SUCCESS] * len(statuses), statuses
    whole = b"".join(disk.wrote)
    assert bytes(image.buffer[FIRST * SECTOR :][: len(whole)]) == whole
    frames = list(net.guest.platform.bridge("xenbr0").frames)
    assert frames == net.sent, f"{len(frames)} of {len(net.sent)} frames, or in another order"


def ends_late(x: Explorer) -> None:
    """Events between XenVbd, XenVif and their backends come late or twice; the guest and both
    backends are slow, each time by less than any timeout.
    """
    xen = x.platform()
    image = MemoryImage(bytearray(IMAGE_BYTES))
    guest = _guest(xen, image)
    domain = guest.created.domain
    for one in (domain, xen.dom0):
        faults.Events(one, x.decide)
    guest.start()
    for name in (f"vbd{guest.domid}.", f"vif{guest.domid}."):
        faults.Slow(xen.dom0, name, x.decide)
    faults.Slow(domain, "upcall", x.decide)
    disk, net = _traffic(guest)
    x.begin()
    x.run()
    _ended_well(disk, net, image)


def events_lost(x: Explorer) -> None:
    """Events between XenVif and netback are lost: XenVif's watchdog finds what nobody told."""
    xen = x.platform()
    guest = xen.create(name="guest", memory_mib=MEMORY_MIB, vifs=[Vif(mac=MAC)])
    devices = [
        faults.Events(one, x.decide, how=faults.Events.ALL)
        for one in (guest.created.domain, xen.dom0)
    ]
    guest.start()
    net = NetClient(guest, PEER)
    net.start()
    x.begin()
    xen.loop.run()
    xen.loop.advance(3 * WATCHDOG_S * NS_PER_S)  # what a watchdog sends may be lost too
    for device in devices:
        device.close()
    xen.loop.advance(3 * WATCHDOG_S * NS_PER_S)
    x.run()
    assert list(xen.bridge("xenbr0").frames) == net.sent
    assert guest.nets[0].in_flight == 0


def image_errors(x: Explorer) -> None:
    """The host's disk fails: an SRB ends with an error, a sector is old or new, and a read that
    ended well brought what is there.
    """
    xen = x.platform()
    image = MemoryImage(bytearray(IMAGE_BYTES))
    disks = [Disk(faults.UnreliableImage(image, x.decide))]
    guest = xen.create(name="guest", memory_mib=MEMORY_MIB, disks=disks).start()
    client = DiskClient(guest, FIRST)
    client.start()
    x.begin()
    x.run()
    for number, data in enumerate(client.wrote):
        found = bytes(image.buffer[(FIRST + number) * SECTOR :][:SECTOR])
        assert found in (data, bytes(SECTOR)), f"sector {number} is neither old nor new"
        wrote = client.busy[2 * number + number // 2]
        if wrote.srb_status is SrbStatus.SUCCESS:
            assert found == data, f"sector {number} was written, and is not there"
    assert all(one.is_complete for one in client.busy)


def store_conflicts(x: Explorer) -> None:
    """Somebody writes what the guest's transactions have seen: the drivers connect all the same."""
    xen = x.platform()
    image = MemoryImage(bytearray(IMAGE_BYTES))
    guest = _guest(xen, image)
    (client,) = (
        one
        for one in xen.xenstored.connections.values()
        if one.domid == guest.domid and not one.local
    )
    faults.Conflicts(xen, client, x.decide)
    x.begin()
    guest.start()
    assert guest.disks[0].read(0, 1) == bytes(SECTOR)
    assert guest.nets[0].link_up
    x.run()


def watch_floods(x: Explorer) -> None:
    """States and keys of both ends are written again and again while there is traffic."""
    xen = x.platform()
    image = MemoryImage(bytearray(IMAGE_BYTES))
    guest = _guest(xen, image).start()
    flood = faults.WatchFlood(xen, x.decide)
    paths = []
    for kind, devid in (("vbd", DEVID_XVDA), ("vif", 0)):
        front = f"/local/domain/{guest.domid}/device/{kind}/{devid}"
        back = f"/local/domain/0/backend/{kind}/{guest.domid}/{devid}"
        paths += [f"{front}/state", f"{back}/state", f"{back}/hotplug-status"]
    task = xen.dom0.task("flood", lambda: None)

    def strike() -> None:
        flood.strike(paths.pop())
        if paths:
            task.wake()

    task.run = strike
    disk, net = _traffic(guest)
    task.wake()
    x.begin()
    x.run()
    _ended_well(disk, net, image)


def backends_restarted(x: Explorer) -> None:
    """Each backend's driver goes and comes again between any two steps: every SRB ends once, and
    afterwards there is a disk and an interface again.
    """
    xen = x.platform()
    image = MemoryImage(bytearray(IMAGE_BYTES))
    guest = _guest(xen, image).start()
    keys = (("vbd", DEVID_XVDA), ("vif", 0))
    devices = [
        faults.Restart(xen, kind, guest.domid, devid, x.decide, steps=4) for kind, devid in keys
    ]
    disk, _ = _traffic(guest)
    for device in devices:
        device.start()
    x.begin()
    x.run()
    assert all(one.is_complete for one in disk.busy)
    for kind, devid in keys:
        state = xen.backends.devices[kind, guest.domid, devid].state
        assert state is XenbusState.CONNECTED, f"{kind} is {state.name.lower()}"
    guest.disks[0].write(0, b"\x55" * SECTOR)
    assert guest.disks[0].read(0, 1) == b"\x55" * SECTOR
    assert guest.nets[0].link_up


def grants_spoilt(x: Explorer) -> None:
    """References of a raw frontend are revoked, read-only or another domain's when blkback comes
    to use them: those requests end with an error, and the others well.
    """
    world = x.world_raw()
    guest, front = world.guest, world.vbd
    device = faults.Grants(guest, x.decide)
    expected: list[int] = []
    answers: list[int] = []

    def send() -> None:
        pfn = guest.page()
        ref = guest.grant(pfn)
        expected.append(ERROR if device.spoil(ref, pfn) else OKAY)
        request = blkif.request(1).pack(READ, 1, 0, len(expected), 0, ref, 0, 7)
        if front.sring.push(request, 1):
            front.notify()
        if len(expected) < REQUESTS:
            task.wake()

    def complete() -> None:
        answers.extend(RESPONSE.unpack(raw)[2] for raw in front.sring.take())

    task = guest.domain.task("blk client", send)
    front.on_event = complete
    task.wake()
    x.run()
    assert answers == expected, f"statuses {answers}, expected {expected}"


def maps_refused(x: Explorer) -> None:
    """Rings of a disk and an interface cannot be mapped: the device is refused and holds nothing,
    and connects once they can.
    """
    world = _unconnected(x)
    device = faults.Maps(world.platform.dom0, x.decide)
    _connect_twice(x, world, device)


def ports_exhausted(x: Explorer) -> None:
    """dom0 has no event channel left for a device."""
    world = _unconnected(x)
    hoard = faults.Hoard(world.platform.dom0, x.decide)
    _connect_twice(x, world, hoard, hoard.ports)


def pages_exhausted(x: Explorer) -> None:
    """dom0 has no page left for what its backends bounce."""
    world = _unconnected(x)
    hoard = faults.Hoard(world.platform.dom0, x.decide)
    _connect_twice(x, world, hoard, hoard.pages)


def _unconnected(x: Explorer) -> RawWorld:
    """A raw world whose frontends have written nothing yet."""
    platform = x.platform()
    world = RawWorld(platform, MemoryImage(bytearray(IMAGE_BYTES)), "xenbr0")
    platform.run()
    return world


def _connect_twice(
    x: Explorer, world: RawWorld, device: faults.Device, strike: Callable[[], object] | None = None
) -> None:
    """LinuxBlk and LinuxNet connect under the fault, close, and connect without it."""
    xen, guest = world.platform, world.guest
    x.begin()
    if strike is not None:
        strike()
    fronts = (LinuxBlk(guest, DEVID_XVDA), LinuxNet(guest, 0))
    x.run()
    if not device.fired:
        return
    device.close()
    kinds = (("vbd", DEVID_XVDA), ("vif", 0))
    for front in fronts:
        front.close()
    x.run()
    held = [one for one in xen.dom0.gnttab.maptrack.values() if one.granter is guest.domain]
    assert not held, f"{len(held)} pages of a guest that closed its devices are mapped"
    for front in fronts:
        front.reopen()
    x.run()
    for kind, devid in kinds:
        found = xen.backends.devices[kind, guest.domid, devid]
        assert found.state is XenbusState.CONNECTED, f"{kind}: {found.broken or found.state.name}"


def guest_exhausted(x: Explorer) -> None:
    """A Windows guest has no page or no reference left while it sends and writes, and then has
    again: what was asked meanwhile ends, and all is well afterwards.
    """
    xen = x.platform()
    image = MemoryImage(bytearray(IMAGE_BYTES))
    guest = _guest(xen, image).start()
    guest.disks[0].read(0, 1)  # what it keeps for transfers is there
    assert guest.bus is not None
    hoard = faults.Hoard(guest.created.domain, x.decide)
    x.begin()
    hoard.pages()
    hoard.references(guest.bus.gnttab)
    pending = [guest.disks[0].start_read(0, 1)]
    with suppress(LocalProtocolError):  # the program itself has no page left
        pending.append(guest.disks[0].start_write(FIRST, b"\x33" * SECTOR))
    frame = PEER + guest.nets[0].mac + b"\x88\xb5" + bytes(46)
    guest.nets[0].send(frame)
    xen.loop.run()
    hoard.close()
    if hoard.fired:
        xen.loop.advance(2 * WATCHDOG_S * NS_PER_S)
    x.run()
    assert all(one.is_complete for one in pending)
    if hoard.fired:
        disk, net = _traffic(guest)
        xen.bridge("xenbr0").frames.clear()
        x.run()
        _ended_well(disk, net, image)


SCENARIOS: Final[tuple[Scenario, ...]] = (
    ends_late,
    events_lost,
    image_errors,
    store_conflicts,
    watch_floods,
    backends_restarted,
    grants_spoilt,
    maps_refused,
    ports_exhausted,
    pages_exhausted,
    guest_exhausted,
)
