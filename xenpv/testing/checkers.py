"""Laws of conservation over a whole platform: what holds between any two deliveries.

Each checker returns what it finds wrong, one line each; `check_all` raises them together.
`hostile` names domains whose own writes are not to be trusted: what only they can have
spoilt (the bits of their grant entries, their producer indices) is not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import Final

from xenpv.abi._kernel import lib
from xenpv.abi.gnttab import GNTMAP
from xenpv.errors import XenpvError
from xenpv.platform import Platform
from xenpv.testing.checks.memory import check_memory
from xenpv.testing.checks.pages import check_pages
from xenpv.testing.checks.progress import check_progress
from xenpv.testing.checks.slots import check_indices, check_leftovers
from xenpv.testing.checks.store import check_nodes, check_watches
from xenpv.view.rings import (
    REQ_EVENT,
    REQ_PROD,
    RSP_EVENT,
    RSP_PROD,
    End,
    KnownRing,
    peek,
    rings,
    u32,
)
from xenpv.xen.domain import PAGE_SIZE, Domain
from xenpv.xen.evtchn_port import PortState
from xenpv.xen.gnttab import ENTRIES_PER_FRAME
from xenpv.xen.maptrack import Mapping

GTF_reading: Final[int] = lib.GTF_reading
GTF_writing: Final[int] = lib.GTF_writing
INTERDOMAIN: Final = PortState.INTERDOMAIN
PIN_WRITERS: Final = 0x00FF00FF
# Of the low byte of flags or status, which has them both: what is left of each value.
BUSY: Final = bytes(value & (GTF_reading | GTF_writing) for value in range(256))
SET: Final = re.compile(rb"[^\0]")
HOST_MAP: Final = int(GNTMAP.host_map)
DEVICE_MAP: Final = int(GNTMAP.device_map)
READONLY: Final = int(GNTMAP.readonly)


class CheckFailed(XenpvError, AssertionError):  # noqa: N818 - it says what happened, as Livelock
    """A law does not hold; `findings` are the lines."""

    def __init__(self, findings: list[str]) -> None:
        self.findings = findings
        super().__init__("\n".join(findings))


def check_all(platform: Platform, *, quiescent: bool = True, hostile: Collection[int] = ()) -> None:
    """Every checker. `quiescent`: nothing is runnable, so nothing may wait for a wake-up.

    Raises CheckFailed.
    """
    known = rings(platform.hypervisor)  # no checker changes them
    findings = [
        *check_grants(platform, hostile=hostile),
        *check_ports(platform),
        *check_slots(platform, hostile=hostile, known=known),
        *check_indices(platform, hostile=hostile, known=known),
        *check_pages(platform, hostile=hostile),
        *check_memory(platform),
    ]
    if quiescent:
        findings += [
            *check_wakeups(platform, hostile=hostile, known=known),
            *check_leftovers(platform, hostile=hostile, known=known),
        ]
    if quiescent and not platform.loop.ready:  # who is due has not had its turn yet
        findings += [
            *check_progress(platform, hostile=hostile),
            *check_watches(platform, hostile=hostile),
            *check_nodes(platform, hostile=hostile),
        ]
    if findings:
        raise CheckFailed(findings)


def _domains(platform: Platform) -> list[Domain]:
    return list(platform.hypervisor.domains.values())  # the dead that are still held, too


def check_grants(platform: Platform, *, hostile: Collection[int] = ()) -> list[str]:
    """Pins of every granter are the maptrack entries of every mapper, and the bits in its
    table say so.
    """
    mapped: dict[tuple[int, int], int] = {}
    for mapper in _domains(platform):
        for mapping in mapper.gnttab.maptrack.values():
            key = (mapping.granter.unique_id, mapping.ref)
            mapped[key] = mapped.get(key, 0) + _pins(mapping)
    findings = []
    for granter in _domains(platform):
        findings += _grants_of(platform, granter, mapped, trusted=granter.domid not in hostile)
    return findings


def _pins(mapping: Mapping) -> int:
    """What one maptrack entry adds to the pin word of the entry it maps (kernel/domain.h)."""
    flags = int(mapping.flags)
    reads = 8 if flags & READONLY else 0
    pins = 1 << reads if flags & HOST_MAP else 0
    return pins + (1 << 16 + reads if flags & DEVICE_MAP else 0)


def _grants_of(
    platform: Platform, granter: Domain, mapped: dict[tuple[int, int], int], *, trusted: bool
) -> list[str]:
    findings = []
    kernel = granter.kernel
    own = {ref: pins for (unique, ref), pins in mapped.items() if unique == granter.unique_id}
    bits = _busy_bits(platform, granter)
    refs = sorted({*own, *bits})
    if lib.grant_pinned_refs(kernel) != len(own):
        per_frame = ENTRIES_PER_FRAME if granter.gnttab.version == 1 else ENTRIES_PER_FRAME // 2
        refs = list(range(granter.gnttab.nr_frames * per_frame))
    for ref in refs:
        expected_pins = own.get(ref, 0)
        pins = int(lib.grant_pins(kernel, ref))
        name = f"d{granter.domid} ref {ref}"
        if pins != expected_pins:
            findings.append(f"{name}: pins {pins:#x}, maptrack has {expected_pins:#x}")
        expected = GTF_writing if expected_pins & PIN_WRITERS else 0
        expected |= GTF_reading if expected_pins else 0
        if trusted and bits.get(ref, 0) != expected:
            findings.append(f"{name}: bits {bits.get(ref, 0):#x}, expected {expected:#x}")
    return findings


def _busy_bits(platform: Platform, granter: Domain) -> dict[int, int]:
    """GTF_reading and GTF_writing of each entry that has one: flags in v1, status in v2."""
    table = granter.gnttab
    found: dict[int, int] = {}
    first = 0
    if table.version == 1:
        frames = [lib.grant_table_frame(granter.kernel, at) for at in range(table.nr_frames)]
        step = 8  # flags are the first u16 of an entry's eight bytes
    else:
        count = table.nr_status_frames
        frames = [lib.grant_table_status_frame(granter.kernel, at) for at in range(count)]
        step = 2
    for frame in frames:
        low = peek(platform.hypervisor, int(frame), 0, PAGE_SIZE)[::step].translate(BUSY)
        found |= {first + one.start(): one[0][0] for one in SET.finditer(low)}
        first += len(low)
    return found


def check_ports(platform: Platform) -> list[str]:
    """Both ends of every interdomain channel name each other, and nobody names a domain that
    is gone.
    """
    findings = []
    domains = platform.hypervisor.domains
    for domain in domains.values():
        bound = [one for one in enumerate(domain.evtchn.ports) if one[1].state is INTERDOMAIN]
        for number, port in bound:
            name = f"d{domain.domid} port {number}"
            remote = port.remote
            if remote is None or domains.get(remote.domid) is not remote:
                findings.append(f"{name}: bound to a domain that is gone")
                continue
            ports = remote.evtchn.ports
            far = ports[port.remote_port] if port.remote_port < len(ports) else None
            if (
                far is None
                or far.state is not INTERDOMAIN
                or far.remote is not domain
                or far.remote_port != number
            ):
                state = "no port" if far is None else far.state.name.lower()
                findings.append(
                    f"{name}: bound to d{remote.domid} port {port.remote_port}, which is {state} "
                    "and does not name it"
                )
    return findings


def _connected(
    platform: Platform, hostile: Collection[int], known: Sequence[KnownRing] | None
) -> Iterator[tuple[KnownRing, End, End]]:
    """Rings with both ends on them, neither hostile, whose device is not broken."""
    broken = [
        (device.frontend_domid, device.kind)
        for device in platform.backends.devices.values()
        if device.broken
    ]
    for ring in rings(platform.hypervisor) if known is None else known:
        front, back = ring.front, ring.back
        if front is None or back is None or (ring.domid, ring.kind.device) in broken:
            continue
        if front.domain.domid not in hostile and back.domain.domid not in hostile:
            yield ring, front, back


def check_slots(
    platform: Platform,
    *,
    hostile: Collection[int] = (),
    known: Sequence[KnownRing] | None = None,
) -> list[str]:
    """Indices keep their order: no more responses than requests taken, none taken twice, no
    more in flight than the ring has entries. `known`: rings() of the platform, if they are known.
    """
    findings = []
    for ring, front, back in _connected(platform, hostile, known):
        if front.by_hand or back.by_hand:
            continue
        order = [
            ("consumed responses", front.cons),
            ("responses", ring.word(RSP_PROD)),
            ("taken requests", back.cons),
            ("requests", ring.word(REQ_PROD)),
        ]
        for (less, low), (more, high) in pairwise(order):
            if u32(high - low) > ring.size:
                findings.append(f"{ring.name}: {low:#x} {less}, but {high:#x} {more}")
        if u32(order[3][1] - order[0][1]) > ring.size:
            findings.append(f"{ring.name}: more in flight than its {ring.size} entries")
        if front.index != order[3][1]:
            findings.append(f"{ring.name}: req_prod is not what its frontend published")
        if back.index != order[1][1]:
            findings.append(f"{ring.name}: rsp_prod is not what its backend published")
    return findings


def check_wakeups(
    platform: Platform,
    *,
    hostile: Collection[int] = (),
    known: Sequence[KnownRing] | None = None,
) -> list[str]:
    """At quiescence: whoever sleeps has consumed everything, or has asked for a later index.

    `known`: rings() of the platform, if they are known.
    """
    findings = []
    for ring, front, back in _connected(platform, hostile, known):
        if not ring.kind.wait:
            findings += _asleep(ring, back, "request", ring.word(REQ_PROD), ring.word(REQ_EVENT))
        findings += _asleep(ring, front, "response", ring.word(RSP_PROD), ring.word(RSP_EVENT))
    return findings


def _asleep(ring: KnownRing, consumer: End, what: str, prod: int, event: int) -> list[str]:
    domain = consumer.domain
    if domain.pause_count or domain.is_shutdown or domain.dying or consumer.by_hand:
        return []
    left = u32(prod - consumer.cons)
    asked_later = u32(event - prod - 1) < ring.size
    if not left or left > ring.size or asked_later:
        return []
    indices = f"{what} producer {prod:#x}, consumer {consumer.cons:#x}, event index {event:#x}"
    sleeper = f"d{domain.domid} sleeps with {left} {what}s unconsumed"
    return [f"{ring.name}: lost wake-up: {sleeper} ({indices})"]
