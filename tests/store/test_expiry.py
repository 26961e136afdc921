"""Events that a guest leaves unread go after 20 s of virtual time (xen-core 1.4)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.store.rawguest import RawGuest, add_guest
from tests.world import World, make
from xenpv.abi.xs import XS
from xenpv.store.expiry import NEVER, Backlog
from xenpv.store.profile import LEGACY, OX
from xenpv.xen.loop import NS_PER_S

LONG = "d" * 200


@pytest.fixture
def world() -> Iterator[World]:
    made = make()
    yield made
    made.hypervisor.close()


def watcher(world: World) -> RawGuest:
    """A guest that watches all of its data and has read all that came of it."""
    guest = add_guest(world)
    guest.send(XS.WATCH, b"data\0t\0")
    assert len(guest.messages()) == 2
    return guest


def flood(world: World, guest: RawGuest, start: int, count: int) -> None:
    """`count` events of 227 bytes each: four and a half of them fill the ring."""
    for index in range(start, start + count):
        world.write(f"/local/domain/{guest.domain.domid}/data/{LONG}{index:02d}", "")
    world.loop.run()


def let_write(world: World, guest: RawGuest) -> None:
    """Thirty nodes of `guest` that domain 1 may write to, with nothing heard of them yet."""
    world.chmod(f"/local/domain/{guest.domain.domid}/data", f"n{guest.domain.domid}", "b1")
    for start in range(0, 30, 3):
        flood(world, guest, start, 3)
        guest.messages()


def heard(guest: RawGuest) -> list[int]:
    return [int(payload[:-3][-2:]) for op, _, _, payload in guest.messages() if op == 15]


def test_events_in_the_ring_or_begun_stay_and_the_rest_goes(world: World) -> None:
    guest = watcher(world)
    connection = world.daemon.rings[guest.domain.domid].connection
    flood(world, guest, 0, 9)
    held = connection.domain.memory
    world.loop.advance(20 * NS_PER_S - 1)
    assert connection.backlog == 5
    world.loop.advance(1)
    assert connection.backlog == 1
    assert connection.domain.memory < held
    assert heard(guest) == [0, 1, 2, 3, 4]
    assert connection.waiting.cohorts == []
    flood(world, guest, 1, 1)  # a value that was heard of before: nothing remembers the event
    assert heard(guest) == [1]


def test_each_event_has_its_own_twenty_seconds(world: World) -> None:
    guest = watcher(world)
    flood(world, guest, 0, 7)
    world.loop.advance(15 * NS_PER_S)
    flood(world, guest, 7, 3)
    world.loop.advance(5 * NS_PER_S)
    connection = world.daemon.rings[guest.domain.domid].connection
    assert connection.backlog == 1 + 3
    world.loop.advance(14 * NS_PER_S)
    assert heard(guest) == [0, 1, 2, 3, 4, 7, 8, 9]


def test_the_next_events_behind_one_that_is_half_sent_go_too(world: World) -> None:
    guest = watcher(world)
    connection = world.daemon.rings[guest.domain.domid].connection
    for start in (0, 10, 20):
        flood(world, guest, start, 9)
        world.loop.advance(20 * NS_PER_S)
        assert connection.backlog == 1
    assert heard(guest) == [0, 1, 2, 3, 4]


def test_an_event_that_was_dropped_is_not_held_against_its_like(world: World) -> None:
    guest = watcher(world)
    flood(world, guest, 0, 7)
    world.loop.advance(20 * NS_PER_S)
    flood(world, guest, 6, 1)
    assert heard(guest) == [0, 1, 2, 3, 4, 6]


def test_replies_do_not_expire(world: World) -> None:
    guest = watcher(world)
    world.write(f"/local/domain/{guest.domain.domid}/data/big", "v" * 900)
    guest.messages()
    for _ in range(3):
        guest.send(XS.READ, b"data/big\0")
    flood(world, guest, 0, 2)
    world.loop.advance(100 * NS_PER_S)
    assert [(op, len(payload)) for op, _, _, payload in guest.messages()] == [(XS.READ, 900)] * 3


def test_replies_around_events_that_went_leave_in_order_and_time_runs_for_later_events(
    world: World,
) -> None:
    guest = watcher(world)
    world.write(f"/local/domain/{guest.domain.domid}/data/big", "v" * 900)
    guest.messages()
    guest.send(XS.READ, b"data/big\0", req_id=1)
    guest.send(XS.READ, b"data/big\0", req_id=2)
    flood(world, guest, 0, 1)
    guest.send(XS.READ, b"data/big\0", req_id=3)
    world.loop.advance(20 * NS_PER_S)
    flood(world, guest, 1, 1)
    backlog = world.daemon.rings[guest.domain.domid].connection.waiting
    assert [deadline == NEVER for deadline, _ in backlog.cohorts] == [True, False]
    world.loop.advance(20 * NS_PER_S)
    assert [req_id for _, req_id, _, _ in guest.messages()] == [1, 2, 3]


def test_whoever_is_stalled_by_unread_events_goes_on(world: World) -> None:
    guest = watcher(world)
    let_write(world, guest)
    writer = RawGuest(world, world.guest)
    before = world.loop.now
    done = 0
    for index in range(30):
        path = b"/local/domain/%d/data/%s%02d\0" % (guest.domain.domid, LONG.encode(), index)
        writer.send(XS.WRITE, path)
        done += len(writer.messages())
    # The ring holds four events and a part of the fifth; twenty of those behind it wait.
    assert done == 30, "the loop waits for whom time alone can help"
    assert world.loop.now - before == 20 * NS_PER_S
    assert world.daemon.rings[1].connection.domain.outstanding <= 20
    assert heard(guest)[:5] == [0, 1, 2, 3, 4]


def test_a_guest_that_spins_for_its_reply_lets_the_time_pass(world: World) -> None:
    guest = watcher(world)
    let_write(world, guest)
    _, store = world.bus_store()
    for index in range(30):
        store.write(f"/local/domain/{guest.domain.domid}/data/{LONG}{index:02d}", "")
    assert world.loop.now == 20 * NS_PER_S


def test_a_guest_that_does_not_read_does_not_make_the_loop_wait(world: World) -> None:
    guest = watcher(world)
    flood(world, guest, 0, 9)
    assert world.loop.now == 0


def test_no_timer_where_everything_is_read(world: World) -> None:
    guest = watcher(world)
    tasks = world.loop.tasks_made
    flood(world, guest, 0, 3)
    assert heard(guest) == [0, 1, 2]
    assert world.loop.tasks_made == tasks
    assert world.daemon.expiry_ns == 0


def test_the_timer_stops_when_nothing_waits(world: World) -> None:
    guest = watcher(world)
    flood(world, guest, 0, 9)
    assert world.daemon.expiry_ns == 20 * NS_PER_S
    world.hypervisor.destroy_domain(guest.domain)
    world.loop.advance(20 * NS_PER_S)
    assert world.daemon.expiry_ns == 0


@pytest.mark.parametrize("profile", [OX, LEGACY], ids=["ox", "legacy"])
def test_others_keep_events_for_ever(profile) -> None:
    world = make(profile=profile)
    guest = watcher(world)
    flood(world, guest, 0, 9)
    world.loop.advance(1000 * NS_PER_S)
    assert heard(guest) == list(range(9))
    world.hypervisor.close()


@pytest.mark.parametrize(("seconds", "kept"), [(0, 9), (5, 5), (6, 9)])
def test_the_time_is_a_setting(world: World, seconds: int, kept: int) -> None:
    world.server.event_timeout_s = seconds
    guest = watcher(world)
    flood(world, guest, 0, 9)
    world.loop.advance(5 * NS_PER_S)
    assert heard(guest) == list(range(kept))


def test_sockets_and_dom0_keep_theirs(world: World) -> None:
    socket = world.server.connect_socket("socket")
    local = world.server.connect_local("local")
    for connection in (socket, local):
        connection.call(XS.WATCH, b"/local\0t\0")
    world.write("/local/x", "")
    world.loop.advance(1000 * NS_PER_S)
    assert (socket.backlog, len(local.events)) == (2, 2)


STEP = st.one_of(
    st.tuples(st.just("queue"), st.integers(1, 5)),
    st.tuples(st.just("send"), st.integers(1, 5)),
    st.tuples(st.just("wait"), st.integers(1, 25)),
)


@given(st.lists(STEP, max_size=40))
def test_a_backlog_counts_what_a_list_of_deadlines_does(steps: list[tuple[str, int]]) -> None:
    backlog = Backlog()
    deadlines: list[int] = []
    now = 0
    for step, size in steps:
        if step == "queue":
            deadlines += [now + 20] * size
            backlog.note(len(deadlines), now + 20)
        elif step == "send":
            count = min(size, len(deadlines))
            del deadlines[:count]
            backlog.left(count)
        else:
            now += size
            due = backlog.due(now)
            assert due == sum(deadline <= now for deadline in deadlines)
            kept = due // 2
            backlog.settle(due, kept)
            deadlines = [NEVER] * kept + deadlines[due:]
        assert backlog.noted == len(deadlines)
        assert backlog.next_ns() == next((one for one in deadlines if one != NEVER), None)
        assert len(backlog.cohorts) <= len(deadlines)
