"""What every test may use: pytester, the plugin under test, and no soak tests unless asked for."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest
from hypothesis import settings

# An example has no deadline: how fast a busy machine is says nothing about what is tested.
settings.register_profile("xenpv", deadline=None)
settings.load_profile("xenpv")

pytest_plugins = ["pytester"]
# In a checkout that is on the path but not installed, nobody registers the plugin.
if not entry_points(group="pytest11", name="xenpv"):
    pytest_plugins.append("_xenpv_pytest")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "soak" in config.getoption("-m"):
        return
    soak = [item for item in items if item.get_closest_marker("soak")]
    if soak:
        config.hook.pytest_deselected(items=soak)
        items[:] = [item for item in items if item not in soak]
