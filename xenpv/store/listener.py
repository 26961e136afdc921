"""xenstored's Unix socket: many clients, one thread, one epoll.

All I/O of a store that real programs use is here; what a request means is `store.connection`.
A wake-up costs one recv and, with replies, one send: xenstored itself needs seven calls.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from pathlib import Path
from typing import Final

from xenpv.errors import LocalProtocolError
from xenpv.store.connection import Connection
from xenpv.store.server import Xenstored
from xenpv.store.unixsocket import listening

READ_BYTES: Final = 4_128  # one request of any size
SEND_BYTES: Final = 65_536
CLIENTS_MAX: Final = 1_000
# A client that does not read is not read either; C xenstored would buffer without bound.
UNREAD_MESSAGES_PAUSE: Final = 64
# Events of others still reach it: at 4,112 bytes each this is 16 MiB, and then it has to go.
UNREAD_MESSAGES_MAX: Final = 4_096
BACKLOG: Final = 128
EVENTS_MAX: Final = 64  # of one wake-up, and requests of a client that has it for itself

_EPOLLIN: Final = select.EPOLLIN
_EPOLLOUT: Final = select.EPOLLOUT
_NO_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE)


class SocketClient:
    """One connected client: its socket, its connection, and what epoll waits for.

    `ended`: it sends nothing more, or may not; it goes when it has its replies.
    """

    __slots__ = (
        "conn", "descriptor", "ended", "listener", "mask", "recv", "send", "serve", "socket",
        "woken",
    )  # fmt: skip

    def __init__(self, listener: Listener, sock: socket.socket, conn: Connection) -> None:
        self.listener = listener
        self.socket = sock
        self.descriptor = sock.fileno()
        self.conn = conn
        self.mask = _EPOLLIN
        self.ended = False
        self.woken = False
        self.recv = sock.recv
        self.send = sock.send
        self.serve = conn.serve
        conn.on_event = self

    def wake(self) -> None:
        """Events for an idle client: they are sent when the present batch is done."""
        if not self.woken:
            self.woken = True
            self.listener.woken.append(self)


class Listener:
    """Serves `server` on the socket `path`, which is made with mode 0600.

    A socket file that nobody answers on is replaced. Raises ConfigError where the path
    cannot be used: a store runs there, or it is no socket.
    """

    def __init__(self, server: Xenstored, path: Path, *, clients_max: int = CLIENTS_MAX) -> None:
        self.server = server
        self.path = path
        self.clients_max = clients_max
        self.clients: dict[int, SocketClient] = {}
        self.woken: list[SocketClient] = []
        self.blocked: dict[int, SocketClient] = {}  # those whose socket is full, by descriptor
        self.served = 0  # clients ever accepted
        self.dropped = 0  # clients that were sent away: broke the protocol, or did not read
        self._misses = 0
        self._patience = 0
        self._closing = False
        self._accepting = False
        self._socket = listening(path, backlog=BACKLOG, taken="a store is served there already")
        self._inode = path.lstat().st_ino
        self._epoll = select.epoll()
        self._nudge_reader, self._nudge_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._epoll.register(self._nudge_reader, _EPOLLIN)
        self._accept_more()

    def step(self, timeout_s: float | None = None) -> int:
        """Wait for something to happen, at most `timeout_s`, and serve it; events handled."""
        if self._socket.fileno() < 0:
            raise LocalProtocolError("this listener is closed")
        happened = self._epoll.poll(timeout_s, EVENTS_MAX)
        clients = self.clients
        for descriptor, what in happened:
            client = clients.get(descriptor)
            if client is None:
                self._other(descriptor)
            elif what & _EPOLLIN:
                if self._read(client) and len(happened) == 1:
                    self._read_on(client)
            elif what & _EPOLLOUT:
                self._write(client)
            else:  # it hung up with nothing left to read
                self._hang_up(client)
        while self.woken:
            self._flush_woken()
        if self.blocked:
            self._judge_blocked()
        return len(happened)

    def nudge(self) -> None:
        """End a `step` that waits; for signal handlers, which do nothing else."""
        try:
            os.write(self._nudge_writer, b"\0")
        except BlockingIOError:
            return  # a full pipe wakes it as well

    def close(self) -> None:
        """Hang up on every client and remove the socket; a second call does nothing."""
        if self._socket.fileno() < 0:
            return
        self._closing = True
        for client in list(self.clients.values()):
            self._hang_up(client)
        self._socket.close()
        self._epoll.close()
        os.close(self._nudge_reader)
        os.close(self._nudge_writer)
        try:
            # Not if somebody put another socket in its place meanwhile.
            if self.path.lstat().st_ino == self._inode:
                self.path.unlink()
        except FileNotFoundError:
            return

    # clients

    def _other(self, descriptor: int) -> None:
        if descriptor == self._socket.fileno():
            self._accept()
        elif descriptor == self._nudge_reader:
            os.read(self._nudge_reader, READ_BYTES)

    def _accept_more(self) -> None:
        if not self._accepting:
            self._epoll.register(self._socket.fileno(), _EPOLLIN)
            self._accepting = True

    def _accept_no_more(self) -> None:
        """Until a client leaves; those that knock wait in the kernel's queue."""
        self._epoll.unregister(self._socket.fileno())
        self._accepting = False

    def _accept(self) -> None:
        while True:
            if len(self.clients) >= self.clients_max:
                self._accept_no_more()
                return
            try:
                sock, _ = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_DESCRIPTORS and self.clients:
                    self._accept_no_more()
                return  # or the client was gone before it was accepted
            sock.setblocking(False)
            self.served += 1
            conn = self.server.connect_socket(f"socket {self.served}")
            client = SocketClient(self, sock, conn)
            self.clients[client.descriptor] = client
            self._epoll.register(client.descriptor, _EPOLLIN)

    def _read(self, client: SocketClient) -> bool:
        """Serve what one recv brings; was it a request that is answered in full by now?"""
        try:
            data = client.recv(READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            self._hang_up(client)
            return False
        if not data:
            self._end(client)
            return False
        conn = client.conn
        answer = client.serve(data)
        if answer:
            try:
                done = client.send(answer)
            except BlockingIOError:
                done = 0
            except OSError:
                self._hang_up(client)
                return False
            if done == len(answer):
                return True
            conn.unsent(answer, done)
            self._block(client)
        elif conn.fatal is not None:
            self._end(client)
        elif conn.wants_output:
            self._write(client)
        return False

    def _end(self, client: SocketClient) -> None:
        """Nothing more is read of it: it shut its side down, or broke the protocol.

        It gets the replies that it has not read yet, as it would have from an xenstored that
        reads and writes a message at a time.
        """
        client.ended = True
        client.conn.finish()
        self._write(client)

    def _read_on(self, client: SocketClient) -> None:
        """Look for the next request without epoll.

        A client on the same core often runs as soon as it has its answer, before our send
        returns: three times of four the next request is there. Where it is not, on another
        core say, this looks less and less often.
        """
        if self._patience:
            self._patience -= 1
            return
        for _ in range(EVENTS_MAX):
            if self.woken or not self._read(client):
                break
            self._misses = 0
        self._misses = min(self._misses * 2 + 1, EVENTS_MAX)
        self._patience = self._misses >> 2

    def _write(self, client: SocketClient) -> None:
        conn = client.conn
        send = client.socket.send
        while conn.wants_output:
            data = conn.peek_output(SEND_BYTES)
            try:
                done = send(data)
            except BlockingIOError:
                self._block(client)
                return
            except OSError:
                self._hang_up(client)
                return
            conn.sent(done)
        if client.ended:
            self.dropped += conn.fatal is not None
            self._hang_up(client)
        elif client.mask != _EPOLLIN:
            self.blocked.pop(client.descriptor, None)
            self._wait_for(client, _EPOLLIN)

    def _block(self, client: SocketClient) -> None:
        reads = not client.ended and client.conn.backlog < UNREAD_MESSAGES_PAUSE
        reading = _EPOLLIN if reads else 0
        self._wait_for(client, _EPOLLOUT | reading)
        self.blocked[client.descriptor] = client

    def _judge_blocked(self) -> None:
        for client in list(self.blocked.values()):
            if client.conn.backlog > UNREAD_MESSAGES_MAX:
                self._send_away(client)

    def _wait_for(self, client: SocketClient, mask: int) -> None:
        if client.mask != mask:
            client.mask = mask
            self._epoll.modify(client.descriptor, mask)

    def _flush_woken(self) -> None:
        woken, self.woken = self.woken, []
        for client in woken:
            client.woken = False
            if client.descriptor in self.clients:
                self._write(client)

    def _send_away(self, client: SocketClient) -> None:
        self.dropped += 1
        self._hang_up(client)

    def _hang_up(self, client: SocketClient) -> None:
        if self.clients.pop(client.descriptor, None) is None:
            return
        self.blocked.pop(client.descriptor, None)
        self._epoll.unregister(client.descriptor)
        client.socket.close()
        self.server.disconnect(client.conn)
        if not self._closing:
            self._accept_more()
