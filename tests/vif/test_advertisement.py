"""What an interface tells the host of its addresses, and the switches after a resume."""

from __future__ import annotations

import attrs
import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from tests.vif.rawback import MAC, Scene, scene
from xenpv import Guest, Platform, Vif
from xenpv.bus.store import StoreInterface
from xenpv.errors import StoreError
from xenpv.vif.advertisement import ip_text, packed
from xenpv.vif.announce import announcements

V4 = "192.0.2.7"
V6 = "2001:db8::7"
V6_TEXT = "2001:0db8:0000:0000:0000:0000:0000:0007"
GUEST_MAC = bytes.fromhex(MAC.replace(":", ""))


@attrs.frozen
class Configured:
    ipv4: tuple[str, ...] = ()
    ipv6: tuple[str, ...] = ()


# what the system has, what is told of it
ADDRESSES = [
    (None, []),
    (Configured(), []),
    (Configured((V4,)), [V4]),
    (Configured(("192.0.2.7/24", V4)), [V4]),
    (Configured((V4, "junk", "", "192.0.2.8")), [V4, "192.0.2.8"]),
    (Configured((V6,)), []),
    (Configured((), (V4,)), []),
    (Configured((), (V6, "2001:DB8:0::7/64", "fe80::1")), [V6_TEXT, "fe80:0000:0000:0000:0000:0000:0000:0001"]),
    (Configured((V4,), (V6,)), [V4, V6_TEXT]),
]  # fmt: skip


@pytest.mark.parametrize(("configured", "told"), ADDRESSES)
def test_each_address_is_told_once_in_its_long_form(
    configured: Configured | None, told: list[str]
) -> None:
    assert [ip_text(one) for one in packed(configured)] == told


def test_as_many_are_told_as_one_may_look_at() -> None:
    many = Configured(tuple(f"10.0.{n >> 8}.{n & 255}" for n in range(1000)))
    assert len(packed(many)) == 256


def told(s: Scene, family: str) -> list[str | None]:
    return [s.attr(f"attr/vif/0/{family}/{index}") for index in range(3)]


def configure(s: Scene, *addresses: str) -> None:
    s.guest.set_addresses(0, " ".join(addresses))
    s.run()


def test_a_change_rewrites_both_subtrees() -> None:
    with scene() as s:
        assert (told(s, "ipv4"), told(s, "ipv6")) == ([None] * 3, [None] * 3)
        configure(s, V4, "192.0.2.8/24", V6)
        assert told(s, "ipv4") == [V4, "192.0.2.8", None]
        assert told(s, "ipv6") == [V6_TEXT, None, None]
        configure(s, "192.0.2.9")
        assert told(s, "ipv4") == ["192.0.2.9", None, None]
        assert told(s, "ipv6") == [None] * 3
        configure(s)
        assert told(s, "ipv4") == [None] * 3


def test_what_was_configured_before_is_told_at_the_connect_and_gone_after_the_close() -> None:
    with scene(connect=False) as s:
        s.guest.set_addresses(0, V4)
        s.xen.toolstack.unpause(s.guest.created)
        s.run()
        assert told(s, "ipv4") == [V4, None, None]
        s.pdo.eject()
        s.run()
        assert s.attr("attr/vif/0") is None


def test_an_interface_that_is_paused_tells_still_and_a_closed_one_does_not() -> None:
    with scene() as s:
        s.nic.pause()
        configure(s, V4)
        assert told(s, "ipv4") == [V4, None, None]
        frontend = s.pdo.frontend
        s.pdo.eject()
        s.run()
        s.guest.set_addresses(0, "192.0.2.8")
        frontend.addresses_changed()
        s.run()
        assert s.attr("attr/vif/0/ipv4/0") is None


def test_a_conflict_is_tried_again_and_nobody_sees_half_of_it() -> None:
    with scene() as s:
        ends = []
        end = StoreInterface.transaction_end

        def conflicting(self: StoreInterface, transaction: object, *, commit: bool) -> bool:
            ends.append(commit)
            if len(ends) < 4:
                end(self, transaction, commit=False)  # type: ignore[arg-type]  # passed through
                return False
            return end(self, transaction, commit=commit)  # type: ignore[arg-type]  # passed through

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StoreInterface, "transaction_end", conflicting)
            configure(s, V4)
        assert len(ends) == 4
        assert told(s, "ipv4") == [V4, None, None]


def test_a_store_that_refuses_is_no_reason_to_stop() -> None:
    with scene() as s:

        def refuse(*_: object) -> None:
            raise StoreError("EQUOTA", "full")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StoreInterface, "write_many", refuse)
            configure(s, V4)
            s.nic.set(0x1010103, bytes.fromhex("01005e000001"))
        assert s.nic.link_up
        configure(s, V4)
        assert told(s, "ipv4") == [V4, None, None]


def test_an_arp_announcement_is_as_vif_c_has_it() -> None:
    (data, *_) = announcements(GUEST_MAC, [bytes((192, 0, 2, 7))])
    assert data == bytes.fromhex(
        "ffffffffffff 00163e000001 0806 0001 0800 06 04 0001"
        "00163e000001 c0000207 ffffffffffff c0000207"
    )
    assert len(data) == 42
    arp = Ether(data)[ARP]
    assert (arp.op, arp.psrc, arp.pdst, arp.hwdst) == (1, V4, V4, "ff:ff:ff:ff:ff:ff")


def test_a_neighbour_advertisement_is_one_that_a_stack_takes() -> None:
    address = bytes.fromhex("20010db8000000000000000000000007")
    (data, *_) = announcements(GUEST_MAC, [address])
    packet = Ether(data)
    assert (packet.dst, packet.src, packet.type) == ("33:33:00:00:00:01", MAC, 0x86DD)
    assert (packet[IPv6].src, packet[IPv6].dst, packet[IPv6].hlim) == (V6, "ff02::1", 255)
    na = packet[ICMPv6ND_NA]
    assert (na.R, na.S, na.O, na.tgt, na.code) == (0, 0, 1, V6, 0)
    option = packet[ICMPv6NDOptDstLLAddr]
    assert (option.type, option.len, option.lladdr) == (2, 1, MAC)
    summed = na.cksum
    del packet[ICMPv6ND_NA].cksum
    assert Ether(bytes(packet))[ICMPv6ND_NA].cksum == summed
    assert len(data) == 86


def resume(xen: Platform, guest: Guest) -> None:
    domain, bus = guest.created.domain, guest.bus
    assert bus is not None
    bus.suspend.trigger()
    xen.run()
    domain.suspend_result = 0
    domain.resume()
    xen.run()


@pytest.mark.parametrize("paused", [False, True])
def test_a_resume_announces_every_address_three_times_where_it_was_enabled(paused: bool) -> None:
    with Platform(seed=1) as xen:
        guest = xen.create(name="g", vifs=[Vif(mac=MAC)]).start()
        guest.set_addresses(0, f"{V4} {V6}")
        xen.run()
        bridge = xen.bridge("xenbr0")
        before = len(bridge.frames)
        if paused:
            guest.nets[0].pause()
        resume(xen, guest)
        seen = list(bridge.frames)[before:]
        arps = [one for one in seen if one[12:14] == b"\x08\x06"]
        advertisements = [one for one in seen if one[12:14] == b"\x86\xdd"]
        count = 0 if paused else 3
        assert (len(arps), len(advertisements)) == (count, count)
        assert len({*arps, *advertisements}) == (0 if paused else 2)
        assert guest.nets[0].in_flight == 0


def test_announcements_come_before_what_waited() -> None:
    with Platform(seed=1) as xen:
        guest = xen.create(name="g", vifs=[Vif(mac=MAC)]).start()
        guest.set_addresses(0, V4)
        xen.run()
        bridge = xen.bridge("xenbr0")
        nic = guest.nets[0]
        before = len(bridge.frames)
        nic.send_many([b"\xff" * 6 + nic.mac + b"\x88\xb5" + bytes(1000)] * 400)
        resume(xen, guest)
        kinds = [one[12:14] for one in list(bridge.frames)[before:]]
        first = kinds.index(b"\x08\x06")
        after = kinds[first:]
        assert after[:3] == [b"\x08\x06"] * 3
        assert after[3:] == [b"\x88\xb5"] * (len(after) - 3)
        assert len(after) > 3
        assert nic.in_flight == 0
