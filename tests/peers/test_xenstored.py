"""Our store against the real C xenstored 4.17: the same requests, the same replies and events.

Random requests over three sockets and two rings. After each request every connection must
have got the same messages, in order. What 4.17 does otherwise than the newest tree is kept
out of the sequences or masked; the reasons stand beside each place. XENPV_STORE_OPERATIONS
says how many requests.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers import need
from tests.peers.xenstored import Client, CXenstored, Message, RingClient, running
from tests.store.client import Platform, WireClient
from xenpv.abi.xs import XS
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

    def __init__(self, seed: int, clients: int) -> None:
        self.random = random.Random(seed)
        self.open: list[list[int]] = [[] for _ in range(clients)]

    def path(self) -> bytes:
        pick = self.random
        return pick.choice(PATHS if pick.random() < 0.8 else TEXTS)

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


ONE_PATH = (XS.READ, XS.DIRECTORY, XS.GET_PERMS, XS.MKDIR, XS.RM)


def masked(op: XS, payload: bytes) -> bool:
    """Does 4.17 answer this otherwise than the newest tree, or die of it?"""
    if op in ONE_PATH and (payload.count(b"\0") != 1 or payload[-1:] != b"\0"):
        return True  # EINVAL now; there whatever errno was last, and of a 0 it dies
    first, _, rest = payload.partition(b"\0")
    if first.startswith(b"@"):
        # GET_PERMS and SET_PERMS know special nodes now; a watch of one took any characters
        return op in {XS.GET_PERMS, XS.SET_PERMS, XS.WATCH, XS.UNWATCH}
    if op is XS.UNWATCH:  # of a malformed path: ENOENT there, EINVAL now
        return not first or first.endswith(b"/") or first in {b"/a//b", b"//a", b"/a!", b"a\xff"}
    return op is XS.WATCH and rest.count(b"\0") == 2  # the third string is a depth now


def comparable(message: Message) -> Message:
    """A message without the generation of a DIRECTORY_PART, which counts other things in 4.17."""
    op, req_id, tx_id, payload = message
    if op == XS.DIRECTORY_PART:
        payload = payload[payload.index(b"\0") :]
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

    def __init__(self, daemon: CXenstored, sockets: int) -> None:
        self.daemon = daemon
        self.platform = Platform({*DOMIDS, MERE_DOMID})
        self.server = Xenstored(domains=self.platform)
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
                assert comparable(got) == comparable(expected), f"client {number} after {what}"
        return reply


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[CXenstored]:
    with running(tmp_path) as started:
        yield started


@pytest.mark.peers
@pytest.mark.parametrize("seed", SEEDS)
def test_random_requests_get_the_same_replies_and_events(daemon: CXenstored, seed: int) -> None:
    pair = Pair(daemon, 3)
    for domid in DOMIDS:
        pair.introduce(domid)
    if seed % 2 == 0:
        pair.step(0, XS.SET_TARGET, b"2\x001\0")
    generator = Generator(seed, len(pair.ours))
    pick = generator.random
    for path, perms in ((b"/local/domain/1", b"n1\0r2\0"), (b"/local/domain/2", b"n0\0b2\0")):
        pair.step(0, XS.MKDIR, path + b"\0")
        pair.step(0, XS.SET_PERMS, path + b"\0" + perms)
    for _ in range(OPERATIONS // len(SEEDS)):
        client = pick.randrange(len(pair.ours))
        op, payload, tx_id = generator.request(client)
        if not masked(op, payload):
            reply = pair.step(client, op, payload, tx_id)
            generator.learn(client, op, tx_id, reply)
    for client in range(len(pair.ours)):  # nothing may be left over
        pair.step(client, XS.GET_DOMAIN_PATH, b"0\0")
    assert pair.events > OPERATIONS // 100


@pytest.mark.peers
@pytest.mark.parametrize("seed", SEEDS)
def test_domains_come_and_go_with_the_same_events(daemon: CXenstored, seed: int) -> None:
    # Entries for other domains are kept off access lists: 4.17 lists those of dead domains.
    pair = Pair(daemon, 2)
    pick = random.Random(seed)
    for text in (b"@releaseDomain\0r\0", b"@introduceDomain\0i\0", b"/\0all\0", b"/local\0l\0"):
        pair.step(0, XS.WATCH, text)
    pair.step(1, XS.WATCH, b"/local/domain/1/x/y\0t\0")
    pair.step(1, XS.WATCH, b"@releaseDomain\0r\0")
    alive: dict[int, int] = {}
    for _ in range(OPERATIONS // 100):
        domid = pick.choice(DOMIDS)
        home = b"/local/domain/%d" % domid
        if domid not in alive:
            pair.step(0, XS.MKDIR, home + b"\0")
            pair.step(0, XS.SET_PERMS, home + b"\0n%d\0" % domid)
            alive[domid] = pair.introduce(domid)
        client = alive[domid]
        for _ in range(pick.randint(0, 6)):
            path = pick.choice((b"x", b"x/y", b"x/y/z", b"/local/domain/1/x/w", b"v"))
            op = pick.choice((XS.WRITE, XS.WRITE, XS.MKDIR, XS.RM, XS.WATCH))
            rest = {XS.WRITE: b"1", XS.WATCH: b"t\0"}.get(op, b"")
            pair.step(client, op, path + b"\0" + rest)
        if pick.random() < 0.2:  # somebody else's node below a domain's goes with it
            pair.step(0, XS.WRITE, home + b"/x/dom0\x001")
            pair.step(0, XS.SET_PERMS, home + b"/x/dom0\0n0\0")
        end = pick.choice(("shut down", "dead", "released", "again", "resumed"))
        if end == "shut down":
            daemon.set_domain(domid, "s")
            pair.server.domain_shutdown(domid)
        elif end == "dead":
            daemon.set_domain(domid, "d")
            pair.server.domain_died(domid)
        elif end == "resumed":
            daemon.set_domain(domid, "r")
            pair.step(0, XS.RESUME, b"%d\0" % domid)
        elif end == "again":
            pair.step(0, XS.INTRODUCE, b"%d\x001\x005\0" % domid)
        else:
            pair.step(0, XS.RELEASE, b"%d\0" % domid)
        pair.compare(0, None, 0, f"{domid} {end}")
        if end in {"dead", "released"}:
            pair.step(0, XS.IS_DOMAIN_INTRODUCED, b"%d\0" % domid)
            daemon.create_domain(domid)
            del alive[domid]
    for client in (0, 1, *alive.values()):
        pair.step(client, XS.GET_DOMAIN_PATH, b"0\0")
    for path in (b"/", b"/local", b"/local/domain", b"/local/domain/1", b"/local/domain/1/x"):
        pair.step(0, XS.DIRECTORY, path + b"\0")


@pytest.mark.peers
def test_ls_fp_is_what_xenstore_ls_prints(daemon: CXenstored) -> None:
    program = need("xenstore-ls", "xenstore-utils")
    pair = Pair(daemon, 1)
    every_byte = bytes(range(256))
    for path, value in (
        (b"/z/long/path/name", b"1"),
        (b"/z/long/path", every_byte),
        (b"/a", b"v" * 200),
        (b"/z/empty", b""),
        (b"/z/quoted", b'"a" \\ b'),
    ):
        pair.step(0, XS.WRITE, path + b"\0" + value)
    pair.step(0, XS.SET_PERMS, b"/z\0n1\0r2\0b9\0")
    for arguments, root in (([], b"/"), (["/z"], b"/z"), (["/a"], b"/a")):
        printed = subprocess.run(
            [program, "-fp", *arguments],
            env={"XENSTORED_PATH": os.fspath(daemon.socket)},
            capture_output=True,
            check=True,
        )
        assert printed.stdout.decode() == pair.server.ls_fp(root)
