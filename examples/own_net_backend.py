# ruff: noqa: INP001 - a script, in no package
"""A network backend of your own in the place of xenpv's, and the kit's cases against it.

python examples/own_net_backend.py
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from struct import Struct

from xenpv.abi.xenbus import XenbusState
from xenpv.errors import GrantError, PeerProtocolError
from xenpv.host.network import Frame
from xenpv.host.offload import to_wire
from xenpv.testing import ConnectingBackend, End, EndPort, check_net_backend, user_net_backend

TX = Struct("<IHHHH")  # io/netif.h: gref, offset, flags, id, size
TX_RESPONSE = Struct("<Hh")
RX = Struct("<HxxI")  # id, gref
RX_RESPONSE = Struct("<HHHh")  # id, offset, flags, status
BLANK, VALID, MORE, EXTRA = 1, 2, 4, 8  # NETTXF_*
OKAY, NULL, ERROR, SLOTS_MAX, BACKLOG, OLD_NS = 0, 1, -1, 18, 64, 10**10


class Backend(ConnectingBackend):
    """One queue, scatter-gather, no segmentation: packets are copied both ways."""

    ready = (XenbusState.CONNECTED,)
    features = {"feature-sg": "1", "feature-rx-copy": "1"}  # noqa: RUF012 - it is only read

    def __init__(self, end: End, port: EndPort) -> None:
        super().__init__(end)
        self.bridge = port
        self.pages: list[int] = []
        self.port = 0

    def connect(self) -> None:
        end = self.end
        if not end.peer_number("request-rx-copy"):
            raise PeerProtocolError("the frontend wants its pages flipped")
        for name in ("tx-ring-ref", "rx-ring-ref"):
            self.pages.append(end.map(end.peer_number(name)))
        self.tx = end.back_ring(self.pages[:1], 12, 4)
        self.rx = end.back_ring(self.pages[1:], 8, 8)
        self.size_max = 65535 if end.peer_number("feature-sg") else 4096
        self.posted: deque[tuple[int, int]] = deque()
        self.backlog: deque[tuple[int, bytes]] = deque(maxlen=BACKLOG)  # when, what
        self.port = end.bind_port(end.peer_number("event-channel"), self.event)

    def disconnect(self) -> None:
        port, self.port = self.port, 0
        if port:
            self.end.close_port(port)
        while self.pages:
            self.end.unmap(self.pages.pop())

    def event(self) -> None:
        while True:
            _, raw = self.tx.take()
            slots = deque(bytes(raw[at : at + 12]) for at in range(0, len(raw), 12))
            while slots:
                self.packet(slots)
            if not self.tx.final_check():
                break
        self.pour()

    def packet(self, slots: deque[bytes]) -> None:
        """One packet off the front, as it is answered."""
        first = TX.unpack(slots.popleft())
        chain, extras, more = [first], 0, first[2] & EXTRA
        while more:
            kind, flags = self.following(slots)[:2]
            if not 1 <= kind <= 4:
                raise PeerProtocolError(f"an extra of type {kind}")
            extras, more = extras + 1, flags & 1
        while chain[-1][2] & MORE:
            chain.append(TX.unpack(self.following(slots)))
        rest = sum(one[4] for one in chain[1:])
        sizes = [first[4] - rest, *(one[4] for one in chain[1:])]
        if any(one[1] + size > 4096 for one, size in zip(chain, sizes, strict=True)):
            raise PeerProtocolError("a fragment crosses the end of its page")
        fits = len(chain) <= SLOTS_MAX and sizes[0] >= 14
        status = self.transmit(chain, sizes) if fits and not extras else ERROR
        answers = [(first[3], status), *[(0, NULL)] * extras]
        answers += [(one[3], status) for one in chain[1:]]
        if self.tx.push(b"".join(TX_RESPONSE.pack(*one) for one in answers), len(answers)):
            self.end.notify(self.port)

    def following(self, slots: deque[bytes]) -> bytes:
        if not slots:
            raise PeerProtocolError("a packet goes on past req_prod")
        return slots.popleft()

    def transmit(self, chain: list[tuple[int, ...]], sizes: list[int]) -> int:
        copy, pieces = self.end.copy_from, zip(chain, sizes, strict=True)
        try:
            data = b"".join(copy(one[0], one[1], size) for one, size in pieces if size)
        except GrantError:
            return ERROR
        flags = chain[0][2]
        self.bridge.transmit([Frame(data, bool(flags & BLANK), bool(flags & VALID))])
        return OKAY

    def receive(self, frames: Sequence[Frame]) -> None:
        for data in (data for frame in frames for data in to_wire(frame)):
            if self.port and len(data) <= self.size_max:
                self.backlog.append((self.end.now, data))
                self.pour()

    def pour(self) -> None:
        """Frames into what the guest has posted, each whole or not at all."""
        while self.backlog:
            came, data = self.backlog[0]
            pages = [data[at : at + 4096] for at in range(0, len(data), 4096)]
            while len(self.posted) < len(pages):
                _, raw = self.rx.take()
                self.posted.extend(RX.iter_unpack(bytes(raw)))
                if not raw and not self.rx.final_check():
                    return
            self.backlog.popleft()
            if self.end.now - came > OLD_NS:
                continue
            answers = [self.put(page, page is not pages[-1]) for page in pages]
            if self.rx.push(b"".join(answers), len(answers)):
                self.end.notify(self.port)

    def put(self, page: bytes, more: bool) -> bytes:
        number, ref = self.posted.popleft()
        try:
            self.end.copy_to(ref, 0, page)
        except GrantError:
            return RX_RESPONSE.pack(number, 0, MORE if more else 0, ERROR)
        return RX_RESPONSE.pack(number, 0, MORE if more else 0, len(page))


def main() -> None:
    """By hand, then by the numbered cases."""
    with user_net_backend(Backend) as world:
        frame = b"\xff" * 6 + bytes.fromhex("00163e000001") + b"\x88\xb5" + bytes(50)
        page = world.guest.page()
        world.guest.domain.write(page, 0, frame)
        ref = world.guest.grant(page, readonly=True)
        world.vif.tx.push(TX.pack(ref, 0, 0, 1, len(frame)), 1)
        world.vif.notify()
        world.run()
        print("sent:", world.bridge.frames[-1] == frame)
    results = check_net_backend(Backend)
    print(f"{len(results)} cases, none fails")


if __name__ == "__main__":
    main()
