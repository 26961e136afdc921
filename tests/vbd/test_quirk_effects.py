"""Each quirk of the SCSI surface: what a disk does with it, and what without."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.vbd.rawback import DISCARD, OKAY, Scene, read10, scene
from xenpv.vbd.parameters import Parameters
from xenpv.vbd.srb import Srb, SrbStatus

PENDING, SUCCESS, ERROR = SrbStatus.PENDING, SrbStatus.SUCCESS, SrbStatus.ERROR
DISCARDS = {
    "feature-discard": "1",
    "discard-granularity": "4096",
    "discard-alignment": "1024",
}
CACHING = "08 {0} 04" + "00" * 9
EXCEPTIONS = "1c {0} 08" + "00" * 9

REPLIES = [
    # quirk, keys of the backend, CDB, buffer, the reply without it, with it
    (
        "read-only-cd", {"info": "4"}, "12 00 00 00 24 00", 36,
        "0000 0402 2000 0002" + b"XENSRC  PVDISK          2.0 ".hex(),
        "0500 0402 2000 0002" + b"XENSRC  PVDISK          2.0 ".hex(),
    ),
    (
        "read-only-cd", {"info": "0"}, "12 00 00 00 24 00", 36,
        "0000 0402 2000 0002" + b"XENSRC  PVDISK          2.0 ".hex(),
        "0000 0402 2000 0002" + b"XENSRC  PVDISK          2.0 ".hex(),
    ),
    ("read-only-cd", {"info": "4"}, "12 01 00 00 ff 00", 64, "00000005 0080 83b0b1", "00000005 0080 83b0b1"),
    (
        "b0-bytes", DISCARDS, "12 01 b0 00 ff 00", 64,
        "00b0003c" + "00" * 24 + "00000008 80000002" + "00" * 28,
        "00b0003c" + "00" * 24 + "00001000 80000400" + "00" * 28,
    ),
    (
        "mode-page-length", {}, "1a 08 3f 00 ff 00", 255,
        "1b 00 00 00" + CACHING.format("0a") + EXCEPTIONS.format("0a"),
        "1b 00 00 00" + CACHING.format("0c") + EXCEPTIONS.format("0c"),
    ),
    ("report-luns-255", {}, "a0" + "00" * 11, 16, "00000008" + "00" * 12, "00000008" + "00" * 11 + "ff"),
]  # fmt: skip


def ask(on: Scene, cdb: str, size: int) -> bytes:
    pfn = on.page(b"\xee" * 4096)
    srb = on.submit(bytes.fromhex(cdb), [(pfn, 0, size)])
    assert srb.srb_status is SUCCESS
    return on.domain.read(pfn, 0, srb.data_transfer_length)


@pytest.mark.parametrize(("quirk", "keys", "cdb", "size", "without", "with_it"), REPLIES)
def test_replies(
    quirk: str, keys: dict[str, str], cdb: str, size: int, without: str, with_it: str
) -> None:
    for quirks, expected in (((), without), ((quirk,), with_it)):
        with scene(keys=keys, vbd=Parameters(quirks=quirks)) as on:
            assert ask(on, cdb, size) == bytes.fromhex(expected)


def unmap(ranges: Sequence[tuple[int, int]]) -> bytes:
    body = b"".join(
        lba.to_bytes(8, "big") + count.to_bytes(4, "big") + bytes(4) for lba, count in ranges
    )
    return (len(body) + 6).to_bytes(2, "big") + len(body).to_bytes(2, "big") + bytes(4) + body


def send_unmap(on: Scene, ranges: Sequence[tuple[int, int]]) -> Srb:
    data = unmap(ranges)
    cdb = bytes((0x42, 0, 0, 0, 0, 0, 0)) + len(data).to_bytes(2, "big") + b"\0"
    return on.submit(cdb, [(on.page(data), 0, len(data))])


def test_a_read_of_no_sectors_in_six_bytes() -> None:
    for quirks, sectors in (((), 256), (("read6-zero",), 0)):
        with scene(vbd=Parameters(quirks=quirks)) as on:
            pfn = on.domain.pages.alloc(32)
            srb = on.submit(bytes.fromhex("08 00 00 08 00 00"), [(pfn, 0, 1 << 17)])
            slots = on.back.taken()
            moved = [sum(last - first + 1 for _ref, first, last in slot.segments) for slot in slots]
            assert sum(moved) == sectors
            if not sectors:
                assert srb.srb_status is SUCCESS


@pytest.mark.parametrize("case", ["read", "write", "unmap"])
def test_nothing_to_do_hangs_or_succeeds(case: str) -> None:
    for quirks, status in (((), SUCCESS), (("zero-length-hang",), PENDING)):
        with scene(keys=DISCARDS, vbd=Parameters(quirks=quirks)) as on:
            if case == "unmap":
                srb = send_unmap(on, [])
            else:
                opcode = 0x28 if case == "read" else 0x2A
                srb = on.submit(bytes((opcode,)).ljust(10, b"\0"))
            assert srb.srb_status is status
            assert on.back.taken() == []
            # And the disk goes on.
            other = on.submit(read10(0, 1), [(on.page(), 0, 512)])
            on.back.answer((on.back.taken()[0].id, OKAY))
            assert other.srb_status is SUCCESS


@pytest.mark.parametrize(
    ("ranges", "without", "with_it"),
    [
        ([(8, 16), (100, 0)], [(8, 16)], [(8, 16), (100, 0)]),
        ([(8, 16), (1020, 5)], ERROR, [(8, 16), (1020, 5)]),
        ([(2**63, 2**32 - 1)], ERROR, [(2**63, 2**32 - 1)]),
        ([(2**64 - 1, 2)], ERROR, ERROR),  # no slot has room for it
    ],
)
def test_ranges_that_no_disk_has(
    ranges: list[tuple[int, int]],
    without: SrbStatus | list[tuple[int, int]],
    with_it: SrbStatus | list[tuple[int, int]],
) -> None:
    for quirks, expected in (((), without), (("unmap-unchecked",), with_it)):
        with scene(keys=DISCARDS, vbd=Parameters(quirks=quirks)) as on:
            srb = send_unmap(on, ranges)
            slots = on.back.taken()
            if isinstance(expected, list):
                assert all(slot.operation == DISCARD for slot in slots)
                assert [(slot.sector, slot.nr) for slot in slots] == expected
                assert srb.srb_status is PENDING
            else:
                assert (srb.srb_status, slots) == (expected, [])
