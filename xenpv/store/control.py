"""CONTROL: what an administrator asks of a running xenstored (xenstored's control.c).

The commands that mean something in a model are here: `check`, `log`, `logfile`, `memreport`,
`print`, `quota`, `quota-soft`, `help`. `live-update` answers EINVAL as an unknown command does:
a store file (`xenpv store --dump` and `--load`) is this one's way to live on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import attrs

from xenpv.errors import StoreError
from xenpv.store import quota
from xenpv.store.domain import COUNTED
from xenpv.store.permission import Permissions
from xenpv.store.wire import OK, atoi, strings

if TYPE_CHECKING:
    from xenpv.store.connection import Connection
    from xenpv.store.domain import Domain
    from xenpv.store.server import Xenstored
    from xenpv.store.transaction import Transaction
    from xenpv.store.tree import Tree

# Trace switches, and which of them are on at the start (core.c: trace_switches).
SWITCHES: Final[dict[str, bool]] = {
    "obj": True,
    "io": True,
    "wrl": True,
    "acc": False,
    "tdb": False,
}

# What each hard quota limits, as `quota` prints it, in xenstored's order.
HARD_QUOTAS: Final[dict[str, str]] = {
    "nodes": "nodes of a domain",
    "watches": "watches of a domain",
    "outstanding": "requests of a domain without their answer",
    "memory": "bytes of a domain, refused above",
    "transactions": "open transactions of a domain",
    "transaction-nodes": "nodes that a transaction may touch",
    "node-permissions": "permissions of a node",
    "path-max": "bytes of a path",
    "node-size": "bytes of a node",
}
SOFT_QUOTAS: Final[dict[str, str]] = {"soft-memory": "bytes of a domain, reported above"}


class Files(Protocol):
    """Where the daemon may write: a log and reports. The model itself has no files."""

    def append(self, name: str, text: str) -> None:
        """Add to a file of the host. Raises OSError."""


@attrs.define(eq=False)
class Administration:
    """What CONTROL changes: the log, and the file that it goes to ("" is none)."""

    switches: dict[str, bool] = attrs.Factory(lambda: dict(SWITCHES))
    logging: bool = False
    log_file: str = ""
    files: Files | None = None

    def write(self, name: str, text: str) -> None:
        """Raises StoreError EINVAL where nothing can be written (EBADF is not on the wire)."""
        if self.files is None or not name:
            raise StoreError("EINVAL", "there is no file to write to")
        try:
            self.files.append(name, text)
        except OSError as error:
            raise StoreError("EINVAL", f"{name}: {error.strerror}") from error


def control(server: Xenstored, _conn: Connection, _tx: Transaction | None, payload: bytes) -> bytes:
    """CONTROL: a command and its arguments. Raises StoreError EINVAL."""
    words = [text.decode("latin-1") for text in strings(payload)]
    if not words or words[0] not in COMMANDS:
        raise StoreError("EINVAL", f"command {words[:1]}")
    answer = COMMANDS[words[0]][0](server, words[1:])
    return OK if answer is None else answer.encode("latin-1") + b"\0"


def _refuse(words: list[str]) -> StoreError:
    return StoreError("EINVAL", f"arguments {words}")


def _check(server: Xenstored, words: list[str]) -> None:
    """`check`: the tree against itself; what is wrong goes to the log, the answer is OK."""
    if words:
        raise _refuse(words)
    faults = inconsistencies(server)
    admin = server.administration
    if faults and admin.log_file:
        admin.write(admin.log_file, "".join(f"check: {fault}\n" for fault in faults))


def inconsistencies(server: Xenstored) -> list[str]:
    """Where parents, children and the counts of owners disagree; none in a sound store."""
    tree = server.tree
    faults = []
    owned: dict[int, int] = {}
    for path, node in tree.nodes.items():
        owned[node.perms.owner.domid] = owned.get(node.perms.owner.domid, 0) + 1
        if path != b"/":
            parent = tree.nodes.get(node.lineage[1])
            name = path.rpartition(b"/")[2]
            if parent is None or name not in parent.children:
                faults.append(f"{path.decode()} is not a child of its parent")
        faults += [
            f"{path.decode()} lists {name.decode()}, which is not there"
            for name in node.children
            if node.child_path(name) not in tree.nodes
        ]
    for node in tree.special.values():
        owned[node.perms.owner.domid] = owned.get(node.perms.owner.domid, 0) + 1
    faults += [
        f"domain {domain.domid} owns {owned.get(domain.domid, 0)} nodes, {domain.nodes} are counted"
        for domain in server.known.values()
        if owned.get(domain.domid, 0) != domain.nodes
    ]
    return faults


def _log(server: Xenstored, words: list[str]) -> str | None:
    admin = server.administration
    if not words:
        lines = [f"{name:<8}: {'on' if on else 'off'}\n" for name, on in admin.switches.items()]
        return "Log switch settings:\n" + "".join(lines)
    if len(words) > 1:
        raise _refuse(words)
    word = words[0]
    if word in ("on", "off"):
        admin.logging = word == "on"
    elif word[:1] in ("+", "-") and word[1:] in admin.switches:
        admin.switches[word[1:]] = word[0] == "+"
    else:
        raise _refuse(words)
    return None


def _logfile(server: Xenstored, words: list[str]) -> None:
    if len(words) != 1 or not words[0]:
        raise _refuse(words)
    server.administration.log_file = words[0]
    server.administration.logging = True


def _memreport(server: Xenstored, words: list[str]) -> None:
    if len(words) > 1:
        raise _refuse(words)
    admin = server.administration
    admin.write(words[0] if words else admin.log_file, memory_report(server))


def memory_report(server: Xenstored) -> str:
    """What the store holds, one line per kind: counts and bytes of values and names."""
    tree: Tree = server.tree
    perms: dict[int, Permissions] = {id(node.perms): node.perms for node in tree.nodes.values()}
    connections = server.connections.values()
    rows = (
        ("nodes", len(tree.nodes) + len(tree.special), sum(n.size for n in tree.nodes.values())),
        ("permissions", len(perms), sum(8 * one.count for one in perms.values())),
        ("watches", sum(len(conn.watches) for conn in connections), 0),
        ("transactions", sum(len(conn.transactions) for conn in connections), 0),
        ("messages", sum(conn.backlog for conn in connections), 0),
        ("connections", len(server.connections), 0),
        ("domains", len(server.known), sum(one.memory for one in server.known.values())),
    )
    return "".join(f"{name:<13} {count:>9} {size:>12} bytes\n" for name, count, size in rows)


def _print(server: Xenstored, words: list[str]) -> None:
    if len(words) != 1:
        raise _refuse(words)
    admin = server.administration
    if admin.log_file and admin.files is not None:
        admin.write(admin.log_file, f"control: {words[0]}\n")


def _quota(server: Xenstored, words: list[str]) -> str | None:
    if not words:
        return _settings(server, HARD_QUOTAS)
    if words[0] == "set":
        _set(server, words[1:], HARD_QUOTAS)
        return None
    if words[0] == "max":
        if words[1:] not in ([], ["-r"]):
            raise _refuse(words)
        if len(words) == 2:
            server.forget_maxima()
        return "Max. seen accounting values:\n" + "".join(
            f"{name:<17}: {server.seen_max(name):>8}\n" for name in COUNTED
        )
    if len(words) != 1:
        raise _refuse(words)
    domain = server.known.get(atoi(words[0].encode("latin-1")))
    if domain is None:
        raise StoreError("ENOENT", f"domain {words[0]}")
    return _counts(domain)


def _counts(domain: Domain) -> str:
    lines = [f"Domain {domain.domid}:\n"]
    for name in COUNTED:
        now = getattr(domain, name)
        lines.append(f"{name:<17}: {now:>8} (max {domain.seen_max(name):>8})\n")
    return "".join(lines)


def _quota_soft(server: Xenstored, words: list[str]) -> str | None:
    if not words:
        return _settings(server, SOFT_QUOTAS)
    if words[0] != "set":
        raise _refuse(words)
    _set(server, words[1:], SOFT_QUOTAS)
    return None


def _settings(server: Xenstored, quotas: dict[str, str]) -> str:
    lines = [
        f"{name.removeprefix('soft-'):<17}: "
        f"{getattr(server.limits, quota.NAMES[name.encode()]):>8} {what}\n"
        for name, what in quotas.items()
    ]
    return "Quota settings:\n" + "".join(lines)


def _set(server: Xenstored, words: list[str], quotas: dict[str, str]) -> None:
    """A global value, which new domains get; those that are known keep theirs."""
    if len(words) != 2:
        raise _refuse(words)
    name = f"soft-{words[0]}" if quotas is SOFT_QUOTAS else words[0]
    value = atoi(words[1].encode("latin-1"))
    if name not in quotas or value < 1:
        raise _refuse(words)
    setattr(server.limits, quota.NAMES[name.encode()], value)


def _help(_server: Xenstored, words: list[str]) -> str:
    if words:
        raise _refuse(words)
    return "".join(f"{name:<15} {usage}\n" for name, (_, usage) in COMMANDS.items())


COMMANDS: Final[dict[str, tuple[Callable[[Xenstored, list[str]], str | None], str]]] = {
    "check": (_check, ""),
    "log": (_log, "[on|off|+<switch>|-<switch>]"),
    "logfile": (_logfile, "<file>"),
    "memreport": (_memreport, "[<file>]"),
    "print": (_print, "<string>"),
    "quota": (_quota, "[set <name> <val>|<domid>|max [-r]]"),
    "quota-soft": (_quota_soft, "[set <name> <val>]"),
    "help": (_help, ""),
}
