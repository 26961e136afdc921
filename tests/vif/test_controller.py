"""XenVif's control ring and the hash that it configures, against a raw backend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rss import KEY
from tests.vif.rawback import Scene, frame, scene
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.vif.controller import ControllerState
from xenpv.vif.interface import HashAlgorithm, VifInterface
from xenpv.vif.receivehash import HashRequest, HashSettings, ReceiveHash
from xenpv.xen.loop import NS_PER_MS, NS_PER_S

FLAGS, SET_FLAGS, SET_KEY, SET_SIZE, SET_MAPPING, SET_ALGORITHM = 1, 2, 3, 5, 6, 7
OFFER = {"feature-sg": "1", "feature-rx-copy": "1", "feature-ctrl-ring": "1"}
FOUR = {**OFFER, "multi-queue-max-queues": "4"}
NONE, UNSPECIFIED, TOEPLITZ = HashAlgorithm
TYPES = 0b11110  # 1 << each of HashType but NONE


@contextmanager
def hashing(start: int = 0, vcpus: int = 4) -> Iterator[Scene]:
    """A guest with four queues and a control ring; what XenNet asked for is forgotten."""
    with scene(features=FOUR, vcpus=vcpus, start=start) as s:
        s.back.seen.clear()
        hash_of(s).capabilities = None
        hash_of(s).settings = HashSettings()
        yield s


def vif(s: Scene) -> VifInterface:
    return s.nic._vif


def hash_of(s: Scene) -> ReceiveHash:
    return s.pdo.frontend.receive_hash


def ask(s: Scene, algorithm: int) -> NTSTATUS:
    """The status that the driver's call would return."""
    try:
        interface = vif(s)
        request = interface.receiver_set_hash_algorithm(HashAlgorithm(algorithm))
        interface.await_hash(request)
    except NtStatusError as error:
        return error.status
    return request.status


def kinds(s: Scene) -> list[object]:
    return [one[0] for one in s.back.seen]


# on the wire


def test_enable_sends_no_algorithm_and_stops_there() -> None:
    with scene(features=OFFER) as s:
        assert s.back.seen == [(SET_ALGORITHM, 0, 0, 0)]
        assert s.nic.link_up


def test_keys_of_the_ring_stand_before_the_number_of_queues() -> None:
    with scene(features=OFFER) as s:
        assert s.key("ctrl-ring-ref") is not None
        assert s.key("event-channel-ctrl") is not None
    with scene() as s:
        assert s.key("ctrl-ring-ref") is None
        assert s.key("event-channel-ctrl") is None
        assert s.nic.link_up


def test_linux_frontend_has_no_control_ring() -> None:
    with scene("linux", features=OFFER) as s:
        assert s.key("ctrl-ring-ref") is None


def test_every_setter_sends_everything_in_xenvif_s_order() -> None:
    whole = [SET_ALGORITHM, SET_SIZE, SET_MAPPING, SET_KEY, SET_FLAGS]
    with hashing() as s:
        interface = vif(s)
        assert ask(s, TOEPLITZ) is NTSTATUS.SUCCESS
        assert s.back.seen == [
            (SET_ALGORITHM, 1, 0, 0), (SET_SIZE, 0, 0, 0),
            (SET_MAPPING, s.back.seen[2][1], 0, 0), (SET_KEY, bytes(40), 40, 0),
            (SET_FLAGS, 0, 0, 0), (FLAGS, 0, 0, 0),
        ]  # fmt: skip
        assert interface.receiver_query_hash_capabilities() == TYPES
        s.back.seen.clear()
        interface.await_hash(interface.receiver_update_hash_parameters(TYPES, KEY))
        assert kinds(s) == whole * 2
        assert s.back.seen[3:5] == [(SET_KEY, bytes(40), 40, 0), (SET_FLAGS, 0xF, 0, 0)]
        assert s.back.seen[8:] == [(SET_KEY, KEY, 40, 0), (SET_FLAGS, 0xF, 0, 0)]
        s.back.seen.clear()
        interface.await_hash(interface.update_hash_mapping([3, 0, 3, 1]))
        assert kinds(s) == whole
        mapping = b"".join(queue.to_bytes(4, "little") for queue in (0, 1, 0, 2))
        assert s.back.seen[1:3] == [(SET_SIZE, 4, 0, 0), (SET_MAPPING, mapping, 4, 0)]
        s.back.seen.clear()
        assert ask(s, NONE) is NTSTATUS.SUCCESS
        assert s.back.seen == [(SET_ALGORITHM, 0, 0, 0)]


def test_resume_sends_what_is_in_force_to_the_new_backend() -> None:
    with hashing() as s:
        interface = vif(s)
        ask(s, TOEPLITZ)
        interface.await_hash(interface.receiver_update_hash_parameters(TYPES, KEY))
        interface.await_hash(interface.update_hash_mapping([0, 1, 2, 3]))
        s.back.seen.clear()
        s.guest.suspend()
        s.guest.resume(fast=False)
        assert kinds(s) == [SET_ALGORITHM, SET_SIZE, SET_MAPPING, SET_KEY, SET_FLAGS, FLAGS]
        assert (SET_KEY, KEY, 40, 0) in s.back.seen
        assert s.nic.link_up


@pytest.mark.parametrize("start", [0, 0xFFFFFFF0])
def test_ids_count_on_and_skip_0(start: int) -> None:
    with hashing(start) as s:
        s.back.replies = None
        controller = hash_of(s).controller
        assert controller is not None
        controller._id = 0xFFFE
        numbers = []
        for _ in range(3):
            vif(s).receiver_set_hash_algorithm(NONE)
            s.xen.loop.advance(NS_PER_MS)
            ((number, kind, *_),) = s.back.asked()
            numbers.append(number)
            s.back.answer_ctrl((number, kind, 0, 0))
            s.xen.loop.advance(NS_PER_MS)
        assert numbers == [0xFFFF, 1, 2]


def test_first_id_comes_of_the_seed() -> None:
    firsts = []
    for seed in (3, 3, 4):
        with scene(features=FOUR, seed=seed) as s:
            controller = hash_of(s).controller
            assert controller is not None
            firsts.append(controller._id)
    assert firsts[0] == firsts[1] != firsts[2]


# statuses

# on the wire, what the call returns
STATUSES = [
    (0, NTSTATUS.SUCCESS),
    (1, NTSTATUS.NOT_SUPPORTED),
    (2, NTSTATUS.INVALID_PARAMETER),
    (3, NTSTATUS.BUFFER_OVERFLOW),
    (4, NTSTATUS.UNSUCCESSFUL),
    (0xFFFFFFFF, NTSTATUS.UNSUCCESSFUL),
]


@pytest.mark.parametrize("step", [SET_ALGORITHM, SET_SIZE, SET_MAPPING, SET_KEY, SET_FLAGS])
@pytest.mark.parametrize(("wire", "status"), STATUSES)
def test_refusal_at_any_step_keeps_the_settings(step: int, wire: int, status: NTSTATUS) -> None:
    with hashing() as s:
        assert s.back.replies is not None
        s.back.replies[step] = (wire, 0)
        before = hash_of(s).settings
        assert ask(s, TOEPLITZ) is status
        after = before if wire else attrs.evolve(before, algorithm=TOEPLITZ)
        assert hash_of(s).settings == after
        assert kinds(s)[-1] == (step if wire else FLAGS)
        assert s.nic.link_up


def test_backend_that_does_not_tell_its_types_still_hashes() -> None:
    with hashing() as s:
        assert s.back.replies is not None
        s.back.replies[FLAGS] = (1, 0)
        assert ask(s, TOEPLITZ) is NTSTATUS.SUCCESS
        with pytest.raises(NtStatusError, match=r"^NOT_SUPPORTED: VIF ReceiverQueryHashCapab"):
            vif(s).receiver_query_hash_capabilities()


def test_silent_backend_is_told_every_100_ms_for_5_s(monkeypatch: pytest.MonkeyPatch) -> None:
    with hashing() as s:
        s.back.replies = None
        start = s.xen.loop.now
        controller = hash_of(s).controller
        assert controller is not None
        assert controller._poller is not None
        told: list[int] = []
        evtchn = s.pdo.frontend.bus.evtchn
        port, send = controller._poller.port, evtchn._send

        def count(at: int) -> None:
            told.append(s.xen.loop.now - start) if at == port else None
            send(at)

        monkeypatch.setattr(evtchn, "_send", count)
        request = vif(s).receiver_set_hash_algorithm(TOEPLITZ)
        assert request.status is NTSTATUS.PENDING
        for _ in range(49):
            s.xen.loop.advance(100 * NS_PER_MS)
            assert request.status is NTSTATUS.PENDING
        s.xen.loop.advance(100 * NS_PER_MS)
        assert request.status is NTSTATUS.TRANSACTION_TIMED_OUT
        assert s.xen.loop.now - start == 5 * NS_PER_S
        assert told == [at * 100 * NS_PER_MS for at in range(50)]
        assert hash_of(s).settings == HashSettings()
        assert s.nic.link_up


def test_answer_that_comes_late_is_not_the_next_one_s() -> None:
    with hashing() as s:
        s.back.replies = None
        request = vif(s).receiver_set_hash_algorithm(NONE)
        s.xen.run()
        assert request.status is NTSTATUS.TRANSACTION_TIMED_OUT
        second = vif(s).receiver_set_hash_algorithm(NONE)
        s.xen.loop.advance(NS_PER_MS)
        (late, kind, *_), (now, *_) = s.back.asked()
        s.back.answer_ctrl((late, kind, 2, 0))
        s.xen.loop.advance(NS_PER_MS)
        assert second.status is NTSTATUS.PENDING
        s.back.answer_ctrl((now, kind, 0, 0))
        s.xen.loop.advance(NS_PER_MS)
        assert second.status is NTSTATUS.SUCCESS


def test_ring_full_of_what_was_never_answered() -> None:
    with hashing() as s:
        s.back.replies = None
        for _ in range(128):
            assert ask(s, NONE) is NTSTATUS.TRANSACTION_TIMED_OUT
        assert ask(s, NONE) is NTSTATUS.INSUFFICIENT_RESOURCES


def test_changes_wait_for_each_other_up_to_a_limit() -> None:
    with hashing() as s:
        s.back.replies = None
        requests = [vif(s).receiver_set_hash_algorithm(NONE) for _ in range(16)]
        assert ask(s, NONE) is NTSTATUS.INSUFFICIENT_RESOURCES
        s.back.replies = {}
        s.xen.run()
        assert {request.status for request in requests} == {NTSTATUS.SUCCESS}


# situation, vcpus, features, algorithm, status
ALGORITHMS = [
    ("none", 4, FOUR, 0, NTSTATUS.SUCCESS),
    ("unspecified", 4, FOUR, 1, NTSTATUS.SUCCESS),
    ("toeplitz", 4, FOUR, 2, NTSTATUS.SUCCESS),
    ("toeplitz with one queue", 1, FOUR, 2, NTSTATUS.NOT_SUPPORTED),
    ("none without a ring", 4, {"multi-queue-max-queues": "4"}, 0, NTSTATUS.SUCCESS),
    ("unspecified without a ring", 4, {"multi-queue-max-queues": "4"}, 1, NTSTATUS.SUCCESS),
    ("toeplitz without a ring", 4, {"multi-queue-max-queues": "4"}, 2, NTSTATUS.NOT_SUPPORTED),
]


@pytest.mark.parametrize(("vcpus", "features", "algorithm", "status"),
                         [row[1:] for row in ALGORITHMS],
                         ids=[row[0] for row in ALGORITHMS])  # fmt: skip
def test_algorithm(vcpus: int, features: dict[str, str], algorithm: int, status: NTSTATUS) -> None:
    with scene(features=features, vcpus=vcpus) as s:
        assert ask(s, algorithm) is status


def test_unknown_algorithm_is_not_supported() -> None:
    with hashing() as s, pytest.raises(NtStatusError, match="^NOT_SUPPORTED"):
        hash_of(s).set_algorithm(3)


def test_toeplitz_may_be_disabled_in_the_registry() -> None:
    with hashing() as s:
        s.pdo.frontend.parameters = attrs.evolve(
            s.pdo.frontend.parameters, frontend_disable_toeplitz=True
        )
        assert ask(s, TOEPLITZ) is NTSTATUS.NOT_SUPPORTED
        assert s.back.seen == []


# situation, processors, status
MAPPINGS = [
    ("empty", [], NTSTATUS.SUCCESS),
    ("128 entries", [0, 1, 2, 3] * 32, NTSTATUS.SUCCESS),
    ("129 entries", [0] * 129, NTSTATUS.INVALID_PARAMETER),
    ("five CPUs for four queues", [0, 1, 2, 3, 4], NTSTATUS.INVALID_PARAMETER),
    ("a CPU that the guest has not", [99], NTSTATUS.SUCCESS),
]


@pytest.mark.parametrize(("processors", "status"), [row[1:] for row in MAPPINGS],
                         ids=[row[0] for row in MAPPINGS])  # fmt: skip
def test_update_hash_mapping(processors: list[int], status: NTSTATUS) -> None:
    with hashing() as s:
        ask(s, TOEPLITZ)
        try:
            interface = vif(s)
            request = interface.update_hash_mapping(processors)
            interface.await_hash(request)
        except NtStatusError as error:
            assert error.status is status
            assert hash_of(s).settings.mapping == ()
        else:
            assert request.status is status


def test_mapping_moves_the_queues_events_to_its_cpus() -> None:
    with hashing() as s:
        ask(s, TOEPLITZ)
        interface = vif(s)
        interface.await_hash(interface.update_hash_mapping([2, 2, 0, 3]))
        cpus = [queue.pollers[0].channel.vcpu for queue in s.pdo.frontend.queues]
        assert cpus[:3] == [2, 0, 3]


def test_key_of_another_length_is_refused() -> None:
    with hashing() as s, pytest.raises(NtStatusError, match="^INVALID_PARAMETER"):
        vif(s).receiver_update_hash_parameters(TYPES, KEY[:39])


def test_before_it_is_connected_nothing_is_supported() -> None:
    with scene(features=FOUR, connect=False, vcpus=4) as s:
        s.guest.start()
        s.pdo.frontend.receive_hash.detach()
        assert ask(s, NONE) is NTSTATUS.NOT_SUPPORTED


# handlers


@attrs.define(eq=False)
class Listener:
    """Keeps what ended; asks on, as XenNet does."""

    hashing: ReceiveHash
    ended: list[NTSTATUS] = attrs.field(factory=list)

    def hash_changed(self, request: HashRequest) -> None:
        self.ended.append(request.status)
        if len(self.ended) < 3:
            self.hashing.update_parameters(TYPES, KEY, self)


def test_handler_is_told_and_may_ask_on() -> None:
    with hashing() as s:
        listener = Listener(hash_of(s))
        hash_of(s).set_algorithm(TOEPLITZ, listener)
        s.xen.run()
        assert listener.ended == [NTSTATUS.SUCCESS] * 3


def test_connection_that_goes_cancels_what_waits() -> None:
    with hashing() as s:
        s.back.replies = None
        listeners = [Listener(hash_of(s), [NTSTATUS.PENDING] * 3) for _ in range(3)]
        for listener in listeners:
            hash_of(s).set_algorithm(NONE, listener)
        s.pdo.frontend.break_off("the test says so")
        assert [one.ended[3:] for one in listeners] == [[NTSTATUS.CANCELLED]] * 3


# enabling


@pytest.mark.parametrize("replies", [None, {SET_ALGORITHM: (2, 0)}], ids=["silence", "refusal"])
def test_enable_fails_where_the_backend_does_not_take_the_settings(
    replies: dict[int, tuple[int, int]] | None,
) -> None:
    with scene(features=OFFER) as s:
        s.nic.pause()
        s.xen.run()
        s.back.replies = replies
        s.nic.restart()
        s.xen.run()
        assert not s.nic.link_up
        s.back.replies = {}
        s.nic.restart()
        s.xen.run()
        assert s.nic.link_up


# hostile


def test_answers_that_were_never_asked_for_break_the_interface() -> None:
    with hashing() as s:
        s.back.store(s.back.ctrl, 8, 0x100)
        s.back.device.domain.evtchn.send(s.back.ctrl_port)
        s.xen.run()
        assert "ctrl" in s.broken
        assert not s.nic.link_up
        controller = hash_of(s).controller
        assert controller is not None
        assert controller.state is ControllerState.DISABLED


def test_page_that_the_backend_keeps_is_not_lent_again() -> None:
    with hashing() as s:
        s.back.replies = None
        request = vif(s).receiver_set_hash_algorithm(TOEPLITZ)
        domain = s.back.device.domain
        held = []
        while request.status is NTSTATUS.PENDING:
            s.xen.loop.advance(NS_PER_MS)
            for number, kind, *data in s.back.asked():
                if kind in (SET_MAPPING, SET_KEY):
                    pfn = domain.holes.alloc()
                    held.append((pfn, domain.gnttab.map(s.guest.domid, data[0], pfn)))
                s.back.answer_ctrl((number, kind, 0, 0))
        assert len(held) == 2
        frontend = s.pdo.frontend
        assert len(frontend.quarantined) == 2
        for pfn, handle in held:
            domain.gnttab.unmap(handle, pfn)
            domain.holes.free(pfn)


WORD = st.one_of(st.integers(0, 4), st.integers(0, 0xFFFFFFFF))
MOVE = st.one_of(
    st.tuples(st.just("answer"), st.booleans(), st.integers(0, 0xFFFF), WORD, WORD),
    st.tuples(st.just("word"), st.sampled_from([4, 8, 12]), WORD),
    st.tuples(st.just("ask"), st.integers(0, 2)),
    st.tuples(st.just("wait"), st.integers(0, 6000)),
    st.tuples(st.just("frame")),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(MOVE, max_size=12), st.sampled_from([0, 0xFFFFFFFD]))
def test_whatever_the_backend_says_each_call_ends_once(
    moves: list[tuple[object, ...]], start: int
) -> None:
    with hashing(start) as s:
        s.back.replies = None
        listeners: list[Listener] = []
        open_: list[tuple[int, ...]] = []
        for move in moves:
            match move:
                case ("ask", int(algorithm)):
                    listener = Listener(hash_of(s), [NTSTATUS.PENDING] * 3)
                    try:
                        request = hash_of(s).set_algorithm(algorithm, listener)
                    except NtStatusError:
                        continue
                    if request.status is NTSTATUS.PENDING:
                        listeners.append(listener)
                case ("word", int(at), int(value)):
                    s.back.store(s.back.ctrl, at, value)
                    s.back.device.domain.evtchn.send(s.back.ctrl_port)
                case ("answer", bool(right), int(number), int(status), int(data)):
                    open_ += s.back.asked()
                    if open_:
                        asked, kind, *_ = open_.pop(0)
                        s.back.answer_ctrl((asked if right else number, kind, status, data))
                case ("wait", int(ms)):
                    s.xen.loop.advance(ms * NS_PER_MS)
                case _:
                    s.back.send(frame(100))
            s.xen.loop.advance(NS_PER_MS)
            if s.broken:
                break
        s.xen.loop.advance(90 * NS_PER_S)
        assert [len(one.ended) for one in listeners] == [4] * len(listeners)
        assert hash_of(s).settings.algorithm in tuple(HashAlgorithm)
        frontend = s.pdo.frontend
        frontend.close()
        s.xen.run()


def test_dump_tells_of_the_ring_and_of_what_is_hashed() -> None:
    with hashing() as s:
        ask(s, TOEPLITZ)
        s.back.replies = None
        vif(s).receiver_set_hash_algorithm(NONE)
        lines = [line.split("device/vif/0: ", 1)[-1] for line in s.guest.dump().splitlines()]
        assert "ctrl: WAITING, hash TOEPLITZ, types 0x0" in lines
