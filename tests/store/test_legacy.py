"""What QEMU's emulation does for its only guest, and old clients take for granted: `legacy`."""

from __future__ import annotations

import pytest

from tests.store.client import Store, answer, end, start
from xenpv.abi.xs import XS
from xenpv.store.profile import LEGACY, OX, C


@pytest.fixture
def store() -> Store:
    return Store(LEGACY)


def test_it_starts_with_nothing_but_the_root(store: Store) -> None:
    assert store.server.dump() == []


# (request of the guest, answer)
OF_THE_GUEST: list[tuple[XS, bytes, bytes | str]] = [
    (XS.GET_DOMAIN_PATH, b"1\0", "ENOSYS"),
    (XS.GET_FEATURE, b"", "ENOSYS"),
    (XS.INTRODUCE, b"2\0001\0002\0", "EACCES"),
    (XS.RELEASE, b"1\0", "EACCES"),
    (XS.WATCH, b"@releaseDomain\0t\0", "EINVAL"),
    (XS.READ, b"@releaseDomain\0", "EINVAL"),
    (XS.GET_PERMS, b"@releaseDomain\0", "EINVAL"),
    (XS.RM, b"none\0", "ENOENT"),
    (XS.RM, b"/\0", "EACCES"),
]


@pytest.mark.parametrize(("op", "payload", "expected"), OF_THE_GUEST)
def test_answers_to_the_guest(store: Store, op: XS, payload: bytes, expected: bytes | str) -> None:
    assert answer(store.guest(1), op, payload) == expected


def test_dom0_introduces_once_and_watches_special_names(store: Store) -> None:
    store.dom0.call(XS.WATCH, b"@introduceDomain\0t\0")
    store.events()
    store.guest(1)
    assert store.events() == [(b"@introduceDomain", b"t")]
    assert answer(store.dom0, XS.INTRODUCE, b"1\0001\0002\0") == "EACCES"
    assert answer(store.dom0, XS.RELEASE, b"9\0") == "EACCES"
    assert answer(store.dom0, XS.RELEASE, b"1\0") == b"OK\0"


def test_whoever_may_write_to_the_root_removes_all(store: Store) -> None:
    guest = store.guest(1)
    store.set_perms(b"/", b"b0")
    assert answer(guest, XS.RM, b"/\0") == b"OK\0"
    assert store.server.dump() == []


@pytest.mark.parametrize("inside", [False, True])
def test_a_thousand_nodes_in_all(store: Store, inside: bool) -> None:
    guest = store.guest(1)
    for number in range(900):
        store.write(b"/other/%d" % number, b"")
    total = len(store.server.nodes)
    tx = start(guest) if inside else 0
    for number in range(1000 - total):
        assert guest.call(XS.WRITE, b"n%d\0" % number, tx) == b"OK\0"
    for op in (XS.WRITE, XS.MKDIR):
        assert answer(guest, op, b"more\0", tx) == "ENOSPC"
    assert guest.call(XS.WRITE, b"n1\0v", tx) == b"OK\0"
    guest.call(XS.RM, b"n0\0", tx)
    assert answer(guest, XS.WRITE, b"a/b\0", tx) == "ENOSPC"
    assert answer(guest, XS.WRITE, b"a\0", tx) == b"OK\0"
    if inside:
        assert end(guest, tx) == b"OK\0"
    assert len(store.server.nodes) == 1000
    store.write(b"/by/dom0", b"")


@pytest.mark.parametrize(("profile", "slow"), [(C, True), (OX, False), (LEGACY, False)])
def test_only_xenstored_limits_writes(profile: object, slow: bool) -> None:
    store = Store(profile)  # type: ignore[arg-type]
    store.server.credit.clock = lambda: 0
    guest = store.guest(1)
    start(store.dom0)
    for number in range(50):
        guest.send(XS.WRITE, b"n\0%d" % number)
    assert (len(guest.messages()) < 50) is slow
