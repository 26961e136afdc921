"""What a conflict costs who caused it, under `ox` in virtual time; and unread events."""

from __future__ import annotations

import pytest

from tests.store.client import Platform, WireClient, answer, end, split, start
from tests.store.rawguest import add_guest
from tests.world import make
from xenpv.abi.xs import XS
from xenpv.store.conflict import JOURNAL_MAX, RECORDS_MAX, ConflictCredit
from xenpv.store.profile import OX
from xenpv.store.server import Xenstored

MS = 1_000_000


class Scene:
    """Guests 1 to 3 and dom0 over a store whose clock is moved by hand; /s is everybody's."""

    def __init__(self) -> None:
        self.ns = 0
        platform = Platform({1, 2, 3})
        self.server = platform.server = Xenstored(
            domains=platform, profile=OX, clock=lambda: self.ns
        )
        self.dom0 = self.server.connect_local("dom0")
        for path in (b"/s", b"/t", b"/b"):
            self.dom0.call(XS.WRITE, path + b"\0")
            self.dom0.call(XS.SET_PERMS, path + b"\0b0\0")
        self.guests = {}
        for domid in (1, 2, 3):
            self.dom0.call(XS.INTRODUCE, b"%d\x001\x002\0" % domid)
            self.guests[domid] = WireClient(platform.connections[domid])

    def credit(self, domid: int) -> int:
        """As oxenstored counts it."""
        return self.server.known[domid].credit + 1

    def victim(self, path: bytes = b"/s") -> int:
        """A transaction of dom0 that needs `path` as it is."""
        tx = start(self.dom0)
        self.dom0.call(XS.READ, path + b"\0", tx)
        self.dom0.call(XS.WRITE, b"/b\0%d" % tx, tx)
        return tx

    def write(self, domid: int, path: bytes, value: bytes) -> bool:
        """Is it answered at once?"""
        self.guests[domid].send(XS.WRITE, path + b"\0" + value)
        return bool(self.guests[domid].messages())

    def conflict(self, domid: int, value: bytes) -> bool:
        """A guest spoils a transaction, if it may write."""
        tx = self.victim()
        done = self.write(domid, b"/s", value)
        assert end(self.dom0, tx) == ("EAGAIN" if done else b"OK\0")
        return done


def test_who_makes_a_transaction_fail_pays_and_nobody_else() -> None:
    scene = Scene()
    tx = scene.victim()
    assert scene.write(1, b"/t", b"elsewhere")
    assert scene.write(2, b"/s", b"there")
    assert scene.write(3, b"/t", b"elsewhere too")
    scene.dom0.call(XS.WRITE, b"/s\0dom0")  # never blamed
    assert end(scene.dom0, tx) == "EAGAIN"
    assert [scene.credit(domid) for domid in (1, 2, 3)] == [5, 4, 5]


def test_each_that_makes_a_difference_pays_once() -> None:
    scene = Scene()
    tx = scene.victim()
    scene.write(1, b"/s", b"one")
    scene.write(1, b"/s", b"two")
    scene.write(2, b"/s", b"")  # as it was: the transaction would fit again
    scene.write(3, b"/s", b"three")
    assert end(scene.dom0, tx) == "EAGAIN"
    assert [scene.credit(domid) for domid in (1, 2, 3)] == [4, 5, 4]


def test_a_commit_is_blamed_too_and_an_abort_is_not() -> None:
    scene = Scene()
    victim = scene.victim()
    for domid, how in ((1, b"F"), (2, b"T")):
        tx = start(scene.guests[domid])
        scene.guests[domid].call(XS.WRITE, b"/s\0%d" % domid, tx)
        assert end(scene.guests[domid], tx, how) == b"OK\0"
    assert end(scene.dom0, victim) == "EAGAIN"
    assert [scene.credit(domid) for domid in (1, 2)] == [5, 4]


def test_a_guest_is_not_blamed_for_its_own_transaction() -> None:
    scene = Scene()
    guest = scene.guests[1]
    tx = start(guest)
    guest.call(XS.READ, b"/s\0", tx)
    guest.call(XS.WRITE, b"/b\0001", tx)
    guest.call(XS.WRITE, b"/s\0mine")
    assert end(guest, tx) == "EAGAIN"
    assert scene.credit(1) == 5


def test_without_credit_a_ring_is_not_read_and_a_point_comes_every_50_ms() -> None:
    scene = Scene()
    assert [scene.conflict(1, b"%d" % number) for number in range(6)] == [True] * 5 + [False]
    assert scene.credit(1) == 0
    assert scene.write(2, b"/t", b"others go on")
    scene.ns += 49 * MS
    assert scene.guests[1].messages() == []
    scene.ns += 1 * MS
    assert [op for op, *_ in scene.guests[1].messages()] == [XS.WRITE]
    assert scene.credit(1) == 1
    assert scene.conflict(1, b"again")
    assert not scene.write(1, b"/s", b"at zero")
    scene.ns += 1000 * MS
    assert scene.guests[1].messages()
    assert scene.conflict(1, b"and again")


def test_points_go_to_one_domain_at_a_time_first_to_those_that_wait() -> None:
    scene = Scene()
    assert scene.conflict(3, b"once")
    for domid in (1, 2):
        assert all(scene.conflict(domid, b"%d.%d" % (domid, number)) for number in range(5))
    assert [scene.credit(domid) for domid in (1, 2, 3)] == [0, 0, 4]
    for after in ([1, 0, 4], [1, 1, 4], [1, 1, 5], [1, 1, 5]):
        scene.ns += 50 * MS
        scene.write(1, b"/t", b"")  # whoever has no credit looks how it stands
        scene.write(2, b"/t", b"")
        assert [scene.credit(domid) for domid in (1, 2, 3)][:2] == after[:2]


def test_an_old_transaction_has_nobody_to_blame() -> None:
    scene = Scene()
    tx = scene.victim()
    scene.ns += 51 * MS
    assert scene.write(1, b"/s", b"x")
    assert end(scene.dom0, tx) == "EAGAIN"
    assert scene.credit(1) == 5


def test_nothing_is_remembered_when_no_transaction_is_open_and_never_much() -> None:
    scene = Scene()
    credit = scene.server.credit
    assert isinstance(credit, ConflictCredit)
    tree = credit.tree
    scene.write(1, b"/s", b"x")
    assert (tree.journal, len(credit.records)) == (None, 0)
    tx = scene.victim()
    for number in range(JOURNAL_MAX + 50):
        scene.write(1, b"/t", b"%d" % number)
    assert tree.journal is not None
    assert len(tree.journal) <= JOURNAL_MAX
    assert len(credit.records) <= RECORDS_MAX + 1
    scene.dom0.call(XS.TRANSACTION_END, b"F\0", tx)
    assert tree.journal is None
    for how in ("reset", "gone"):
        client = scene.server.connect_local(how)
        start(client)
        client.reset() if how == "reset" else scene.server.disconnect(client)
        assert tree.journal is None


def test_a_domain_that_dies_is_out_of_the_queues() -> None:
    scene = Scene()
    for domid in (1, 2):
        assert all(scene.conflict(domid, b"%d.%d" % (domid, number)) for number in range(5))
    scene.server.domain_died(1)
    credit = scene.server.credit
    assert isinstance(credit, ConflictCredit)
    assert [domain.domid for domain in credit.paused] == [2]
    scene.ns += 50 * MS
    assert scene.write(2, b"/t", b"")


def test_over_a_ring_the_guest_waits_in_virtual_time() -> None:
    world = make(profile=OX)
    guest = add_guest(world)
    other = world.server.connect_local("other")
    begun = world.loop.now
    for number in range(8):
        tx = start(world.client)
        world.client.call(XS.DIRECTORY, b"/local/domain/%d/data\0" % guest.domain.domid, tx)
        world.client.call(XS.WRITE, b"/b\0%d" % number, tx)
        guest.call(XS.WRITE, b"data/%d\0" % number)
        assert answer(world.client, XS.TRANSACTION_END, b"T\0", tx) == "EAGAIN"
    assert other.call(XS.READ, b"/\0") == b""
    took = world.loop.now - begun
    assert 100 * MS <= took <= 200 * MS  # five are free, each of the others costs a point
    world.hypervisor.close()


# Events that a guest does not read.


def readers(scene: Scene, *watches: bytes) -> WireClient:
    guest = scene.guests[1]
    for watch in watches:
        guest.send(XS.WATCH, watch)
    guest.messages()
    return guest


def flood(scene: Scene, domid: int, path: bytes, limit: int = 5000) -> int:
    """Writes until one waits: how many were answered."""
    return next((n for n in range(limit) if not scene.write(domid, path, b"%d" % n)), limit)


def test_who_causes_too_many_unread_events_waits_until_they_are_read() -> None:
    scene = Scene()
    guest = readers(scene, b"/s\0t\0")
    assert flood(scene, 2, b"/s") == 1024 + 1024 + 1
    assert scene.guests[2].connection.blocked == 1
    assert scene.write(3, b"/t", b"others go on")
    assert not scene.write(3, b"/s", b"x") or not scene.write(3, b"/s", b"y")
    first = guest.connection.take_output(60)  # two events and a part of the third
    assert scene.guests[2].messages()
    while more := guest.connection.take_output(1 << 20):
        first += more
    events = split(first)
    assert {(op, payload) for op, _, _, payload in events} == {(XS.WATCH_EVENT, b"/s\0t\0")}
    assert len(events) == 1 + 2049 + 1  # with the one of each write that waited
    assert scene.guests[3].connection.blocked == 0
    assert scene.write(3, b"/s", b"z")


def test_each_watch_has_room_of_its_own() -> None:
    scene = Scene()
    readers(scene, b"/s\0t\0", b"/t\0t\0")
    assert flood(scene, 2, b"/s") == 2049
    assert flood(scene, 3, b"/t") == 1025


@pytest.mark.parametrize("how", ["dies", "resets"])
def test_a_reader_that_goes_lets_everybody_go_on(how: str) -> None:
    scene = Scene()
    guest = readers(scene, b"/s\0t\0")
    flood(scene, 2, b"/s")
    if how == "dies":
        scene.server.domain_died(1)
    else:
        guest.connection.reset()
    assert scene.guests[2].connection.blocked == 0
    assert len(scene.guests[2].messages()) == 1
    if how == "dies":
        assert scene.write(2, b"/s", b"x")
    assert guest.connection.domain.memory == 0


def test_what_cannot_wait_loses_its_events() -> None:
    scene = Scene()
    guest = readers(scene, b"/s\0t\0")
    for number in range(3000):
        scene.dom0.call(XS.WRITE, b"/s\0%d" % number)
    assert len(guest.events()) == 2048


def test_a_guest_blocks_itself() -> None:
    scene = Scene()
    guest = readers(scene, b"/s\0t\0")
    for number in range(1500):
        guest.send(XS.WRITE, b"/s\0%d" % number)
    # 1,024 replies wait: of each request the reply and one event.
    assert guest.connection.domain.outstanding == 1024
    assert len(guest.messages()) == 2 * 1500
