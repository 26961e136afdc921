"""What every test may use: pytester, the plugin under test, and no tests of long runs or of a built package unless asked for."""

from __future__ import annotations

import signal
from importlib.metadata import entry_points

import pytest
from hypothesis import settings

# An example has no deadline: how fast a busy machine is says nothing about what is tested.
settings.register_profile("xenpv", deadline=None)
settings.load_profile("xenpv")

# A shell lets what it runs in the background ignore SIGINT, and so would the servers that are
# started here and ended by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["pytester"]
# In a checkout that is on the path but not installed, nobody registers the plugin.
if not entry_points(group="pytest11", name="xenpv"):
    pytest_plugins.append("_xenpv_pytest")


LEFT_OUT = ("soak", "package")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked = config.getoption("-m")
    marks = [mark for mark in LEFT_OUT if mark not in asked]
    left_out = [item for item in items if any(map(item.get_closest_marker, marks))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
