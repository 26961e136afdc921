"""The suite "blk-backend": ours holds every case, in each profile that knows it."""

from __future__ import annotations

import pytest

from xenpv.errors import LocalProtocolError
from xenpv.testing import check_blk_backend
from xenpv.testing.cases import Outcome, cases
from xenpv.testing.cases.blkscene import Blkback

CASES = cases("blk-backend")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ours_holds_each_case(case) -> None:
    result = case.run()
    assert (result.outcome, result.reason) == (Outcome.PASS, "")


@pytest.mark.parametrize("profile", ["qemu", "tapdisk", "mirage"])
def test_other_profiles_hold_what_they_offer(profile) -> None:
    results = check_blk_backend(Blkback(profile))
    assert sum(one.outcome is Outcome.PASS for one in results) >= 45


@pytest.mark.parametrize("seed", [1, 2])
def test_other_seeds_change_nothing(seed) -> None:
    assert all(one.outcome is Outcome.PASS for one in check_blk_backend(seed=seed))


def test_the_suite_is_as_large_as_promised() -> None:
    assert len(CASES) >= 45
    assert sum(case.hostile for case in CASES) >= 30


def test_an_unknown_id_is_a_local_protocol_error() -> None:
    with pytest.raises(LocalProtocolError, match="BLKB-999"):
        check_blk_backend(only=["BLKB-999"])
