"""Backends of a disk differ: Linux' blkback, QEMU's xen-block, tapback and mirage, in one table.

A profile says which keys a backend writes, how it reads the frontend's, which states it walks
through, and what it makes of a request. Nothing else in `back` asks for a name.

Sources: drivers/block/xen-blkback, hw/block/xen-block.c with hw/block/dataplane/xen-block.c,
tapback and drivers/td-req.c of blktap, mirage-block-xen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from xenpv.back.blkrules import (
    LINUX_RULES,
    MIRAGE_RULES,
    QEMU_RULES,
    TAPDISK_RULES,
    BlkRules,
)
from xenpv.back.blkunits import LINUX as LINUX_UNITS
from xenpv.back.blkunits import SPEC2024, Units
from xenpv.errors import LocalProtocolError


@attrs.frozen(kw_only=True)
class Profile:
    """What tells one backend from another.

    `directory`: where the toolstack makes it, backend/<directory>. `ring_page_order_max` and
    `queues_max` (0: as many as its domain has vcpus) bound what a frontend may ask for.
    `indirect_max`: segments of an indirect request, 0 where there are none. `persistent`: it
    keeps grants mapped for a frontend that lets it. `rules`: what it makes of a request.
    """

    name: str
    directory: str = "vbd"
    ring_page_order_max: int = 0
    queues_max: int = 1
    indirect_max: int = 0
    persistent: bool = False
    units: Units = SPEC2024
    rules: BlkRules = LINUX_RULES


LINUX: Final = Profile(
    name="linux",
    ring_page_order_max=4,  # XENBUS_MAX_RING_GRANT_ORDER
    queues_max=0,
    indirect_max=256,  # xen_blkif_max_segments
    persistent=True,
    units=LINUX_UNITS,
)
QEMU: Final = Profile(name="qemu", directory="qdisk", ring_page_order_max=4, rules=QEMU_RULES)
TAPDISK: Final = Profile(
    name="tapdisk", directory="vbd3", ring_page_order_max=3, rules=TAPDISK_RULES
)
MIRAGE: Final = Profile(name="mirage", indirect_max=256, rules=MIRAGE_RULES)
PROFILES: Final[Mapping[str, Profile]] = {one.name: one for one in (LINUX, QEMU, TAPDISK, MIRAGE)}


def profile(name: str) -> Profile:
    """The profile of that name. LocalProtocolError: there is none."""
    found = PROFILES.get(name)
    if found is None:
        raise LocalProtocolError(f"blkback {name!r}: expected one of {', '.join(PROFILES)}")
    return found


@attrs.frozen
class Settings:
    """What one disk's backend is to be. `latency_ns`: virtual time that each I/O takes; 0: it is
    done at once, within the pass that took its request.
    """

    profile: Profile = LINUX
    units: Units = LINUX_UNITS
    latency_ns: int = 0
