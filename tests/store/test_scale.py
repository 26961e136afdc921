"""What an operation touches, counted: the depth of its path, and nothing of what is elsewhere.

Nodes are looked up in one dict and watches in another, so both are replaced by dicts that
count look-ups and refuse to be walked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.store.client import Store, end, start
from xenpv.abi.xs import XS
from xenpv.store.profile import LEGACY, OX, C

NODES = 100_000
WATCHES = 10_000
DEPTH = 6


class Counting(dict[Any, Any]):
    """A dict that counts look-ups and changes; nobody may go through all of it."""

    touched = 0

    def __getitem__(self, key: Any) -> Any:
        self.touched += 1
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.touched += 1
        return super().__contains__(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.touched += 1
        super().__setitem__(key, value)

    def __delitem__(self, key: Any) -> None:
        self.touched += 1
        super().__delitem__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        self.touched += 1
        return super().get(key, default)

    def _walked(self, *_: object) -> Any:
        raise AssertionError("somebody walks all of the store")

    __iter__ = items = values = keys = copy = _walked  # type: ignore[assignment]


class Counted:
    """A store with much in it elsewhere, or nothing, and the counts of one operation."""

    def __init__(self, profile: Any, *, full: bool) -> None:
        self.store = Store(profile)
        server = self.store.server
        if full:
            for index in range(NODES):
                self.store.write(b"/elsewhere/%d/%d/%d" % (index // 400, index // 20, index))
            other = server.connect_local("other")
            for index in range(WATCHES):
                other.call(XS.WATCH, b"/elsewhere/%d/w%d\0t\0" % (index % 250, index))
            other.events.clear()
        self.store.write(b"/h/a/b/c/d/leaf", b"v")
        self.store.write(b"/h/a/b/c/d/gone/x/y", b"v")
        self.store.dom0.call(XS.WATCH, b"/h\0t\0")
        self.store.dom0.events.clear()
        self.nodes = server.nodes = server.tree.nodes = Counting(server.nodes)
        self.watches = server.watches.by_path = Counting(server.watches.by_path)

    def cost(self, operation: Any) -> tuple[int, int]:
        self.nodes.touched = self.watches.touched = 0
        operation(self.store)
        return self.nodes.touched, self.watches.touched


def call(op: XS, payload: bytes) -> Any:
    return lambda store: store.dom0.call(op, payload)


def transaction(store: Store) -> None:
    tx = start(store.dom0)
    store.dom0.call(XS.READ, b"/h/a/b/c/d/leaf\0", tx)
    store.dom0.call(XS.WRITE, b"/h/a/b/c/d/leaf\0w", tx)
    store.dom0.call(XS.WRITE, b"/h/a/b/c/d/fresh\0w", tx)
    store.dom0.call(XS.RM, b"/h/a/b/c/d/fresh\0", tx)
    assert end(store.dom0, tx) == b"OK\0"


def abort(store: Store) -> None:
    tx = start(store.dom0)
    store.dom0.call(XS.WRITE, b"/h/a/b/c/d/leaf\0w", tx)
    assert end(store.dom0, tx, b"F") == b"OK\0"


def watch_and_unwatch(store: Store) -> None:
    store.dom0.call(XS.WATCH, b"/h/a/b\0u\0")
    store.dom0.call(XS.UNWATCH, b"/h/a/b\0u\0")


OPERATIONS = {
    "read": call(XS.READ, b"/h/a/b/c/d/leaf\0"),
    "read of what is missing": lambda store: store.read(b"/h/a/b/c/d/no"),
    "directory": call(XS.DIRECTORY, b"/h/a/b/c/d\0"),
    "write": call(XS.WRITE, b"/h/a/b/c/d/leaf\0w"),
    "create": call(XS.WRITE, b"/h/a/b/c/d/new\0w"),
    "mkdir": call(XS.MKDIR, b"/h/a/b/c/d/made\0"),
    "rm": call(XS.RM, b"/h/a/b/c/d/gone\0"),
    "set_perms": call(XS.SET_PERMS, b"/h/a/b/c/d/leaf\0n0\0"),
    "get_perms": call(XS.GET_PERMS, b"/h/a/b/c/d/leaf\0"),
    "watch": watch_and_unwatch,
    "commit": transaction,
    "abort": abort,
}
PROFILES = {"c": C, "ox": OX, "legacy": LEGACY}


@pytest.fixture(scope="module", params=list(PROFILES))
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Counted, Counted]]:
    profile = PROFILES[request.param]
    yield Counted(profile, full=False), Counted(profile, full=True)


def test_what_an_operation_touches_is_independent_of_the_rest(
    pair: tuple[Counted, Counted],
) -> None:
    empty, full = pair
    for name, operation in OPERATIONS.items():
        costs = [one.cost(operation) for one in (empty, full)]
        assert costs[0] == costs[1], name
        nodes, watches = costs[0]
        requests = 6 if name in ("commit", "abort", "rm") else 2
        assert nodes <= requests * 3 * DEPTH, name
        assert watches <= requests * 3 * DEPTH, name


def test_it_grows_with_the_depth_of_the_path() -> None:
    counted = Counted(C, full=False)
    costs = []
    for depth in (5, 50, 500):
        path = b"/h" + b"/x" * depth
        counted.store.write(path)
        costs.append(counted.cost(lambda store, path=path: store.read(path + b"/no")))
    assert costs[0][0] == costs[1][0] == costs[2][0], "a look-up is of the path and its parent"
    fired = [
        counted.cost(call(XS.WRITE, b"/h" + b"/x" * depth + b"\0v"))[1] for depth in (5, 50, 500)
    ]
    assert all(few <= depth + 3 for few, depth in zip(fired, (5, 50, 500), strict=True))


@pytest.mark.parametrize("profile", [C, OX, LEGACY], ids=["c", "ox", "legacy"])
def test_a_transaction_costs_what_it_touches(profile: Any) -> None:
    counted = Counted(profile, full=False)

    def touch(count: int) -> tuple[int, int]:
        def run(store: Store) -> None:
            tx = start(store.dom0)
            for index in range(count):
                store.dom0.call(XS.WRITE, b"/h/a/b/c/d/n%d\0v" % index, tx)
            assert end(store.dom0, tx) == b"OK\0"

        return counted.cost(run)

    few, many = touch(10), touch(100)
    few, many = touch(10), touch(100)  # now all of them exist
    assert many[0] <= 11 * few[0]
    assert many[1] <= 11 * max(1, few[1])


@pytest.mark.parametrize("profile", [C, OX, LEGACY], ids=["c", "ox", "legacy"])
def test_an_open_transaction_holds_what_changed_and_no_more(profile: Any) -> None:
    store = Store(profile)
    for index in range(1000):
        store.write(b"/big/%d" % index)
    tx = start(store.dom0)
    store.dom0.call(XS.READ, b"/big/1\0", tx)
    store.write(b"/big/2", b"x")
    transaction = store.dom0.transactions[tx]
    assert len(transaction.accesses) == 1
    snapshot = getattr(transaction, "snapshot", None)
    assert snapshot is None or len(snapshot.before) == 1
