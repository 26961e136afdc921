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
from tests.peers.store_pair import DOMIDS, OPERATIONS, SEEDS, Generator, Pair
from tests.peers.xenstored import Running, running
from xenpv.abi.xs import XS
from xenpv.bench.daemon import XENSTORED

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


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Running]:
    with running(XENSTORED, tmp_path) as started:
        yield started


@pytest.mark.peers
@pytest.mark.parametrize("seed", SEEDS)
def test_random_requests_get_the_same_replies_and_events(daemon: Running, seed: int) -> None:
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
def test_domains_come_and_go_with_the_same_events(daemon: Running, seed: int) -> None:
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


CONTROLS = (
    b"check\0",
    b"log\0on\0",
    b"log\0off\0",
    b"log\0x\0",
    b"frobnicate\0",
    b"memreport\0x\0y\0",
)


@pytest.mark.peers
def test_control_answers_the_same_where_its_formats_are(daemon: Running) -> None:
    # Tables are another in 4.17: the order of the quotas, help, no maxima (xen-core 1.11).
    pair = Pair(daemon, 2)
    guest = pair.introduce(1)
    for client in (0, 1, guest):
        for payload in CONTROLS:
            pair.step(client, XS.CONTROL, payload)


@pytest.mark.peers
def test_ls_fp_is_what_xenstore_ls_prints(daemon: Running) -> None:
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
