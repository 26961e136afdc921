"""Memory that changes between the check and the use of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from xenpv.abi._kernel import lib
from xenpv.platform import Platform
from xenpv.view.rings import poke
from xenpv.xen.domain import Domain


@contextmanager
def changed_after_read(
    platform: Platform, writer: Domain, pfn: int, offset: int, data: bytes
) -> Iterator[None]:
    """When another domain than `writer` has read any byte that `data` replaces, at `offset` of
    page `pfn` of the writer's, it is there before the next access of any memory. It happens once.
    """
    hypervisor = platform.hypervisor
    frame = int(lib.p2m_lookup(writer.kernel, pfn, 0))
    end = offset + len(data)
    seen = done = False

    def hook(actor: int, kind: int, number: int, at: int, nr_bytes: int) -> None:
        nonlocal seen, done
        if actor == writer.domid or done:
            return
        if seen:
            done = True
            poke(hypervisor, frame, offset, data)
        elif number == frame and not kind & 3 and at < end and offset < at + nr_bytes:
            seen = True

    hypervisor.set_hook(hook)
    try:
        yield
    finally:
        hypervisor.set_hook(None)
