"""sched_op as a domain's own kernel calls it, but for poll, which is event channels'.

do_sched_op and domain_watchdog, common/sched/core.c (public/sched.h). The body of a shutdown
is Domain.shutdown; here is who may ask for it and when.
"""

from __future__ import annotations

from collections.abc import Mapping
from errno import EINVAL, ENOENT, ENOSPC, EPERM, ESRCH
from typing import TYPE_CHECKING, Final

from xenpv.abi.sched import SHUTDOWN
from xenpv.errors import HypercallError
from xenpv.xen.clock import retire_timer, xen_timer
from xenpv.xen.loop import NS_PER_S, Timer

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain
    from xenpv.xen.vcpu import Vcpu

NR_WATCHDOGS: Final = 2  # NR_DOMAIN_WATCHDOG_TIMERS
CODE_MASK: Final = 0xFF
TIMEOUT_MASK: Final = (1 << 32) - 1


class Watchdog:
    """One watchdog timer. It runs on while its domain is paused, as Xen's does.

    To the loop it is periodic: one that is patted for ever must not keep run() from ending.
    """

    __slots__ = ("domain", "in_use", "timer")

    def __init__(self, domain: Domain, number: int) -> None:
        self.domain = domain
        self.in_use = False
        name = f"watchdog{number}"
        self.timer: Timer = xen_timer(domain, name, self._expire, NS_PER_S)

    def arm(self, timeout_s: int) -> None:
        self.timer.cancel()
        if timeout_s:
            self.timer.period_ns = timeout_s * NS_PER_S
            self.timer.arm(self.timer.period_ns)
        else:
            self._expire()

    def free(self) -> None:
        self.timer.cancel()
        self.in_use = False

    def _expire(self) -> None:
        self.timer.cancel()  # the slot stays in use
        if not (self.domain.is_shutting_down or self.domain.dying):
            self.domain.shutdown(SHUTDOWN.watchdog)


class Sched:
    """sched_op of `domain`; `vcpu` is the one that calls. Raises HypercallError."""

    __slots__ = ("domain", "watchdogs")

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.watchdogs: list[Watchdog] = []  # made with the first that is asked for

    def _vcpu(self, vcpu: int, operation: str, **arguments: int) -> Vcpu:
        if 0 <= vcpu < len(self.domain.vcpu):
            return self.domain.vcpu[vcpu]
        asked = {**arguments, "vcpu": vcpu}
        raise HypercallError(ENOENT, "no such vcpu calls", operation=operation, arguments=asked)

    def yield_(self) -> None:
        """SCHEDOP_yield: nobody waits for this vcpu's processor."""

    def block(self, vcpu: int = 0) -> bool:
        """SCHEDOP_block: the vcpu's upcalls are unmasked, it is blocked until the next.

        False if one is deliverable already and it goes on. Handlers run to completion here:
        the caller is to return to the loop.
        """
        return self._vcpu(vcpu, "SCHEDOP_block").block()

    def shutdown(self, reason: int) -> None:
        """SCHEDOP_shutdown: bits 7:0 of `reason` latch if none did before."""
        self.domain.shutdown(reason & CODE_MASK)

    def shutdown_code(self, reason: int) -> None:
        """SCHEDOP_shutdown_code: latches the reason, and nothing stops."""
        self.domain.latch_shutdown_code(reason)

    def remote_shutdown(self, domid: int, reason: int) -> None:
        """SCHEDOP_remote_shutdown: ESRCH, for DOMID_SELF too; EPERM unless it controls it."""
        domain = self.domain
        arguments = {"domid": domid, "reason": reason}
        operation = "SCHEDOP_remote_shutdown"
        other = None if domid == domain.DOMID_SELF else domain.find(domid)
        if other is None:
            raise HypercallError(ESRCH, "no such domain", operation=operation, arguments=arguments)
        if not domain.controls(other):
            raise HypercallError(
                EPERM,
                f"domain {domain.domid} does not control it",
                operation=operation,
                arguments=arguments,
            )
        other.shutdown(reason & CODE_MASK)

    def set_timer_op(self, timeout_abs_ns: int, vcpu: int = 0) -> None:
        """__HYPERVISOR_set_timer_op: VIRQ_TIMER at a system time; 0 stops.

        Negative, or 2^50 ns or more ahead, is 100 ms from now; past is at once.
        """
        found = self._vcpu(vcpu, "set_timer_op", timeout_abs_ns=timeout_abs_ns)
        found.set_timer_op(timeout_abs_ns)

    def watchdog(self, watchdog_id: int, timeout_s: int) -> int:
        """SCHEDOP_watchdog: the id of a new one (`watchdog_id` 0), else 0.

        EINVAL (above 2, or not in use), ENOSPC (both in use). Timeout 0 frees, but a new one
        with it fires at once. Expiry is a shutdown for reason 4.
        """
        arguments = {"id": watchdog_id, "timeout": timeout_s}
        if not 0 <= watchdog_id <= NR_WATCHDOGS:
            raise self._no_watchdog(EINVAL, f"ids are 1 to {NR_WATCHDOGS}", arguments)
        if not 0 <= timeout_s <= TIMEOUT_MASK:
            raise self._no_watchdog(EINVAL, "the timeout is a u32", arguments)
        if not watchdog_id:
            return self._new_watchdog(timeout_s, arguments)
        watchdog = self.watchdogs[watchdog_id - 1] if self.watchdogs else None
        if watchdog is None or not watchdog.in_use:
            raise self._no_watchdog(EINVAL, "that one is not in use", arguments)
        if timeout_s:
            watchdog.arm(timeout_s)
        else:
            watchdog.free()
        return 0

    def _new_watchdog(self, timeout_s: int, arguments: Mapping[str, object]) -> int:
        if not self.watchdogs:
            self.watchdogs = [Watchdog(self.domain, n) for n in range(1, NR_WATCHDOGS + 1)]
        for number, watchdog in enumerate(self.watchdogs, 1):
            if not watchdog.in_use:
                watchdog.in_use = True
                watchdog.arm(timeout_s)
                return number
        raise self._no_watchdog(ENOSPC, "both are in use", arguments)

    @staticmethod
    def _no_watchdog(errno: int, reason: str, arguments: Mapping[str, object]) -> HypercallError:
        return HypercallError(errno, reason, operation="SCHEDOP_watchdog", arguments=arguments)

    def destroy(self) -> None:
        """watchdog_domain_destroy."""
        for watchdog in self.watchdogs:
            retire_timer(watchdog.timer)
        self.watchdogs.clear()
