from __future__ import annotations

import json
import math
from collections.abc import Generator

import attrs
import pytest

from xenpv.bench import NAMES, daemon, disk, lifecycle, main, net, report, store
from xenpv.bench.report import Result, measure, table
from xenpv.bench.table import BENCHES, Bench, select
from xenpv.errors import ConfigError


class Fake:
    """A bench that gives the pairs in turn, and says whether it was closed."""

    def __init__(self, *pairs: tuple[float, float | None]) -> None:
        self.pairs = pairs
        self.closed = False

    def __call__(self) -> Generator[tuple[float, float | None], None, None]:
        try:
            while True:
                yield from self.pairs
        finally:
            self.closed = True


def bench(
    *pairs: tuple[float, float | None], goal: float | None = None, at_least: bool = False
) -> Bench:
    against = None if pairs[0][1] is None else "a limit"
    return Bench(Fake(*pairs), "ns", against, goal, "a fake", at_least=at_least)


def result(one: Bench) -> Result:
    BENCHES["fake"] = one
    try:
        return measure("fake", 3)
    finally:
        del BENCHES["fake"]


@pytest.mark.parametrize("name", list(BENCHES))
def test_every_bench_gives_numbers_and_can_be_closed(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(store, "NODES", 1000)
    monkeypatch.setattr(store, "WATCHES", store.PIPELINED)
    monkeypatch.setattr(lifecycle, "MANY", 4)
    monkeypatch.setattr(lifecycle, "FEW", 2)
    monkeypatch.setattr(net, "GUESTS_MAX", 3)
    monkeypatch.setattr(disk, "DISKS_MAX", 3)
    monkeypatch.setattr(disk, "QUEUES_MAX", 3)
    found = measure(name, 1)
    assert math.isfinite(found.value)
    assert found.value > 0
    alone = BENCHES[name].against is None or BENCHES[name].missing() is not None
    assert (found.limit is None) == alone
    assert (found.ratio is None) == alone


def test_json_is_a_list_of_lines_with_exactly_these_keys(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = main(["hook", "event"], True, repetitions=1)
    captured = capsys.readouterr()
    lines = json.loads(captured.out)
    assert [line["name"] for line in lines] == ["hook", "hook:log", "event", "event:bits"]
    for line in lines:
        assert list(line) == ["name", "value", "unit", "against", "ratio", "goal", "met"]
        assert isinstance(line["met"], bool)
    assert lines[0]["against"] == "C without the seam"
    assert lines[2]["against"] is lines[2]["ratio"] is None
    assert status == (0 if all(line["met"] for line in lines) else 1)


def test_progress_is_on_stderr_and_only_the_table_on_stdout(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["event"], repetitions=1)
    captured = capsys.readouterr()
    assert captured.err.splitlines()[0].startswith("event: ")
    assert captured.out.splitlines()[0].split() == list(report.HEADING)
    assert len(captured.out.splitlines()) == 3


def test_name_means_itself_and_its_variants() -> None:
    assert select("ring-blk") == ["ring-blk", "ring-blk:1", "ring-blk:11-segments"]
    assert select("ring-blk:1") == ["ring-blk:1"]
    assert select("world") == ["world"]


def test_unknown_name_says_which_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        main(["ring-bulk"])
    assert str(caught.value) == f"no bench is called 'ring-bulk': expected {', '.join(NAMES)}"


def test_names_cover_the_table_once() -> None:
    assert [one for name in NAMES for one in select(name)] == list(BENCHES)


def test_ratio_is_the_median_of_neighbours_not_of_medians() -> None:
    # The machine changes its speed in the middle: each pair still says 4.
    found = result(bench((4.0, 1.0), (40.0, 10.0), (8.0, 2.0)))
    assert found.ratio == 4.0
    assert found.value == 8.0
    assert found.limit == 2.0


@pytest.mark.parametrize(
    ("one", "met"),
    [
        (bench((4.0, 1.0)), True),
        (bench((4.0, 1.0), goal=4.0), True),
        (bench((4.1, 1.0), goal=4.0), False),
        (bench((0.6, 1.0), goal=0.6, at_least=True), True),
        (bench((0.5, 1.0), goal=0.6, at_least=True), False),
        (bench((7.0, None), goal=7.0), True),
        (bench((7.1, None), goal=7.0), False),
    ],
)
def test_goal_bounds_the_ratio_or_else_the_value(one: Bench, met: bool) -> None:
    assert result(one).met is met


def test_bench_is_closed_after_its_repetitions() -> None:
    fake = Fake((1.0, None))
    result(Bench(fake, "ns", None, None, "a fake"))
    assert fake.closed


@pytest.mark.parametrize(("goal", "status"), [(2.0, 0), (0.5, 1)])
def test_exit_status_says_whether_all_goals_are_met(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    goal: float,
    status: int,
) -> None:
    monkeypatch.setitem(BENCHES, "fake", bench((1.0, 1.0), goal=goal))
    assert main(["fake"]) == status
    assert ("NO" in capsys.readouterr().out) == bool(status)


def test_a_peer_that_is_not_installed_is_named_and_no_goal_is_missed() -> None:
    lacking = Bench(
        Fake((3.0, None)), "k/s", "a peer", 1.5, "a fake",
        at_least=True, missing=lambda: "apt-get install peer",
    )  # fmt: skip
    found = result(lacking)
    assert found.met
    line = found.as_json()
    assert line["against"] is line["ratio"] is line["goal"] is None
    assert table([found])[1].endswith("a fake, against a peer (not here: apt-get install peer)")


def test_a_store_without_its_peer_is_measured_alone() -> None:
    elsewhere = attrs.evolve(daemon.XENSTORED, program="/nowhere/xenstored")
    assert daemon.missing(elsewhere) == "apt-get install xen-utils-4.17" or daemon.missing(
        daemon.XENSTORED
    )
    pairs = store.beside(elsewhere, store.READ)
    value, limit = next(pairs)
    pairs.close()
    assert value > 0
    assert limit is None


def test_table_lines_up_and_names_the_limit() -> None:
    lines = table(
        [
            result(bench((900.0, 100.0), goal=10.0)),
            result(bench((0.25, None))),
        ]
    )
    assert lines == [
        "bench  value  unit  limit  ratio    goal  met  what",
        "fake     900  ns      100   9.00  <= 10x  yes  a fake, against a limit",
        "fake    0.25  ns        -      -       -  yes  a fake",
    ]
