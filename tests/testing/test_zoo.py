"""Each defect is found, shrinks, and is found no more when it is off."""

from __future__ import annotations

import pytest

from xenpv.errors import LocalProtocolError
from xenpv.testing import CheckFailed, explore, run_schedule, zoo

# id: (examples that are enough, text of the failure)
FOUND = {
    "ring-back-no-final-check": (1, "lost wake-up: d0 sleeps with"),
    "ring-event-late": (200, "lost wake-up: d0 sleeps with"),
    "blk-double-fetch-nr-segments": (1, "d0 fetches blkif_request[0].nr_segments"),
}
STEPS_MAX = 8


def snapshot() -> list[object]:
    """Everything that a defect changes, as it is now."""
    changes = [change for defect in zoo.DEFECTS.values() for change in defect.changes]
    return [vars(where)[attribute] for where, attribute, _ in changes]


def test_every_entry_is_in_this_table() -> None:
    assert set(FOUND) == set(zoo.DEFECTS)


@pytest.mark.parametrize("name", list(FOUND))
@pytest.mark.parametrize("seed", [0, 1])
def test_each_is_found_and_shrinks(name, seed) -> None:
    examples, text = FOUND[name]
    with zoo.defect(name) as defect:
        result = explore(defect.find_scenario(), seed=seed)
    assert result.run is not None
    assert result.examples <= examples
    assert isinstance(result.run.failure, CheckFailed)
    assert text in result.run.failure_text
    assert len(result.run.taken) <= STEPS_MAX
    assert result.defects == (name,)


@pytest.mark.parametrize("name", list(FOUND))
def test_nothing_is_found_when_it_is_off_in_at_least_as_many_examples(name) -> None:
    with zoo.defect(name) as defect:
        scenario = defect.find_scenario()
        found = explore(scenario)
    assert found.run is not None
    explore(scenario, examples=max(100, 2 * found.examples)).check()
    # Nor on the very schedule that showed it.
    assert run_schedule(scenario, found.run.taken).failure is None


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
    for name, defect in zoo.DEFECTS.items():
        assert defect.id == name
        assert defect.mutation
        assert defect.changes
        assert callable(defect.find_scenario())
