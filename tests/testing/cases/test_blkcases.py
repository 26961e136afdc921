"""The suites of disks: ours hold every case, and so do their other profiles and personalities."""

from __future__ import annotations

import pytest

from xenpv.errors import LocalProtocolError
from xenpv.testing import check_blk_backend, check_blk_frontend
from xenpv.testing.cases import Outcome, cases
from xenpv.testing.cases.blkfrontscene import Blkfront
from xenpv.testing.cases.blkscene import Blkback

BACK, FRONT = cases("blk-backend"), cases("blk-frontend")


@pytest.mark.parametrize("case", [*BACK, *FRONT], ids=str)
def test_ours_holds_each_case(case) -> None:
    result = case.run()
    assert (result.outcome, result.reason) == (Outcome.PASS, "")


@pytest.mark.parametrize("profile", ["qemu", "tapdisk", "mirage"])
def test_other_profiles_hold_what_they_offer(profile) -> None:
    results = check_blk_backend(Blkback(profile))
    assert sum(one.outcome is Outcome.PASS for one in results) >= 45


def test_the_linux_frontend_holds_what_it_makes_use_of() -> None:
    results = check_blk_frontend(Blkfront("linux"))
    assert sum(one.outcome is Outcome.PASS for one in results) >= 45


@pytest.mark.parametrize("check", [check_blk_backend, check_blk_frontend])
def test_another_seed_changes_nothing(check) -> None:
    assert all(one.outcome is Outcome.PASS for one in check(seed=11))


def test_the_suites_are_as_large_as_promised() -> None:
    assert len(BACK) + len(FRONT) >= 130
    assert sum(case.hostile for case in BACK) >= 45
    assert sum(case.hostile for case in FRONT) >= 20


@pytest.mark.parametrize("check", [check_blk_backend, check_blk_frontend])
def test_an_unknown_id_is_a_local_protocol_error(check) -> None:
    with pytest.raises(LocalProtocolError, match="BLKX-999"):
        check(only=["BLKX-999"])
