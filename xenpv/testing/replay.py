"""Replay files: a failure as versioned text that goes into a bug report.

JSON of the format FORMAT: the scenario ("module:function", and the file it is in for when
that module is not on the path), the seed it was found with, the steps, the zoo's defects that
were on, the digest of the run, and the failure's text.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import attrs

from xenpv.errors import ConfigError, LocalProtocolError
from xenpv.testing import zoo
from xenpv.testing.run import Run, Scenario, run_schedule
from xenpv.testing.schedule import Action, Schedule, Step

FORMAT: Final = 1
KEYS: Final = ("scenario", "file", "seed", "defects", "steps", "digest", "failure")
AT_MAX: Final = 1 << 32
STEPS_MAX: Final = 10_000


def scenario_name(scenario: Scenario, *, must_import: bool = False) -> str:
    """`module:function`. LocalProtocolError if it must be found again and cannot."""
    module = getattr(scenario, "__module__", "")
    name = getattr(scenario, "__qualname__", repr(scenario))
    if must_import and (not name.isidentifier() or not module):
        raise LocalProtocolError(
            f"{module}:{name} cannot be replayed: a scenario in a file is a function of a module"
        )
    return f"{module}:{name}"


@attrs.frozen(kw_only=True)
class Replay:
    """A recorded failure. `steps` are (decision, action, argument)."""

    scenario: str
    file: str
    seed: int
    defects: tuple[str, ...]
    schedule: Schedule
    digest: str
    failure: str

    @classmethod
    def of(
        cls, scenario: Scenario, run: Run, *, seed: int = 0, defects: tuple[str, ...] = ()
    ) -> Replay:
        """The record of a failed run. LocalProtocolError for a scenario that is no function of
        a module.
        """
        code = getattr(scenario, "__code__", None)
        return cls(
            scenario=scenario_name(scenario, must_import=True),
            file="" if code is None else _relative(code.co_filename),
            seed=seed,
            defects=defects,
            schedule=run.taken,
            digest=run.digest,
            failure=run.failure_text,
        )

    def dumps(self) -> str:
        """The file's text."""
        document = {
            "xenpv-replay": FORMAT,
            "scenario": self.scenario,
            "file": self.file,
            "seed": self.seed,
            "defects": list(self.defects),
            "steps": [[step.at, str(step.action), step.argument] for step in self.schedule.steps],
            "digest": self.digest,
            "failure": self.failure,
        }
        return json.dumps(document, indent=1) + "\n"

    @classmethod
    def loads(cls, text: str, *, file: str = "") -> Replay:
        """Parse a file's text. ConfigError: what is wrong, in one line."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"not a replay file: not JSON: {error}", file=file) from error
        if not isinstance(document, dict) or "xenpv-replay" not in document:
            raise ConfigError("not a replay file: no xenpv-replay in it", file=file)
        version = document["xenpv-replay"]
        if type(version) is not int or version < 1:
            raise ConfigError(f"format {version!r} of a replay file is no number", file=file)
        if version > FORMAT:
            raise ConfigError(
                f"format {version} is newer than this xenpv, which reads up to {FORMAT}", file=file
            )
        return cls._checked(document, file)

    @classmethod
    def _checked(cls, document: Mapping[str, Any], file: str) -> Replay:
        missing = [key for key in KEYS if key not in document]
        if missing:
            raise ConfigError(f"no {missing[0]} in it", file=file)
        for key in ("scenario", "file", "digest", "failure"):
            if not isinstance(document[key], str):
                raise ConfigError(f"{key} is {document[key]!r}: expected text", file=file)
        seed = document["seed"]
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ConfigError(f"seed is {seed!r}: expected a number", file=file)
        defects = document["defects"]
        if not isinstance(defects, list) or not all(isinstance(one, str) for one in defects):
            raise ConfigError(f"defects is {defects!r}: expected a list of names", file=file)
        steps = document["steps"]
        if not isinstance(steps, list) or len(steps) > STEPS_MAX:
            raise ConfigError("steps: expected a list of [decision, action, argument]", file=file)
        return cls(
            scenario=document["scenario"],
            file=document["file"],
            seed=seed,
            defects=tuple(defects),
            schedule=Schedule(tuple(_step(one, file) for one in steps)),
            digest=document["digest"],
            failure=document["failure"],
        )

    def save(self, directory: Path, run: Run) -> Path:
        """Write the replay file, its trace and its store dump; the file's path.

        The name is of the content: the same failure is written once.
        """
        directory.mkdir(parents=True, exist_ok=True)
        text = self.dumps()
        short = blake2b(text.encode(), digest_size=4).hexdigest()
        path = directory / f"{self.scenario.rpartition(':')[2]}-{short}.replay"
        path.write_text(text, encoding="utf-8")
        trace = [*run.tail, "", *run.tables]
        path.with_suffix(".trace").write_text("\n".join(trace) + "\n", encoding="utf-8")
        path.with_suffix(".store").write_text("\n".join(run.store) + "\n", encoding="utf-8")
        return path

    def find(self) -> Scenario:
        """The scenario's function. ConfigError if there is none, or it cannot be imported."""
        name, _, function = self.scenario.partition(":")
        try:
            module = _module(name, self.file)
        except Exception as error:
            raise ConfigError(
                f"scenario {self.scenario!r}: importing it: {type(error).__name__}: {error}"
            ) from error
        found = getattr(module, function, None) if module is not None else None
        if not callable(found):
            raise ConfigError(f"unknown scenario {self.scenario!r}: no such function to import")
        scenario: Scenario = found
        return scenario

    def run(self) -> Run:
        """Run it again. ConfigError: unknown scenario or defect."""
        scenario = self.find()
        unknown = [one for one in self.defects if one not in zoo.all_defects()]
        if unknown:
            raise ConfigError(f"unknown defect {unknown[0]!r}")
        with ExitStack() as stack:
            for one in self.defects:
                stack.enter_context(zoo.defect(one))
            return run_schedule(scenario, self.schedule)


def load_replay(path: str | Path) -> Replay:
    """Read a replay file. ConfigError: not there, or not one."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(f"not a replay file: {reason}", file=str(path)) from error
    return Replay.loads(text, file=str(path))


def _step(one: Any, file: str) -> Step:
    if isinstance(one, list) and len(one) == 3:
        at, action, argument = one
        numbers = all(type(value) is int and 0 <= value < AT_MAX for value in (at, argument))
        if numbers and action in tuple(Action):
            return Step(at, Action(action), argument)
    raise ConfigError(f"step {one!r}: expected [decision, action, argument]", file=file)


def _module(name: str, file: str) -> ModuleType | None:
    """By its name where that leads to it, else from its file."""
    if name and name != "__main__":
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            pass
    spec = importlib.util.spec_from_file_location("xenpv_replayed", file) if file else None
    if spec is None or spec.loader is None or not Path(file).is_file():
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _relative(path: str) -> str:
    try:
        return str(Path(path).resolve().relative_to(Path.cwd()))
    except ValueError:
        return path
