"""The write rate limit, in virtual time: by the store alone, and by a guest over its ring."""

from __future__ import annotations

import pytest

from tests.store.client import Platform, WireClient, start
from tests.world import World, make
from xenpv.abi.xs import XS
from xenpv.store.server import Xenstored

MS = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


class Scene:
    """One or more guests and dom0 over a store whose clock is moved by hand."""

    def __init__(self, guests: int = 1) -> None:
        self.clock = Clock()
        platform = Platform(set(range(1, guests + 1)))
        self.server = platform.server = Xenstored(domains=platform, clock=self.clock)
        self.dom0 = self.server.connect_local("dom0")
        self.guests = []
        for domid in range(1, guests + 1):
            self.dom0.call(XS.WRITE, b"/local/domain/%d\0" % domid)
            self.dom0.call(XS.SET_PERMS, b"/local/domain/%d\0n%d\0" % (domid, domid))
            self.dom0.call(XS.INTRODUCE, b"%d\x001\x002\0" % domid)
            self.guests.append(WireClient(platform.connections[domid]))

    def write(self, guest: int = 0) -> bool:
        """One WRITE; whether it was answered at once."""
        self.guests[guest].send(XS.WRITE, b"k\0001")
        return bool(self.guests[guest].messages())

    def burst(self, guest: int = 0) -> int:
        """Writes until one waits."""
        done = 0
        while self.write(guest):
            done += 1
            assert done < 10_000
        return done


def test_without_an_open_transaction_writes_are_free() -> None:
    scene = Scene()
    assert all(scene.write() for _ in range(1000))


@pytest.mark.parametrize("own", [False, True])
def test_a_burst_and_then_two_hundred_a_second(own: bool) -> None:
    scene = Scene()
    scene.guests[0].call(XS.WRITE, b"k\0000")
    if own:
        start(scene.guests[0])
    else:
        start(scene.dom0)  # anybody's open transaction will do
    first = scene.burst()
    assert first in {10, 11}  # ten of credit, and the one that takes it below zero
    answered = 0
    for _ in range(1000):
        scene.clock.ns += MS
        answered += len(scene.guests[0].messages())
        if not scene.guests[0].connection.stalled and scene.write():
            answered += 1
    assert 198 <= answered <= 202


def test_the_rate_is_shared_by_the_domains() -> None:
    scene = Scene(4)
    start(scene.dom0)
    scene.burst()
    answered = 0
    for _ in range(1000):
        scene.clock.ns += MS
        answered += len(scene.guests[0].messages())
        if not scene.guests[0].connection.stalled and scene.write():
            answered += 1
    assert 48 <= answered <= 52


def test_each_node_counts_and_so_does_a_commit() -> None:
    scene = Scene()
    start(scene.dom0)
    credit = scene.guests[0].connection.domain.credit
    scene.guests[0].call(XS.WRITE, b"a/b/c\0001")  # three nodes, their parents, and a value
    spent = credit - scene.guests[0].connection.domain.credit
    assert spent == 7 * 1000
    tx = start(scene.guests[0])
    scene.guests[0].call(XS.WRITE, b"a/b/c\0002", tx)
    before = scene.guests[0].connection.domain.credit
    scene.guests[0].call(XS.TRANSACTION_END, b"T\0", tx)
    assert before - scene.guests[0].connection.domain.credit == 1000


def test_reads_wait_behind_what_was_written_too_fast_and_nobody_else_does() -> None:
    scene = Scene(2)
    start(scene.dom0)
    scene.burst(0)
    scene.guests[0].send(XS.READ, b"k\0")
    assert scene.guests[0].messages() == []
    assert scene.guests[1].call(XS.WRITE, b"k\0001") == b"OK\0"
    scene.clock.ns += 1000 * MS
    assert [op for op, *_ in scene.guests[0].messages()] == [XS.WRITE, XS.READ]


def test_a_domain_that_goes_leaves_its_credit_to_the_next() -> None:
    scene = Scene()
    credit = scene.server.credit
    start(scene.dom0)
    for _ in range(4):
        scene.write()
    had, reserve = scene.guests[0].connection.domain.credit, credit.reserve
    scene.dom0.call(XS.RELEASE, b"1\0")
    assert credit.reserve == reserve + had
    assert credit.domains == 0


@pytest.fixture
def world() -> World:
    return make()


def test_a_guest_that_writes_on_and_on_spends_its_virtual_time_waiting(world: World) -> None:
    _, store = world.bus_store()
    world.client.call(XS.TRANSACTION_START, b"\0")
    begun = world.loop.now
    for number in range(210):
        store.write("data/key", str(number))
    # Ten at once, then 200 a second: each write of the existing node is one node.
    took = (world.loop.now - begun) / 1e9
    assert 0.9 < took < 1.1
    assert world.read("/local/domain/1/data/key") == "209"
    world.loop.run()
