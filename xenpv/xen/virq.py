"""Virtual interrupts: their three classes, and who handles the global ones.

xen/common/event_channel.c. A V one is bound per vcpu, a D one per domain; a G one has one
handler domain at a time, the hardware domain unless a domctl says otherwise.
"""

from __future__ import annotations

import enum
from errno import EBUSY, EINVAL
from typing import TYPE_CHECKING, Final

from xenpv.abi.evtchn import VIRQ
from xenpv.errors import HypercallError

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain

NR_VIRQS: Final = 24


class VirqClass(enum.Enum):
    """get_virq_type() of Xen; numbers without a name (5, 14, 15) count as global."""

    VCPU = "V"
    DOMAIN = "D"
    GLOBAL = "G"


CLASS_OF: Final[dict[int, VirqClass]] = dict.fromkeys(range(NR_VIRQS), VirqClass.GLOBAL) | {
    VIRQ.TIMER: VirqClass.VCPU,
    VIRQ.DEBUG: VirqClass.VCPU,
    VIRQ.XENOPROF: VirqClass.VCPU,
    VIRQ.XENPMU: VirqClass.VCPU,
    VIRQ.ARGO: VirqClass.DOMAIN,
}


class GlobalVirqs:
    """The handler domain of each global VIRQ of one machine."""

    def __init__(self) -> None:
        self.hardware_domain: Domain | None = None
        self._handlers: dict[int, Domain] = {}

    def handler(self, virq: int) -> Domain | None:
        return self._handlers.get(virq, self.hardware_domain)

    def set_handler(self, domain: Domain, virq: int) -> None:
        """XEN_DOMCTL_set_virq_handler. EINVAL: not a global VIRQ, or the domain is dying;
        EBUSY while the present handler has it bound."""
        arguments = {"domain": domain.domid, "virq": virq}
        operation = "XEN_DOMCTL_set_virq_handler"
        if CLASS_OF.get(virq) is not VirqClass.GLOBAL:
            raise HypercallError(EINVAL, "no global VIRQ", operation=operation, arguments=arguments)
        now = self.handler(virq)
        if now is domain:
            return
        if domain.dying:
            raise HypercallError(
                EINVAL, "the domain is dying", operation=operation, arguments=arguments
            )
        if now is not None and now.evtchn.virq_port(virq):
            raise HypercallError(
                EBUSY, f"domain {now.domid} has it bound", operation=operation, arguments=arguments
            )
        self._handlers[virq] = domain

    def send(self, virq: int) -> bool:
        """Xen raises a global VIRQ; False if its handler did not bind it."""
        domain = self.handler(virq)
        return domain is not None and domain.evtchn.raise_virq(virq)

    def forget(self, domain: Domain) -> None:
        """At the domain's death its VIRQs go back to the hardware domain."""
        for virq in [virq for virq, one in self._handlers.items() if one is domain]:
            del self._handlers[virq]
        if self.hardware_domain is domain:
            self.hardware_domain = None
