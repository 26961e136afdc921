from __future__ import annotations

import attrs
import pytest

from xenpv.bench.limit import RING_H, Limit, Text
from xenpv.errors import LocalProtocolError


@pytest.mark.parametrize("text", Text)
@pytest.mark.parametrize(("segments", "batch"), [(1, 1), (1, 32), (11, 1), (11, 32), (3, 7)])
def test_every_block_request_is_answered_and_every_byte_copied(
    segments: int, batch: int, text: Text
) -> None:
    # Forty rounds of 32 go round the ring forty times.
    run = Limit().blk(segments=segments, batch=batch, rounds=40, text=text)
    assert run.requests == run.responses == 40 * batch
    assert run.refused == 0
    assert run.data == 40 * batch * segments * 4096
    assert run.ns > 0


@pytest.mark.parametrize("text", [Text.OWN, Text.XEN])
@pytest.mark.parametrize("batch", [1, 31, 256])
def test_every_frame_is_answered_and_every_byte_copied(batch: int, text: Text) -> None:
    run = Limit().net(size=1514, batch=batch, rounds=40, text=text)
    assert run.requests == run.responses == 40 * batch
    assert run.refused == 0
    assert run.data == 40 * batch * 1514


def test_each_batch_is_notified_once_each_way() -> None:
    limit = Limit()
    for run in (
        limit.blk(segments=1, batch=32, rounds=9),
        limit.net(size=60, batch=200, rounds=9),
        limit.blk(segments=1, batch=32, rounds=9, text=Text.OWN),
        limit.net(size=60, batch=200, rounds=9, text=Text.OWN),
        limit.blk(segments=1, batch=1, rounds=9, text=Text.HOOKED),
    ):
        assert run.req_events == run.rsp_events == 9


@pytest.mark.parametrize("text", Text)
def test_request_on_a_revoked_grant_is_refused_without_a_byte(text: Text) -> None:
    limit = Limit()
    limit.revoke(5)
    # Requests go through the 32 pages in turn: 64 of them meet page 5 twice.
    run = limit.blk(segments=1, batch=32, rounds=2, text=text)
    assert (run.requests, run.responses, run.refused) == (64, 62, 2)
    assert run.data == 62 * 4096
    frames = limit.net(size=100, batch=32, rounds=1)
    assert (frames.responses, frames.refused, frames.data) == (31, 1, 3100)


@pytest.mark.skipif(not RING_H, reason="io/ring.h was not found: apt-get install libxen-dev")
@pytest.mark.parametrize("start", [0, 1, 31])
@pytest.mark.parametrize(("segments", "batch"), [(1, 1), (1, 32), (11, 5)])
def test_xens_macros_and_ours_leave_the_same_ring(segments: int, batch: int, start: int) -> None:
    runs, rings = [], []
    for text in (Text.OWN, Text.XEN):
        limit = Limit()
        if start:
            limit.blk(segments=1, batch=start, rounds=1, text=Text.OWN)
        limit.revoke(3)
        run = limit.blk(segments=segments, batch=batch, rounds=7, text=text)
        net = limit.net(size=60 + batch, batch=batch * 8, rounds=3, text=text)
        runs += [attrs.evolve(run, ns=0.0), attrs.evolve(net, ns=0.0)]
        rings += [limit.ring(net=False), limit.ring(net=True)]
    assert runs[:2] == runs[2:]
    assert runs[0].refused
    assert rings[:2] == rings[2:]
    assert int.from_bytes(rings[0][:4], "little") == start + 7 * batch  # req_prod


@pytest.mark.skipif(not RING_H, reason="io/ring.h was not found: apt-get install libxen-dev")
def test_one_ring_may_be_moved_by_either_text_in_turn() -> None:
    mixed, ours = Limit(), Limit()
    for text in (Text.OWN, Text.XEN, Text.XEN, Text.HOOKED, Text.XEN):
        mixed.blk(segments=2, batch=9, rounds=5, text=text)
        ours.blk(segments=2, batch=9, rounds=5, text=Text.OWN)
        assert mixed.ring(net=False) == ours.ring(net=False)


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
