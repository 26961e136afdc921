"""The journal of what came in: written, read, and what a damaged one is answered with."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpv.errors import ConfigError
from xenpv.host.journal import (
    Arrived,
    End,
    JournalReader,
    JournalTap,
    JournalWriter,
    Setup,
    Step,
)

SETUP = Setup(
    7, (JournalTap("xenbr0", False, "tap0", True), JournalTap("web.0", True, "tap1", False))
)
DIGEST = "0123456789abcdef" * 2
RECORDS = [
    Step(5), Arrived(0, (b"one", b"", b"three" * 1000)), Step(5), Arrived(1, (b"x",)),
    Step(10**18), End(DIGEST),
]  # fmt: skip


def written(records=RECORDS, setup=SETUP):
    file = io.BytesIO()
    writer = JournalWriter(file, setup)
    for record in records:
        if isinstance(record, Step):
            writer.step(*record)
        elif isinstance(record, Arrived):
            writer.arrived(*record)
        else:
            writer.end(*record)
    return file.getvalue()


def read(raw):
    reader = JournalReader(io.BytesIO(raw), "a.journal")
    return reader.setup, list(reader.records())


def test_what_was_written_is_read():
    assert read(written()) == (SETUP, RECORDS)


def test_a_disk_that_is_full_is_said_so():
    with Path("/dev/full").open("wb", buffering=0) as file, pytest.raises(ConfigError) as caught:
        JournalWriter(file, SETUP, "a.journal")
    assert str(caught.value) == "a.journal: cannot write the journal: No space left on device"


def test_half_a_record_is_an_error():
    class Half(io.BytesIO):
        def write(self, data):
            return super().write(data[: len(data) // 2])

    with pytest.raises(ConfigError, match="only a part was written"):
        JournalWriter(Half(), SETUP)


def test_the_format_is_this():
    head = b'xenpv journal 1\n{"seed": 7, "taps": []}\n'
    records = [Step(258), End(DIGEST)]
    assert written(records, Setup(7, ())) == (
        head
        + bytes.fromhex("01 0000 08000000 0201000000000000")
        + bytes.fromhex("03 0000 20000000") + DIGEST.encode()
    )  # fmt: skip


def test_a_journal_that_was_cut_short_ends_with_its_last_whole_record():
    whole = written()
    start = whole.index(b"}\n") + 2
    seen = [len(read(whole[:size])[1]) for size in range(start, len(whole) + 1)]
    assert seen == sorted(seen)
    assert (seen[0], seen[-2], seen[-1]) == (0, 5, 6)


def test_nothing_is_read_behind_the_end():
    assert read(written() + b"\xff" * 100)[1] == RECORDS


HEAD = written([])
DAMAGED = {
    "empty": (b"", "it is no journal of this version"),
    "something else": (b"\x0a\x0d\x0d\x0a" * 9, "it is no journal of this version"),
    "another version": (HEAD.replace(b"journal 1", b"journal 2"), "it is no journal of this"),
    "no setup": (HEAD[:16], "its second line"),
    "setup is no object": (HEAD[:16] + b"[]\n", "its second line"),
    "no seed": (HEAD[:16] + b'{"taps": []}\n', "its second line"),
    "seed below 0": (HEAD.replace(b'"seed": 7', b'"seed": -7'), "its second line"),
    "seed a text": (HEAD.replace(b'"seed": 7', b'"seed": "7"'), "its second line"),
    "seed over 64 bits": (HEAD.replace(b"7,", b"18446744073709551616,"), "its second line"),
    "tap without a name": (HEAD.replace(b'"name"', b'"nome"'), "its second line"),
    "tap's name a number": (HEAD.replace(b'"tap0"', b"5"), "its second line"),
    "headed a number": (HEAD.replace(b"true}", b"1}", 1), "its second line"),
    "kind 0": (HEAD + bytes.fromhex("00 0000 00000000"), "kind 0, TAP 0"),
    "kind 4": (HEAD + bytes.fromhex("04 0000 00000000"), "kind 4, TAP 0"),
    "time of 7 bytes": (HEAD + bytes.fromhex("01 0000 07000000") + bytes(7), "kind 1"),
    "unknown tap": (HEAD + bytes.fromhex("02 0200 00000000"), "kind 2, TAP 2"),
    "frame too long": (HEAD + bytes.fromhex("02 0000 05000000 02000000 00"), "kind 2"),
    "half a length": (HEAD + bytes.fromhex("02 0000 03000000 000000"), "kind 2"),
    "huge record": (HEAD + bytes.fromhex("02 0000 ffffffff"), "a record of 4294967295 bytes"),
    "short digest": (HEAD + bytes.fromhex("03 0000 01000000") + b"a", "kind 3"),
    "time goes back": (written([Step(5), Step(4)]), "time goes back from 5 to 4 ns"),
}


@pytest.mark.parametrize("row", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_journal_is_refused(row):
    raw, words = row
    with pytest.raises(ConfigError) as caught:
        read(raw)
    assert str(caught.value).startswith("a.journal: ")
    assert words in str(caught.value)


@given(st.data())
def test_any_bytes_are_records_or_one_error(data):
    raw = bytearray(written())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    try:
        setup, records = read(bytes(raw))
    except ConfigError:
        return
    times = [record.until_ns for record in records if isinstance(record, Step)]
    assert times == sorted(times)
    assert all(record.tap < len(setup.taps) for record in records if isinstance(record, Arrived))
