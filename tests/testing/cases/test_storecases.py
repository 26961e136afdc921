"""The suite "store": ours holds every case, in each profile that knows it, and over a socket."""

from __future__ import annotations

import pytest

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
