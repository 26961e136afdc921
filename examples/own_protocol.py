# ruff: noqa: INP001 - a script, in no package
"""A protocol of your own over a ring of io/ring.h: its struct, both ends, and a bug.

python examples/own_protocol.py

A guest lends a page with text in it; the backend writes it back in capitals. `Sleepy` is the same
backend with a mistake, which the kit finds.
"""

from __future__ import annotations

from types import SimpleNamespace

from xenpv.errors import GrantError, PeerProtocolError
from xenpv.testing import End, Explorer, explore
from xenpv.testing.ringkit import RingBackend, RingFrontend, RingProtocol, ring_world

ECHO = RingProtocol.from_cdef(
    "vecho",
    """
    #define VECHO_OKAY 0
    #define VECHO_ERROR -1
    #define VECHO_PAGE 4096
    struct vecho_request {
        uint16_t id;
        uint16_t offset;        /* of the text in its page */
        uint32_t length;
        grant_ref_t gref;
        uint8_t pad[4];
    };
    struct vecho_response {
        uint16_t id;
        int16_t status;
    };
    """,
    request="vecho_request",
    response="vecho_response",
    device="vecho",
)
OKAY, ERROR = ECHO.constants.VECHO_OKAY, ECHO.constants.VECHO_ERROR
PAGE = ECHO.constants.VECHO_PAGE


class EchoBackend(RingBackend):
    """It trusts nothing of a request: where the text lies, how long it is, whether it is lent."""

    protocol = ECHO

    def serve(self, request: SimpleNamespace) -> bytes:
        status = OKAY if self.write_back(request) else ERROR
        return ECHO.response(id=request.id, status=status)

    def write_back(self, request: SimpleNamespace) -> bool:
        if request.offset + request.length > PAGE:
            return False
        try:
            text = self.end.copy_from(request.gref, request.offset, request.length)
            self.end.copy_to(request.gref, request.offset, text.upper())
        except GrantError:
            return False
        return True


class EchoFrontend(RingFrontend):
    """`shout(text)` asks; `heard` are the answers that came, None for one that failed."""

    protocol = ECHO

    def __init__(self, end: End) -> None:
        super().__init__(end)
        self.next_id = 0
        self.lent: dict[int, tuple[int, int, int]] = {}  # by id: pfn, reference, length
        self.heard: list[bytes | None] = []

    def shout(self, text: bytes) -> None:
        while self.next_id in self.lent:
            self.next_id = (self.next_id + 1) & 0xFFFF
        pfn, gref = self.end.share(text)
        self.lent[self.next_id] = pfn, gref, len(text)
        self.send(ECHO.request(id=self.next_id, length=len(text), gref=gref))
        self.next_id = (self.next_id + 1) & 0xFFFF

    def answered(self, response: SimpleNamespace) -> None:
        if response.id not in self.lent:
            raise PeerProtocolError(f"a response to {response.id}, which was not asked")
        pfn, gref, length = self.lent.pop(response.id)
        text = self.end.read(pfn, 0, length) if response.status == OKAY else None
        self.end.unshare(pfn, gref)
        self.heard.append(text)

    def disconnect(self) -> None:
        super().disconnect()
        for pfn, gref, _length in self.lent.values():
            self.end.unshare(pfn, gref)
        self.lent = {}


class Sleepy(EchoBackend):
    """It asks for an event and does not look again: what came meanwhile sleeps on the ring."""

    def event(self) -> None:
        for request in self.ring.take():
            self.answer(self.serve(request))
        self.ring.final_check()


def shouting(x: Explorer, backend: type[RingBackend] = EchoBackend) -> None:
    """A guest shouts while earlier texts are under way: all come back, in order."""
    world = ring_world(ECHO, EchoFrontend, backend)
    x.adopt(world.platform)
    texts = [b"one", b"two", b"three", b"four"]
    left = list(texts)

    def step() -> None:
        world.call("shout", left.pop(0))
        if left:
            task.wake()

    task = world.domain.task("program", step)
    task.wake()
    x.run()
    assert world.frontend.heard == [one.upper() for one in texts]


def asleep(x: Explorer) -> None:
    """The same with the mistake."""
    shouting(x, Sleepy)


if __name__ == "__main__":
    with ring_world(ECHO, EchoFrontend, EchoBackend, seed=7) as world:
        world.call("shout", b"is anybody there?")
        world.run()
        print(*world.frontend.heard)
    print(*explore(shouting, examples=200).lines(), sep="\n")
    print(*explore(asleep, examples=200).lines(), sep="\n")
