"""What an end keeps of a ring for itself, and what it leaves in the slots."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache

from xenpv.platform import Platform
from xenpv.view.rings import REQ_PROD, RSP_PROD, UNKNOWN, KnownRing, fields, rings, u32


def check_indices(
    platform: Platform,
    *,
    hostile: Collection[int] = (),
    known: Sequence[KnownRing] | None = None,
) -> list[str]:
    """No end takes more than a ring can hold, whatever its peer wrote into the page.

    An end's private indices are its own: that the peer is hostile is no excuse. `known`:
    rings() of the platform, if they are known.
    """
    findings = []
    for ring in rings(platform.hypervisor) if known is None else known:
        front, back = ring.front, ring.back
        if front is not None and not front.by_hand and front.domain.domid not in hostile:
            sent, taken = front.index, front.cons
            if u32(sent - taken) > ring.size:
                findings.append(
                    f"{ring.name}: d{front.domain.domid} took {taken:#x} responses to "
                    f"{sent:#x} requests"
                )
        if back is not None and not back.by_hand and back.domain.domid not in hostile:
            in_flight = u32(back.cons - back.index)
            if in_flight > ring.size:
                findings.append(
                    f"{ring.name}: d{back.domain.domid} has {in_flight:#x} requests in flight "
                    f"in a ring of {ring.size}"
                )
    return findings


def check_leftovers(
    platform: Platform,
    *,
    hostile: Collection[int] = (),
    known: Sequence[KnownRing] | None = None,
) -> list[str]:
    """What a slot that was answered shows beside its response is zero (XSA-216).

    Of backends that write whole entries, as ours and the kit's: a backend that writes fields in
    place leaves what its frontend had there itself. `known`: as for check_indices.
    """
    findings = []
    for ring in rings(platform.hypervisor) if known is None else known:
        front, back = ring.front, ring.back
        if ring.kind is UNKNOWN or front is None or back is None or back.by_hand:
            continue
        if {front.domain.domid, back.domain.domid} & set(hostile):
            continue
        requests, responses = ring.word(REQ_PROD), ring.word(RSP_PROD)
        if front.index != requests or back.index != responses:
            continue  # somebody wrote these by hand: the slots are not told apart
        # Not of slots that no response has been in: a frontend may have written them for later.
        answered = min(ring.size - u32(requests - responses), responses)
        for before in range(1, answered + 1):
            findings += _left(ring, u32(responses - before))
    return findings


def _left(ring: KnownRing, index: int) -> list[str]:
    slot = ring.slot(index)
    if not any(slot):
        return []
    left = [at for at in _unwritten(ring.kind.response, len(slot)) if slot[at]]
    if not left:
        return []
    name = f"{ring.kind.response}[{index % ring.size}]"
    beside = f"{slot[left[0]]:#04x} at byte {left[0]}, {len(left)} bytes beside its fields"
    return [f"{ring.name}: {name} shows {beside}"]


@cache
def _unwritten(response: str, entry_size: int) -> tuple[int, ...]:
    """Bytes of an entry in which no field of a response lies."""
    used = {at for _, start, size in fields(response) for at in range(start, start + size)}
    return tuple(at for at in range(entry_size) if at not in used)
