"""One node: a value, children in creation order, permissions and a generation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xenpv.store.permission import Permissions

NO_CHILDREN: Final[dict[bytes, None]] = {}  # of every leaf; shared, so nobody writes to it
HEADER_SIZE: Final = 16  # of a stored node, before permissions, value and child names
PERMISSION_SIZE: Final = 8

_new = object.__new__


class Node:
    """A node of the tree, or a transaction's copy of one.

    `lineage` is the node's path, then its parent's, up to `/`; a special name has only
    itself. `children` are names; `shared` says that another copy may hold the same dict, so
    it is copied before it is changed. `names_size` is the bytes of all children's names with
    their NULs, `charged` the bytes of memory quota that the owner pays for this node.
    """

    __slots__ = (
        "charged",
        "children",
        "generation",
        "lineage",
        "names_size",
        "perms",
        "shared",
        "value",
    )

    def __init__(
        self,
        lineage: tuple[bytes, ...],
        value: bytes,
        perms: Permissions,
        generation: int,
        children: dict[bytes, None] = NO_CHILDREN,
        names_size: int = 0,
    ) -> None:
        self.lineage = lineage
        self.value = value
        self.perms = perms
        self.generation = generation
        self.children = children
        self.names_size = names_size
        self.shared = True
        self.charged = 0

    @property
    def path(self) -> bytes:
        return self.lineage[0]

    @property
    def size(self) -> int:
        """Bytes that count against the node-size quota."""
        return HEADER_SIZE + PERMISSION_SIZE * self.perms.count + len(self.value) + self.names_size

    def copy(self) -> Node:
        """A copy that can change alone; the children are copied when they first change."""
        # Not by the class: each node that a transaction touches comes by here, and calling
        # __init__ takes longer than all it does.
        new = _new(Node)
        new.lineage = self.lineage
        new.value = self.value
        new.perms = self.perms
        new.generation = self.generation
        new.children = self.children
        new.names_size = self.names_size
        new.shared = self.shared = True
        new.charged = 0
        return new

    def add_name(self, name: bytes) -> None:
        if self.shared:
            self.children = self.children.copy()
            self.shared = False
        self.children[name] = None
        self.names_size += len(name) + 1

    def add_names(self, names: Mapping[bytes, None]) -> None:
        """`add_name` of each; none of them is there yet."""
        self.children = {**self.children, **names}
        self.shared = False
        self.names_size += sum(map(len, names)) + len(names)

    def remove_name(self, name: bytes) -> None:
        if self.shared:
            self.children = self.children.copy()
            self.shared = False
        del self.children[name]
        self.names_size -= len(name) + 1

    def child_path(self, name: bytes) -> bytes:
        path = self.lineage[0]
        return path + name if path == b"/" else b"%b/%b" % (path, name)

    def __repr__(self) -> str:
        return f"<Node {self.lineage[0].decode()} g{self.generation}>"
