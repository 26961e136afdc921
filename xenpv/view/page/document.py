"""A tape as the document that the page reads: columns, tables of names, strings once each.

`js/tape.js` is the reader; the keys are explained there. All numbers of a column are unsigned
LEB128 (columns.varints), those marked D differences (columns.deltas).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from xenpv.abi.xs import XS
from xenpv.view.page.columns import (
    Interned,
    column,
    deltas,
    printable,
    sparse,
    text,
    zigzag,
)
from xenpv.view.page.packets import summary
from xenpv.view.page.slots import Reader, Structs
from xenpv.view.rings import u32
from xenpv.view.tape import Consumption, Publication, StoreChange, Tape, TapedFrame, TapedRing
from xenpv.xen.trace import EVENTS, Event

VERSION: Final = 1
# Frames are whole while they are few; of those after that the head is kept.
FRAMES_WHOLE_BYTES: Final = 2 << 20
FRAME_HEAD_BYTES: Final = 96
TEXT_MAX: Final = 4096
CONSUMERS: Final = ("req_cons", "rsp_cons")
WORDS: Final = ("req_prod", "req_event", "rsp_prod", "rsp_event")


def of_tape(tape: Tape) -> dict[str, Any]:
    """What the page shows of a tape; JSON."""
    strings = Interned()
    found = {
        "version": VERSION,
        "lost": tape.lost,
        "kinds": [[int(event), Event(event).name, EVENTS[event][1]] for event in EVENTS],
        "ops": {str(int(op)): op.name for op in XS},
        "events": _events(tape),
        "domains": [
            [one.machine, one.domid, printable(one.name), one.first, one.last]
            for one in tape.domains
        ],
        "tasks": [
            [one.machine, one.domid, one.number, printable(one.name)] for one in tape.tasks.values()
        ],
        "notes": {str(moment): printable(text) for moment, text in tape.notes.items()},
        "rings": [_ring(ring) for ring in tape.rings],
        "publications": _publications(tape),
        "consumed": _consumed(tape),
        "requests": _requests(tape, strings),
        "changes": _changes(tape, strings),
        "frames": _frames(tape, strings),
    }
    found["strings"] = strings.values
    return found


def _events(tape: Tape) -> dict[str, Any]:
    """`codes`: (machine, domid, kind) of each number in `code`. Operands that are checksums
    of what the page has in words are left out.
    """
    codes = Interned()
    said = {request.moment for request in tape.requests}
    code, first, second = [], [], []
    jumps: list[int] = []
    times: list[int] = []
    now = -1
    for moment, event in enumerate(tape.events):
        code.append(codes((event.machine, event.domid, int(event.event))) - 1)
        a, b = event.a, event.b
        if event.event == Event.STORE and moment in said:
            b = 0
        if moment in tape.notes:
            a = 0
        first.append(a)
        second.append(b)
        if event.time_ns != now:
            now = event.time_ns
            jumps.append(moment)
            times.append(now)
    return {
        "count": len(code),
        "codes": codes.values,
        "code": column(code),
        "a": column(first),
        "b": column(second),
        "jump": column(deltas(jumps)),
        "time": column(deltas(times)),
    }


def _ring(ring: TapedRing) -> list[Any]:
    return [
        ring.machine,
        ring.domid,
        ring.back_domid,
        ring.kind,
        printable(ring.device),
        ring.queue,
        ring.size,
        ring.entry_size,
        ring.first,
        ring.pfn,
        ring.request,
        ring.response,
    ]


def _publications(tape: Tape) -> dict[str, Any]:
    """`which` is ring * 2 + is_response; `skip` is how far the first index lies behind what that
    end had published, 0 unless it jumped. D from the ring's last publication: the words.
    `slots` holds the bytes of each: columns.sparse against what was published in that entry
    before, zeros at first.
    """
    structs = Structs()
    readers = [Reader(ring, structs) for ring in tape.rings]
    entries: dict[tuple[int, int], bytes] = {}
    before: dict[tuple[int, str], int] = {}
    ends: dict[int, int] = {}
    columns: dict[str, list[int]] = {name: [] for name in ("which", "count", "skip", *WORDS)}
    kinds: list[int] = []
    data = bytearray()
    for one in tape.publications:
        ring = tape.rings[one.ring]
        which = one.ring << 1 | one.is_response
        columns["which"].append(which)
        columns["count"].append(len(one.slots))
        columns["skip"].append(u32(one.first - ends.get(which, 0)))
        ends[which] = one.first + len(one.slots)
        for name in WORDS:
            value = getattr(one, name)
            columns[name].append(zigzag(value - before.get((one.ring, name), 0)))
            before[one.ring, name] = value
        kinds += readers[one.ring].numbers(one)
        data += _entries(one, ring, entries)
    return {
        "moment": column(deltas(one.moment for one in tape.publications)),
        **{name: column(values) for name, values in columns.items()},
        "struct": column(kinds),
        "slots": text(bytes(data)),
        "structs": structs.document(),
        "enums": structs.enum_document(),
    }


def _entries(
    publication: Publication, ring: TapedRing, entries: dict[tuple[int, int], bytes]
) -> bytes:
    """The slots of one publication, and `entries` as they are then."""
    out = bytearray()
    for at, slot in enumerate(publication.slots):
        key = (ring.number, (publication.first + at) % ring.size)
        whole = slot[: ring.entry_size].ljust(ring.entry_size, b"\0")
        out += sparse(whole, entries.get(key) or bytes(ring.entry_size))
        entries[key] = whole
    return bytes(out)


def _consumed(tape: Tape) -> dict[str, Any]:
    """How far both ends of each ring had taken what is on it: D from the ring's entry before,
    one for each change. -1 where an end has no handle of the kernel's.
    """
    taken: list[Publication | Consumption] = [*tape.publications, *tape.consumptions]
    taken.sort(key=lambda one: one.moment)  # stable: what was seen at a publication comes first
    before: dict[int, tuple[int, int]] = {}
    columns: dict[str, list[int]] = {name: [] for name in ("moment", "ring", *CONSUMERS)}
    for one in taken:
        last = before.get(one.ring, (0, 0))
        now = (one.req_cons, one.rsp_cons)
        if now != last or one.ring not in before:
            columns["moment"].append(one.moment)
            columns["ring"].append(one.ring)
            for name, new, old in zip(CONSUMERS, now, last, strict=True):
                columns[name].append(zigzag(new - old))
            before[one.ring] = now
    columns["moment"] = deltas(columns["moment"])
    return {name: column(values) for name, values in columns.items()}


def _requests(tape: Tape, strings: Interned) -> dict[str, Any]:
    requests = tape.requests
    return {
        "moment": column(deltas(one.moment for one in requests)),
        "domid": column(one.domid for one in requests),
        "op": column(one.op for one in requests),
        "tx": column(one.tx_id for one in requests),
        "payload": column(strings(_payload(one.payload)) for one in requests),
        "error": column(strings(one.error) if one.error else 0 for one in requests),
    }


def _payload(payload: bytes) -> str:
    """The strings of a request; NUL ends or parts them (io/xs_wire.h)."""
    parts = payload[:TEXT_MAX].removesuffix(b"\0").split(b"\0")
    return " ".join(map(printable, parts)) + _cut(payload)


def _cut(value: bytes) -> str:
    return f" (and {len(value) - TEXT_MAX} bytes)" if len(value) > TEXT_MAX else ""


def _changes(tape: Tape, strings: Interned) -> dict[str, Any]:
    """`value` 0: the node went. With several machines their number is the top of a path."""
    changes = tape.changes
    several = any(one.machine for one in changes)

    def place(one: StoreChange) -> str:
        return f"/machine {one.machine}{printable(one.path)}" if several else printable(one.path)

    return {
        "moment": column(deltas(one.moment for one in changes)),
        "path": column(strings(place(one)) for one in changes),
        "value": column(
            0 if one.value is None else strings(printable(one.value[:TEXT_MAX]) + _cut(one.value))
            for one in changes
        ),
        "perms": column(strings(" ".join(map(printable, one.perms))) for one in changes),
    }


def _frames(tape: Tape, strings: Interned) -> dict[str, Any]:
    """`data` numbers the different frames; `size` is what each had, `kept` what is here."""
    frames = tape.frames
    known = Interned()
    data = [known(one.data) - 1 for one in frames]
    whole: Sequence[bytes] = known.values
    kept = list(_kept(whole))
    return {
        "moment": column(deltas(one.moment for one in frames)),
        "time": column(deltas(one.time_ns for one in frames)),
        "bridge": column(strings(_bridge(one)) for one in frames),
        "port": column(strings(printable(one.port)) for one in frames),
        "in": column(int(one.is_in) for one in frames),
        "data": column(data),
        "size": column(len(one) for one in whole),
        "kept": column(len(one) for one in kept),
        "summary": column(strings(printable(summary(one))) for one in whole),
        "bytes": text(b"".join(kept)),
    }


def _bridge(frame: TapedFrame) -> str:
    machine = f"m{frame.machine} " if frame.machine else ""
    return machine + printable(frame.bridge)


def _kept(frames: Iterable[bytes]) -> Iterable[bytes]:
    left = FRAMES_WHOLE_BYTES
    for frame in frames:
        shown = frame if len(frame) <= left else frame[:FRAME_HEAD_BYTES]
        left -= len(shown)
        yield shown
