"""A tape as Chrome trace-event JSON, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

The axis: an event of the tape lies at its virtual time in microseconds, but at least one
microsecond after the event before it. So order is exact and no two events share a place; where
many share a virtual time the axis runs ahead, until time has passed that far. `time_ns` of each
argument list is the exact virtual time. What belongs to one event lies within its microsecond.

Format: the Trace Event Format of Chromium's catapult project, JSON object form.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, TextIO

from xenpv.view.tape import Tape
from xenpv.view.timeline import Names, Timeline

Record = dict[str, Any]

PAUSE_US: Final = 1000  # between two tapes of one file


def records(tapes: Sequence[Tape]) -> Iterator[Record]:
    """Every record of a file, in the order of `ts`; those of metadata have none."""
    names = Names()
    start = 0
    for number, tape in enumerate(tapes):
        prefix = f"loop {number + 1} " if len(tapes) > 1 else ""
        timeline = Timeline(tape, names, start, prefix)
        yield from timeline.records()
        start = timeline.end + PAUSE_US


def write(tapes: Sequence[Tape], file: TextIO, **about: str | int) -> None:
    """The whole file; `about` is for its `otherData`. OSError as the file raises it."""
    file.write('{"displayTimeUnit":"ns",\n"otherData":')
    file.write(json.dumps(about))
    file.write(',\n"traceEvents":[\n')
    # One for all: making it takes longer than what it does.
    encode = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode
    for number, record in enumerate(records(tapes)):
        line = encode(record)
        file.write(f",\n{line}" if number else line)
    file.write("\n]}\n")


def text(tapes: Iterable[Tape], **about: str | int) -> str:
    """The same as a string."""
    from io import StringIO

    file = StringIO()
    write(list(tapes), file, **about)
    return file.getvalue()
