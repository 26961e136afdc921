"""Devices that come and go: the store, the wait for the backend, the script (libxl_device.c)."""

from __future__ import annotations

from typing import Final, Protocol

from xenpv.errors import StoreError, XenpvError
from xenpv.host.device import CLOSED, CLOSING, INIT_WAIT, Device
from xenpv.host.libxl import LIBXL, Created, LibxlCtx, ToolstackError
from xenpv.xen.loop import NS_PER_S

DEVICE_TIMEOUT_NS: Final = 10 * NS_PER_S
HOTPLUG_TIMEOUT_NS: Final = 40 * NS_PER_S


class HotplugScripts(Protocol):
    """What /etc/xen/scripts do on the backend's host. Raises XenpvError to refuse."""

    def block(self, params: str, *, writable: bool) -> str:
        """Check that a disk can be served; its path as `physical-device-path`."""

    def vif_bridge(self, bridge: str) -> None:
        """Check that an interface can join a bridge."""


class Hotplug:
    """Adds and removes devices of domains."""

    def __init__(self, ctx: LibxlCtx, scripts: HotplugScripts) -> None:
        self.ctx = ctx
        self.scripts = scripts

    def add_disk(self, made: Created, disk: Device) -> None:
        self._add(made, disk)
        path = disk.backend_path
        if not disk.back["params"]:
            return  # a drive without a medium: there is nothing for a script to attach
        try:
            physical = self.scripts.block(disk.back["params"], writable=disk.back["mode"] == "w")
        except XenpvError as error:
            self._hotplug_failed(disk, str(error))
        self.ctx.xs.write(f"{path}/physical-device-path", physical)
        self.ctx.xs.write(f"{path}/hotplug-status", "connected")

    def add_nic(self, made: Created, nic: Device) -> None:
        self._add(made, nic)
        try:
            self.scripts.vif_bridge(nic.back["bridge"])
        except XenpvError as error:
            self._hotplug_failed(nic, str(error))
        self.ctx.xs.write(f"{nic.backend_path}/hotplug-status", "connected")

    def _hotplug_failed(self, device: Device, why: str) -> None:
        self.ctx.xs.write(f"{device.backend_path}/hotplug-error", why)
        self.ctx.xs.write(f"{device.backend_path}/hotplug-status", "error")
        raise ToolstackError(f"{device.kind} {device.devid}: {why}")

    def _add(self, made: Created, device: Device) -> None:
        try:
            device.add(self.ctx.xs)
        except StoreError as error:
            if error.name != "EEXIST":
                raise
            text = f"device already exists in xenstore: {error}"
            raise ToolstackError(text, LIBXL.DEVICE_EXISTS) from error
        made.devices.append(device)
        if device.kind == "vif":
            self.ctx.control.trace.note(0, f"vif{made.domid}.{device.devid}: {device.back['mac']}")
        self.ctx.wait(
            lambda: self.ctx.xs.read(f"{device.backend_path}/state") == INIT_WAIT,
            DEVICE_TIMEOUT_NS,
            f"{device.backend_path} to reach state {INIT_WAIT}",
        )

    def remove(self, device: Device) -> None:
        """Forced: the frontend goes at once; the backend gets 10 s to reach Closed."""
        state = f"{device.backend_path}/state"

        def ask(t: int) -> None:
            if self.ctx.xs.read(state, t) is not None:
                self.ctx.xs.write(f"{device.backend_path}/online", "0", t)
                if self.ctx.xs.read(state, t) != CLOSED:
                    self.ctx.xs.write(state, CLOSING, t)
            self.ctx.xs.rm(device.frontend_path, t)

        self.ctx.xs.transaction(ask)
        try:
            self.ctx.wait(
                lambda: self.ctx.xs.read(state) in (None, CLOSED),
                DEVICE_TIMEOUT_NS,
                f"{device.backend_path} to close",
            )
        except ToolstackError as error:
            # libxl reports it and deletes everything all the same.
            self.ctx.control.trace.note(0, str(error))
        self.ctx.xs.rm_empty_parents(device.backend_path, "/local/domain/0/backend")
        self.ctx.xs.rm(device.libxl_path)
