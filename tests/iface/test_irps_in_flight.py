"""Requests of XENIFACE that stay pending, at what happens to their guest: each completes once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.iface.conftest import Scene
from xenpv.abi._kernel import lib
from xenpv.iface.ioctl import Irp
from xenpv.iface.xencontrol import XenControl
from xenpv.testing.census import leaks, take_census
from xenpv.testing.checkers import check_all

FOREIGN_REF = 40


def grant(xc: XenControl) -> int:
    address, _refs = xc.gnttab_permit_foreign_access(0, 2)
    return address


def foreign_map(xc: XenControl) -> int:
    return xc.gnttab_map_foreign_pages(0, [FOREIGN_REF])


def cancelled_suspend(scene: Scene) -> None:
    scene.guest.suspend()
    scene.guest.resume()


def new_domain(scene: Scene) -> None:
    scene.guest.suspend()
    scene.guest.resume(fast=False)


def by_its_code(xc: XenControl, irp: Irp, address: int) -> None:
    del irp
    if address in GRANTED:
        xc.gnttab_revoke_foreign_access(address)
    else:
        xc.gnttab_unmap_foreign_pages(address)


def by_cancel(xc: XenControl, irp: Irp, address: int) -> None:
    del xc, address
    irp.cancel()


def by_its_threads_end(xc: XenControl, irp: Irp, address: int) -> None:
    del address
    xc.process.exit_thread(irp.thread)


def by_its_processs_end(xc: XenControl, irp: Irp, address: int) -> None:
    del irp, address
    xc.exit()


GRANTED: list[int] = []
SUCCESS, PENDING, CANCELLED = 0, 0x103, 0xC0000120
EVENTS = [("suspend cancelled", cancelled_suspend), ("resumed as new", new_domain)]
ENDS: list[tuple[str, Callable[[XenControl, Irp, int], None], int]] = [
    # who ends it, and its status then
    ("its code", by_its_code, SUCCESS),
    ("cancel", by_cancel, CANCELLED),
    ("its thread's end", by_its_threads_end, CANCELLED),
    ("its process' end", by_its_processs_end, CANCELLED),
]


@pytest.mark.parametrize("make", [grant, foreign_map])
@pytest.mark.parametrize("event", [row[1] for row in EVENTS], ids=[row[0] for row in EVENTS])
@pytest.mark.parametrize(("end", "status"), [row[1:] for row in ENDS], ids=[row[0] for row in ENDS])
def test_a_grant_or_map_is_pending_until_somebody_ends_it(
    scene: Scene,
    make: Callable[[XenControl], int],
    event: Callable[[Scene], None],
    end: Callable[[XenControl, Irp, int], None],
    status: int,
) -> None:
    dom0, bus = scene.xen.dom0, scene.guest.bus
    dom0.check(lib.grant_entry_set(dom0.kernel, FOREIGN_REF, scene.guest.domid, 300, 1))
    event(scene)
    before, references = take_census(scene.xen), bus.gnttab.permitted
    xc = scene.guest.xencontrol()
    address = make(xc)
    GRANTED[:] = [address] if make is grant else []
    (irp,) = xc.process.pending
    event(scene)
    assert (irp.status, xc.process.pending) == (PENDING, [irp])
    end(xc, irp, address)
    assert (irp.status, xc.process.pending) == (status, [])
    irp.cancel()  # nothing is left to cancel
    assert irp.status == status
    assert (scene.iface.gnttab.contexts, bus.gnttab.permitted) == ([], references)
    check_all(scene.xen)
    assert leaks(before, take_census(scene.xen)) == []
