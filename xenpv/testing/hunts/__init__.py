"""Scenarios that the kit explores by default: together they touch every part of a platform."""

from __future__ import annotations

from typing import Final

from xenpv.testing import scenarios
from xenpv.testing.hunts import net, rings
from xenpv.testing.run import Scenario

SCENARIOS: Final[tuple[Scenario, ...]] = (
    scenarios.blk_requests,
    scenarios.disk_traffic,
    scenarios.net_traffic,
    scenarios.blk_attacked,
    scenarios.frontends_attacked,
    net.net_shapes,
    net.net_mapped,
    net.net_refused,
    net.net_received,
    net.net_backlog,
    net.net_control,
    *rings.SCENARIOS,
)
