from __future__ import annotations

from collections.abc import Iterator

import pytest

from xenpv.abi._kernel import lib
from xenpv.xen.domain import Domain
from xenpv.xen.hypervisor import Hypervisor
from xenpv.xen.loop import Loop

NR_FRAMES = 1 << 16


@pytest.fixture
def hypervisor() -> Iterator[Hypervisor]:
    made = Hypervisor(Loop(seed=1), nr_frames=NR_FRAMES)
    yield made
    if not made.closed:
        made.close()


@pytest.fixture
def dom0(hypervisor: Hypervisor) -> Domain:
    return domain(hypervisor, 0)


@pytest.fixture
def guest(hypervisor: Hypervisor, dom0: Domain) -> Domain:
    return domain(hypervisor)


SHARED_INFO_PFN = 0x80  # below RAM_FIRST_PFN: nothing else is there


def map_shared_info(domain: Domain) -> int:
    """Its own shared_info, where the domain's page accessors reach it; the pfn."""
    hypervisor = domain._hypervisor
    frames: list[int] = []
    hypervisor.set_hook(lambda _actor, _kind, frame, _offset, _size: frames.append(frame))
    lib.evtchn_is_pending(domain.kernel, 1)
    hypervisor.set_hook(None)
    domain.check(lib.domain_add_xen_frame(domain.kernel, SHARED_INFO_PFN, frames[0]))
    return SHARED_INFO_PFN


def domain(hypervisor: Hypervisor, domid: int | None = None, **parameters: int) -> Domain:
    """A running domain of 256 pages."""
    made = hypervisor.create_domain(domid, **{"vcpus": 1, "max_pages": 512, **parameters})
    made.populate(256)
    made.unpause()
    made.start_vcpus()
    return made
