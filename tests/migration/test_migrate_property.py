"""Any faults of a migration together: never both sides run, and one does or a person is told."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.migration.hosts import hosts
from tests.migration.test_migrate_failures import STEPS, Case, by_hand
from xenpv.host.libxl import ToolstackError
from xenpv.migration.channel import Channel, Fault, Harm
from xenpv.migration.handover import ReceiveStep, SendStep
from xenpv.migration.migrate import MigrationFailed


def faults(messages: int) -> st.SearchStrategy[list[Fault]]:
    return st.lists(
        st.builds(
            Fault,
            st.integers(0, messages),
            st.sampled_from(Harm),
            st.none() | st.integers(0, 40),
            st.integers(0, 50_000_000),
        ),
        max_size=2,
    )


@settings(max_examples=40)
@given(
    personality=st.sampled_from(["windows", "linux"]),
    loaded=st.booleans(),
    to_destination=faults(18),
    to_source=faults(5),
    failing=st.lists(st.sampled_from(list(STEPS)), max_size=2),
    from_there=st.booleans(),
)
def test_one_side_runs_or_a_person_is_told(
    personality: str,
    loaded: bool,
    to_destination: list[Fault],
    to_source: list[Fault],
    failing: list[SendStep | ReceiveStep],
    from_there: bool,
) -> None:
    with hosts(personality) as two:
        if from_there:  # what happened before is no matter
            two.guest = two.guest.migrate(two.there).migrate(two.here)
        case = Case(two, loaded=loaded)
        channel = Channel(two.here.loop, to_destination=to_destination, to_source=to_source)

        def look(step: SendStep | ReceiveStep) -> None:
            assert len(two.running) <= 1
            if step in failing:
                raise ToolstackError(f"{step.name} is made to fail")

        try:
            survivor = case.migrate(channel, look).run()
        except MigrationFailed as error:
            assert len(two.running) <= 1
            if error.by_hand:
                two.here.advance(0.02)
                assert two.running in ([], [error.destination])
                by_hand(error)
            (survivor,) = two.running
        assert two.running == [survivor]
        case.check(survivor)


def test_bytes_for_an_end_that_is_done_hold_up_nobody() -> None:
    """The destination failed and left bytes unread, while its own last ones were on their way."""
    with hosts("linux") as two:
        case = Case(two, loaded=False)
        late = [Fault(15, Harm.CORRUPT, 24, 557_494)]
        back = [Fault(2, Harm.TRUNCATE, 28, 28_672), Fault(2, Harm.CORRUPT, None, 191)]
        channel = Channel(two.here.loop, to_destination=late, to_source=back)

        def look(step: SendStep | ReceiveStep) -> None:
            if step in (ReceiveStep.STATUS, ReceiveStep.GO):
                raise ToolstackError(f"{step.name} is made to fail")

        with pytest.raises(MigrationFailed):
            case.migrate(channel, look).run()
        assert len(two.running) <= 1
