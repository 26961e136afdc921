"""A tape as trace events: the format holds, and nothing is lost or made up."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import attrs
import pytest

from tests.view.traceformat import check, check_axis
from tests.view.worlds import WORLDS
from xenpv import Platform
from xenpv.view import perfetto
from xenpv.view.recording import recording
from xenpv.view.rings import rings
from xenpv.view.tape import (
    Consumption,
    Publication,
    StoreRequest,
    Tape,
    TapedDomain,
    TapedRing,
    TapedTask,
    TapeEvent,
)
from xenpv.xen.trace import Event

U32 = 0xFFFFFFFF
Record = dict[str, Any]


def parsed(tapes: list[Tape]) -> Record:
    found: Record = json.loads(perfetto.text(tapes))
    return found


def check_conserved(tape: Tape, records: list[Record]) -> None:
    """Every event of the tape has its record, every request a start, and an end or none."""
    phases = Counter(record["ph"] for record in records)
    events = Counter(event.event for event in tape.events)
    assert phases["B"] == events[Event.DELIVER]
    moments = [r["args"]["moment"] for r in records if r["ph"] in "BiX" and "moment" in r["args"]]
    shown = set(moments)
    for moment, event in enumerate(tape.events):
        if event.event not in (Event.DRAW, Event.PUBLISH):
            assert moment in shown, (moment, event)
    published = Counter[bool]()
    for publication in tape.publications:
        published[publication.is_response] += len(publication.slots)
    assert phases["s"] == phases["b"] == phases["e"] == published[False]
    assert phases["f"] == published[True]  # no response answers nothing
    unanswered = sum("unanswered" in record["args"] for record in records if record["ph"] == "e")
    assert phases["s"] - phases["f"] == unanswered
    assert not any("overwritten" in record["args"] for record in records if record["ph"] == "e")
    choices = [r for r in records if r["ph"] == "B" and "choice" in r["args"]]
    assert len(choices) == events[Event.DRAW]


def check_counted(tape: Tape, xen: Platform, records: list[Record]) -> None:
    """What the ends of the living rings have counted: indices that started at 0."""
    last = {(r["pid"], r["name"]): r["args"] for r in records if r["ph"] == "C"}
    values = list(last.values())
    for ring in rings(xen.hypervisor):
        if ring.front is None or ring.back is None:
            continue  # an end has let go of it
        number = [
            one.number
            for one in tape.rings
            if (one.machine, one.domid, one.pfn)
            == (xen.hypervisor.number, ring.domid, ring.front.pfns[0])
        ][-1:]
        sent, answered = (
            sum(
                len(one.slots)
                for one in tape.publications
                if [one.ring] == number and one.is_response is is_response
            )
            for is_response in (False, True)
        )
        assert (sent, answered) == (ring.front.index, ring.back.index)
        if number:
            in_flight = ring.front.index - ring.back.index & U32
            assert any(
                one["in flight"] == in_flight and one["in flight"] + one["free"] == ring.size
                for one in values
            )


@pytest.mark.parametrize("world", WORLDS)
def test_a_trace_of_any_world(world: str) -> None:
    with recording() as tapes:
        for platforms in WORLDS[world]():
            document = parsed(tapes)
            check(document)
            check_axis(document["traceEvents"])
            check_conserved(tapes[0], document["traceEvents"])
            if world != "migration":
                check_counted(tapes[0], platforms[0], document["traceEvents"])


# literally


def small_tape() -> Tape:
    """A guest wakes, publishes a read, and notifies; the backend takes and answers it."""
    tape = Tape()
    events = [
        (0, 1, Event.DELIVER, 5, 0),
        (0, 1, Event.PUBLISH, 0x104, 1),
        (0, 1, Event.SEND, 3, 0),
        (2_500_000, 0, Event.TIMER, 2, 0),
        (2_500_000, 0, Event.DELIVER, 2, 0),
        (2_500_000, 0, Event.PUBLISH, 0x80, 1),
        (2_500_000, 1, Event.STORE, 2, 0),
    ]
    for time_ns, domid, event, a, b in events:
        tape.events.append(TapeEvent(time_ns, 0, domid, event, a, b))
    tape.domains += [TapedDomain(0, 0, "", 0, None), TapedDomain(0, 1, "web", 0, None)]
    tape.tasks[0, 5] = TapedTask(0, 1, 5, "upcall 0")
    tape.tasks[0, 2] = TapedTask(0, 0, 2, "blkback 1.51712")
    tape.rings.append(
        TapedRing(
            number=0, machine=0, domid=1, back_domid=0, kind="blkif", device="device/vbd/51712",
            queue=0, size=32, entry_size=112, request="blkif_request", response="blkif_response",
            first=1, pfn=0x104,
        )
    )  # fmt: skip
    read = bytes([0, 1, 0, 0, 0, 0, 0, 0, 7]).ljust(16, b"\0") + bytes([40]).ljust(8, b"\0")
    read = (read + bytes([9, 0, 0, 0, 0, 7])).ljust(112, b"\0")
    answer = bytes([7]).ljust(8, b"\0") + bytes([0, 0, 0xFF, 0xFF])
    tape.publications += [
        Publication(1, 0, False, 0, (read,), 1, 1, 0, 1, 0, 0),
        Publication(5, 0, True, 0, (answer.ljust(112, b"\0"),), 1, 1, 1, 1, 1, 0),
    ]
    tape.consumptions.append(Consumption(4, 0, 1, 0))
    tape.requests.append(StoreRequest(6, 1, 2, 0, b"name\0", "ENOENT"))
    return tape


SMALL = """\
{"displayTimeUnit":"ns",
"otherData":{"seed": 7},
"traceEvents":[
{"ph":"M","name":"process_name","pid":1,"args":{"name":"d1 web"}},
{"ph":"M","name":"process_sort_index","pid":1,"args":{"sort_index":1}},
{"ph":"M","name":"thread_name","pid":1,"tid":110000,"args":{"name":"upcall 0"}},
{"ph":"M","name":"thread_sort_index","pid":1,"tid":110000,"args":{"sort_index":10000}},
{"ph":"B","ts":0,"name":"upcall 0","cat":"task","pid":1,"tid":110000,"args":{"moment":0,"time_ns":0}},
{"ph":"M","name":"thread_name","pid":1,"tid":100100,"args":{"name":"blkif vbd/51712 q0"}},
{"ph":"M","name":"thread_sort_index","pid":1,"tid":100100,"args":{"sort_index":100}},
{"ph":"X","ts":1,"dur":0.4,"name":"1 request","cat":"ring","pid":1,"tid":100100,"args":{"moment":1,"time_ns":0,"req_prod":1,"req_event":1,"rsp_prod":0,"rsp_event":1,"ring":0}},
{"ph":"b","ts":1,"name":"BLKIF_OP_READ","cat":"in flight blkif vbd/51712 q0","id2":{"local":"0.0"},"pid":1,"tid":100100,"args":{"moment":1,"time_ns":0,"index":0,"operation":"BLKIF_OP_READ","nr_segments":1,"handle":0,"id":7,"sector_number":40,"seg[0].gref":9,"seg[0].first_sect":0,"seg[0].last_sect":7}},
{"ph":"s","ts":1,"name":"BLKIF_OP_READ","cat":"request","id":1,"pid":1,"tid":100100},
{"ph":"C","ts":1,"name":"blkif vbd/51712 q0","pid":1,"args":{"in flight":1,"free":31,"requests not taken":1,"responses not taken":0}},
{"ph":"i","s":"t","ts":2,"name":"sends on port 3","cat":"event","pid":1,"tid":110000,"args":{"moment":2,"time_ns":0,"port":3}},
{"ph":"E","ts":2.95,"pid":1,"tid":110000},
{"ph":"M","name":"process_name","pid":2,"args":{"name":"d0 Domain-0"}},
{"ph":"M","name":"process_sort_index","pid":2,"args":{"sort_index":0}},
{"ph":"M","name":"thread_name","pid":2,"tid":210000,"args":{"name":"blkback 1.51712"}},
{"ph":"M","name":"thread_sort_index","pid":2,"tid":210000,"args":{"sort_index":10000}},
{"ph":"i","s":"t","ts":2500,"name":"timer","cat":"timer","pid":2,"tid":210000,"args":{"moment":3,"time_ns":2500000}},
{"ph":"B","ts":2501,"name":"blkback 1.51712","cat":"task","pid":2,"tid":210000,"args":{"moment":4,"time_ns":2500000}},
{"ph":"M","name":"thread_name","pid":2,"tid":200100,"args":{"name":"d1 blkif vbd/51712 q0"}},
{"ph":"M","name":"thread_sort_index","pid":2,"tid":200100,"args":{"sort_index":100}},
{"ph":"X","ts":2501.5,"dur":0.4,"name":"takes 1 request","cat":"ring","pid":2,"tid":200100,"args":{"moment":4,"time_ns":2500000,"req_cons":1}},
{"ph":"t","ts":2501.5,"name":"BLKIF_OP_READ","cat":"request","id":1,"pid":2,"tid":200100},
{"ph":"C","ts":2501.5,"name":"blkif vbd/51712 q0","pid":1,"args":{"in flight":1,"free":31,"requests not taken":0,"responses not taken":0}},
{"ph":"X","ts":2502,"dur":0.4,"name":"1 response","cat":"ring","pid":2,"tid":200100,"args":{"moment":5,"time_ns":2500000,"req_prod":1,"req_event":1,"rsp_prod":1,"rsp_event":1,"ring":0}},
{"ph":"f","ts":2502,"name":"BLKIF_OP_READ","cat":"request","id":1,"pid":2,"tid":200100,"bp":"e"},
{"ph":"e","ts":2502,"name":"BLKIF_OP_READ","cat":"in flight blkif vbd/51712 q0","id2":{"local":"0.0"},"pid":1,"tid":100100,"args":{"moment":5,"time_ns":2500000,"response.id":7,"response.operation":"BLKIF_OP_READ","response.status":"BLKIF_RSP_ERROR"}},
{"ph":"C","ts":2502,"name":"blkif vbd/51712 q0","pid":1,"args":{"in flight":0,"free":32,"requests not taken":0,"responses not taken":1}},
{"ph":"M","name":"thread_name","pid":1,"tid":100001,"args":{"name":"store requests"}},
{"ph":"M","name":"thread_sort_index","pid":1,"tid":100001,"args":{"sort_index":1}},
{"ph":"i","s":"t","ts":2503,"name":"READ ENOENT name","cat":"store","pid":1,"tid":100001,"args":{"moment":6,"time_ns":2500000,"path":"name","value":"","error":"ENOENT"}},
{"ph":"E","ts":2503.95,"pid":2,"tid":210000}
]}
"""


def test_a_small_trace_literally() -> None:
    assert perfetto.text([small_tape()], seed=7).splitlines() == SMALL.splitlines()
    check(json.loads(SMALL))


def test_tapes_follow_each_other_with_processes_of_their_own() -> None:
    document = parsed([small_tape(), small_tape()])
    check(document)
    records = document["traceEvents"]
    names = [r["args"]["name"] for r in records if r.get("name") == "process_name"]
    assert names == ["loop 1 d1 web", "loop 1 d0 Domain-0", "loop 2 d1 web", "loop 2 d0 Domain-0"]


def test_a_tape_without_events_is_a_file_without_records() -> None:
    assert parsed([Tape()])["traceEvents"] == []


# requests that get no response


def unanswered(tape: Tape, *events: tuple[int, Event, int]) -> list[float]:
    """When the request of a small tape that has no response ends, with more events after it."""
    del tape.publications[1:]
    for domid, event, a in events:
        tape.events.append(TapeEvent(2_500_000, 0, domid, event, a, 0))
    document = parsed([tape])
    check(document)
    ends = [record for record in document["traceEvents"] if record["ph"] == "e"]
    assert all(record["args"] == {"unanswered": True} for record in ends)
    return [record["ts"] for record in ends]


def test_a_request_without_a_response_ends_with_the_trace() -> None:
    assert unanswered(small_tape(), (0, Event.SEND, 1)) == [2505]


def test_a_request_without_a_response_ends_with_its_domain() -> None:
    dead = (1, Event.DOMAIN, 3)
    assert unanswered(small_tape(), dead, (0, Event.SEND, 1), (0, Event.SEND, 1)) == [2504]
    other = (0, Event.DOMAIN, 3)
    assert unanswered(small_tape(), other, (0, Event.SEND, 1), (0, Event.SEND, 1)) == [2507]


def test_a_request_without_a_response_ends_where_its_ring_is_set_up_anew() -> None:
    tape = small_tape()
    tape.rings.append(attrs.evolve(tape.rings[0], number=1, first=5))
    again = attrs.evolve(tape.publications[0], moment=5, ring=1)
    tape.publications[1:] = [again]
    document = parsed([tape])
    check(document)
    ends = [record["ts"] for record in document["traceEvents"] if record["ph"] == "e"]
    assert ends == [2502, 2504]


def test_no_time_passes_in_a_task() -> None:
    """What happens later, with no task let run for it, is the caller's of the library."""
    tape = Tape()
    tape.events += [
        TapeEvent(0, 0, 1, Event.DELIVER, 5, 0),
        TapeEvent(0, 0, 1, Event.SEND, 3, 0),
        TapeEvent(9000, 0, 1, Event.SEND, 4, 0),
    ]
    records = [record for record in parsed([tape])["traceEvents"] if record["ph"] != "M"]
    assert [(record["ph"], record["ts"]) for record in records] == [
        ("B", 0), ("i", 1), ("E", 1.95), ("i", 9)
    ]  # fmt: skip
    tids = [record["tid"] for record in records]
    assert tids[0] == tids[1] != tids[3]
