"""A suite for one end of a protocol: its numbered cases, and what the kit explores of it.

    BACKEND = RingSuite(ECHO, "backend", EchoBackend, prefix="ECHOB-", traffic=TRAFFIC)

    @BACKEND.case("ECHOB-101", "a text past its page", source="vecho.h", expected="ERROR")
    def past_the_page(scene):
        front = scene.connected()
        ...

    BACKEND.check(MyBackend)              # every case, those of any ring among them

From the command line it is named by the file and the variable: `own_protocol.py:BACKEND`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from xenpv.errors import LocalProtocolError
from xenpv.testing.cases.suite import Case, Check, Factory, Suite
from xenpv.testing.checkers import CheckFailed, check_all
from xenpv.testing.named import shown
from xenpv.testing.ringkit.world import EndFactory, RingWorld, ring_world

if TYPE_CHECKING:
    from xenpv.testing.ringkit.protocol import RingProtocol
    from xenpv.testing.ringkit.rawends import RawRingBack, RawRingFront

Side = Literal["backend", "frontend"]
REQUESTS: Final = 4  # that are under way together in a scenario


@attrs.frozen(kw_only=True)
class Traffic:
    """Good work of a protocol, by which the kit asks an end for some.

    Of a backend under test: `request(front, n)` packs the nth request of a raw frontend, and
    `answered(front, n, response)` raises unless the response to it is right. Of a frontend under
    test: `start(world, n)` is the nth call of a program, `respond(back, request)` packs what an
    honest backend answers, `ended(world, count)` raises unless so many calls ended well.
    """

    request: Callable[[RawRingFront, int], bytes] | None = None
    answered: Callable[[RawRingFront, int, SimpleNamespace], object] | None = None
    start: Callable[[RingWorld, int], object] | None = None
    respond: Callable[[RawRingBack, SimpleNamespace], bytes | None] | None = None
    ended: Callable[[RingWorld, int], object] | None = None


class RingScene:
    """The end under test in a world, and the raw one in the case's hands.

    `honest`: the case's peer keeps the protocol, and so every law is asked of both ends.
    """

    def __init__(self, suite: RingSuite, factory: Factory | None, seed: int) -> None:
        self.suite = suite
        self.protocol = suite.protocol
        self._factory = suite.end if factory is None else factory
        self._seed = seed
        self._sent = 0
        self.honest = False
        self._world: RingWorld | None = None

    @property
    def features(self) -> tuple[str, ...]:
        """Cases of a protocol of one's own require nothing by name."""
        return ()

    @property
    def world(self) -> RingWorld:
        """The world, its device not yet connected."""
        if self._world is None:
            self._world = self.suite.world(self._factory, seed=self._seed)
        return self._world

    @property
    def peer(self) -> Any:
        """The raw end."""
        world = self.world
        return world.front if self.suite.side == "backend" else world.back

    def connected(self) -> Any:
        """The raw end, once both are Connected. LocalProtocolError if they do not come together."""
        self.world.connect()
        return self.peer

    def attached(self, keys: Mapping[str, str | None] | None = None) -> Any:
        """The raw frontend, its keys written with `keys` among them (None: left out), whatever the
        backend does about it.
        """
        world = self.world
        world.run()
        world.front.attach()
        world.front.announce(keys)
        world.run()
        return world.front

    def run(self) -> None:
        """Let everything happen that is due. UserEndError."""
        self.world.run()

    def serves(self, count: int = 1) -> None:
        """So many good requests, one after the other, are answered well."""
        ask, answered = self.suite.traffic.request, self.suite.traffic.answered
        assert ask is not None, "of a suite with traffic"
        front = self.peer
        for _ in range(count):
            number, self._sent = self._sent, self._sent + 1
            front.send(ask(front, number))
            self.run()
            answers = front.take()
            if len(answers) != 1:
                raise CheckFailed([f"a good request has {len(answers)} answers"])
            if answered is not None:
                answered(front, number, answers[0])

    def is_shut(self) -> bool:
        """Whether the end under test has broken its device."""
        return bool(self.world.broken)

    def serves_or_is_shut(self) -> None:
        """After what a peer did: the device is broken, or good requests are answered."""
        self.run()
        if not self.is_shut():
            self.peer.take()
            self.serves()

    def starts(self, count: int = 1) -> None:
        """So many calls of a program above the frontend."""
        start = self.suite.traffic.start
        assert start is not None, "of a suite with traffic"
        for _ in range(count):
            number, self._sent = self._sent, self._sent + 1
            start(self.world, number)

    def finish(self) -> None:
        """Everything happens, the laws hold, the device goes and nothing is left of it.

        CheckFailed, UserEndError.
        """
        world = self.world
        world.run()
        peer = world.domain.domid if self.suite.side == "backend" else 0
        check_all(world.platform, hostile=[] if self.honest else [peer])
        world.finish()

    def close(self) -> None:
        """Give everything back."""
        if self._world is not None:
            self._world.close()


class RingSuite(Suite):
    """Cases, scenarios and overlays of one end of `protocol`.

    `end` is the end that is played against if none is named; `peer` an honest other end, for the
    scenario of both. Unless `generic` is False, cases 901 and following are of any ring. The
    suite is called `<protocol>-<side>`.
    """

    is_own = True

    def __init__(
        self,
        protocol: RingProtocol,
        side: Side,
        end: EndFactory,
        *,
        prefix: str,
        traffic: Traffic | None = None,
        peer: EndFactory | None = None,
        generic: bool = True,
    ) -> None:
        super().__init__(f"{protocol.name}-{side}", prefix, partial(RingScene, self))
        self.protocol = protocol
        self.side: Side = side
        self.end = end
        self.peer = peer
        self.traffic = Traffic() if traffic is None else traffic
        if generic:
            from xenpv.testing.ringkit import ringcases

            ringcases.add_to(self)

    def __repr__(self) -> str:
        return f"<RingSuite {self.name}, {len(self.cases)} cases>"

    def case(
        self,
        number: str,
        title: str,
        *,
        source: str,
        expected: str,
        requires: tuple[str, ...] = (),
        hostile: bool = True,
    ) -> Callable[[Check], Check]:
        """Decorates the function that plays case `number`, which takes a RingScene."""
        add = super().case(
            number,
            title,
            source=source,
            expected=expected,
            requires=requires,
            hostile=hostile,
        )

        def added(check: Check) -> Check:
            def play(scene: RingScene) -> None:
                scene.honest = not hostile
                check(scene)

            add(play)
            return check

        return added

    def world(self, factory: Factory | None = None, *, seed: int = 0) -> RingWorld:
        """The end under test opposite a raw one, not connected."""
        end = self.end if factory is None else factory
        if self.side == "backend":
            return ring_world(self.protocol, None, end, seed=seed, connect=False)
        world = ring_world(self.protocol, end, None, seed=seed, connect=False)
        respond, back = self.traffic.respond, world.back
        if respond is not None:
            back.respond = lambda request: respond(back, request)
        return world

    def named(self, number: str) -> Case:
        """A case by its id. LocalProtocolError: there is none."""
        found = [one for one in self.cases if one.id == number]
        if not found:
            raise LocalProtocolError(f"{self.name} has no case {number}")
        return found[0]

    @property
    def option(self) -> str:
        """` --suite file.py:NAME`; nothing where it has no name."""
        try:
            name, file = self.reference
        except LocalProtocolError:
            return ""
        return f" --suite {shown(file)}:{name.rpartition(':')[2]}"

    @property
    def reference(self) -> tuple[str, str]:
        """`module:NAME` of this suite and the file, so that a replay finds it again.

        LocalProtocolError: it is no variable of the module that has its end.
        """
        module = sys.modules.get(self.end.__module__)
        for name, value in vars(module).items() if module is not None else ():
            if value is self:
                return f"{self.end.__module__}:{name}", str(getattr(module, "__file__", "") or "")
        raise LocalProtocolError(
            f"{self.name} cannot be replayed: it is no variable of {self.end.__module__}"
        )
