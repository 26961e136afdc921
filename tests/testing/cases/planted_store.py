"""Changes of xenstored that cases of the suite "store" notice. Not a test module.

A PROFILES row switches one rule of the profile "c".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.testing.cases.planted import Change, always, nothing
from xenpv.errors import StoreError
from xenpv.store import connection, lifecycle, request
from xenpv.store import path as store_path
from xenpv.store import watch as store_watch
from xenpv.store.connection import Connection
from xenpv.store.domain import Domain as StoreDomain
from xenpv.store.outbox import Outbox
from xenpv.store.permission import Permissions
from xenpv.store.profile import Isolation, Throttle
from xenpv.store.ring import StoreRing
from xenpv.store.server import Xenstored
from xenpv.store.transaction import Transaction
from xenpv.store.tree import Tree
from xenpv.store.watch import WatchIndex

# one switch of the profile "c": the cases that fail
PROFILES: list[tuple[dict[str, Any], str]] = [
    ({"event_first": False}, "STORE-041"),
    ({"sorted_children": True}, "STORE-006 STORE-014"),
    ({"hides_absence": False}, "STORE-066"),
    ({"creator_owns": False}, "STORE-065"),
    ({"missing_rm": False}, "STORE-012"),
    ({"release_unknown": "EINVAL"}, "STORE-018"),
    ({"introduce_again": "EINVAL"}, "STORE-073 STORE-074"),
    ({"throttle": Throttle.NONE}, "STORE-087"),
    ({"coalesces": False}, "STORE-086"),
    ({"watch_rights": False}, "STORE-049 STORE-061 STORE-076"),
    ({"clamps_length": True}, "STORE-005 STORE-082"),
    ({"isolation": Isolation.MERGE}, "STORE-030"),
    ({"isolation": Isolation.ANY_CHANGE}, "STORE-027 STORE-029"),
    ({"long_replies": True}, "STORE-006"),
    ({"features": 15}, "STORE-089"),
    ({"quotas": {"path_max": 4000}}, "STORE-072"),
    ({"quotas": {"nodes": 100}}, "STORE-069 STORE-070"),
    ({"quotas": {"nodes": 0}}, "STORE-071"),
    ({"renamed": {"EAGAIN": "EBUSY"}}, "STORE-024 STORE-027"),
    ({"renamed": {"EEXIST": "EINVAL"}}, "STORE-042"),
    ({"give_away": "EINVAL"}, "STORE-063"),
]


def _loses_oversize(original: Any) -> Any:
    def send_event(outbox: Any, path: bytes, token: bytes, watch: Any = None) -> None:
        if len(path) + len(token) + 2 > 4096:
            token = token[:8]
        original(outbox, path, token, watch)

    return send_event


def _without_check(_original: Any) -> Any:
    return lambda transaction: transaction.apply()


def _half_of_it(original: Any) -> Any:
    def check(transaction: Any) -> None:
        try:
            original(transaction)
        except StoreError:
            transaction.apply()
            raise

    return check


def _without_prefix(original: Any) -> Any:
    def add(index: Any, conn: Any, path: bytes, token: bytes, _prefix: int, depth: int) -> Any:
        return original(index, conn, path, token, 0, depth)

    return add


def _below_by_letters(original: Any) -> Any:
    """/ab lies below /a."""

    def fire(index: Any, tree: Any, lineage: Any, node: Any, match: int, old: Any) -> None:
        original(index, tree, lineage, node, match, old)
        for path, watches in list(index.by_path.items()):
            if lineage[0].startswith(path) and lineage[0] != path and path not in lineage:
                for one in watches:
                    one.connection.send_event(lineage[0], one.token)

    return fire


def _reversed_watches(original: Any) -> Any:
    def fire(index: Any, tree: Any, lineage: Any, node: Any, match: int, old: Any) -> None:
        for watches in index.by_path.values():
            for one in watches:
                one.order = -abs(one.order)
        original(index, tree, lineage, node, match, old)

    return fire


def _keeps_bad_ring(_original: Any) -> Any:
    """A broken ring is drained and served on."""

    def freeze(ring: Any, error: int) -> None:
        del error
        cons = ring.domain.load32(ring.pfn, 2048)
        ring.domain.store32(ring.pfn, 2052, cons)
        ring.connection.fatal = None
        ring.connection.partial = b""

    return freeze


def _silent_freeze(original: Any) -> Any:
    def freeze(ring: Any, error: int) -> None:
        ring._tells_errors = False
        original(ring, error)

    return freeze


def _releases_at_once(original: Any) -> Any:
    """A domain whose ring is broken is as good as dead."""

    def freeze(ring: Any, error: int) -> None:
        original(ring, error)
        ring.daemon.server.domain_died(ring.domid)

    return freeze


def _keeps_counts(original: Any) -> Any:
    used: dict[int, int] = {}

    def made(domain: Any, domid: int, *arguments: Any, **named: Any) -> None:
        original(domain, domid, *arguments, **named)
        domain.transactions = used.get(domid, 0)
        used[domid] = 8

    return made


def _shallow(_original: Any) -> Any:
    """Only the node itself is removed of a dead domain's, when nothing is below it."""

    def remove_owned(server: Any, domain: Any) -> None:
        for path in list(domain.owned):
            node = server.tree.nodes.get(path)
            if node is not None and not node.children:
                request.remove(server.tree, server.tree.nodes[node.lineage[1]], node)

    return remove_owned


def _any_characters(original: Any) -> Any:
    def check(text: bytes, path: bytes, *, special: bool) -> None:
        original(text.translate(None, b" !\xff\n%"), path, special=special)

    return check


def _stutters(original: Any) -> Any:
    """A reply in a batch comes twice."""

    def answer(conn: Any, op: int, req_id: int, tx_id: int, payload: bytes) -> None:
        original(conn, op, req_id, tx_id, payload)
        if req_id == 3:
            original(conn, op, req_id, tx_id, payload)

    return answer


def _forgets_req_id(original: Any) -> Any:
    def answer(conn: Any, op: int, req_id: int, tx_id: int, payload: bytes) -> None:
        original(conn, op, req_id & 0xFFFF, tx_id, payload)

    return answer


def request_as(change: Callable[[Any, int, int, bytes], tuple[int, int, bytes]]) -> Any:
    """Every request of the wire is another: (connection, type, tx, payload)."""

    def make(original: Any) -> Any:
        def answer(conn: Any, op: int, req_id: int, tx_id: int, payload: bytes) -> None:
            op, tx_id, payload = change(conn, op, tx_id, payload)
            original(conn, op, req_id, tx_id, payload)

        return answer

    return make


def only(*ops: int) -> Callable[[Callable[[bytes], bytes]], Any]:
    """Payloads of these types are changed."""

    def of(change: Callable[[bytes], bytes]) -> Any:
        return request_as(
            lambda _conn, op, tx, payload: (op, tx, change(payload) if op in ops else payload)
        )

    return of


def _cut_at_nul(payload: bytes) -> bytes:
    path, _, value = payload.partition(b"\0")
    return path + b"\0" + value.split(b"\0")[0]


def _unknown_is_none(conn: Any, op: int, tx: int, payload: bytes) -> tuple[int, int, bytes]:
    return op, tx if tx in conn.transactions or tx > 99 else 0, payload


def _without_slash(payload: bytes) -> bytes:
    path, _, rest = payload.partition(b"\0")
    return (path.rstrip(b"/") or path) + b"\0" + rest


def _may_all(conn: Any, op: int, tx: int, payload: bytes) -> tuple[int, int, bytes]:
    conn.handlers = conn.server._open[True]
    return op, tx, payload


def _commits(original: Any) -> Any:
    """A client that hangs up commits what it had begun."""

    def drop(server: Any, conn: Any) -> None:
        for transaction in conn.transactions.values():
            transaction.commit()
        original(server, conn)

    return drop


def _stops_at_closed(original: Any) -> Any:
    def fire(index: Any, tree: Any, lineage: Any, node: Any, match: int, old: Any) -> None:
        hits = [one for path in lineage for one in index.by_path.get(path, ())]
        if not any(one.connection.closed for one in hits):
            original(index, tree, lineage, node, match, old)

    return fire


def _same_as_before(original: Any) -> Any:
    """Events are dropped also if an equal one was sent long ago."""
    sent: list[tuple[Any, bytes, bytes]] = []

    def send_event(outbox: Any, path: bytes, token: bytes, watch: Any = None) -> None:
        if (outbox, path, token) not in sent:
            sent.append((outbox, path, token))
            original(outbox, path, token, watch)

    return send_event


def _parents_too(original: Any) -> Any:
    """A change fires at the parent as well."""

    def fire(index: Any, tree: Any, lineage: Any, node: Any, match: int, old: Any) -> None:
        if len(lineage) > 3:
            original(index, tree, lineage[1:], tree.nodes.get(lineage[1]), match, old)
        original(index, tree, lineage, node, match, old)

    return fire


def _whole_only(original: Any) -> Any:
    """A request that does not come whole is lost."""

    def feed(conn: Any, data: bytes) -> None:
        original(conn, data)
        conn.partial = b""

    return feed


def _loses_rest(original: Any) -> Any:
    """What the ring has no room for is lost."""

    def write(ring: Any) -> None:
        original(ring)
        ring.connection.output.clear()
        ring.connection._taken = 0

    return write


def _open_root(original: Any) -> Any:
    def populate(tree: Any, owner: Any, profile: Any) -> None:
        original(tree, owner, profile)
        root = tree.nodes[b"/"]
        root.perms = type(root.perms)(root.perms.owner, 3)

    return populate


def _denied_target(original: Any) -> Any:
    def mask(perms: Any, conn: Any) -> int:
        held, conn.domain.target = conn.domain.target, None
        try:
            return int(original(perms, conn))
        finally:
            conn.domain.target = held

    return mask


def _numbers_alone(original: Any) -> Any:
    """XSA-322: an entry is for whoever has the number now."""

    def mask(perms: Any, conn: Any) -> int:
        found = int(original(perms, conn))
        for entry in perms.entries:
            if entry.domid == conn.domid:
                return int(entry.mask)
        return found

    return mask


def _everything_open(original: Any) -> Any:
    return lambda perms, conn: int(original(perms, conn)) | 3


def _keeps_memory(_original: Any) -> Any:
    return lambda domain, size: None


STORE: list[tuple[str, list[Change], str]] = [
    ("an oversize event is cut to fit", [(Outbox, "send_event", _loses_oversize)], "STORE-050"),
    ("commits are not checked", [(Transaction, "commit", _without_check)], "STORE-024 STORE-027"),
    (
        "a commit that conflicts is applied all the same",
        [(Transaction, "check", _half_of_it)],
        "STORE-022 STORE-023 STORE-028",
    ),
    (
        "watches report absolute paths",
        [(WatchIndex, "add", _without_prefix)],
        "STORE-047 STORE-089",
    ),
    ("names are compared by letters", [(WatchIndex, "fire", _below_by_letters)], "STORE-043"),
    (
        "the youngest watch hears first",
        [(WatchIndex, "fire", _reversed_watches)],
        "STORE-046 STORE-048",
    ),
    (
        "a bad ring is drained and served",
        [(StoreRing, "_freeze", _keeps_bad_ring)],
        "STORE-080 STORE-081",
    ),
    (
        "a bad ring gets no error field",
        [(StoreRing, "_freeze", _silent_freeze)],
        "STORE-080 STORE-081",
    ),
    ("a bad ring is a release", [(StoreRing, "_freeze", _releases_at_once)], "STORE-080 STORE-081"),
    ("counts outlive a domid", [(StoreDomain, "__init__", _keeps_counts)], "STORE-070"),
    (
        "leaves alone are removed of the dead",
        [(lifecycle, "remove_owned", _shallow)],
        "STORE-067 STORE-070",
    ),
    (
        "nothing is removed of the dead",
        [(lifecycle, "remove_owned", nothing)],
        "STORE-067 STORE-083",
    ),
    ("no @releaseDomain", [(lifecycle, "fire_special", nothing)], "STORE-073 STORE-083"),
    ("the alphabet of paths is larger", [(store_path, "_check", _any_characters)], "STORE-010"),
    ("paths are not measured", [(store_path, "counted_length", always(0))], "STORE-072"),
    ("a reply comes twice", [(Connection, "answer", _stutters)], "STORE-002 STORE-090"),
    ("ids have 16 bits", [(Connection, "answer", _forgets_req_id)], "STORE-001"),
    (
        "replies may be as long as they are",
        [(connection, "PAYLOAD_MAX", lambda _: 1 << 20)],
        "STORE-005 STORE-006",
    ),
    (
        "types wrap",
        [
            (
                Connection,
                "answer",
                request_as(lambda _, op, tx, data: (op & 31 if op != 27 else 2, tx, data)),
            )
        ],
        "STORE-004",
    ),
    (
        "what follows a NUL is ignored",
        [
            (
                Connection,
                "answer",
                only(1, 2, 3, 7, 10, 12, 13)(lambda data: data.split(b"\0")[0] + b"\0"),
            )
        ],
        "STORE-007",
    ),
    (
        "slashes at the end are ignored",
        [(Connection, "answer", only(2, 4, 11, 12)(_without_slash))],
        "STORE-011 STORE-044",
    ),
    ("values end at a NUL", [(Connection, "answer", only(11)(_cut_at_nul))], "STORE-013"),
    (
        "permissions end at the first that is none",
        [(Connection, "answer", only(14)(lambda data: data.split(b"\0")[0] + b"\0n0\0"))],
        "STORE-015 STORE-063",
    ),
    (
        "domids are read with atoi",
        [
            (
                Connection,
                "answer",
                only(9, 10, 17)(lambda data: b"%d\0" % (int(data[:5].strip(b"x \0-") or 0))),
            )
        ],
        "STORE-007 STORE-017",
    ),
    (
        "paths have 1,000 bytes",
        [
            (
                Connection,
                "answer",
                only(11)(lambda data: data[:1000] + b"\0" if len(data) > 2000 else data),
            )
        ],
        "STORE-016 STORE-068",
    ),
    (
        "the transaction of somebody else is none",
        [(Connection, "answer", request_as(_unknown_is_none))],
        "STORE-026",
    ),
    (
        "an end that is none is an abort",
        [
            (
                Connection,
                "answer",
                only(7)(lambda data: data if data in (b"T\0", b"F\0") else b"F\0"),
            )
        ],
        "STORE-025",
    ),
    (
        "an abort is a commit",
        [(Connection, "answer", only(7)(lambda data: b"T\0"))],
        "STORE-021 STORE-025",
    ),
    (
        "writes are never in a transaction",
        [
            (
                Connection,
                "answer",
                request_as(lambda _, op, tx, data: (op, 0 if op == 11 else tx, data)),
            )
        ],
        "STORE-020 STORE-021",
    ),
    (
        "a depth is ignored",
        [(Connection, "answer", only(4)(lambda data: b"\0".join(data.split(b"\0")[:2]) + b"\0"))],
        "STORE-051 STORE-052",
    ),
    (
        "a token may be missing",
        [
            (
                Connection,
                "answer",
                only(4)(lambda data: data + b"t\0" if data.count(b"\0") == 1 else data),
            )
        ],
        "STORE-052",
    ),
    (
        "an event that was sent once is known",
        [(Outbox, "send_event", _same_as_before)],
        "STORE-041 STORE-044",
    ),
    ("parents hear of themselves", [(WatchIndex, "fire", _parents_too)], "STORE-043 STORE-045"),
    ("no first event", [(Outbox, "_send_first_event", nothing)], "STORE-040 STORE-047"),
    (
        "requests come whole or not at all",
        [(Connection, "feed", _whole_only)],
        "STORE-003 STORE-084",
    ),
    (
        "what the ring has no room for is lost",
        [(StoreRing, "_write", _loses_rest)],
        "STORE-084 STORE-088",
    ),
    ("everybody may write below the root", [(Tree, "populate", _open_root)], "STORE-061 STORE-064"),
    ("SET_TARGET gives nothing", [(Permissions, "mask", _denied_target)], "STORE-075"),
    ("entries are for numbers", [(Permissions, "mask", _numbers_alone)], "STORE-015 STORE-062"),
    (
        "everybody may read and write",
        [(Permissions, "mask", _everything_open)],
        "STORE-061 STORE-064",
    ),
    ("memory of replies is kept", [(StoreDomain, "release", _keeps_memory)], "STORE-085"),
    ("a client that goes commits", [(Xenstored, "drop", _commits)], "STORE-031"),
    (
        "events end at a client that has gone",
        [(connection, "drop_watches", nothing), (WatchIndex, "fire", _stops_at_closed)],
        "STORE-054 STORE-074",
    ),
    (
        "everybody may do what the toolstack may",
        [(Connection, "answer", request_as(_may_all))],
        "STORE-060 STORE-090",
    ),
    (
        "RESET_WATCHES takes nothing",
        [(store_watch, "drop_watches", nothing)],
        "STORE-032 STORE-053",
    ),
    ("a dead client's watches stay", [(connection, "drop_watches", nothing)], "STORE-074"),
]
