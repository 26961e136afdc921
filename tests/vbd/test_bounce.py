"""Pages that a backend sees in the place of the SRB's: persistent grants, and an untrusted backend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vbd.rawback import (
    EOPNOTSUPP,
    ERROR,
    INDIRECT,
    OKAY,
    Scene,
    Slot,
    read10,
    scene,
    write10,
)
from xenpv import Disk, MemoryImage, Platform
from xenpv.vbd.bounce import PersistentGrants
from xenpv.vbd.frontend import FrontendState
from xenpv.vbd.parameters import Parameters
from xenpv.vbd.srb import SrbFunction, SrbStatus

SUCCESS, PENDING = SrbStatus.SUCCESS, SrbStatus.PENDING
KEPT = Parameters(persistent=True)
OFFERED = {"feature-persistent": "1"}
WIDE = {"feature-max-indirect-segments": "256"}


@pytest.fixture(params=["windows", "linux"])
def on(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with scene(request.param, early=WIDE, keys=OFFERED, vbd=KEPT) as made:
        yield made


def pool(on: Scene) -> PersistentGrants:
    bounce = on.frontend.rings[0].bounce
    assert isinstance(bounce, PersistentGrants)
    return bounce


class Keeper:
    """What a backend with persistent grants does: a page that it mapped stays mapped."""

    def __init__(self, on: Scene) -> None:
        self.on = on
        self.pages: dict[int, int] = {}

    def page(self, ref: int) -> int:
        if ref not in self.pages:
            self.pages[ref] = self.on.back.map(ref)  # writable: any request may follow
        return self.pages[ref]

    def read(self, ref: int, offset: int = 0, size: int = 4096) -> bytes:
        return self.on.back.domain.read(self.page(ref), offset, size)

    def fill(self, ref: int, data: bytes, offset: int = 0) -> None:
        self.on.back.domain.write(self.page(ref), offset, data)

    def let_go(self, ref: int) -> None:
        self.on.back.unmap(self.pages.pop(ref))


def one(on: Scene) -> Slot:
    (slot,) = on.back.taken()
    return slot


# who agrees


@pytest.mark.parametrize(
    ("wanted", "offered", "kept"),
    [
        (True, {"feature-persistent": "1"}, True),
        (True, {"feature-persistent": "0"}, False),
        (True, {}, False),
        (False, {"feature-persistent": "1"}, False),
    ],
)
@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_grants_are_kept_where_both_ends_say_so(
    personality: str, wanted: bool, offered: dict[str, str], kept: bool
) -> None:
    with scene(personality, keys=offered, vbd=Parameters(persistent=wanted)) as on:
        assert isinstance(on.frontend.rings[0].bounce, PersistentGrants) is kept
        key = on.back.device.frontend_number("feature-persistent", 7)
        assert key == (1 if wanted else 0 if personality == "linux" else 7)


# persistent grants


def test_all_data_goes_through_pages_of_the_drivers_own(on: Scene) -> None:
    back = Keeper(on)
    pfn = on.page(b"\x11" * 4096)
    srb = on.submit(write10(8, 2), [(pfn, 1024, 1024)])
    slot = one(on)
    ((ref, first, last),) = slot.segments
    assert (first, last) == (2, 3)
    assert back.read(ref) == bytes(1024) + b"\x11" * 1024 + bytes(2048)  # and nothing else
    assert not on.frontend.granter.holds(pfn, 1)
    on.back.answer((slot.id, OKAY))
    assert srb.srb_status is SUCCESS
    assert on.target.broken == ""
    read = on.submit(read10(8, 2), [(pfn, 512, 1024)])
    slot = one(on)
    ((again, first, last),) = slot.segments
    assert (again, first, last) == (ref, 1, 2)
    back.fill(ref, b"\x22" * 1024, 512)
    on.back.answer((slot.id, OKAY))
    assert read.srb_status is SUCCESS
    assert on.domain.read(pfn, 0, 4096) == (b"\x11" * 512 + b"\x22" * 1024 + b"\x11" * 2560)


def test_the_page_put_back_last_is_taken_first(on: Scene) -> None:
    back = Keeper(on)
    pfn = on.domain.pages.alloc(3)
    for n in range(3):
        on.submit(read10(n, 1), [(pfn + n, 0, 512)])
    slots = on.back.taken()
    refs = [slot.segments[0][0] for slot in slots]
    assert len(set(refs)) == 3
    for ref in refs:
        back.page(ref)
    on.back.answer((slots[1].id, OKAY), (slots[0].id, OKAY), (slots[2].id, OKAY))
    assert pool(on).kept == 3
    taken = []
    for n in range(3):
        on.submit(read10(n, 1), [(pfn + n, 0, 512)])
        taken.append(one(on).segments[0][0])
    assert taken == [refs[2], refs[0], refs[1]]


def test_a_page_that_the_backend_let_go_of_loses_its_grant_and_is_used_last(on: Scene) -> None:
    back = Keeper(on)
    pfn = on.domain.pages.alloc(3)
    for n in range(2):
        on.submit(read10(n, 1), [(pfn + n, 0, 512)])
    first, second = on.back.taken()
    before = on.frontend.granter.granted
    back.page(first.segments[0][0])
    on.back.answer((first.id, OKAY), (second.id, OKAY))  # the second was never mapped
    assert on.frontend.granter.granted == before - 1
    assert (pool(on).kept, len(pool(on).free)) == (1, 2)
    on.submit(read10(0, 1), [(pfn, 0, 512)])
    assert one(on).segments[0][0] == first.segments[0][0]
    assert pool(on).kept == 0


def test_indirect_pages_are_kept_too(on: Scene) -> None:
    back = Keeper(on)
    pfn = on.domain.pages.alloc(20)
    seen = []
    for _ in range(2):
        on.submit(write10(0, 160), [(pfn, 0, 20 * 4096)])
        slot = one(on)
        assert (slot.operation, slot.nr) == (INDIRECT, 20)
        table = back.read(slot.grefs[0])
        refs = [int.from_bytes(table[8 * n : 8 * n + 4], "little") for n in range(20)]
        for ref in refs:
            back.page(ref)
        seen.append(sorted([*refs, *slot.grefs]))
        on.back.answer((slot.id, OKAY))
    assert seen[0] == seen[1]
    assert pool(on).kept == 21
    assert on.target.broken == ""


def test_a_refused_indirect_request_is_split_with_its_pages_kept(on: Scene) -> None:
    back = Keeper(on)
    pfn = on.domain.pages.alloc(20)
    for number in range(20):
        on.domain.write(pfn + number, 0, bytes((number + 1,)) * 4096)
    srb = on.submit(write10(0, 160), [(pfn, 0, 20 * 4096)])
    slot = one(on)
    back.page(slot.grefs[0])
    on.back.answer((slot.id, EOPNOTSUPP))
    slots = on.back.taken()
    assert [one.nr for one in slots] == [11, 9]
    data = b"".join(back.read(ref) for one in slots for ref, _f, _l in one.segments)
    assert data == b"".join(bytes((n + 1,)) * 4096 for n in range(20))
    on.back.answer(*[(one.id, OKAY) for one in slots])
    assert srb.srb_status is SUCCESS


def test_a_kept_page_is_no_others_until_the_late_answer_comes(on: Scene) -> None:
    back = Keeper(on)
    pfn = on.page()
    lost = on.submit(read10(0, 8), [(pfn, 0, 4096)])
    slot = one(on)
    ref = slot.segments[0][0]
    back.page(ref)
    on.submit(b"", function=SrbFunction.RESET_DEVICE)
    assert lost.srb_status is SrbStatus.ERROR
    srb = on.submit(read10(0, 8), [(pfn, 0, 4096)])
    other = one(on)
    assert other.segments[0][0] != ref
    back.fill(ref, b"\x66" * 4096)  # the old request, late
    back.fill(other.segments[0][0], b"\x77" * 4096)
    on.back.answer((slot.id, OKAY), (other.id, OKAY))
    assert srb.srb_status is SUCCESS
    assert on.domain.read(pfn, 0, 4096) == b"\x77" * 4096
    assert pool(on).kept == 2
    assert {one[0] for one in pool(on).free} == {ref, other.segments[0][0]}


def test_nothing_is_granted_after_the_end_but_what_is_mapped_still(on: Scene) -> None:
    back = Keeper(on)
    on.back.keeps = True
    pfn = on.domain.pages.alloc(4)
    for n in range(4):
        on.submit(read10(n, 8), [(pfn + n, 0, 4096)])
    slots = on.back.taken()
    refs = [slot.segments[0][0] for slot in slots]
    for ref in refs:
        back.page(ref)
    on.back.answer(*[(slot.id, OKAY) for slot in slots[:3]])
    back.let_go(refs[0])
    on.target.stop()
    on.xen.run()
    assert on.target.state is FrontendState.CLOSED
    held = {ref for ref, _pfn, _owned in on.frontend.granter.quarantine}
    assert set(refs[1:]) <= held
    assert refs[0] not in held
    on.back.disconnect()
    on.frontend.granter.retry()
    assert on.frontend.granter.granted == 0


def test_no_reference_left_is_busy_and_the_page_is_not_lost(
    on: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xenpv.errors import HypercallError

    def none_left(*_args: object, **_kwargs: object) -> int:
        raise HypercallError(28)

    with monkeypatch.context() as patch:
        patch.setattr(on.frontend.granter.gnttab, "permit_foreign_access", none_left)
        srb = on.submit(read10(0, 8), [(on.page(), 0, 4096)])
    assert srb.srb_status is SrbStatus.BUSY
    assert len(pool(on).free) == 1
    srb = on.submit(read10(0, 8), [(on.page(), 0, 4096)])
    assert len(pool(on).free) == 0
    on.back.answer((one(on).id, ERROR))
    assert srb.srb_status is SrbStatus.ERROR


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_a_disk_with_kept_grants_holds_what_was_written(personality: str) -> None:
    with Platform(seed=5) as xen:
        image = MemoryImage(bytearray(4 << 20))
        guest = xen.create(name="g", disks=[Disk(image)], personality=personality, vbd=KEPT).start()
        disk = guest.disks[0]
        data = bytes(range(256)) * 4096
        disk.write(64, data)
        assert disk.read(64, 2048) == data
        frontend = disk.target.frontend
        assert frontend.backend.persistent
        kept = sum(ring.bounce.kept for ring in frontend.rings)  # type: ignore[attr-defined]
        assert kept >= 256
        disk.write(0, data)
        disk.write(9, b"\x09" * 512)
        expected = bytearray(data)
        expected[9 * 512 : 10 * 512] = b"\x09" * 512
        assert disk.read(0, 2048) == bytes(expected)
        assert frontend.broken == ""
        disk.target.stop()
        xen.run()
        assert frontend.granter.granted == 0
        assert frontend.granter.quarantine == []


# a backend that is not trusted


@pytest.fixture(params=["windows", "linux"])
def wary(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with scene(request.param, early=WIDE, start=False) as on:
        path = f"/local/domain/{on.guest.domid}/device/vbd/51712/trusted"
        on.xen.toolstack.xs.write(path, "0")
        on.guest.start()
        yield on


@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize(
    ("data", "wire"),
    [
        ([(0, 0, 4096)], [(0, 7)]),
        ([(0, 1024, 512)], [(2, 2)]),
        ([(0, 3584, 1024)], [(7, 7), (0, 0)]),
        ([(0, 100, 1024)], [(0, 1)]),
        ([(0, 512, 512), (2, 1024, 1024)], [(1, 1), (2, 3)]),
    ],
)
def test_xsa_403_an_untrusted_backend_sees_zeros_around_the_data(
    wary: Scene, data: list[tuple[int, int, int]], wire: list[tuple[int, int]], writes: bool
) -> None:
    on = wary
    assert not on.frontend.trusted
    pfn = on.domain.pages.alloc(4)
    for n in range(4):
        on.domain.write(pfn + n, 0, b"\xee" * 4096)
    pieces = [(pfn + page, offset, size) for page, offset, size in data]
    count = sum(size for _page, _offset, size in data) // 512
    srb = on.submit((write10 if writes else read10)(0, count), pieces)
    slot = one(on)
    assert [segment[1:] for segment in slot.segments] == wire
    for ref, first, last in slot.segments:
        inside = b"\xee" * 512 if writes else bytes(512)
        expected = b"".join(inside if first <= n <= last else bytes(512) for n in range(8))
        assert on.back.read(ref) == expected
        if not writes:
            on.back.fill(ref, b"\x44" * 4096)
    on.back.answer((slot.id, OKAY))
    assert srb.srb_status is SUCCESS
    whole = b"".join(on.domain.read(pfn + n, 0, 4096) for n in range(4))
    spots = [page * 4096 + offset + n for page, offset, size in data for n in range(size)]
    assert {whole[n] for n in spots} == {0xEE if writes else 0x44}
    assert whole.count(b"\xee") == 16384 - (0 if writes else len(spots))
    assert on.frontend.granter.granted == len(on.frontend.rings[0].grefs)


def test_xsa_403_pages_of_an_indirect_request_show_nothing_but_its_segments(wary: Scene) -> None:
    on = wary
    pfn = on.domain.pages.alloc(20)
    for _ in range(2):  # the second time with pages that were used before
        on.submit(read10(0, 160), [(pfn, 0, 20 * 4096)])
        slot = one(on)
        assert on.back.read(slot.grefs[0])[160:] == bytes(4096 - 160)
        for ref, _first, _last in on.back.table(slot):
            assert on.back.read(ref) == bytes(4096)
            on.back.fill(ref, b"\x99" * 4096)
        on.back.answer((slot.id, OKAY))
    assert on.domain.read(pfn + 19, 0, 4096) == b"\x99" * 4096
