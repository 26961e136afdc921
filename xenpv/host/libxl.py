"""What every part of the toolstack stands on: libxl_ctx, its errors, a domain that it made.

The toolstack runs outside the loop, as `xl` runs outside the kernel: each step writes to the
store and then lets the loop run until what it waits for is there, or virtual time is up.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Final

from xenpv.errors import XenpvError
from xenpv.host.device import Device
from xenpv.host.xs import XsHandle
from xenpv.host.xswatch import XsWatches
from xenpv.xen.domain import Domain
from xenpv.xen.loop import NS_PER_MS, NS_PER_S, Loop
from xenpv.xen.upcall import Dispatcher

if TYPE_CHECKING:
    from xenpv.host.devicemodel import DeviceModel
    from xenpv.host.domainconfig import DomainConfig

STEP_NS: Final = 100 * NS_PER_MS


class LIBXL(enum.IntEnum):
    """ERROR_* of libxl_types.idl, without the prefix."""

    FAIL = -3
    INVAL = -6
    GUEST_TIMEDOUT = -8
    TIMEDOUT = -9
    NOPARAVIRT = -10
    DEVICE_EXISTS = -17
    DOMAIN_NOTFOUND = -21


class ToolstackError(XenpvError):
    """A step of the toolstack failed: creation was undone, or a timeout ran out.

    `code` is what libxl would have returned.
    """

    def __init__(self, message: str, code: LIBXL = LIBXL.FAIL) -> None:
        super().__init__(message)
        self.code = code


class Created:
    """A domain that exists: what the toolstack keeps about it."""

    __slots__ = ("config", "device_model", "devices", "domain")

    def __init__(self, config: DomainConfig, domain: Domain) -> None:
        self.config = config
        self.domain = domain
        self.devices: list[Device] = []
        self.device_model: DeviceModel | None = None  # of an HVM domain

    @property
    def uuid(self) -> str:
        assert self.config.uuid is not None
        return self.config.uuid

    @property
    def domid(self) -> int:
        return self.domain.domid


class LibxlCtx:
    """libxl_ctx: the control domain it runs in, its store client, and how it waits."""

    def __init__(self, control: Domain, xs: XsHandle, dispatcher: Dispatcher | None = None) -> None:
        self.control = control
        self.loop: Loop = control.loop
        self.xs = xs
        self.dispatcher = dispatcher  # of the control domain: its /dev/xen/evtchn

    @cached_property
    def watches(self) -> XsWatches:
        """For what does not stay as it is until the loop rests."""
        return XsWatches(self.control, self.xs)

    def wait(
        self,
        ready: Callable[[], bool],
        timeout_ns: int,
        what: str,
        code: LIBXL = LIBXL.TIMEDOUT,
    ) -> None:
        """Let the loop run until `ready`; ToolstackError(code) when virtual time is up.

        Not longer, whatever one-shot timers are armed: what comes later came too late.
        """
        deadline = self.loop.now + timeout_ns
        self.loop.advance(0)
        while not ready():
            if self.loop.now >= deadline:
                raise ToolstackError(f"waited {timeout_ns // NS_PER_S} s for {what}", code)
            self.loop.advance(min(STEP_NS, deadline - self.loop.now))
