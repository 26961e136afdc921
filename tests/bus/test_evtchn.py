from __future__ import annotations

import pytest

from tests.world import World
from xenpv.abi._kernel import lib
from xenpv.bus.evtchn import Channel, EvtchnInterface
from xenpv.errors import HypercallError, LocalProtocolError


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
    assert world.guest.evtchn.bound() == before - 1
    assert evtchn.channels() == []
    world.dom0.evtchn.send(far)
    world.loop.run()
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
