# ruff: noqa: INP001 - a script, in no package
"""A block frontend of your own in the place of xenpv's.

python examples/own_blk_frontend.py
"""

from __future__ import annotations

from collections import deque
from struct import Struct

from xenpv.abi.blkif import BLKIF_OP, BLKIF_RSP
from xenpv.abi.xenbus import XenbusState
from xenpv.errors import PeerProtocolError
from xenpv.testing import (
    ConnectingFrontend,
    End,
    Operation,
    Transfer,
    user_blk_frontend,
)

REQUEST = Struct("<BBH4xQQIBB2x")  # io/blkif.h, x86_64, up to the first segment
RESPONSE = Struct("<QBxh4x")
CODES = {
    Operation.READ: BLKIF_OP.READ,
    Operation.WRITE: BLKIF_OP.WRITE,
    Operation.FLUSH: BLKIF_OP.FLUSH_DISKCACHE,
}


class Frontend(ConnectingFrontend):
    """One request of one page at a time, each with a page and a reference of its own."""

    def __init__(self, end: End) -> None:
        super().__init__(end)
        self.port = self.number = 0
        self.waiting: deque[Transfer] = deque()
        self.done = b""  # of the first that waits
        self.busy: tuple[int, int] | None = None  # page and reference of what is on the ring

    def connect(self) -> None:
        self.shared = self.end.share()
        self.ring = self.end.front_ring(self.shared[:1], 112, 16)
        self.port = self.end.open_port(self.event)
        keys = {"ring-ref": str(self.shared[1]), "event-channel": str(self.port)}
        self.end.write_keys({**keys, "protocol": "x86_64-abi"})

    def disconnect(self) -> None:
        while self.waiting:
            self.waiting.popleft().fail("the device is gone")
        shared = [self.busy, self.shared if self.port else None]
        if self.port:
            self.end.close_port(self.port)
        self.busy, self.port = None, 0
        for one in shared:
            if one is not None:
                self.end.unshare(*one)

    def submit(self, transfer: Transfer) -> None:
        if transfer.operation in CODES:
            self.waiting.append(transfer)
            self.opened()
        else:
            transfer.fail("no such operation")

    def opened(self) -> None:
        """The next piece, if it can be sent."""
        end = self.end
        if end.state is not XenbusState.CONNECTED or self.busy or not self.waiting:
            return
        transfer, at = self.waiting[0], len(self.done)
        count = min(transfer.nr_sectors - at // 512, 8)
        is_write = transfer.operation is Operation.WRITE
        self.busy = end.share(transfer.data[at : at + count * 512], readonly=is_write)
        self.number += 1
        code, segments = CODES[transfer.operation], 1 if count else 0
        where = self.number, transfer.sector + at // 512, self.busy[1], 0, max(count, 1) - 1
        if self.ring.push(REQUEST.pack(code, segments, 0, *where).ljust(112, b"\0"), 1):
            end.notify(self.port)

    def event(self) -> None:
        while True:
            _, raw = self.ring.take()
            for number, _, status in RESPONSE.iter_unpack(bytes(raw)):
                self.answered(number, status)
            if not self.ring.final_check():
                break
        self.opened()

    def answered(self, number: int, status: int) -> None:
        if self.busy is None or number != self.number:
            raise PeerProtocolError(f"a response for {number}, which is not in flight")
        transfer, (page, ref), self.busy = self.waiting[0], self.busy, None
        self.done += self.end.read(page, 0, min(transfer.nr_sectors * 512 - len(self.done), 4096))
        self.end.unshare(page, ref)
        if status != BLKIF_RSP.OKAY:
            self.waiting.popleft().fail(f"status {status}")
        elif len(self.done) == transfer.nr_sectors * 512:
            self.waiting.popleft().complete(self.done)
        if transfer.done:
            self.done = b""


def main() -> None:
    """By hand."""
    with user_blk_frontend(Frontend) as world:
        world.app.write(0, b"own".ljust(512, b"\0"))
        world.vbd.hold = True
        reading = world.app.start_read(0, 8)
        world.run()
        (request,) = world.vbd.sring.take()
        ((ref, _, _),) = world.vbd.segments(request)
        world.vbd.fill(ref, b"from the disk")
        world.vbd.answer(request, 0)
        world.run()
        print("read:", reading.data[:13])
        world.vbd.hold = False


if __name__ == "__main__":
    main()
