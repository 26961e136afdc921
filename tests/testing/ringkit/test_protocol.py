"""A protocol from the text of its header: sizes, messages, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from xenpv.errors import LocalProtocolError
from xenpv.testing.ringkit import RingProtocol

TEXT = """
#define KITIF_MAX 3
enum kitif_op { KITIF_READ = 5, KITIF_WRITE };
struct kitif_request {
    uint64_t id;
    enum kitif_op op;
    uint8_t name[6];
    int16_t where[2];
    union {
        struct { grant_ref_t gref; uint16_t offset; } part;
        uint8_t raw[8];
    } u;
};
struct kitif_response {
    uint64_t rid;
    int32_t status;
};
"""
PROTOCOL = RingProtocol.from_cdef(
    "kitif",
    TEXT,
    request="kitif_request",
    response="kitif_response",
    device="kit",
    response_id="rid",
)


def test_a_slot_is_the_union_of_both_structs():
    assert (PROTOCOL.request_size, PROTOCOL.response_size) == (32, 16)
    assert PROTOCOL.entry_size == 32
    assert PROTOCOL.constants.KITIF_MAX == 3
    assert PROTOCOL.constants.KITIF_WRITE == 6


@pytest.mark.parametrize(
    ("size", "pages", "slots"),
    [(40, 1, 64), (112, 1, 32), (112, 2, 64), (112, 16, 512), (12, 1, 256), (4, 1, 512),
     (64, 1, 32), (63, 1, 64), (256, 1, 8), (8, 4, 1024)],
)  # fmt: skip
def test_a_ring_has_as_many_slots_as_fit_rounded_down_to_a_power_of_two(size, pages, slots):
    protocol = RingProtocol.from_cdef(
        f"sized{size}",
        f"struct s{size} {{ uint8_t b[{size}]; }};",
        request=f"s{size}",
        response=f"s{size}",
        device="sized",
        id="",
    )
    assert protocol.ring_size(pages) == slots


def test_messages_go_there_and_back():
    raw = PROTOCOL.request(id=7, op=6, name=b"abc", where=[1, -2], u={"part": {"gref": 9}})
    assert raw == bytes.fromhex(
        "0700000000000000 06000000 616263000000 0100feff 0000 0900000000000000"
    )
    request = PROTOCOL.read_request(raw)
    assert (request.id, request.op, request.name, request.where) == (7, 6, b"abc\0\0\0", (1, -2))
    assert request.u.part == SimpleNamespace(gref=9, offset=0)
    assert request.u.raw == b"\x09" + bytes(7)
    assert PROTOCOL.read_response(PROTOCOL.response(rid=3, status=-1)).status == -1


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"identity": 1}, "has no field 'identity'"),
        ({"id": 1 << 64}, "too big to convert"),
        ({"id": -1}, "can't convert negative"),
        ({"name": b"seven77"}, "too long"),
        ({"where": [1, 2, 3]}, "too many initializers"),
        ({"id": "7"}, "an integer is required"),
    ],
)
def test_values_that_do_not_fit_are_refused(values, why):
    with pytest.raises(LocalProtocolError, match=why):
        PROTOCOL.request(**values)


def test_too_few_bytes_are_no_message():
    with pytest.raises(LocalProtocolError, match="15 bytes are no struct kitif_response of 16"):
        PROTOCOL.read_response(bytes(15))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("struct bad_r {", "declaration of badif: .*parse error"),
        ("struct other { uint8_t b; };", "badif declares no struct bad_r"),
        ("struct bad_r { uint8_t *p; };", r"bad_r.p is uint8_t \*: expected what two domains"),
        ("struct bad_r { uint8_t id : 3; };", "bad_r.id is a bit field"),
        ("struct bad_r { uint8_t id; uint8_t b[256]; };", "slots of 257 bytes, at most 256"),
        ("struct bad_r { uint8_t b; };", "badif: struct bad_r has no field id"),
        ("struct bad_r;", "declares no struct bad_r"),
    ],
)
def test_a_header_that_says_no_protocol_is_refused(text, why):
    with pytest.raises(LocalProtocolError, match=why):
        RingProtocol.from_cdef("badif", text, request="bad_r", response="bad_r", device="bad")


def test_a_name_means_one_layout_and_may_be_said_twice():
    same = {"request": "kitif_request", "response": "kitif_response", "device": "kit"}
    RingProtocol.from_cdef("kitif", TEXT, response_id="rid", **same)
    with pytest.raises(LocalProtocolError, match="kitif is declared with another layout"):
        RingProtocol.from_cdef(
            "kitif", TEXT.replace("name[6]", "name[4]"), response_id="rid", **same
        )
