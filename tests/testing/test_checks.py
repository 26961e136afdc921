"""Each law about pages, progress, memory, watches and nodes notices what is planted against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from xenpv.abi.layout import offsetof
from xenpv.back.netback import Netback
from xenpv.guest import Guest
from xenpv.platform import Platform, Vif
from xenpv.testing.checkers import CheckFailed, check_all
from xenpv.testing.checks.memory import check_memory
from xenpv.testing.checks.pages import check_pages
from xenpv.testing.checks.progress import check_progress
from xenpv.testing.checks.store import check_nodes, check_watches
from xenpv.testing.raw_world import RawWorld, world_raw


@pytest.fixture
def raw() -> Iterator[RawWorld]:
    with world_raw() as world:
        yield world


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Platform() as xen:
        yield xen.create(name="guest", memory_mib=16, vifs=[Vif()]).start()


def netback(platform: Platform) -> Netback:
    (found,) = [one.driver for one in platform.backends.devices.values() if one.kind == "vif"]
    assert isinstance(found, Netback)
    return found


def test_nothing_is_wrong_with_a_world(raw: RawWorld, guest: Guest) -> None:
    check_all(raw.platform)
    check_all(guest.platform)


def test_a_granted_page_that_is_free(raw: RawWorld) -> None:
    pfn = raw.guest.page()
    ref = raw.guest.grant(pfn)
    raw.guest.domain.pages.free(pfn)
    assert check_pages(raw.platform) == [f"d1 ref {ref}: grants page {pfn:#x}, which is free"]
    assert check_pages(raw.platform, hostile=[1]) == []


def test_a_pfn_with_a_mapped_page_that_is_free(raw: RawWorld) -> None:
    dom0 = raw.platform.dom0
    (mapping, *_) = dom0.gnttab.maptrack.values()
    dom0.holes.free(mapping.pfn)
    (found,) = check_pages(raw.platform)
    assert found.endswith(f"is mapped at {mapping.pfn:#x}, a free pfn")


def test_an_event_that_nobody_takes(raw: RawWorld) -> None:
    raw.guest.domain.set_upcall(0, lambda: None)
    port = netback(raw.platform).queues[0]._ports[0]
    raw.platform.dom0.evtchn.send(port)
    raw.run()
    (found,) = check_progress(raw.platform)
    assert found.startswith("d1 port ")
    assert "pending and not masked" in found
    with pytest.raises(CheckFailed, match="nobody is going to take it"):
        check_all(raw.platform)
    check_all(raw.platform, quiescent=False)


@pytest.mark.parametrize("what", ["req", "rsp"])
def test_bytes_in_a_store_ring_that_nobody_reads(guest: Guest, what: str) -> None:
    ring = guest.platform.store_daemon.rings[guest.domid]
    at = offsetof("xenstore_domain_interface", f"{what}_prod")
    dom0 = guest.platform.dom0
    dom0.store32(ring.pfn, at, dom0.load32(ring.pfn, at) + 1)
    (found,) = check_progress(guest.platform)
    assert found.startswith(f"store ring of d{guest.domid}: ")
    assert check_progress(guest.platform, hostile=[guest.domid]) == []


def test_a_watch_event_whose_client_sleeps(raw: RawWorld) -> None:
    class Sleeper:
        def wake(self) -> None:
            """Not now."""

    client = raw.platform.xenstored.connect_local("sleeper")
    client.on_event = Sleeper()
    client.call(4, b"/tool\0token\0")
    assert check_progress(raw.platform) == ["sleeper: 1 watch events wait, and its task is not due"]


def test_what_is_due_is_not_late(raw: RawWorld) -> None:
    raw.vif.notify()
    raw.guest.xs.write(f"{raw.vif.path}/state", "4")
    check_all(raw.platform)
    raw.run()
    check_all(raw.platform)


def test_frames_that_wait_for_ever(raw: RawWorld) -> None:
    rx = netback(raw.platform).queues[0].rx
    assert rx is not None
    rx.backlog_bytes = 60
    assert check_progress(raw.platform) == ["vif1.0-q0: 60 bytes wait for the guest for ever"]


def grow_groups(driver: Netback) -> None:
    driver.multicast = [bytes(6)] * 65


def grow_mapping(driver: Netback) -> None:
    driver.hash.mapping = (0,) * 129


def grow_backlog(driver: Netback) -> None:
    rx = driver.queues[0].rx
    assert rx is not None
    rx.backlog_bytes = 524_288 + 65_554


@pytest.mark.parametrize(
    ("grow", "found"),
    [
        (grow_groups, "vif1.0: 65 multicast groups, 64 at most"),
        (grow_mapping, "vif1.0: 129 entries of its hash mapping, 128 at most"),
        (grow_backlog, "vif1.0: 589842 bytes of frames in queue vif1.0-q0, 589841 at most"),
    ],
)
def test_what_netback_keeps_without_a_limit(
    raw: RawWorld, grow: Callable[[Netback], None], found: str
) -> None:
    grow(netback(raw.platform))
    assert check_memory(raw.platform) == [found]


@pytest.mark.parametrize(
    ("quota", "most"), [("nodes", 1000), ("watches", 128), ("transactions", 10)]
)
def test_what_xenstored_keeps_beyond_a_quota(guest: Guest, quota: str, most: int) -> None:
    domain = guest.platform.xenstored.known[guest.domid]
    setattr(domain, quota, most + 2)
    assert check_memory(guest.platform) == [
        f"xenstored: d{guest.domid} has {most + 2} {quota}, {most} at most"
    ]


def test_watches_of_backends_that_nobody_wants(raw: RawWorld) -> None:
    bus = raw.platform.backends
    (vif,) = [one for one in bus.devices.values() if one.kind == "vif"]
    bus.store.watch(f"{vif.frontend}/state", print)
    assert check_watches(raw.platform) == [f"backends watch {vif.frontend}/state twice"]
    bus.store.watch("/local/domain/9/device/vif/0/state", print)
    assert check_watches(raw.platform)[1:] == [
        "backends watch /local/domain/9/device/vif/0/state, and have no device there"
    ]


def test_a_watch_of_a_guest_that_expired(guest: Guest) -> None:
    assert guest.bus is not None
    watch = guest.bus.store.watches()[0]
    watch.expired = True
    assert check_watches(guest.platform) == [
        f"d{guest.domid}: its watch of {watch.path} expired in a suspend, and was not added again"
    ]
    assert check_watches(guest.platform, hostile=[guest.domid]) == []


def test_a_watch_that_xenstored_has_and_the_guest_forgot(guest: Guest) -> None:
    assert guest.bus is not None
    store = guest.bus.store
    store._forget(store.watches()[0])
    (found,) = check_watches(guest.platform)
    assert found.startswith(f"d{guest.domid}: xenstored has ")


def test_a_transaction_that_is_left_open(guest: Guest) -> None:
    assert guest.bus is not None
    guest.bus.store.transaction_start()
    assert check_watches(guest.platform) == [f"d{guest.domid}: 1 transactions are open"]


def test_a_state_that_the_store_does_not_say(raw: RawWorld) -> None:
    raw.guest.xs.write(f"{raw.vif.backend_path}/state", "6")
    assert check_nodes(raw.platform) == ["vif1.0: its state is 4, the store says 6"]
    assert check_nodes(raw.platform, hostile=[1]) == []


def test_a_broken_device_without_a_reason_in_the_store(raw: RawWorld) -> None:
    backend = raw.vif.backend
    assert backend is not None
    backend.broken = "it was bad"
    assert check_nodes(raw.platform) == ["vif1.0: broken (it was bad), and no error in the store"]
