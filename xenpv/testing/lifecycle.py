"""Random commands of a toolstack, with traffic running, and what must hold after each.

    run_lifecycle(seed=7, count=200)

A run is a seed and a list of steps; a step that cannot be done when its turn comes is
skipped, so steps can be left out of a list and the rest still means something. A failure is
shrunk that way, and says how it is run again.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, Self

import attrs

from _xenpv_hypothesis import register
from xenpv.abi._kernel import lib
from xenpv.errors import XenpvError
from xenpv.host.image import MemoryImage
from xenpv.platform import Platform
from xenpv.testing.census import Census, Key, leaks, take_census
from xenpv.testing.checkers import CheckFailed, check_all
from xenpv.testing.tenant import Tenant
from xenpv.testing.traffic import DiskTraffic, NetTraffic, Pump, Station

if TYPE_CHECKING:
    from xenpv.guest import Guest
    from xenpv.store.server import TraceSink

HOSTS: Final = 2
TENANTS_MAX: Final = 4
ROUNDS: Final = 12  # of traffic while a command runs
CLEARING: Final = (lib.XS_WRITE, lib.XS_RM)
SHRINK_RUNS_MAX: Final = 150
PERSONALITIES: Final = ("windows", "linux")
# A guest's grant table never shrinks, and its frames lie in holes of its RAM. A HVM domain that is
# made with less than maxmem has a MiB less than one that was given as much by mem-set.
PAGES_MAX: Final = 8 + 256
# Of drivers/<n> the number depends on who came first; XENVBD never removes data/scsi, mem-set
# alone writes memory, and of the rest the parents stay.
HISTORY: Final = re.compile(
    r"/(attr/vif|drivers/\d+|feature/hotplug(/\w+)?|error(/.*)?|data/scsi(/.*)?)$"
    r"|^/vm/[^/]+/memory$"
)
REFERENCE: Final = "guest"  # what every guest is called where censuses are compared
OWNED: Final = (REFERENCE, "page", "owned")


@attrs.frozen
class Step:
    """One command: which of the guests it can be done to, and a number for what else it needs."""

    command: str
    pick: int = 0
    draw: int = 0

    def __str__(self) -> str:
        return f"{self.command}:{self.pick}:{self.draw}"

    @classmethod
    def parse(cls, text: str) -> Step:
        """`migrate:1:17`"""
        command, _, numbers = text.partition(":")
        pick, _, draw = numbers.partition(":")
        return cls(command, int(pick or 0), int(draw or 0))


class LifecycleFailed(CheckFailed):
    """`seed` and `steps` are those of the run, `findings` what was wrong after the last step."""

    def __init__(self, seed: int, steps: Sequence[Step], findings: list[str]) -> None:
        super().__init__(findings)
        self.seed = seed
        self.steps = tuple(steps)

    @property
    def again(self) -> str:
        """The command line that runs it again."""
        steps = " ".join(str(step) for step in self.steps)
        return f"python -m xenpv.testing.lifecycle {self.seed} {steps}"

    def __str__(self) -> str:
        findings = "\n  ".join(self.findings)
        return f"after {len(self.steps)} steps:\n  {findings}\nrun it again: {self.again}"


class Acknowledged:
    """Between xenstored and its trace: who has cleared control/shutdown since `clear`."""

    def __init__(self, inner: TraceSink | None, platform: Platform) -> None:
        self.inner = inner
        self.platform = platform
        self.domids: list[int] = []

    def store_op(
        self, conn_domid: int, op: int, tx_id: int, payload: bytes, error: bytes | None
    ) -> None:
        """A request of some client."""
        if (
            conn_domid
            and error is None
            and op in CLEARING
            and payload.split(b"\0", 1)[0].endswith(b"control/shutdown")
            and not payload.split(b"\0", 1)[1]
        ):
            self.domids.append(conn_domid)
        if self.inner is not None:
            self.inner.store_op(conn_domid, op, tx_id, payload, error)


class Lifecycle:
    """Hosts that share a loop, the guests on them, and their traffic."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(f"lifecycle {seed}")
        self.hosts = [Platform(seed=seed)]
        while len(self.hosts) < HOSTS:
            self.hosts.append(Platform(seed=seed, loop=self.hosts[0].loop))
        self.loop = self.hosts[0].loop
        self.net = NetTraffic()
        self.pump = Pump(self.loop, seed)
        self.tenants: list[Tenant] = []
        self.findings: list[str] = []
        self._directory = TemporaryDirectory(prefix="xenpv-lifecycle-")
        self.path = Path(self._directory.name) / "guest.save"
        self.acknowledged = []
        for host in self.hosts:
            # A guest that is paused for long would lose events, and devices with them.
            host.xenstored.event_timeout_s = 0
            tap = Acknowledged(host.xenstored.trace, host)
            host.xenstored.trace = tap
            self.acknowledged.append(tap)
        self.done: dict[str, int] = {}
        self._images = self._names = self._macs = 0
        self._references: dict[tuple[object, ...], tuple[Census, int]] = {}
        for host in self.hosts:
            host.create(name="warm").start().destroy()
        self._empty = [take_census(host) for host in self.hosts]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            host.close()
        self._directory.cleanup()

    # what commands make

    def name(self) -> str:
        self._names += 1
        return f"g{self._names}"

    def image(self) -> tuple[str, DiskTraffic]:
        """A disk image that every host can open by one name, and its traffic."""
        self._images += 1
        name = f"traffic-{self._images}"
        image = MemoryImage(bytearray(128 << 10))
        for host in self.hosts:
            host.images.register(name, image)
        return name, DiskTraffic(name, image)

    def mac(self) -> str:
        self._macs += 1
        return f"00:16:3e:70:{self._macs >> 8 & 0xFF:02x}:{self._macs & 0xFF:02x}"

    def station(self, tenant: Tenant, devid: int, mac: str) -> None:
        """An interface of a guest that is attached from now on."""
        name = f"{tenant.guest.name} vif {devid}"
        station = Station(name, bytes.fromhex(mac.replace(":", "")), tenant.host)
        tenant.stations[devid] = station
        self.net.stations.append(station)

    def tenant(self, guest: Guest, host: int, personality: str) -> Tenant:
        tenant = Tenant(guest, host, personality, self.net)
        self.tenants.append(tenant)
        self.pump.sources.append(tenant)
        return tenant

    def gone(self, tenant: Tenant) -> None:
        """A guest that will not come back."""
        tenant.retire()
        self.tenants.remove(tenant)
        self.pump.sources.remove(tenant)

    def expect(self, condition: bool, what: str) -> None:
        if not condition:
            self.findings.append(what)

    # one step

    def do(self, step: Step) -> bool:
        """One step and everything that is checked after it; False if it could not be done.

        Raises CheckFailed.
        """
        from xenpv.testing.commands import COMMANDS

        command = COMMANDS[step.command]
        able = [one for one in self.tenants if command.when(self, one)]
        tenant = able[step.pick % len(able)] if able and command.act is not None else None
        if tenant is None and (command.make is None or len(self.tenants) >= TENANTS_MAX):
            return False
        self.done[step.command] = self.done.get(step.command, 0) + 1
        for tap in self.acknowledged:
            tap.domids.clear()
        disturbed = tenant if command.disturbs else None
        failed = self._failures(disturbed)
        if disturbed is not None:
            disturbed.disturb()
        self.pump.pour(ROUNDS)
        try:
            if tenant is not None and command.act is not None:
                command.act(self, tenant, step.draw)
            elif command.make is not None:
                command.make(self, step.draw)
            self._settle(disturbed)
        except Exception as error:
            if isinstance(error, CheckFailed):
                raise
            raise CheckFailed([f"{step}: {type(error).__name__}: {error}"]) from error
        self._check(failed)
        return True

    def _failures(self, disturbed: Tenant | None) -> dict[DiskTraffic, int]:
        """How many requests failed so far, of each disk to which nothing happens."""
        return {
            traffic: traffic.failed
            for one in self.tenants
            for traffic in one.disks.values()
            if one is not disturbed and traffic.connected
        }

    def _settle(self, disturbed: Tenant | None) -> None:
        """Until nothing is left to run; then some more traffic, which nothing disturbs."""
        self.loop.run()
        self.pump.pour(0)
        if disturbed is not None:
            disturbed.disturb()
        for tenant in self.tenants:
            tenant.sync()
        self.pump.pour(ROUNDS // 2)
        self.loop.run()
        for tenant in self.tenants:
            bus = tenant.guest.bus
            if tenant.awake and bus is not None:
                bus.gnttab.defer(())  # what a backend held for a moment too long is tried again

    def _check(self, failed: dict[DiskTraffic, int]) -> None:
        findings, self.findings = self.findings, []
        for tenant in self.tenants:
            findings += tenant.check()
        for traffic, before in failed.items():
            if traffic.failed != before:
                findings.append(f"{traffic.name}: requests failed though nothing was done to it")
        awake = [station for one in self.tenants if one.awake for station in one.stations.values()]
        findings += self.net.check(awake)
        for at, host in enumerate(self.hosts):
            try:
                check_all(host)
            except CheckFailed as error:
                findings += error.findings
            findings += self._census(at, host)
        if findings:
            raise CheckFailed(findings)

    def _census(self, at: int, host: Platform) -> list[str]:
        """Each guest holds what its shape takes, and what nobody holds is what was there before."""
        census = take_census(host)
        findings = []
        maps = sum(n for key, n in census.counts.items() if key[:2] == ("dom0", "map"))
        holes = census.counts.get(("dom0", "page", "in holes"), 0)
        if maps != holes:
            findings.append(f"host {at}: dom0 maps {maps} pages, and {holes} of its holes are used")
        rest = dict(census.counts)
        rest.pop(("dom0", "page", "in holes"), None)
        for tenant in self.tenants:
            if tenant.host != at:
                continue
            name = tenant.guest.name
            mine = census.of(name)
            for key in mine.counts:
                del rest[key]
            if tenant.awake:  # else it may owe an answer to what was done to it
                findings += self._compare(tenant, mine.renamed(name, REFERENCE))
        findings += [
            f"host {at}: {line}" for line in leaks(self._empty[at], Census(rest), lost=False)
        ]
        return findings

    def _compare(self, tenant: Tenant, census: Census) -> list[str]:
        """With what the first guest of that shape had."""
        owned = census.counts.get(OWNED, 0)
        mine = Census(
            {key: n for key, n in census.counts.items() if key != OWNED and not is_history(key)}
        )
        reference, pages = self._references.setdefault(tenant.shape, (mine, owned))
        name = tenant.guest.name
        found = [f"{name}: {line}" for line in leaks(reference, mine)]
        if abs(owned - pages) > PAGES_MAX:
            found.append(f"{name}: it owns {owned} pages, and {pages} were usual")
        return found


def is_history(key: Key) -> bool:
    """What tells of what was there once: a guest cannot take it away, or does not."""
    return key[:2] == ("store", "node") and HISTORY.search(key[2]) is not None


# runs


def draw_steps(seed: int) -> Iterator[Step]:
    """Steps without end, by the weights of the commands."""
    from xenpv.testing.commands import COMMANDS

    chance = random.Random(f"steps {seed}").random
    names = [name for name, command in COMMANDS.items() for _ in range(command.weight)]
    while True:
        yield Step(names[int(chance() * len(names))], int(chance() * 64), int(chance() * 1024))


def run_steps(seed: int, steps: Iterable[Step], count: int | None = None) -> dict[str, int]:
    """How often each command was done, up to `count` in all. Raises LifecycleFailed."""
    taken: list[Step] = []
    left = -1 if count is None else count
    with Lifecycle(seed) as life:
        for step in steps:
            if not left:
                break
            taken.append(step)
            try:
                left -= life.do(step)
            except CheckFailed as error:
                raise LifecycleFailed(seed, taken, error.findings) from error
        return life.done


def run_lifecycle(seed: int, count: int) -> dict[str, int]:
    """`count` random commands; how often each was done. A failure is shrunk before it is
    raised, as LifecycleFailed.
    """
    try:
        return run_steps(seed, draw_steps(seed), count)
    except LifecycleFailed as error:
        raise shrink(error) from error


def shrink(failed: LifecycleFailed) -> LifecycleFailed:
    """The same failure with as few steps as leaving some out can bring it to."""
    steps, size, runs = list(failed.steps), len(failed.steps) // 2, 0
    while size and runs < SHRINK_RUNS_MAX:
        at = 0
        while at < len(steps) and runs < SHRINK_RUNS_MAX:
            fewer = steps[:at] + steps[at + size :]
            runs += 1
            try:
                run_steps(failed.seed, fewer)
            except LifecycleFailed as error:
                failed, steps = error, list(error.steps)
            else:
                at += size
        size = min(size // 2, len(steps) // 2) if size > 1 else 0
    return failed


def main(arguments: Sequence[str]) -> int:
    """`python -m xenpv.testing.lifecycle SEED STEP...`: run a list of steps again."""
    seed, *steps = arguments
    try:
        done = run_steps(int(seed), [Step.parse(text) for text in steps])
    except LifecycleFailed as error:
        print(error)
        return 1
    except (ValueError, KeyError, XenpvError) as error:
        print(f"bad step: {error}", file=sys.stderr)
        return 2
    print(f"{sum(done.values())} of {len(steps)} steps done, nothing wrong")
    return 0


if "hypothesis" in sys.modules:  # else it asks for them when it is imported
    register()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
