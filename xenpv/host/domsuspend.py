"""A domain is asked to suspend, and resumed in place (libxl_dom_suspend.c, xg_resume.c).

Which way it is asked is looked up in this order:

1. It wrote a port into device/suspend/event-channel and is in no S-state: the port is bound and
   notified. Nothing acknowledges that; Xen raises the same channel when the domain suspends.
2. An HVM domain without PV drivers, or in an S-state: the hypervisor stops it.
3. control/shutdown says `suspend`. Any other value there is the acknowledgement.

Each wait is 60 s of virtual time. ToolstackError's code is GUEST_TIMEDOUT where one ran out: then
the domain may still suspend later.
"""

from __future__ import annotations

import enum
from typing import Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.sched import SHUTDOWN
from xenpv.errors import HypercallError, StoreError
from xenpv.host.libxl import LIBXL, Created, LibxlCtx, ToolstackError
from xenpv.store.wire import atoi
from xenpv.xen.domctl import DOMINF
from xenpv.xen.loop import NS_PER_S

SUSPEND_TIMEOUT_NS: Final = 60 * NS_PER_S
SUSPEND: Final = "suspend"
EVENT_CHANNEL: Final = "device/suspend/event-channel"


class SuspendWay(enum.Enum):
    """How a domain was asked."""

    EVTCHN = "event channel"
    HYPERVISOR = "hypervisor"
    CONTROL = "control/shutdown"


@attrs.frozen
class Suspended:
    """A domain that is suspended now. `guest_responded`: it acknowledged, or had not to."""

    way: SuspendWay
    guest_responded: bool


class Quirk(enum.Enum):
    """What libxl gets wrong here. None is on unless DomSuspend.quirks has it."""

    # libxl__xc_domain_save_done: whatever a save fails of counts as GUEST_TIMEDOUT unless the
    # guest acknowledged, which by event channel it cannot: `migrate` leaves it suspended.
    UNHEARD_FAILURE_IS_TIMEOUT = "unheard-failure-is-timeout"


class SuspendChannel:
    """The toolstack's end of the port that a guest offered; `heard` since it was last read.

    It is pending from the moment it is bound (event_channel.h), which tells nothing.
    """

    def __init__(self, ctx: LibxlCtx, domid: int, remote_port: int) -> None:
        assert ctx.dispatcher is not None
        self.ctx = ctx
        self.domid = domid
        self.heard = False
        self.port = ctx.control.evtchn.bind_interdomain(domid, remote_port)
        ctx.dispatcher.bind(self.port, f"suspend d{domid}", self._raised)
        ctx.control.domctl.subscribe(domid, remote_port)
        ctx.control.check(lib.evtchn_take_pending(ctx.control.kernel, self.port))

    def _raised(self) -> None:
        self.heard = True

    def notify(self) -> None:
        self.ctx.control.evtchn.send(self.port)

    def close(self, *, subscribed: bool) -> None:
        """The guest's end can be bound again. `subscribed`: the domain is still there."""
        if subscribed:
            self.ctx.control.domctl.subscribe(self.domid, 0)
        assert self.ctx.dispatcher is not None
        self.ctx.dispatcher.unbind(self.port)
        self.ctx.control.evtchn.close(self.port)


class DomSuspend:
    """Suspends domains and resumes them."""

    def __init__(self, ctx: LibxlCtx) -> None:
        self.ctx = ctx
        self.quirks: frozenset[Quirk] = frozenset()

    def failure_code(self, suspended: Suspended, error: ToolstackError) -> LIBXL:
        """The code of a save that failed by `error` after the domain was suspended."""
        quirk = Quirk.UNHEARD_FAILURE_IS_TIMEOUT
        if quirk in self.quirks and not suspended.guest_responded:
            return LIBXL.GUEST_TIMEDOUT
        return error.code

    def suspend(self, made: Created) -> Suspended:
        """Until the domain is in shutdown(suspend). ToolstackError if that does not happen.

        GUEST_TIMEDOUT as above; DOMAIN_NOTFOUND where it is gone; else FAIL.
        """
        self._is_there(made)
        channel = self._bind(made)
        try:
            way = self._way(made, channel)
            if channel is not None and way is SuspendWay.EVTCHN:
                self._by_channel(made, channel)
            elif way is SuspendWay.HYPERVISOR:
                self.ctx.control.sched.remote_shutdown(made.domid, SHUTDOWN.suspend)
                self._wait_suspended(made, None)
            else:
                self._by_control(made)
        finally:
            if channel is not None:
                channel.close(subscribed=not made.domain.dying)
        return Suspended(way, guest_responded=way is not SuspendWay.EVTCHN)

    def _is_there(self, made: Created) -> None:
        if made.domain.dying:
            text = f"domain {made.domid} ({made.config.name!r}) is gone"
            raise ToolstackError(text, LIBXL.DOMAIN_NOTFOUND)

    def _bind(self, made: Created) -> SuspendChannel | None:
        """xs_suspend_evtchn_port and xc_suspend_evtchn_init: None where it offers no port."""
        path = f"/local/domain/{made.domid}/{EVENT_CHANNEL}"
        text = self.ctx.xs.read(path)
        port = atoi(text.encode()) if text else -1
        if port < 0:
            return None
        try:
            return SuspendChannel(self.ctx, made.domid, port)
        except HypercallError as error:
            wrong = f"{path} is {text!r}: expected a port that can be bound: {error}"
            raise ToolstackError(wrong) from error

    def _way(self, made: Created, channel: SuspendChannel | None) -> SuspendWay:
        kind = made.config.type.value
        pv_drivers, s_state = (0, 0) if kind == "pv" else (
            self._hvm_param(made, lib.HVM_PARAM_CALLBACK_IRQ),
            self._hvm_param(made, lib.HVM_PARAM_ACPI_S_STATE),
        )  # fmt: skip
        if channel is not None and not s_state:
            return SuspendWay.EVTCHN
        if kind == "hvm" and (not pv_drivers or s_state):
            return SuspendWay.HYPERVISOR
        return SuspendWay.CONTROL

    def _hvm_param(self, made: Created, index: int) -> int:
        return self.ctx.control.hvm.get_param(made.domid, index)

    def _by_channel(self, made: Created, channel: SuspendChannel) -> None:
        """Nothing but the channel is listened to: not to a crash either."""
        channel.notify()
        self._wait_suspended(made, channel)

    def _by_control(self, made: Created) -> None:
        path = f"/local/domain/{made.domid}/control/shutdown"
        self.ctx.xs.write(path, SUSPEND)
        try:
            self.ctx.wait(
                lambda: self.ctx.xs.read(path) != SUSPEND,
                SUSPEND_TIMEOUT_NS,
                f"domain {made.domid} to acknowledge {SUSPEND}",
                LIBXL.GUEST_TIMEDOUT,
            )
        except ToolstackError:
            if not self._withdraw(path):
                raise
        self._wait_suspended(made, None)

    def _withdraw(self, path: str) -> bool:
        """Clear the request unless it was acknowledged at the last moment: then True."""
        acknowledged = False

        def clear(t: int) -> None:
            nonlocal acknowledged
            acknowledged = self.ctx.xs.read(path, t) != SUSPEND
            if not acknowledged:
                self.ctx.xs.write(path, "", t)

        self.ctx.xs.transaction(clear)
        return acknowledged

    def _wait_suspended(self, made: Created, channel: SuspendChannel | None) -> None:
        """By the channel, or by what @releaseDomain tells; ToolstackError for another end."""
        reason: list[int] = []

        def ended() -> bool:
            if channel is not None:
                if not channel.heard:
                    return False
                channel.heard = False
            self._is_there(made)
            info = self.ctx.control.domctl.getdomaininfo(made.domid)
            if info.flags & DOMINF.shutdown:
                reason.append(info.shutdown_code)
            return bool(reason)

        name = f"domain {made.domid}"
        self.ctx.wait(ended, SUSPEND_TIMEOUT_NS, f"{name} to suspend", LIBXL.GUEST_TIMEDOUT)
        if reason[0] != SHUTDOWN.suspend:
            text = f"{name} has shut down with unexpected reason code {reason[0]}"
            raise ToolstackError(f"{text}, expected {int(SHUTDOWN.suspend)} (suspend)")

    def resume(self, made: Created, *, fast: bool = True) -> None:
        """xc_domain_resume and XS_RESUME.

        Fast: its hypercall returns 1, it goes on where it was; only for a domain in
        shutdown(suspend), else ToolstackError. Slow: it returns 0, and the guest sets up
        everything anew.
        """
        self._is_there(made)
        domid, domctl = made.domid, self.ctx.control.domctl
        if fast:
            info = domctl.getdomaininfo(domid)
            if not info.flags & DOMINF.shutdown or info.shutdown_code != SHUTDOWN.suspend:
                raise ToolstackError(f"domain {domid} is not suspended: EINVAL", LIBXL.FAIL)
            # Without PV drivers no hypercall of its waits for a result.
            if self._hvm_param(made, lib.HVM_PARAM_CALLBACK_IRQ):
                domctl.setvcpucontext(domid, 0, rax=1)
        domctl.resumedomain(domid)
        try:
            self.ctx.xs.resume_domain(domid)
        except StoreError as error:
            raise ToolstackError(f"domain {domid}: {error}") from error
