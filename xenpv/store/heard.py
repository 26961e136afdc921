"""A tree that tells somebody of each node that changes, as a recording needs it.

`hear` makes one of a store's tree as it is; a store without a listener has a plain Tree, and pays
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xenpv.store.node import Node
from xenpv.store.permission import Permissions
from xenpv.store.server import Xenstored
from xenpv.store.snapshot import SnapshotTree
from xenpv.store.tree import Tree

# Told of a path and its node, after the change; None: it is gone.
Listener = Callable[[bytes, Node | None], object]


class HeardTree(Tree):
    """A tree with `heard`. Every change goes by these methods: no commit spells them out."""

    __slots__ = ()

    spelt_out = False

    def write(self, node: Node, value: bytes) -> None:
        super().write(node, value)
        self.heard(node.lineage[0], node)

    def set_perms(self, node: Node, perms: Permissions) -> None:
        super().set_perms(node, perms)
        self.heard(node.lineage[0], node)

    def plant(self, parent: Node, path: bytes, perms: Permissions, value: bytes) -> Node:
        node = super().plant(parent, path, perms, value)
        self.heard(path, node)
        return node

    def plant_all(self, _base: bytes, _pairs: Sequence[tuple[bytes, bytes]]) -> int:
        """The long way is due: each change stands beside its request."""
        return 0

    def remove(self, node: Node) -> None:
        super().remove(node)
        self.heard(node.lineage[0], None)

    def install(self, node: Node) -> None:
        super().install(node)
        self.heard(node.lineage[0], node)

    def add(self, node: Node) -> None:
        super().add(node)
        self.heard(node.lineage[0], node)


class HeardSnapshotTree(HeardTree, SnapshotTree):
    """The same of a store with snapshots."""

    __slots__ = ()


def hear(server: Xenstored, listener: Listener) -> None:
    """Call `listener` for each node that is there, parents first, then for each that changes."""
    tree = server.tree
    tree.heard = listener
    tree.__class__ = HeardSnapshotTree if isinstance(tree, SnapshotTree) else HeardTree
    for path, node in (*tree.nodes.items(), *tree.special.items()):
        listener(path, node)
