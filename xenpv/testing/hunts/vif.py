"""Scenarios of XenVif under a backend that errs, and does not break the protocol."""

from __future__ import annotations

from typing import Final

from xenpv.abi._kernel import lib
from xenpv.testing.back_world import BackWorld
from xenpv.testing.explorer import Explorer
from xenpv.testing.hunts.net import udp
from xenpv.testing.hunts.steps import Steps

ERROR: Final[int] = lib.NETIF_RSP_ERROR
DROPPED: Final[int] = lib.NETIF_RSP_DROPPED
HERE: Final = bytes.fromhex("00163e000001")
FAILED: Final = 3
THERE: Final = bytes.fromhex("00163e0000fe")


def _fail(world: BackWorld, status: int) -> None:
    """Answer the next slot with an error."""
    back = world.vif
    back.take_posted()
    number, _ref = back.posted.pop(0)
    back.answer_rx(number, status)


def vif_errors(x: Explorer) -> None:
    """A backend fails packets and delivers others: XenVif counts the former, hands up the latter
    and posts every page again.
    """
    world = x.world_back()
    back = world.vif
    frames = [udp(HERE, THERE, size) for size in (100, 900)]
    steps = Steps(
        [
            lambda: _fail(world, ERROR),
            lambda: back.send(frames[0]),
            lambda: _fail(world, DROPPED),
            lambda: _fail(world, -8),
            lambda: back.send(frames[1]),
        ]
    )
    steps.start(back.domain.task, "backend")
    x.run()
    assert list(world.net.received) == frames, "good frames did not come"
    errors = world.net.statistics.received_errors
    assert errors == FAILED, f"{errors} failed packets counted, there were {FAILED}"
    posted = (back.rx.req_prod - back.rx.rsp_prod) & 0xFFFFFFFF
    assert posted == back.rx.size, f"{posted} of {back.rx.size} slots are posted"


SCENARIOS: Final = (vif_errors,)
