"""Records: what is written is what is read, and nothing else is."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpv.host.libxl import ToolstackError
from xenpv.migration import stream
from xenpv.migration.stream import Reader, Record, RecordType, StreamError, Writer

# Literals of the format: type, length, CRC of the header, CRC of the body.
END = bytes.fromhex("00000000 00000000") + struct.pack("<II", zlib.crc32(bytes(12)), 0)


def written(*records: tuple[int, bytes]) -> bytes:
    out = bytearray()
    writer = Writer(out.extend)
    for kind, body in records:
        writer.write(kind, body)
    assert (writer.number, writer.written) == (len(records), len(out))
    return bytes(out)


SMALL = [(RecordType.CONFIG, b'{"a":1}'), (RecordType.STATIC_DATA_END, b""),
         (RecordType.DISK_DATA, bytes(8) + b"123"), (0x8000_1234, b"for somebody"),
         (RecordType.END, b"")]  # fmt: skip


def test_the_numbers_are_those_of_the_format() -> None:
    assert written((0, b"")) == END
    assert written((0x101, b"{}")) == (
        struct.pack("<II", 0x101, 2)
        + struct.pack("<I", zlib.crc32(struct.pack("<III", 0x101, 2, 0)))
        + struct.pack("<I", zlib.crc32(b"{}\0\0\0\0\0\0"))
        + b"{}\0\0\0\0\0\0"
    )
    assert written((0, b""), (0, b""))[24:28] == struct.pack(
        "<I", zlib.crc32(struct.pack("<III", 0, 0, 1))
    )
    assert {kind.name: int(kind) for kind in RecordType} == {
        "END": 0, "PAGE_DATA": 1, "STATIC_DATA_END": 17, "CONFIG": 256, "DOMAIN_CONTEXT": 257,
        "GUEST_CONTEXT": 258, "DISK": 259, "DISK_DATA": 260,
    }  # fmt: skip


@given(
    records=st.lists(
        st.tuples(
            st.sampled_from([RecordType.GUEST_CONTEXT, RecordType.PAGE_DATA, 0x8000_0001]),
            st.binary(max_size=40),
        ),
        max_size=6,
    ),
    cut=st.integers(1, 50),
)
def test_what_is_written_is_read_in_pieces_of_any_size(
    records: list[tuple[int, bytes]], cut: int
) -> None:
    data = written(*records, (RecordType.END, b""))
    reader = Reader(start=100)
    found: list[Record] = []
    for at in range(0, len(data), cut):
        found += reader.feed(data[at : at + cut])
    reader.finish()
    assert [(one.type, one.body) for one in found[:-1]] == records
    assert (found[-1].type, found[-1].offset) == (RecordType.END, 100 + len(data) - 16)
    assert [one.number for one in found] == list(range(len(found)))
    assert (reader.ended, reader.offset) == (True, 100 + len(data))


def test_every_prefix_is_truncated_and_says_where() -> None:
    data = written(*SMALL)
    for size in range(len(data)):
        reader = Reader()
        reader.feed(data[:size])
        with pytest.raises(StreamError, match=f"ends at byte {size}, before END") as caught:
            reader.finish()
        assert caught.value.truncated


@pytest.mark.parametrize("bit", range(8))
def test_one_wrong_bit_anywhere_is_found(bit: int) -> None:
    data = written(*SMALL)
    for at in range(len(data)):
        wrong = bytearray(data)
        wrong[at] ^= 1 << bit
        with pytest.raises(StreamError, match="checksum"):
            Reader().feed(wrong)


def test_a_record_that_is_lost_repeated_or_moved_is_found() -> None:
    first, end = written((0x101, b"{}")), written((0, b""))
    whole = written((0x101, b"{}"), (0x102, b"[]"), (0, b""))
    assert whole[:24] == first
    for wrong in (whole[24:], whole[:24] + whole[48:], whole[:24] + first, first + end):
        with pytest.raises(StreamError, match=r"record \d+ at byte \d+: its header's checksum"):
            Reader().feed(wrong)
    assert len(Reader().feed(first + whole[24:])) == 3


REFUSED = [
    # type, length, what the message says
    pytest.param(0x106, 0, "record 0 at byte 0: type 0x106 is not known here: a newer version", id="unknown"),
    pytest.param(2, 0, "type 0x2 is not known here", id="of libxc, not ours"),
    pytest.param(0, 1, "END has at most 0 bytes, this one 1", id="END with a body"),
    pytest.param(1, 8 + 1024 * 4104 + 1, "PAGE_DATA has at most 4202504 bytes", id="1025 pages"),
    pytest.param(0x102, (1 << 26) + 1, "GUEST_CONTEXT has at most 67108864", id="JSON"),
    pytest.param(0x104, (1 << 20) + 9, "DISK_DATA has at most 1048584", id="chunk"),
    pytest.param(0x8000_0001, 0xFFFF_FFFF, "type 0x80000001 has at most 67108864", id="optional"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "length", "text"), REFUSED)
def test_a_header_is_refused_before_its_body_is_read(kind: int, length: int, text: str) -> None:
    head = struct.pack("<II", kind, length)
    crc = zlib.crc32(head + struct.pack("<I", 0))
    with pytest.raises(StreamError, match=text):
        Reader().feed(head + struct.pack("<II", crc, 0))


def test_nothing_follows_the_end() -> None:
    with pytest.raises(
        StreamError, match="byte 16: expected nothing after END, but 1 bytes follow"
    ):
        Reader().feed(END + b"x")
    reader = Reader()
    reader.feed(END)
    with pytest.raises(StreamError, match="expected nothing after END"):
        reader.feed(b"x")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"NaN", b"[" * 100_000, b"1" * 5000, b'{"a":Infinity}']
)
def test_a_body_that_is_no_json_is_refused(body: bytes) -> None:
    record = Record(RecordType.GUEST_CONTEXT, body, 3, 77)
    with pytest.raises(StreamError, match=r"record 3 \(GUEST_CONTEXT\) at byte 77: expected JSON"):
        record.json()


def test_equal_values_give_equal_bytes_whatever_their_order() -> None:
    texts = []
    for value in ({"b": [1, None], "a": "ü"}, {"a": "ü", "b": [1, None]}):
        out = bytearray()
        Writer(out.extend).write_json(RecordType.CONFIG, value)
        texts.append(bytes(out))
        assert Reader().feed(out)[0].json() == value
    assert texts[0] == texts[1]


def test_what_is_too_long_to_save_is_the_callers_to_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "JSON_BYTES_MAX", 10)
    with pytest.raises(ToolstackError, match="11 bytes of CONFIG: a record holds at most 10"):
        Writer(lambda _: None).write_json(RecordType.CONFIG, "123456789")
