"""What answers the toolstack in a guest, by the personality of its operating system.

Windows: xenagent, a service above XENIFACE. Linux: the kernel's manage.c, and xe-daemon where
the toolstack is XAPI's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpv.iface.device import XenIface
from xenpv.iface.manage import Manage
from xenpv.iface.operatingsystem import OperatingSystem, operating_system
from xenpv.iface.systemclock import SystemClock
from xenpv.iface.xedaemon import XeDaemon
from xenpv.iface.xenagent import XenAgent

if TYPE_CHECKING:
    from xenpv.bus.xenbus import ClassDriver, XenBus


class Agent:
    """Windows' service above XENIFACE; in Linux what stands in that driver's place."""

    def __init__(self, bus: XenBus, system: OperatingSystem | None = None) -> None:
        self.bus = bus
        self.system = system or operating_system(bus.personality)
        self.stopped = True
        self.xenagent: XenAgent | None = None
        self.manage: Manage | None = None
        self.daemon: XeDaemon | None = None
        if bus.personality == "windows":
            self.xenagent = XenAgent(bus, self.system)
        else:
            # Linux takes Xen's wall clock for UTC.
            clock = SystemClock(bus.domain, self.system.time_zone, bus.shared_info.get_time()[0])
            self.manage = Manage(bus, self.system, clock)
            self.daemon = XeDaemon(bus, self.system, clock)

    def start(self) -> None:
        self.stopped = False
        if self.xenagent is not None:
            self.xenagent.start()
        if self.manage is not None and self.daemon is not None:
            self.manage.start()
            self.daemon.start()

    def stop(self) -> None:
        if self.stopped:
            return
        if self.xenagent is not None:
            self.xenagent.stop()
        if self.manage is not None and self.daemon is not None:
            self.daemon.stop()
            self.manage.stop()
        self.stopped = True

    def remove(self) -> None:
        """Nothing is left after `stop`."""


def class_driver(bus: XenBus, system: OperatingSystem | None = None) -> ClassDriver:
    """XENIFACE with its agent above it; Linux' kernel is its own agent, and has no XENIFACE."""
    agent = Agent(bus, system)
    return XenIface(bus, agent) if bus.personality == "windows" else agent
