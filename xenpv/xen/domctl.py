"""domctl (hypercall 36): what the control domain does to domains (xen/common/domctl.c).

Domains are named by number here, as in `struct xen_domctl`; what an operation then does is
Domain's and Hypervisor's. Checks stand in Xen's order: ESRCH, EPERM, then the operation's.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntFlag
from errno import EACCES, EINVAL, ENOENT, EOPNOTSUPP, EPERM, ESRCH
from typing import TYPE_CHECKING, Any, Final

import attrs

from xenpv.abi.sched import RUNSTATE
from xenpv.errors import HypercallError
from xenpv.xen.createdomain import CDF, CreateDomain
from xenpv.xen.domid import DOMID_ANY, DOMID_INVALID
from xenpv.xen.evtchn import VIRQ_DOM_EXC

if TYPE_CHECKING:
    from xenpv.xen.domain import Domain
    from xenpv.xen.hypervisor import Hypervisor

PAGE_KIB: Final = 4
INVALID_MAX_VCPU_ID: Final = 0xFFFFFFFF  # XEN_INVALID_MAX_VCPU_ID
SHUTDOWN_SHIFT: Final = 16  # XEN_DOMINF_shutdownshift
SHUTDOWN_NONE: Final = 0xFF  # SHUTDOWN_CODE_INVALID in the flags' eight bits


class DOMINF(IntFlag):
    """XEN_DOMINF_*: flags of getdomaininfo."""

    dying = 1 << 0
    hvm_guest = 1 << 1
    shutdown = 1 << 2
    paused = 1 << 3
    blocked = 1 << 4
    running = 1 << 5
    debugged = 1 << 6
    xs_domain = 1 << 7
    hap = 1 << 8


class GETDOMSTATE(IntFlag):
    """XEN_DOMCTL_GETDOMSTATE_STATE_* of get_domain_state."""

    exist = 1 << 0
    shutdown = 1 << 1
    dying = 1 << 2
    dead = 1 << 3


class GETDOMSTATE_CAP(IntFlag):  # noqa: N801 - the prefix of Xen's names
    """XEN_DOMCTL_GETDOMSTATE_CAP_* of get_domain_state."""

    control = 1 << 0
    hardware = 1 << 1
    xenstore = 1 << 2


@attrs.frozen(kw_only=True)
class DomainInfo:
    """struct xen_domctl_getdomaininfo; sizes in pages, cpu_time in nanoseconds."""

    domain: int
    flags: int
    tot_pages: int
    max_pages: int
    cpu_time: int
    nr_online_vcpus: int
    max_vcpu_id: int
    handle: bytes

    @property
    def shutdown_code(self) -> int:
        """SHUTDOWN_*, or 255 while there is none."""
        return self.flags >> SHUTDOWN_SHIFT & 0xFF


@attrs.frozen(kw_only=True)
class DomainState:
    """struct xen_domctl_get_domain_state; all zero but `domid`: that domain vanished."""

    domid: int
    state: int = 0
    caps: int = 0
    unique_id: int = 0


def domain_info(domain: Domain) -> DomainInfo:
    """getdomaininfo() of xen/common/domctl.c: of the vcpus that are up, are all blocked, does one
    run? Time is the sum of all vcpus'."""
    up = [vcpu for vcpu in domain.vcpu if not vcpu.down]
    online = len(up)
    code = SHUTDOWN_NONE if domain.shutdown_code is None else domain.shutdown_code
    blocked = bool(up) and all(vcpu.state is RUNSTATE.blocked for vcpu in up)
    running = any(vcpu.state is RUNSTATE.running for vcpu in up)
    return DomainInfo(
        domain=domain.domid,
        flags=DOMINF.blocked * blocked
        | DOMINF.running * running
        | DOMINF.dying * domain.dead
        | DOMINF.hvm_guest * domain.is_hvm
        | DOMINF.shutdown * domain.is_shutdown
        | DOMINF.paused * (domain.pause_count > 0)
        | DOMINF.xs_domain * bool(domain.flags & CDF.xs_domain)
        | DOMINF.hap * bool(domain.flags & CDF.hap)
        | code << SHUTDOWN_SHIFT,
        tot_pages=domain.tot_pages,
        max_pages=domain.max_pages,
        cpu_time=sum(vcpu.runstate().time[RUNSTATE.running] for vcpu in domain.vcpu),
        nr_online_vcpus=online,
        max_vcpu_id=domain.vcpus - 1 if domain.vcpus else INVALID_MAX_VCPU_ID,
        handle=domain.handle,
    )


def domain_state(domain: Domain) -> DomainState:
    """set_domain_state_info() of xen/common/domain.c."""
    state = GETDOMSTATE.exist | GETDOMSTATE.shutdown * domain.is_shutdown
    if domain.dead:
        state |= GETDOMSTATE.dead
    elif domain.dying:
        state |= GETDOMSTATE.dying
    caps = 0
    if domain.is_control:
        caps |= GETDOMSTATE_CAP.control | GETDOMSTATE_CAP.hardware
    if domain.flags & CDF.xs_domain:
        caps |= GETDOMSTATE_CAP.xenstore
    return DomainState(
        domid=domain.domid, state=int(state), caps=int(caps), unique_id=domain.unique_id
    )


class Domctl:
    """The domctls of `caller`; every one but the control domain gets EPERM."""

    def __init__(self, hypervisor: Hypervisor, caller: Domain) -> None:
        self._hypervisor = hypervisor
        self._caller = caller

    def _fail(self, errno: int, reason: str, name: str, **arguments: object) -> HypercallError:
        operation = f"XEN_DOMCTL_{name}"
        return HypercallError(errno, reason, operation=operation, arguments=arguments)

    def _permit(self, name: str, **arguments: object) -> None:
        if not self._caller.is_control:
            reason = f"domain {self._caller.domid} is no control domain"
            raise self._fail(EPERM, reason, name, **arguments)

    def _domain(self, name: str, domid: int, **arguments: object) -> Domain:
        domain = self._hypervisor.domains.get(domid)
        if domain is None:
            raise self._fail(ESRCH, "no such domain", name, domain=domid, **arguments)
        self._permit(name, domain=domid, **arguments)
        return domain

    def _other(self, name: str, domid: int, **arguments: object) -> Domain:
        """For operations that no domain may do to itself."""
        domain = self._domain(name, domid, **arguments)
        if domain is self._caller:
            raise self._fail(EINVAL, "not to itself", name, domain=domid, **arguments)
        return domain

    # creation

    def createdomain(self, domid: int = DOMID_ANY, **config: Any) -> Domain:
        """XEN_DOMCTL_createdomain (1), its fields those of CreateDomain; paused once.

        It has no vcpus before max_vcpus and can get no memory before max_mem. EEXIST: the
        domid is taken, or none is left. EINVAL: no vcpus, more than HVM_MAX_VCPUS, an
        unknown flag, grant version 0 or above 2, no grant frames. ENOMEM.
        """
        self._permit("createdomain", domain=domid, **config)
        return self._hypervisor.create(domid, CreateDomain(**config))

    def max_vcpus(self, domid: int, maximum: int) -> None:
        """XEN_DOMCTL_max_vcpus (15): makes the vcpus. EINVAL unless it repeats max_vcpus."""
        domain = self._other("max_vcpus", domid, max=maximum)
        domain.set_vcpus(maximum)

    def max_mem(self, domid: int, max_memkb: int) -> None:
        """XEN_DOMCTL_max_mem (11), in KiB; below what it has now, it only stops growing."""
        domain = self._domain("max_mem", domid, max_memkb=max_memkb)
        domain.set_max_pages(min(max_memkb // PAGE_KIB, 0xFFFFFFFF))

    def create_domain(self, domid: int | None = None, **parameters: Any) -> Domain:
        """createdomain, max_vcpus and max_mem in one; `parameters` as Hypervisor.create_domain."""
        self._permit("createdomain", domain=domid, **parameters)
        return self._hypervisor.create_domain(domid, **parameters)

    def set_target(self, domid: int, target: int) -> None:
        """XEN_DOMCTL_set_target (46): `domid` becomes the device model of `target`.

        The target stays, dead or not, until its device model is gone. ESRCH; EINVAL: itself,
        or it has one; EOPNOTSUPP: the target is not HVM.
        """
        arguments = {"domain": domid, "target": target}
        domain = self._domain("set_target", domid, target=target)
        other = self._hypervisor.domains.get(target)
        if other is None:
            raise self._fail(ESRCH, "no such target", "set_target", **arguments)
        if other is domain or domain.target is not None:
            raise self._fail(EINVAL, "itself, or it has one", "set_target", **arguments)
        if not other.is_hvm:
            raise self._fail(EOPNOTSUPP, "the target is not HVM", "set_target", **arguments)
        domain.target = other
        other.device_models += 1

    # life

    def pausedomain(self, domid: int) -> None:
        """XEN_DOMCTL_pausedomain (3): EINVAL for itself, EOVERFLOW above 255."""
        self._other("pausedomain", domid).pause()

    def unpausedomain(self, domid: int) -> None:
        """XEN_DOMCTL_unpausedomain (4): EINVAL if it is not paused."""
        self._domain("unpausedomain", domid).unpause()

    def destroydomain(self, domid: int) -> None:
        """XEN_DOMCTL_destroydomain (2): EINVAL for itself; a dead one stays dead: 0."""
        self._hypervisor.destroy_domain(self._other("destroydomain", domid))

    def destroy_domain(self, domain: Domain) -> None:
        """destroydomain of a domain that may have vanished already."""
        self._permit("destroydomain", domain=domain.domid)
        self._hypervisor.destroy_domain(domain)

    def resumedomain(self, domid: int) -> None:
        """XEN_DOMCTL_resumedomain (27): EINVAL for itself."""
        self._other("resumedomain", domid).resume()

    def soft_reset(self, domid: int) -> None:
        """XEN_DOMCTL_soft_reset (79): EINVAL for itself and where it is not HVM; see softreset."""
        domain = self._other("soft_reset", domid)
        if not domain.is_hvm:
            raise self._fail(EINVAL, "the domain is not HVM", "soft_reset", domain=domid)
        from xenpv.xen.softreset import soft_reset

        soft_reset(domain)

    def setvcpucontext(self, domid: int, vcpu: int, *, rax: int) -> None:
        """XEN_DOMCTL_setvcpucontext (12), of which only the return register is modelled.

        With rax 1 on vcpu 0 a suspended guest learns at resumedomain that the suspend was
        cancelled. EINVAL: itself, no such vcpu.
        """
        domain = self._other("setvcpucontext", domid, vcpu=vcpu, rax=rax)
        if not 0 <= vcpu < domain.vcpus:
            arguments = {"domain": domid, "vcpu": vcpu, "rax": rax}
            raise self._fail(EINVAL, "no such vcpu", "setvcpucontext", **arguments)
        if vcpu == 0:
            domain.suspend_result = rax

    def subscribe(self, domid: int, port: int) -> None:
        """XEN_DOMCTL_subscribe (29): the domain's port that a suspend sends on; 0: none.

        The port is not looked at before it is due; one that cannot send loses the event.
        """
        self._domain("subscribe", domid, port=port).suspend_evtchn = port

    def settimeoffset(self, domid: int, time_offset_seconds: int) -> None:
        """XEN_DOMCTL_settimeoffset (24): of the domain's wall clock, signed."""
        domain = self._domain("settimeoffset", domid, time_offset_seconds=time_offset_seconds)
        self._hypervisor.set_time_offset(domain, time_offset_seconds)

    def set_virq_handler(self, domid: int, virq: int) -> None:
        """XEN_DOMCTL_set_virq_handler (66): who may bind a global VIRQ and hears it.

        EINVAL: not a global VIRQ, or the domain is dying; EBUSY: the present handler has it
        bound.
        """
        domain = self._domain("set_virq_handler", domid, virq=virq)
        self._hypervisor.global_virqs.set_handler(domain, virq)

    def debug_keys(self, keys: str) -> None:
        """XEN_SYSCTL_debug_keys (7): each as if pressed on Xen's console; see keyhandler."""
        self._permit("debug_keys", keys=keys)
        from xenpv.xen.keyhandler import debug_keys

        debug_keys(self._hypervisor, keys)

    # asking

    def getdomaininfo(self, domid: int) -> DomainInfo:
        """XEN_DOMCTL_getdomaininfo (5)."""
        return domain_info(self._domain("getdomaininfo", domid))

    def getdomaininfolist(self, first: int = 0, maximum: int = 1024) -> list[DomainInfo]:
        """XEN_SYSCTL_getdomaininfolist (6): at most so many from `first` on, ascending."""
        self._permit("getdomaininfolist", first=first, max=maximum)
        return [domain_info(domain) for domain in self._ascending(first)][:maximum]

    def _ascending(self, first: int) -> Iterator[Domain]:
        domains = self._hypervisor.domains
        return (domains[domid] for domid in sorted(domains) if domid >= first)

    def get_domain_state(self, domid: int = DOMID_INVALID) -> DomainState:
        """XEN_DOMCTL_get_domain_state (90): of a domain, or of the next whose state changed.

        With DOMID_INVALID: EACCES unless the caller handles VIRQ_DOM_EXC, ENOENT when no
        change is left to tell. A change is told once, lowest domid first.
        """
        if domid != DOMID_INVALID:
            return domain_state(self._domain("get_domain_state", domid))
        self._permit("get_domain_state", domain=domid)
        hypervisor = self._hypervisor
        if not self._caller.evtchn.virq_port(VIRQ_DOM_EXC):
            reason = "for the handler of VIRQ_DOM_EXC only"
            raise self._fail(EACCES, reason, "get_domain_state", domain=domid)
        changed = hypervisor.take_changed()
        if changed is None:
            raise self._fail(ENOENT, "no domain changed", "get_domain_state", domain=domid)
        found = hypervisor.domains.get(changed)
        return DomainState(domid=changed) if found is None else domain_state(found)
