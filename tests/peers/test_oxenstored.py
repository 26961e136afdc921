"""Our store with the `ox` profile against the real oxenstored 4.17, as test_xenstored.py does.

What it does otherwise is kept out of the sequences, by the table DIFFERENT.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.peers.store_pair import DOMIDS, OPERATIONS, SEEDS, TEXTS, Generator, Pair
from tests.peers.xenstored import Running, running
from xenpv.abi.xs import XS
from xenpv.bench.daemon import OXENSTORED
from xenpv.store.profile import OX

SOCKETS = 3


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Running]:
    with running(OXENSTORED, tmp_path) as started:
        yield started


Applies = Callable[[XS, bytes, bytes, int, int], bool]  # type, payload, first string, tx, client
SPECIAL = (b"@introduceDomain", b"@releaseDomain", b"/@releaseDomain", b"/@a", b"@a") * 2
# Requests that are kept out, with what oxenstored does otherwise. EAGAIN is taken for EINVAL: a
# transaction that fails may get either there, since it raises the second while it looks for
# who is to blame.
DIFFERENT: dict[str, Applies] = {
    "a request without a payload is looked at when the next one comes":
        lambda op, payload, first, tx_id, client: not payload,
    "of a name that begins with @ it does not look at the rest, and answers twice if it is odd":
        lambda op, payload, first, tx_id, client: first[:1] == b"@" and not first[1:].isalnum(),
    "a domain hears nothing of how a transaction ended that it cannot replay for this request":
        lambda op, payload, first, tx_id, client: op is XS.IS_DOMAIN_INTRODUCED and tx_id != 0 and client >= SOCKETS,
}  # fmt: skip


def masked(op: XS, payload: bytes, tx_id: int, client: int) -> bool:
    first = payload.partition(b"\0")[0]
    return any(applies(op, payload, first, tx_id, client) for applies in DIFFERENT.values())


@pytest.mark.peers
@pytest.mark.parametrize("seed", SEEDS)
def test_random_requests_get_the_same_replies_and_events(daemon: Running, seed: int) -> None:
    pair = Pair(daemon, SOCKETS, OX)
    for domid in DOMIDS:
        pair.introduce(domid)
    if seed % 2 == 0:
        pair.step(0, XS.SET_TARGET, b"2\x001\0")
    generator = Generator(seed, len(pair.ours), texts=(*TEXTS, *SPECIAL))
    pick = generator.random
    for path, perms in ((b"/local/domain/1", b"n1\0r2\0"), (b"/local/domain/2", b"n0\0b2\0")):
        pair.step(0, XS.MKDIR, path + b"\0")
        pair.step(0, XS.SET_PERMS, path + b"\0" + perms)
    for _ in range(OPERATIONS // len(SEEDS)):
        client = pick.randrange(len(pair.ours))
        op, payload, tx_id = generator.request(client)
        if not masked(op, payload, tx_id, client):
            reply = pair.step(client, op, payload, tx_id)
            generator.learn(client, op, tx_id, reply)
    for client in range(len(pair.ours)):  # nothing may be left over
        pair.step(client, XS.GET_DOMAIN_PATH, b"0\0")
    assert pair.events > OPERATIONS // 100


def path_of(size: int) -> bytes:
    """A path of `size` bytes, of names that are not too long."""
    whole, rest = divmod(size, 201)
    return (b"/" + b"p" * 200) * whole + (b"/" + b"q" * (rest - 1) if rest else b"")


@pytest.mark.peers
def test_limits_for_everybody(daemon: Running) -> None:
    """Values and paths at 2,048 bytes and around, replies over 4,096, from a socket and a ring."""
    pair = Pair(daemon, SOCKETS, OX)
    guest = pair.introduce(DOMIDS[0])
    for client in (0, guest):
        for size in (2047, 2048, 2049, 4000):
            pair.step(client, XS.WRITE, b"/v\0" + b"v" * size)
            pair.step(client, XS.WRITE, b"/new/%d\0" % size + b"v" * size)
        for size in (1024, 2047, 2048, 2049, 3000):
            for op in (XS.READ, XS.MKDIR, XS.WRITE, XS.RM, XS.GET_PERMS, XS.DIRECTORY):
                pair.step(client, op, path_of(size) + b"\0")
        pair.step(client, XS.WATCH, path_of(2049) + b"\0t\0")
    for index in range(30):
        pair.step(0, XS.WRITE, b"/big/%d" % index + b"n" * 240 + b"\0")
    for client in (0, guest):
        pair.step(client, XS.DIRECTORY, b"/big\0")


# Requests of dom0 with a number in them, some of it odd; of what else they do nothing is left.
NUMBERS = [
    (op, text + b"\0")
    for op in (XS.IS_DOMAIN_INTRODUCED, XS.GET_DOMAIN_PATH, XS.RESUME)
    for text in (
        b"0", b"1", b"9", b"", b"0x1", b"0X1", b"0o1", b"0b1", b"0u1", b"1_", b"_1", b"-1", b"+1", b" 1",
        b"x7y", b"7x9", b"32752", b"1\0x", b"4611686018427387903", b"4611686018427387904",
        b"0x7fffffffffffffff", b"0x8000000000000000", b"99999999999999999999",
    )
]  # fmt: skip
NUMBERS += [
    (XS.IS_DOMAIN_INTRODUCED, b"1"),
    (XS.GET_DOMAIN_PATH, b"1"),
    (XS.RESUME, b"1"),
    (XS.RELEASE, b"9\0"),
    (XS.RELEASE, b"x\0"),
    (XS.RELEASE, b"1"),
    (XS.RELEASE, b"1\0x\0"),
    (XS.INTRODUCE, b"x\0001\0002\0"),
    (XS.INTRODUCE, b"1\0001\0"),
    (XS.INTRODUCE, b"1\0x\0002\0"),
    (XS.INTRODUCE, b"1\0001\0002"),
    (XS.INTRODUCE, b"0x1\0001\0003\0"),
    (XS.INTRODUCE, b"1\0002\0003\0"),
    (XS.INTRODUCE, b"0\0000\0003\0"),
    (XS.INTRODUCE, b"0\0001\0003\0"),
    (XS.INTRODUCE, b"55\0001\0002\0"),
    (XS.SET_TARGET, b"9\0001\0"),
    (XS.SET_TARGET, b"1\0"),
    (XS.SET_TARGET, b"1\0002\0003\0"),
    (XS.SET_TARGET, b"1\0002"),
    (XS.SET_TARGET, b"1\0x9y\0"),
    (XS.SET_TARGET, b"0\0001\0"),
    (XS.SET_PERMS, b"/a\0n0\0r0x10\0b-1\0w0b1\0r1_0\0"),
    (XS.GET_PERMS, b"/a\0"),
    (XS.SET_PERMS, b"/a\0n4000000000\0"),
    (XS.GET_PERMS, b"/a\0"),
    (XS.SET_PERMS, b"/a\0n 1\0"),
    (XS.SET_PERMS, b"/a\0n\0"),
    (XS.SET_PERMS, b"/a\0x1\0"),
    (XS.SET_PERMS, b"/none\0x1\0"),
    (XS.SET_PERMS, b"/none\0n1\0"),
    (XS.SET_PERMS, b"/a\0n1"),
    (XS.TRANSACTION_START, b"\0"),
    (XS.TRANSACTION_END, b"T"),
]


@pytest.mark.peers
def test_numbers_and_strings(daemon: Running) -> None:
    pair = Pair(daemon, SOCKETS, OX)
    guest = pair.introduce(DOMIDS[0])
    pair.step(0, XS.MKDIR, b"/a\0")
    pair.step(1, XS.WATCH, b"@introduceDomain\0i\0")
    for op, payload in NUMBERS:
        for client in (0, guest):
            pair.step(client, op, payload, int(op is XS.TRANSACTION_END))
    for end in (b"T\0x", b"F", b"X", b"\0"):
        tx_id = int(pair.step(0, XS.TRANSACTION_START, b"\0")[3][:-1])
        pair.step(0, XS.TRANSACTION_END, end, tx_id)
        pair.step(0, XS.READ, b"/a\0", tx_id)  # is it still there?


@pytest.mark.peers
def test_quotas_of_a_guest(daemon: Running) -> None:
    pair = Pair(daemon, 1, OX)
    guest = pair.introduce(DOMIDS[0])
    other = pair.introduce(DOMIDS[1])
    home = b"/local/domain/1"
    pair.step(0, XS.MKDIR, home + b"\0")
    pair.step(0, XS.SET_PERMS, home + b"\0n1\0b2\0")
    for number in range(1000):
        reply = pair.step(guest, XS.WRITE, b"n/%d\0" % number)
    assert reply[3] == b"EQUOTA\0"
    for op, path in (
        (XS.WRITE, b"n/1/2\0v"),
        (XS.WRITE, b"n/1\0v"),
        (XS.MKDIR, b"n/x\0"),
        (XS.MKDIR, b"n/1\0"),
        (XS.READ, b"n/999\0"),
    ):
        pair.step(guest, op, path)
    pair.step(other, XS.WRITE, home + b"/of2\0v")  # who is above pays
    pair.step(0, XS.WRITE, home + b"/of0\0v")  # dom0 may always
    for _ in range(2):
        pair.step(guest, XS.RM, b"n/1\0")
        pair.step(guest, XS.WRITE, b"n/again\0v")
        pair.step(guest, XS.RM, b"n/2\0")
    tx_id = int(pair.step(guest, XS.TRANSACTION_START, b"\0")[3][:-1])
    for op, path in ((XS.RM, b"n/5\0"), (XS.WRITE, b"n/a1\0"), (XS.WRITE, b"n/a2\0"), (XS.WRITE, b"n/a3\0"), (XS.WRITE, b"n/a4\0")):  # fmt: skip
        pair.step(guest, op, path, tx_id)
    pair.step(guest, XS.TRANSACTION_END, b"T\0", tx_id)
    pair.step(guest, XS.DIRECTORY, b"n\0")
    pair.step(guest, XS.SET_PERMS, b"n\0n1\0" + b"r2\0" * 40)
    pair.step(guest, XS.GET_PERMS, b"n\0")
    for number in range(103):
        pair.step(guest, XS.WATCH, b"w\0%d\0" % number)
    for _ in range(13):
        pair.step(guest, XS.TRANSACTION_START, b"\0")


@pytest.mark.peers
def test_requests_of_one_transaction(daemon: Running) -> None:
    pair = Pair(daemon, 1, OX)
    guest = pair.introduce(DOMIDS[0])
    for client in (0, guest):
        tx_id = int(pair.step(client, XS.TRANSACTION_START, b"\0")[3][:-1])
        for number in range(1030):
            reply = pair.step(client, XS.READ, b"/none%d\0" % (number % 2), tx_id)
        assert reply[3] == (b"EQUOTA\0" if client == guest else b"ENOENT\0")
        for end in (b"X\0", b"T\0", b"F\0"):
            pair.step(client, XS.TRANSACTION_END, end, tx_id)
        for inside in (tx_id, 0):
            pair.step(client, XS.RESET_WATCHES, b"\0", inside)
        pair.step(client, XS.TRANSACTION_END, b"F\0", tx_id)


@pytest.mark.peers
def test_events_that_a_guest_leaves_unread_block_who_causes_them(daemon: Running) -> None:
    """1,024 wait for the guest, as many for its watch, and some are in its ring."""
    pair = Pair(daemon, 1, OX)
    reader, writer = (pair.introduce(domid) for domid in DOMIDS)
    pair.step(0, XS.MKDIR, b"/s\0")
    pair.step(0, XS.SET_PERMS, b"/s\0b0\0")
    pair.step(reader, XS.WATCH, b"/s\0t\0")
    store = pair.server.connect_local("dom0")
    # 48 events of 21 bytes fit into the ring, one more partly: ours takes what a ring would.
    for number in range(2098):
        payload = b"/s\0%d" % number
        pair.theirs[writer].send(XS.WRITE, payload)
        assert pair.theirs[writer].receive()[0] == XS.WRITE
        pair.ours[writer].send(XS.WRITE, payload)
        assert len(pair.ours[writer].messages()) == 1
        if number == 48:
            taken = pair.ours[reader].connection.take_output(1024)
            assert len(taken) == 1024
        blocked = pair.ours[writer].connection.blocked
        assert blocked == (number == 2097)
    pair.theirs[0].send(XS.CONTROL, b"xenbus\0%d\0" % DOMIDS[1])
    assert b"overflow queue length: 1, can_input: false" in pair.theirs[0].receive()[3]
    pair.theirs[0].send(XS.CONTROL, b"xenbus\0%d\0" % DOMIDS[0])
    assert b"watch_event: 1024" in pair.theirs[0].receive()[3]
    assert len(pair.ours[reader].connection.output) == 1024 + 1
    assert store.call(XS.READ, b"/s\0") == b"2097"
    pair.theirs[reader].receive()
    pair.theirs[writer].send(XS.READ, b"/s\0")
    assert pair.theirs[writer].receive()[3] == b"2097"


ENDS = ("shut down", "dead", "released", "again", "resumed", "target")


@pytest.mark.peers
@pytest.mark.parametrize("seed", SEEDS)
def test_domains_come_and_go_with_the_same_events(daemon: Running, seed: int) -> None:
    pair = Pair(daemon, 2, OX)
    pick = random.Random(seed)
    for text in (b"@releaseDomain\0r\0", b"@introduceDomain\0i\0", b"/\0all\0", b"/local\0l\0"):
        pair.step(0, XS.WATCH, text)
    pair.step(0, XS.WRITE, b"/acl\0v")
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
            path = pick.choice((b"x", b"x/y", b"x/y/z", b"/local/domain/1/x/w", b"/acl"))
            op = pick.choice((XS.WRITE, XS.WRITE, XS.MKDIR, XS.RM, XS.WATCH, XS.READ))
            rest = {XS.WRITE: b"1", XS.WATCH: b"t\0"}.get(op, b"")
            pair.step(client, op, path + b"\0" + rest)
        if pick.random() < 0.3:
            pair.step(0, XS.SET_PERMS, pick.choice((b"/acl\0n0\0r1\0b2\0", b"/acl\0n2\0r1\0")))
            pair.step(0, XS.WRITE, home + b"/x/dom0\0001")
            pair.step(0, XS.SET_PERMS, home + b"/x/dom0\0n0\0r%d\0" % pick.choice(DOMIDS))
        end = pick.choice(ENDS)
        if end == "shut down":
            daemon.set_domain(domid, "s")
            pair.server.domain_shutdown(domid)
        elif end == "dead":
            daemon.set_domain(domid, "d")
            pair.server.domain_died(domid)
        elif end == "resumed":
            daemon.set_domain(domid, "r")
            if any((daemon.folder / f"domain-{one}").read_text() == "s" for one in DOMIDS):
                pair.server.domain_shutdown(next(iter(alive)))  # it tells of the other again
            pair.step(0, XS.RESUME, b"%d\0" % domid)
        elif end == "again":
            pair.step(0, XS.INTRODUCE, b"%d\0001\0005\0" % domid)
        elif end == "target":
            pair.step(0, XS.SET_TARGET, b"%d\0%d\0" % (domid, DOMIDS[DOMIDS.index(domid) - 1]))
        else:
            pair.step(0, XS.RELEASE, b"%d\0" % domid)
        pair.compare(0, None, 0, f"{domid} {end}")
        if end in {"dead", "released"}:
            pair.step(0, XS.IS_DOMAIN_INTRODUCED, b"%d\0" % domid)
            daemon.create_domain(domid)
            del alive[domid]
            for other in alive:
                # There a target is a number: whoever had the dead one would have its successor.
                pair.step(0, XS.SET_TARGET, b"%d\0%d\0" % (other, other))
        pair.step(0, XS.GET_PERMS, b"/acl\0")
    for client in (0, 1, *alive.values()):
        pair.step(client, XS.GET_DOMAIN_PATH, b"0\0")
    for path in (b"/", b"/local", b"/local/domain", b"/local/domain/1", b"/local/domain/1/x"):
        pair.step(0, XS.DIRECTORY, path + b"\0")


@pytest.mark.peers
@pytest.mark.parametrize("dies", [False, True])
def test_a_death_makes_every_node_another_to_a_transaction(daemon: Running, dies: bool) -> None:
    """So it is replayed, where it could be merged."""
    pair = Pair(daemon, 1, OX)
    pair.introduce(DOMIDS[0])
    for path in (b"/d\0", b"/b\0"):
        pair.step(0, XS.MKDIR, path)
    tx_id = int(pair.step(0, XS.TRANSACTION_START, b"\0")[3][:-1])
    pair.step(0, XS.READ, b"/d/q\0", tx_id)
    pair.step(0, XS.WRITE, b"/b\0v", tx_id)
    pair.step(0, XS.WRITE, b"/d/q\0v")
    if dies:
        pair.step(0, XS.RELEASE, b"%d\0" % DOMIDS[0])
    end = pair.step(0, XS.TRANSACTION_END, b"T\0", tx_id)
    assert end[3] == (b"EAGAIN\0" if dies else b"OK\0")
