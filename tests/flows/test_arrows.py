"""Each arrow of the architecture's data flow, end to end, looked at where it lands.

guest app -> net -> vif -> ring + event -> back.netback -> host.network
guest app -> vbd (SCSI) -> ring + event -> back.blkback -> host.image
agent -> iface -> bus.store -> ring page -> store.server
"""

from __future__ import annotations

from xenpv import Frame, Guest, MemoryImage, Platform, Vif
from xenpv.abi.xs import XS
from xenpv.xen.domain import XENSTORE_PFN
from xenpv.xen.trace import EVENT_SHIFT, Event

MAC = bytes.fromhex("00163e000001")
PEER = bytes.fromhex("020000000002")


def frame(size: int, destination: bytes = PEER, source: bytes = MAC) -> bytes:
    return (destination + source + b"\x88\xb5" + bytes(n & 0xFF for n in range(size)))[:size]


class Listener:
    """A port of the bridge that keeps what it is given."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.frames: list[bytes] = []

    def receive(self, frames: list[Frame]) -> None:
        self.frames += [one.data for one in frames]


def test_a_frame_travels_from_the_adapter_to_the_bridge(xen: Platform, guest: Guest) -> None:
    sizes = (60, 61, 500, 1514)
    for size in sizes:
        guest.nets[0].send(frame(size))
    xen.run()
    assert list(xen.bridge("xenbr0").frames)[-4:] == [frame(size) for size in sizes]


def test_a_frame_travels_from_the_bridge_to_the_adapter(xen: Platform, guest: Guest) -> None:
    peer = Listener("peer")
    bridge = xen.bridge("xenbr0")
    bridge.attach(peer)
    sent = [frame(size, MAC, PEER) for size in (60, 1000, 1514)]
    guest.nets[0].received.clear()
    bridge.transmit(peer, [Frame(one) for one in sent], xen.loop.now)
    xen.run()
    assert list(guest.nets[0].received) == sent


def test_two_guests_talk_over_a_bridge(xen: Platform, guest: Guest) -> None:
    from xenpv import Vif

    other = xen.create(name="other", vifs=[Vif(mac="00:16:3e:00:00:02")]).start()
    there = bytes.fromhex("00163e000002")
    hello = frame(200, there, MAC)
    guest.nets[0].send(hello)
    xen.run()
    assert other.nets[0].received[-1] == hello
    back = frame(300, MAC, there)
    other.nets[0].send(back)
    xen.run()
    assert guest.nets[0].received[-1] == back


def test_sectors_travel_from_the_image_to_the_disk_and_back(
    xen: Platform, guest: Guest, image: MemoryImage
) -> None:
    disk = guest.disks[0]
    whole = bytes(image.buffer)
    assert disk.capacity == 512
    assert disk.read(0, 8) == whole[:4096]
    assert disk.read(3, 100) == whole[3 * 512 : 103 * 512]
    assert disk.read(0, 512) == whole
    disk.write(9, b"\xa5" * 1024)
    disk.flush()
    assert bytes(image.buffer[9 * 512 : 11 * 512]) == b"\xa5" * 1024
    assert bytes(image.buffer[: 9 * 512]) == whole[: 9 * 512]
    assert bytes(image.buffer[11 * 512 :]) == whole[11 * 512 :]
    del xen


def test_the_agents_answer_travels_through_the_ring_page(xen: Platform, guest: Guest) -> None:
    ring = xen.store_daemon.rings[guest.domid]
    before = guest.created.domain.load32(XENSTORE_PFN, 2052)
    path = f"/local/domain/{guest.domid}/control/shutdown"
    xen.toolstack.xs.write(path, "poweroff")
    xen.run()
    assert xen.toolstack.xs.read(path) == ""
    assert guest.created.domain.is_shutdown
    assert guest.created.domain.shutdown_code == 0
    moved = guest.created.domain.load32(XENSTORE_PFN, 2052) - before
    assert moved > 0
    assert ring.frozen == 0


def test_guests_reach_the_store_through_their_page_alone(xen: Platform, guest: Guest) -> None:
    """Every request that xenstored answered for the guest came in over its ring."""
    bus = guest.bus
    assert bus is not None
    answered: list[tuple[int, int]] = []

    class Sink:
        def store_op(
            self, conn_domid: int, op: int, tx_id: int, payload: bytes, error: bytes | None
        ) -> None:
            del tx_id, payload, error
            answered.append((conn_domid, op))

    xen.xenstored.trace = Sink()
    before = bus.store.requests
    bus.store.write("data/flow", "1")
    bus.store.read("data/flow")
    assert answered == [(guest.domid, XS.WRITE), (guest.domid, XS.READ)]
    assert bus.store.requests - before == 2


def test_what_the_guest_prints_is_in_its_console(xen: Platform, guest: Guest) -> None:
    assert guest.bus is not None
    guest.bus.log("a line of the guest\n")
    xen.run()
    assert guest.console is not None
    assert guest.console.text.endswith("a line of the guest\n")


def test_every_arrow_leaves_its_mark_in_the_trace(xen: Platform, guest: Guest) -> None:
    guest.disks[0].read(0, 8)
    guest.nets[0].send(frame(100))
    xen.run()
    events = {word >> EVENT_SHIFT for word in xen.loop.trace.words}
    assert {Event.DELIVER, Event.SEND, Event.PUBLISH, Event.STORE, Event.DRAW} <= events


def test_a_clean_shutdown_leaves_nothing_behind(xen: Platform, guest: Guest) -> None:
    ports = xen.dom0.evtchn.bound()
    assert guest.shutdown() == 0
    xen.run()
    assert xen.dom0.gnttab.maptrack == {}
    assert xen.dom0.evtchn.bound() < ports
    assert xen.backends.devices == {}
    assert xen.hypervisor.dead == []
    assert list(xen.hypervisor.domains) == [0]
    left = xen.xenstored.ls_fp()
    assert "/vm/" not in left
    assert "/libxl/" not in left
    assert "/local/domain/1" not in left
    assert "/backend/" not in left


def test_pulling_the_plug_leaves_nothing_behind_either(xen: Platform, guest: Guest) -> None:
    guest.destroy()
    xen.run()
    assert xen.dom0.gnttab.maptrack == {}
    assert xen.backends.devices == {}
    assert xen.hypervisor.dead == []
    assert "/local/domain/1" not in xen.xenstored.ls_fp()


def test_a_reboot_is_a_new_domain_on_the_same_image(
    xen: Platform, guest: Guest, image: MemoryImage
) -> None:
    old, uuid = guest.domid, guest.created.uuid
    guest.disks[0].write(0, b"\x11" * 512)
    guest.reboot()
    assert guest.domid == old + 1
    assert guest.created.uuid == uuid
    assert guest.disks[0].read(0, 1) == b"\x11" * 512
    assert bytes(image.buffer[:512]) == b"\x11" * 512
    del xen


def test_a_closed_platform_lets_go_of_its_store() -> None:
    with Platform() as xen:
        xen.create(name="one", vifs=[Vif()]).start()
        assert xen.xenstored.nodes
    assert xen.xenstored.nodes == {}
    assert xen.xenstored.connections == {}
    assert xen.digest
