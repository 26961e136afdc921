"""The FIFO ABI as a guest uses it: its pages, and the loop that empties the queues.

win-xenbus evtchn_fifo.c; Linux' events_fifo.c for the order of queues (lowest number, which
is the highest priority, first; win-xenbus begins at the other end). The atomic steps on
shared words are the kernel's, as the hypervisor links on another processor meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Final

from xenpv.abi._kernel import lib
from xenpv.xen.domain import PAGE_SIZE, Domain

if TYPE_CHECKING:
    from xenpv.bus.evtchn import Channel

WORDS_PER_PAGE: Final = PAGE_SIZE // 4
NR_QUEUES: Final = 16
MASKED: Final = 1 << lib.EVTCHN_FIFO_MASKED
PENDING: Final = 1 << lib.EVTCHN_FIFO_PENDING
DUE: Final = PENDING | MASKED
LINK: Final[int] = lib.EVTCHN_FIFO_LINK_MASK
# A new page has every port masked (EvtchnFifoExpand).
FRESH_PAGE: Final = Struct(f"<{WORDS_PER_PAGE}I").pack(*[MASKED] * WORDS_PER_PAGE)


class ProcessorFifo:
    """One vcpu: its control block and the heads of its queues that it has read."""

    def __init__(self, domain: Domain, vcpu: int, event: Callable[[int], object]) -> None:
        self._domain = domain
        self._vcpu = vcpu
        self._event = event
        self._heads = [0] * NR_QUEUES  # 0: read the control block's

    def upcall(self) -> None:
        check = self._domain.check
        kernel = self._domain.kernel
        while check(lib.evtchn_take_upcall(kernel, self._vcpu)):
            self.poll()

    def poll(self) -> None:
        """Unlink what is ready, in the order of priority; call `event` for what is due."""
        check = self._domain.check
        kernel = self._domain.kernel
        vcpu = self._vcpu
        ready = check(lib.fifo_take_ready(kernel, vcpu))
        while ready:
            queue = (ready & -ready).bit_length() - 1
            port = self._heads[queue] or check(lib.fifo_head(kernel, vcpu, queue))
            # The word is looked at once: what is raised after it comes with a link of its own.
            word = check(lib.fifo_unlink(kernel, port))
            self._heads[queue] = word & LINK
            if not word & LINK:
                ready &= ~(1 << queue)
            if word & DUE == PENDING:
                self._event(port)
            ready |= check(lib.fifo_take_ready(kernel, vcpu))


class EvtchnFifo:
    """Control blocks of all vcpus and the event array. Raises HypercallError if Xen refuses;
    then the guest has to reset and stay with the 2-level ABI."""

    def __init__(
        self, domain: Domain, channels: dict[int, Channel], drain: Callable[[Channel], None]
    ) -> None:
        self._domain = domain
        self._channels = channels
        self._drain = drain
        self._blocks: list[int] = []  # pfns, one per vcpu
        self._pages: list[int] = []
        self.processors = [ProcessorFifo(domain, v, self.event) for v in range(domain.processors)]

    def acquire(self) -> None:
        for vcpu in range(self._domain.processors):
            pfn = self._domain.pages.alloc()
            self._blocks.append(pfn)
            self._domain.write(pfn, 0, bytes(PAGE_SIZE))
            self._domain.evtchn.init_control(pfn, 0, vcpu)

    def release(self) -> None:
        """The pages, once EVTCHNOP_reset let go of them."""
        for pfn in self._blocks + self._pages:
            self._domain.pages.free(pfn)
        self._blocks.clear()
        self._pages.clear()

    def upcall(self, vcpu: int) -> Callable[[], None]:
        """What takes the upcall of that vcpu."""
        return self.processors[vcpu].upcall

    def port_enable(self, port: int) -> None:
        """Make sure that the port has a word."""
        while port // WORDS_PER_PAGE >= len(self._pages):
            pfn = self._domain.pages.alloc()
            self._domain.write(pfn, 0, FRESH_PAGE)
            try:
                self._domain.evtchn.expand_array(pfn)
            except BaseException:
                self._domain.pages.free(pfn)
                raise
            self._pages.append(pfn)

    def port_bind(self, port: int, vcpu: int, auto_mask: bool) -> None:
        """Xen links later events on the queues of the vcpu they are bound to."""

    def port_disable(self, port: int) -> None:
        """It stays linked until the loop meets it; its number is not given out before."""

    def event(self, port: int) -> None:
        """A port that came off a queue. An event that was linked before its channel moved to
        another vcpu is delivered where it was linked: its link is gone."""
        channel = self._channels.get(port)
        if channel is not None:
            self._drain(channel)
        else:
            self._domain.check(lib.evtchn_clear_pending(self._domain.kernel, port))
