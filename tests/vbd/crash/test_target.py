"""The crash driver's target: SRBs, commands and requests, with every quirk off and on."""

from __future__ import annotations

import base64
import struct

import pytest

from tests.vbd.crash.rawscene import CrashScene, cdb, crash_scene
from tests.vbd.rawback import BARRIER, EOPNOTSUPP, ERROR, FLUSH, KEYS, OKAY, READ, WRITE
from xenpv.errors import GrantError, LocalProtocolError
from xenpv.vbd.srb import Srb, SrbStatus
from xenpv.vbd.units import SS2019

PENDING, SUCCESS, ABORTED, ABORT_FAILED, SRB_ERROR = 0, 1, 2, 3, 4
INVALID_REQUEST, INVALID_PATH_ID, INVALID_LUN, DATA_OVERRUN = 6, 7, 0x20, 0x12
S = 1_000_000_000


def ended(srb: Srb) -> tuple[int, int]:
    return int(srb.srb_status), int(srb.scsi_status)


# functions, and where an SRB is for

FUNCTIONS = [
    (0x00, {}, (SUCCESS, 0)), (0x00, {"target_id": 77}, (SUCCESS, 0)),
    (0x00, {"path_id": 1}, (INVALID_PATH_ID, 0)), (0x00, {"lun": 1}, (INVALID_LUN, 0)),
    (0x00, {"lun": 1, "path_id": 1}, (INVALID_PATH_ID, 0)),
    (0x07, {}, (SUCCESS, 0)), (0x08, {}, (SUCCESS, 0)), (0x10, {}, (ABORT_FAILED, 0)),
    (0x12, {}, (SUCCESS, 0)), (0x13, {}, (SUCCESS, 0)), (0x02, {}, (INVALID_REQUEST, 0)),
    (0x14, {}, (INVALID_REQUEST, 0)), (0x17, {}, (INVALID_REQUEST, 0)),
    (0x18, {}, (INVALID_REQUEST, 0)), (0x20, {}, (INVALID_REQUEST, 0)),
    (0x24, {}, (INVALID_REQUEST, 0)), (0x25, {}, (INVALID_REQUEST, 0)),
    (0x26, {}, (INVALID_REQUEST, 0)), (0xFF, {}, (INVALID_REQUEST, 0)),
]  # fmt: skip


@pytest.mark.parametrize(("function", "fields", "expected"), FUNCTIONS)
def test_functions_of_an_srb(
    function: int, fields: dict[str, int], expected: tuple[int, int]
) -> None:
    with crash_scene() as scene:
        scene.connect()
        assert ended(scene.submit(bytes(6), function=function, **fields)) == expected


# commands that move no sectors: CDB, buffer, status, reply

STANDARD = bytes.fromhex("0000040220000002") + b"XENSRC  PVDISK          2.0 "
LAST, SIZE = bytes.fromhex("000003ff"), bytes.fromhex("00000200")
CACHING = bytes.fromhex("0812") + bytes(18)
EXCEPTIONS = bytes.fromhex("1c0a08") + bytes(9)
COMMANDS = [
    ("000000000000", 0, SUCCESS, b""), ("1b0000000100", 0, SUCCESS, b""),
    ("1e0000000100", 0, SUCCESS, b""), ("160000000000", 0, SUCCESS, b""),
    ("170000000000", 0, SUCCESS, b""), ("56000000000000000000", 0, SUCCESS, b""),
    ("57000000000000000000", 0, SUCCESS, b""), ("2f000000000000000100", 0, SUCCESS, b""),
    ("8f000000000000000000000000010000", 0, SUCCESS, b""),
    ("af0000000000000000000000", 0, INVALID_REQUEST, b""),
    # classes: opcode and length of the CDB go together
    ("00000000000000000000", 0, INVALID_REQUEST, b""), ("2f0000000000", 0, INVALID_REQUEST, b""),
    ("", 0, INVALID_REQUEST, b""), ("12", 36, INVALID_REQUEST, b""),
    # INQUIRY
    ("120000002400", 36, SUCCESS, STANDARD), ("12000000ff00", 255, SUCCESS, STANDARD),
    ("120000000500", 5, SUCCESS, STANDARD[:5]), ("120080002400", 36, INVALID_REQUEST, b""),
    ("12010000ff00", 255, SUCCESS, bytes.fromhex("00000003008083")),
    ("12018000ff00", 255, SUCCESS, bytes.fromhex("0080000120")),
    ("12018300ff00", 255, SUCCESS, bytes.fromhex("00830000")),
    ("1201b000ff00", 255, INVALID_REQUEST, b""), ("1201b100ff00", 255, INVALID_REQUEST, b""),
    ("1201b200ff00", 255, INVALID_REQUEST, b""),
    # MODE SENSE(6): header, block descriptor, pages while the allocation length has room
    ("1a0008000500", 5, DATA_OVERRUN, b""),
    ("1a000800ff00", 255, SUCCESS, bytes.fromhex("1f000008") + bytes(8) + CACHING),
    ("1a080800ff00", 255, SUCCESS, bytes.fromhex("17000000") + CACHING),
    ("1a081c00ff00", 255, SUCCESS, bytes.fromhex("0f000000") + EXCEPTIONS),
    ("1a083f00ff00", 255, SUCCESS, bytes.fromhex("23000000") + CACHING + EXCEPTIONS),
    ("1a080800ff00", 20, SUCCESS, bytes.fromhex("03000000")),
    ("1a080800171700", 255, INVALID_REQUEST, b""),
    ("1a0808001700", 255, SUCCESS, bytes.fromhex("03000000")),
    ("1a0008000200", 255, SUCCESS, bytes.fromhex("0300")),
    ("1a083300ff00", 255, SUCCESS, bytes.fromhex("03000000")),
    ("5a0008000000000ff00", 255, INVALID_REQUEST, b""),
    ("5a00080000000000ff00", 255, INVALID_REQUEST, b""),
    # the rest
    ("030000001200", 18, SUCCESS, b"\xf0" + bytes(17)), ("030000001200", 4, SUCCESS, b"\xf0\0\0\0"),
    ("25000000000000000000", 8, SUCCESS, LAST + SIZE), ("25000000000000000000", 3, SUCCESS, LAST[:3]),
    ("25000000000100000000", 8, SUCCESS, LAST + SIZE),
    ("9e100000000000000000000000200000", 32, SUCCESS, bytes(4) + LAST + SIZE),
    ("a00000000000000000100000", 16, SUCCESS, bytes.fromhex("00000008") + bytes(12)),
    ("a00000000000000000080000", 16, SUCCESS, bytes.fromhex("00000008") + bytes(4)),
    ("42000000000000001800", 24, INVALID_REQUEST, b""), ("150000000000", 0, INVALID_REQUEST, b""),
    ("4d000000000000000000", 0, INVALID_REQUEST, b""), ("93000000000000000000000000000000", 0, INVALID_REQUEST, b""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "room", "status", "reply"), COMMANDS)
def test_commands_that_move_no_sectors(text: str, room: int, status: int, reply: bytes) -> None:
    with crash_scene() as scene:
        scene.connect()
        pfn = scene.page(b"\xaa" * 256)
        raw = bytes.fromhex(text if len(text) % 2 == 0 else text + "0")
        srb = scene.submit(raw, [(pfn, 0, room)] if room else [])
        assert ended(srb) == (status, 0)
        if status == SUCCESS and room:
            assert srb.data_transfer_length == len(reply)
            assert scene.domain.read(pfn, 0, room) == reply.ljust(room, b"\0")
        assert scene.domain.read(pfn, room, 1) == (b"\xaa" if room < 256 else b"\0")


QUIRKS = [
    ("crash-report-luns", "a00000000000000000180000", 24, 16,
     bytes.fromhex("00000010") + bytes(12) + bytes.fromhex("80") + bytes(7)),
    ("crash-report-luns", "a00000000000000000100000", 24, 8, bytes.fromhex("00000008") + bytes(12)),
    ("crash-report-luns", "a00000000000000000040000", 24, 0, bytes(4)),
    ("mode-page-length", "1a081c00ff00", 255, 16, bytes.fromhex("0f0000001c0c08") + bytes(9)),
    ("mode-page-length", "1a080800ff00", 255, 24, bytes.fromhex("170000000814") + bytes(18)),
]  # fmt: skip


@pytest.mark.parametrize(("quirk", "text", "room", "length", "reply"), QUIRKS)
def test_replies_of_the_original(
    quirk: str, text: str, room: int, length: int, reply: bytes
) -> None:
    with crash_scene(quirks=frozenset({quirk})) as scene:
        scene.connect()
        pfn = scene.page()
        srb = scene.submit(bytes.fromhex(text), [(pfn, 0, room)])
        assert ended(srb) == (SUCCESS, 0)
        assert srb.data_transfer_length == length
        assert scene.domain.read(pfn, 0, room) == reply.ljust(room, b"\0")


@pytest.mark.parametrize(("quirks", "protected"), [((), 0x80), (("crash-read-only",), 0)])
def test_mode_sense_tells_of_a_read_only_disk(quirks: tuple[str, ...], protected: int) -> None:
    with crash_scene(keys={"info": "4"}, quirks=frozenset(quirks)) as scene:
        scene.connect()
        pfn = scene.page()
        scene.submit(bytes.fromhex("1a080800ff00"), [(pfn, 0, 64)])
        assert scene.domain.read(pfn, 2, 1) == bytes((protected,))


def test_pages_that_the_host_dictates() -> None:
    pages = {
        "0x80": b"\0\x80\0\4SNR1", "131": b"\0\x83\0\0", "0xC0": b"\0\xc0\0\1!",
        "default": bytes(range(40)), "0x100": b"far", "0": b"nought", "text": b"none",
        "0xB0": b"",
    }  # fmt: skip
    with crash_scene() as scene:
        home = f"/local/domain/0/backend/vbd/{scene.domain.domid}/51712/sm-data/scsi/0x12"
        for name, page in pages.items():
            scene.write(f"{home}/{name}", base64.b64encode(page).decode())
        scene.write(f"{home}/0xC1", "no base64!")
        scene.connect()
        pfn = scene.page()

        def inquiry(has_page: int, code: int, room: int = 255) -> bytes | None:
            srb = scene.submit(bytes((0x12, has_page, code, 0, 255, 0)), [(pfn, 0, room)])
            if srb.srb_status is not SrbStatus.SUCCESS:
                return None
            return scene.domain.read(pfn, 0, srb.data_transfer_length)

        assert inquiry(1, 0x00) == bytes.fromhex("00000004008083c0")
        assert inquiry(1, 0x80) == pages["0x80"]
        assert inquiry(1, 0x83) == pages["131"]
        assert inquiry(1, 0xC0) == pages["0xC0"]
        assert inquiry(1, 0xC0, 2) == b"\0\xc0"
        assert [inquiry(1, code) for code in (0xB0, 0xC1)] == [None, None]
        assert inquiry(0, 0) == pages["default"]


# READ and WRITE

RANGES = [
    (0x28, 0, 1, {}, ()), (0x28, 1023, 1, {}, ()), (0x88, 0, 1024, {}, "over"),
    (0x28, 1024, 1, {}, (INVALID_REQUEST, 0x40)), (0x28, 1023, 2, {}, (INVALID_REQUEST, 0x40)),
    (0x88, (1 << 64) - 1, 1, {}, (INVALID_REQUEST, 0x40)), (0x2A, 1024, 1, {}, (INVALID_REQUEST, 0x40)),
    (0x28, 0, 0, {}, (SUCCESS, 0)), (0x2A, 1023, 0, {}, (SUCCESS, 0)), (0x28, 1024, 0, {}, (INVALID_REQUEST, 0x40)),
    (0x2A, 0, 1, {"info": "4"}, (SRB_ERROR, 0x40)), (0x35, 0, 0, {"info": "4"}, (SRB_ERROR, 0x40)),
    (0x28, 0, 1, {"info": "4"}, ()), (0x28, 0, 9, {}, (INVALID_REQUEST, 0x40)),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "lba", "count", "keys", "expected"), RANGES)
def test_ranges(
    operation: int, lba: int, count: int, keys: dict[str, str], expected: tuple[int, int] | str
) -> None:
    with crash_scene(keys=keys) as scene:
        scene.connect()
        data = [(scene.page(), 0, 4096)]
        if expected == "over":
            expected = (INVALID_REQUEST, 0x40)  # more than the buffer has
        srb = scene.submit(cdb(operation, lba, count), data)
        assert ended(srb) == (expected or (PENDING, 0))
        assert len(scene.taken()) == (not expected)


@pytest.mark.parametrize(
    ("quirk", "operation", "lba", "count", "keys", "sent"),
    [
        ("crash-range", 0x28, 1023, 1, {}, 0),
        ("crash-range", 0x28, 1022, 1, {}, 1),
        ("crash-read-only", 0x2A, 0, 1, {"info": "4"}, 1),
        ("crash-read-only", 0x35, 0, 0, {"info": "4"}, 1),
    ],
)
def test_ranges_of_the_original(
    quirk: str, operation: int, lba: int, count: int, keys: dict[str, str], sent: int
) -> None:
    with crash_scene(keys=keys, quirks=frozenset({quirk})) as scene:
        scene.connect()
        srb = scene.submit(cdb(operation, lba, count), [(scene.page(), 0, 4096)])
        assert len(scene.taken()) == sent
        assert ended(srb) == ((PENDING, 0) if sent else (INVALID_REQUEST, 0x40))


@pytest.mark.parametrize(("count", "quirk", "sectors"), [(0, False, 256), (0, True, 0), (3, False, 3), (255, True, 255)])  # fmt: skip
def test_a_six_byte_cdb(count: int, quirk: bool, sectors: int) -> None:
    quirks = frozenset({"read6-zero"}) if quirk else frozenset()
    with crash_scene(quirks=quirks, keys={"sectors": "4096"}) as scene:
        scene.connect()
        pfn = scene.page(pages=32)
        if sectors * 512 > 90112:
            # Larger than the adapter takes: 256 sectors are what the CDB means all the same.
            srb = scene.submit(bytes((8, 0, 0, 1, count, 0)), [(pfn, 0, 4096)])
            assert ended(srb) == (INVALID_REQUEST, 0x40)
            return
        srb = scene.submit(bytes((8, 0, 0, 1, count, 0)), [(pfn, 0, 4096)])
        assert ended(srb) == ((SUCCESS, 0) if not sectors else (PENDING, 0))
        slots = scene.taken()
        assert [slot.sector for slot in slots] == [1] * bool(sectors)


def test_nothing_is_sent_before_the_driver_is_connected() -> None:
    with crash_scene() as scene:
        for operation in (0x28, 0x2A, 0x35):
            srb = scene.submit(cdb(operation, 0, 1), [(scene.page(), 0, 512)])
            assert ended(srb) == (INVALID_REQUEST, 0x40)
        scene.driver.target.interrupt()


@pytest.mark.parametrize("data", [[(0x200, 0, 90_113)], [(0x200, 0, 512)] * 23])
def test_more_than_the_adapter_takes_is_the_callers_fault(
    data: list[tuple[int, int, int]],
) -> None:
    with crash_scene() as scene, pytest.raises(LocalProtocolError, match="at most 90112 in 22"):
        scene.connect().submit(cdb(0x2A, 0, 1), data)


def test_the_largest_write_is_two_requests_of_eleven_read_only_pages() -> None:
    with crash_scene() as scene:
        scene.connect()
        content = b"".join(struct.pack("<I", n) * 1024 for n in range(22))
        pfn = scene.page(content, pages=22)
        srb = scene.submit(cdb(0x2A, 8, 176), [(pfn, 0, 90112)])
        first, second = scene.taken()
        assert [(one.operation, one.sector, one.nr) for one in (first, second)] == [
            (WRITE, 8, 11),
            (WRITE, 96, 11),
        ]
        # 8 is the ring's.
        refs = [segment[0] for segment in first.segments + second.segments]
        assert sorted(refs) == list(range(9, 31))
        assert {segment[1:] for segment in first.segments + second.segments} == {(0, 7)}
        assert b"".join(scene.back.read(ref) for ref in refs) == content
        with pytest.raises(GrantError, match="permission_denied|general_error"):
            scene.back.map(refs[0])
        scene.answer((first.id, OKAY))
        assert ended(srb) == (PENDING, 0)
        scene.answer((second.id, OKAY))
        assert ended(srb) == (SUCCESS, 0)
        assert sorted(scene.driver.references.free) == list(range(9, 32))


def test_a_read_goes_where_its_pieces_are() -> None:
    with crash_scene() as scene:
        scene.connect()
        pfn = scene.page(b"-" * 16384, pages=4)
        # A page that is granted, half sectors of three fragments, one sector that is granted.
        data = [(pfn, 0, 4096), (pfn + 1, 100, 300), (pfn + 2, 4000, 212), (pfn + 3, 1024, 512)]
        srb = scene.submit(cdb(0x28, 5, 10), data)
        (slot,) = scene.taken()
        assert (slot.operation, slot.sector, slot.nr) == (READ, 5, 3)
        assert [segment[1:] for segment in slot.segments] == [(0, 7), (0, 0), (2, 2)]
        content = [bytes([65 + n]) * 512 for n in range(10)]
        (whole, _f, _l), (bounced, _f, _l), (one, _f, _l) = slot.segments
        scene.back.fill(whole, b"".join(content[:8]))
        scene.back.fill(bounced, content[8])
        scene.back.fill(one, content[9], 1024)
        scene.answer((slot.id, OKAY))
        assert ended(srb) == (SUCCESS, 0)
        read = b"".join(scene.domain.read(p, o, n) for p, o, n in data)
        assert read == b"".join(content)
        left = scene.domain.read(pfn + 1, 0, 100) + scene.domain.read(pfn + 3, 1536, 100)
        assert left == b"-" * 200


def test_a_piece_that_ends_within_a_sector_is_copied_with_the_next() -> None:
    with crash_scene() as scene:
        scene.connect()
        pfn = scene.page(bytes(range(256)) * 32, pages=2)
        data = [(pfn, 512, 300), (pfn + 1, 0, 212)]
        srb = scene.submit(cdb(0x2A, 0, 1), data)
        (slot,) = scene.taken()
        ((gref, first, last),) = slot.segments
        assert (first, last) == (0, 0)
        content = b"".join(scene.domain.read(*piece) for piece in data)
        assert scene.back.read(gref, 0, 512) == content
        scene.answer((slot.id, OKAY))
        assert ended(srb) == (SUCCESS, 0)


def test_a_read_that_failed_leaves_the_buffer_alone() -> None:
    with crash_scene() as scene:
        scene.connect()
        pfn = scene.page(b"-" * 4096)
        srb = scene.submit(cdb(0x28, 0, 1), [(pfn, 100, 512)])
        (slot,) = scene.taken()
        scene.back.fill(slot.segments[0][0], b"x" * 4096)
        scene.answer((slot.id, ERROR))
        assert ended(srb) == (SRB_ERROR, 0x40)
        assert scene.domain.read(pfn, 0, 4096) == b"-" * 4096


def test_a_write_that_is_not_aligned_is_copied_first() -> None:
    with crash_scene() as scene:
        scene.connect()
        pfn = scene.page(bytes(range(256)) * 32, pages=2)
        srb = scene.submit(cdb(0x2A, 0, 3), [(pfn, 3000, 1536)])
        (slot,) = scene.taken()
        assert [segment[1:] for segment in slot.segments] == [(0, 2)]
        expected = (bytes(range(256)) * 32)[3000:4536]
        assert scene.back.read(slot.segments[0][0], 0, 1536) == expected
        scene.answer((slot.id, OKAY))
        assert ended(srb) == (SUCCESS, 0)


def test_what_is_no_memory_is_written_as_zeros() -> None:
    with crash_scene() as scene:
        scene.connect()
        domain = scene.domain
        pfn = scene.page(b"x" * 12288, pages=3)
        assert domain.memory.decrease_reservation(domain.DOMID_SELF, [pfn + 1]) == 1
        srb = scene.submit(cdb(0x2A, 0, 24), [(pfn, 0, 12288)])
        (slot,) = scene.taken()
        assert [scene.back.read(s[0], 0, 1) for s in slot.segments] == [b"x", b"\0", b"x"]
        scene.answer((slot.id, OKAY))
        assert ended(srb) == (SUCCESS, 0)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        # 22 pages from within one: 23 segments, which two requests do not have.
        ([(0x400, 512, 90112)], (SRB_ERROR, 0x40)),
        # Nine bounce pages, where there are eight.
        ([(0x400, 1, 36864)], (SRB_ERROR, 0x40)),
        ([(0x400, 1, 32768)], (PENDING, 0)),
    ],
)
def test_what_will_never_fit_ends_as_an_error(
    data: list[tuple[int, int, int]], status: tuple[int, int]
) -> None:
    with crash_scene() as scene:
        scene.connect()
        assert ended(scene.submit(cdb(0x28, 0, data[0][2] // 512), data)) == status


def test_an_srb_waits_for_bounce_pages_and_goes_on() -> None:
    with crash_scene() as scene:
        scene.connect()
        first = scene.submit(cdb(0x28, 0, 40), [(scene.page(pages=6), 1, 20480)])
        second = scene.submit(cdb(0x28, 40, 40), [(scene.page(pages=6), 1, 20480)])
        (slot,) = scene.taken()
        scene.driver.target.interrupt()
        assert not scene.taken()
        scene.answer((slot.id, OKAY))
        assert ended(first) == (SUCCESS, 0)
        (slot,) = scene.taken()
        assert slot.sector == 40
        scene.answer((slot.id, OKAY))
        assert ended(second) == (SUCCESS, 0)


def test_an_srb_that_did_not_fit_twice_is_lost_in_the_original() -> None:
    with crash_scene(quirks=frozenset({"crash-lost-srb"})) as scene:
        scene.connect()
        scene.submit(cdb(0x28, 0, 40), [(scene.page(pages=6), 1, 20480)])
        second = scene.submit(cdb(0x28, 40, 40), [(scene.page(pages=6), 1, 20480)])
        (slot,) = scene.taken()
        scene.driver.target.interrupt()
        scene.answer((slot.id, OKAY))
        scene.driver.target.interrupt()
        assert not scene.taken()
        assert ended(second) == (PENDING, 0)


def test_the_ring_keeps_a_slot_free() -> None:
    with crash_scene() as scene:
        scene.connect()
        srbs = [scene.submit(cdb(0x35)) for _ in range(40)]
        assert all(ended(srb) == (PENDING, 0) for srb in srbs)
        slots = scene.taken()
        assert len(slots) == 31
        scene.answer(*[(slot.id, OKAY) for slot in slots])
        assert sum(srb.is_complete for srb in srbs) == 31
        assert len(scene.taken()) == 9


# flushes: which of the two, what follows each answer

FLUSHES = [
    ({}, FLUSH, OKAY, (SUCCESS, 0)), ({"feature-barrier": "1"}, BARRIER, OKAY, (SUCCESS, 0)),
    ({"feature-barrier": "2"}, FLUSH, OKAY, (SUCCESS, 0)),
    ({"feature-barrier": "1", "feature-flush-cache": "0"}, BARRIER, OKAY, (SUCCESS, 0)),
    ({"feature-flush-cache": "0"}, None, OKAY, (SUCCESS, 0)),
    ({"feature-flush-cache": "junk"}, None, OKAY, (SUCCESS, 0)),
    ({}, FLUSH, ERROR, (SRB_ERROR, 0x40)), ({}, FLUSH, 77, (SRB_ERROR, 0x40)),
    ({}, FLUSH, EOPNOTSUPP, (SUCCESS, 0)),
    ({"feature-barrier": "1"}, BARRIER, EOPNOTSUPP, "flush"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "operation", "status", "expected"), FLUSHES)
def test_flushes(
    keys: dict[str, str], operation: int | None, status: int, expected: tuple[int, int] | str
) -> None:
    with crash_scene(keys=keys) as scene:
        scene.connect()
        srb = scene.submit(cdb(0x35, 7))
        slots = scene.taken()
        if operation is None:
            assert (slots, ended(srb)) == ([], (SUCCESS, 0))
            return
        (slot,) = slots
        assert (slot.operation, slot.nr, slot.sector) == (operation, 0, 7)
        scene.answer((slot.id, status))
        if expected == "flush":
            (slot,) = scene.taken()
            assert slot.operation == FLUSH
            scene.answer((slot.id, OKAY))
            expected = (SUCCESS, 0)
        assert ended(srb) == expected


def test_which_flush_there_is_the_backend_says_when_it_is_connected() -> None:
    # Its keys are those of the connection before until then.
    for quirks, operation in ((frozenset(), BARRIER), (frozenset({"crash-stale-features"}), FLUSH)):
        with crash_scene(quirks=quirks) as scene:
            scene.back.keys = {**KEYS, "feature-barrier": "1", "feature-flush-cache": "0"}
            scene.connect()
            scene.submit(cdb(0x35))
            assert [slot.operation for slot in scene.taken()] == [operation]


# answers

ANSWERS = [
    ("", 0x2A, OKAY, (SUCCESS, 0)), ("", 0x2A, ERROR, (SRB_ERROR, 0x40)),
    ("", 0x2A, EOPNOTSUPP, (SRB_ERROR, 0x40)), ("", 0x28, EOPNOTSUPP, (SRB_ERROR, 0x40)),
    ("", 0x28, 1, (SRB_ERROR, 0x40)), ("", 0x28, -32768, (SRB_ERROR, 0x40)),
    ("crash-status", 0x2A, ERROR, (SUCCESS, 0)), ("crash-status", 0x28, EOPNOTSUPP, (SUCCESS, 0)),
    ("crash-status", 0x35, ERROR, (SUCCESS, 0)),
]  # fmt: skip


@pytest.mark.parametrize(("quirk", "operation", "status", "expected"), ANSWERS)
def test_answers(quirk: str, operation: int, status: int, expected: tuple[int, int]) -> None:
    with crash_scene(quirks=frozenset({quirk} - {""})) as scene:
        scene.connect()
        srb = scene.submit(cdb(operation, 0, 1), [(scene.page(), 0, 512)])
        (slot,) = scene.taken()
        scene.answer((slot.id, status))
        assert ended(srb) == expected
        assert not scene.driver.target.broken


def test_an_error_is_not_overwritten_by_the_other_half() -> None:
    for statuses in ((ERROR, OKAY), (OKAY, ERROR)):
        with crash_scene() as scene:
            scene.connect()
            srb = scene.submit(cdb(0x2A, 0, 176), [(scene.page(pages=22), 0, 90112)])
            slots = scene.taken()
            scene.answer(*[(slot.id, status) for slot, status in zip(slots, statuses, strict=True)])
            assert ended(srb) == (SRB_ERROR, 0x40)


# a backend that breaks the protocol


def broken_by(scene: CrashScene, srb: Srb) -> str:
    scene.driver.target.interrupt()
    assert ended(srb) == (SRB_ERROR, 0x40)
    again = scene.submit(cdb(0x2A, 0, 1), [(scene.page(), 0, 512)])
    assert ended(again) == (INVALID_REQUEST, 0x40)
    scene.driver.target.interrupt()
    return scene.driver.target.broken


@pytest.mark.parametrize("number", [0, 2, 1 << 63, (1 << 64) - 1])
def test_an_answer_to_what_was_not_asked(number: int) -> None:
    with crash_scene() as scene:
        scene.connect()
        srb = scene.submit(cdb(0x2A, 0, 1), [(scene.page(), 0, 512)])
        scene.taken()
        scene.back.answer((number, OKAY))
        assert "which is none" in broken_by(scene, srb)


def test_an_answer_that_comes_twice() -> None:
    with crash_scene() as scene:
        scene.connect()
        srb = scene.submit(cdb(0x2A, 0, 176), [(scene.page(pages=22), 0, 90112)])
        first, _second = scene.taken()
        scene.back.answer((first.id, OKAY), (first.id, OKAY))
        assert "which is none" in broken_by(scene, srb)


def test_what_was_answered_beside_an_answer_that_is_none_ends_too() -> None:
    with crash_scene() as scene:
        scene.connect()
        srb = scene.submit(cdb(0x2A, 0, 1), [(scene.page(), 0, 512)])
        other = scene.submit(cdb(0x2A, 0, 1), [(scene.page(), 0, 512)])
        slot, _second = scene.taken()
        scene.back.answer((slot.id, OKAY), (77, OKAY))
        assert "which is none" in broken_by(scene, srb)
        assert ended(other) == (SRB_ERROR, 0x40)


@pytest.mark.parametrize("ahead", [3, 33, 1 << 31, (1 << 32) - 1])
def test_an_index_that_runs_past_the_requests(ahead: int) -> None:
    with crash_scene() as scene:
        scene.connect()
        srb = scene.submit(cdb(0x2A, 0, 1), [(scene.page(), 0, 512)])
        scene.taken()
        scene.back.store(8, ahead)
        assert "past the ring" in broken_by(scene, srb)


def test_a_backend_that_never_answers_is_broken_after_60_seconds() -> None:
    with crash_scene() as scene:
        scene.connect()
        srb = scene.submit(cdb(0x2A, 0, 1), [(scene.page(), 0, 512)])
        drain = scene.submit(b"", function=0x08)
        scene.xen.loop.advance(60 * S - 1)
        scene.driver.target.interrupt()
        assert ended(srb) == ended(drain) == (PENDING, 0)
        scene.xen.loop.advance(1)
        assert broken_by(scene, srb) == "no answer for 60 s"
        assert ended(drain) == (SUCCESS, 0)


def test_a_page_that_the_backend_holds_on_to_is_not_given_out_again() -> None:
    with crash_scene() as scene:
        scene.connect()
        srb = scene.submit(cdb(0x28, 0, 1), [(scene.page(), 1, 512)])
        (slot,) = scene.taken()
        (gref, _first, _last) = slot.segments[0]
        scene.back.map(gref)
        scene.answer((slot.id, OKAY))
        assert ended(srb) == (SUCCESS, 0)
        assert "holds on to a page" in scene.driver.target.broken
        assert gref not in scene.driver.references.free
        assert scene.driver.references.held == [gref]
        assert len(scene.driver.target._bounce) == 7


# reset and shutdown


def test_a_reset_waits_for_what_is_in_flight() -> None:
    with crash_scene() as scene:
        scene.connect()
        first = scene.submit(cdb(0x28, 0, 40), [(scene.page(pages=6), 1, 20480)])
        waits = scene.submit(cdb(0x28, 40, 40), [(scene.page(pages=6), 1, 20480)])
        reset = scene.submit(b"", function=0x13)
        assert ended(waits) == (ABORTED, 0x40)
        assert ended(reset) == (PENDING, 0)
        (slot,) = scene.taken()
        scene.answer((slot.id, OKAY))
        assert (ended(first), ended(reset)) == ((SUCCESS, 0), (SUCCESS, 0))


def test_a_reset_of_the_original_says_that_it_is_no_request() -> None:
    with crash_scene(quirks=frozenset({"crash-reset-status"})) as scene:
        scene.connect()
        assert ended(scene.submit(b"", function=0x13)) == (INVALID_REQUEST, 0)
        assert ended(scene.submit(b"", function=0x12)) == (SUCCESS, 0)


# sectors


@pytest.mark.parametrize(
    ("units", "sectors", "sector", "first", "last"),
    [(None, "1024", 24, 0, 7), (SS2019, "128", 3, 0, 0)],
)
def test_a_disk_of_4096_byte_sectors(
    units: object, sectors: str, sector: int, first: int, last: int
) -> None:
    keys = {"sector-size": "4096", "sectors": sectors}
    named = {} if units is None else {"units": units}
    with crash_scene(keys=keys, **named) as scene:  # type: ignore[arg-type]
        scene.connect()
        assert scene.driver.backend.capacity == 128
        srb = scene.submit(cdb(0x2A, 3, 1), [(scene.page(), 0, 4096)])
        (slot,) = scene.taken()
        assert (slot.sector, slot.segments[0][1:]) == (sector, (first, last))
        scene.answer((slot.id, OKAY))
        assert ended(srb) == (SUCCESS, 0)
        half = scene.submit(cdb(0x2A, 3, 1), [(scene.page(), 0, 512)])
        assert ended(half) == (INVALID_REQUEST, 0x40)
