"""RegisterVcpuInfo: CPUs beyond the 32 of shared_info get events where it is on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from xenpv import Platform
from xenpv.bus import inf, vcpuinfo
from xenpv.bus.registry import Registry

DEFAULTS = [(1, False), (32, False), (33, True), (128, True)]


@pytest.fixture
def xen() -> Iterator[Platform]:
    with Platform(seed=5) as platform:
        yield platform


@pytest.mark.parametrize(("vcpus", "wanted"), DEFAULTS)
def test_by_default_only_where_there_are_more_than_32(vcpus: int, *, wanted: bool) -> None:
    assert vcpuinfo.wanted(Registry(), vcpus) is wanted
    for said in (0, 1):
        registry = Registry({vcpuinfo.PARAMETERS: {vcpuinfo.VALUE: said}})
        assert vcpuinfo.wanted(registry, vcpus) is bool(said)


@pytest.mark.parametrize("fifo", [False, True])
@pytest.mark.parametrize("cpu", [0, 31, 32, 39])
def test_every_cpu_of_forty_takes_events(xen: Platform, cpu: int, *, fifo: bool) -> None:
    guest = xen.create(name="g", vcpus=40, fifo=fifo).start()
    bus = guest.bus
    assert bus is not None
    assert bus.evtchn.is_fifo is fifo
    seen: list[int] = []
    channel = bus.evtchn.open_unbound(0, lambda: seen.append(cpu))
    bus.evtchn.bind(channel, cpu)
    bus.evtchn.unmask(channel)
    port = xen.dom0.evtchn.bind_interdomain(guest.domid, channel.port)
    xen.run()
    before = len(seen)
    xen.dom0.evtchn.send(port)
    xen.run()
    assert len(seen) == before + 1
    bus.evtchn.close(channel)


def test_turned_off_a_cpu_beyond_has_no_upcall(xen: Platform) -> None:
    registry = inf.installed()
    registry.set(vcpuinfo.PARAMETERS, vcpuinfo.VALUE, 0)
    guest = xen.create(name="g", vcpus=40, registry=registry, fifo=False).start()
    assert guest.bus is not None
    assert [guest.bus.shared_info.upcall_supported(cpu) for cpu in (31, 32)] == [True, False]


@pytest.mark.parametrize("result", [0, 1])
def test_after_a_suspend_they_are_where_they_were(xen: Platform, result: int) -> None:
    registry = inf.installed()
    registry.set(vcpuinfo.PARAMETERS, vcpuinfo.VALUE, 1)
    guest = xen.create(name="g", vcpus=2, registry=registry).start()
    assert guest.bus is not None
    before = dict(guest.bus.shared_info.registered)
    assert list(before) == [0, 1]
    xen.toolstack.xs.write(f"/local/domain/{guest.domid}/control/shutdown", "suspend")
    xen.run()
    if result:
        xen.dom0.domctl.setvcpucontext(guest.domid, 0, rax=result)
    xen.dom0.domctl.resumedomain(guest.domid)
    xen.run()
    assert guest.bus.shared_info.registered == before
    assert guest.bus.shared_info.get_time()[0] > 0
    assert guest.shutdown() == 0
