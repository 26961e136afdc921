"""The destination's end of a live migration (migrate_receive in tools/xl/xl_migrate.c).

A state machine: ReceiveStep by ReceiveStep, and when one fails what `fail` does by how far it
came. What arrives is another host's: it is checked, and nothing of it runs before go.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import attrs

from xenpv.errors import XenpvError
from xenpv.host.libxl import LIBXL, Created, ToolstackError
from xenpv.host.monitor import Monitor
from xenpv.migration import context
from xenpv.migration.channel import ChannelClosed
from xenpv.migration.config import config_from
from xenpv.migration.handover import BANNER, GO, INCOMING, READY, REPORT, ReceiveStep
from xenpv.migration.pages import PFN_END, load_pages
from xenpv.migration.stream import (
    OPTIONAL,
    Reader,
    Record,
    RecordType,
    StreamError,
    type_name,
)
from xenpv.xen import domain_context
from xenpv.xen.physmap import DOMID_SELF

if TYPE_CHECKING:
    from xenpv.guest import Guest
    from xenpv.host.domainconfig import DomainConfig
    from xenpv.migration.channel import End
    from xenpv.platform import Platform
    from xenpv.xen.domain import Domain

# Steps that a source hears of: it waits for a report since it sent go, or will soon.
AFTER_READY: Final = (ReceiveStep.GO, ReceiveStep.RENAME, ReceiveStep.UNPAUSE)
# What may come in which phase of the stream, and the phase after it.
PHASES: Final[dict[str, dict[int, str]]] = {
    "start": {RecordType.CONFIG: "config"},
    "config": {RecordType.STATIC_DATA_END: "static"},
    "static": {RecordType.DOMAIN_CONTEXT: "memory"},
    "memory": {
        RecordType.DOMAIN_CONTEXT: "memory",
        RecordType.PAGE_DATA: "memory",
        RecordType.GUEST_CONTEXT: "guest",
    },
    "guest": {RecordType.END: "done"},
}
RUNNING: Final = (ReceiveStep.REPORT, ReceiveStep.STATUS)


class Copy(enum.Enum):
    """What there is of the guest at the destination."""

    NONE = "there is no copy"  # not yet, or destroyed
    PAUSED = "its copy is paused"
    RUNS = "its copy runs"


class Receiver:
    """Takes in one guest. `guest` is the copy, once it is whole; `error` says why it failed.

    `wait()` lets the source go on while the stream is read, in the middle of creation; `name` the
    guest's own unless given. `monitor`: an xl stays behind that waits for its end. `on_step(step)`
    as for Sender.
    """

    def __init__(
        self,
        platform: Platform,
        end: End,
        wait: Callable[[], object],
        *,
        name: str | None = None,
        trusted: tuple[str, ...] = (),
        monitor: bool = False,
        on_step: Callable[[ReceiveStep], object] | None = None,
    ) -> None:
        self.platform = platform
        self.end = end
        self.wait = wait
        self.name = name
        self.trusted = trusted
        self.monitor = monitor
        self.on_step = on_step
        self.step = ReceiveStep.BANNER
        self.done = False
        self.error: XenpvError | None = None
        self.failed: ReceiveStep | None = None
        self.guest: Guest | None = None
        self.config: DomainConfig | None = None
        self.copy = Copy.NONE
        self._made: Created | None = None
        self._entered = False
        self._reader = Reader()
        self._records: list[Record] = []
        self._phase = "start"
        self._domain: dict[str, Any] = {}
        self._objects: Any = None

    def turn(self) -> bool:
        """Do the current step. False if it waits for bytes that have not arrived."""
        if self.done:
            return False
        try:
            self._enter()
            following = STEPS[self.step](self)
        except XenpvError as error:
            self.fail(error)
            return True
        if following is None:
            return False
        self.step = following
        self._entered = False
        self.done = following is ReceiveStep.DONE
        return True

    def _enter(self) -> None:
        if not self._entered:
            self._entered = True
            if self.on_step is not None:
                self.on_step(self.step)

    # the steps: each returns the next one, or None to wait

    def _banner(self) -> ReceiveStep:
        self.end.send("banner", BANNER)
        return ReceiveStep.HEADER

    def _header(self) -> ReceiveStep | None:
        record = self._record()
        if record is None:
            return None
        if record.type == RecordType.CONFIG:
            self.config = config_from(record.json())
            self.name = self.name or self.config.name
        return ReceiveStep.CREATE if self._phase == "static" else ReceiveStep.HEADER

    def _record(self) -> Record | None:
        """The next of the stream; None if it is not whole yet. StreamError if it cannot be next."""
        if not self._records:
            self._records = self._reader.feed(self.end.receive())
        if not self._records:
            return None
        record = self._records.pop(0)
        if not record.type & OPTIONAL:
            following = PHASES[self._phase].get(record.type)
            if following is None:
                expected = " or ".join(type_name(kind) for kind in PHASES[self._phase])
                raise StreamError(f"{record.place}: expected {expected}")
            self._phase = following
        return record

    def _create(self) -> ReceiveStep:
        assert self.config is not None
        config = attrs.evolve(self.config, name=f"{self.name}{INCOMING}")
        toolstack = self.platform.toolstack
        if any(one.uuid == config.uuid for one in toolstack.created.values()):
            config = attrs.evolve(config, uuid=None)  # migrated within one host: /vm/UUID is one's
        made = toolstack.create(config, populate=self._stream)
        self._made = made
        self.copy = Copy.PAUSED
        return ReceiveStep.REBUILD

    def _stream(self, made: Created) -> None:
        """Memory and state, in the middle of creation, until END."""
        self.step, self._entered = ReceiveStep.STREAM, False
        self._enter()
        while self._phase != "done":
            record = self._record()
            if record is None:
                self.wait()
            else:
                self._take(made.domain, record)
        fit(made.domain, self._domain)  # what it sent may be elsewhere
        context.populate_domain(made.domain, {**self._domain, "ram": []})

    def _take(self, domain: Domain, record: Record) -> None:
        if record.type == RecordType.PAGE_DATA:
            load_pages(domain, record)
        elif record.type == RecordType.DOMAIN_CONTEXT:
            self._domain = record.json()
            fit(domain, self._domain)
        elif record.type == RecordType.GUEST_CONTEXT:
            self._objects = record.json()

    def _rebuild(self) -> ReceiveStep:
        from xenpv.guest import Guest

        assert self._made is not None
        guest = Guest(self.platform, self._made)
        context.rebuild(guest, self._objects, trusted=self.trusted)
        self._objects = None
        self.guest = guest
        self.platform.guests.append(guest)
        return ReceiveStep.READY

    def _ready(self) -> ReceiveStep:
        self.end.send("ready", READY)
        return ReceiveStep.GO

    def _go(self) -> ReceiveStep | None:
        return ReceiveStep.RENAME if self.end.receive_line("go", GO) else None

    def _rename(self) -> ReceiveStep:
        assert self._made is not None
        assert self.name is not None
        self.platform.toolstack.runtime.rename(self._made, self.name)
        return ReceiveStep.UNPAUSE

    def _unpause(self) -> ReceiveStep:
        assert self._made is not None
        self.platform.toolstack.runtime.unpause(self._made)
        self.copy = Copy.RUNS
        if self.monitor and self.guest is not None:
            monitor = Monitor(self.platform.toolstack, self._made, self.guest)
            self.guest.monitor = self.platform.toolstack.monitors.add(monitor)
        return ReceiveStep.REPORT

    def _report(self) -> ReceiveStep:
        self.end.send("report", REPORT)
        return ReceiveStep.STATUS

    def _status(self) -> ReceiveStep:
        self.end.send("status", b"\0")
        self.end.close()
        return ReceiveStep.DONE

    # failure

    def fail(self, error: XenpvError) -> None:
        """The current step failed: what becomes of the copy, and what the source is told."""
        self.error, self.failed = error, self.step
        self.step, self.done = ReceiveStep.DONE, True
        # Where report or status cannot be written it runs all the same: nobody else does.
        if self.failed not in RUNNING:
            tells = self.failed in AFTER_READY
            if tells:
                status = -int(getattr(error, "code", LIBXL.FAIL))
                self._tell("report", REPORT)
                self._tell("status", bytes((status & 0xFF or 1,)))
            self._destroy()
            if tells:
                self._tell("go, back", GO)
        self.end.close()

    def _tell(self, name: str, line: bytes) -> None:
        with suppress(ChannelClosed):
            self.end.send(name, line)

    def _destroy(self) -> None:
        if self.guest is not None:
            self.platform.guests.remove(self.guest)
            self.guest = None
        if self._made is not None:
            self.platform.toolstack.destroy(self._made)
        self.copy = Copy.NONE


def fit(domain: Domain, data: Any) -> None:
    """RAM where the source has RAM now, and nowhere else. ToolstackError if there is too little."""
    runs = data.get("ram") if isinstance(data, dict) else None
    if not isinstance(runs, list):
        raise ToolstackError("domain context: expected runs of RAM")
    wanted: list[tuple[int, int]] = []
    for run in runs:
        pfn, count = run if isinstance(run, list) and len(run) == 2 else (-1, 0)
        end = sum(wanted[-1]) if wanted else 0
        if type(pfn) is not int or type(count) is not int or pfn < end or not 0 < count <= PFN_END:
            raise ToolstackError(f"domain context: {run!r} is no run of pfns behind {end:#x}")
        wanted.append((pfn, count))
    if wanted and sum(wanted[-1]) > PFN_END:
        raise ToolstackError("domain context: RAM behind the last pfn")
    for pfn, count in _without(list(domain_context.ram(domain)), wanted):
        domain.memory.decrease_reservation(DOMID_SELF, list(range(pfn, pfn + count)))
    for pfn, count in _without(wanted, list(domain_context.ram(domain))):
        try:
            domain.populate_run(pfn, count)
        except XenpvError as error:
            raise ToolstackError(f"no memory at the destination: {error}") from error


def _without(runs: list[tuple[int, int]], others: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What is in `runs` and not in `others`; both ascend."""
    left = []
    at = 0
    for pfn, count in runs:
        start, end = pfn, pfn + count
        while at < len(others) and sum(others[at]) <= start:
            at += 1
        look = at
        while look < len(others) and others[look][0] < end:
            other, length = others[look]
            if other > start:
                left.append((start, other - start))
            start = max(start, other + length)
            look += 1
        if start < end:
            left.append((start, end - start))
    return left


# What each step does: it returns the next one, or None to wait for bytes.
STEPS: Final[dict[ReceiveStep, Callable[[Receiver], ReceiveStep | None]]] = {
    ReceiveStep.BANNER: Receiver._banner,
    ReceiveStep.HEADER: Receiver._header,
    ReceiveStep.CREATE: Receiver._create,
    ReceiveStep.REBUILD: Receiver._rebuild,
    ReceiveStep.READY: Receiver._ready,
    ReceiveStep.GO: Receiver._go,
    ReceiveStep.RENAME: Receiver._rename,
    ReceiveStep.UNPAUSE: Receiver._unpause,
    ReceiveStep.REPORT: Receiver._report,
    ReceiveStep.STATUS: Receiver._status,
}
