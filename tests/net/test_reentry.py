"""A protocol that does to the adapter what it likes, from inside what it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import pytest

from tests.net.test_adapter import frame, pair
from tests.net.test_lists import Lists
from xenpv.net.adapter import Adapter
from xenpv.net.nbl import NetBufferList
from xenpv.platform import Platform

RESOURCES = 2
ACTS: dict[str, Callable[[Adapter], object]] = {
    "pause": Adapter.pause,
    "pause and restart": lambda nic: (nic.pause(), nic.restart()),
    "halt": Adapter.halt,
    "shutdown": Adapter.shutdown,
    "surprise removal": Adapter.surprise_removed,
    "send": lambda nic: nic.send_lists([NetBufferList((b"\xff" * 6 + nic.mac + bytes(48),))]),
    "filter": lambda nic: nic.set(0x1010E, bytes(4)),
    "query": lambda nic: nic.query(0x20106),
    "unbind": lambda nic: setattr(nic, "list_receiver", None),
}


@attrs.define(eq=False)
class Acting:
    """Does it at the first frame."""

    nic: Adapter
    act: Callable[[Adapter], object]
    acted: int = 0
    kept: list[NetBufferList] = attrs.field(factory=list)

    def _once(self) -> None:
        self.acted += 1
        if self.acted == 1:
            self.act(self.nic)

    def receive(self, _frames: Sequence[bytes]) -> None:
        self._once()

    def receive_lists(self, lists: Sequence[NetBufferList]) -> None:
        self.kept += [one for one in lists if not one.flags & RESOURCES]
        self._once()

    def sent(self, _completions: object) -> None:
        self._once()

    def sent_lists(self, _lists: object) -> None:
        self._once()


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("way", ["receiver", "list_receiver", "sender", "list_sender"])
@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_what_is_done_inside_a_callback_breaks_nothing(
    way: str, act: str, personality: str
) -> None:
    with Platform(seed=3) as xen:
        one, other = pair(xen, personality)
        acting = Acting(other, ACTS[act])
        setattr(other, way, acting)
        one.send_many([frame(one, other, 60, n) for n in range(100)])
        if way == "sender":
            other.send_many([frame(other, one, 60, n) for n in range(100)])
        elif way == "list_sender":
            other.send_lists([NetBufferList((frame(other, one, 60, n),)) for n in range(100)])
        xen.run()
        assert acting.acted
        other.return_lists(acting.kept)
        xen.run()
        frontend = other._vif._frontend
        assert frontend.receiver.lent == {}
        assert frontend.broken == ""
        assert other.in_flight == 0


def test_lists_may_come_back_after_the_device_is_gone() -> None:
    with Platform(seed=3) as xen:
        one, other = pair(xen)
        other.list_receiver = lists = Lists()
        one.send_many([frame(one, other, 60, n) for n in range(10)])
        xen.run()
        assert len(lists.got) == 10
        guest = xen.guests[1]
        other.return_lists(lists.got[:5])
        guest.destroy()
        other.return_lists(lists.got[5:])
        xen.run()


def test_lists_that_are_lent_hold_a_suspend_up_for_nobody() -> None:
    with Platform(seed=3) as xen:
        one, other = pair(xen)
        other.list_receiver = lists = Lists()
        one.send_many([frame(one, other, 60, n) for n in range(10)])
        xen.run()
        guest = xen.guests[1]
        guest.suspend()
        guest.resume()
        xen.run()
        assert other.link_up
        other.return_lists(lists.got)
        one.send(frame(one, other, 60, 99))
        xen.run()
        assert lists.got[-1].buffers == (frame(one, other, 60, 99),)
        other.return_lists(lists.got[-1:])
        assert other._vif._frontend.receiver.lent == {}


def test_a_device_that_is_detached_waits_for_what_is_lent_and_then_goes() -> None:
    with Platform(seed=3) as xen:
        one, other = pair(xen)
        other.list_receiver = lists = Lists()
        one.send_many([frame(one, other, 60, n) for n in range(10)])
        xen.run()
        guest = xen.guests[1]
        guest.detach("vif", 0)
        assert other.state.value == "halted"
        other.return_lists(lists.got)
        xen.run()
        assert guest.nets == []
        assert guest.running
