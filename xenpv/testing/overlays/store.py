"""xenstored under hostile clients: two of the socket, two guests, messages as bytes.

Clients send well-formed requests over a few paths, in transactions and outside, with headers and
payloads changed, in pieces; guests die and come back. Every request gets its one reply, in order,
and a tree that is kept beside the server's has the same paths and values whenever all is quiet.
What the server counts for its quotas is what is there.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Final

import attrs

from xenpv.abi.xs import XS
from xenpv.store.connection import Connection
from xenpv.store.server import Xenstored
from xenpv.testing.checkers import CheckFailed
from xenpv.testing.overlay import Target
from xenpv.testing.overlays.language import Language, Operation, pick

HEADER: Final = struct.Struct("<4I")  # type, req_id, tx_id, len
PAYLOAD_MAX: Final = 4096
ERRORS: Final = frozenset(
    b"EINVAL EACCES EEXIST EISDIR ENOENT ENOMEM ENOSPC EIO ENOTEMPTY ENOSYS EROFS EBUSY EAGAIN "
    b"EISCONN E2BIG EPERM".split()
)
# What requests are, weighted; CONTROL is left out, since it may change the server's settings.
TYPES: Final = (
    XS.READ, XS.WRITE, XS.WRITE, XS.MKDIR, XS.RM, XS.DIRECTORY, XS.WATCH, XS.TRANSACTION_START,
    XS.TRANSACTION_END, XS.SET_PERMS, XS.GET_PERMS, XS.WRITE, XS.READ, XS.UNWATCH,
    XS.DIRECTORY_PART, XS.RESET_WATCHES, XS.TRANSACTION_END, XS.TRANSACTION_START,
    XS.GET_DOMAIN_PATH,
    XS.IS_DOMAIN_INTRODUCED, XS.GET_FEATURE, 15, 20, 27, 0xFFFF, XS.WATCH, XS.RM, XS.WRITE,
)  # fmt: skip
PATHS: Final = (
    b"/a", b"/a/b", b"/a/b/c", b"/a/d", b"/local/domain/1/data", b"/local/domain/2/data", b"data",
    b"data/x", b"/local/domain/1", b"/", b"@releaseDomain", b"@introduceDomain", b"/a/", b"//a",
    b"", b"../a", b"/a b", b"/" + b"x" * 2100, b"a/b/c/d/e", b"/local",
)  # fmt: skip
PERMS: Final = (
    b"n0",
    b"r1",
    b"b1",
    b"w2",
    b"n1",
    b"b0\0r1",
    b"n1\0b2",
    b"r65535",
    b"x1",
    b"n9",
    b"",
)
GUESTS: Final = (1, 2)
CLIENTS: Final = 4  # the last two are the guests


@attrs.define(eq=False)
class Asked:
    """A request that waits for its reply."""

    kind: int
    req_id: int
    tx_id: int
    payload: bytes


@attrs.define(eq=False)
class Client:
    """`sent` are bytes that are no whole message yet; `open` its transactions, each with what
    it did that has to be done when it is committed.
    """

    connection: Connection
    home: bytes
    domid: int
    sent: bytes = b""
    received: bytes = b""
    dead: bool = False
    asked: deque[Asked] = attrs.Factory(deque)
    open: dict[int, list[Asked]] = attrs.Factory(dict)
    tokens: dict[bytes, None] = attrs.Factory(dict)

    def absolute(self, path: bytes) -> bytes:
        return path if path[:1] in (b"/", b"@") else self.home + b"/" + path


class StoreOverlay:
    """One example. `tree` has the paths and values that there should be."""

    def __init__(self) -> None:
        self.server = Xenstored()
        self.tree = self._dump()
        self.clients = [self._client(0), self._client(0), *map(self._client, GUESTS)]
        self.number = 0
        for domid in GUESTS:
            home = b"/local/domain/%d" % domid
            self._send(self.clients[0], XS.WRITE, home + b"\0", 0)
            self._send(self.clients[0], XS.SET_PERMS, home + b"\0n%d\0" % domid, 0)

    def _client(self, domid: int) -> Client:
        server = self.server
        connection = server.introduce(domid, 1) if domid else server.connect_socket("overlay")
        # One that broke its ring stays frozen when it is introduced again.
        dead = connection.fatal is not None
        return Client(connection, b"/local/domain/%d" % domid, domid, dead=dead)

    def _dump(self) -> dict[bytes, bytes]:
        return {one.path: one.value for one in self.server.dump()}

    # operations

    def request(self, args: bytes) -> None:
        """A well-formed request of a client, in one of its transactions or in none."""
        who, kind, path, value, tx = args
        client = self.clients[who % CLIENTS]
        which = int(pick(TYPES, kind))
        tx_id = 0
        if tx & 1 and client.open:
            tx_id = pick([*client.open], tx >> 1)
        elif tx > 0xF0:
            tx_id = tx
        self._send(client, which, self._payload(which, path, value), tx_id)

    def _payload(self, kind: int, path: int, value: int) -> bytes:
        where = pick(PATHS, path)
        if kind == XS.WRITE:
            return where + b"\0" + bytes([value]) * (value % 9 if value < 0xF8 else 2040)
        if kind in (XS.WATCH, XS.UNWATCH):
            return where + b"\0token%d\0" % (value & 3) + (b"1\0" if value & 0x40 else b"")
        if kind == XS.TRANSACTION_END:
            return b"T\0" if value & 3 else pick((b"F\0", b"F", b"X\0", b""), value >> 2)
        if kind == XS.SET_PERMS:
            return where + b"\0" + pick(PERMS, value) + b"\0"
        if kind == XS.DIRECTORY_PART:
            return where + b"\0%d\0" % (value & 0x1F)
        if kind in (XS.GET_DOMAIN_PATH, XS.IS_DOMAIN_INTRODUCED):
            return b"%d\0" % value
        if kind in (XS.TRANSACTION_START, XS.RESET_WATCHES):
            return b"\0"
        return b"" if kind == XS.GET_FEATURE else where + b"\0"

    def _send(self, client: Client, kind: int, payload: bytes, tx_id: int) -> None:
        self.number += 1
        self._feed(client, HEADER.pack(kind, self.number, tx_id, len(payload)) + payload)

    def raw(self, args: bytes) -> None:
        """A message whose header and payload are bytes; a length of any size."""
        who, kind, req_id, tx_id, length, high, *data = args
        size = length % 12 if high < 0xF0 else length | (high & 0x1F) << 8
        payload = bytes(data)[:size].ljust(min(size, PAYLOAD_MAX), b"/")
        if kind in (0, int(XS.SET_QUOTA)):  # settings of the server
            kind = 29
        self._feed(self.clients[who % CLIENTS], HEADER.pack(kind, req_id, tx_id, size) + payload)

    def pieces(self, args: bytes) -> None:
        """A write in two pieces, with another client's request in between."""
        who, cut, path, value = args
        client = self.clients[who % CLIENTS]
        payload = pick(PATHS, path) + b"\0" + bytes([value]) * 4
        message = HEADER.pack(XS.WRITE, 7, 0, len(payload)) + payload
        at = cut % len(message)
        self._feed(client, message[:at])
        self._send(self.clients[(who + 1) % CLIENTS], XS.READ, pick(PATHS, value) + b"\0", 0)
        self._feed(client, message[at:])

    def life(self, args: bytes) -> None:
        """A guest dies, shuts down, or is introduced once more, as itself or as another."""
        who, what = args
        at = CLIENTS - len(GUESTS) + who % len(GUESTS)
        client = self.clients[at]
        server, domid = self.server, client.domid
        if what & 3 == 0:
            server.domain_shutdown(domid)
        elif what & 3 == 1:
            server.domain_died(domid)
            self.clients[at] = self._client(domid)
        elif what & 3 == 2:
            self.clients[at] = self._client(domid)
        else:
            server.introduce(domid, 2 + what)  # another domain of that number
            self.clients[at] = self._client(domid)
        self.tree = self._dump()  # its nodes are gone

    def hang_up(self, args: bytes) -> None:
        """A client of the socket goes, and another comes."""
        at = args[0] % 2
        self.server.disconnect(self.clients[at].connection)
        self.clients[at] = self._client(0)

    # what must hold

    def _feed(self, client: Client, data: bytes) -> None:
        """Bytes of a client; what it gets for them."""
        if client.dead:
            return
        client.sent += data
        while len(client.sent) >= HEADER.size:
            kind, req_id, tx_id, size = HEADER.unpack_from(client.sent)
            if size > PAYLOAD_MAX:
                client.dead = True  # the server hangs up, or freezes the ring
                break
            end = HEADER.size + size
            if len(client.sent) < end:
                break
            client.asked.append(Asked(kind, req_id, tx_id, client.sent[HEADER.size : end]))
            client.sent = client.sent[end:]
        client.connection.feed(data)
        if client.dead:
            client.asked.clear()
            client.connection.take_output(1 << 20)
            return
        for one in self.clients:
            self._hear(one)
        if client.asked:
            raise CheckFailed([f"no reply to {client.asked[0]}"])

    def _hear(self, client: Client) -> None:
        """What came for a client: events, and replies in the order of its requests."""
        while True:
            data = client.connection.take_output(1 << 16)
            if not data:
                break
            client.received += data
        while client.received:
            kind, req_id, tx_id, size = HEADER.unpack_from(client.received)
            payload = client.received[HEADER.size : HEADER.size + size]
            client.received = client.received[HEADER.size + size :]
            if size > PAYLOAD_MAX or len(payload) != size:
                raise CheckFailed([f"a message of type {kind} with {len(payload)} of {size} bytes"])
            if kind == XS.WATCH_EVENT:
                self._event(client, payload)
                continue
            if not client.asked:
                raise CheckFailed([f"a reply of type {kind} that nobody waits for"])
            asked = client.asked.popleft()
            if (req_id, tx_id) != (asked.req_id, asked.tx_id) or kind not in (asked.kind, XS.ERROR):
                raise CheckFailed([f"{asked} is answered {(kind, req_id, tx_id)}"])
            if kind == XS.ERROR and asked.kind != XS.ERROR:
                self._refused(client, asked, payload)
            else:
                self._done(client, asked, payload)

    def _event(self, client: Client, payload: bytes) -> None:
        parts = payload.split(b"\0")
        if len(parts) != 3 or parts[2] or parts[1] not in client.tokens:
            raise CheckFailed([f"an event {payload!r}, of no watch"])

    def _refused(self, client: Client, asked: Asked, payload: bytes) -> None:
        name = payload[:-1]
        if payload[-1:] != b"\0" or name not in ERRORS:
            raise CheckFailed([f"{asked} is refused with {payload!r}"])
        if asked.kind == XS.TRANSACTION_END and name != b"EINVAL":
            client.open.pop(asked.tx_id, None)
        path = client.absolute(asked.payload[:-1])
        if asked.kind == XS.READ and not asked.tx_id and not client.domid and path in self.tree:
            raise CheckFailed([f"{asked} is refused with {name!r}, and it is there"])

    def _done(self, client: Client, asked: Asked, payload: bytes) -> None:
        kind, tx_id = asked.kind, asked.tx_id
        if kind == XS.TRANSACTION_START:
            client.open[int(payload[:-1])] = []
        elif kind == XS.TRANSACTION_END:
            done = client.open.pop(tx_id)
            for one in done if asked.payload == b"T\0" else ():
                self._apply(client, one)
        elif kind == XS.RESET_WATCHES:
            client.open.clear()
        elif kind == XS.WATCH:
            client.tokens[asked.payload.split(b"\0")[1]] = None
        elif kind == XS.READ and not tx_id:
            path = client.absolute(asked.payload[:-1])
            if path != b"/" and self.tree.get(path, b"") != payload:
                raise CheckFailed([f"{path!r} reads {payload!r}, expected {self.tree.get(path)!r}"])
        elif kind in (XS.WRITE, XS.MKDIR, XS.RM):
            if tx_id:
                client.open[tx_id].append(asked)
            else:
                self._apply(client, asked)

    def _apply(self, client: Client, asked: Asked) -> None:
        """A change of the tree."""
        name, _, value = asked.payload.partition(b"\0")
        path, tree = client.absolute(name), self.tree
        if asked.kind == XS.RM:
            for one in [one for one in tree if one == path or one.startswith(path + b"/")]:
                del tree[one]
            return
        if path == b"/":
            return
        parts = path.split(b"/")
        for end in range(2, len(parts)):
            tree.setdefault(b"/".join(parts[:end]), b"")
        if asked.kind == XS.WRITE:
            tree[path] = value
        else:
            tree.setdefault(path, b"")

    def end(self) -> None:
        """The tree is as it should be, and so is what is counted."""
        found = []
        tree = self._dump()
        if tree != self.tree:
            gone = sorted(set(self.tree) - set(tree))[:3]
            more = sorted(set(tree) - set(self.tree))[:3]
            other = [path for path in tree if self.tree.get(path, tree[path]) != tree[path]][:3]
            found.append(f"the tree lacks {gone}, has {more} beside, and differs at {other}")
        server = self.server
        for path in server.nodes:
            if path != b"/" and not path.startswith(b"@"):
                parent = server.nodes.get(path.rpartition(b"/")[0] or b"/")
                if parent is None or path.rpartition(b"/")[2] not in parent.children:
                    found.append(f"{path!r} is no child of its parent")
        for client in self.clients:
            domain, connection = client.connection.domain, client.connection
            if client.domid and domain.watches != len(connection.watches):
                found.append(f"d{client.domid}: {domain.watches} watches are counted")
            if not client.dead and len(connection.transactions) != len(client.open):
                found.append(f"d{client.domid}: {len(connection.transactions)} transactions")
            if client.domid and domain.outstanding:
                found.append(f"d{client.domid}: {domain.outstanding} requests are outstanding")
        if found:
            raise CheckFailed(found)


LANGUAGE: Final = Language(
    Operation("request", ("who", "type", "path", "value", "tx"), StoreOverlay.request, 12),
    Operation(
        "raw",
        ("who", "type", "req", "tx", "length", "high", "b0", "b1", "b2", "b3", "b4", "b5"),
        StoreOverlay.raw,
        2,
    ),
    Operation("pieces", ("who", "cut", "path", "value"), StoreOverlay.pieces),
    Operation("life", ("who", "what"), StoreOverlay.life),
    Operation("hang_up", ("who",), StoreOverlay.hang_up),
)


def run(data: bytes) -> None:
    """One example. Raises CheckFailed, or what escaped."""
    overlay = StoreOverlay()
    try:
        for operation, args in LANGUAGE.read(data):
            operation.act(overlay, args)
        overlay.end()
    finally:
        overlay.server.close()


TARGET: Final = Target("store", run, LANGUAGE.split, LANGUAGE.words)
