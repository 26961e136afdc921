"""The backends' bus under a hostile guest and a careless toolstack: states, keys, directories.

The frontends of a disk and of an interface write any state and any key at any moment, connect,
close their ports and take grants back; directories of either end go and come, permissions and
`online` change. Whatever was done: once the directories are gone nothing is left of the devices
(pages, ports, tasks, watches, a place on the bridge), and devices that come then connect.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final

from xenpv.abi._kernel import lib
from xenpv.errors import HypercallError, LocalProtocolError, StoreError
from xenpv.testing.checkers import CheckFailed, check_all
from xenpv.testing.overlay import Target
from xenpv.testing.overlays.language import STATES, TEXTS, Language, Operation, pick
from xenpv.testing.raw_front import RawBlkFront, RawFront, RawNetFront
from xenpv.testing.raw_world import DEVID_XVDA, RawWorld, replant, world_raw
from xenpv.xen.evtchn_port import PortState

FRONT_KEYS: Final = (
    "ring-ref", "event-channel", "protocol", "tx-ring-ref", "rx-ring-ref", "ring-page-order",
    "ring-ref0", "multi-queue-num-queues", "queue-0/tx-ring-ref", "queue-1/tx-ring-ref",
    "feature-persistent", "request-rx-copy", "request-multicast-control", "ctrl-ring-ref",
    "event-channel-ctrl", "event-channel-tx", "event-channel-rx", "feature-sg", "xdp-headroom",
    "backend", "backend-id", "hotplug-status", "a/b/c",
)  # fmt: skip
BACK_KEYS: Final = (
    "online", "hotplug-status", "state", "frontend-id", "params", "mode", "bridge",
    "mac", "script", "rate", "mtu", "feature-x", "discard-enable", "vlan", "error",
)  # fmt: skip
VIRTUAL_S: Final = 5


class XenbusOverlay:
    """One example. `fronts` are the disk's and the interface's frontends."""

    def __init__(self) -> None:
        self.world: RawWorld = world_raw()

    @property
    def fronts(self) -> tuple[RawFront, RawFront]:
        return self.world.vbd, self.world.vif

    # operations

    def state(self, args: bytes) -> None:
        """A frontend's state, any text."""
        which, text = args
        self._write(self._front(which).path, "state", pick(STATES, text))

    def key(self, args: bytes) -> None:
        """A key of a frontend, any text."""
        which, name, text = args
        self._write(self._front(which).path, pick(FRONT_KEYS, name), pick(TEXTS, text))

    def back_key(self, args: bytes) -> None:
        """A key of the backend's directory, as a toolstack might write it."""
        which, name, text = args
        name_of = pick(BACK_KEYS, name)
        value = pick(STATES, text) if name_of == "state" else pick(TEXTS, text)
        self._write(self._front(which).backend_path, name_of, value)

    def _front(self, which: int) -> RawFront:
        return self.fronts[which & 1]

    def _write(self, path: str, key: str, value: str) -> None:
        try:
            self.world.guest.xs.write(f"{path}/{key}", value.replace("\0", ""))
        except StoreError:
            return

    def remove(self, args: bytes) -> None:
        """A directory, or a key of one, goes."""
        which, what, name = args
        front = self._front(which)
        path = front.backend_path if what & 1 else front.path
        if what & 2:
            path += f"/{pick(BACK_KEYS if what & 1 else FRONT_KEYS, name)}"
        elif what & 4:
            path = path.rpartition("/")[0]
        if self.world.guest.xs.read(path) is not None:
            self.world.guest.xs.rm(path)

    def plant(self, args: bytes) -> None:
        """Directories come anew, or for the first time after they went."""
        if args[0] & 1:
            self.world.run()
        self.clear()
        replant(self.world)

    def clear(self) -> None:
        """Both directories of both devices go."""
        xs = self.world.guest.xs
        for front in self.fronts:
            for path in (front.path, front.backend_path):
                if xs.read(path) is not None:
                    xs.rm(path)

    def connect(self, args: bytes) -> None:
        """A frontend makes rings and a port, and writes what an honest one does."""
        front = self._front(args[0])
        try:
            front.attach()
        except (HypercallError, LocalProtocolError):
            return  # no pages are left
        front.announce()

    def close_port(self, args: bytes) -> None:
        """A frontend's port goes, without a word."""
        self._front(args[0]).hang_up()

    def revoke(self, args: bytes) -> None:
        """An entry of the table is zeroed, in use or not."""
        self.world.guest.set_grant(8 + args[0] % 64, flags=0)

    def notify(self, args: bytes) -> None:
        """An event."""
        front = self._front(args[0])
        ports = self.world.guest.domain.evtchn.ports
        if ports[front.port].state is PortState.INTERDOMAIN:
            front.notify()

    def run(self, args: bytes) -> None:
        """Let everything happen that is due; time too, if told so."""
        self.world.run()
        if args[0] & 0xF0 == 0xF0:
            self.world.platform.advance(VIRTUAL_S)

    # what must hold

    def end(self) -> None:
        """Without directories nothing is left, and devices that come then connect."""
        world = self.world
        world.run()
        check_all(world.platform, hostile={world.guest.domid})
        self.clear()
        world.run()
        found = [
            f"{what}: {count}, expected at most {bare()[what]}"
            for what, count in census(world).items()
            if count > bare()[what]
        ]
        if found:
            raise CheckFailed(found)
        replant(world)
        guest = world.guest
        kind = world.vbd.backend_kind
        world.vbd = RawBlkFront(guest, DEVID_XVDA, backend_kind=kind)
        world.vif = RawNetFront(guest, 0)
        try:
            world.connect()
        except HypercallError:
            return  # no pages are left: the guest took them all


def census(world: RawWorld) -> Mapping[str, int]:
    """What devices hold, counted where it is cheap."""
    platform = world.platform
    dom0 = platform.dom0
    return {
        "pages of the guest in use": lib.grant_pinned_refs(world.guest.domain.kernel),
        "ports of dom0": sum(one.state is not PortState.FREE for one in dom0.evtchn.ports),
        "tasks of dom0": len(dom0.tasks),
        "timers of dom0": len(dom0.timers),
        "watches": sum([len(one.watches) for one in platform.xenstored.connections.values()]),
        "ports of the bridge": len(world.bridge.ports),
        "devices": len(platform.backends.devices),
        "maps of dom0": len(dom0.gnttab.maptrack),
    }


@cache
def bare() -> Mapping[str, int]:
    """The census of a world whose devices came, connected and went."""
    overlay = XenbusOverlay()
    try:
        overlay.clear()
        overlay.world.run()
        return census(overlay.world)
    finally:
        overlay.world.close()


LANGUAGE: Final = Language(
    Operation("state", ("which", "text"), XenbusOverlay.state, 6),
    Operation("run", ("time",), XenbusOverlay.run, 6),
    Operation("key", ("which", "name", "text"), XenbusOverlay.key, 4),
    Operation("connect", ("which",), XenbusOverlay.connect, 3),
    Operation("back_key", ("which", "name", "text"), XenbusOverlay.back_key, 3),
    Operation("remove", ("which", "what", "name"), XenbusOverlay.remove, 2),
    Operation("plant", ("run",), XenbusOverlay.plant, 2),
    Operation("close_port", ("which",), XenbusOverlay.close_port),
    Operation("revoke", ("ref",), XenbusOverlay.revoke),
    Operation("notify", ("which",), XenbusOverlay.notify),
)


def run(data: bytes) -> None:
    """One example. Raises CheckFailed, or what escaped."""
    overlay = XenbusOverlay()
    try:
        for operation, args in LANGUAGE.read(data):
            operation.act(overlay, args)
        overlay.end()
    finally:
        overlay.world.close()


TARGET: Final = Target("xenbus", run, LANGUAGE.split, LANGUAGE.words)
