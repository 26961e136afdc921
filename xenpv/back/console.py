"""xenconsoled: what guests print on their PV console page (public/io/console.h).

It maps the page of grant reference 0 of each introduced domain, fills in `console/tty`, and
keeps the last LOG_MAX bytes.
"""

from __future__ import annotations

from typing import Final

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.layout import offsetof
from xenpv.back.store import BackStore, BackWatch
from xenpv.back.xenbus import number_of
from xenpv.errors import GrantError, HypercallError, PeerProtocolError
from xenpv.xen.domain import Domain
from xenpv.xen.gnttab import GNTTAB_RESERVED_CONSOLE
from xenpv.xen.upcall import Dispatcher

PAGE: Final = "xencons_interface"
IN: Final = (offsetof(PAGE, "in"), 1024, offsetof(PAGE, "in_cons"), offsetof(PAGE, "in_prod"))
OUT: Final = (offsetof(PAGE, "out"), 2048, offsetof(PAGE, "out_cons"), offsetof(PAGE, "out_prod"))
LOG_MAX: Final = 1 << 20


class Console:
    """One guest's console: `output` is the last LOG_MAX bytes it wrote."""

    def __init__(self, daemon: ConsoleDaemon, domid: int, handle: int, pfn: int) -> None:
        self.daemon = daemon
        self.domid = domid
        self.handle = handle
        self.pfn = pfn
        self.port = 0
        self.remote_port = 0
        self.output = bytearray()
        self.broken = False
        self._input = bytearray()
        self._chunk = bytearray(2048)

    @property
    def text(self) -> str:
        return self.output.decode("utf-8", "replace").replace("\r\n", "\n")

    def open(self, remote_port: int) -> None:
        domain = self.daemon.domain
        self.port = domain.evtchn.bind_interdomain(self.domid, remote_port)
        self.remote_port = remote_port
        self.daemon.dispatcher.bind(self.port, f"xenconsoled d{self.domid}", self.service)

    def reopen(self, remote_port: int) -> None:
        """Its domain was built anew over the same page. HypercallError: no port is there."""
        self.service()  # what the old kernel said last
        self._unbind()
        self.broken = False
        self.open(remote_port)

    def _unbind(self) -> None:
        port, self.port = self.port, 0
        if port:
            self.daemon.dispatcher.unbind(port)
            self.daemon.domain.evtchn.close(port)

    def service(self) -> None:
        """Drain the output ring, fill the input ring."""
        if self.broken:
            return
        domain = self.daemon.domain
        try:
            moved = self._drain(domain) + self._feed(domain)
            if moved:
                domain.evtchn.send(self.port)
        except (PeerProtocolError, HypercallError):
            # An index that runs past the ring: nothing of it can be believed any more.
            self.broken = True

    def _drain(self, domain: Domain) -> int:
        total = 0
        while total < LOG_MAX:
            chunk = self._chunk
            count = lib.stream_get(
                domain.kernel, self.pfn, *OUT, ffi.from_buffer(chunk), len(chunk)
            )
            if count < 0:
                domain.fail(count, f"console ring of domain {self.domid}")
            if not count:
                break
            self.output += chunk[:count]
            total += count
        if len(self.output) > LOG_MAX:
            del self.output[:-LOG_MAX]
        return total

    def _feed(self, domain: Domain) -> int:
        if not self._input:
            return 0
        data = bytes(self._input)
        count = lib.stream_put(domain.kernel, self.pfn, *IN, ffi.from_buffer(data), len(data))
        if count < 0:
            domain.fail(count, f"console ring of domain {self.domid}")
        del self._input[:count]
        return int(count)

    def type(self, data: bytes) -> None:
        """Input for the guest, as from a keyboard."""
        self._input += data
        self.service()

    def close(self) -> None:
        domain = self.daemon.domain
        self.service()
        self._unbind()
        domain.gnttab.unmap(self.handle, self.pfn)
        domain.holes.free(self.pfn)


INTRODUCE_DOMAIN: Final = "@introduceDomain"


class ConsoleDaemon:
    """Consoles of every guest that has one in the store; finished ones stay readable."""

    def __init__(self, domain: Domain, store: BackStore, dispatcher: Dispatcher) -> None:
        self.domain = domain
        self.store = store
        self.dispatcher = dispatcher
        self.consoles: dict[int, Console] = {}
        self._watches: dict[int, BackWatch] = {}
        self._watched: dict[int, Domain] = {}
        self._names = {str(domain.domid): domain.domid}  # of these, and its own
        self.finished: dict[int, Console] = {}
        store.watch(INTRODUCE_DOMAIN, self._look)
        store.watch("@releaseDomain", self._look)

    def _look(self, path: str) -> None:
        for domid in [domid for domid, domain in self._watched.items() if domain.dead]:
            self._remove(domid)
        if path != INTRODUCE_DOMAIN:
            return
        names = self._names
        for name in self.store.directory("/local/domain"):
            domid = 0 if name in names else number_of(name, 0)
            domain = self.domain.find(domid) if domid else None
            if domain is not None and not domain.dead and domid not in self._watched:
                # The toolstack writes the console after it introduced the domain.
                console = f"/local/domain/{domid}/console/port"
                self._watches[domid] = self.store.watch(console, self._adopt)
                self._watched[domid] = domain
                names[str(domid)] = domid

    def _adopt(self, path: str) -> None:
        domid = number_of(path.split("/")[3], 0)
        home = f"/local/domain/{domid}/console"
        port = number_of(self.store.get(f"{home}/port"), 0)
        if not port:
            return
        there = self.consoles.get(domid)
        if there is not None:
            if port != there.remote_port or not self.store.get(f"{home}/tty"):
                self._adopt_again(there, port)
            return
        pfn = self.domain.holes.alloc()
        try:
            handle = self.domain.gnttab.map(domid, GNTTAB_RESERVED_CONSOLE, pfn)
        except GrantError:
            self.domain.holes.free(pfn)
            return
        console = Console(self, domid, handle, pfn)
        try:
            console.open(port)
        except HypercallError:
            console.close()
            return
        self.consoles[domid] = console
        self.store.write(f"{home}/tty", f"/dev/pts/{domid}")

    def _adopt_again(self, console: Console, port: int) -> None:
        """The toolstack wrote a console anew for a domain that is still the same."""
        try:
            console.reopen(port)
        except HypercallError:
            return
        self.store.write(f"/local/domain/{console.domid}/console/tty", f"/dev/pts/{console.domid}")

    def _remove(self, domid: int) -> None:
        self.store.unwatch(self._watches.pop(domid))
        del self._watched[domid], self._names[str(domid)]
        console = self.consoles.pop(domid, None)
        if console is not None:
            console.close()
            self.finished[domid] = console
