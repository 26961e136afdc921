from __future__ import annotations

from collections.abc import Iterator

import pytest

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


def domain(hypervisor: Hypervisor, domid: int | None = None, **parameters: int) -> Domain:
    """A running domain of 256 pages."""
    made = hypervisor.create_domain(domid, **{"vcpus": 1, "max_pages": 512, **parameters})
    made.populate(256)
    made.unpause()
    return made
