from __future__ import annotations

import pytest

from xenpv.bench.ring import DISK_SECTORS, FRAME_BYTES, BlkPump, NetPump
from xenpv.errors import LocalProtocolError
from xenpv.host.image import MemoryImage
from xenpv.testing.raw_world import world_raw

SECTORS = b"".join(number.to_bytes(8, "little") * 64 for number in range(DISK_SECTORS))


@pytest.mark.parametrize(("segments", "batch"), [(1, 1), (1, 32), (11, 2)])
def test_pump_reads_the_disk_through_the_guests_pages(segments: int, batch: int) -> None:
    with world_raw(image=MemoryImage(bytearray(SECTORS))) as world:
        pump = BlkPump(world.vbd, segments, batch)
        pump.run(1)
        assert pump.answered == batch
        # Whole pages in turn from sector 0 on; no request of these wraps the 32 pages.
        for at in range(segments * batch):
            page = world.guest.domain.read(pump.pages[at], 0, 4096)
            assert page == SECTORS[at * 4096 : (at + 1) * 4096]


@pytest.mark.parametrize(("segments", "batch"), [(1, 1), (1, 32), (11, 32)])
def test_pump_goes_on_from_run_to_run_and_loses_nothing(segments: int, batch: int) -> None:
    with world_raw(image=MemoryImage(bytearray(SECTORS))) as world:
        pump = BlkPump(world.vbd, segments, batch)
        for rounds in (1, 3, 40):
            assert pump.run(rounds) > 0
        assert pump.answered == 44 * batch
        assert world.vbd.sring.rsp_prod == world.vbd.sring.req_prod == 44 * batch
        assert world.vbd.sring.ring.in_flight == 0


@pytest.mark.parametrize("batch", [1, 256])
def test_pump_sends_whole_frames_to_the_bridge(batch: int) -> None:
    with world_raw() as world:
        NetPump(world.vif, batch).run(3)
        frame = bytes.fromhex("00163e00ffff 00163e000001 88b5") + b"\xa5" * (FRAME_BYTES - 14)
        assert list(world.bridge.frames) == [frame] * (3 * batch)


def test_answer_with_an_error_is_no_measurement() -> None:
    with world_raw(image=MemoryImage(bytearray(4096))) as world:
        pump = BlkPump(world.vbd, 1, 2)
        with pytest.raises(LocalProtocolError, match=r"^2 of 2 requests answered, 1 with an error"):
            pump.run(1)  # the second read is beyond the disk
