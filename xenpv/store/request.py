"""Requests on nodes: READ, WRITE, MKDIR, RM, DIRECTORY, GET_PERMS, SET_PERMS.

A handler gets the server, the caller's connection, its transaction or None, and the payload;
it returns the payload of the reply and raises StoreError otherwise (xenstored's core.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpv.errors import StoreError
from xenpv.store import permission
from xenpv.store.node import HEADER_SIZE, PERMISSION_SIZE, Node
from xenpv.store.path import LEGAL, ROOT, canonicalise, parent_of
from xenpv.store.permission import OWNER, READ, WRITE
from xenpv.store.quota import breach
from xenpv.store.tree import Tree, View, subtree
from xenpv.store.watch import EXACT, SUBTREE
from xenpv.store.wire import OK, PAYLOAD_MAX, atoi, one_string, strings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xenpv.store.connection import Connection
    from xenpv.store.server import Xenstored
    from xenpv.store.transaction import Transaction

NUL: Final = 0
SURE: Final = 1024  # bytes; of a longer path or name the long way says whether it is too long


def locate(conn: Connection, view: View, path: bytes, need: int) -> Node | None:
    """The node at `path` if `conn` has all rights of `need` on it.

    None if there is none and the caller may know: the nearest ancestor grants it one of
    those rights. Raises StoreError EACCES otherwise, which also hides a node's absence.
    """
    node = view.read(path)
    if node is not None and (conn.privileged or node.perms.mask(conn) & need == need):
        return node
    above = parent_of(path)
    ancestor = view.read(above)
    while ancestor is None:
        path = above
        above = parent_of(path)
        ancestor = view.read(above)
    if node is None and ancestor.perms.mask(conn) & need:
        return None
    if node is None and need != WRITE and not conn.server.profile.hides_absence:
        return None
    raise StoreError("EACCES", f"no right to {path!r}")


def find(conn: Connection, view: View, path: bytes, need: int) -> Node:
    """The node at `path`. Raises StoreError ENOENT or EACCES."""
    node = locate(conn, view, path, need)
    if node is None:
        raise StoreError("ENOENT", f"{path!r}")
    return node


def _existing(server: Xenstored, conn: Connection, payload: bytes) -> Node | None:
    """The node that an unprivileged request outside transactions names by its only string.

    None where the long way has to say what is wrong, or that there is no such node.
    """
    if not payload or payload[-1] != NUL:
        return None
    # A path that names a node is well formed, and without its NUL has none.
    text = payload[:-1]
    node = server.nodes.get(text)
    if node is None:
        text = conn.home_prefix + text
        node = server.nodes.get(text)
    limit = conn.domain.limits.path_max
    return node if len(text) < limit or not limit else None


def read(server: Xenstored, conn: Connection, tx: Transaction | None, payload: bytes) -> bytes:
    if conn.privileged:
        node = _named(server, tx, payload)
        if node is not None:
            return node.value
    elif tx is None:
        node = _existing(server, conn, payload)
        if node is not None and node.perms.mask(conn) & READ:
            return node.value
    path = canonicalise(conn, one_string(payload))
    return find(conn, tx or server.tree, path, READ).value


def _named(server: Xenstored, tx: Transaction | None, payload: bytes) -> Node | None:
    """The same for a privileged request, also in a transaction."""
    if payload[-1:] != b"\0":
        return None
    path = payload[:-1]
    node = server.nodes.get(path)
    if tx is None or node is None:
        return node
    access = tx.accesses.get(path)
    return (access or tx.enter(path)).node


def directory(server: Xenstored, conn: Connection, tx: Transaction | None, payload: bytes) -> bytes:
    if conn.privileged:
        node = _named(server, tx, payload)
        if node is not None:
            return _names(server, node)
    elif tx is None:
        node = _existing(server, conn, payload)
        if node is not None and node.perms.mask(conn) & READ:
            return _names(server, node)
    path = canonicalise(conn, one_string(payload))
    return _names(server, find(conn, tx or server.tree, path, READ))


def _names(server: Xenstored, node: Node) -> bytes:
    names = node.children
    if not names:
        return b""
    return b"\0".join(sorted(names) if server.profile.sorted_children else names) + b"\0"


def directory_part(
    server: Xenstored, conn: Connection, tx: Transaction | None, payload: bytes
) -> bytes:
    """DIRECTORY_PART: the generation, then whole names from a byte offset, as many as fit.

    The last part ends with one NUL more.
    """
    parts = strings(payload)
    if len(parts) != 2:
        raise StoreError("EINVAL", f"{len(parts)} strings")
    node = find(conn, tx or server.tree, canonicalise(conn, parts[0]), READ)
    head = b"%d\0" % node.generation
    names = _names(server, node)
    offset = atoi(parts[1]) & 0xFFFFFFFF
    if offset >= len(names):
        return head + b"\0"
    room = PAYLOAD_MAX - len(head) - 1
    if len(names) - offset <= room:
        return head + names[offset:] + b"\0"
    # Up to a NUL that leaves its name shorter than the room that was left for it.
    end = names.rfind(b"\0", offset, offset + room) + 1
    return head + names[offset:end]


def write(server: Xenstored, conn: Connection, tx: Transaction | None, payload: bytes) -> bytes:
    text, nul, value = payload.partition(b"\0")
    if not nul:
        raise StoreError("EINVAL", "no NUL-terminated path")
    if tx is not None and not tx.plain:
        pass  # what the live tree has says nothing of this transaction
    elif not conn.privileged:
        path = text if text[:1] in (ROOT, b"@") else conn.home_prefix + text
        if path[:1] == ROOT and _write_own(server, conn, tx, path, value):
            return OK
    elif text[:1] == ROOT and (
        write_tree(server.tree, text, value) if tx is None else _write_copy(server, tx, text, value)
    ):
        return OK
    view = tx or server.tree
    path = canonicalise(conn, text)
    node = locate(conn, view, path, WRITE)
    if node is None:
        node = create(conn, tx, view, path, value)
    else:
        if not conn.privileged:
            admit(conn, tx, node, node.size + len(value) - len(node.value))
        view.write(node, value)
    view.fire(node)
    return OK


# The writes that matter, and how they end, in less than the long way takes. Each of these
# answers False, having changed nothing, where it is not sure: the long way then says why.


def is_absent(nodes: Mapping[bytes, Node], path: bytes) -> bool:
    """Whether a privileged READ of `path`, which no node has, answers ENOENT."""
    at = path.rfind(b"/")
    name = path[at + 1 :]
    return (
        1 < at < SURE
        and 0 < len(name) < SURE
        and path[:at] in nodes
        and not name.translate(None, LEGAL)
    )


def write_tree(tree: Tree, path: bytes, value: bytes) -> bool:
    """A privileged WRITE of a node that exists, or of a new one below a node that does."""
    nodes = tree.nodes
    node = nodes.get(path)
    if node is None:
        at = path.rfind(b"/")
        # Not right below the root: of "//a" too a parent would be found.
        parent = nodes.get(path[:at]) if 1 < at < SURE else None
        name = path[at + 1 :]
        if parent is None or not 0 < len(name) < SURE or name.translate(None, LEGAL):
            return False
        node = tree.plant(parent, path, parent.perms, value)
    else:
        tree.write(node, value)
    if tree.watches.by_path:
        tree.watches.fire(tree, node.lineage, node, SUBTREE, None)
    return True


def _write_copy(server: Xenstored, tx: Transaction, path: bytes, value: bytes) -> bool:
    """The same in a transaction, of what it has touched or below that; `path` begins with /."""
    accesses = tx.accesses
    access = accesses.get(path)
    if access is None and path in server.nodes:
        access = tx.enter(path)
    if access is not None:
        node = access.node
        if node is None:
            return False
        node.value = value
        tree = server.tree
        tree.generation = node.generation = tree.generation + 1
        access.modified = True
        access.match = SUBTREE
        return True
    at = path.rfind(b"/")
    name = path[at + 1 :]
    if not (1 < at < SURE and 0 < len(name) < SURE) or name.translate(None, LEGAL):
        return False
    above = accesses.get(path[:at])
    if above is None:
        if path[:at] not in server.nodes:
            return False
        # The node is looked for first, then its parent.
        tx.enter(path)
        above = tx.enter(path[:at])
    parent = above.node
    if parent is None:
        return False
    tx.plant(above, parent, path, value)
    return True


def _write_own(
    server: Xenstored, conn: Connection, tx: Transaction | None, path: bytes, value: bytes
) -> bool:
    """An unprivileged WRITE of a node of the caller's, or below one, far from every quota."""
    domain = conn.domain
    limits = domain.limits
    tree = server.tree
    if len(path) > SURE or 0 < limits.path_max <= len(path):
        return False
    access = None if tx is None else tx.accesses.get(path)
    node = tree.nodes.get(path) if tx is None else None if access is None else access.node
    if node is None:
        return _create_own(server, conn, tx, path, value)
    if node.perms.owner is not domain:
        return False
    size = node.size + len(value) - len(node.value)
    charged = node.charged if access is None else access.charged
    memory = domain.memory + size + len(path) - charged
    if 0 < limits.node_size <= size or 0 < limits.memory <= memory:
        return False
    if tx is None:
        tree.write(node, value)
        if tree.watches.by_path:
            tree.watches.fire(tree, node.lineage, node, SUBTREE, None)
    else:
        assert access is not None
        tx.write(node, value)
        access.match = SUBTREE
    return True


def _create_own(
    server: Xenstored, conn: Connection, tx: Transaction | None, path: bytes, value: bytes
) -> bool:
    domain = conn.domain
    limits = domain.limits
    tree = server.tree
    at = path.rfind(b"/")
    name = path[at + 1 :]
    if at <= 1 or path in tree.nodes or not name or name.translate(None, LEGAL):
        return False
    if tx is None:
        above = None
        parent = tree.nodes.get(path[:at])
    else:
        above = tx.accesses.get(path[:at])
        parent = None if above is None or path in tx.accesses else above.node
    if parent is None or parent.perms.owner is not domain:
        return False
    own = HEADER_SIZE + PERMISSION_SIZE * parent.perms.count + len(value)
    size = parent.size + len(name) + 1
    charged = parent.charged if above is None else above.charged
    memory = domain.memory + own + len(path) + size + at - charged
    if (
        0 < limits.nodes <= domain.nodes + 1
        or 0 < server.profile.nodes_total <= len(tree.nodes)
        or 0 < limits.node_size <= max(own, size)
        or 0 < limits.memory <= memory
    ):
        return False
    if tx is None:
        node = tree.plant(parent, path, parent.perms, value)
        if tree.watches.by_path:
            tree.watches.fire(tree, node.lineage, node, SUBTREE, None)
        return True
    if 0 < limits.transaction_nodes <= len(tx.accesses) + 1:
        return False
    assert above is not None
    tx.plant(above, parent, path, value)
    return True


def mkdir(server: Xenstored, conn: Connection, tx: Transaction | None, payload: bytes) -> bytes:
    path = canonicalise(conn, one_string(payload))
    view = tx or server.tree
    if locate(conn, view, path, WRITE) is None:
        view.fire(create(conn, tx, view, path, b""))
    return OK


def _oversized(conn: Connection, size: int) -> StoreError:
    name = conn.server.profile.breaches.get("node_size", "ENOSPC")
    return StoreError(name, f"node of {size} bytes")


def admit(conn: Connection, tx: Transaction | None, node: Node, size: int, more: int = 0) -> None:
    """Quotas on a node of an unprivileged caller that becomes `size` bytes large.

    `more` bytes of memory go to new nodes below it. Raises StoreError ENOSPC (node-size) or
    EIO (memory); a transaction is lost by it.
    """
    domain = conn.domain
    limits = domain.limits
    memory = domain.memory + more + size + len(node.path)
    if tx is not None:
        memory -= tx.accesses[node.path].charged
    elif node.perms.owner is domain:
        memory -= node.charged
    else:
        memory = 0  # somebody else pays
    if breach(limits.node_size, size):
        error = _oversized(conn, size)
    elif breach(limits.memory, memory):
        error = StoreError("EIO", "memory quota")
    else:
        return
    if tx is not None:
        tx.failed = True
    raise error


def create(conn: Connection, tx: Transaction | None, view: View, path: bytes, value: bytes) -> Node:
    """A node that does not exist, and its ancestors as needed. Raises StoreError."""
    missing = [path]
    above = parent_of(path)
    parent = view.read(above)
    while parent is None:
        missing.append(above)
        above = parent_of(above)
        parent = view.read(above)
    perms = parent.perms
    if not conn.privileged:
        if perms.owner is not conn.domain and conn.server.profile.creator_owns:
            perms = perms.with_owner(conn.domain)
        _admit_new(
            conn,
            tx,
            parent,
            missing,
            base=HEADER_SIZE + PERMISSION_SIZE * perms.count,
            value_size=len(value),
        )
    node = parent
    for level in reversed(missing):
        node = view.create(node, level, perms)
    if value:
        view.write(node, value)
    return node


def _admit_count(conn: Connection, tx: Transaction | None, parent: Node, new: int) -> None:
    """Quotas on the number of nodes, before `new` ones are made below `parent`.

    Raises StoreError ENOSPC.
    """
    profile = conn.server.profile
    domain = conn.domain
    if profile.creator_owns:
        nodes = domain.nodes
        full = breach(domain.limits.nodes, nodes + 1)
    else:  # the owner of what is above gets them, and the count is kept in a transaction too
        owner = parent.perms.owner
        nodes = owner.nodes + (0 if tx is None else tx.ownership.get(owner, 0))
        full = owner.accounted and breach(owner.limits.nodes, nodes + new)
        total = profile.nodes_total
        if total and not full:
            nodes = len(conn.server.nodes) + (0 if tx is None else sum(tx.ownership.values()))
            full = nodes + new > total
    if full:
        raise StoreError("ENOSPC", f"{nodes} nodes")


def _admit_new(
    conn: Connection,
    tx: Transaction | None,
    parent: Node,
    missing: list[bytes],
    *,
    base: int,
    value_size: int,
) -> None:
    """Quotas on new nodes, deepest first, before anything is changed (XSA-414).

    In xenstored each level is compared with the node count before the request, so a request
    that creates several may pass it. In a transaction that is the committed count; the rest
    is checked when it ends. `base` is the size of a new node without value and children.
    """
    domain = conn.domain
    limits = domain.limits
    _admit_count(conn, tx, parent, len(missing))
    size = base + value_size
    memory = domain.memory
    error = None
    for path in missing:
        memory += size + len(path)
        if breach(limits.node_size, size):
            error = _oversized(conn, size)
            break
        if breach(limits.memory, memory):
            error = StoreError("EIO", "memory quota")
            break
        size = base + len(path) - path.rfind(b"/")
    else:
        name_size = len(missing[-1]) - missing[-1].rfind(b"/")
        admit(conn, tx, parent, parent.size + name_size, memory - domain.memory)
    if error is not None:
        if tx is not None:
            tx.failed = True
        raise error


def rm(server: Xenstored, conn: Connection, tx: Transaction | None, payload: bytes) -> bytes:
    path = canonicalise(conn, one_string(payload))
    view = tx or server.tree
    profile = server.profile
    if profile.rm_checks_rights or view.read(path) is not None:
        node = locate(conn, view, path, WRITE)
    else:
        node = None
    parent = view.read(parent_of(path)) if path != ROOT else None
    if node is None:
        if parent is None or not profile.missing_rm:
            raise StoreError("ENOENT", f"{path!r}, or its parent too")
        return OK
    if path == ROOT and not profile.root_rm:
        raise StoreError("EINVAL", "the root stays")
    if path != ROOT and parent is None:
        raise StoreError("EINVAL", f"{path!r} without a parent")
    fired = view.fire_removal(node)
    if parent is not None:
        remove(view, parent, node, fired=fired)
    else:
        for name in list(node.children):
            child = view.read(node.child_path(name))
            if child is not None:
                remove(view, node, child, fired=fired)
    return OK


def remove(view: View, parent: Node, root: Node, *, fired: bool = False) -> None:
    """Removes `root` with all below it. Descendants fire watches on themselves alone.

    `fired`: all events are out already.

    A transaction's copies can be at odds, since each is made when it is first needed: a
    child that is listed and gone, or there and not listed. Such a transaction will end with
    EAGAIN; here it gets StoreError EIO.
    """
    nodes, complete = subtree(view, root)
    for node in nodes:
        view.remove(node)
        if not fired:
            view.fire(node, SUBTREE if node is root else EXACT)
    if complete:
        name = root.path.rpartition(b"/")[2]
        if name in parent.children:
            view.unlink(parent, name)
            return
    else:
        for node in nodes:
            above = view.read(node.lineage[1])
            if above is not None:
                view.unlink(above, node.path.rpartition(b"/")[2])
    raise StoreError("EIO", f"{root.path!r} is at odds with its parent or children")


def get_perms(server: Xenstored, conn: Connection, tx: Transaction | None, payload: bytes) -> bytes:
    path = canonicalise(conn, one_string(payload), special=True)
    node = find(conn, tx or server.tree, path, READ)
    return b"".join([text + b"\0" for text in node.perms.texts()])


def set_perms(server: Xenstored, conn: Connection, tx: Transaction | None, payload: bytes) -> bytes:
    text, *texts = strings(payload) or [b""]
    if not texts:
        raise StoreError("EINVAL", "no permission")
    if not conn.privileged and breach(conn.domain.limits.node_permissions, len(texts)):
        raise StoreError("ENOSPC", f"{len(texts)} permissions")
    perms = permission.resolve(server, conn, texts)
    path = canonicalise(conn, text, special=True)
    view = tx or server.tree
    node = find(conn, view, path, WRITE | OWNER)
    old = node.perms
    if not conn.privileged:
        if perms.owner is not old.owner:
            raise StoreError(
                server.profile.give_away, "only the privileged domain gives nodes away"
            )
        admit(conn, tx, node, node.size + PERMISSION_SIZE * (perms.count - old.count))
    view.set_perms(node, perms)
    view.fire(node, SUBTREE, old)
    return OK
