"""Driver domains: a guest whose kernel has the backends of others (Qubes' shape)."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flows.test_driver_domain_death import kill
from xenpv import Disk, Guest, MemoryImage, Platform, ToolstackError, Vif, cli
from xenpv.errors import LocalProtocolError, StoreError
from xenpv.host.packet import (
    arp_request,
    ethernet_frame,
    icmp_echo_request,
    ipv4_packet,
    parse_arp,
    parse_echo_reply,
    udp_datagram,
)
from xenpv.testing import Explorer, explore
from xenpv.testing.census import leaks, take_census

MIB = 1 << 20
OURS, HOST = bytes([192, 0, 2, 7]), bytes([192, 0, 2, 1])


def driver(xen: Platform, name: str, *vifs: Vif, vcpus: int = 1, fifo: bool | None = None) -> Guest:
    """A started driver domain."""
    return xen.create(
        name=name, personality="linux", driver_domain=True, vifs=vifs, vcpus=vcpus, fifo=fifo
    ).start()


def node(xen: Platform, path: str) -> str:
    """`"VALUE" (PERMISSIONS)` of a node of the store, "" if there is none."""
    for line in xen.xenstored.ls_fp().splitlines():
        if line.startswith(f"{path} = "):
            return " ".join(line.removeprefix(f"{path} = ").split())
    return ""


# one guest served by another


@pytest.mark.parametrize("fifo", [False, True], ids=["2-level", "fifo"])
@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_devices_of_a_guest_are_served_by_another(
    xen: Platform, personality: str, fifo: bool
) -> None:
    b = driver(xen, "b", vcpus=2, fifo=fifo)
    image = MemoryImage(bytearray(MIB))
    app = xen.create(
        name="app",
        personality=personality,
        vcpus=2,
        disks=[Disk(image, backend="b")],
        vifs=[Vif("br0", backend=b.domid)],
    ).start()
    assert b.driver_domain.serves == [f"vbd{app.domid}.51712", f"vif{app.domid}.0"]
    assert xen.backends.devices == {}
    app.disks[0].write(8, bytes(range(256)) * 512)
    assert image.buffer[4096 : 4096 + 131072] == bytes(range(256)) * 512
    assert app.disks[0].read(8, 256) == bytes(range(256)) * 512
    frames = [b"\xff" * 6 + app.nets[0].mac + bytes([n, 0]) + bytes(1000) for n in range(200)]
    app.nets[0].send_many(frames)
    xen.run()
    assert (list(b.bridge("br0").frames), xen.network.bridges) == (frames, {})


def test_the_nodes_are_the_driver_domains(xen: Platform) -> None:
    b = driver(xen, "b")
    app = xen.create(
        name="app", disks=[Disk(MemoryImage(bytearray(MIB)), backend="b")], vifs=[Vif(backend="b")]
    ).start()
    assert (b.domid, app.domid) == (1, 2)
    back, front = "/local/domain/1/backend/vif/2/0", "/local/domain/2/device/vif/0"
    rows = {
        back: '"" (n1,r2)',
        f"{back}/frontend-id": '"2" (n1,r2)',
        f"{back}/feature-sg": '"1" (n1,r2)',  # written by netback itself
        f"{back}/hotplug-status": '"connected" (n1,r2)',
        front: '"" (n2,r1)',
        f"{front}/backend": f'"{back}" (n2,r1)',
        f"{front}/backend-id": '"1" (n2,r1)',
        f"{front}/mtu": '"1500" (n0,r2)',
        "/libxl/2/device/vif/0/backend": f'"{back}" (n0)',
        "/local/domain/1/backend/vbd/2/51712/physical-device": '"1:0" (n1,r2)',
        "/local/domain/1/libxl": '"" (n1)',
        "/local/domain/1/device-model": '"" (n1)',
        "/local/domain/2/libxl": "",
    }
    assert {path: node(xen, path) for path in rows} == rows


UNSERVED: list[tuple[str, Callable[[Platform], object], int, str]] = [
    ("nobody of that name", lambda xen: xen.create(name="a", vifs=[Vif(backend="b")]), -21, "^no domain 'b' that could be a backend"),
    ("no such domid", lambda xen: xen.create(name="a", vifs=[Vif(backend=7)]), -21, "^no domain '7'"),
    ("a disk of nobody", lambda xen: xen.create(name="a", disks=[Disk(MemoryImage(bytearray(MIB)), backend="b")]), -21, "^no domain 'b'"),
    ("one that is paused", lambda xen: (xen.create(name="b", personality="linux", driver_domain=True), xen.create(name="a", vifs=[Vif(backend="b")])), -9, "^waited 10 s for /local/domain/1/backend/vif/2/0 to reach state 2$"),
    ("one without backends", lambda xen: (xen.create(name="b", personality="linux").start(), xen.create(name="a", vifs=[Vif(backend="b")])), -9, "^waited 10 s"),
    ("Windows", lambda xen: (xen.create(name="b", driver_domain=True).start(), xen.create(name="a", vifs=[Vif(backend="b")])), -9, "^waited 10 s"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "code", "why"), [row[1:] for row in UNSERVED], ids=[row[0] for row in UNSERVED]
)
def test_a_backend_has_to_be_there(
    xen: Platform, asked: Callable[[Platform], object], code: int, why: str
) -> None:
    with pytest.raises(ToolstackError, match=why) as caught:
        asked(xen)
    assert caught.value.code == code
    assert "a" not in [made.config.name for made in xen.toolstack.created.values()]


def test_dom0_may_be_named(xen: Platform) -> None:
    for index, name in enumerate(["0", "Domain-0", 0]):
        xen.create(name=f"g{index}", vifs=[Vif(backend=name)]).start()
    assert len(xen.backends.devices) == 3


def test_a_target_is_looked_up_at_home_in_the_driver_domain(xen: Platform, tmp_path: Path) -> None:
    b = driver(xen, "b")
    inside, disk = MemoryImage(bytearray(b"i" * MIB)), tmp_path / "disk.img"
    disk.write_bytes(b"f" * MIB)
    b.images.register("/dev/vg/inside", inside)
    xen.images.register("/dev/vg/outside", MemoryImage(bytearray(MIB)))
    app = xen.create(
        name="app",
        disks=[Disk("/dev/vg/inside", backend="b"), Disk(disk, backend="b")],
    ).start()
    assert [disk.read(0, 1)[:1] for disk in app.disks] == [b"i", b"f"]
    # It is not examined by the toolstack: the script in the driver domain finds nothing there.
    app.attach(Disk("/dev/vg/outside", backend="b"))
    at = f"/local/domain/{b.domid}/backend/vbd/{app.domid}/51744"
    assert xen.toolstack.xs.read(f"{at}/hotplug-status") == "error"
    assert "/dev/vg/outside" in (xen.toolstack.xs.read(f"{at}/hotplug-error") or "")
    assert xen.toolstack.xs.read(f"{at}/state") == "2"


def test_what_is_detached_is_gone_in_both(xen: Platform) -> None:
    b = driver(xen, "b")
    app = xen.create(name="app").start()
    image = MemoryImage(bytearray(MIB))
    first = None
    for _ in range(4):
        app.attach(Disk(image, backend="b"))
        app.attach(Vif(backend="b"))
        app.disks[0].write(0, bytes(4096))
        app.detach("vbd", 51712)
        app.detach("vif", 0)
        assert b.driver_domain.serves == []
        now = take_census(xen)
        first = first or now  # drivers keep what they make at their first device
        assert [line for line in leaks(first, now) if not line.startswith("app: task")] == []
    assert node(xen, f"/local/domain/{b.domid}/backend") == ""


def test_a_file_is_let_go_when_its_driver_domain_dies(xen: Platform, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(MIB))
    b = driver(xen, "b")
    xen.create(name="app", disks=[Disk(disk, backend="b")]).start()
    with pytest.raises(ToolstackError, match="in use"):
        xen.create(name="other", disks=[Disk(disk)])
    b.destroy()
    xen.create(name="other", disks=[Disk(disk)]).start()


def test_the_platform_closes_what_a_driver_domain_has_open(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(MIB))
    for _ in range(2):
        with Platform(seed=1) as xen:
            driver(xen, "b")
            xen.create(name="app", disks=[Disk(disk, backend="b")]).start()


def test_a_driver_domain_that_reboots_serves_anew(xen: Platform) -> None:
    b = driver(xen, "b", Vif("xenbr0"))
    b.addif("br0")
    image = MemoryImage(bytearray(MIB))
    app = xen.create(
        name="app", disks=[Disk(image, backend="b")], vifs=[Vif("br0", backend="b")]
    ).start()
    assert sorted(b.bridge("br0").ports) == ["eth0", f"vif{app.domid}.0"]
    first = b.domid
    b.reboot()
    assert b.domid != first
    assert list(b.bridge("br0").ports) == ["eth0"]
    assert b.driver_domain.serves == []
    assert app.running
    for kind, devid, device in (
        ("vbd", 51712, Disk(image, backend="b")),
        ("vif", 0, Vif("br0", backend="b")),
    ):
        app.detach(kind, devid)
        app.attach(device)
    app.disks[0].write(0, b"r" * 512)
    assert image.buffer[:512] == b"r" * 512
    assert sorted(b.bridge("br0").ports) == ["eth0", f"vif{app.domid}.0"]


def test_others_have_no_images_and_bridges(xen: Platform) -> None:
    guest = xen.create(name="g", personality="linux").start()
    for ask in (lambda: guest.bridge("br0"), lambda: guest.images, lambda: guest.addif("br0")):
        with pytest.raises(LocalProtocolError, match="^guest 'g' is no driver domain$"):
            ask()


# Qubes: app - net - the host's bridge


def qubes(xen: Platform, personality: str = "windows") -> tuple[Guest, Guest]:
    """`net` is a netfront of dom0's bridge and the netback of `app`; and a responder in dom0."""
    xen.respond("xenbr0")
    net = driver(xen, "net", Vif("xenbr0", mac="00:16:3e:00:00:01"))
    net.addif("br-app")
    vif = Vif("br-app", mac="00:16:3e:00:00:02", backend="net")
    app = xen.create(name="app", vifs=[vif], personality=personality).start()
    return net, app


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_frames_cross_a_driver_domain_both_ways(xen: Platform, personality: str) -> None:
    net, app = qubes(xen, personality)
    eth = app.nets[0]
    eth.send(arp_request(eth.mac, OURS, HOST))
    xen.run()
    answer = parse_arp(eth.received.pop())
    assert answer is not None
    assert answer.sender_mac == bytes.fromhex("00163efffffe")
    for sequence, size in enumerate((0, 56, 1472)):
        payload = bytes(range(256)) * 6
        ping = icmp_echo_request(
            eth.mac, answer.sender_mac, OURS, HOST, 1, sequence, payload[:size]
        )
        eth.send(ping)
        xen.run()
        reply = parse_echo_reply(eth.received.pop())
        assert reply is not None
        assert (reply.sequence, reply.payload) == (sequence, payload[:size])
        # As it was, but for what Ethernet pads a short one with.
        for bridge in (net.bridge("br-app"), xen.bridge("xenbr0")):
            assert [one for one in bridge.frames if one[: len(ping)] == ping]
    echo = udp_datagram(OURS, HOST, 4000, 7, b"through net")
    eth.send(ethernet_frame(answer.sender_mac, eth.mac, 0x0800, ipv4_packet(OURS, HOST, 17, echo)))
    xen.run()
    assert eth.received.pop()[-11:] == b"through net"
    # The bridge of `net` has learnt who is behind which port.
    behind = {entry.mac: entry.port for entry in net.bridge("br-app").fdb(xen.loop.now)}
    assert behind == {eth.mac: f"vif{app.domid}.0", answer.sender_mac: "eth0"}
    assert net.running


def test_the_driver_domains_own_adapter_may_be_another(xen: Platform) -> None:
    net, app = qubes(xen)
    for _ in range(2):
        net.detach("vif", 0)
        net.attach(Vif("xenbr0"))
        assert list(net.bridge("br-app").ports) == [f"vif{app.domid}.0", "eth0"]
        app.nets[0].send(arp_request(app.nets[0].mac, OURS, HOST))
        xen.run()
        assert parse_arp(app.nets[0].received.pop()) is not None


def test_a_frame_that_the_uplink_cannot_send_is_dropped(xen: Platform) -> None:
    net, app = qubes(xen)
    uplink = net.driver_domain.uplinks[0]
    net.nets[0].pause()
    app.nets[0].send(b"\xff" * 6 + app.nets[0].mac + bytes(50))
    xen.run()
    assert (uplink.dropped, net.running) == (1, True)
    net.nets[0].restart()
    app.nets[0].send(b"\xff" * 6 + app.nets[0].mac + bytes(60))
    xen.run()
    assert (uplink.dropped, len(xen.bridge("xenbr0").frames[-1])) == (1, 72)


def whole(xen: Platform) -> None:
    """A guest with its network from one driver domain and its disk from another."""
    net, app = qubes(xen)
    driver(xen, "blk")
    image = MemoryImage(bytearray(range(256)) * 4096)
    app.attach(Disk(image, backend="blk"))
    eth = app.nets[0]
    for sequence in range(10):
        ping = icmp_echo_request(
            eth.mac, bytes.fromhex("00163efffffe"), OURS, HOST, 1, sequence, bytes(500)
        )
        eth.send(ping)
        app.disks[0].write(sequence * 8, bytes([sequence]) * 4096)
    xen.run()
    assert len(eth.received) == 10
    assert net.running
    assert app.disks[0].read(72, 1) == bytes([9]) * 512
    app.shutdown()


def digest() -> str:
    """Of one run of that flow; what a process of its own prints."""
    with Platform(seed=11) as xen:
        whole(xen)
        return xen.digest


def test_two_runs_have_one_digest() -> None:
    code = "from tests.flows.test_driver_domain import digest; print(digest())"
    runs = [digest()]
    for seed in ("0", "4711"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            check=True,
            capture_output=True,
            text=True,
        )
        runs.append(done.stdout.strip())
    assert len(set(runs)) == 1, runs


# what it may not, and what it withstands


def test_a_driver_domain_is_not_saved_nor_moved(xen: Platform, tmp_path: Path) -> None:
    b = driver(xen, "b")
    app = xen.create(name="app", vifs=[Vif(backend="b")]).start()
    other = Platform(loop=xen.loop)
    why = "a driver domain's images, bridges and mapped pages stay on its host; it serves"
    asked: list[Callable[[], object]] = [
        lambda: b.save(tmp_path / "b.save"),
        lambda: b.migrate(other),
        lambda: b.resume(fast=False),
    ]
    for ask, what in zip(asked, ("save", "migration", "slow resume"), strict=True):
        with pytest.raises(ToolstackError) as caught:
            ask()
        assert str(caught.value) == f"{what} of 'b': {why} vif{app.domid}.0"
    assert (b.running, list(tmp_path.iterdir()), other.guests) == (True, [], [])
    b.suspend()
    b.resume()
    app.nets[0].send(b"\xff" * 6 + app.nets[0].mac + bytes(50))
    xen.run()
    assert len(b.bridge("xenbr0").frames) == 1
    app.destroy()
    with pytest.raises(ToolstackError, match="^save of 'b': .*; it serves nobody$"):
        b.save(tmp_path / "b.save")
    other.close()


def test_a_guest_is_saved_and_finds_its_driver_domain_again(xen: Platform, tmp_path: Path) -> None:
    b = driver(xen, "b")
    image = MemoryImage(bytearray(MIB))
    b.images.register("disk", image)
    app = xen.create(
        name="app", disks=[Disk("disk", backend="b")], vifs=[Vif("br0", backend="b")]
    ).start()
    app.disks[0].write(0, b"1" * 512)
    app.save(tmp_path / "app.save")
    assert b.driver_domain.serves == []
    back = xen.restore(tmp_path / "app.save")
    assert b.driver_domain.serves == [f"vbd{back.domid}.51712", f"vif{back.domid}.0"]
    assert back.disks[0].read(0, 1) == b"1" * 512
    back.disks[0].write(1, b"2" * 512)
    assert image.buffer[512:1024] == b"2" * 512


def test_a_guest_moves_between_driver_domains_of_two_hosts(xen: Platform) -> None:
    image = MemoryImage(bytearray(MIB))
    with Platform(seed=8, loop=xen.loop) as other:
        for host in (xen, other):
            driver(host, "b").images.register("disk", image)
        here, there = xen.guests[0], other.guests[0]
        app = xen.create(
            name="app", disks=[Disk("disk", backend="b")], vifs=[Vif(backend="b")]
        ).start()
        app.disks[0].write(0, b"m" * 512)
        moved = app.migrate(other)
        assert here.driver_domain.serves == []
        assert there.driver_domain.serves == [f"vbd{moved.domid}.51712", f"vif{moved.domid}.0"]
        assert moved.disks[0].read(0, 1) == b"m" * 512
        there.destroy()
        stays = xen.create(name="stays", vifs=[Vif(backend="b")]).start()
        with pytest.raises(ToolstackError, match="no domain 'b' that could be a backend"):
            stays.migrate(other)
        assert stays.running
        assert here.driver_domain.serves == [f"vif{stays.domid}.0"]


def test_a_guest_is_not_restored_without_its_driver_domain(xen: Platform, tmp_path: Path) -> None:
    b = driver(xen, "b")
    app = xen.create(name="app", vifs=[Vif(backend="b")]).start()
    app.save(tmp_path / "app.save")
    b.destroy()
    with pytest.raises(ToolstackError, match="no domain 'b' that could be a backend"):
        xen.restore(tmp_path / "app.save")
    assert xen.toolstack.created == {}


def test_listings_say_which_domain_serves(xen: Platform) -> None:
    b = driver(xen, "b")
    app = xen.create(
        name="app", disks=[Disk(MemoryImage(bytearray(MIB)), backend="b")], vifs=[Vif(backend="b")]
    ).start()
    row = app.block_list().splitlines()[1].split()
    assert (row[:2], row[-1]) == (["51712", "1"], "/local/domain/1/backend/vbd/2/51712")
    row = app.network_list().splitlines()[1].split()
    assert (row[:2], row[-1]) == (["0", "1"], "/local/domain/1/backend/vif/2/0")
    assert b.running


def test_pages_of_others_lie_where_nothing_of_its_own_does(xen: Platform) -> None:
    """Backends and frontends of one kernel map into one space: no place is given out twice."""
    b = driver(xen, "b", Vif("xenbr0"))
    bus = b.bus
    assert bus is not None
    app = xen.create(name="app", vifs=[Vif(backend="b") for _ in range(3)]).start()
    domain = b.created.domain
    mapped = [one.pfn for one in _mapped(domain)]
    assert len(mapped) == len(set(mapped)) == 9  # three rings of each vif
    ours = [bus.holes.alloc() for _ in range(16)]
    app.attach(Disk(MemoryImage(bytearray(MIB)), backend="b"))
    later = [one.pfn for one in _mapped(domain)]
    assert len(later) == len(set(later)) > 6
    assert not {*ours} & {*later}
    for pfn in ours:
        bus.holes.free(pfn)


def _mapped(domain: object) -> list[object]:
    return list(domain.gnttab.maptrack.values())  # type: ignore[attr-defined]  # a Domain


def test_bytes_that_are_nobodys_on_the_shared_page_are_dropped(xen: Platform) -> None:
    b = driver(xen, "b", Vif("xenbr0"))
    app = xen.create(name="app", vifs=[Vif(backend="b")]).start()
    bus, ring = b.bus, xen.store_daemon.rings[b.domid]
    assert bus is not None
    event = b"/x\0B77\0"
    ring.connection.output.append((struct.pack("<4I", 15, 0, 0, len(event)) + event, None, None))
    ring.connection.output.append((struct.pack("<4I", 2, 0x12345, 0, 1) + b"z", None, None))
    ring.task.wake()
    xen.run()
    assert bus.store.dropped == 2
    app.nets[0].send(b"\xff" * 6 + app.nets[0].mac + bytes(50))
    xen.run()
    assert len(b.bridge("xenbr0").frames) == 1


def test_a_ring_that_xenstored_broke_ends_new_devices_and_no_more(xen: Platform) -> None:
    b = driver(xen, "b")
    app = xen.create(name="app", vifs=[Vif(backend="b")]).start()
    ring = xen.store_daemon.rings[b.domid]
    xen.dom0.store32(ring.pfn, 2060, 5000)  # rsp_prod
    xen.dom0.evtchn.send(ring.port)
    xen.run()
    backends = b.driver_domain.backends
    assert backends is not None
    with pytest.raises(StoreError, match="^EIO: READ of '/x': "):
        backends.store.get("/x")
    app.nets[0].send(b"\xff" * 6 + app.nets[0].mac + bytes(50))
    xen.run()
    assert len(b.bridge("xenbr0").frames) == 1
    with pytest.raises(ToolstackError, match="^waited 10 s"):
        app.attach(Vif(backend="b"))


def test_a_driver_domain_serves_as_many_as_its_quota_of_nodes_lets_it(xen: Platform) -> None:
    """Its backend directories count as its own: 1,000 nodes (Qubes' issue 5369)."""
    b = driver(xen, "b")
    four = [Vif(backend="b") for _ in range(4)]
    guests: list[Guest] = []

    def fill() -> None:
        while len(guests) < 20:
            guest = xen.create(name=f"app{len(guests)}", vifs=four, personality="linux")
            guests.append(guest.start())

    with pytest.raises(ToolstackError, match="^waited 10 s for .* to reach state 2$"):
        fill()
    assert 40 <= len(b.driver_domain.serves) < 60
    for guest in guests:
        guest.destroy()
    assert b.driver_domain.serves == []
    last = xen.create(name="last", vifs=four).start()
    assert len(last.nets) == 4


def served_and_detached(x: Explorer) -> None:
    """Frames pass a driver domain both of whose clients are busy; a disk of it goes meanwhile."""
    xen = x.platform()
    b = driver(xen, "b", Vif("xenbr0"))
    b.addif("br0")
    image = MemoryImage(bytearray(1 << 16))
    guest = xen.create(
        name="guest", disks=[Disk(image, backend="b")], vifs=[Vif("br0", backend="b")]
    ).start()
    eth = guest.nets[0]
    frame = b"\xff" * 6 + eth.mac + b"\x88\xb5" + bytes(50)
    guest.created.domain.task("app", lambda: eth.send(frame)).wake()
    x.begin()
    assert guest.disks[0].read(0, 8) == bytes(4096)
    guest.detach("vbd", 51712)
    x.run()
    assert len(xen.bridge("xenbr0").frames) == 1


def killed(x: Explorer) -> None:
    """A driver domain dies at any access of anybody while a guest connects to it."""
    xen = x.platform()
    b = driver(xen, "b", Vif("xenbr0"))
    disks = [Disk(MemoryImage(bytearray(1 << 16)), backend="b")]
    guest = xen.create(name="guest", disks=disks, vifs=[Vif(backend="b")])
    xen.dom0.task("xl destroy", lambda: kill(xen, b)).wake()
    xen.toolstack.unpause(guest.created)
    x.begin()
    x.run()
    assert guest.running


@pytest.mark.parametrize("scenario", [served_and_detached, killed])
def test_no_order_of_steps_breaks_it(scenario: Callable[[Explorer], None]) -> None:
    pytest.importorskip("greenlet")
    explore(scenario, seed=6, examples=12).check()


def test_a_run_has_driver_domains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("disk.img").write_bytes(os.urandom(MIB))
    Path("net.cfg").write_text(
        'name="net"\nmemory=64\ndriver_domain=1\nxenpv_personality="linux"\nvif=["bridge=br0"]\n'
    )
    Path("app.cfg").write_text(
        'name="app"\nmemory=64\ndisk=["/disk.img,raw,xvda,w,backend=net"]\n'
        'vif=["bridge=br0,backend=net", "bridge=br0"]\n'.replace("/disk.img", "disk.img")
    )
    status = cli.main(["run", "--json", "net.cfg", "app.cfg"])
    document = json.loads(capsys.readouterr().out)
    assert status == 0, document
    verified = [one["verified"] for guest in document["guests"] for one in guest["devices"]]
    assert verified == [True] * 4
    assert [one["name"] for one in document["bridges"]] == ["br0", "net:br0"]
    assert [guest["shutdown"] for guest in document["guests"]] == ["poweroff", "poweroff"]
