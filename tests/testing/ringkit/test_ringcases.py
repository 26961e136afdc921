"""The cases of any ring: each is failed by an end that makes the mistake which it is about."""

from __future__ import annotations

import pytest

from examples import own_protocol as own
from tests.testing.ringkit import careless, planted
from xenpv.testing.cases import Outcome
from xenpv.testing.ringkit import RingProtocol, RingSuite, Traffic

BACKENDS = {**careless.BACKENDS, "905": planted.Leaky, "945": careless.Silently}
FRONTENDS = careless.FRONTENDS


@pytest.mark.parametrize(("number", "end"), BACKENDS.items())
def test_a_careless_backend_fails_it(number, end):
    result = own.BACKEND.named(f"ECHOB-{number}").run(end)
    assert result.outcome is Outcome.FAIL


@pytest.mark.parametrize(("number", "end"), FRONTENDS.items())
def test_a_careless_frontend_fails_it(number, end):
    result = own.FRONTEND.named(f"ECHOF-{number}").run(end)
    assert result.outcome is Outcome.FAIL


@pytest.mark.parametrize(
    ("suite", "known"), [(own.BACKEND, BACKENDS), (own.FRONTEND, FRONTENDS)], ids=["back", "front"]
)
def test_every_case_of_any_ring_is_seen_to_fail(suite, known):
    numbers = [one.id.rpartition("-")[2] for one in suite.cases]
    assert [one for one in numbers if one >= "900"] == sorted(known)


# The same cases hold for ends of other shapes: a slot that is all response, one without ids.

TEXT = """
struct tinyif_request { uint8_t byte; };
struct tinyif_response { uint64_t sum; uint8_t big[120]; };
"""
TINY = RingProtocol.from_cdef(
    "tinyif", TEXT, request="tinyif_request", response="tinyif_response", device="tiny", id="",
    ring_ref="page-gref", event_channel="evtchn",
)  # fmt: skip


class Sum(own.RingBackend):
    """It adds up all that it was ever told."""

    protocol = TINY

    def __init__(self, end):
        super().__init__(end)
        self.sum = 0

    def serve(self, request):
        self.sum += request.byte
        return TINY.response(sum=self.sum)


class Teller(own.RingFrontend):
    protocol = TINY

    def __init__(self, end):
        super().__init__(end)
        self.sums = []

    def tell(self, byte):
        if self.can_send:
            self.send(TINY.request(byte=byte))

    def answered(self, response):
        self.sums.append(response.sum)


def ended(world, count):
    assert len(world.frontend.sums) == count


TRAFFIC = Traffic(
    request=lambda _front, _number: TINY.request(byte=1),
    answered=lambda _front, number, response: None,
    start=lambda world, number: world.call("tell", number % 256),
    respond=lambda _back, request: TINY.response(sum=request.byte),
    ended=ended,
)
SUITES = [
    RingSuite(TINY, "backend", Sum, prefix="TB-", traffic=TRAFFIC, peer=Teller),
    RingSuite(TINY, "frontend", Teller, prefix="TF-", traffic=TRAFFIC, peer=Sum),
]


@pytest.mark.parametrize("suite", SUITES, ids=repr)
def test_slots_without_ids_and_with_larger_responses_pass_them(suite):
    from xenpv.testing.ringkit import hunts_of

    assert (TINY.entry_size, TINY.ring_size()) == (128, 16)
    suite.check()
    for hunt in hunts_of(suite):
        for found, _ in zip(hunt.search(0), range(25), strict=False):
            assert found is None, found.failure
