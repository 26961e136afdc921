"""Every CPU's vcpu_info in a page of the guest's own (win-xenbus src/xen/system.c).

Xen's shared_info has room for 32; a CPU beyond them gets no event before it registered one.
The registry's RegisterVcpuInfo says whether that is done; by default only where there are
more than 32. The pages stay when the drivers are loaded again.
"""

from __future__ import annotations

from errno import EBUSY
from typing import Final

from xenpv.bus.registry import Registry
from xenpv.bus.shared_info import NR_LEGACY_VCPUS, SharedInfoInterface
from xenpv.errors import HypercallError
from xenpv.xen.domain import Domain

PARAMETERS: Final = "Services\\XEN\\Parameters"
VALUE: Final = "RegisterVcpuInfo"


def wanted(registry: Registry, vcpus: int) -> bool:
    """What the registry says, else whether shared_info has too little room."""
    return registry.dword(PARAMETERS, VALUE, int(vcpus > NR_LEGACY_VCPUS)) != 0


class VcpuInfoPages:
    """A page for each CPU of `domain`; `shared_info` is told where they are."""

    def __init__(self, domain: Domain, shared_info: SharedInfoInterface) -> None:
        self.domain = domain
        self.shared_info = shared_info
        self.pfns = domain.pages.alloc_pages(domain.processors)

    def register_all(self) -> None:
        """At the start of day."""
        for vcpu in range(self.domain.processors):
            self.register(vcpu)

    def register(self, vcpu: int) -> None:
        """VCPUOP_register_vcpu_info, also of each CPU after a suspend.

        A CPU that Xen refuses keeps what it had: a domain that was resumed in place is
        registered still (EBUSY).
        """
        pfn = self.pfns[vcpu]
        try:
            self.domain.vcpu_op.register_vcpu_info(vcpu, pfn, 0)
        except HypercallError as error:
            if error.errno != EBUSY:
                return
        self.shared_info.moved_vcpu_info(vcpu, pfn, 0)
