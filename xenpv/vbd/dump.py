"""What XenVbd prints when DEBUG is triggered: each target's handshake, rings and grants."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from xenpv.abi.blkif import BLKIF_OP
from xenpv.bus.dump import handshake_lines, ring_lines
from xenpv.vbd.backend import Backend
from xenpv.vbd.ring import Ring
from xenpv.vbd.target import Target

REQUESTS_MAX: Final = 8  # of a ring that are named
OPERATIONS: Final = {int(one): one.name for one in BLKIF_OP}


def target_lines(target: Target, crashing: bool) -> Iterator[str]:
    """Lines of one disk, its path in front of each."""
    for line in _lines(target, crashing):
        yield f"{target.frontend.path}: {line}"


def _lines(target: Target, crashing: bool) -> Iterator[str]:
    frontend, pnp = target.frontend, target.pnp
    missing = f", MISSING: {pnp.reason}" if target.missing else ""
    yield f"{frontend.state.name}, target {target.target_id}, {pnp.state.value}{missing}"
    if frontend.broken:
        yield f"BROKEN: {frontend.broken}"
    used = [kind.name for kind, count in frontend.usage.counts.items() if count]
    if used:
        yield f"used for {', '.join(used)}"
    yield from _backend(frontend.backend, frontend.trusted)
    yield from handshake_lines(frontend.handshake)
    for ring in frontend.rings:
        yield from queue_lines(ring, crashing)
    granter = frontend.granter
    yield f"{granter.granted} references out, {len(granter.quarantine)} quarantined"


def _backend(backend: Backend, trusted: bool) -> Iterator[str]:
    """Its disk, and what it offers."""
    size, physical = backend.sector_size, backend.physical_sector_size
    yield f"{backend.capacity} sectors of {size} ({physical}), info {backend.info:#x}"
    flags = {
        "REMOVABLE": backend.removable,
        f"INDIRECT {backend.indirect_segments}": backend.indirect_segments,
        "PERSISTENT": backend.persistent,
        "BARRIER": backend.barrier,
        "FLUSH": backend.flush_cache,
        "DISCARD": backend.discard,
        "UNTRUSTED": not trusted,
    }
    yield f"features: {' '.join(name for name, there in flags.items() if there) or 'none'}"


def queue_lines(ring: Ring, crashing: bool) -> Iterator[str]:
    """A queue: its port, its ring, and the requests in it."""
    name = f"ring {ring.index}"
    port = "no port" if ring.channel is None else f"port {ring.channel.port:04x}"
    enabled = "enabled" if ring.enabled else "disabled"
    yield f"{name}: {enabled}, {port}"
    yield from ring_lines(name, ring.front, crashing)
    waiting, prepared = len(ring.queue), len(ring.prepared)
    submitted, abandoned = len(ring.submitted), len(ring.abandoned)
    yield f"{name}: SRB parts waiting {waiting}, prepared {prepared}, submitted {submitted}"
    for request in list(ring.submitted.values())[:REQUESTS_MAX]:
        yield f"{name}: - request {request.id:#x} {OPERATIONS[request.operation]}"
    if submitted > REQUESTS_MAX:
        yield f"{name}: - and {submitted - REQUESTS_MAX} more"
    if abandoned:
        yield f"{name}: {abandoned} given up, their answers may come"
