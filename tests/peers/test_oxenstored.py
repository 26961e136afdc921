"""Our store with the `ox` profile against the real oxenstored 4.17, as test_xenstored.py does.

What it does otherwise is kept out of the sequences, by the table DIFFERENT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.peers.store_pair import DOMIDS, OPERATIONS, PERMS, SEEDS, Generator, Pair
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
PATH_OPS = {
    XS.READ,
    XS.WRITE,
    XS.MKDIR,
    XS.RM,
    XS.DIRECTORY,
    XS.DIRECTORY_PART,
    XS.GET_PERMS,
    XS.SET_PERMS,
}
MALFORMED = {b"", b"/a/", b"/a//b", b"//a", b"//", b"/a!", b"a\xff"}
# Requests that are kept out, with what oxenstored does otherwise. Besides, `comparable` takes
# the special names out of a listing of the root, and EAGAIN for EINVAL: a transaction that
# fails may get either there, since it raises the second while it looks for who is to blame.
DIFFERENT: dict[str, Applies] = {
    "a request without a payload is looked at when the next one comes":
        lambda op, payload, first, tx_id, client: not payload,
    "special names are children of the root, for every request":
        lambda op, payload, first, tx_id, client: op in PATH_OPS and first[:1] == b"@",
    "MKDIR of the root succeeds for everybody, and a transaction's changes then lie below it":
        lambda op, payload, first, tx_id, client: op is XS.MKDIR and first == b"/",
    "the root's permissions are for all who may write to it, if they keep its owner":
        lambda op, payload, first, tx_id, client: op is XS.SET_PERMS and first == b"/" and client >= SOCKETS,
    "permissions may name domains that do not exist, and numbers are read as OCaml reads them":
        lambda op, payload, first, tx_id, client: op is XS.SET_PERMS and any(
            text not in PERMS for text in payload.split(b"\0")[1:-1]
        ),
    "a domid is not empty":
        lambda op, payload, first, tx_id, client: op in {XS.IS_DOMAIN_INTRODUCED, XS.GET_DOMAIN_PATH}
        and not first.isdigit(),
    "a domain hears nothing of how a transaction ended that it cannot replay for this request":
        lambda op, payload, first, tx_id, client: op is XS.IS_DOMAIN_INTRODUCED and tx_id != 0 and client >= SOCKETS,
    "it looks for the transaction before it refuses an unknown type":
        lambda op, payload, first, tx_id, client: op is XS.DIRECTORY_PART and tx_id != 0,
    "its reply to WATCH and UNWATCH in a transaction says that it is in none":
        lambda op, payload, first, tx_id, client: op in {XS.WATCH, XS.UNWATCH} and tx_id != 0,
    "UNWATCH does not look whether a path is well formed":
        lambda op, payload, first, tx_id, client: op is XS.UNWATCH and first in MALFORMED,
}  # fmt: skip


def masked(op: XS, payload: bytes, tx_id: int, client: int) -> bool:
    first = payload.partition(b"\0")[0]
    return any(applies(op, payload, first, tx_id, client) for applies in DIFFERENT.values())


@pytest.mark.peers
@pytest.mark.parametrize("seed", SEEDS)
def test_random_requests_get_the_same_replies_and_events(daemon: Running, seed: int) -> None:
    # No SET_TARGET: there a domain has its own rights besides those of its target.
    pair = Pair(daemon, SOCKETS, OX)
    for domid in DOMIDS:
        pair.introduce(domid)
    generator = Generator(seed, len(pair.ours))
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
