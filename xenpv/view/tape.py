"""A recording of one loop: every record of its trace with its time, and what it was about.

    tape = Tape()
    with Platform(seed=7, tape=tape) as xen:
        ...
    tape.events[-1].text

A trace hashes its records and drops them; a tape keeps them. An event's place in `events` is
its moment, by which all else on the tape is dated: many events share one virtual time, and
their order is exact. Recording changes no digest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import attrs

from xenpv.xen.trace import (
    DOMID_SHIFT,
    EVENT_SHIFT,
    EVENTS,
    MACHINE_SHIFT,
    OPERAND_MASK,
    Event,
    Trace,
)

EVENTS_MAX: Final = 2_000_000


@attrs.frozen
class TapeEvent:
    """One record of the trace: operands `a` and `b` as xenpv.xen.trace.EVENTS splits them."""

    time_ns: int
    machine: int
    domid: int
    event: Event
    a: int
    b: int

    @property
    def text(self) -> str:
        """As the trace's tail has it, without the domain: `sends on port 5`."""
        return EVENTS[self.event][1].format(a=self.a, b=self.b)


@attrs.frozen
class TapedTask:
    """A task that ran: DELIVER and TIMER records name it by `number`."""

    machine: int
    domid: int
    number: int
    name: str


@attrs.frozen
class TapedDomain:
    """A domain: its name in the store when it was first seen with one, and when it lived."""

    machine: int
    domid: int
    name: str
    first: int  # moments
    last: int | None  # None: it is there at the end


@attrs.frozen
class TapedRing:
    """A shared ring, from its first publication on. `number` is its place in `Tape.rings`.

    `device` is the frontend's directory below its domain, `device/vbd/51712`, "" if unknown;
    `queue` its number among that device's rings of its kind. `request`, `response`: structs of
    xenpv.abi.layout, "" if unknown.
    """

    number: int
    machine: int
    domid: int  # the frontend's
    back_domid: int
    kind: str  # blkif, netif_tx, netif_rx, xen_netif_ctrl, ring
    device: str
    queue: int
    size: int
    entry_size: int
    request: str
    response: str
    first: int  # moment
    pfn: int  # of its first page, in the frontend's domain


@attrs.frozen
class Publication:
    """Slots that one end published. `slots[i]` is the entry of free-running index `first + i`.

    The four words are the header's just after it.
    """

    moment: int
    ring: int
    is_response: bool
    first: int
    slots: tuple[bytes, ...]
    req_prod: int
    req_event: int
    rsp_prod: int
    rsp_event: int


@attrs.frozen
class StoreRequest:
    """One request that xenstored answered; `error` is None or the name, ENOENT."""

    moment: int
    domid: int
    op: int  # XS_* of io/xs_wire.h
    tx_id: int
    payload: bytes
    error: str | None


@attrs.frozen
class StoreChange:
    """A node as it is from that moment on: `value` and `perms` (`b1`, `r0`), or None if it went."""

    moment: int
    path: str
    value: bytes | None
    perms: tuple[str, ...] = ()


@attrs.frozen
class TapedFrame:
    """A frame that a bridge took from a port, or gave to one."""

    moment: int
    time_ns: int
    bridge: str
    port: str
    is_in: bool
    data: bytes


class _Words(list[int]):
    """A trace's records, which a tape hears of as they are appended."""

    __slots__ = ("heard",)

    def __init__(self, heard: Any) -> None:
        super().__init__()
        self.heard = heard

    def append(self, word: int) -> None:
        super().append(word)
        self.heard(word)

    def extend(self, words: Iterable[int]) -> None:  # of Trace.timer: a record and a time
        record, now = words
        super().extend((record, now))
        self.heard(record)


class Tape:
    """What happened on one loop. Give it to Platform(tape=); it belongs to that loop alone.

    At most `limit` events are kept; `lost` counts those after them.
    """

    def __init__(self, *, limit: int = EVENTS_MAX) -> None:
        self.limit = limit
        self.lost = 0
        self.trace = Trace(_Words(self._hear))
        self.events: list[TapeEvent] = []
        self.tasks: dict[tuple[int, int], TapedTask] = {}
        self.domains: list[TapedDomain] = []
        self.rings: list[TapedRing] = []
        self.publications: list[Publication] = []
        self.requests: list[StoreRequest] = []
        self.changes: list[StoreChange] = []
        self.frames: list[TapedFrame] = []

    @property
    def moment(self) -> int:
        """Of the last event so far; -1 before the first."""
        return len(self.events) - 1

    def _hear(self, word: int) -> None:
        if len(self.events) >= self.limit:
            self.lost += 1
            return
        event = word >> EVENT_SHIFT & 0xF
        bits = EVENTS[event][0]
        operand = word & OPERAND_MASK
        self.events.append(
            TapeEvent(
                time_ns=self.trace.clock,
                machine=word >> MACHINE_SHIFT,
                domid=word >> DOMID_SHIFT & 0xFFFF,
                event=Event(event),
                a=operand >> bits,
                b=operand & ((1 << bits) - 1),
            )
        )
