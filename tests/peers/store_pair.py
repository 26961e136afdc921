"""Random requests, and the same clients of our store and of a real daemon. Not a test module.

After each request every connection must have got the same messages, in order.
"""

from __future__ import annotations

import os
import random

from tests.peers.xenstored import Client, Message, RingClient, Running
from tests.store.client import Platform, WireClient
from xenpv.abi.xs import XS
from xenpv.store.profile import OX, C, Profile
from xenpv.store.server import Xenstored

OPERATIONS = int(os.environ.get("XENPV_STORE_OPERATIONS", "20000"))
SEEDS = (1, 2, 3)
DOMIDS = (1, 2)
ABSENT_DOMID = 9  # Xen has no such domain
MERE_DOMID = 7  # Xen has it, xenstored was never told

PATHS = (
    b"/a /a/b /a/b/c /a/b/c/d /a/e /f /f/g /local/domain/1/x /local/domain/1/x/y "
    b"/local/domain/1 /local/domain/2 /local/domain/2/z / /tool /local/domain/0/k"
).split()
TEXTS = (
    *PATHS,
    b"x",
    b"x/y",
    b"z",
    b"k",
    b"x@y",
    b"",
    b"/a/",
    b"/a//b",
    b"/a!",
    b"//a",
    b"//",
    b"@a",
    b"a\xff",
)
VALUES = (b"", b"1", b"value", b"\0\xff\n", b"v" * 300)
TOKENS = (b"t", b"u", b"a long token", b"")
PERMS = (b"n0", b"r0", b"b0", b"w0", b"n1", b"r1", b"b1", b"w1", b"n2", b"r2", b"w2", b"b2")
ODD_PERMS = (b"r9", b"n9", b"r7", b"n7", b"x1", b"r", b"r1x", b"r0x1", b"b02", b"n-1", b"r 2", b"")


class Generator:
    """Random requests; `open_transactions` is kept by whoever sends them."""

    def __init__(self, seed: int, clients: int, *, texts: tuple[bytes, ...] = TEXTS) -> None:
        self.random = random.Random(seed)
        self.texts = texts
        self.open: list[list[int]] = [[] for _ in range(clients)]

    def path(self) -> bytes:
        pick = self.random
        return pick.choice(PATHS if pick.random() < 0.8 else self.texts)

    def payload(self, op: XS) -> bytes:
        pick = self.random
        if pick.random() < 0.02:  # malformed: no NUL, two NULs, nothing
            return pick.choice((b"", b"\0", b"/a", b"/a\0\0", b"/a\0b", b"\0\0\0\0"))
        if op is XS.WRITE:
            return self.path() + b"\0" + pick.choice(VALUES)
        if op is XS.SET_PERMS:
            perms = [
                pick.choice(PERMS if pick.random() < 0.9 else ODD_PERMS)
                for _ in range(pick.randint(1, 3))
            ]
            return b"".join(text + b"\0" for text in (self.path(), *perms))
        if op in {XS.WATCH, XS.UNWATCH}:
            return self.path() + b"\0" + pick.choice(TOKENS) + b"\0"
        if op is XS.DIRECTORY_PART:
            return self.path() + b"\0%d\0" % pick.choice((0, 0, 2, 5, 100))
        if op is XS.TRANSACTION_END:
            return pick.choice((b"T\0", b"T\0", b"T\0", b"F\0", b"X\0"))
        if op in {XS.TRANSACTION_START, XS.RESET_WATCHES}:
            return pick.choice((b"", b"\0"))
        if op in {XS.GET_DOMAIN_PATH, XS.IS_DOMAIN_INTRODUCED}:
            return pick.choice((b"0\0", b"1\0", b"9\0", b"32752\0"))
        return self.path() + b"\0"

    OPS = (
        [XS.WRITE] * 12
        + [XS.READ] * 8
        + [XS.DIRECTORY] * 3
        + [XS.DIRECTORY_PART]
        + [XS.GET_PERMS] * 3
        + [XS.SET_PERMS] * 4
        + [XS.MKDIR] * 4
        + [XS.RM] * 3
        + [XS.WATCH] * 4
        + [XS.UNWATCH] * 2
        + [XS.TRANSACTION_START] * 4
        + [XS.TRANSACTION_END] * 5
        + [XS.GET_DOMAIN_PATH, XS.IS_DOMAIN_INTRODUCED, XS.RESET_WATCHES]
    )

    def request(self, client: int) -> tuple[XS, bytes, int]:
        pick = self.random
        op = pick.choice(self.OPS)
        transactions = self.open[client]
        if op is XS.TRANSACTION_START and len(transactions) > 4:
            op = XS.TRANSACTION_END  # the limit is 11 there, 9 here
        if op is XS.RESET_WATCHES and pick.random() < 0.7:
            op = XS.READ
        tx_id = 0
        if op is XS.TRANSACTION_END or (transactions and pick.random() < 0.4):
            tx_id = pick.choice(transactions) if transactions else 0
        if pick.random() < 0.01:
            tx_id = 77
        payload = self.payload(op)
        return op, payload, tx_id

    def learn(self, client: int, op: XS, tx_id: int, reply: Message) -> None:
        transactions = self.open[client]
        if op is XS.TRANSACTION_START and reply[0] == XS.TRANSACTION_START:
            transactions.append(int(reply[3][:-1]))
        elif op is XS.TRANSACTION_END and reply[3] != b"EINVAL\0" and tx_id in transactions:
            transactions.remove(tx_id)
        elif op is XS.RESET_WATCHES and reply[0] == XS.RESET_WATCHES:
            transactions.clear()


def comparable(message: Message, *, ox: bool = False) -> Message:
    """A message without the generation of a DIRECTORY_PART, which counts other things in 4.17."""
    op, req_id, tx_id, payload = message
    if op == XS.DIRECTORY_PART:
        payload = payload[payload.index(b"\0") :]
    elif op == XS.ERROR and ox:
        payload = payload.replace(b"EAGAIN", b"EINVAL")
    return op, req_id, tx_id, payload


def torn(got: Message, expected: Message) -> bool:
    """Does a reply in a transaction show that its copies are at odds with each other?

    Each is made when it is first needed, so a child may be listed and gone, or there and not
    listed; if it is then created xenstored lists it twice. All that counts is that such a
    transaction ends with EAGAIN.
    """
    if got[0] == XS.DIRECTORY_PART:
        return comparable(got) != comparable(expected)
    if got[0] == XS.DIRECTORY:
        names = [name for name in got[3].split(b"\0") if name]
        return len(names) != len(dict.fromkeys(names))
    return b"EIO\0" in {got[3], expected[3]}


class Pair:
    """The same clients of both servers, in the same order of age: sockets, then rings."""

    def __init__(self, daemon: Running, sockets: int, profile: Profile = C) -> None:
        self.daemon = daemon
        self.ox = profile is OX
        self.platform = Platform({*DOMIDS, MERE_DOMID})
        self.server = Xenstored(domains=self.platform, profile=profile)
        self.platform.server = self.server
        self.torn: dict[tuple[int, int], None] = {}
        self.events = 0
        self.ours: list[WireClient] = []
        self.theirs: list[Client] = []
        for domid in (*DOMIDS, MERE_DOMID):
            daemon.create_domain(domid)
        for number in range(sockets):
            self.ours.append(WireClient(self.server.connect_socket(f"socket{number}")))
            self.theirs.append(daemon.client())
            self.step(number, XS.READ, b"/\0")

    def introduce(self, domid: int) -> int:
        """Introduces a domain on both; the number of its client, new or a dead one's."""
        self.step(0, XS.INTRODUCE, b"%d\x001\x002\0" % domid)
        self.ours.append(WireClient(self.platform.connections[domid]))
        self.theirs.append(RingClient(self.daemon, domid))
        return len(self.ours) - 1

    def step(self, client: int, op: XS, payload: bytes, tx_id: int = 0) -> Message:
        """One request on both; every connection gets the same messages. The reply."""
        self.ours[client].send(op, payload, tx_id=tx_id, req_id=client + 5)
        self.theirs[client].send(op, payload, tx_id=tx_id, req_id=client + 5)
        reply = self.compare(client, op, tx_id, f"{op.name} {payload!r} tx {tx_id} of {client}")
        assert reply is not None
        return reply

    def compare(self, client: int, op: XS | None, tx_id: int, what: str) -> Message | None:
        """What ours has for each client must be what theirs gets; the answer to `client`."""
        reply = None
        for number, connection in enumerate(self.ours):
            for expected in connection.messages():
                got = self.theirs[number].receive()
                if expected[0] == XS.WATCH_EVENT:
                    self.events += 1
                elif number == client:
                    reply = expected
                    if tx_id and torn(got, expected):
                        self.torn[client, tx_id] = None
                    if (client, tx_id) in self.torn and op is not XS.TRANSACTION_END:
                        continue
                assert comparable(got, ox=self.ox) == comparable(expected, ox=self.ox), (
                    f"client {number} after {what}: got {got}, expected {expected}"
                )
        return reply
