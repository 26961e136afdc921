"""Event channels and virtual interrupts (event_channel.h, xen.h)."""

from __future__ import annotations

from enum import IntEnum

from xenpv.abi._kernel import lib


class EVTCHNOP(IntEnum):
    """Sub-operations of event_channel_op."""

    bind_interdomain = lib.EVTCHNOP_bind_interdomain
    bind_virq = lib.EVTCHNOP_bind_virq
    bind_pirq = lib.EVTCHNOP_bind_pirq
    close = lib.EVTCHNOP_close
    send = lib.EVTCHNOP_send
    status = lib.EVTCHNOP_status
    alloc_unbound = lib.EVTCHNOP_alloc_unbound
    bind_ipi = lib.EVTCHNOP_bind_ipi
    bind_vcpu = lib.EVTCHNOP_bind_vcpu
    unmask = lib.EVTCHNOP_unmask
    reset = lib.EVTCHNOP_reset
    init_control = lib.EVTCHNOP_init_control
    expand_array = lib.EVTCHNOP_expand_array
    set_priority = lib.EVTCHNOP_set_priority


class EVTCHNSTAT(IntEnum):
    """`evtchn_status.status`."""

    closed = lib.EVTCHNSTAT_closed
    unbound = lib.EVTCHNSTAT_unbound
    interdomain = lib.EVTCHNSTAT_interdomain
    pirq = lib.EVTCHNSTAT_pirq
    virq = lib.EVTCHNSTAT_virq
    ipi = lib.EVTCHNSTAT_ipi


class VIRQ(IntEnum):
    """Virtual interrupts; 5, 14 and 15 have no name."""

    TIMER = lib.VIRQ_TIMER
    DEBUG = lib.VIRQ_DEBUG
    CONSOLE = lib.VIRQ_CONSOLE
    DOM_EXC = lib.VIRQ_DOM_EXC
    TBUF = lib.VIRQ_TBUF
    DEBUGGER = lib.VIRQ_DEBUGGER
    XENOPROF = lib.VIRQ_XENOPROF
    CON_RING = lib.VIRQ_CON_RING
    PCPU_STATE = lib.VIRQ_PCPU_STATE
    MEM_EVENT = lib.VIRQ_MEM_EVENT
    ARGO = lib.VIRQ_ARGO
    ENOMEM = lib.VIRQ_ENOMEM
    XENPMU = lib.VIRQ_XENPMU
    ARCH_0 = lib.VIRQ_ARCH_0
    ARCH_1 = lib.VIRQ_ARCH_1
    ARCH_2 = lib.VIRQ_ARCH_2
    ARCH_3 = lib.VIRQ_ARCH_3
    ARCH_4 = lib.VIRQ_ARCH_4
    ARCH_5 = lib.VIRQ_ARCH_5
    ARCH_6 = lib.VIRQ_ARCH_6
    ARCH_7 = lib.VIRQ_ARCH_7
