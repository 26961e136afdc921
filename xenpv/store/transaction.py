"""Transactions: private copies made at first access, and a commit that checks each of them.

There is no snapshot at the start: a node is copied as it is when the transaction first
touches it, and its generation is remembered. Every operation reads before it writes, so
writes, creations and removals are checked for conflicts too (xenstored_transaction.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpv.errors import StoreError
from xenpv.store.node import Node
from xenpv.store.path import LEGAL_NAME, ROOT, SPECIAL
from xenpv.store.quota import breach
from xenpv.store.watch import SUBTREE
from xenpv.store.wire import OK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpv.store.connection import Connection
    from xenpv.store.domain import Domain
    from xenpv.store.permission import Permissions
    from xenpv.store.server import Xenstored
    from xenpv.store.tree import Tree

ABSENT: Final = -1
U32_MAX: Final = 0xFFFFFFFF

_new = object.__new__


class Access:
    """What a transaction knows of one path.

    `generation` is the node's when it was first touched, or ABSENT; `node` is the
    transaction's copy, None while there is none; `old` are the permissions at first touch.
    `match` is how the commit fires watches: 0 not at all, EXACT or SUBTREE.
    """

    __slots__ = ("charged", "generation", "lineage", "match", "modified", "node", "old")

    def __init__(
        self,
        lineage: tuple[bytes, ...],
        generation: int,
        node: Node | None,
        old: Permissions | None,
    ) -> None:
        self.lineage = lineage
        self.generation = generation
        self.node = node
        self.old = old
        self.modified = False
        self.match = 0
        self.charged = 0


class Transaction:
    """One open transaction of a connection; a `View` of the tree."""

    __slots__ = ("accesses", "conn", "created", "failed", "id", "ownership", "tree")

    @property
    def requests(self) -> int:
        """How many it had, of those that the profile counts."""
        return 0

    plain = True  # the copies are of the live tree, and events are remembered in them

    def __init__(self, number: int, conn: Connection, tree: Tree) -> None:
        self.id = number
        self.conn = conn
        self.tree = tree
        self.accesses: dict[bytes, Access] = {}
        self.failed = False
        self.created = False
        self.ownership: dict[Domain, int] = {}

    def read(self, path: bytes) -> Node | None:
        access = self.accesses.get(path)
        if access is None:
            access = self.enter(path)
        return access.node

    def enter(self, path: bytes) -> Access:
        """The first touch of `path`. Raises StoreError ENOSPC (transaction-nodes)."""
        conn = self.conn
        if not conn.privileged and breach(
            conn.domain.limits.transaction_nodes, len(self.accesses) + 1
        ):
            self.failed = True
            raise StoreError("ENOSPC", f"{len(self.accesses)} nodes in a transaction")
        node = self.tree.read(path)
        if node is None:
            access = self.accesses[path] = Access((path,), ABSENT, None, None)
            return access
        # As `Node.copy` is made, and for the same reason.
        access = self.accesses[path] = _new(Access)
        access.lineage = node.lineage
        access.generation = node.generation
        access.node = node.copy()
        access.old = node.perms
        access.modified = False
        access.match = access.charged = 0
        if not conn.privileged:
            self._charge(access)
        return access

    def _charge(self, access: Access) -> None:
        """Copies count against the memory quota of the domain that opened the transaction."""
        node = access.node
        charge = 0 if node is None else node.size + len(node.lineage[0])
        self.conn.domain.memory += charge - access.charged
        access.charged = charge

    def _modify(self, node: Node) -> Access:
        access = self.accesses[node.lineage[0]]
        access.modified = True
        tree = self.tree
        tree.generation = node.generation = tree.generation + 1
        if not self.conn.privileged:
            self._charge(access)
        return access

    def _own(self, owner: Domain, change: int) -> None:
        self.ownership[owner] = self.ownership.get(owner, 0) + change

    def write(self, node: Node, value: bytes) -> None:
        node.value = value
        self._modify(node)

    def set_perms(self, node: Node, perms: Permissions) -> None:
        self._own(node.perms.owner, -1)
        self._own(perms.owner, 1)
        node.perms = perms
        self._modify(node)

    def create(self, parent: Node, path: bytes, perms: Permissions) -> Node:
        tree = self.tree
        node = Node((path, *parent.lineage), b"", perms, tree.generation + 1)
        access = self.accesses[path]
        access.node = node
        access.lineage = node.lineage
        access.modified = self.created = True
        tree.generation += 1
        if not self.conn.privileged:
            self._charge(access)
        owner = perms.owner
        self.ownership[owner] = self.ownership.get(owner, 0) + 1
        parent.add_name(path[path.rfind(b"/") + 1 :])
        self._modify(parent)
        return node

    def plant(self, above: Access, parent: Node, path: bytes, value: bytes) -> None:
        """A first write below a node that was touched, in one go.

        `path` is not touched yet and not in the tree, `parent` the copy that `above` holds.
        Does what `enter`, `create`, `write` and `fire` do.
        """
        tree = self.tree
        perms = parent.perms
        generation = tree.generation + 1
        node = Node((path, *parent.lineage), value, perms, generation)
        parent.add_name(path[path.rfind(b"/") + 1 :])
        parent.generation = generation = generation + 1
        above.modified = True
        if value:
            node.generation = generation = generation + 1
        tree.generation = generation
        access = Access(node.lineage, ABSENT, node, None)
        access.modified = self.created = True
        access.match = SUBTREE
        self.accesses[path] = access
        owner = perms.owner
        self.ownership[owner] = self.ownership.get(owner, 0) + 1
        if not self.conn.privileged:
            self._charge(access)
            self._charge(above)

    def plant_all(self, base: bytes, pairs: Sequence[tuple[bytes, bytes]]) -> int:
        """`plant` for new nodes right below `base`, of a privileged caller: how many.

        Ends before the first (path, value) that needs the long way.
        """
        accesses = self.accesses
        above = accesses.get(base)
        parent = None if above is None else above.node
        if above is None or parent is None or base == ROOT:
            return 0
        tree = self.tree
        nodes = tree.nodes
        lineage, perms, generation = parent.lineage, parent.perms, tree.generation
        if parent.shared:
            parent.children = parent.children.copy()
            parent.shared = False
        children = parent.children
        start = len(base) + 1
        done = size = 0
        for path, value in pairs:
            name = path[start:]
            if path in accesses or path in nodes or not name or name.translate(None, LEGAL_NAME):
                break
            generation += 3 if value else 2
            node = Node((path, *lineage), value, perms, generation)
            access = accesses[path] = Access(node.lineage, ABSENT, node, None)
            access.modified = True
            access.match = SUBTREE
            children[name] = None
            # The node is made, its parent changes, then a value is written.
            parent.generation = generation - 1 if value else generation
            if not value:
                node.generation = generation - 1
            done += 1
            size += len(name) + 1
        if done:
            tree.generation = generation
            parent.names_size += size
            above.modified = self.created = True
            self.ownership[perms.owner] = self.ownership.get(perms.owner, 0) + done
        return done

    def remove(self, node: Node) -> None:
        access = self._modify(node)
        access.node = None
        if not self.conn.privileged:
            self._charge(access)
        self._own(node.perms.owner, -1)

    def unlink(self, parent: Node, name: bytes) -> None:
        parent.remove_name(name)
        self._modify(parent)

    def fire(self, node: Node, match: int = SUBTREE, old: Permissions | None = None) -> None:
        """Remembers an event for the commit; SUBTREE replaces EXACT, never the reverse."""
        del old  # the permissions at first touch are what counts
        access = self.accesses[node.lineage[0]]
        access.match = max(access.match, match)

    def fire_removal(self, node: Node) -> bool:
        """False: each node that is removed fires for itself."""
        del node
        return False

    def settle(self) -> None:
        """Gives back what the copies were charged."""
        if not self.conn.privileged:
            self.conn.domain.release(sum(access.charged for access in self.accesses.values()))

    def note(self, op: int, payload: bytes, reply: bytes | str) -> None:
        """Told of each request in it and of its reply or error, unless it is `plain`."""

    def commit(self) -> None:
        """Applies everything or nothing.

        Raises StoreError ENOMEM (a failed write in it, or an owner that died meanwhile),
        ENOSPC (the node quota, if an unprivileged caller created nodes) or EAGAIN.
        """
        if self.failed:
            raise StoreError("ENOMEM", "an operation in the transaction failed")
        if self.ownership:
            self.check_ownership()
        self.check()
        self.apply()

    def check(self) -> None:
        """Raises StoreError EAGAIN if a node that was touched has changed since."""
        tree = self.tree
        nodes = tree.nodes
        for path, access in self.accesses.items():
            node = nodes.get(path)
            if node is None and path[0] == SPECIAL:
                node = tree.special.get(path)
            if access.generation != (ABSENT if node is None else node.generation):
                raise StoreError("EAGAIN", f"{path!r} changed")

    def apply(self) -> None:
        """Puts the changes into the tree, which is at these places as it was touched.

        One at a time, each with its events: a watcher's right to hear of a node may depend on
        a parent that this transaction creates or removes later.
        """
        tree = self.tree
        nodes, watches = tree.nodes, tree.watches
        plain = self.plain and tree.spelt_out
        for path, access in self.accesses.items():
            if not access.modified:
                continue
            copy = access.node
            if not plain or copy is None:
                tree.put(path, copy)
            elif access.generation != ABSENT:
                if copy.perms is access.old and path in nodes and not copy.perms.owner.accounted:
                    nodes[path] = copy  # `install`, where the owner keeps what it has
                    tree.generation = copy.generation = tree.generation + 1
                else:
                    tree.put(path, copy)
            elif copy.perms.owner.accounted:
                tree.add(copy)
            else:  # `add`, spelt out: what a toolstack makes is mostly this
                nodes[path] = copy
                tree.generation = copy.generation = tree.generation + 1
                copy.perms.owner.nodes += 1
            if access.match and watches.by_path:
                watches.fire(tree, access.lineage, copy, access.match, access.old)

    def check_ownership(self) -> None:
        """Raises StoreError: an owner is gone, or owns too much if nobody looked before."""
        check_quota = (
            self.created and self.conn.server.profile.creator_owns and not self.conn.privileged
        )
        for owner, change in self.ownership.items():
            if owner.dead:
                raise StoreError("ENOMEM", f"owner domain {owner.domid} is gone")
            if check_quota and owner.accounted and breach(owner.limits.nodes, owner.nodes + change):
                raise StoreError("ENOSPC", f"domain {owner.domid} owns {owner.nodes} nodes")


def transaction_start(
    server: Xenstored, conn: Connection, tx: Transaction | None, _payload: bytes
) -> bytes:
    """TRANSACTION_START: an id of the connection's own, never 0, never one in use."""
    if tx is not None:
        raise StoreError("EBUSY", "transactions do not nest")
    if not conn.privileged:
        domain = conn.domain
        if breach(domain.limits.transactions, domain.transactions + 1):
            raise StoreError("ENOSPC", f"{domain.transactions} transactions")
        domain.transactions += 1
    server.tree.generation += 1
    server.credit.transactions += 1
    number = conn.next_transaction
    if number == 0 or number in conn.transactions:
        number = unused_transaction(conn)
    conn.next_transaction = (number + 1) & U32_MAX
    conn.transactions[number] = server.transaction_type(number, conn, server.tree)
    return b"%d\0" % number


def unused_transaction(conn: Connection) -> int:
    """The id that the next transaction gets."""
    number = conn.next_transaction
    while number == 0 or number in conn.transactions:
        number = (number + 1) & U32_MAX
    return number


def transaction_end(
    server: Xenstored, conn: Connection, tx: Transaction | None, payload: bytes
) -> bytes:
    """TRANSACTION_END: T commits, F drops; the id is spent unless the argument is wrong."""
    commits = payload == b"T\0"
    if not commits and payload != b"F\0":
        raise StoreError("EINVAL", f"transaction end {payload!r}")
    if tx is None:
        raise StoreError("ENOENT", "no transaction")
    conn.close_transaction(tx)
    if commits:
        generation = server.tree.generation
        tx.commit()
        # Others' transactions may fail by it.
        if not conn.privileged and server.credit.transactions:
            server.credit.committed(conn.domain, generation)
    return OK
