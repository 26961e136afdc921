"""A whole world with raw backends: the guest runs the Windows stack, dom0 does what a test says."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from xenpv.back.xenbus import Device, Driver
from xenpv.guest import Guest
from xenpv.host.image import MemoryImage
from xenpv.net.adapter import Adapter
from xenpv.platform import Disk, Platform, Vif
from xenpv.testing.raw_back import RawBlkBack, RawNetBack
from xenpv.testing.world import World
from xenpv.vbd.disk import Disk as GuestDisk
from xenpv.xen.loop import Chooser

MAC: Final = "00:16:3e:00:00:01"
IMAGE_BYTES: Final = 1 << 20  # what the toolstack attaches; a raw backend never opens it
MEMORY_MIB: Final = 32
KINDS: Final = ("vbd", "vif")


class BackWorld(World):
    """A platform whose vbd and vif backends are raw, and a guest with one of each.

    `vbds` and `vifs` are the drivers that the bus made, one each time a device is created, by
    the factories `vbd` and `vif`: classes, or functions that change features, keys or answers
    of what they make before it is probed.
    """

    def __init__(
        self,
        platform: Platform,
        personality: str,
        *,
        vbd: Callable[[Device], RawBlkBack] = RawBlkBack,
        vif: Callable[[Device], RawNetBack] = RawNetBack,
        kinds: Collection[str] = KINDS,
    ) -> None:
        self.platform = platform
        self.vbds: list[RawBlkBack] = []
        self.vifs: list[RawNetBack] = []
        self._vbd = vbd
        self._vif = vif
        platform.backends.drivers = {"vbd": self._make_vbd, "vif": self._make_vif}
        self.guest: Guest = platform.create(
            name="guest",
            memory_mib=MEMORY_MIB,
            disks=[Disk(MemoryImage(bytearray(IMAGE_BYTES)))] if "vbd" in kinds else [],
            vifs=[Vif(mac=MAC)] if "vif" in kinds else [],
            personality=personality,
        )

    def _make_vbd(self, device: Device) -> Driver:
        self.vbds.append(self._vbd(device))
        return self.vbd

    def _make_vif(self, device: Device) -> Driver:
        self.vifs.append(self._vif(device))
        return self.vif

    @property
    def vbd(self) -> RawBlkBack:
        """The disk's backend, the newest."""
        return self.vbds[-1]

    @property
    def vif(self) -> RawNetBack:
        """The interface's backend, the newest."""
        return self.vifs[-1]

    @property
    def disk(self) -> GuestDisk:
        """The guest's disk."""
        return self.guest.disks[0]

    @property
    def net(self) -> Adapter:
        """The guest's network adapter."""
        return self.guest.nets[0]

    def connect(self) -> None:
        """Boot the guest. ToolstackError if a device does not connect."""
        self.guest.start()

    def boot(self) -> None:
        """Boot the guest and let it come as far as it does."""
        self.platform.toolstack.unpause(self.guest.created)
        self.run()


def world_back(
    seed: int = 0,
    *,
    personality: str = "windows",
    connect: bool = True,
    chooser: Chooser | None = None,
    vbd: Callable[[Device], RawBlkBack] = RawBlkBack,
    vif: Callable[[Device], RawNetBack] = RawNetBack,
    kinds: Collection[str] = KINDS,
) -> BackWorld:
    """A platform with raw backends and a guest of that personality, connected unless told not
    to; `vbd` and `vif` make the backends, as for BackWorld, and `kinds` says which of the two
    devices the guest has. Use it as a context manager, or `close` it.
    """
    platform = Platform(seed=seed, chooser=chooser)
    try:
        world = BackWorld(platform, personality, vbd=vbd, vif=vif, kinds=kinds)
        if connect:
            world.connect()
    except BaseException:
        platform.close()
        raise
    return world
