"""Scenarios that the kit explores by default: together they touch every part of a platform."""

from __future__ import annotations

from typing import Final

from xenpv.testing import scenarios
from xenpv.testing.hunts import blk, bus, faults, net, netqueues, netrules, rings, store, vif
from xenpv.testing.run import Scenario

SCENARIOS: Final[tuple[Scenario, ...]] = (
    scenarios.blk_requests,
    scenarios.disk_traffic,
    scenarios.net_traffic,
    scenarios.blk_attacked,
    scenarios.frontends_attacked,
    *rings.SCENARIOS,
    *blk.SCENARIOS,
    *net.SCENARIOS,
    *netqueues.SCENARIOS,
    *netrules.SCENARIOS,
    *vif.SCENARIOS,
    *bus.SCENARIOS,
    *store.SCENARIOS,
    *faults.SCENARIOS,
)
