"""`xl devd`: what runs the hotplug scripts of a driver domain (libxl_device.c).

libxl_device_events_handler, backend_watch_callback. It watches the `backend` directory of its
domain. A device that it does not know is waited for and gets its script; one that is closed
for good gets the other script, and then its directory is removed: that is this domain's, the
parents are not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import attrs

from xenpv.errors import StoreError
from xenpv.host.aodevice import DEVICE_TIMEOUT_NS, HOTPLUG_TIMEOUT_NS
from xenpv.host.device import BACKEND_PATH, CLOSED, INIT_WAIT, DeviceKey
from xenpv.host.hotplug import SCRIPT_KEYS
from xenpv.host.hotplugscript import HotplugScripts, ScriptCall, ScriptProcess, calls
from xenpv.xen.domain import Domain
from xenpv.xen.loop import NS_PER_MS

KINDS: Final = ("vbd", "vif", "qdisk", "vbd3")
SCRIPT_FIRST: Final = ("vbd3",)  # its script runs before it says InitWait
OFFLINE: Final = "0"
DEVICES_MAX: Final = 65536
DEPTH: Final = 7  # slashes in a device's path
POLL_NS: Final = 100 * NS_PER_MS  # between two looks at a script that runs


class DomainStore(Protocol):
    """libxenstore of a domain that is not the control domain: back.store.BackStore."""

    def get(self, path: str, tx_id: int = 0) -> str | None: ...

    def directory(self, path: str, tx_id: int = 0) -> list[str]: ...

    def write_all(self, path: str, values: Mapping[str, str], tx_id: int = 0) -> None: ...

    def remove(self, path: str, tx_id: int = 0) -> None: ...

    def watch(self, path: str, changed: Callable[[str], object]) -> object: ...


class ScriptPaths:
    """xenstore-read and its like, as a script of this domain has them: home is its own."""

    def __init__(self, store: DomainStore, home: str) -> None:
        self._store = store
        self._home = home

    def read(self, path: str) -> str | None:
        return self._store.get(f"{self._home}/{path}")

    def directory(self, path: str) -> list[str]:
        return self._store.directory(f"{self._home}/{path}")

    def write_all(self, path: str, values: Mapping[str, str]) -> None:
        self._store.write_all(f"{self._home}/{path}", values)


@attrs.define(eq=False)
class Served:
    """A device that the daemon knows: `due` are the runs that are left, `deadline` is for what
    it waits for now. `is_up`: it was waited for, and its scripts ran or failed.
    """

    key: DeviceKey
    deadline: int
    due: list[ScriptCall] = attrs.field(factory=list)
    process: ScriptProcess | None = None
    is_up: bool = False
    is_going: bool = False


class DriverDomainDaemon:
    """The daemon of `domain`; `scripts` is what its root file system has of them."""

    def __init__(self, domain: Domain, store: DomainStore, scripts: HotplugScripts) -> None:
        self.domain = domain
        self.store = store
        self.scripts = scripts
        self.served: dict[str, Served] = {}  # by backend path
        self.home = f"/local/domain/{domain.domid}"
        self.root = f"{self.home}/backend"
        self._paths = ScriptPaths(store, self.home)
        task = domain.task("xl devd", self._look_at_scripts)
        task.alarm = self._timer = domain.timer(task)
        store.watch(self.root, self._changed)
        self._adopt()

    def _adopt(self) -> None:
        """At its start: what waits for a script, and nothing that is further."""
        for kind in self.store.directory(self.root):
            if kind not in KINDS:
                continue
            for domid in self.store.directory(f"{self.root}/{kind}"):
                for devid in self.store.directory(f"{self.root}/{kind}/{domid}"):
                    path = f"{self.root}/{kind}/{domid}/{devid}"
                    if self.store.get(f"{path}/state") == INIT_WAIT:
                        self._changed(f"{path}/state")

    def _changed(self, path: str) -> None:
        """An event below `backend`: of a device's `state` and `online` alone."""
        device_path, _, name = path.rpartition("/")
        if name in ("state", "online"):
            self._look(device_path)
        elif path.count("/") <= DEPTH:  # a device, or what it is in: perhaps it went
            for known in [one for one in self.served if f"{one}/".startswith(f"{path}/")]:
                self._look(known)

    def _look(self, path: str) -> None:
        try:
            self._follow(path)
        except StoreError as error:
            # Somebody took its directory away meanwhile, or the right to write there.
            self.domain.trace.note(self.domain.domid, f"xl devd: {path}: {error}")

    def _follow(self, path: str) -> None:
        served = self.served.get(path)
        state = self.store.get(f"{path}/state")
        if state is None:
            self._forget(path)
        elif served is None:
            if state != CLOSED:
                self._meet(path, state)
        elif served.is_going:
            return
        elif state == CLOSED and self.store.get(f"{path}/online") == OFFLINE:
            self._go(served)
        elif not served.is_up:
            self._come(served, state)

    def _meet(self, path: str, state: str) -> None:
        match = re.match(BACKEND_PATH, path)
        if match is None or match[2] not in KINDS or len(self.served) >= DEVICES_MAX:
            return
        key = DeviceKey(
            kind=match[2],
            devid=int(match[4]),
            domid=int(match[3]),
            backend_domid=self.domain.domid,
        )
        if key.backend_path != path:
            return  # numbers with leading zeros, or another domain's
        deadline = self.domain.loop.now + DEVICE_TIMEOUT_NS
        served = self.served[path] = Served(key, deadline)
        self._come(served, state)

    def _come(self, served: Served, state: str) -> None:
        """libxl__wait_device_connection, then the scripts; a late one gets none."""
        if self.domain.loop.now > served.deadline:
            served.is_up = True
            self._say(served, f"waited for state {INIT_WAIT} in vain")
        elif state == INIT_WAIT or served.key.kind in SCRIPT_FIRST:
            served.is_up = True
            self._begin(served, adds=True)

    def _go(self, served: Served) -> None:
        served.is_up = served.is_going = True
        if served.process is not None:
            served.process.kill()
        self._begin(served, adds=False)

    def _begin(self, served: Served, *, adds: bool) -> None:
        read = self.store.get
        keys = {name: read(f"{served.key.backend_path}/{name}") for name in SCRIPT_KEYS}
        served.due = calls(served.key, keys, adds=adds)
        served.process = None
        self._step(served)

    def _step(self, served: Served) -> None:
        """Run what is due, until a script takes its time."""
        while True:
            process = served.process
            if process is not None:
                if process.status is None and self.domain.loop.now < served.deadline:
                    self._timer.arm(POLL_NS)
                    return
                if process.status is None:
                    process.kill()
                served.process = None
                if process.status:
                    self._say(served, f"its hotplug script ended with status {process.status}")
                    if not served.is_going:
                        served.due.clear()
            if not served.due:
                break
            served.deadline = self.domain.loop.now + HOTPLUG_TIMEOUT_NS
            served.process = self.scripts.start(served.due.pop(0), self._paths)
        if served.is_going:
            self._forget(served.key.backend_path)
            self.store.remove(served.key.backend_path)

    def _look_at_scripts(self) -> None:
        for served in list(self.served.values()):
            if served.process is not None:
                try:
                    self._step(served)
                except StoreError as error:
                    self._say(served, str(error))

    def _forget(self, path: str) -> None:
        served = self.served.pop(path, None)
        if served is not None and served.process is not None:
            served.process.kill()

    def _say(self, served: Served, what: str) -> None:
        self.domain.trace.note(self.domain.domid, f"xl devd: {served.key.xenbus_path}: {what}")
