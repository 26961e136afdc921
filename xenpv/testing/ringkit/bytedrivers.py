"""Honest ends of a byte ring to build a driver on: `received` hears of bytes, `send` writes some.

Bytes that find no room wait in private memory until the other end has read, at most WAITING_MAX of
them. Messages are the driver's matter: bytes come in whatever pieces the ring had.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from xenpv.errors import PeerProtocolError
from xenpv.testing.ends.handshake import ConnectingBackend, ConnectingFrontend
from xenpv.testing.ringkit.bytering import ByteBack, ByteFront

if TYPE_CHECKING:
    from xenpv.testing.ends import End
    from xenpv.testing.ringkit.bytering import ByteRingProtocol

WAITING_MAX: Final = 1 << 20
ORDER: Final = 1


class _Stream:
    """Both directions of one connected ring, for either end."""

    def __init__(self, end: End, port: int, ring: ByteFront | ByteBack) -> None:
        self.end = end
        self.port = port
        self.ring = ring
        self.waiting = bytearray()

    def send(self, data: bytes) -> None:
        """Behind what waits. PeerProtocolError: the other end has not read for too long."""
        if len(self.waiting) + len(data) > WAITING_MAX:
            raise PeerProtocolError(f"{len(self.waiting)} bytes wait for a peer that does not read")
        self.waiting += data
        self.flush()

    def flush(self) -> None:
        """Write what there is room for, and tell the other end."""
        done = self.ring.outgoing.write(self.waiting) if self.waiting else 0
        if done:
            del self.waiting[:done]
            self.end.notify(self.port)

    def read(self) -> bytes:
        """What there is; the other end is told that there is room."""
        data = self.ring.incoming.read()
        if data:
            self.end.notify(self.port)
        return data


class ByteBackend(ConnectingBackend):
    """A backend of one byte ring."""

    protocol: ClassVar[ByteRingProtocol]

    def __init__(self, end: End) -> None:
        super().__init__(end)
        self.pfns: list[int] = []
        self.stream: _Stream | None = None

    def probe(self) -> None:
        self.end.write_keys(dict(self.protocol.back_keys))
        super().probe()

    def connect(self) -> None:
        """Map the interface and what it names, bind the port."""
        end, protocol = self.end, self.protocol
        interface = self._map(end.peer_number(f"{protocol.ring_ref}0"))
        ring = ByteBack(protocol, end, interface, self._map)
        port = end.bind_port(end.peer_number(f"{protocol.event_channel}0"), self.event)
        self.stream = _Stream(end, port, ring)

    def _map(self, ref: int) -> int:
        self.pfns.append(self.end.map(ref))
        return self.pfns[-1]

    def disconnect(self) -> None:
        """Undo it, or the part of it that was done."""
        stream, pfns = self.stream, self.pfns
        self.stream, self.pfns = None, []
        if stream is not None:
            self.end.close_port(stream.port)
        for pfn in pfns:
            self.end.unmap(pfn)

    def event(self) -> None:
        """Read until nothing is there; then write what waited for room."""
        while self.stream is not None:
            data = self.stream.read()
            if not data:
                self.stream.flush()
                return
            self.received(data)

    def received(self, data: bytes) -> None:
        """Some bytes came."""
        raise NotImplementedError(f"{type(self).__name__} has no received()")

    def send(self, data: bytes) -> None:
        """Write them now, or when there is room. Nothing is sent while it is not connected."""
        if self.stream is not None:
            self.stream.send(data)


class ByteFrontend(ConnectingFrontend):
    """A frontend of one byte ring of `1 << order` data pages."""

    protocol: ClassVar[ByteRingProtocol]
    order: ClassVar[int] = ORDER

    def __init__(self, end: End) -> None:
        super().__init__(end)
        self.shared: list[tuple[int, int]] = []  # pfn and reference: the interface, then the data
        self.stream: _Stream | None = None

    def connect(self) -> None:
        """Pages of its own, a port, and the keys that name them."""
        end, protocol = self.end, self.protocol
        self.shared = [end.share() for _ in range(1 + (1 << self.order))]
        (interface, ref), data = self.shared[0], self.shared[1:]
        ring = ByteFront(
            protocol, end, interface, [pfn for pfn, _ in data], [one for _, one in data]
        )
        port = end.open_port(self.event)
        self.stream = _Stream(end, port, ring)
        keys = {**dict(protocol.front_keys), f"{protocol.ring_ref}0": str(ref)}
        end.write_keys({**keys, f"{protocol.event_channel}0": str(port)})

    def disconnect(self) -> None:
        """Take the pages back; what the backend still has mapped is set aside."""
        stream, shared = self.stream, self.shared
        self.stream, self.shared = None, []
        if stream is not None:
            self.end.close_port(stream.port)
        for pfn, ref in shared:
            self.end.unshare(pfn, ref)

    def event(self) -> None:
        """Read until nothing is there; then write what waited for room."""
        while self.stream is not None:
            data = self.stream.read()
            if not data:
                self.stream.flush()
                return
            self.received(data)

    def received(self, data: bytes) -> None:
        """Some bytes came."""
        raise NotImplementedError(f"{type(self).__name__} has no received()")

    def send(self, data: bytes) -> None:
        """Write them now, or when there is room. Nothing is sent while it is not connected."""
        if self.stream is not None:
            self.stream.send(data)
