"""The function device of class VIF: one child for each directory under `device/vif`.

A child walks to Connected by itself; then the driver above (`miniport`) gets its interface.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Generic, Protocol, TypeVar

from xenpv.bus.awaited import CLOSED_TOO, Awaited
from xenpv.bus.debug import DebugCallback
from xenpv.bus.interface import InterfaceVersion, query_interface
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.store import Watch
from xenpv.bus.suspend import SuspendCallback
from xenpv.bus.unplug import UnplugType
from xenpv.bus.xenbus import XenBus
from xenpv.errors import StoreError
from xenpv.vif.advertisement import Configured, packed
from xenpv.vif.alias import check_start
from xenpv.vif.frontend import UP, Frontend
from xenpv.vif.identity import (
    container_id,
    current_address,
    device_id,
    forget_address,
    hardware_ids,
    remember_address,
)
from xenpv.vif.interface import VifInterface
from xenpv.vif.mac import address_text, parse_address
from xenpv.vif.parameters import DEFAULTS, Parameters
from xenpv.vif.stack import DeviceStack
from xenpv.vif.versions import VifVersions

CLASS: Final = "device/vif"
HOTPLUG: Final = "feature/hotplug/vif"
# Keys of a frontend's directory whose change is a reason to try a failed interface again.
RETRIES: Final = (b"", b"mac", b"backend", b"backend-id", b"mtu")
# Why START_DEVICE fails where an emulated card does its work: another boot, or safe mode.
STAYS_EMULATED: Final = (NTSTATUS.PNP_REBOOT_REQUIRED, NTSTATUS.UNSUCCESSFUL)
NO_ADDRESSES: Final[Mapping[int, Configured]] = {}


class Miniport(Protocol):
    """An instance of the driver above."""

    def restart(self) -> object:
        """The interface is connected: enable it. May not raise."""

    def surprise_removed(self) -> None:
        """The device is gone: disable the interface; halt follows."""

    def halt(self) -> None:
        """The device goes: disable the interface and forget it."""


M = TypeVar("M", bound=Miniport)


class Pdo(Generic[M]):
    """A network interface; `miniport` is there once it was connected.

    `handles`: how many hold it open; while any does, the system does not let it go.
    `has_failed`: it did not connect, and is tried again when its directory changes or its
    backend comes.
    """

    def __init__(self, fdo: Vif[M], number: int, address: bytes) -> None:
        self._fdo = fdo
        self.number = number
        self.frontend = Frontend(fdo.bus, number, address, self, fdo.parameters)
        self.vif = VifInterface(self.frontend, fdo.stack)
        self.versions = VifVersions(self.vif)
        self.miniport: M | None = None
        self.handles = 0
        self.has_failed = False
        self.removing = False
        fdo.bus.request_unplug(UnplugType.NICS, make=True)

    # QUERY_ID and QUERY_INTERFACE

    @property
    def device_id(self) -> str:
        return device_id(self._fdo.bus.vendor_name)

    @property
    def instance_id(self) -> str:
        return str(self.number)

    @property
    def hardware_ids(self) -> list[str]:
        """The compatible ids are the same."""
        return hardware_ids(self._fdo.bus.vendor_name)

    @property
    def container_id(self) -> str:
        return container_id(self.frontend.mac.permanent)

    def query_interface(self, guid: str, version: int, size: int | None = None) -> InterfaceVersion:
        """VIF is its own, others are asked of the bus. NtStatusError NOT_SUPPORTED,
        BUFFER_OVERFLOW.
        """
        if guid.upper() != VifVersions.GUID:
            return self._fdo.bus.query_interface(guid, version, size)
        return query_interface([self.versions], guid, version, size)

    def connected(self) -> None:
        """Bring the driver above up."""
        self.has_failed = False
        if self.miniport is None:
            self.miniport = self._fdo.miniport(self.vif)
        self.miniport.restart()

    def addresses(self) -> list[bytes]:
        """What the system configured the interface with."""
        return packed(self._fdo.addresses.get(self.number))

    def failed(self) -> None:
        """START_DEVICE fails."""
        self.has_failed = True
        self._fdo.failed(self)

    @property
    def is_stuck(self) -> bool:
        """It failed, or waits and its directory does not say for whom."""
        handshake = self.frontend.handshake
        return self.has_failed or (bool(handshake.goals) and not handshake.backend)

    def request_eject(self) -> None:
        """IoRequestDeviceEject."""
        self._fdo.request_eject(self)

    def eject(self) -> None:
        """QUERY_REMOVE, then REMOVE and EJECT, or CANCEL_REMOVE where somebody uses it."""
        if self.removing:
            return
        if self.handles:
            self.frontend.eject_failed()
            return
        self._fdo.ejected(self)
        self.remove()

    def remove(self) -> None:
        """Close what is open; the function device hears when that is done."""
        if not self.removing:
            self.removing = True
            self._withdraw()
            self._halt()
            self.frontend.close()

    def vanish(self) -> None:
        """Its directory went: nothing to close with."""
        if not self.removing:
            self._withdraw()
        self.removing = True
        if self.miniport is not None:
            self.miniport.surprise_removed()
        self._halt()
        self.frontend.vanish()

    def _withdraw(self) -> None:
        """An emulated card in its place may stay at the next boot."""
        self._fdo.bus.request_unplug(UnplugType.NICS, make=False)

    def _halt(self) -> None:
        if self.miniport is not None:
            self.miniport.halt()

    def closed(self) -> None:
        """The frontend is done."""
        self._fdo.removed(self)


class Vif(Generic[M]):
    """XENVIF's function device. `miniport` makes an instance of the driver above.

    `addresses` is what the system has configured by device number; whoever changes it calls
    `addresses_changed`.
    """

    def __init__(
        self,
        bus: XenBus,
        miniport: Callable[[VifInterface], M],
        addresses: Mapping[int, Configured] = NO_ADDRESSES,
    ) -> None:
        self.bus = bus
        self.miniport = miniport
        self.addresses = addresses
        self.stack = DeviceStack(bus)
        self.pdos: dict[int, Pdo[M]] = {}
        self.refused: dict[int, NTSTATUS] = {}  # why START_DEVICE failed, until the next boot
        self._left: list[int] = []  # ejected, while their directories are there
        self._again: list[int] = []  # failed or ejected, and changed since
        self._ejecting: list[Pdo[M]] = []
        self._task = bus.domain.task("xenvif scan", self.scan)
        self._eject_task = bus.domain.task("xenvif eject", self._eject)
        self._awaited = Awaited(bus, self._task)
        self.parameters = DEFAULTS
        self._watch: Watch | None = None
        self._callbacks: list[SuspendCallback] | None = None
        self._debug: DebugCallback | None = None

    def start(self) -> None:
        """D3 to D0. Raises StoreError if the directory cannot be watched."""
        if self.bus.is_windows:
            self.parameters = Parameters.read(self.bus.registry)
        if self._debug is None:
            self._debug = self.bus.debug.register("xenvif|FRONTEND", self._print, "XENVIF")
        self._enter()
        self._callbacks = self.bus.acquire_suspend("XENVIF", self._suspended, self._resumed)

    def _enter(self) -> None:
        if self.bus.is_windows:
            self.bus.claim_driver_key("XENVIF")
            try:
                self.bus.store.write(HOTPLUG, "1")
            except StoreError as error:
                self.bus.log(f"xenvif: {HOTPLUG}: {error}\n")
        self._watch = self.bus.store.watch_add(CLASS, self._task, self._concerns_scan)

    def _leave(self) -> None:
        watch, self._watch = self._watch, None
        try:
            if watch is not None:
                self.bus.store.watch_remove(watch)
            if self.bus.is_windows:
                self.bus.store.discard(HOTPLUG)
        except StoreError as error:
            self.bus.log(f"xenvif: {error}\n")
        if self.bus.is_windows:
            self.bus.clear_driver_key("XENVIF")

    def stop(self) -> None:
        """D0 to D3: begins closing every interface."""
        if self._watch is None:
            return
        self.bus.release_suspend(self._callbacks)
        self._callbacks = None
        self._leave()
        self._awaited.keep(())
        for pdo in list(self.pdos.values()):
            pdo.remove()
        self._silence()

    def remove(self) -> None:
        """REMOVE_DEVICE: what was stopped will not be started again."""
        for task in (self._task, self._eject_task):
            self.bus.domain.forget(task)

    def _silence(self) -> None:
        """No dump any more, once there is nothing to tell."""
        if self.stopped and self._debug is not None:
            self.bus.debug.deregister(self._debug)
            self._debug = None

    def _print(self, crashing: bool) -> None:
        from xenpv.bus.dump import print_lines
        from xenpv.vif.dump import frontend_lines

        for pdo in self.pdos.values():
            print_lines(self.bus, frontend_lines(pdo.frontend, crashing))

    @property
    def stopped(self) -> bool:
        """Every interface is closed."""
        return self._watch is None and not self.pdos

    def _suspended(self) -> None:
        for pdo in self.pdos.values():
            pdo.frontend.suspend()

    def _resumed(self) -> None:
        """Late: its own D0 to D3 to D0, then every interface from the start."""
        self._leave()
        self._awaited.keep(())
        try:
            self._enter()
        except StoreError as error:
            self.bus.log(f"xenvif: resume: {error}\n")
        for pdo in list(self.pdos.values()):
            pdo.frontend.resume()

    def _concerns_scan(self, path: bytes) -> bool:
        """Not what happens inside the directory of an interface that is there and connects."""
        parts = path.split(b"/")
        if len(parts) < 3 or not parts[2].isdigit() or len(parts[2]) > 9:
            return True
        number = int(parts[2])
        pdo = self.pdos.get(number)
        if number in self._left or (pdo is not None and pdo.is_stuck):
            if b"/".join(parts[3:]) in RETRIES and number not in self._again:
                self._again.append(number)
            return number in self._again
        return pdo is None or len(parts) == 3

    def scan(self) -> None:
        """Make a child for each directory that appeared, drop those whose directory went."""
        if self._watch is None:
            return
        try:
            names = self.bus.store.directory(CLASS)
        except StoreError:
            names = []
        numbers = [int(name) for name in names if name.isdecimal() and len(name) < 10]
        self._awaited.keep(numbers)
        again, self._again = self._again + self._awaited.due(), []
        self._left = [one for one in self._left if one in numbers and one not in again]
        self.refused = {one: status for one, status in self.refused.items() if one in numbers}
        for number in [number for number in self.pdos if number not in numbers]:
            self.pdos[number].vanish()
        for number in again:
            failed = self.pdos.get(number)
            if failed is not None and failed.is_stuck and not failed.removing:
                failed.remove()
        for number in numbers:
            if number not in self.pdos and number not in (*self._left, *self.refused):
                self._create(number)

    def _create(self, number: int) -> None:
        path = f"{CLASS}/{number}"
        try:
            address = parse_address(self.bus.store.get(f"{path}/mac"))
        except StoreError:
            address = None
        if address is None or address[0] & 1:
            self.bus.log(f"xenvif: {path}: its mac is no address of a station\n")
            return
        try:
            current = self._may_start(number, address) if self.bus.is_windows else address
        except NtStatusError as error:
            self.refused[number] = error.status
            self.bus.log(f"xenvif: {path}: {error}\n")
            return
        pdo = self.pdos[number] = Pdo(self, number, address)
        pdo.frontend.mac.current = current
        pdo.frontend.start()

    def _may_start(self, number: int, address: bytes) -> bytes:
        """START_DEVICE: the address that it has then. NtStatusError: it does not start."""
        registry = self.bus.registry
        remember_address(registry, number, address_text(address))
        check_start(self.bus, number, address)
        return current_address(registry, number, address)

    def request_eject(self, pdo: Pdo[M]) -> None:
        """The system is asked in a task of its own."""
        if pdo not in self._ejecting:
            self._ejecting.append(pdo)
        self._eject_task.wake()

    def _eject(self) -> None:
        ejecting, self._ejecting = self._ejecting, []
        for pdo in ejecting:
            pdo.eject()

    def ejected(self, pdo: Pdo[M]) -> None:
        """It is gone while its directory is there; a change in that may bring it back."""
        if pdo.number not in self._left:
            self._left.append(pdo.number)

    def failed(self, pdo: Pdo[M]) -> None:
        """It did not connect; its backend may still come."""
        if self._watch is not None:
            self._awaited.add(pdo.number, pdo.frontend.handshake.backend)

    def removed(self, pdo: Pdo[M]) -> None:
        """A child is closed; its directory may ask for another."""
        self.pdos.pop(pdo.number, None)
        if self.bus.is_windows:
            forget_address(self.bus.registry, pdo.number)
        if pdo.number in self._left and self._watch is not None:
            self._awaited.add(pdo.number, pdo.frontend.handshake.backend, CLOSED_TOO)
        self._silence()
        self._task.wake()

    def connected(self, number: int) -> bool:
        """Whether interface `number` is connected and its backend believed."""
        pdo = self.pdos.get(number)
        return pdo is not None and pdo.frontend.state in UP and not pdo.frontend.broken

    @property
    def emulated(self) -> list[int]:
        """Interfaces that leave their network to an emulated card until the next boot."""
        return [one for one, status in self.refused.items() if status in STAYS_EMULATED]

    def addresses_changed(self, number: int) -> None:
        """NotifyUnicastIpAddressChange, of one interface."""
        pdo = self.pdos.get(number)
        if pdo is not None:
            pdo.frontend.addresses_changed()

    def adapters(self) -> list[M]:
        """Instances of the driver above, by device number."""
        pdos = (self.pdos[number] for number in sorted(self.pdos))
        return [pdo.miniport for pdo in pdos if pdo.miniport is not None and not pdo.removing]
