"""A kernel's dispatch of events to tasks, for domains that run backends.

What a Linux dom0 does between the upcall and its drivers: scan and acknowledge the pending
ports, hand each to the thread or process that bound it. Every consumer is a task of its
own, so the loop's chooser orders them as a scheduler would.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from xenpv.abi._kernel import ffi, lib
from xenpv.xen.domain import Domain
from xenpv.xen.loop import Task

SCAN_PORTS: Final[int] = lib.UPCALL_PORTS
upcall_take: Final = lib.upcall_take


class Dispatcher:
    """Ports of one domain and the tasks behind them; takes the domain's upcall on vcpu 0."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self._tasks: dict[int, Task] = {}
        handle = lib.upcall_new(domain.kernel, 0, 1)  # 1: acknowledge what the scan finds
        if handle == ffi.NULL:
            raise MemoryError("no memory for an upcall")
        self._handle = ffi.gc(handle, lib.upcall_free)
        self._ports = lib.upcall_ports(handle)
        domain.set_upcall(0, self.upcall)
        domain.set_deliver(self.deliver)

    def bind(self, port: int, name: str, run: Callable[[], object]) -> Task:
        """Events of `port` wake a new task that calls `run`."""
        task = self.domain.task(name, run)
        self._tasks[port] = task
        return task

    def bind_task(self, port: int, task: Task) -> None:
        """Events of `port` wake a task that exists: several ports, one thread."""
        self._tasks[port] = task

    def unbind_port(self, port: int) -> None:
        """Forget a port; its task lives on, for another port or for its owner."""
        self._tasks.pop(port, None)

    def unbind(self, port: int) -> None:
        """Forget a port; its task is retired unless another port wakes it too."""
        task = self._tasks.pop(port, None)
        if task is not None and task not in self._tasks.values():
            self.domain.forget(task)

    def upcall(self) -> None:
        tasks = self._tasks
        while True:
            port = upcall_take(self._handle)
            if port >= 0:  # one, or none: the usual upcall
                task = tasks.get(port)
                if task is not None:
                    task.wake()
                return
            if port <= lib.KERNEL_E_FORKED:
                self.domain.check(port)
            count = -1 - port
            for port in ffi.unpack(self._ports, count):
                task = tasks.get(port)
                if task is not None:
                    task.wake()
            if count < SCAN_PORTS:
                return

    def deliver(self, port: int) -> bool:
        """Handle one port now; False if nothing was pending for it."""
        task = self._tasks.get(port)
        if task is None:
            return False
        pending = lib.evtchn_take_pending(self.domain.kernel, port)
        if pending < 0:
            self.domain.check(pending)
        loop = task.loop
        return loop.pump(task, due=pending == 1) or loop.elapse(task)
