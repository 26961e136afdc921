from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vbd.crash.dumps import Crashing, made
from xenpv.vbd.crash import stack
from xenpv.xen.domain import Domain

SHORT = 64


@pytest.fixture
def crashing() -> Iterator[Crashing]:
    """A Windows guest with one disk that is to have its dump, connected."""
    with made() as scene:
        yield scene


@pytest.fixture
def short_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files have the first 64 pages of memory alone."""

    def runs(_domain: Domain) -> list[tuple[int, int]]:
        return [(0x100, SHORT)]

    monkeypatch.setattr(stack, "memory_runs", runs)
