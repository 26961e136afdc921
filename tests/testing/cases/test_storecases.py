"""The suite "store": ours holds every case, in each profile that knows it, and over a socket."""

from __future__ import annotations

import pytest

from xenpv import cli
from xenpv.bench.daemon import our_server
from xenpv.errors import LocalProtocolError
from xenpv.store.profile import LEGACY, OX, Profile
from xenpv.testing.cases import Outcome, cases
from xenpv.testing.cases.store import check_store
from xenpv.testing.cases.storescene import OurStore

CASES = cases("store")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ours_holds_each_case(case) -> None:
    result = case.run()
    assert (result.outcome, result.reason) == (Outcome.PASS, "")


@pytest.mark.parametrize("profile", [OX, LEGACY], ids=lambda profile: profile.name)
def test_other_profiles_hold_what_they_offer(profile: Profile) -> None:
    for case in CASES:
        result = case.run(OurStore(profile=profile))
        assert result.outcome is not Outcome.FAIL, (case.id, result.reason)


def test_an_unknown_id_is_a_local_protocol_error() -> None:
    with pytest.raises(LocalProtocolError, match="STORE-999"):
        check_store(only=["STORE-999"])


def test_the_cases_are_asked_over_a_unix_socket(capsys) -> None:
    with our_server() as server:
        results = check_store(server.socket)
        assert sum(one.outcome is Outcome.PASS for one in results) == 44
        assert cli.main(["cases", "STORE-022", "STORE-080", "--socket", str(server.socket)]) == 0
    said = capsys.readouterr().out
    assert "pass  STORE-022" in said
    assert "skip  STORE-080" in said
