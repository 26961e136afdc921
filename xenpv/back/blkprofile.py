"""Backends of a disk differ: Linux' blkback, QEMU's xen-block, tapback and mirage, in one table.

A profile says which keys a backend writes, how it reads the frontend's, which states it walks
through, and what it makes of a request. Nothing else in `back` asks for a name.

Sources: drivers/block/xen-blkback/xenbus.c, hw/block/xen-block.c with hw/xen/xen-bus.c and
hw/block/dataplane/xen-block.c, tapback/frontend.c and drivers/td-req.c of blktap,
mirage-block-xen's lib/back/blkback.ml.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Final

import attrs

from xenpv.abi.xenbus import XenbusState as State
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


class Step(Enum):
    """What a state of the frontend makes a backend do."""

    WAIT = "let go of the rings, then InitWait"
    CONNECT = "let go of old rings, map the new ones, Connected once there is an image"
    CLOSING = "Closing"
    CLOSED = "let go of the rings, then Closed; of the disk too unless it is online"
    GONE = "the device is unregistered"
    DELETE = "its directory goes, where the frontend's is gone"
    FATAL = "no frontend has that state"


class Pending(Enum):
    """What becomes of requests in flight whose rings go."""

    ANSWERED = "their rings stay until the last is answered; a new connection fails till then"
    AWAITED = "nothing goes on before the last is answered"
    DROPPED = "their rings stay until the last has ended, and none is answered"


class RingRefs(Enum):
    """When ring-ref0 and on are read instead of ring-ref."""

    IF_PRESENT = "where ring-page-order is there, even as 0"
    IF_NOT_ZERO = "where ring-page-order is more than 0"
    NEVER = "never"


class Opens(Enum):
    """When a backend opens its image."""

    AT_PROBE = "as soon as its directory is there"
    AT_HOTPLUG = "when hotplug-status is connected"


STATE: Final = "state"  # among `early`: InitWait

# (own state, the frontend's): what to do. A pair that is absent asks nothing.
Walk = Mapping[tuple[State, State], Step]

OWN: Final = (
    State.INITIALISING,
    State.INIT_WAIT,
    State.CONNECTED,
    State.CLOSING,
    State.CLOSED,
)
UNCONNECTED: Final = tuple(own for own in OWN if own is not State.CONNECTED)
READY: Final = (State.INITIALISED, State.CONNECTED)


def _when(seen: State, own: Iterable[State], step: Step) -> Walk:
    return {(one, seen): step for one in own}


def _connects(own: Iterable[State]) -> Walk:
    return {(one, seen): Step.CONNECT for one in own for seen in READY}


# frontend_changed
LINUX_WALK: Final[Walk] = {
    **_when(State.INITIALISING, [State.CLOSED], Step.WAIT),
    **_connects(UNCONNECTED),
    **_when(State.CLOSING, OWN, Step.CLOSING),
    **_when(State.CLOSED, OWN, Step.CLOSED),
    **_when(State.UNKNOWN, OWN, Step.GONE),
    **_when(State.INIT_WAIT, OWN, Step.FATAL),
    **_when(State.RECONFIGURING, OWN, Step.FATAL),
    **_when(State.RECONFIGURED, OWN, Step.FATAL),
}
# xen_block_frontend_changed; InitWait again is xen_device_frontend_changed's.
QEMU_WALK: Final[Walk] = {
    **_when(State.INITIALISING, [State.CLOSED], Step.WAIT),
    **_connects(UNCONNECTED),
    **_when(State.CLOSING, OWN, Step.CLOSING),
    **_when(State.CLOSED, OWN, Step.CLOSED),
    **_when(State.UNKNOWN, OWN, Step.CLOSED),
}
# A frontend that starts again without a close left its tapdisk connected, which then could not be
# connected any more: here its rings go first.
TAPDISK_WALK: Final[Walk] = {
    **_when(State.INITIALISING, OWN, Step.WAIT),
    **_connects(UNCONNECTED),
    **_when(State.CLOSING, OWN, Step.CLOSING),
    **_when(State.CLOSED, OWN, Step.CLOSED),
    **_when(State.UNKNOWN, OWN, Step.DELETE),
}
# Its worker writes nothing but Connected and knows one connection: a frontend would wait for
# ever. It says InitWait once its keys are there, and answers a close and a new start.
MIRAGE_WALK: Final[Walk] = {
    **_when(State.INITIALISING, [State.CLOSED], Step.WAIT),
    **_connects(UNCONNECTED),
    **_when(State.CLOSING, OWN, Step.CLOSING),
    **_when(State.CLOSED, OWN, Step.CLOSED),
    **_when(State.UNKNOWN, OWN, Step.GONE),
}


@attrs.frozen(kw_only=True)
class Profile:
    """What tells one backend from another.

    `directory`: where the toolstack makes it, backend/<directory>.

    Keys and states:
    `opens`: when it opens its image. `early` are keys in their order, written when the directory
    is new, each by itself or `in_one` transaction; `late` in a transaction just before Connected.
    `info`: bits of VDISK_* that it tells.
    `needs_image`: without one a frontend that is ready is not looked at. `walk`: its states.
    `fatal`: what is wrong with a frontend goes to its `error`, and it is Closing; else it stays
    where it is, and says so in its own log.
    `pending`: what becomes of requests in flight. `retires`: its device goes where it is
    Closed and not online. `resizes`: it tells of a new size, `resizes_in_one` transaction with
    its state. `watches_itself`: a toolstack's Closing becomes Closed where no frontend is active.

    The frontend's keys:
    `protocols` are those it knows. `protocol_default`: what it takes for none, "": it refuses.
    `protocol_unknown`: what it takes for one that it does not know, "": it refuses.
    `protocol_words`: it reads the first word of it, so that an empty text is none.
    `ring_refs`: which nodes it reads. `strict`: a number is digits and nothing else.
    `persistent_strict`: of feature-persistent it takes 0 and 1 alone.

    Limits:
    `ring_page_order_max` and `queues_max` (0: as many as its domain has vcpus) bound what a
    frontend may ask for. `indirect_max`: segments of an indirect request, 0 where there are none.
    `persistent`: it keeps grants mapped for a frontend that lets it.

    `rules`: what it makes of a request.
    """

    name: str
    directory: str = "vbd"
    opens: Opens = Opens.AT_HOTPLUG
    early: tuple[str, ...]
    in_one: bool = False
    late: tuple[str, ...] = ()
    info: int = 7  # VDISK_CDROM, VDISK_REMOVABLE, VDISK_READONLY
    needs_image: bool = False
    walk: Walk
    fatal: bool = False
    pending: Pending = Pending.DROPPED
    retires: bool = True
    resizes: bool = False
    resizes_in_one: bool = False
    watches_itself: bool = False
    protocols: tuple[str, ...] = ("x86_64-abi", "x86_32-abi", "arm-abi")
    protocol_default: str = "x86_32-abi"
    protocol_unknown: str = ""
    protocol_words: bool = False
    ring_refs: RingRefs = RingRefs.IF_PRESENT
    strict: bool = False
    persistent_strict: bool = False
    ring_page_order_max: int = 0
    queues_max: int = 1
    indirect_max: int = 0
    persistent: bool = False
    units: Units = SPEC2024
    rules: BlkRules = LINUX_RULES


LINUX: Final = Profile(
    name="linux",
    early=(
        "feature-max-indirect-segments",
        "multi-queue-max-queues",
        "max-ring-page-order",
        STATE,
    ),
    late=(
        "feature-flush-cache",
        "discard-granularity",
        "discard-alignment",
        "discard-secure",
        "feature-discard",
        "feature-barrier",
        "feature-persistent",
        "sectors",
        "info",
        "sector-size",
        "physical-sector-size",
    ),
    walk=LINUX_WALK,
    fatal=True,
    pending=Pending.ANSWERED,
    resizes=True,
    resizes_in_one=True,
    protocol_words=True,
    ring_page_order_max=4,  # XENBUS_MAX_RING_GRANT_ORDER
    queues_max=0,
    indirect_max=256,  # xen_blkif_max_segments
    persistent=True,
    units=LINUX_UNITS,
)
# xen_device_realize says InitWait before xen_block_realize writes the rest.
QEMU: Final = Profile(
    name="qemu",
    directory="qdisk",
    opens=Opens.AT_PROBE,
    early=(
        "hotplug-status",
        "online",
        STATE,
        "feature-discard",
        "discard-granularity",
        "discard-alignment",
        "feature-flush-cache",
        "max-ring-page-order",
        "info",
        "mode",
        "sector-size",
        "sectors",
    ),
    info=5,
    walk=QEMU_WALK,
    pending=Pending.AWAITED,
    resizes=True,
    needs_image=True,
    watches_itself=True,
    protocol_unknown="x86_64-abi",  # native
    ring_page_order_max=4,
    rules=QEMU_RULES,
)
TAPDISK: Final = Profile(
    name="tapdisk",
    directory="vbd3",
    early=("max-ring-page-order",),
    late=("feature-barrier", "sector-size", "sectors", "info"),
    needs_image=True,
    walk=TAPDISK_WALK,
    retires=False,
    ring_refs=RingRefs.IF_NOT_ZERO,
    persistent_strict=True,
    ring_page_order_max=3,
    rules=TAPDISK_RULES,
)
MIRAGE: Final = Profile(
    name="mirage",
    opens=Opens.AT_PROBE,
    early=(
        "hotplug-status",
        "sector-size",
        "sectors",
        "info",
        "feature-max-indirect-segments",
        STATE,
    ),
    in_one=True,
    info=0,
    needs_image=True,
    walk=MIRAGE_WALK,
    fatal=True,
    protocols=("x86_64-abi", "x86_32-abi", "arm-abi", "native"),
    protocol_default="",
    ring_refs=RingRefs.NEVER,
    strict=True,
    indirect_max=256,
    rules=MIRAGE_RULES,
)
PROFILES: Final[Mapping[str, Profile]] = {one.name: one for one in (LINUX, QEMU, TAPDISK, MIRAGE)}


def profile(name: str) -> Profile:
    """The profile of that name. LocalProtocolError: there is none."""
    found = PROFILES.get(name)
    if found is None:
        raise LocalProtocolError(f"blkback {name!r}: expected one of {', '.join(PROFILES)}")
    return found


def profile_of(directory: str, default: Profile) -> Profile:
    """Who serves backend/<directory>: `default` if that is its own."""
    if default.directory == directory:
        return default
    return next((one for one in PROFILES.values() if one.directory == directory), default)


@attrs.frozen
class Settings:
    """What one disk's backend is to be. `latency_ns`: virtual time that each I/O takes; 0: it is
    done at once, within the pass that took its request.
    """

    profile: Profile = LINUX
    units: Units = LINUX_UNITS
    latency_ns: int = 0

    @property
    def batches(self) -> bool:
        """Whether BlkRing does it all."""
        return self.profile is LINUX and self.units is LINUX_UNITS and not self.latency_ns
