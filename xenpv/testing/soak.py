"""Many hostile examples over every target, in processes of their own.

    python -m xenpv.testing.soak --examples 1000000 --jobs 2 --seed 0

Each example is a fresh world. What escapes, does not hold, does not end or stays behind in the
process is told with the bytes of the example; exit status 1 then.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic, process_time
from typing import Final, TextIO

import attrs

from xenpv.testing.overlay import SIZE_MAX, Target, targets

# Of so many examples: worlds with a whole guest take ten times as long as the others.
SHARES: Final[Mapping[str, int]] = {
    "blk-backend": 28,
    "net-backend": 28,
    "store": 24,
    "xenbus": 14,
    "blk-frontend": 3,
    "net-frontend": 3,
}
PASS: Final = 500  # examples between two looks at what the process holds
HANG_S: Final = 300.0  # of wall clock, for a pass
FAILURES_MAX: Final = 10
# The process may hold so much more after a pass than after the first ones.
WARM_UP: Final = 6  # passes
OBJECTS_SLACK: Final = 20_000
FILES_SLACK: Final = 8
RSS_SLACK: Final = 64 << 20  # bytes


@attrs.frozen
class Held:
    """What the process holds: objects that the collector knows, open files, bytes resident."""

    objects: int
    files: int
    rss: int

    @classmethod
    def now(cls) -> Held:
        """After a collection."""
        gc.collect()
        process = Path("/proc/self")
        pages = int((process / "statm").read_text(encoding="ascii").split()[1])
        files = sum(1 for _ in (process / "fd").iterdir())
        return cls(len(gc.get_objects()), files, pages * os.sysconf("SC_PAGE_SIZE"))

    def leaks(self, before: Held) -> list[str]:
        """What there is more of than there may be."""
        found = []
        for name, slack in (("objects", OBJECTS_SLACK), ("files", FILES_SLACK), ("rss", RSS_SLACK)):
            was, now = getattr(before, name), getattr(self, name)
            if now > was + slack:
                found.append(f"{name}: {now}, {was} after {WARM_UP} passes")
        return found


@attrs.define(eq=False)
class Soak:
    """`examples` of a seed over `chosen`, mixed by their shares; `failures` in words."""

    chosen: Mapping[str, Target]
    seed: int
    out: TextIO
    done: int = 0
    counts: dict[str, int] = attrs.Factory(dict)
    failures: list[str] = attrs.Factory(list)
    warm: Held | None = None

    def texts(self) -> Iterator[tuple[str, bytes]]:
        """Targets and examples, without an end: short ones more often than long ones."""
        draw = random.Random(f"soak {self.seed}")
        bag = [name for name in self.chosen for _ in range(SHARES.get(name, 1))]
        while True:
            name = bag[int(draw.random() * len(bag))]
            size = min(draw.random(), draw.random()) * SIZE_MAX
            yield name, draw.randbytes(1 + int(size))

    def run(self, examples: int, label: str = "") -> None:
        """All of them, unless too many fail."""
        texts = self.texts()
        started, passes = process_time(), 0
        while self.done < examples and len(self.failures) < FAILURES_MAX:
            faulthandler.dump_traceback_later(HANG_S, exit=True, file=2)
            for _ in range(min(PASS, examples - self.done)):
                name, data = next(texts)
                self._one(name, data)
            faulthandler.cancel_dump_traceback_later()
            passes += 1
            self._look(passes)
            if passes % 20 == 0:
                rate = self.done / (process_time() - started)
                print(
                    f"{label}{self.done} examples, {rate:.0f}/s of CPU", file=self.out, flush=True
                )

    def _one(self, name: str, data: bytes) -> None:
        self.done += 1
        self.counts[name] = self.counts.get(name, 0) + 1
        try:
            self.chosen[name].run(data)
        except Exception as error:  # noqa: BLE001 - it is what a soak looks for
            failure = f"{name}: {type(error).__name__}: {error}"
            self.failures.append(f"{failure}\n  bytes.fromhex({data.hex()!r})")
            print(self.failures[-1], file=self.out, flush=True)

    def _look(self, passes: int) -> None:
        if passes % WARM_UP:
            return
        held = Held.now()
        if self.warm is None:
            self.warm = held
            return
        leaks = held.leaks(self.warm)
        if leaks:
            self.failures.append(f"after {self.done} examples: {', '.join(leaks)}")
            print(self.failures[-1], file=self.out, flush=True)
            self.warm = held


def main(argv: Sequence[str] | None = None) -> int:
    """0: nothing was found; 1: something was; 2: bad arguments."""
    parser = argparse.ArgumentParser(prog="python -m xenpv.testing.soak", description=__doc__)
    parser.add_argument("--examples", type=int, default=1_000_000, help="of all jobs together")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, default=0, help="of the first process")
    parser.add_argument("--target", action="append", default=[], help="of these alone")
    args = parser.parse_args(argv)
    known = targets()
    unknown = [name for name in args.target if name not in known]
    if unknown or args.jobs < 1:
        parser.error(f"targets are {', '.join(known)}, and there is at least one job")
    if args.jobs > 1:
        return _jobs(args.examples, args.jobs, args.seed, args.target)
    chosen = {name: known[name] for name in args.target or known}
    soak = Soak(chosen, args.seed, sys.stdout)
    started, wall = process_time(), monotonic()
    soak.run(args.examples, f"seed {args.seed}: ")
    print(
        f"seed {args.seed}: {soak.done} examples in {monotonic() - wall:.0f} s, "
        f"{process_time() - started:.0f} s of CPU: {len(soak.failures)} failures; "
        + ", ".join(f"{name} {count}" for name, count in sorted(soak.counts.items()))
    )
    return 1 if soak.failures else 0


def _jobs(examples: int, jobs: int, seed: int, chosen: Sequence[str]) -> int:
    """A process for each share of them."""
    command = [sys.executable, "-m", "xenpv.testing.soak"]
    for name in chosen:
        command += ["--target", name]
    running = []
    for number in range(jobs):
        share = examples // jobs + (number < examples % jobs)
        own = ["--examples", str(share), "--seed", str(seed + number)]
        running.append(subprocess.Popen(command + own))  # noqa: S603 - this interpreter, our text
    return max(min(one.wait(), 1) if one.wait() >= 0 else 1 for one in running)


if __name__ == "__main__":
    sys.exit(main())
