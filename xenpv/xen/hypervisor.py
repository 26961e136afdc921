"""All domains of one machine: creation, death, and the exceptions that dom0 hears of."""

from __future__ import annotations

from collections.abc import Callable
from errno import EEXIST, EINVAL, ENOMEM
from typing import Any, Final

from xenpv.abi._kernel import ffi, lib
from xenpv.errors import HypercallError, LocalProtocolError
from xenpv.xen import arena as arenas
from xenpv.xen.domain import Domain
from xenpv.xen.evtchn import VIRQ_DOM_EXC
from xenpv.xen.loop import Loop
from xenpv.xen.trace import Event

DOMID_FIRST_RESERVED: Final = 0x7FF0
FRAMES_DEFAULT: Final = 1 << 22  # 16 GiB, sparse

# (actor's domid, ACCESS_* kind, frame, offset in bytes, size in bytes)
AccessHook = Callable[[int, int, int, int, int], None]


class Hypervisor:
    """Machine memory and domains. `close` gives the memory back; nothing works after it."""

    def __init__(self, loop: Loop, *, nr_frames: int = FRAMES_DEFAULT) -> None:
        self.loop = loop
        self.arena = arenas.take(nr_frames)
        self.machine: Any = self.arena.machine
        self.domains: dict[int, Domain] = {}
        self.dead: list[Domain] = []
        self.closed = False
        self._last_domid = 0
        self._unique_ids = 0
        self._hook: AccessHook | None = None
        self._hook_handle: Any = None
        self._hook_error: BaseException | None = None

    def create_domain(self, domid: int | None = None, **parameters: Any) -> Domain:
        """XEN_DOMCTL_createdomain: paused once; `parameters` are those of Domain.

        Without a domid, the next free one above the last given, wrapping to 1. Raises
        HypercallError EEXIST (domid in use or none left), ENOMEM, EINVAL.
        """
        if parameters.get("vcpus", 1) < 1:
            raise HypercallError(EINVAL, "a domain needs a vcpu")
        if domid is None:
            domid = self._next_domid()
        elif domid in self.domains or any(one.domid == domid for one in self.dead):
            raise HypercallError(EEXIST, f"domain {domid} exists")
        elif not 0 <= domid < DOMID_FIRST_RESERVED:
            raise HypercallError(EINVAL, f"domid {domid}")
        if lib.machine_free_pages(self.machine) < 4:
            raise HypercallError(ENOMEM, "the machine has no free memory")
        self._unique_ids += 1
        domain = Domain(self, domid, self._unique_ids, **parameters)
        self.domains[domid] = domain
        self.loop.trace.record(Event.DOMAIN, domid, 1)
        domain.pause()
        return domain

    def _next_domid(self) -> int:
        taken = {one.domid for one in self.dead}
        for step in range(1, DOMID_FIRST_RESERVED):
            candidate = (self._last_domid + step) % DOMID_FIRST_RESERVED
            if candidate and candidate not in self.domains and candidate not in taken:
                self._last_domid = candidate
                return candidate
        raise HypercallError(EEXIST, "no domid is left")

    def destroy_domain(self, domain: Domain) -> None:
        """XEN_DOMCTL_destroydomain; a repeat does nothing.

        Its maps are released and its ports closed first. While somebody maps a page of
        it, it stays dead but its frames stay too, and its domid is taken.
        """
        if domain.dying:
            return
        domain.dying = True
        for task in domain.tasks:
            task.retire()
        for timer in domain.timers:
            timer.cancel()
        domain.gnttab.release_maps()
        domain.evtchn.close_all()
        lib.domain_relinquish(domain.kernel)
        del self.domains[domain.domid]
        domain.dead = True
        self.loop.trace.record(Event.DOMAIN, domain.domid, 3)
        if lib.domain_shared_frames(domain.kernel):
            self.dead.append(domain)
        else:
            self._release(domain)
        self.raise_dom_exc()

    def vanish(self, domain: Domain) -> None:
        """The last foreign mapping of a dead domain went."""
        self.dead.remove(domain)
        self._release(domain)
        self.raise_dom_exc()

    def _release(self, domain: Domain) -> None:
        lib.domain_release(domain.kernel)

    def raise_dom_exc(self) -> None:
        """VIRQ_DOM_EXC to the control domain: some domain's state changed."""
        control = self.domains.get(0)
        if control is not None:
            control.evtchn.raise_virq(VIRQ_DOM_EXC)

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
        for domain in list(self.domains.values())[::-1]:
            self.destroy_domain(domain)
        for domain in self.dead:
            self._release(domain)
        self.dead.clear()
        return self.arena.give_back()

    def call_hook(self, actor: int, kind: int, frame: int, offset: int, size: int) -> int:
        try:
            if self._hook is not None:
                self._hook(actor, kind, frame, offset, size)
        except BaseException as error:  # noqa: BLE001 - also Hypothesis' own, kept and raised again
            self._hook_error = error
            return 1
        return 0


@ffi.def_extern(error=1)  # type: ignore[untyped-decorator]  # cffi has no types for it
def kernel_hook(context: Any, actor: int, kind: int, frame: int, offset: int, size: int) -> int:
    hypervisor: Hypervisor = ffi.from_handle(context)
    return hypervisor.call_hook(actor, kind, frame, offset, size)
