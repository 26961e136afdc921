"""One browser for all tests of a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.peers import need
from tests.view.chromium import Chromium


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    browser = Chromium(need("chromium", "chromium"))
    yield browser
    browser.close()
