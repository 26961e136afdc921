"""Scheduling and shutdown (sched.h, vcpu.h)."""

from __future__ import annotations

from enum import IntEnum

from xenpv.abi._kernel import lib


class VCPUOP(IntEnum):
    """Sub-operations of vcpu_op."""

    initialise = lib.VCPUOP_initialise
    up = lib.VCPUOP_up
    down = lib.VCPUOP_down
    is_up = lib.VCPUOP_is_up
    get_runstate_info = lib.VCPUOP_get_runstate_info
    register_runstate_memory_area = lib.VCPUOP_register_runstate_memory_area
    set_periodic_timer = lib.VCPUOP_set_periodic_timer
    stop_periodic_timer = lib.VCPUOP_stop_periodic_timer
    set_singleshot_timer = lib.VCPUOP_set_singleshot_timer
    stop_singleshot_timer = lib.VCPUOP_stop_singleshot_timer
    register_vcpu_info = lib.VCPUOP_register_vcpu_info
    send_nmi = lib.VCPUOP_send_nmi
    get_physid = lib.VCPUOP_get_physid
    register_vcpu_time_memory_area = lib.VCPUOP_register_vcpu_time_memory_area
    register_runstate_phys_area = lib.VCPUOP_register_runstate_phys_area
    register_vcpu_time_phys_area = lib.VCPUOP_register_vcpu_time_phys_area


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
