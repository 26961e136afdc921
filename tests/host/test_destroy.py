"""The way out of a domain (libxl__destroy_domid, devices_destroy_cb), from any state."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenpv import Disk, Guest, MemoryImage, Platform, ToolstackError, Vif
from xenpv.abi._kernel import lib
from xenpv.errors import GrantError, HypercallError

KINDS = ("vbd", "vif", "console")
UNDERNEATH = (
    "/local",
    "/local/domain",
    "/local/domain/0",
    "/local/domain/0/backend",
    "/vm",
    "/libxl",
)


@pytest.fixture
def xen() -> Iterator[Platform]:
    with Platform(seed=1) as platform:
        yield platform


def make(xen: Platform, name: str = "g") -> Guest:
    return xen.create(name=name, disks=[Disk(MemoryImage(bytearray(1 << 20)))], vifs=[Vif(), Vif()])


def nodes(xen: Platform) -> list[str]:
    lines = xen.xenstored.ls_fp().splitlines()
    paths = [line.split(" = ")[0] for line in lines]
    return [path for path in paths if path not in UNDERNEATH and not path.startswith("/tool")]


def nothing_is_left(xen: Platform) -> None:
    assert list(xen.hypervisor.domains) == [0]
    assert nodes(xen) == []
    assert xen.backends.devices == {}
    assert xen.toolstack.created == {}
    assert len(xen.dom0.gnttab.maptrack) == 0


STATES: dict[str, Callable[[Guest], object]] = {
    "created": lambda guest: None,
    "running": Guest.start,
    "paused": lambda guest: guest.start().pause(),
    "paused as often as can be": lambda guest: [guest.start().pause() for _ in range(255)],
    "crashed": lambda guest: guest.start().crash(),
    "powered off": lambda guest: guest.start().created.domain.sched.shutdown(0),
    "suspended": lambda guest: guest.start().suspend(),
    "resumed": lambda guest: (guest.start().suspend(), guest.resume()),
    "killed at the hypervisor": lambda guest: guest.start().platform.dom0.domctl.destroydomain(1),
    "renamed": lambda guest: guest.start().rename("other"),
    "a device was lost": lambda guest: guest.start().detach("vif", 1),
}


@pytest.mark.parametrize("state", STATES)
def test_destroy_leaves_nothing(xen: Platform, state: str) -> None:
    guest = make(xen)
    STATES[state](guest)
    before = xen.loop.now
    guest.destroy()
    nothing_is_left(xen)
    assert xen.loop.now == before  # well-behaved backends close at once
    guest.destroy()  # a second time: nothing happens
    nothing_is_left(xen)


def test_xenconsoled_hears_of_a_released_domains_death_with_the_next(xen: Platform) -> None:
    """xenstored knows a released domain no more, so it tells nobody that it died."""
    guest = make(xen).start()
    xen.toolstack.xs.release_domain(1)
    guest.destroy()
    assert list(xen.hypervisor.domains) == [0, 1]
    assert guest.created.domain.dead
    make(xen).destroy()
    nothing_is_left(xen)


def test_it_can_be_made_again_under_the_same_name(xen: Platform) -> None:
    for domid in range(1, 6):
        guest = make(xen).start()
        assert guest.domid == domid
        guest.destroy()
    nothing_is_left(xen)


ROOTS = ("~", "/libxl/1", "VM", "~/device", "~/device/vbd", "~/console", "/local/domain/0/backend/vbd",
         "/local/domain/0/backend/vif/1", "/libxl/1/device/vif", "/local/domain/0/backend", "~/name",
         "/libxl/1/device/vbd/51712/backend")  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    gone=st.lists(st.sampled_from(ROOTS), min_size=1, max_size=4),
    runs=st.booleans(),
    acts=st.booleans(),
)
def test_trees_that_somebody_deleted_before(gone: list[str], runs: bool, acts: bool) -> None:
    with Platform(seed=2) as xen:
        guest = make(xen)
        if runs:
            guest.start()
        xs = xen.toolstack.xs
        for root in gone:
            xs.rm(root.replace("~", "/local/domain/1").replace("VM", f"/vm/{guest.created.uuid}"))
            if acts:
                xen.run()
        guest.destroy()
        assert list(xen.hypervisor.domains) == [0]
        left = [path for path in nodes(xen) if not path.startswith("/local/domain/0/backend")]
        assert left == []
        other = make(xen).start()  # nothing of the first one is in its way
        assert len(other.disks) == 1
        other.destroy()


def test_a_guest_that_names_other_backends_removes_only_its_own(xen: Platform) -> None:
    """It may rewrite its own directories: destroy goes by /libxl."""
    victim = make(xen, "victim").start()
    rogue = make(xen, "rogue").start()
    assert rogue.bus is not None
    store = rogue.bus.store
    for path in ("device/vbd/51712", "device/vif/0"):
        store.write(f"{path}/backend", f"/local/domain/0/backend/{path[7:].replace('/', '/1/', 1)}")
        store.write(f"{path}/backend-id", "7")
    rogue.destroy()
    rogues = ("/local/domain/2", "/libxl/2", *(f"/local/domain/0/backend/{one}/2" for one in KINDS))
    assert [path for path in nodes(xen) if path.startswith(rogues)] == []
    assert victim.running
    victim.disks[0].write(0, b"v" * 512)
    assert victim.disks[0].read(0, 1) == b"v" * 512
    victim.destroy()
    nothing_is_left(xen)


def test_pause_comes_first_and_the_domain_goes_last(xen: Platform) -> None:
    guest = make(xen).start()
    domain, toolstack = guest.created.domain, xen.toolstack
    steps = []

    def seen(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*arguments: object, **keywords: object) -> object:
            if not steps or steps[-1][0] != name:
                present = toolstack.xs.directory("/local/domain/1") != []
                steps.append((name, domain.pause_count, present, domain.dead))
            return call(*arguments, **keywords)

        return wrapped

    toolstack.hotplug.remove_all = seen("devices", toolstack.hotplug.remove_all)  # type: ignore[method-assign, assignment]  # to see the order
    toolstack.domids.note_destroyed = seen("recent", toolstack.domids.note_destroyed)  # type: ignore[method-assign, assignment]  # to see the order
    guest.destroy()
    assert steps == [("devices", 1, True, False), ("recent", 1, False, False)]
    assert domain.dead


def fires(xen: Platform) -> list[int]:
    """A list that grows with each @releaseDomain; the watch's first event is not in it."""
    seen: list[int] = []
    xen.console_daemon.store.watch("@releaseDomain", lambda _path: seen.append(xen.loop.now))
    xen.run()
    seen.clear()
    return seen


def test_release_domain_fires_at_its_end_and_again_at_its_death(xen: Platform) -> None:
    guest = make(xen).start()
    seen = fires(xen)
    guest.created.domain.sched.shutdown(0)
    xen.run()
    assert len(seen) == 1
    guest.destroy()
    assert len(seen) == 2


def test_release_domain_fires_once_for_a_domain_that_ran(xen: Platform) -> None:
    guest = make(xen).start()
    seen = fires(xen)
    guest.destroy()
    assert len(seen) == 1


def test_a_domain_of_which_another_holds_a_page_keeps_its_domid(xen: Platform) -> None:
    guest = make(xen).start()
    domain = guest.created.domain
    pfn = domain.pages.alloc()
    here = xen.dom0.memory.map_foreign(1, pfn)
    guest.destroy()
    assert domain.dead
    assert list(xen.hypervisor.domains) == [0, 1]
    assert nodes(xen) == []
    with pytest.raises(ToolstackError, match="^domain creation failed: domid 1 is in use$"):
        xen.create(name="h", domid=1)
    xen.dom0.memory.unmap_foreign(here)
    nothing_is_left(xen)


def test_backends_that_never_close_cost_10_s_and_are_removed(xen: Platform) -> None:
    guest = make(xen).start()
    xen.backends.close()
    before = xen.loop.now
    guest.destroy()
    assert xen.loop.now - before == 10_000_000_000  # all of them side by side
    assert nodes(xen) == []


# the hypervisor's part of a soft reset

SOFT_RESET = [
    ("itself", 0, "EINVAL"),
    ("nobody", 77, "ESRCH"),
]


@pytest.mark.parametrize(("domid", "name"), [row[1:] for row in SOFT_RESET])
def test_soft_reset_is_refused(xen: Platform, domid: int, name: str) -> None:
    with pytest.raises(HypercallError) as caught:
        xen.dom0.domctl.soft_reset(domid)
    assert (caught.value.name, caught.value.operation) == (name, "XEN_DOMCTL_soft_reset")
    guest = make(xen)
    with pytest.raises(HypercallError, match="^EPERM"):
        guest.created.domain.domctl.soft_reset(0)


def test_soft_reset_leaves_a_new_domains_state(xen: Platform) -> None:
    guest = make(xen).start()
    domain = guest.created.domain
    fresh = make(xen, "fresh").created.domain
    pfn, here = domain.pages.alloc(), xen.dom0.holes.alloc()
    domain.vcpu_op.register_vcpu_info(0, gfn=pfn, offset=64)
    domain.check(lib.grant_entry_set(domain.kernel, 300, 0, pfn, 1))
    xen.dom0.gnttab.unmap(xen.dom0.gnttab.map(1, 300, here), here)
    guest.pause()
    xen.toolstack.hotplug.remove_all(guest.created)
    xen.run()
    domain.sched.shutdown(5)
    xen.dom0.domctl.soft_reset(1)
    with pytest.raises(GrantError, match="^GNTST_"):
        xen.dom0.gnttab.map(1, 300, here)
    domain.vcpu_op.register_vcpu_info(0, gfn=pfn, offset=64)  # once only, but for the reset
    xen.dom0.domctl.unpausedomain(1)
    assert not domain.is_shutdown
    assert domain.shutdown_code is None
    assert domain.evtchn.bound() == 0
    assert domain.gnttab.version == 1
    assert domain.timers == []
    assert [task.name for task in domain.tasks] == ["upcall0"]
    assert domain.hvm.params == [0] * len(fresh.hvm.params)
    assert domain.tot_pages == fresh.tot_pages
    ram = [lib.p2m_type(domain.kernel, pfn) for pfn in range(0x100, 0x100 + 64 * 256)]
    assert set(ram) == {lib.P2M_RAM}
    assert domain.pages.free_pages == fresh.pages.free_pages
