"""What a driver above XenVif reaches through its devices: configuration, driver key, log.

XenNet has of XENBUS' interfaces STORE and SUSPEND, and of NDIS the values of its own registry
key (NdisOpenConfigurationEx).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpv.bus.driverkey import VENDOR_NAME, VERSION

if TYPE_CHECKING:
    from xenpv.bus.suspend import SuspendCallback
    from xenpv.bus.xenbus import XenBus

NET_CLASS: Final = "Control\\Class\\{4d36e972-e325-11ce-bfc1-08002be10318}"
PRODUCT: Final = "XENNET"


def configuration_key(number: int) -> str:
    """The registry's key of the values that interface `number`'s driver is configured with."""
    return f"{NET_CLASS}\\{number:04}"


class DeviceStack:
    """Of one function device: what all its interfaces share. `enabled` counts those in use."""

    def __init__(self, bus: XenBus) -> None:
        self._bus = bus
        self.enabled = 0
        self._callbacks: list[SuspendCallback] | None = None

    @property
    def is_windows(self) -> bool:
        """Whether the driver above is XenNet, or stands for what Linux has in its place."""
        return self._bus.is_windows

    @property
    def vendor(self) -> str:
        """Who made the drivers."""
        return VENDOR_NAME

    @property
    def version(self) -> tuple[int, int, int, int]:
        """major, minor, micro and build of the drivers."""
        major, minor, micro, build = map(int, VERSION.split("."))
        return major, minor, micro, build

    def read_configuration(self, number: int, name: str, default: int) -> int:
        """NdisReadConfiguration for an integer: a REG_DWORD, or decimal digits as an INF writes.

        `default` where there is no such value, or no number.
        """
        value = self._bus.registry.get(configuration_key(number), name)
        if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
            return int(value)
        return value if isinstance(value, int) else default

    def has_configuration(self, number: int) -> bool:
        """Whether there is a key to read of."""
        return self._bus.registry.find(configuration_key(number)) is not None

    def enable(self) -> None:
        """An interface is enabled: the first one claims the driver's key (SetDistribution)."""
        self.enabled += 1
        if self.enabled == 1 and self._bus.is_windows:
            self._bus.claim_driver_key(PRODUCT)
            self._callbacks = self._bus.acquire_suspend(PRODUCT, None, self._resumed)

    def disable(self) -> None:
        """The last one clears it."""
        self.enabled -= 1
        if not self.enabled and self._bus.is_windows:
            self._bus.release_suspend(self._callbacks)
            self._callbacks = None
            self._bus.clear_driver_key(PRODUCT)

    def _resumed(self) -> None:
        # XenNet claims another key where the old one may still be, and with two adapters none.
        self._bus.clear_driver_key(PRODUCT)
        self._bus.claim_driver_key(PRODUCT)

    def warn(self, text: str) -> None:
        """A line of the driver's log, as a warning."""
        from xenpv.bus.log import LogLevel

        self._bus.log(f"xennet: {text}\n", LogLevel.WARNING)
