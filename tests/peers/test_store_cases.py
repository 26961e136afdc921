"""The numbered cases of the suite "store" against the real xenstored and oxenstored 4.17."""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.xenstored import Running, running
from xenpv.bench.daemon import OXENSTORED, XENSTORED
from xenpv.testing.cases import Outcome, cases
from xenpv.testing.cases.storescene import SocketEnd, Stream

PATIENCE_S = 0.4
WAIT_S = 0.001


class PeerPage:
    """A file that the stub maps as a domain's store page; the stub delivers no events."""

    gfn = 1

    def __init__(self, daemon: Running, domid: int) -> None:
        self._daemon = daemon
        self.port = 100 + domid
        with (daemon.folder / f"ring-{domid}").open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), 4096)
        self._moved = (b"", 0.0)

    def read(self, offset: int, size: int) -> bytes:
        return self._page[offset : offset + size]

    def write(self, offset: int, data: bytes) -> None:
        self._page[offset : offset + len(data)] = data

    def notify(self) -> None:
        self._daemon.raise_event(self.port)

    def wait(self) -> None:
        indices, since = self._page[2048:2076], time.monotonic()
        if indices != self._moved[0]:
            self._moved = (indices, since)
        elif since - self._moved[1] > PATIENCE_S:
            self._moved = (b"", since)
            raise TimeoutError
        time.sleep(WAIT_S)


class PeerStore:
    """A real daemon as the scene's StoreEnd."""

    def __init__(self, daemon: Running) -> None:
        self._daemon = daemon
        self._pages: list[PeerPage] = []

    def __call__(self) -> Stream:
        return SocketEnd(self._daemon.socket)()

    def guest(self, domid: int) -> PeerPage:
        self._daemon.create_domain(domid)
        return PeerPage(self._daemon, domid)

    def shutdown(self, domid: int) -> None:
        self._daemon.set_domain(domid, "s")

    def die(self, domid: int) -> None:
        self._daemon.set_domain(domid, "d")


@pytest.fixture(params=[XENSTORED, OXENSTORED], ids=["xenstored", "oxenstored"])
def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    with running(request.param, tmp_path) as started:
        yield started


@pytest.mark.peers
def test_the_real_daemons_hold_the_cases_they_can_be_asked(daemon: Running) -> None:
    end = PeerStore(daemon)
    results = [one.run(end) for one in cases("store")]
    wrong = [(one.case.id, one.reason) for one in results if one.outcome is Outcome.FAIL]
    assert not wrong, "\n".join(f"{name}: {reason}" for name, reason in wrong)
    assert sum(one.outcome is Outcome.PASS for one in results) >= 25
