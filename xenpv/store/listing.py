"""The tree as text, in the form of `xenstore-ls -fp`, for reports and files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from xenpv.store.path import ROOT

if TYPE_CHECKING:
    from xenpv.store.tree import Tree

_ESCAPES: Final = {0x09: "\\t", 0x0A: "\\n", 0x0D: "\\r", 0x5C: "\\\\"}


def _escaped(byte: int) -> str:
    if byte in _ESCAPES:
        return _ESCAPES[byte]
    if 0x20 <= byte < 0x7F:
        return chr(byte)
    return f"\\{byte:03o}" if byte < 8 else f"\\x{byte:02x}"


_ESCAPED: Final = tuple(_escaped(byte) for byte in range(256))


@attrs.frozen
class Listed:
    """One node of a dump; `perms` are texts like b"r1", the owner's first."""

    path: bytes
    value: bytes
    perms: tuple[bytes, ...]


def dump(tree: Tree, root: bytes = ROOT) -> list[Listed]:
    """All nodes below `root`, parents first, children in their order; `root` if it has any.

    Empty if there is no such node.
    """
    listed = []
    paths = [root]
    while paths:
        node = tree.nodes.get(paths.pop())
        if node is None:
            break
        if node.path != root:
            listed.append(Listed(node.path, node.value, tuple(node.perms.texts())))
        paths += [node.child_path(name) for name in reversed(node.children)]
    return listed


def ls_fp(tree: Tree, root: bytes = ROOT) -> str:
    """What `xenstore-ls -fp ROOT` prints: `path = "value"   (n0,r1)`, a line per node."""
    lines = [
        f'{node.path.decode()} = "{"".join([_ESCAPED[byte] for byte in node.value])}"   '
        f"({b','.join(node.perms).decode()})\n"
        for node in dump(tree, root)
    ]
    return "".join(lines)
