# ruff: noqa: INP001 - a script, in no package
"""9p's version handshake over the byte rings of io/9pfs.h, with both ends in Python.

python examples/own_9pfs.py

A frontend says Tversion, the backend answers Rversion; what else is asked it refuses (Rlerror).
"""

from __future__ import annotations

from collections.abc import Iterator
from errno import EOPNOTSUPP
from struct import Struct

from xenpv.errors import PeerProtocolError
from xenpv.testing import End
from xenpv.testing.ringkit import ByteBackend, ByteFrontend, ring_world
from xenpv.testing.ringkit.headers import NINEPFS

HEADER = Struct("<IBH")  # size of the whole, type, tag
VERSION = Struct("<IH")  # msize, length of the text behind it
RLERROR, TVERSION, RVERSION = 7, 100, 101
NOTAG = 0xFFFF
MSIZE = 8192
SPOKEN = (b"9P2000.L", b"9P2000.u", b"9P2000")


def message(kind: int, tag: int, body: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, tag) + body


def version(kind: int, msize: int, text: bytes) -> bytes:
    return message(kind, NOTAG, VERSION.pack(msize, len(text)) + text)


class Messages:
    """Whole messages out of bytes that come in pieces; a size that cannot be breaks the device."""

    def __init__(self) -> None:
        self.bytes = bytearray()

    def take(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        self.bytes += data
        while len(self.bytes) >= HEADER.size:
            size, kind, tag = HEADER.unpack_from(self.bytes)
            if not HEADER.size <= size <= MSIZE:
                raise PeerProtocolError(f"a message of {size} bytes, at most {MSIZE}")
            if len(self.bytes) < size:
                return
            body = bytes(self.bytes[HEADER.size : size])
            del self.bytes[:size]
            yield kind, tag, body


class Server(ByteBackend):
    """It speaks of versions alone."""

    protocol = NINEPFS

    def __init__(self, end: End) -> None:
        super().__init__(end)
        self.messages = Messages()

    def disconnect(self) -> None:
        super().disconnect()
        self.messages = Messages()

    def received(self, data: bytes) -> None:
        for kind, tag, body in self.messages.take(data):
            if kind == TVERSION:
                self.send(self.answer(body))
            else:
                self.send(message(RLERROR, tag, EOPNOTSUPP.to_bytes(4, "little")))

    def answer(self, body: bytes) -> bytes:
        if len(body) < VERSION.size:
            raise PeerProtocolError(f"Tversion with {len(body)} bytes")
        msize, length = VERSION.unpack_from(body)
        asked = body[VERSION.size : VERSION.size + length]
        if len(asked) < length:
            raise PeerProtocolError(f"Tversion with a text of {length} bytes, and {len(asked)}")
        text = next((one for one in SPOKEN if asked == one), b"unknown")
        return version(RVERSION, min(msize, MSIZE), text)


class Client(ByteFrontend):
    """`heard` are the messages that came: type, tag, body."""

    protocol = NINEPFS

    def __init__(self, end: End) -> None:
        super().__init__(end)
        self.messages = Messages()
        self.heard: list[tuple[int, int, bytes]] = []

    def disconnect(self) -> None:
        super().disconnect()
        self.messages = Messages()

    def received(self, data: bytes) -> None:
        self.heard += self.messages.take(data)


if __name__ == "__main__":
    with ring_world(NINEPFS, Client, Server, seed=7) as world:
        world.call("send", version(TVERSION, 1 << 20, b"9P2000.L"))
        world.run()
        ((kind, _tag, body),) = world.frontend.heard
        msize, _length = VERSION.unpack_from(body)
        print(f"type {kind}, msize {msize}, {body[VERSION.size :].decode()}")
