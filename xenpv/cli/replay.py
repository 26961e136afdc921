"""`xenpv replay`: run a recorded failure again, and tell what happened."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from xenpv.cli.tracefile import TraceFile

if TYPE_CHECKING:
    from xenpv.testing import Run
    from xenpv.testing.recorded import Recorded


@attrs.frozen
class Replayed:
    """A replay file and the run that it gave."""

    path: Path
    replay: Recorded
    run: Run

    @property
    def same(self) -> bool:
        """Whether everything happened as it was recorded."""
        return self.replay.digest in ("", str(self.run.digest))

    @property
    def recorded_steps(self) -> int:
        """Steps of a schedule; 0 of what is none."""
        from xenpv.testing import Replay

        return len(self.replay.schedule) if isinstance(self.replay, Replay) else 0

    @property
    def lost(self) -> int:
        """Recorded steps that did nothing this time."""
        return self.recorded_steps - len(self.run.taken)


def replay(path: Path, target: str = "", trace: Path | None = None) -> Replayed:
    """Read and run a file; with a `target` its bytes are an overlay, as a fuzzer leaves them.
    ConfigError for one that is none or leads nowhere, or if the `trace` cannot be written.
    """
    from xenpv.testing.replay import load_replay, overlay_of

    loaded = overlay_of(path, target) if target else load_replay(path)
    if trace is None:
        return Replayed(path, loaded, loaded.run())
    from xenpv.view.recording import recording

    with ExitStack() as stack:
        file = TraceFile(trace)
        file.open(stack, [path])
        with recording() as tapes:
            done = Replayed(path, loaded, loaded.run())
        file.write(tapes, digest=str(done.run.digest))
    return done


def as_text(done: Replayed) -> list[str]:
    """For people."""
    from xenpv.testing import reports

    run, recorded = done.run, done.replay
    lines = [recorded.title]
    if recorded.defects:
        lines.append(f"with the defect {', '.join(recorded.defects)}")
    lines += reports.steps(run) if run.failed or run.words else []
    lost = done.lost
    if lost:
        lines.append(f"{lost} of {done.recorded_steps} recorded steps did nothing this time")
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
    what = {key: value for key, value in recorded.body().items() if key not in ("file", "steps")}
    return {
        "file": str(done.path),
        "kind": recorded.kind,
        **what,
        "defects": list(recorded.defects),
        "reproduced": run.failed,
        "failure": run.failure_text,
        "recorded_failure": recorded.failure,
        "digest": run.digest,
        "recorded_digest": recorded.digest,
        "steps": _steps(run),
        "trace": list(run.tail),
    }


def _steps(run: Run) -> list[dict[str, Any]]:
    """Of a schedule with their decisions; of anything else in words only."""
    if not run.taken:
        return [{"text": words} for words in run.words]
    return [
        {"at": step.at, "action": str(step.action), "argument": step.argument, "text": words}
        for step, words in zip(run.taken.steps, run.words, strict=True)
    ]


def show(done: Replayed, *, json_wanted: bool) -> None:
    if json_wanted:
        print(json.dumps(as_json(done), indent=1))
    else:
        print(*as_text(done), sep="\n")
