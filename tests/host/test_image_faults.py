"""Images that fail, and a drive that loses power: that the faults reach whoever does the I/O."""

from __future__ import annotations

import errno

import pytest

from xenpv.errors import LocalProtocolError
from xenpv.host.faultyimage import FaultyImage
from xenpv.host.image import ImageError, ImageUnsupportedError, MemoryImage
from xenpv.host.writecache import Write, WriteCache

SIZE = 4096


def filled(byte: int, size: int = 512) -> memoryview:
    return memoryview(bytes([byte]) * size)


@pytest.mark.parametrize(
    ("fault", "offset", "length", "fails"),
    [
        ({}, 0, 512, True),
        ({"start": 512}, 0, 512, False),
        ({"start": 512}, 0, 513, True),
        ({"start": 512, "end": 1024}, 1024, 512, False),
        ({"start": 512, "end": 1024}, 1023, 512, True),
        ({"start": 512, "end": 1024}, 0, 4096, True),
        ({"times": 0}, 0, 512, False),
    ],
)
@pytest.mark.parametrize("operation", ["read", "write", "discard"])
def test_a_fault_hits_what_touches_its_range(
    operation: str, fault: dict, offset: int, length: int, fails: bool
) -> None:
    image = FaultyImage(MemoryImage(bytearray(8192)))
    made = image.fail(operation, **fault)
    calls = {
        "read": lambda: image.read_into(memoryview(bytearray(length)), offset),
        "write": lambda: image.write_from(filled(1, length), offset),
        "discard": lambda: image.discard(offset, length),
    }
    for name, call in calls.items():
        if fails and name == operation:
            with pytest.raises(ImageError, match="Input/output error"):
                call()
        else:
            call()
    assert made.fired == fails


def test_a_fault_may_come_late_and_pass() -> None:
    under = MemoryImage(bytearray(SIZE))
    image = FaultyImage(under)
    image.fail("write", errno.ENOSPC, done=512, times=1)
    with pytest.raises(ImageError, match="write at 512: No space left on device"):
        image.write_from(filled(7, 1024), 512)
    assert bytes(under.buffer[:2048]) == bytes(512) + b"\x07" * 512 + bytes(1024)
    image.write_from(filled(8, 1024), 512)
    assert bytes(under.buffer[512:1536]) == b"\x08" * 1024


def test_a_short_read_has_what_came() -> None:
    image = FaultyImage(MemoryImage(bytearray(b"\x05" * SIZE)))
    image.fail("read", done=100)
    out = bytearray(512)
    with pytest.raises(ImageError):
        image.read_into(memoryview(out), 0)
    assert out == b"\x05" * 100 + bytes(412)


def test_flushes_and_discards_fail_too() -> None:
    under = MemoryImage(bytearray(SIZE))
    image = FaultyImage(under)
    image.fail("flush", times=1)
    with pytest.raises(ImageError, match="flush"):
        image.flush()
    assert under.flushes == 0
    image.flush()
    assert under.flushes == 1
    image.fail("discard", errno.EOPNOTSUPP)
    assert image.discard(0, 512) is False


def test_an_image_may_have_no_flush_at_all() -> None:
    image = FaultyImage(MemoryImage(bytearray(SIZE)))
    image.fail("flush", errno.EOPNOTSUPP)
    with pytest.raises(ImageUnsupportedError):
        image.flush()


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="operation 'wirte': expected one of"):
        FaultyImage(MemoryImage(bytearray(SIZE))).fail("wirte")


def test_what_is_in_the_cache_is_read_and_not_on_the_medium() -> None:
    medium = MemoryImage(bytearray(SIZE))
    cache = WriteCache(medium)
    cache.write_from(filled(1, 1024), 512)
    cache.write_from(filled(2), 1024)
    out = bytearray(2048)
    cache.read_into(memoryview(out), 0)
    assert out == bytes(512) + b"\x01" * 512 + b"\x02" * 512 + bytes(512)
    out = bytearray(512)
    cache.read_into(memoryview(out), 768)
    assert out == b"\x01" * 256 + b"\x02" * 256
    assert bytes(medium.buffer) == bytes(SIZE)
    cache.flush()
    assert bytes(medium.buffer[512:1536]) == b"\x01" * 512 + b"\x02" * 512
    assert (cache.pending, cache.flushes, medium.flushes) == ([], 1, 1)


@pytest.mark.parametrize(
    ("keep", "sectors"), [((), "00"), ((0,), "11"), ((1,), "02"), ((0, 1), "12"), ((1, 0), "11")]
)
def test_the_power_goes_with_any_of_what_was_not_flushed(keep: tuple, sectors: str) -> None:
    cache = WriteCache(MemoryImage(bytearray(1024)))
    cache.write_from(filled(1, 1024), 0)
    cache.write_from(filled(2), 512)
    left = cache.power_off(keep)
    assert bytes(left.buffer[::512]) == bytes(map(int, sectors))
    assert len(cache.pending) == 2


def test_writes_tear_at_the_drives_sectors() -> None:
    cache = WriteCache(MemoryImage(bytearray(SIZE)), tear_bytes=512)
    cache.write_from(filled(1, 1024), 256)
    assert cache.pending == [
        Write(256, b"\x01" * 256), Write(512, b"\x01" * 512), Write(1024, b"\x01" * 256),
    ]  # fmt: skip


def test_a_discard_may_be_lost_too() -> None:
    cache = WriteCache(MemoryImage(bytearray(b"\x09" * 1024)))
    assert cache.discard(0, 512)
    assert bytes(cache.power_off().buffer) == b"\x09" * 1024
    assert bytes(cache.power_off((0,)).buffer) == bytes(512) + b"\x09" * 512


def test_what_the_medium_refuses_is_refused_at_once() -> None:
    for image, what in (
        (MemoryImage(bytes(512), writable=False), "read-only"),
        (MemoryImage(bytes(512)), "ends before"),
    ):
        cache = WriteCache(image)
        with pytest.raises(ImageError, match=what):
            cache.write_from(filled(1, 1024), 0)
        assert cache.pending == []
