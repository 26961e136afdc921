"""control/laptop-slate-mode: only with the device, acknowledged, and until the hinge has moved."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest

from xenpv import Guest, Platform
from xenpv.host.domainconfig import DomainConfig
from xenpv.iface.xenagent import EventId, XenAgent

CONTROL = "/local/domain/1/control"
KEY = f"{CONTROL}/laptop-slate-mode"
FEATURE = f"{CONTROL}/feature-laptop-slate-mode"


@pytest.fixture
def xen() -> Iterator[Platform]:
    with Platform(seed=2) as platform:
        yield platform


def boot(xen: Platform, *, device: bool = True, nodes: bool = True) -> tuple[Guest, XenAgent]:
    config = attrs.evolve(DomainConfig(name="laptop", memory_mib=64), acpi_laptop_slate=device)
    guest = xen.create_from(config)
    if nodes:
        for key in (KEY, FEATURE):
            xen.toolstack.xs.write(key, "")
            xen.toolstack.xs.set_permissions(key, ["n1"])
    guest.start()
    agent = guest.iface.agent
    assert agent is not None
    assert agent.xenagent is not None
    return guest, agent.xenagent


def switches(agent: XenAgent) -> list[str]:
    return [line.text for line in agent.log if line.event is EventId.MODE_SWITCH]


def test_without_the_device_nothing_is_watched(xen: Platform) -> None:
    _guest, agent = boot(xen, device=False)
    xen.toolstack.xs.write(KEY, "slate")
    xen.run()
    assert xen.toolstack.xs.read(KEY) == "slate"
    assert xen.toolstack.xs.read(FEATURE) == ""
    assert not agent.system.is_slate


def test_it_is_advertised_and_followed_both_ways(xen: Platform) -> None:
    _guest, agent = boot(xen)
    xs = xen.toolstack.xs
    assert xs.read(FEATURE) == "1"
    for value, is_slate in (("slate", True), ("slate", True), ("laptop", False)):
        xs.write(KEY, value)
        xen.run()
        assert xs.read(KEY) == ""
        assert agent.system.is_slate is is_slate
    # The look at registration, then each request and its own acknowledgement.
    assert switches(agent) == ["", "slate", "", "slate", "", "laptop", ""]


def test_an_unknown_mode_is_acknowledged_and_not_acted_on(xen: Platform) -> None:
    _guest, agent = boot(xen)
    xen.toolstack.xs.write(KEY, "tent")
    xen.run()
    assert xen.toolstack.xs.read(KEY) == ""
    assert agent.slate.toggles == 0


def test_a_stuck_hinge_is_moved_once_a_second_for_a_minute(xen: Platform) -> None:
    guest, agent = boot(xen)
    agent.system.slate_stuck = True
    xen.toolstack.xs.write(KEY, "slate")
    xen.advance(10)
    assert agent.slate.toggles in (10, 11)
    xen.run()
    assert agent.slate.toggles == 60
    assert guest.console is not None
    assert "the hinge did not move in 60 s" in guest.console.text


def test_the_feature_key_is_removed_at_the_end(xen: Platform) -> None:
    _guest, agent = boot(xen)
    agent.stop()
    assert xen.toolstack.xs.read(FEATURE) is None
    assert not [one for one in agent.bus.store.watches() if "slate" in one.path]


def test_nodes_that_the_toolstack_did_not_make_are_logged(xen: Platform) -> None:
    guest, agent = boot(xen, nodes=False)
    assert guest.console is not None
    assert "control/feature-laptop-slate-mode: EACCES" in guest.console.text
    assert agent.running
