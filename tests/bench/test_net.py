from __future__ import annotations

import pytest

from xenpv.bench.net import GSO_BATCH, GSO_BYTES, HEADERS, MSS, SMALL_BYTES, STREAM_BYTES, Net
from xenpv.errors import LocalProtocolError


@pytest.mark.parametrize("size", [SMALL_BYTES, STREAM_BYTES])
def test_each_frame_goes_there_and_comes_back(size: int) -> None:
    with Net(size, 16) as net:
        net.run(3)
        assert net.station.frames == 4 * 16
        assert {len(frame) for frame in net.loads[0].nic.received} == {size}
        assert len(net.loads[0].nic.received) == 4 * 16
        assert net.loads[0].nic.in_flight == 0


def test_large_packets_are_large_on_the_bridge_and_come_back_whole() -> None:
    with Net(GSO_BYTES, GSO_BATCH, mss=MSS) as net:
        net.run(2)
        assert net.station.frames == 3 * GSO_BATCH
        payload = sum(len(frame) - HEADERS for frame in net.loads[0].nic.received)
        assert payload == 3 * GSO_BATCH * (GSO_BYTES - HEADERS)


def test_flows_take_every_queue_both_ways() -> None:
    with Net(SMALL_BYTES, 128, queues=4) as net:
        vif = net.platform.guests[0]._vif
        assert vif is not None
        frontend = vif.pdos[0].frontend
        assert len(frontend.queues) == 4
        for queue in frontend.queues:
            assert queue.transmitter is not None
            assert queue.transmitter.posted > 0


def test_guests_and_idle_ports_share_the_bridge() -> None:
    with Net(SMALL_BYTES, 8, guests=3, ports=5) as net:
        net.run(2)
        assert net.station.frames == 3 * 3 * 8
        assert len(net.platform.bridge("xenbr0").ports) == 3 + 5 + 1


def test_frames_that_do_not_come_back_are_no_measurement() -> None:
    with Net(SMALL_BYTES, 8) as net:
        net.station.answers[net.loads[0].nic.mac] = []
        with pytest.raises(LocalProtocolError, match="^8 of 16 frames went and came back"):
            net.run(2)
