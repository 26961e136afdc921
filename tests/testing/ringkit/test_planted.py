"""Mistakes that are planted into the ends of the example: the kit finds each, by the law it breaks."""

from __future__ import annotations

import pytest

from examples import own_protocol as own
from tests.testing.ringkit import careless, planted
from xenpv.testing.hunt import CaseHunt, Found
from xenpv.testing.ringkit import RingSuite, hunts_of

LIMIT = 300

# end, the hunt that is asked ("case:ID", or "scenario:" or "overlay:"), what it says
PLANTED = [
    (planted.Sleepy, "scenario:backend_requests", "lost wake-up: d0 sleeps with"),
    (planted.Sleepy, "scenario:both_ends", "lost wake-up: d0 sleeps with"),
    (planted.EventFirst, "scenario:backend_requests", "lost wake-up: d0 sleeps with"),
    (planted.DoubleFetch, "scenario:backend_requests", "fetches vecho_request[1].length"),
    (planted.Trusting, "case:ECHOB-101", "is none of this end's"),
    (planted.Trusting, "overlay:vecho-backend", "is none of this end's"),
    (planted.Leaky, "case:ECHOB-905", "vecho_response[1] shows 0x7f at byte 4, 8 bytes beside"),
    (planted.Leaky, "case:ECHOB-903", "8 bytes beside its fields"),
    (planted.Leaky, "scenario:backend_requests", "8 bytes beside its fields"),
    (planted.Keeps, "case:ECHOB-101", "is closed, and left:"),
    (planted.Keeps, "overlay:vecho-backend", "is closed, and left:"),
    (planted.Silent, "scenario:backend_requests", "0 answers to 4 requests"),
    (planted.Twice, "scenario:backend_requests", "which is not in flight"),
    (planted.Raises, "case:ECHOB-102", "GrantError: GNTST_bad_gntref"),
    (planted.Raises, "case:ECHOB-910", "GrantError"),
    (careless.Asserts, "scenario:backend_attacked", "in write_back: AssertionError"),
    (planted.Once, "case:ECHOB-946", "a good request has 0 answers"),
    (planted.WholePage, "case:ECHOB-103", "AssertionError"),
    (planted.Index, "scenario:frontend_attacked", "in answered: "),
    (planted.Index, "case:ECHOF-953", "list index out of range"),
    (planted.SameId, "scenario:both_ends", "two requests in flight have id 0x0"),
    (planted.SleepyFront, "scenario:frontend_calls", "lost wake-up: d1 sleeps with"),
    (planted.Shows, "case:ECHOF-102", "AssertionError"),
    (planted.Forgets, "case:ECHOF-961", "is closed, and left:"),
    (planted.Unasked, "case:ECHOF-101", "AssertionError"),
]


def find(suite: RingSuite, end: type, asked: str) -> Found | None:
    """The first finding of one hunt, in LIMIT examples."""
    kind, _, name = asked.partition(":")
    for hunt in hunts_of(suite, end):
        if kind == "case" and isinstance(hunt, CaseHunt):
            result = suite.named(name).run(end)
            hunt = CaseHunt((result.case,), suite.name, end)
        elif not hunt.name.startswith(f"{kind}:") or not hunt.name.endswith(name):
            continue
        for number, found in enumerate(hunt.search(0)):
            if found is not None or number >= LIMIT:
                return found
        return None
    raise AssertionError(asked)


def suite_of(end: type) -> RingSuite:
    return own.BACKEND if issubclass(end, own.EchoBackend) else own.FRONTEND


@pytest.mark.parametrize(
    ("end", "asked", "says"), PLANTED, ids=[f"{one[0].__name__} {one[1]}" for one in PLANTED]
)
def test_a_planted_mistake_is_found(end, asked, says):
    found = find(suite_of(end), end, asked)
    assert found is not None
    assert says in found.failure


@pytest.mark.parametrize("end", [*planted.BACKENDS, *planted.FRONTENDS])
def test_each_mistake_is_asked_for(end):
    assert end in [one[0] for one in PLANTED]


@pytest.mark.parametrize("case", own.BACKEND.cases + own.FRONTEND.cases, ids=str)
def test_the_example_passes_every_case(case):
    result = case.run()
    assert result.error is None, result.reason


@pytest.mark.parametrize("suite", [own.BACKEND, own.FRONTEND], ids=repr)
def test_the_kit_finds_nothing_in_the_example(suite):
    for hunt in hunts_of(suite):
        for found, _ in zip(hunt.search(1), range(60), strict=False):
            assert found is None, found.failure
