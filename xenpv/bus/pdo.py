"""A child of XENBUS: the device of one class, its names, and its answers (win-xenbus pdo.c).

There is one per class, not per device: `device/vif/0` is a child of the VIF class' driver.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Protocol

import attrs

from xenpv.bus import classes, pnpstate
from xenpv.bus.devicetree import Irp
from xenpv.bus.interface import InterfaceVersion
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError, status_of
from xenpv.bus.pnpstate import Life, PnpState
from xenpv.bus.suspend import SuspendCallback
from xenpv.errors import GrantError, HypercallError, StoreError

if TYPE_CHECKING:
    from xenpv.bus.xenbus import XenBus

INSTANCE_ID: Final = "_"
COMPATIBLE: Final = "XENCLASS"
UNKNOWN_NUMBER: Final = 0xFFFFFFFF  # Address and UINumber

# revision: the version of each interface that it promises (xenbus, revision.h)
REVISIONS: Final[Mapping[int, Mapping[str, int]]] = {
    0x09000008: {
        "SUSPEND": 1, "SHARED_INFO": 3, "EVTCHN": 9, "DEBUG": 1, "STORE": 2, "RANGE_SET": 1,
        "CACHE": 2, "GNTTAB": 4, "UNPLUG": 1, "CONSOLE": 1, "EMULATED": 2,
    },
    0x09000009: {
        "SUSPEND": 1, "SHARED_INFO": 4, "EVTCHN": 9, "DEBUG": 1, "STORE": 2, "RANGE_SET": 1,
        "CACHE": 2, "GNTTAB": 4, "UNPLUG": 1, "CONSOLE": 1, "EMULATED": 2,
    },
    0x0900000A: {
        "SUSPEND": 1, "SHARED_INFO": 4, "EVTCHN": 9, "DEBUG": 1, "STORE": 2, "RANGE_SET": 1,
        "CACHE": 2, "GNTTAB": 4, "UNPLUG": 2, "CONSOLE": 1, "EMULATED": 2,
    },
    0x0900000B: {
        "SUSPEND": 1, "SHARED_INFO": 4, "EVTCHN": 9, "DEBUG": 1, "STORE": 2, "RANGE_SET": 1,
        "CACHE": 2, "GNTTAB": 4, "UNPLUG": 3, "CONSOLE": 1, "EMULATED": 2,
    },
    0x0900000C: {
        "SUSPEND": 1, "SHARED_INFO": 4, "EVTCHN": 9, "DEBUG": 1, "STORE": 2, "RANGE_SET": 1,
        "CACHE": 2, "GNTTAB": 4, "UNPLUG": 3, "CONSOLE": 1, "EMULATED": 3,
    },
}  # fmt: skip

# wdmguid.h; on x64 an INTERFACE of 32 bytes with four functions behind it.
BUS_INTERFACE_STANDARD: Final = "496B8280-6F25-11D0-BEAF-08002BE2092F"
BUS_INTERFACE_VERSION: Final = 1
BUS_INTERFACE_SIZE: Final = 64


class ClassDriver(Protocol):
    """The driver of one class: XENVIF, XENVBD, XENIFACE."""

    def start(self) -> None:
        """To D0."""

    def stop(self) -> None:
        """To D3: begins closing every device; `stopped` says when that is done."""

    @property
    def stopped(self) -> bool: ...

    def remove(self) -> None:
        """REMOVE_DEVICE, once it is stopped: its tasks go, it is not started again."""


class ClassDriverFactory(Protocol):
    def __call__(self, bus: XenBus) -> ClassDriver: ...


@attrs.frozen(kw_only=True)
class Capabilities:
    """DEVICE_CAPABILITIES, version 1. `device_state` by system power state, S0 to S5."""

    removable: bool
    surprise_removal_ok: bool
    eject_supported: bool
    unique_id: bool = True
    silent_install: bool = True
    address: int = UNKNOWN_NUMBER
    ui_number: int = UNKNOWN_NUMBER
    device_state: Mapping[int, str] = attrs.field(
        factory=lambda: {0: "D0", 3: "D3", 4: "D3", 5: "D3"}
    )


@attrs.frozen
class BusInterface:
    """BUS_INTERFACE_STANDARD of a child: what it does goes to the platform device below."""

    version: int = BUS_INTERFACE_VERSION
    size: int = BUS_INTERFACE_SIZE

    def translate_bus_address(self, address: int) -> int:
        """Guest-physical addresses are bus addresses."""
        return address


class Pdo:
    """`missing` says why the bus lost the device, "" while it is there.

    `driver` is there from START_DEVICE to REMOVE_DEVICE, if the system has one for the class.
    `pending`: the request that waits for the driver to come to rest.
    """

    __slots__ = ("_suspend_late", "bus", "driver", "is_d0", "life", "missing", "name", "pending",
                 "problem")  # fmt: skip

    def __init__(self, bus: XenBus, name: str) -> None:
        self.bus = bus
        self.name = name
        self.life = Life(pnpstate.PDO, PnpState.PRESENT)
        self.missing = ""
        self.driver: ClassDriver | None = None
        self.pending: Irp | None = None
        self.problem = ""  # why START_DEVICE failed last
        self.is_d0 = False
        self._suspend_late: list[SuspendCallback] | None = None

    def __repr__(self) -> str:
        return f"<Pdo {self.device_id} {self.state.value}>"

    @property
    def state(self) -> PnpState:
        return self.life.state

    # QUERY_ID, QUERY_DEVICE_TEXT, QUERY_CAPABILITIES

    @property
    def device_id(self) -> str:
        """Without revision: one driver store entry for all of them."""
        return f"XENBUS\\VEN_{self.bus.vendor_prefix}&DEV_{self.name}"

    @property
    def instance_id(self) -> str:
        return INSTANCE_ID

    @property
    def hardware_ids(self) -> list[str]:
        """Newest revision first; the compatible ids are the same."""
        base = f"XENBUS\\VEN_{self.bus.vendor_name}&DEV_{self.name}"
        ids = [f"{base}&REV_{revision:08X}" for revision in reversed(REVISIONS)]
        return [*ids, COMPATIBLE]

    @property
    def compatible_ids(self) -> list[str]:
        return self.hardware_ids

    @property
    def description(self) -> str:
        """DeviceTextDescription."""
        return f"{self.bus.name} {self.name}"

    @property
    def location(self) -> str:
        """DeviceTextLocationInformation."""
        return self.name

    def capabilities(self, version: int = 1) -> Capabilities:
        """QUERY_CAPABILITIES; NtStatusError INVALID_PARAMETER for another version than 1."""
        if version != 1:
            raise NtStatusError(NTSTATUS.INVALID_PARAMETER, f"capabilities version {version}")
        removable = classes.allows(self.bus.registry, self.name, "AllowPdoRemove")
        return Capabilities(
            removable=removable,
            surprise_removal_ok=removable,
            eject_supported=classes.allows(self.bus.registry, self.name, "AllowPdoEject"),
        )

    def query_interface(
        self, guid: str, version: int, size: int | None = None
    ) -> InterfaceVersion | BusInterface:
        """What a class driver asks its device for; raises NtStatusError.

        BUS_INTERFACE_STANDARD is the device's own; the rest is the bus', and what that has not
        (EMULATED) is asked of the devices below it.
        """
        if guid.upper() != BUS_INTERFACE_STANDARD:
            return self.bus.query_interface(guid, version, size)
        if version != BUS_INTERFACE_VERSION:
            raise NtStatusError(NTSTATUS.NOT_SUPPORTED, f"bus interface version {version}")
        if size is not None and size < BUS_INTERFACE_SIZE:
            reason = f"{size} bytes, {BUS_INTERFACE_SIZE} are needed"
            raise NtStatusError(NTSTATUS.BUFFER_TOO_SMALL, reason)
        return BusInterface()

    # requests

    def request(self, irp: Irp) -> NTSTATUS:
        """A request of the PnP manager.

        PENDING: the driver has devices to close first; it completes when they are.
        DEVICE_NOT_READY: an earlier request is not complete.
        """
        if self.state is PnpState.DELETED or irp not in self.life.table:
            return pnpstate.refusal(self.life.table, self.state, irp)
        if self.pending is not None:
            return self._hurry(irp)
        if irp in pnpstate.POWERS_UP:
            status = self._start()
            if not status.is_success:
                return status
        elif irp in pnpstate.POWERS_DOWN and self.is_d0 and self.driver is not None:
            self.driver.stop()
            if not self.driver.stopped:
                self.pending = irp
                self.bus.settle()
                return NTSTATUS.PENDING
        self._complete(irp)
        return NTSTATUS.SUCCESS

    def _hurry(self, irp: Irp) -> NTSTATUS:
        """A request while one waits: EJECT may follow REMOVE_DEVICE, the rest is too early."""
        if irp is not Irp.EJECT or self.pending is not Irp.REMOVE_DEVICE:
            return NTSTATUS.DEVICE_NOT_READY
        self.pending = irp
        return NTSTATUS.PENDING

    def poll(self, *, give_up: bool = False) -> None:
        """Complete what waits, if the driver is at rest or nobody waits any longer."""
        irp, driver = self.pending, self.driver
        if irp is not None and (give_up or driver is None or driver.stopped):
            self.pending = None
            self._complete(irp)

    def _start(self) -> NTSTATUS:
        """D3 to D0, then the class driver's own start."""
        if self.is_d0:
            return NTSTATUS.SUCCESS
        self._to_d0()
        self.problem = ""
        try:
            if self.driver is None:
                factory = self.bus.drivers.get(self.name)
                self.driver = None if factory is None else factory(self.bus)
            if self.driver is not None:
                self.driver.start()
        except (StoreError, HypercallError, GrantError, NtStatusError) as error:
            self.problem = str(error)
            self.bus.log(f"xenbus: {self.name}: {error}\n")
            if self.driver is not None:
                self.driver.stop()
            self._to_d3()
            return status_of(error)
        return NTSTATUS.SUCCESS

    def _complete(self, irp: Irp) -> None:
        if irp in pnpstate.POWERS_DOWN:
            self._to_d3()
            if irp is not Irp.STOP_DEVICE:
                self._forget_driver()
        surprised = self.state is PnpState.SURPRISE_REMOVE_PENDING
        self.life.move(irp, missing=bool(self.missing))
        if irp is Irp.EJECT:
            self.missing = self.missing or "device ejected"
        if self.state is not PnpState.DELETED:
            return
        if irp is Irp.REMOVE_DEVICE and surprised:
            self.bus.children.destroy(self)
        else:
            self.bus.children.invalidate()

    def _forget_driver(self) -> None:
        """One that is still closing devices goes on with that, and keeps its tasks."""
        driver, self.driver = self.driver, None
        if driver is not None and driver.stopped:
            driver.remove()

    def _to_d0(self) -> None:
        self.is_d0 = True
        self._suspend_late = self.bus.acquire_suspend("XENBUS", None, self._resumed)

    def _to_d3(self) -> None:
        """Also of a device that is there already."""
        if self.is_d0:
            self.is_d0 = False
            self.bus.release_suspend(self._suspend_late)
            self._suspend_late = None

    def _resumed(self) -> None:
        """After a migration: D0 to D3 to D0, which is power management's notion only."""
        domain = self.bus.domain
        domain.trace.note(domain.domid, f"xenbus: {self.name} resumed")

    def delete(self, why: str) -> None:
        """The bus itself goes, or the device was never reported: no PnP manager to ask."""
        self.missing = self.missing or why
        self.pending = None
        if self.is_d0 and self.driver is not None:
            self.driver.stop()
        self._to_d3()
        self._forget_driver()
        self.life.enter(PnpState.DELETED)
