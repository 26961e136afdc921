"""A disk with sense data: each refusal says why, and what happened to it is told once."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest

from tests.vbd.rawback import (
    EOPNOTSUPP,
    ERROR,
    OKAY,
    SYNC10,
    Scene,
    read10,
    scene,
    write10,
)
from xenpv.vbd.disk import DiskError
from xenpv.vbd.parameters import Parameters
from xenpv.vbd.srb import ScsiStatus, Srb, SrbFunction, SrbStatus

SENSE = Parameters(sense_data=True)
CHECK = ScsiStatus.CHECK_CONDITION
TUR = bytes(6)
DISCARDS = {"feature-discard": "1", "discard-granularity": "4096"}


@pytest.fixture(scope="module")
def shared() -> Iterator[Scene]:
    with scene(vbd=SENSE, keys=DISCARDS) as made:
        yield made


@pytest.fixture
def on(shared: Scene) -> Iterator[Scene]:
    """A disk of 1,024 sectors of 512 bytes; what a test changes of it is undone."""
    backend = shared.target.backend
    before = {field.name: getattr(backend, field.name) for field in attrs.fields(type(backend))}
    yield shared
    for name, value in before.items():
        setattr(backend, name, value)
    assert shared.target.attentions == []
    assert shared.target.queue.outstanding == 0


def fixed(key: int, asc: int, ascq: int = 0) -> bytes:
    return bytes.fromhex(f"70 00 {key:02x} 00000000 0a 00000000 {asc:02x} {ascq:02x} 00000000")


def pad(text: str, length: int) -> bytes:
    return bytes.fromhex(text).ljust(length, b"\0")


def checked(srb: Srb, key: int, asc: int, ascq: int = 0) -> None:
    assert srb.sense_info == fixed(key, asc, ascq)
    assert (srb.raw_status, srb.scsi_status) == (0x84, CHECK)


RDONLY = {"info": 4}
REFUSALS = [
    # CDB, buffer, what the backend is, sense key, code, qualifier
    (b"", 0, {}, 0x5, 0x20, 0x00),
    (pad("ff", 16), 512, {}, 0x5, 0x20, 0x00),
    (pad("15", 6), 0, {}, 0x5, 0x20, 0x00),  # MODE SELECT
    (pad("5e", 10), 8, {}, 0x5, 0x20, 0x00),  # PERSISTENT RESERVE IN
    (pad("85", 16), 512, {}, 0x5, 0x20, 0x00),  # ATA PASS-THROUGH
    (pad("28", 6), 512, {}, 0x5, 0x20, 0x00),  # READ(10) in 6 bytes
    (pad("12 00 80", 6), 255, {}, 0x5, 0x24, 0x00),  # a page without EVPD
    (pad("12 01 b2", 6), 255, {}, 0x5, 0x24, 0x00),
    (pad("12", 6), 35, {}, 0x5, 0x24, 0x00),
    (pad("25 00 00000001", 10), 8, {}, 0x5, 0x24, 0x00),
    (pad("9e 10 0000000000000001", 16), 32, {}, 0x5, 0x24, 0x00),
    (pad("1a 08 3f", 6), 3, {}, 0x5, 0x24, 0x00),
    (pad("a0", 12), 15, {}, 0x5, 0x24, 0x00),
    (pad("03", 6), 17, {}, 0x5, 0x24, 0x00),
    (read10(1024, 1), 512, {}, 0x5, 0x21, 0x00),
    (read10(1023, 2), 1024, {}, 0x5, 0x21, 0x00),
    (write10(1024, 0), 0, {}, 0x5, 0x21, 0x00),
    (read10(0, 2), 512, {}, 0x5, 0x24, 0x00),  # a buffer too small for it
    (write10(0, 1), 512, RDONLY, 0x7, 0x27, 0x00),
    (write10(5000, 1), 512, RDONLY, 0x7, 0x27, 0x00),
    (SYNC10, 0, RDONLY, 0x7, 0x27, 0x00),
    (pad("35 00 00000400", 10), 0, {}, 0x5, 0x21, 0x00),
    (pad("35 00 000003ff 00 0002", 10), 0, {}, 0x5, 0x21, 0x00),
    (pad("42", 10), 24, RDONLY, 0x7, 0x27, 0x00),
    (pad("42 000000000000 0018", 10), 7, {}, 0x5, 0x1A, 0x00),
    (pad("42 000000000000 0018", 10), 0, {}, 0x5, 0x1A, 0x00),
    (pad("42 000000000000 0007", 10), 24, {}, 0x5, 0x1A, 0x00),
    (pad("42 000000000000 0019", 10), 24, {}, 0x5, 0x1A, 0x00),
]


@pytest.mark.parametrize(("cdb", "size", "backend", "key", "asc", "ascq"), REFUSALS)
def test_a_refusal_says_why(
    on: Scene, cdb: bytes, size: int, backend: dict[str, int], key: int, asc: int, ascq: int
) -> None:
    for name, value in backend.items():
        setattr(on.target.backend, name, value)
    pfn = on.page()
    srb = on.submit(cdb, [(pfn, 0, size)] if size else [])
    on.domain.pages.free(pfn)
    checked(srb, key, asc, ascq)
    assert on.back.taken() == []


LISTS = [
    # parameter list, sense
    ("0016 0010 00000000 0000000000000400 00000001 00000000", (0x5, 0x21)),
    ("0016 0010 00000000 ffffffffffffffff 00000001 00000000", (0x5, 0x21)),
    ("0026 0020 00000000 0000000000000000 00000001 00000000", (0x5, 0x26)),
]


@pytest.mark.parametrize(("text", "sense"), LISTS)
def test_an_unmap_list_that_is_wrong(on: Scene, text: str, sense: tuple[int, int]) -> None:
    pfn = on.page(bytes.fromhex(text))
    srb = on.submit(pad("42 000000000000 0018", 10), [(pfn, 0, 24)])
    on.domain.pages.free(pfn)
    checked(srb, *sense)


def test_another_lun_is_not_supported(on: Scene) -> None:
    checked(on.submit(TUR, lun=1), 0x5, 0x25)
    assert on.submit(TUR, path_id=1, lun=1).srb_status is SrbStatus.INVALID_PATH_ID


@pytest.mark.parametrize(("length", "raw"), [(18, 0x84), (255, 0x84), (8, 0x84), (0, 0x04)])
def test_sense_is_cut_to_the_room_that_there_is(on: Scene, length: int, raw: int) -> None:
    srb = on.submit(pad("ff", 16), sense_info_length=length)
    assert srb.sense_info == fixed(0x5, 0x20)[:length]
    assert (srb.raw_status, srb.scsi_status) == (raw, CHECK)


FAILURES = [
    # command, buffer, backend's answer, raw status, SCSI status, sense
    (read10(0, 1), 512, ERROR, 0x84, 0x02, (0x3, 0x11)),
    (write10(0, 1), 512, ERROR, 0x84, 0x02, (0x3, 0x0C)),
    (SYNC10, 0, ERROR, 0x84, 0x02, (0x3, 0x0C)),
    (read10(0, 1), 512, -77, 0x84, 0x02, (0x3, 0x11)),
    (read10(0, 1), 512, EOPNOTSUPP, 0x84, 0x02, (0x3, 0x11)),
    (read10(0, 1), 512, OKAY, 0x01, 0x00, None),
    (write10(0, 1), 512, OKAY, 0x01, 0x00, None),
]


@pytest.mark.parametrize(("cdb", "size", "answer", "raw", "scsi", "sense"), FAILURES)
def test_what_the_backend_fails(
    on: Scene,
    cdb: bytes,
    size: int,
    answer: int,
    raw: int,
    scsi: int,
    sense: tuple[int, int] | None,
) -> None:
    pfn = on.page()
    srb = on.submit(cdb, [(pfn, 0, size)] if size else [])
    (slot,) = on.back.taken()
    on.back.answer((slot.id, answer))
    assert (srb.raw_status, srb.scsi_status) == (raw, scsi)
    assert srb.sense_info == (b"" if sense is None else fixed(*sense))


def test_a_new_size_is_told_once_to_the_next_command_that_may_hear_it() -> None:
    with scene(vbd=SENSE) as on:
        assert on.submit(TUR).srb_status is SrbStatus.SUCCESS
        on.back.device.write("sectors", "2048")
        on.xen.run()
        pfn = on.page()
        for quiet in (pad("12", 6), pad("a0", 12)):
            assert on.submit(quiet, [(pfn, 0, 512)]).srb_status is SrbStatus.SUCCESS
        checked(on.submit(read10(0, 1), [(pfn, 0, 512)]), 0x6, 0x2A, 0x09)
        assert on.back.taken() == []
        assert on.submit(TUR).srb_status is SrbStatus.SUCCESS
        on.submit(pad("25", 10), [(pfn, 0, 8)])
        assert on.domain.read(pfn, 0, 4) == bytes.fromhex("000007ff")


def test_request_sense_tells_and_ends_a_unit_attention() -> None:
    with scene(vbd=SENSE) as on:
        on.back.device.write("sectors", "512")
        on.xen.run()
        pfn = on.page()
        for expected in (fixed(0x6, 0x2A, 0x09), fixed(0, 0)):
            srb = on.submit(pad("03", 6), [(pfn, 0, 18)])
            assert (srb.srb_status, srb.data_transfer_length) == (SrbStatus.SUCCESS, 18)
            assert on.domain.read(pfn, 0, 18) == expected
        assert on.submit(TUR).srb_status is SrbStatus.SUCCESS


def test_request_sense_into_too_little_room_loses_nothing() -> None:
    with scene(vbd=SENSE) as on:
        on.back.device.write("sectors", "512")
        on.xen.run()
        checked(on.submit(pad("03", 6), [(on.page(), 0, 17)]), 0x5, 0x24)
        checked(on.submit(TUR), 0x6, 0x2A, 0x09)


def test_attentions_of_a_kind_are_one_and_the_oldest_comes_first() -> None:
    with scene(vbd=SENSE) as on:
        on.submit(b"", function=SrbFunction.RESET_DEVICE)
        for sectors in ("512", "100"):
            on.back.device.write("sectors", sectors)
            on.xen.run()
        on.submit(b"", function=SrbFunction.RESET_DEVICE)
        checked(on.submit(TUR), 0x6, 0x29)
        checked(on.submit(pad("ff", 16)), 0x6, 0x2A, 0x09)
        assert on.submit(TUR).srb_status is SrbStatus.SUCCESS


def test_without_the_option_nothing_is_ever_told() -> None:
    with scene() as on:
        on.back.device.write("sectors", "512")
        on.submit(b"", function=SrbFunction.RESET_DEVICE)
        srb = on.submit(pad("ff", 16))
        assert (srb.raw_status, srb.scsi_status, srb.sense_info) == (0x06, 0, b"")
        srb = on.submit(read10(1024, 1), [(on.page(), 0, 512)])
        assert (srb.raw_status, srb.scsi_status, srb.sense_info) == (0x04, 0, b"")


def test_what_a_reset_gives_up_is_not_the_mediums_fault() -> None:
    with scene(vbd=SENSE) as on:
        srb = on.submit(read10(0, 1), [(on.page(), 0, 512)])
        reset = on.submit(b"", function=SrbFunction.RESET_DEVICE)
        assert reset.srb_status is SrbStatus.SUCCESS
        assert (srb.raw_status, srb.scsi_status, srb.sense_info) == (0x04, 0x40, b"")
        checked(on.submit(TUR), 0x6, 0x29)


def test_a_disk_that_is_not_connected_is_not_ready() -> None:
    with scene(vbd=SENSE) as on:
        on.target.stop()
        on.xen.run()
        for cdb in (read10(0, 1), write10(0, 1), SYNC10, pad("42", 10)):
            checked(on.submit(cdb, [(on.page(), 0, 512)]), 0x2, 0x04)


def test_the_users_error_has_the_sense_in_words() -> None:
    with scene(vbd=SENSE) as on:
        disk = on.adapter.disks()[0]
        with pytest.raises(DiskError) as caught:
            disk.read(5000, 1)
        assert str(caught.value) == (
            "read at sector 5000: SRB status ERROR, SCSI status CHECK_CONDITION, "
            "ILLEGAL REQUEST: logical block address out of range (5/21/00)"
        )
        assert caught.value.sense_info == fixed(0x5, 0x21)
        on.back.device.write("sectors", "2048")
        on.xen.run()
        with pytest.raises(DiskError, match="UNIT ATTENTION: capacity data has changed"):
            disk.test_unit_ready()
        assert disk.capacity == 2048
        disk.reset()
        assert disk.request_sense() == fixed(0x6, 0x29)
