"""A C backend in the macros of Xen's own ring.h: what the hooks see of one poll."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.peers import need
from xenpv.abi._kernel import lib
from xenpv.testing import AccessLog, load_end, user_blk_backend

SOURCE = Path(__file__).parents[1] / "testing" / "cends" / "xenring.c"

# Two requests, both refused: offsets in the ring's page, sizes in bytes.
POLL = (
    ("read", 0, 4),  # req_prod
    ("read", 64, 112),  # RING_COPY_REQUEST
    ("write", 64, 8), ("write", 72, 1), ("write", 74, 2),
    ("read", 176, 112),
    ("write", 176, 8), ("write", 184, 1), ("write", 186, 2),
    ("read", 8, 4), ("write", 8, 4),  # rsp_prod, as it was and as it is
    ("read", 12, 4),  # rsp_event
    ("read", 0, 4),
    ("write", 4, 4),  # req_event
    ("read", 0, 4),  # the final check
)  # fmt: skip


@pytest.mark.peers
def test_a_poll_in_xens_own_macros_is_seen_access_by_access() -> None:
    need("/usr/include/xen/io/ring.h", "libxen-dev")
    with user_blk_backend(load_end(SOURCE)) as world:
        sring = world.vbd.sring
        frame = int(lib.p2m_lookup(world.guest.domain.kernel, sring.pfn, 0))
        with AccessLog(world.platform) as log:
            sring.push(bytes(112) * 2, 2)
            world.vbd.notify()
            world.run()
        seen = [
            ("write" if one.kind == lib.ACCESS_WRITE else "read", one.offset, one.size)
            for one in log.entries()
            if (one.actor, one.frame) == (0, frame)
        ]
        assert len(sring.take()) == 2
    assert log.double_fetches() == []
    assert tuple(seen) == POLL
