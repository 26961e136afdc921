"""Raw backends drive the real frontends: connect, one read, one frame, errors, hostile indices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from xenpv.abi.xenbus import XenbusState
from xenpv.back.xenbus import Device
from xenpv.errors import GrantError, HypercallError, LocalProtocolError
from xenpv.host.toolstack import ToolstackError
from xenpv.testing import check_all, world_back
from xenpv.testing.back_world import BackWorld
from xenpv.testing.raw_back import BLK_REQUEST, RawBlkBack, RawNetBack
from xenpv.vbd.disk import DiskError

PERSONALITIES = ["windows", "linux"]


@pytest.fixture(params=PERSONALITIES)
def world(request) -> Iterator[BackWorld]:
    with world_back(seed=3, personality=request.param) as made:
        yield made


def frame(world: BackWorld, size: int = 64) -> bytes:
    return (b"\xff" * 6 + world.net.mac + b"\x88\xb5" + bytes(range(256)) * 8)[:size]


def test_real_frontends_connect(world: BackWorld) -> None:
    assert world.vbd.connected
    assert world.vif.connected
    assert world.vbd.state is world.vif.state is XenbusState.CONNECTED
    assert world.vbd.frontend_key("state") == "4"
    assert world.disk.capacity == 2048
    assert world.vbd.mapped >= 1
    assert world.vif.mapped == 2
    check_all(world.platform)


def test_one_read_carries_what_the_backend_wrote(world: BackWorld) -> None:
    back = world.vbd
    back.hold = True
    content = bytes(range(256)) * 16

    def serve() -> None:
        for raw in back.sring.take():
            for ref, first, last in back.segments(raw):
                size = (last - first + 1) * 512
                back.fill(ref, content[:size], first * 512)
            back.answer(raw, 0)

    back.on_event = serve
    assert world.disk.read(8, 8) == content
    assert back.events > 0
    check_all(world.platform)


def test_one_write_shows_its_bytes(world: BackWorld) -> None:
    back = world.vbd
    back.hold = True
    seen: list[bytes] = []

    def serve() -> None:
        for raw in back.sring.take():
            assert back.is_write(raw)
            seen.extend(
                back.read(ref, first * 512, (last - first + 1) * 512)
                for ref, first, last in back.segments(raw)
            )
            back.answer(raw, 0)

    back.on_event = serve
    world.disk.write(0, b"\xa5" * 4096)
    assert b"".join(seen) == b"\xa5" * 4096


def test_one_frame_each_way(world: BackWorld) -> None:
    sent = frame(world, 1514)
    world.net.send(sent)
    world.run()
    assert world.vif.frames == [sent]
    received = world.net.mac + b"\x00\x16\x3e\x00\x00\xee\x88\xb5" + bytes(50)
    world.vif.send(received)
    world.run()
    assert [bytes(one) for one in world.net.received] == [received]
    check_all(world.platform)


@pytest.mark.parametrize("status", [-1, -2])
def test_an_error_answer_fails_the_request(world: BackWorld, status) -> None:
    back = world.vbd
    back.hold = True
    back.on_event = lambda: [back.answer(raw, status) for raw in back.sring.take()]
    with pytest.raises(DiskError):
        world.disk.read(0, 8)
    back.on_event = None
    back.hold = False
    world.disk.read(0, 8)  # the disk lives
    check_all(world.platform)


def test_a_hostile_rsp_prod_breaks_the_disk_and_nothing_else(world: BackWorld) -> None:
    world.vbd.sring.rsp_prod = 1000
    world.vbd.notify()
    world.run()
    assert ("vbd", 51712, False) in world.guest._connections()
    assert ("vif", 0, True) in world.guest._connections()
    world.net.send(frame(world))
    world.run()
    assert len(world.vif.frames) == 1
    check_all(world.platform, hostile=[0])


def test_a_hostile_rsp_prod_breaks_the_interface_and_nothing_else(world: BackWorld) -> None:
    world.vif.tx.rsp_prod = world.vif.tx.rsp_prod + 5
    world.vif.notify()
    world.run()
    assert ("vif", 0, False) in world.guest._connections()
    world.disk.read(0, 8)
    check_all(world.platform, hostile=[0])


def test_an_answer_for_an_id_that_nobody_sent(world: BackWorld) -> None:
    back = world.vbd
    back.hold = True
    back.on_event = lambda: [back.respond(0xDEAD, raw[0], 0) for raw in back.sring.take()]
    with pytest.raises((DiskError, LocalProtocolError)):
        world.disk.read(0, 8)
    assert ("vbd", 51712, False) in world.guest._connections()


def test_slots_and_words_are_the_tests(world: BackWorld) -> None:
    sring = world.vbd.sring
    sring.write_slot(3, b"\x11\x22", 4)
    assert sring.slot(3)[:8] == b"\0\0\0\0\x11\x22\0\0"
    assert sring.slot(3 + sring.size) == sring.slot(3)
    for name in ("req_prod", "req_event", "rsp_prod", "rsp_event"):
        setattr(sring, name, 0x1_2345_6789)
        assert getattr(sring, name) == 0x2345_6789
    with pytest.raises(LocalProtocolError, match="an entry has 112"):
        sring.write_slot(0, bytes(10), 103)


def test_a_slot_across_pages_is_whole() -> None:
    def more(device: Device) -> RawBlkBack:
        back = RawBlkBack(device)
        back.features["max-ring-page-order"] = "2"
        return back

    with world_back(vbd=more) as world:
        sring = world.vbd.sring
        assert len(sring.pfns) > 1
        index = (4096 - 64) // 112  # this one begins in the first page and ends in the second
        data = bytes(range(112))
        sring.write_slot(index, data)
        assert sring.slot(index) == data
        assert (
            sring.domain.read(sring.pfns[0], 64 + index * 112, 4096 - 64 - index * 112)
            == (data[: 4096 - 64 - index * 112])
        )


def test_responses_that_were_not_asked_for_do_not_fit(world: BackWorld) -> None:
    with pytest.raises(HypercallError):
        world.vbd.respond(1, 0, 0)


def test_a_reference_that_is_none_is_refused_and_leaves_nothing(world: BackWorld) -> None:
    before = world.vbd.mapped
    with pytest.raises(GrantError):
        world.vbd.map(0x7FFF)
    with pytest.raises(LocalProtocolError, match="nothing is mapped"):
        world.vbd.unmap(0x100)
    assert world.vbd.mapped == before


def test_a_backend_that_never_answers_leaves_the_request_waiting(world: BackWorld) -> None:
    back = world.vbd
    back.hold = True
    back.answers.clear()
    pending: list[bytes] = []
    back.on_event = lambda: pending.extend(back.sring.take())
    with pytest.raises((DiskError, LocalProtocolError)):
        world.disk.read(0, 8)
    assert pending
    assert BLK_REQUEST.unpack(pending[0])[0] == 0


def test_keys_and_answers_may_be_changed_before_the_probe() -> None:
    class Small(RawBlkBack):
        def __init__(self, device: Device) -> None:
            super().__init__(device)
            self.keys["sectors"] = "77"

    class Mute(RawNetBack):
        def __init__(self, device: Device) -> None:
            super().__init__(device)
            del self.answers[XenbusState.CONNECTED]

    with world_back(connect=False, vbd=Small, vif=Mute) as world:
        with pytest.raises(ToolstackError, match="vif 0"):
            world.connect()
        assert world.disk.capacity == 77
        assert world.vif.states[0] is XenbusState.INITIALISING


def test_destroying_the_guest_unmaps_everything(world: BackWorld) -> None:
    world.guest.destroy()
    world.run()
    assert (world.vbd.mapped, world.vif.mapped) == (0, 0)
    assert not world.vbd.connected
    check_all(world.platform)
