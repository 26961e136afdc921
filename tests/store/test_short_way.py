"""The short ways of frequent requests do what the long way does: replies, events, tree, counts."""

from __future__ import annotations

from unittest import mock

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.store.client import Store, WireClient, answer, message, split
from tests.store.test_connection import check_accounts
from xenpv.abi.xs import XS
from xenpv.errors import StoreError
from xenpv.store import request
from xenpv.store.connection import Connection
from xenpv.store.profile import LEGACY, OX, C, Profile
from xenpv.store.transaction import Transaction
from xenpv.store.watch import WatchIndex

HUGE = 1 << 20
NAMES = ["a", "b", "d0", "a/b", "a/b/c", "", "@x", "/", "a//b", "x!", "/local/domain/1/a", "/t/a/b"]
PATHS = st.sampled_from([name.encode() for name in NAMES])
MANY = [b"%c" % letter for letter in b"abcdefgh"]
VALUES = st.sampled_from([b"", b"1", b"v" * 40, b"v" * 2030])
STEP = st.one_of(
    st.tuples(
        st.just(XS.WRITE), st.builds(lambda path, value: path + b"\0" + value, PATHS, VALUES)
    ),
    st.tuples(
        st.sampled_from([XS.READ, XS.DIRECTORY, XS.MKDIR, XS.RM, XS.GET_PERMS]),
        PATHS.map(lambda path: path + b"\0"),
    ),
    st.tuples(
        st.just(XS.SET_PERMS),
        st.builds(
            lambda path, perms: path + b"\0" + perms,
            PATHS,
            st.sampled_from([b"n1\0", b"n2\0", b"n1\0r2\0", b"r2\0n1\0", b"b0\0"]),
        ),
    ),
    st.tuples(st.just(XS.WATCH), PATHS.map(lambda path: path + b"\0t\0")),
    st.tuples(st.just(XS.UNWATCH), PATHS.map(lambda path: path + b"\0t\0")),
    st.tuples(
        st.just(XS.WRITE),
        st.builds(lambda name, value: b"%b\0%b" % (name, value), st.sampled_from(MANY), VALUES),
    ),
    st.tuples(st.just(XS.TRANSACTION_START), st.just(b"\0")),
    st.tuples(st.just(XS.TRANSACTION_END), st.sampled_from([b"T\0", b"F\0"])),
)
STEPS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), STEP), max_size=25)


FILL = [(XS.WRITE, b"%b\0v" % name) for name in MANY]
# Up to a quota and beyond, outside a transaction and inside one.
BEYOND = [(1, 0, step) for step in FILL]
BEYOND_INSIDE = [
    (1, 0, (XS.TRANSACTION_START, b"\0")),
    *[(1, 1, step) for step in FILL],
    (1, 1, (XS.TRANSACTION_END, b"T\0")),
]
# What one guest writes, another hears of.
HEARD = [(2, 0, (XS.WATCH, b"/local/domain/1/a\0t\0")), (1, 0, FILL[0]), (1, 0, FILL[0])]


def make(profile: Profile = C) -> Store:
    store = Store(profile=profile)
    store.write(b"/t")
    store.write(b"/t/a")
    store.guest(1)
    store.guest(2, b"n2")
    store.set_perms(b"/local/domain/1", b"n1", b"r2")
    for connection in store.platform.connections.values():
        # So near that the short way has to leave some to the long one.
        connection.domain.limits.nodes = 5
        connection.domain.limits.node_size = 2048
        connection.domain.limits.transaction_nodes = 4
    return store


def outcome(steps: list[tuple[int, int, tuple[int, bytes]]]) -> list[object]:
    """Everything that anybody can see after each of the requests."""
    store = make()
    clients = {0: store.dom0} | {
        domid: WireClient(connection) for domid, connection in store.platform.connections.items()
    }
    seen: list[object] = []
    for who, tx_id, (op, payload) in steps:
        client = clients[who]
        if isinstance(client, WireClient):
            client.send(op, payload, tx_id=tx_id)
        else:
            seen.append(answer(client, op, payload, tx_id))
        seen.append([one.messages() for one in clients.values() if isinstance(one, WireClient)])
        seen.append(store.events())
        seen.append(tree(store))
    check_accounts(store)
    return seen


def tree(store: Store) -> list[object]:
    found: list[object] = [store.server.tree.generation]
    for path, node in store.server.nodes.items():
        found.append((path, node.value, node.perms.texts(), node.generation, list(node.children)))
    return found


def the_long_way() -> mock._patch_default_new:  # type: ignore[name-defined]
    return mock.patch.multiple(
        request,
        write_tree=lambda *_: False,
        _write_copy=lambda *_: False,
        _write_own=lambda *_: False,
        _existing=lambda *_: None,
    )


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
@example(steps=BEYOND)
@example(steps=BEYOND_INSIDE)
def test_requests_end_as_they_do_the_long_way(steps) -> None:
    with the_long_way():
        expected = outcome(steps)
    assert outcome(steps) == expected


@settings(max_examples=100, deadline=None)
@given(
    rounds=st.lists(
        st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["", "v"])), max_size=4
    ),
    base=st.sampled_from([b"/t", b"/t/a", b"/t/new", b"/local/domain/1", b"t"]),
    inside=st.booleans(),
)
def test_write_all_does_what_a_write_of_each_does(rounds, base, inside) -> None:
    found = []
    for at_once in (True, False):
        store = make()
        store.dom0.call(XS.WATCH, b"/\0w\0")
        errors: list[object] = []
        tx_id = int(store.dom0.call(XS.TRANSACTION_START, b"\0")[:-1]) if inside else 0
        for values in rounds:
            if at_once:
                try:
                    store.dom0.write_all(base, values, tx_id)
                except request.StoreError as error:
                    errors.append(error.name)
                continue
            for key, value in values.items():
                reply = answer(
                    store.dom0, XS.WRITE, b"%b/%b\0%b" % (base, key.encode(), value.encode()), tx_id
                )
                if reply != b"OK\0":
                    errors.append(reply)
                    break
        part = answer(store.dom0, XS.DIRECTORY_PART, base + b"\x000\0", tx_id)
        end = answer(store.dom0, XS.TRANSACTION_END, b"T\0", tx_id)
        check_accounts(store)
        found.append((errors, part, end, store.events(), tree(store)))
    assert found[0] == found[1]


class Record:
    """A trace that remembers all it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def store_op(self, *told: object) -> None:
        self.told.append(told)


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.booleans(), st.integers(0, 1), PATHS, st.one_of(st.none(), VALUES)),
        max_size=12,
    ),
    profile=st.sampled_from([C, OX, LEGACY]),
)
def test_read_and_write_do_what_a_call_does(steps, profile) -> None:
    found = []
    for direct in (True, False):
        store = make(profile)
        store.server.trace = Record()
        store.dom0.call(XS.WATCH, b"/\0w\0")
        tx_ids = [0, int(store.dom0.call(XS.TRANSACTION_START, b"\0")[:-1])]
        seen: list[object] = []
        for below, which, path, value in steps:
            path = b"/t/" + path if below else path
            try:
                seen.append(step(store.dom0, path, value, tx_ids[which], direct=direct))
            except StoreError as error:
                seen.append(error.name)
            seen.append((store.events(), tree(store)))
        check_accounts(store)
        found.append((seen, store.server.trace.told))
    assert found[0] == found[1]


def step(
    conn: Connection, path: bytes, value: bytes | None, tx_id: int, *, direct: bool
) -> bytes | None:
    if value is not None:
        if direct:
            conn.write(path, value, tx_id)
        else:
            conn.call(XS.WRITE, path + b"\0" + value, tx_id)
        return b""
    if direct:
        return conn.read(path, tx_id)
    try:
        return conn.call(XS.READ, path + b"\0", tx_id)
    except StoreError as error:
        if error.name != "ENOENT":
            raise
        return None


@settings(max_examples=150, deadline=None)
@example(steps=HEARD, rooms=[HUGE])
@given(steps=STEPS, rooms=st.lists(st.integers(0, 60), min_size=1, max_size=30))
def test_a_transport_that_takes_bytes_at_once_gets_the_same_bytes(steps, rooms) -> None:
    results = []
    for direct in (False, True):
        store = make()
        clients = {
            domid: WireClient(connection)
            for domid, connection in store.platform.connections.items()
        }
        taken: dict[int, bytes] = dict.fromkeys(clients, b"")
        room = iter(rooms * 100)

        def put(data: bytes, domid: int) -> int:
            chunk = data[: next(room)]  # noqa: B023 - of this store
            taken[domid] += chunk  # noqa: B023
            return len(chunk)

        for domid, client in clients.items():
            if direct:
                client.connection.put = lambda data, domid=domid: put(data, domid)
        for who, tx_id, (op, payload) in steps:
            if who in clients:
                clients[who].connection.feed(message(op, payload, tx_id=tx_id))
            for domid, client in clients.items():
                while chunk := client.connection.take_output(HUGE):
                    taken[domid] += chunk
        check_accounts(store)
        for client in clients.values():
            assert client.connection.domain.outstanding == 0
        results.append({domid: split(data) for domid, data in taken.items()})
    assert results[0] == results[1]


def test_permissions_for_a_domid_are_those_of_the_domain_that_has_it_now() -> None:
    store = Store()
    store.guest(1)
    store.write(b"/t", b"v")
    store.set_perms(b"/t", b"n0", b"r1")
    store.server.domain_died(1)
    store.platform.ids[1] += 1
    successor = store.guest(1)
    assert answer(successor, XS.READ, b"/t\0") == "EACCES"
    store.set_perms(b"/t", b"n0", b"r1")
    assert answer(successor, XS.READ, b"/t\0") == b"v"


def test_watches_above_are_looked_up_again_when_one_comes_or_goes() -> None:
    store = Store()
    guest = store.guest(1)
    store.dom0.call(XS.WATCH, b"/t\0t\0")
    store.write(b"/local/domain/1/a/b")
    assert guest.messages() == []
    guest.send(XS.WATCH, b"a\0t\0")
    assert len(guest.messages()) == 2
    store.write(b"/local/domain/1/a/b")
    assert guest.events() == [(b"a/b", b"t")]
    answer(guest, XS.UNWATCH, b"a\0t\0")
    store.write(b"/local/domain/1/a/b")
    assert guest.messages() == []


def test_what_is_remembered_of_watches_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr("xenpv.store.watch.ABOVE_MAX", 3)
    store = Store()
    store.dom0.call(XS.WATCH, b"/t\0t\0")
    store.events()
    for number in range(8):
        store.write(b"/t/%d/x" % number)
        assert store.events() == [(b"/t/%d/x" % number, b"t")]
    assert isinstance(store.server.watches, WatchIndex)
    assert len(store.server.watches._above) <= 3


def test_planting_ends_before_what_needs_the_long_way() -> None:
    store = make()
    tx_id = int(store.dom0.call(XS.TRANSACTION_START, b"\0")[:-1])
    tx = store.dom0.transactions[tx_id]
    assert isinstance(tx, Transaction)
    assert tx.plant_all(b"/t", [(b"/t/x", b"")]) == 0, "/t was not touched"
    store.dom0.call(XS.READ, b"/t\0", tx_id)
    pairs = [(b"/t/x", b"1"), (b"/t/y", b""), (b"/t/a", b"there"), (b"/t/z", b"")]
    assert tx.plant_all(b"/t", pairs) == 2
