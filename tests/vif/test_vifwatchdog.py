"""The watchdogs of the rings: who stands still is kicked every 30 s, and nobody else."""

from __future__ import annotations

import pytest

from tests.vif.rawback import Scene, frame, scene
from xenpv.abi.xenbus import XenbusState as State
from xenpv.xen.loop import NS_PER_S


def after(s: Scene, seconds: int) -> int:
    s.xen.loop.advance(seconds * NS_PER_S)
    return s.pdo.frontend.watchdog.barks


def test_rings_that_work_or_rest_are_left_alone() -> None:
    with scene() as s:
        assert after(s, 200) == 0
        for _ in range(5):
            s.nic.send(frame(100))
            s.back.answer_tx(*((one[3], 0) for one in s.back.sent()))
            s.back.send(frame(70))
            s.run()
            assert after(s, 31) == 0


def test_a_packet_that_nobody_completes_is_looked_for_every_30_s() -> None:
    with scene() as s:
        s.nic.send(frame(100))
        s.run()
        assert after(s, 29) == 0, "the first look is after 30 s"
        assert after(s, 30) == 0, "it only takes samples"
        assert after(s, 30) == 1
        assert after(s, 60) == 3
        s.back.answer_tx(*((one[3], 0) for one in s.back.sent()))
        s.run()
        assert after(s, 300) == 3


def test_a_lost_event_is_made_good() -> None:
    with scene() as s:
        s.nic.send(frame(100))
        s.run()
        ids = [one[3] for one in s.back.sent()]
        assert s.back.tx is not None
        after(s, 31)
        s.back.tx.push(b"".join(one.to_bytes(2, "little") + b"\0\0" for one in ids), len(ids))
        assert s.nic.in_flight == 1, "no event"
        after(s, 60)
        assert s.nic.in_flight == 0


def test_a_packet_that_found_no_page_is_sent_once_there_is_one() -> None:
    with scene() as s:
        pool = s.guest.created.domain.pages
        taken = pool.alloc_pages(pool.free_pages)
        s.nic.send(frame(100))
        s.run()
        assert s.back.sent() == []
        for pfn in taken:
            pool.free(pfn)
        s.run()
        assert s.back.sent() == [], "nobody tells it that there are pages again"
        assert after(s, 61) == 1
        assert [one[4] for one in s.back.sent()] == [100, 86], "headers in a slot of their own"


def test_frames_that_came_without_an_event_are_taken() -> None:
    with scene() as s:
        after(s, 31)
        s.back.take_posted()
        number, ref = s.back.posted.pop(0)
        s.back.fill(ref, frame(80))
        assert s.back.rx is not None
        s.back.rx.push(number.to_bytes(2, "little") + bytes(4) + (80).to_bytes(2, "little"), 1)
        assert list(s.nic.received) == []
        assert after(s, 60) == 1
        assert list(s.nic.received) == [frame(80)]


def test_a_backend_is_notified_again() -> None:
    with scene() as s:
        s.nic.send(frame(100))
        s.run()
        port = s.back.ports[0]
        notified: list[int] = []
        task = s.back.device.dispatcher.bind(port, "test", lambda: notified.append(1))
        del task
        after(s, 31)
        before = len(notified)
        after(s, 60)
        assert len(notified) > before


@pytest.mark.parametrize("end", ["eject", "vanish", "suspend"])
def test_it_ends_with_the_connection(end: str) -> None:
    with scene() as s:
        domain = s.guest.created.domain
        frontend = s.pdo.frontend
        s.nic.send(frame(100))
        if end == "suspend":
            assert s.guest.bus is not None
            s.back.answers[State.INITIALISING] = State.INITIALISING  # it does not come back
            s.guest.bus.suspend.trigger()
            s.run()
            domain.suspend_result = 0
            domain.resume()
        elif end == "eject":
            s.pdo.eject()
        else:
            s.xen.toolstack.xs.rm(f"/local/domain/{s.guest.domid}/device/vif/0")
        s.run()
        s.xen.loop.advance(300 * NS_PER_S)
        assert frontend.watchdog.barks == 0
        armed = [one for one in domain.timers if "vif/0 watchdog" in one.task.name and one.armed]
        assert armed == []


def test_a_bark_is_dumped_into_the_log() -> None:
    with scene() as s:
        s.nic.send(frame(100))
        s.run()
        after(s, 61)
        lines = list(s.guest.device_model.log.lines) if s.guest.device_model else []
        lines += list(getattr(s.guest.bus.logs, "lines", [])) if s.guest.bus else []
        assert any("vif0-q0: stands still" in one for one in lines)


def test_linux_has_none() -> None:
    with scene("linux") as s:
        s.nic.send(frame(100))
        s.run()
        assert after(s, 300) == 0
