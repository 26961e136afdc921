"""How a vcpu is interrupted when its upcall_pending rises (hvm_assert_evtchn_irq of Xen).

The vcpu's own vector if it has one, else the domain's callback: a vector on that vcpu, or a
GSI or PCI INTx line, which only vcpu 0 sees. A domain that chose nothing yet takes upcalls
wherever its kernel called `Domain.set_upcall`.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL, ENOENT
from typing import TYPE_CHECKING, Final

from xenpv.abi._kernel import lib
from xenpv.errors import HypercallError

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain

VIA_TYPE_SHIFT: Final = 56  # HVM_PARAM_CALLBACK_IRQ_TYPE_MASK
VIA_VECTOR: Final = 2
FIRST_VECTOR: Final = 16  # below are exceptions of the processor


class Callbacks:
    """The upcall vectors and the callback via of one domain."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.via: int | None = None  # HVM_PARAM_CALLBACK_IRQ; None until it is set
        self.vectors: dict[int, int] = {}

    def kick(self, vcpu: int) -> Callable[[], None]:
        """What interrupts that vcpu."""
        wake = self.domain.upcalls[vcpu].wake
        if vcpu in self.vectors or (self.via is None and not self.vectors):
            return wake
        if self.via and (self.via >> VIA_TYPE_SHIFT == VIA_VECTOR or vcpu == 0):
            return wake
        return _nobody

    def set_vector(self, vcpu: int, vector: int) -> None:
        """HVMOP_set_evtchn_upcall_vector: the vcpu is interrupted at once, and from then on.

        EINVAL for a vector below 16, ENOENT for a vcpu that is not there.
        """
        arguments = {"vcpu": vcpu, "vector": vector}
        operation = "HVMOP_set_evtchn_upcall_vector"
        if not FIRST_VECTOR <= vector <= 0xFF:
            raise HypercallError(
                EINVAL, "no vector for devices", operation=operation, arguments=arguments
            )
        if not 0 <= vcpu < self.domain.vcpus:
            raise HypercallError(ENOENT, "no such vcpu", operation=operation, arguments=arguments)
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
