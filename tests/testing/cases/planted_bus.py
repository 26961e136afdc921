"""Changes of our own store, hypervisor and bus that the cases of their suites must notice.

Not a test module. None of them is a defect of the zoo. A row: what is changed, and which cases
fail of it. PROFILE rows switch one rule of xenstored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xenpv.abi._kernel import lib
from xenpv.abi.xenbus import XenbusState as State
from xenpv.back import blkback, netback
from xenpv.back import xenbus as back_xenbus
from xenpv.back.store import BackStore
from xenpv.back.xenbus import BackendBus, Device
from xenpv.bus import evtchn_2l, evtchn_channels, gnttab, handshake
from xenpv.bus.gnttab import GnttabInterface
from xenpv.bus.handshake import Handshake
from xenpv.errors import HypercallError, StoreError
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
from xenpv.vif import features
from xenpv.xen import evtchn, gnttab_op, hypercall
from xenpv.xen.domain import Domain
from xenpv.xen.evtchn import EventChannels
from xenpv.xen.evtchn_port import PortState, PortTable
from xenpv.xen.gnttab import GrantTable
from xenpv.xen.guest_access import GuestMemory
from xenpv.xen.maptrack import Maptrack
from xenpv.xen.poll import Pollers
from xenpv.xen.virq import VirqClass

Change = tuple[Any, str, Callable[[Any], Any]]  # whose attribute, its name, the new one of the old

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


def swallow(*errors: object) -> Callable[[Any], Any]:
    """Refusals of these names are taken for success."""

    def make(original: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return original(*arguments, **named)
            except (HypercallError, StoreError) as error:
                if error.name in errors:
                    return 0
                raise

        return call

    return make


def nothing(_original: Any) -> Any:
    """It does nothing, whatever it is given."""
    return lambda *_arguments, **_named: None


def always(value: Any) -> Callable[[Any], Any]:
    """It answers the same always."""
    return lambda _original: lambda *_arguments, **_named: value


def answers(old: int, new: int) -> Callable[[Any], Any]:
    """One answer is another."""

    def make(original: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            found = original(*arguments, **named)
            return new if found == old else found

        return call

    return make


def statuses(new: Callable[[int], int]) -> Callable[[Any], Any]:
    """Of a batch: each status is another."""

    def make(original: Any) -> Any:
        def call(table: Any, ops: Any, count: int) -> Any:
            done = original(table, ops, count)
            for index in range(count):
                ops[index].status = new(ops[index].status)
            return done

        return call

    return make


# xenstored


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

# event channels


def _busy_ports(_original: Any) -> Any:
    def lowest_free(table: Any) -> int:
        used = [one.number for one in table.list if one.handle is not None]
        return min(number for number in range(1, table._fresh + 1) if number not in used)

    return lowest_free


def _peer_keeps(original: Any) -> Any:
    """The other end of a port that was closed stays as it was."""

    def close(channels: Any, channel: Any) -> None:
        far = None
        if channel.state is PortState.INTERDOMAIN and channel.remote is not None:
            far = channel.remote.evtchn.ports[channel.remote_port]
            kept = (far.state, far.remote, far.remote_port)
        original(channels, channel)
        if far is not None:
            far.state, far.remote, far.remote_port = kept

    return close


def _anybody_binds(original: Any) -> Any:
    def bind(channels: Any, domid: int, port: int) -> int:
        remote = channels.domain.find(domid)
        if remote is not None:
            far = remote.evtchn._find(port)
            if far is not None and far.state is PortState.UNBOUND:
                far.remote_domid = channels.domain.domid
        return int(original(channels, domid, port))

    return bind


def _again(original: Any) -> Any:
    """XSA-343: a reset does not know of another."""

    def reset(channels: Any, dom: int) -> None:
        channels._resetting = False
        original(channels, dom)

    return reset


def _shrinks(original: Any) -> Any:
    """XSA-338: what is valid ends with the ABI."""

    def reset(channels: Any, dom: int) -> None:
        original(channels, dom)
        del channels.ports[4096:]

    return reset


def _zeros(original: Any) -> Any:
    """What cannot be read is zeros."""

    def read(memory: Any, address: int, size: int) -> bytes:
        try:
            return bytes(original(memory, address, size))
        except HypercallError:
            return bytes(size)

    return read


def _saves_nothing(_original: Any) -> Any:
    def expand(channels: Any, gfn: int) -> None:
        channels.domain.check(lib.fifo_expand_array(channels.domain.kernel, gfn))

    return expand


def _no_priority(original: Any) -> Any:
    def set_priority(channels: Any, port: int, _priority: int) -> None:
        original(channels, port, 7)

    return set_priority


def _before_send(act: Callable[[Any, int], None]) -> Any:
    """Before each event something is done at the far end: (its domain, port)."""

    def make(original: Any) -> Any:
        def send(channels: Any, port: int) -> None:
            near = channels.ports[port] if 0 <= port < len(channels.ports) else None
            if near is not None and near.remote is not None:
                act(near.remote, near.remote_port)
            original(channels, port)

        return send

    return make


def _acknowledges(domain: Any, port: int) -> None:
    lib.evtchn_clear_pending(domain.kernel, port)


def _refuses_twice(domain: Any, port: int) -> None:
    if lib.evtchn_is_pending(domain.kernel, port) == 1:
        raise HypercallError(22, "it is pending")


def _masks(domain: Any, port: int) -> None:
    lib.evtchn_mask(domain.kernel, port)


def _unmasks(domain: Any, port: int) -> None:
    lib.evtchn_guest_unmask(domain.kernel, port)


def _called_twice(original: Any) -> Any:
    def opened(bus: Any, domid: int, callback: Any, **how: Any) -> Any:
        def twice() -> None:
            callback()
            callback()

        return original(bus, domid, twice, **how)

    return opened


def _stranger(original: Any) -> Any:
    """A scan ends at a port that nobody opened."""

    def upcall(processor: Any) -> None:
        port = evtchn_2l.upcall_take(processor.handle)
        channel = processor._channels.get(port)
        if channel is not None:
            processor._drain(channel)

    del original
    return upcall


EVTCHN: list[tuple[str, list[Change], str]] = [
    ("linked ports are given out", [(PortTable, "lowest_free", _busy_ports)], "EVT-040"),
    ("a new channel is not pending", [(EventChannels, "_raise", nothing)], "EVT-002 EVT-010"),
    ("the peer of a closed port keeps it", [(EventChannels, "_close", _peer_keeps)], "EVT-017 EVT-020"),
    ("a closed port is an unbound one to all", [(EventChannels, "bind_interdomain", _anybody_binds)], "EVT-007 EVT-008"),
    ("send never fails", [(EventChannels, "send", swallow("EINVAL"))], "EVT-005 EVT-006"),
    ("close never fails", [(EventChannels, "close", swallow("EINVAL"))], "EVT-005 EVT-037"),
    ("unmask never fails", [(EventChannels, "unmask", swallow("EINVAL"))], "EVT-005"),
    ("bind_vcpu does nothing", [(EventChannels, "bind_vcpu", nothing)], "EVT-005 EVT-011"),
    ("one port more than there are", [(EventChannels, "limit", lambda old: property(lambda self: old.fget(self) + 1))], "EVT-012 EVT-014"),
    ("poll of any port", [(Pollers, "poll", swallow("EINVAL"))], "EVT-005 EVT-013"),
    ("resets do not know of each other", [(EventChannels, "_reset", _again)], "EVT-015"),
    ("a reset that was raced is done", [(EventChannels, "reset", swallow("EAGAIN"))], "EVT-038"),
    ("a reset shortens the ports", [(EventChannels, "_reset", _shrinks)], "EVT-037"),
    ("every domain controls every other", [(Domain, "controls", always(True))], "EVT-016"),
    ("the dead keep their ports", [(EventChannels, "close_all", nothing)], "EVT-030 EVT-041"),
    ("bad pointers read as zeros", [(GuestMemory, "read", _zeros)], "EVT-018"),
    ("unmask does nothing", [(EventChannels, "unmask", nothing)], "EVT-004 EVT-042"),
    ("an event acknowledges the one before", [(EventChannels, "send", _before_send(_acknowledges))], "EVT-003 EVT-021"),
    ("an event that stands is refused", [(EventChannels, "send", _before_send(_refuses_twice))], "EVT-019 EVT-039"),
    ("an event masks", [(EventChannels, "send", _before_send(_masks))], "EVT-014 EVT-019"),
    ("IPIs are vcpu 0's", [(EventChannels, "bind_ipi", lambda old: lambda channels, vcpu: old(channels, 0))], "EVT-032"),
    ("an event unmasks", [(EventChannels, "send", _before_send(_unmasks))], "EVT-004 EVT-021"),
    ("vcpus are not looked at", [(EventChannels, "_has_vcpu", always(True))], "EVT-009 EVT-011"),
    ("every VIRQ is the machine's", [(evtchn, "CLASS_OF", lambda old: dict.fromkeys(old, VirqClass.GLOBAL))], "EVT-001 EVT-009"),
    ("a guest's callbacks run twice", [(evtchn_channels.EvtchnChannels, "open_unbound", _called_twice)], "EVT-050 EVT-054"),
    ("a guest's scan ends at a stranger's port", [(evtchn_2l.Processor2L, "upcall", _stranger)], "EVT-051 EVT-054"),
    ("a guest's channels never mask themselves", [(evtchn_channels.EvtchnChannels, "open_unbound", lambda old: lambda bus, domid, run, *, mask=False: old(bus, domid, run))], "EVT-053"),
    ("every event has priority 7", [(EventChannels, "set_priority", _no_priority)], "EVT-031"),
    ("control blocks lie anywhere", [(EventChannels, "init_control", swallow("EINVAL"))], "EVT-033"),
    ("saved events are lost", [(EventChannels, "expand_array", _saves_nothing)], "EVT-034"),
    ("arrays without end", [(EventChannels, "expand_array", swallow("ENOSPC"))], "EVT-035"),
    ("expand_array in either ABI", [(EventChannels, "expand_array", swallow("EOPNOTSUPP"))], "EVT-033 EVT-036"),
    ("a guest hears of closed channels", [(evtchn_channels.EvtchnChannels, "close", nothing)], "EVT-052"),
    ("a guest's unmask tells nothing", [(evtchn_channels.EvtchnChannels, "unmask", always(False))], "EVT-050 EVT-051"),
]  # fmt: skip

# grants


def _positive(original: Any) -> Any:
    """XSA-316: +1 for what failed."""

    def status(table: Any, op: Any, vcpu: int) -> int:
        found = int(original(table, op, vcpu))
        return 1 if found == -1 else found

    return status


def _same_handle(original: Any) -> Any:
    """XSA-228: the last handle is given out again."""
    last: dict[int, Any] = {}

    def take(track: Any, vcpu: int) -> Any:
        if id(track) in last and len(track.entries) == 3:
            return last[id(track)]
        last[id(track)] = original(track, vcpu)
        return last[id(track)]

    return take


def _last_status(original: Any) -> Any:
    """XSA-318: statuses of the first operations are not written."""

    def copy(table: Any, ops: Any, count: int) -> Any:
        before = [ops[index].status for index in range(count)]
        done = original(table, ops, count)
        for index in range(count - 1):
            ops[index].status = before[index]
        return done

    return copy


def _one_more(original: Any) -> Any:
    def copy(table: Any, ops: Any, count: int) -> Any:
        for index in range(count):
            if 0 < ops[index].len < 4096 and ops[index].dest.offset + ops[index].len < 4096:
                ops[index].len += 1
        return original(table, ops, count)

    return copy


def _early(original: Any) -> Any:
    def copy(table: Any, ops: Any, count: int) -> Any:
        for index in range(count):
            ops[index].dest.offset = max(ops[index].dest.offset, 1) - 1
        return original(table, ops, count)

    return copy


def _not_transitive(original: Any) -> Any:
    def copy(table: Any, ops: Any, count: int) -> Any:
        table.allow_transitive = False
        return original(table, ops, count)

    return copy


def _status_okay(original: Any) -> Any:
    def operation(table: Any, op: Any) -> None:
        original(table, op)
        op.status = 0

    return operation


def _forgets_readonly(original: Any) -> Any:
    def permit(bus: Any, domid: int, pfn: int, *, readonly: bool = False) -> Any:
        del readonly
        return original(bus, domid, pfn, readonly=False)

    return permit


def _revokes_by_force(original: Any) -> Any:
    def revoke(bus: Any, ref: int) -> bool:
        original(bus, ref)
        lib.grant_entry_set(bus.domain.kernel, ref, 0, 0, 0)
        return True

    return revoke


def _forgets_handles(original: Any) -> Any:
    def unmap(table: Any, handle: int, *rest: Any) -> int:
        found = int(original(table, handle, *rest))
        return 0 if found == -4 else found

    return unmap


GRANT: list[tuple[str, list[Change], str]] = [
    ("unmap of any handle", [(gnttab_op, "_unmap", _forgets_handles)], "GNT-006 GNT-017"),
    ("unmap of any address", [(gnttab_op, "_unmap", answers(-1, 0))], "GNT-006"),
    ("pins are kept", [(gnttab_op, "_unpin", nothing)], "GNT-001 GNT-004"),
    ("a failed map is +1", [(gnttab_op, "_map", _positive)], "GNT-003 GNT-008"),
    ("bad references are general errors", [(gnttab_op, "_map", answers(-3, -1))], "GNT-003 GNT-007"),
    ("bad pages are general errors", [(gnttab_op, "_map", answers(-9, -1))], "GNT-002 GNT-020"),
    ("no space is a general error", [(gnttab_op, "_map", answers(-13, -1))], "GNT-010"),
    ("a handle is given out twice", [(Maptrack, "take", _same_handle)], "GNT-005"),
    ("the dead keep their maps", [(gnttab_op, "release_maps", nothing)], "GNT-010 GNT-018"),
    ("a dead granter is held for ever", [(Domain, "unpinned", nothing)], "GNT-005 GNT-017"),
    ("versions change under maps", [(gnttab_op, "_errno", answers(16, 0))], "GNT-011 GNT-012"),
    ("version switches are never late", [(gnttab_op, "_errno", answers(11, 0))], "GNT-038"),
    ("tables of others are one's own", [(Domain, "controls", always(True))], "GNT-016"),
    ("statuses of a batch are the last one's", [(gnttab_op, "copy", _last_status)], "GNT-033 GNT-039"),
    ("copies reach over a page's end", [(gnttab_op, "copy", statuses(lambda old: 0 if old == -10 else old))], "GNT-031"),
    ("copies of what was not granted", [(gnttab_op, "copy", statuses(lambda old: 0 if old == -1 else old))], "GNT-009 GNT-032"),
    ("a stranger's frame is a general error", [(gnttab_op, "copy", statuses(lambda old: -1 if old == -8 else old))], "GNT-032"),
    ("operations that are none succeed", [(hypercall.HYPERCALLS, 20, lambda old: (answers(-38, 0)(old[0]), old[1]))], "GNT-015"),
    ("any count of operations", [(hypercall.HYPERCALLS, 20, lambda old: (answers(-22, 0)(old[0]), old[1]))], "GNT-015"),
    ("bad pointers succeed", [(hypercall.HYPERCALLS, 20, lambda old: (swallow("EFAULT")(old[0]), old[1]))], "GNT-015"),
    ("status frames without end", [(gnttab_op._SINGLE, 9, _status_okay)], "GNT-013"),
    ("tables without end", [(gnttab_op._SINGLE, 2, _status_okay)], "GNT-016"),
    ("a swap never fails", [(gnttab_op._EACH, 11, _status_okay)], "GNT-014"),
    ("a swap does nothing", [(gnttab_op._EACH, 11, lambda _: lambda table, op: setattr(op, "status", 0))], "GNT-014"),
    ("a transfer never fails", [(gnttab_op._EACH, 4, _status_okay)], "GNT-019"),
    ("a byte too many is copied", [(gnttab_op, "copy", _one_more)], "GNT-034 GNT-039"),
    ("copies land a byte early", [(gnttab_op, "copy", _early)], "GNT-030 GNT-037"),
    ("no transitive grants", [(gnttab_op, "copy", _not_transitive)], "GNT-035 GNT-036"),
    ("a guest gives what it grants read-only", [(GnttabInterface, "permit_foreign_access", _forgets_readonly)], "GNT-051"),
    ("a guest revokes by force", [(GnttabInterface, "revoke_foreign_access", _revokes_by_force)], "GNT-050 GNT-053"),
    ("a guest uses Xen's references", [(gnttab, "RESERVED_REFS", lambda _: 8)], "GNT-052"),
]  # fmt: skip

# xenbus


def _keeps_ports(original: Any) -> Any:
    """A backend's port is not closed with its device."""

    def close(channels: Any, port: int) -> None:
        if channels.domain.domid:
            original(channels, port)

    return close


def _keeps_maps(original: Any) -> Any:
    def unmap(table: Any, handle: int, pfn: int, **how: Any) -> None:
        if table.domain.domid:
            original(table, handle, pfn, **how)

    return unmap


def _states_as(change: Callable[[State, State], State | None]) -> Callable[[Any], Any]:
    """(what it was, what it is to be): the state that is written, None for none."""

    def make(original: Any) -> Any:
        def switch_state(device: Any, state: State) -> Any:
            found = change(device.state, state)
            return None if found is None else original(device, found)

        return switch_state

    return make


def _connects_always(original: Any) -> Any:
    """Whatever went wrong, it says Connected."""

    def fatal(device: Any, why: str) -> None:
        original(device, why)
        device.switch_state(State.CONNECTED)

    return fatal


def _default(value: int) -> Callable[[Any], Any]:
    return lambda _original: lambda text, _default: int(text) if (text or "").isdecimal() else value


def _raises(_original: Any) -> Any:
    def state_of(text: str | None) -> State:
        return State.UNKNOWN if text is None else State(int(text))

    return state_of


BACK: list[tuple[str, list[Change], str]] = [
    ("ports are kept", [(EventChannels, "close", _keeps_ports)], "BUSB-012 BUSB-021"),
    ("maps are kept", [(GrantTable, "unmap", _keeps_maps)], "BUSB-015 BUSB-021"),
    ("no InitWait", [(Device, "switch_state", _states_as(lambda old, new: None if new is State.INIT_WAIT else new))], "BUSB-001 BUSB-006 BUSB-007 BUSB-016"),
    ("InitWait once", [(Device, "switch_state", _states_as(lambda old, new: None if new is State.INIT_WAIT and old is State.CLOSED else new))], "BUSB-004 BUSB-005 BUSB-019"),
    ("no Closed", [(Device, "switch_state", _states_as(lambda old, new: None if new is State.CLOSED else new))], "BUSB-014 BUSB-020"),
    ("Closing is Closed", [(Device, "switch_state", _states_as(lambda old, new: State.CLOSED if new is State.CLOSING else new))], "BUSB-002 BUSB-003"),
    ("a failed device says Connected", [(Device, "fatal", _connects_always)], "BUSB-008 BUSB-009 BUSB-010 BUSB-011"),
    ("a failed device says InitWait", [(Device, "fatal", lambda old: lambda device, why: device.switch_state(State.INIT_WAIT))], "BUSB-018"),
    ("no number is 8", [(back_xenbus, "number_of", _default(8))], "BUSB-012 BUSB-015"),
    ("a directory that goes is not noticed", [(BackendBus, "_remove", nothing)], "BUSB-013 BUSB-017 BUSB-021"),
    ("a state that is none is unheard", [(Device, "_frontend", lambda old: lambda device, path: old(device, path) if (device.frontend_get("state") or "x").isdecimal() else None)], "BUSB-012"),
    ("netback keeps what it has at Closed", [(netback.Netback, "_disconnect", nothing)], "BUSB-015 BUSB-021"),
    ("blkback keeps what it has at Closed", [(blkback.Blkback, "_disconnect", nothing)], "BUSB-015 BUSB-021"),
    ("the toolstack's state is overwritten", [(BackStore, "exists", always(False))], "BUSB-012 BUSB-015"),
]  # fmt: skip


def _never_sees(*states: State) -> Callable[[Any], Any]:
    def make(original: Any) -> Any:
        def look(walk: Any) -> Any:
            seen = original(walk)
            return State.INITIALISING if seen in states else seen

        return look

    return make


def _answers_late(original: Any) -> Any:
    """The keys are written when the state is."""

    def switch_state(walk: Any, state: State) -> bool:
        if state in (State.INITIALISED, State.CONNECTED):
            walk.store.write(f"{walk.path}/ring-ref", "0")
            walk.store.write(f"{walk.path}/tx-ring-ref", "0")
        return bool(original(walk, state))

    return switch_state


def _dies(original: Any) -> Any:
    del original
    return lambda walk: walk.domain.sched.shutdown(3)


def _offline_is_connected(original: Any) -> Any:
    def go_offline(walk: Any, goal: Any, seen: Any) -> None:
        original(walk, goal, seen)
        walk.switch_state(State.CONNECTED)

    return go_offline


FRONT: list[tuple[str, list[Change], str]] = [
    ("states are not written", [(Handshake, "switch_state", always(True))], "BUSF-002 BUSF-007 BUSF-008 BUSF-010 BUSF-015"),
    ("InitWait is not seen", [(Handshake, "look", _never_sees(State.INIT_WAIT))], "BUSF-002 BUSF-007"),
    ("Closing is not seen", [(Handshake, "look", _never_sees(State.CLOSING))], "BUSF-002 BUSF-007"),
    ("keys are wrong", [(Handshake, "switch_state", _answers_late)], "BUSF-001 BUSF-005 BUSF-011 BUSF-012 BUSF-013 BUSF-014 BUSF-017"),
    ("a state that is none raises", [(handshake, "parse_state", lambda old: lambda text: State(int(text)))], "BUSF-004 BUSF-005"),
    ("a number of queues is read with int", [(features, "_queues", lambda _: int)], "BUSF-016"),
    ("after 120 s of waiting the guest dies", [(Handshake, "_repeat", _dies)], "BUSF-003"),
    ("who has no backend is Connected", [(Handshake, "_go_offline", _offline_is_connected)], "BUSF-009"),
    ("grants are not revoked", [(GnttabInterface, "revoke_foreign_access", always(True))], "BUSF-006"),
]  # fmt: skip
