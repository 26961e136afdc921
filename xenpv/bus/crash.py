"""What a guest's kernel does when it cannot go on (win-xenbus src/xen/bug_check.c).

The reason is latched first, by SCHEDOP_shutdown_code, which stops nothing; then the log gets
what is known, and the machine is shut down, for whatever reason: the latched one is reported.
"""

from __future__ import annotations

from typing import Final, Protocol

from xenpv.abi.sched import SHUTDOWN
from xenpv.bus.bugcodes import NAMES, BugCode, Parameter, describe
from xenpv.bus.debug import DebugInterface
from xenpv.bus.log import Log, LogLevel
from xenpv.xen.domain import Domain

MODULE: Final = "xen"


class Dumper(Protocol):
    """A dump stack: what writes memory to a disk when nothing else of the guest runs."""

    def begin(self, code: int, parameters: tuple[Parameter, ...], reason: int) -> bool:
        """It goes on by itself, and shuts the domain down for `reason` in the end. False: not."""

    def abandon(self) -> None:
        """It had begun, and another begins: it gives back what it took over."""


class Crash:
    """The crash path of one guest. `code` is that of the first bug check, None while there is
    none; `parameters` are its four. `dumper` and `hibernation`: the stacks that are loaded.
    """

    def __init__(self, domain: Domain, log: Log, debug: DebugInterface) -> None:
        self.domain = domain
        self.log = log
        self.debug = debug
        self.code: int | None = None
        self.parameters: tuple[Parameter, ...] = ()
        self.dumper: Dumper | None = None
        self.hibernation: Dumper | None = None

    @property
    def crashed(self) -> bool:
        return self.code is not None

    def bugcheck(
        self,
        code: int,
        p1: Parameter = 0,
        p2: Parameter = 0,
        p3: Parameter = 0,
        p4: Parameter = 0,
    ) -> None:
        """KeBugCheckEx: the domain shuts down with reason 3, unless another is latched.

        In a kernel this does not return. Here it does, and nothing of the guest runs after
        the handler that called it, which is to return at once. Only the first call counts.
        """
        if self.crashed:
            return
        self.code = code
        self.parameters = (p1, p2, p3, p4)
        self.domain.sched.shutdown_code(SHUTDOWN.crash)
        name = NAMES.get(code, f"{code:08X}")
        self.domain.trace.note(self.domain.domid, f"bug check: {name}")
        try:
            if self.log.personality == "windows":
                self._report(code, p1, p2, p3, p4)
            else:
                first, *rest = describe(code, p1, p2, p3, p4)
                self.log.printf(LogLevel.CRITICAL, f"Kernel panic - not syncing: {first}\n")
                for line in rest:
                    self.log.printf(LogLevel.CRITICAL, f"{line}\n")
            self.debug.trigger_crashing()
        finally:
            # The firmware's reset, as Windows does after its dump; the latched code is told.
            if self.hibernation is not None:
                self.hibernation.abandon()
            dumper, reason = self.dumper, SHUTDOWN.reboot
            if dumper is None or not dumper.begin(code, self.parameters, reason):
                self.domain.shutdown(reason)

    def _report(
        self, code: int, p1: Parameter, p2: Parameter, p3: Parameter, p4: Parameter
    ) -> None:
        for line in ("====>", *describe(code, p1, p2, p3, p4), "<===="):
            self.log.printf(LogLevel.CRITICAL, f"{MODULE}|BUGCHECK: {line}\n")

    def bug(self, text: str, file: str, line: int = 0) -> None:
        """BUG(): a driver found a state that cannot be. Nothing is raised: the guest crashes.

        `file` and `line` say where, as the log shows them.
        """
        self.bugcheck(BugCode.ASSERTION_FAILURE, text, file, line)
