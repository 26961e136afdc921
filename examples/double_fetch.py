# ruff: noqa: INP001 - a script, in no package
"""A backend that checks a request where it lies, and then reads it there again.

python examples/double_fetch.py

The frontend can change it in between (XSA-155). The kit names both lines.
"""

from __future__ import annotations

from xenpv.errors import PeerProtocolError
from xenpv.testing import ConnectingBackend, Explorer, explore, user_blk_backend
from xenpv.testing.scenarios import BlkClient

RING, SLOT, NR_SEGMENTS = 64, 112, 1  # offsets and a size of io/ring.h and io/blkif.h


class Trusting(ConnectingBackend):
    page = port = cons = 0

    def connect(self) -> None:
        self.page = self.end.map(self.end.peer_number("ring-ref"))
        self.ring = self.end.back_ring([self.page], SLOT, 16)
        self.port = self.end.bind_port(self.end.peer_number("event-channel"), self.event)

    def disconnect(self) -> None:
        port, page, self.port, self.page = self.port, self.page, 0, 0
        if port:
            self.end.close_port(port)
        if page:
            self.end.unmap(page)

    def event(self) -> None:
        more = True
        while more:
            at = RING + SLOT * (self.cons % 32) + NR_SEGMENTS
            some = self.end.load32(self.page, 0) != self.cons  # req_prod
            if some and self.end.read(self.page, at, 1)[0] > 11:  # the check
                raise PeerProtocolError("more segments than a request has")
            count, slots = self.ring.take(1)  # the use: by now it may be 255
            self.cons += count
            if count and self.ring.push(bytes(slots[8:16]) + bytes(8), 1):
                self.end.notify(self.port)
            more = bool(count) or self.ring.final_check()


def scenario(x: Explorer) -> None:
    world = user_blk_backend(lambda end, _image: Trusting(end))
    x.adopt(world.platform)
    BlkClient(world.vbd, requests=1).start()
    x.run()


def main() -> None:
    print(explore(scenario, examples=1).failure)


if __name__ == "__main__":
    main()
