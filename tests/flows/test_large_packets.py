"""Large packets and blank sums from one guest's XenVif to another's, through netback and bridge."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tests.vif.rxscene import payload, sums_right
from xenpv import Platform, Vif
from xenpv.vif.packet import Offload, TransmitterPacket
from xenpv.vif.statistics import Statistic

HERE, THERE = "00:16:3e:00:00:01", "00:16:3e:00:00:02"
V4 = IP(src="10.0.0.1", dst="10.0.0.2", id=5)
V6 = IPv6(src="fd00::1", dst="fd00::2")
SUMS = (
    Offload.IPV4_HEADER_CHECKSUM | Offload.IPV4_TCP_CHECKSUM | Offload.IPV4_UDP_CHECKSUM
    | Offload.IPV6_TCP_CHECKSUM | Offload.IPV6_UDP_CHECKSUM
)  # fmt: skip
LARGE = {4: Offload.IPV4_LARGE_PACKET, 6: Offload.IPV6_LARGE_PACKET}


def packet(network: Packet, transport: Packet, size: int) -> bytes:
    return bytes(Ether(src=HERE, dst=THERE) / network / transport / payload(size))


@pytest.mark.parametrize("receives", ["windows", "linux"])
@pytest.mark.parametrize("sends", ["windows", "linux"])
@pytest.mark.parametrize("queues", [1, 2])
def test_what_one_guest_leaves_undone_arrives_whole(sends: str, receives: str, queues: int) -> None:
    with Platform(seed=5) as xen:
        one = xen.create(name="one", vifs=[Vif(mac=HERE)], personality=sends, vcpus=queues)
        two = xen.create(name="two", vifs=[Vif(mac=THERE)], personality=receives, vcpus=queues)
        one.start()
        two.start()
        assert one._vif is not None
        assert two._vif is not None
        sender, receiver = one._vif.pdos[0].frontend, two._vif.pdos[0].frontend
        for offload in (
            0,
            *LARGE.values(),
            *(bit | Offload.NEED_LARGE_PACKET_SPLIT for bit in LARGE.values()),
        ):
            receiver.receiver_set_offload_options(int(offload))
            for version, network in ((4, V4), (6, V6)):
                two.nets[0].received.clear()
                data = packet(network, TCP(seq=0xFFFFFFF0, flags="PA"), 40_000)
                sender.send([TransmitterPacket(data, int(LARGE[version] | SUMS), mss=1400)], [1])
                xen.run()
                got = list(two.nets[0].received)
                if offload in LARGE.values() and offload == LARGE[version]:
                    assert got == [data]
                    continue
                assert len(got) == (2 if offload & LARGE[version] else 29)
                assert b"".join(bytes(Ether(part)[TCP].payload) for part in got) == payload(40_000)
                assert all(sums_right(part) for part in got)
                assert [Ether(part)[TCP].flags for part in got] == ["A"] * (len(got) - 1) + ["PA"]


@pytest.mark.parametrize("receives", ["windows", "linux"])
def test_a_blank_sum_is_done_where_it_arrives(receives: str) -> None:
    with Platform(seed=5) as xen:
        one = xen.create(name="one", vifs=[Vif(mac=HERE)]).start()
        two = xen.create(name="two", vifs=[Vif(mac=THERE)], personality=receives).start()
        assert one._vif is not None
        assert two._vif is not None
        frames = [
            packet(network, transport, size)
            for network in (V4, V6)
            for transport in (TCP(), UDP())
            for size in (0, 1, 99, 1400)
        ]
        whole = [frame.ljust(60, b"\0") for frame in frames]
        requests = [TransmitterPacket(frame, int(SUMS)) for frame in frames]
        one._vif.pdos[0].frontend.send(requests, range(len(frames)))
        xen.run()
        assert list(two.nets[0].received) == whole
        statistics = two._vif.pdos[0].frontend.statistics
        assert statistics.query(Statistic.RECEIVER_TCP_PACKETS) == 8
        assert statistics.query(Statistic.RECEIVER_UDP_PACKETS) == 8
