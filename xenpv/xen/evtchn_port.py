"""The ports of one domain: what each is bound to, and which number is given out next.

struct evtchn of xen/include/xen/sched.h. A port's vcpu, priority and bits are the kernel's
(`handle`); the rest is here.
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.evtchn import EVTCHNSTAT

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain

BUCKET: Final = 64  # ports become valid in buckets (EVTCHNS_PER_BUCKET of an x86-64 Xen)
MAX_PORTS_FIFO: Final = 1 << 17
MAX_PORTS: Final = {False: 4096, True: 1024}  # 2-level, by is_32bit: words x bits


class PortState(enum.IntEnum):
    """ECS_* of Xen."""

    FREE = 0
    RESERVED = 1  # port 0
    UNBOUND = 2
    INTERDOMAIN = 3
    PIRQ = 4
    VIRQ = 5
    IPI = 6


STATUS: Final = {
    PortState.FREE: EVTCHNSTAT.closed,
    PortState.RESERVED: EVTCHNSTAT.closed,
    PortState.UNBOUND: EVTCHNSTAT.unbound,
    PortState.INTERDOMAIN: EVTCHNSTAT.interdomain,
    PortState.PIRQ: EVTCHNSTAT.pirq,
    PortState.VIRQ: EVTCHNSTAT.virq,
    PortState.IPI: EVTCHNSTAT.ipi,
}


@attrs.define(eq=False)
class Port:
    """One end of a channel. `irq` is the number of its VIRQ or PIRQ.

    `consumer` is Xen's own function for a port that Xen itself listens on; `kick` interrupts
    the vcpu that the port notifies.
    """

    number: int
    state: PortState
    remote_domid: int = 0
    remote: Domain | None = None
    remote_port: int = 0
    irq: int = 0
    vcpu: int = 0
    consumer: Callable[[int], object] | None = None
    handle: Any = None
    kick: Any = None


FREE: Final = Port(0, PortState.FREE)  # every free port: nobody writes to one before it is bound
RESERVED: Final = Port(0, PortState.RESERVED)


@attrs.frozen
class PortStatus:
    """What EVTCHNOP_status gives: `remote_*` for unbound and interdomain ports."""

    status: EVTCHNSTAT
    vcpu: int
    remote_domid: int = 0
    remote_port: int = 0
    virq: int = 0
    pirq: int = 0


class PortTable:
    """Valid ports by number, and the lowest free one without a search.

    `list` is as long as there are valid ports: whole buckets, and never shorter again
    (XSA-338).
    """

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self.list: list[Port] = [RESERVED] + [FREE] * (BUCKET - 1)
        self._freed: list[int] = []  # a heap of ports that were bound once
        self._fresh = 1  # no port from here on was ever bound
        domain.check(lib.evtchn_grow(domain.kernel))

    def once_bound(self) -> list[Port]:
        """A copy of the list up to the highest port that was ever bound."""
        return self.list[: self._fresh]

    def lowest_free(self) -> int:
        """The lowest free port, which may not be valid yet; a LINKED one is busy (FIFO)."""
        check = self._domain.check
        kernel = self._domain.kernel
        busy = []
        number = self._fresh
        while self._freed:
            candidate = heapq.heappop(self._freed)
            busy.append(candidate)
            if not check(lib.evtchn_is_busy(lib.evtchn_port(kernel, candidate))):
                number = candidate
                break
        for candidate in busy:
            heapq.heappush(self._freed, candidate)
        return number

    def bind(self, port: Port) -> None:
        """Put a bound port at its number, which `lowest_free` gave."""
        number = port.number
        kernel = self._domain.kernel
        if number == len(self.list):
            self._domain.check(lib.evtchn_grow(kernel))
            self.list.extend([FREE] * BUCKET)
        if number == self._fresh:
            self._fresh += 1
        elif self._freed[0] == number:
            heapq.heappop(self._freed)
        else:  # busy ports are below it
            self._freed.remove(number)
            heapq.heapify(self._freed)
        port.handle = lib.evtchn_port(kernel, number)
        lib.evtchn_init(port.handle, port.vcpu)
        self.list[number] = port

    def free(self, port: Port) -> None:
        """The port is bound to nothing any more, and not pending."""
        self.list[port.number] = FREE
        heapq.heappush(self._freed, port.number)
        self._domain.check(lib.evtchn_clear(port.handle))
