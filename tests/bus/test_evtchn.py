from __future__ import annotations

import pytest

from tests.world import World
from xenpv.abi._kernel import lib
from xenpv.abi.hvm import HVM_PARAM
from xenpv.bus.evtchn import Channel, EvtchnInterface
from xenpv.bus.store import StoreInterface
from xenpv.errors import HypercallError, LocalProtocolError
from xenpv.xen.domain import XENSTORE_PFN
from xenpv.xen.vcpu import Upcall, Vcpu


@pytest.fixture
def evtchn(world: World) -> EvtchnInterface:
    return EvtchnInterface(world.guest)


def peer(world: World, channel: Channel) -> int:
    return world.dom0.evtchn.bind_interdomain(1, channel.port)


def test_a_new_channel_is_masked_until_its_owner_unmasks(
    world: World, evtchn: EvtchnInterface
) -> None:
    ran: list[int] = []
    channel = evtchn.open_unbound(0, lambda: ran.append(1))
    far = peer(world, channel)
    world.dom0.evtchn.send(far)
    world.loop.run()
    assert ran == []
    assert evtchn.unmask(channel)  # pending: the caller acts
    world.dom0.evtchn.send(far)
    world.loop.run()
    assert ran == [1]
    assert channel.count == 1


def test_a_forced_unmask_delivers_instead_of_telling(world: World, evtchn: EvtchnInterface) -> None:
    ran: list[int] = []
    channel = evtchn.open_unbound(0, lambda: ran.append(1))
    world.dom0.evtchn.send(peer(world, channel))
    assert not evtchn.unmask(channel, force=True)
    world.loop.run()
    assert ran == [1]


def test_auto_mask_holds_further_events_until_unmask(world: World, evtchn: EvtchnInterface) -> None:
    ran: list[int] = []
    channel = evtchn.open_unbound(0, lambda: ran.append(1), mask=True)
    far = peer(world, channel)
    evtchn.unmask(channel)
    for _ in range(3):
        world.dom0.evtchn.send(far)
        world.loop.run()
    assert ran == [1]
    assert evtchn.unmask(channel)
    assert lib.evtchn_is_masked(world.guest.kernel, channel.port) == 1


def test_the_pending_bit_is_clear_before_the_callback(
    world: World, evtchn: EvtchnInterface
) -> None:
    seen: list[int] = []
    channel = evtchn.open_unbound(
        0, lambda: seen.append(lib.evtchn_is_pending(world.guest.kernel, channel.port))
    )
    far = peer(world, channel)
    evtchn.unmask(channel)
    world.dom0.evtchn.send(far)
    world.loop.run()
    assert seen == [0]


def test_an_event_raised_in_the_callback_is_delivered_again(
    world: World, evtchn: EvtchnInterface
) -> None:
    ran: list[int] = []

    def callback() -> None:
        ran.append(1)
        if len(ran) < 3:
            world.dom0.evtchn.send(far)

    channel = evtchn.open_unbound(0, callback)
    far = peer(world, channel)
    evtchn.unmask(channel)
    world.dom0.evtchn.send(far)
    world.loop.run()
    assert ran == [1, 1, 1]


def test_close_gives_the_port_back_and_is_quiet_after(
    world: World, evtchn: EvtchnInterface
) -> None:
    channel = evtchn.open_unbound(0, lambda: None)
    before = world.guest.evtchn.bound()
    far = peer(world, channel)
    evtchn.close(channel)
    evtchn.close(channel)
    assert evtchn.channels() == []
    world.dom0.evtchn.send(far)
    assert world.guest.evtchn.bound() == before  # its vcpu's DPC closes it
    world.loop.run()
    assert world.guest.evtchn.bound() == before - 1
    evtchn.send(channel)
    assert not evtchn.unmask(channel)


def test_a_fixed_port_is_not_closed_at_the_hypervisor(
    world: World, evtchn: EvtchnInterface
) -> None:
    before = world.guest.evtchn.bound()
    channel = evtchn.open_fixed(2, lambda: None)
    evtchn.close(channel)
    assert world.guest.evtchn.bound() == before


def test_a_port_has_one_channel(world: World, evtchn: EvtchnInterface) -> None:
    del world
    evtchn.open_fixed(2, lambda: None)
    with pytest.raises(LocalProtocolError, match="^port 2 has a channel already$"):
        evtchn.open_fixed(2, lambda: None)
    with pytest.raises(HypercallError, match="ESRCH"):
        evtchn.open_inter_domain(99, 1, lambda: None)


def test_an_event_for_nobody_is_acknowledged(world: World, evtchn: EvtchnInterface) -> None:
    del evtchn
    port = world.guest.evtchn.alloc_unbound(0)
    far = world.dom0.evtchn.bind_interdomain(1, port)
    world.dom0.evtchn.send(far)
    world.loop.run()
    assert lib.evtchn_is_pending(world.guest.kernel, port) == 0


@pytest.fixture(params=[False, True], ids=["2-level", "fifo"])
def wide(world: World, request: pytest.FixtureRequest) -> EvtchnInterface:
    """An interface of a guest of four vcpus, in either ABI."""
    guest = world.hypervisor.create_domain(vcpus=4, max_pages=512)
    guest.start_vcpus()
    guest.populate(256)
    guest.unpause()
    interface = EvtchnInterface(guest, fifo=request.param, vectors=True)
    assert interface.is_fifo == request.param == guest.evtchn.fifo
    world.loop.run()
    return interface


def far_of(world: World, interface: EvtchnInterface, channel: Channel) -> int:
    return world.dom0.evtchn.bind_interdomain(interface.domain.domid, channel.port)


def test_a_channel_is_delivered_on_the_vcpu_it_is_bound_to(
    world: World, wide: EvtchnInterface
) -> None:
    ran: list[int] = []
    channels = [wide.open_unbound(0, lambda at=at: ran.append(at)) for at in range(4)]
    far = [far_of(world, wide, channel) for channel in channels]
    for vcpu, channel in enumerate(channels):
        wide.bind(channel, vcpu)
        assert wide.domain.evtchn.status(channel.port).vcpu == vcpu
        wide.unmask(channel, force=True)
    world.loop.run()
    for port in far:
        world.dom0.evtchn.send(port)
    assert [lib.evtchn_upcall_pending(wide.domain.kernel, vcpu) for vcpu in range(4)] == [1] * 4
    world.loop.run()
    assert sorted(ran) == [0, 1, 2, 3]
    assert [channel.count for channel in channels] == [1, 1, 1, 1]


def test_a_vcpu_leaves_ports_of_another_alone(world: World, wide: EvtchnInterface) -> None:
    """nanos#2172: the pending words of the 2-level ABI are common to all vcpus."""
    ran: list[str] = []
    one = wide.open_unbound(0, lambda: ran.append("one"))
    two = wide.open_unbound(0, lambda: ran.append("two"))
    wide.bind(two, 1)
    for channel in (one, two):
        far_of(world, wide, channel)
        wide.unmask(channel)
    kernel = wide.domain.kernel
    lib.evtchn_set_pending(kernel, two.port, 1)
    lib.evtchn_set_pending(kernel, one.port, 0)
    wide.abi.upcall(0)()
    assert ran == ["one"]
    wide.abi.upcall(1)()
    assert ran == ["one", "two"]


@pytest.mark.parametrize("auto_mask", [False, True])
def test_many_events_of_one_upcall_are_all_delivered(
    world: World, wide: EvtchnInterface, auto_mask: bool
) -> None:
    ran: list[int] = []
    channels = [
        wide.open_unbound(0, lambda at=at: ran.append(at), mask=auto_mask) for at in range(150)
    ]
    far = [far_of(world, wide, channel) for channel in channels]
    for channel in channels:
        wide.unmask(channel)
    for _ in range(2):
        for port in far:
            world.dom0.evtchn.send(port)
    world.loop.run()
    assert ran == list(range(150))
    kernel = wide.domain.kernel
    masked = {lib.evtchn_is_masked(kernel, channel.port) for channel in channels}
    assert masked == {int(auto_mask)}
    for port in far:
        world.dom0.evtchn.send(port)
    world.loop.run()
    assert len(ran) == (150 if auto_mask else 300)


def test_virq_channels_record_their_vcpu(world: World, wide: EvtchnInterface) -> None:
    ran: list[int] = []
    channel = wide.open_virq(0, lambda: ran.append(1), vcpu=3)
    assert channel.vcpu == 3
    wide.unmask(channel)
    assert wide.domain.evtchn.raise_virq(0, 3)
    world.loop.run()
    assert ran == [1]


def test_closing_a_channel_that_is_linked_waits_for_its_port(
    world: World, wide: EvtchnInterface
) -> None:
    channel = wide.open_unbound(0, lambda: None)
    port = channel.port
    far = far_of(world, wide, channel)
    wide.unmask(channel)
    world.dom0.evtchn.send(far)
    wide.close(channel)
    wide._reap(wide._dpc(0))
    again = wide.open_unbound(0, lambda: None)
    assert (again.port == port) == (not wide.is_fifo)
    wide.close(again)
    world.loop.run()
    assert wide.open_unbound(0, lambda: None).port == port


def test_the_fifo_array_grows_with_the_ports(world: World) -> None:
    guest = world.hypervisor.create_domain(vcpus=1, max_pages=512, max_event_channels=5000)
    guest.populate(256)
    interface = EvtchnInterface(guest, fifo=True)
    while guest.evtchn.alloc_unbound(0) < 2999:
        pass
    ran: list[int] = []
    channel = interface.open_unbound(0, lambda: ran.append(1))
    assert channel.port == 3000
    guest.unpause()
    far = world.dom0.evtchn.bind_interdomain(guest.domid, 3000)
    interface.unmask(channel)
    world.dom0.evtchn.send(far)
    world.loop.run()
    assert ran == [1]
    interface.acquire()
    interface.close(channel)
    interface.release()
    assert not guest.evtchn.fifo


def test_without_fifo_in_xen_the_guest_resets_and_stays_2_level(world: World) -> None:
    """init_control of vcpu 0 succeeds, that of vcpu 1 is refused: the store's port survives."""
    guest = world.guest
    store = guest.hvm_param(2)
    far = guest.evtchn.status(store).remote_port
    guest.pages.alloc(guest.pages.end - guest.pages.start - 1)  # one page left, and then none
    guest.processors, before = 2, guest.processors
    upcall = guest.task("upcall1", lambda: None, Upcall)
    guest.upcalls.append(upcall)
    guest.vcpu.append(Vcpu(guest, 1, upcall))
    interface = EvtchnInterface(guest, fifo=True)
    guest.processors = before
    assert not interface.is_fifo
    assert not guest.evtchn.fifo
    status = guest.evtchn.status(guest.hvm_param(2))
    assert (status.remote_domid, status.remote_port) == (0, far)
    ran: list[int] = []
    channel = interface.open_fixed(guest.hvm_param(2), lambda: ran.append(1))
    interface.unmask(channel)
    world.dom0.evtchn.send(far)
    world.loop.run()
    assert ran == [1]


def test_the_store_works_over_fifo(world: World) -> None:
    interface = EvtchnInterface(world.guest, fifo=True)
    store = StoreInterface(
        world.guest, interface, XENSTORE_PFN, world.guest.hvm_param(HVM_PARAM.STORE_EVTCHN)
    )
    store.write("data/key", "value")
    assert store.read("data/key") == "value"
    task = world.guest.task("watcher", lambda: ran.append(1))
    ran: list[int] = []
    store.watch_add("data/key", task)
    world.write("/local/domain/1/data/key", "other")
    world.loop.run()
    assert len(ran) >= 1
    assert store.read("data/key") == "other"
