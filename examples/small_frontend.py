# ruff: noqa: INP001 - a script, in no package
"""The smallest block frontend: it connects, reads one sector, and gives everything back.

python examples/small_frontend.py
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from xenpv.testing import ConnectingFrontend, user_blk_frontend

if TYPE_CHECKING:
    from xenpv.testing import Transfer

READ = Struct("<BBH4xQQIBB2x")  # io/blkif.h: a request and its first segment
RESPONSE = Struct("<QBxh4x")


class Frontend(ConnectingFrontend):
    port = 0

    def connect(self) -> None:
        self.pfn, self.ref = self.end.share()  # a page of zeros, granted to the backend
        self.ring = self.end.front_ring([self.pfn], 112, 16)
        self.port = self.end.open_port(self.event)
        self.end.write_keys({"ring-ref": str(self.ref), "event-channel": str(self.port)})

    def disconnect(self) -> None:
        if self.port:
            self.end.close_port(self.port)
            self.end.unshare(self.pfn, self.ref)
        self.port = 0

    def submit(self, transfer: Transfer) -> None:
        self.transfer, self.data = transfer, self.end.share()
        request = READ.pack(0, 1, 0, 7, transfer.sector, self.data[1], 0, 0)
        if self.ring.push(request.ljust(112, b"\0"), 1):
            self.end.notify(self.port)

    def event(self) -> None:
        for number, _, status in RESPONSE.iter_unpack(bytes(self.ring.take()[1])):
            print(f"a response to request {number}, status {status}")
            self.transfer.complete(self.end.read(self.data[0], 0, 512))
            self.end.unshare(*self.data)


def main() -> None:
    with user_blk_frontend(Frontend) as world:
        print("read:", world.app.read(0, 1)[:8])


if __name__ == "__main__":
    main()
