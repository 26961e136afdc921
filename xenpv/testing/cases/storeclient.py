"""A client of some xenstored that knows nothing but the wire protocol (xen-core 1.1, 1.9).

Results are text: the payload of the reply, or the name of the error. A stream is a socket, or
the guest's end of a ring page.
"""

from __future__ import annotations

from typing import Final, Protocol

from xenpv.abi.xs import XS
from xenpv.store.wire import HEADER
from xenpv.testing.cases.claims import Wrong

RING_BYTES: Final = 1024
# struct xenstore_domain_interface, io/xs_wire.h.
REQ, RSP = 0, 1024
REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD = 2048, 2052, 2056, 2060
SERVER_FEATURES, CONNECTION, ERROR = 2064, 2068, 2072
RECV_BYTES: Final = 65_536

Message = tuple[int, int, int, bytes]  # type, req_id, tx_id, payload


class Stream(Protocol):
    """Bytes to and from the server, as socket.socket has them."""

    def sendall(self, data: bytes, /) -> None:
        """All of it."""

    def recv(self, size: int, /) -> bytes:
        """What is there, b"" if the server hung up. TimeoutError: nothing comes."""

    def close(self) -> None:
        """Hang up."""


class RingPage(Protocol):
    """A guest's store page and its event channel. `gfn` and `port` are what INTRODUCE says."""

    gfn: int
    port: int

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the page."""

    def write(self, offset: int, data: bytes) -> None:
        """Overwrite some."""

    def notify(self) -> None:
        """EVTCHNOP_send to the server."""

    def wait(self) -> None:
        """Until the server may have done something. TimeoutError: it does nothing more."""


class RingStream:
    """The guest's end of the ring in a page."""

    def __init__(self, page: RingPage) -> None:
        self.page = page

    def index(self, offset: int) -> int:
        return int.from_bytes(self.page.read(offset, 4), "little")

    def publish(self, offset: int, value: int) -> None:
        self.page.write(offset, (value & 0xFFFFFFFF).to_bytes(4, "little"))
        self.page.notify()

    def sendall(self, data: bytes) -> None:
        """TimeoutError: the server does not read on."""
        while data:
            prod = self.index(REQ_PROD)
            room = RING_BYTES - (prod - self.index(REQ_CONS) & 0xFFFFFFFF)
            at = prod % RING_BYTES
            chunk = data[: max(0, min(room, RING_BYTES - at))]
            if not chunk:
                self.page.wait()
                continue
            self.page.write(REQ + at, chunk)
            self.publish(REQ_PROD, prod + len(chunk))
            data = data[len(chunk) :]

    def recv(self, size: int) -> bytes:
        """TimeoutError: nothing comes."""
        cons = self.index(RSP_CONS)
        while (count := self.index(RSP_PROD) - cons & 0xFFFFFFFF) == 0:
            self.page.wait()
        at = cons % RING_BYTES
        data = self.page.read(RSP + at, min(count, RING_BYTES - at, size))
        self.publish(RSP_CONS, cons + len(data))
        return data

    def close(self) -> None:
        """A ring has no end; the domain has."""


class Client:
    """One connection. `events` are the (path, token) that came, oldest first."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.events: list[tuple[str, str]] = []
        self._buffer = b""

    # messages

    def send(self, op: int, payload: bytes, *, tx: int = 0, req_id: int = 0) -> None:
        self.stream.sendall(HEADER.pack(op, req_id, tx, len(payload)) + payload)

    def receive(self) -> Message:
        """The next message, an event included. Wrong: the server hung up, or says nothing."""
        while True:
            if len(self._buffer) >= HEADER.size:
                op, req_id, tx, length = HEADER.unpack_from(self._buffer)
                end = HEADER.size + length
                if len(self._buffer) >= end:
                    payload, self._buffer = self._buffer[HEADER.size : end], self._buffer[end:]
                    return op, req_id, tx, payload
            try:
                data = self.stream.recv(RECV_BYTES)
            except TimeoutError:
                raise Wrong("the server answers nothing") from None
            if not data:
                raise Wrong("the server hung up")
            self._buffer += data

    def reply(self) -> Message:
        """The next message that is no event."""
        while True:
            message = self.receive()
            if message[0] != XS.WATCH_EVENT:
                return message
            self._note(message)

    def _note(self, message: Message) -> None:
        _, req_id, tx, payload = message
        strings = payload.split(b"\0")
        if req_id or tx or len(strings) != 3 or strings[2]:
            raise Wrong(f"no event is made like this: {message!r}")
        self.events.append((strings[0].decode("latin-1"), strings[1].decode("latin-1")))

    def ask(self, op: int, payload: str, tx: int = 0) -> str:
        """A request: its reply as text without the last NUL, or the error's name."""
        self.send(op, payload.encode("latin-1"), tx=tx)
        kind, _, _, data = self.reply()
        if kind not in (op, XS.ERROR):
            raise Wrong(f"a request of type {op} is answered with type {kind}")
        return data.decode("latin-1").removesuffix("\0")

    def answer_to(self, op: int, payload: bytes, tx: int = 0) -> str:
        """As `ask`, of bytes and of any type, also one that is answered with ERROR alone."""
        self.send(op, payload, tx=tx)
        return self.reply()[3].decode("latin-1").removesuffix("\0")

    def heard(self) -> list[str]:
        """What has come since it was last asked, as "path token"; a round trip sweeps it up."""
        self.ask(XS.GET_DOMAIN_PATH, "0\0")
        found = [f"{path} {token}" for path, token in self.events]
        self.events.clear()
        return found

    def hung_up(self) -> bool:
        """Whether the server closed the connection, and sent nothing more than it owed."""
        try:
            while self.stream.recv(RECV_BYTES):
                pass
        except TimeoutError:
            return False
        except ConnectionError:
            return True
        return True

    # requests by name

    def read(self, path: str, tx: int = 0) -> str:
        return self.ask(XS.READ, f"{path}\0", tx)

    def write(self, path: str, value: str = "", tx: int = 0) -> str:
        return self.ask(XS.WRITE, f"{path}\0{value}", tx)

    def mkdir(self, path: str, tx: int = 0) -> str:
        return self.ask(XS.MKDIR, f"{path}\0", tx)

    def rm(self, path: str, tx: int = 0) -> str:
        return self.ask(XS.RM, f"{path}\0", tx)

    def ls(self, path: str, tx: int = 0) -> str:
        """The children's names with blanks between."""
        return self.ask(XS.DIRECTORY, f"{path}\0", tx).replace("\0", " ")

    def perms(self, path: str, tx: int = 0) -> str:
        return self.ask(XS.GET_PERMS, f"{path}\0", tx).replace("\0", " ")

    def chmod(self, path: str, *perms: str, tx: int = 0) -> str:
        return self.ask(XS.SET_PERMS, "".join(f"{one}\0" for one in (path, *perms)), tx)

    def watch(self, path: str, token: str, *rest: str) -> str:
        return self.ask(XS.WATCH, "".join(f"{one}\0" for one in (path, token, *rest)))

    def unwatch(self, path: str, token: str) -> str:
        return self.ask(XS.UNWATCH, f"{path}\0{token}\0")

    def start(self) -> int:
        """The id of a new transaction. Wrong if it is refused."""
        text = self.ask(XS.TRANSACTION_START, "\0")
        if not text.isdigit():
            raise Wrong(f"no transaction is started: {text}")
        return int(text)

    def end(self, tx: int, how: str = "T") -> str:
        return self.ask(XS.TRANSACTION_END, f"{how}\0", tx)

    def close(self) -> None:
        self.stream.close()
