"""Each defect is found, shrinks, and is found no more when it is off."""

from __future__ import annotations

import pytest

from tests.testing import zoo_disk, zoo_net
from xenpv.errors import LocalProtocolError
from xenpv.testing import cases, zoo
from xenpv.testing.hunt import CaseHunt, Hunt
from xenpv.testing.kit import hunt_all, hunts
from xenpv.testing.zoo import lifecycle

MINUTE = 60.0

FOUND = {**zoo_disk.FOUND, **zoo_net.FOUND}
STEPS_MAX = 12


def hunt_of(name: str) -> Hunt:
    """The hunt that the entry says finds it."""
    wanted = zoo.all_defects()[name].hunt
    kind, _, rest = wanted.partition(":")
    if kind == "case":
        case = cases.case(rest)
        return CaseHunt((case,), case.suite)
    return next(one for one in hunts() if one.name == wanted)


def test_every_entry_is_in_a_table() -> None:
    others = {one.id for one in lifecycle.DEFECTS}
    assert set(FOUND) == set(zoo.all_defects()) - others


@pytest.mark.parametrize("name", list(FOUND))
def test_each_is_found_and_shrinks_and_is_not_found_when_it_is_off(name) -> None:
    examples, text = FOUND[name]
    hunt = hunt_of(name)
    with zoo.defect(name):
        report = hunt_all(only=[hunt], seconds=MINUTE, examples=examples)
    assert report.found is not None
    assert text in report.found.failure
    assert len(report.found.steps) <= STEPS_MAX
    assert hunt_all(only=[hunt], seconds=MINUTE, examples=report.found.examples).found is None


def snapshot() -> list[object]:
    """Everything that a defect changes, as it is now."""
    changes = [change for defect in zoo.all_defects().values() for change in defect.changes]
    return [vars(where)[attribute] for where, attribute, _ in changes]


@pytest.mark.parametrize("name", list(FOUND))
def test_what_was_there_is_there_again_whatever_happens(name) -> None:
    before = snapshot()

    def fail() -> None:
        with zoo.defect(name):
            assert snapshot() != before
            assert zoo.active() == (name,)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert snapshot() == before
    assert zoo.active() == ()


def test_two_at_once_are_undone_in_their_order() -> None:
    before = snapshot()
    with zoo.defect("ring-back-no-final-check"):
        between = snapshot()
        with zoo.defect("ring-event-late"):
            assert zoo.active() == ("ring-back-no-final-check", "ring-event-late")
        assert snapshot() == between
    assert snapshot() == before


def test_one_is_on_once() -> None:
    with zoo.defect("ring-event-late"):
        with (
            pytest.raises(LocalProtocolError, match="is on already"),
            zoo.defect("ring-event-late"),
        ):
            pass
        assert zoo.active() == ("ring-event-late",)


def test_an_unknown_one_is_refused_with_the_names_there_are() -> None:
    with (
        pytest.raises(LocalProtocolError, match="expected ring-back-no-final-check, "),
        zoo.defect("ring-back-no-final-chek"),
    ):
        pass


def test_calling_it_without_with_turns_nothing_on() -> None:
    zoo.defect("ring-event-late")
    assert zoo.active() == ()


def test_entries_say_what_they_change() -> None:
    for name, defect in zoo.all_defects().items():
        assert defect.id == name
        assert defect.mutation
        assert defect.changes
        assert defect.hunt
