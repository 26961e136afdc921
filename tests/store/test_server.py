from __future__ import annotations

import pytest

from tests.store.client import Store, answer
from xenpv.abi.xs import XS

PRIVILEGED = (0, 8, 9, 17, 18, 19, 24, 25, 26)


@pytest.mark.parametrize("op", [15, 16, 20, 27, 100, 65535, 0xFFFFFFFF])
def test_unknown_type_comes_before_everything(store: Store, op: int) -> None:
    assert answer(store.guest(1), op, b"", 77) == "ENOSYS"
    assert answer(store.dom0, op, b"", 77) == "ENOSYS"


@pytest.mark.parametrize("op", PRIVILEGED)
def test_privilege_comes_before_the_transaction(store: Store, op: int) -> None:
    assert answer(store.guest(1), op, b"", 77) == "EACCES"
    assert answer(store.dom0, op, b"", 77) == "ENOENT"


@pytest.mark.parametrize("op", [op for op in XS if op not in {4, 5, 15, 16, 65535}])
def test_transaction_comes_before_the_arguments(store: Store, op: XS) -> None:
    assert answer(store.dom0, op, b"", 77) == "ENOENT"


def test_connections_are_listed_by_age(store: Store) -> None:
    store.introduce(3)
    store.server.connect_local("late")
    names = [connection.name for connection in store.server.connections.values()]
    assert names == ["d0", "dom0", "d3", "late"]


def test_two_stores_share_nothing() -> None:
    first, second = Store(), Store()
    first.write(b"/a", b"1")
    first.dom0.call(XS.SET_QUOTA, b"nodes\x007\0")
    assert second.read(b"/a") == "ENOENT"
    assert second.dom0.call(XS.GET_QUOTA, b"nodes\0") == b"1000\0"
