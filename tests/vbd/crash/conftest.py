from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vbd.crash.dumps import Crashing, made


@pytest.fixture
def crashing() -> Iterator[Crashing]:
    """A Windows guest with one disk that is to have its dump, connected."""
    with made() as scene:
        yield scene
