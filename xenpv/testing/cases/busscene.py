"""Scenes of the xenbus suites: devices of both kinds, the end under test on one side of each.

Without a factory they are our vbd and vif; `BusEnd` names the kind of a user's end. What is
judged by: `state` and other keys, whether requests are served, what stays granted and bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.blkif import BLKIF_OP
from xenpv.abi.layout import packer
from xenpv.abi.xenbus import XenbusState as State
from xenpv.errors import GrantError, LocalProtocolError
from xenpv.platform import Platform
from xenpv.testing.cases.claims import expect, holds
from xenpv.testing.cases.suite import Factory
from xenpv.testing.checkers import check_all
from xenpv.testing.ends import user_blk_backend, user_blk_frontend
from xenpv.testing.ends.backend import BackendWorld, user_net_backend
from xenpv.testing.ends.frontend import OwnFrontendWorld, user_net_frontend
from xenpv.testing.faults import Conflicts
from xenpv.testing.raw_back import RawBack, RawBlkBack, RawNetBack
from xenpv.xen.domain import Domain

KINDS: Final = ("vbd", "vif")
PERSONALITIES: Final = ("windows", "linux")  # of our own frontends
BLK_REQUEST: Final = packer("blkif_request")
TX_REQUEST: Final = packer("netif_tx_request")
FRAME: Final = bytes.fromhex("ffffffffffff00163e0000010800") + bytes(46)
BITS: Final[int] = lib.GTF_reading | lib.GTF_writing
SECTOR: Final = 512
HOLE_PFN: Final = 0x10_0000  # where nothing is


@attrs.frozen
class BusEnd:
    """A user's end of one kind, vbd or vif."""

    kind: str
    factory: Factory

    def __call__(self, *arguments: Any) -> Any:
        return self.factory(*arguments)


def _kinds(factory: Factory | None) -> list[tuple[str, Any]]:
    if factory is None:
        return [(kind, None) for kind in KINDS]
    if not isinstance(factory, BusEnd) or factory.kind not in KINDS:
        raise LocalProtocolError(f"a xenbus suite takes a BusEnd of vbd or vif, not {factory!r}")
    return [(factory.kind, factory.factory)]


class BackDevice:
    """A raw frontend, and the backend under test of its device."""

    def __init__(self, kind: str, factory: Any, seed: int) -> None:
        make = user_blk_backend if kind == "vbd" else user_net_backend
        self.kind = kind
        self.world: BackendWorld = make(factory, seed=seed, connect=False)
        self.front = self.world.front
        self.guest = self.world.guest
        self.xs = self.guest.xs
        self.world.run()
        path = self.front.backend_path
        self._made = {key: self.xs.read(f"{path}/{key}") or "" for key in self.xs.directory(path)}

    def run(self) -> None:
        self.world.run()

    @property
    def backend(self) -> str:
        """The backend's state by name, "GONE" without a directory."""
        if self.front.backend_key("state") is None:
            return "GONE"
        return self.front.backend_state.name

    def show(self, state: State | str) -> str:
        """The frontend writes a state, or any text: the backend's state by name, then."""
        text = state if isinstance(state, str) else str(int(state))
        self.front.write_key("state", text)
        self.run()
        return self.backend

    def toolstack(self, key: str, value: str | None) -> None:
        """A key of the backend's directory, as the toolstack writes it; None: removed."""
        path = f"{self.front.backend_path}/{key}"
        if value is None:
            self.xs.rm(path.rstrip("/"))
        else:
            self.xs.write(path, value)
        self.run()

    def announce(self, keys: dict[str, str | None] | None = None) -> str:
        """New rings and a port, their keys with `keys` changed, and the state that goes with them:
        the backend's, then.
        """
        self.front.attach()
        for key, value in (keys or {}).items():
            if value is None:
                self.front.remove_key(key)
        self.front.announce(keys)
        self.run()
        return self.backend

    def keys_of_rings(self) -> list[str]:
        """Those that name the pages of its rings."""
        return ["ring-ref"] if self.kind == "vbd" else ["tx-ring-ref", "rx-ring-ref"]

    def connect(self) -> None:
        """As an honest frontend. Wrong if the backend refuses."""
        expect(self.announce(), "CONNECTED", f"the {self.kind}'s backend")
        if self.kind == "vbd":
            self.show(State.CONNECTED)

    def serves(self) -> None:
        """A request is answered. Wrong if not."""
        page = self.guest.page()
        ref = self.guest.grant(page)
        ring = self.front.sring  # type: ignore[attr-defined]  # both kinds have one
        if self.kind == "vbd":
            segment = (ref, 0, 0, *(0, 0, 0) * 10)
            raw = BLK_REQUEST.pack(BLKIF_OP.READ, 1, 0, 77, 0, *segment)
        else:
            self.guest.domain.write(page, 0, FRAME)
            raw = TX_REQUEST.pack(ref, 0, 0, 77, len(FRAME))
        before = ring.rsp_prod
        ring.push(raw, 1)
        self.front.notify()
        self.run()
        answered = (ring.rsp_prod - before) & 0xFFFFFFFF
        expect(answered, 1, f"responses of the {self.kind}'s backend to a request")

    def reopen(self) -> None:
        """The frontend closes and begins again: the backend is at InitWait. Wrong if not."""
        self.show(State.CLOSING)
        self.show(State.CLOSED)
        expect(self.show(State.INITIALISING), "INIT_WAIT", f"the {self.kind}'s backend, reopened")

    def mend(self) -> None:
        """The frontend reopens. If its device is given up, as Linux does with one whose frontend
        is at no state, the toolstack makes it anew. Wrong if neither leads to InitWait.
        """
        self.show(State.CLOSING)
        self.show(State.CLOSED)
        if self.show(State.INITIALISING) == "INIT_WAIT" and not self._given_up():
            return
        path = self.front.backend_path
        self.toolstack("", None)
        self.show(State.INITIALISING)
        for key, value in {**self._made, "online": "1", "state": "1"}.items():
            self.xs.write(f"{path}/{key}", value)
        self.run()
        expect(self.backend, "INIT_WAIT", f"the {self.kind}'s backend, made anew")

    def _given_up(self) -> bool:
        """It is still at InitWait, and answers nothing."""
        if self.show(State.CLOSING) != "CLOSING":
            return True
        self.show(State.CLOSED)
        return self.show(State.INITIALISING) != "INIT_WAIT"

    def holds_nothing(self, when: str) -> None:
        """Neither rings nor the port are the backend's any more. Wrong if they are."""
        domain = self.guest.domain
        table = domain.gnttab
        busy = [
            ref
            for ref in range(table.nr_entries)
            if int(lib.grant_entry_status(domain.kernel, ref)) & BITS
        ]
        expect(busy, [], f"references that the {self.kind}'s backend has mapped {when}")
        if self.front.port:
            status = domain.evtchn.status(self.front.port).status.name
            holds(status != "interdomain", f"the {self.kind}'s backend has the port {when}")


class BusBackScene:
    """`devices`: each with the backend under test, at InitWait or before."""

    features: tuple[str, ...] = ()

    def __init__(self, factory: Factory | None, seed: int) -> None:
        self.devices = [BackDevice(kind, made, seed) for kind, made in _kinds(factory)]

    def __iter__(self) -> Iterator[BackDevice]:
        return iter(self.devices)

    def finish(self) -> None:
        """Laws hold, and a backend whose device is taken away lets go of everything."""
        for device in self.devices:
            world = device.world
            world.run()
            domid = device.guest.domid
            check_all(world.platform, hostile=(domid,))
            if domid in world.platform.hypervisor.domains:
                world.finish()
                device.holds_nothing("when its device is gone")

    def close(self) -> None:
        for device in self.devices:
            device.world.close()


class FrontDevice:
    """A raw backend, and the frontend under test of its device; not booted yet.

    `back` is the raw backend; change its `answers` before `boot` to have it answer otherwise.
    """

    def __init__(self, kind: str, factory: Any, seed: int, personality: str = "") -> None:
        self.kind = kind
        self.answers: dict[State, State | None] = {}
        self._how = (factory, seed, personality)
        self._world: Any = None

    @property
    def world(self) -> Any:
        """Made when it is first asked for."""
        if self._world is None:
            factory, seed, personality = self._how
            if factory is None:
                self._world = self._own(Platform(seed=seed), personality)
            elif self.kind == "vbd":
                self._world = user_blk_frontend(factory, seed=seed, connect=False, vbd=self._vbd)
            else:
                self._world = user_net_frontend(factory, seed=seed, connect=False, vif=self._vif)
        return self._world

    def _own(self, platform: Platform, personality: str) -> OwnFrontendWorld:
        backends: dict[str, Any] = {self.kind: self._vbd if self.kind == "vbd" else self._vif}
        try:
            return OwnFrontendWorld(platform, self.kind, personality, **backends)
        except BaseException:
            platform.close()
            raise

    def _vbd(self, device: Any) -> RawBlkBack:
        made = RawBlkBack(device)
        self._shape(made)
        return made

    def _vif(self, device: Any) -> RawNetBack:
        made = RawNetBack(device)
        self._shape(made)
        return made

    def _shape(self, back: RawBack) -> None:
        for state, answer in self.answers.items():
            if answer is None:
                back.answers.pop(state, None)
            else:
                back.answers[state] = answer

    @property
    def back(self) -> RawBack:
        made: RawBack = self.world.back
        return made

    def prepare(self, state: State | str) -> None:
        """Before it boots: the backend has probed, and its state says something else now."""
        self.world.platform.run()
        self.write("state", state if isinstance(state, str) else str(int(state)))

    def boot(self) -> None:
        """The guest starts, and the frontend comes as far as it does."""
        self.world.boot()

    def run(self) -> None:
        self.world.run()

    def close(self) -> None:
        """Give its world back, if there is one."""
        if self._world is not None:
            self._world.close()

    def advance(self, seconds: int) -> None:
        """Virtual time passes."""
        self.world.platform.loop.advance(seconds * 1_000_000_000)
        self.world.run()

    @property
    def frontend(self) -> str:
        """The frontend's state by name."""
        name: str = self.world.state.name
        return name

    def key(self, name: str) -> str | None:
        """One of the frontend's keys."""
        found: str | None = self.world.xs.read(f"{self.world.path}/{name}")
        return found

    def write(self, name: str, value: str | None) -> None:
        """A key of the backend's directory, any text; None: removed."""
        path = f"{self.world.backend_path}/{name}".rstrip("/")
        if value is None:
            self.world.xs.rm(path)
        else:
            self.world.xs.write(path, value)
        self.run()

    def show(self, state: State | str) -> str:
        """The backend writes a state, or any text: the frontend's, then."""
        if isinstance(state, State):
            self.back.device.note_state(state)
            state = str(int(state))
        self.write("state", state)
        return self.frontend

    def serves(self) -> None:
        """What a program asks crosses the ring. Wrong if not."""
        app = self.world.app
        if self.kind == "vbd":
            expect(len(app.read(0, 8)), 8 * SECTOR, "bytes that a program reads of the disk")
            return
        before = len(self.world.vif.frames)
        app.send(FRAME)
        self.run()
        sent = self.world.vif.frames[before:]
        holds(FRAME in sent, "a program's frame reaches the backend")

    def conflict(self) -> None:
        """From now on somebody writes what the frontend's transactions have seen, nine times."""
        platform, domid = self.world.platform, self.world.domain.domid
        clients = platform.xenstored.connections.values()
        (client,) = [one for one in clients if one.domid == domid]
        Conflicts(platform, client, _always)

    def connected(self) -> None:
        """Both ends are. Wrong if not."""
        found = (self.frontend, self.back.state.name)
        expect(found, ("CONNECTED", "CONNECTED"), f"{self.kind}: frontend and backend")

    def map_from(self, other: Domain, ref: int) -> int:
        """A third domain maps a reference of the guest: the status. It is not unmapped."""
        try:
            other.gnttab.map(self.world.domain.domid, ref, HOLE_PFN, readonly=True)
        except GrantError as error:
            return error.status
        return 0

    def rings(self) -> list[int]:
        """The references of its rings' pages, as its keys have them."""
        names = ("ring-ref", "ring-ref0", "ring-ref1", "tx-ring-ref", "rx-ring-ref")
        found = [self.key(one) for one in names]
        return [int(one) for one in found if one is not None and one.isdecimal()]

    def grants_nothing(self, refs: list[int], when: str) -> None:
        """The backend can map none of these references. Wrong if it can."""
        mapped = []
        for ref in refs:
            try:
                self.back.unmap(self.back.map(ref, readonly=True))
            except GrantError:
                continue
            mapped.append(ref)
        expect(mapped, [], f"{self.kind}: references that are granted {when}")


def _always(_what: str, nr_choices: int) -> int:
    """Of a fault: it happens."""
    return nr_choices - 1


class BusFrontScene:
    """`devices`: each with the frontend under test, in a guest that has not started."""

    features: tuple[str, ...] = ()

    def __init__(self, factory: Factory | None, seed: int) -> None:
        self.devices = [
            FrontDevice(kind, made, seed, personality)
            for kind, made in _kinds(factory)
            for personality in (PERSONALITIES if made is None else ("",))
        ]

    def __iter__(self) -> Iterator[FrontDevice]:
        return iter(self.devices)

    def finish(self) -> None:
        """Laws hold; a user's frontend gives everything back when its device goes."""
        for device in self.devices:
            device.run()
            check_all(device.world.platform, hostile=(0,))
            device.world.finish()

    def close(self) -> None:
        for device in self.devices:
            device.close()
