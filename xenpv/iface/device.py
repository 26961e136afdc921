"""The XENIFACE driver: its device in D0 and D3, and what it has for whoever opens it.

win-xeniface fdo.c. In D0 it has XenBus' interfaces and an entry in `drivers`; a suspend of
the domain does not leave D0, a power-down or a stop does.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Final
from uuid import UUID

from xenpv.bus.suspend import SuspendCallback, SuspendPhase
from xenpv.iface.security import Principal

if TYPE_CHECKING:
    from xenpv.bus.xenbus import XenBus
    from xenpv.iface.agent import Agent
    from xenpv.iface.ioctl import FileObject, Irp
    from xenpv.iface.ioctl_evtchn import IoctlEvtchn
    from xenpv.iface.ioctl_gnttab import IoctlGnttab
    from xenpv.iface.ioctl_store import IoctlStore
    from xenpv.iface.ioctl_suspend import IoctlSuspend
    from xenpv.iface.process import LockedPages, Process
    from xenpv.iface.store import IfaceStore
    from xenpv.iface.wmi import WmiProvider

PRODUCT: Final = "XENIFACE"
CLASS: Final = "IFACE"
PDO_REVISION: Final = 0x0900_000B
GUID_INTERFACE_XENIFACE: Final = UUID("b2cfb085-aa5e-47e1-8bf7-9793f3154565")
FIRST_CONTEXT: Final = 0xFFFF_8000_0000_0040  # handles of watches and suspend events
CONTEXT_STEP: Final = 0x40


class PowerState(enum.Enum):
    """DEVICE_POWER_STATE, what a driver of this bus uses of it."""

    D0 = 1
    D3 = 4


class XenIface:
    """The IFACE class driver of a Windows guest; `agent` is the service that uses it."""

    def __init__(self, bus: XenBus, agent: Agent | None = None) -> None:
        self.bus = bus
        self.agent = agent
        self.power = PowerState.D3
        self.stopped = True
        self._context = FIRST_CONTEXT
        self._callback: SuspendCallback | None = None

    # what it has for its users: made when first asked for

    @cached_property
    def store(self) -> IfaceStore:
        from xenpv.iface.store import IfaceStore

        return IfaceStore(self.bus, self.suspend_count)

    @cached_property
    def pages(self) -> LockedPages:
        from xenpv.iface.process import LockedPages

        return LockedPages(self.bus.domain)

    @cached_property
    def wmi(self) -> WmiProvider:
        from xenpv.iface.wmi import WmiProvider

        return WmiProvider(self)

    @cached_property
    def ioctl_store(self) -> IoctlStore:
        from xenpv.iface.ioctl_store import IoctlStore

        return IoctlStore(self)

    @cached_property
    def evtchn(self) -> IoctlEvtchn:
        from xenpv.iface.ioctl_evtchn import IoctlEvtchn

        return IoctlEvtchn(self)

    @cached_property
    def gnttab(self) -> IoctlGnttab:
        from xenpv.iface.ioctl_gnttab import IoctlGnttab

        return IoctlGnttab(self)

    @cached_property
    def suspend(self) -> IoctlSuspend:
        from xenpv.iface.ioctl_suspend import IoctlSuspend

        return IoctlSuspend(self)

    @cached_property
    def handlers(self) -> dict[int, Callable[[Irp], bytes | None]]:
        """What each IOCTL does, by its function number."""
        from xenpv.iface.ioctl import get_time, log

        parts = (self.ioctl_store, self.evtchn, self.gnttab, self.suspend)
        found = {number: do for part in parts for number, do in part.handlers().items()}
        return {**found, 0x840: get_time, 0x84F: log}

    def process(
        self, name: str = "user", principal: Principal = Principal.ADMINISTRATORS
    ) -> Process:
        """A new process of the guest, which may open this device."""
        from xenpv.iface.process import Process

        return Process(self.pages, name, principal)

    # the life of the driver

    @property
    def interfaces_acquired(self) -> bool:
        return self.power is PowerState.D0

    def start(self) -> None:
        """START_DEVICE."""
        self.stopped = False
        self.to_d0()
        if self.agent is not None:
            self.agent.start()

    def stop(self) -> None:
        """The device goes, and with it every WMI session. Pending grants stay."""
        if self.stopped:
            return
        if self.agent is not None:
            self.agent.stop()
        self.to_d3()
        if "wmi" in vars(self):
            self.wmi.sessions.end_all()
        self.stopped = True

    def remove(self) -> None:
        """Nothing is left after `stop`."""

    def to_d0(self) -> None:
        """At the start, and back from S3 or S4: WMI sessions go on."""
        if self.power is PowerState.D0:
            return
        self.power = PowerState.D0
        self.bus.claim_driver_key(PRODUCT)
        register = self.bus.suspend.register
        self._callback = register(SuspendPhase.LATE, self._resumed, owner=PRODUCT)
        if "wmi" in vars(self):
            self.wmi.sessions.resume_all()

    def to_d3(self) -> None:
        """For S3, S4, a stop or a removal (FdoD0ToD3, in its order)."""
        if self.power is PowerState.D3:
            return
        if "wmi" in vars(self):
            self.wmi.sessions.suspend_all()
        self.cleanup(None)
        self.power = PowerState.D3
        self.bus.clear_driver_key(PRODUCT, exact=True)
        callback, self._callback = self._callback, None
        if callback is not None:
            self.bus.suspend.deregister(callback)

    def _resumed(self) -> None:
        """The late callback: a restore made the domain's part of the store anew."""
        self.bus.clear_driver_key(PRODUCT, exact=True)
        self.bus.claim_driver_key(PRODUCT)
        if "wmi" in vars(self):
            self.wmi.fire_suspend_event()
        if "suspend" in vars(self):
            self.suspend.fire()

    def cleanup(self, file: FileObject | None) -> None:
        """XenIfaceCleanup: the watches, ports and suspend events of a file, or of all."""
        for name in ("ioctl_store", "evtchn", "suspend"):
            if name in vars(self):
                getattr(self, name).cleanup(file)

    def new_context(self) -> int:
        """A handle for a caller: opaque, and never the same."""
        context = self._context
        self._context += CONTEXT_STEP
        return context

    # what its parts ask XenBus

    def suspend_count(self) -> int:
        """To compare for inequality only: a driver's count grows by the number of vcpus."""
        return self.bus.suspend.get_count()

    def get_time(self) -> tuple[int, bool]:
        """SHARED_INFO GetTime: a FILETIME, and whether it is local time."""
        return self.bus.shared_info.get_time()

    def log(self, text: str) -> None:
        """A line of the guest's log."""
        self.bus.log(f"xeniface|{text}\n")

    def leftovers(self) -> list[str]:
        """What its users have open, one text each: for leak checks and dumps."""
        left = [f"watch {one.context:#x}" for one in self.ioctl_store.watches]
        left += [f"port {one.port}" for one in self.evtchn.channels]
        left += [f"{one.kind.value} at {one.address:#x}" for one in self.gnttab.contexts]
        left += [f"reference {ref}" for ref, _pfn in self.gnttab.mapped_still]
        left += [f"suspend event {one.context:#x}" for one in self.suspend.events]
        return left + [f"session {one.instance}" for one in self.wmi.sessions.newest_first()]
