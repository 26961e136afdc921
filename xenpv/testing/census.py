"""What a platform holds, counted: grants, ports, maps, watches, nodes, tasks, by who holds them.

Domids and UUIDs are put by the names of their guests, so that the census of a guest is the
same before and after a reboot, in another domid, on another host. Nothing is changed by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.view.rings import peek
from xenpv.xen.domain import PAGE_SIZE, Domain
from xenpv.xen.evtchn_port import PortState

if TYPE_CHECKING:
    from xenpv.platform import Platform
    from xenpv.store.connection import Connection

# (owner, kind, item): ("web", "grant", "to dom0"), ("dom0", "watch", "~web/device/vif/0/state")
Key = tuple[str, str, str]

GTF_type_mask: Final[int] = lib.GTF_type_mask
FREE: Final = (PortState.FREE, PortState.RESERVED)
ENTRY_V1: Final = 4  # in u16: flags, domid, frame
ENTRY_V2: Final = 8
# Nodes that are there for more than one guest.
_SHARED: Final = re.compile(rb"/local/domain/\d+/backend(/[^/]+)?|/vm|/libxl|/local(/domain)?|/")
# Nodes whose children are named by a domain, and by what of it.
_NAMED_BY: Final = {"/vm": "uuids", "/libxl": "names", "/local/domain": "names"}
_BACKEND_KIND: Final = re.compile(r"/local/domain/[^/]+/backend/[^/]+")
# The number is a domid, in names of tasks (`vif5.0`, `xenstored d5`).
_TASK_DOMID: Final = re.compile(r"\b(vif|vbd|xenstored d|xenconsoled d|console d|d)(\d+)")


@attrs.frozen
class Census:
    """How many of each there are; a key that is not there counts 0."""

    counts: Mapping[Key, int]

    def of(self, name: str) -> Census:
        """The part that is that guest's, or that others hold because of it."""
        mark = _mark(name)
        mine = {key: n for key, n in self.counts.items() if key[0] == name or mark.search(key[2])}
        return Census(mine)

    def without(self, *kinds: str) -> Census:
        """All but those kinds."""
        return Census({key: n for key, n in self.counts.items() if key[1] not in kinds})

    def total(self, owner: str, kind: str) -> int:
        """Of all items of a kind."""
        return sum(n for key, n in self.counts.items() if key[:2] == (owner, kind))

    def renamed(self, old: str, new: str) -> Census:
        """As it would be if that guest had another name."""
        mark = _mark(old)
        counts: dict[Key, int] = {}
        for (owner, kind, item), n in self.counts.items():
            counts[new if owner == old else owner, kind, mark.sub(f"~{new}", item)] = n
        return Census(counts)


def _mark(name: str) -> re.Pattern[str]:
    """That guest in an item, and no other whose name begins so. A device number follows a dot."""
    return re.compile(rf"~{re.escape(name)}(?![\w-])")


# What is made with its first use, and kept: there may be one of each, and no more.
ONCE: Final = ("task", "timer")


def leaks(before: Census, after: Census, *, lost: bool = True) -> list[str]:
    """What is there now and was not, a line each; with `lost` also what is there no more.

    A task or timer that was not there before may have come once: some are made when they are
    first needed.
    """
    found = []
    for key in sorted({*before.counts, *after.counts}):
        was, now = before.counts.get(key, 0), after.counts.get(key, 0)
        if key[1] in ONCE and max(was, now) <= 1:
            continue
        if now > was or (lost and now < was):
            owner, kind, item = key
            found.append(f"{owner}: {kind} {item}: {now}, was {was}")
    return found


def take_census(platform: Platform) -> Census:
    """The census of a platform; best when nothing is runnable."""
    return _Counter(platform).census()


class _Counter:
    """One census while it is being taken."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.counts: dict[Key, int] = {}
        self.names: dict[str, str] = {"0": "dom0"}
        self.uuids: dict[str, str] = {}
        self._paths: dict[bytes, str] = {}
        for guest in platform.guests:
            domain = guest.created.domain
            if platform.hypervisor.domains.get(guest.domid) is domain and not domain.dead:
                self.names[str(guest.domid)] = guest.name
                self.uuids[guest.created.uuid] = guest.name

    def census(self) -> Census:
        for domain in self.platform.hypervisor.domains.values():
            self._domain(domain)
        self._store()
        self._backends()
        return Census(self.counts)

    def add(self, owner: str, kind: str, item: str, count: int = 1) -> None:
        if not count:
            return
        key = owner, kind, item
        self.counts[key] = self.counts.get(key, 0) + count

    def owner(self, domid: int) -> str:
        return self.names.get(str(domid), f"d{domid}")

    def mark(self, domid: int | str) -> str:
        """A domain as part of an item: what `Census.of` looks for."""
        name = self.names.get(str(domid), f"d{domid}")
        return name if name == "dom0" else f"~{name}"

    # domains

    def _domain(self, domain: Domain) -> None:
        owner = self.owner(domain.domid)
        if domain.dead:
            self.add(owner, "dead domain", f"with {domain.pinned()} pages that others hold")
            return
        self.add(owner, "domain", "alive")
        for grantee in self._grantees(domain):
            self.add(owner, "grant", f"to {self.mark(grantee)}")
        for mapping in domain.gnttab.maptrack.values():
            self.add(owner, "map", f"of {self.mark(mapping.granter.domid)}")
        for port in domain.evtchn.ports:
            if port.state not in FREE:
                self.add(owner, "port", self._port(port.state, port.remote_domid, port.irq))
        self.add(owner, "page", "in holes", domain.holes.size - domain.holes.free_pages)
        self.add(owner, "page", "owned", domain.tot_pages)
        for task in domain.tasks:
            self.add(owner, "task", self._task(task.name))
        for timer in domain.timers:
            self.add(owner, "timer", f"of {self._task(timer.task.name)}")

    def _port(self, state: PortState, remote: int, irq: int) -> str:
        if state in (PortState.UNBOUND, PortState.INTERDOMAIN):
            return f"{state.name.lower()} with {self.mark(remote)}"
        return f"{state.name.lower()} {irq}" if state is not PortState.IPI else "ipi"

    def _task(self, name: str) -> str:
        return _TASK_DOMID.sub(lambda found: found[1] + self.mark(found[2]), name)

    def _grantees(self, domain: Domain) -> Iterator[int]:
        """Whom each entry in use is for."""
        table = domain.gnttab
        step = ENTRY_V1 if table.version == 1 else ENTRY_V2
        for index in range(table.nr_frames):
            frame = int(lib.grant_table_frame(domain.kernel, index))
            words = memoryview(peek(self.platform.hypervisor, frame, 0, PAGE_SIZE)).cast("H")
            for flags, domid in zip(words[::step], words[1::step], strict=True):
                if flags & GTF_type_mask:
                    yield domid

    # the store

    def _store(self) -> None:
        server = self.platform.xenstored
        for path, node in server.nodes.items():
            # A parent that several guests' devices share counts when it is empty.
            if not (node.children and _SHARED.fullmatch(path)):
                self.add("store", "node", self._path(path))
        for connection in server.connections.values():
            owner = self._client(connection)
            for path, _token in connection.watches:
                self.add(owner, "watch", self._path(path))
            if connection.transactions:
                self.add(owner, "transaction", "open", len(connection.transactions))
            if connection.local and connection.events:
                self.add(owner, "event", "unread", len(connection.events))
        for domid in server.known:
            self.add("store", "domain", self.mark(domid))

    def _client(self, connection: Connection) -> str:
        return connection.name if connection.domid == 0 else self.owner(connection.domid)

    def _path(self, raw: bytes) -> str:
        """/local/domain/~web/device/vif/0, /local/domain/~dom0/backend/vif/~web/0, /libxl/~web"""
        found = self._paths.get(raw)
        if found is None:
            above, slash, name = raw.rpartition(b"/")
            if not slash:
                found = raw.decode()  # a special node
            else:
                parent = self._path(above) if above else ""
                found = f"{parent}/{self._named(parent, name.decode())}"
            self._paths[raw] = found
        return found

    def _named(self, parent: str, name: str) -> str:
        """A node's own name, where it is a domain's."""
        table = _NAMED_BY.get(parent)
        if table is None:
            if parent.count("/") != 5 or not _BACKEND_KIND.fullmatch(parent):
                return name
            table = "names"
        names: Mapping[str, str] = getattr(self, table)
        if name in names:
            return f"~{names[name]}"
        return f"~d{name}" if table == "names" and name.isdecimal() else name

    # what serves guests

    def _backends(self) -> None:
        platform = self.platform
        for kind, domid, devid in platform.backends.devices:
            self.add("dom0", "backend", f"{kind} {self.mark(domid)} {devid}")
        for bridge in platform.network.bridges.values():
            for name in bridge.ports:
                self.add("dom0", "bridge port", f"{bridge.name} {self._task(name)}")
        for domid in platform.store_daemon.rings:
            self.add("dom0", "store ring", self.mark(domid))
        for domid in platform.console_daemon.consoles:
            self.add("dom0", "console", self.mark(domid))
        for domid in platform.toolstack.created:
            self.add("toolstack", "domain", self.mark(domid))
