"""All domains of one machine: creation, death, and the exceptions that dom0 hears of."""

from __future__ import annotations

from collections.abc import Callable
from errno import EEXIST, EINVAL, ENOMEM
from typing import TYPE_CHECKING, Any, Final

import attrs

from xenpv.abi._kernel import ffi, lib
from xenpv.errors import HypercallError, LocalProtocolError
from xenpv.xen import arena as arenas
from xenpv.xen.clock import TSC_KHZ, Clock
from xenpv.xen.console import XenConsole
from xenpv.xen.createdomain import CDF, CreateDomain
from xenpv.xen.domain import Domain
from xenpv.xen.domid import DOMID_ANY, DOMID_FIRST_RESERVED, DOMID_INVALID, DomidAllocator
from xenpv.xen.evtchn import VIRQ_DOM_EXC
from xenpv.xen.evtchn_port import Port
from xenpv.xen.loop import Loop
from xenpv.xen.trace import Event, of_machine
from xenpv.xen.virq import GlobalVirqs

if TYPE_CHECKING:
    from xenpv.xen.version import XenVersion

PAGES_TO_START: Final = 4  # shared_info, a grant frame, and some to go on with
FRAMES_DEFAULT: Final = 1 << 22  # 16 GiB, sparse

# (actor's domid, ACCESS_* kind, frame, offset in bytes, size in bytes)
AccessHook = Callable[[int, int, int, int, int], None]

CDF_ALL: Final = int(sum(CDF))
CDF_HVM: Final = int(CDF.hvm)
CDF_HAP: Final = int(CDF.hap)


class Hypervisor:
    """Machine memory and domains. `close` gives the memory back; nothing works after it.

    `domains` holds whoever can be named by domid, ascending by age: also the dead that
    something still refers to. `version` is what XENVER_* say. `number`: which machine of its
    loop it is; its records in the trace say so.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        nr_frames: int = FRAMES_DEFAULT,
        version: XenVersion | None = None,
        tsc_khz: int = TSC_KHZ,
        first_reserved: int = DOMID_FIRST_RESERVED,
    ) -> None:
        self.loop = loop
        self.number = loop.join()
        self.trace = of_machine(loop.trace, self.number)
        self.clock = Clock(loop, tsc_khz)
        self.arena = arenas.take(nr_frames)
        self.machine: Any = self.arena.machine
        self._version = version
        self.cpu_vendor = "GenuineIntel"
        self.domains: dict[int, Domain] = {}
        self.global_virqs = GlobalVirqs()
        self.console = XenConsole()
        self.closed = False
        self._domids = DomidAllocator(first_reserved)
        self._unique_ids = 0
        self._changed: dict[int, None] = {}
        self._told: Port | None = None
        self._hook: AccessHook | None = None
        self._hook_handle: Any = None
        self._hook_error: BaseException | None = None

    @property
    def version(self) -> XenVersion:
        if self._version is None:
            from xenpv.xen.version import XEN

            self._version = XEN
        return self._version

    # creation

    def create(self, domid: int, config: CreateDomain) -> Domain:
        """XEN_DOMCTL_createdomain without its caller; errors as Domctl.createdomain."""
        found = self._domids.alloc(domid)
        if found == DOMID_INVALID:
            raise _refused(EEXIST, "in use, or none is left", domid, config)
        try:
            self._sanitise(domid, config)
            domain = self._make(found, config)
        except BaseException:
            self._domids.free(found)
            raise
        self._unique_ids += 1
        self.domains[found] = domain
        if found == 0:
            self.global_virqs.hardware_domain = domain
        self.trace.record(Event.DOMAIN, found, 1)
        domain.pause()
        self._changed[found] = None
        return domain

    def _make(self, domid: int, config: CreateDomain) -> Domain:
        try:
            return Domain(self, domid, self._unique_ids + 1, config)
        except HypercallError as error:
            raise _refused(error.errno, "no memory for it", domid, config) from error

    def _sanitise(self, domid: int, config: CreateDomain) -> None:
        """sanitise_domain_config and what grant_table_init checks."""
        if config.flags & ~CDF_ALL:
            raise _refused(EINVAL, "unknown flags", domid, config)
        if not 1 <= config.max_vcpus <= lib.HVM_MAX_VCPUS:
            raise _refused(EINVAL, "a domain has 1 to 128 vcpus", domid, config)
        if config.flags & (CDF_HVM | CDF_HAP) == CDF_HAP:
            raise _refused(EINVAL, "HAP is for HVM guests", domid, config)
        if config.max_grant_version not in (1, 2):
            raise _refused(EINVAL, "grant tables have versions 1 and 2", domid, config)
        if config.max_grant_frames == 0:
            raise _refused(EINVAL, "a grant table has a frame", domid, config)
        if lib.machine_free_pages(self.machine) < PAGES_TO_START:
            raise _refused(ENOMEM, "the machine has no free memory", domid, config)

    def create_domain(
        self,
        domid: int | None = None,
        *,
        vcpus: int = 1,
        max_pages: int,
        is_32bit: bool = False,
        max_event_channels: int = 1023,
        **config: Any,
    ) -> Domain:
        """A domain with vcpus and room for memory: createdomain, max_vcpus, max_mem.

        Paused once; `config` are further fields of CreateDomain. Without a domid, the next
        free one. HypercallError as createdomain.
        """
        domain = self.create(
            DOMID_ANY if domid is None else domid,
            CreateDomain(
                max_vcpus=vcpus,
                max_evtchn_port=max_event_channels,
                has_32bit_shinfo=is_32bit,
                **config,
            ),
        )
        domain.set_vcpus(vcpus)
        domain.set_max_pages(max_pages)
        return domain

    # death

    def destroy_domain(self, domain: Domain) -> None:
        """XEN_DOMCTL_destroydomain (domain_kill); a repeat does nothing.

        Its maps are released, its ports closed, its memory freed. While somebody holds a
        page of it, or a device model it, it stays: dead, but its domid is taken.
        """
        if domain.dead:
            return
        domain.dying = True
        domain.stop()
        domain.gnttab.release_maps()
        domain.evtchn.close_all()
        domain.memory.relinquish()
        domain.dead = True
        self.trace.record(Event.DOMAIN, domain.domid, 3)
        self.raise_dom_exc(domain.domid)
        self.vanish(domain)

    def vanish(self, domain: Domain) -> None:
        """A reference to a dead domain went: if it was the last, forget the domain."""
        if domain.pinned() or domain.device_models or self.domains.get(domain.domid) is not domain:
            return
        del self.domains[domain.domid]
        self._domids.free(domain.domid)
        self.console.forget(domain.domid)
        lib.domain_release(domain.kernel)
        self.trace.record(Event.DOMAIN, domain.domid, 5)
        if self._handler_port() is None:
            self._changed.pop(domain.domid, None)  # there was nobody to keep it for
        self.raise_dom_exc(domain.domid)
        target, domain.target = domain.target, None
        if target is not None:
            target.device_models -= 1
            target.unpinned()

    @property
    def dead(self) -> list[Domain]:
        """Domains that are dead and did not vanish yet."""
        return [domain for domain in self.domains.values() if domain.dead]

    # time

    def set_time_offset(self, domain: Domain, seconds: int) -> None:
        """XEN_DOMCTL_settimeoffset: of that domain's wall clock, signed."""
        domain.time_offset_seconds = seconds
        domain.publish_wallclock()

    def settime64(self, secs: int, nsecs: int, system_time: int, mbz: int = 0) -> None:
        """XENPF_settime64: UTC was secs and nsecs when system time was `system_time` ns.

        EINVAL unless `mbz` is 0. Every domain's wall clock is written again.
        """
        arguments = {"secs": secs, "nsecs": nsecs, "system_time": system_time, "mbz": mbz}
        if mbz or not 0 <= nsecs < 1 << 32:
            reason = "mbz is not 0" if mbz else "nsecs is a u32"
            raise HypercallError(EINVAL, reason, operation="XENPF_settime64", arguments=arguments)
        self.clock.settime(secs, nsecs, system_time)
        for domain in self.domains.values():
            domain.publish_wallclock()

    # what changed

    def raise_dom_exc(self, domid: int) -> None:
        """VIRQ_DOM_EXC to its handler: the state of `domid` changed."""
        self.note_change(domid)
        self.global_virqs.send(VIRQ_DOM_EXC)

    def note_change(self, domid: int) -> None:
        """domain_changed_state(): get_domain_state will tell of it, if anybody can ask."""
        if domid in self.domains or self._handler_port() is not None:
            self._changed[domid] = None

    def _handler_port(self) -> Port | None:
        """The port to which its handler bound VIRQ_DOM_EXC."""
        handler = self.global_virqs.handler(VIRQ_DOM_EXC)
        port = 0 if handler is None else handler.evtchn.virq_port(VIRQ_DOM_EXC)
        return None if handler is None or not port else handler.evtchn.ports[port]

    def take_changed(self) -> int | None:
        """The lowest domid with a change not told yet. A new handler is told of everybody."""
        handler = self._handler_port()
        if handler is not self._told:
            if self._told is not None:
                self._changed = dict.fromkeys(self.domains)
            self._told = handler
        if not self._changed:
            return None
        domid = min(self._changed)
        del self._changed[domid]
        return domid

    def set_hook(self, hook: AccessHook | None) -> None:
        """Call `hook` before each access to memory that another domain may see.

        What it raises ends the kernel call and is raised again where that was called.
        """
        self._hook = hook
        self._hook_error = None
        if hook is None:
            self._hook_handle = None
            lib.machine_hook(self.machine, ffi.NULL, ffi.NULL)
        else:
            self._hook_handle = ffi.new_handle(self)
            lib.machine_hook(self.machine, lib.kernel_hook, self._hook_handle)

    def raise_from_hook(self) -> None:
        """Raise the exception that ended a kernel call."""
        error, self._hook_error = self._hook_error, None
        assert error is not None
        raise error

    def close(self) -> bool:
        """Destroy every domain and give the arena back; False if views of it are still out."""
        if self.closed:
            raise LocalProtocolError("this platform is closed")
        self.closed = True
        self.set_hook(None)
        domains = list(self.domains.values())
        for domain in domains[::-1]:
            self.destroy_domain(domain)
        for domain in self.dead:  # device models of each other
            lib.domain_release(domain.kernel)
        self.domains.clear()
        for domain in domains:
            domain.close()
        return self.arena.give_back()

    def call_hook(self, actor: int, kind: int, frame: int, offset: int, size: int) -> int:
        try:
            if self._hook is not None:
                self._hook(actor, kind, frame, offset, size)
        except BaseException as error:  # noqa: BLE001 - also Hypothesis' own, kept and raised again
            self._hook_error = error
            return 1
        return 0


def _refused(errno: int, reason: str, domid: int, config: CreateDomain) -> HypercallError:
    arguments = {"domain": domid, **attrs.asdict(config)}
    return HypercallError(errno, reason, operation="XEN_DOMCTL_createdomain", arguments=arguments)


def _keep(_kind: Any, error: BaseException, traceback: Any) -> None:
    """What a signal's handler raised in `kernel_hook` where `call_hook` could not catch it."""
    context = None if traceback is None else traceback.tb_frame.f_locals.get("context")
    if context is not None:
        ffi.from_handle(context)._hook_error = error


@ffi.def_extern(error=1, onerror=_keep)
def kernel_hook(context: Any, actor: int, kind: int, frame: int, offset: int, size: int) -> int:
    hypervisor: Hypervisor = ffi.from_handle(context)
    return hypervisor.call_hook(actor, kind, frame, offset, size)
