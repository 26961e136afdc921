"""What a driver sends of its own: multicast requests and announcements, before all that waits."""

from __future__ import annotations

import pytest

from tests.vif.rawback import Scene, scene
from tests.vif.txscene import (
    DROPPED,
    DROPPED_STATUS,
    ERROR,
    EXTRA,
    LINUX_FEATURES,
    MORE,
    NULL,
    OKAY,
    keep,
    send,
    udp4,
    wire,
)
from xenpv.host.network import Frame
from xenpv.vif.callbacks import PacketType
from xenpv.vif.mac import FilterLevel

DYNAMIC = {**LINUX_FEATURES, "feature-dynamic-multicast-control": "1"}
GROUPS = [bytes.fromhex(f"01005e0000{n:02x}") for n in range(1, 5)]
ADD, REMOVE = 2, 3
MTU_FRAME = udp4(1472)


def control(group: bytes, kind: int) -> tuple[int, int, int, int, int]:
    """The slot of an MCAST extra, read as a request: type, flags 0, six bytes of address."""
    low, middle, high = (int.from_bytes(group[at : at + 2], "little") for at in (0, 2, 4))
    return (kind | low << 16, middle, high, 0, 0)


def take(s: Scene) -> list[tuple[int, int, int, int, int]]:
    """The slots that came, answered as Linux does; an id is not compared."""
    slots = s.back.sent()
    responses = []
    extra = False
    for ref, _, flags, number, _ in slots:
        responses.append((number, NULL if extra else OKAY))
        extra = bool(ref >> 8 & 1) if extra else bool(flags & EXTRA)
    s.back.answer_tx(*responses)
    s.run()
    return [(*slot[:3], 0, *slot[4:]) if slot[:2] == (0, 0) else slot for slot in slots]


ASK = (0, 0, EXTRA, 0, 0)


def test_newcomers_are_added_and_then_the_missing_removed() -> None:
    with scene(features=DYNAMIC) as s:
        s.pdo.frontend.set_multicast(GROUPS[:3])
        slots = take(s)
        assert slots == [slot for one in GROUPS[:3] for slot in (ASK, control(one, ADD))]
        s.pdo.frontend.set_multicast([GROUPS[0], GROUPS[3]])
        assert take(s) == [
            ASK, control(GROUPS[3], ADD),
            ASK, control(GROUPS[1], REMOVE), ASK, control(GROUPS[2], REMOVE),
        ]  # fmt: skip
        assert not s.broken


def test_all_are_removed_at_disable_and_added_at_enable() -> None:
    with scene(features=DYNAMIC) as s:
        s.pdo.frontend.set_multicast(GROUPS[:2])
        take(s)
        s.nic.pause()
        assert take(s) == [slot for one in GROUPS[:2] for slot in (ASK, control(one, REMOVE))]
        s.nic.restart()
        assert take(s) == [slot for one in GROUPS[:2] for slot in (ASK, control(one, ADD))]


@pytest.mark.parametrize("features", [LINUX_FEATURES, {}])
def test_a_backend_that_follows_no_list_is_told_nothing(features: dict[str, str]) -> None:
    with scene(features=features) as s:
        s.pdo.frontend.set_multicast(GROUPS)
        assert s.back.sent() == []
        assert s.key("request-multicast-control") is None


@pytest.mark.parametrize("status", [ERROR, DROPPED])
def test_a_refused_group_breaks_nothing(status: int) -> None:
    with scene(features=DYNAMIC) as s:
        s.pdo.frontend.set_multicast(GROUPS[:1])
        ask, extra = s.back.sent()
        s.back.answer_tx((ask[3], status), (extra[3], NULL))
        s.run()
        assert not s.broken
        ring = s.pdo.frontend.queues[0].transmitter
        assert ring is not None
        assert ring.refused == [GROUPS[0]]
        assert ring.posted == ring.answered == 2


def test_requests_of_lists_go_before_packets_that_wait() -> None:
    with scene(features=DYNAMIC) as s:
        keep(s.pdo.frontend)
        send(s, *[MTU_FRAME] * 200)
        assert len(s.back.sent()) == 256
        s.pdo.frontend.set_multicast(GROUPS[:1])
        s.pdo.frontend.queues[0].announce([udp4(18)])
        ring = s.pdo.frontend.queues[0].transmitter
        assert ring is not None
        owner = ring.slots.table.owner
        numbers = [number for number in range(300) if owner[number]]
        s.back.answer_tx(*((number, OKAY) for number in numbers[:10]))
        s.run()
        first, second, third, fourth, *rest = s.back.sent()
        assert (first[4], second[4]) == (60, 18)  # the announcement
        assert (third[:3], fourth[:3]) == ((0, 0, EXTRA), control(GROUPS[0], ADD)[:3])
        assert [slot[2] for slot in rest] == [MORE, 0] * 3


def test_an_announcement_comes_back_to_nobody() -> None:
    with wire() as w:
        w.frontend.queues[0].announce([udp4(100), udp4(101)])
        w.xen.run()
        assert [one.data for one in w.sink.frames] == [udp4(100), udp4(101)]
        assert w.keeper.done == {}
        assert w.frontend.queues[0].in_flight == 0


def test_what_waited_of_its_own_dies_with_the_connection() -> None:
    with scene(features=DYNAMIC) as s:
        keeper = keep(s.pdo.frontend)
        send(s, *[MTU_FRAME] * 128)
        s.pdo.frontend.queues[0].announce([udp4(10)])
        s.pdo.frontend.set_multicast(GROUPS)
        s.pdo.eject()
        s.run()
        assert [one[0] for one in keeper.done.values()] == [DROPPED_STATUS] * 128


def heard(level: FilterLevel, groups: list[bytes], group: bytes) -> bool:
    """Whether a frame to a group crosses the rings of a guest."""
    with wire() as w:
        w.frontend.set_filter_level(PacketType.MULTICAST, level)
        w.frontend.set_multicast(groups)
        w.xen.run()
        frame = group + bytes.fromhex("00163e0000ee") + udp4(50)[12:]
        ring = w.frontend.queues[0].receiver
        assert ring is not None
        before = ring.answered
        w.xen.bridge("xenbr0").transmit(w.sink, [Frame(frame)], w.xen.loop.now)
        w.xen.run()
        return ring.answered != before


@pytest.mark.parametrize(
    ("level", "groups", "group", "crosses"),
    [
        (FilterLevel.MATCHING, [], GROUPS[0], False),
        (FilterLevel.MATCHING, GROUPS[:1], GROUPS[0], True),
        (FilterLevel.MATCHING, GROUPS[:1], GROUPS[1], False),
        (FilterLevel.MATCHING, [], b"\xff" * 6, True),
        (FilterLevel.ALL, [], GROUPS[0], True),
        (FilterLevel.NONE, [], GROUPS[0], False),
    ],
)
def test_the_real_backend_filters_by_the_list(
    level: FilterLevel, groups: list[bytes], group: bytes, crosses: bool
) -> None:
    assert heard(level, groups, group) == crosses


def test_ids_of_requests_are_used_again() -> None:
    with scene(features=DYNAMIC) as s:
        for _ in range(80):
            s.pdo.frontend.set_multicast(GROUPS)
            assert len(take(s)) == 8
            s.pdo.frontend.set_multicast([])
            assert len(take(s)) == 8
        assert not s.broken
