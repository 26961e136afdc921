"""Scheduling and shutdown (sched.h, vcpu.h)."""

from __future__ import annotations

from enum import IntEnum

from xenpv.abi._kernel import lib


class SCHEDOP(IntEnum):
    """Sub-operations of sched_op."""

    yield_ = lib.SCHEDOP_yield  # a keyword of Python
    block = lib.SCHEDOP_block
    shutdown = lib.SCHEDOP_shutdown
    poll = lib.SCHEDOP_poll
    remote_shutdown = lib.SCHEDOP_remote_shutdown
    shutdown_code = lib.SCHEDOP_shutdown_code
    watchdog = lib.SCHEDOP_watchdog
    pin_override = lib.SCHEDOP_pin_override


class SHUTDOWN(IntEnum):
    """Why a domain stopped: `sched_shutdown.reason`."""

    poweroff = lib.SHUTDOWN_poweroff
    reboot = lib.SHUTDOWN_reboot
    suspend = lib.SHUTDOWN_suspend
    crash = lib.SHUTDOWN_crash
    watchdog = lib.SHUTDOWN_watchdog
    soft_reset = lib.SHUTDOWN_soft_reset


class RUNSTATE(IntEnum):
    """`vcpu_runstate_info.state`."""

    running = lib.RUNSTATE_running
    runnable = lib.RUNSTATE_runnable
    blocked = lib.RUNSTATE_blocked
    offline = lib.RUNSTATE_offline
