"""The C backend of the examples: whole it passes, and each mistake planted in it is found."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from xenpv.testing import (
    Explorer,
    check_blk_backend,
    explore,
    load_end,
    run_schedule,
    user_blk_backend,
)
from xenpv.testing.cases import CasesFailed, Outcome
from xenpv.testing.checkers import CheckFailed
from xenpv.testing.scenarios import BlkClient

SCRIPT = Path(__file__).parents[2] / "examples" / "own_c_backend.py"
SOURCE = SCRIPT.parent / "c_backend" / "blkback.c"
LINES = SOURCE.read_text().splitlines()


def line(text: str) -> int:
    """The first line of the backend that has it."""
    return next(at for at, one in enumerate(LINES, 1) if text in one)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("own_c_backend", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_whole_it_answers_under_every_schedule(example: ModuleType) -> None:
    explore(example.whole, examples=150).check()


def test_a_double_fetch_is_found_with_the_lines_of_both(example: ModuleType) -> None:
    result = explore(example.double_fetch, examples=1)
    assert isinstance(result.failure, CheckFailed)
    checked = line("request->nr_segments > BLKIF_MAX")
    used = line("} else if (!request->nr_segments")
    assert re.search(
        rf"d0 fetches blkif_request\[0\]\.nr_segments .*: first at \S*{SOURCE.name}:{checked} in is_valid, "
        rf"then at \S*{SOURCE.name}:{used} in serve$",
        str(result.failure),
        re.MULTILINE,
    )


def test_a_lost_wake_up_is_found_with_the_line_where_the_frontend_ran(example: ModuleType) -> None:
    result = explore(example.lost_wakeup, examples=100)
    assert str(result.failure) == "2 of 4 are answered"
    (step,) = result.steps
    found = re.search(rf"{SOURCE.name}:(\d+) in \w+, run d1 blk client$", step)
    assert found is not None
    # After req_prod was read, before it sleeps: in what it does with the requests.
    assert line("static int move") < int(found[1]) < line("RING_FINAL_CHECK")


def test_a_hostile_frontend_does_not_break_it() -> None:
    """Whatever changes just before it is read: every law holds, no page is left."""

    def attacked(x: Explorer) -> None:
        world = user_blk_backend(end)
        x.adopt(world.platform)
        BlkClient(world.vbd, 2, spoilt=True).start()
        x.attack(world.platform.dom0)
        x.run()

    end = load_end(SOURCE)
    result = explore(attacked, examples=120)
    assert not result.failed
    points = run_schedule(attacked).points
    assert sum(one.pokes for one in points) > 150  # its loads are among what can be changed


@pytest.mark.parametrize("isolate", [False, True], ids=["loaded", "process"])
def test_whole_it_passes_the_numbered_cases(isolate: bool) -> None:
    results = check_blk_backend(load_end(SOURCE, isolate=isolate))
    assert sum(one.outcome is Outcome.PASS for one in results) >= 59


def test_in_place_it_fails_the_cases_of_double_fetches() -> None:
    planted = load_end(SOURCE, cflags=["-DDOUBLE_FETCH"])
    with pytest.raises(CasesFailed) as failed:
        check_blk_backend(planted)
    assert [one.case.id for one in failed.value.results if one.outcome is Outcome.FAIL] == [
        "BLKB-130",
        "BLKB-132",
    ]


def test_a_process_of_its_own_takes_the_same_steps(example: ModuleType) -> None:
    def scenario(x: Explorer) -> None:
        example.exchange(x, alone)

    alone = load_end(SOURCE, cflags=["-DLOST_WAKEUP"], isolate=True)
    found, here = explore(scenario, examples=30), explore(example.lost_wakeup, examples=30)
    assert found.run is not None
    assert here.run is not None
    assert (found.run.digest, found.steps, found.examples) == (
        here.run.digest,
        here.steps,
        here.examples,
    )
    assert run_schedule(scenario, found.run.taken).digest == found.run.digest
