"""Scenarios of XenVif under a backend that errs, and does not break the protocol."""

from __future__ import annotations

from functools import partial
from typing import Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.testing.back_world import BackWorld
from xenpv.testing.explorer import Explorer
from xenpv.testing.hunts.net import udp
from xenpv.testing.hunts.steps import Steps
from xenpv.testing.raw_back import OKAY, TX_REQUEST
from xenpv.xen.domain import PAGE_SIZE

ERROR: Final[int] = lib.NETIF_RSP_ERROR
DROPPED: Final[int] = lib.NETIF_RSP_DROPPED
EXTRA_INFO: Final[int] = lib.NETRXF_extra_info
MORE_DATA: Final[int] = lib.NETRXF_more_data  # in tx too
HERE: Final = bytes.fromhex("00163e000001")
FAILED: Final = 3
AGAIN: Final = FAILED + 2  # slots that were answered: their pages are the last posted
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
    back.take_posted()
    for number, ref in back.posted[-AGAIN:]:
        assert not any(back.read(ref)), f"the page of slot {number} shows an earlier frame"


FRAME: Final = udp(HERE, THERE, 80)


@attrs.frozen
class Answered:
    """A response that no backend may give: offset, flags, status, and id beside the slot's."""

    name: str
    offset: int = 0
    flags: int = 0
    status: int = len(FRAME)
    beside: int = 0


HOSTILE: Final = (
    Answered("a frame beyond its page", offset=4000),
    Answered("a frame at the end of its page and beyond", offset=PAGE_SIZE, status=60),
    Answered("another slot's id", beside=1),
    Answered("an id that no slot has", beside=300),
    Answered("an extra that does not come", flags=EXTRA_INFO),
    Answered("more data that does not come", flags=MORE_DATA),
)


def vif_hostile(x: Explorer) -> None:
    """A backend gives a response that no backend may give: nothing of it is handed up, the guest
    goes on, and so does its disk.
    """
    world = x.world_back()
    back = world.vif
    x.begin()
    for row in HOSTILE:
        if not x.decide(f"answer with {row.name}", 2):
            continue
        Steps([partial(_answer, world, row)]).start(back.domain.task, "backend")
        x.run()
        assert not world.net.received, f"{row.name}: it was handed up"
        break
    assert world.disk.read(0, 1) == bytes(512)


def _answer(world: BackWorld, row: Answered) -> None:
    back = world.vif
    back.take_posted()
    number, ref = back.posted.pop(0)
    room = PAGE_SIZE - row.offset
    back.fill(ref, FRAME[:room], row.offset % PAGE_SIZE)
    back.answer_rx(number + row.beside & 0xFFFF, row.status, offset=row.offset, flags=row.flags)


SENT: Final = 3


def vif_sent(x: Explorer) -> None:
    """A guest sends frames, of which its backend fails one: that one is an error, the others are
    sent, and what was sent is what came.
    """
    world = x.world_back()
    back = world.vif
    back.hold = True
    frames = [udp(THERE, HERE, size) for size in (100, 900, 1400)]
    client = Steps([partial(world.net.send, one) for one in frames])
    client.start(world.guest.created.domain.task, "net sender")
    x.run()
    Steps([partial(_answer_all, world)]).start(back.domain.task, "backend")
    x.run()
    counted = world.net.statistics
    found = counted.sent_frames, counted.sent_errors
    assert found == (SENT - 1, 1), f"{found[0]} frames sent, {found[1]} failed"
    assert not world.net.in_flight, f"{world.net.in_flight} frames never came back"


def _answer_all(world: BackWorld) -> None:
    """Each slot that was sent; those of the second packet with errors."""
    back = world.vif
    packet = 0
    for raw in back.tx.take():
        _, _, flags, number, _ = TX_REQUEST.unpack(raw)
        back.answer_tx(number, ERROR if packet == 1 else OKAY)
        packet += not flags & MORE_DATA


SCENARIOS: Final = (vif_errors, vif_hostile, vif_sent)
