"""The class driver of examples/own_driver_suspend.py: what its author owes, and no more."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from xenpv import Guest, Platform
from xenpv.testing.census import leaks, take_census
from xenpv.testing.checkers import check_all

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples/own_driver_suspend.py"))
CLASSES = "Services\\XENBUS\\Parameters"


@attrs.define(eq=False)
class Scene:
    xen: Platform
    guest: Guest

    @property
    def driver(self) -> Any:
        assert self.guest.bus is not None
        return self.guest.bus.pdos["BEAT"].driver

    def ask(self) -> int:
        number = EXAMPLE["ask"](self.xen, self.guest)
        assert isinstance(number, int)
        return number

    def resume(self, *, fast: bool) -> None:
        self.guest.suspend()
        self.guest.resume(fast=fast)


@pytest.fixture(params=["windows", "linux"])
def s(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """Its class has a directory, as that of a device has: the toolstack can take it away."""
    with Platform(seed=4) as xen:
        guest = xen.create(name="own", personality=request.param)
        guest.drivers["BEAT"] = EXAMPLE["Beat"]
        known = guest.registry.strings(CLASSES, "SupportedClasses") or ()
        guest.registry.set(CLASSES, "SupportedClasses", (*known, "BEAT"))
        guest.start()
        plug(xen, guest)
        yield Scene(xen, guest)


def plug(xen: Platform, guest: Guest) -> None:
    path = f"/local/domain/{guest.domid}/device/beat"
    xen.toolstack.xs.write(path, "")
    xen.run()


def cancelled(s: Scene) -> None:
    s.resume(fast=True)


def renewed(s: Scene) -> None:
    s.resume(fast=False)


def paused(s: Scene) -> None:
    s.guest.pause()
    s.guest.unpause()


def asleep(s: Scene) -> None:
    assert s.guest.bus is not None
    s.guest.bus.sleep()
    s.xen.run()
    s.guest.bus.wake()
    s.xen.run()


EVENTS: list[tuple[str, list[Callable[[Scene], None]], int]] = [
    # what happens, and how often the driver has resumed then
    ("suspend cancelled", [cancelled], 0),
    ("resumed as new", [renewed], 1),
    ("as new, then cancelled", [renewed, cancelled], 1),
    ("paused", [paused], 0),
    ("asleep and back", [asleep], 0),
    ("asleep and back, then as new", [asleep, renewed], 1),
]


@pytest.mark.parametrize(
    ("events", "resumes"), [row[1:] for row in EVENTS], ids=[row[0] for row in EVENTS]
)
def test_it_answers_after_each_event(
    s: Scene, events: list[Callable[[Scene], None]], resumes: int
) -> None:
    assert s.ask() == 1
    for event in events:
        event(s)
    assert s.ask() == 2
    assert s.driver.resumes == resumes
    path = f"/local/domain/{s.guest.domid}/data/order"
    s.xen.toolstack.xs.write(path, "more")
    s.xen.run()
    assert s.driver.orders == ["more"]


def test_thirty_resumes_leave_nothing_behind(s: Scene) -> None:
    s.resume(fast=False)
    before = take_census(s.xen)
    for number in range(30):
        s.resume(fast=bool(number % 2))
        s.ask()
    check_all(s.xen)
    assert leaks(before, take_census(s.xen)) == []


def test_a_device_that_is_taken_away_takes_everything_with_it(s: Scene) -> None:
    path = f"/local/domain/{s.guest.domid}/device/beat"
    s.ask()
    s.xen.toolstack.xs.rm(path)
    s.xen.run()
    assert s.guest.bus is not None
    assert "BEAT" not in s.guest.bus.pdos
    before, permitted = take_census(s.xen), s.guest.bus.gnttab.permitted
    plug(s.xen, s.guest)
    assert s.ask() == 1
    s.xen.toolstack.xs.rm(path)
    s.xen.run()
    assert s.guest.bus.gnttab.permitted == permitted
    assert leaks(before, take_census(s.xen)) == []


def test_a_reboot_makes_a_new_one(s: Scene) -> None:
    s.ask()
    s.guest.reboot()
    plug(s.xen, s.guest)
    assert s.ask() == 1
    assert s.guest.shutdown() == 0


def test_a_page_that_dom0_has_mapped_is_waited_for(s: Scene) -> None:
    """The resume is not held up, nor is the page given to anybody."""
    dom0, guest = s.xen.dom0, s.guest
    assert guest.bus is not None
    ref = s.driver.ref
    hole = dom0.holes.alloc()
    handle = dom0.gnttab.map(guest.domid, ref, hole, readonly=True)
    pfn = s.driver.pfn
    s.resume(fast=False)
    assert guest.bus.gnttab.deferred == [(ref, pfn)]
    assert s.driver.pfn != pfn
    assert s.ask() == 1
    dom0.gnttab.unmap(handle, hole)
    guest.bus.gnttab.defer(())
    assert guest.bus.gnttab.deferred == []
