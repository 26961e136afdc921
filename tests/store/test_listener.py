"""The Unix socket: real sockets of this process on one side, the listener stepped by hand."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.client import Message, message, split
from xenpv.abi.xs import XS
from xenpv.errors import ConfigError, LocalProtocolError
from xenpv.store import listener as listeners
from xenpv.store import unixsocket
from xenpv.store.listener import Listener
from xenpv.store.server import Xenstored


class Served(Listener):
    """A listener that also closes its clients' ends."""

    def __init__(self, path: Path, *, clients_max: int = 30) -> None:
        self.peers: list[Peer] = []
        super().__init__(Xenstored(), path, clients_max=clients_max)

    def close(self) -> None:
        super().close()
        for peer in self.peers:
            peer.close()


class Peer:
    """A client program's end: sends at once, reads what has come."""

    def __init__(self, listener: Served) -> None:
        self.listener = listener
        listener.peers.append(self)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(os.fspath(listener.path))
        self.socket.setblocking(False)
        self.data = b""
        settle(listener)

    def send(self, op: int, payload: bytes, *, tx_id: int = 0) -> None:
        self.socket.sendall(message(op, payload, tx_id=tx_id))

    def call(self, op: int, payload: bytes, *, tx_id: int = 0) -> bytes:
        self.send(op, payload, tx_id=tx_id)
        settle(self.listener)
        ((_, _, _, reply),) = self.messages()
        return reply

    def messages(self) -> list[Message]:
        self.read()
        found = split(self.data)
        self.data = b""
        return found

    def read(self) -> bool:
        """Take what is there; False once the listener hung up."""
        while True:
            try:
                data = self.socket.recv(1 << 20)
            except BlockingIOError:
                return True
            except ConnectionResetError:
                return False
            if not data:
                return False
            self.data += data

    def close(self) -> None:
        self.socket.close()


def settle(listener: Listener) -> None:
    while listener.step(0):
        pass


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path / "xs")
    yield made
    made.close()


def test_the_socket_is_the_owners_alone_and_goes_with_the_listener(tmp_path: Path) -> None:
    made = Listener(Xenstored(), tmp_path / "xs")
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    made.close()
    made.close()
    assert not made.path.exists()
    with pytest.raises(LocalProtocolError, match="closed"):
        made.step(0)


def test_requests_are_answered_in_order_also_in_one_piece(listener: Served) -> None:
    peer = Peer(listener)
    peer.socket.sendall(
        message(XS.WRITE, b"/a\x001") + message(XS.READ, b"/a\0") + message(XS.READ, b"/b\0")
    )
    settle(listener)
    assert [(op, payload) for op, _, _, payload in peer.messages()] == [
        (XS.WRITE, b"OK\0"),
        (XS.READ, b"1"),
        (XS.ERROR, b"ENOENT\0"),
    ]


def test_a_request_may_come_byte_by_byte(listener: Served) -> None:
    peer = Peer(listener)
    for byte in message(XS.WRITE, b"/slow\0value"):
        peer.socket.sendall(bytes((byte,)))
        settle(listener)
    assert peer.messages() == [(XS.WRITE, 0, 0, b"OK\0")]
    assert peer.call(XS.READ, b"/slow\0") == b"value"


def test_events_reach_every_other_client(listener: Served) -> None:
    peers = [Peer(listener) for _ in range(3)]
    for peer in peers:
        peer.call(XS.MKDIR, b"/a\0")
        peer.send(XS.WATCH, b"/a\0t\0")
    settle(listener)
    for peer in peers:
        assert [op for op, *_ in peer.messages()] == [XS.WATCH, XS.WATCH_EVENT]
    peers[0].send(XS.WRITE, b"/a/x\x001")
    settle(listener)
    seen = [[(op, payload) for op, _, _, payload in peer.messages()] for peer in peers]
    event = (XS.WATCH_EVENT, b"/a/x\0t\0")
    assert seen == [[event, (XS.WRITE, b"OK\0")], [event], [event]]


def test_a_client_that_dies_in_a_transaction_leaves_nothing(listener: Served) -> None:
    peer = Peer(listener)
    other = Peer(listener)
    tx = int(peer.call(XS.TRANSACTION_START, b"\0")[:-1])
    peer.call(XS.WRITE, b"/never\x001", tx_id=tx)
    peer.send(XS.WATCH, b"/a\0t\0")
    settle(listener)
    peer.close()
    settle(listener)
    assert len(listener.clients) == 1
    assert len(listener.server.connections) == 2  # the domain's own, and `other`
    assert not listener.server.watches.by_path
    assert other.call(XS.READ, b"/never\0") == b"ENOENT\0"


@pytest.mark.parametrize("length", [4097, 1 << 16, 0xFFFFFFFF])
def test_an_oversized_request_ends_its_own_client_only(listener: Served, length: int) -> None:
    bad, good = Peer(listener), Peer(listener)
    rest = b"/a\0".ljust(min(length, 1 << 16), b"x")
    bad.socket.sendall(message(XS.WRITE, b"")[:12] + length.to_bytes(4, "little") + rest)
    settle(listener)
    assert not bad.read()
    assert listener.dropped == 1
    assert good.call(XS.READ, b"/a\0") == b"ENOENT\0"
    assert good.call(XS.GET_DOMAIN_PATH, b"3\0") == b"/local/domain/3\0"


@pytest.mark.parametrize("ending", ["oversized", "shut down"])
@pytest.mark.parametrize("reads", [1, 3, 60])
def test_a_client_that_sends_no_more_gets_the_replies_it_has_coming(
    listener: Served, ending: str, reads: int
) -> None:
    peer, other = Peer(listener), Peer(listener)
    shrink_sockets(listener)  # 60 replies of 4,016 bytes are more than they hold
    other.call(XS.WRITE, b"/big\0" + b"v" * 4000)
    peer.send(XS.WATCH, b"/big\0t\0")
    tx = int(other.call(XS.TRANSACTION_START, b"\0")[:-1])
    settle(listener)
    peer.messages()
    requests = message(XS.TRANSACTION_START, b"\0") + reads * message(XS.READ, b"/big\0")
    if ending == "oversized":
        peer.socket.sendall(requests + message(XS.READ, b"/big\0")[:12] + b"\xff" * 4)
    else:
        peer.socket.sendall(requests)
        peer.socket.shutdown(socket.SHUT_WR)
    settle(listener)
    # Served no more: it hears of nothing, and holds no transaction open.
    assert other.call(XS.WRITE, b"/big\0" + b"w" * 4000) == b"OK\0"
    assert listener.server.credit.transactions == 1
    assert not listener.server.watches.by_path
    while peer.read():
        assert listener.step(0)
    start, *answers = peer.messages()
    assert start == (XS.TRANSACTION_START, 0, 0, b"1\0")
    assert answers == [(XS.READ, 0, 0, b"v" * 4000)] * reads
    assert len(listener.clients) == 1
    assert not listener.blocked
    assert listener.dropped == (ending == "oversized")
    assert other.call(XS.TRANSACTION_END, b"F\0", tx_id=tx) == b"OK\0"


def shrink_sockets(listener: Served) -> None:
    for client in listener.clients.values():
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)


def test_a_client_that_sends_no_more_and_does_not_read_goes_when_it_closes(
    listener: Served,
) -> None:
    peer, other = Peer(listener), Peer(listener)
    shrink_sockets(listener)
    other.call(XS.WRITE, b"/big\0" + b"v" * 4000)
    peer.socket.sendall(60 * message(XS.READ, b"/big\0"))
    peer.socket.shutdown(socket.SHUT_WR)
    settle(listener)
    assert len(listener.clients) == 2
    for _ in range(20):  # it is not looked at again and again
        assert listener.step(0) == 0
    peer.close()
    settle(listener)
    assert len(listener.clients) == 1
    assert len(listener.server.connections) == 2
    assert other.call(XS.READ, b"/tool\0") == b""


def test_what_was_sent_before_a_close_is_done(listener: Served) -> None:
    peer, other = Peer(listener), Peer(listener)
    peer.socket.sendall(b"".join(message(XS.MKDIR, b"/n%d\0" % number) for number in range(3)))
    peer.close()
    settle(listener)
    assert other.call(XS.DIRECTORY, b"/\0") == b"tool\0n0\0n1\0n2\0"


def test_the_largest_request_is_served(listener: Served) -> None:
    peer = Peer(listener)
    value = b"v" * (4096 - 3)
    assert peer.call(XS.WRITE, b"/a\0" + value) == b"OK\0"
    assert peer.call(XS.READ, b"/a\0") == value


def test_a_client_that_does_not_read_is_not_read_and_loses_nothing(listener: Served) -> None:
    peer = Peer(listener)
    peer.call(XS.WRITE, b"/big\0" + b"v" * 4000)
    sent = 0
    while True:
        try:
            peer.socket.send(message(XS.READ, b"/big\0"))
        except BlockingIOError:
            break
        sent += 1
        listener.step(0)
        assert sent < 100_000
    (client,) = listener.clients.values()
    # What one read brought may be answered in full: 16 KiB of requests of 22 bytes.
    assert client.conn.backlog <= listeners.UNREAD_MESSAGES_PAUSE + listeners.READ_BYTES // 22 + 1
    answers = 0
    while listener.step(0) or listener.blocked:
        peer.read()
        whole, peer.data = _whole_messages(peer.data)
        answers += whole
    peer.read()
    answers += _whole_messages(peer.data)[0]
    assert answers == sent
    assert listener.dropped == 0


def _whole_messages(data: bytes) -> tuple[int, bytes]:
    at = count = 0
    while len(data) - at >= 16:
        end = at + 16 + int.from_bytes(data[at + 12 : at + 16], "little")
        if end > len(data):
            break
        at, count = end, count + 1
    return count, data[at:]


def test_a_watcher_that_never_reads_is_sent_away_in_the_end(listener: Served) -> None:
    deaf, writer = Peer(listener), Peer(listener)
    deaf.send(XS.WATCH, b"/\0" + b"t" * 3000 + b"\0")
    settle(listener)
    for number in range(2 * listeners.UNREAD_MESSAGES_MAX):
        assert writer.call(XS.WRITE, b"/n%d\0" % number) == b"OK\0"
        if len(listener.clients) == 1:
            break
    assert number > listeners.UNREAD_MESSAGES_MAX
    assert listener.dropped == 1
    assert len(listener.server.connections) == 2


def test_more_clients_than_allowed_wait_until_one_leaves(tmp_path: Path) -> None:
    listener = Served(tmp_path / "xs", clients_max=2)
    first, second, third = (Peer(listener) for _ in range(3))
    third.send(XS.READ, b"/\0")
    settle(listener)
    assert third.messages() == []
    first.close()
    settle(listener)
    assert third.messages() == [(XS.READ, 0, 0, b"")]
    assert second.call(XS.READ, b"/\0") == b""
    listener.close()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "xs"
    stale = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stale.bind(os.fspath(path))
    stale.close()
    listener = Served(path)
    assert Peer(listener).call(XS.READ, b"/\0") == b""
    listener.close()


def test_a_store_that_is_served_is_left_alone(listener: Served) -> None:
    with pytest.raises(ConfigError, match="served there already"):
        Listener(Xenstored(), listener.path)
    settle(listener)
    assert Peer(listener).call(XS.READ, b"/\0") == b""


def test_a_server_that_is_about_to_listen_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It holds the folder's lock while it has bound its socket and does not listen yet.
    path = tmp_path / "xs"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as starting:
        starting.bind(os.fspath(path))

        def wait(folder: int, how: int) -> None:
            assert os.path.samestat(os.fstat(folder), tmp_path.stat())
            assert how == fcntl.LOCK_EX
            starting.listen(1)

        monkeypatch.setattr(unixsocket.fcntl, "flock", wait)
        with pytest.raises(ConfigError, match="served there already"):
            Listener(Xenstored(), path)
    assert path.is_socket()


def test_so_is_one_whose_queue_of_clients_is_full(tmp_path: Path) -> None:
    path = tmp_path / "xs"
    with ExitStack() as stack:
        busy, *clients = (
            stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) for _ in range(4)
        )
        busy.bind(os.fspath(path))
        busy.listen(0)
        for client in clients:
            client.setblocking(False)
            if client.connect_ex(os.fspath(path)):
                break
        else:
            raise AssertionError("its queue has no end")
        with pytest.raises(ConfigError, match="served there already"):
            Listener(Xenstored(), path)
    assert path.is_socket()


@pytest.mark.parametrize("kind", ["file", "folder", "long", "nowhere"])
def test_a_path_that_cannot_be_used_is_said(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    wanted = "no socket"
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    elif kind == "long":
        path, wanted = tmp_path / ("x" * 108), "at most 107 bytes"
    else:
        path, wanted = tmp_path / "none" / "x", "cannot be made: No such file"
    with pytest.raises(ConfigError, match=wanted):
        Listener(Xenstored(), path)
    if kind == "file":
        assert path.read_text() == "mine"


def test_a_socket_put_in_its_place_is_not_removed(listener: Served) -> None:
    listener.path.unlink()
    listener.path.write_text("mine")
    listener.close()
    assert listener.path.read_text() == "mine"


def test_nudge_ends_a_wait(listener: Served) -> None:
    for _ in range(100_000):  # also when its pipe is full
        listener.nudge()
    assert listener.step() == 1
    settle(listener)


@settings(max_examples=60, deadline=None)
@given(
    junk=st.lists(st.binary(max_size=200), max_size=20),
    cuts=st.lists(st.integers(1, 40), max_size=20),
)
def test_random_bytes_hurt_nobody_else(
    junk: list[bytes], cuts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    listener = Served(tmp_path_factory.mktemp("xs") / "xs")
    bad, good = Peer(listener), Peer(listener)
    data = b"".join(junk)
    try:
        for cut in [*cuts, len(data)]:
            bad.socket.sendall(data[:cut])
            data = data[cut:]
            settle(listener)
            assert good.call(XS.READ, b"/tool\0") == b""
    except (BrokenPipeError, ConnectionResetError):
        assert listener.dropped == 1
    bad.close()
    settle(listener)
    assert len(listener.server.connections) == 2
    listener.close()
