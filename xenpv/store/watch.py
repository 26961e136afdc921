"""Watches: who hears of a change, in which order, under which name.

Watches are indexed by path, so an event looks up its own path and its ancestors and meets
only those that match, however many there are elsewhere. Matches fire by age of their
connection, then by registration.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Final

from xenpv.abi._kernel import lib
from xenpv.errors import StoreError
from xenpv.store.path import canonicalise
from xenpv.store.permission import READ
from xenpv.store.quota import breach
from xenpv.store.wire import OK, atoi, strings

if TYPE_CHECKING:
    from xenpv.store.connection import Connection
    from xenpv.store.node import Node
    from xenpv.store.permission import Permissions
    from xenpv.store.server import Xenstored
    from xenpv.store.transaction import Transaction
    from xenpv.store.tree import Tree

# Which watches an event reaches: those on the path itself, or on it and its ancestors.
EXACT: Final = 1
SUBTREE: Final = 2

NO_DEPTH: Final = -1
FEATURE_WATCHDEPTH: Final[int] = lib.XENSTORE_SERVER_FEATURE_WATCHDEPTH

_AGE_SHIFT: Final = 48
ABOVE_MAX: Final = 4096  # paths whose watches are remembered


class Watch:
    """One registration. `depth` is the number of levels below `path` that count, or NO_DEPTH.

    `prefix` is the length of what events of a relative watch leave out of their path.
    `levels` is that of a node's lineage at `path`, `order` the firing order.
    """

    __slots__ = ("connection", "depth", "levels", "order", "path", "prefix", "token")

    def __init__(
        self,
        connection: Connection,
        path: bytes,
        token: bytes,
        *,
        prefix: int,
        depth: int,
        order: int,
    ) -> None:
        self.connection = connection
        self.path = path
        self.token = token
        self.prefix = prefix
        self.depth = depth
        self.levels = 1 if path == b"/" or path[:1] == b"@" else path.count(b"/") + 1
        self.order = order


_ORDER: Final = attrgetter("order")


class WatchIndex:
    """All watches of all connections, by absolute path.

    `_above` remembers for a path which watches are on it and its ancestors, until a watch
    comes or goes.
    """

    __slots__ = ("_above", "by_path", "registered")

    def __init__(self) -> None:
        self.by_path: dict[bytes, list[Watch]] = {}
        self.registered = 0
        self._above: dict[bytes, list[Watch]] = {}

    def add(self, conn: Connection, path: bytes, token: bytes, prefix: int, depth: int) -> Watch:
        self.registered += 1
        order = conn.age << _AGE_SHIFT | self.registered
        watch = Watch(conn, path, token, prefix=prefix, depth=depth, order=order)
        self.by_path.setdefault(path, []).append(watch)
        self._above.clear()
        return watch

    def discard(self, watch: Watch) -> None:
        self._above.clear()
        watches = self.by_path[watch.path]
        watches.remove(watch)
        if not watches:
            del self.by_path[watch.path]

    def fire(
        self,
        tree: Tree,
        lineage: tuple[bytes, ...],
        node: Node | None,
        match: int,
        old: Permissions | None,
    ) -> None:
        """Sends the events of a change to the node of `lineage`.

        A watcher hears of it if it may read the node, or its parent, or could read the node
        while it had the permissions `old`. A `node` of None is gone: then only `old` counts.
        """
        path = lineage[0]
        hits = self.by_path.get(path)
        if match != EXACT and len(lineage) > 1:
            above = self._above.get(lineage[1])
            if above is None:
                above = self._find_above(lineage)
            hits = above if hits is None else hits + above
        if not hits:
            return
        if len(hits) > 1:
            hits = sorted(hits, key=_ORDER)
        elif node is not None:
            (watch,) = hits  # the usual case: a backend's bus, of a control domain
            if watch.depth == NO_DEPTH and watch.connection.privileged:
                name = path[watch.prefix :] if watch.prefix else path
                watch.connection.send_event(name, watch.token)
                return
        last = None
        allowed = False
        for watch in hits:
            if (
                match != EXACT
                and watch.depth != NO_DEPTH
                and (len(lineage) - watch.levels > watch.depth)
            ):
                continue
            conn = watch.connection
            if conn is not last:
                last = conn
                allowed = (node is not None and conn.privileged) or _may_hear(
                    tree, conn, lineage, node, old
                )
            if allowed:
                conn.send_event(path[watch.prefix :] if watch.prefix else path, watch.token)

    def _find_above(self, lineage: tuple[bytes, ...]) -> list[Watch]:
        """Watches on the parent and its ancestors, remembered by the parent's path."""
        by_path = self.by_path
        found = [watch for path in lineage[1:] for watch in by_path.get(path, ())]
        if len(self._above) >= ABOVE_MAX:
            self._above.clear()
        self._above[lineage[1]] = found
        return found

    def fire_special(
        self, tree: Tree, name: bytes, domid: int, *, plain: bool, named: bool
    ) -> None:
        """Sends `name` to watches without a depth, then `name/domid` to those with one or more.

        Watches on `name/domid` itself hear the second whatever their depth.
        """
        node = tree.special[name]
        if plain:
            for watch in sorted(self.by_path.get(name, ()), key=_ORDER):
                if watch.depth == NO_DEPTH and _may_hear(
                    tree, watch.connection, node.lineage, node, None
                ):
                    watch.connection.send_event(name, watch.token)
        if named:
            path = b"%b/%d" % (name, domid)
            hits = [watch for watch in self.by_path.get(name, ()) if watch.depth > 0]
            hits += self.by_path.get(path, ())
            for watch in sorted(hits, key=_ORDER):
                if _may_hear(tree, watch.connection, node.lineage, node, None):
                    watch.connection.send_event(path, watch.token)


def _may_hear(
    tree: Tree,
    conn: Connection,
    lineage: tuple[bytes, ...],
    node: Node | None,
    old: Permissions | None,
) -> bool:
    if old is not None and old.mask(conn) & READ:
        return True
    if not conn.server.profile.watch_rights:
        return True
    if node is None:
        return False
    if conn.privileged or node.perms.mask(conn) & READ:
        return True
    # The root is the parent of special nodes too.
    parent = tree.nodes.get(lineage[1] if len(lineage) > 1 else b"/")
    return parent is not None and parent.perms.mask(conn) & READ != 0


def watch(server: Xenstored, conn: Connection, _tx: Transaction | None, payload: bytes) -> bytes:
    """WATCH: the reply goes first, then one event with the path as the client gave it."""
    parts = strings(payload)
    if len(parts) not in (2, 3):
        raise StoreError("EINVAL", f"{len(parts)} strings")
    text, token = parts[:2]
    depth = NO_DEPTH
    if len(parts) == 3:
        depth = atoi(parts[2])
        if depth < 0 or not conn.domain.features & FEATURE_WATCHDEPTH:
            raise StoreError("EINVAL", f"watch depth {parts[2]!r}")
    path = canonicalise(conn, text, special=True, measured=False)
    if (path, token) in conn.watches:
        raise StoreError("EEXIST", f"watch on {path!r} with token {token!r}")
    if not conn.privileged:
        domain = conn.domain
        if breach(domain.limits.watches, domain.watches + 1):
            name = server.profile.breaches.get("watches", "ENOSPC")
            raise StoreError(name, f"{domain.watches} watches")
        size = len(path) + len(token)
        if breach(domain.limits.memory, domain.memory + size):
            raise StoreError("ENOMEM", "memory quota")
        domain.watches += 1
        domain.memory += size
    prefix = 0 if text[:1] in (b"/", b"@") else len(conn.home_prefix)
    conn.watches[path, token] = server.watches.add(conn, path, token, prefix, depth)
    conn.first_event = (text, token)
    return OK


def unwatch(server: Xenstored, conn: Connection, _tx: Transaction | None, payload: bytes) -> bytes:
    parts = strings(payload)
    if len(parts) != 2:
        raise StoreError("EINVAL", f"{len(parts)} strings")
    key = (canonicalise(conn, parts[0], special=True), parts[1])
    found = conn.watches.get(key)
    if found is None:
        raise StoreError("ENOENT", f"no watch on {key[0]!r} with token {key[1]!r}")
    del conn.watches[key]
    forget(server, conn, found)
    return OK


def reset_watches(
    server: Xenstored, conn: Connection, _tx: Transaction | None, _payload: bytes
) -> bytes:
    """RESET_WATCHES: drops the caller's watches and its transactions, this one included."""
    drop_watches(server, conn)
    conn.drop_transactions()
    return OK


def drop_watches(server: Xenstored, conn: Connection) -> None:
    for found in conn.watches.values():
        forget(server, conn, found)
    conn.watches.clear()


def forget(server: Xenstored, conn: Connection, found: Watch) -> None:
    server.watches.discard(found)
    if not conn.privileged:
        conn.domain.watches -= 1
        conn.domain.release(len(found.path) + len(found.token))
