"""Offloads across a driver domain: an app's packets over its uplink to the host, and back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from tests.back.netfront import Sink
from tests.net.test_lists import Lists
from tests.net.test_offload import ENCAPSULATION, ON
from tests.vif.rxscene import blank, sums_right
from tests.vif.txscene import tcp4, tcp6
from xenpv import Platform, Vif
from xenpv.host.network import GSO_TCPV4, GSO_TCPV6, Frame
from xenpv.net.adapter import Adapter
from xenpv.net.nbl import ChecksumRequest, NetBufferList

APP = bytes.fromhex("00163e000002")
IS = {IP: ChecksumRequest.IS_IPV4, IPv6: ChecksumRequest.IS_IPV6}
GSO = {IP: GSO_TCPV4, IPv6: GSO_TCPV6}
BUILD = {IP: tcp4, IPv6: tcp6}


class Path:
    """`app` behind `net`, whose adapter is on the host's bridge beside a station."""

    def __init__(self, xen: Platform) -> None:
        self.xen = xen
        net = xen.create(name="net", vifs=[Vif("xenbr0")], personality="linux", driver_domain=True)
        net.start()
        net.addif("br-app")
        self.uplink = net.driver_domain.uplinks[0]
        app = xen.create(name="app", vifs=[Vif("br-app", mac=APP.hex(":"), backend="net")]).start()
        self.nic: Adapter = app.nets[0]
        self.nic.list_receiver = self.nic.list_sender = self.lists = Lists()
        self.nic.set(ENCAPSULATION, ON)
        self.sink = Sink()
        xen.bridge("xenbr0").attach(self.sink)
        self.uplink_nic = net.nets[0]


@pytest.fixture
def path() -> Iterator[Path]:
    with Platform(seed=1) as xen:
        yield Path(xen)


@pytest.mark.parametrize("network", [IP, IPv6])
def test_a_large_packet_stays_whole_up_to_the_host(path: Path, network: type[IP | IPv6]) -> None:
    data = BUILD[network](9000)
    checksum = IS[network] | ChecksumRequest.TCP
    path.nic.send_lists([NetBufferList((data,), checksum, 1400, network is IPv6)])
    path.xen.run()
    (frame,) = path.sink.frames
    assert (frame.gso_type, frame.gso_size, frame.csum_blank) == (GSO[network], 1400, True)
    assert len(frame.data) == len(data)
    assert path.uplink.dropped == 0


@pytest.mark.parametrize("network", [IP, IPv6])
def test_a_large_packet_stays_whole_down_to_the_app(path: Path, network: type[IP | IPv6]) -> None:
    built = BUILD[network](9000)
    data = blank(APP + built[6:], network, TCP)
    frame = Frame(data, csum_blank=True, data_validated=True, gso_type=GSO[network], gso_size=1400)
    path.xen.bridge("xenbr0").transmit(path.sink, [frame], path.xen.loop.now)
    path.xen.run()
    head = len(data) - 9000
    got = [(len(one.buffers[0]) - head, one.mss) for one in path.lists.got]
    assert got == [(1400, 0), (7600, 1400)]
    assert all(sums_right(one.buffers[0]) for one in path.lists.got)


def test_what_the_uplink_does_not_do_is_done_before(path: Path) -> None:
    path.uplink_nic.set(0xFC01020C, bytes(4) + b"\1" * 5 + b"\0\0\1\1" + bytes(13))
    checksum = ChecksumRequest.IS_IPV4 | ChecksumRequest.TCP
    path.nic.send_lists([NetBufferList((tcp4(3000),), checksum, 1400)])
    path.nic.send_lists([NetBufferList((tcp4(100),), checksum)])
    path.xen.run()
    assert [(f.gso_type, f.csum_blank) for f in path.sink.frames] == [(0, False)] * 4
    assert all(sums_right(frame.data) for frame in path.sink.frames)
    assert path.uplink.dropped == 0


@pytest.mark.parametrize("tci", [5, 0xE005])
def test_tagged_frames_cross_as_they_are(path: Path, tci: int) -> None:
    built = tcp4(100)
    data = b"\xff" * 6 + built[6:12] + b"\x81\x00" + tci.to_bytes(2, "big") + built[12:]
    path.nic.send(data)
    path.xen.run()
    assert path.sink.data == [data]
