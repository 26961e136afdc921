"""The function device of class VIF: one child for each directory under `device/vif`.

A child walks to Connected by itself; then the driver above (`miniport`) gets its interface.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

from xenpv.bus.debug import DebugCallback
from xenpv.bus.store import Watch
from xenpv.bus.xenbus import XenBus
from xenpv.errors import StoreError
from xenpv.vif.frontend import Frontend, FrontendState
from xenpv.vif.interface import VifInterface
from xenpv.vif.mac import parse_address

CLASS: Final = "device/vif"
HOTPLUG: Final = "feature/hotplug/vif"
CONNECTED: Final = (FrontendState.CONNECTED, FrontendState.ENABLED)


class Miniport(Protocol):
    """An instance of the driver above."""

    def restart(self) -> None:
        """The interface is connected: enable it. May not raise."""

    def halt(self) -> None:
        """The device goes: disable the interface and forget it."""


M = TypeVar("M", bound=Miniport)


class Pdo(Generic[M]):
    """A network interface; `miniport` is there once it was connected."""

    def __init__(self, fdo: Vif[M], number: int, address: bytes) -> None:
        self._fdo = fdo
        self.number = number
        self.frontend = Frontend(fdo.bus, number, address, self)
        self.miniport: M | None = None
        self.removing = False

    def connected(self) -> None:
        """Bring the driver above up."""
        if self.miniport is None:
            self.miniport = self._fdo.miniport(VifInterface(self.frontend))
        self.miniport.restart()

    def eject(self) -> None:
        """The backend wants it gone: it is not made again while its directory stays."""
        self._fdo.ejected(self)
        self.remove()

    def remove(self) -> None:
        """Close what is open; the function device hears when that is done."""
        if not self.removing:
            self.removing = True
            self._halt()
            self.frontend.close()

    def vanish(self) -> None:
        """Its directory went: nothing to close with."""
        self.removing = True
        self._halt()
        self.frontend.vanish()

    def _halt(self) -> None:
        if self.miniport is not None:
            self.miniport.halt()

    def closed(self) -> None:
        """The frontend is done."""
        self._fdo.removed(self)


class Vif(Generic[M]):
    """XENVIF's function device. `miniport` makes an instance of the driver above."""

    def __init__(self, bus: XenBus, miniport: Callable[[VifInterface], M]) -> None:
        self.bus = bus
        self.miniport = miniport
        self.pdos: dict[int, Pdo[M]] = {}
        self._ejected: list[int] = []
        self._task = bus.domain.task("xenvif scan", self.scan)
        self._watch: Watch | None = None
        self._driver_key: str | None = None
        self._debug: DebugCallback | None = None

    def start(self) -> None:
        """D3 to D0."""
        if self._debug is None:
            self._debug = self.bus.debug.register("xenvif|FRONTEND", self._print, "XENVIF")
        if self.bus.personality == "windows":
            self._driver_key = self.bus.claim_driver_key("XENVIF")
            try:
                self.bus.store.write(HOTPLUG, "1")
            except StoreError as error:
                self.bus.log(f"xenvif: {HOTPLUG}: {error}\n")
        self._watch = self.bus.store.watch_add(CLASS, self._task, self._concerns_scan)

    def stop(self) -> None:
        """D0 to D3: begins closing every interface."""
        if self._watch is None:
            return
        self.bus.store.watch_remove(self._watch)
        self._watch = None
        for pdo in list(self.pdos.values()):
            pdo.remove()
        if self.bus.personality == "windows":
            self.bus.store.discard(HOTPLUG)
        self.bus.release_driver_key(self._driver_key)
        self._silence()

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

    def _concerns_scan(self, path: bytes) -> bool:
        """Not what happens inside the directory of an interface that is there."""
        parts = path.split(b"/")
        return len(parts) < 4 or not parts[2].isdigit() or int(parts[2]) not in self.pdos

    def scan(self) -> None:
        """Make a child for each directory that appeared, drop those whose directory went."""
        if self._watch is None:
            return
        try:
            names = self.bus.store.directory(CLASS)
        except StoreError:
            names = []
        numbers = [int(name) for name in names if name.isdecimal() and len(name) < 10]
        self._ejected = [number for number in self._ejected if number in numbers]
        for number in [number for number in self.pdos if number not in numbers]:
            self.pdos[number].vanish()
        for number in numbers:
            if number not in self.pdos and number not in self._ejected:
                self._create(number)

    def _create(self, number: int) -> None:
        path = f"{CLASS}/{number}"
        address = parse_address(self.bus.store.get(f"{path}/mac"))
        if address is None or address[0] & 1:
            self.bus.log(f"xenvif: {path}: its mac is no address of a station\n")
            return
        pdo = self.pdos[number] = Pdo(self, number, address)
        pdo.frontend.start()

    def ejected(self, pdo: Pdo[M]) -> None:
        if pdo.number not in self._ejected:
            self._ejected.append(pdo.number)

    def removed(self, pdo: Pdo[M]) -> None:
        """A child is closed; its directory may ask for another."""
        self.pdos.pop(pdo.number, None)
        self._silence()
        self._task.wake()

    def connected(self, number: int) -> bool:
        """Whether interface `number` is connected and its backend believed."""
        pdo = self.pdos.get(number)
        return pdo is not None and pdo.frontend.state in CONNECTED and not pdo.frontend.broken

    def adapters(self) -> list[M]:
        """Instances of the driver above, by device number."""
        pdos = (self.pdos[number] for number in sorted(self.pdos))
        return [pdo.miniport for pdo in pdos if pdo.miniport is not None and not pdo.removing]
