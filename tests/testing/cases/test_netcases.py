"""The suites "net-backend" and "net-frontend": ours hold every case, and every kind can fail."""

from __future__ import annotations

import pytest

from tests.testing.cases.netplanted import PLANTED
from tests.testing.ends.test_examples import NetBackend, NetFrontend
from xenpv.errors import LocalProtocolError
from xenpv.testing import check_net_backend, check_net_frontend, zoo
from xenpv.testing.cases import Outcome, case, cases
from xenpv.testing.cases.netscene import Netback

SUITES = {"net-backend": check_net_backend, "net-frontend": check_net_frontend}
CASES = [one for name in SUITES for one in cases(name)]

# What other backends do otherwise than the suite asks, as the programs that they are models of.
# QEMU drops nothing that waits and does not look at Initialising while it is connected.
# mirage removes its directory at a close, knows no extras, sums up nothing, counts no slots.
DEVIATIONS = {
    "linux-zerocopy": [],
    "qemu": ["NETB-217", "NETB-416"],
    "mirage": [
        "NETB-017", "NETB-101", "NETB-102", "NETB-104", "NETB-105", "NETB-106", "NETB-107", "NETB-108",
        "NETB-109", "NETB-110", "NETB-111", "NETB-112", "NETB-113", "NETB-121", "NETB-215", "NETB-217",
        "NETB-221", "NETB-227", "NETB-403", "NETB-407", "NETB-410", "NETB-413", "NETB-414", "NETB-415",
        "NETB-416", "NETB-417", "NETB-419", "NETB-421", "NETB-422", "NETB-423", "NETB-428", "NETB-429",
    ],
}  # fmt: skip


@pytest.mark.parametrize("one", CASES, ids=str)
def test_ours_holds_each_case(one) -> None:
    result = one.run()
    assert (result.outcome, result.reason) == (Outcome.PASS, "")


@pytest.mark.parametrize("mistake", list(PLANTED))
def test_a_planted_mistake_fails_its_case(mistake, monkeypatch) -> None:
    number, plant = PLANTED[mistake]
    plant(monkeypatch)
    assert case(number).run().outcome is Outcome.FAIL


def test_mistakes_are_planted_in_both_ends() -> None:
    numbers = [number for number, _ in PLANTED.values()]
    assert len(set(numbers)) == len(numbers)
    assert sum(number.startswith("NETB-") for number in numbers) >= 70
    assert sum(number.startswith("NETF-") for number in numbers) >= 40


@pytest.mark.parametrize("profile", list(DEVIATIONS))
def test_other_profiles_hold_what_their_programs_do(profile) -> None:
    results = [one.run(Netback(profile)) for one in cases("net-backend")]
    failed = [one.case.id for one in results if one.outcome is Outcome.FAIL]
    assert failed == DEVIATIONS[profile]


def test_an_empty_fragment_that_is_mapped_is_found_where_pages_are_mapped() -> None:
    with zoo.defect("net-zero-length-mapped"):
        assert case("NETB-009").run(Netback("linux-zerocopy")).outcome is Outcome.FAIL


@pytest.mark.parametrize(
    ("name", "end", "least"),
    [("net-backend", NetBackend, 80), ("net-frontend", NetFrontend, 55)],
)
def test_a_driver_of_one_s_own_is_asked_what_it_offers(name, end, least) -> None:
    results = SUITES[name](end)
    assert sum(one.outcome is Outcome.PASS for one in results) >= least
    assert all(
        one.reason.startswith("it has no ") for one in results if one.outcome is Outcome.SKIP
    )


@pytest.mark.parametrize("name", list(SUITES))
def test_another_seed_changes_nothing(name) -> None:
    assert all(one.outcome is Outcome.PASS for one in SUITES[name](seed=1))


@pytest.mark.parametrize(
    ("name", "least", "hostile"), [("net-backend", 120, 60), ("net-frontend", 70, 40)]
)
def test_the_suites_are_as_large_as_promised(name, least, hostile) -> None:
    found = cases(name)
    assert len(found) >= least
    assert sum(one.hostile for one in found) >= hostile


@pytest.mark.parametrize("name", list(SUITES))
def test_an_unknown_id_is_a_local_protocol_error(name) -> None:
    with pytest.raises(LocalProtocolError, match="NET-999"):
        SUITES[name](only=["NET-999"])
