"""What goes into a page: columns, structs of slots, words for packets, escapes, the file."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.view.recordings import HOSTILE, event, hostile, large, platform_tape, published, ring
from xenpv.view import page
from xenpv.view.page import columns, document, packets, render
from xenpv.view.page.slots import Structs
from xenpv.view.tape import Tape, TapedFrame
from xenpv.xen.trace import Event

ROOT = Path(__file__).parent.parent.parent


class Markup(HTMLParser):
    """Elements and their attributes, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in self.raw:
            self.raw[tag].append("")

    def handle_data(self, data: str) -> None:
        last = self.tags[-1][0] if self.tags else ""
        if self.cdata_elem in self.raw and last in self.raw:
            self.raw[last][-1] += data


FOUND: dict[str, Any] = {
    "ok": False, "digest": "0" * 32, "seed": 7, "virtual_ns": 1_500_000_001, "list": "", "vm_list": "",
    "failures": ["Livelock: 3 upcalls"], "taps": [], "timeline": [],
    "bridges": [{"name": "xenbr0", "ports": 2, "forwarded": 3, "flooded": 1, "dropped": 0}],
    "guests": [
        {"name": "web", "domid": 1, "ok": False, "personality": "windows", "memory_mib": 64, "vcpus": 1, "shutdown": "poweroff",
         "restored": "", "saved": "", "block_list": "", "network_list": "", "console": "hello\nthere\n", "failures": [],
         "devices": [
            {"kind": "vbd", "id": 51712, "name": "xvda", "state": "Connected", "verified": False, "domid": 1, "backend_state": "Closed",
             "failures": ["sector 7 differs"], "idle": "", "image": "a.img", "readonly": False, "size_bytes": 512, "sector_size": 512,
             "sha256": "", "bytes_read": 1 << 20, "bytes_written": 0},
            {"kind": "vif", "id": 0, "name": "vif1.0", "state": "Connected", "verified": True, "domid": 1, "backend_state": "Connected",
             "failures": [], "idle": "", "mac": "00:16:3e:00:00:01", "bridge": "xenbr0", "queues": 1, "mtu": 1500, "pings_sent": 2,
             "pings_answered": 2, "frames_sent": 3, "frames_received": 3, "bytes_sent": 1, "bytes_received": 1, "lost": {}},
         ]},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02"), (2**32 - 1, "ffffffff0f"), (2**53, "8080808080808010")],
)  # fmt: skip
def test_a_number_is_leb128(value: int, expected: str) -> None:
    assert columns.varints([value]).hex() == expected


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 is negative"):
        columns.varints([-1])


def test_differences_are_small_numbers_of_either_sign() -> None:
    assert columns.deltas([5, 5, 4, 10]) == [10, 0, 1, 12]


def undo(packed: bytes, before: bytes) -> tuple[bytes, int]:
    """columns.sparse back, as the page does it, and how many bytes it took."""
    at = where = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = packed[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    entry = bytearray(before)
    where = number()
    while where < len(entry):
        for _ in range(number()):
            entry[where] ^= packed[at]
            at += 1
            where += 1
        if where < len(entry):
            where += number()
    return bytes(entry), at


@given(st.binary(min_size=1, max_size=200), st.data())
def test_a_slot_comes_back_from_what_differs(data: bytes, draw: st.DataObject) -> None:
    before = draw.draw(st.binary(min_size=len(data), max_size=len(data)))
    packed = columns.sparse(data, before)
    assert undo(packed, before) == (data, len(packed))


def test_a_slot_that_is_the_same_takes_one_byte() -> None:
    assert columns.sparse(b"abc", b"abc") == b"\x03"
    assert columns.sparse(b"abc\0\0\0\0\0x", bytes(9)) == b"\x00\x03abc\x05\x01x"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"plain", "plain"),
        (b"a\0b\xff", "a\\x00b\\xff"),
        ("caf\xe9", "caf\xe9"),
        ("\u202egnp", "\\u{202e}gnp"),
        ("a\u2028b", "a\\u{2028}b"),
        ("\x1b[31m", "\\x1b[31m"),
    ],
)  # fmt: skip
def test_what_cannot_be_seen_is_written_as_an_escape(value: str | bytes, expected: str) -> None:
    assert columns.printable(value) == expected


def test_json_in_a_script_ends_no_script() -> None:
    text = columns.script_json(["</script>", "<!--", "\u2028\u2029", "&"])
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == ["</script>", "<!--", "\u2028\u2029", "&"]


MAC = bytes.fromhex("ffffffffffff00163e000001")
IPV4 = "4500{length:04x}00004000401100000a0000020a000001"


def ipv4(protocol: int, body: str) -> bytes:
    data = bytes.fromhex(body)
    header = bytes.fromhex(f"4500{20 + len(data):04x}0000400040{protocol:02x}00000a0000020a000001")
    return MAC + b"\x08\x00" + header + data


def ipv6(protocol: int, body: str) -> bytes:
    data = bytes.fromhex(body)
    ends = "fe80" + "00" * 13 + "01" + "fe80" + "00" * 13 + "02"
    return (
        MAC + b"\x86\xdd" + bytes.fromhex(f"60000000{len(data):04x}{protocol:02x}40{ends}") + data
    )


ARP = "0001080006040001" + "00163e000001" + "0a000002" + "000000000000" + "0a000001"


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (b"", "runt of 0 bytes"),
        (MAC, "runt of 12 bytes"),
        (MAC + bytes.fromhex("0806" + ARP), "ARP who has 10.0.0.1? tell 10.0.0.2"),
        (MAC + bytes.fromhex("0806" + ARP.replace("040001", "040002", 1)), "ARP 10.0.0.2 is at 00:16:3e:00:00:01"),
        (MAC + bytes.fromhex("0806" + ARP.replace("040001", "040009", 1)), "ARP operation 9"),
        (MAC + bytes.fromhex("08060001"), "ARP, malformed"),
        (MAC + bytes.fromhex("81000005" + "0806" + ARP), "VLAN 5 ARP who has 10.0.0.1? tell 10.0.0.2"),
        (ipv4(1, "0800000000070003" + "00" * 56), "ICMP echo request 10.0.0.2 > 10.0.0.1, id 7 seq 3, 56 bytes"),
        (ipv4(1, "0000000000070003"), "ICMP echo reply 10.0.0.2 > 10.0.0.1, id 7 seq 3, 0 bytes"),
        (ipv4(1, "0301000000000000"), "ICMP type 3 code 1 10.0.0.2 > 10.0.0.1"),
        (ipv4(17, "003500360009000041"), "UDP 10.0.0.2:53 > 10.0.0.1:54, 1 bytes"),
        (ipv4(6, "0050c000000000010000000050120000" + "00000000" + "4142"), "TCP 10.0.0.2:80 > 10.0.0.1:49152 SYN+ACK seq 1, 2 bytes"),
        (ipv4(6, "0050"), "IPv4 protocol 6 10.0.0.2 > 10.0.0.1, 2 bytes"),
        (ipv4(89, "00"), "IPv4 protocol 89 10.0.0.2 > 10.0.0.1, 1 bytes"),
        (MAC + b"\x08\x00" + b"\x45", "IPv4, malformed"),
        (ipv6(58, "8000000000010002aa"), "ICMPv6 echo request fe80::1 > fe80::2, id 1 seq 2, 1 bytes"),
        (ipv6(58, "8700000000000000" + "fe80" + "00" * 13 + "09"), "ICMPv6 neighbour solicitation: who has fe80::9, fe80::1 > fe80::2"),
        (ipv6(17, "0001000200080000"), "UDP fe80::1:1 > fe80::2:2, 0 bytes"),
        (ipv6(44, "1100000100000001" + "00"), "IPv6 fragment fe80::1 > fe80::2, 1 bytes"),
        (MAC + b"\x88\xcc", "ethertype 0x88cc, 0 bytes"),
        (MAC + b"\x00\x26", "802.3, 38 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_frame_in_few_words(frame: bytes, expected: str) -> None:
    assert packets.summary(frame) == expected


@given(
    st.binary(max_size=120),
    st.sampled_from((b"", MAC + b"\x08\x00\x45", MAC + b"\x86\xdd\x60", MAC + b"\x08\x06")),
)
def test_no_frame_is_too_strange_for_words(tail: bytes, head: bytes) -> None:
    assert packets.summary(head + tail).isprintable()


def numbers(*publications: Any, **changed: Any) -> list[str]:
    """The struct that the page gives each slot."""
    tape = Tape()
    tape.events = [event(Event.PUBLISH)] * 10
    tape.rings = [ring(**changed)]
    tape.publications = list(publications)
    found = document.of_tape(tape)["publications"]
    names = [name for name, _, _ in found["structs"]]
    return [names[number] for number in base64.b64decode(found["struct"])]


TX = {
    "kind": "netif_tx",
    "request": "netif_tx_request",
    "response": "netif_tx_response",
    "entry_size": 12,
}


@pytest.mark.parametrize(
    ("operation", "expected"),
    [(0, "blkif_request"), (3, "blkif_request"), (5, "blkif_request_discard"), (6, "blkif_request_indirect"), (255, "blkif_request")],
)  # fmt: skip
def test_a_block_request_is_read_by_its_operation(operation: int, expected: str) -> None:
    slot = bytes([operation]).ljust(112, b"\0")
    assert numbers(published(0, 0, slot)) == [expected]
    narrow = {
        "request": "blkif_request_x86_32",
        "response": "blkif_response_x86_32",
        "entry_size": 108,
    }
    assert numbers(published(0, 0, slot[:108]), **narrow) == [f"{expected}_x86_32"]


def test_extra_infos_are_read_as_such_to_the_last_also_across_publications() -> None:
    request = bytes.fromhex("01000000 0000 0800 0100 0040")  # flags: extra_info
    gso, last = bytes([1, 1]).ljust(12, b"\0"), bytes([4, 0]).ljust(12, b"\0")
    plain = bytes.fromhex("01000000 0000 0000 0200 0040")
    found = numbers(published(0, 0, request, gso), published(1, 2, last, plain), **TX)
    assert found == ["netif_tx_request", "netif_extra_info", "netif_extra_info", "netif_tx_request"]


def test_slots_of_an_unknown_ring_are_bytes() -> None:
    assert numbers(published(0, 0, b"abcd"), request="", response="", entry_size=4) == ["bytes"]


def test_a_field_says_where_it_is_whether_it_is_signed_and_in_which_words() -> None:
    structs = Structs()
    structs.number("netif_rx_response")
    [[name, fields, in_use]] = structs.document()
    assert (name, in_use) == ("netif_rx_response", [])
    assert fields == [
        ("id", 0, 2, False, -1),
        ("offset", 2, 2, False, -1),
        ("flags", 4, 2, False, 0),
        ("status", 6, 2, True, 1),
    ]
    flags, status = structs.enum_document()
    assert flags[1:] == [
        True,
        {
            "1": "data_validated",
            "2": "csum_blank",
            "4": "more_data",
            "8": "extra_info",
            "16": "gso_prefix",
        },
    ]
    assert status[1:] == [False, {"-2": "DROPPED", "-1": "ERROR"}]


def test_frames_beyond_the_first_megabytes_keep_their_head() -> None:
    tape = Tape()
    tape.events = [event(Event.SEND)]
    for number in range(40):
        data = bytes([number]) * 65536
        tape.frames.append(TapedFrame(0, 0, "xenbr0", "p", is_in=True, data=data))
    frames = document.of_tape(tape)["frames"]
    kept = len(base64.b64decode(frames["bytes"]))
    assert kept == 32 * 65536 + 8 * document.FRAME_HEAD_BYTES


def test_the_same_frame_on_several_ports_is_kept_once() -> None:
    tape = Tape()
    tape.events = [event(Event.SEND)]
    for port in "abc":
        tape.frames.append(TapedFrame(0, 0, "xenbr0", port, is_in=False, data=bytes(60)))
    assert len(base64.b64decode(document.of_tape(tape)["frames"]["bytes"])) == 60


def test_a_page_is_the_same_for_the_same_tape_in_any_process(tmp_path: Path) -> None:
    script = (
        "import sys; from tests.view.recordings import platform_tape; from xenpv.view import page;"
        "page.write(platform_tape(), sys.argv[1])"
    )
    subprocess.run(
        [sys.executable, "-c", script, tmp_path / "other.html"], check=True, cwd=ROOT,
        env={"PYTHONHASHSEED": "1", "PATH": ""},
    )  # fmt: skip
    page.write(platform_tape(), tmp_path / "mine.html")
    mine = (tmp_path / "mine.html").read_bytes()
    assert (tmp_path / "other.html").read_bytes() == mine
    assert len(mine) > 100_000


def test_a_page_loads_nothing_and_says_so_in_its_policy() -> None:
    text = page.html(platform_tape(), FOUND)
    markup = Markup(text)
    loading = [
        (tag, name)
        for tag, found in markup.tags
        for name in found
        if name in ("src", "href", "action", "style", "srcset", "data")
    ]
    assert loading == [("a", "href")]  # to the timeline, within the page
    assert not [name for _, found in markup.tags for name in found if name.startswith("on")]
    assert "http" not in text.replace("http-equiv", "")
    policy = next(
        found["content"] for tag, found in markup.tags if tag == "meta" and "http-equiv" in found
    )
    rules = dict(rule.strip().split(" ", 1) for rule in (policy or "").split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["require-trusted-types-for"] == "'script'"

    def hashed(inside: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"

    assert rules["style-src"] == hashed(markup.raw["style"][0])
    assert rules["script-src"] == hashed(markup.raw["script"][1])
    json.loads(markup.raw["script"][0])


def test_scripts_make_no_markup_of_text() -> None:
    for file in (ROOT / "xenpv/view/page/js").glob("*.js"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(|fetch\(|XMLHttp|import\(",
            text,
        ), file
        assert len(text.splitlines()) <= 450, file
    assert {file.stem for file in (ROOT / "xenpv/view/page/js").glob("*.js")} == set(render.SCRIPTS)


def test_hostile_names_make_no_elements() -> None:
    found = json.loads(json.dumps(FOUND))
    harmless = Markup(page.html(hostile(), found))
    guest = found["guests"][0]
    for text in HOSTILE:
        guest["name"] = guest["console"] = guest["devices"][0]["image"] = found["bridges"][0][
            "name"
        ] = text
        found["failures"] = guest["failures"] = guest["devices"][1]["failures"] = [text]
        whole = page.html(hostile(), found, title=text, repeat=text)
        assert not [char for char in whole if not char.isprintable() and char not in "\n\t"]
        shown = Markup(whole)
        tags = [tag for tag, _ in shown.tags]
        assert tags.count("script") == 2
        assert "img" not in tags
        assert set(tags) == {tag for tag, _ in harmless.tags}


def test_the_report_is_there_without_the_script() -> None:
    text = page.html(platform_tape(), FOUND, title="a run", repeat="xenpv run a.cfg --seed 7")
    body = re.sub(r"<script.*?</script>|<style.*?</style>", "", text, flags=re.DOTALL)
    shown = " ".join(re.sub(r"<[^>]+>", " ", body).split())
    for words in (
        "NOT OK", "1 guest, 1 of 2 devices connected and verified", "1.500000001 s of virtual time",
        "sector 7 differs", "Livelock: 3 upcalls", "web failed", "vbd 51712 xvda Connected Closed no 1.0 MiB read, a.img",
        "2 of 2 pings answered", "xenbr0 2 3 1 0", "hello there", "xenpv run a.cfg --seed 7", "0" * 32,
    ):  # fmt: skip
        assert words in shown, words


def test_a_hundred_thousand_events_take_few_bytes() -> None:
    size = len(page.html(large(100_000)).encode())
    assert 1_000_000 < size < 4_000_000


def test_an_empty_tape_has_a_page() -> None:
    assert "0 events" in page.html(Tape())
