"""What a new domain is made of (libxl_create.c, libxl_dom.c)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from xenpv import Platform
from xenpv.host.domainconfig import DomainConfig
from xenpv.host.libxl import Created
from xenpv.xen.domain import CONSOLE_PFN, PAGE_SIZE, RAM_FIRST_PFN, XENSTORE_PFN


@pytest.fixture
def xen() -> Iterator[Platform]:
    with Platform(seed=1) as platform:
        yield platform


def test_populate_fills_memory_and_loses_what_store_and_console_said(xen: Platform) -> None:
    seen = []

    def populate(made: Created) -> None:
        domain = made.domain
        seen.append((domain.vcpus, domain.tot_pages, xen.toolstack.xs.read("/local/domain/1/name")))
        domain.populate(100)
        domain.populate_special()
        for pfn in (CONSOLE_PFN, XENSTORE_PFN, RAM_FIRST_PFN):
            domain.write(pfn, 0, b"\xaa" * PAGE_SIZE)

    made = xen.toolstack.create(DomainConfig(name="r", memory_mib=64), populate=populate)
    assert seen == [(1, 0, "r")]
    domain = made.domain
    assert domain.read(CONSOLE_PFN, 0, PAGE_SIZE) == bytes(PAGE_SIZE)
    assert b"\xaa" not in domain.read(XENSTORE_PFN, 0, PAGE_SIZE)
    assert domain.read(RAM_FIRST_PFN, 0, 4) == b"\xaa" * 4
    # Both daemons came by the reserved grants.
    assert xen.toolstack.xs.read("/local/domain/1/console/tty") == "/dev/pts/1"
    assert xen.store_daemon.rings[1].port
