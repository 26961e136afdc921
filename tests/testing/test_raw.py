from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest

from xenpv.abi.layout import packer
from xenpv.abi.xenbus import XenbusState
from xenpv.errors import GrantError, LocalProtocolError
from xenpv.host.diskspec import DiskSpec
from xenpv.host.domainconfig import DomainConfig
from xenpv.host.image import MemoryImage
from xenpv.platform import Platform
from xenpv.testing.raw_front import RawBlkFront, RawFront, RawGuest
from xenpv.testing.raw_world import RawWorld, world_raw
from xenpv.testing.sring import RawSring
from xenpv.xen.gnttab import GTF_permit_access

BLK_SLOT = 112
FRAME = bytes.fromhex("00163e00ffff 00163e000001 88b5") + bytes(range(50))


@pytest.fixture
def disk() -> MemoryImage:
    """Sector n is filled with the byte n."""
    return MemoryImage(bytearray(b"".join(bytes([n]) * 512 for n in range(64))))


@pytest.fixture
def world(disk: MemoryImage) -> Iterator[RawWorld]:
    with world_raw(seed=7, image=disk) as made:
        yield made


def blk_request(
    operation: int, rid: int, sector: int, *segments: tuple[int, int, int], nr: int | None = None
) -> bytes:
    """io/blkif.h by hand: operation, nr_segments, handle, 4 of padding, id, sector, segments."""
    count = len(segments) if nr is None else nr
    head = bytes((operation, count, 0, 0, 0, 0, 0, 0))
    head += rid.to_bytes(8, "little") + sector.to_bytes(8, "little")
    for ref, first, last in segments:
        head += ref.to_bytes(4, "little") + bytes((first, last, 0, 0))
    return head.ljust(BLK_SLOT, b"\0")


def blk_response(rid: int, operation: int, status: int) -> bytes:
    """id, operation, one of padding, status, 4 of padding."""
    return rid.to_bytes(8, "little") + bytes((operation, 0)) + status.to_bytes(
        2, "little", signed=True
    ) + bytes(4)  # fmt: skip


def tx_request(ref: int, size: int, rid: int = 0) -> bytes:
    return packer("netif_tx_request").pack(ref, 0, 0, rid, size)


def test_read_over_the_raw_ring_returns_the_disks_bytes(world: RawWorld) -> None:
    pfn = world.guest.page()
    ref = world.guest.grant(pfn)
    assert world.vbd.sring.push(blk_request(0, 0x1122334455667788, 3, (ref, 1, 2)), 1)
    world.vbd.notify()
    world.run()
    assert world.vbd.sring.take() == [blk_response(0x1122334455667788, 0, 0)]
    page = world.guest.domain.read(pfn, 0, 4096)
    assert page == bytes(512) + b"\x03" * 512 + b"\x04" * 512 + bytes(4096 - 3 * 512)


def test_write_over_the_raw_ring_reaches_the_image(world: RawWorld, disk: MemoryImage) -> None:
    pfn = world.guest.page()
    world.guest.domain.write(pfn, 0, b"\xee" * 4096)
    ref = world.guest.grant(pfn, readonly=True)
    world.vbd.sring.push(blk_request(1, 5, 8, (ref, 0, 0)), 1)
    world.vbd.notify()
    world.run()
    assert world.vbd.sring.take() == [blk_response(5, 1, 0)]
    assert bytes(disk.buffer[8 * 512 : 10 * 512]) == b"\xee" * 512 + b"\x09" * 512


def test_frame_sent_on_the_raw_ring_is_on_the_bridge(world: RawWorld) -> None:
    pfn = world.guest.page()
    world.guest.domain.write(pfn, 0, FRAME)
    ref = world.guest.grant(pfn, readonly=True)
    assert world.vif.tx.push(tx_request(ref, len(FRAME), rid=9), 1)
    world.vif.notify()
    world.run()
    assert list(world.bridge.frames) == [FRAME]
    assert world.vif.tx.take() == [bytes((9, 0, 0, 0))]


@pytest.mark.parametrize("pick", [lambda w: w.vbd, lambda w: w.vif], ids=["vbd", "vif"])
def test_req_prod_past_the_ring_breaks_the_device(
    world: RawWorld, pick: Callable[[RawWorld], RawBlkFront]
) -> None:
    raw = pick(world)
    assert raw.backend is not None
    assert not raw.backend.broken
    raw.sring.req_prod = raw.sring.size + 1
    raw.notify()
    world.run()
    assert raw.backend.broken
    assert raw.sring.rsp_prod == 0


@pytest.mark.parametrize("pick", [lambda w: w.vbd, lambda w: w.vif], ids=["vbd", "vif"])
def test_full_ring_of_requests_breaks_nothing(
    world: RawWorld, pick: Callable[[RawWorld], RawBlkFront]
) -> None:
    raw = pick(world)
    raw.sring.req_prod = raw.sring.size
    raw.notify()
    world.run()
    assert raw.backend is not None
    assert not raw.backend.broken
    assert raw.sring.rsp_prod == raw.sring.size


def test_a_halted_ring_of_a_vbd_leaves_it_where_it_is(world: RawWorld) -> None:
    world.vbd.sring.req_prod = 0x80000000
    world.vbd.notify()
    world.run()
    assert world.vbd.backend_state is XenbusState.CONNECTED
    assert world.vbd.backend is not None
    assert "req" in world.vbd.backend.broken


def test_slot_written_in_place_is_what_the_backend_answers(world: RawWorld) -> None:
    # Operation 9 does not exist; published by hand, without push.
    world.vbd.sring.write_slot(0, blk_request(9, 77, 0))
    world.vbd.sring.req_prod = 1
    world.vbd.notify()
    world.run()
    assert world.vbd.sring.slot(0) == blk_response(77, 9, -2).ljust(BLK_SLOT, b"\0")


def test_header_words_lie_where_ring_h_has_them(world: RawWorld) -> None:
    sring = world.vbd.sring
    sring.req_prod, sring.req_event, sring.rsp_prod, sring.rsp_event = 1, 0xA0, 0xFFFFFFFF, 0x80
    words = world.guest.domain.read(sring.pfn, 0, 16)
    assert words == bytes.fromhex("01000000 a0000000 ffffffff 80000000")
    found = (sring.req_prod, sring.req_event, sring.rsp_prod, sring.rsp_event)
    assert found == (1, 0xA0, 0xFFFFFFFF, 0x80)


def test_fresh_ring_has_events_at_one_and_producers_at_zero(world: RawWorld) -> None:
    sring = RawSring(
        world.guest.domain, world.guest.page(), 1, req="netif_rx_request", rsp="netif_rx_response"
    )
    assert world.guest.domain.read(sring.pfn, 0, 64) == bytes.fromhex(
        "00000000 01000000 00000000 01000000"
    ).ljust(64, b"\0")
    assert sring.size == 256


def test_slot_that_crosses_a_page_is_read_and_written_whole(world: RawWorld) -> None:
    pfn = world.guest.page(4)
    sring = RawSring(world.guest.domain, pfn, 4, req="blkif_request", rsp="blkif_response")
    assert sring.size == 128
    data = bytes(range(BLK_SLOT))
    # (8192 - 64) / 112 = 72.57: slot 72 begins 64 bytes before the third page.
    sring.write_slot(72, data)
    assert sring.slot(72) == data
    assert sring.slot(72 + 128) == data
    assert world.guest.domain.read(pfn + 1, 4096 - 64, 64) == data[:64]
    assert world.guest.domain.read(pfn + 2, 0, 48) == data[64:]
    assert sring.slot(71) == sring.slot(73) == bytes(BLK_SLOT)


def test_write_past_the_end_of_an_entry_is_refused(world: RawWorld) -> None:
    with pytest.raises(LocalProtocolError, match=r"^5 bytes at 108, an entry has 112$"):
        world.vbd.sring.write_slot(0, b"12345", 108)


def test_push_of_more_than_fits_is_the_callers_fault(world: RawWorld) -> None:
    world.vbd.sring.push(bytes(32 * BLK_SLOT), 32)
    with pytest.raises(LocalProtocolError):
        world.vbd.sring.push(bytes(BLK_SLOT), 1)


def test_ring_of_four_pages_connects_and_serves_its_last_slot(disk: MemoryImage) -> None:
    platform = Platform(seed=7)
    with RawWorld(platform, disk, "xenbr0") as world:
        world.vbd = RawBlkFront(world.guest, world.vbd.devid, order=2)
        world.connect()
        assert world.vbd.sring.size == 128
        ref = world.guest.grant(world.guest.page())
        for start in range(0, 256, 64):
            requests = [blk_request(0, start + at, at, (ref, 0, 0)) for at in range(64)]
            world.vbd.sring.push(b"".join(requests), 64)
            world.vbd.notify()
            world.run()
            responses = world.vbd.sring.take()
            assert responses == [blk_response(start + at, 0, 0) for at in range(64)]


def test_entry_taken_back_behind_the_backends_back_makes_an_error(world: RawWorld) -> None:
    pfn = world.guest.page()
    ref = world.guest.grant(pfn)
    world.guest.set_grant(ref, flags=0)
    world.vbd.sring.push(blk_request(0, 1, 0, (ref, 0, 7)), 1)
    world.vbd.notify()
    world.run()
    assert world.vbd.sring.take() == [blk_response(1, 0, -1)]
    world.guest.set_grant(ref, flags=GTF_permit_access, pfn=pfn)
    world.vbd.sring.push(blk_request(0, 2, 0, (ref, 0, 7)), 1)
    world.vbd.notify()
    world.run()
    assert world.vbd.sring.take() == [blk_response(2, 0, 0)]


def test_grant_to_another_domain_is_none_for_the_backend(world: RawWorld) -> None:
    ref = world.guest.grant(world.guest.page(), domid=5)
    with pytest.raises(GrantError):
        world.platform.dom0.gnttab.map(world.guest.domid, ref, 0x100000 + 500)


def test_ring_reference_in_use_cannot_be_revoked(world: RawWorld) -> None:
    assert not world.guest.revoke(world.vbd.refs[0])
    assert world.guest.revoke(world.guest.grant(world.guest.page()))


def test_each_answered_batch_is_one_event(world: RawWorld) -> None:
    before = world.vbd.events
    calls: list[int] = []
    world.vbd.on_event = lambda: calls.append(world.vbd.events)
    ref = world.guest.grant(world.guest.page())
    world.vbd.sring.push(b"".join(blk_request(0, at, at, (ref, 0, 0)) for at in range(8)), 8)
    world.vbd.notify()
    world.run()
    assert world.vbd.events == before + 1
    assert calls == [before + 1]


def test_backend_is_silent_when_the_ring_asks_for_no_event(world: RawWorld) -> None:
    before = world.vbd.events
    world.vbd.sring.rsp_event = 0x40000000
    world.vbd.sring.push(blk_request(9, 1, 0), 1)
    world.vbd.notify()
    world.run()
    assert world.vbd.sring.rsp_prod == 1
    assert world.vbd.events == before


def test_both_ends_are_connected(world: RawWorld) -> None:
    for front in (world.vbd, world.vif):
        assert front.state is XenbusState.CONNECTED
        assert front.backend_state is XenbusState.CONNECTED
        assert front.backend is not None


def test_state_is_any_text_and_reads_unknown_if_it_is_none(world: RawWorld) -> None:
    world.vif.state = 77
    assert world.vif.read_key("state") == "77"
    assert world.vif.state is XenbusState.UNKNOWN
    world.vif.write_key("state", "-")
    assert world.vif.state is XenbusState.UNKNOWN


def test_removed_directory_leaves_no_key(world: RawWorld) -> None:
    world.vbd.remove_key("event-channel")
    assert world.vbd.read_key("event-channel") is None
    assert world.vbd.read_key("protocol") == "x86_64-abi"
    world.vbd.remove_key("")
    assert world.vbd.read_key("protocol") is None


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"ring-ref": None}, "ring-ref"),
        ({"event-channel": "junk"}, "event-channel"),
        ({"protocol": "vax-abi"}, "vax-abi"),
        ({"multi-queue-num-queues": "0"}, "0 queues"),
    ],
)
def test_refused_connection_names_the_backends_reason(
    disk: MemoryImage, overrides: dict[str, str | None], reason: str
) -> None:
    with RawWorld(Platform(seed=1), disk, "xenbr0") as world:
        with pytest.raises(LocalProtocolError, match=f"backend/vbd/1/51712 is closing: .*{reason}"):
            world.vbd.connect(overrides)
        assert world.vbd.backend is not None
        assert world.vbd.backend.broken


def test_each_front_connects_alone(disk: MemoryImage) -> None:
    with RawWorld(Platform(seed=1), disk, "xenbr0") as world:
        fronts: tuple[RawFront, ...] = (world.vif, world.vbd)
        for front in fronts:
            front.connect()
            assert front.backend_state is XenbusState.CONNECTED


def test_trees_hold_what_the_toolstack_writes(world: RawWorld) -> None:
    with Platform() as platform:
        from xenpv.platform import Disk, Vif

        image = MemoryImage(bytearray(4096))
        platform.create(name="a", disks=[Disk(image)], vifs=[Vif()])
        planned = platform.xenstored.ls_fp(b"/local/domain")
    for kind, devid in (("vbd", 51712), ("vif", 0)):
        for path in (f"/local/domain/1/device/{kind}/{devid}", f"backend/{kind}/1/{devid}"):
            theirs = _keys(planned, path)
            ours = _keys(world.platform.xenstored.ls_fp(b"/local/domain"), path)
            # What the hotplug script found out is nothing that a backend reads.
            for key in ("physical-device", "physical-device-path"):
                theirs.pop(key, None)
            assert theirs.items() <= ours.items(), path


def _keys(listing: str, path: str) -> dict[str, str]:
    """name: permissions of each key directly below a path that ends so."""
    keys = {}
    for line in listing.splitlines():
        parent, _, name = line.split(" = ")[0].rpartition("/")
        if parent.endswith(path):
            keys[name] = line.rsplit("   ", 1)[1]
    return keys


def test_one_seed_gives_one_digest() -> None:
    def digest(seed: int) -> str:
        with world_raw(seed) as world:
            return world.platform.digest

    assert digest(3) == digest(3)


def test_every_schedule_connects() -> None:
    for seed in range(50):
        with world_raw(seed):
            pass


def test_closed_world_leaves_no_view_and_closes_again(disk: MemoryImage) -> None:
    world = world_raw(image=disk)
    machine = world.platform.hypervisor.machine
    world.close()
    world.close()
    from xenpv.abi._kernel import lib

    assert lib.machine_used_frames(machine) == 0


def test_world_that_fails_to_connect_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Platform] = []
    close = Platform.close

    def remember(platform: Platform) -> None:
        closed.append(platform)
        close(platform)

    def refuse(_self: RawFront) -> None:
        raise LocalProtocolError("no")

    monkeypatch.setattr(Platform, "close", remember)
    monkeypatch.setattr(RawFront, "finish", refuse)
    with pytest.raises(LocalProtocolError, match=r"^no$"):
        world_raw()
    assert len(closed) == 1


def test_front_of_a_guest_that_the_toolstack_made_connects(disk: MemoryImage) -> None:
    with Platform(seed=2) as platform:
        platform.images.register("disk", disk)
        config = DomainConfig(
            name="raw", memory_mib=64, disks=(DiskSpec(target="disk", vdev="xvda"),)
        )
        made = platform.toolstack.create(config)
        platform.toolstack.unpause(made)
        front = RawBlkFront(RawGuest(platform, made.domain), 51712)
        front.connect()
        assert front.backend_state is XenbusState.CONNECTED


def test_a_closed_world_is_freed_by_its_last_reference() -> None:
    gc.collect()
    gc.disable()
    try:
        world = world_raw()
        world.close()
        world.close()
        domain = world.guest.domain
        del world
        with pytest.raises(LocalProtocolError, match="closed"):
            domain.evtchn.alloc_unbound(0)
        with pytest.raises(AttributeError, match="no_such_part"):
            domain.no_such_part  # noqa: B018 - the look-up is what fails
        del domain
        assert gc.collect() == 0
    finally:
        gc.enable()
