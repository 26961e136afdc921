"""A suite of cases, and what became of each."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import attrs

from xenpv.errors import LocalProtocolError, XenpvError

# Makes the end under test: what it is called with is the suite's own (an End, a socket path).
Factory = Callable[..., Any]


class Outcome(enum.StrEnum):
    """What became of a case."""

    PASS = "pass"  # noqa: S105 - not a password
    FAIL = "fail"
    SKIP = "skip"


class Scene(Protocol):
    """A world with the end under test in it and the hostile one in the case's hands."""

    @property
    def features(self) -> Collection[str]:
        """What the end under test offers, by the names that cases require."""

    def finish(self) -> None:
        """After the case: let everything happen, hold every law of conservation. CheckFailed."""

    def close(self) -> None:
        """Give everything back."""


Make = Callable[["Factory | None", int], Scene]


class Skip(Exception):  # noqa: N818 - it says what shall happen
    """Raised by a case that cannot be asked of this end; its text says why."""


@attrs.frozen
class CaseResult:
    """A case and what became of it; `reason` says why it failed or was skipped."""

    case: Case
    outcome: Outcome
    reason: str = ""
    seed: int = 0
    error: Exception | None = attrs.field(default=None, eq=False)
    factory: Factory | None = attrs.field(default=None, eq=False)

    @property
    def command(self) -> str:
        """What plays it again."""
        seed = f" --seed {self.seed}" if self.seed else ""
        seed = f"{self.case.of.option}{seed}"
        if self.factory is None:
            return f"xenpv cases {self.case.id}{seed}"
        made_by = f"{self.factory.__module__}:{getattr(self.factory, '__qualname__', self.factory)}"
        return f"xenpv cases {self.case.id}{seed} --driver {made_by}"

    def save(self, directory: Path) -> Path:
        """A replay file of it."""
        from xenpv.testing.replay import CaseReplay

        return CaseReplay.save_result(self, directory)[0]

    def section(self, directory: Path) -> list[str]:
        """For pytest: the case, its replay file, and what happened."""
        from xenpv.testing import reports
        from xenpv.testing.replay import CaseReplay

        case = self.case
        lines = [f"{case.id} {case.title} ({case.source})", f"expected: {case.expected}"]
        lines.append(f"{self.outcome}: {self.reason}")
        try:
            path, run = CaseReplay.save_result(self, directory)
        except LocalProtocolError as error:
            return [*lines, f"no replay file: {error}"]
        return [*lines, f"again: xenpv replay {path}", *reports.shown(run, path)]


@attrs.frozen(eq=False)
class Case:
    """A numbered case. `source`: the header and its macro, driver file or XSA that asks for it.

    `expected` says what the end must do; `requires` are features without which it is skipped;
    `hostile`: the peer breaks the protocol in it. `check` plays it on a scene of `make` and
    raises what does not hold.
    """

    id: str
    title: str
    source: str
    expected: str
    suite: str
    requires: tuple[str, ...]
    hostile: bool
    check: Callable[[Any], object]
    of: Suite

    def __str__(self) -> str:
        return self.id

    def run(self, factory: Factory | None = None, *, seed: int = 0) -> CaseResult:
        """Play it against the end that `factory` makes, None: ours. What the end or the case
        raises is the result's, not the caller's.
        """
        from xenpv.testing.ends.watchdog import Stuck
        from xenpv.testing.hunt import limited
        from xenpv.testing.run import DoesNotReturn

        error: Exception
        try:
            with limited():
                return self._play(factory, seed)
        except Skip as why:
            return CaseResult(self, Outcome.SKIP, str(why), seed)
        except Stuck as stuck:
            error = DoesNotReturn(str(stuck))
        except Exception as failure:  # noqa: BLE001 - told in the result
            error = failure
        return CaseResult(self, Outcome.FAIL, _reason(error), seed, error, factory)

    def _play(self, factory: Factory | None, seed: int) -> CaseResult:
        scene = self.of.make(factory, seed)
        try:
            missing = [one for one in self.requires if one not in scene.features]
            if missing:
                return CaseResult(self, Outcome.SKIP, f"it has no {missing[0]}", seed)
            self.check(scene)
            scene.finish()
        finally:
            scene.close()
        return CaseResult(self, Outcome.PASS, seed=seed)


def _reason(error: Exception) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class CasesFailed(XenpvError, AssertionError):  # noqa: N818 - it says what happened
    """Cases that do not hold; `results` are all of the run."""

    def __init__(self, results: Iterable[CaseResult]) -> None:
        self.results = tuple(results)
        failed = [one for one in self.results if one.outcome is Outcome.FAIL]
        lines = [f"{len(failed)} of {len(self.results)} cases do not hold"]
        for one in failed:
            case = one.case
            lines += [f"{case.id} {case.title} ({case.source})", f"  {one.reason}"]
            lines.append(f"  again: {one.command}")
        super().__init__("\n".join(lines))


Check = TypeVar("Check", bound=Callable[[Any], object])


class Suite:
    """Cases that ask the same end; `make(factory, seed)` is the scene that they are played on.

    One that `is_own` is a user's, which a replay file names by its `reference`.
    """

    is_own = False

    def __init__(self, name: str, prefix: str, make: Make) -> None:
        self.name = name
        self.prefix: Final = prefix
        self.make = make
        self.cases: list[Case] = []

    def case(
        self,
        number: str,
        title: str,
        *,
        source: str,
        expected: str,
        requires: tuple[str, ...] = (),
        hostile: bool = True,
    ) -> Callable[[Check], Check]:
        """Decorates the function that plays case `number`, which takes the scene."""
        if not number.startswith(self.prefix) or any(one.id == number for one in self.cases):
            raise LocalProtocolError(f"case {number}: not a new number of {self.prefix}")

        def add(check: Check) -> Check:
            self.cases.append(
                Case(
                    id=number,
                    title=title,
                    source=source,
                    expected=expected,
                    suite=self.name,
                    requires=requires,
                    hostile=hostile,
                    check=check,
                    of=self,
                )
            )
            return check

        return add

    @property
    def reference(self) -> tuple[str, str]:
        """`module:NAME` of a user's suite, and its file. LocalProtocolError: it has no name."""
        return "", ""

    @property
    def option(self) -> str:
        """What the command line is told of it, beside the numbers of its cases."""
        return ""

    def run(
        self,
        factory: Factory | None = None,
        *,
        only: Collection[str] = (),
        without: Collection[str] = (),
        seed: int = 0,
    ) -> list[CaseResult]:
        """Play all cases, or `only` those of these ids. LocalProtocolError: an unknown id."""
        known = [one.id for one in self.cases]
        unknown = [one for one in (*only, *without) if one not in known]
        if unknown:
            raise LocalProtocolError(f"{self.name} has no case {unknown[0]}")
        return [
            one.run(factory, seed=seed)
            for one in sorted(self.cases, key=lambda one: one.id)
            if (not only or one.id in only) and one.id not in without
        ]

    def check(
        self,
        factory: Factory | None = None,
        *,
        only: Collection[str] = (),
        without: Collection[str] = (),
        seed: int = 0,
    ) -> list[CaseResult]:
        """As `run`; raises CasesFailed if one fails."""
        results = self.run(factory, only=only, without=without, seed=seed)
        failed = [one for one in results if one.outcome is Outcome.FAIL]
        if failed:
            from xenpv.testing import reports

            for one in failed:
                reports.remember(one)
            raise CasesFailed(results)
        return results
