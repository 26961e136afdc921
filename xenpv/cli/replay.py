"""`xenpv replay`: run a recorded failure again, and tell what happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from xenpv.testing import Replay, Run


@attrs.frozen
class Replayed:
    """A replay file and the run that it gave."""

    path: Path
    replay: Replay
    run: Run

    @property
    def same(self) -> bool:
        """Whether everything happened as it was recorded."""
        return str(self.run.digest) == self.replay.digest


def replay(path: Path) -> Replayed:
    """Read and run a file. ConfigError for one that is none or leads nowhere."""
    from xenpv.testing import load_replay

    loaded = load_replay(path)
    return Replayed(path, loaded, loaded.run())


def as_text(done: Replayed) -> list[str]:
    """For people."""
    from xenpv.testing import reports

    run, recorded = done.run, done.replay
    lines = [f"{recorded.scenario}, seed {recorded.seed}"]
    if recorded.defects:
        lines.append(f"with the defect {', '.join(recorded.defects)}")
    lines += reports.steps(run) if run.failed or run.words else []
    lost = len(recorded.schedule) - len(run.taken)
    if lost:
        lines.append(f"{lost} of {len(recorded.schedule)} recorded steps did nothing this time")
    if run.failed:
        lines += ["last events:", *(f"  {line}" for line in run.tail)]
        lines += ["rings:", *(f"  {line}" for line in run.tables[: reports.TABLE_LINES_MAX])]
    if not done.same:
        lines.append(
            f"digest {run.digest}, recorded {recorded.digest}: something is not as it was then"
        )
    lines.append(f"fails: {run.failure_text}" if run.failed else "passes: nothing fails")
    return lines


def as_json(done: Replayed) -> dict[str, Any]:
    """For scripts; these keys stay."""
    run, recorded = done.run, done.replay
    return {
        "file": str(done.path),
        "scenario": recorded.scenario,
        "seed": recorded.seed,
        "defects": list(recorded.defects),
        "reproduced": run.failed,
        "failure": run.failure_text,
        "recorded_failure": recorded.failure,
        "digest": run.digest,
        "recorded_digest": recorded.digest,
        "steps": [
            {"at": step.at, "action": str(step.action), "argument": step.argument, "text": words}
            for step, words in zip(run.taken.steps, run.words, strict=True)
        ],
        "trace": list(run.tail),
    }


def show(done: Replayed, *, json_wanted: bool) -> None:
    if json_wanted:
        print(json.dumps(as_json(done), indent=1))
    else:
        print(*as_text(done), sep="\n")
