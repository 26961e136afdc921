"""A toolstack that writes a device's keys one by one, in any order, and deletes what it likes."""

from __future__ import annotations

from typing import Final

from xenpv import Disk, Guest, MemoryImage, Platform, Vif
from xenpv.host import device as devices
from xenpv.host.device import Device
from xenpv.host.diskspec import DiskSpec
from xenpv.host.vifspec import VifSpec

SIZE: Final = 1 << 16
IMAGE: Final = "sloppy"
KINDS: Final = ("vbd", "vif")
PERSONALITIES: Final = ("windows", "linux")

Op = tuple[str, str, str]  # "F" or "B" for frontend and backend, key, value


def make(xen: Platform, personality: str) -> Guest:
    """A started guest with a disk and an interface, for the classes to be there."""
    xen.images.register(IMAGE, MemoryImage(bytearray(SIZE)))
    disk = Disk(MemoryImage(bytearray(SIZE)), "xvdb")
    return xen.create(name="g", personality=personality, disks=[disk], vifs=[Vif()]).start()


def device(kind: str) -> Device:
    """One more for domain 1."""
    if kind == "vbd":
        return devices.vbd(DiskSpec(target=IMAGE, vdev="xvda"), 1)
    mac = bytes.fromhex("00163e000009")
    return devices.vif(VifSpec(mac=mac, devid=1), 1, hvm=False)


def ops(made: Device) -> list[Op]:
    """Every key of it, as a toolstack and its scripts write them."""
    front = {"backend": made.backend_path, **made.front, **made.front_ro}
    back = {"frontend": made.frontend_path, **made.back, "hotplug-status": "connected"}
    ends = (("F", front), ("B", back))
    return [(end, key, value) for end, keys in ends for key, value in keys.items()]


class Sloppy:
    """Writes and deletes single nodes as dom0."""

    def __init__(self, xen: Platform, made: Device) -> None:
        self.xs = xen.toolstack.xs
        self.made = made
        self.homes = {"F": made.frontend_path, "B": made.backend_path, "L": made.libxl_path}

    def write(self, op: Op) -> None:
        """A key that is missing; what a guest wrote in the meantime is its own."""
        end, key, value = op
        home, domid = self.homes[end], self.made.domid
        rights = [f"n{domid}", "r0"] if end == "F" else ["n0", f"r{domid}"]
        if self.xs.read(home) is None:
            self.xs.write(home, "")
            self.xs.set_permissions(home, rights)
        path = f"{home}/{key}"
        if (end, key) != ("F", "state") or self.xs.read(path) is None:
            self.xs.write(path, value)
            self.xs.set_permissions(path, rights)

    def delete(self, end: str, key: str = "") -> None:
        """A directory, or a key of it."""
        self.xs.rm(f"{self.homes[end]}/{key}" if key else self.homes[end])


def connected(guest: Guest, made: Device) -> bool:
    driver = guest._vbd if made.kind == "vbd" else guest._vif
    return driver is not None and driver.connected(made.devid)
