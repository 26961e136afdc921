"""Runs benches and reports them: a table for people, JSON for scripts.

Values and limits are medians over repetitions; a ratio is the median of the ratios of
neighbouring measurements, since the machine may run at another speed a second later.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from statistics import median

import attrs

from xenpv.bench.table import BENCHES, NAMES, Bench, select


@attrs.frozen(kw_only=True)
class Result:
    """One line of the report; `limit` in the unit of `value`, None where there is none."""

    name: str
    bench: Bench
    value: float
    limit: float | None
    ratio: float | None

    @property
    def against(self) -> str | None:
        """What it was measured against; None where that cannot run on this machine."""
        return None if self.ratio is None else self.bench.against

    @property
    def goal(self) -> float | None:
        """A goal that is a ratio needs the other side."""
        return None if self.against != self.bench.against else self.bench.goal

    @property
    def met(self) -> bool:
        """Whether the goal holds; where nothing was promised, it does."""
        goal = self.goal
        if goal is None:
            return True
        measured = self.value if self.ratio is None else self.ratio
        return measured >= goal if self.bench.at_least else measured <= goal

    def as_json(self) -> dict[str, str | float | bool | None]:
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.bench.unit,
            "against": self.against,
            "ratio": self.ratio,
            "goal": self.goal,
            "met": self.met,
        }


def main(names: Sequence[str], as_json: bool = False, *, repetitions: int | None = None) -> int:
    """Run benches (all without a name) and print the report; exit status.

    `repetitions` replaces each bench's own number. 0: every goal is met, 1: one is not.
    ConfigError for a name that is none. Progress goes to stderr.
    """
    chosen = [one for name in names or NAMES for one in select(name)]
    results = []
    for name in dict.fromkeys(chosen):
        print(f"{name}: {BENCHES[name].what} ...", file=sys.stderr, flush=True)
        results.append(measure(name, repetitions))
    if as_json:
        print(json.dumps([result.as_json() for result in results], indent=1))
    else:
        print(*table(results), sep="\n")
    return 0 if all(result.met for result in results) else 1


def measure(name: str, repetitions: int | None = None) -> Result:
    """One bench, over so many pairs of subject and limit."""
    bench = BENCHES[name]
    with closing(bench.measure()) as pairs:
        taken = list(islice(pairs, repetitions or bench.repetitions))
    limits = [limit for _, limit in taken if limit is not None]
    ratios = [value / limit for value, limit in taken if limit is not None]
    return Result(
        name=name,
        bench=bench,
        value=median(value for value, _ in taken),
        limit=median(limits) if limits else None,
        ratio=median(ratios) if ratios else None,
    )


HEADING = ("bench", "value", "unit", "limit", "ratio", "goal", "met", "what")


def table(results: Sequence[Result]) -> list[str]:
    """Lines of text, a heading first."""
    rows = [HEADING, *(_row(result) for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADING))]
    left = (0, 2, 6, 7)
    return [
        "  ".join(
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _row(result: Result) -> tuple[str, ...]:
    bench = result.bench
    goal = "-"
    if result.goal is not None:
        of = "x" if result.ratio is not None else ""
        goal = f"{'>=' if bench.at_least else '<='} {result.goal:g}{of}"
    against = "" if bench.against is None else f", against {bench.against}"
    if result.against != bench.against:
        against += f" (not here: {bench.missing()})"
    return (
        result.name,
        _number(result.value),
        bench.unit,
        "-" if result.limit is None else _number(result.limit),
        "-" if result.ratio is None else _ratio(result.ratio),
        goal,
        "yes" if result.met else "NO",
        bench.what + against,
    )


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
