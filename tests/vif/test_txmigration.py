"""Packets that a migration finds on a tx ring, and behind it."""

from __future__ import annotations

import pickle

import pytest

from tests.vif.txscene import LSO4, TCP4, payload, tcp4, udp4, wire
from xenpv.back.netback import Netback
from xenpv.net.nbl import ChecksumRequest, NetBufferList
from xenpv.net.ndis import NdisStatus
from xenpv.net.offload import ENCAPSULATION, IEEE_802_3
from xenpv.net.oid import Oid
from xenpv.platform import Platform
from xenpv.vif.packet import TransmitterPacket


@pytest.mark.parametrize("personality", ["windows", "linux"])
def test_what_waits_is_sent_by_the_other_host_with_its_offloads(personality: str) -> None:
    """The first host's backend is stuck: what is on its ring is dropped, what waits goes on."""
    with wire(personality) as w, Platform(seed=9, loop=w.xen.loop) as there:
        nic = w.guest.nets[0]
        w.frontend.callbacks = nic
        if personality == "windows":
            nic.set(Oid.OFFLOAD_ENCAPSULATION, ENCAPSULATION.pack(*(1, IEEE_802_3, 14) * 2))
        device = w.xen.backends.device("vif", w.guest.domid, 0)
        assert device is not None
        assert isinstance(device.driver, Netback)
        for queue in device.driver.queues:
            for task in (queue._tx_task, queue._rx_task, queue._both_task):
                task.hold()
        nic.send_many([udp4(1000)] * 256)
        sums = ChecksumRequest.IS_IPV4 | ChecksumRequest.TCP
        large = [NetBufferList(buffers=(tcp4(20000),), checksum=sums, mss=1460) for _ in range(3)]
        nic.send_lists(large)
        w.xen.run()
        moved = w.guest.migrate(there)
        w.xen.run()
        there_nic = moved.nets[0]
        seen = there_nic.statistics
        on_the_ring = 128 if personality == "windows" else 237
        assert there_nic.in_flight == 0
        assert (seen.sent_dropped, seen.sent_frames) == (on_the_ring, 256 - on_the_ring + 3)
        ended = [moved.counterpart(one) for one in large]
        assert [one.status for one in ended] == [NdisStatus.SUCCESS] * 3
        frames = list(there.bridge("xenbr0").frames)[-3:]
        assert [frame[54:] for frame in frames] == [payload(20000)] * 3
        assert moved.nets[0].link_up


def test_a_table_of_slots_comes_back_as_it_was() -> None:
    with wire() as w:
        ring = w.frontend.queues[0].transmitter
        assert ring is not None
        ring.queue([udp4(100), TransmitterPacket(tcp4(5000), offload=LSO4 | TCP4, mss=99)], [7, 8])
        ring.post()
        state = ring.slots.__getstate__()
        pickle.dumps({name: state[name] for name in ("_domid", "_form", "_bytes")})
        before = (ring.slots.in_flight, ring.slots.nulls, ring.slots.free)
        ring.slots.__setstate__(state)
        assert (ring.slots.in_flight, ring.slots.nulls, ring.slots.free) == before
        w.xen.run()
        assert sorted(w.keeper.done) == [7, 8]
        assert ring.slots.in_flight == ring.slots.nulls == 0
