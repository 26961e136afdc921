"""Clients of our store over wire bytes, and a platform of domains that merely exist.

Not a test module.
"""

from __future__ import annotations

from typing import Protocol

from xenpv.abi.xs import XS
from xenpv.errors import StoreError
from xenpv.store.connection import Connection
from xenpv.store.profile import C, Profile
from xenpv.store.server import Xenstored
from xenpv.store.wire import HEADER

Message = tuple[int, int, int, bytes]  # type, req_id, tx_id, payload


class Platform:
    """DomainControl over a set of domids; `connections` are those that INTRODUCE made."""

    def __init__(self, domids: set[int]) -> None:
        self.domids = domids
        self.ids = dict.fromkeys(sorted(domids), 1)
        self.connections: dict[int, Connection] = {}
        self.unmapped: list[int] = []
        self.server: Xenstored | None = None

    def exists(self, domid: int) -> bool:
        return domid in self.domids

    def unique_id(self, domid: int) -> int:
        return self.ids.get(domid, 0)

    def map_ring(self, domid: int, gfn: int, port: int) -> None:
        del gfn, port
        if domid not in self.domids:
            raise StoreError("EINVAL", f"no domain {domid}")
        assert self.server is not None
        self.connections[domid] = self.server.introduce(domid, self.ids[domid])

    def unmap_ring(self, domid: int) -> None:
        self.unmapped.append(domid)


class Client(Protocol):
    def call(self, op: int, payload: bytes, tx_id: int = 0) -> bytes: ...


class WireClient:
    """Requests as bytes, answers as messages."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def send(self, op: int, payload: bytes, *, tx_id: int = 0, req_id: int = 0) -> None:
        self.connection.feed(message(op, payload, tx_id=tx_id, req_id=req_id))

    def messages(self) -> list[Message]:
        """All that waits to be sent, taken."""
        data = b""
        while chunk := self.connection.take_output(1 << 20):
            data += chunk
        return split(data)

    def events(self) -> list[tuple[bytes, bytes]]:
        """(path, token) of the events that wait, and nothing else waits."""
        found = []
        for op, _, _, payload in self.messages():
            assert op == XS.WATCH_EVENT
            path, token, _ = payload.split(b"\0")
            found.append((path, token))
        return found

    def call(self, op: int, payload: bytes, tx_id: int = 0) -> bytes:
        """The payload of the one message that answers. Raises StoreError if it is an ERROR."""
        self.send(op, payload, tx_id=tx_id)
        ((kind, _, _, reply),) = self.messages()
        if kind == XS.ERROR:
            raise StoreError(reply[:-1].decode())
        return reply


def message(op: int, payload: bytes, *, tx_id: int = 0, req_id: int = 0) -> bytes:
    return HEADER.pack(op, req_id, tx_id, len(payload)) + payload


def split(data: bytes) -> list[Message]:
    found = []
    while data:
        op, req_id, tx_id, length = HEADER.unpack_from(data)
        end = HEADER.size + length
        assert len(data) >= end, "a whole message"
        found.append((op, req_id, tx_id, data[HEADER.size : end]))
        data = data[end:]
    return found


def answer(client: Client, op: int, payload: bytes, tx_id: int = 0) -> bytes | str:
    """The reply's payload, or the name of the error."""
    try:
        return client.call(op, payload, tx_id)
    except StoreError as error:
        return error.name


def start(client: Client) -> int:
    """Opens a transaction: its id."""
    return int(client.call(XS.TRANSACTION_START, b"\0")[:-1])


def end(client: Client, tx_id: int, how: bytes = b"T") -> bytes | str:
    return answer(client, XS.TRANSACTION_END, how + b"\0", tx_id)


class Store:
    """A server whose platform has domains 1 to 5, a client of dom0, and guests on demand."""

    def __init__(self, profile: Profile = C) -> None:
        self.platform = Platform({1, 2, 3, 4, 5})
        self.server = Xenstored(domains=self.platform, profile=profile)
        self.platform.server = self.server
        self.dom0 = self.server.connect_local("dom0")

    def introduce(self, domid: int) -> WireClient:
        self.dom0.call(XS.INTRODUCE, b"%d\x001\x002\0" % domid)
        return WireClient(self.platform.connections[domid])

    def guest(self, domid: int, perms: bytes | None = None) -> WireClient:
        """An introduced domain with a home; by default it owns it."""
        home = b"/local/domain/%d\0" % domid
        self.dom0.call(XS.MKDIR, home)
        self.set_perms(home[:-1], perms or b"n%d" % domid)
        return self.introduce(domid)

    def write(self, path: bytes, value: bytes = b"") -> None:
        self.dom0.call(XS.WRITE, path + b"\0" + value)

    def set_perms(self, path: bytes, *perms: bytes) -> None:
        self.dom0.call(XS.SET_PERMS, b"".join(text + b"\0" for text in (path, *perms)))

    def read(self, path: bytes) -> bytes | str:
        return answer(self.dom0, XS.READ, path + b"\0")

    def events(self) -> list[tuple[bytes, bytes]]:
        """What dom0 has heard since it was last asked."""
        found = list(self.dom0.events)
        self.dom0.events.clear()
        return found
