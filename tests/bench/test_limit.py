from __future__ import annotations

import pytest

from xenpv.bench.limit import Limit
from xenpv.errors import LocalProtocolError


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize(("segments", "batch"), [(1, 1), (1, 32), (11, 1), (11, 32), (3, 7)])
def test_every_block_request_is_answered_and_every_byte_copied(
    segments: int, batch: int, hooked: bool
) -> None:
    # Forty rounds of 32 go round the ring forty times.
    run = Limit().blk(segments=segments, batch=batch, rounds=40, hooked=hooked)
    assert run.requests == run.responses == 40 * batch
    assert run.refused == 0
    assert run.data == 40 * batch * segments * 4096
    assert run.ns > 0


@pytest.mark.parametrize("batch", [1, 31, 256])
def test_every_frame_is_answered_and_every_byte_copied(batch: int) -> None:
    run = Limit().net(size=1514, batch=batch, rounds=40)
    assert run.requests == run.responses == 40 * batch
    assert run.refused == 0
    assert run.data == 40 * batch * 1514


def test_each_batch_is_notified_once_each_way() -> None:
    limit = Limit()
    for run in (
        limit.blk(segments=1, batch=32, rounds=9),
        limit.net(size=60, batch=200, rounds=9),
        limit.blk(segments=1, batch=1, rounds=9, hooked=True),
    ):
        assert run.req_events == run.rsp_events == 9


@pytest.mark.parametrize("hooked", [False, True])
def test_request_on_a_revoked_grant_is_refused_without_a_byte(hooked: bool) -> None:
    limit = Limit()
    limit.revoke(5)
    # Requests go through the 32 pages in turn: 64 of them meet page 5 twice.
    run = limit.blk(segments=1, batch=32, rounds=2, hooked=hooked)
    assert (run.requests, run.responses, run.refused) == (64, 62, 2)
    assert run.data == 62 * 4096
    frames = limit.net(size=100, batch=32, rounds=1)
    assert (frames.responses, frames.refused, frames.data) == (31, 1, 3100)


@pytest.mark.parametrize(
    "sizes", [{"segments": 0, "batch": 1}, {"segments": 12, "batch": 1},
              {"segments": 1, "batch": 0}, {"segments": 1, "batch": 33}]
)  # fmt: skip
def test_block_run_that_no_ring_takes_is_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(LocalProtocolError, match="no ring takes that"):
        Limit().blk(**sizes, rounds=1)


@pytest.mark.parametrize("sizes", [{"size": 13, "batch": 1}, {"size": 2049, "batch": 1},
                                   {"size": 60, "batch": 257}])  # fmt: skip
def test_network_run_that_no_ring_takes_is_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(LocalProtocolError, match="no ring takes that"):
        Limit().net(**sizes, rounds=1)


def test_time_per_request_and_bandwidth_are_of_one_run() -> None:
    run = Limit().blk(segments=11, batch=32, rounds=10)
    assert run.ns_per_request == run.ns / 320
    assert run.gb_per_s == 320 * 11 * 4096 / run.ns
