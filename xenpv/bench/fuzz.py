"""Hostile examples: how many overlays a second, and what a state machine costs beside Hypothesis.

Both in CPU time of this thread. An overlay is drawn bytes over a fresh raw world; the machine is
run by Hypothesis as a user's test would, and what its rules take is measured around them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from time import thread_time_ns
from typing import Any, Final

TARGETS: Final = ("blk-backend", "net-backend")
OVERLAY_BYTES: Final = 32  # at most: some six operations
SAMPLE: Final = 40
S: Final = 1e9  # in ns


def overlays() -> Generator[tuple[float, None], None, None]:
    """Examples a second, over the backends of a raw world that is made for each."""
    from xenpv.testing import overlay

    runs = [overlay.load(name).run for name in TARGETS]
    draw = random.Random(0)
    texts = [draw.randbytes(1 + int(draw.random() * OVERLAY_BYTES)) for _ in range(8 * SAMPLE)]
    for run in runs:
        run(texts[0])
    at = 0
    while True:
        start = thread_time_ns()
        for number in range(SAMPLE):
            runs[number % len(runs)](texts[(at + number) % len(texts)])
        yield SAMPLE * S / (thread_time_ns() - start), None
        at += SAMPLE


STEPS: Final = 50  # of a machine's run, as Hypothesis has it
RUNS: Final = 20  # examples of a measurement
BLK_CALLS: Final = ("make", "start", "settle", "teardown")


class Watch:
    """Time in calls of what it is put around, in ns; what they call counts once."""

    def __init__(self) -> None:
        self.ns = 0
        self._inside = False

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside = True
            start = thread_time_ns()
            try:
                return function(*args, **kwargs)
            finally:
                self.ns += thread_time_ns() - start
                self._inside = False

        return timed


def machine(kind: str) -> Generator[tuple[float, None], None, None]:
    """The part of a state machine's time that is not Hypothesis': world, rules' calls, checks.

    `kind`: "blk", "net" or "store". The first run, which warms Hypothesis up, does not count.
    """
    from hypothesis import HealthCheck, settings
    from hypothesis.stateful import run_state_machine_as_test

    made, calls = _subject(kind)
    some = settings(
        max_examples=RUNS, stateful_step_count=STEPS, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(made, settings=some)
    while True:
        watch = Watch()
        before = [getattr(home, name) for home, name in calls]
        for (home, name), function in zip(calls, before, strict=True):
            setattr(home, name, watch.around(function))
        try:
            start = thread_time_ns()
            run_state_machine_as_test(made, settings=some)
            whole = thread_time_ns() - start
        finally:
            for (home, name), function in zip(calls, before, strict=True):
                setattr(home, name, function)
        yield watch.ns / whole, None


def _subject(kind: str) -> tuple[Any, list[tuple[Any, str]]]:
    """A machine, and all of its calls that do more than draw or compare."""
    from xenpv.host.xs import XsHandle
    from xenpv.testing import machines
    from xenpv.testing.linux_net import LinuxNet
    from xenpv.testing.world import World

    if kind == "store":
        store = machines.StoreMachine
        names = ("read", "write", "rm", "directory")
        return store, [(store, "connect"), (store, "teardown"), *[(XsHandle, n) for n in names]]
    if kind == "net":
        net = machines.NetMachine
        return net, [(net, "make"), (net, "teardown"), (LinuxNet, "send"), (World, "run")]
    blk = machines.BlkMachine
    return blk, [(blk, name) for name in BLK_CALLS]
