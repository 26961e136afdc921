# ruff: noqa: INP001 - a script, in no package
"""A protocol of your own over a ring of io/ring.h: its struct, both ends, cases, and a bug.

python examples/own_protocol.py
xenpv cases --suite examples/own_protocol.py:BACKEND
xenpv hunt examples/own_protocol.py:BACKEND examples/own_protocol.py:Sleepy

A guest lends a page with text in it; the backend writes it back in capitals. `Sleepy` is the same
backend with a mistake, which the kit finds.
"""

from __future__ import annotations

from types import SimpleNamespace

from xenpv.errors import GrantError, PeerProtocolError
from xenpv.testing import End, Explorer, explore
from xenpv.testing.ringkit import (
    RawRingBack,
    RawRingFront,
    RingBackend,
    RingFrontend,
    RingProtocol,
    RingScene,
    RingSuite,
    RingWorld,
    Traffic,
    ring_world,
)

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
        if not self.can_send:
            self.heard.append(None)
            return
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
            self.heard.append(None)
        self.lent = {}


class Sleepy(EchoBackend):
    """It asks for an event and does not look again: what came meanwhile sleeps on the ring."""

    def event(self) -> None:
        for request in self.ring.take():
            self.answer(self.serve(request))
        self.ring.final_check()


# Good work, by which the kit asks either end for some.


def a_request(front: RawRingFront, number: int) -> bytes:
    """A page with a text in it, lent."""
    pfn = front.guest.page()
    front.domain.write(pfn, 8, b"text")
    return ECHO.request(id=number, offset=8, length=4, gref=front.guest.grant(pfn))


def is_okay(_front: RawRingFront, number: int, response: SimpleNamespace) -> None:
    assert (response.id, response.status) == (number, OKAY)


def a_call(world: RingWorld, number: int) -> None:
    world.call("shout", b"call %d" % number)


def an_answer(back: RawRingBack, request: SimpleNamespace) -> bytes:
    if request.offset + request.length > PAGE:
        return ECHO.response(id=request.id, status=ERROR)
    text = back.read(request.gref, request.offset, request.length)
    back.fill(request.gref, text.upper(), request.offset)
    return ECHO.response(id=request.id, status=OKAY)


def all_heard(world: RingWorld, count: int) -> None:
    assert world.frontend.heard == [b"CALL %d" % number for number in range(count)]


TRAFFIC = Traffic(
    request=a_request, answered=is_okay, start=a_call, respond=an_answer, ended=all_heard
)
BACKEND = RingSuite(
    ECHO, "backend", EchoBackend, prefix="ECHOB-", traffic=TRAFFIC, peer=EchoFrontend
)
FRONTEND = RingSuite(
    ECHO, "frontend", EchoFrontend, prefix="ECHOF-", traffic=TRAFFIC, peer=EchoBackend
)


@BACKEND.case(
    "ECHOB-101", "a text past its page", source="vecho.h", expected="ERROR, and no byte changes"
)
def past_the_page(scene: RingScene) -> None:
    front = scene.connected()
    pfn = front.guest.page()
    front.domain.write(pfn, 0, b"ab" * (PAGE // 2))
    gref = front.guest.grant(pfn)
    for offset, length in ((4095, 2), (0, 4097), (0, 0xFFFFFFFF), (0xFFFF, 1)):
        (answer,) = front.call(ECHO.request(offset=offset, length=length, gref=gref))
        assert answer.status == ERROR
    assert front.domain.read(pfn, 0, PAGE) == b"ab" * (PAGE // 2)


@BACKEND.case(
    "ECHOB-102", "a page that is not lent", source="grant_table.h", expected="ERROR of that one"
)
def not_lent(scene: RingScene) -> None:
    front = scene.connected()
    readonly = front.guest.grant(front.guest.page(), readonly=True)
    for gref in (0xFFFFFFFF, 4000, readonly):
        (answer,) = front.call(ECHO.request(length=1, gref=gref))
        assert answer.status == ERROR
    scene.serves()


@BACKEND.case(
    "ECHOB-103", "a page has more than its text in it", source="vecho.h",
    expected="only the text is written",
)  # fmt: skip
def only_the_text(scene: RingScene) -> None:
    front = scene.connected()
    pfn = front.guest.page()
    front.domain.write(pfn, 0, b"abcdef")
    for offset, length in ((2, 2), (0, 0)):
        front.call(ECHO.request(offset=offset, length=length, gref=front.guest.grant(pfn)))
    assert front.domain.read(pfn, 0, 6) == b"abCDef"


@FRONTEND.case(
    "ECHOF-101", "a response to nothing", source="vecho.h", expected="the device is broken"
)
def a_response_to_nothing(scene: RingScene) -> None:
    back = scene.connected()
    back.hold = True
    scene.starts()
    scene.run()
    back.take()
    back.answer(ECHO.response(id=777))
    scene.run()
    assert scene.is_shut()


@FRONTEND.case(
    "ECHOF-102", "the page is lent for its text alone", source="XSA-403",
    expected="nothing else is in it, and it is taken back",
)  # fmt: skip
def lent_for_its_text(scene: RingScene) -> None:
    back = scene.connected()
    back.hold = True
    scene.starts()
    scene.run()
    (request,) = back.take()
    assert back.read(request.gref) == b"call 0".ljust(PAGE, b"\0")
    back.answer(an_answer(back, request))
    scene.run()
    assert scene.world.frontend.lent == {}
    try:
        back.read(request.gref)
    except GrantError:
        return
    raise AssertionError("the page can be read when its answer has come")


# A scenario of its own: what the kit explores.


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
