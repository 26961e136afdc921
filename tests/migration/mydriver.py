"""A class driver as a user of xenpv writes one: it is in no package of xenpv's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xenpv.bus.xenbus import XenBus


class Counter:
    """It says itself what its state is."""

    def __init__(self) -> None:
        self.value = 0
        self.scratch: Callable[[], int] = lambda: 1

    def __getstate__(self) -> dict[str, Any]:
        return {"value": self.value}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.value = state["value"]
        self.scratch = lambda: 2


class MyDriver:
    """Of class IFACE: it counts resumes, and how often its watch was woken."""

    def __init__(self, bus: XenBus) -> None:
        self.bus = bus
        self.stopped = True
        self.resumes = 0
        self.counter = Counter()
        self.task = bus.domain.task("mydriver", self.woken)
        self.watch: object = None
        self.handles: object = None

    def start(self) -> None:
        self.stopped = False
        self.handles = self.bus.acquire_suspend("MYDRIVER", None, self.resumed)
        self.watch = self.bus.store.watch_add("data/mine", self.task)

    def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            self.bus.release_suspend(self.handles)  # type: ignore[arg-type] # it has started
            self.bus.store.watch_remove(self.watch)  # type: ignore[arg-type] # it has started

    def resumed(self) -> None:
        self.resumes += 1
        self.bus.store.watch_remove(self.watch)  # type: ignore[arg-type] # it has started
        self.watch = self.bus.store.watch_add("data/mine", self.task)

    def woken(self) -> None:
        self.counter.value += 1
