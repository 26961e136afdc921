"""Where a double fetch is made: both lines, of a user's Python and of our own drivers."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

from xenpv.abi._kernel import lib
from xenpv.abi.xenbus import XenbusState
from xenpv.testing import AccessLog, DoubleFetch, Explorer, explore, run_schedule, scenarios, zoo
from xenpv.testing.checkers import CheckFailed
from xenpv.testing.ends import End, user_blk_backend
from xenpv.testing.ends.blame import shown
from xenpv.testing.run import located
from xenpv.testing.scenarios import BlkClient
from xenpv.testing.sites import Sites

R = lib.ACCESS_READ
NR_SEGMENTS = 64 + 1  # of the first entry, from the start of the ring's page


class Twice:
    """A backend that reads a field of a request where it lies, and reads it again."""

    def __init__(self, end: End, _image: Any) -> None:
        self.end = end
        self.page = 0

    def probe(self) -> None:
        self.end.switch_state(XenbusState.INIT_WAIT)

    def frontend_changed(self, state: XenbusState) -> None:
        if state is XenbusState.INITIALISED:
            self.page = self.end.map(self.end.peer_number("ring-ref"))
            self.port = self.end.bind_port(self.end.peer_number("event-channel"), self.event)
            self.end.switch_state(XenbusState.CONNECTED)

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
    first = f"{shown(__file__)}:{_line(Twice.check)} in check"
    again = f"{shown(__file__)}:{_line(Twice.use)} in use"
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


def test_a_line_of_our_own_drivers_is_told_too() -> None:
    """The line that calls the kernel's ring operation, not the operation's wrapper."""
    with zoo.defect("blk-double-fetch-nr-segments"):
        run = located(scenarios.blk_requests, run_schedule(scenarios.blk_requests))
    assert re.search(
        r"first at (?:\S+/)?xenpv/back/blkring\.py:\d+ in service, then at ", run.failure_text
    )


def test_a_reference_to_the_ring_as_data_is_no_second_fetch() -> None:
    """Xen reads the page for the copy that was asked for; what the driver reads it reads once."""

    class Copies(Twice):
        def use(self) -> None:
            self.end.copy_from(self.end.peer_number("ring-ref"), 0, 4096)

    def scenario(x: Explorer) -> None:
        world = user_blk_backend(Copies)
        x.adopt(world.platform)
        BlkClient(world.vbd, 1).start()
        x.run()
        assert x.log_of(world.platform).double_fetches() == []

    assert run_schedule(scenario, sites=True).failure is None


def test_a_log_alone_has_no_lines() -> None:
    with user_blk_backend(Twice) as world, AccessLog(world.platform) as log:
        BlkClient(world.vbd, 1).start()
        world.run()
    (found,) = [one for one in log.double_fetches() if one.in_slot]
    assert (found.first, found.again) == (None, None)
    assert str(found).endswith("1 bytes")


def _now() -> int:
    """The caller's line."""
    return sys._getframe(1).f_lineno


def test_the_first_line_is_the_oldest_fetch_of_the_newest_delivery() -> None:
    sites = Sites()

    def lines(offset: int, size: int) -> tuple[int, int] | None:
        found = sites.locate(DoubleFetch(7, 3, 1, 0, offset, size, 1))
        return None if found.first is None else (found.first.line, found.again.line)

    sites.access(7, R, 3, 0, 4)
    sites.deliver(7)
    _, first = sites.access(7, R, 3, 0, 1), _now()
    assert lines(0, 1) is None  # what came before is another delivery's
    _, second = sites.access(7, R, 3, 0, 1), _now()
    sites.access(7, R | lib.ACCESS_COPY, 3, 1, 1)  # Xen's for a copy, not the driver's
    sites.access(8, R, 3, 1, 1)  # another domain's
    sites.access(7, R, 3, 1, 1)
    assert lines(1, 1) is None
    _, both = sites.access(7, R, 3, 0, 2), _now()
    assert (lines(0, 1), lines(0, 2)) == ((first, second), (first, both))
    sites.access(7, R, 3, 2, 1)
    sites.access(7, lib.ACCESS_WRITE, 3, 0, 4)
    sites.access(7, R, 3, 2, 1)
    assert lines(2, 1) is None  # it wrote that itself meanwhile
