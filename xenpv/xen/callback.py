"""How a vcpu is interrupted when its upcall_pending rises (hvm_assert_evtchn_irq of Xen).

The vcpu's own vector if it has one, else the domain's callback: a vector on that vcpu, or a
GSI or PCI INTx line, which only vcpu 0 sees. A domain that chose nothing yet takes upcalls
wherever its kernel called `Domain.set_upcall`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenpv.abi._kernel import lib

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain

VIA_TYPE_SHIFT: Final = 56  # HVM_PARAM_CALLBACK_IRQ_TYPE_MASK
VIA_VECTOR: Final = 2


class Callbacks:
    """The upcall vectors and the callback via of one domain."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.via: int | None = None  # HVM_PARAM_CALLBACK_IRQ; None until it is set
        self.vectors: dict[int, int] = {}

    def kick(self, vcpu: int) -> Callable[[], None]:
        """What interrupts that vcpu; nothing, before there are vcpus."""
        if vcpu >= len(self.domain.upcalls):
            return _nobody
        wake = self.domain.upcalls[vcpu].wake
        if vcpu in self.vectors or (self.via is None and not self.vectors):
            return wake
        if self.via and (self.via >> VIA_TYPE_SHIFT == VIA_VECTOR or vcpu == 0):
            return wake
        return _nobody

    def set_vector(self, vcpu: int, vector: int) -> None:
        """The vcpu is interrupted at once, pending or not, and at each upcall from then on."""
        self.vectors[vcpu] = vector
        self.domain.evtchn.callbacks_changed()
        self.domain.upcalls[vcpu].wake()

    def set_via(self, via: int) -> None:
        """HVM_PARAM_CALLBACK_IRQ; 0 is none. A line is level: pending upcalls assert it."""
        self.via = via
        self.domain.evtchn.callbacks_changed()
        if via and self.domain.check(lib.evtchn_deliverable(self.domain.kernel, 0)):
            self.kick(0)()


def _nobody() -> None:
    """A vcpu without vector or callback: the bit is set, nothing interrupts it."""
