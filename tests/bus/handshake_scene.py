"""A booted Windows guest with one device, over a backend that is in a test's hands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs

from xenpv.abi.xenbus import XenbusState
from xenpv.back.xenbus import Device, Driver
from xenpv.bus.handshake import Handshake
from xenpv.host.image import MemoryImage
from xenpv.platform import Disk, Guest, Platform, Vif

DEVID = {"vif": 0, "vbd": 51712}
ANSWERS = {
    XenbusState.INITIALISING: XenbusState.INIT_WAIT,
    XenbusState.INITIALISED: XenbusState.CONNECTED,
    XenbusState.CONNECTED: XenbusState.CONNECTED,
    XenbusState.CLOSING: XenbusState.CLOSING,
    XenbusState.CLOSED: XenbusState.CLOSED,
}


@attrs.define(eq=False)
class Mute:
    """A backend's kernel that does nothing once the toolstack is content."""

    device: Device

    def probe(self) -> None:
        self.device.switch_state(XenbusState.INIT_WAIT)

    def frontend_changed(self, state: object) -> None: ...
    def hotplug_changed(self) -> None: ...
    def remove(self) -> None: ...


class Honest(Mute):
    """Answers every state, without ever looking at a ring."""

    def frontend_changed(self, state: object) -> None:
        if state is XenbusState.INITIALISED:
            self.device.write_all({"sectors": "1024", "sector-size": "512", "info": "0"})
        if isinstance(state, XenbusState) and state in ANSWERS:
            self.device.switch_state(ANSWERS[state])


@attrs.define(eq=False)
class Scene:
    xen: Platform
    guest: Guest
    kind: str

    @property
    def backend(self) -> str:
        (device,) = self.guest.created.devices
        return device.backend_path

    def put(self, key: str, value: str) -> None:
        """Into the backend's directory; "absent" takes it out."""
        xs = self.xen.toolstack.xs
        if value == "absent":
            xs.rm(f"{self.backend}/{key}")
        else:
            xs.write(f"{self.backend}/{key}", value)

    def front(self, key: str) -> str | None:
        (device,) = self.guest.created.devices
        return self.xen.toolstack.xs.read(f"{device.frontend_path}/{key}")

    @property
    def handshake(self) -> Handshake:
        if self.kind == "vif":
            assert self.guest._vif is not None
            return self.guest._vif.pdos[0].frontend.handshake
        assert self.guest._vbd is not None
        return self.guest._vbd.targets[0].frontend.handshake

    @property
    def frontend_path(self) -> str:
        return f"/local/domain/{self.guest.domid}/device/{self.kind}/{DEVID[self.kind]}"

    @property
    def connected(self) -> bool:
        driver = self.guest._vif if self.kind == "vif" else self.guest._vbd
        return driver is not None and driver.connected(DEVID[self.kind])

    def page(self) -> int:
        """A page of the guest's memory."""
        return self.guest.created.domain.pages.alloc()

    def tree(self, path: str) -> str | None:
        """A key below the guest's home."""
        return self.xen.toolstack.xs.read(f"/local/domain/{self.guest.domid}/{path}")

    def leftovers(self) -> tuple[int, int, list[str]]:
        """References out, ports of devices, watches of the device's.

        The scan's, for a backend that may still come, are the function device's.
        """
        bus = self.guest.bus
        assert bus is not None
        ports = [one for one in bus.evtchn.channels() if one.type.name not in ("FIXED", "VIRQ")]
        watches = [
            one.path
            for one in bus.store.watches()
            if f"/{self.kind}/" in one.path and one.task.name != f"xen{self.kind} scan"
        ]
        return bus.gnttab.permitted, len(ports), watches


@contextmanager
def scene(
    kind: str,
    state: str = "1",
    *,
    driver: Callable[[Device], Driver] = Mute,
    before: Callable[[Scene], object] | None = None,
    **keys: str,
) -> Iterator[Scene]:
    """The guest, booted while its backend stands at `state`, after `before` did its worst."""
    with Platform(seed=3) as xen:
        xen.backends.drivers = {"vif": driver, "vbd": driver}
        guest = xen.create(
            name="g",
            disks=[Disk(MemoryImage(bytearray(1 << 19)))] if kind == "vbd" else [],
            vifs=[Vif()] if kind == "vif" else [],
        )
        made = Scene(xen, guest, kind)
        for key, value in {"state": state, **keys}.items():
            made.put(key, value)
        if before is not None:
            before(made)
        xen.toolstack.unpause(guest.created)
        xen.run()
        yield made
