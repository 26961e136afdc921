"""Worlds with a user's frontend in place of ours, on raw backends.

    with user_blk_frontend(MyFrontend, seed=7) as world:
        world.connect()
        world.vbd.hold = True
        reading = world.app.start_read(0, 8)
        world.run()
        (request,) = world.vbd.sring.take()

The same for ours: `factory` None is the Windows stack of world_back. `app` is what a program above
the frontend does, `vbd` or `vif` the raw backend, the newest.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final

from xenpv.abi.xenbus import XenbusState as State
from xenpv.back.store import BackStore
from xenpv.back.xenbus import Device, Driver, number_of, state_of
from xenpv.errors import LocalProtocolError, StoreError
from xenpv.host.xs import XsHandle
from xenpv.platform import Platform
from xenpv.testing.back_world import BackWorld
from xenpv.testing.ends.app import (
    DiskApp,
    NetApp,
    OwnDiskApp,
    OwnNetApp,
    UserDiskApp,
    UserNetApp,
)
from xenpv.testing.ends.blame import UserEndError
from xenpv.testing.ends.end import End
from xenpv.testing.ends.guard import Guard
from xenpv.testing.ends.machine import Machine
from xenpv.testing.ends.protocols import BlkFrontendFactory, NetFrontendFactory
from xenpv.testing.ends.watchdog import SECONDS
from xenpv.testing.raw_back import RawBack, RawBlkBack, RawNetBack
from xenpv.testing.raw_world import GRANT_FRAMES, GUEST_PAGES, SLACK_PAGES, directories
from xenpv.testing.world import World
from xenpv.xen.domain import Domain
from xenpv.xen.loop import Chooser
from xenpv.xen.upcall import Dispatcher

BRIDGE: Final = "xenbr0"
HOME: Final = "/local/domain/%d"


class FrontendDevice:
    """A device as its frontend's bus has it: xenbus_probe_frontend.c, for one device."""

    def __init__(self, machine: Machine, kind: str, path: str) -> None:
        self.kind = kind
        self.path = path
        self.devid = int(path.rpartition("/")[2])
        self.broken = ""
        self.state = State.INITIALISING
        self._domain = machine.domain
        self._store = machine.store
        self.peer_path = self._store.get(f"{path}/backend") or ""
        self.peer_domid = number_of(self._store.get(f"{path}/backend-id"), 0)

    @property
    def name(self) -> str:
        return f"{self.kind}{self.devid} of d{self._domain.domid}"

    def switch_state(self, state: State) -> None:
        """As its backend's bus: written only on a change, and if the node is still there."""
        if state is self.state:
            return
        self.state = state
        if self._store.exists(f"{self.path}/state"):
            self._store.write(f"{self.path}/state", str(int(state)))
        self._domain.trace.note(self._domain.domid, f"{self.name}: {state.name.lower()}")

    def fatal(self, why: str) -> None:
        self.broken = self.broken or why
        self._domain.trace.note(self._domain.domid, f"{self.name}: broken: {why}")
        with suppress(StoreError):
            self._store.write(f"{self.path}/error", f"22 {why}")
        with suppress(StoreError):
            self.switch_state(State.CLOSING)


class PluggedFrontend:
    """A user's frontend, guarded, and its bus."""

    def __init__(self, machine: Machine, kind: str, path: str, seconds: float) -> None:
        self.machine = machine
        self.device = FrontendDevice(machine, kind, path)
        self.guard = Guard(seconds)
        self.end = End(machine, self.device, self.guard)
        self.driver: Any = None

    def probe(self, factory: Callable[..., Any], *arguments: Any) -> None:
        self.driver = self.guard.call(factory, self.end, *arguments, breaks=self.device.fatal)
        if self.driver is None:
            return
        self._method(self.driver, "probe")
        self._watch = self.machine.store.watch(f"{self.device.peer_path}/state", self._changed)

    def _changed(self, _path: str) -> None:
        try:
            state = state_of(self.machine.store.get(f"{self.device.peer_path}/state"))
        except StoreError:  # its directory is gone, and a guest is not told what is above that
            state = State.UNKNOWN
        if self.driver is not None:
            self._method(self.driver, "backend_changed", state)

    def remove(self) -> None:
        """What is wrong is the guard's to tell, at the end of the run."""
        driver, self.driver = self.driver, None
        if driver is not None:
            self.machine.store.unwatch(self._watch)
            with suppress(UserEndError):
                self._method(driver, "close")
        with suppress(UserEndError):
            self.end.end()

    def _method(self, driver: object, name: str, *arguments: Any) -> None:
        self.guard.method(driver, name, *arguments, breaks=self.device.fatal)


class FrontendWorld(World):
    """A platform whose backends are raw, and a bare guest with a user's frontend of `kind`.

    `vbds` or `vifs` are the drivers that the backend's bus made. `finish` takes the device away
    and sees that nothing is left of it; `with` does that at its end.
    """

    app: Any

    def __init__(
        self,
        platform: Platform,
        kind: str,
        *,
        vbd: Callable[[Device], RawBlkBack] = RawBlkBack,
        vif: Callable[[Device], RawNetBack] = RawNetBack,
        seconds: float = SECONDS,
    ) -> None:
        self.platform = platform
        self.kind = kind
        self.vbds: list[RawBlkBack] = []
        self.vifs: list[RawNetBack] = []
        self._make = (vbd, vif)
        self._finished = False
        platform.backends.drivers = {"vbd": self._make_vbd, "vif": self._make_vif}
        domain = platform.dom0.domctl.create_domain(
            vcpus=1, max_pages=GUEST_PAGES + SLACK_PAGES, max_grant_frames=GRANT_FRAMES
        )
        domain.populate(GUEST_PAGES)
        self.domain: Domain = domain
        self.xs = XsHandle(platform.xenstored.connect_local(f"toolstack d{domain.domid}"))
        server = platform.xenstored
        known = server.meet(domain.domid, domain.unique_id)
        self._plant()
        home = (HOME % domain.domid).encode()
        client = server.connect(f"d{domain.domid}", known, home, local=True)
        store = BackStore(domain, client, f"frontend d{domain.domid}")
        self.machine = Machine(domain, Dispatcher(domain), store)
        self.plug = PluggedFrontend(self.machine, kind, self.path, seconds)
        domain.unpause()
        platform.run()  # dom0 first: its backend is there before the guest runs

    def _plant(self) -> None:
        """What the toolstack writes of the device, and then the backend's state."""
        both = directories(self.domain.domid, BRIDGE, "vbd", "w")
        mine = both[:2] if self.kind == "vbd" else both[2:]
        self.path, self.backend_path = (one.lineage[0].decode() for one in mine)
        for one in mine:
            one.plant(self.xs.connection)
        self.xs.write(f"{self.backend_path}/state", str(int(State.INITIALISING)))

    def _make_vbd(self, device: Device) -> Driver:
        self.vbds.append(self._make[0](device))
        return self.vbd

    def _make_vif(self, device: Device) -> Driver:
        self.vifs.append(self._make[1](device))
        return self.vif

    @property
    def vbd(self) -> RawBlkBack:
        """The disk's backend, the newest."""
        return self.vbds[-1]

    @property
    def vif(self) -> RawNetBack:
        """The interface's backend, the newest."""
        return self.vifs[-1]

    @property
    def back(self) -> RawBack:
        """The raw backend under which the frontend stands."""
        return self.vbd if self.kind == "vbd" else self.vif

    @property
    def driver(self) -> Any:
        """The user's driver; None before it is made and after the device is gone."""
        return self.plug.driver

    @property
    def state(self) -> State:
        """What the frontend's `state` says."""
        return state_of(self.xs.read(f"{self.path}/state"))

    def connect(self) -> None:
        """LocalProtocolError if the two do not come together, UserEndError for what the
        frontend does wrong.
        """
        self.boot()
        if self.state is not State.CONNECTED or self.back.state is not State.CONNECTED:
            why = self.plug.device.broken or self.back.device.broken or "no reason"
            raise LocalProtocolError(
                f"{self.path} is {self.state.name.lower()}, its backend "
                f"{self.back.state.name.lower()}: {why}"
            )

    def boot(self) -> None:
        """Let the frontend come as far as it does."""
        self.probe()
        self.run()

    def probe(self) -> None:
        """The guest's bus finds the device."""
        raise NotImplementedError

    def run(self) -> int:
        """Let everything happen that is due. UserEndError."""
        ran = super().run()
        self.plug.guard.rest()
        return ran

    def finish(self) -> None:
        """Take the device away: the backend lets go of everything, and so must the frontend.
        UserEndError. A second call does nothing.
        """
        if self._finished:
            return
        self._finished = True
        self.run()
        for path in (self.backend_path, self.path):
            self.xs.rm(path)
        self.platform.run()
        for back in (*self.vbds, *self.vifs):
            back.detach()
        self.plug.remove()
        self.run()

    def close(self) -> None:
        super().close()
        self.plug.driver = None

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


class UserBlkWorld(FrontendWorld):
    """A user's block frontend."""

    app: DiskApp

    def __init__(self, platform: Platform, factory: BlkFrontendFactory, **parameters: Any) -> None:
        super().__init__(platform, "vbd", **parameters)
        self.factory = factory
        plug = self.plug
        self.app = UserDiskApp(plug.guard, lambda: self.driver, self.run, plug.device.fatal)

    def probe(self) -> None:
        self.plug.probe(self.factory)


class UserNetWorld(FrontendWorld):
    """A user's network frontend."""

    app: NetApp

    def __init__(self, platform: Platform, factory: NetFrontendFactory, **parameters: Any) -> None:
        super().__init__(platform, "vif", **parameters)
        self.factory = factory
        self._up = UserNetApp(self.plug.guard, lambda: self.driver, self.plug.device.fatal)
        self.app = self._up

    def probe(self) -> None:
        self.plug.probe(self.factory, self._up.received.append)


class OwnFrontendWorld(BackWorld):
    """world_back with `app`: our stack in the place of a user's frontend."""

    def __init__(
        self, platform: Platform, kind: str, personality: str = "windows", **parameters: Any
    ) -> None:
        super().__init__(platform, personality, **parameters)
        self.kind = kind
        self.app: Any = (
            OwnDiskApp(lambda: self.disk, self.run)
            if kind == "vbd"
            else OwnNetApp(lambda: self.net)
        )

    @property
    def back(self) -> RawBack:
        """The raw backend under which the frontend stands."""
        return self.vbd if self.kind == "vbd" else self.vif

    @property
    def path(self) -> str:
        return self.back.device.frontend

    @property
    def backend_path(self) -> str:
        return self.back.device.path

    @property
    def xs(self) -> XsHandle:
        """A privileged client."""
        return self.platform.toolstack.xs

    @property
    def domain(self) -> Domain:
        return self.guest.created.domain

    @property
    def state(self) -> State:
        """What the frontend's `state` says."""
        return state_of(self.xs.read(f"{self.path}/state"))

    def finish(self) -> None:
        """Ours is looked at by what the wire and the store show alone."""
        self.run()


def user_blk_frontend(
    factory: BlkFrontendFactory | None,
    *,
    seed: int = 0,
    connect: bool = True,
    chooser: Chooser | None = None,
    vbd: Callable[[Device], RawBlkBack] = RawBlkBack,
    seconds: float = SECONDS,
) -> UserBlkWorld | OwnFrontendWorld:
    """The block frontend that `factory(end)` makes on a raw backend; None: XenVbd.

    `vbd` makes the raw backend, as for BackWorld. `seconds` of wall clock may pass in one call of
    the driver.
    """
    platform = Platform(seed=seed, chooser=chooser)
    world: UserBlkWorld | OwnFrontendWorld
    try:
        if factory is None:
            world = OwnFrontendWorld(platform, "vbd", vbd=vbd)
        else:
            world = UserBlkWorld(platform, factory, vbd=vbd, seconds=seconds)
        if connect:
            world.connect()
    except BaseException:
        platform.close()
        raise
    return world


def user_net_frontend(
    factory: NetFrontendFactory | None,
    *,
    seed: int = 0,
    connect: bool = True,
    chooser: Chooser | None = None,
    vif: Callable[[Device], RawNetBack] = RawNetBack,
    seconds: float = SECONDS,
) -> UserNetWorld | OwnFrontendWorld:
    """The network frontend that `factory(end, receive)` makes on a raw backend; None: XenVif."""
    platform = Platform(seed=seed, chooser=chooser)
    world: UserNetWorld | OwnFrontendWorld
    try:
        if factory is None:
            world = OwnFrontendWorld(platform, "vif", vif=vif)
        else:
            world = UserNetWorld(platform, factory, vif=vif, seconds=seconds)
        if connect:
            world.connect()
    except BaseException:
        platform.close()
        raise
    return world
