"""The census: what a life of a guest leaves behind is counted, under the guest's name."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from xenpv import Disk, Guest, MemoryImage, Platform, Vif
from xenpv.abi._kernel import lib
from xenpv.testing import Census, leaks, take_census


def started(xen: Platform, personality: str = "windows") -> Guest:
    disk = Disk(MemoryImage(bytes(1 << 16)))
    return xen.create(name="web", disks=[disk], vifs=[Vif()], personality=personality).start()


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_a_guest_that_came_and_went_left_nothing(personality: str) -> None:
    with Platform(seed=3) as xen:
        started(xen, personality).destroy()
        before = take_census(xen)
        started(xen, personality).destroy()
        assert leaks(before, take_census(xen)) == []


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_a_guest_is_counted_under_its_name_whatever_its_domid(personality: str) -> None:
    with Platform(seed=3) as xen:
        guest = started(xen, personality)
        before, first = take_census(xen), guest.domid
        guest.reboot()
        assert guest.domid != first
        assert leaks(before, take_census(xen)) == []


def test_what_a_guest_of_known_devices_holds() -> None:
    with Platform(seed=3) as xen:
        started(xen)
        mine = take_census(xen).of("web")
        # Ring pages of the disk and of the interface, which has three, 256 buffers to receive
        # into, the console's page and the store's.
        assert mine.counts["web", "grant", "to dom0"] == 1 + 3 + 256 + 1 + 1 + 1
        assert mine.counts["dom0", "map", "of ~web"] == 7
        assert mine.counts["dom0", "port", "interdomain with ~web"] == 6
        assert mine.counts["dom0", "backend", "vif ~web 0"] == 1
        assert mine.counts["kernel", "watch", "/local/domain/~web/device/vif/0/state"] == 1
        assert mine.counts["store", "node", "/libxl/~web/device/vbd/51712/params"] == 1
        assert mine.total("web", "watch") == 11
        assert mine.total("toolstack", "domain") == 1
        assert ("dom0", "task", "upcall0") not in mine.counts


def _map_forever(xen: Platform, guest: Guest) -> None:
    domain = guest.created.domain
    domain.check(lib.grant_entry_set(domain.kernel, 300, 0, domain.pages.alloc(), 1))
    xen.dom0.gnttab.map(guest.domid, 300, xen.dom0.holes.alloc())


def _transaction(xen: Platform, guest: Guest) -> None:
    assert guest.bus is not None
    guest.bus.store.transaction_start()


LOST: list[tuple[Callable[[Platform, Guest], object], list[str]]] = [
    (
        lambda xen, _guest: xen.backends.store.watch("/local/domain/0/x", print),
        ["kernel: watch /local/domain/~dom0/x: 1, was 0"],
    ),
    (
        lambda xen, guest: xen.dom0.evtchn.alloc_unbound(guest.domid),
        ["dom0: port unbound with ~web: 1, was 0"],
    ),
    (
        _map_forever,
        [
            "dom0: map of ~web: 8, was 7",
            "dom0: page in holes: 8, was 7",
            "web: grant to dom0: 264, was 263",
        ],
    ),
    (_transaction, ["web: transaction open: 1, was 0"]),
    (
        lambda xen, guest: xen.toolstack.xs.write(f"/libxl/{guest.domid}/x", ""),
        ["store: node /libxl/~web/x: 1, was 0"],
    ),
    (
        lambda _xen, guest: [guest.created.domain.task("pnp", print) for _ in range(2)],
        ["web: task pnp: 3, was 1"],
    ),
    (
        lambda xen, _guest: xen.hypervisor.create_domain(vcpus=1, max_pages=1),
        ["d2: domain alive: 1, was 0"],
    ),
]


@pytest.mark.parametrize(("lose", "found"), LOST)
def test_what_is_lost_is_told_in_words(
    lose: Callable[[Platform, Guest], object], found: list[str]
) -> None:
    with Platform(seed=3) as xen:
        guest = started(xen)
        before = take_census(xen)
        lose(xen, guest)
        xen.run()
        assert leaks(before, take_census(xen)) == found


def test_a_domain_that_others_hold_on_to_is_counted() -> None:
    with Platform(seed=3) as xen:
        started(xen).destroy()
        before = take_census(xen)
        guest = started(xen)
        _map_forever(xen, guest)
        guest.destroy()
        assert leaks(before, take_census(xen)) == [
            f"d{guest.domid}: dead domain with 1 pages that others hold: 1, was 0",
            f"dom0: map of ~d{guest.domid}: 1, was 0",
            "dom0: page in holes: 1, was 0",
        ]


def test_a_guest_with_another_name_is_compared_by_the_old_one() -> None:
    before = Census({("web", "port", "ipi"): 1, ("dom0", "map", "of ~web"): 2})
    after = Census({("web2", "port", "ipi"): 1, ("dom0", "map", "of ~web2"): 2})
    assert leaks(before, after.renamed("web2", "web")) == []
    assert len(leaks(before, after)) == 4
