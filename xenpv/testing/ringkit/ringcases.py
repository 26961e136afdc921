"""Cases of any ring: what an end must bear of its peer, whatever its protocol carries.

Each suite of a protocol has them under its own prefix, 901 to 949 for a backend under a raw
frontend, 951 and following for a frontend on a raw backend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from xenpv.abi.xenbus import XenbusState as State
from xenpv.errors import PeerProtocolError
from xenpv.testing.checkers import CheckFailed
from xenpv.testing.checks.slots import check_leftovers
from xenpv.testing.hunts.rings import start_before_wrap
from xenpv.view.rings import u32

if TYPE_CHECKING:
    from xenpv.testing.ringkit.suite import RingScene, RingSuite

STORM: Final = 50
PATTERNS: Final = (b"\xff", b"\x00", b"\x80", b"\x7f")
REFUSED: Final = "the device is broken, and nothing is answered"
BORNE: Final = "the device is broken, or good requests are answered as before"
CALM: Final = "no exception, no wait without end; the device can be taken away"

Play = Callable[["RingScene"], object]


def expect(holds: bool, what: str) -> None:
    """CheckFailed, unless it holds."""
    if not holds:
        raise CheckFailed([what])


# a backend under a raw frontend


def producer_ahead(scene: RingScene) -> None:
    front = scene.connected()
    front.sring.req_prod = front.sring.size + 1
    front.notify()
    scene.run()
    expect(scene.is_shut(), "req_prod a ring and one ahead was believed")
    expect(not front.sring.rsp_prod, f"{front.sring.rsp_prod} answers to requests that are none")


def producer_back(scene: RingScene) -> None:
    front = scene.connected()
    scene.serves(2)
    front.sring.req_prod = 1
    front.notify()
    scene.run()
    expect(front.sring.rsp_prod <= 2, "requests before the first were answered")


def wraps(scene: RingScene) -> None:
    front = scene.connected()
    start_before_wrap(scene.world.platform)
    scene.serves(3)
    expect(front.sring.rsp_prod == 2, "three answers from index 2^32 - 1 on end at 2")


def full_ring(scene: RingScene) -> None:
    front, ask = scene.connected(), scene.suite.traffic.request
    assert ask is not None, "of a suite with traffic"
    requests = [ask(front, number) for number in range(front.sring.size)]
    front.send(*requests)
    scene.run()
    answers = front.take()
    expect(len(answers) == len(requests), f"{len(answers)} answers to {len(requests)} requests")
    protocol, kind = scene.protocol, scene.protocol.kind
    if "." not in kind.request_id and kind.request_id:
        sent = [getattr(protocol.read_request(one), kind.request_id) for one in requests]
        came = [getattr(one, kind.response_id) for one in answers]
        expect(sorted(sent) == sorted(came), "not each id is answered once")


def leftovers(scene: RingScene) -> None:
    front = scene.connected()
    for index in range(front.sring.size):
        front.sring.write_slot(index, b"\xa5" * front.sring.entry_size)
    scene.serves(2)
    found = check_leftovers(scene.world.platform)
    if found:
        raise CheckFailed(found)


def _pattern(byte: bytes) -> Play:
    def play(scene: RingScene) -> None:
        front = scene.connected()
        for index in range(3):
            front.sring.write_slot(index, byte * front.sring.entry_size)
        front.sring.req_prod = 3
        front.notify()
        scene.run()
        expect(u32(front.sring.rsp_prod) <= 3, "more answers than requests")
        front.sring.ring.seek(0)
        if not scene.is_shut():
            expect(front.sring.rsp_prod == 3, f"{front.sring.rsp_prod} answers to 3 requests")

    return play


def event_words(scene: RingScene) -> None:
    front = scene.connected()
    for word in (0, 1 << 31, (1 << 32) - 1):
        front.sring.req_event = word
        front.sring.rsp_event = word
        front.notify()
        scene.run()
    front.sring.rsp_event = front.sring.rsp_prod + 1
    front.sring.req_event = 0
    _serves_loudly(scene)


def _serves_loudly(scene: RingScene) -> None:
    """A good request, with an event whether or not the ring asks for one."""
    front, ask = scene.peer, scene.suite.traffic.request
    assert ask is not None, "of a suite with traffic"
    front.send(ask(front, 0))
    front.notify()
    scene.run()
    expect(len(front.take()) == 1, "a good request is not answered")


def storm(scene: RingScene) -> None:
    front = scene.connected()
    for _ in range(STORM):
        front.notify()
        scene.run()
    expect(not front.sring.rsp_prod, "answers to nothing")
    scene.serves()


def _ring_key(text: str | None) -> Play:
    def play(scene: RingScene) -> None:
        scene.attached({scene.protocol.ring_ref: text})
        expect(
            scene.world.states[1] is not State.CONNECTED, f"Connected to a ring at {text or 'none'}"
        )

    return play


def _port_key(text: str | None) -> Play:
    def play(scene: RingScene) -> None:
        scene.attached({scene.protocol.event_channel: text})
        expect(scene.world.states[1] is not State.CONNECTED, f"Connected to port {text or 'none'}")

    return play


def port_goes(scene: RingScene) -> None:
    front = scene.connected()
    front.sring.write_slot(0, bytes(front.sring.entry_size))
    front.sring.req_prod = 1
    front.notify()
    front.hang_up()
    scene.run()


def reconnects(scene: RingScene) -> None:
    front = scene.connected()
    for state in (State.CLOSING, State.CLOSED, State.INITIALISING):
        front.state = state
        scene.run()
    expect(scene.world.states[1] is State.INIT_WAIT, "it does not wait for its frontend anew")
    front.hang_up()
    front.attach()
    front.announce()
    scene.run()
    front.finish()
    scene.run()
    scene.serves()


def states_in_any_order(scene: RingScene) -> None:
    front = scene.connected()
    for state in (0, 3, 1, 4, 2, 5, 4, 3, 6, 4, 7, 8, 1, 5):
        front.state = state
        scene.run()


def directory_goes(scene: RingScene) -> None:
    front = scene.connected()
    front.remove_key("")
    scene.run()
    front.notify()


# a frontend on a raw backend


def responses_ahead(scene: RingScene) -> None:
    back = scene.connected()
    back.hold = True
    scene.starts()
    scene.run()
    back.sring.rsp_prod = 2
    back.notify()
    scene.run()
    expect(scene.is_shut(), "rsp_prod ahead of what is in flight was believed")


def _answers(*, times: int = 1, fill: bytes = b"") -> Play:
    def play(scene: RingScene) -> None:
        back = scene.connected()
        back.hold = True
        scene.starts(3)
        scene.run()
        requests = back.take()
        respond = scene.suite.traffic.respond
        assert respond is not None, "of a suite with traffic"
        size = scene.protocol.response_size
        for request in requests[: 3 // times]:
            answer = fill * size if fill else respond(back, request)
            assert answer is not None, "it answers each at once"
            for _ in range(times):
                if back.sring.ring.in_flight:
                    back.answer(answer)
        back.notify()
        scene.run()

    return play


def front_wraps(scene: RingScene) -> None:
    scene.connected()
    start_before_wrap(scene.world.platform)
    ended = scene.suite.traffic.ended
    scene.starts(3)
    scene.run()
    if ended is not None:
        ended(scene.world, 3)


def more_than_a_ring(scene: RingScene) -> None:
    back = scene.connected()
    count = 2 * back.sring.size
    for _ in range(count):
        scene.starts()
        scene.run()
    ended = scene.suite.traffic.ended
    if ended is not None:
        ended(scene.world, count)


def back_storm(scene: RingScene) -> None:
    back = scene.connected()
    for _ in range(STORM):
        back.notify()
        scene.run()


def back_states(scene: RingScene) -> None:
    back = scene.connected()
    for state in (2, 1, 4, 3, 5, 4, 6, 8, 7, 1):
        back.state = State(state)
        scene.run()


def back_closes(scene: RingScene) -> None:
    back = scene.connected()
    back.hold = True
    scene.starts(2)
    scene.run()
    back.state = State.CLOSING
    scene.run()
    expect(scene.world.states[0] is State.CLOSED, "it does not close with its backend")


def back_vanishes(scene: RingScene) -> None:
    back = scene.connected()
    back.hold = True
    scene.starts(2)
    scene.run()
    back.detach()
    scene.world.xs.rm(scene.world.backend_path)
    scene.run()


def back_words(scene: RingScene) -> None:
    back = scene.connected()
    for word in (0, 1 << 31, (1 << 32) - 1):
        back.sring.rsp_event = word
        back.sring.req_event = word
        back.sring.req_prod = word
        back.notify()
        scene.run()


RING_H: Final = "io/ring.h"
# number, title, source, expected, does it need traffic, is its peer hostile, what it plays
_Row = tuple[str, str, str, str, bool, bool, Play]
BACKEND: Final[tuple[_Row, ...]] = (
    ("901", "req_prod more than a ring ahead", f"{RING_H} RING_REQUEST_PROD_OVERFLOW", REFUSED,
     False, True, producer_ahead),
    ("902", "req_prod goes back", f"{RING_H} RING_REQUEST_PROD_OVERFLOW",
     "nothing is answered twice", True, True, producer_back),
    ("903", "indices wrap at 2^32", RING_H, "requests are answered as before", True, False, wraps),
    ("904", "a full ring at once", f"{RING_H} __RING_SIZE", "each id is answered once", True, False,
     full_ring),
    ("905", "slots with something in them before a response", "XSA-216",
     "bytes beside the fields of a response are zero", True, False, leftovers),
    *((f"{910 + at}", f"slots of bytes {byte[0]:#04x}", f"{RING_H} XSA-155",
       "each is answered, or the device is broken", False, True, _pattern(byte))
      for at, byte in enumerate(PATTERNS)),
    ("920", "event indices anywhere", f"{RING_H} RING_FINAL_CHECK_FOR_REQUESTS",
     "a good request is answered", True, True, event_words),
    ("921", "a storm of events without a request", "XSA-391", "nothing is answered to nothing",
     True, True, storm),
    *((f"{930 + at}", f"the key of the ring is {text!r}", "xenbus.h", "it does not connect",
       False, True, _ring_key(text))
      for at, text in enumerate((None, "", "0", "-1", "4294967295", "18446744073709551616", "x"))),
    *((f"{940 + at}", f"the key of the event channel is {text!r}", "xenbus.h",
       "it does not connect", False, True, _port_key(text))
      for at, text in enumerate((None, "0", "4096", "4294967295"))),
    ("945", "the port goes", "event_channel.h EVTCHNOP_close", CALM, False, True, port_goes),
    ("946", "the frontend closes and connects anew", "xenbus.h", "good requests are answered",
     True, False, reconnects),
    ("947", "states in any order", "xenbus.h", CALM, False, True, states_in_any_order),
    ("948", "the frontend's directory goes", "xenbus.h", CALM, False, True, directory_goes),
)  # fmt: skip
FRONTEND: Final[tuple[_Row, ...]] = (
    ("951", "rsp_prod ahead of what is in flight", f"{RING_H} RING_RESPONSE_PROD_OVERFLOW",
     "the device is broken", True, True, responses_ahead),
    ("952", "a response comes twice", "XSA-396", CALM, True, True, _answers(times=2)),
    *((f"{953 + at}", f"responses of bytes {byte[0]:#04x}", RING_H, CALM, True, True,
       _answers(fill=byte)) for at, byte in enumerate(PATTERNS)),
    ("957", "indices wrap at 2^32", RING_H, "calls end well", True, False, front_wraps),
    ("958", "twice as many calls as slots", RING_H, "calls end well", True, False,
     more_than_a_ring),
    ("959", "a storm of events without a response", "XSA-391", CALM, False, True, back_storm),
    ("960", "states in any order", "xenbus.h", CALM, False, True, back_states),
    ("961", "the backend closes with requests under way", "xenbus.h", "it closes too", True, False,
     back_closes),
    ("962", "the backend's directory goes with requests under way", "xenbus.h", CALM, True, True,
     back_vanishes),
    ("963", "words of the header anywhere", RING_H, CALM, False, True, back_words),
)  # fmt: skip


def add_to(suite: RingSuite) -> None:
    """The cases of its side; those that need traffic only if it has some."""
    traffic = suite.traffic
    asks = traffic.request if suite.side == "backend" else traffic.start
    for row in BACKEND if suite.side == "backend" else FRONTEND:
        number, title, source, expected, needs, hostile, play = row
        if needs and asks is None:
            continue
        suite.case(
            f"{suite.prefix}{number}", title, source=source, expected=expected, hostile=hostile
        )(_calm(play))


def _calm(play: Play) -> Play:
    """A raw end whose own take finds its peer wrong says so as a finding."""

    def played(scene: RingScene) -> None:
        try:
            play(scene)
        except PeerProtocolError as error:
            raise CheckFailed([str(error)]) from error

    return played
