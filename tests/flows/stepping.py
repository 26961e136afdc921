"""Something that happens between two steps of the loop: before the k-th task that runs.

Not a test module.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from xenpv.xen.loop import Loop, Task


def in_order(loop: Loop, limit: int, before: Callable[[], object]) -> int:
    """Run what is ready as the loop itself picks it, `before` ahead of each; how many ran."""
    done = 0
    while loop.ready and done < limit:
        before()
        if not loop.ready:
            break  # what happened was their end
        count = len(loop.ready)
        task = loop.ready[loop.chooser.choose(count) if count > 1 else 0]
        loop.start(task)
        task.run()
        done += 1
    return done


def waited_for(loop: Loop, task: Task) -> bool:
    """Run a task that another one waits for, if it is due."""
    if not task.queued:
        return False
    loop.start(task)
    task.run()
    return True


@attrs.define(eq=False)
class At:
    """A scheduler in the loop's own order that calls `happens` once, before step `step`.

    A task that another one waits for counts as a step too, but those that run for `but`, a
    task's name: whoever waits there cannot be gone when they return. `steps` is how many.
    """

    step: int
    happens: Callable[[], object]
    but: str = ""
    steps: int = 0

    def _count(self) -> None:
        if self.steps == self.step:
            self.happens()
        self.steps += 1

    def drain(self, loop: Loop, limit: int) -> int:
        return in_order(loop, limit, self._count)

    def pump(self, loop: Loop, task: Task) -> bool:
        if task.queued and task.name != self.but:
            self._count()
        return waited_for(loop, task)
