from __future__ import annotations

import os

import pytest

from xenpv.bench import disk
from xenpv.bench.disk import Disks, Plain
from xenpv.errors import LocalProtocolError
from xenpv.vbd.target import Target

KIB = 1024


@pytest.mark.parametrize(("size", "batch"), [(4 * KIB, 1), (4 * KIB, 32), (1 << 20, 2)])
def test_each_srb_reads_its_blocks_of_the_file(size: int, batch: int) -> None:
    with Disks(size, batch, file_bytes=4 << 20) as disks:
        load = disks.loads[0]
        with disks.paths[0].open("r+b") as file:
            for sector in range((4 << 20) // 512):
                file.write(sector.to_bytes(8, "little") * 64)
        before = load.done
        disks.run(1)
        assert load.done == before + batch == 3 * batch
        first = 2 * batch * size // 512  # after the two batches at the start
        sectors = (4 << 20) // 512
        for number, pfn in enumerate(load.pfns):
            at = (first + number * (size // 512)) % sectors
            expected = b"".join(
                sector.to_bytes(8, "little") * 64 for sector in range(at, at + size // 512)
            )
            assert load.target.domain.read(pfn, 0, size) == expected


def test_each_srb_writes_its_blocks_of_the_file() -> None:
    with Disks(8 * KIB, 4, writes=True, file_bytes=64 * KIB) as disks:
        assert disks.paths[0].read_bytes() == b"\x5a" * (64 * KIB)


def test_every_disk_and_every_queue_has_its_share() -> None:
    with Disks(4 * KIB, 8, disks=3, queues=4, file_bytes=64 * KIB, personality="linux") as disks:
        disks.run(2)
        assert [load.done for load in disks.loads] == [4 * 8] * 3
        for load in disks.loads:
            answered = [ring.front.rsp_cons for ring in load.target.frontend.rings if ring.front]
            assert answered == [8, 8, 8, 8]


def test_large_srbs_are_one_indirect_request_each() -> None:
    with Disks(1 << 20, 2, file_bytes=4 << 20) as disks:
        front = disks.loads[0].target.frontend.rings[0].front
        assert front is not None
        before = front.rsp_cons
        disks.run(1)
        assert front.rsp_cons == before + 2


def test_plain_calls_move_the_same_blocks(tmp_path, monkeypatch) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(64 * KIB))
    asked = []
    monkeypatch.setattr(os, "pread", lambda _fd, size, offset: asked.append((size, offset)))
    with Plain(path, 16 * KIB) as file:
        file.sample(5)
    assert asked == [(16 * KIB, at * 16 * KIB) for at in (0, 1, 2, 3, 0)]
    with Plain(path, 16 * KIB, writes=True) as file:
        file.sample(3)
    assert path.read_bytes() == b"\x5a" * (48 * KIB) + bytes(16 * KIB)


def test_a_command_that_fails_is_no_measurement() -> None:
    with Disks(4 * KIB, 4, file_bytes=64 * KIB) as disks:
        os.truncate(disks.paths[0], 0)
        with pytest.raises(LocalProtocolError, match="^4 of 4 SRBs completed, 4 with an error"):
            disks.run(1)


def test_what_does_not_come_back_is_no_measurement(monkeypatch) -> None:
    with Disks(4 * KIB, 4, file_bytes=64 * KIB) as disks:
        monkeypatch.setattr(Target, "submit", lambda _target, _srb: None)
        with pytest.raises(LocalProtocolError, match="^0 of 4 SRBs completed, 0 with an error"):
            disks.run(1)


@pytest.mark.parametrize(
    "pairs",
    [
        disk.plain(4 * KIB, 4, 8),
        disk.rate(4 * KIB, 4, 8),
        disk.bandwidth(1 << 20, 2, 2),
        disk.wider(disks=2),
        disk.wider(queues=2),
        disk.direct(1 << 20, 1, 1),
    ],
    ids=["plain", "rate", "bandwidth", "disks", "queues", "direct"],
)
def test_a_bench_tells_the_subject_and_what_is_beside_it(pairs) -> None:
    value, beside = next(pairs)
    assert value > 0
    assert beside > 0
    pairs.close()
