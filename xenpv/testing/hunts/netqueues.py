"""Scenarios of an interface with many queues, each with a directory, rings and a channel."""

from __future__ import annotations

from functools import partial
from typing import Final

from xenpv.testing.explorer import Explorer
from xenpv.testing.hunts.netwire import OKAY, Piece, Station, Wire, frame, wired
from xenpv.testing.hunts.steps import Steps
from xenpv.testing.raw_world import RawWorld
from xenpv.testing.sring import RawSring

QUEUES: Final = 12  # two digits


def _connect(world: RawWorld, count: int) -> list[Wire]:
    """The interface with that many queues, connected; a wire of each queue's tx ring."""
    front, guest = world.vif, world.guest
    world.run()
    front.attach()
    flat = ("tx-ring-ref", "rx-ring-ref", "event-channel")
    keys: dict[str, str | None] = {"multi-queue-num-queues": str(count), **dict.fromkeys(flat)}
    wires = []
    for index in range(count):
        pfn = guest.page(2)
        tx = RawSring(guest.domain, pfn, 1, req="netif_tx_request", rsp="netif_tx_response")
        RawSring(guest.domain, pfn + 1, 1, req="netif_rx_request", rsp="netif_rx_response")
        wire = Wire(front, tx)
        channel = guest.evtchn.open_unbound(0, wire.collect)
        guest.evtchn.unmask(channel, force=True)
        wire.notify = partial(guest.domain.evtchn.send, channel.port)
        wires.append(wire)
        for key, value in zip(
            flat, (guest.grant(pfn), guest.grant(pfn + 1), channel.port), strict=True
        ):
            keys[f"queue-{index}/{key}"] = str(value)
    front.announce(keys)
    world.run()
    front.finish()
    return wires


def net_queues(x: Explorer) -> None:
    """A guest with a dozen queues sends through each: all of it comes, and each is answered in
    its own.
    """
    world = wired(x, connect=False, queues=QUEUES)
    wires = _connect(world, QUEUES)
    station = Station(world)
    frames = [frame(100, index) for index in range(QUEUES)]
    packets = [wire.packet(Piece(data)) for wire, data in zip(wires, frames, strict=True)]
    sends = [partial(wire.send, one) for wire, one in zip(wires, packets, strict=True)]
    Steps([*sends]).start(world.guest.domain.task, "net sender")
    x.run()
    assert sorted(station.data) == sorted(frames), "what was sent is not what came"
    for index, (wire, packet) in enumerate(zip(wires, packets, strict=True)):
        assert wire.answers == packet.answered(OKAY), f"queue {index}: {wire.answers}"


SCENARIOS: Final = (net_queues,)
