"""One explored run: what a scenario is handed, and what is done at each decision.

A scenario is a callable `scenario(x: Explorer) -> None`. It makes a world through `x`, wakes
what shall happen, calls `x.run()` and asserts what must hold, whatever the schedule:

    def scenario(x):
        world = x.world_raw()
        app = world.guest.domain.task("app", ...)
        app.wake()
        x.run()
        assert ...

Making the world is not explored: decisions begin with `x.run()` (or `x.begin()`), when the
devices are Connected. Nor is what the scenario itself does between runs: what shall race
runs in a task of a domain.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.errors import Livelock, LocalProtocolError
from xenpv.platform import Platform
from xenpv.testing import reports
from xenpv.testing.access import AccessLog, DoubleFetch
from xenpv.testing.adversary import Adversary, Load
from xenpv.testing.checkers import CheckFailed, check_all
from xenpv.testing.checks.completion import Completions
from xenpv.testing.interleave import Handler, Interleaver, Runnable, name
from xenpv.testing.intrusion import Intrusion
from xenpv.testing.schedule import Action, Point, Schedule, Step
from xenpv.testing.sites import Sites, users_site
from xenpv.view.rings import REQ_PROD, RSP_PROD
from xenpv.xen.domain import Domain
from xenpv.xen.loop import Task

if TYPE_CHECKING:
    from xenpv.testing.back_world import BackWorld
    from xenpv.testing.raw_world import RawWorld

ACCESSES_MAX: Final = 1_000_000  # of one run, before it counts as a livelock
HANDLERS_MAX: Final = 100_000
LOG_CAPACITY: Final = 1 << 12

READ: Final[int] = lib.ACCESS_READ
WRITE: Final[int] = lib.ACCESS_WRITE
PRODUCERS: Final = (REQ_PROD, RSP_PROD)
HYPERVISOR: Final[int] = lib.ACCESS_HYPERVISOR
VERBS: Final = {lib.ACCESS_READ: "reads", lib.ACCESS_WRITE: "writes", lib.ACCESS_ATOMIC: "changes"}


@attrs.define(eq=False)
class Explored:
    """A platform of the run, and what watches it."""

    platform: Platform
    log: AccessLog
    adversary: Adversary
    completions: Completions
    moved: bool = False  # a producer index may have, since the last look at completions
    victims: list[int] = attrs.field(factory=list)  # domids
    hostile: list[int] = attrs.field(factory=list)
    intrusions: list[Intrusion] = attrs.field(factory=list)
    sites: Sites | None = None


class Explorer:
    """A run of a scenario under one schedule. `explore` makes these; a scenario gets one.

    `sites`: keep the lines that fetch, for the report of a double fetch.
    """

    def __init__(self, schedule: Schedule, *, sites: bool = False) -> None:
        self.schedule = schedule
        self._sites = sites
        self.points: list[Point] = []
        self.taken: list[Step] = []  # the steps that did something, arguments as they wrapped
        self.words: list[str] = []  # each of `taken` in words
        self.fetched: list[DoubleFetch] = []
        self._worlds: list[Explored] = []
        self._steps: dict[int, list[Step]] = {}
        for step in schedule.steps:
            self._steps.setdefault(step.at, []).append(step)
        self._interleaver = Interleaver(self._choose, self._deliver, self._ended, self._is_alive)
        self._checks: list[Callable[[], object]] = []
        self._armed = False
        self._accesses = 0
        self._allow_double_fetches = False

    # what a scenario calls

    def platform(self, **parameters: Any) -> Platform:
        """A Platform(**parameters), closed when the run ends."""
        return self.adopt(Platform(**parameters))

    def world_raw(self, seed: int = 0, **parameters: Any) -> RawWorld:
        """world_raw(seed, **parameters): raw frontends on real backends."""
        from xenpv.testing.raw_world import world_raw

        world = world_raw(seed, **parameters)
        self.adopt(world.platform)
        return world

    def world_back(self, seed: int = 0, **parameters: Any) -> BackWorld:
        """world_back(seed, **parameters): raw backends under real frontends."""
        from xenpv.testing.back_world import world_back

        world = world_back(seed, **parameters)
        self.adopt(world.platform)
        return world

    def adopt(self, platform: Platform) -> Platform:
        """Explore a platform that was made elsewhere; it is closed when the run ends."""
        self._worlds.append(
            Explored(
                platform,
                AccessLog(platform, capacity=LOG_CAPACITY),
                Adversary(platform.hypervisor),
                Completions(platform),
                sites=Sites() if self._sites else None,
            )
        )
        return platform

    def attack(self, victim: Domain, *, hostile: Domain | None = None) -> None:
        """From now on what `victim` loads of shared memory may be changed before it does.

        The domains that would do that (`hostile`; None: every other) are not held to what
        they wrote.
        """
        for world in self._worlds:
            domains = world.platform.hypervisor.domains
            if domains.get(victim.domid) is not victim:
                continue  # a domain of that number on another machine
            world.victims.append(victim.domid)
            domids = [one for one in domains if one != victim.domid]
            world.hostile += domids if hostile is None else [hostile.domid]

    def allow_double_fetches(self) -> None:
        """Do not fail for what is fetched twice; `log_of` still tells it."""
        self._allow_double_fetches = True

    def decide(self, what: str, count: int) -> int:
        """A decision of the scenario's own: an index below `count`, 0 unless the schedule says
        otherwise. Faults and orders that are drawn with it shrink and replay as all else does.

        `what` is for people: "drop the event". Before `begin` the answer is 0 and no decision.
        LocalProtocolError for a count below 1.
        """
        if count < 1:
            raise LocalProtocolError(f"{what}: a decision among {count}")
        if not self._armed or count == 1:
            return 0
        return self._pick(count, lambda index: f"{what}: {index} of {count}", what)

    def each(self, check: Callable[[], object]) -> None:
        """Call `check` whenever a handler has ended, for laws that hold at any moment:
        `x.each(lambda: check_all(xen, quiescent=False))`. What it raises is the run's failure.
        """
        self._checks.append(check)

    def intrude(
        self,
        domain: Domain,
        place: tuple[int, int],
        act: Callable[[], object],
        *,
        writes: bool = False,
        nth: int = 1,
    ) -> None:
        """Call `act`, as what a peer does on another processor, before the `nth` time that a
        handler of `domain` reads (or `writes`) what lies at `place`: machine frame and offset.
        """
        frame, offset = place
        one = Intrusion(domain.domid, frame, offset, writes, nth, act)
        for world in self._worlds:
            if world.platform.hypervisor.domains.get(domain.domid) is domain:
                world.intrusions.append(one)

    def log_of(self, platform: Platform) -> AccessLog:
        """The access log of a platform of this run, open from `begin` on."""
        return next(one.log for one in self._worlds if one.platform is platform)

    def begin(self) -> None:
        """From now on the schedule decides."""
        if self._armed:
            return
        self._armed = True
        for world in self._worlds:
            world.log.open()
            world.adversary.victims = world.victims
            world.adversary.refresh()
            world.completions.look(world.hostile)
            world.platform.loop.scheduler = self._interleaver
            world.platform.hypervisor.set_hook(_Hook(self, world))

    def run(self) -> int:
        """Let everything happen that is due, as the schedule says; handlers run. Then `check`."""
        self.begin()
        ran = sum(one.platform.loop.run(HANDLERS_MAX) for one in self._worlds)
        self.check()
        return ran

    def check(self, *, quiescent: bool = True) -> None:
        """Every checker on every platform, and that no ring entry was fetched twice.

        Raises CheckFailed.
        """
        armed, self._armed = self._armed, False
        try:
            for world in self._worlds:
                if armed:
                    self._complete(world)
                check_all(world.platform, quiescent=quiescent, hostile=world.hostile)
                if armed and not self._allow_double_fetches:
                    twice = [one for one in world.log.double_fetches() if one.in_slot]
                    if world.sites is not None:
                        twice = [world.sites.locate(one) for one in twice]
                    self.fetched += twice
                    if twice:
                        raise CheckFailed([str(one) for one in twice])
        finally:
            self._armed = armed

    # decisions

    def _choose(self, options: list[Runnable]) -> int:
        if not self._armed:
            return 0
        return self._pick(
            len(options), lambda index: f"run {name(options[index])} before {name(options[0])}"
        )

    def _pick(self, count: int, words: Callable[[int], str], *place: str) -> int:
        at = self._point(Point(True, count, place=place))
        for step in self._steps.get(at, ()):
            index = step.argument % count
            if step.action is Action.RUN and index:
                self._took(attrs.evolve(step, argument=index), words(index))
                return index
        return 0

    def _ended(self) -> None:
        armed, self._armed = self._armed, False
        try:
            for world in self._worlds if armed else ():
                if world.moved:
                    self._complete(world)
            for check in self._checks if armed else ():
                check()
        finally:
            self._armed = armed

    def _complete(self, world: Explored) -> None:
        """Hold what went over the rings since to the law of one response a request."""
        world.moved = False
        wrong = world.completions.look(world.hostile)
        if wrong:
            raise CheckFailed(wrong)

    def _deliver(self, task: Task) -> None:
        for world in self._worlds:
            hypervisor = world.platform.hypervisor
            if hypervisor.loop is task.loop and hypervisor.number == task.machine:
                lib.log_delivery(hypervisor.machine, task.domid)
                if world.sites is not None:
                    world.sites.deliver(task.domid)

    def _is_alive(self, task: Task) -> bool:
        for world in self._worlds:
            hypervisor = world.platform.hypervisor
            if hypervisor.loop is task.loop and hypervisor.number == task.machine:
                domain = hypervisor.domains.get(task.domid)
                return domain is not None and not domain.dying
        return False

    def _point(self, point: Point) -> int:
        self.points.append(point)
        return len(self.points) - 1

    def _took(self, step: Step, words: str) -> None:
        self.taken.append(step)
        self.words.append(words)

    def access(self, world: Explored, actor: int, kind: int, load: Load) -> None:
        """Before each access of a running handler: the hook."""
        if not self._armed or self._interleaver.current is None:
            return
        self._accesses += 1
        if self._accesses > ACCESSES_MAX:
            loop = world.platform.loop
            raise Livelock(
                f"{self._accesses} accesses in one run", seed=loop.seed, tail=loop.trace.tail()
            )
        if kind & 3 == WRITE and load.offset in PRODUCERS:
            world.moved = True
        if world.intrusions:
            self._intruded(world, actor, kind, load)
        adversary = world.adversary
        targets: list[Runnable] = []
        if not kind & HYPERVISOR and not (
            adversary.is_grant_table(load.frame)
            and lib.frame_owner(world.platform.hypervisor.machine, load.frame) != actor
        ):
            targets = self._interleaver.targets()
        pokes = 0
        if world.victims and not kind & 3:
            pokes = adversary.count(actor, load)
        at = self._point(Point(False, len(targets), pokes, (actor, kind, load.frame)))
        for step in self._steps.get(at, ()):
            self._act(step, world, actor, kind, load, targets, pokes)

    def _intruded(self, world: Explored, actor: int, kind: int, load: Load) -> None:
        for one in [one for one in world.intrusions if one.meets(actor, kind, load)]:
            armed, self._armed = self._armed, False
            try:
                one.act()
            finally:
                self._armed = armed

    def _act(
        self,
        step: Step,
        world: Explored,
        actor: int,
        kind: int,
        load: Load,
        targets: list[Runnable],
        pokes: int,
    ) -> None:
        adversary = world.adversary
        if step.action is Action.POKE and pokes:
            step = attrs.evolve(step, argument=step.argument % pokes)
            change = adversary.change(load, step.argument)
            self._took(step, f"before d{actor} reads it{_at()}, {change}")
        elif step.action is Action.PREEMPT and targets:
            step = attrs.evolve(step, argument=step.argument % len(targets))
            target = targets[step.argument]
            where = adversary.name(load.frame, load.offset)
            self._took(
                step,
                f"preempt {self._interleaver.current} before it {VERBS[kind & 3]} {where}{_at()}, "
                f"{'resume' if isinstance(target, Handler) else 'run'} {name(target)}",
            )
            self._interleaver.preempt(target)

    # the end

    def digest(self) -> str:
        """32 hex digits over all that happened on every platform."""
        whole = blake2b(digest_size=16)
        for world in self._worlds:
            whole.update(world.platform.loop.trace.hexdigest().encode())
        return whole.hexdigest()

    def tail(self) -> list[str]:
        """The last events of every platform, oldest first."""
        return [line for world in self._worlds for line in reports.tail(world.platform)]

    def tables(self) -> list[str]:
        """Every ring of every platform, its entries decoded."""
        return [line for world in self._worlds for line in reports.tables(world.platform)]

    def stores(self) -> list[str]:
        """The store of every platform: a node a line."""
        return [line for world in self._worlds for line in reports.store(world.platform)]

    def stop(self) -> None:
        """No decisions any more: what is looked at from now on is looked at as it is."""
        self._armed = False

    def close(self) -> None:
        """Unwind what is stopped, close the platforms; a second call does nothing."""
        self._armed = False
        self._interleaver.close()
        worlds, self._worlds = self._worlds, []
        for world in worlds:
            world.platform.loop.scheduler = None
            world.platform.close()  # which ends its log too


def _at() -> str:
    """Where a user's driver makes the access."""
    place = users_site()
    return "" if place is None else f" at {place}"


class _Hook:
    """The hypervisor's hook of one platform."""

    __slots__ = ("_explorer", "_world")

    def __init__(self, explorer: Explorer, world: Explored) -> None:
        self._explorer = explorer
        self._world = world

    def __call__(self, actor: int, kind: int, frame: int, offset: int, size: int) -> None:
        if self._world.sites is not None:
            self._world.sites.access(actor, kind, frame, offset, size)
        self._explorer.access(self._world, actor, kind, Load(frame, offset, size))
