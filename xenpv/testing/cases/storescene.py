"""A xenstored under test, with a directory of the case's own, clients and guests.

`connect` None is ours. A path is the Unix socket of any xenstored. A callable gives a client's
stream (a connected socket.socket will do); one that is a StoreEnd also makes guests, with
rings of their own, and lets them die.

What a store offers is asked of it: "xenstored" (C's or OCaml's, not an emulation), "c" (rules and
errors of the former), "newest" (its request types up to SET_QUOTA), "guests", and "clock"
(virtual time: write limits can be measured).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from xenpv.abi._kernel import lib
from xenpv.abi.xs import XS
from xenpv.store.connection import Connection
from xenpv.store.profile import C, Profile
from xenpv.store.ring import StoreDaemon
from xenpv.store.server import Xenstored
from xenpv.testing.cases.claims import Wrong, expect
from xenpv.testing.cases.storeclient import Client, RingPage, RingStream, Stream
from xenpv.testing.cases.suite import Skip
from xenpv.xen.domain import XENSTORE_PFN, Domain
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop
from xenpv.xen.upcall import Dispatcher

ROOT: Final = "/xenpv-cases"
PATIENCE_S: Final = 10.0
PAGES: Final = 64
NO_TX: Final = 0x7FFF_FF00  # an id that nobody has given out
FIRST_DOMID: Final = 1
NR_FRAMES: Final = 1 << 12  # of a machine with a few small guests
SETTLES: Final = 8
DEATHS: Final = 1_000  # round trips that a domain's death may take

# What gives a client's stream to some store.
Connect = Callable[[], Any]


@runtime_checkable
class StoreEnd(Protocol):
    """A store whose domains the case makes and ends, as the platform under it would."""

    def __call__(self) -> Stream:
        """A privileged client."""

    def guest(self, domid: int) -> RingPage:
        """A new domain of that number with a store page; it is not introduced."""

    def shutdown(self, domid: int) -> None:
        """It shuts down, and Xen says so."""

    def die(self, domid: int) -> None:
        """It is gone, and Xen says so."""


class LocalStream:
    """A client of our server in this process, as of its socket."""

    def __init__(self, store: OurStore, connection: Connection) -> None:
        self.store = store
        self.connection = connection

    def sendall(self, data: bytes) -> None:
        if self.connection.fatal is None:
            self.connection.feed(data)

    def recv(self, size: int) -> bytes:
        self.store.loop.run()
        data = self.connection.take_output(size)
        if not data and self.connection.fatal is None:
            raise TimeoutError
        return data

    def close(self) -> None:
        if not self.connection.closed:
            self.connection.server.disconnect(self.connection)


class LocalPage:
    """The store page of a domain of ours."""

    gfn = XENSTORE_PFN

    def __init__(self, store: OurStore, domain: Domain, port: int) -> None:
        self.store = store
        self.domain = domain
        self.port = port

    def read(self, offset: int, size: int) -> bytes:
        return self.domain.read(XENSTORE_PFN, offset, size)

    def write(self, offset: int, data: bytes) -> None:
        self.domain.write(XENSTORE_PFN, offset, data)

    def notify(self) -> None:
        self.domain.evtchn.send(self.port)

    def wait(self) -> None:
        if not self.store.loop.run():
            raise TimeoutError


class OurStore:
    """Ours in a machine with nothing else: sockets that are none, ring pages that are real."""

    def __init__(self, seed: int = 0, profile: Profile = C) -> None:
        self.hypervisor = Hypervisor(Loop(seed=seed), nr_frames=NR_FRAMES)
        self.loop = self.hypervisor.loop
        self.dom0 = self.hypervisor.create_domain(0, vcpus=1, max_pages=PAGES)
        self.dom0.unpause()
        self.server = Xenstored(clock=self.loop.system_time, profile=profile)
        self.daemon = StoreDaemon(self.dom0, Dispatcher(self.dom0), self.server)
        self.domains: dict[int, Domain] = {}
        self.clients = 0
        self._ports = self.dom0.evtchn.bound()

    def __call__(self) -> Stream:
        self.clients += 1
        return LocalStream(self, self.server.connect_socket(f"case {self.clients}"))

    def guest(self, domid: int) -> RingPage:
        domain = self.dom0.domctl.create_domain(domid, vcpus=1, max_pages=4 * PAGES)
        domain.populate(PAGES)
        domain.populate_special()
        port = domain.evtchn.alloc_unbound(0)
        domain.check(lib.grant_entry_set(domain.kernel, 1, 0, XENSTORE_PFN, 1))
        domain.unpause()
        self.domains[domid] = domain
        return LocalPage(self, domain, port)

    def shutdown(self, domid: int) -> None:
        self.domains[domid].sched.shutdown(0)
        self.loop.run()

    def die(self, domid: int) -> None:
        self.dom0.domctl.destroydomain(domid)
        self.loop.run()

    def finish(self) -> None:
        """All guests are gone: what INTRODUCE took for them is given back. Wrong if not."""
        self.loop.run()
        expect(len(self.dom0.gnttab.maptrack), 0, "ring pages still mapped")
        expect(self.dom0.evtchn.bound(), self._ports, "ports of the store's domain")

    def close(self) -> None:
        self.hypervisor.close()
        self.server.close()


class SocketEnd:
    """The Unix socket of some xenstored."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> Stream:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # A blocking connect waits where few may wait to be accepted; one with a timeout is refused.
        patience = struct.pack("ll", int(PATIENCE_S), 0)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        try:
            stream.connect(os.fspath(self.path))
            stream.settimeout(PATIENCE_S)
        except OSError:
            stream.close()
            raise
        return stream


def end_of(connect: Connect | str | Path | None) -> Connect | None:
    """A path becomes what connects there; the rest is left as it is."""
    return SocketEnd(Path(connect)) if isinstance(connect, str | Path) else connect


class Guest(Client):
    """A domain's connection over its ring."""

    def __init__(self, domid: int, page: RingPage) -> None:
        super().__init__(RingStream(page))
        self.domid = domid
        self.page = page
        self.home = f"/local/domain/{domid}"

    def word(self, offset: int) -> int:
        """A field of the page."""
        return int.from_bytes(self.page.read(offset, 4), "little")

    def poke(self, offset: int, value: int) -> None:
        """Overwrite a field, and notify."""
        self.page.write(offset, (value & 0xFFFFFFFF).to_bytes(4, "little"))
        self.page.notify()

    def settle(self) -> None:
        """Let the server do what it does about this ring."""
        try:
            for _ in range(SETTLES):
                self.page.wait()
        except TimeoutError:
            return

    def is_silent(self) -> bool:
        """Whether a request on this ring gets no answer."""
        try:
            self.ask(XS.GET_DOMAIN_PATH, "0\0")
        except (Wrong, TimeoutError):
            return True
        return False


class StoreScene:
    """`main` is a privileged client; `root` is a directory of this case, there and empty."""

    root: Final = ROOT

    def __init__(self, connect: Connect | None, seed: int) -> None:
        self.end = OurStore(seed) if connect is None else connect
        self.clients: list[Client] = []
        self.domids: dict[int, bool] = {}  # those of the case; is it alive?
        self.main = self.client()
        self.features = self._features()
        self.main.rm(ROOT)
        self._before = self.main.ls("/")
        expect(self.main.mkdir(ROOT), "OK", "MKDIR of the case's directory")

    def _features(self) -> tuple[str, ...]:
        """By what it answers, and by what its end can do."""
        found = []
        unknown = self.main.read("/", NO_TX)
        if self.main.ask(XS.GET_DOMAIN_PATH, "0\0") != "ENOSYS":
            found.append("xenstored")
        if found and unknown == "ENOENT":
            found.append("c")
            if self.main.ask(XS.GET_FEATURE, "") != "ENOSYS":
                found.append("newest")
        if isinstance(self.end, StoreEnd):
            found.append("guests")
        if isinstance(self.end, OurStore):
            found.append("clock")
        return tuple(found)

    def at(self, path: str) -> str:
        """A path below the case's directory."""
        return f"{ROOT}/{path}"

    def client(self) -> Client:
        """One more privileged client."""
        made = Client(self.end())
        self.clients.append(made)
        return made

    @property
    def domains(self) -> StoreEnd:
        """What makes and ends domains: of cases that require "guests"."""
        if not isinstance(self.end, StoreEnd):
            raise Skip("it has no guests")
        return self.end

    @property
    def now(self) -> int:
        """Virtual time in ns: of cases that require "clock"."""
        if not isinstance(self.end, OurStore):
            raise Skip("it has no clock")
        return self.end.loop.now

    def guest(self, domid: int = 0, *perms: str, introduce: bool = True) -> Guest:
        """A domain with a home that it owns, or of `perms`; 0: the next number."""
        domid = domid or FIRST_DOMID + len(self.domids)
        guest = Guest(domid, self.domains.guest(domid))
        self.domids[domid] = True
        self.main.mkdir(guest.home)
        done = self.main.chmod(guest.home, *(perms or (f"n{domid}",)))
        expect(done, "OK", f"SET_PERMS of the home of domain {domid}")
        if introduce:
            expect(self.introduce(guest), "OK", f"INTRODUCE of domain {domid}")
        return guest

    def introduce(self, guest: Guest, port: int | None = None) -> str:
        """INTRODUCE as the toolstack asks for it."""
        page = guest.page
        port = page.port if port is None else port
        return self.main.ask(XS.INTRODUCE, f"{guest.domid}\0{page.gfn}\0{port}\0")

    def die(self, guest: Guest) -> None:
        """Its domain is destroyed."""
        self.domids[guest.domid] = False
        self.domains.die(guest.domid)
        for _ in range(DEATHS):  # a store that is another process hears of it in its own time
            if self.main.ask(XS.IS_DOMAIN_INTRODUCED, f"{guest.domid}\0") != "T":
                return

    def finish(self) -> None:
        """The store is as before the case, and serves on. Wrong if not."""
        client = self.client()
        self._leave(client)
        expect(client.read("/"), "", "READ of / after the case")
        expect(client.ls("/"), self._before, "children of / after the case")
        if isinstance(self.end, OurStore):
            self.end.finish()

    def _leave(self, client: Client) -> None:
        """Every domain of the case and its directory go."""
        for domid, alive in self.domids.items():
            if alive:
                self.domains.die(domid)
            client.rm(f"/local/domain/{domid}")
        self.domids.clear()
        client.rm(ROOT)
        if "local" not in self._before.split():
            client.rm("/local")

    def close(self) -> None:
        """Clients hang up; ours is given back, another's store left as it was found."""
        if isinstance(self.end, OurStore):
            self.end.close()
            return
        with suppress(Wrong, OSError):  # it is not there any more: the case has said so
            self._leave(self.client())
        for client in self.clients:
            client.close()
