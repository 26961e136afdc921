"""Handlers in greenlets: one domain's is stopped before an access while another domain's runs.

The loop hands over its queue (Loop.scheduler). Each handler runs in a greenlet of its own
below the hub, which is whoever called the loop. At an access the running handler may go to
the hub with the one that shall run instead, and waits there until it is chosen again. So any
order A1 B1 A2 B2 can happen, but only where real Xen would allow it: not under a lock of the
hypervisor, not to a paused domain, and never two handlers of one domain at once. A handler
that waits inline for another domain (a store request) is not stopped while that one runs for
it; if that domain's handler was stopped itself, it is finished first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs

from xenpv.errors import ConfigError, Livelock
from xenpv.xen.loop import Loop, Task
from xenpv.xen.trace import CHUNK_WORDS, Event, mark

try:
    from greenlet import GreenletExit, getcurrent, greenlet
except ImportError:  # cases, overlays and a user's ends do without: `require` says what is missing
    HAS_GREENLET = False
else:
    HAS_GREENLET = True

RETIRED: Final = 1 << 29  # a retired task's `held` is above any count of pauses


def require() -> None:
    """ConfigError without greenlet, which is in the extra `explore`."""
    if not HAS_GREENLET:
        raise ConfigError("exploration needs greenlet: pip install 'xenpv[explore]'")


@attrs.define(eq=False)
class Handler:
    """One run of a task; `greenlet` is where it stands. `outlives`: it retired the task itself,
    as a watch that is taken off from its own callback, and goes on all the same.
    """

    task: Task
    greenlet: Any
    outlives: bool = False

    def __str__(self) -> str:
        return name(self.task)


Runnable = Task | Handler


class Interleaver:
    """The loop's scheduler of an explored run.

    `choose(options)` picks the index of what runs next, asked only when there are two or
    more: stopped handlers, the last one first, then tasks in their order. `deliver(task)` is
    told of each new delivery, `ended()` when a handler has run to its end. `alive(task)`: whether
    its domain is. `current` is the running handler, None between two.
    """

    def __init__(
        self,
        choose: Callable[[list[Runnable]], int],
        deliver: Callable[[Task], None],
        ended: Callable[[], None],
        alive: Callable[[Task], bool],
    ) -> None:
        require()
        self._choose = choose
        self._deliver = deliver
        self._ended = ended
        self._alive = alive
        self.current: Handler | None = None
        self.stopped: list[Handler] = []
        self.failure: BaseException | None = None
        self._hub: Any = None
        self._inline = 0

    # the loop's side

    def drain(self, loop: Loop, limit: int) -> int:
        """Run and resume handlers until none can; how many times. Livelock after `limit`."""
        outer, self._hub = self._hub, getcurrent()
        done = 0
        try:
            while True:
                options = self._options(loop)
                if not options:
                    return done
                if done >= limit:
                    raise Livelock(
                        f"{done} handlers ran and more are due",
                        seed=loop.seed,
                        tail=loop.trace.tail(),
                    )
                index = self._choose(options) if len(options) > 1 else 0
                if len(options) > 1:
                    loop.trace.words.append(mark(Event.DRAW, 0, len(options)) | index)
                done += self._go(loop, options[index])
                if len(loop.trace.words) >= CHUNK_WORDS:
                    loop.trace.flush()
        finally:
            self._hub = outer

    def pump(self, loop: Loop, task: Task) -> bool:
        """Run a due task inline, after what its domain had begun."""
        finished = self._finish(loop, _domain(task))
        if not task.queued:
            return finished
        loop.start(task)
        self._deliver(task)
        self._inline += 1
        try:
            task.run()
        finally:
            self._inline -= 1
        return True

    def _options(self, loop: Loop) -> list[Runnable]:
        if not self.stopped:
            return list(loop.ready)
        stopped = [one for one in self.stopped if one.task.loop is loop]
        resumable: list[Runnable] = [one for one in stopped[::-1] if self._resumes(one)]
        busy = [_domain(one.task) for one in stopped if one.task.held < RETIRED]
        busy += [_domain(one) for one in resumable]
        return resumable + [task for task in loop.ready if _domain(task) not in busy]

    def _resumes(self, stopped: Handler) -> bool:
        """Not while its domain is paused, nor after that died."""
        task = stopped.task
        return not task.held or (stopped.outlives and self._alive(task))

    def _go(self, loop: Loop, chosen: Runnable) -> int:
        """Run one handler, then what it was stopped for, until one ends; how many ran."""
        ran = 0
        following: Runnable | None = chosen
        while following is not None:
            handler = self._begin(loop, following)
            ran += 1
            self.current = handler
            following = handler.greenlet.switch()
            self.current = None
            if self.failure is not None:
                failure, self.failure = self.failure, None
                raise failure
            if following is not None:
                handler.outlives = handler.task.held >= RETIRED
                self.stopped.append(handler)
            else:
                self._ended()
        return ran

    def _begin(self, loop: Loop, chosen: Runnable) -> Handler:
        if isinstance(chosen, Handler):
            self.stopped.remove(chosen)
            loop.trace.words.append(chosen.task.delivery)
            return chosen
        loop.start(chosen)
        self._deliver(chosen)
        return Handler(chosen, greenlet(lambda: self._run(chosen), self._hub))

    def _run(self, task: Task) -> None:
        try:
            task.run()
        except GreenletExit:
            return
        except BaseException as error:  # noqa: BLE001 - raised again in the hub, as the loop would
            self.failure = self.failure or error

    def _finish(self, loop: Loop, domain: tuple[int, int]) -> bool:
        """Run the stopped handler of a domain to its end, from inside another's."""
        for handler in self.stopped:
            task = handler.task
            if _domain(task) == domain and task.loop is loop and self._resumes(handler):
                break
        else:
            return False
        self.stopped.remove(handler)
        loop.trace.words.append(handler.task.delivery)
        waiting, self.current = self.current, handler
        self._inline += 1
        handler.greenlet.parent = getcurrent()
        try:
            handler.greenlet.switch()
        finally:
            self._inline -= 1
            self.current = waiting
        if self.failure is not None and self._hub is not None and waiting is not None:
            # Not this handler's failure: the hub raises it, and `close` unwinds this one.
            self.stopped.append(waiting)
            self._hub.switch(None)
        return True

    # the hook's side

    def targets(self) -> list[Runnable]:
        """What could run in place of the running handler, at this access."""
        running = self.current
        if running is None or self._inline or getcurrent() is not running.greenlet:
            return []
        loop, domain = running.task.loop, _domain(running)
        if not loop.ready and not self.stopped:
            return []
        return [one for one in self._options(loop) if _domain(one) != domain]

    def preempt(self, target: Runnable) -> None:
        """Stop the running handler here; returns when it is chosen again."""
        assert self._hub is not None, "a handler runs below the hub"
        self._hub.switch(target)

    def close(self) -> None:
        """Unwind what is still stopped: its cleanup runs, what it raises is dropped."""
        while self.stopped:
            handler = self.stopped.pop()
            handler.greenlet.parent = getcurrent()
            while not handler.greenlet.dead:
                self._throw(handler.greenlet)
        self.failure = None

    @staticmethod
    def _throw(stopped: Any) -> None:
        try:
            stopped.throw(GreenletExit)
        except Exception:  # noqa: BLE001 - of a handler that is being thrown away
            return


def name(one: Runnable) -> str:
    """`d1 upcall0`, of another machine than the loop's first `m1 d1 upcall0`."""
    task = one.task if isinstance(one, Handler) else one
    machine = f"m{task.machine} " if task.machine else ""
    return f"{machine}d{task.domid} {task.name}"


def _domain(one: Runnable) -> tuple[int, int]:
    """Whose it is: the machine's number on the loop, and the domid there."""
    task = one.task if isinstance(one, Handler) else one
    return task.machine, task.domid
