"""Where a double fetch is made: both lines, of a user's Python and of our own drivers."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from xenpv.back import blkring
from xenpv.testing import AccessLog, Explorer, explore, run_schedule
from xenpv.testing.checkers import CheckFailed
from xenpv.testing.ends import End, user_blk_backend
from xenpv.testing.run import located
from xenpv.testing.scenarios import BlkClient

NR_SEGMENTS = 64 + 1  # of the first entry, from the start of the ring's page


class Twice:
    """A backend that reads a field of a request where it lies, and reads it again."""

    def __init__(self, end: End, _image: Any) -> None:
        self.end = end
        self.page = 0

    def probe(self) -> None:
        self.end.switch_state(2)  # type: ignore[arg-type]  # an XenbusState is an int

    def frontend_changed(self, state: int) -> None:
        if state == 3:
            self.page = self.end.map(self.end.peer_number("ring-ref"))
            self.port = self.end.bind_port(self.end.peer_number("event-channel"), self.event)
            self.end.switch_state(4)  # type: ignore[arg-type]  # the same

    def event(self) -> None:
        if self.end.load32(self.page, 0):
            self.check()
            self.use()

    def check(self) -> None:
        self.end.read(self.page, NR_SEGMENTS, 1)

    def use(self) -> None:
        self.end.read(self.page, NR_SEGMENTS, 1)

    def close(self) -> None:
        if self.page:
            self.end.close_port(self.port)
            self.end.unmap(self.page)


def twice(x: Explorer) -> None:
    world = user_blk_backend(Twice)
    x.adopt(world.platform)
    BlkClient(world.vbd, 1).start()
    x.run()


def _line(function: Any) -> int:
    return inspect.getsourcelines(function)[1] + 1


def test_both_lines_of_a_python_driver_are_told() -> None:
    result = explore(twice, examples=1)
    assert isinstance(result.failure, CheckFailed)
    first = f"{__file__}:{_line(Twice.check)} in check"
    again = f"{__file__}:{_line(Twice.use)} in use"
    assert result.failure.findings[0].endswith(f"1 bytes: first at {first}, then at {again}")


def test_an_exploration_keeps_no_lines_until_something_is_found() -> None:
    run = run_schedule(twice)
    assert " first at " not in run.failure_text
    again = located(twice, run)
    assert " first at " in again.failure_text
    assert (again.digest, again.taken) == (run.digest, run.taken)
    assert located(twice, again).failure_text == again.failure_text


def test_what_the_driver_wrote_itself_or_reads_in_another_delivery_is_not_twice() -> None:
    class Careful(Twice):
        def use(self) -> None:
            self.end.write(self.page, NR_SEGMENTS, b"\1")
            self.end.read(self.page, NR_SEGMENTS, 1)

    def scenario(x: Explorer) -> None:
        world = user_blk_backend(Careful)
        x.adopt(world.platform)
        BlkClient(world.vbd, 1).start()
        x.run()

    assert run_schedule(scenario, sites=True).failure is None


def test_a_line_of_our_own_drivers_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """blkback, made to look at the ring's first request again."""
    original = blkring.BlkRing.take if hasattr(blkring, "BlkRing") else None
    assert original is None or callable(original)
    from xenpv.back import blkthread
    from xenpv.testing import scenarios

    real = blkthread.Queue.event

    def event(self: Any) -> object:
        done = real(self)
        ring = self.ring
        domain = self.blkback.device.domain
        for _ in range(2):
            domain.read(ring.pfns[0], NR_SEGMENTS, 1)
        return done

    monkeypatch.setattr(blkthread.Queue, "event", event)
    run = located(scenarios.blk_requests, run_schedule(scenarios.blk_requests))
    assert re.search(rf"first at .*, then at {re.escape(__file__)}:\d+ in event", run.failure_text)


def test_a_log_alone_has_no_lines() -> None:
    with user_blk_backend(Twice) as world, AccessLog(world.platform) as log:
        BlkClient(world.vbd, 1).start()
        world.run()
    (found,) = [one for one in log.double_fetches() if one.in_slot]
    assert (found.first, found.again) == (None, None)
    assert str(found).endswith("1 bytes")
