"""Live migration that succeeds: what moves, in which order, and what is as before."""

from __future__ import annotations

import pytest

from tests.migration.hosts import hosts, verify
from tests.migration.load import TRUSTED, Load
from xenpv.migration.migrate import Migration

KERNELS = ["windows", "linux"]


@pytest.mark.parametrize("personality", KERNELS)
def test_an_idle_guest_runs_at_the_destination_and_nowhere_else(personality: str) -> None:
    with hosts(personality) as two:
        moved = two.guest.migrate(two.there)
        assert two.running == [moved]
        assert (moved.name, moved.platform) == ("web", two.there)
        assert two.here.guests == []
        assert moved.unconnected == []
        verify(moved, two.image)
        two.check_no_leak(moved)
        assert moved.shutdown() == 0
        assert list(two.there.hypervisor.domains) == [0]


@pytest.mark.parametrize("personality", KERNELS)
def test_a_loaded_guest_goes_on_during_pre_copy_and_afterwards(personality: str) -> None:
    with hosts(personality) as two:
        load = Load(two.guest, memory=True)
        two.here.advance(0.01)
        before = load.ticks
        migration = Migration(two.guest, two.there, bandwidth=10_000_000, trusted=TRUSTED)
        moved = migration.run()
        assert len(migration.sender.rounds) == 5
        assert min(migration.sender.rounds) >= 50
        at_suspend = load.ticks
        assert at_suspend > before + 100
        there = moved.counterpart(load)
        two.there.advance(0.05)
        assert there.ticks > at_suspend + 20
        there.stop()
        two.there.run()
        there.check(two.image, (two.here, two.there))
        verify(moved, two.image)
