"""A client of our store over wire bytes, and a platform of domains that merely exist.

Not a test module.
"""

from __future__ import annotations

from xenpv.errors import StoreError
from xenpv.store.connection import Connection
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


class WireClient:
    """Requests as bytes, answers as messages."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def send(self, op: int, payload: bytes, *, tx_id: int = 0, req_id: int = 0) -> None:
        self.connection.feed(HEADER.pack(op, req_id, tx_id, len(payload)) + payload)

    def messages(self) -> list[Message]:
        """All that waits to be sent, taken."""
        data = b""
        while chunk := self.connection.take_output(1 << 20):
            data += chunk
        found = []
        while data:
            op, req_id, tx_id, length = HEADER.unpack_from(data)
            found.append((op, req_id, tx_id, data[HEADER.size : HEADER.size + length]))
            data = data[HEADER.size + length :]
        return found

    def call(self, op: int, payload: bytes, *, tx_id: int = 0) -> bytes:
        """The payload of the one answer; events before it are an error of the test."""
        self.send(op, payload, tx_id=tx_id)
        (message,) = self.messages()
        return message[3]
