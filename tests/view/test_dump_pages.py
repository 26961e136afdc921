"""Pages of bytes decoded: kept literal examples, what is WRONG, and any bytes in any kind."""

from __future__ import annotations

import json
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenpv.errors import LocalProtocolError
from xenpv.view.dump import KINDS, dump_page
from xenpv.view.dump.kinds import guess

PAGE = 4096


def page(words=(), at=0, more=()):
    """A page with u32 words at `at`, and (offset, bytes) pieces."""
    data = bytearray(PAGE)
    struct.pack_into(f"<{len(words)}I", data, at, *words)
    for offset, piece in more:
        data[offset : offset + len(piece)] = piece
    return bytes(data)


# Offsets and sizes by hand, from io/blkif.h: a 64-bit entry has 112 bytes.
WRITE = struct.pack("<BBHxxxxQQIBBxx", 1, 1, 51712, 0x77, 2048, 8, 0, 7)
TOO_LONG = struct.pack("<BBHxxxxQQIBBxx", 0, 12, 51712, 0x78, 2048, 8, 0, 7)
ANSWER = struct.pack("<QBxh", 5, 1, -1)
BLKIF = page((3, 3, 1, 2), more=((64, ANSWER), (64 + 112, WRITE), (64 + 224, TOO_LONG)))

BLKIF_TEXT = """\
page (blkif)
  req_prod 0x3, req_event 0x3, rsp_prod 0x1, rsp_event 0x2, entries 32
  unconsumed requests 1, unconsumed responses 0, in flight 2
  requests without a response:
    index  slot  state         operation  id    handle  sector number  nr segments  segments  """


def test_a_page_with_one_request_in_flight_and_one_not_consumed():
    dump = dump_page(BLKIF, "blkif")
    assert str(dump).startswith(BLKIF_TEXT)
    (table,) = dump.tables
    first, second = table.as_json()["rows"]
    assert first == {
        "index": 1,
        "slot": 1,
        "state": "in flight",
        "operation": "WRITE",
        "id": 0x77,
        "handle": 51712,
        "sector_number": 2048,
        "nr_segments": 1,
        "segments": "8[0-7]",
        "wrong": "",
    }
    assert (second["state"], second["wrong"]) == ("not consumed", "nr_segments 12: at most 11")


def test_the_document_has_the_keys_that_the_docs_have():
    document = dump_page(BLKIF, "blkif").as_json()
    assert list(document) == ["kind", "name", "words", "counts", "wrong", "notes", "tables"]
    assert document["words"] == {
        "req_prod": 3, "req_event": 3, "rsp_prod": 1, "rsp_event": 2, "entries": 32,
    }  # fmt: skip
    assert document["counts"] == {
        "unconsumed_requests": 1, "unconsumed_responses": 0, "in_flight": 2,
    }  # fmt: skip
    assert json.loads(json.dumps(document)) == document


# kind, header (req_prod, req_event, rsp_prod, rsp_event), pages: unconsumed requests and
# responses, in flight (None: not said), and the start of what is WRONG
M = 0xFFFF_FFFF
HEADERS = {
    "fresh": ("blkif", (0, 1, 0, 1), 1, (0, 0, 0), ""),
    "never a ring": ("blkif", (0, 0, 0, 0), 1, (None, None, 0), ""),
    "all consumed and answered": ("blkif", (7, 8, 7, 8), 1, (0, 0, 0), ""),
    "backend asleep behind two": ("blkif", (9, 8, 7, 8), 1, (2, 0, 2), ""),
    "backend awake": ("blkif", (9, 3, 7, 8), 1, (None, 0, 2), ""),
    "frontend asleep behind three": ("blkif", (9, 10, 9, 7), 1, (0, 3, 0), ""),
    "frontend awake": ("blkif", (9, 10, 9, 0xFFFFFF00), 1, (0, None, 0), ""),
    "event far ahead": ("netif_tx", (9, 10, 9, 200), 1, (0, None, 0), ""),
    "full": ("blkif", (32, 1, 0, 1), 1, (32, 0, 32), ""),
    "full, of two pages": ("blkif", (64, 1, 0, 1), 2, (64, 0, 64), ""),
    "wrapped": ("blkif", (2, 3, M - 1, M), 1, (0, 0, 4), ""),
    "wrapped, unconsumed": ("blkif", (2, M, M - 1, M), 1, (4, 0, 4), ""),
    "netif_tx, full": ("netif_tx", (256, 1, 0, 1), 1, (256, 0, 256), ""),
    "netif_rx, posted": ("netif_rx", (255, 1, 0, 1), 1, (255, 0, 255), ""),
    "ctrl, one": ("xen_netif_ctrl", (1, 1, 0, 1), 1, (1, 0, 1), ""),
    "netif_rx, full": ("netif_rx", (256, 1, 0, 1), 1, (256, 0, 256), ""),
    "netif_rx, one too many": ("netif_rx", (257, 258, 0, 1), 1, (0, 0, None), "req_prod is 257 ahead of rsp_prod: more than the ring's 256"),
    "ctrl, one too many": ("xen_netif_ctrl", (129, 130, 0, 1), 1, (0, 0, None), "req_prod is 129 ahead of rsp_prod: more than the ring's 128"),
    "responses ahead": ("blkif", (4, 5, 5, 6), 1, (None, 0, None), "rsp_prod is 1 ahead of req_prod"),
    "responses ahead at the wrap": ("blkif", (M, 0, 2, 3), 1, (None, 0, None), "rsp_prod is 3 ahead of req_prod"),
    "one too many": ("blkif", (33, 34, 0, 1), 1, (0, 0, None), "req_prod is 33 ahead of rsp_prod: more than the ring's 32"),
    "one too many of 64": ("blkif", (65, 66, 0, 1), 2, (0, 0, None), "req_prod is 65 ahead of rsp_prod"),
    "32-bit entries": ("blkif_x86_32", (32, 33, 0, 1), 1, (0, 0, 32), ""),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "header", "pages", "counts", "wrong"), HEADERS.values(), ids=HEADERS
)
def test_headers(kind, header, pages, counts, wrong):
    dump = dump_page(page(header) + bytes(PAGE * (pages - 1)), kind)
    if wrong:
        assert dump.wrong[0].startswith(wrong)
        assert f"  WRONG: {wrong}" in str(dump)
        assert dump.counts["in_flight"] is None
    else:
        assert not dump.wrong
        assert tuple(dump.counts.values()) == counts


def tx(gref, offset, flags, number, size):
    return struct.pack("<IHHHH", gref, offset, flags, number, size)


def test_extra_info_follows_the_request_that_announces_it():
    gso = bytes((1, 0)) + struct.pack("<HBBH", 1448, 1, 0, 0)
    slots = tx(8, 0, 8 | 4, 1, 3000) + gso.ljust(12, b"\0") + tx(9, 64, 0, 2, 1000)
    (table,) = dump_page(page((3, 1, 0, 1), more=((64, slots),)), "netif_tx").tables
    flags = [row["flags"] for row in table.as_json()["rows"]]
    assert flags == ["more_data extra_info", "extra GSO TCPV4 size 1448", ""]


# kind, the bytes of slot 0 as a request, and why it is wrong
REQUESTS = {
    "sectors back to front": ("blkif", struct.pack("<BBHxxxxQQIBBxx", 0, 1, 0, 1, 0, 8, 5, 4), "segment 0: sectors 5-4 of"),
    "beyond the page": ("blkif", struct.pack("<BBHxxxxQQIBBxx", 0, 1, 0, 1, 0, 8, 0, 8), "segment 0: sectors 0-8 of"),
    "no operation": ("blkif", bytes((9,)), "operation 9 is none"),
    "nothing to read": ("blkif", struct.pack("<BBH", 0, 0, 0), "nr_segments 0: nothing"),
    "a flush of nothing": ("blkif", struct.pack("<BBH", 3, 0, 0), ""),
    "too many indirect": ("blkif", struct.pack("<BBHxxxxQQ", 6, 0, 4097, 1, 0), "nr_segments 4097"),
    "indirect flush": ("blkif", struct.pack("<BBHxxxxQQ", 6, 3, 1, 1, 0), "indirect_op 3: READ or WRITE"),
    "a discard": ("blkif", struct.pack("<BBHxxxxQQQ", 5, 1, 0, 1, 0, 99), ""),
    "tx offset": ("netif_tx", tx(8, 4096, 0, 1, 60), "offset 4096 outside the page"),
    "no control type": ("xen_netif_ctrl", struct.pack("<HH", 1, 11), "type 11 is none"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "slot", "wrong"), REQUESTS.values(), ids=REQUESTS)
def test_requests_that_cannot_be(kind, slot, wrong):
    (table,) = dump_page(page((1, 1, 0, 1), more=((64, slot),)), kind).tables
    (row,) = table.as_json()["rows"]
    assert row["wrong"].startswith(wrong) and bool(row["wrong"]) == bool(wrong)


def test_a_discard_has_sectors_and_no_segments():
    slot = struct.pack("<BBHxxxxQQQ", 5, 1, 0, 1, 0, 99)
    (row,) = dump_page(page((1, 1, 0, 1), more=((64, slot),)), "blkif").tables[0].as_json()["rows"]
    assert (row["operation"], row["segments"]) == ("DISCARD", "99 sectors secure")


def test_an_indirect_request_names_its_pages_and_not_what_is_behind_them():
    # io/blkif.h: operation, indirect_op, nr_segments, id at 8, sector at 16, handle at 24, grefs at 28
    slot = struct.pack("<BBHxxxxQQHxxII", 6, 1, 600, 5, 1000, 51712, 41, 42) + bytes((9,) * 8)
    (row,) = dump_page(page((1, 1, 0, 1), more=((64, slot),)), "blkif").tables[0].as_json()["rows"]
    assert (row["operation"], row["nr_segments"], row["segments"]) == (
        "INDIRECT WRITE",
        600,
        "in 41 42",
    )
    assert (row["id"], row["sector_number"], row["handle"]) == (5, 1000, 51712)


RESPONSES = {
    "blk status": ("blkif", struct.pack("<QBxh", 1, 0, -3), "status -3 is none"),
    "tx status": ("netif_tx", struct.pack("<Hh", 1, 2), "status 2 is none"),
    "tx null": ("netif_tx", struct.pack("<Hh", 1, 1), ""),
    "rx beyond its page": ("netif_rx", struct.pack("<HHHh", 1, 4000, 0, 97), "offset 4000 and 97 bytes cross the page"),
    "rx to its end": ("netif_rx", struct.pack("<HHHh", 1, 4000, 0, 96), ""),
    "rx error": ("netif_rx", struct.pack("<HHHh", 1, 0, 0, -1), ""),
    "control status": ("xen_netif_ctrl", struct.pack("<HHII", 1, 1, 4, 0), "status 4 is none"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "slot", "wrong"), RESPONSES.values(), ids=RESPONSES)
def test_responses_that_cannot_be(kind, slot, wrong):
    (table,) = dump_page(page((1, 2, 1, 1), more=((64, slot),)), kind).tables
    (row,) = table.as_json()["rows"]
    assert (row["state"], row["wrong"]) == ("not consumed", wrong)


# io/xs_wire.h: req[1024], rsp[1024], req_cons, req_prod, rsp_cons, rsp_prod, features, connection, error
def store(req=b"", rsp=b"", words=None):
    words = words or (0, len(req), 0, len(rsp))
    return page(words, 2048, ((0, req), (1024, rsp)))


def test_a_request_to_xenstored_that_nobody_has_read():
    message = struct.pack("<4I", 2, 7, 0, 5) + b"name\0"
    dump = dump_page(store(message, message[:20]), "xenstore")
    requests, responses = dump.tables
    assert requests.as_json()["rows"] == [
        {"type": "READ", "req_id": 7, "tx_id": 0, "len": 5, "payload": '"name\\0"'}
    ]
    assert responses.as_json()["rows"][0]["payload"] == '"name" and 1 bytes to come'
    assert dump.counts == {"unconsumed_request_bytes": 21, "unconsumed_response_bytes": 20}


def test_a_message_goes_round_the_end_of_the_ring():
    message = struct.pack("<4I", 16, 7, 3, 7) + b"ENOENT\0"
    data = store(rsp=message[10:], words=(5, 5, 1014, 1014 + len(message)))
    data = data[: 1024 + 1014] + message[:10] + data[2048:]
    (table,) = dump_page(data, "xenstore").tables
    assert table.as_json()["rows"][0] == {
        "type": "ERROR", "req_id": 7, "tx_id": 3, "len": 7, "payload": '"ENOENT\\0"',
    }  # fmt: skip


STORE_WORDS = {
    "idle": ((9, 9, 9, 9), ""),
    "full": ((0, 1024, 5, 1029), ""),
    "wrapped": ((M, 3, M, M), ""),
    "too many requests": ((0, 1025, 0, 0), "req_prod is 1025 ahead of req_cons: the ring has 1024"),
    "consumed ahead": ((3, 2, 0, 0), "req_prod is 1 behind req_cons"),
    "responses consumed ahead": ((0, 0, 3, 2), "rsp_prod is 1 behind rsp_cons"),
    "too many responses": ((0, 0, 1, 1026), "rsp_prod is 1025 ahead of rsp_cons"),
}


@pytest.mark.parametrize(("words", "wrong"), STORE_WORDS.values(), ids=STORE_WORDS)
def test_indices_of_the_store(words, wrong):
    dump = dump_page(store(words=words), "xenstore")
    assert [one.startswith(wrong) for one in dump.wrong] == ([True] if wrong else [])


def test_what_xenstored_says_of_a_broken_ring():
    dump = dump_page(page((0, 0, 0, 0, 3, 1, 2), 2048), "xenstore")
    assert dump.notes == (
        "the guest asks xenstored to reconnect",
        "xenstored serves this ring no more: RINGIDX: the guest's indices were wrong",
    )


def test_a_console_with_output_that_nobody_took():
    # io/console.h: in[1024], out[2048], in_cons, in_prod, out_cons, out_prod
    data = page((0, 0, 3, 9), 3072, ((1024, b"ok\nlogin:"),))
    dump = dump_page(data, "console")
    assert [row["text"] for row in dump.tables[0].as_json()["rows"]] == ['"ok\\n"', '"login:"']
    wrong = dump_page(page((0, 0, 0, 2049), 3072), "console").wrong
    assert wrong == ("out_prod is 2049 ahead of out_cons: the ring has 2048 bytes",)


def test_grants_of_version_1():
    # grant_table.h: flags u16, domid u16, frame u32
    entries = [
        (1 | 8, 0, 0xFEFFC),
        (0, 9, 9),
        (1 | 4, 2, 0x123),
        (2 | 4, 3, 0x55),
        (3, 4, 5),
        (1 | 0x400, 0, 1),
    ]
    data = page(more=((8, b"".join(struct.pack("<HHI", *one) for one in entries)),))
    dump = dump_page(data, "grant_v1")
    rows = [(row["ref"], row["type"], row["flags"], row["domid"], row["frame"], row["what"], bool(row["wrong"])) for row in dump.tables[0].as_json()["rows"]]  # fmt: skip
    assert rows == [
        (1, "permit_access", "reading", 0, 0xFEFFC, "xenstore", False),
        (3, "permit_access", "readonly", 2, 0x123, "", False),
        (4, "accept_transfer", "transfer_committed", 3, 0x55, "", False),
        (5, "transitive", "", 4, 5, "", True),
        (6, "permit_access", "0x400", 0, 1, "", False),
    ]
    assert dump.counts == {"granted": 5, "in_use": 1}


def test_grants_of_version_2():
    whole = struct.pack("<HHIQ", 1 | 4, 2, 0, 0x123456789)
    part = struct.pack("<HHHHQ", 1 | 0x100, 3, 100, 28, 7)
    across = struct.pack("<HHHHQ", 1 | 0x100, 3, 4000, 97, 7)
    hop = struct.pack("<HHHHI", 3, 4, 5, 0, 6).ljust(16, b"\0")
    data = page(more=((16, whole + part + across + hop),))
    dump = dump_page(data, "grant_v2")
    rows = [(row["ref"], row["type"], row["flags"], row["frame"], row["detail"], row["wrong"]) for row in dump.tables[0].as_json()["rows"]]  # fmt: skip
    assert rows == [
        (1, "permit_access", "readonly", 0x123456789, "", ""),
        (2, "permit_access", "sub_page", 7, "bytes 100 to 127", ""),
        (3, "permit_access", "sub_page", 7, "bytes 4000 to 4096", "the bytes cross the page"),
        (4, "transitive", "", None, "ref 6 of d5", ""),
    ]
    assert dump.counts == {"granted": 4, "in_use": None}
    status = dump_page(page(more=((2, struct.pack("<HH", 8, 24)),)), "grant_status")
    assert [row["status"] for row in status.tables[0].as_json()["rows"]] == [
        "reading",
        "reading writing",
    ]


@pytest.mark.parametrize(
    ("kind", "size", "pending_at", "mask_at", "selector_at"),
    [("shared_info", 8, 2048, 2560, 8), ("shared_info_x86_32", 4, 2048, 2176, 4)],
)
def test_pending_bits_and_who_has_to_look(kind, size, pending_at, mask_at, selector_at):
    bit = 8 * size + 3  # in the second word
    pending = (1 << 5 | 1 << bit).to_bytes(2 * size, "little")
    mask = (1 << 5).to_bytes(2 * size, "little")
    more = ((pending_at, pending), (mask_at, mask))
    dump = dump_page(page(more=more), kind)
    rows = [(row["port"], row["mask"]) for row in dump.tables[-1].as_json()["rows"]]
    assert rows == [(5, "masked"), (bit, "not masked")]
    assert dump.counts["pending"] == 2 and dump.counts["pending_not_masked"] == 1
    assert dump.notes[0].startswith(f"ports {bit} are pending, not masked, and in no vcpu's")
    seen = dump_page(page(more=(*more, (selector_at, b"\2"))), kind)
    assert not seen.notes


def test_event_words():
    words = {3: 1 << 31 | 1 << 29 | 9, 4: 1 << 31, 5: 1 << 30, 6: 1 << 29 | 2000, 7: 1 << 20}
    dump = dump_page(
        page(more=[(4 * at, struct.pack("<I", word)) for at, word in words.items()]), "evtchn_fifo"
    )
    rows = [
        (row["port"], row["state"], row["link"], row["wrong"])
        for row in dump.tables[0].as_json()["rows"]
    ]
    assert rows == [
        (3, "pending linked", 9, ""),
        (4, "pending", None, ""),
        (6, "linked", 2000, "the link leads to port 2000 of 1024"),
        (7, "", None, "0x100000 is no bit of an event word"),
    ]
    assert dump.notes[0].startswith("ports 4 are pending, not masked, and in no queue")
    control = dump_page(page((1 << 7, 0, *[0] * 7, 3)), "evtchn_fifo_control")
    assert control.tables[0].as_json()["rows"] == [
        {"priority": 7, "ready": "yes", "head": 3, "wrong": ""}
    ]
    assert dump_page(page((1 << 16,)), "evtchn_fifo_control").wrong


SIZES = {
    "empty": (b"", "is empty: expected whole pages"),
    "a byte less": (bytes(4095), "has 4095 bytes: expected whole pages of 4096"),
    "a byte more": (bytes(4097), "has 4097 bytes"),
    "three pages": (bytes(3 * PAGE), "has 3 pages: expected 1, 2, 4 or another power of two"),
    "too many": (bytes(512 * PAGE), "has 512 pages: blkif has at most 256 pages"),
}


@pytest.mark.parametrize(("data", "line"), SIZES.values(), ids=SIZES)
def test_sizes_that_are_no_ring(data, line):
    with pytest.raises(LocalProtocolError, match=line):
        dump_page(data, "blkif")
    with pytest.raises(LocalProtocolError, match="no pages are called 'blk': expected blkif"):
        dump_page(data, "blk")


def test_long_tables_are_cut_and_say_so():
    dump = dump_page(page((256, 1, 0, 1)), "netif_rx")
    assert len(dump.tables[0].rows) == 16 and dump.tables[0].more == 240
    assert "    and 240 more; --all prints them" in str(dump)
    assert len(dump_page(page((256, 1, 0, 1)), "netif_rx", most=999).tables[0].rows) == 256


def test_a_ring_is_guessed_by_its_entries():
    assert guess(page((1, 1, 0, 1), more=((64, WRITE),))) == "blkif"
    assert guess(BLKIF) != "blkif"  # one of its entries cannot be
    assert guess(page((1, 2, 2, 1), more=((64, WRITE),))) == ""
    assert guess(bytes(PAGE)) == ""


# Bytes that hit what decoders look at: any, or sparse ones with small indices.
SPARSE = st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), max_size=40)
INDEX = st.one_of(st.integers(0, 300), st.integers(0xFFFF_FF00, M), st.integers(0, M))


@given(
    kind=st.sampled_from(list(KINDS)),
    noise=st.one_of(
        st.integers(0, 1 << 20).map(lambda seed: random.Random(seed).randbytes(PAGE)), SPARSE
    ),
    words=st.lists(INDEX, min_size=4, max_size=8),
    at=st.sampled_from([0, 2048, 3072]),
    pages=st.sampled_from([1, 2]),
)
@settings(max_examples=60)
def test_any_bytes_of_any_kind_give_a_dump(kind, noise, words, at, pages):
    if isinstance(noise, list):
        data = bytearray(PAGE)
        for offset, byte in noise:
            data[offset] = byte
        noise = bytes(data)
    data = bytearray(noise)
    struct.pack_into(f"<{len(words)}I", data, at, *words)
    if KINDS[kind].pages > 1:
        data *= pages
    dump = dump_page(bytes(data), kind, most=1 << 16)
    text, document = str(dump), json.dumps(dump.as_json())
    assert text.isascii() and all(line.isprintable() for line in text.splitlines())
    assert len(text) < 2_000_000 and len(document) < 3_000_000
    for table in dump.tables:
        assert len(table.rows) + table.more <= 4096 * pages
    short = dump_page(bytes(data), kind)
    assert len(str(short)) < 40_000
    assert guess(bytes(data)) in ("", *KINDS)
