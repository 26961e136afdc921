"""SCHEDOP_poll: a vcpu sleeps until one of its ports is pending.

xen/common/sched/core.c do_poll, evtchn_check_pollers. A sleeping vcpu is a named state: the
call comes back at once, its runstate is blocked, and a task of the caller's is woken when Xen
would let it run.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import EINVAL, ENOENT
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.errors import HypercallError, LocalProtocolError

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain
    from xenpv.xen.loop import Task, Timer

NR_PORTS_MAX: Final = 128


@attrs.define(eq=False)
class Poll:
    """A vcpu asleep in SCHEDOP_poll. `port` alone wakes it, or any port if that is 0."""

    vcpu: int
    port: int
    wake: Task


class _Timeout:
    """The poll timer of one vcpu."""

    def __init__(self, pollers: Pollers, vcpu: int) -> None:
        self._pollers = pollers
        self._vcpu = vcpu
        domain = pollers.domain
        self.timer: Timer = domain.timer(domain.task(f"poll timeout{vcpu}", self.expire))

    def expire(self) -> None:
        self._pollers.wake(self._vcpu)


class Pollers:
    """The vcpus of one domain that sleep in SCHEDOP_poll, by number in `asleep`."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.asleep: dict[int, Poll] = {}
        self._timeouts: dict[int, _Timeout] = {}

    def poll(self, ports: Sequence[int], timeout: int, wake: Task, vcpu: int) -> bool:
        """SCHEDOP_poll; see EventChannels.sched_poll."""
        domain = self.domain
        arguments = {"ports": list(ports), "timeout": timeout, "vcpu": vcpu}
        if vcpu in self.asleep:
            raise LocalProtocolError(f"vcpu {vcpu} sleeps in SCHEDOP_poll already")
        if not 0 <= vcpu < domain.vcpus:
            raise _refused(ENOENT, "no such vcpu calls", arguments)
        if len(ports) > NR_PORTS_MAX:
            raise _refused(EINVAL, f"more than {NR_PORTS_MAX} ports", arguments)
        if domain.check(lib.evtchn_deliverable(domain.kernel, vcpu)):
            return True
        for port in ports:
            handle = domain.evtchn.usable(port)
            if handle is None:
                raise _refused(EINVAL, f"port {port} cannot be polled", arguments)
            if domain.check(lib.evtchn_polls_pending(handle)):
                return True
        self.asleep[vcpu] = Poll(vcpu=vcpu, port=ports[0] if len(ports) == 1 else 0, wake=wake)
        lib.evtchn_set_polling(domain.kernel, 1)
        domain.vcpu[vcpu].poll(asleep=True)
        if timeout:
            if vcpu not in self._timeouts:
                self._timeouts[vcpu] = _Timeout(self, vcpu)
            self._timeouts[vcpu].timer.arm(timeout - domain.loop.now)
        return False

    def check(self, port: int) -> None:
        """A port is newly pending, masked or not: who waits for it, or for any?"""
        for poll in list(self.asleep.values()):
            if poll.port in (0, port):
                self.wake(poll.vcpu)

    def wake(self, vcpu: int) -> None:
        """That vcpu runs again, if it slept: its call returns 0."""
        poll = self.asleep.pop(vcpu, None)
        if poll is None:
            return
        if vcpu in self._timeouts:
            self._timeouts[vcpu].timer.cancel()
        if not self.asleep:
            lib.evtchn_set_polling(self.domain.kernel, 0)
        self.domain.vcpu[vcpu].poll(asleep=False)
        poll.wake.wake()


def _refused(errno: int, reason: str, arguments: dict[str, object]) -> HypercallError:
    return HypercallError(errno, reason, operation="SCHEDOP_poll", arguments=arguments)
