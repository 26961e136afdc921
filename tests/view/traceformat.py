"""The Trace Event Format (catapult's published document), as far as a reader relies on it.

`check` refuses a file that Perfetto or chrome://tracing would read only in part.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

Record = dict[str, Any]

# ph: the keys that it must have besides ph, and those that it may have.
KEYS: dict[str, tuple[set[str], set[str]]] = {
    "B": ({"ts", "name", "cat", "pid", "tid", "args"}, set()),
    "E": ({"ts", "pid", "tid"}, set()),
    "X": ({"ts", "dur", "name", "cat", "pid", "tid", "args"}, set()),
    "i": ({"ts", "name", "cat", "pid", "tid", "args", "s"}, set()),
    "C": ({"ts", "name", "pid", "args"}, set()),
    "b": ({"ts", "name", "cat", "id2", "pid", "tid", "args"}, set()),
    "e": ({"ts", "name", "cat", "id2", "pid", "tid", "args"}, set()),
    "s": ({"ts", "name", "cat", "id", "pid", "tid"}, set()),
    "t": ({"ts", "name", "cat", "id", "pid", "tid"}, set()),
    "f": ({"ts", "name", "cat", "id", "pid", "tid", "bp"}, set()),
    "M": ({"name", "pid", "args"}, {"tid"}),
}
METADATA = {
    "process_name": "name",
    "process_sort_index": "sort_index",
    "thread_name": "name",
    "thread_sort_index": "sort_index",
}


def check(document: Record) -> None:
    """Raises AssertionError."""
    assert set(document) == {"displayTimeUnit", "otherData", "traceEvents"}
    assert document["displayTimeUnit"] == "ns"
    records = document["traceEvents"]
    for record in records:
        must, may = KEYS[record["ph"]]
        keys = set(record) - {"ph"}
        assert must <= keys <= must | may, record
    check_names(records)
    check_order(records)
    check_stacks(records)
    check_asyncs(records)
    check_flows(records)
    check_counters(records)


def check_names(records: list[Record]) -> None:
    """Each process and thread is named, once, before it is used; no tid is a pid or in two."""
    named: set[tuple[int, int | None]] = set()
    for record in records:
        where = record["pid"], record.get("tid")
        if record["ph"] != "M":
            assert (record["pid"], None) in named, record
            assert record["ph"] == "C" or where in named, record
            continue
        kind = METADATA[record["name"]]
        assert set(record["args"]) == {kind}
        if kind == "name":
            assert record["args"]["name"]
            assert where not in named, record
            named.add(where)
    pids = {pid for pid, _ in named}
    tids = [tid for _, tid in named if tid is not None]
    assert len(set(tids)) == len(tids)
    assert not pids & set(tids)


def check_order(records: list[Record]) -> None:
    """Times never go back."""
    last = 0.0
    for record in records:
        if record["ph"] != "M":
            assert record["ts"] >= last, record
            last = record["ts"]


def check_axis(records: list[Record]) -> None:
    """The events of one tape: none shares a time with another, and none is before its own."""
    places: dict[int, tuple[int, int]] = {}
    for record in records:
        args = record.get("args", {})
        if "moment" in args:
            assert record["ts"] >= args["time_ns"] // 1000
            moment = args["moment"], args["time_ns"]
            assert places.setdefault(int(record["ts"]), moment) == moment, record
    order = list(places.values())
    assert order == sorted(order)
    assert len({moment for moment, _ in order}) == len(order)


def check_stacks(records: list[Record]) -> None:
    """B and E of a thread are balanced, and X on one thread do not overlap."""
    depth: Counter[tuple[int, int]] = Counter()
    until: dict[tuple[int, int], float] = {}
    for record in records:
        if record["ph"] in ("B", "E"):
            where = record["pid"], record["tid"]
            depth[where] += 1 if record["ph"] == "B" else -1
            assert depth[where] in (0, 1), record
        elif record["ph"] == "X":
            where = record["pid"], record["tid"]
            assert record["ts"] >= until.get(where, 0), record
            until[where] = record["ts"] + record["dur"]
    assert not +depth


def check_asyncs(records: list[Record]) -> None:
    """One b and one e in turn for each process, category and id."""
    open_: dict[tuple[int, str, str], Record] = {}
    for record in records:
        if record["ph"] not in ("b", "e"):
            continue
        assert set(record["id2"]) == {"local"}
        key = record["pid"], record["cat"], record["id2"]["local"]
        if record["ph"] == "b":
            assert key not in open_, record
            open_[key] = record
        else:
            began = open_.pop(key)
            assert [began[key] for key in ("name", "pid", "tid")] == [
                record[key] for key in ("name", "pid", "tid")
            ]
    assert open_ == {}


def check_flows(records: list[Record]) -> None:
    """A flow starts once, steps at most once, ends at most once, each within an X of its thread."""
    stages: dict[int, str] = {}
    slices: dict[tuple[int, int], tuple[float, float]] = {}
    for record in records:
        if record["ph"] == "X":
            end = record["ts"] + record["dur"]
            slices[record["pid"], record["tid"]] = (record["ts"], end)
        elif record["ph"] in "stf":
            start, end = slices[record["pid"], record["tid"]]
            assert start <= record["ts"] <= end, record
            before = stages.get(record["id"], "")
            assert before + record["ph"] in ("s", "st", "sf", "stf"), record
            stages[record["id"]] = before + record["ph"]
            assert record["ph"] != "f" or record["bp"] == "e"


def check_counters(records: list[Record]) -> None:
    """Never negative, and what is in flight and what is free are the ring."""
    sizes: dict[tuple[int, str], int] = {}
    for record in records:
        if record["ph"] == "C":
            values = record["args"]
            assert min(values.values()) >= 0, record
            size = values["in flight"] + values["free"]
            assert sizes.setdefault((record["pid"], record["name"]), size) == size
            assert max(values.values()) <= size, record
