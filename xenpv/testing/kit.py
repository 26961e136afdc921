"""The kit as a whole: every hunt with default settings, in turns, until something is found.

    with zoo.defect("blk-range-unchecked"):
        report = hunt_all(seconds=60)
    assert report.found

What is tried first does not depend on time: in each round every hunt runs twice as many
examples as in the one before. Time only ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from time import process_time
from typing import Final

import attrs

from xenpv.testing import zoo
from xenpv.testing.cases.suite import Factory
from xenpv.testing.hunt import CaseHunt, Found, Hunt, LifecycleHunt, ScenarioHunt, Search
from xenpv.testing.interleave import require

SECONDS: Final = 60.0
FIRST_ROUND: Final = 4
DEVICES: Final = {"blk": "vbd", "net": "vif"}  # of a suite's name: the store's

# A progress call: examples so far, and the name of the hunt whose turn it is.
Progress = Callable[[int, str], object]


@attrs.frozen(eq=False)
class Report:
    """What the kit found, in `examples` of all hunts and `seconds` of CPU, shrinking included."""

    found: Found | None
    examples: int
    seconds: float


def hunts() -> list[Hunt]:
    """Every hunt of the kit: the cases of each suite, scenarios, overlays, life cycles."""
    from xenpv.testing import cases
    from xenpv.testing.hunts import SCENARIOS
    from xenpv.testing.overlay import OverlayHunt, targets

    found: list[Hunt] = [CaseHunt(cases.cases(name), name) for name in cases.SUITES]
    found += [ScenarioHunt(one) for one in SCENARIOS]
    found += [OverlayHunt(one) for one in targets().values()]
    found.append(LifecycleHunt())
    return found


def hunts_of(suite: str, factory: Factory | None) -> list[Hunt]:
    """What there is against one end: the suite's cases, those of its side of xenbus, then its
    scenarios. `factory` makes the end as testing.ends.user_* take it; None: ours.
    LocalProtocolError: no such suite.
    """
    from xenpv.testing import cases
    from xenpv.testing.cases.busscene import BusEnd
    from xenpv.testing.hunts.own import SCENARIOS, OwnScenario

    found: list[Hunt] = [CaseHunt(cases.cases(suite), suite, factory)]
    device, _, end = suite.partition("-")
    bus = f"xenbus-{end}"
    if factory is not None and device in DEVICES and bus in cases.SUITES:
        found.append(CaseHunt(cases.cases(bus), bus, BusEnd(DEVICES[device], factory)))
    found += [ScenarioHunt(OwnScenario(one, factory)) for one in SCENARIOS.get(suite, ())]
    return found


def find_bugs(
    suite: str,
    factory: Factory | None,
    *,
    seed: int = 0,
    seconds: float = SECONDS,
    without: Collection[str] = (),
    progress: Progress | None = None,
) -> tuple[list[Found], int]:
    """Everything that `hunts_of` finds in `seconds` of CPU, and how many examples that took: each
    case that does not hold, and the first failure of each scenario. `without`: ids of cases.
    ConfigError: greenlet is missing.
    """
    return find_in(
        hunts_of(suite, factory), seed=seed, seconds=seconds, without=without, progress=progress
    )


def find_in(
    of_end: Sequence[Hunt],
    *,
    seed: int = 0,
    seconds: float = SECONDS,
    without: Collection[str] = (),
    progress: Progress | None = None,
) -> tuple[list[Found], int]:
    """`find_bugs` of hunts that are named. ConfigError: greenlet is missing."""
    require()
    started, done = process_time(), 0
    findings: list[Found] = []
    others = [one for one in of_end if not isinstance(one, CaseHunt)]
    for hunt in [one for one in of_end if isinstance(one, CaseHunt)]:
        for found in hunt.search(seed):
            done += 1
            if found is not None and found.hunt.removeprefix("case:") not in without:
                findings.append(found)
            if progress is not None:
                progress(done, hunt.name)
            if process_time() - started >= seconds:
                return findings, done
    for at, explored in enumerate(others):
        left = seconds - (process_time() - started)
        share = left / (len(others) - at)
        report = hunt_all(seed=seed, seconds=share, only=[explored], progress=progress)
        done += report.examples
        findings += [] if report.found is None else [report.found]
    return findings, done


def hunt_all(
    *,
    seed: int = 0,
    seconds: float = SECONDS,
    examples: int | None = None,
    only: Sequence[Hunt] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Run `only` (None: `hunts()`) until one finds something, `seconds` of CPU or `examples`
    are over, or there is no example left. `seconds` are looked at between examples.
    """
    started = process_time()
    searches: list[tuple[Hunt, Search]] = [
        (one, one.search(seed)) for one in (hunts() if only is None else only)
    ]
    done, share = 0, FIRST_ROUND
    while searches:
        for entry in list(searches):
            hunt, search = entry
            if progress is not None:
                progress(done, hunt.name)
            for _ in range(max(1, share // hunt.cost)):
                if process_time() - started >= seconds or done == examples:
                    return Report(None, done, process_time() - started)
                try:
                    found = next(search)
                except StopIteration:
                    searches.remove(entry)
                    break
                done += 1
                if found is not None:
                    return Report(found, done, process_time() - started)
        share *= 2
    return Report(None, done, process_time() - started)


@attrs.frozen
class DefectReport:
    """What the kit made of one defect of the zoo; `defect` is empty where all were off.

    `seconds` of CPU and `examples` until it was found, shrinking included, or in all; `by` is
    the hunt, `steps` are those of the shrunk example, `replay` the file that was written.
    """

    defect: str
    found: bool
    seconds: float
    examples: int
    by: str = ""
    failure: str = ""
    steps: tuple[str, ...] = ()
    replay: str = ""


def hunt_defect(
    name: str,
    *,
    seed: int = 0,
    seconds: float = SECONDS,
    examples: int | None = None,
    directory: Path | None = None,
) -> DefectReport:
    """The kit against one defect, or against none if `name` is empty. With a `directory` the
    replay file of what is found is written there. LocalProtocolError: an unknown defect.
    """
    if not name:
        return _told("", hunt_all(seed=seed, seconds=seconds, examples=examples), directory)
    with zoo.defect(name):
        return _told(name, hunt_all(seed=seed, seconds=seconds, examples=examples), directory)


def _told(name: str, report: Report, directory: Path | None) -> DefectReport:
    found = report.found
    if found is None:
        return DefectReport(name, False, report.seconds, report.examples)
    return DefectReport(
        defect=name,
        found=True,
        seconds=report.seconds,
        examples=report.examples,
        by=found.hunt,
        failure=found.failure,
        steps=found.steps,
        replay="" if directory is None else str(found.save(directory)),
    )
