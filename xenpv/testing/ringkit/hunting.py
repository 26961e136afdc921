"""What the kit explores of an end of a protocol: scenarios of its suite, and its overlays.

The scenarios are as those for disks and interfaces (testing/hunts/own.py): good work while earlier
work is under way, and the same under a peer whose memory changes at any moment. There the end may
break its device, but no more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Final

import attrs

from xenpv.errors import LocalProtocolError, PeerProtocolError
from xenpv.testing import kit
from xenpv.testing.explorer import Explorer
from xenpv.testing.hunt import CaseHunt, Found, Hunt, ScenarioHunt
from xenpv.testing.ringkit.overlay import target_of
from xenpv.testing.ringkit.suite import REQUESTS, RingSuite
from xenpv.testing.ringkit.world import EndFactory, RingWorld, ring_world

if TYPE_CHECKING:
    from xenpv.testing.cases.suite import Factory

# A scenario that is told of which suite it is, and who makes the end under test.
SuiteScenario = Callable[[Explorer, RingSuite, EndFactory], None]


def backend_requests(x: Explorer, suite: RingSuite, factory: EndFactory) -> None:
    """Requests from a frontend that sends while earlier ones are worked on: each is answered
    once, and well.
    """
    world = _connected(x, suite, factory)
    answers = _client(world, suite, spoilt=False)
    x.begin()
    world.run()
    x.check()
    assert len(answers) == REQUESTS, f"{len(answers)} answers to {REQUESTS} requests"


def backend_attacked(x: Explorer, suite: RingSuite, factory: EndFactory) -> None:
    """The same from a frontend whose memory changes at any moment."""
    world = _connected(x, suite, factory)
    _client(world, suite, spoilt=True)
    x.attack(world.platform.dom0)
    x.begin()
    world.run()
    x.check()


def frontend_calls(x: Explorer, suite: RingSuite, factory: EndFactory) -> None:
    """A program calls while earlier calls are under way: each ends well."""
    world = _connected(x, suite, factory)
    _program(world, suite)
    x.begin()
    world.run()
    x.check()
    if suite.traffic.ended is not None:
        suite.traffic.ended(world, REQUESTS)


def frontend_attacked(x: Explorer, suite: RingSuite, factory: EndFactory) -> None:
    """The same on a backend whose memory changes at any moment."""
    world = _connected(x, suite, factory)
    x.attack(world.domain)
    _program(world, suite)
    x.begin()
    world.run()
    x.check()


def both_ends(x: Explorer, suite: RingSuite, factory: EndFactory) -> None:
    """A program calls over the end under test and an honest other one: each call ends well."""
    ends = (suite.peer, factory) if suite.side == "backend" else (factory, suite.peer)
    world = ring_world(suite.protocol, *ends)
    x.adopt(world.platform)
    _program(world, suite)
    x.begin()
    world.run()
    x.check()
    if suite.traffic.ended is not None:
        suite.traffic.ended(world, REQUESTS)


def _connected(x: Explorer, suite: RingSuite, factory: EndFactory) -> RingWorld:
    world = suite.world(factory)
    x.adopt(world.platform)
    world.connect()
    return world


def _client(world: RingWorld, suite: RingSuite, *, spoilt: bool) -> list[Any]:
    """A raw frontend that sends a request each time its task runs; the answers that come."""
    ask, answered = suite.traffic.request, suite.traffic.answered
    assert ask is not None, "a scenario of a suite with traffic"
    front = world.front
    requests = [ask(front, number) for number in range(REQUESTS)]
    order: list[int] = []  # what is answered in which order, by the field that says so
    answers: list[Any] = []
    field = suite.protocol.kind.request_id
    ids = [suite.protocol.field(request, field) for request in requests] if field else []

    def send() -> None:
        number = len(order)
        order.append(number)
        front.send(requests[number])
        if len(order) < REQUESTS:
            task.wake()

    def complete() -> None:
        try:
            came = front.sring.take()
        except PeerProtocolError:
            if not spoilt:
                raise
            return
        for raw in came:
            answers.append(raw)
            if answered is not None and not spoilt:
                number = _which(suite, ids, raw, len(answers) - 1)
                answered(front, number, suite.protocol.read_response(raw))

    front.on_event = complete
    task = world.domain.task("client", send)
    task.wake()
    return answers


def _which(suite: RingSuite, ids: list[int], raw: bytes, place: int) -> int:
    """The number of the request that a response is to."""
    if not ids:
        return place
    found = suite.protocol.field(raw, suite.protocol.kind.response_id, response=True)
    assert found in ids, f"a response to {found:#x}, which was not asked"
    return ids.index(found)


def _program(world: RingWorld, suite: RingSuite) -> None:
    """A program that calls each time its task runs."""
    start = suite.traffic.start
    assert start is not None, "a scenario of a suite with traffic"
    started: list[int] = []

    def step() -> None:
        number = len(started)
        started.append(number)
        try:
            start(world, number)
        except LocalProtocolError:
            return  # the device is gone by now
        if len(started) < REQUESTS:
            task.wake()

    task = world.domain.task("program", step)
    task.wake()


SCENARIOS: Final[dict[str, tuple[SuiteScenario, ...]]] = {
    "backend": (backend_requests, backend_attacked),
    "frontend": (frontend_calls, frontend_attacked),
}


@attrs.frozen(eq=False)
class RingScenario:
    """One of SCENARIOS with its suite and factory: what an exploration runs."""

    scenario: SuiteScenario
    suite: RingSuite
    factory: Factory | None

    @property
    def __name__(self) -> str:
        return f"{self.suite.name}:{self.scenario.__name__}"

    def __call__(self, x: Explorer) -> None:
        told: Any = self.scenario  # an attribute that is called, not a method
        told(x, self.suite, self.suite.end if self.factory is None else self.factory)


def hunts_of(suite: RingSuite, factory: Factory | None = None) -> list[Hunt]:
    """Its cases, its scenarios and overlays against the end that `factory` makes, None: its own."""
    cases = tuple(sorted(suite.cases, key=lambda one: one.id))
    found: list[Hunt] = [CaseHunt(cases, suite.name, factory)]
    traffic = suite.traffic
    asks = traffic.request if suite.side == "backend" else traffic.start
    if asks is not None:
        found += [ScenarioHunt(RingScenario(one, suite, factory)) for one in SCENARIOS[suite.side]]
    if suite.peer is not None and traffic.start is not None:
        found.append(ScenarioHunt(RingScenario(both_ends, suite, factory)))
    from xenpv.testing.overlay import OverlayHunt

    found.append(OverlayHunt(target_of(suite, factory)))
    return found


def find_bugs(
    suite: RingSuite,
    factory: Factory | None = None,
    *,
    seed: int = 0,
    seconds: float = kit.SECONDS,
    without: Collection[str] = (),
    progress: kit.Progress | None = None,
) -> tuple[list[Found], int]:
    """As xenpv.testing.find_bugs, of an end of a protocol of one's own."""
    return kit.find_in(
        hunts_of(suite, factory), seed=seed, seconds=seconds, without=without, progress=progress
    )
