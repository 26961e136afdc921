"""Driver domains: a guest whose kernel has the backends of others (Qubes' shape)."""

from __future__ import annotations

from xenpv import Disk, Guest, MemoryImage, Platform, Vif

MIB = 1 << 20
FRONT = "device/{}/{}"


def driver(xen: Platform, name: str, **kwargs: object) -> Guest:
    """A started driver domain."""
    guest = xen.create(name=name, personality="linux", driver_domain=True, **kwargs)  # type: ignore[arg-type]  # as create's
    return guest.start()


def test_devices_of_a_guest_are_served_by_another(xen: Platform) -> None:
    blk = driver(xen, "blk")
    image = MemoryImage(bytearray(MIB))
    app = xen.create(
        name="app", disks=[Disk(image, backend="blk")], vifs=[Vif("br0", backend=blk.domid)]
    ).start()
    assert blk.driver_domain.serves == [f"vbd{app.domid}.51712", f"vif{app.domid}.0"]
    assert xen.backends.devices == {}
    app.disks[0].write(8, b"x" * 512)
    assert image.buffer[4096:4608] == b"x" * 512
    frame = b"\xff" * 6 + app.nets[0].mac + b"\x08\0" + bytes(50)
    app.nets[0].send(frame)
    xen.run()
    assert (list(blk.bridge("br0").frames), xen.network.bridges) == ([frame], {})
