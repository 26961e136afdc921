"""A live guest with a disk and an interface is suspended and resumed: its interfaces after it.

What the device drivers do with a new domain is theirs; here is what XenBus promises them.
"""

from __future__ import annotations

import pytest

from xenpv import Disk, Guest, Platform, Vif
from xenpv.bus.registry import Registry
from xenpv.bus.suspend import SuspendPhase
from xenpv.bus.xenbus import XenBus
from xenpv.host.image import MemoryImage
from xenpv.xen.loop import NS_PER_S

IMAGE = bytes(range(256)) * 256


def started(xen: Platform, fifo: bool | None) -> tuple[Guest, XenBus]:
    disk = Disk(MemoryImage(bytearray(IMAGE)))
    guest = xen.create(name="web", disks=[disk], vifs=[Vif()], fifo=fifo).start()
    assert guest.bus is not None
    assert guest.disks[0].read(0, 8) == IMAGE[:4096]
    return guest, guest.bus


def resume(xen: Platform, guest: Guest, result: int) -> None:
    xen.run()
    assert guest.created.domain.is_shutdown
    assert guest.created.domain.shutdown_code == 2
    xen.dom0.domctl.setvcpucontext(guest.domid, 0, rax=result)
    xen.dom0.domctl.resumedomain(guest.domid)


@pytest.mark.parametrize("fifo", [True, False])
def test_a_cancelled_suspend_is_not_noticed(fifo: bool) -> None:
    with Platform(seed=3) as xen:
        guest, bus = started(xen, fifo)
        channels = bus.evtchn.channels()
        watches = bus.store.watches()
        ran: list[str] = []
        bus.suspend.register(SuspendPhase.EARLY, lambda: ran.append("early"))
        bus.suspend.register(SuspendPhase.LATE, lambda: ran.append("late"))
        bus.suspend.trigger()
        xen.advance(5)
        resume(xen, guest, 1)
        xen.run()
        assert (ran, bus.suspend.get_count()) == ([], 0)
        assert bus.evtchn.channels() == channels
        assert all(channel.active for channel in channels)
        assert bus.store.watches() == watches
        assert not any(watch.expired for watch in watches)
        assert guest.disks[0].read(8, 8) == IMAGE[4096:8192]
        guest.nets[0].send(b"\xff" * 6 + guest.nets[0].mac + b"\x88\xb5" + bytes(50))
        xen.run()
        assert len(xen.bridge("xenbr0").frames) >= 1
        assert guest.shutdown() == 0


@pytest.mark.parametrize("fifo", [True, False])
def test_a_new_domain_begins_with_nothing_but_its_memory(fifo: bool) -> None:
    with Platform(seed=3) as xen:
        guest, bus = started(xen, fifo)
        domain = guest.created.domain
        before = [one for one in bus.evtchn.channels() if one is not bus.store.channel]
        watches = bus.store.watches()
        heard: list[object] = []
        bus.suspend.register(
            SuspendPhase.EARLY, lambda: heard.append(any(one.active for one in before))
        )
        bus.suspend.register(
            SuspendPhase.LATE, lambda: heard.append(bus.store.read("device/vbd/51712/device-type"))
        )
        bus.suspend.trigger()
        domain.memory.remove_from_physmap(domain.DOMID_SELF, bus.shared_info._page().pfn)
        for one in before:
            if one is not bus.console.channel:
                domain.evtchn.close(one.port)
        resume(xen, guest, 0)
        xen.run()
        assert heard == [False, "disk"]  # and the store serves the late callbacks
        assert (bus.suspend.get_count(), bus.problem) == (1, "")
        assert not any(one in bus.store.watches() for one in watches)
        assert not any(one.expired for one in bus.store.watches())
        assert sorted(one.path for one in bus.store.watches()) == sorted(
            one.path for one in watches
        )
        assert bus.store.channel.active
        assert bus.store.channel.port == domain.hvm_param(2)
        assert bus.evtchn.is_fifo == domain.evtchn.fifo == fifo
        clock = xen.hypervisor.clock
        time = bus.shared_info.get_time()[0] - 11_644_473_600 * 10_000_000
        assert time == pytest.approx(clock.wc_sec * 10_000_000 + xen.loop.now // 100, abs=1)
        devices_are_back(xen, guest)
        xen.advance(60)
        assert xen.loop.now >= 60 * NS_PER_S
        assert guest.shutdown() == 0


def devices_are_back(xen: Platform, guest: Guest) -> None:
    """Disk and interface carry data, the agent tells of itself, nothing is there twice."""
    assert all(up for _, _, up in guest._connections())
    assert guest.disks[0].read(8, 8) == IMAGE[4096:8192]
    guest.disks[0].write(0, bytes(4096))
    assert guest.disks[0].read(0, 8) == bytes(4096)
    seen = len(xen.bridge("xenbr0").frames)
    guest.nets[0].send(b"\xff" * 6 + guest.nets[0].mac + b"\x88\xb5" + bytes(50))
    xen.run()
    assert len(xen.bridge("xenbr0").frames) == seen + 1
    assert guest.nets[0].in_flight == 0
    xs, home = xen.toolstack.xs, f"/local/domain/{guest.domid}"
    for name in ("poweroff", "reboot", "s3", "s4"):
        assert xs.read(f"{home}/control/feature-{name}") == "1"
    products = [(xs.read(f"{home}/drivers/{one}") or "").split()[1] for one in range(4)]
    assert sorted(products) == ["XENBUS", "XENIFACE", "XENVBD", "XENVIF"]
    assert [pdo.state.value for pdo in guest.bus.pdos.values() if pdo.driver] == ["started"] * 3


ABIS = [
    # the registry's value, what the caller says, the personality, FIFO
    (None, None, "windows", True),
    (1, None, "windows", True),
    (0, None, "windows", False),
    ("1", None, "windows", True),
    (0, True, "windows", True),
    (1, False, "windows", False),
    (1, None, "linux", False),
    (1, True, "linux", True),
]


@pytest.mark.parametrize(("value", "given", "personality", "fifo"), ABIS)
def test_the_abi_is_the_registrys_unless_the_caller_says_which(
    value: int | str | None, given: bool | None, personality: str, fifo: bool
) -> None:
    registry = Registry()
    if value is not None:
        registry.set("Services\\XENBUS\\Parameters", "UseEvtchnFifoAbi", value)
    with Platform(seed=3) as xen:
        domain = xen.create(name="web").created.domain
        bus = XenBus(domain, {}, personality=personality, fifo=given, registry=registry)
        assert bus.evtchn.is_fifo == domain.evtchn.fifo == fifo


@pytest.mark.parametrize(("value", "vectors"), [(None, [0, 1]), (1, [0, 1]), (0, [])])
def test_upcall_vectors_are_the_registrys_and_the_line_is_always_set(
    value: int | None, vectors: list[int]
) -> None:
    registry = Registry()
    if value is not None:
        registry.set("Services\\XENBUS\\Parameters", "UseEvtchnUpcall", value)
    with Platform(seed=3) as xen:
        domain = xen.create(name="web", vcpus=2).created.domain
        bus = XenBus(domain, {}, registry=registry)
        assert bus.evtchn.vcpus_with_vector == vectors
        assert sorted(domain.evtchn.callbacks.vectors) == vectors
        assert domain.hvm_param(0) == 24


def test_linux_keeps_the_2_level_abi() -> None:
    with Platform(seed=3) as xen:
        guest = xen.create(name="web", personality="linux").start()
        assert guest.bus is not None
        assert not guest.bus.evtchn.is_fifo
