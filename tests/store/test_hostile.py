"""A guest that sends anything: it gets the answer that is due, or nothing more; nobody notices.

Two guests and a socket client go through the same requests twice, once beside a silent guest
and once beside one that does its worst. What they are answered has to be the same bytes.
"""

from __future__ import annotations

from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.client import Store, WireClient, answer, message, start
from tests.store.rawguest import RawGuest, add_guest
from tests.world import World, make
from xenpv.abi.xs import XS
from xenpv.store.profile import LEGACY, OX, C
from xenpv.xen.domain import XENSTORE_PFN

PROFILES = pytest.mark.parametrize("profile", [C, OX, LEGACY], ids=["c", "ox", "legacy"])
ROUNDS = 12

U32 = st.one_of(st.integers(0, 40), st.sampled_from([4096, 4097, 0x7FFFFFFF, 0xFFFFFFFF]))
HEADER = st.builds(
    lambda op, req, tx, length: b"".join(n.to_bytes(4, "little") for n in (op, req, tx, length)),
    U32, U32, U32, U32,
)  # fmt: skip
PATH = st.sampled_from(
    [b"data", b"data/x", b"data/x/y", b"/", b"@releaseDomain", b"//", b"a" * 3000]
)
WHOLE = st.builds(
    lambda op, path, rest, tx: message(op, path + b"\0" + rest, tx_id=tx),
    st.sampled_from([int(op) for op in XS] + [20, 27, 255]),
    PATH,
    st.sampled_from([b"", b"t\0", b"n3\0", b"v" * 500, b"0\0"]),
    st.integers(0, 4),
)
PIECE = st.one_of(
    st.tuples(st.just("bytes"), st.binary(max_size=300)),
    st.tuples(st.just("bytes"), HEADER),
    st.tuples(st.just("bytes"), WHOLE),
    st.tuples(st.just("cut"), WHOLE),
    st.tuples(st.just("bytes"), st.just(message(XS.TRANSACTION_START, b"\0"))),
    st.tuples(st.just("bytes"), st.just(message(XS.WATCH, b"data\0t\0"))),
    st.tuples(st.just("read"), st.just(b"")),
    st.tuples(st.just("index"), st.binary(min_size=4, max_size=16)),
)
HOSTILE = st.lists(PIECE, max_size=25)


class Bystanders:
    """Two guests and a socket client, and what they were sent."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.offender = add_guest(world)
        self.guests = [add_guest(world), add_guest(world)]
        self.socket = WireClient(world.server.connect_socket("socket"))
        self.heard: list[object] = []
        for guest in self.guests:
            guest.send(XS.WATCH, b"data\0tok\0")
        self.socket.send(XS.WATCH, b"/local/domain/%d\0s\0" % self.guests[0].domain.domid)

    def step(self, number: int) -> None:
        """Each of them writes, reads, and does one transaction in three steps."""
        for index, guest in enumerate(self.guests):
            guest.send(XS.WRITE, b"data/n%d\x00%d" % (number % 5, number), req_id=number)
            guest.send(XS.READ, b"data/n%d\0" % (number % 5), req_id=number)
            guest.send(XS.DIRECTORY, b"data\0", req_id=index)
            guest.send(XS.TRANSACTION_START, b"\0")
            if number % 4 == 3:
                guest.send(XS.RM, b"data/n1\0")
        for guest in self.guests:
            tx_id = number + 1
            guest.send(XS.WRITE, b"data/t\x00%d" % number, tx_id=tx_id)
            guest.send(XS.TRANSACTION_END, b"T\0", tx_id=tx_id)
            self.heard.append(guest.messages())
        self.heard.append(self.socket.messages())


def attack(guest: RawGuest, kind: str, data: bytes) -> None:
    if kind == "bytes":
        guest.put(data)
    elif kind == "cut":
        guest.put(data[: len(data) // 2])
        guest.domain.evtchn.send(guest.port)
        guest.put(data[len(data) // 2 :])
    elif kind == "read":
        guest.take()
    else:
        guest.domain.write(XENSTORE_PFN, 2048, data)
    guest.notify()


def bounds(world: World, guest: RawGuest) -> None:
    """What the offender makes xenstored hold."""
    domain = world.server.known[guest.domain.domid]
    connection = domain.connection
    assert connection is not None
    limits = domain.limits
    assert 0 <= domain.nodes <= (limits.nodes or 1000) + 16
    assert 0 <= domain.watches <= limits.watches
    assert 0 <= domain.transactions <= limits.transactions
    assert 0 <= domain.outstanding <= limits.outstanding
    assert len(connection.partial) < 16 + 4096 + 1024
    if world.server.profile is OX:  # it counts messages: replies, events, and those of a watch
        assert len(connection.output) <= 2 * 1024
        assert connection.overflow is not None
        assert len(connection.overflow.later) <= 1024 * (limits.watches + 1)
        return
    assert 0 <= domain.memory <= limits.memory
    assert sum(len(data) for data, _, _ in connection.output) <= limits.memory


def run(profile: object, pieces: list[tuple[str, bytes]] | None, *, dies: bool) -> list[object]:
    world = make(profile=profile)  # type: ignore[arg-type]
    with closing(world.hypervisor):
        scene = Bystanders(world)
        for number in range(ROUNDS):
            if pieces is not None:
                for kind, data in pieces[number::ROUNDS]:
                    attack(scene.offender, kind, data)
                bounds(world, scene.offender)
            scene.step(number)
        if pieces is not None and dies:
            domid = scene.offender.domain.domid
            world.hypervisor.destroy_domain(scene.offender.domain)
            world.loop.run()
            assert domid not in world.server.known
            assert world.server.credit.transactions == 0
        scene.step(ROUNDS)
        return scene.heard


QUIET: dict[str, list[object]] = {}


@PROFILES
@given(pieces=HOSTILE, dies=st.booleans())
@settings(max_examples=100)
def test_nobody_else_notices(profile: object, pieces: list[tuple[str, bytes]], dies: bool) -> None:
    name = profile.name  # type: ignore[attr-defined]
    if name not in QUIET:
        QUIET[name] = run(profile, None, dies=False)
    assert run(profile, pieces, dies=dies) == QUIET[name]


@PROFILES
@pytest.mark.parametrize("dies", [False, True])
def test_nobody_notices_one_that_floods_and_never_reads(profile: object, dies: bool) -> None:
    pieces = [
        ("bytes", message(XS.WRITE, b"data/x%d\0" % (index % 7) + b"v" * 200))
        for index in range(20 * ROUNDS)
    ]
    pieces[0] = ("bytes", message(XS.WATCH, b"data\0t\0"))
    assert run(profile, pieces, dies=dies) == run(profile, None, dies=False)


# A model of the node quota and of what counts: nodes by their owner, transactions, watches.

COUNT_STEP = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 30)),
    st.tuples(st.just("rm"), st.integers(0, 30)),
    st.tuples(st.just("watch"), st.integers(0, 12)),
    st.tuples(st.just("unwatch"), st.integers(0, 12)),
    st.tuples(st.just("start"), st.just(0)),
    st.tuples(st.just("end"), st.integers(1, 12)),
)


@given(steps=st.lists(COUNT_STEP, max_size=120))
def test_quotas_are_those_of_a_model(steps: list[tuple[str, int]]) -> None:
    store = Store()
    guest = store.guest(1)
    limits = guest.connection.domain.limits
    limits.nodes, limits.watches, limits.transactions = 12, 6, 4
    nodes: set[int] = set()
    watches: set[int] = set()
    open_: list[int] = []
    for step, number in steps:
        if step == "write":
            fits = number in nodes or len(nodes) + 2 < 12  # its home is one, and 12 is refused
            expected: object = b"OK\0" if fits else "ENOSPC"
            assert answer(guest, XS.WRITE, b"n%d\0v" % number) == expected
            nodes |= {number} if fits else set()
        elif step == "rm":
            assert answer(guest, XS.RM, b"n%d\0" % number) == b"OK\0"
            nodes.discard(number)
        elif step == "watch":
            guest.send(XS.WATCH, b"w%d\0t\0" % number)
            payload = next(body for op, _, _, body in guest.messages() if op != XS.WATCH_EVENT)
            if number in watches:
                assert payload == b"EEXIST\0"
            elif len(watches) + 1 >= 6:
                assert payload == b"ENOSPC\0"
            else:
                assert payload == b"OK\0"
                watches.add(number)
        elif step == "unwatch":
            reply = answer(guest, XS.UNWATCH, b"w%d\0t\0" % number)
            assert reply == (b"OK\0" if number in watches else "ENOENT")
            watches.discard(number)
        elif step == "start":
            if len(open_) + 1 >= 4:
                assert answer(guest, XS.TRANSACTION_START, b"\0") == "ENOSPC"
            else:
                open_.append(start(guest))
        elif open_:
            tx_id = open_.pop(number % len(open_))
            assert answer(guest, XS.TRANSACTION_END, b"F\0", tx_id) == b"OK\0"
        domain = guest.connection.domain
        assert (domain.nodes, domain.watches, domain.transactions) == (
            len(nodes) + 1,
            len(watches),
            len(open_),
        )
