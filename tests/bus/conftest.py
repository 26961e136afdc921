from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.world import World, make


@pytest.fixture
def world() -> Iterator[World]:
    made = make()
    yield made
    if not made.hypervisor.closed:
        made.hypervisor.close()
