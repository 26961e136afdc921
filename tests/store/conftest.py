from __future__ import annotations

import pytest

from tests.store.client import Store


@pytest.fixture
def store() -> Store:
    return Store()
