"""Guests to save, and what shows that one is whole."""

from __future__ import annotations

from xenpv import Disk, Guest, MemoryImage, Platform, Vif
from xenpv.host.packet import arp_request, icmp_echo_request, parse_arp, parse_echo_reply

IMAGE = bytes(range(256)) * 256
OURS = bytes([192, 0, 2, 7])
HOST = bytes([192, 0, 2, 1])


def made(
    xen: Platform, personality: str = "windows", fifo: bool | None = None, vcpus: int = 1
) -> Guest:
    """With a disk and an interface, started."""
    disk = Disk(MemoryImage(bytearray(IMAGE)))
    return xen.create(
        name="web", disks=[disk], vifs=[Vif()], personality=personality, fifo=fifo, vcpus=vcpus
    ).start()


def pings(xen: Platform, guest: Guest) -> None:
    """It asks a host on its bridge for its address, and pings it up to the MTU."""
    if not xen.stations:
        xen.respond("xenbr0")
    net = guest.nets[0]
    net.received.clear()
    net.send(arp_request(net.mac, OURS, HOST))
    xen.run()
    answer = parse_arp(net.received.pop())
    assert answer is not None
    for sequence, size in enumerate((0, 56, net.mtu - 28)):
        payload = bytes(range(256)) * 6
        net.send(
            icmp_echo_request(net.mac, answer.sender_mac, OURS, HOST, 1, sequence, payload[:size])
        )
        xen.run()
        reply = parse_echo_reply(net.received.pop())
        assert reply is not None
        assert reply.payload == payload[:size]
    assert net.in_flight == 0


def works(xen: Platform, guest: Guest) -> None:
    """Its disk reads what it has, keeps what is written; its interface carries pings."""
    disk = guest.disks[0]
    assert disk.read(0, 8) == IMAGE[:4096]
    disk.write(64, b"\x77" * 8192)
    disk.flush()
    assert disk.read(64, 16) == b"\x77" * 8192
    disk.write(64, IMAGE[64 * 512 : 80 * 512])
    pings(xen, guest)


def trees(xen: Platform) -> dict[str, str]:
    """Every node of the store but xenstored's own, with its value."""
    listed = {}
    for root in (b"/local", b"/libxl", b"/vm"):
        for line in xen.xenstored.ls_fp(root).splitlines():
            path, _, rest = line.partition(' = "')
            listed[path] = rest.rpartition('"   ')[0]
    return listed
