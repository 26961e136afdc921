"""`block` and `vif-bridge` of /etc/xen/scripts, without a shell: what they check and write.

A file gets a loop device, as the kernel's blkback knows none; what is served from memory
stands for a RAM disk; what tapback is to serve gets a tapdisk. Which image a disk has is the
backend's to open, by `params`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from xenpv.errors import ConfigError
from xenpv.host.device import INIT_WAIT
from xenpv.host.hotplugscript import Action, ScriptCall, ScriptProcess, ScriptStore
from xenpv.host.image import ImageBusyError, ImageProvider

LOOP_MAJOR: Final = 7
RAM_MAJOR: Final = 1
TAP_MAJOR: Final = 254  # what blktap was given at its start
TAP_KIND: Final = "vbd3"
TAPDEV: Final = "/dev/xen/blktap-2/tapdev"


class Bridges(Protocol):
    def bridge(self, name: str) -> object:
        """The bridge of that name, made if there is none."""


class Scripts:
    """The scripts of one host; `loops` are its loop devices by number, `taps` its tapdisks."""

    def __init__(self, images: ImageProvider, network: Bridges) -> None:
        self.images = images
        self.network = network
        self.loops: dict[int, str] = {}
        self.taps: dict[int, str] = {}
        self._ram: dict[str, int] = {}

    def start(self, call: ScriptCall, xs: ScriptStore) -> ScriptProcess:
        """These take no time: they have ended when this returns."""
        script = self._vif_bridge if call.type_if else self._block
        return ScriptProcess(script(call, xs))

    def _block(self, call: ScriptCall, xs: ScriptStore) -> int:
        path = call.xenbus_path
        params = xs.read(f"{path}/params")
        if not params:
            return _fatal(call, xs, f"xenstore-read {path}/params failed.")
        is_tap = call.xenbus_type == TAP_KIND
        if call.action is Action.REMOVE:
            node = xs.read(f"{path}/node") or ""
            for prefix, held in (("/dev/loop", self.loops), (TAPDEV, self.taps)):
                minor = node.removeprefix(prefix)
                if minor.isdecimal():
                    held.pop(int(minor), None)
            return 0
        if xs.read(f"{path}/physical-device") is not None:
            return 0  # it was called twice
        writable = "w" in (xs.read(f"{path}/mode") or "")
        try:
            self.images.check(params, writable)
        except ImageBusyError as error:
            return _fail(call, xs, str(error), "busy")
        except ConfigError as error:
            return _fatal(call, xs, str(error))
        state = xs.read(f"{path}/state")
        if state != INIT_WAIT and not is_tap:
            why = f"Path closed or removed during hotplug add: {path} state: {state}"
            return _fatal(call, xs, why)
        xs.write_all(path, self._tap(params) if is_tap else self._node(params))
        return 0

    def _tap(self, params: str) -> dict[str, str]:
        """tap-ctl create"""
        minor = _free(self.taps)
        self.taps[minor] = params
        node = f"{TAPDEV}{minor}"
        return {"node": node, **_device(TAP_MAJOR, minor, node)}

    def _node(self, params: str) -> dict[str, str]:
        """write_dev, after losetup where it is a file."""
        if self.images.is_registered(params):
            minor = self._ram.setdefault(params, len(self._ram))
            return _device(RAM_MAJOR, minor, params)
        minor = _free(self.loops)
        self.loops[minor] = params
        node = f"/dev/loop{minor}"
        return {"node": node, **_device(LOOP_MAJOR, minor, node)}

    def _vif_bridge(self, call: ScriptCall, xs: ScriptStore) -> int:
        path = call.xenbus_path
        bridge = xs.read(f"{path}/bridge")
        if not bridge:
            return _fatal(call, xs, "Could not find bridge, and none was specified")
        self.network.bridge(bridge)
        if call.type_if == "vif" and call.action is Action.ONLINE:
            xs.write_all(path, {"hotplug-status": "connected"})
        return 0


def _free(taken: Mapping[int, str]) -> int:
    return next(one for one in range(len(taken) + 1) if one not in taken)


def _device(major: int, minor: int, path: str) -> dict[str, str]:
    return {
        "physical-device": f"{major:x}:{minor:x}",
        "physical-device-path": path,
        "hotplug-status": "connected",
    }


def _fatal(call: ScriptCall, xs: ScriptStore, why: str) -> int:
    return _fail(call, xs, why, "error")


def _fail(call: ScriptCall, xs: ScriptStore, why: str, status: str) -> int:
    """xen-hotplug-common.sh: what is wrong, the status, and 1 for whoever waits."""
    xs.write_all(call.xenbus_path, {"hotplug-error": why, "hotplug-status": status})
    return 1
