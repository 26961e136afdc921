"""Every frontend on every netback: Windows' and Linux' drivers, and the kit's second frontend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.back.netfront import PEER_MAC, Sink, frame
from tests.back.test_netrx import tcp, udp
from tests.net.test_offload import ENCAPSULATION, ON
from xenpv import Guest, Platform, Vif
from xenpv.back.netback import Netback
from xenpv.host.network import GSO_TCPV4, Frame
from xenpv.host.offload import blank_checksum, to_wire
from xenpv.net.nbl import ChecksumRequest, NetBufferList
from xenpv.net.ndis import NdisStatus
from xenpv.testing import leaks, take_census, world_net

PROFILES = ["linux", "qemu", "mirage"]
PERSONALITIES = ["windows", "linux"]
MAC = "00:16:3e:00:00:01"


@contextmanager
def scene(personality: str, profile: str, mtu: int | None = None) -> Iterator[tuple[Guest, Sink]]:
    """A guest that has started, and a station at the other end of its bridge."""
    with Platform(seed=6, netback=profile) as xen:
        guest = xen.create(name="a", vifs=[Vif(mac=MAC, mtu=mtu)], personality=personality)
        guest.start()
        sink = Sink()
        xen.bridge("xenbr0").attach(sink)
        yield guest, sink


def back_of(guest: Guest) -> Netback:
    device = guest.platform.backends.device("vif", guest.domid, 0)
    assert device is not None
    assert isinstance(device.driver, Netback)
    return device.driver


def deliver(guest: Guest, sink: Sink, *frames: Frame) -> None:
    xen = guest.platform
    xen.bridge("xenbr0").transmit(sink, list(frames), xen.loop.now)
    xen.run()


def inbound(size: int) -> bytes:
    return frame(size, source=PEER_MAC, destination=bytes.fromhex(MAC.replace(":", "")))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("personality", PERSONALITIES)
def test_frames_of_every_size_go_both_ways(personality: str, profile: str) -> None:
    with scene(personality, profile) as (guest, sink):
        assert back_of(guest).profile.name == profile
        (net,) = guest.nets
        sizes = [60, 61, 100, 577, 1000, 1499, 1500, 1513, 1514]
        net.send_many([frame(size) for size in sizes])
        guest.platform.run()
        assert sink.data == [frame(size) for size in sizes]
        deliver(guest, sink, *[Frame(inbound(size)) for size in sizes])
        assert [bytes(one) for one in net.received] == [inbound(size) for size in sizes]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("personality", PERSONALITIES)
def test_more_frames_than_the_rings_hold_go_both_ways(personality: str, profile: str) -> None:
    with scene(personality, profile) as (guest, sink):
        (net,) = guest.nets
        net.send_many([frame(1514)] * 700)
        guest.platform.run()
        assert sink.data == [frame(1514)] * 700
        for _ in range(7):
            deliver(guest, sink, *[Frame(inbound(1514))] * 100)
        assert len(net.received) == 700
        assert back_of(guest).counters.rx_dropped == 0


@pytest.mark.parametrize("profile", ["linux", "mirage"])
@pytest.mark.parametrize("personality", PERSONALITIES)
def test_jumbo_frames_go_both_ways(personality: str, profile: str) -> None:
    with scene(personality, profile, mtu=9000) as (guest, sink):
        (net,) = guest.nets
        net.send(frame(9014))
        guest.platform.run()
        assert sink.data == [frame(9014)]
        deliver(guest, sink, Frame(inbound(9014)))
        assert [bytes(one) for one in net.received] == [inbound(9014)]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("personality", PERSONALITIES)
def test_what_others_leave_to_be_done_arrives_finished(personality: str, profile: str) -> None:
    """A blank sum and a large packet: a plain receiver of XenNet sees whole, right frames."""
    with scene(personality, profile) as (guest, sink):
        (net,) = guest.nets
        deliver(
            guest, sink,
            blank_checksum(Frame(udp(200))),
            blank_checksum(Frame(tcp(4000), gso_type=GSO_TCPV4, gso_size=1460)),
        )  # fmt: skip
        got = [bytes(one) for one in net.received]
    assert got[0] == udp(200)
    assert sum(len(one) - 54 for one in got[1:]) == 4000
    assert b"".join(one[54:] for one in got[1:]) == tcp(4000)[54:]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("personality", PERSONALITIES)
def test_a_guest_shuts_down_and_leaves_nothing(personality: str, profile: str) -> None:
    with Platform(seed=6, netback=profile) as xen:
        census = []
        for _ in range(2):
            guest = xen.create(name="a", vifs=[Vif(mac=MAC)], personality=personality)
            guest.start()
            guest.nets[0].send_many([frame(100)] * 20)
            xen.run()
            guest.shutdown()
            guest.destroy()
            xen.run()
            census.append(take_census(xen))
        assert leaks(*census) == []


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("personality", PERSONALITIES)
def test_an_interface_is_detached_and_another_attached(personality: str, profile: str) -> None:
    with scene(personality, profile) as (guest, sink):
        guest.detach(guest.nets[0])
        assert guest.nets == []
        guest.attach(Vif(mac=MAC))
        (net,) = guest.nets
        net.send(frame(100))
        guest.platform.run()
        assert sink.data == [frame(100)]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("personality", PERSONALITIES)
def test_a_guest_is_suspended_and_goes_on(personality: str, profile: str) -> None:
    with scene(personality, profile) as (guest, sink):
        guest.suspend()
        guest.resume()
        guest.platform.run()
        (net,) = guest.nets
        assert net.link_up
        sink.frames.clear()  # the announcements of a resume
        net.send(frame(100))
        deliver(guest, sink, Frame(inbound(100)))
        assert frame(100) in sink.data
        assert inbound(100) in [bytes(one) for one in net.received]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("other", PERSONALITIES)
def test_the_second_frontend_talks_to_both_drivers(other: str, profile: str) -> None:
    """Two guests on one bridge, one of them with another netback than the other."""
    second_mac, mac = bytes.fromhex("00163e000001"), bytes.fromhex("00163e0000aa")
    with world_net(seed=6, netback=profile) as world:
        xen, second = world.platform, world.net
        guest = xen.create(
            name="a", vifs=[Vif(mac="00:16:3e:00:00:aa", profile="linux")], personality=other
        )
        guest.start()
        there, back = (frame(900, source=one, destination=two)
                       for one, two in ((mac, second_mac), (second_mac, mac)))  # fmt: skip
        for _ in range(50):
            second.send(back)
        xen.run()
        (net,) = guest.nets
        assert [bytes(one) for one in net.received] == [back] * 50
        second.received.clear()
        net.send_many([there] * 50)
        xen.run()
        assert [one.data for one in second.received] == [there] * 50
        assert not second.broken


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("personality", PERSONALITIES)
def test_a_driver_domain_has_profiles_too(personality: str, profile: str) -> None:
    """Its store knows less of it than dom0's: what it may not write it goes without."""
    with Platform(seed=6) as xen:
        driver = xen.create(name="net", personality="linux", driver_domain=True)
        driver.start()
        guest = xen.create(
            name="a", vifs=[Vif(mac=MAC, backend="net", profile=profile)], personality=personality
        )
        guest.start()
        sink = Sink()
        driver.bridge("xenbr0").attach(sink)
        (net,) = guest.nets
        net.send_many([frame(100)] * 50)
        xen.run()
        assert sink.data == [frame(100)] * 50
        driver.bridge("xenbr0").transmit(sink, [Frame(inbound(100))] * 50, xen.loop.now)
        xen.run()
        assert [bytes(one) for one in net.received] == [inbound(100)] * 50
        guest.shutdown()


@pytest.mark.parametrize("profile", PROFILES)
def test_windows_asks_a_backend_only_for_what_it_does(profile: str) -> None:
    """A blank sum arrives finished once the bridge's other end finishes it, as does LSO.

    mirage does not know of blank sums and never says so: there they leak (opnsense/core#735).
    """
    with scene("windows", profile) as (guest, sink):
        (net,) = guest.nets
        net.set(ENCAPSULATION, ON)
        sent = PEER_MAC + bytes.fromhex(MAC.replace(":", "")) + udp(200)[12:]
        blank = blank_checksum(Frame(sent)).data
        asked = ChecksumRequest.IS_IPV4 | ChecksumRequest.UDP
        net.send_lists([NetBufferList((sent[:40] + b"\0\0" + sent[42:],), checksum=asked)])
        guest.platform.run()
        arrived = [part for one in sink.frames for part in to_wire(one)]
        assert arrived == [blank if profile == "mirage" else sent]
        sink.frames.clear()
        large = PEER_MAC + bytes.fromhex(MAC.replace(":", "")) + tcp(8000)[12:]
        taken = NetBufferList((large,), mss=1460)
        net.send_lists([taken])
        guest.platform.run()
        arrived = [part for one in sink.frames for part in to_wire(one)]
        if profile == "linux":
            assert b"".join(part[54:] for part in arrived) == large[54:]
            assert [len(part) for part in arrived] == [1514] * 5 + [754]
        else:
            assert arrived == []  # no LSO without the feature
            assert taken.status == NdisStatus.FAILURE
