"""The SCSI surface, byte for byte as the specification's tables have it."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest

from tests.vbd.rawback import Scene, scene
from xenpv.vbd.adapter import Vbd
from xenpv.vbd.srb import ScsiStatus, Srb, SrbFunction, SrbStatus
from xenpv.vbd.target import Target

SUCCESS, ERROR, INVALID = SrbStatus.SUCCESS, SrbStatus.ERROR, SrbStatus.INVALID_REQUEST


@pytest.fixture(scope="module")
def shared() -> Iterator[Scene]:
    with scene() as made:
        yield made


@pytest.fixture
def on(shared: Scene) -> Iterator[Scene]:
    """A disk of 1,024 sectors of 512 bytes; what a test changes of it is undone."""
    backend = shared.target.backend
    before = attrs.asdict(backend, recurse=False)
    yield shared
    for name, value in before.items():
        setattr(backend, name, value)


def ask(on: Scene, cdb: str | bytes, size: int = 0) -> tuple[SrbStatus, bytes]:
    """Status, and the reply as long as the SRB says it is; the rest must be zeros."""
    cdb = bytes.fromhex(cdb) if isinstance(cdb, str) else cdb
    pfn = on.page(b"\xee" * 4096)
    srb = on.submit(cdb, [(pfn, 0, size)] if size else [])
    assert srb.scsi_status is ScsiStatus.GOOD
    whole = on.domain.read(pfn, 0, 4096)
    on.domain.pages.free(pfn)
    length = srb.data_transfer_length
    if srb.srb_status is SUCCESS and size:
        assert whole[length:size] == bytes(size - length)
        assert whole[size:] == b"\xee" * (4096 - size)
    return srb.srb_status, whole[:length]


def pad(cdb: str, length: int) -> bytes:
    return bytes.fromhex(cdb).ljust(length, b"\0")


@pytest.mark.parametrize(
    "cdb",
    [
        pad("00", 6), pad("1b", 6), pad("1e", 6), pad("16", 6), pad("17", 6),
        pad("56", 10), pad("57", 10), pad("2f", 10), pad("8f", 16),
    ],
    ids=bytes.hex,
)  # fmt: skip
def test_commands_without_effect_succeed(on: Scene, cdb: bytes) -> None:
    assert ask(on, cdb) == (SUCCESS, b"")


@pytest.mark.parametrize(
    "cdb",
    [
        b"",
        pad("00", 5), pad("00", 10), pad("28", 6), pad("28", 12), pad("28", 16), pad("12", 10),
        pad("a0", 10), pad("a0", 16), pad("88", 12), pad("08", 10), pad("9e", 10), pad("1f", 6),
        pad("af", 12),  # VERIFY(12)
        pad("15", 6), pad("55", 10), pad("4d", 10), pad("04", 6), pad("41", 10), pad("93", 16),
        pad("89", 16), pad("5e", 10), pad("5f", 10), pad("a1", 12), pad("85", 16), pad("01", 6),
        pad("ff", 16), pad("7f", 16), pad("43", 10),
    ],
    ids=bytes.hex,
)  # fmt: skip
def test_what_is_not_in_the_table_is_an_invalid_request(on: Scene, cdb: bytes) -> None:
    assert ask(on, cdb, 512)[0] is INVALID


STANDARD = "0402200000 02 58454e5352432020 505644 49534b 20202020202020202020 322e3020"


@pytest.mark.parametrize(
    ("info", "head"), [(0, "0000"), (1, "0080"), (2, "0080"), (3, "0080"), (4, "0000")]
)
@pytest.mark.parametrize("size", [36, 64, 255])
def test_standard_inquiry(on: Scene, info: int, head: str, size: int) -> None:
    on.target.backend.info = info
    assert ask(on, "12 00 00 00 24 00", size) == (SUCCESS, bytes.fromhex(head + STANDARD))


def test_inquiry_of_a_page_without_evpd_or_into_too_little_is_an_error(on: Scene) -> None:
    assert ask(on, "12 00 80 00 24 00", 255)[0] is ERROR
    assert ask(on, "12 00 00 00 24 00", 35)[0] is ERROR
    assert ask(on, "12 00 00 00 24 00", 0)[0] is ERROR


PAGES = {
    0x00: "00 00 00 05 00 80 83 b0 b1",
    0x80: "00 80 00 04 30303030",
    0x83: "00 83 00 14 02 01 00 10 58454e5352432020 3030303030303030",
    0xB0: "00 b0 00 3c" + "00" * 60,
    0xB1: "00 b1 00 3c 00 01" + "00" * 58,
}


@pytest.mark.parametrize("page", PAGES)
def test_vital_product_data(on: Scene, page: int) -> None:
    expected = bytes.fromhex(PAGES[page])
    on.target.backend.info = 4  # the page's first byte is 0 also on a read-only disk
    cdb = bytes((0x12, 1, page, 0, 255, 0))
    assert ask(on, cdb, 255) == (SUCCESS, expected)
    assert ask(on, cdb, len(expected)) == (SUCCESS, expected)
    assert ask(on, cdb, len(expected) - 1)[0] is ERROR


@pytest.mark.parametrize("page", [0x01, 0x81, 0x86, 0xB2, 0xC0, 0xFF])
def test_other_pages_are_errors(on: Scene, page: int) -> None:
    assert ask(on, bytes((0x12, 1, page, 0, 255, 0)), 255)[0] is ERROR


@pytest.mark.parametrize(
    ("sector_size", "granularity", "alignment", "tail"),
    [
        (512, 4096, 0, "00000008 80000000"),
        (512, 4096, 1024, "00000008 80000002"),
        (4096, 1 << 20, 8192, "00000100 80000002"),
        (512, 0, 1024, "00000000 00000002"),
    ],
)
def test_block_limits_are_in_logical_blocks(
    on: Scene, sector_size: int, granularity: int, alignment: int, tail: str
) -> None:
    backend = on.target.backend
    backend.sector_size = sector_size
    backend.discard_granularity, backend.discard_alignment = granularity, alignment
    status, page = ask(on, "12 01 b0 00 ff 00", 64)
    assert status is SUCCESS
    assert page == bytes.fromhex("00b0003c" + "00" * 24 + tail + "00" * 28)


def test_pages_that_the_host_dictates_are_given_verbatim(on: Scene) -> None:
    dictated = bytes.fromhex("0080000a") + b"SERIAL-123"
    on.target.backend.pages = {0x80: dictated}
    assert ask(on, "12 01 80 00 ff 00", 255) == (SUCCESS, dictated)
    assert ask(on, "12 01 80 00 ff 00", 13)[0] is ERROR
    assert ask(on, "12 01 83 00 ff 00", 255) == (SUCCESS, bytes.fromhex(PAGES[0x83]))


@pytest.mark.parametrize(
    ("sectors", "sector_size", "reply"),
    [
        (1024, 512, "000003ff 00000200"),
        (1024, 4096, "0000007f 00001000"),
        (1, 512, "00000000 00000200"),
        (0, 512, "ffffffff 00000200"),
        (2**32 - 1, 512, "fffffffe 00000200"),
        (2**32, 512, "ffffffff 00000200"),
        (2**40, 512, "ffffffff 00000200"),
    ],
)
def test_read_capacity_10(on: Scene, sectors: int, sector_size: int, reply: str) -> None:
    on.target.backend.sectors, on.target.backend.sector_size = sectors, sector_size
    for size in (8, 36):
        assert ask(on, pad("25", 10), size) == (SUCCESS, bytes.fromhex(reply))
    assert ask(on, pad("25", 10), 7)[0] is ERROR


def test_read_capacity_10_of_an_address_needs_pmi(on: Scene) -> None:
    assert ask(on, "25 00 00000001 0000 00 00", 8)[0] is ERROR
    assert ask(on, "25 00 00000001 0000 01 00", 8)[0] is SUCCESS


@pytest.mark.parametrize(
    ("sectors", "sector_size", "physical", "reply"),
    [
        (1024, 512, 512, "00000000000003ff 00000200 0000"),
        (1024, 512, 4096, "00000000000003ff 00000200 0003"),
        (1024, 4096, 4096, "000000000000007f 00001000 0000"),
        (2**40, 512, 8192, "000000ffffffffff 00000200 0004"),
    ],
)
def test_read_capacity_16(
    on: Scene, sectors: int, sector_size: int, physical: int, reply: str
) -> None:
    backend = on.target.backend
    backend.sectors, backend.sector_size = sectors, sector_size
    backend.physical_sector_size = physical
    cdb = pad("9e 10", 16)
    expected = bytes.fromhex(reply)
    assert ask(on, cdb, 32) == (SUCCESS, expected.ljust(32, b"\0"))
    for size in (12, 31, 33, 64):
        assert ask(on, cdb, size) == (SUCCESS, expected[:12])
    assert ask(on, cdb, 11)[0] is ERROR
    assert ask(on, pad("9e 00", 16), 12) == (SUCCESS, expected[:12])


def test_read_capacity_16_of_an_address_needs_pmi(on: Scene) -> None:
    assert ask(on, "9e 10 0000000000000001 00000020 00 00", 32)[0] is ERROR
    assert ask(on, "9e 10 0000000000000001 00000020 01 00", 32)[0] is SUCCESS


CACHING, NO_CACHE = "08 0a 04" + "00" * 9, "08 0a 00" + "00" * 9
EXCEPTIONS = "1c 0a 08" + "00" * 9


@pytest.mark.parametrize(
    ("cdb", "size", "reply"),
    [
        ("1a 08 3f 00 ff 00", 255, "1b 00 00 00" + CACHING + EXCEPTIONS),
        ("1a 00 3f 00 ff 00", 255, "23 00 00 08" + "00" * 8 + CACHING + EXCEPTIONS),
        ("1a 08 08 00 ff 00", 255, "0f 00 00 00" + CACHING),
        ("1a 08 1c 00 ff 00", 255, "0f 00 00 00" + EXCEPTIONS),
        ("1a 08 01 00 ff 00", 255, "03 00 00 00"),
        ("1a 00 01 00 ff 00", 255, "0b 00 00 08" + "00" * 8),
        ("1a 08 3f 00 ff 00", 4, "03 00 00 00"),
        ("1a 08 3f 00 ff 00", 16, "0f 00 00 00" + CACHING),
        ("1a 08 3f 00 ff 00", 27, "0f 00 00 00" + CACHING),
        ("1a 00 3f 00 ff 00", 11, "03 00 00 00"),
        ("1a 00 3f 00 ff 00", 12, "0b 00 00 08" + "00" * 8),
        ("1a 00 3f 00 ff 00", 23, "0b 00 00 08" + "00" * 8),
        ("5a 08 3f 00 00 00 00 00 ff 00", 255, "001e 00 00 0000 0000" + CACHING + EXCEPTIONS),
        ("5a 00 08 00 00 00 00 00 ff 00", 255, "001a 00 00 0000 0008" + "00" * 8 + CACHING),
        ("5a 08 01 00 00 00 00 00 ff 00", 8, "0006 00 00 0000 0000"),
    ],
)
def test_mode_sense(on: Scene, cdb: str, size: int, reply: str) -> None:
    assert ask(on, cdb, size) == (SUCCESS, bytes.fromhex(reply))


def test_mode_sense_tells_of_write_protection_and_of_no_cache(on: Scene) -> None:
    on.target.backend.info = 4
    on.target.backend.flush_cache = False
    expected = bytes.fromhex("0f 00 80 00" + NO_CACHE)
    assert ask(on, "1a 08 08 00 ff 00", 255) == (SUCCESS, expected)
    expected = bytes.fromhex("0012 00 80 0000 0000" + NO_CACHE)
    assert ask(on, "5a 08 08 00 00 00 00 00 ff 00", 255) == (SUCCESS, expected)


@pytest.mark.parametrize(("cdb", "size"), [("1a 08 3f 00 ff 00", 3), ("5a" + "00" * 9, 7)])
def test_mode_sense_into_less_than_its_header_is_an_error(on: Scene, cdb: str, size: int) -> None:
    assert ask(on, cdb, size)[0] is ERROR


def test_request_sense(on: Scene) -> None:
    assert ask(on, "03 00 00 00 12 00", 18) == (SUCCESS, b"\xf0" + bytes(17))
    assert ask(on, "03 00 00 00 12 00", 17)[0] is ERROR


def test_report_luns(on: Scene) -> None:
    assert ask(on, pad("a0", 12), 512) == (SUCCESS, bytes.fromhex("00000008" + "00" * 12))
    assert ask(on, pad("a0", 12), 15)[0] is ERROR


# SRBs


def srb(on: Scene, function: int, **fields: int) -> SrbStatus:
    return on.submit(b"", function=function, **fields).srb_status


@pytest.mark.parametrize(
    ("function", "there", "nobody"),
    [
        (SrbFunction.SHUTDOWN, SUCCESS, SrbStatus.NO_DEVICE),
        (SrbFunction.FLUSH, SUCCESS, SrbStatus.NO_DEVICE),
        (SrbFunction.ABORT_COMMAND, SrbStatus.ABORT_FAILED, SrbStatus.ABORT_FAILED),
        (SrbFunction.RESET_BUS, SUCCESS, SUCCESS),
        (SrbFunction.RESET_DEVICE, SUCCESS, SrbStatus.NO_DEVICE),
        (SrbFunction.PNP, SUCCESS, SUCCESS),
        (SrbFunction.IO_CONTROL, INVALID, INVALID),
        (SrbFunction.TERMINATE_IO, INVALID, INVALID),
        (SrbFunction.WMI, INVALID, INVALID),
        (SrbFunction.LOCK_QUEUE, INVALID, INVALID),
        (SrbFunction.UNLOCK_QUEUE, INVALID, INVALID),
        (SrbFunction.RESET_LOGICAL_UNIT, INVALID, INVALID),
        (SrbFunction.POWER, INVALID, INVALID),
        (SrbFunction.DUMP_POINTERS, INVALID, INVALID),
        (0xFF, INVALID, INVALID),
    ],
)
def test_srb_functions(on: Scene, function: int, there: SrbStatus, nobody: SrbStatus) -> None:
    assert srb(on, function) is there
    assert srb(on, function, target_id=9) is nobody


def test_an_srb_finds_its_target_before_its_path_and_lun_are_looked_at(on: Scene) -> None:
    assert on.submit(bytes(6), target_id=1, path_id=1).srb_status is SrbStatus.NO_DEVICE
    assert on.submit(bytes(6), path_id=1, lun=1).srb_status is SrbStatus.INVALID_PATH_ID
    assert on.submit(bytes(6), lun=1).srb_status is SrbStatus.INVALID_LUN
    assert on.submit(bytes(6)).srb_status is SUCCESS


def test_a_missing_target_is_no_device(on: Scene) -> None:
    target: Target = on.target
    adapter: Vbd = on.adapter
    assert adapter.targets[0] is target
    target.missing = True
    try:
        assert on.submit(bytes(6)).srb_status is SrbStatus.NO_DEVICE
        assert on.submit(bytes(6), lun=1).srb_status is SrbStatus.INVALID_LUN
        assert srb(on, SrbFunction.FLUSH) is SrbStatus.NO_DEVICE
    finally:
        target.missing = False


def test_completion_wakes_whoever_waits() -> None:
    class Waiter:
        woken = 0

        def wake(self) -> None:
            self.woken += 1

    waiter = Waiter()
    request = Srb(on_complete=waiter)
    assert not request.is_complete
    request.complete(SUCCESS)
    assert (waiter.woken, request.srb_status, request.is_complete) == (1, SUCCESS, True)
