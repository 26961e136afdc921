"""Watches as oxenstored fires them (connections.ml, connection.ml).

From the root down to the node, the newest watch of each path first. A removal also reaches
the watches below, each under its own path. A watcher has to be able to read the node or its
parent; for a removal as they were before it, for new permissions before or after. The root
has no parent, so its own changes are not heard of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from xenpv.store.path import ROOT, SPECIAL, parent_of
from xenpv.store.permission import READ
from xenpv.store.watch import Watch, WatchIndex

if TYPE_CHECKING:
    from xenpv.store.connection import Connection
    from xenpv.store.node import Node
    from xenpv.store.permission import Permissions
    from xenpv.store.tree import Tree

Reader = Callable[[bytes], "Node | None"]


class OxWatchIndex(WatchIndex):
    """All watches by path, and the paths below each path that have one at or below them."""

    __slots__ = ("below",)

    def __init__(self) -> None:
        super().__init__()
        self.below: dict[bytes, dict[bytes, int]] = {}  # how many there are

    def add(self, conn: Connection, path: bytes, token: bytes, prefix: int, depth: int) -> Watch:
        watch = super().add(conn, path, token, prefix, depth)
        if path[0] != SPECIAL:
            for above, child in _steps(path):
                children = self.below.setdefault(above, {})
                children[child] = children.get(child, 0) + 1
        return watch

    def discard(self, watch: Watch) -> None:
        super().discard(watch)
        if watch.path[0] != SPECIAL:
            for above, child in _steps(watch.path):
                children = self.below[above]
                children[child] -= 1
                if not children[child]:
                    del children[child]
                    if not children:
                        del self.below[above]

    def fire(
        self,
        tree: Tree,
        lineage: tuple[bytes, ...],
        node: Node | None,
        match: int,
        old: Permissions | None,
    ) -> None:
        del node, match
        self.fire_change(lineage, (tree.read,), old)

    def fire_change(
        self,
        lineage: tuple[bytes, ...],
        readers: tuple[Reader, ...],
        old: Permissions | None = None,
    ) -> None:
        """The events of a change; `readers` give the nodes that decide who may hear of it."""
        path = lineage[0]
        allowed = perms_at(path, readers)
        if not allowed:
            return
        if old is not None:
            allowed.append(old)
        for above in reversed(lineage):
            for watch in reversed(self.by_path.get(above, ())):
                if _may_read(watch.connection, allowed):
                    watch.connection.send_event(path[watch.prefix :], watch.token, watch)

    def fire_special(
        self, tree: Tree, name: bytes, domid: int, *, plain: bool, named: bool
    ) -> None:
        """Sends `name`: to its watches, the newest of a connection first."""
        del domid, named
        if not plain:
            return
        allowed = perms_at(b"/" + name, (tree.read,))
        watches = reversed(self.by_path.get(name, ()))
        for watch in sorted(watches, key=lambda one: one.connection.age):
            if _may_read(watch.connection, allowed):
                watch.connection.send_event(name, watch.token, watch)

    def fire_removal(self, lineage: tuple[bytes, ...], before: Reader) -> None:
        """The events of a removal; `before` gives nodes as they were."""
        self.fire_change(lineage, (before,))
        waiting = sorted(self.below.get(lineage[0], ()), reverse=True)
        while waiting:
            path = waiting.pop()
            watches = self.by_path.get(path)
            if watches:
                allowed = perms_at(path, (before,))
                for watch in reversed(watches):
                    if _may_read(watch.connection, allowed):
                        watch.connection.send_event(path[watch.prefix :], watch.token, watch)
            waiting += sorted(self.below.get(path, ()), reverse=True)


def _steps(path: bytes) -> list[tuple[bytes, bytes]]:
    """(parent, child) from `path` up to the root."""
    steps = []
    while path != ROOT:
        above = parent_of(path)
        steps.append((above, path))
        path = above
    return steps


def perms_at(path: bytes, readers: tuple[Reader, ...]) -> list[Permissions]:
    """The permissions of the parent and of the node, where there are such."""
    found: list[Permissions] = []
    for read in readers:
        parent = None if path == ROOT else read(parent_of(path))
        if parent is not None:
            found.append(parent.perms)
            node = read(path)
            if node is not None:
                found.append(node.perms)
    return found


def _may_read(conn: Connection, allowed: list[Permissions]) -> bool:
    if conn.privileged:
        return bool(allowed)
    return any(perms.mask(conn) & READ for perms in allowed)
