from __future__ import annotations

import pytest

from tests.store.client import Store, WireClient, answer, end, start
from xenpv.abi.xs import XS


def fill(guest: WireClient, op: XS, payload: bytes) -> int:
    """How often a request with a number in it succeeds, and that ENOSPC ends it."""
    for count in range(2000):
        guest.send(op, payload % count)
        reply = guest.messages()[0][3]
        if reply == b"ENOSPC\0":
            return count
        assert reply != b"EINVAL\0"
    pytest.fail("no limit")


@pytest.mark.parametrize(
    ("op", "payload", "fits"),
    [
        (XS.WATCH, b"w%d\0t\0", 127),
        (XS.TRANSACTION_START, b"\0%.0d", 9),
    ],
)
def test_a_value_that_reaches_its_quota_is_refused(
    store: Store, op: XS, payload: bytes, fits: int
) -> None:
    assert fill(store.guest(1), op, payload) == fits


def test_nodes(store: Store) -> None:
    guest = store.guest(1)
    path = b"x"
    for _ in range(998):  # and its home, which is the domain's too
        assert answer(guest, XS.MKDIR, path + b"\0") == b"OK\0"
        path += b"/x"
    assert answer(guest, XS.MKDIR, path + b"\0") == "ENOSPC"
    assert store.server.known[1].nodes == 999


@pytest.mark.parametrize(("count", "expected"), [(4, b"OK\0"), (5, "ENOSPC")])
def test_permissions_per_node(store: Store, count: int, expected: bytes | str) -> None:
    guest = store.guest(1)
    guest.call(XS.WRITE, b"x\0")
    assert answer(guest, XS.SET_PERMS, b"x\0" + b"n1\0" * count) == expected


@pytest.mark.parametrize(("size", "expected"), [(2023, b"OK\0"), (2024, "ENOSPC")])
def test_node_size_of_one_permission_and_no_child(
    store: Store, size: int, expected: bytes | str
) -> None:
    guest = store.guest(1)
    assert answer(guest, XS.WRITE, b"x\0" + b"v" * size) == expected
    assert (answer(guest, XS.READ, b"x\0") == "ENOENT") == (expected == "ENOSPC")
    guest.call(XS.MKDIR, b"x\0")
    assert answer(guest, XS.WRITE, b"x\0" + b"v" * size) == expected


def test_children_count_against_the_size_of_their_parent(store: Store) -> None:
    guest = store.guest(1)
    guest.call(XS.WRITE, b"x\0" + b"v" * 2020)
    assert answer(guest, XS.MKDIR, b"x/abc\0") == "ENOSPC"
    assert answer(guest, XS.MKDIR, b"x/abc/d\0") == "ENOSPC"
    assert answer(guest, XS.READ, b"x/abc\0") == "ENOENT"
    assert answer(guest, XS.MKDIR, b"x/a\0") == b"OK\0"
    assert answer(guest, XS.WRITE, b"x\0" + b"v" * 2023) == "ENOSPC"
    assert answer(guest, XS.RM, b"x/a\0") == b"OK\0"
    assert answer(guest, XS.WRITE, b"x\0" + b"v" * 2023) == b"OK\0"


def test_a_request_of_several_levels_may_overshoot_the_node_quota(store: Store) -> None:
    store.dom0.call(XS.SET_QUOTA, b"nodes\x0020\0")
    guest = store.guest(1)
    for number in range(17):
        guest.call(XS.MKDIR, b"n%d\0" % number)
    assert answer(guest, XS.MKDIR, b"a/b/c/d\0") == b"OK\0"
    assert store.server.known[1].nodes == 22
    assert answer(guest, XS.MKDIR, b"e\0") == "ENOSPC"


def test_creations_in_a_transaction_are_checked_when_it_ends(store: Store) -> None:
    store.dom0.call(XS.SET_QUOTA, b"nodes\x005\0")
    guest = store.guest(1)
    tx = start(guest)
    for number in range(10):
        guest.call(XS.MKDIR, b"n%d\0" % number, tx)
    assert end(guest, tx) == "ENOSPC"
    assert store.server.known[1].nodes == 1
    tx = start(guest)
    for number in range(3):
        guest.call(XS.MKDIR, b"n%d\0" % number, tx)
    assert end(guest, tx) == b"OK\0"


def test_transaction_nodes(store: Store) -> None:
    store.dom0.call(XS.SET_QUOTA, b"transaction-nodes\x005\0")
    guest = store.guest(1)
    tx = start(guest)
    for number in range(3):  # each missing node is one, their home another
        assert answer(guest, XS.READ, b"n%d\0" % number, tx) == "ENOENT"
    assert answer(guest, XS.READ, b"more\0", tx) == "ENOSPC"
    assert answer(guest, XS.READ, b"n1\0", tx) == "ENOENT"
    assert end(guest, tx) == "ENOMEM"


def test_dom0_has_no_quotas(store: Store) -> None:
    for number in range(1100):
        store.write(b"/n/%d" % number)
        start(store.dom0)
        store.dom0.call(XS.WATCH, b"/w%d\0t\0" % number)
    store.write(b"/big", b"v" * 4000)
    store.set_perms(b"/big", *[b"n0"] * 10)


def test_dom0_may_fill_a_node_of_a_guest(store: Store) -> None:
    guest = store.guest(1)
    store.write(b"/local/domain/1/x", b"v" * 3000)
    assert answer(guest, XS.WRITE, b"x\0" + b"v" * 3000) == "ENOSPC"
    assert answer(guest, XS.READ, b"x\0") == b"v" * 3000


# memory: 24 + len(value) + len(path) per node, path + token per watch, length + 16 per message


def limited(store: Store, memory: int) -> WireClient:
    guest = store.guest(1)
    store.dom0.call(XS.SET_QUOTA, b"1\0memory\0%d\0" % memory)
    return guest


def test_nodes_over_the_memory_quota_are_eio(store: Store) -> None:
    used = 16 + 8 + len(b"/local/domain/1")
    name = len(b"/local/domain/1/x")
    child = 16 + 8 + name + 100 + len(b"x\0")
    guest = limited(store, used + child + 1)
    assert answer(guest, XS.WRITE, b"x\0" + b"v" * 101) == "EIO"
    assert store.server.known[1].memory == used
    assert answer(guest, XS.WRITE, b"x\0" + b"v" * 100) == b"OK\0"
    assert store.server.known[1].memory == used + child
    assert answer(guest, XS.WRITE, b"x\0" + b"v" * 101) == "EIO"
    assert answer(guest, XS.WRITE, b"x\0") == b"OK\0"


def test_watches_over_the_memory_quota_are_enomem(store: Store) -> None:
    used = 16 + 8 + len(b"/local/domain/1")
    watch = len(b"/local/domain/1/x") + len(b"token")
    guest = limited(store, used + watch)
    assert answer(guest, XS.WATCH, b"x\0token\0") == "ENOMEM"
    guest.send(XS.WATCH, b"x\0toke\0")
    assert guest.messages()[0][3] == b"OK\0"


def test_long_replies_over_the_memory_quota_are_enomem(store: Store) -> None:
    store.write(b"/p", b"v" * 16)
    store.set_perms(b"/p", b"r0")
    guest = limited(store, 16 + 8 + len(b"/local/domain/1") + 16 + 17)
    assert answer(guest, XS.READ, b"/p\0") == b"v" * 16
    store.write(b"/p", b"v" * 17)
    assert answer(guest, XS.READ, b"/p\0") == "ENOMEM"


def test_events_over_the_memory_quota_are_dropped(store: Store) -> None:
    guest = store.guest(1)
    guest.send(XS.WATCH, b"\x78\0t\0")
    guest.messages()
    store.write(b"/local/domain/1/x")
    event = 16 + len(b"x\0t\0")
    assert len(guest.events()) == 1
    store.dom0.call(XS.SET_QUOTA, b"1\0memory\0%d\0" % (store.server.known[1].memory + event))
    store.write(b"/local/domain/1/x")
    assert guest.events() == []


def test_requests_wait_while_twenty_are_outstanding(store: Store) -> None:
    guest = store.guest(1)
    connection = guest.connection
    for number in range(30):
        guest.send(XS.READ, b"x%d\0" % number, req_id=number)
    assert not connection.wants_input
    first = connection.take_output(1 << 20)
    assert first.count(b"ENOENT\0") == 20
    assert connection.take_output(1 << 20).count(b"ENOENT\0") == 10
    assert connection.wants_input


def test_requests_wait_until_others_have_read_their_events(store: Store) -> None:
    store.dom0.call(XS.SET_QUOTA, b"outstanding\x002\0")
    guest = store.guest(1)
    other = store.guest(2)
    store.set_perms(b"/local/domain/1", b"r1")
    wakes = Wakes()
    guest.connection.on_event = wakes
    other.send(XS.WATCH, b"/local/domain/1\0t\0")
    other.messages()
    for name in (b"a", b"b"):
        guest.send(XS.WRITE, name + b"\0")
    guest.messages()
    assert not guest.connection.wants_input
    guest.send(XS.WRITE, b"c\0")
    assert store.read(b"/local/domain/1/c") == "ENOENT"
    assert wakes.count == 0
    other.connection.take_output(16 + len(b"/local/domain/1/a\0t\0"))
    assert wakes.count == 1
    assert guest.connection.wants_output
    guest.messages()
    assert store.read(b"/local/domain/1/c") == b""


class Wakes:
    def __init__(self) -> None:
        self.count = 0

    def wake(self) -> None:
        self.count += 1


def test_whoever_was_told_not_to_read_is_woken(store: Store) -> None:
    store.dom0.call(XS.SET_QUOTA, b"outstanding\x001\0")
    guest, other = store.guest(1), store.guest(2)
    store.set_perms(b"/local/domain/1", b"r1")
    other.send(XS.WATCH, b"/local/domain/1\0t\0")
    other.messages()
    guest.send(XS.WRITE, b"a\0")
    guest.messages()
    guest.connection.on_event = wakes = Wakes()
    assert not guest.connection.wants_input
    other.messages()
    assert wakes.count == 1
    assert guest.connection.wants_input


def test_ring_over_its_memory_is_read_again_once_dom0_makes_room(store: Store) -> None:
    guest = store.guest(1)
    guest.call(XS.WRITE, b"x\0" + b"v" * 100)
    wakes = Wakes()
    guest.connection.on_event = wakes
    store.dom0.call(XS.SET_QUOTA, b"1\0memory\x00100\0")
    guest.send(XS.READ, b"x\0")
    assert guest.messages() == []
    store.dom0.call(XS.RM, b"/local/domain/1/x\0")
    assert wakes.count == 1
    assert guest.connection.wants_output
    assert guest.messages()[0][3] == b"ENOENT\0"


# GET_QUOTA and SET_QUOTA


def test_names_and_defaults(store: Store) -> None:
    names = store.dom0.call(XS.GET_QUOTA, b"")[:-1].split(b" ")
    values = {name: int(store.dom0.call(XS.GET_QUOTA, name + b"\0")[:-1]) for name in names}
    assert values == {
        b"nodes": 1000,
        b"watches": 128,
        b"outstanding": 20,
        b"memory": 2_621_440,
        b"soft-memory": 2_097_152,
        b"transactions": 10,
        b"transaction-nodes": 1024,
        b"node-permissions": 5,
        b"path-max": 2048,
        b"node-size": 2048,
    }


def test_global_value_seeds_new_domains_only(store: Store) -> None:
    old = store.guest(1)
    store.dom0.call(XS.SET_QUOTA, b"watches\x002\0")
    new = store.guest(2)
    assert fill(new, XS.WATCH, b"w%d\0t\0") == 1
    assert fill(old, XS.WATCH, b"w%d\0t\0") == 127
    assert store.dom0.call(XS.GET_QUOTA, b"1\0watches\0") == b"128\0"
    assert store.dom0.call(XS.GET_QUOTA, b"2\0watches\0") == b"2\0"


def test_zero_is_unlimited(store: Store) -> None:
    guest = store.guest(1)
    store.dom0.call(XS.SET_QUOTA, b"1\0watches\x000\0")
    for number in range(300):
        guest.send(XS.WATCH, b"w%d\0t\0" % number)
        assert guest.messages()[0][3] == b"OK\0"


@pytest.mark.parametrize(
    ("op", "payload", "error"),
    [
        (XS.GET_QUOTA, b"1\0nodes\0x\0", "EINVAL"),
        (XS.GET_QUOTA, b"none\0", "EINVAL"),
        (XS.GET_QUOTA, b"9\0nodes\0", "ENOENT"),
        (XS.GET_QUOTA, b"x\0nodes\0", "EINVAL"),
        (XS.SET_QUOTA, b"nodes\0", "EINVAL"),
        (XS.SET_QUOTA, b"nodes\0-1\0", "EINVAL"),
        (XS.SET_QUOTA, b"nodes\0x\0", "EINVAL"),
        (XS.SET_QUOTA, b"none\x001\0", "EINVAL"),
        (XS.SET_QUOTA, b"9\0nodes\x001\0", "ENOENT"),
        (XS.SET_QUOTA, b"1\0nodes\x001\0x\0", "EINVAL"),
    ],
)
def test_quota_errors(store: Store, op: XS, payload: bytes, error: str) -> None:
    assert answer(store.dom0, op, payload) == error
