"""What libxl runs for a device on the backend's host: /etc/xen/scripts (libxl_linux.c).

A script finds its device by its environment, reads and writes its directory by paths relative
to its domain, and ends with a status.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final, Protocol

import attrs

from xenpv.host.device import DeviceKey

BASE_PATH: Final = "backend"
KILLED: Final = 128 + 9  # by SIGKILL


class Action(enum.Enum):
    """A script's first argument. A bridge port comes `online` where another device is added."""

    ADD = "add"
    REMOVE = "remove"
    ONLINE = "online"
    OFFLINE = "offline"


@attrs.frozen(kw_only=True)
class ScriptCall:
    """One run. `type_if`: which of an interface's two ends, `vif` or `tap`; "" of a disk."""

    script: str
    action: Action
    xenbus_type: str
    xenbus_path: str
    xenbus_base_path: str = BASE_PATH
    type_if: str = ""
    vif: str | None = None
    interface: str | None = None
    netdev: str | None = None

    @property
    def arguments(self) -> tuple[str, ...]:
        """argv, without the script's name."""
        extra = (f"type_if={self.type_if}",) if self.type_if else ()
        return (self.action.value, *extra)

    @property
    def environment(self) -> dict[str, str]:
        """get_hotplug_env"""
        known = {
            "script": self.script,
            "XENBUS_TYPE": self.xenbus_type,
            "XENBUS_PATH": self.xenbus_path,
            "XENBUS_BASE_PATH": self.xenbus_base_path,
            "netdev": self.netdev,
            "INTERFACE": self.interface,
            "vif": self.vif,
        }
        return {name: text for name, text in known.items() if text is not None}


def calls(device: DeviceKey, keys: Mapping[str, str | None], *, adds: bool) -> list[ScriptCall]:
    """The scripts for a device, in their order; `keys`: script, params, type, gatewaydev."""
    script = keys.get("script")
    if not script:
        return []
    if device.backend_kind in ("vbd", "vbd3"):
        if not keys.get("params"):
            return []  # a drive without a medium: there is nothing to attach
        action = Action.ADD if adds else Action.REMOVE
        return [_call(device, script, action)]
    if device.backend_kind != "vif":
        return []
    name = f"vif{device.domid}.{device.devid}"
    netdev = keys.get("gatewaydev") or ""
    port = _call(device, script, Action.ONLINE if adds else Action.OFFLINE)
    runs = [attrs.evolve(port, type_if="vif", vif=name, netdev=netdev)]
    if keys.get("type") == "vif_ioemu":
        tap = _call(device, script, Action.ADD if adds else Action.REMOVE)
        runs.append(
            attrs.evolve(tap, type_if="tap", vif=name, interface=f"{name}-emu", netdev=netdev)
        )
    return runs


def _call(device: DeviceKey, script: str, action: Action) -> ScriptCall:
    return ScriptCall(
        script=script,
        action=action,
        xenbus_type=device.backend_kind,
        xenbus_path=device.xenbus_path,
    )


class ScriptProcess:
    """A script at work: `status` is its exit status, None until it ended."""

    __slots__ = ("status",)

    def __init__(self, status: int | None = None) -> None:
        self.status = status

    def kill(self) -> None:
        """It took too long."""
        self.status = KILLED


class ScriptStore(Protocol):
    """xenstore-read, -write and -list, by paths relative to the backend's domain."""

    def read(self, path: str) -> str | None: ...

    def directory(self, path: str) -> list[str]: ...

    def write_all(self, path: str, values: Mapping[str, str]) -> None: ...


class HotplugScripts(Protocol):
    """Who runs scripts on the backend's host."""

    def start(self, call: ScriptCall, xs: ScriptStore) -> ScriptProcess:
        """Begin a run. What it finds wrong it writes to `hotplug-error`, and ends with 1."""
