"""Transactions that see the store as it was at their start: oxenstored's and QEMU's.

Nothing is copied at the start. While a snapshot is open, the tree keeps for it the nodes that
are about to change; reading looks there before it looks at the live tree. So a start costs
nothing, a write costs one step for each open snapshot, and memory holds what has changed.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from xenpv.abi.xs import XS
from xenpv.errors import StoreError
from xenpv.store.conflict import ConflictCredit
from xenpv.store.oxwatch import OxWatchIndex
from xenpv.store.path import ROOT, canonicalise, parent_of
from xenpv.store.quota import breach
from xenpv.store.transaction import ABSENT, Access, Transaction, unused_transaction
from xenpv.store.tree import Tree
from xenpv.store.watch import EXACT, SUBTREE, WatchIndex

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Sequence

    from xenpv.store.connection import Connection
    from xenpv.store.node import Node
    from xenpv.store.permission import Permissions
    from xenpv.store.server import Xenstored

# What a successful request does to the node that its first string names.
READS: Final = (int(XS.READ), int(XS.DIRECTORY), int(XS.GET_PERMS))
WRITES: Final = (int(XS.WRITE), int(XS.SET_PERMS), int(XS.MKDIR), int(XS.RM))
RESHAPES: Final = (int(XS.MKDIR), int(XS.RM))


class Change(enum.Enum):
    """What an event of a transaction tells of, which decides whose rights count."""

    CONTENT = enum.auto()
    PERMISSIONS = enum.auto()
    REMOVAL = enum.auto()


# A request of a transaction and what it was answered: type, payload, reply or error name.
Logged = tuple[int, bytes, bytes | str]


class Snapshot:
    """The store at one moment: what was there before each later change; None was absent.

    `rewritten` are paths that got the value that they had. Such a node is still the same to
    oxenstored, but those above it are not. After a death all nodes are `rebuilt`.
    """

    __slots__ = ("before", "rebuilt", "rewritten")

    def __init__(self) -> None:
        self.before: dict[bytes, Node | None] = {}
        self.rewritten: dict[bytes, None] = {}
        self.rebuilt = False

    @property
    def changed(self) -> bool:
        """Has anything been written since?"""
        return bool(self.before or self.rewritten or self.rebuilt)

    def write(self, node: Node, value: bytes) -> None:
        """Called by the tree before `node` gets `value`."""
        if value == node.value:
            self.rewritten[node.lineage[0]] = None
        else:
            self.keep(node.lineage[0], node)

    def keep(self, path: bytes, node: Node | None) -> None:
        """Called by the tree before `path` changes for the first time."""
        if path not in self.before:
            self.before[path] = None if node is None else node.copy()

    def read(self, tree: Tree, path: bytes) -> Node | None:
        if path in self.before:
            return self.before[path]
        return tree.read(path)


class SnapshotTree(Tree):
    """A tree that keeps, for each open snapshot, what is about to change."""

    __slots__ = ("journal", "snapshots")

    def __init__(self, watches: WatchIndex) -> None:
        super().__init__(watches)
        self.snapshots: list[Snapshot] = []
        # Each change while it is a deque (store.conflict), oldest first.
        self.journal: deque[tuple[int, bytes, Node | None]] | None = None

    def rebuild(self) -> None:
        for snapshot in self.snapshots:
            snapshot.rebuilt = True

    def _keep(self, path: bytes, node: Node | None) -> None:
        for snapshot in self.snapshots:
            snapshot.keep(path, node)
        if self.journal is not None:
            self.journal.append((self.generation, path, None if node is None else node.copy()))

    def write(self, node: Node, value: bytes) -> None:
        for snapshot in self.snapshots:
            snapshot.write(node, value)
        if self.journal is not None and value != node.value:
            self.journal.append((self.generation, node.path, node.copy()))
        super().write(node, value)

    def set_perms(self, node: Node, perms: Permissions) -> None:
        self._keep(node.path, node)
        super().set_perms(node, perms)

    def plant(self, parent: Node, path: bytes, perms: Permissions, value: bytes) -> Node:
        self._keep(path, None)
        self._keep(parent.path, parent)
        return super().plant(parent, path, perms, value)

    def plant_all(self, _base: bytes, _pairs: Sequence[tuple[bytes, bytes]]) -> int:
        """The long way is due: it keeps what each of them changes."""
        return 0

    def remove(self, node: Node) -> None:
        self._keep(node.path, node)
        super().remove(node)

    def unlink(self, parent: Node, name: bytes) -> None:
        self._keep(parent.path, parent)
        super().unlink(parent, name)

    def install(self, node: Node) -> None:
        self._keep(node.path, self.read(node.path))
        super().install(node)

    def add(self, node: Node) -> None:
        self._keep(node.path, None)
        super().add(node)


class SnapshotTransaction(Transaction):
    """A transaction over a Snapshot; how it ends is its subclass' rule."""

    __slots__ = ("snapshot",)

    plain = False

    def __init__(self, number: int, conn: Connection, tree: Tree) -> None:
        super().__init__(number, conn, tree)
        self.snapshot = Snapshot()
        assert isinstance(tree, SnapshotTree), "the profile's tree"
        tree.snapshots.append(self.snapshot)

    def settle(self) -> None:
        super().settle()
        assert isinstance(self.tree, SnapshotTree), "the profile's tree"
        self.tree.snapshots.remove(self.snapshot)

    def plant_all(self, _base: bytes, _pairs: Sequence[tuple[bytes, bytes]]) -> int:
        """The long way is due: what the live tree has says nothing here."""
        return 0

    def enter(self, path: bytes) -> Access:
        conn = self.conn
        if not conn.privileged and breach(
            conn.domain.limits.transaction_nodes, len(self.accesses) + 1
        ):
            self.failed = True
            raise StoreError("ENOSPC", f"{len(self.accesses)} nodes in a transaction")
        node = self.snapshot.read(self.tree, path)
        if node is None:
            access = Access((path,), ABSENT, None, None)
        else:
            access = Access(node.lineage, node.generation, node.copy(), node.perms)
            if not conn.privileged:
                self._charge(access)
        self.accesses[path] = access
        return access


class AnyChangeTransaction(SnapshotTransaction):
    """Any change of the store since the start ends it with EAGAIN, even if it only read.

    As QEMU has it, a commit tells of the topmost of what it removed, and of a node that was
    removed and made again if it lost its value by that.
    """

    __slots__ = ("lost",)

    def __init__(self, number: int, conn: Connection, tree: Tree) -> None:
        super().__init__(number, conn, tree)
        self.lost: dict[bytes, None] = {}

    def create(self, parent: Node, path: bytes, perms: Permissions) -> Node:
        node = super().create(parent, path, perms)
        self.accesses[path].match = SUBTREE if path in self.lost else 0
        return node

    def remove(self, node: Node) -> None:
        if node.value:
            self.lost[node.path] = None
        super().remove(node)

    def apply(self) -> None:
        for access in self.accesses.values():
            if access.node is None and access.generation != ABSENT and access.modified:
                above = self.accesses.get(access.lineage[1]) if len(access.lineage) > 1 else None
                topmost = above is None or above.node is not None
                access.match = SUBTREE if topmost else EXACT
        super().apply()

    def check(self) -> None:
        if self.snapshot.changed:
            raise StoreError("EAGAIN", "the store changed")


class SilentTransaction(Transaction):
    """A transaction whose events somebody else sends."""

    __slots__ = ()

    plain = False

    def plant_all(self, _base: bytes, _pairs: Sequence[tuple[bytes, bytes]]) -> int:
        """The long way is due: it fires nothing."""
        return 0

    def fire(self, node: Node, match: int = SUBTREE, old: Permissions | None = None) -> None:
        """Forgets the event."""

    def fire_removal(self, node: Node) -> bool:
        """Forgets all of them."""
        del node
        return True


class MergeTransaction(SnapshotTransaction):
    """oxenstored's: install, or merge, or replay (transaction.ml, process.ml).

    `log` holds the requests with their replies, `reads` and `writes` the lowest paths that
    hold all that was read, and all that was written; `fired` the events, one for each write.
    """

    __slots__ = ("fired", "log", "noted", "reads", "since", "writes")

    def __init__(self, number: int, conn: Connection, tree: Tree) -> None:
        super().__init__(number, conn, tree)
        self.log: list[Logged] = []
        self.reads: bytes | None = None
        self.writes: bytes | None = None
        self.noted = 0  # of `fired`
        self.fired: list[tuple[tuple[bytes, ...], Change]] = []
        self.since = tree.generation
        credit = conn.server.credit
        if isinstance(credit, ConflictCredit):
            credit.began(self)

    def settle(self) -> None:
        super().settle()
        credit = self.conn.server.credit
        if isinstance(credit, ConflictCredit):
            credit.ended(self)

    @property
    def requests(self) -> int:
        return len(self.log)

    def fire(self, node: Node, match: int = SUBTREE, old: Permissions | None = None) -> None:
        """Remembers each event: none swallows another here."""
        del match
        kind = Change.CONTENT if old is None else Change.PERMISSIONS
        self.fired.append((node.lineage, kind))

    def fire_removal(self, node: Node) -> bool:
        self.fired.append((node.lineage, Change.REMOVAL))
        return True

    def note(self, op: int, payload: bytes, reply: bytes | str) -> None:
        """After each request of this transaction, and before the next.

        Only what succeeded is a read or a write. A creation, MKDIR and RM count as a write of
        the nearest parent that was there.
        """
        if self.requests >= self.conn.server.profile.requests_max and not self.conn.privileged:
            return  # refused, and it can only be given up
        self.log.append((op, payload, reply))
        if isinstance(reply, str) or op not in READS + WRITES:
            return
        path = canonicalise(self.conn, payload.partition(b"\0")[0], special=True)
        if op in READS:
            self.reads = _lowest(self.reads, path)
            return
        if len(self.fired) == self.noted:
            return  # MKDIR of what is there, RM of what is not
        self.noted = len(self.fired)
        if op in RESHAPES or self.accesses[path].generation == ABSENT:
            path = parent_of(path)
            while path != ROOT and self.accesses[path].generation == ABSENT:
                path = parent_of(path)
        self.writes = _lowest(self.writes, path)

    def commit(self) -> None:
        if self.failed:
            raise StoreError("ENOMEM", "an operation in the transaction failed")
        if self.writes is None:
            return
        assert isinstance(self.tree, SnapshotTree), "the profile's tree"
        snapshots = self.tree.snapshots
        snapshots.append(self.snapshot)  # it has to tell the store before the commit for events
        try:
            if not self.snapshot.changed:
                self.check_ownership()
                self.apply()
            elif self._is_unchanged(self.reads) and self._is_unchanged(self.writes):
                self.check_ownership()
                self._graft(self.writes)
            else:
                self._replay()
            self._fire_all()
        finally:
            snapshots.remove(self.snapshot)

    def _fire_all(self) -> None:
        """The events of the transaction's own view: as it found the store, or as it left it."""
        watches = self.tree.watches
        assert isinstance(watches, OxWatchIndex)
        self.conn.answer_last()
        for lineage, change in self.fired:
            if change is Change.REMOVAL:
                watches.fire_removal(lineage, self._at_start)
            elif change is Change.PERMISSIONS:
                watches.fire_change(lineage, (self._at_start, self._at_end))
            else:
                watches.fire_change(lineage, (self._at_end,))

    def _at_start(self, path: bytes) -> Node | None:
        return self.snapshot.read(self.tree, path)

    def _at_end(self, path: bytes) -> Node | None:
        access = self.accesses.get(path)
        return self._at_start(path) if access is None else access.node

    def _is_unchanged(self, path: bytes | None) -> bool:
        """Is all at and below `path` what it was, and are the rights on the way to it?

        Where it neither was nor is, its parent has to be there.
        """
        if path is None:
            return True
        snapshot = self.snapshot
        now = self.tree.read(path)
        then = snapshot.read(self.tree, path)
        if now is None and then is None:
            return self.tree.read(parent_of(path)) is not None
        below = path if path == ROOT else path + b"/"
        if (
            path in snapshot.before
            or snapshot.rebuilt
            or any(
                changed != path and changed.startswith(below)
                for changes in (snapshot.before, snapshot.rewritten)
                for changed in changes
            )
        ):
            return False
        while path != ROOT:
            path = parent_of(path)
            old, new = snapshot.before.get(path), self.tree.read(path)
            if old is not None and (new is None or new.perms.texts() != old.perms.texts()):
                return False
        return True

    def _graft(self, root: bytes) -> None:
        """What was changed at and below `root`, which is there in both."""
        below = root if root == ROOT else root + b"/"
        for path, access in self.accesses.items():
            if access.modified and (path == root or path.startswith(below)):
                self.tree.put(path, access.node)

    def _replay(self) -> None:
        """The same requests on the live store; the same answers, or EAGAIN and no change."""
        conn = self.conn
        conn.next_transaction = unused_transaction(conn) + 1
        again = SilentTransaction(self.id, conn, self.tree)
        if not self._repeats(again):
            credit = conn.server.credit
            if isinstance(credit, ConflictCredit):
                credit.blame(self)
            raise StoreError("EAGAIN", "a request cannot be replayed, or has another answer now")
        again.commit()

    def fits(self, tree: Tree) -> bool:
        """Would it be answered on `tree` as it was?"""
        return self._repeats(SilentTransaction(self.id, self.conn, tree))

    def _repeats(self, again: SilentTransaction) -> bool:
        try:
            return all(
                (op in READS + WRITES or op == XS.GET_DOMAIN_PATH)
                and _answer(self.conn.server, self.conn, again, op, payload) == reply
                for op, payload, reply in self.log
            )
        finally:
            again.settle()


def _answer(
    server: Xenstored, conn: Connection, tx: Transaction, op: int, payload: bytes
) -> bytes | str:
    try:
        return server.handlers[op][0](server, conn, tx, payload)
    except StoreError as error:
        return error.name


def _lowest(known: bytes | None, path: bytes) -> bytes:
    """The lowest path that both lie at or below."""
    if known is None or known == path:
        return path
    common = []
    for one, other in zip(known.split(b"/"), path.split(b"/"), strict=False):
        if one != other:
            break
        common.append(one)
    return b"/".join(common) or ROOT
