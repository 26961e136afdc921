"""What agents do after a suspend: keys and watches anew, the clock set, nothing if cancelled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from xenpv import Guest, Platform
from xenpv.bus.registry import Registry
from xenpv.iface.agent import Agent
from xenpv.iface.systemclock import PER_SECOND
from xenpv.iface.timesync import PARAMETERS, TIME_SYNC_MODE
from xenpv.iface.xenagent import EventId

HOME = "/local/domain/1"
CONTROL = f"{HOME}/control"
DAY_S = 86_400


@pytest.fixture
def xen() -> Iterator[Platform]:
    with Platform(seed=3) as platform:
        yield platform


def boot(xen: Platform, personality: str, registry: Registry | None = None) -> Guest:
    return xen.create(name="g", personality=personality, registry=registry).start()


def agent_of(guest: Guest) -> Agent:
    assert guest.bus is not None
    driver = guest.bus.pdos["IFACE"].driver
    agent = driver if isinstance(driver, Agent) else guest.iface.agent
    assert isinstance(agent, Agent)
    return agent


def suspend(xen: Platform) -> None:
    """Ask, and wait until the domain is suspended."""
    xen.toolstack.xs.write(f"{CONTROL}/shutdown", "suspend")
    xen.run()
    assert xen.toolstack.xs.read(f"{CONTROL}/shutdown") == ""


def resume(xen: Platform, result: int) -> None:
    """As a toolstack: what the hypercall returns, then XEN_DOMCTL_resumedomain."""
    if result:
        xen.dom0.domctl.setvcpucontext(1, 0, rax=result)
    xen.dom0.domctl.resumedomain(1)
    xen.run()


def forget_keys(xen: Platform) -> None:
    """As a restore does: what the guest wrote is gone, what the toolstack makes is empty."""
    xs = xen.toolstack.xs
    for name in ("poweroff", "reboot", "suspend", "s3", "s4"):
        xs.write(f"{CONTROL}/feature-{name}", "")
        xs.set_permissions(f"{CONTROL}/feature-{name}", ["n1"])


FEATURES = {
    "windows": ("poweroff", "reboot", "s3", "s4"),
    "linux": ("poweroff", "reboot", "suspend"),
}


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_in_a_new_domain_keys_and_watches_are_made_again(xen: Platform, personality: str) -> None:
    guest = boot(xen, personality)
    suspend(xen)
    forget_keys(xen)
    resume(xen, 0)
    read = xen.toolstack.xs.read
    for name in FEATURES[personality]:
        assert read(f"{CONTROL}/feature-{name}") == "1", name
    assert guest.shutdown() == 0


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_a_cancelled_suspend_changes_nothing(xen: Platform, personality: str) -> None:
    guest = boot(xen, personality)
    assert guest.bus is not None
    before = guest.bus.store.requests
    suspend(xen)
    asked = guest.bus.store.requests
    forget_keys(xen)
    resume(xen, 1)
    assert xen.toolstack.xs.read(f"{CONTROL}/feature-poweroff") == ""
    # Linux looks again for what came while it was busy; nobody writes or watches.
    assert asked - before <= 5
    assert guest.bus.store.requests - asked <= 3
    assert agent_of(guest).stopped is False
    assert guest.shutdown() == 0


def test_xenagent_logs_the_resume_once_and_sets_its_clock(xen: Platform) -> None:
    guest = boot(xen, "windows")
    agent = agent_of(guest).xenagent
    assert agent is not None
    suspend(xen)
    xen.dom0.domctl.settimeoffset(1, 2 * DAY_S)
    before = agent.clock.now()
    resume(xen, 0)
    assert [line.event for line in agent.log] == [EventId.UNSUSPENDED]
    assert abs(agent.clock.now() - before - 2 * DAY_S * PER_SECOND) < PER_SECOND
    xen.advance(2 * 1800)
    assert [line.event for line in agent.log] == [EventId.UNSUSPENDED]


@pytest.mark.parametrize(("mode", "periodic"), [(None, True), (1, True), (0, False)])
def test_time_sync_mode_holds_for_the_half_hours_and_not_for_a_resume(
    xen: Platform, mode: int | None, *, periodic: bool
) -> None:
    guest = xen.create(name="g")
    if mode is not None:
        guest.registry.set(PARAMETERS, TIME_SYNC_MODE, mode)
    guest.start()
    agent = agent_of(guest).xenagent
    assert agent is not None
    xen.dom0.domctl.settimeoffset(1, DAY_S)
    before = agent.clock.now()
    xen.advance(1801)
    moved = agent.clock.now() - before > DAY_S * PER_SECOND
    assert moved is periodic
    suspend(xen)
    resume(xen, 0)
    assert agent.clock.now() - before > DAY_S * PER_SECOND


def test_the_half_hour_makes_up_for_a_lost_watch(xen: Platform) -> None:
    guest = boot(xen, "windows")
    agent = agent_of(guest).xenagent
    assert agent is not None
    assert guest.bus is not None
    watch = next(one for one in guest.bus.store.watches() if one.task.name == "xenagent shutdown")
    guest.bus.store.watch_remove(watch)
    xen.toolstack.xs.write(f"{CONTROL}/shutdown", "poweroff")
    xen.advance(1799)
    assert guest.running
    xen.advance(2)
    xen.run()
    assert guest.created.domain.shutdown_code == 0


def test_linux_sets_its_clock_and_wakes_its_daemon(xen: Platform) -> None:
    guest = xen.create(name="g", personality="linux")
    xen.toolstack.xs.write(f"{HOME}/unique-domain-id", "one")
    guest.start()
    daemon = agent_of(guest).daemon
    assert daemon is not None
    assert daemon.cycles == 1
    suspend(xen)
    xen.dom0.domctl.settimeoffset(1, DAY_S)
    resume(xen, 0)
    assert daemon.cycles == 2
    assert xen.toolstack.xs.read(f"{HOME}/data/updated") == "Fri Jan  2 00:00:01 2026"
