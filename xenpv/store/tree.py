"""The store itself: a flat dict from path to node, with what each domain owns kept beside it.

An operation costs the depth of its path at most. `Tree` and `Transaction` offer the same
methods to the request handlers: those of `View`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from xenpv.store.node import HEADER_SIZE, PERMISSION_SIZE, Node
from xenpv.store.oxwatch import OxWatchIndex
from xenpv.store.path import INTRODUCE_DOMAIN, LEGAL_NAME, RELEASE_DOMAIN, ROOT, SPECIAL, parent_of
from xenpv.store.permission import DOMID_ANY, READ, Entry, Permissions
from xenpv.store.watch import SUBTREE, WatchIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenpv.store.domain import Domain
    from xenpv.store.profile import Profile


class View(Protocol):
    """What a request works on: the tree, or a transaction's view of it."""

    def read(self, path: bytes) -> Node | None: ...
    def write(self, node: Node, value: bytes) -> None: ...
    def set_perms(self, node: Node, perms: Permissions) -> None: ...
    def create(self, parent: Node, path: bytes, perms: Permissions) -> Node: ...
    def remove(self, node: Node) -> None: ...
    def unlink(self, parent: Node, name: bytes) -> None: ...
    def fire(self, node: Node, match: int = ..., old: Permissions | None = ...) -> None: ...
    def fire_removal(self, node: Node) -> bool: ...


def subtree(view: View, root: Node) -> tuple[list[Node], bool]:
    """`root` and all below it, each after its children, children in their order.

    Nodes are read parents first, which is the order that a transaction remembers. Iterative:
    a guest can make a tree of a thousand levels (XSA-418). False if a listed child is not
    there, and then with the nodes that come before it: a transaction may have copied a
    parent whose child went away before it was copied too.
    """
    ordered: list[Node] = []
    above: list[Node] = []
    paths = [root.lineage[0]]
    while paths:
        path = paths.pop()
        node = view.read(path)
        levels = len(root.lineage) + path.count(b"/") - root.lineage[0].count(b"/")
        while above and len(above[-1].lineage) >= levels:
            ordered.append(above.pop())
        if node is None:
            return ordered, False
        above.append(node)
        paths += [node.child_path(name) for name in reversed(node.children)]
    return ordered + above[::-1], True


class Tree:
    """Nodes by path, special nodes by name, the global generation, and the watches.

    `generation` is that of the latest change. Ownership counts (`Domain.nodes`, `owned`,
    `memory`) change here and nowhere else. `heard` is that of a tree with a listener
    (store.heard).
    """

    __slots__ = ("generation", "heard", "nodes", "special", "watches")

    heard: Callable[[bytes, Node | None], object]
    spelt_out = True  # a commit may do itself what these methods do

    def __init__(self, watches: WatchIndex) -> None:
        self.watches = watches
        self.nodes: dict[bytes, Node] = {}
        self.special: dict[bytes, Node] = {}
        self.generation = 0

    def populate(self, owner: Domain, profile: Profile) -> None:
        """What a store holds at its start, the special nodes too if they are not below the root."""
        hidden = Permissions(owner, 0)
        root = Node((ROOT,), b"", hidden, self.next_generation())
        self.nodes[ROOT] = root
        self._own(root)
        for path in profile.start:
            self.create(self.nodes[parent_of(path)], path, hidden)
        if profile.numbered:
            return
        everybody = Permissions(owner, 0, (Entry(DOMID_ANY, READ, None, anyone=True),))
        for name, perms in ((INTRODUCE_DOMAIN, hidden), (RELEASE_DOMAIN, everybody)):
            node = Node((name,), b"", perms, self.next_generation())
            self.special[name] = node
            self._own(node)

    def next_generation(self) -> int:
        self.generation += 1
        return self.generation

    def read(self, path: bytes) -> Node | None:
        node = self.nodes.get(path)
        if node is None and path[0] == SPECIAL:
            return self.special.get(path)
        return node

    def write(self, node: Node, value: bytes) -> None:
        node.value = value
        self.generation = node.generation = self.generation + 1
        if node.perms.owner.accounted:
            self._charge(node)

    def set_perms(self, node: Node, perms: Permissions) -> None:
        self._disown(node)
        node.perms = perms
        self.generation = node.generation = self.generation + 1
        self._own(node)

    def create(self, parent: Node, path: bytes, perms: Permissions) -> Node:
        """A new node without a value under a parent that exists."""
        return self.plant(parent, path, perms, b"")

    def plant(self, parent: Node, path: bytes, perms: Permissions, value: bytes) -> Node:
        """A new node under a parent that exists; a value is written after that."""
        generation = self.generation + 2
        node = Node((path, *parent.lineage), value, perms, generation - 1)
        self.nodes[path] = node
        parent.add_name(path[path.rfind(b"/") + 1 :])
        parent.generation = generation
        if parent.perms.owner.accounted:
            self._charge(parent)
        if value:
            generation += 1
            node.generation = generation
        self.generation = generation
        owner = perms.owner
        owner.nodes += 1
        if owner.accounted:
            owner.owned[path] = None
            self._charge(node)
        return node

    def plant_all(self, base: bytes, pairs: Sequence[tuple[bytes, bytes]]) -> int:
        """A privileged WRITE of each (path, value) right below `base`, where all are new.

        How many; ends before the first that needs the long way.
        """
        nodes = self.nodes
        parent = nodes.get(base)
        if parent is None or base == ROOT:
            return 0
        watches = self.watches
        lineage, perms, owner = parent.lineage, parent.perms, parent.perms.owner
        start = len(base) + 1
        done = 0
        for path, value in pairs:
            name = path[start:]
            if path in nodes or not name or name.translate(None, LEGAL_NAME):
                break
            # The node is made, its parent changes, then a value is written.
            generation = self.generation + 1
            node = nodes[path] = Node((path, *lineage), value, perms, generation)
            parent.add_name(name)
            parent.generation = generation = generation + 1
            if value:
                node.generation = generation = generation + 1
            self.generation = generation
            owner.nodes += 1
            if owner.accounted:
                owner.owned[path] = None
                self._charge(node)
            if watches.by_path:
                watches.fire(self, node.lineage, node, SUBTREE, None)
            done += 1
        if done and owner.accounted:
            self._charge(parent)
        return done

    def remove(self, node: Node) -> None:
        """Drops one node, whose descendants are gone; its parent still lists it."""
        del self.nodes[node.lineage[0]]
        self._disown(node)

    def unlink(self, parent: Node, name: bytes) -> None:
        """Takes a removed node from its parent's list."""
        parent.remove_name(name)
        self.generation = parent.generation = self.generation + 1
        if parent.perms.owner.accounted:
            self._charge(parent)

    def install(self, node: Node) -> None:
        """Puts a transaction's copy in the place of whatever has its path."""
        path = node.lineage[0]
        nodes = self.special if path[0] == SPECIAL else self.nodes
        old = nodes.get(path)
        if old is not None:
            self._disown(old)
        node.charged = 0
        nodes[path] = node
        self.generation = node.generation = self.generation + 1
        self._own(node)

    def add(self, node: Node) -> None:
        """Puts a node in that a transaction made, whose path nothing has."""
        path = node.lineage[0]
        node.charged = 0
        self.nodes[path] = node
        self.generation = node.generation = self.generation + 1
        owner = node.perms.owner
        owner.nodes += 1
        if owner.accounted:
            owner.owned[path] = None
            self._charge(node)

    def put(self, path: bytes, node: Node | None) -> None:
        """Makes `node`, a copy, what is at `path`; None removes what is there, if anything is.

        Parents are not linked: theirs are copies of their own.
        """
        if node is not None:
            self.install(node)
            return
        old = self.read(path)
        if old is not None:
            self.remove(old)

    def rebuild(self) -> None:
        """From now on each node is another one to whoever remembers it."""

    def fire(self, node: Node, match: int = SUBTREE, old: Permissions | None = None) -> None:
        """Queues the events of a change to `node`, whose permissions were `old` before."""
        if self.watches.by_path:
            self.watches.fire(self, node.lineage, node, match, old)

    def fire_removal(self, node: Node) -> bool:
        """Queues all events of a removal before it is done; False if each node has its own."""
        watches = self.watches
        if not isinstance(watches, OxWatchIndex):
            return False
        watches.fire_removal(node.lineage, self.read)
        return True

    def _own(self, node: Node) -> None:
        owner = node.perms.owner
        owner.nodes += 1
        if owner.accounted:
            owner.owned[node.lineage[0]] = None
            self._charge(node)

    def _disown(self, node: Node) -> None:
        owner = node.perms.owner
        owner.nodes -= 1
        if owner.accounted:
            del owner.owned[node.lineage[0]]
            owner.release(node.charged)
            node.charged = 0

    def _charge(self, node: Node) -> None:
        """Memory quota of the owner: the node's size and the length of its path."""
        # `Node.size`, spelt out: every change of a guest's node comes by here.
        perms = node.perms
        count = 1
        for entry in perms.entries:
            domain = entry.domain
            if domain is None or not domain.dead:
                count += 1
        charge = (
            HEADER_SIZE
            + PERMISSION_SIZE * count
            + len(node.value)
            + node.names_size
            + len(node.lineage[0])
        )
        owner = perms.owner
        owner.memory += charge - node.charged
        node.charged = charge
        if owner.stalled:
            owner.release(0)
