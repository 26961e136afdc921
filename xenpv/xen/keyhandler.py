"""Debug keys: what `xl debug-keys` makes Xen print and do (xen/common/keyhandler.c).

`q` tells every guest that somebody wants to know: VIRQ_DEBUG on each of its vcpus.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenpv.abi._kernel import lib
from xenpv.xen.evtchn import VIRQ_DEBUG

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain
    from xenpv.xen.hypervisor import Hypervisor


def debug_keys(hypervisor: Hypervisor, keys: str) -> None:
    """handle_keypress for each; one that nothing is behind does nothing."""
    for key in keys:
        found = KEYS.get(key)
        if found is not None:
            about, handler = found
            hypervisor.console.printk(f"'{key}' pressed -> {about}")
            handler(hypervisor)


def show_handlers(hypervisor: Hypervisor) -> None:
    """`h`."""
    for key, (about, _handler) in sorted(KEYS.items()):
        hypervisor.console.printk(f" key '{key}' (ascii '{ord(key):02x}') => {about}")


def dump_domains(hypervisor: Hypervisor) -> None:
    """`q`: first what Xen knows of every domain, then the guests are told."""
    printk = hypervisor.console.printk
    domains = list(hypervisor.domains.values())
    for domain in domains:
        printk(f"General information for domain {domain.domid}:")
        printk(f"    dying={domain.dying:d} pause_count={domain.pause_count}")
        printk(f"    nr_pages={domain.tot_pages} max_pages={domain.max_pages}")
        for vcpu in range(domain.vcpus):
            printk(f"    VCPU{vcpu}: {_vcpu_line(domain, vcpu)}")
    for domain in domains:
        for vcpu in range(domain.vcpus):
            port = domain.evtchn.virq_port(VIRQ_DEBUG, vcpu)
            printk(f"Notifying guest {domain.domid}:{vcpu} (virq {VIRQ_DEBUG}, port {port})")
            domain.evtchn.raise_virq(VIRQ_DEBUG, vcpu)


def _vcpu_line(domain: Domain, vcpu: int) -> str:
    state = domain.vcpu[vcpu].state.name
    if domain.dying:
        return state  # its pages are gone
    pending = max(0, lib.evtchn_upcall_pending(domain.kernel, vcpu))
    return f"{state} upcall_pend={pending:02x}"


KEYS: Final[dict[str, tuple[str, Callable[[Hypervisor], None]]]] = {
    "h": ("show this message", show_handlers),
    "q": ("dump domain (and guest debug) info", dump_domains),
}
