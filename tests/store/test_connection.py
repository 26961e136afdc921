from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.client import Store, WireClient, message, split, start
from xenpv.abi.xs import XS
from xenpv.store.connection import Connection

HUGE = 1 << 20


def test_replies_keep_the_order_and_the_ids_of_their_requests(store: Store) -> None:
    store.write(b"/a", b"1")
    client = WireClient(store.server.connect_socket("s"))
    tx = start(client)
    data = message(XS.READ, b"/a\0", req_id=7) + message(XS.READ, b"/b\0", tx_id=tx, req_id=5)
    data += message(XS.WRITE, b"/a\0x", tx_id=9, req_id=6)
    client.connection.feed(data)
    assert client.messages() == [
        (XS.READ, 7, 0, b"1"),
        (XS.ERROR, 5, tx, b"ENOENT\0"),
        (XS.ERROR, 6, 9, b"ENOENT\0"),
    ]


def test_bytes_of_a_reply(store: Store) -> None:
    guest = store.guest(1).connection
    guest.feed(bytes.fromhex("0200000001000000000000000200000078 00".replace(" ", "")))
    assert guest.take_output(HUGE) == bytes.fromhex(
        "10000000 01000000 00000000 07000000 454e4f454e5400".replace(" ", "")
    )


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 17, 1000])
def test_requests_may_be_split_anywhere(store: Store, size: int) -> None:
    store.write(b"/a", b"1")
    connection = store.server.connect_socket("s")
    data = (message(XS.WRITE, b"/b\0" + b"x" * 50) + message(XS.READ, b"/a\0")) * 5
    for at in range(0, len(data), size):
        connection.feed(data[at : at + size])
    replies = split(connection.take_output(HUGE))
    assert replies == [(XS.WRITE, 0, 0, b"OK\0"), (XS.READ, 0, 0, b"1")] * 5


@pytest.mark.parametrize("limit", [1, 5, 16, 23, 24, 4096])
def test_output_may_be_taken_in_any_pieces(store: Store, limit: int) -> None:
    guest = store.guest(1)
    store.write(b"/local/domain/1/v", b"v" * 500)
    guest.send(XS.WATCH, b"v\0t\0")
    guest.send(XS.READ, b"v\0")
    guest.send(XS.READ, b"v\0")
    pieces = []
    while guest.connection.wants_output:
        pieces.append(guest.connection.take_output(limit))
        assert 0 < len(pieces[-1]) <= limit
    assert [kind for kind, *_ in split(b"".join(pieces))] == [
        XS.WATCH,
        XS.WATCH_EVENT,
        XS.READ,
        XS.READ,
    ]
    assert guest.connection.take_output(limit) == b""
    assert store.server.known[1].outstanding == 0


def test_output_that_was_only_looked_at_is_still_waiting(store: Store) -> None:
    guest = store.guest(1)
    guest.send(XS.WATCH, b"x\0t\0")
    guest.messages()
    event = message(XS.WATCH_EVENT, b"x\0t\0")
    store.write(b"/local/domain/1/x")
    assert guest.connection.peek_output(10) == event[:10]
    assert guest.connection.peek_output(HUGE) == event
    guest.connection.sent(10)
    store.write(b"/local/domain/1/x")
    assert guest.connection.peek_output(HUGE) == event[10:]
    guest.connection.sent(len(event) - 10)
    assert not guest.connection.wants_output


def test_events_precede_the_reply_that_caused_them(store: Store) -> None:
    guest = store.guest(1)
    guest.send(XS.WATCH, b"x\0t\0")
    guest.messages()
    guest.send(XS.WRITE, b"x/y\0")
    assert guest.messages() == [(XS.WATCH_EVENT, 0, 0, b"x/y\0t\0"), (XS.WRITE, 0, 0, b"OK\0")]


def test_a_payload_of_4096_is_served(store: Store) -> None:
    guest = store.guest(1)
    guest.send(XS.WRITE, b"x\0" + b"v" * 4094)
    assert guest.messages() == [(XS.ERROR, 0, 0, b"ENOSPC\0")]
    assert guest.connection.fatal is None


def test_a_longer_one_ends_the_connection(store: Store) -> None:
    guest = store.guest(1)
    guest.send(XS.WATCH, b"/\0t\0")
    start_bytes = message(XS.TRANSACTION_START, b"\0")
    guest.connection.feed(start_bytes + message(XS.READ, b"x" * 4097)[:16])
    assert guest.connection.fatal == 3  # XENSTORE_ERROR_PROTO
    assert not guest.connection.wants_input
    assert not guest.connection.watches
    assert not guest.connection.transactions
    guest.connection.feed(message(XS.READ, b"/\0"))
    # What came before it was answered; nothing after it is.
    assert [kind for kind, *_ in guest.messages()] == [
        XS.WATCH, XS.WATCH_EVENT, XS.TRANSACTION_START,
    ]  # fmt: skip
    assert not guest.connection.wants_output
    assert store.dom0.call(XS.IS_DOMAIN_INTRODUCED, b"1\0") == b"T\0"
    store.introduce(1)
    assert guest.connection.fatal == 3  # a new INTRODUCE does not revive it


def test_frozen_domains_death_is_still_told(store: Store) -> None:  # XSA-325
    guest = store.guest(1)
    store.dom0.call(XS.WATCH, b"@releaseDomain\0t\0")
    guest.connection.freeze(2)
    store.events()
    store.server.domain_died(1)
    assert store.events() == [(b"@releaseDomain", b"t")]


def test_reset_drops_half_a_request(store: Store) -> None:
    guest = store.guest(1)
    guest.connection.feed(message(XS.READ, b"x\0")[:10])
    guest.connection.reset()
    guest.send(XS.READ, b"y\0", req_id=3)
    assert guest.messages() == [(XS.ERROR, 3, 0, b"ENOENT\0")]


class Wakes:
    def __init__(self) -> None:
        self.count = 0

    def wake(self) -> None:
        self.count += 1


def test_owner_is_woken_when_events_begin_to_wait(store: Store) -> None:
    guest = store.guest(1)
    local = store.server.connect_local("driver")
    for client in (guest.connection, local):
        client.on_event = Wakes()
    guest.send(XS.WATCH, b"x\0t\0")
    guest.messages()
    local.call(XS.WATCH, b"/local/domain/1/x\0t\0")
    assert counts(guest.connection, local) == [0, 1]
    local.events.clear()
    store.write(b"/local/domain/1/x")
    store.write(b"/local/domain/1/x/y")
    assert counts(guest.connection, local) == [1, 2]
    guest.messages()
    guest.send(XS.WRITE, b"x\0")  # its own event needs no wake-up: it is being served
    assert counts(guest.connection, local) == [1, 2]


def counts(*connections: Connection) -> list[int]:
    return [connection.on_event.count for connection in connections]  # type: ignore[union-attr]


def test_trace_sees_each_dispatched_request_once(store: Store) -> None:
    class Sink:
        def __init__(self) -> None:
            self.seen: list[tuple[int, int, int, bytes, bytes | None]] = []

        def store_op(
            self, conn_domid: int, op: int, tx_id: int, payload: bytes, error: bytes | None
        ) -> None:
            self.seen.append((conn_domid, op, tx_id, payload, error))

    guest = store.guest(1)
    store.server.trace = sink = Sink()
    guest.send(XS.WRITE, b"x\x001")
    guest.send(99, b"")
    tx = start(store.dom0)
    store.dom0.call(XS.READ, b"/\0", tx)
    assert sink.seen == [
        (1, 11, 0, b"x\x001", None),
        (1, 99, 0, b"", b"ENOSYS"),
        (0, 6, 0, b"\0", None),
        (0, 2, tx, b"/\0", None),
    ]


# hostile bytes


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=400), cuts=st.lists(st.integers(0, 400), max_size=5))
def test_any_bytes_split_anywhere_are_survived(data: bytes, cuts: list[int]) -> None:
    store = Store()
    guest, other = store.guest(1), store.guest(2)
    for start_at, end_at in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True):
        guest.connection.feed(data[start_at:end_at])
        split(guest.connection.take_output(HUGE))
    assert len(guest.connection.partial) < 16 + 4096
    assert other.call(XS.WRITE, b"x\x001") == b"OK\0"
    assert store.read(b"/local/domain/2/x") == b"1"


REQUEST = st.builds(
    message,
    st.integers(0, 30),
    st.one_of(
        st.binary(max_size=60),
        st.lists(
            st.sampled_from([b"x", b"/", b"@", b"t", b"0", b"1", b"T", b"n1", b"r2", b"x/y", b""]),
            max_size=5,
        ).map(lambda parts: b"".join(part + b"\0" for part in parts)),
    ),
    tx_id=st.integers(0, 3),
)


@settings(max_examples=300, deadline=None)
@given(requests=st.lists(REQUEST, max_size=30), seed=st.integers(0, 2**32))
def test_any_requests_leave_other_clients_and_the_accounts_in_order(
    requests: list[bytes], seed: int
) -> None:
    store = Store()
    guest, other = store.guest(1), store.guest(2)
    pick = random.Random(seed)
    replies = 0
    for request in requests:
        cut = pick.randrange(len(request))
        guest.connection.feed(request[:cut])
        guest.connection.feed(request[cut:])
        found = split(guest.connection.take_output(HUGE))
        replies += sum(kind != XS.WATCH_EVENT for kind, *_ in found)
    assert replies == len(requests)
    assert other.call(XS.WRITE, b"x\x001") == b"OK\0"
    check_accounts(store)
    store.server.domain_died(1)
    check_accounts(store)
    domain = guest.connection.domain
    assert [domain.nodes, domain.memory, domain.watches, domain.transactions] == [0] * 4
    assert domain.outstanding == 0


def check_accounts(store: Store) -> None:
    """What is counted is what is there."""
    server = store.server
    nodes = {**server.nodes, **server.tree.special}
    for path, node in server.nodes.items():
        assert node.path == path
        assert node.lineage[1:] == (server.nodes[node.lineage[1]].lineage if path != b"/" else ())
        assert node.names_size == sum(len(name) + 1 for name in node.children)
        for name in node.children:
            assert node.child_path(name) in server.nodes
    listed = sum(len(node.children) for node in server.nodes.values())
    assert listed == len(server.nodes) - 1
    for domain in server.known.values():
        owned = [node for node in nodes.values() if node.perms.owner is domain]
        assert domain.nodes == len(owned)
        if not domain.accounted:
            continue
        assert sorted(domain.owned) == sorted(node.path for node in owned)
        memory = 0
        for node in owned:
            assert node.charged == len(node.path) + node.size
            memory += node.charged
        connection = domain.connection
        if connection is not None:
            assert domain.watches == len(connection.watches)
            assert domain.transactions == len(connection.transactions)
            memory += sum(len(path) + len(token) for path, token in connection.watches)
            memory += sum(len(data) for data, _, _ in connection.output)
            for tx in connection.transactions.values():
                for path, access in tx.accesses.items():
                    if access.node is not None:
                        assert access.charged == len(path) + access.node.size
                    memory += access.charged
        assert domain.memory == memory
    registered = [watch for conn in server.connections.values() for watch in conn.watches.values()]
    indexed = [watch for watches in server.watches.by_path.values() for watch in watches]
    assert len(registered) == len(indexed)
