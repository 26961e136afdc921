"""Overlays: bytes that become what a hostile end does, an operation at a time.

    fuzz_one(data)                      # for atheris, AFL++ and libFuzzer-style drivers
    @given(st.binary(max_size=400))
    def test(data): fuzz_one(data, "net-backend")

The same bytes give the same run. Any bytes are an overlay: what does not fit wraps or is left
out, and fewer or smaller bytes do less, so that they shrink well.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Final

import attrs

from xenpv.errors import LocalProtocolError
from xenpv.testing.cases.suite import Factory, Suite
from xenpv.testing.ends.watchdog import Stuck
from xenpv.testing.hunt import Found, Search, limited
from xenpv.testing.run import DoesNotReturn

SHRINK_RUNS_MAX: Final = 2_000
SIZE_MAX: Final = 400  # bytes of an example that the kit draws


@attrs.frozen
class Target:
    """An end that overlays are laid over. `run` makes a fresh world, does what the bytes say
    and raises what does not hold; `split` cuts bytes into operations (joined, they are the
    bytes again); `words` tells each operation. Of a protocol of one's own it has the `suite`, and
    what makes the end under test.
    """

    name: str
    run: Callable[[bytes], object]
    split: Callable[[bytes], list[bytes]]
    words: Callable[[bytes], list[str]]
    suite: Suite | None = None
    factory: Factory | None = None


def targets() -> dict[str, Target]:
    """Every target by its name."""
    from xenpv.testing.overlays import HOMES

    return {name: load(name) for name in HOMES}


def load(name: str) -> Target:
    """A target by its name. LocalProtocolError if there is none of that name."""
    from xenpv.testing.overlays import HOMES

    if name not in HOMES:
        raise LocalProtocolError(f"no target is called {name!r}: expected {', '.join(HOMES)}")
    found: Target = import_module(f"{__package__}.overlays.{HOMES[name]}").TARGET
    return found


def fuzz_one(data: bytes, target: str = "blk-backend") -> None:
    """Run one example. Raises what does not hold; LocalProtocolError: an unknown target."""
    known = load(target)
    try:
        known.run(data)
    except Exception as error:
        from xenpv.testing import reports

        reports.remember(Overlaid(known, data))
        error.add_note(f"again: xenpv replay --target {target} FILE, of these bytes: {data.hex()}")
        raise


@attrs.frozen
class Overlaid:
    """Bytes that failed: what a report tells of them."""

    target: Target
    data: bytes

    def section(self, directory: Path) -> list[str]:
        """For pytest: the operations, the replay file, and what happened."""
        from xenpv.testing import reports
        from xenpv.testing.replay import OverlayReplay

        path, run = OverlayReplay.save_data(self.target, self.data, directory)
        lines = [f"overlay over {self.target.name} fails: {run.failure_text}"]
        lines += reports.steps(run) if run.words else []
        return [*lines, f"again: xenpv replay {path}", *reports.shown(run, path)]


@attrs.frozen
class OverlayHunt:
    """Random overlays of a seed over one target."""

    cost = 1

    target: Target

    @property
    def name(self) -> str:
        return f"overlay:{self.target.name}"

    def search(self, seed: int) -> Search:
        """Endless."""
        draw = random.Random(f"{self.name} {seed}")
        examples = 0
        while True:
            data = draw.randbytes(1 + int(draw.random() * SIZE_MAX))
            examples += 1
            error = self._failure(data)
            yield None if error is None else self._found(data, error, seed, examples)

    def _failure(self, data: bytes) -> Exception | None:
        try:
            with limited():
                self.target.run(data)
        except Stuck as stuck:
            return DoesNotReturn(str(stuck))
        except Exception as error:  # noqa: BLE001 - told in the finding
            return error
        return None

    def _found(self, data: bytes, error: Exception, seed: int, examples: int) -> Found:
        """Operations are dropped as long as the same kind of failure is left."""
        operations, runs = self.target.split(data), 0
        size = 0 if isinstance(error, DoesNotReturn) else len(operations)
        while size:
            at = 0
            while at < len(operations) and runs < SHRINK_RUNS_MAX:
                fewer = operations[:at] + operations[at + size :]
                again = self._failure(b"".join(fewer))
                runs += 1
                if again is not None and type(again) is type(error):
                    operations, error = fewer, again
                else:
                    at += size
            size //= 2
        smallest = b"".join(operations)
        failure = f"{type(error).__name__}: {error}"

        def save(directory: Path) -> Path:
            from xenpv.testing.replay import OverlayReplay

            return OverlayReplay.save_data(self.target, smallest, directory)[0]

        return Found(
            hunt=self.name,
            seed=seed,
            failure=failure,
            steps=tuple(self.target.words(smallest)),
            examples=examples,
            shrinking=runs,
            save=save,
        )
