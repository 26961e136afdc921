"""The source's end of a live migration (migrate_domain in tools/xl/xl_migrate.c).

A state machine: SendStep by SendStep, and when one fails what `fail` does by how far it came.
Nothing here sees the destination but for the bytes of the channel.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenpv.abi._kernel import lib
from xenpv.abi.sched import SHUTDOWN
from xenpv.errors import XenpvError
from xenpv.host.libxl import LIBXL, ToolstackError
from xenpv.migration import context
from xenpv.migration.config import config_json
from xenpv.migration.dirty import DirtyLog
from xenpv.migration.handover import (
    AWAY,
    BANDWIDTH,
    BANNER,
    DIRTY_MIN,
    GO,
    READY,
    REPORT,
    ROUNDS_MAX,
    WINDOW,
    SendStep,
)
from xenpv.migration.pages import touched, write_pages
from xenpv.migration.stream import BATCH_PAGES, RecordType, Writer
from xenpv.xen.loop import NS_PER_S

if TYPE_CHECKING:
    from xenpv.guest import Guest
    from xenpv.host.toolstack import Toolstack
    from xenpv.migration.channel import End
    from xenpv.xen.domain import Domain

P2M_RAM: Final[int] = lib.P2M_RAM


class Fate(enum.Enum):
    """What became of the guest at the source."""

    MOVED = "its copy was destroyed"
    RUNS = "it runs on"  # it was not suspended, or was resumed
    PAUSED = "it is paused, as it was before"
    STOPPED = "it has shut down, or is gone, by itself"
    AWAY = "it stays suspended"


class Sender:
    """Sends one guest. `fate` is None until it is decided, `error` says why it failed.

    `rounds`: pages sent in each round of pre-copy; `last_copy` those sent while it was suspended.
    `on_step(step)` is called before each: what it raises is that step's failure.
    """

    def __init__(
        self,
        guest: Guest,
        end: End,
        *,
        bandwidth: int = BANDWIDTH,
        trusted: tuple[str, ...] = (),
        on_step: Callable[[SendStep], object] | None = None,
    ) -> None:
        self.guest = guest
        self.end = end
        self.bandwidth = bandwidth
        self.trusted = trusted
        self.on_step = on_step
        self.name = guest.name
        self.step = SendStep.BANNER
        self.fate: Fate | None = None
        self.error: XenpvError | None = None
        self.failed: SendStep | None = None
        self.status: int | None = None  # the destination's, once it was read
        self.rounds: list[int] = []
        self.last_copy = 0
        self.suspended = False
        self.downtime_ns = 0  # from suspend to go
        self._entered = False
        self._log: DirtyLog | None = None
        self._message = ""
        self._unpaid = 0  # bytes
        self._writer = Writer(self._sink)

    @property
    def done(self) -> bool:
        return self.fate is not None

    @property
    def domain(self) -> Domain:
        return self.guest.created.domain

    @property
    def _toolstack(self) -> Toolstack:
        return self.guest.platform.toolstack

    def turn(self) -> bool:
        """Do the current step. False if it waits for bytes that have not arrived."""
        if self.done:
            return False
        try:
            if not self._entered:
                self._entered = True
                if self.on_step is not None:
                    self.on_step(self.step)
            following = STEPS[self.step](self)
        except XenpvError as error:
            self.fail(error)
            return True
        if following is None:
            return False
        self.step = following
        self._entered = False
        return True

    # the steps: each returns the next one, or None to wait

    def _banner(self) -> SendStep | None:
        return SendStep.HEADER if self.end.receive_line("the banner", BANNER) else None

    def _header(self) -> SendStep:
        self._message = "configuration"
        self._writer.write_json(RecordType.CONFIG, config_json(self.guest.created.config))
        self._message = "end of static data"
        self._writer.write(RecordType.STATIC_DATA_END)
        return SendStep.LOG_DIRTY

    def _log_dirty(self) -> SendStep:
        self._log = DirtyLog(self.domain)
        return SendStep.PRECOPY

    def _precopy(self) -> SendStep:
        """One round: the first sends all pages, later ones those that changed since."""
        assert self._log is not None
        pfns = self._log.dirty() if self.rounds else touched(self.domain)
        self.rounds.append(len(pfns))
        self._send_memory(f"round {len(self.rounds)}", pfns)
        last = len(pfns) < DIRTY_MIN or len(self.rounds) == ROUNDS_MAX
        return SendStep.SUSPEND if last else SendStep.PRECOPY

    def _suspend(self) -> SendStep:
        self._toolstack.domsuspend.suspend(self.guest.created)
        self.suspended = True
        self.downtime_ns = -self.domain.loop.now
        return SendStep.LAST_COPY

    def _last_copy(self) -> SendStep:
        assert self._log is not None
        pfns = self._log.dirty()
        self.last_copy = len(pfns)
        self._send_memory("last copy", pfns)
        return SendStep.CONTEXT

    def _context(self) -> SendStep:
        self._message = "guest context"
        data = context.capture(self.guest, trusted=self.trusted)
        self._writer.write_json(RecordType.GUEST_CONTEXT, data)
        self._message = "end"
        self._writer.end()
        return SendStep.READY

    def _ready(self) -> SendStep | None:
        return SendStep.RENAME if self.end.receive_line("ready", READY) else None

    def _rename(self) -> SendStep:
        self._toolstack.runtime.rename(self.guest.created, self.name + AWAY)
        return SendStep.GO

    def _go(self) -> SendStep:
        self.end.send("go", GO)
        self.downtime_ns += self.domain.loop.now
        return SendStep.REPORT

    def _report(self) -> SendStep | None:
        return SendStep.STATUS if self.end.receive_line("the report", REPORT) else None

    def _status(self) -> SendStep | None:
        byte = self.end.receive(1)
        if not byte:
            return None
        self.status = byte[0]
        return SendStep.GO_BACK if self.status else SendStep.DESTROY

    def _destroy(self) -> SendStep:
        self.guest.destroy()
        self.fate = Fate.MOVED
        return SendStep.DONE

    def _go_back(self) -> SendStep | None:
        """The destination destroyed its copy and gives the guest back."""
        if not self.end.receive_line("go, back", GO):
            return None
        wrong = f"the destination could not unpause it: status {self.status}"
        self.error, self.failed = ToolstackError(wrong), SendStep.STATUS
        return SendStep.RENAME_BACK

    def _rename_back(self) -> SendStep:
        self._toolstack.runtime.rename(self.guest.created, self.name)
        return SendStep.RESUME

    def _resume(self) -> SendStep:
        """Fast, as all of xl's: what it asked the hypervisor returns 1. It may not have stopped."""
        domain = self.domain
        if domain.is_shutdown and domain.shutdown_code == SHUTDOWN.suspend:
            self._toolstack.domsuspend.resume(self.guest.created)
        self.fate = self._as_it_is()
        return SendStep.DONE

    def _as_it_is(self) -> Fate:
        """Of a guest that nobody touches further."""
        domain = self.domain
        if domain.is_shutting_down or domain.dying:
            return Fate.STOPPED
        return Fate.PAUSED if domain.pause_count else Fate.RUNS

    # memory

    def _send_memory(self, name: str, pfns: array[int]) -> None:
        """Where there is RAM now, then the pages; the guest goes on meanwhile, if it runs."""
        assert self._log is not None
        self._message = f"{name}: domain"
        self._writer.write_json(RecordType.DOMAIN_CONTEXT, context.capture_domain(self.domain))
        self._message = name
        for start in range(0, len(pfns), BATCH_PAGES):
            batch = pfns[start : start + BATCH_PAGES]
            if start and not self.suspended:
                batch = self._still_there(batch)
            write_pages(self._writer, self.domain, batch)
            self._log.sent(batch)
            self._pass_time()

    def _still_there(self, pfns: array[int]) -> array[int]:
        """Without those that a balloon took since they were found."""
        kernel = self.domain.kernel
        return array("I", (pfn for pfn in pfns if lib.p2m_type(kernel, pfn) == P2M_RAM))

    def _pass_time(self) -> None:
        """What was sent takes its time, in which everybody else goes on."""
        after_ns, self._unpaid = self._unpaid * NS_PER_S // self.bandwidth, 0
        self.domain.loop.advance(after_ns)

    def _sink(self, data: bytes) -> None:
        self.end.send(self._message, data)
        self._unpaid += len(data)

    # failure

    def fail(self, error: XenpvError) -> None:
        """The current step failed: who goes on where."""
        failed = self.step
        if self.error is None:
            self.error, self.failed = error, failed
        self._entered = False
        self.step = SendStep.DONE
        if failed in WINDOW or failed in (SendStep.DESTROY, SendStep.RESUME):
            self.fate = Fate.AWAY
        elif getattr(error, "code", None) is LIBXL.GUEST_TIMEDOUT:
            self.fate = self._as_it_is()  # it is left alone, whatever it does later
        else:
            self.step = SendStep.RESUME
        if failed is not SendStep.RENAME_BACK:
            self.end.close()


# What each step does: it returns the next one, or None to wait for bytes.
STEPS: Final[dict[SendStep, Callable[[Sender], SendStep | None]]] = {
    SendStep.BANNER: Sender._banner,
    SendStep.HEADER: Sender._header,
    SendStep.LOG_DIRTY: Sender._log_dirty,
    SendStep.PRECOPY: Sender._precopy,
    SendStep.SUSPEND: Sender._suspend,
    SendStep.LAST_COPY: Sender._last_copy,
    SendStep.CONTEXT: Sender._context,
    SendStep.READY: Sender._ready,
    SendStep.RENAME: Sender._rename,
    SendStep.GO: Sender._go,
    SendStep.REPORT: Sender._report,
    SendStep.STATUS: Sender._status,
    SendStep.DESTROY: Sender._destroy,
    SendStep.GO_BACK: Sender._go_back,
    SendStep.RENAME_BACK: Sender._rename_back,
    SendStep.RESUME: Sender._resume,
}
