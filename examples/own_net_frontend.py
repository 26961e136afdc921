# ruff: noqa: INP001 - a script, in no package
"""A network frontend of your own in the place of xenpv's, and the kit's cases against it.

python examples/own_net_frontend.py
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from xenpv.abi.xenbus import XenbusState
from xenpv.errors import PeerProtocolError
from xenpv.testing import ConnectingFrontend, End, check_net_frontend, user_net_frontend

TX = Struct("<IHHHH")  # io/netif.h: gref, offset, flags, id, size
TX_RESPONSE = Struct("<Hh")
RX = Struct("<HxxI")  # id, gref
RX_RESPONSE = Struct("<HHHh")  # id, offset, flags, status
MORE, EXTRA, NULL, POSTED, BUSY_MAX, SLOTS_MAX = 4, 8, 1, 32, 64, 18


class Frontend(ConnectingFrontend):
    """One queue, a page a packet to send, any number of pages a packet to receive."""

    announces = XenbusState.CONNECTED

    def __init__(self, end: End, receive: Callable[[bytes], object]) -> None:
        super().__init__(end)
        self.receive = receive
        self.port = 0
        self.busy: dict[int, tuple[int, int]] = {}  # by tx id: page, reference
        self.posted: list[tuple[int, int]] = []  # by rx slot
        self.rings: list[tuple[int, int]] = []
        self.packet: list[bytes] | None = []  # pages of one that is not whole; None: a bad one

    def connect(self) -> None:
        end = self.end
        self.rings = [end.share(), end.share()]
        self.tx = end.front_ring(self.rings[0][:1], 12, 4)
        self.rx = end.front_ring(self.rings[1][:1], 8, 8)
        self.port = end.open_port(self.event)
        keys = {"tx-ring-ref": self.rings[0][1], "rx-ring-ref": self.rings[1][1]}
        keys |= {"event-channel": self.port, "request-rx-copy": 1, "feature-rx-notify": 1}
        keys |= {"feature-sg": 1, "feature-no-csum-offload": 1}
        end.write_keys({key: str(value) for key, value in keys.items()})
        self.posted = [end.share() for _ in range(POSTED)]
        self.post(range(POSTED))

    def disconnect(self) -> None:
        if self.port:
            self.end.close_port(self.port)
        shared = [*self.busy.values(), *self.posted, *self.rings]
        self.port, self.busy, self.posted, self.rings = 0, {}, [], []
        for one in shared:
            self.end.unshare(*one)

    def send(self, frame: bytes) -> None:
        full = len(self.busy) == BUSY_MAX or len(frame) > 4096
        if self.end.state is not XenbusState.CONNECTED or full:
            return  # dropped
        number = next(one for one in range(BUSY_MAX) if one not in self.busy)
        self.busy[number] = self.end.share(frame, readonly=True)
        if self.tx.push(TX.pack(self.busy[number][1], 0, 0, number, len(frame)), 1):
            self.end.notify(self.port)

    def post(self, numbers: range | list[int]) -> None:
        requests = [RX.pack(one, self.posted[one][1]) for one in numbers]
        if requests and self.rx.push(b"".join(requests), len(requests)):
            self.end.notify(self.port)

    def event(self) -> None:
        while True:
            _, raw = self.tx.take()
            for number, status in TX_RESPONSE.iter_unpack(bytes(raw)):
                if number not in self.busy or status == NULL:
                    raise PeerProtocolError(f"tx response {number}, which is not in flight")
                self.end.unshare(*self.busy[number])
                del self.busy[number]
            if not self.tx.final_check():
                break
        while True:
            first = self.rx.rsp_cons
            _, raw = self.rx.take()
            for at, one in enumerate(RX_RESPONSE.iter_unpack(bytes(raw))):
                self.arrived((first + at) % POSTED, *one)
            if not self.rx.final_check():
                return

    def arrived(self, slot: int, number: int, offset: int, flags: int, status: int) -> None:
        """A response: it lies in the slot of its request, whose page is posted again."""
        if number != slot or flags & EXTRA or offset + status > 4096:
            raise PeerProtocolError(f"rx response {number}: {status} bytes at {offset}")
        page = self.posted[slot][0]
        if status < 0 or (self.packet is not None and len(self.packet) == SLOTS_MAX):
            self.packet = None
        elif self.packet is not None:
            self.packet.append(self.end.read(page, offset, status))
        if not flags & MORE:
            packet, self.packet = b"".join(self.packet or ()), []
            if len(packet) >= 14:
                self.receive(packet)
        self.end.write(page, 0, bytes(4096))
        self.post([slot])


def main() -> None:
    """By hand, then by the numbered cases."""
    with user_net_frontend(Frontend) as world:
        frame = b"\xff" * 6 + bytes.fromhex("00163e000001") + b"\x88\xb5" + bytes(50)
        world.app.send(frame)
        world.run()
        world.vif.send(frame[::-1])
        world.run()
        print("sent:", world.vif.frames == [frame], world.app.received == [frame[::-1]])
    results = check_net_frontend(Frontend)
    print(f"{len(results)} cases, none fails")


if __name__ == "__main__":
    main()
