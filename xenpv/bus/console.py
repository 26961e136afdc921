"""XenBus' CONSOLE interface: the PV console page (public/io/console.h, win-xenbus console.c).

Its page is the frame of grant reference 0, its port HVM param 18. Reading and writing never
block; an owner of a wakeup is told of every event of the port.
"""

from __future__ import annotations

from typing import ClassVar, Final

import attrs

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.hvm import HVM_PARAM
from xenpv.abi.layout import offsetof
from xenpv.bus.evtchn import Channel, EvtchnInterface
from xenpv.bus.gnttab import GnttabInterface
from xenpv.bus.interface import Interface
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError
from xenpv.bus.suspend import SuspendCallback, SuspendInterface, SuspendPhase
from xenpv.errors import HypercallError, LocalProtocolError, PeerProtocolError
from xenpv.xen.domain import Domain
from xenpv.xen.gnttab import GNTTAB_RESERVED_CONSOLE
from xenpv.xen.loop import Task

PAGE: Final = "xencons_interface"
IN_SIZE: Final = 1024
OUT_SIZE: Final = 2048
IN: Final = (offsetof(PAGE, "in"), IN_SIZE, offsetof(PAGE, "in_cons"), offsetof(PAGE, "in_prod"))
OUT: Final = (
    offsetof(PAGE, "out"),
    OUT_SIZE,
    offsetof(PAGE, "out_cons"),
    offsetof(PAGE, "out_prod"),
)
BACKLOG_MAX: Final = 65536
U32: Final = 0xFFFF_FFFF


@attrs.define(eq=False)
class Wakeup:
    """XENBUS_CONSOLE_WAKEUP: a task to wake at each event."""

    task: Task


class ConsoleInterface(Interface):
    """CONSOLE v1, and a printer of log lines that waits for room.

    At most BACKLOG_MAX bytes wait; the oldest are dropped first and counted. `broken` says why
    nothing moves any more: the daemon's indices cannot be.
    """

    NAME = "CONSOLE"
    GUID = "04C4F738-034A-4268-BD20-A92AC90D4F82"
    OPERATIONS: ClassVar = {
        1: ("can_read", "read", "can_write", "write", "wakeup_add", "wakeup_remove")
    }

    def __init__(
        self,
        domain: Domain,
        evtchn: EvtchnInterface,
        gnttab: GnttabInterface,
        suspend: SuspendInterface | None = None,
    ) -> None:
        self.domain = domain
        self.pfn = 0
        self.dropped = 0
        self.events = 0
        self.broken = ""
        self.channel: Channel | None = None
        self.wakeups: list[Wakeup] = []
        self._backlog = bytearray()
        self._evtchn = evtchn
        self._gnttab = gnttab
        self._suspend = suspend
        self._late: SuspendCallback | None = None

    # life

    def _start(self) -> None:
        """NtStatusError UNSUCCESSFUL: HVM param 18 names no port. HypercallError: it has one
        that cannot be opened."""
        self.pfn, _readonly = self._gnttab.query_reference(GNTTAB_RESERVED_CONSOLE)
        self._evtchn.acquire()
        try:
            self._enable()
        except BaseException:
            self._evtchn.release()
            raise
        if self._suspend is not None:
            self._suspend.acquire()
            self._late = self._suspend.register(
                SuspendPhase.LATE, self.suspend_late, "XENBUS CONSOLE"
            )

    def _stop(self) -> None:
        if self._suspend is not None and self._late is not None:
            self._suspend.deregister(self._late)
            self._late = None
            self._suspend.release()
        self._disable()
        self.wakeups.clear()
        self._backlog.clear()
        self._evtchn.release()

    def _enable(self) -> None:
        port = self.domain.hvm_param(HVM_PARAM.CONSOLE_EVTCHN)
        if not port:
            raise NtStatusError(NTSTATUS.UNSUCCESSFUL, "there is no port", operation="CONSOLE")
        self.broken = ""
        self.channel = self._evtchn.open_fixed(port, self._event)
        self._evtchn.unmask(self.channel, force=True)

    def _disable(self) -> None:
        channel, self.channel = self.channel, None
        if channel is not None:
            self._evtchn.close(channel)

    def suspend_late(self) -> None:
        """In a new domain: the page is where it was, the port is another.

        Without a port, or one that cannot be opened, the console is silent from now on.
        """
        self._disable()
        try:
            self._enable()
        except (HypercallError, NtStatusError, LocalProtocolError) as error:
            self.broken = str(error)
            return
        self._event()

    def leftovers(self) -> list[str]:
        """Wakeups that nobody removed."""
        return [f"console wakeup of {wakeup.task.name}" for wakeup in self.wakeups]

    # CONSOLE v1

    def can_read(self) -> bool:
        """Whether input is there."""
        cons, prod = self._indices(IN)
        return self.is_enabled and 0 < (prod - cons) & U32 <= IN_SIZE

    def can_write(self) -> bool:
        """Whether the ring has room."""
        cons, prod = self._indices(OUT)
        return self.is_enabled and (prod - cons) & U32 < OUT_SIZE

    def write(self, data: bytes) -> int:
        """Bytes taken by the ring now; the daemon is notified if there are any."""
        if not self.is_enabled:
            return 0
        count = lib.stream_put(self.domain.kernel, self.pfn, *OUT, ffi.from_buffer(data), len(data))
        return self._moved(count)

    def read(self, size: int = IN_SIZE) -> bytes:
        """Up to `size` bytes of input that are there."""
        if not self.is_enabled:
            return b""
        chunk = bytearray(size)
        count = lib.stream_get(self.domain.kernel, self.pfn, *IN, ffi.from_buffer(chunk), size)
        return bytes(chunk[: self._moved(count)])

    def wakeup_add(self, task: Task) -> Wakeup:
        """Wake `task` (the driver: set an event) at each event of the port."""
        made = Wakeup(task)
        self.wakeups.append(made)
        return made

    def wakeup_remove(self, wakeup: Wakeup) -> None:
        """LocalProtocolError for one that is not there any more."""
        if wakeup not in self.wakeups:
            raise LocalProtocolError("CONSOLE wakeup_remove: there is no such wakeup")
        self.wakeups.remove(wakeup)

    @property
    def is_enabled(self) -> bool:
        """There is a port, and the daemon is believed."""
        return self.channel is not None and not self.broken

    def indices(self) -> dict[str, int]:
        """The four as they are in the page now, for a dump."""
        names = ("out_cons", "out_prod", "in_cons", "in_prod")
        values = (*self._indices(OUT), *self._indices(IN))
        return dict(zip(names, values, strict=True))

    def _indices(self, ring: tuple[int, int, int, int]) -> tuple[int, int]:
        load = self.domain.load32
        return load(self.pfn, ring[2]), load(self.pfn, ring[3])

    def _moved(self, count: int) -> int:
        """What a copy says: bytes, or that the daemon broke the protocol or the page is gone."""
        if count < 0:
            try:
                self.domain.fail(count, "console ring")
            except (PeerProtocolError, HypercallError) as error:
                self.broken = str(error)
                return 0
        if count and self.channel is not None:
            self._evtchn.send(self.channel)
        return count

    # log lines

    def print(self, text: str) -> None:
        """A log line; LF becomes CRLF as in the driver's log sink."""
        self.print_bytes(text.encode())

    def print_bytes(self, data: bytes) -> None:
        """As `print`: a sink of the log. It never raises."""
        if self.channel is None:
            return
        self._backlog += data.replace(b"\n", b"\r\n")
        excess = len(self._backlog) - BACKLOG_MAX
        if excess > 0:
            del self._backlog[:excess]
            self.dropped += excess
        self._flush()

    def _flush(self) -> None:
        while self._backlog:
            count = self.write(bytes(self._backlog[:OUT_SIZE]))
            if not count:
                return
            del self._backlog[:count]

    def _event(self) -> None:
        self.events += 1
        if self.broken:
            return
        self._flush()
        for wakeup in self.wakeups:
            wakeup.task.wake()
