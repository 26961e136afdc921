"""The bench of fuzzing: what it counts."""

from __future__ import annotations

from itertools import islice
from time import thread_time_ns

import pytest

from xenpv.bench import fuzz
from xenpv.bench.table import BENCHES, select


def burn(ns: int) -> None:
    end = thread_time_ns() + ns
    while thread_time_ns() < end:
        pass


def test_a_watch_counts_what_is_called_within_once() -> None:
    watch = fuzz.Watch()
    inner = watch.around(lambda: burn(2_000_000))
    outer = watch.around(inner)
    outer()
    inner()
    assert 4_000_000 <= watch.ns < 6_500_000


def test_a_watch_goes_on_after_an_exception() -> None:
    watch = fuzz.Watch()
    with pytest.raises(ZeroDivisionError):
        watch.around(lambda: 1 // 0)()
    before = watch.ns
    watch.around(lambda: burn(1_000_000))()
    assert watch.ns >= before + 1_000_000


def test_overlays_are_counted_by_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "SAMPLE", 2)
    assert all(rate > 1 for rate, _ in islice(fuzz.overlays(), 2))


def test_a_machine_takes_a_part_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "RUNS", 2)
    ((part, _),) = islice(fuzz.machine("store"), 1)
    assert 0 < part < 1


def test_the_goals_are_those_of_the_design() -> None:
    assert select("fuzz") == ["fuzz", "fuzz:blk-machine", "fuzz:net-machine", "fuzz:store-machine"]
    assert (BENCHES["fuzz"].goal, BENCHES["fuzz"].at_least) == (700.0, True)
    assert {BENCHES[name].goal for name in select("fuzz")[1:]} == {0.15}
