"""The run queue and the virtual clock: who runs next, and when it is.

An event sets a bit and wakes a task; the task runs later, from here, to completion. Where
two or more are runnable a chooser picks, so code that relies on an order fails early. Time
moves only when nothing is runnable: it jumps to the next timer. There are no threads.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Final, Protocol

from xenpv.errors import Livelock, LocalProtocolError
from xenpv.xen.trace import (
    CHUNK_WORDS,
    DOMID_SHIFT,
    MACHINE_SHIFT,
    MACHINES_MAX,
    Event,
    Trace,
    mark,
)

TASKS_PER_RUN: Final = 5_000_000
STALE_TIMERS_MAX: Final = 64

NS_PER_MS: Final = 1_000_000
NS_PER_S: Final = 1_000_000_000

STRETCH: Final = 256  # tasks between two looks at the limit and the trace

# The records of draws from few, made once: _DRAWS[count][index].
_DELIVER: Final = mark(Event.DELIVER, 0)
_DRAW: Final = mark(Event.DRAW, 0)
_DRAWS: Final = tuple(
    tuple(_DRAW | count << 20 | index for index in range(count)) for count in range(9)
)


class Chooser(Protocol):
    def choose(self, count: int) -> int:
        """An index below count, which is at least 2."""


class SeededChooser:
    """Uniform picks of a PRNG; Random.random() gives one sequence on every Python."""

    __slots__ = ("random",)

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed).random

    def choose(self, count: int) -> int:
        return int(self.random() * count)


class ScheduleChooser:
    """Picks read from bytes, one each; after the last byte, always the first in order."""

    __slots__ = ("_at", "schedule")

    def __init__(self, schedule: bytes) -> None:
        self.schedule = schedule
        self._at = 0

    def choose(self, count: int) -> int:
        if self._at >= len(self.schedule):
            return 0
        byte = self.schedule[self._at]
        self._at += 1
        return byte % count


class Scheduler(Protocol):
    """What the test kit puts in the place of the loop's own order; see xenpv.testing."""

    def drain(self, loop: Loop, limit: int) -> int:
        """Run tasks until none is runnable, at most `limit`; how many. May raise Livelock."""

    def pump(self, loop: Loop, task: Task) -> bool:
        """As Loop.pump."""


class Task:
    """One thing that can be runnable: an upcall, a kernel thread, a process of a domain.

    `run` takes no argument. A held task (its domain is paused) stays due until released.
    `machine` is the number of its hypervisor on this loop.
    """

    __slots__ = ("_enqueue", "alarm", "delivery", "domid", "due", "held", "idle", "loop",
                 "machine", "name", "number", "run")  # fmt: skip

    def __init__(
        self, loop: Loop, domid: int, name: str, run: Callable[[], object], machine: int = 0
    ) -> None:
        self.loop = loop
        self.domid = domid
        self.machine = machine
        self.name = name
        self.run = run
        self.alarm: Timer | None = None  # what it sleeps on, if somebody may spin for it
        self.idle = True  # neither queued nor held: what `wake` looks at first
        self.held = 0
        self.due = False
        self._enqueue = loop.enqueue
        self.number = loop.tasks_made
        # Its record in the trace.
        whose = machine << MACHINE_SHIFT | domid << DOMID_SHIFT
        self.delivery = _DELIVER | whose | self.number
        loop.tasks_made += 1

    @property
    def queued(self) -> bool:
        return not self.idle and not self.held

    def wake(self) -> None:
        """Runnable; once, however often it is woken before it runs."""
        if self.idle:
            self.idle = False
            self._enqueue(self)
        elif self.held:
            self.due = True

    def hold(self) -> None:
        if self.queued:
            self.loop.ready.remove(self)
            self.due = True
        self.held += 1
        self.idle = False

    def release(self) -> None:
        self.held -= 1
        if not self.held:
            self.idle = True
            if self.due:
                self.due = False
                self.wake()

    def retire(self) -> None:
        """Never run again: its domain is gone."""
        if self.queued:
            self.loop.ready.remove(self)
        self.held = 1 << 30
        self.idle = self.due = False
        self.run = _retired  # what it ran may be freed

    def __repr__(self) -> str:
        machine = f"m{self.machine} " if self.machine else ""
        return f"<Task {self.number} {machine}d{self.domid} {self.name}>"


def _retired() -> None:
    raise AssertionError("a retired task runs")


class Timer:
    """Wakes a task at a virtual time; with a period, again and again."""

    __slots__ = ("_armed", "_deadline", "_frozen", "_left", "loop", "period_ns", "task")

    def __init__(self, loop: Loop, task: Task, period_ns: int = 0) -> None:
        self.loop = loop
        self.task = task
        self.period_ns = period_ns
        self._armed = 0  # the sequence number of the heap entry that counts, 0 if none does
        self._deadline = 0
        self._frozen = False
        self._left = 0  # ns, of one that was set aside

    @property
    def armed(self) -> bool:
        return self._armed != 0

    @property
    def deadline(self) -> int:
        """When it fires, or last should have fired: virtual nanoseconds."""
        return self._deadline

    def arm(self, after_ns: int) -> None:
        """(Re)start: fires `after_ns` from now."""
        self.cancel()
        self._deadline = self.loop.now + after_ns
        self._armed = self.loop.push_timer(self, after_ns)

    def cancel(self) -> None:
        if self._armed:
            self._armed = 0
            self.loop.dropped_timer(self)

    def freeze(self) -> None:
        """Its domain shut down: stop, until `thaw` lets it fire when it was due, or at once."""
        self._frozen = self.armed
        self.cancel()

    def thaw(self) -> None:
        left = self.left
        if self._frozen and left is not None:
            self._frozen = False
            self._left = 0
            self.arm(left)

    @property
    def left(self) -> int | None:
        """ns until it fires, 0 if that is overdue; None if it is neither armed nor frozen."""
        if not (self._armed or self._frozen):
            return None
        return self._left or max(0, self._deadline - self.loop.now)

    def set_aside(self, left_ns: int) -> None:
        """Of a domain that did not run yet: `thaw` arms it with so much left, however late."""
        self._frozen = True
        self._left = left_ns

    def fires(self, sequence: int) -> bool:
        return self._armed == sequence

    def expire(self) -> None:
        self._armed = 0


class Loop:
    """Run queue and clock of one or more platforms."""

    __slots__ = (
        "_machines",
        "_oneshots",
        "_running",
        "_sequence",
        "_stale",
        "_timers",
        "between",
        "chooser",
        "enqueue",
        "ready",
        "scheduler",
        "seed",
        "tasks_made",
        "trace",
    )  # fmt: skip

    def __init__(
        self, *, seed: int = 0, chooser: Chooser | None = None, trace: Trace | None = None
    ) -> None:
        self.seed = seed
        self.chooser: Chooser = SeededChooser(seed) if chooser is None else chooser
        self.trace = Trace() if trace is None else trace
        self.scheduler: Scheduler | None = None
        # Called now and then when no handler runs: of a looker-on, who changes nothing.
        self.between: Callable[[], object] | None = None
        self.ready: list[Task] = []  # always this list: tasks keep its `append`
        self.enqueue = self.ready.append
        self.tasks_made = 0
        self._machines = 0
        self._timers: list[tuple[int, int, Timer]] = []
        self._sequence = 0
        self._stale = 0
        self._oneshots = 0
        self._running = False

    @property
    def now(self) -> int:
        """Virtual nanoseconds since the platform was made."""
        return self.trace.clock

    def system_time(self) -> int:
        """`now`, for whoever asks a clock."""
        return self.trace.clock

    @property
    def is_running(self) -> bool:
        """Whether this is in a handler of one of its tasks."""
        return self._running

    def join(self) -> int:
        """The number of a machine that is going to run on this loop; LocalProtocolError: none left.

        A machine that was closed keeps its number.
        """
        if self._machines == MACHINES_MAX:
            raise LocalProtocolError(f"a loop carries {MACHINES_MAX} machines in its life")
        self._machines += 1
        return self._machines - 1

    @property
    def next_deadline(self) -> int | None:
        """When the next timer fires, periodic ones too; None if none is armed."""
        timers = self._timers
        while timers and not timers[0][2].fires(timers[0][1]):
            heapq.heappop(timers)
        return timers[0][0] if timers else None

    def push_timer(self, timer: Timer, after_ns: int) -> int:
        self._sequence += 1
        heapq.heappush(self._timers, (self.now + max(0, after_ns), self._sequence, timer))
        self._oneshots += not timer.period_ns
        return self._sequence

    def dropped_timer(self, timer: Timer) -> None:
        self._oneshots -= not timer.period_ns
        # Entries of cancelled timers go when they come to the top, or when they are many.
        self._stale += 1
        if self._stale > STALE_TIMERS_MAX and 2 * self._stale > len(self._timers):
            self._timers = [entry for entry in self._timers if entry[2].fires(entry[1])]
            heapq.heapify(self._timers)
            self._stale = 0

    def run(self, limit: int = TASKS_PER_RUN) -> int:
        """Until nothing is runnable and only periodic timers remain; tasks run.

        Raises Livelock after `limit` tasks.
        """
        return self._go(None, limit)

    def advance(self, ns: int, limit: int = TASKS_PER_RUN) -> int:
        """Let `ns` of virtual time pass, firing periodic timers too; tasks run."""
        return self._go(self.now + ns, limit)

    def _go(self, until: int | None, limit: int) -> int:
        if self._running:
            raise LocalProtocolError("run() inside a handler: wait by an event, watch or timer")
        self._running = True
        done = 0
        scheduler = self.scheduler
        try:
            while True:
                if scheduler is None:
                    done += self._drain(limit - done)
                else:
                    done += scheduler.drain(self, limit - done)
                if not self._fire_next(until):
                    break
            if until is not None:
                self.trace.clock = until
        finally:
            self._running = False
        return done

    def _drain(self, limit: int) -> int:
        ready = self.ready
        words = self.trace.words
        done = 0
        while ready:
            done += self._stretch(max(1, min(STRETCH, limit - done)))
            if len(words) >= CHUNK_WORDS:
                self.trace.flush()
            if self.between is not None:
                self.between()
            if done >= limit and ready:
                raise Livelock(
                    f"{done} tasks ran and more are due", seed=self.seed, tail=self.trace.tail()
                )
        return done

    def _stretch(self, most: int) -> int:
        """Run at most so many tasks; how many there were."""
        ready = self.ready
        pop = ready.pop
        chooser = self.chooser
        choose = chooser.choose
        # The usual chooser, spelt out: half of what a pick costs is its call.
        random = chooser.random if type(chooser) is SeededChooser else None
        append = self.trace.words.append
        draws = _DRAWS
        for done in range(most):
            count = len(ready)
            if count == 1:
                task = pop()
            elif count:
                index = choose(count) if random is None else int(random() * count)
                append(draws[count][index] if count <= 8 else _DRAW | count << 20 | index)
                task = pop(index)
            else:
                return done
            task.idle = True
            append(task.delivery)
            task.run()
        return most

    def _fire_next(self, until: int | None) -> bool:
        """Jump to the next timer; False if there is none to wait for."""
        while self._timers:
            deadline, sequence, timer = self._timers[0]
            if not timer.fires(sequence):
                heapq.heappop(self._timers)
                continue
            if until is None and not self._oneshots:
                return False
            if until is not None and deadline > until:
                return False
            heapq.heappop(self._timers)
            self.trace.timer(timer.task.delivery, max(self.now, deadline))
            timer.expire()
            if timer.period_ns:
                timer.arm(timer.period_ns)
            else:
                self._oneshots -= 1
            timer.task.wake()
            return True
        return False

    def pump(self, task: Task, *, due: bool = False) -> bool:
        """Run one due task here and now, inside the handler that waits for it.

        `due`: it would be woken at this moment, were it not for this.
        """
        if self.scheduler is not None:
            if due:
                task.wake()
            return self.scheduler.pump(self, task)
        if task.queued:
            self.start(task)
        elif due and not task.held:
            self.trace.words.append(task.delivery)
        else:
            task.due |= due
            return False
        task.run()
        return True

    def elapse(self, task: Task) -> bool:
        """Let time pass until the task's alarm, and run it: a handler spins for it meanwhile.

        Nothing else runs, however late it is by then. False if it has no alarm set, is held,
        or a scheduler decides who runs.
        """
        alarm = task.alarm
        if alarm is None or not alarm.armed or task.held or self.scheduler is not None:
            return False
        self.trace.timer(task.delivery, max(self.now, alarm.deadline))
        alarm.cancel()
        return self.pump(task, due=True)

    def start(self, task: Task) -> None:
        """Take a due task off the queue and trace it; the caller runs it."""
        self.ready.remove(task)
        task.idle = True
        self.trace.words.append(task.delivery)
