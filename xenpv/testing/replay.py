"""Replays: a schedule, a case, an overlay or a life cycle that failed, from a file.

    load_replay("failure.replay").run().failure_text

A class for each `kind` of a replay file (testing.recorded has what they share).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import attrs

from xenpv.errors import ConfigError
from xenpv.testing import named, zoo
from xenpv.testing.cases.busscene import BusEnd
from xenpv.testing.hunts import own
from xenpv.testing.hunts.own import OwnScenario
from xenpv.testing.recorded import Recorded, checked, document_of
from xenpv.testing.ringkit.hunting import RingScenario
from xenpv.testing.ringkit.overlay import target_of
from xenpv.testing.run import Run, Scenario, located, run_schedule
from xenpv.testing.schedule import Action, Schedule
from xenpv.testing.schedule import Step as Taken
from xenpv.testing.witness import Witness, witness

if TYPE_CHECKING:
    from xenpv.testing.cases.suite import CaseResult, Factory, Suite
    from xenpv.testing.lifecycle import LifecycleFailed
    from xenpv.testing.overlay import Target

AT_MAX: Final = 1 << 32
STEPS_MAX: Final = 10_000
MISSING: Final = object()
DATA_MAX: Final = 1 << 20  # hex digits of an overlay
FILE_BYTES_MAX: Final = 16 << 20


@attrs.frozen(kw_only=True)
class Replay(Recorded):
    """A scenario under a schedule: `scenario` is "module:function", `file` the one that it is in
    for when that module is not on the path; steps are (decision, action, argument). `end` and
    `end_file` name in the same way what makes the end under test, for a scenario that is told, and
    `suite` and `suite_file` the suite of a protocol of one's own.
    """

    kind: ClassVar[str] = "schedule"

    scenario: str
    file: str
    seed: int
    schedule: Schedule
    end: str = ""
    end_file: str = ""
    suite: str = ""
    suite_file: str = ""

    @classmethod
    def of(
        cls, scenario: Scenario, run: Run, *, seed: int = 0, defects: tuple[str, ...] = ()
    ) -> Replay:
        """The record of a failed run. LocalProtocolError for a scenario that is no function of
        a module.
        """
        end = end_file = suite = suite_file = ""
        told: Any = scenario
        if isinstance(scenario, OwnScenario | RingScenario):
            end, end_file = _made_by(scenario.factory)
            told = scenario.scenario
        if isinstance(scenario, RingScenario):
            suite, suite_file = _suite(scenario.suite)
        return cls(
            scenario=named.name_of(told, must_import=True),
            file=named.file_of(told),
            end=end,
            end_file=end_file,
            suite=suite,
            suite_file=suite_file,
            seed=seed,
            defects=defects,
            schedule=run.taken,
            digest=run.digest,
            failure=run.failure_text,
        )

    @classmethod
    def loads(cls, text: str, *, file: str = "") -> Recorded:
        """Parse a file's text, of any kind. ConfigError: what is wrong, in one line."""
        document = document_of(text, file)
        kind = document.get("kind")
        found = KINDS.get(kind) if isinstance(kind, str) else None
        if found is None:
            raise ConfigError(f"kind is {kind!r}: expected {', '.join(KINDS)}", file=file)
        return found.parse(document, file)

    @classmethod
    def parse(cls, document: Mapping[str, Any], file: str) -> Self:
        keys = checked(document, file, texts=("scenario", "file"), numbers=("seed",))
        steps = document.get("steps", MISSING)
        if steps is MISSING:
            raise ConfigError("no steps in it", file=file)
        if not isinstance(steps, list) or len(steps) > STEPS_MAX:
            raise ConfigError("steps: expected a list of [decision, action, argument]", file=file)
        keys |= _of_end(document, file)
        return cls(schedule=Schedule(tuple(_step(one, file) for one in steps)), **keys)

    @property
    def title(self) -> str:
        of = f" with {self.end}" if self.end else ""
        return f"{self.scenario}{of}, seed {self.seed}"

    @property
    def name(self) -> str:
        return self.scenario.rpartition(":")[2]

    def body(self) -> dict[str, Any]:
        return {
            "scenario": self.scenario,
            "file": self.file,
            **_end_keys(self),
            "seed": self.seed,
            "steps": [[step.at, str(step.action), step.argument] for step in self.schedule.steps],
        }

    def find(self) -> Scenario:
        """The scenario's function. ConfigError if there is none, or it cannot be imported."""
        scenario: Any = named.find(self.scenario, self.file)
        if self.suite:
            suite = named.find_suite(self.suite, self.suite_file)
            return RingScenario(scenario, suite, _factory(self))
        if self.end or scenario in own.NEEDED:
            return OwnScenario(scenario, _factory(self))
        found: Scenario = scenario
        return found

    def perform(self) -> Run:
        scenario = self.find()
        return located(scenario, run_schedule(scenario, self.schedule))


def _made_by(factory: Any) -> tuple[str, str]:
    """What makes the end under test, by name, and the file that it is in; empty for our own."""
    if factory is None:
        return "", ""
    return named.name_of(factory, must_import=True, what="an end"), named.file_of(factory)


def _suite(suite: Suite) -> tuple[str, str]:
    name, file = suite.reference
    return name, named.shown(file) if file else ""


def _of_end(document: Mapping[str, Any], file: str) -> dict[str, Any]:
    """The keys that name an end and a suite, those of them that are there."""
    pairs = [("end", "end_file"), ("suite", "suite_file")]
    texts = tuple(key for pair in pairs if pair[0] in document for key in pair)
    return checked(document, file, texts=texts)


def _end_keys(recorded: Replay | OverlayReplay) -> dict[str, str]:
    end = {"end": recorded.end, "end_file": recorded.end_file} if recorded.end else {}
    own = {"suite": recorded.suite, "suite_file": recorded.suite_file} if recorded.suite else {}
    return {**end, **own}


def _factory(recorded: Replay | OverlayReplay) -> Any:
    """What makes the end under test; None: the suite's, or ours. ConfigError."""
    if not recorded.end:
        return None
    return named.find(recorded.end, recorded.end_file, what="end")


def _step(one: Any, file: str) -> Taken:
    if isinstance(one, list) and len(one) == 3:
        at, action, argument = one
        numbers = all(type(value) is int and 0 <= value < AT_MAX for value in (at, argument))
        if numbers and action in tuple(Action):
            return Taken(at, Action(action), argument)
    raise ConfigError(f"step {one!r}: expected [decision, action, argument]", file=file)


def _run_of(seen: Witness, failure: Exception | None, words: tuple[str, ...] = ()) -> Run:
    """A run that was no schedule's, from what was seen of it."""
    return Run(
        taken=Schedule(),
        words=words,
        points=[],
        digest=seen.digest,
        failure=failure,
        tail=seen.tail,
        tables=seen.tables,
        store=seen.store,
        packets=seen.packets,
    )


@attrs.frozen(kw_only=True)
class CaseReplay(Recorded):
    """A case that did not hold. `factory` is "module:name" of what makes the end, and `file` the
    one that it is in; both empty for our own.
    """

    kind: ClassVar[str] = "case"

    case: str
    factory: str
    file: str
    seed: int
    device: str = ""  # vbd or vif, for a case of xenbus against a factory's end
    suite: str = ""  # of a protocol of one's own, "module:NAME", and the file it is in
    suite_file: str = ""

    @classmethod
    def save_result(cls, result: CaseResult, directory: Path) -> tuple[Path, Run]:
        """Play a failed case once more and write it down; the file's path, and what was seen.
        LocalProtocolError for a factory that cannot be imported.
        """
        case, factory = result.case, result.factory
        with witness() as seen:
            again = case.run(factory, seed=result.seed)
        run = _run_of(seen, again.error)
        device = ""
        if isinstance(factory, BusEnd):
            device, factory = factory.kind, factory.factory
        made_by, file = _made_by(factory)
        suite, suite_file = _suite(case.of)
        recorded = cls(
            case=case.id,
            factory=made_by,
            file=file,
            device=device,
            suite=suite,
            suite_file=suite_file,
            seed=result.seed,
            defects=zoo.active(),
            digest=run.digest,
            failure=run.failure_text,
        )
        return recorded.save(directory, run), run

    @classmethod
    def parse(cls, document: Mapping[str, Any], file: str) -> Self:
        texts = ("case", "factory", "file", *(["device"] if "device" in document else []))
        if "suite" in document:
            texts = (*texts, "suite", "suite_file")
        return cls(**checked(document, file, texts=texts, numbers=("seed",)))

    @property
    def title(self) -> str:
        of = f" against {self.factory}" if self.factory else ""
        return f"case {self.case}{of}, seed {self.seed}"

    @property
    def name(self) -> str:
        return self.case

    def body(self) -> dict[str, Any]:
        device = {"device": self.device} if self.device else {}
        end = {"factory": self.factory, "file": self.file, **device}
        if self.suite:
            end |= {"suite": self.suite, "suite_file": self.suite_file}
        return {"case": self.case, **end, "seed": self.seed}

    def perform(self) -> Run:
        from xenpv.testing import cases

        if self.suite:
            own = named.find_suite(self.suite, self.suite_file).cases
            found = next((one for one in own if one.id == self.case), None)
        else:
            found = cases.all_cases().get(self.case)
        if found is None:
            raise ConfigError(f"unknown case {self.case!r}")
        factory: Factory | None = None
        if self.factory:
            factory = named.find(self.factory, self.file, what="end")
            if self.device:
                factory = BusEnd(self.device, factory)
        with witness() as seen:
            result = found.run(factory, seed=self.seed)
        return _run_of(seen, result.error)


@attrs.frozen(kw_only=True)
class OverlayReplay(Recorded):
    """Bytes, in hex, that an overlay's target fails with; `suite` and `end` as in a Replay."""

    kind: ClassVar[str] = "overlay"

    target: str
    data: str
    end: str = ""
    end_file: str = ""
    suite: str = ""
    suite_file: str = ""

    @classmethod
    def save_data(cls, target: Target, data: bytes, directory: Path) -> tuple[Path, Run]:
        """Run failing bytes once more and write them down; the file's path, and what was seen."""
        run = _overlaid(target, data)
        end, end_file = _made_by(target.factory)
        suite, suite_file = _suite(target.suite) if target.suite is not None else ("", "")
        recorded = cls(
            target=target.name,
            data=data.hex(),
            end=end,
            end_file=end_file,
            suite=suite,
            suite_file=suite_file,
            defects=zoo.active(),
            digest=run.digest,
            failure=run.failure_text,
        )
        return recorded.save(directory, run), run

    @classmethod
    def parse(cls, document: Mapping[str, Any], file: str) -> Self:
        keys = checked(document, file, texts=("target", "data")) | _of_end(document, file)
        try:
            bytes.fromhex(keys["data"][:DATA_MAX])
        except ValueError:
            raise ConfigError("data: expected hex digits", file=file) from None
        return cls(**keys)

    @property
    def title(self) -> str:
        return f"overlay of {len(self.data) // 2} bytes over {self.target}"

    @property
    def name(self) -> str:
        return self.target

    def body(self) -> dict[str, Any]:
        return {"target": self.target, "data": self.data, **_end_keys(self)}

    def perform(self) -> Run:
        from xenpv.testing import overlay

        target: Target | None
        if self.suite:
            target = target_of(named.find_suite(self.suite, self.suite_file), _factory(self))
        else:
            target = overlay.targets().get(self.target)
        if target is None:
            raise ConfigError(f"unknown target {self.target!r}")
        return _overlaid(target, bytes.fromhex(self.data[:DATA_MAX]))


def overlay_of(path: str | Path, name: str) -> OverlayReplay:
    """A fuzzer's file, whose bytes are an overlay over the target `name`. ConfigError."""
    from xenpv.testing.overlays import HOMES

    if name not in HOMES:
        raise ConfigError(f"no target is called {name!r}: expected {', '.join(HOMES)}")
    try:
        with Path(path).open("rb") as file:
            data = file.read(DATA_MAX // 2 + 1)
    except OSError as error:
        raise ConfigError(f"cannot read it: {error.strerror}", file=str(path)) from error
    if len(data) > DATA_MAX // 2:
        raise ConfigError(f"is too long: expected at most {DATA_MAX // 2} bytes", file=str(path))
    return OverlayReplay(target=name, data=data.hex(), defects=(), digest="", failure="")


def _overlaid(target: Target, data: bytes) -> Run:
    failure: Exception | None = None
    with witness() as seen:
        try:
            target.run(data)
        except Exception as error:  # noqa: BLE001 - the run's
            failure = error
    return _run_of(seen, failure, tuple(target.words(data)))


@attrs.frozen(kw_only=True)
class LifecycleReplay(Recorded):
    """Commands of a toolstack (testing.lifecycle) after which something was wrong."""

    kind: ClassVar[str] = "lifecycle"

    seed: int
    commands: str  # apart by blanks: "create:0:4 destroy"

    @classmethod
    def save_failed(cls, failed: LifecycleFailed, directory: Path) -> Path:
        """Do the commands once more and write them down; the file's path."""
        commands = " ".join(str(step) for step in failed.steps)
        run = _lived(failed.seed, commands)
        recorded = cls(
            seed=failed.seed,
            commands=commands,
            defects=zoo.active(),
            digest=run.digest,
            failure=run.failure_text,
        )
        return recorded.save(directory, run)

    @classmethod
    def parse(cls, document: Mapping[str, Any], file: str) -> Self:
        return cls(**checked(document, file, texts=("commands",), numbers=("seed",)))

    @property
    def title(self) -> str:
        return f"life cycle of {len(self.commands.split())} commands, seed {self.seed}"

    @property
    def name(self) -> str:
        return self.kind

    def body(self) -> dict[str, Any]:
        return {"seed": self.seed, "commands": self.commands}

    def perform(self) -> Run:
        return _lived(self.seed, self.commands)


def _lived(seed: int, commands: str) -> Run:
    from xenpv.testing.lifecycle import LifecycleFailed, Step, run_steps

    failure: Exception | None = None
    try:
        steps = [Step.parse(one) for one in commands.split()]
    except ValueError as error:
        raise ConfigError(f"commands: {error}") from None
    with witness() as seen:
        try:
            run_steps(seed, steps)
        except LifecycleFailed as error:
            failure = error
        except KeyError as error:
            raise ConfigError(f"unknown command {error}") from None
    return _run_of(seen, failure, tuple(commands.split()))


KINDS: Final[dict[str, type[Recorded]]] = {
    one.kind: one for one in (Replay, CaseReplay, OverlayReplay, LifecycleReplay)
}


def load_replay(path: str | Path) -> Recorded:
    """Read a replay file of any kind. ConfigError: not there, or not one."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(f"not a replay file: {reason}", file=str(path)) from error
    if len(data) > FILE_BYTES_MAX:
        wrong = f"it has more than {FILE_BYTES_MAX} bytes"
        raise ConfigError(f"not a replay file: {wrong}", file=str(path))
    return Replay.loads(text, file=str(path))
