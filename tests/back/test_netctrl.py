"""netback's control ring: every message, every limit, and guests that do not keep to it."""

from __future__ import annotations

from struct import unpack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.back.ctrlfront import (
    GET_FLAGS,
    GET_SIZE,
    INVALID,
    NOT_SUPPORTED,
    SET_ALGORITHM,
    SET_FLAGS,
    SET_KEY,
    SET_MAPPING,
    SET_SIZE,
    SUCCESS,
    Ctrl,
    control,
)
from tests.rss import KEY, VECTORS, Vector
from xenpv.host.network import Frame

NONE, TOEPLITZ = 0, 1
BAD_REF = 999_999

# situation, requests before, the request, status, data
MESSAGES = [
    ("algorithm none", [], (SET_ALGORITHM, 0), SUCCESS, 0),
    ("algorithm toeplitz", [], (SET_ALGORITHM, 1), SUCCESS, 0),
    ("algorithm 2", [], (SET_ALGORITHM, 2), INVALID, 0),
    ("algorithm of 32 bits", [], (SET_ALGORITHM, 0xFFFFFFFF), INVALID, 0),
    ("get flags without algorithm", [], (GET_FLAGS,), NOT_SUPPORTED, 0),
    ("get flags", [(SET_ALGORITHM, 1)], (GET_FLAGS,), SUCCESS, 0xF),
    ("set flags without algorithm", [], (SET_FLAGS, 0xF), INVALID, 0),
    ("set no flags without algorithm", [], (SET_FLAGS, 0), INVALID, 0),
    ("set all flags", [(SET_ALGORITHM, 1)], (SET_FLAGS, 0xF), SUCCESS, 0),
    ("set no flags", [(SET_ALGORITHM, 1)], (SET_FLAGS, 0), SUCCESS, 0),
    ("set an unknown flag", [(SET_ALGORITHM, 1)], (SET_FLAGS, 0x10), INVALID, 0),
    ("set the highest flag", [(SET_ALGORITHM, 1)], (SET_FLAGS, 0x80000001), INVALID, 0),
    ("mapping size asked", [], (GET_SIZE,), SUCCESS, 128),
    ("mapping size 0", [], (SET_SIZE, 0), SUCCESS, 0),
    ("mapping size 128", [], (SET_SIZE, 128), SUCCESS, 0),
    ("mapping size 129", [], (SET_SIZE, 129), INVALID, 0),
    ("mapping size of 32 bits", [], (SET_SIZE, 0xFFFFFFFF), INVALID, 0),
    ("key of no bytes, any reference", [], (SET_KEY, BAD_REF, 0), SUCCESS, 0),
    ("key of 41 bytes", [], (SET_KEY, 1, 41), INVALID, 0),
    ("key of 32 bits", [], (SET_KEY, 1, 0xFFFFFFFF), INVALID, 0),
    ("key by a bad reference", [], (SET_KEY, BAD_REF, 40), INVALID, 0),
    ("mapping before its size", [], (SET_MAPPING, 1, 1, 0), INVALID, 0),
    ("mapping of none before its size", [], (SET_MAPPING, BAD_REF, 0, 0), SUCCESS, 0),
    ("mapping of none at its end", [(SET_SIZE, 4)], (SET_MAPPING, BAD_REF, 0, 4), SUCCESS, 0),
    ("mapping of none past its end", [(SET_SIZE, 4)], (SET_MAPPING, BAD_REF, 0, 5), INVALID, 0),
    ("mapping by a bad reference", [(SET_SIZE, 4)], (SET_MAPPING, BAD_REF, 4, 0), INVALID, 0),
    ("type 0", [], (0,), NOT_SUPPORTED, 0),
    ("gref mapping size", [], (8, 0), NOT_SUPPORTED, 0),
    ("add gref mapping", [], (9, 0, 1, 1), NOT_SUPPORTED, 0),
    ("delete gref mapping", [], (10, 0, 1, 1), NOT_SUPPORTED, 0),
    ("type 11", [], (11,), NOT_SUPPORTED, 0),
    ("type 65535", [], (0xFFFF,), NOT_SUPPORTED, 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "request_", "status", "data"),
    [row[1:] for row in MESSAGES],
    ids=[row[0] for row in MESSAGES],
)
def test_answer(
    before: list[tuple[int, ...]], request_: tuple[int, ...], status: int, data: int
) -> None:
    with control() as ctrl:
        for one in before:
            assert ctrl.ask(*one) == (SUCCESS, 0)
        assert ctrl.ask(*request_) == (status, data)
        assert not ctrl.back.disabled


# situation, size of the table, entries in the page, len, off, status, the table then
MAPPINGS = [
    ("whole", 4, (0, 1, 2, 1), 4, 0, SUCCESS, (0, 1, 2, 1)),
    ("a part", 4, (2, 1), 2, 1, SUCCESS, (0, 2, 1, 0)),
    ("the last entry", 4, (2,), 1, 3, SUCCESS, (0, 0, 0, 2)),
    ("one past the end", 4, (1, 1), 2, 3, INVALID, (0, 0, 0, 0)),
    ("an offset that wraps (XSA-270)", 4, (1, 1), 2, 0xFFFFFFFF, INVALID, (0, 0, 0, 0)),
    ("a length that wraps (XSA-270)", 4, (1, 1), 0xFFFFFFFF, 1, INVALID, (0, 0, 0, 0)),
    ("a queue that is not", 4, (1, 3), 2, 0, INVALID, (0, 0, 0, 0)),
    ("a queue of 32 bits", 4, (1, 0xFFFFFFFF), 2, 0, INVALID, (0, 0, 0, 0)),
    ("more than a page", 128, (1,), 1025, 0, INVALID, (0,) * 128),
    ("none", 2, (1,), 0, 1, SUCCESS, (0, 0)),
]


@pytest.mark.parametrize(
    ("size", "entries", "count", "offset", "status", "after"),
    [row[1:] for row in MAPPINGS],
    ids=[row[0] for row in MAPPINGS],
)
def test_mapping(
    size: int, entries: tuple[int, ...], count: int, offset: int, status: int,
    after: tuple[int, ...],
) -> None:  # fmt: skip
    with control(queues=3) as ctrl:
        assert ctrl.ask(SET_SIZE, size) == (SUCCESS, 0)
        assert ctrl.ask(SET_MAPPING, ctrl.table(*entries), count, offset) == (status, 0)
        assert ctrl.back.hash.mapping == after


def test_new_size_zeroes_the_table_and_a_refused_mapping_leaves_the_old_one() -> None:
    with control(queues=2) as ctrl:
        ctrl.ask(SET_SIZE, 3)
        ctrl.ask(SET_MAPPING, ctrl.table(1, 1, 1), 3, 0)
        assert ctrl.ask(SET_MAPPING, ctrl.table(0, 2), 2, 0) == (INVALID, 0)
        assert ctrl.back.hash.mapping == (1, 1, 1)
        ctrl.ask(SET_SIZE, 2)
        assert ctrl.back.hash.mapping == (0, 0)


def test_short_key_is_followed_by_zeros_and_a_bad_one_changes_nothing() -> None:
    with control() as ctrl:
        page = ctrl.net.page(KEY)
        assert ctrl.ask(SET_KEY, page, 40) == (SUCCESS, 0)
        assert ctrl.back.hash.key == KEY
        assert ctrl.ask(SET_KEY, BAD_REF, 8) == (INVALID, 0)
        assert ctrl.back.hash.key == KEY
        assert ctrl.ask(SET_KEY, page, 5) == (SUCCESS, 0)
        assert ctrl.back.hash.key == KEY[:5] + bytes(35)
        assert ctrl.ask(SET_KEY, page, 0) == (SUCCESS, 0)
        assert ctrl.back.hash.key == bytes(40)


def configure(ctrl: Ctrl, mapping: tuple[int, ...] = ()) -> None:
    """What XenVif sends, in its order."""
    assert ctrl.ask(SET_ALGORITHM, TOEPLITZ) == (SUCCESS, 0)
    assert ctrl.ask(SET_SIZE, len(mapping)) == (SUCCESS, 0)
    assert ctrl.ask(SET_MAPPING, ctrl.table(*mapping), len(mapping), 0) == (SUCCESS, 0)
    assert ctrl.ask(SET_KEY, ctrl.net.page(KEY), 40) == (SUCCESS, 0)
    assert ctrl.ask(SET_FLAGS, 0xF) == (SUCCESS, 0)


@pytest.mark.parametrize("start", [0, 0xFFFFFFF0])
def test_every_slot_in_turn_is_answered(start: int) -> None:
    with control(start=start) as ctrl:
        for _ in range(3):
            ctrl.push(*[(at, GET_SIZE) for at in range(128)])
            ctrl.net.world.run()
            assert ctrl.answers() == [(at, GET_SIZE, SUCCESS, 128) for at in range(128)]


def test_more_requests_than_slots_break_the_vif() -> None:
    with control() as ctrl:
        ctrl.sring.req_prod = 129
        ctrl.notify()
        ctrl.net.world.run()
        assert ctrl.back.disabled
        assert not ctrl.back.carrier
        assert ctrl.answers() == []


def test_ring_that_cannot_be_mapped_or_has_no_port_fails_the_connection() -> None:
    for wrong in ({"ctrl_ring_ref": "9999"}, {"event_channel_ctrl": None}):
        with control(**wrong) as ctrl:
            assert not ctrl.connected
            assert ctrl.back.device.broken


def test_without_a_ring_there_is_none() -> None:
    with control(ctrl_ring_ref=None, event_channel_ctrl=None) as ctrl:
        assert ctrl.connected
        assert ctrl.back.control is None


def test_closing_gives_the_ring_back_and_forgets_the_hash() -> None:
    with control() as ctrl:
        configure(ctrl, (0,))
        back = ctrl.back
        pinned = ctrl.net.world.guest.domain.gnttab.pinned
        before = pinned()
        ctrl.net.world.vif.state = 6
        ctrl.net.world.run()
        assert before - pinned() == 3
        assert back.control is None
        ctrl.net.world.guest.revoke(ctrl.ref)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda one: one.source)
def test_frames_go_to_the_mapped_queue_with_their_hash(vector: Vector) -> None:
    with control(queues=3) as ctrl:
        configure(ctrl, (2, 0, 1, 1, 2))
        ctrl.net.deliver(Frame(vector.frame()))
        queue = (2, 0, 1, 1, 2)[vector.with_tcp % 5]
        per_queue = ctrl.received()
        assert [len(responses) for responses in per_queue] == [2 * (at == queue) for at in range(3)]
        first, extra = per_queue[queue]
        assert unpack("<HHHh", first) == (0, 0, 8, len(vector.frame()))  # extra_info
        kind = 1 if vector.version == 4 else 3
        assert unpack("<BBBBI", extra) == (4, 0, kind, TOEPLITZ, vector.with_tcp)


def test_gso_and_hash_extras_come_in_that_order() -> None:
    with control() as ctrl:
        configure(ctrl)
        data = VECTORS[0].frame() + bytes(6000)
        data = data[:16] + (len(data) - 14).to_bytes(2, "big") + data[18:46] + b"\x50" + data[47:]
        ctrl.net.deliver(Frame(data, csum_blank=True, gso_type=1, gso_size=1400))
        first, gso, extra, second = ctrl.received()[0]
        assert unpack("<HHHh", first) == (0, 0, 1 | 2 | 4 | 8, 4096)
        assert unpack("<BBHBBH", gso) == (1, 1, 1400, 1, 0, 0)
        assert unpack("<BBBBI", extra) == (4, 0, 1, TOEPLITZ, 0x51CCC178)
        assert unpack("<HHHh", second) == (3, 0, 0, len(data) - 4096)


def test_failed_copy_is_told_in_its_own_response_behind_extras() -> None:
    with control() as ctrl:
        configure(ctrl)
        rx = ctrl.rx[0]
        rx.write_slot(3, (BAD_REF).to_bytes(4, "little"), 4)
        data = VECTORS[0].frame() + bytes(6000)
        data = data[:16] + (len(data) - 14).to_bytes(2, "big") + data[18:46] + b"\x50" + data[47:]
        ctrl.net.deliver(Frame(data, csum_blank=True, gso_type=1, gso_size=1400))
        first, gso, extra, second = ctrl.received()[0]
        assert unpack("<HHHh", first)[3] == 4096
        assert (gso[:2], extra[:2]) == (b"\x01\x01", b"\x04\x00")
        assert unpack("<HHHh", second)[3] < 0


def test_what_has_no_hash_has_no_extra_and_goes_where_hash_0_goes() -> None:
    with control(queues=2) as ctrl:
        configure(ctrl, (1, 0))
        ctrl.net.deliver(Frame(bytes.fromhex("00163e000001 00163e0000ee 88b5") + bytes(46)))
        empty, (only,) = ctrl.received()
        assert empty == []
        assert unpack("<HHHh", only) == (0, 0, 0, 60)


def test_hash_that_a_sender_gave_is_not_passed_on() -> None:
    with control() as ctrl:
        ctrl.net.deliver(Frame(VECTORS[0].frame(), hash=(1, 0xDEAD)))
        assert len(ctrl.received()[0]) == 1
        configure(ctrl)
        ctrl.net.deliver(Frame(VECTORS[0].frame(), hash=(1, 0xDEAD)))
        assert ctrl.received()[0][1][4:8] == 0x51CCC178.to_bytes(4, "little")


WORD = st.one_of(
    st.sampled_from([0, 1, 2, 40, 41, 128, 129, 1024, 1025, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]),
    st.integers(0, 0xFFFFFFFF),
)
HOSTILE = st.tuples(st.integers(0, 0xFFFF), st.one_of(st.integers(0, 12), st.integers(0, 0xFFFF)),
                    st.one_of(st.just(-1), WORD), WORD, WORD)  # fmt: skip
STEP = st.one_of(
    st.lists(HOSTILE, min_size=1, max_size=8),
    st.tuples(st.sampled_from(["req_prod", "req_event", "rsp_prod", "rsp_event"]), WORD),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, max_size=6), st.sampled_from([0, 0xFFFFFFFA]))
def test_whatever_a_guest_writes_it_is_answered_or_loses_its_vif(
    steps: list[list[tuple[int, ...]] | tuple[str, int]], start: int
) -> None:
    with control(queues=2, start=start) as ctrl:
        good = ctrl.table(0, 1, 2)  # data of -1 stands for its reference
        honest = True
        for step in steps:
            if isinstance(step, tuple):
                setattr(ctrl.sring, *step)
                honest = False
                ctrl.notify()
            else:
                asked = [tuple(good if word == -1 else word for word in one) for one in step]
                ctrl.push(*asked)
            ctrl.net.world.run()
            if honest and not isinstance(step, tuple):
                answers = ctrl.answers()
                assert [one[:2] for one in answers] == [one[:2] for one in asked]
                assert {one[2] for one in answers} <= {SUCCESS, NOT_SUPPORTED, INVALID}
            configured = ctrl.back.hash
            assert configured.algorithm in (NONE, TOEPLITZ)
            assert configured.types in range(16)
            assert len(configured.key) == 40
            assert len(configured.mapping) <= 128
            assert all(queue < 2 for queue in configured.mapping)
        assert honest <= (not ctrl.back.disabled)
        ctrl.net.deliver(*[Frame(vector.frame()) for vector in VECTORS])
