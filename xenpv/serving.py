"""What a guest has to do with being a driver domain; most are none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpv.errors import LocalProtocolError
from xenpv.host.libxl import ToolstackError

if TYPE_CHECKING:
    from xenpv.driverdomain import DriverDomain
    from xenpv.host.image import ImageProvider
    from xenpv.host.network import Bridge
    from xenpv.host.toolstack import Created
    from xenpv.net.adapter import Adapter
    from xenpv.platform import Platform


class Serving:
    """The part of a guest that others' devices are served by."""

    created: Created
    platform: Platform

    def __init__(self) -> None:
        self._driver_domain: DriverDomain | None = None

    @property
    def nets(self) -> list[Adapter]:
        """Its network adapters."""
        raise NotImplementedError

    @property
    def driver_domain(self) -> DriverDomain:
        """What it has as a driver domain, before its first boot too.

        LocalProtocolError for a guest that is none.
        """
        if self._driver_domain is None:
            config = self.created.config
            if not config.driver_domain:
                raise LocalProtocolError(f"guest {config.name!r} is no driver domain")
            from xenpv.driverdomain import DriverDomain

            platform = self.platform
            self._driver_domain = DriverDomain(
                platform.netback_of, platform.blkback_of, platform.sectors_of
            )
            recorder = platform.loop.trace.recorder
            if recorder is not None:
                recorder.bridges(platform, config.name, self._driver_domain.network)
        return self._driver_domain

    def bridge(self, name: str) -> Bridge:
        """The bridge of that name in a driver domain, made at its first mention."""
        return self.driver_domain.network.bridge(name)

    @property
    def images(self) -> ImageProvider:
        """Disk images in a driver domain: names registered here, else paths."""
        return self.driver_domain.images

    def addif(self, bridge: str, number: int = 0) -> None:
        """`brctl addif`: its adapter of that number is a port of its bridge, from now on and
        after each reboot. In a driver domain.
        """
        adapter = next((one for one in self.nets if one.number == number), None)
        self.driver_domain.addif(bridge, number, adapter)

    def must_not_serve(self, what: str) -> None:
        """ToolstackError for a driver domain that runs, before anything is done to it."""
        driver = self._driver_domain
        if driver is None or driver.backends is None:
            return
        serves = ", ".join(driver.serves) or "nobody"
        name = self.created.config.name
        why = "a driver domain's images, bridges and mapped pages stay on its host"
        raise ToolstackError(f"{what} of {name!r}: {why}; it serves {serves}")

    def end_driver_domain(self) -> None:
        """Its domain is gone: let go of images and bridges. Nothing happens to other guests."""
        if self._driver_domain is not None:
            self._driver_domain.end()
