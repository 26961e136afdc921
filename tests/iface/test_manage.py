"""Linux' manage.c: shutdown requests one at a time, sysrq, the freezing of tasks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from xenpv import Guest, Platform
from xenpv.iface.agent import Agent
from xenpv.iface.manage import Manage

HOME = "/local/domain/1"
SHUTDOWN = f"{HOME}/control/shutdown"
SYSRQ = f"{HOME}/control/sysrq"


@pytest.fixture
def xen() -> Iterator[Platform]:
    with Platform(seed=2) as platform:
        yield platform


@pytest.fixture
def guest(xen: Platform) -> Guest:
    return xen.create(name="g", personality="linux").start()


def manage(guest: Guest) -> Manage:
    assert guest.bus is not None
    agent = guest.bus.pdos["IFACE"].driver
    assert isinstance(agent, Agent)
    assert agent.manage is not None
    return agent.manage


def console(guest: Guest) -> str:
    assert guest.console is not None
    return guest.console.text


@pytest.mark.parametrize(
    ("key", "message", "reason"),
    [
        ("b", "sysrq: Resetting", 1),
        ("o", "sysrq: Power Off", 0),
        ("c", "sysrq: Trigger a crash", 3),
        ("s", "sysrq: Emergency Sync", None),
        ("h", "sysrq: HELP : b c e f i l m o p s t u w", None),
        ("?", "sysrq: HELP : b c e f i l m o p s t u w", None),
    ],
)
def test_a_sysrq_key_is_taken_and_then_done(
    xen: Platform, guest: Guest, key: str, message: str, reason: int | None
) -> None:
    xen.toolstack.xs.write(SYSRQ, key)
    xen.run()
    assert xen.toolstack.xs.read(SYSRQ) == ""
    assert message in console(guest)
    assert guest.created.domain.shutdown_code == reason
    assert manage(guest).sysrqs == [key]


def test_only_the_first_character_of_sysrq_counts(xen: Platform, guest: Guest) -> None:
    xen.toolstack.xs.write(SYSRQ, "sb")
    xen.run()
    assert manage(guest).sysrqs == ["s"]
    assert guest.running


@pytest.mark.parametrize("remove", [False, True])
def test_an_empty_or_absent_sysrq_is_nothing(xen: Platform, guest: Guest, *, remove: bool) -> None:
    if remove:
        xen.toolstack.xs.rm(SYSRQ)
    else:
        xen.toolstack.xs.write(SYSRQ, "")
    xen.run()
    assert manage(guest).sysrqs == []
    assert "sysrq" not in console(guest)


def test_a_sysrq_that_may_not_be_cleared_is_not_done(xen: Platform, guest: Guest) -> None:
    xs = xen.toolstack.xs
    xs.set_permissions(SYSRQ, ["n0", "r1"])
    xs.write(SYSRQ, "b")
    xen.run()
    assert guest.running
    assert "manage: control/sysrq: EACCES" in console(guest)
    assert xs.read(SYSRQ) == "b"


def test_what_comes_while_tasks_freeze_waits_without_an_acknowledgement(
    xen: Platform, guest: Guest
) -> None:
    xs = xen.toolstack.xs
    manage(guest).system.freeze_ms = 5_000
    xs.write(SHUTDOWN, "suspend")
    xen.advance(1)
    assert xs.read(SHUTDOWN) == ""
    xs.write(SHUTDOWN, "poweroff")
    xen.advance(3)
    assert xs.read(SHUTDOWN) == "poweroff"
    assert guest.running
    xen.advance(2)
    domain = guest.created.domain
    assert domain.shutdown_code == 2
    xen.dom0.domctl.setvcpucontext(1, 0, rax=1)
    xen.dom0.domctl.resumedomain(1)
    xen.run()
    assert xs.read(SHUTDOWN) == ""
    assert domain.shutdown_code == 0


@pytest.mark.parametrize(("freeze_ms", "suspends"), [(20_000, True), (20_001, False)])
def test_tasks_that_do_not_freeze_in_20_s_stop_a_suspend(
    xen: Platform, guest: Guest, freeze_ms: int, *, suspends: bool
) -> None:
    manage(guest).system.freeze_ms = freeze_ms
    xen.toolstack.xs.write(SHUTDOWN, "suspend")
    xen.advance(19)
    assert guest.running
    xen.advance(2)
    assert guest.created.domain.is_shutdown is suspends
    assert ("freeze processes failed" in console(guest)) is not suspends
    if not suspends:
        xen.toolstack.xs.write(SHUTDOWN, "poweroff")
        xen.run()
        assert guest.created.domain.shutdown_code == 0


def test_a_request_that_may_not_be_cleared_is_not_done(xen: Platform, guest: Guest) -> None:
    xs = xen.toolstack.xs
    xs.set_permissions(SHUTDOWN, ["n0", "r1"])
    xs.write(SHUTDOWN, "poweroff")
    xen.run()
    assert guest.running
    assert xs.read(SHUTDOWN) == "poweroff"
    assert "manage: control/shutdown: EACCES" in console(guest)
