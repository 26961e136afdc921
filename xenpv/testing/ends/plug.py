"""A user's backend in place of ours on a whole platform, under guests with their own frontends.

with Platform(seed=7) as xen:
    plug_backend(xen, "vbd", MyBackend)
    guest = xen.create(name="web", disks=[Disk("disk.img")]).start()
    guest.disks[0].read(0, 8)               # SCSI, XenVbd, the ring, MyBackend
"""

from __future__ import annotations

import sys
from typing import Any, Final

from xenpv.back.xenbus import Device, Driver, DriverFactory
from xenpv.errors import LocalProtocolError
from xenpv.host.image import Image
from xenpv.platform import Platform
from xenpv.testing.ends.backend import PluggedBackend
from xenpv.testing.ends.machine import Machine
from xenpv.testing.ends.port import EndPort
from xenpv.testing.ends.protocols import BlkBackendFactory, NetBackendFactory
from xenpv.testing.ends.watchdog import SECONDS

KINDS: Final = ("vbd", "vif")


class PluggedBackends:
    """The user's backends of one kind on a platform; `plugged`, one each time a device is made.

    A disk's image is what the toolstack's keys name, opened for it and closed when it is gone.
    """

    def __init__(self, platform: Platform, kind: str, factory: Any, seconds: float) -> None:
        self.platform = platform
        self.kind = kind
        self.factory: Any = factory
        self.seconds = seconds
        self.machine = Machine(platform.dom0, platform.dispatcher, platform.backends.store)
        self.plugged: list[PluggedBackend] = []
        self._images: list[tuple[PluggedBackend, Image]] = []

    def make(self, device: Device) -> Driver:
        """The bus' call."""
        plug = PluggedBackend(self, device)
        plug.guard.calls_max = sys.maxsize  # a guest's run has the loop's limit (Livelock)
        self.plugged.append(plug)
        return plug

    @property
    def drivers(self) -> list[Any]:
        """The user's drivers, of every device that there was."""
        return [plug.driver for plug in self.plugged]

    def resource(self, plug: PluggedBackend) -> Image | EndPort:
        """The image of the device's `params`, or a port of its bridge. ConfigError."""
        device, host = plug.device, self.platform
        if self.kind == "vif":
            bridge = host.bridge(device.get("bridge") or "xenbr0")
            return EndPort(host.dom0, bridge, device.name, plug.receive)
        image = host.images.open(device.get("params") or "", "w" in (device.get("mode") or ""))
        self._images.append((plug, image))
        return image

    def gone(self, plug: PluggedBackend) -> None:
        """Close what `resource` opened."""
        for one, image in self._images:
            if one is plug:
                self.platform.images.release(image)
        self._images = [pair for pair in self._images if pair[0] is not plug]


def plug_backend(
    platform: Platform,
    kind: str,
    factory: BlkBackendFactory | NetBackendFactory,
    *,
    seconds: float = SECONDS,
) -> PluggedBackends:
    """Devices of that `kind` (vbd, vif) that are created from now on have the user's backend.

    What it does wrong comes out of whatever ran it (`guest.start()`, `xen.run()`) as
    UserEndError. `seconds` of wall clock may pass in one call of it. LocalProtocolError: no kind.
    """
    if kind not in KINDS:
        raise LocalProtocolError(f"a backend of kind {kind!r}: expected one of {', '.join(KINDS)}")
    host = PluggedBackends(platform, kind, factory, seconds)
    drivers: dict[str, DriverFactory] = dict(platform.backends.drivers)
    platform.backends.drivers = {**drivers, kind: host.make}
    return host
