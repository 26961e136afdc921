"""What every interface has: versions, sizes, references, statuses (xenbus spec, section 2)."""

from __future__ import annotations

from errno import E2BIG, EACCES, EAGAIN, EBUSY, EPERM, ESRCH
from typing import ClassVar

import pytest

from xenpv.bus.interface import Interface, query_interface
from xenpv.bus.ntstatus import NTSTATUS, NtStatusError, status_of
from xenpv.errors import GrantError, HypercallError, LocalProtocolError, StoreError

STATUSES = [
    (HypercallError(EPERM), 0xC000_0022),
    (HypercallError(EACCES), 0xC000_0022),
    (HypercallError(EAGAIN), 0xC000_022D),
    (HypercallError(EBUSY), 0xC000_00AE),
    (HypercallError(E2BIG), 0xC000_0001),
    (HypercallError(ESRCH), 0xC000_0001),
    (StoreError("ENOENT"), 0xC000_0034),
    (StoreError("EQUOTA"), 0xC000_0044),
    (StoreError("ENOSPC"), 0xC000_009A),
    (StoreError("E2BIG"), 0xC000_0001),
    (StoreError("EPERM"), 0xC000_0001),
    (StoreError("no such error"), 0xC000_0001),
    (GrantError(-4), 0xC000_0008),
    (GrantError(-8), 0xC000_0022),
    (GrantError(-12), 0xC000_022D),
    (GrantError(-1), 0xC000_0001),
    (NtStatusError(NTSTATUS.TIMEOUT), 0x102),
    (LocalProtocolError("anything"), 0xC000_0001),
]


class Shelf(Interface):
    NAME = "SHELF"
    GUID = "00000000-0000-0000-0000-0000000000AB"
    OPERATIONS: ClassVar = {1: ("put",), 2: ("put", "take")}
    ADAPTED: ClassVar = {(1, "put"): "put_v1"}

    def __init__(self) -> None:
        self.things: list[str] = []
        self.running = False

    def put(self, thing: str) -> int:
        self.things.append(thing)
        return len(self.things)

    def put_v1(self, thing: str) -> None:
        self.put(thing)

    def take(self) -> str:
        if not self.things:
            raise StoreError("ENOENT", "it is empty")
        return self.things.pop()

    def leftovers(self) -> list[str]:
        return [f"a {thing}" for thing in self.things]

    def _start(self) -> None:
        self.running = True

    def _stop(self) -> None:
        self.running = False


@pytest.mark.parametrize(("error", "status"), STATUSES, ids=lambda row: str(row)[:30])
def test_status_of_a_failure(error: Exception, status: int) -> None:
    assert status_of(error) == status  # type: ignore[arg-type]  # the rows are of several types


def test_success_is_what_nt_success_says() -> None:
    assert NTSTATUS.TIMEOUT.is_success
    assert not NTSTATUS.BUFFER_OVERFLOW.is_success
    assert not NTSTATUS.RETRY.is_success


def _refused(guid: str, version: int, size: int | None = None) -> NTSTATUS:
    with pytest.raises(NtStatusError) as caught:
        query_interface([Shelf()], guid, version, size)
    return caught.value.status


def test_query_needs_guid_version_and_room() -> None:
    assert _refused("00000000-0000-0000-0000-0000000000AC", 1) is NTSTATUS.NOT_SUPPORTED
    assert _refused(Shelf.GUID, 3) is NTSTATUS.NOT_SUPPORTED
    # 32 bytes of header, Acquire, Release and two operations.
    assert _refused(Shelf.GUID, 2, 63) is NTSTATUS.BUFFER_OVERFLOW
    assert query_interface([Shelf()], Shelf.GUID.lower(), 2, 64).size == 64


def test_each_version_has_its_operations() -> None:
    shelf = Shelf()
    first = query_interface([shelf], Shelf.GUID, 1)
    second = query_interface([shelf], Shelf.GUID, 2)
    first.acquire()
    second.acquire()
    assert first.put("book") is None
    assert second.put("cup") == 2
    with pytest.raises(AttributeError, match="SHELF v1 has no take"):
        _ = first.take
    assert [second.take(), second.take()] == ["cup", "book"]
    with pytest.raises(NtStatusError) as caught:
        second.take()
    assert caught.value.status is NTSTATUS.OBJECT_NAME_NOT_FOUND
    assert str(caught.value) == "OBJECT_NAME_NOT_FOUND: SHELF take: ENOENT: it is empty"


def test_the_last_reference_stops_it_and_tells_what_was_left() -> None:
    shelf = Shelf()
    one, two = (query_interface([shelf], Shelf.GUID, 2) for _ in range(2))
    with pytest.raises(LocalProtocolError, match="SHELF put: it is not acquired"):
        one.put("book")
    one.acquire()
    two.acquire()
    one.put("book")
    one.release()
    assert shelf.running
    with pytest.raises(LocalProtocolError, match="it is not acquired"):
        one.put("book")
    with pytest.raises(LocalProtocolError, match="before it is acquired"):
        one.release()
    with pytest.raises(LocalProtocolError, match="SHELF is released with a book"):
        two.release()
    assert not shelf.running
    with pytest.raises(LocalProtocolError, match="more often than acquired"):
        shelf.release()
