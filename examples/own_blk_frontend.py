# ruff: noqa: INP001 - a script, in no package
"""A block frontend of your own in the place of xenpv's, and the kit's cases against it.

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
    check_blk_frontend,
    user_blk_frontend,
)

REQUEST = Struct("<BBH4xQQIBB2x")  # io/blkif.h, x86_64, up to the first segment
RESPONSE = Struct("<QBxh4x")
READ, WRITE = BLKIF_OP.READ, BLKIF_OP.WRITE
FLUSHES = {
    "feature-flush-cache": BLKIF_OP.FLUSH_DISKCACHE,
    "feature-barrier": BLKIF_OP.WRITE_BARRIER,
}
VDISK_READONLY = 4


class Job:
    """A transfer, cut into requests of at most a page; the first answer that is bad fails it."""

    def __init__(self, transfer: Transfer, code: int) -> None:
        self.transfer = transfer
        self.code = code
        self.starts = deque(range(0, max(transfer.nr_sectors, 1), 8))
        self.left = len(self.starts)
        self.data = bytearray(transfer.nr_sectors * 512)
        self.why = ""


class Frontend(ConnectingFrontend):
    """One ring of one page; each request has one segment, a page and a reference of its own."""

    def __init__(self, end: End) -> None:
        super().__init__(end)
        self.port = 0
        self.waiting: deque[Job] = deque()
        self.busy: dict[int, tuple[Job, int, int, int]] = {}  # by id: start, page, reference

    def connect(self) -> None:
        self.shared = self.end.share()
        self.ring = self.end.front_ring(self.shared[:1], 112, 16)
        self.port = self.end.open_port(self.event)
        keys = {"ring-ref": str(self.shared[1]), "event-channel": str(self.port)}
        self.end.write_keys({**keys, "protocol": "x86_64-abi"})

    def opened(self) -> None:
        number = self.end.peer_number
        if number("sector-size", 512) != 512:
            raise PeerProtocolError("only disks of 512-byte sectors are spoken to here")
        self.is_readonly = bool(number("info") & VDISK_READONLY)
        self.flush = next((code for key, code in FLUSHES.items() if number(key)), None)

    def disconnect(self) -> None:
        busy, port, self.port, self.busy = list(self.busy.values()), self.port, 0, {}
        for job in [*self.waiting, *(one[0] for one in busy)]:
            if not job.transfer.done:
                job.transfer.fail("the device is gone")
        self.waiting.clear()
        for _, _, page, ref in busy:
            self.end.unshare(page, ref)
        if port:
            self.end.close_port(port)
            self.end.unshare(*self.shared)

    def submit(self, transfer: Transfer) -> None:
        operation = transfer.operation
        is_write = operation is Operation.WRITE
        if self.end.state is not XenbusState.CONNECTED or operation is Operation.DISCARD:
            transfer.fail("it cannot do that, or not now")
        elif is_write and self.is_readonly:
            transfer.fail("a read-only disk")
        elif operation is Operation.FLUSH and self.flush is None:
            transfer.complete()  # nothing is cached there
        else:
            code = self.flush if operation is Operation.FLUSH else WRITE if is_write else READ
            self.waiting.append(Job(transfer, code or 0))
            self.send()

    def send(self) -> None:
        while self.waiting and self.ring.free:
            job = self.waiting[0]
            at, transfer = job.starts.popleft(), job.transfer
            if not job.starts:
                self.waiting.popleft()
            count = min(transfer.nr_sectors - at, 8)
            data = transfer.data[at * 512 :][: count * 512]
            page, ref = self.end.share(data, readonly=job.code == WRITE)
            number = next(one for one in range(self.ring.size) if one not in self.busy)
            self.busy[number] = job, at, page, ref
            where = number, transfer.sector + at, ref, 0, max(count, 1) - 1
            request = REQUEST.pack(job.code, 1 if count else 0, 0, *where)
            if self.ring.push(request.ljust(112, b"\0"), 1):
                self.end.notify(self.port)

    def event(self) -> None:
        while True:
            _, raw = self.ring.take()
            for number, _, status in RESPONSE.iter_unpack(bytes(raw)):
                if number not in self.busy:
                    raise PeerProtocolError(f"a response for {number}, which is not in flight")
                self.answered(*self.busy.pop(number), status)
            if not self.ring.final_check():
                break
        self.send()

    def answered(self, job: Job, at: int, page: int, ref: int, status: int) -> None:
        piece = memoryview(job.data)[at * 512 :][:4096]
        piece[:] = self.end.read(page, 0, len(piece))
        self.end.unshare(page, ref)
        if status != BLKIF_RSP.OKAY:
            job.why = f"status {status}"
        job.left -= 1
        if job.left == 0 and job.why:
            job.transfer.fail(job.why)
        elif job.left == 0:
            job.transfer.complete(bytes(job.data))


def main() -> None:
    """By hand, then by the numbered cases."""
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
    results = check_blk_frontend(Frontend)
    print(f"{len(results)} cases, none fails")


if __name__ == "__main__":
    main()
