# ruff: noqa: INP001 - a script, in no package
"""A block backend of your own in the place of xenpv's, and the kit's cases against it.

python examples/own_blk_backend.py
"""

from __future__ import annotations

from struct import Struct

from xenpv.abi.blkif import BLKIF_OP, BLKIF_RSP
from xenpv.errors import GrantError, PeerProtocolError
from xenpv.host.image import Image, ImageError
from xenpv.testing import ConnectingBackend, End, check_blk_backend, user_blk_backend

HEADER = Struct("<BBH4xQQ")  # io/blkif.h, x86_64: operation, nr_segments, handle, id, sector_number
SEGMENT = Struct("<IBB2x")  # gref, first_sect, last_sect
RESPONSE = Struct("<QBxh4x")
READ, WRITE, FLUSH = BLKIF_OP.READ, BLKIF_OP.WRITE, BLKIF_OP.FLUSH_DISKCACHE
OKAY, ERROR, EOPNOTSUPP = BLKIF_RSP.OKAY, BLKIF_RSP.ERROR, BLKIF_RSP.EOPNOTSUPP


class Backend(ConnectingBackend):
    """Direct reads, writes and flushes on one ring of one page."""

    def __init__(self, end: End, image: Image) -> None:
        super().__init__(end)
        self.image = image
        self.page = self.port = 0

    def connect(self) -> None:
        end, image = self.end, self.image
        if end.peer_key("protocol") not in (None, "x86_64-abi"):
            raise PeerProtocolError("only x86_64-abi is spoken here")
        self.page = end.map(end.peer_number("ring-ref"))
        self.ring = end.back_ring([self.page], 112, 16)
        self.port = end.bind_port(end.peer_number("event-channel"), self.event)
        keys = {"sectors": str(image.size_bytes // 512), "sector-size": "512"}
        keys["info"] = "0" if image.writable else "4"  # VDISK_READONLY
        end.write_keys({**keys, "feature-flush-cache": "1"})

    def disconnect(self) -> None:
        port, page, self.port, self.page = self.port, self.page, 0, 0
        if port:
            self.end.close_port(port)
        if page:
            self.end.unmap(page)

    def event(self) -> None:
        while True:
            _, requests = self.ring.take()
            for at in range(0, len(requests), 112):
                request = bytes(requests[at : at + 112])
                answer = RESPONSE.pack(HEADER.unpack_from(request)[3], request[0], self.do(request))
                if self.ring.push(answer, 1):
                    self.end.notify(self.port)
            if not self.ring.final_check():
                return

    def do(self, request: bytes) -> int:
        operation, count, _, _, sector = HEADER.unpack_from(request)
        if operation not in (READ, WRITE, FLUSH):
            return EOPNOTSUPP
        if (
            count > 11
            or (not count and operation != FLUSH)
            or not (operation == READ or self.image.writable)
        ):
            return ERROR
        segments = [SEGMENT.unpack_from(request, 24 + 8 * at) for at in range(count)]
        total = sum(last - first + 1 for _, first, last in segments)
        if any(not first <= last <= 7 for _, first, last in segments) or (
            count and (sector + total) * 512 > self.image.size_bytes
        ):
            return ERROR
        try:
            for ref, first, last in segments:
                self.transfer(operation, sector, ref, first * 512, (last - first + 1) * 512)
                sector += last - first + 1
            if operation == FLUSH:
                self.image.flush()
        except (ImageError, GrantError):
            return ERROR
        return OKAY

    def transfer(self, operation: int, sector: int, ref: int, offset: int, size: int) -> None:
        data = bytearray(size)
        if operation == READ:
            self.image.read_into(memoryview(data), sector * 512)
            self.end.copy_to(ref, offset, data)
        else:
            data[:] = self.end.copy_from(ref, offset, size)
            self.image.write_from(memoryview(data), sector * 512)


def main() -> None:
    """By hand, then by the numbered cases."""
    with user_blk_backend(Backend) as world:
        page = world.guest.page()
        ref = world.guest.grant(page)
        world.guest.domain.write(page, 0, b"own")
        write = HEADER.pack(WRITE, 1, 0, 1, 0) + SEGMENT.pack(ref, 0, 0)
        world.vbd.sring.push(write.ljust(112, b"\0"), 1)
        world.vbd.notify()
        world.run()
        data = bytearray(512)
        world.image.read_into(memoryview(data), 0)
        print("written:", bytes(data[:3]), "answers:", len(world.vbd.sring.take()))
    results = check_blk_backend(Backend)
    print(f"{len(results)} cases, none fails")


if __name__ == "__main__":
    main()
