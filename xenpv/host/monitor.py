"""What `xl create` stays behind for: it waits until its domain goes down, then acts.

tools/xl/xl_vmcontrol.c: create_domain, handle_domain_death, preserve_domain. It acts between two
runs of the loop, as a process of the host does between two events; what it waits for itself is
the two seconds before it makes a domain again.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from xenpv.abi.sched import SHUTDOWN
from xenpv.errors import Livelock, XenpvError
from xenpv.host.libxl import STEP_NS, Created, LibxlCtx
from xenpv.xen.loop import NS_PER_S

if TYPE_CHECKING:
    from xenpv.host.domainconfig import Action, DomainConfig
    from xenpv.host.toolstack import Toolstack

REST_NS: Final = 2 * NS_PER_S  # xl sleeps so long before it makes a domain again
RESTARTS_MAX: Final = 10  # in one run(), which ends when nothing is left to do
LINES_MAX: Final = 1024

# The key of the configuration that says what follows; any other reason: destroy.
ON: Final[dict[int, str]] = {
    SHUTDOWN.poweroff: "on_poweroff",
    SHUTDOWN.reboot: "on_reboot",
    SHUTDOWN.crash: "on_crash",
    SHUTDOWN.watchdog: "on_watchdog",
    SHUTDOWN.soft_reset: "on_soft_reset",
}


class Kept(Protocol):
    """Whoever has the guest's side of a domain, and follows it into the next one."""

    def reborn(self, made: Created, *, kept: Created | None) -> None:
        """The guest boots anew, in `made`. `kept`: the domain before that is still there."""


class Phase(enum.Enum):
    """What the process does."""

    WAITING = "waits for the domain to go down"
    SUSPENDED = "waits for the domain to be resumed"
    RESTING = "waits before it makes the domain again"
    OVER = "ended"


class Monitor:
    """One domain's. `log` is what xl writes to its log file, the last LINES_MAX lines."""

    def __init__(self, toolstack: Toolstack, made: Created, guest: Kept) -> None:
        self.toolstack = toolstack
        self.made = made
        self.guest = guest
        self.phase = Phase.WAITING
        self.log: deque[str] = deque(maxlen=LINES_MAX)
        self.restarts = 0
        self.failure: XenpvError | None = None  # why a domain could not be made again
        self.deadline = 0  # of Phase.RESTING
        self._next: DomainConfig | None = None  # what is made after it
        self._resets = False  # or the same domain, built anew
        self._kept: Created | None = None
        self._say(f"Waiting for domain {made.config.name} (domid {made.domid}) to die")

    @property
    def ctx(self) -> LibxlCtx:
        return self.toolstack.ctx

    def _say(self, line: str) -> None:
        self.log.append(line)
        self.ctx.control.trace.note(0, f"xl: {line}")

    def act(self) -> bool:
        """Do what is due. True if something was done, so that the loop has to run again."""
        if self.phase is Phase.OVER:
            return False
        if self.phase is Phase.RESTING:
            return self._restart_when_rested()
        domain = self.made.domain
        if domain.dying or self.toolstack.created.get(domain.domid) is not self.made:
            self._say(f"Domain {domain.domid} has been destroyed.")
            self.phase = Phase.OVER
            return False
        code = domain.shutdown_code
        if not domain.is_shutdown or code is None:
            self.phase = Phase.WAITING
            return False
        if code == SHUTDOWN.suspend:
            if self.phase is Phase.WAITING:
                self._say("Domain has suspended.")
                self.phase = Phase.SUSPENDED
            return False
        self._say(f"Domain {domain.domid} has shut down, reason code {code} {code:#x}")
        self._handle(code)
        return True

    def _handle(self, code: int) -> None:
        """handle_domain_death"""
        action = self._action(code)
        config = self.made.config
        if action.startswith("coredump-"):
            self._dump()
            action = action.removeprefix("coredump-")
        if action == "preserve":
            self._done()
        elif action == "soft-reset":
            self._rest(config, resets=True)
        elif action == "rename-restart":
            self._rename(config)
        else:
            self._say(f"Domain {self.made.domid} needs to be cleaned up: destroying the domain")
            self.toolstack.destroy(self.made)
            if action == "restart":
                self._rest(config)
            else:
                self._done()

    def _action(self, code: int) -> str:
        key = ON.get(code)
        if key is None:
            self._say(f"Unknown shutdown reason code {code}. Destroying domain.")
            return "destroy"
        action: Action = getattr(self.made.config, key)
        self._say(f"Action for shutdown reason code {code} is {action.value}")
        return action.value

    def _done(self) -> None:
        self._say("Done. Exiting now")
        self.phase = Phase.OVER

    def _dump(self) -> None:
        """No point crying over spilled milk: what goes wrong is only said."""
        try:
            where = self.toolstack.dumps.dump(self.made)
        except (XenpvError, OSError) as error:
            self._say(f"core dump failed: {error}")
        else:
            self._say(f"dumped core to {where}")

    def _rename(self, config: DomainConfig) -> None:
        """preserve_domain: the dead domain stays, under another name and with another UUID."""
        name = config.name + self.toolstack.utc_suffix()
        self._say(f"Preserving domain {self.made.domid} {config.name} as {name}")
        try:
            self.toolstack.preserve(self.made, name)
        except XenpvError as error:
            self._fail("it cannot be renamed", error)
            return
        self._kept = self.made
        self._rest(config)

    def _rest(self, config: DomainConfig, *, resets: bool = False) -> None:
        self._say("Done. Rebooting now")
        self._next = config
        self._resets = resets
        self.phase = Phase.RESTING
        self.deadline = self.ctx.loop.now + REST_NS

    def _restart_when_rested(self) -> bool:
        if self.ctx.loop.now < self.deadline:
            return False
        assert self._next is not None
        try:
            if self._resets:
                self.toolstack.soft_reset(self.made)
            else:
                self.made = self.toolstack.create(self._next)
        except XenpvError as error:
            self._fail("it cannot be made again", error)
            return True
        kept, self._kept = self._kept, None
        self.guest.reborn(self.made, kept=kept)
        self.restarts += 1
        self.phase = Phase.WAITING
        self.toolstack.unpause(self.made)
        self._say(f"Waiting for domain {self.made.config.name} (domid {self.made.domid}) to die")
        return True

    def _fail(self, what: str, error: XenpvError) -> None:
        self._say(f"{what}: {error}")
        self.failure = error
        self.phase = Phase.OVER


class Monitors:
    """The waiting processes of one host, in the order in which they were started."""

    def __init__(self, ctx: LibxlCtx) -> None:
        self.ctx = ctx
        self.waiting: list[Monitor] = []

    def add(self, monitor: Monitor) -> Monitor:
        self.waiting.append(monitor)
        return monitor

    def run(self) -> int:
        """Loop.run, and what the monitors then do, until neither has anything left; tasks run.

        Raises Livelock where a guest was restarted RESTARTS_MAX times and went down again: that
        one stays down, its monitor has ended.
        """
        before = [(monitor, monitor.restarts) for monitor in self.waiting]
        done = self.ctx.loop.run()
        while self.waiting:
            self._give_up(before)
            if self._act():
                done += self.ctx.loop.run()
                continue
            rested = self._next_deadline()
            if rested is None:
                break
            done += self.ctx.loop.advance(rested - self.ctx.loop.now)
        return done

    def advance(self, ns: int) -> int:
        """Loop.advance in steps, between which the monitors act; tasks run.

        What they do takes its own time: a domain destroyed or made at the end may pass it.
        """
        loop = self.ctx.loop
        end = loop.now + ns
        done = loop.advance(0)
        while self.waiting and loop.now < end:
            acted = self._act()
            until = min(end, loop.now + STEP_NS, self._next_deadline() or end)
            done += loop.advance(0 if acted else until - loop.now)
        if loop.now < end:
            done += loop.advance(end - loop.now)
        if self._act():
            done += loop.advance(0)
        return done

    def _act(self) -> bool:
        acted = False
        for monitor in self.waiting:
            acted |= monitor.act()
        self.waiting = [one for one in self.waiting if one.phase is not Phase.OVER]
        return acted

    def _next_deadline(self) -> int | None:
        resting = [one.deadline for one in self.waiting if one.phase is Phase.RESTING]
        return min(resting, default=None)

    def _give_up(self, before: list[tuple[Monitor, int]]) -> None:
        for monitor, restarts in before:
            if monitor.restarts - restarts < RESTARTS_MAX or not monitor.made.domain.is_shutdown:
                continue
            monitor.phase = Phase.OVER
            self.waiting.remove(monitor)
            name, code = monitor.made.config.name, monitor.made.domain.shutdown_code
            loop = self.ctx.loop
            raise Livelock(
                f"guest {name!r} went down after each of {RESTARTS_MAX} restarts, "
                f"the last time with reason code {code}",
                seed=loop.seed,
                tail=loop.trace.tail(),
            )
