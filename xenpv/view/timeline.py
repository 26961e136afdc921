"""The records of one tape on the axis of xenpv.view.perfetto, in order, as they are made."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any, Final

from xenpv.abi.xs import XS
from xenpv.view.ringtracks import RingTracks
from xenpv.view.tape import StoreRequest, Tape, TapeEvent
from xenpv.view.words import counted
from xenpv.xen.trace import Event

Record = dict[str, Any]

# Places within an event's microsecond.
TAKES: Final = 0.5  # what an end took after the event, until the next
ENDS: Final = 0.95  # of a task's slice, in its last event

VALUE_MAX: Final = 200  # characters of a store value in an argument

DOMAIN_EVENTS: Final = {
    1: "created",
    2: "shut down",
    3: "destroyed",
    4: "resumed",
    5: "gone",
}
DEAD: Final = 3
# What the loop records before a task runs.
PICKS: Final = (Event.DELIVER, Event.TIMER, Event.DRAW)
DOM0: Final = "Domain-0"  # as xl calls it; here it has no name in the store


class Group(enum.IntEnum):
    """What a thread of a process is for: the first tid of those, less PROCESS times the pid.

    Perfetto shows threads by tid, chrome://tracing by `thread_sort_index`: so the two agree.
    """

    EVENTS = 0
    STORE = 1
    BRIDGE = 2
    RING = 100
    TASK = 10_000


PROCESS: Final = 100_000


class Names:
    """Numbers of processes and threads of a file, given as they are first used.

    `flow` is that of the next request.
    """

    def __init__(self) -> None:
        self.flow = 1
        self._pids: dict[tuple[Any, ...], int] = {}
        self._tids: dict[tuple[int, Group, str | int], int] = {}
        self._used: dict[tuple[int, Group], int] = {}
        self.fresh: list[Record] = []  # metadata that is to be written

    def process(self, key: tuple[Any, ...], name: str, order: int) -> int:
        """The pid of that process."""
        pid = self._pids.get(key)
        if pid is None:
            pid = self._pids[key] = len(self._pids) + 1
            self._describe("process", {"pid": pid}, name, order)
        return pid

    def thread(self, pid: int, group: Group, key: str | int, name: str) -> Record:
        """`pid` and `tid` of that thread; `key` is its own among those of its group."""
        tid = self._tids.get((pid, group, key))
        if tid is None:
            order = group + self._used.get((pid, group), 0)
            self._used[pid, group] = order - group + 1
            tid = self._tids[pid, group, key] = pid * PROCESS + order
            self._describe("thread", {"pid": pid, "tid": tid}, name, order)
        return {"pid": pid, "tid": tid}

    def _describe(self, what: str, whose: Record, name: str, order: int) -> None:
        self.fresh += [
            {"ph": "M", "name": f"{what}_name", **whose, "args": {"name": name}},
            {"ph": "M", "name": f"{what}_sort_index", **whose, "args": {"sort_index": order}},
        ]


class Timeline:
    """One tape from `start` (microseconds) on; `end` is where it ended."""

    def __init__(self, tape: Tape, names: Names, start: int = 0, prefix: str = "") -> None:
        self.tape = tape
        self.names = names
        self.start = start
        self.end = start - 1
        self.prefix = prefix
        self._domains: dict[tuple[int, int], int] = {}  # places in Tape.domains
        self._running: Record | None = None  # the thread of the task that runs
        self._owner = (0, 0)  # machine and domid of that task
        self._now = 0
        self._choice = ""
        self._frame = 0  # the next of Tape.frames
        self._has_machines = any(domain.machine for domain in tape.domains)
        self.rings = RingTracks(self, Group.RING)

    def records(self) -> Iterator[Record]:
        """All of them; each `ts` is that of the one before, or later."""
        for record in self._records():
            yield from self._fresh()
            yield record

    def _fresh(self) -> Iterator[Record]:
        """Metadata of what is used for the first time."""
        fresh, self.names.fresh = self.names.fresh, []
        yield from fresh

    def _records(self) -> Iterator[Record]:
        tape = self.tape
        requests = iter(tape.requests)
        request = next(requests, None)
        born = 0
        for moment, event in enumerate(tape.events):
            while born < len(tape.domains) and tape.domains[born].first <= moment:
                domain = tape.domains[born]
                self._domains[domain.machine, domain.domid] = born
                born += 1
            # No time passes in a task.
            if event.event in PICKS or event.time_ns != self._now:
                yield from self._stop()
            self._now = event.time_ns
            self.end = max(self.end + 1, self.start + event.time_ns // 1000)
            args = {"moment": moment, "time_ns": event.time_ns}
            if event.event is Event.STORE:
                while request is not None and request.moment < moment:
                    request = next(requests, None)
                if request is not None and request.moment == moment:
                    yield self._request(request, args)
            else:
                yield from self._event(event, args)
            yield from self._frames(moment, args)
            yield from self.rings.at(moment, args)
            if event.event is Event.DOMAIN and event.a == DEAD:
                yield from self.rings.close(event.machine, event.domid)
        yield from self._stop()
        self.end += 1
        yield from self.rings.close()

    def _frames(self, moment: int, args: Record) -> Iterator[Record]:
        """What crossed bridges at a moment, by port and direction."""
        frames = self.tape.frames
        crossed: dict[tuple[int, str, str], list[int]] = {}
        while self._frame < len(frames) and frames[self._frame].moment <= moment:
            frame = frames[self._frame]
            way = f"{'from' if frame.is_in else 'to'} {frame.port}"
            crossed.setdefault((frame.machine, frame.bridge, way), []).append(len(frame.data))
            self._frame += 1
        for (machine, bridge, way), sizes in crossed.items():
            thread = self.thread(machine, 0, f"bridge {bridge}", Group.BRIDGE)
            name = f"{counted(len(sizes), 'frame')} {way}"
            yield self.instant(thread, name, {**args, "bytes": sum(sizes)}, "frame")

    # processes and threads

    def process(self, machine: int, domid: int) -> int:
        """The pid of a domain: of the one that has that domid now."""
        place = self._domains.get((machine, domid))
        name = "" if place is None else self.tape.domains[place].name
        where = f"m{machine} " if self._has_machines else ""
        name = name or ("" if domid else DOM0)
        label = f"{self.prefix}{where}d{domid} {name}".rstrip()
        order = machine << 16 | domid
        return self.names.process((self.prefix, machine, domid, place), label, order)

    def thread(self, machine: int, domid: int, name: str, group: Group) -> Record:
        """A thread of a domain by its name."""
        return self.names.thread(self.process(machine, domid), group, name, name)

    def _task(self, event: TapeEvent) -> Record:
        task = self.tape.tasks.get((event.machine, event.a))
        name = (task.name if task is not None else "") or f"task {event.a}"
        pid = self.process(event.machine, event.domid)
        return self.names.thread(pid, Group.TASK, event.a, name)

    # records

    def instant(self, thread: Record, name: str, args: Record, cat: str) -> Record:
        """Of no length, on a thread."""
        return {"ph": "i", "s": "t", "ts": self.end, "name": name, "cat": cat, **thread,
                "args": args}  # fmt: skip

    def _stop(self) -> Iterator[Record]:
        if self._running is not None:
            yield {"ph": "E", "ts": self.end + ENDS, **self._running}
            self._running = None

    def _event(self, event: TapeEvent, args: Record) -> Iterator[Record]:
        kind, moment = event.event, args["moment"]
        if kind is Event.DRAW:
            self._choice = f"{event.b} of {event.a}"
        elif kind is Event.DELIVER:
            if self._choice:
                args = {**args, "choice": self._choice}
                self._choice = ""
            self._running = thread = self._task(event)
            self._owner = event.machine, event.domid
            name = self.tape.text(moment).removeprefix("runs ")
            yield {"ph": "B", "ts": self.end, "name": name, "cat": "task", **thread, "args": args}
        elif kind is Event.TIMER:
            yield self.instant(self._task(event), "timer", args, "timer")
        elif kind is Event.SEND:
            running = self._running
            if running is None or self._owner != (event.machine, event.domid):
                running = self._events(event)
            name = f"sends on port {event.a}"
            yield self.instant(running, name, {**args, "port": event.a}, "event")
        elif kind is Event.DOMAIN:
            words = DOMAIN_EVENTS.get(event.a, event.text)
            yield self.instant(self._events(event), words, {**args, "code": event.b}, "domain")
        elif kind is Event.NOTE:
            yield self.instant(self._events(event), self.tape.text(moment), args, "note")
        elif kind is not Event.PUBLISH:
            yield self.instant(self._events(event), event.text, args, "other")

    def _events(self, event: TapeEvent) -> Record:
        return self.thread(event.machine, event.domid, "events", Group.EVENTS)

    def _request(self, request: StoreRequest, args: Record) -> Record:
        thread = self.thread(request.machine, request.domid, "store requests", Group.STORE)
        name = XS(request.op).name if request.op in list(XS) else f"type {request.op}"
        path, _, rest = request.payload.partition(b"\0")
        args = {**args, "path": _printable(path), "value": _printable(rest.rstrip(b"\0"))}
        if request.tx_id:
            args["transaction"] = request.tx_id
        if request.error is not None:
            args["error"] = request.error
            name += f" {request.error}"
        return self.instant(thread, f"{name} {args['path']}".rstrip(), args, "store")


def _printable(data: bytes) -> str:
    return data.decode("ascii", "backslashreplace").replace("\0", " ")[:VALUE_MAX]
