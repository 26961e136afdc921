"""Worlds with a user's backend in place of ours, under raw frontends.

    with user_blk_backend(MyBackend, seed=7) as world:
        world.connect()
        world.vbd.sring.push(request, 1)
        world.vbd.notify()
        world.run()

The same as world_raw in what a case sees: `vbd` or `vif`, `guest`, `image`, `bridge`, `run`. The
other device of that guest has our backend and is left alone.
"""

from __future__ import annotations

from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Protocol

from xenpv.abi.xenbus import XenbusState
from xenpv.back.xenbus import Device, Driver, DriverFactory
from xenpv.errors import ConfigError
from xenpv.host.image import Image, MemoryImage
from xenpv.host.network import Frame
from xenpv.platform import Platform
from xenpv.testing.ends.blame import UserEndError
from xenpv.testing.ends.end import End
from xenpv.testing.ends.guard import PEER, UNFIT, Guard
from xenpv.testing.ends.machine import Machine
from xenpv.testing.ends.port import EndPort
from xenpv.testing.ends.protocols import BlkBackendFactory, NetBackendFactory
from xenpv.testing.ends.watchdog import SECONDS
from xenpv.testing.raw_front import RawFront
from xenpv.testing.raw_world import IMAGE_BYTES, RawWorld
from xenpv.xen.loop import Chooser

BRIDGE: Final = "xenbr0"


class BackendDevice:
    """The bus' device, as an end sees its own."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.kind = device.kind
        self.devid = device.devid
        self.path = device.path
        self.peer_domid = device.frontend_domid

    @property
    def name(self) -> str:
        return self._device.name

    @property
    def peer_path(self) -> str:
        return self._device.frontend

    @property
    def broken(self) -> str:
        return self._device.broken

    @broken.setter
    def broken(self, why: str) -> None:
        self._device.broken = why

    @property
    def state(self) -> XenbusState:
        return self._device.state

    @state.setter
    def state(self, state: XenbusState) -> None:
        self._device.note_state(state)

    def switch_state(self, state: XenbusState) -> None:
        self._device.switch_state(state)

    def fatal(self, why: str) -> None:
        self._device.fatal(why)


class BackendHost(Protocol):
    """Who has a user's backends: a world of one device, or a platform with guests."""

    machine: Machine
    seconds: float
    factory: Any

    def resource(self, plug: PluggedBackend) -> Image | EndPort:
        """What a backend serves: its image, or its port of a bridge. ConfigError."""

    def gone(self, plug: PluggedBackend) -> None:
        """Its device is gone."""


class PluggedBackend:
    """What the bus has as the driver of one device: the user's, guarded."""

    def __init__(self, world: BackendHost, device: Device) -> None:
        self.device = device
        self.guard = Guard(world.seconds)
        self.end = End(world.machine, BackendDevice(device), self.guard)
        self.driver: Any = None
        self._world = world
        self._port: EndPort | None = None

    def probe(self) -> None:
        try:
            resource = self._world.resource(self)
        except ConfigError as error:  # a file that is not there, or is another disk's
            self.device.fatal(f"creating {self.device.kind} structure: {error}")
            return
        if isinstance(resource, EndPort):
            self._port = resource
            self._port.attach()
        factory = self._world.factory
        assert factory is not None
        self.driver = self.guard.call(factory, self.end, resource, breaks=self.device.fatal)
        if self.driver is not None:
            self._method("probe")

    def frontend_changed(self, state: XenbusState) -> None:
        if self.driver is not None:
            self._method("frontend_changed", state)

    def hotplug_changed(self) -> None:
        """The script has nothing to tell a driver that was given its image or its port."""

    def receive(self, frames: list[Frame]) -> None:
        """Of the bridge."""
        if self.driver is not None and not self.device.broken:
            self._method("receive", frames, unfit=PEER)

    def remove(self) -> None:
        """Also at the platform's end, when nothing may be raised: what is wrong is the guard's to
        tell, at the end of the run.
        """
        with suppress(UserEndError):
            if self.driver is not None:
                self._method("close")
        if self._port is not None:
            self._port.detach()
        self.driver = None
        with suppress(UserEndError):
            self.end.end()
        self._world.gone(self)

    def _method(
        self, name: str, *arguments: Any, unfit: tuple[type[Exception], ...] = UNFIT
    ) -> None:
        self.guard.method(self.driver, name, *arguments, breaks=self.device.fatal, unfit=unfit)


class BackendWorld(RawWorld):
    """A raw world in which `kind` (vbd or vif) has the user's backend; `factory` None: ours.

    `plugged` are the drivers that were made, one each time the device is. `finish` takes the
    device away and sees that nothing is left of it; `with` does that at its end.
    """

    def __init__(
        self,
        platform: Platform,
        kind: str,
        factory: BlkBackendFactory | NetBackendFactory | None,
        image: Image,
        *,
        seconds: float,
    ) -> None:
        self.kind = kind
        self.factory: Any = factory
        self.seconds = seconds
        self.machine = Machine(platform.dom0, platform.dispatcher, platform.backends.store)
        self.plugged: list[PluggedBackend] = []
        self._finished = False
        if factory is not None:
            drivers: dict[str, DriverFactory] = dict(platform.backends.drivers)
            platform.backends.drivers = {**drivers, kind: self._plug}
        super().__init__(platform, image, BRIDGE)

    def _plug(self, device: Device) -> Driver:
        self.plugged.append(PluggedBackend(self, device))
        return self.plugged[-1]

    def resource(self, plug: PluggedBackend) -> Image | EndPort:
        """What a backend serves: the image, or a port of the bridge."""
        if self.kind == "vbd":
            return self.image
        return EndPort(self.platform.dom0, self.bridge, plug.device.name, plug.receive)

    def gone(self, plug: PluggedBackend) -> None:
        """The image is the caller's, and the port was detached."""

    @property
    def front(self) -> RawFront:
        """The raw frontend under which the backend stands."""
        return self.vbd if self.kind == "vbd" else self.vif

    @property
    def driver(self) -> Any:
        """The user's driver, the newest. IndexError: there is none yet."""
        return self.plugged[-1].driver

    def connect(self) -> None:
        """LocalProtocolError if the backend refuses, UserEndError for what it does wrong."""
        self.run()
        self.front.attach()
        self.front.announce()
        self.run()
        self.front.finish()
        self.run()

    def run(self) -> int:
        """Let everything happen that is due. UserEndError."""
        ran = super().run()
        for plug in self.plugged:
            plug.guard.rest()
        return ran

    def finish(self) -> None:
        """Take the device away, and see that its backend gives everything back. UserEndError.

        A second call does nothing.
        """
        if self._finished:
            return
        self._finished = True
        self.run()
        self.guest.xs.rm(self.front.backend_path)
        self.run()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()


def _world(
    kind: str,
    factory: BlkBackendFactory | NetBackendFactory | None,
    image: Image | None,
    seed: int,
    connect: bool,
    chooser: Chooser | None,
    seconds: float,
) -> BackendWorld:
    platform = Platform(seed=seed, chooser=chooser)
    try:
        image = MemoryImage(bytearray(IMAGE_BYTES)) if image is None else image
        world = BackendWorld(platform, kind, factory, image, seconds=seconds)
        if connect:
            world.connect()
    except BaseException:
        platform.close()
        raise
    return world


def user_blk_backend(
    factory: BlkBackendFactory | None,
    *,
    image: Image | None = None,
    seed: int = 0,
    connect: bool = True,
    chooser: Chooser | None = None,
    seconds: float = SECONDS,
) -> BackendWorld:
    """A raw disk frontend on the backend that `factory(end, image)` makes; None: on ours.

    `image` None: 64 KiB of zeros. `seconds` of wall clock may pass in one call of the driver.
    """
    return _world("vbd", factory, image, seed, connect, chooser, seconds)


def user_net_backend(
    factory: NetBackendFactory | None,
    *,
    seed: int = 0,
    connect: bool = True,
    chooser: Chooser | None = None,
    seconds: float = SECONDS,
) -> BackendWorld:
    """A raw network frontend on the backend that `factory(end, port)` makes; None: on ours."""
    return _world("vif", factory, None, seed, connect, chooser, seconds)
