"""Worlds with one device of a protocol: each of its ends is a driver under test, or a raw one.

    with ring_world(ECHO, EchoFrontend, EchoBackend, seed=7) as world:
        world.call("echo", b"hello")
        world.run()

`frontend` and `backend` are factories, called with an End (docs/howto/ends.md); None: a raw end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Protocol

from xenpv.abi.xenbus import XenbusState as State
from xenpv.back.store import BackStore
from xenpv.back.xenbus import Device, Driver, DriverFactory, state_of
from xenpv.errors import LocalProtocolError
from xenpv.host.image import Image
from xenpv.platform import Platform
from xenpv.testing.ends.backend import PluggedBackend
from xenpv.testing.ends.end import End
from xenpv.testing.ends.frontend import HOME, PluggedFrontend
from xenpv.testing.ends.guard import PEER
from xenpv.testing.ends.machine import Machine
from xenpv.testing.ends.port import EndPort
from xenpv.testing.ends.watchdog import SECONDS
from xenpv.testing.raw_back import RawBack
from xenpv.testing.raw_front import BACKEND_DOMID, RawFront, RawGuest
from xenpv.testing.raw_world import GRANT_FRAMES, SLACK_PAGES, Directory
from xenpv.testing.world import World
from xenpv.xen.domain import Domain
from xenpv.xen.loop import Chooser
from xenpv.xen.upcall import Dispatcher

DEVID: Final = 0
GUEST_PAGES: Final = 2048  # a page for each slot of a ring, and more; untouched ones cost nothing
INITIALISING: Final = str(int(State.INITIALISING))

EndFactory = Callable[[End], Any]


class AnyProtocol(Protocol):
    """What a world needs of RingProtocol or ByteRingProtocol."""

    @property
    def device(self) -> str: ...

    def raw_front(self, guest: RawGuest, devid: int = 0) -> RawFront: ...

    def raw_back(self, device: Device) -> RawBack: ...


class _Backend(PluggedBackend):
    """A user's backend that is given its End and nothing else."""

    def __init__(self, world: RingWorld, device: Device) -> None:
        super().__init__(world, device)
        self._factory = world.factory

    def probe(self) -> None:
        self.driver = self.guard.call(self._factory, self.end, breaks=self.device.fatal)
        if self.driver is not None:
            self._method("probe")


class RingWorld(World):
    """A platform and a guest with one device of `protocol`.

    `front` is the raw frontend, None if a driver under test is there; then `frontend` is it, and
    `call` calls its methods as a program does. `back` and `backend` are the same of the other
    end, the newest. `front_keys` and `back_keys` are what the toolstack writes for each.
    """

    def __init__(
        self,
        platform: Platform,
        protocol: AnyProtocol,
        frontend: EndFactory | None = None,
        backend: EndFactory | None = None,
        *,
        front_keys: Mapping[str, str] | None = None,
        back_keys: Mapping[str, str] | None = None,
        raw_back: Callable[[Device], RawBack] | None = None,
        seconds: float = SECONDS,
    ) -> None:
        self.platform = platform
        self.protocol = protocol
        self.seconds = seconds
        self.frontend_factory = frontend
        self.factory: Any = backend  # of the backend under test
        self._raw_back = raw_back or protocol.raw_back
        self.backs: list[RawBack] = []
        self.plugged: list[PluggedBackend] = []
        self._finished = False
        self.machine = Machine(platform.dom0, platform.dispatcher, platform.backends.store)
        drivers: dict[str, DriverFactory] = dict(platform.backends.drivers)
        platform.backends.drivers = {**drivers, protocol.device: self._driver}
        domain = platform.dom0.domctl.create_domain(
            vcpus=1, max_pages=GUEST_PAGES + SLACK_PAGES, max_grant_frames=GRANT_FRAMES
        )
        domain.populate(GUEST_PAGES)
        self.domain: Domain = domain
        self.path = f"{HOME % domain.domid}/device/{protocol.device}/{DEVID}"
        self.backend_path = (
            f"{HOME % BACKEND_DOMID}/backend/{protocol.device}/{domain.domid}/{DEVID}"
        )
        self.front: Any = None
        self.plug: PluggedFrontend | None = None
        self.guest: RawGuest | None = None
        if frontend is None:
            self.guest = RawGuest(platform, domain)
            self.xs = self.guest.xs
            self.front = protocol.raw_front(self.guest, DEVID)
        else:
            self.xs = platform.toolstack.xs
        # Before anything names it: permissions are of this domain, not of an older of its number.
        self._known = platform.xenstored.meet(domain.domid, domain.unique_id)
        self._plant(dict(front_keys or {}), dict(back_keys or {}))
        if frontend is not None:
            self.plug = self._plugged_frontend()
        domain.unpause()
        platform.run()  # dom0 first: its backend is there before the guest runs

    def _plant(self, front: dict[str, str], back: dict[str, str]) -> None:
        """What the toolstack writes of the device, and then the backend's state."""
        guest = self.domain.domid
        fixed = {"backend": self.backend_path, "backend-id": str(BACKEND_DOMID)}
        front = {**front, "state": INITIALISING, **fixed}
        back = {**back, "frontend": self.path, "frontend-id": str(guest), "online": "1"}
        client = self.xs.connection
        Directory.of(self.path, guest, BACKEND_DOMID, front, fixed).plant(client)
        Directory.of(self.backend_path, BACKEND_DOMID, guest, back, ()).plant(client)
        self.xs.write(f"{self.backend_path}/state", INITIALISING)

    def _plugged_frontend(self) -> PluggedFrontend:
        domain, server = self.domain, self.platform.xenstored
        home = (HOME % domain.domid).encode()
        client = server.connect(f"d{domain.domid}", self._known, home, local=True)
        store = BackStore(domain, client, f"frontend d{domain.domid}")
        machine = Machine(domain, Dispatcher(domain), store)
        return PluggedFrontend(machine, self.protocol.device, self.path, self.seconds)

    def _driver(self, device: Device) -> Driver:
        if self.factory is None:
            self.backs.append(self._raw_back(device))
            return self.backs[-1]
        self.plugged.append(_Backend(self, device))
        return self.plugged[-1]

    def resource(self, plug: PluggedBackend) -> Image | EndPort:
        """BackendHost's, for kinds that serve one: a backend of a protocol is given none."""
        raise LocalProtocolError(f"{plug.device.name} serves no image and no bridge")

    def gone(self, plug: PluggedBackend) -> None:
        """Nothing was opened for it."""

    # its ends

    @property
    def back(self) -> Any:
        """The raw backend, the newest. IndexError: there is none."""
        return self.backs[-1]

    @property
    def frontend(self) -> Any:
        """The user's frontend; None before it is made and after the device is gone."""
        return None if self.plug is None else self.plug.driver

    @property
    def backend(self) -> Any:
        """The user's backend, the newest. IndexError: there is none."""
        return self.plugged[-1].driver

    @property
    def states(self) -> tuple[State, State]:
        """What the frontend's and the backend's `state` say."""
        paths = (self.path, self.backend_path)
        front, back = (state_of(self.xs.read(f"{one}/state")) for one in paths)
        return front, back

    @property
    def broken(self) -> str:
        """Why one of the drivers under test shut its device; "" if none did."""
        devices = [] if self.plug is None else [self.plug.device.broken]
        devices += [one.device.broken for one in self.plugged]
        return next((one for one in devices if one), "")

    def call(self, method: str, *arguments: Any) -> Any:
        """A program above the user's frontend calls a method of it. UserEndError.

        LocalProtocolError: the frontend is raw, or gone.
        """
        if self.plug is None or self.plug.driver is None:
            raise LocalProtocolError(f"{method}: no frontend under test is there")
        plug = self.plug
        return plug.guard.method(
            plug.driver, method, *arguments, breaks=plug.device.fatal, unfit=PEER
        )

    # states

    def connect(self) -> None:
        """LocalProtocolError if the two do not come together, UserEndError for what a driver
        under test does wrong.
        """
        self.boot()
        if self.states != (State.CONNECTED, State.CONNECTED):
            front, back = (one.name.lower() for one in self.states)
            why = self.broken or "no reason"
            raise LocalProtocolError(f"{self.path} is {front}, its backend {back}: {why}")

    def boot(self) -> None:
        """Let both ends come as far as they do."""
        if self.plug is not None:
            assert self.frontend_factory is not None
            self.plug.probe(self.frontend_factory)
            self.run()
            return
        self.run()
        self.front.attach()
        self.front.announce()
        self.run()
        if state_of(self.xs.read(f"{self.backend_path}/state")) is State.CONNECTED:
            self.front.finish()
            self.run()

    def run(self) -> int:
        """Let everything happen that is due. UserEndError."""
        ran = super().run()
        self.rest()
        return ran

    def rest(self) -> None:
        """A run is over: what drivers under test did wrong in it is raised. UserEndError."""
        if self.plug is not None:
            self.plug.guard.rest()
        for plug in self.plugged:
            plug.guard.rest()

    def finish(self) -> None:
        """Take the device away: both ends must let go of everything. UserEndError.

        A second call does nothing.
        """
        if self._finished:
            return
        self._finished = True
        self.run()
        self.xs.rm(self.backend_path)
        if self.plug is not None:
            self.xs.rm(self.path)
        self.platform.run()
        for back in self.backs:
            back.detach()
        if self.plug is not None:
            self.plug.remove()
        self.run()

    def close(self) -> None:
        """Give everything back; a second call does nothing."""
        super().close()
        if self.guest is not None:
            self.guest.evtchn.forget()
        if self.plug is not None:
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


def ring_world(
    protocol: AnyProtocol,
    frontend: EndFactory | None = None,
    backend: EndFactory | None = None,
    *,
    seed: int = 0,
    connect: bool = True,
    chooser: Chooser | None = None,
    **parameters: Any,
) -> RingWorld:
    """A platform with one device of `protocol`, connected; `parameters` are RingWorld's.

    Use it as a context manager: at its end the device goes.
    """
    platform = Platform(seed=seed, chooser=chooser)
    try:
        world = RingWorld(platform, protocol, frontend, backend, **parameters)
        if connect:
            world.connect()
    except BaseException:
        platform.close()
        raise
    return world


def user_backend(
    protocol: AnyProtocol, backend: EndFactory, *, seed: int = 0, **parameters: Any
) -> RingWorld:
    """A raw frontend, `front`, on the backend that `backend(end)` makes."""
    return ring_world(protocol, None, backend, seed=seed, **parameters)


def user_frontend(
    protocol: AnyProtocol, frontend: EndFactory, *, seed: int = 0, **parameters: Any
) -> RingWorld:
    """The frontend that `frontend(end)` makes on a raw backend, `back`."""
    return ring_world(protocol, frontend, None, seed=seed, **parameters)
