"""Rings on a timeline: publications are slices, requests flows, and their number a counter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from xenpv.view.flights import Flight, Flights
from xenpv.view.rings import KINDS, UNKNOWN
from xenpv.view.tape import Publication, TapedRing
from xenpv.view.words import counted

if TYPE_CHECKING:
    from xenpv.view.timeline import Group, Timeline

Record = dict[str, Any]

SLICE_US: Final = 0.4
TAKES: Final = 0.5
U32: Final = 0xFFFF_FFFF


class _Track:
    """One ring with its requests in flight, and how far its ends have come."""

    def __init__(self, ring: TapedRing) -> None:
        self.ring = ring
        self.flights = Flights(ring)
        self.untaken: dict[int, Flight] = {}  # requests that the backend was not seen to take
        self.waits = KINDS.get(ring.kind, UNKNOWN).wait  # its requests are not to be taken soon
        self.rsp_prod = 0
        self.cons = (-1, -1)

    @property
    def label(self) -> str:
        """`netif_tx vif/0 q0`: short, for the margin of a timeline."""
        ring = self.ring
        device = ring.device.removeprefix("device/") or f"at pfn {ring.pfn:#x}"
        return f"{ring.kind} {device} q{ring.queue}"

    def untaken_responses(self) -> int:
        """0 where the frontend has no handle to tell."""
        behind = self.rsp_prod - self.cons[1] & U32
        return behind if self.cons[1] >= 0 and behind <= self.ring.size else 0


class RingTracks:
    """The rings of a timeline. Their records lie in the microsecond of an event."""

    def __init__(self, timeline: Timeline, group: Group) -> None:
        self._timeline = timeline
        self._group = group
        self._names = timeline.names
        self._tracks: dict[int, _Track] = {}
        self._places: dict[tuple[int, int, str], _Track] = {}  # the newest of each
        tape = timeline.tape
        self._publications, self._consumptions = iter(tape.publications), iter(tape.consumptions)
        self._next_publication = next(self._publications, None)
        self._next_consumption = next(self._consumptions, None)

    def at(self, moment: int, args: Record) -> Iterator[Record]:
        """What was published at a moment, and what was taken until the next."""
        while self._next_publication is not None and self._next_publication.moment <= moment:
            publication = self._next_publication
            self._next_publication = next(self._publications, None)
            yield from self._replaces(publication.ring)
            track = self._track(publication.ring)
            if publication.is_response:
                yield from self._responses(track, publication, args)
            else:
                yield from self._requests(track, publication, args)
            track.cons = publication.req_cons, publication.rsp_cons
            yield from self._counters(track, 0)
        while self._next_consumption is not None and self._next_consumption.moment <= moment:
            consumption = self._next_consumption
            self._next_consumption = next(self._consumptions, None)
            track = self._track(consumption.ring)
            cons = consumption.req_cons, consumption.rsp_cons
            yield from self._takes(track, cons, args)
            yield from self._counters(track, TAKES)

    def close(self, machine: int = -1, domid: int = -1) -> Iterator[Record]:
        """End what is in flight on the rings of a domain that is gone; of all without one."""
        for track in self._tracks.values():
            ring = track.ring
            if machine in (-1, ring.machine) and domid in (-1, ring.domid):
                yield from self._abandon(track)

    def _replaces(self, number: int) -> Iterator[Record]:
        """End what is in flight on the ring whose place another one has now."""
        if number in self._tracks:
            return
        new = self._track(number)
        place = new.ring.machine, new.ring.domid, new.label
        old = self._places.get(place)
        self._places[place] = new
        if old is not None:
            yield from self._abandon(old)

    def _abandon(self, track: _Track) -> Iterator[Record]:
        for flight in list(track.flights.open.values()):
            yield self._end(track, flight, {"unanswered": True})
        track.flights = Flights(track.ring)
        track.untaken.clear()

    def _track(self, number: int) -> _Track:
        track = self._tracks.get(number)
        if track is None:
            track = self._tracks[number] = _Track(self._timeline.tape.rings[number])
        return track

    # processes, threads, records

    def _thread(self, track: _Track, *, back: bool) -> Record:
        ring = track.ring
        if back and ring.back_domid >= 0:
            name = f"d{ring.domid} {track.label}"
            return self._timeline.thread(ring.machine, ring.back_domid, name, self._group)
        return self._timeline.thread(ring.machine, ring.domid, track.label, self._group)

    def _slice(self, thread: Record, name: str, args: Record, at: float = 0) -> Record:
        ts = self._timeline.end + at
        return {"ph": "X", "ts": ts, "dur": SLICE_US, "name": name, "cat": "ring", **thread,
                "args": args}  # fmt: skip

    def _flow(self, ph: str, flight: Flight, thread: Record, at: float = 0) -> Record:
        record = {"ph": ph, "ts": self._timeline.end + at, "name": flight.name, "cat": "request",
                  "id": flight.number, **thread}  # fmt: skip
        return {**record, "bp": "e"} if ph == "f" else record

    def _async(self, ph: str, track: _Track, flight: Flight, args: Record) -> Record:
        lane = f"{track.ring.number}.{flight.slot}"  # one at a time is in a slot
        return {"ph": ph, "ts": self._timeline.end, "name": flight.name,
                "cat": f"in flight {track.label}", "id2": {"local": lane},
                **self._thread(track, back=False), "args": args}  # fmt: skip

    def _end(self, track: _Track, flight: Flight, args: Record) -> Record:
        return self._async("e", track, flight, args)

    def _counters(self, track: _Track, at: float) -> Iterator[Record]:
        ring, flights = track.ring, track.flights
        count = len(flights.open)
        values = {"in flight": count, "free": ring.size - count}
        if not track.waits:
            values["requests not taken"] = len(track.untaken)
        values["responses not taken"] = track.untaken_responses()
        pid = self._thread(track, back=False)["pid"]
        yield {"ph": "C", "ts": self._timeline.end + at, "name": track.label, "pid": pid,
               "args": values}  # fmt: skip

    # what happens on a ring

    def _requests(self, track: _Track, publication: Publication, args: Record) -> Iterator[Record]:
        count = len(publication.slots)
        thread = self._thread(track, back=False)
        more = {**args, **_indices(publication), "ring": track.ring.number}
        yield self._slice(thread, counted(count, "request"), more)
        found = track.flights.requests(publication, self._names.flow)
        self._names.flow += count
        for flight, is_overwritten in found:
            if is_overwritten:
                track.untaken.pop(flight.index, None)
                yield self._end(track, flight, {"overwritten": True})
                continue
            if not track.waits:
                track.untaken[flight.index] = flight
            yield self._async("b", track, flight, {**args, "index": flight.index, **flight.args})
            yield self._flow("s", flight, thread)

    def _responses(self, track: _Track, publication: Publication, args: Record) -> Iterator[Record]:
        thread = self._thread(track, back=True)
        more = {**args, **_indices(publication), "ring": track.ring.number}
        yield self._slice(thread, counted(len(publication.slots), "response"), more)
        track.rsp_prod = publication.rsp_prod
        for flight, response in track.flights.responses(publication):
            if flight is not None:
                track.untaken.pop(flight.index, None)
                yield self._flow("f", flight, thread)
                named = {f"response.{name}": value for name, value in response.items()}
                yield self._end(track, flight, {**args, **named})

    def _takes(self, track: _Track, cons: tuple[int, int], args: Record) -> Iterator[Record]:
        """Requests that the backend took, responses that the frontend took."""
        before, track.cons = track.cons, cons
        taken = [
            flight
            for index, flight in track.untaken.items()
            if cons[0] >= 0 and index - cons[0] & U32 > track.ring.size
        ]
        if taken:
            thread = self._thread(track, back=True)
            more = {**args, "req_cons": cons[0]}
            yield self._slice(thread, f"takes {counted(len(taken), 'request')}", more, TAKES)
            for flight in taken:
                flight.taken = True
                del track.untaken[flight.index]
                yield self._flow("t", flight, thread, TAKES)
        if cons[1] != before[1]:
            thread = self._thread(track, back=False)
            count = cons[1] - max(0, before[1]) & U32
            more = {**args, "rsp_cons": cons[1]}
            yield self._slice(thread, f"takes {counted(count, 'response')}", more, TAKES)


def _indices(publication: Publication) -> Record:
    return {
        name: getattr(publication, name)
        for name in ("req_prod", "req_event", "rsp_prod", "rsp_event")
    }
