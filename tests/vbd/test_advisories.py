"""What a hostile backend does, by the advisory or defect; and anything else that it may do."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vbd.rawback import (
    EOPNOTSUPP,
    ERROR,
    OKAY,
    READ,
    SYNC10,
    Scene,
    read10,
    scene,
    write10,
)
from xenpv.errors import GrantError, HypercallError, LocalProtocolError, PeerProtocolError
from xenpv.vbd.frontend import FrontendState
from xenpv.vbd.parameters import Parameters
from xenpv.vbd.srb import Srb, SrbFunction, SrbStatus

SUCCESS, FAILED, PENDING = SrbStatus.SUCCESS, SrbStatus.ERROR, SrbStatus.PENDING
EVERYTHING = {"feature-persistent": "1", "feature-discard": "1", "feature-barrier": "1"}
WIDE = {"feature-max-indirect-segments": "256"}


@pytest.fixture(params=["windows", "linux"])
def on(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with scene(request.param, early=WIDE) as made:
        yield made


def reads(on: Scene, count: int = 2) -> list[Srb]:
    pfn = on.domain.pages.alloc(count)
    return [on.submit(read10(8 * n, 8), [(pfn + n, 0, 4096)]) for n in range(count)]


def is_broken(on: Scene, *srbs: Srb) -> bool:
    """The target says why, its SRBs ended, nothing goes out any more, and it can be stopped."""
    assert {srb.srb_status for srb in srbs} == {FAILED}
    assert on.submit(read10(0, 1), [(on.page(), 0, 512)]).srb_status is FAILED
    assert on.back.taken() == []
    on.back.notify()
    reason = on.target.broken
    on.target.stop()
    on.xen.run()
    assert on.target.state is FrontendState.CLOSED
    assert on.frontend.granter.granted == 0
    return bool(reason)


# XSA-376: responses


@pytest.mark.parametrize("ahead", [1, 30, 31, 32, 33, 2**31, 2**32 - 3])
def test_xsa_376_more_responses_than_requests(on: Scene, ahead: int) -> None:
    srbs = reads(on)
    on.back.taken()
    on.back.store(8, 2 + ahead)
    on.back.notify()
    assert is_broken(on, *srbs)


@pytest.mark.parametrize("rid", [0, 2, 31, 32, 2**16, 2**32, 2**63, 2**64 - 1])
def test_xsa_376_an_id_that_is_not_in_flight(on: Scene, rid: int) -> None:
    srbs = reads(on)
    ids = [slot.id for slot in on.back.taken()]
    wrong = rid if rid not in ids else 77
    on.back.answer((wrong, OKAY))
    assert is_broken(on, *srbs)


def test_xsa_376_an_id_that_is_answered_twice(on: Scene) -> None:
    srbs = reads(on)
    slots = on.back.taken()
    on.back.answer((slots[0].id, OKAY))
    on.back.answer((slots[0].id, ERROR))
    assert srbs[0].srb_status is SUCCESS
    assert is_broken(on, srbs[1])


def test_xsa_376_a_request_that_was_prepared_and_not_sent_has_no_answer() -> None:
    """Its id is given before it is on the ring."""
    with scene() as on:
        srbs = reads(on, 31)
        srbs.append(on.submit(read10(0, 176), [(on.domain.pages.alloc(22), 0, 22 * 4096)]))
        (waiting,) = on.frontend.rings[0].prepared
        assert waiting.id not in [slot.id for slot in on.back.taken()]
        on.back.answer((waiting.id, OKAY))
        assert is_broken(on, *srbs)


def test_xsa_376_what_changes_after_it_was_read_is_not_seen(on: Scene) -> None:
    """Requests in the ring are the backend's to write: none is read back."""
    srbs = reads(on)
    slots = on.back.taken()
    page = on.back.rings[0].pfns[0]
    on.back.domain.write(page, 64, b"\xff" * (4096 - 64))
    on.back.answer(*[(slot.id, OKAY) for slot in slots])
    assert {srb.srb_status for srb in srbs} == {SUCCESS}
    assert on.target.broken == ""


def test_xsa_376_a_response_is_copied_before_it_is_looked_at(on: Scene) -> None:
    """One that says two things: what the first look says holds."""
    srbs = reads(on)
    slots = on.back.taken()
    ring = on.frontend.rings[0]
    finish = ring._finish

    def racing(request: object, status: int) -> None:
        on.back.domain.write(on.back.rings[0].pfns[0], 64, b"\xff" * 1024)
        finish(request, status)  # type: ignore[arg-type]  # a Request

    ring._finish = racing  # type: ignore[method-assign]
    on.back.answer(*[(slot.id, OKAY) for slot in slots])
    assert {srb.srb_status for srb in srbs} == {SUCCESS}


@pytest.mark.parametrize("status", [1, 2, 127, 32767, -3, -4, -32768])
def test_a_status_that_is_none_is_an_error(on: Scene, status: int) -> None:
    (srb,) = reads(on, 1)
    (slot,) = on.back.taken()
    on.back.answer((slot.id, status))
    assert srb.srb_status is FAILED
    assert on.target.broken == ""


# XSA-391: events


def test_xsa_391_a_backend_that_never_stops_sending_events_starves_nobody(on: Scene) -> None:
    (srb,) = reads(on, 1)
    (slot,) = on.back.taken()
    left, sent = [2000], on.back.domain.evtchn.send
    storm = on.back.device.domain.task("storm", lambda: None)

    def again() -> None:
        sent(on.back.ports[0])
        left[0] -= 1
        if left[0] == 1000:
            packed = struct.pack("<QBxh4x", slot.id, READ, OKAY)
            on.back.rings[0].push(packed, 1)
        if left[0] == 500:
            assert srb.srb_status is SUCCESS
        if left[0]:
            storm.wake()

    storm.run = again  # type: ignore[method-assign]
    storm.wake()
    steps = on.xen.run()
    assert srb.srb_status is SUCCESS
    assert steps < 2000 * 6
    assert on.back.taken() == []


# XSA-396: grants that are mapped on


@pytest.mark.parametrize("personality", ["windows", "linux"])
@pytest.mark.parametrize("offset", [0, 3])
def test_xsa_396_a_page_that_stays_mapped_breaks_the_disk_and_is_nobodys(
    personality: str, offset: int
) -> None:
    with scene(personality) as on:
        pfn = on.domain.pages.alloc(2)
        srb = on.submit(read10(0, 8), [(pfn, offset, 4096)])
        (slot,) = on.back.taken()
        mapped = [on.back.map(ref) for ref, _first, _last in slot.segments]
        on.back.answer((slot.id, OKAY))
        assert srb.srb_status is SUCCESS  # the data came; the disk is broken
        assert "mapped" in on.target.broken
        granter = on.frontend.granter
        held = [(ref, page) for ref, page, _owned in granter.quarantine]
        assert [ref for ref, _page in held] == [ref for ref, _f, _l in slot.segments]
        fresh = on.domain.pages.alloc(64)
        assert not any(fresh <= page < fresh + 64 for _ref, page in held)
        free = set(on.frontend.bus.gnttab._free)
        assert not free & {ref for ref, _page in held}
        for page in mapped:
            on.back.unmap(page)
        on.target.stop()
        on.xen.run()
        assert granter.granted == 0
        assert granter.quarantine == []


def test_xsa_396_an_indirect_page_too(on: Scene) -> None:
    srb = on.submit(read10(0, 160), [(on.domain.pages.alloc(20), 0, 20 * 4096)])
    (slot,) = on.back.taken()
    mapped = on.back.map(slot.grefs[0], readonly=True)
    on.back.answer((slot.id, OKAY))
    assert srb.srb_status is SUCCESS
    assert "mapped" in on.target.broken
    on.back.unmap(mapped)
    on.target.stop()
    on.xen.run()
    assert on.frontend.granter.granted == 0


def test_a_write_grants_nothing_that_can_be_written(on: Scene) -> None:
    on.submit(write10(0, 160), [(on.domain.pages.alloc(20), 0, 20 * 4096)])
    on.submit(write10(0, 8), [(on.domain.pages.alloc(2), 3, 4096)])
    wide, small = on.back.taken()
    refs = [one[0] for one in [*on.back.table(wide), *small.segments]] + [*wide.grefs]
    for ref in refs:
        with pytest.raises(GrantError):
            on.back.map(ref)


# anything

ACTIONS = st.one_of(
    st.tuples(st.just("read"), st.integers(0, 60), st.sampled_from([0, 3, 512])),
    st.tuples(st.just("write"), st.integers(0, 60), st.sampled_from([0, 3, 512])),
    st.tuples(st.just("flush")),
    st.tuples(st.just("unmap")),
    st.tuples(
        st.just("answer"), st.integers(0, 40), st.sampled_from([OKAY, OKAY, ERROR, EOPNOTSUPP, 9])
    ),
    st.tuples(st.just("stray"), st.integers(0, 2**64 - 1)),
    st.tuples(st.just("map"), st.integers(0, 40)),
    st.tuples(st.just("unmap-page"), st.integers(0, 40)),
    st.tuples(st.just("header"), st.sampled_from([0, 4, 8, 12]), st.integers(0, 2**32 - 1)),
    st.tuples(st.just("garbage"), st.integers(64, 4000), st.binary(min_size=1, max_size=64)),
    st.tuples(st.just("reset")),
    st.tuples(st.just("tick")),
    st.tuples(st.just("stop")),
    st.tuples(st.just("start")),
)


class Hostile:
    """A backend that does what it is told, and what its guest asks meanwhile."""

    def __init__(self, on: Scene) -> None:
        self.on = on
        self.srbs: list[Srb] = []
        self.completions: list[int] = []
        self.ids: list[int] = []
        self.refs: list[int] = []
        self.mapped: list[int] = []
        self.pages = on.domain.pages.alloc(16)

    def submit(self, cdb: bytes, data: list[tuple[int, int, int]]) -> None:
        number = len(self.srbs)
        self.completions.append(0)
        self.srbs.append(Srb(cdb=cdb, data=data, on_complete=Done(self, number)))
        self.on.adapter.submit(self.srbs[-1])

    def take(self) -> None:
        if not self.on.back.rings:
            return
        # What it wrote into the ring is its own fault.
        with suppress(AssertionError, PeerProtocolError, struct.error):
            for slot in self.on.back.taken():
                self.ids.append(slot.id)
                self.refs += [ref for ref, _first, _last in slot.segments] + list(slot.grefs)

    def step(self, action: tuple[object, ...]) -> None:
        name, *rest = action
        getattr(self, f"_{str(name).replace('-', '_')}")(*rest)
        self.on.xen.run()
        self.take()

    def _read(self, count: int, offset: int) -> None:
        self.submit(read10(0, count), [(self.pages, offset, count * 512)] if count else [])

    def _write(self, count: int, offset: int) -> None:
        self.submit(write10(0, count), [(self.pages, offset, count * 512)] if count else [])

    def _flush(self) -> None:
        self.submit(SYNC10, [])

    def _unmap(self) -> None:
        data = struct.pack(">HH4xQI4x", 22, 16, 8, 8)
        self.on.domain.write(self.pages + 15, 0, data)
        self.submit(bytes((0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0)), [(self.pages + 15, 0, 24)])

    def _answer(self, index: int, status: int) -> None:
        if self.ids and self.on.back.rings:
            self.say(self.ids.pop(index % len(self.ids)), status)

    def _stray(self, rid: int) -> None:
        if self.on.back.rings:
            self.say(rid, OKAY)

    def say(self, rid: int, status: int) -> None:
        back = self.on.back
        packed = struct.pack("<QBxh4x", rid, back.operations.get(rid, 0), status)
        with suppress(
            HypercallError, LocalProtocolError, PeerProtocolError
        ):  # no room for what is not taken
            back.rings[0].push(packed, 1)
        back.notify()

    def _map(self, index: int) -> None:
        if self.refs and self.on.back.rings:
            with suppress(GrantError, HypercallError):
                self.mapped.append(self.on.back.map(self.refs[index % len(self.refs)]))

    def _unmap_page(self, index: int) -> None:
        held = [pfn for pfn in self.mapped if pfn in [one for one, _h in self.on.back.maps]]
        if held:
            self.on.back.unmap(held[index % len(held)])

    def _header(self, at: int, value: int) -> None:
        if self.on.back.rings:
            self.on.back.store(at, value)
            self.on.back.notify()

    def _garbage(self, at: int, data: bytes) -> None:
        if self.on.back.rings:
            self.on.back.domain.write(self.on.back.rings[0].pfns[0], at, data)

    def _reset(self) -> None:
        self.submit_function(SrbFunction.RESET_DEVICE)

    def submit_function(self, function: SrbFunction) -> None:
        number = len(self.srbs)
        self.completions.append(0)
        self.srbs.append(Srb(function=function, on_complete=Done(self, number)))
        self.on.adapter.submit(self.srbs[-1])

    def _tick(self) -> None:
        self.on.xen.advance(31)

    def _stop(self) -> None:
        self.on.target.stop()

    def _start(self) -> None:
        self.on.target.start()


class Done:
    def __init__(self, hostile: Hostile, number: int) -> None:
        self.hostile = hostile
        self.number = number

    def wake(self) -> None:
        self.hostile.completions[self.number] += 1


@settings(max_examples=120, deadline=None)
@given(
    actions=st.lists(ACTIONS, max_size=24),
    personality=st.sampled_from(["windows", "linux"]),
    persistent=st.booleans(),
    wide=st.booleans(),
)
def test_whatever_a_backend_does_srbs_complete_once_and_nothing_stays_granted(
    actions: list[tuple[object, ...]], personality: str, persistent: bool, wide: bool
) -> None:
    parameters = Parameters(persistent=persistent)
    early = WIDE if wide else {}
    with scene(personality, early=early, keys=EVERYTHING, vbd=parameters) as on:
        hostile = Hostile(on)
        for action in actions:
            hostile.step(action)
        assert max(hostile.completions, default=0) <= 1
        on.target.stop()
        on.xen.run()
        on.back.disconnect()
        on.xen.run()
        assert on.target.state in (FrontendState.CLOSED, FrontendState.INVALID)
        assert hostile.completions == [1] * len(hostile.srbs)
        assert all(srb.srb_status is not PENDING for srb in hostile.srbs)
        on.frontend.granter.retry()
        assert on.frontend.granter.granted == 0
