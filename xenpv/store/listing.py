"""The tree as text, in the form of `xenstore-ls -fp`: for reports, and for store files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.errors import ConfigError
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
    """One node of a dump; `perms` are texts like b"r1", the owner's first.

    `line` is where a text has it, from 1 on; 0 if it comes from a tree.
    """

    path: bytes
    value: bytes
    perms: tuple[bytes, ...]
    line: int = attrs.field(default=0, eq=False)


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


# The value is greedy: a quote in it stays bare, and nothing after the last one looks like
# permissions but the permissions.
_LINE: Final = re.compile(
    rb'(?P<path>/[A-Za-z0-9_@/-]*) = "(?P<value>.*)"'
    rb"(?:   \((?P<perms>[nrwb]\d+(?:,[nrwb]\d+)*)\))?\Z"
)
_ESCAPE: Final = re.compile(rb"\\(?:([tnr\\])|x([0-9a-f]{2})|([0-7]{3})|(.?))", re.DOTALL)
_ESCAPED_BYTES: Final = {b"t": b"\t", b"n": b"\n", b"r": b"\r", b"\\": b"\\"}
LINE_BYTES_MAX: Final = 4 * 4096 + 4096


def parse(text: bytes, file: str = "") -> Iterator[Listed]:
    """The nodes of a text that `ls_fp` or `xenstore-ls -f` (-p) printed, in its order.

    `perms` is empty where the line has none. Blank lines and those that begin with `#` are
    skipped. Raises ConfigError with the line of what is something else.
    """
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line.strip() or line.startswith(b"#"):
            continue
        found = _LINE.match(line) if len(line) <= LINE_BYTES_MAX else None
        if found is None:
            raise ConfigError(
                'expected: /path = "value"   (n0,r1)', file=file, line=number, column=1
            )
        perms = found["perms"]
        yield Listed(
            found["path"],
            _unescaped(found["value"], file, number, found.start("value")),
            tuple(perms.split(b",")) if perms else (),
            number,
        )


def _unescaped(value: bytes, file: str, line: int, start: int) -> bytes:
    def byte(escape: re.Match[bytes]) -> bytes:
        short, hexadecimal, octal, wrong = escape.groups()
        if short is not None:
            return _ESCAPED_BYTES[short]
        if wrong is not None or (octal is not None and int(octal, 8) > 0xFF):
            raise ConfigError(
                f"{escape[0].decode(errors='replace')!r} is no escape of xenstore-ls",
                file=file,
                line=line,
                column=start + escape.start() + 1,
            )
        return bytes((int(hexadecimal, 16) if hexadecimal is not None else int(octal, 8),))

    return _ESCAPE.sub(byte, value) if b"\\" in value else value
