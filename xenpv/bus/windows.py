"""The kernel of a Windows guest: what it loads when it boots, in its order.

xen.sys with the first driver that needs it; xenfilt above the buses; then PnP finds the
platform device, and XENBUS comes up on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from xenpv.bus import inf, pci, platform_device
from xenpv.bus.crash import Dumper
from xenpv.bus.devicetree import DeviceNode, DeviceObject, DeviceTree, Inf
from xenpv.bus.ntstatus import NtStatusError
from xenpv.bus.platform_device import PlatformDevice
from xenpv.bus.registry import Registry
from xenpv.bus.system import XenSystem
from xenpv.bus.unplug import UnplugInterface
from xenpv.bus.xenbus import XenBus
from xenpv.bus.xenfilt import Xenfilt, has_filters
from xenpv.xen.domain import Domain

if TYPE_CHECKING:
    from xenpv.bus.xenbus import ClassDriverFactory


class Windows:
    """One boot of a guest. `tree` has its devices, `system` is xen.sys, `xenfilt` the filter
    where it is loaded.

    `drivers` are the classes that it has drivers for; `registry` outlives the boot; `build` is
    that of the drivers.
    """

    def __init__(
        self,
        domain: Domain,
        drivers: Mapping[str, ClassDriverFactory],
        registry: Registry,
        *,
        build: inf.Build | None = None,
        fifo: bool | None = None,
    ) -> None:
        self.domain = domain
        self.drivers = drivers
        self.registry = registry
        self.build = inf.BUILD if build is None else build
        self.fifo = fifo
        self.tree = DeviceTree(domain, registry, pci.IN_BOX)
        self.platform_devices: list[PlatformDevice] = []
        self.xenfilt: Xenfilt | None = None
        # The stacks that are loaded for a crash and for S4.
        self.dumper: Dumper | None = None
        self.hibernation: Dumper | None = None
        self._system: XenSystem | NtStatusError | None = None

    @property
    def system(self) -> XenSystem:
        """xen.sys, loaded by whoever asks first. NtStatusError: it does not load."""
        if self._system is None:
            try:
                self._system = XenSystem(self.domain, self.registry, self.build)
            except NtStatusError as error:
                self._system = error
            else:
                self._system.announce()
        if isinstance(self._system, NtStatusError):
            raise self._system
        return self._system

    @property
    def bus(self) -> XenBus | None:
        """XENBUS on the active device, once that has started."""
        return next((one.bus for one in self.platform_devices if one.bus is not None), None)

    def boot(self) -> None:
        """Everything that needs nobody's answer; PnP goes on in a task of its own."""
        # Windows starts its processors before it loads a driver.
        self.domain.start_vcpus()
        tree = self.tree
        ids = platform_device.ids(self.build)
        tree.install(Inf(platform_device.SERVICE, ids, self._add_xenbus, inf.SYSTEM_CLASS))
        if has_filters(self.registry):
            # A boot driver: what is named later in this boot is loaded in the next.
            tree.install_filter(inf.FILTER, self._add_xenfilt)
        tree.root.stack.append(pci.Root(self.domain))
        tree.invalidate(tree.root)

    def _add_xenbus(self, tree: DeviceTree, node: DeviceNode) -> DeviceObject:
        del tree
        return platform_device.add_device(self, node)

    def _add_xenfilt(self, tree: DeviceTree, node: DeviceNode) -> DeviceObject | None:
        """Without xen.sys, or with another one's, it is loaded and does nothing."""
        if self.xenfilt is None:
            try:
                system = self.system
                system.touch(inf.FILTER)
            except NtStatusError:
                return None
            safe_mode = bool(system.options.safe_mode)
            self.xenfilt = Xenfilt(self.registry, system.unplug, safe_mode=safe_mode)
        return self.xenfilt.add_device(tree, node)

    def make_bus(self, device: PlatformDevice) -> XenBus:
        """XENBUS' interfaces, for the active device."""
        bus = XenBus(
            self.domain,
            self.drivers,
            fifo=self.fifo,
            registry=self.registry,
            device_id=device.device_id,
            logs=self.system.log,
        )
        bus.vendor_prefix = self.build.vendor_prefix
        bus.vendor_name, bus.name = device.vendor_name, device.name
        bus.unplug = UnplugInterface(self.system.unplug)
        bus.suspend.unplug = self.system.unplug.devices
        if device.emulated is not None:
            bus.below = (device.emulated.interface,)
        bus.crash.dumper, bus.crash.hibernation = self.dumper, self.hibernation
        return bus
