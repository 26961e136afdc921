from __future__ import annotations

import pytest

from xenpv.errors import Livelock, LocalProtocolError
from xenpv.testing import AccessLog, world_back, world_raw
from xenpv.view.rings import rings_of

BLK = 112


def request() -> bytes:
    return bytes(BLK)


def test_a_pass_of_blkback_is_logged_with_its_deliveries() -> None:
    with world_raw() as world:
        frame = rings_of(world.platform)[0].frames[0]
        with AccessLog(world.platform) as log:
            world.vbd.sring.push(request(), 1)
            world.vbd.notify()
            world.run()
        mine = [one for one in log.entries() if one.frame == frame and one.actor == 0]
        assert [(one.kind, one.offset, one.size) for one in mine] == [
            (0, 0, 4), (0, 64, BLK), (1, 64, BLK), (1, 8, 4), (0, 12, 4), (0, 0, 4), (1, 4, 4), (0, 0, 4)
        ]  # fmt: skip
        assert len({one.delivery for one in mine}) == 1
        assert mine[0].delivery > 0
        assert log.double_fetches() == []  # indices are read again by design


def test_a_double_fetch_is_named_by_ring_entry_and_field() -> None:
    with world_raw() as world:
        dom0 = world.platform.dom0
        (ring,) = [one for one in rings_of(world.platform) if one.kind.name == "blkif"]
        assert ring.back is not None
        with AccessLog(world.platform) as log:
            for _ in range(2):
                dom0.read(ring.back.pfns[0], 64 + 3 * BLK + 1, 1)
        (found,) = log.double_fetches()
        assert found.where == "blkif_request[3].nr_segments"
        assert found.in_slot
        assert (found.actor, found.domid, found.pfn) == (0, 1, world.vbd.sring.pfn)
        assert (found.offset, found.size, found.count) == (64 + 3 * BLK + 1, 1, 1)
        assert str(found) == (
            "d0 fetches blkif_request[3].nr_segments (d1 pfn 0x101+0x191) twice in one delivery, "
            "1 bytes"
        )


def test_a_page_that_is_no_rings_is_named_by_its_owner() -> None:
    with world_raw() as world:
        pfn = world.guest.page()
        with AccessLog(world.platform) as log:
            world.guest.domain.read(pfn, 0, 8)
            world.guest.domain.read(pfn, 4, 8)
        (found,) = log.double_fetches()
        assert (found.where, found.in_slot, found.pfn, found.offset, found.size) == (
            "", False, pfn, 4, 4
        )  # fmt: skip


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_our_drivers_fetch_nothing_twice(personality) -> None:
    with world_back(personality=personality, connect=False) as world:
        log = AccessLog(world.platform)
        log.open()
        world.connect()
        world.disk.write(3, bytes(512 * 90))
        world.disk.read(3, 90)
        for size in (60, 1514):
            world.net.send(b"\xff" * 6 + world.net.mac + b"\x88\xb5" + bytes(size - 14))
        world.run()
        assert log.double_fetches() == []
        assert log.total > 100


def test_the_log_changes_no_trace() -> None:
    def digest(logged: bool) -> str:
        with world_raw(seed=11) as world:
            log = AccessLog(world.platform)
            if logged:
                log.open()
            world.vbd.sring.push(request() * 5, 5)
            world.vbd.notify()
            world.run()
            return world.platform.digest

    assert digest(True) == digest(False)


def test_one_log_at_a_time() -> None:
    with world_raw() as world:
        with AccessLog(world.platform), pytest.raises(LocalProtocolError, match="EEXIST"):
            AccessLog(world.platform).open()
        with pytest.raises(LocalProtocolError, match="EINVAL"):
            AccessLog(world.platform, capacity=5).open()


def test_what_was_found_is_there_after_the_platform() -> None:
    with world_raw() as world:
        log = AccessLog(world.platform)
        log.open()
        world.vbd.sring.push(request(), 1)
        log.close()
        log.close()
    assert len(log.entries()) == 3  # the slot, req_prod, req_event
    assert world.platform.loop.scheduler is None


def test_a_log_that_outlives_its_platform_leaves_the_next_ones_alone() -> None:
    with world_raw() as world:
        log = AccessLog(world.platform)
        log.open()
    with world_raw() as world, AccessLog(world.platform) as other:  # the same machine again
        world.vbd.sring.push(request(), 1)
        assert (log.total, log.entries(), log.double_fetches()) == (0, [], [])
        log.close()
        assert other.total == 3


def test_limits_of_the_loop_hold_under_a_log() -> None:
    with world_raw() as world, AccessLog(world.platform):
        task = world.guest.domain.task("again", lambda: task.wake())
        task.wake()
        with pytest.raises(Livelock, match="10 tasks ran"):
            world.platform.loop.run(10)
