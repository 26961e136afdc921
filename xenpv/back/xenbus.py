"""The backend side of xenbus: devices that appear under backend/, and their frontends.

What Linux' xenbus_probe_backend.c does: a device is probed when its directory appears,
told of each state of its frontend, and removed when its directory goes. What a driver does
about a state is the driver's table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from xenpv.abi.xenbus import XenbusState as State
from xenpv.back.store import BackStore, BackWatch
from xenpv.errors import HypercallError, PeerProtocolError, StoreError
from xenpv.xen.domain import Domain
from xenpv.xen.loop import Task


def state_of(text: str | None) -> State:
    """What a frontend wrote into `state`; UNKNOWN for anything that is no state."""
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 4:
        return State.UNKNOWN
    return State(int(text)) if int(text) <= State.RECONFIGURED else State.UNKNOWN


NUMBER_MAX: Final = (1 << 64) - 1
NUMBER_DIGITS: Final = 20


def number_of(text: str | None, default: int) -> int:
    """A leading decimal number, as Linux' xenbus_read_unsigned; else the default.

    What 64 bits do not hold is no number. Linux cuts to 32, so that 4294967296 is 0 there.
    """
    if text and len(text) < 20 and text.isascii() and text.isdigit():
        return int(text)
    digits = ""
    for character in (text or "").lstrip(" \t\n"):
        if character not in "0123456789":
            break
        digits += character
    value = int(digits) if 0 < len(digits) <= NUMBER_DIGITS else -1
    return value if 0 <= value <= NUMBER_MAX else default


class Driver(Protocol):
    """A backend driver of one device. PeerProtocolError and HypercallError break the device."""

    def probe(self) -> None:
        """The directory is there: write features, go to InitWait when that is due."""

    def frontend_changed(self, state: State) -> None:
        """The frontend wrote a state (or its directory went: UNKNOWN)."""

    def hotplug_changed(self) -> None:
        """`hotplug-status` of the device was written."""

    def remove(self) -> None:
        """The directory is gone: release everything."""


class Ports(Protocol):
    """Who hands events of ports to tasks: xen.upcall.Dispatcher in dom0.

    In a guest that has frontends too it stands on their event channels; there a port may be
    refused by a HypercallError.
    """

    def bind(self, port: int, name: str, run: Callable[[], object]) -> Task:
        """Events of `port` wake a new task that calls `run`."""

    def bind_task(self, port: int, task: Task) -> None:
        """Events of `port` wake a task that exists."""

    def unbind_port(self, port: int) -> None:
        """Forget a port; its task lives on."""

    def unbind(self, port: int) -> None:
        """Forget a port; its task is retired unless another port wakes it too."""


class DriverFactory(Protocol):
    def __call__(self, device: Device) -> Driver: ...


class Device:
    """One backend directory, `backend/<kind>/<frontend domid>/<devid>`."""

    __slots__ = (
        "_watches",
        "broken",
        "devid",
        "dispatcher",
        "domain",
        "driver",
        "frontend",
        "frontend_domid",
        "frontend_state",
        "keys",
        "kind",
        "path",
        "script_said",
        "state",
        "store",
        "wants",
    )
    driver: Driver

    def __init__(
        self,
        domain: Domain,
        store: BackStore,
        dispatcher: Ports,
        kind: str,
        frontend_domid: int,
        devid: int,
        path: str,
    ) -> None:
        self.domain = domain
        self.store = store
        self.dispatcher = dispatcher
        self.kind = kind
        self.frontend_domid = frontend_domid
        self.devid = devid
        self.path = path
        self.frontend = ""
        self.state: State = State.INITIALISING
        self.frontend_state: State = State.UNKNOWN
        self.broken = ""  # why the device was shut for its frontend's misdeeds
        # Keys of its own that it could not do without: it is probed anew when one is written.
        self.wants: tuple[str, ...] = ()
        # Keys of its own that its driver watches, and what is called when one is written.
        self.keys: dict[str, Callable[[], object]] = {}
        self.script_said = ""  # its `hotplug-status`, which goes with its driver
        self._watches: list[BackWatch] = []

    @property
    def name(self) -> str:
        """As the kernel names it: vif5.0, vbd5.51712."""
        return f"{self.kind}{self.frontend_domid}.{self.devid}"

    def probe(self, factory: DriverFactory) -> None:
        self.driver = factory(self)  # there is one to remove, whatever the store says now
        self.frontend = self.store.get(f"{self.path}/frontend") or ""
        self.state = state_of(self.store.get(f"{self.path}/state"))
        self.driver.probe()
        self._watches.append(self.store.watch(f"{self.frontend}/state", self._frontend))
        self._watches.append(self.store.watch(f"{self.path}/hotplug-status", self._hotplug))

    def get(self, key: str) -> str | None:
        """One of the device's own keys."""
        return self.store.get(f"{self.path}/{key}")

    def number(self, key: str, default: int) -> int:
        return number_of(self.get(key), default)

    def frontend_get(self, key: str) -> str | None:
        """One of the frontend's keys: written by the guest, worth no trust."""
        return self.store.get(f"{self.frontend}/{key}")

    def frontend_number(self, key: str, default: int) -> int:
        return number_of(self.frontend_get(key), default)

    def write(self, key: str, value: str, tx_id: int = 0) -> None:
        self.store.write(f"{self.path}/{key}", value, tx_id)

    def write_all(self, values: Mapping[str, str], tx_id: int = 0) -> None:
        """What a `write` of each does, one after the other."""
        self.store.write_all(self.path, values, tx_id)

    def switch_state(self, state: State) -> None:
        """xenbus_switch_state: written only if the node is still there, and only on a change."""
        if state is self.state:
            return
        self.state = state
        if self.store.exists(f"{self.path}/state"):
            self.write("state", str(int(state)))
        self.domain.trace.note(self.domain.domid, f"{self.name}: {state.name.lower()}")

    def note_state(self, state: State) -> None:
        """Its state was written otherwise: in a transaction, or by the toolstack."""
        self.state = state
        self.domain.trace.note(self.domain.domid, f"{self.name}: {state.name.lower()}")

    @property
    def online(self) -> bool:
        return self.number("online", 0) != 0

    def fatal(self, why: str) -> None:
        """xenbus_dev_fatal: the error node, then Closing."""
        self.broken = self.broken or why
        self._tell(why)
        self.domain.trace.note(self.domain.domid, f"{self.name}: broken: {why}")
        try:
            self.switch_state(State.CLOSING)
        except StoreError as error:
            self.domain.trace.note(self.domain.domid, f"{self.name}: {error}")

    def _tell(self, why: str) -> None:
        """The error node, in the device's own directory."""
        try:
            self.store.write(f"{self.path}/error", f"22 {why}")
        except StoreError:
            self.domain.trace.note(self.domain.domid, f"{self.name}: no place for its error")

    def unready(self, why: str, *keys: str) -> None:
        """A driver cannot serve it as the toolstack left it: as `fatal`, until a key changes."""
        self.wants = keys
        self.fatal(why)

    def is_retried(self, key: str) -> bool:
        """Whether a change of that key of its own is a reason to begin again.

        Linux would not: there a device whose probe failed, or that was unregistered, stays so.
        """
        if key == "frontend":
            return self.get(key) not in (None, self.frontend)
        return key in self.wants and (key != "online" or self.online)

    def unwatch(self) -> None:
        for watch in self._watches:
            self.store.unwatch(watch)
        self._watches.clear()

    def _frontend(self, _path: str) -> None:
        state = state_of(self.frontend_get("state"))
        if state is State.UNKNOWN and self.frontend_state is state:
            return  # it is not there yet
        self.frontend_state = state
        try:
            self.driver.frontend_changed(state)
        except (PeerProtocolError, HypercallError, StoreError) as error:
            self.fatal(str(error))

    def key_changed(self, key: str) -> None:
        """A key of its own was written: the driver hears of it if it watches that."""
        handler = self.keys.get(key)
        if handler is None:
            return
        try:
            handler()
        except (PeerProtocolError, HypercallError, StoreError) as error:
            self.fatal(str(error))

    def _hotplug(self, _path: str) -> None:
        try:
            self.driver.hotplug_changed()
        except (PeerProtocolError, HypercallError, StoreError) as error:
            self.fatal(str(error))


DEVICES_MAX: Final = 65536


class BackendBus:
    """The devices that `domain` is backend of: watches its `backend` directory."""

    def __init__(
        self,
        domain: Domain,
        store: BackStore,
        dispatcher: Ports,
        drivers: Mapping[str, DriverFactory],
    ) -> None:
        self.domain = domain
        self.store = store
        self.dispatcher = dispatcher
        self.drivers = drivers
        self.devices: dict[tuple[str, int, int], Device] = {}
        self._paths: dict[str, Device] = {}
        # By kind and frontend domain, as the store names them.
        self._of_domain: dict[tuple[str, str], dict[tuple[str, int, int], None]] = {}
        self.root = f"/local/domain/{domain.domid}/backend"
        self._watch = store.watch(self.root, self._changed)

    def device(self, kind: str, frontend_domid: int, devid: int) -> Device | None:
        return self.devices.get((kind, frontend_domid, devid))

    def rebind(self, kind: str, frontend_domid: int, devid: int) -> None:
        """A device's driver goes and comes again, as by sysfs' unbind and bind, and its hotplug
        script runs again. KeyError if there is no such device.

        Nothing asks the frontend to close; the new driver connects to the rings as they are.
        """
        device = self.devices[kind, frontend_domid, devid]
        status = device.get("hotplug-status")
        device.unwatch()
        device.driver.remove()
        device.broken = ""
        device.probe(self.drivers[kind])
        if status is not None:
            device.write("hotplug-status", status)

    def close(self) -> None:
        """At the platform's end: every driver lets go of what it holds, and its device of it."""
        for device in self.devices.values():
            device.driver.remove()
            del device.driver
        self.devices.clear()
        self.drivers = {}  # they may know the platform, which would then outlive its last name
        self.store.close()

    def _changed(self, path: str) -> None:
        end = path.rfind("/")
        known = self._paths.get(path[:end])
        if known is not None:
            # A key of a device that is known: of interest to its driver, unless it has none.
            name = path[end + 1 :]
            if known.keys:
                known.key_changed(name)
            if (known.wants or name == "frontend") and known.is_retried(name):
                self._probe_again(known)
            return
        parts = path[len(self.root) + 1 :].split("/") if len(path) > len(self.root) else []
        if parts and parts[0] not in self.drivers:
            return
        if len(parts) > 3:
            # A key of a device: of interest only when the device is not known yet.
            key = _key(parts)
            if key is not None and key not in self.devices:
                self._look(key)
            return
        if len(parts) < 3:
            for key in self._below(parts):
                self._look(key)
            self._enumerate(parts)
        else:
            key = _key(parts)
            if key is not None:
                self._look(key)

    def _below(self, parts: list[str]) -> list[tuple[str, int, int]]:
        """Known devices of a level: of one frontend domain, of a kind, or all."""
        if len(parts) == 2:
            return list(self._of_domain.get((parts[0], parts[1]), ()))
        return [key for key in self.devices if not parts or key[0] == parts[0]]

    def _probe_again(self, device: Device) -> None:
        key = (device.kind, device.frontend_domid, device.devid)
        self._remove(key, device)
        self._look(key)
        again = self.devices.get(key)
        if again is not None and device.script_said and again.get("hotplug-status") is None:
            # udev runs the script of what is added, as it did for the one before.
            again.write("hotplug-status", device.script_said)

    def _remove(self, key: tuple[str, int, int], device: Device) -> None:
        self._forget(key, device.path)
        device.unwatch()
        device.driver.remove()

    def _enumerate(self, parts: list[str]) -> None:
        """A whole level appeared or went: look at every device below it."""
        kinds = parts[:1] or list(self.drivers)
        for kind in kinds:
            base = f"{self.root}/{kind}"
            domids = parts[1:2] or self.store.directory(base)
            for domid in domids:
                for devid in self.store.directory(f"{base}/{domid}"):
                    key = _key([kind, domid, devid])
                    if key is not None:
                        self._look(key)

    def _forget(self, key: tuple[str, int, int], path: str) -> None:
        del self.devices[key]
        del self._paths[path]
        mine = self._of_domain[key[0], str(key[1])]
        del mine[key]
        if not mine:
            del self._of_domain[key[0], str(key[1])]

    def _look(self, key: tuple[str, int, int]) -> None:
        kind, domid, devid = key
        path = f"{self.root}/{kind}/{domid}/{devid}"
        known = self.devices.get(key)
        present = self.store.exists(f"{path}/state")
        if known is not None and not present:
            self._remove(key, known)
        elif known is None and present and kind in self.drivers:
            if not self.store.get(f"{path}/frontend"):
                return  # half of it is still to be written
            if len(self.devices) >= DEVICES_MAX:
                return
            device = Device(
                domain=self.domain,
                store=self.store,
                dispatcher=self.dispatcher,
                kind=kind,
                frontend_domid=domid,
                devid=devid,
                path=path,
            )
            self.devices[key] = device
            self._paths[path] = device
            self._of_domain.setdefault((kind, str(domid)), {})[key] = None
            try:
                device.probe(self.drivers[kind])
            except (PeerProtocolError, HypercallError, StoreError) as error:
                device.fatal(str(error))


def _key(parts: list[str]) -> tuple[str, int, int] | None:
    if parts[1].isdecimal() and parts[2].isdecimal():
        return parts[0], int(parts[1]), int(parts[2])
    return None
