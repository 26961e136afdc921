"""Progress: at quiescence nothing waits that nobody is going to look at."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Final

from xenpv.abi._kernel import lib
from xenpv.abi.layout import offsetof
from xenpv.back.netback import Netback
from xenpv.view.rings import peek
from xenpv.xen.evtchn_port import PortState

if TYPE_CHECKING:
    from xenpv.platform import Platform
    from xenpv.xen.domain import Domain

BOUND: Final = (PortState.INTERDOMAIN, PortState.VIRQ, PortState.IPI)
PAGE: Final = "xenstore_domain_interface"
# Producer and consumer of what goes each way.
WAYS: Final = {
    "requests": (offsetof(PAGE, "req_prod"), offsetof(PAGE, "req_cons")),
    "answers": (offsetof(PAGE, "rsp_prod"), offsetof(PAGE, "rsp_cons")),
}


def check_progress(platform: Platform, *, hostile: Collection[int] = ()) -> list[str]:
    """Events, bytes of the store, watch events and frames that wait, and nobody is due."""
    return [
        *_events(platform),
        *_store_rings(platform, hostile),
        *_watch_events(platform),
        *_backlogs(platform),
    ]


def _running(platform: Platform) -> Iterator[Domain]:
    """Domains with a kernel that could take an event."""
    for domain in platform.hypervisor.domains.values():
        stopped = domain.pause_count or domain.is_shutdown or domain.dying or domain.dead
        held = not domain.upcalls or domain.upcalls[0].held
        if not stopped and not held and domain.deliverer is not None:
            yield domain


def _events(platform: Platform) -> list[str]:
    """An event that is pending and not masked has had its upcall, which found nothing."""
    findings = []
    for domain in _running(platform):
        kernel = domain.kernel
        bound = [at for at, port in enumerate(domain.evtchn.ports) if port.state in BOUND]
        for number in bound:
            if lib.evtchn_is_pending(kernel, number) != 1:
                continue
            if lib.evtchn_is_masked(kernel, number) == 0:
                findings.append(
                    f"d{domain.domid} port {number}: an event is pending and not masked, and "
                    "nobody is going to take it"
                )
    return findings


def _store_rings(platform: Platform, hostile: Collection[int]) -> list[str]:
    """Bytes in a guest's ring with xenstored, of guests whose bus is up."""
    findings = []
    running = [domain.domid for domain in _running(platform)]
    for guest in platform.guests:
        ring = platform.store_daemon.rings.get(guest.domid)
        bus = guest.bus
        if ring is None or ring.frozen or bus is None or guest.domid in hostile:
            continue
        if guest.domid not in running or bus.store.broken:
            continue
        frame = int(lib.p2m_lookup(platform.dom0.kernel, ring.pfn, 0))
        for what, offsets in WAYS.items():
            prod, cons = (
                int.from_bytes(peek(platform.hypervisor, frame, at, 4), "little") for at in offsets
            )
            if prod != cons:
                findings.append(
                    f"store ring of d{guest.domid}: {what} wait: producer {prod:#x}, "
                    f"consumer {cons:#x}"
                )
    return findings


def _watch_events(platform: Platform) -> list[str]:
    """Events of clients in this process that wake a task."""
    return [
        f"{one.name}: {len(one.events)} watch events wait, and its task is not due"
        for one in platform.xenstored.connections.values()
        if one.local and one.on_event is not None and one.events
    ]


def _backlogs(platform: Platform) -> list[str]:
    """Frames for guests: what finds no slots expires, and till then a timer is armed."""
    findings = []
    for device in platform.backends.devices.values():
        driver = device.driver
        if not isinstance(driver, Netback) or not driver.profile.rx_expires or driver.disabled:
            continue
        findings += [
            f"{queue.name}: {queue.rx.backlog_bytes} bytes wait for the guest for ever"
            for queue in driver.queues
            if queue.rx is not None and queue.rx.backlog_bytes
        ]
    return findings
