"""XenBus' DEBUG interface: callbacks that print what their owner knows (win-xenbus debug.c).

VIRQ_DEBUG triggers them all, and so does a crash, with `crashing` set: then what other domains
can write must be left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

import attrs

from xenpv.bus.interface import Interface
from xenpv.bus.log import LINE_MAX, Log, LogLevel
from xenpv.errors import LocalProtocolError, XenpvError

PREFIX_MAX: Final = 31  # MAXIMUM_PREFIX_LENGTH, less its NUL
DUMP_LINES_MAX: Final = 10_000  # that `last` keeps


@attrs.define(eq=False)
class DebugCallback:
    """XENBUS_DEBUG_CALLBACK."""

    prefix: str
    callback: Callable[[bool], object]
    owner: str


class DebugInterface(Interface):
    """DEBUG v1. `last` has the lines of the latest trigger, as they were logged.

    A callback that raises an error of this package is reported in its place and the next one
    runs.
    """

    NAME = "DEBUG"
    GUID = "0DF600AE-6B20-4227-BF94-03DA9A26A114"
    OPERATIONS: ClassVar = {1: ("register", "printf", "trigger", "deregister")}

    def __init__(self, log: Log) -> None:
        self.log = log
        self.callbacks: list[DebugCallback] = []
        self.last: list[str] = []
        self.triggers = 0
        self._running: DebugCallback | None = None
        self._crashing = False
        self._lines: list[tuple[str, str]] = []  # that the log has not got yet

    def register(
        self, prefix: str, callback: Callable[[bool], object], owner: str = ""
    ) -> DebugCallback:
        """`callback(crashing)` is called by triggers, after those registered before it.

        `prefix` is cut to 31 characters. No callback may register, deregister or trigger.
        """
        self._check_idle("register")
        made = DebugCallback(prefix[:PREFIX_MAX], callback, owner)
        self.callbacks.append(made)
        return made

    def deregister(self, handle: DebugCallback) -> None:
        """It is not called again. LocalProtocolError for one that is not registered."""
        self._check_idle("deregister")
        self._check_known(handle)
        self.callbacks.remove(handle)

    def printf(self, text: str) -> None:
        """A line `prefix: text` at level INFO. LocalProtocolError outside a callback."""
        running = self._running
        if running is None:
            raise LocalProtocolError("DEBUG printf: no callback runs")
        self._line(running.prefix, text)

    def _line(self, prefix: str, text: str) -> None:
        text = text.rstrip("\n")[: LINE_MAX - 1]
        if not text.isprintable():
            # Of a peer's making, perhaps: it must neither forge lines nor steer a terminal.
            text = "".join(one if one.isprintable() else "?" for one in text)
        if len(self.last) < DUMP_LINES_MAX:
            self.last.append(f"{prefix}: {text}")
        self._lines.append((prefix, text))
        if self._crashing:
            self._print()

    def _print(self) -> None:
        """To the log, the prefix and the rest of a line each by itself."""
        lines, self._lines = self._lines, []
        for prefix, text in lines:
            self.log.printf(LogLevel.INFO, f"{prefix}: ")
            self.log.printf(LogLevel.INFO, f"{text}\n")

    def trigger(self, handle: DebugCallback | None = None) -> None:
        """Run one callback, or all in the order of their registration."""
        self._trigger(handle, crashing=False)

    def trigger_crashing(self) -> None:
        """DebugBugCheckCallback: all of them, in a guest that crashes."""
        if self._running is None:
            self._trigger(None, crashing=True)

    def _trigger(self, handle: DebugCallback | None, *, crashing: bool) -> None:
        self._check_idle("trigger")
        if handle is not None:
            self._check_known(handle)
        self.triggers += 1
        self.last = []
        self._crashing = crashing
        self.log.hold()
        try:
            for one in self.callbacks if handle is None else [handle]:
                self._running = one
                self._call(one, crashing)
        finally:
            self._running = None
            # Not before: what goes to the PV console would change what its callback finds.
            self._print()
            self.log.release()

    def _call(self, one: DebugCallback, crashing: bool) -> None:
        try:
            one.callback(crashing)
        except XenpvError as error:
            self._line(one.prefix, f"the dump ends here: {error}")

    def _check_idle(self, operation: str) -> None:
        if self._running is not None:
            prefix = self._running.prefix
            raise LocalProtocolError(f"DEBUG {operation}: the callback of {prefix!r} runs")

    def _check_known(self, handle: DebugCallback) -> None:
        if handle not in self.callbacks:
            raise LocalProtocolError(f"DEBUG: {handle.prefix!r} is not registered")

    @property
    def text(self) -> str:
        """The latest dump."""
        return "".join(f"{line}\n" for line in self.last)

    def leftovers(self) -> list[str]:
        """Callbacks that nobody deregistered."""
        return [f"debug callback of {one.owner or one.prefix}" for one in self.callbacks]

    def _stop(self) -> None:
        self.callbacks.clear()
