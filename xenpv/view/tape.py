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

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs

from xenpv.xen.trace import (
    DOMID_SHIFT,
    EVENT_SHIFT,
    EVENTS,
    MACHINE_SHIFT,
    MACHINES_MAX,
    OPERAND_MASK,
    Event,
    MachineTrace,
    Trace,
)

if TYPE_CHECKING:
    from xenpv.host.network import Network
    from xenpv.platform import Platform
    from xenpv.view.history import RingHistory, StoreHistory, StoreNode
    from xenpv.view.slots import SlotState
    from xenpv.view.taping import TapedMachine

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

    The four words are the header's just after it; `req_cons` and `rsp_cons` the backend's and the
    frontend's private consumers, -1 where that end has no handle of the kernel's. Without slots:
    the index moved by more than a ring.
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
    req_cons: int = -1
    rsp_cons: int = -1


@attrs.frozen
class Consumption:
    """How far both ends of a ring had taken what is on it, after that moment's event."""

    moment: int
    ring: int
    req_cons: int
    rsp_cons: int


@attrs.frozen
class StoreRequest:
    """One request that xenstored answered; `error` is None or the name, ENOENT."""

    moment: int
    domid: int
    op: int  # XS_* of io/xs_wire.h
    tx_id: int
    payload: bytes
    error: str | None
    machine: int = 0


@attrs.frozen
class StoreChange:
    """A node as it is from that moment on: `value` and `perms` (`b1`, `r0`), or None if it went.

    The moment is that of the request that made it, of a commit's for all in a transaction.
    """

    moment: int
    path: str
    value: bytes | None
    perms: tuple[str, ...] = ()
    machine: int = 0


@attrs.frozen
class TapedFrame:
    """A frame that a bridge took from a port, or gave to one.

    `bridge` is `GUEST:NAME` in a driver domain.
    """

    moment: int
    time_ns: int
    bridge: str
    port: str
    is_in: bool
    data: bytes
    machine: int = 0


@attrs.frozen
class Window:
    """What a part of a tape holds, each in its order."""

    events: Sequence[TapeEvent]
    publications: Sequence[Publication]
    requests: Sequence[StoreRequest]
    changes: Sequence[StoreChange]
    frames: Sequence[TapedFrame]


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


class TapedTrace(Trace):
    """A trace that tells its tape what its records are too short for."""

    __slots__ = ("recorder",)

    recorder: Tape

    def __init__(self, tape: Tape) -> None:
        super().__init__(_Words(tape.hear))
        self.recorder = tape

    def of_machine(self, machine: int) -> Trace:
        return TapedMachineTrace(self, machine)

    def note(self, domid: int, text: str) -> None:
        super().note(domid, text)
        self.recorder.noted(text)

    def store_op(
        self, domid: int, op: int, tx_id: int, payload: bytes, error: bytes | None
    ) -> None:
        super().store_op(domid, op, tx_id, payload, error)
        self.recorder.answered(0, domid, op, tx_id, payload, error)


class TapedMachineTrace(MachineTrace):
    """The same of a later machine."""

    __slots__ = ("_tape",)

    def __init__(self, whole: TapedTrace, machine: int) -> None:
        super().__init__(whole, machine)
        self._tape = whole.recorder

    def note(self, domid: int, text: str) -> None:
        super().note(domid, text)
        self._tape.noted(text)

    def store_op(
        self, domid: int, op: int, tx_id: int, payload: bytes, error: bytes | None
    ) -> None:
        super().store_op(domid, op, tx_id, payload, error)
        self._tape.answered(self.machine, domid, op, tx_id, payload, error)


T = TypeVar("T", Publication, StoreRequest, StoreChange, TapedFrame)


class Tape:
    """What happened on one loop. Give it to Platform(tape=); it belongs to that loop alone.

    At most `limit` events are kept, and what else happened until then; `lost` counts the events
    after them. It ends where the last platform of the loop begins to close.

    `notes` are the words of NOTE events, by moment; `tasks` are by machine and number.
    """

    def __init__(self, *, limit: int = EVENTS_MAX) -> None:
        self.limit = limit
        self.lost = 0
        self.ended = False
        self.trace = TapedTrace(self)
        self.events: list[TapeEvent] = []
        self.notes: dict[int, str] = {}
        self.tasks: dict[tuple[int, int], TapedTask] = {}
        self.domains: list[TapedDomain] = []
        self.rings: list[TapedRing] = []
        self.publications: list[Publication] = []
        self.consumptions: list[Consumption] = []
        self.requests: list[StoreRequest] = []
        self.changes: list[StoreChange] = []
        self.frames: list[TapedFrame] = []
        self._machines: list[TapedMachine | None] = [None] * MACHINES_MAX
        self._unclaimed = 0  # the first change whose request, if it is one's, is not answered yet
        self._rings_read: dict[int, RingHistory] = {}
        self._store_read: dict[int, StoreHistory] = {}

    @property
    def moment(self) -> int:
        """Of the last event so far; -1 before the first."""
        return len(self.events) - 1

    # the state at a moment, after its event and before the next

    def slots_at(self, ring: int, moment: int) -> list[SlotState]:
        """Every slot of a ring (its number), in order."""
        from xenpv.view.history import RingHistory

        for machine in self._machines:
            if machine is not None:
                machine.settle()
        found = self._rings_read.get(ring)
        if found is None:
            found = self._rings_read[ring] = RingHistory(self, ring)
        return found.at(moment)

    def store_at(self, moment: int, machine: int = 0) -> dict[str, StoreNode]:
        """Every node of a machine's store by path, in the order of paths."""
        from xenpv.view.history import StoreHistory

        found = self._store_read.get(machine)
        if found is None:
            found = self._store_read[machine] = StoreHistory(self, machine)
        return found.at(moment)

    def window(self, first: int, last: int) -> Window:
        """What happened from moment `first` to `last`, both included."""
        return Window(
            events=self.events[max(0, first) : last + 1],
            publications=_within(self.publications, first, last),
            requests=_within(self.requests, first, last),
            changes=_within(self.changes, first, last),
            frames=_within(self.frames, first, last),
        )

    def text(self, moment: int) -> str:
        """An event in words, with a task by its name and a note by its text."""
        event = self.events[moment]
        if moment in self.notes:
            return self.notes[moment]
        if event.event in (Event.DELIVER, Event.TIMER):
            task = self.tasks.get((event.machine, event.a))
            if task is not None and task.name:
                return f"{'runs' if event.event == Event.DELIVER else 'timer of'} {task.name}"
        return event.text

    # what the trace and the model tell

    @property
    def full(self) -> bool:
        """Nothing more is kept."""
        return self.ended or self.lost > 0

    def attach(self, platform: Platform) -> None:
        """A platform was made on the loop."""
        from xenpv.view.taping import TapedMachine

        number = platform.hypervisor.number
        self._machines[number] = TapedMachine(self, platform)
        self._unclaimed = len(self.changes)

    def closes(self, platform: Platform) -> None:
        """A platform of the loop is about to close."""
        number = platform.hypervisor.number
        machine = self._machines[number]
        if machine is not None:
            machine.settle()
            self._machines[number] = None
        self.ended = not any(self._machines)

    def bridges(self, platform: Platform, guest: str, network: Network) -> None:
        """A driver domain has bridges of its own."""
        machine = self._machines[platform.hypervisor.number]
        if machine is not None:
            machine.bridges(network, f"{guest}:")

    def hear(self, word: int) -> None:
        """A record of the trace."""
        if self.ended:
            return
        if len(self.events) >= self.limit:
            self.lost += 1
            return
        event = word >> EVENT_SHIFT & 0xF
        bits = EVENTS[event][0]
        operand = word & OPERAND_MASK
        heard = TapeEvent(
            time_ns=self.trace.clock,
            machine=word >> MACHINE_SHIFT,
            domid=word >> DOMID_SHIFT & 0xFFFF,
            event=Event(event),
            a=operand >> bits,
            b=operand & ((1 << bits) - 1),
        )
        self.events.append(heard)
        if event == Event.DELIVER:
            self._unclaimed = len(self.changes)
        machine = self._machines[heard.machine]
        if machine is not None:
            machine.hear(heard)

    def noted(self, text: str) -> None:
        """The words of the NOTE that was just heard."""
        if not self.full:
            self.notes[self.moment] = text

    def answered(
        self, machine: int, domid: int, op: int, tx_id: int, payload: bytes, error: bytes | None
    ) -> None:
        """What the STORE was that was just heard; what changed before it was its doing."""
        if self.full:
            return
        moment = self.moment
        name = None if error is None else error.decode()
        self.requests.append(StoreRequest(moment, domid, op, tx_id, payload, name, machine))
        changes = self.changes
        for at in range(self._unclaimed, len(changes)):
            if changes[at].machine == machine:
                changes[at] = attrs.evolve(changes[at], moment=moment)
        self._unclaimed = len(changes)


def _within(dated: Sequence[T], first: int, last: int) -> Sequence[T]:
    moment = attrgetter("moment")
    start = bisect_left(dated, first, key=moment)
    return dated[start : bisect_right(dated, last, lo=start, key=moment)]
