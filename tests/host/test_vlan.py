"""VLANs and promiscuous ports of a bridge: what is let in, who gets it, and with what tag."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.l2 import Dot1Q, Ether

from xenpv import Platform, Vif
from xenpv.errors import ConfigError
from xenpv.host.network import Bridge, Drop, FdbEntry, Frame
from xenpv.host.vlan import DEFAULT, PortVlans, parse_vlans

A, B = bytes.fromhex("00163e00000a"), bytes.fromhex("00163e00000b")
ALL = b"\xff" * 6
LENGTHS = 60

TEXTS = {
    "10": (10, {10: True}),
    "10p": (10, {10: True}),
    "10u": (None, {10: True}),
    "10p/20": (10, {10: True, 20: False}),
    "10/20": (None, {10: False, 20: False}),
    "20-23": (None, {20: False, 21: False, 22: False, 23: False}),
    "20-21u/5p": (5, {20: True, 21: True, 5: True}),
    "100+10x3": (None, {100: False, 110: False, 120: False, 130: False}),
    "100+10x1u": (None, {100: True, 110: True}),
    "7+1x0": (None, {7: False}),
    "1/4094": (None, {1: False, 4094: False}),
}
WRONG = [
    "", "0", "4095", "10p/20p", "20-10", "4090+10x1", "a", "10/", "/10", "10-", "10pu", "-3",
    "10+5", "10x5", "10,20", " 10", "10000", "10\n", "0-5",
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), TEXTS.items(), ids=TEXTS)
def test_what_vlan_says(text: str, expected: tuple[int | None, dict[int, bool]]) -> None:
    vlans = parse_vlans(text)
    assert (vlans.pvid, vlans.members) == expected


@pytest.mark.parametrize("text", WRONG)
def test_what_vlan_may_not_say(text: str) -> None:
    with pytest.raises(ValueError, match="expected|already"):
        parse_vlans(text)


@pytest.mark.parametrize("text", [one for one in WRONG if one and "," not in one])
def test_a_wrong_vlan_is_an_error_of_the_configuration(text: str) -> None:
    with Platform() as xen, pytest.raises(ConfigError, match="bad vif vlan"):
        xen.create(name="a", vifs=[Vif(vlan=text)])


@attrs.define(eq=False)
class Port:
    name: str
    frames: list[Frame] = attrs.Factory(list)

    def receive(self, frames):
        self.frames += frames

    def take(self):
        frames, self.frames = self.frames, []
        return [frame.data for frame in frames]


def bridge_of(**vlans: str | None) -> tuple[Bridge, dict[str, Port]]:
    bridge = Bridge("xenbr0")
    ports = {name: Port(name) for name in vlans}
    for name, text in vlans.items():
        bridge.attach(ports[name], None if text is None else parse_vlans(text))
    return bridge, ports


def bare(destination: bytes = ALL, source: bytes = A) -> bytes:
    return destination + source + b"\x88\xb5" + b"payload".ljust(46, b"\0")


def tagged(vid: int, priority: int = 0, destination: bytes = ALL, source: bytes = A) -> bytes:
    frame = bare(destination, source)
    whole = bytes(
        Ether(frame[:12] + b"\x81\x00") / Dot1Q(vlan=vid, prio=priority, type=0x88B5) / frame[14:]
    )
    assert len(whole) == len(frame) + 4
    return whole


# ports, what comes in at `a`, what leaves by the others
FLOODED = {
    "access to access of one vlan": ({"a": "10", "b": "10"}, bare(), {"b": bare()}),
    "access to access of another": ({"a": "10", "b": "20"}, bare(), {"b": None}),
    "access to trunk": ({"a": "10", "b": "10/20"}, bare(), {"b": tagged(10)}),
    "trunk to access": ({"a": "10/20", "b": "20", "c": "10"}, tagged(20), {"b": bare(), "c": None}),
    "trunk to trunk keeps the priority": (
        {"a": "10-20", "b": "15-16"}, tagged(15, 5), {"b": tagged(15, 5)},
    ),
    "native vlan of a trunk": ({"a": "5p/10", "b": "5p/10"}, bare(), {"b": bare()}),
    "native vlan to where it is tagged": ({"a": "5p/10", "b": "5/6"}, bare(), {"b": tagged(5)}),
    "a tag that names the native vlan": ({"a": "5p/10", "b": "5p"}, tagged(5), {"b": bare()}),
    "priority tag": ({"a": "5p", "b": "5/6"}, tagged(0, 3), {"b": tagged(5, 3)}),
    "priority tag untagged again": ({"a": "5p", "b": "5p"}, tagged(0, 3), {"b": bare()}),
    "a port that nothing was said of": ({"a": None, "b": "1"}, bare(), {"b": bare()}),
    "untagged egress alone": ({"a": "10", "b": "10u"}, bare(), {"b": bare()}),
}  # fmt: skip


@pytest.mark.parametrize(("vlans", "frame", "leaves"), FLOODED.values(), ids=FLOODED)
def test_a_frame_leaves_by_the_ports_of_its_vlan(vlans, frame, leaves) -> None:
    bridge, ports = bridge_of(**vlans)
    bridge.transmit(ports["a"], [Frame(frame)], 0)
    for name, expected in leaves.items():
        assert ports[name].take() == ([] if expected is None else [expected])


REFUSED = {
    "a vlan that the port is not in": ("10/20", tagged(30)),
    "untagged where there is no native vlan": ("10/20", bare()),
    "priority tag where there is no native vlan": ("10/20", tagged(0, 7)),
    "a tag cut short": ("10", tagged(10)[:17]),
    "vid 4095": ("10/20", tagged(4095)),
}


@pytest.mark.parametrize(("vlans", "frame"), REFUSED.values(), ids=REFUSED)
def test_a_frame_is_not_let_in(vlans: str, frame: bytes) -> None:
    bridge, ports = bridge_of(a=vlans, b="1-4094")
    bridge.transmit(ports["a"], [Frame(frame)], 0)
    assert ports["b"].take() == []
    assert bridge.drops[Drop.VLAN] == 1
    assert not bridge.fdb(0)


def test_an_address_is_known_in_its_vlan_alone() -> None:
    bridge, ports = bridge_of(a="10/20", b="10/20", c="10/20")
    bridge.transmit(ports["b"], [Frame(tagged(10, destination=ALL, source=B))], 0)
    for port in ports.values():
        port.take()
    bridge.transmit(
        ports["a"], [Frame(tagged(10, destination=B)), Frame(tagged(20, destination=B))], 1
    )
    assert ports["b"].take() == [tagged(10, destination=B), tagged(20, destination=B)]
    assert ports["c"].take() == [tagged(20, destination=B)]  # flooded: not known there
    assert bridge.fdb(1) == [
        FdbEntry(B, "b", 1, 10), FdbEntry(A, "a", 0, 10), FdbEntry(A, "a", 0, 20),
    ]  # fmt: skip


def test_tags_mean_nothing_to_a_bridge_without_filtering() -> None:
    bridge, ports = bridge_of(a=None, b=None)
    assert not bridge.vlan_filtering
    bridge.transmit(ports["a"], [Frame(tagged(10)), Frame(tagged(4095))], 0)
    assert ports["b"].take() == [tagged(10), tagged(4095)]


def test_what_was_said_of_a_port_outlives_its_connection() -> None:
    bridge, ports = bridge_of(a=None, b=None)
    bridge.set_vlans("a", "10")
    bridge.set_promiscuous("a")
    bridge.detach(ports["a"])
    bridge.attach(ports["a"])
    assert bridge.ports["a"].vlans == PortVlans(pvid=10, members={10: True})
    assert bridge.ports["a"].promiscuous
    assert bridge.ports["b"].vlans == DEFAULT


def test_offloads_stay_with_a_frame_whose_tag_changes() -> None:
    bridge, ports = bridge_of(a="10", b="10/20")
    bridge.transmit(ports["a"], [Frame(bare(), csum_blank=True, gso_type=1, gso_size=9)], 0)
    (frame,) = ports["b"].frames
    assert (frame.csum_blank, frame.gso_type, frame.gso_size) == (True, 1, 9)
    assert frame.data == tagged(10)


@pytest.mark.parametrize("vlans", [None, "10"])
def test_a_promiscuous_port_gets_what_others_get(vlans: str | None) -> None:
    bridge, ports = bridge_of(a=vlans, b=vlans, c=vlans, d=vlans)
    bridge.set_promiscuous("c")
    bridge.transmit(ports["b"], [Frame(bare(ALL, B))], 0)
    for port in ports.values():
        port.take()
    bridge.transmit(ports["a"], [Frame(bare(B, A))], 0)
    assert [len(port.take()) for port in ports.values()] == [0, 1, 1, 0]
    bridge.transmit(ports["c"], [Frame(bare(B, bytes.fromhex("00163e00000c")))], 0)
    assert [len(port.take()) for port in ports.values()] == [0, 1, 0, 0]
    bridge.set_promiscuous("c", on=False)
    bridge.transmit(ports["a"], [Frame(bare(B, A))], 0)
    assert [len(port.take()) for port in ports.values()] == [0, 1, 0, 0]


def test_a_promiscuous_port_gets_a_frame_for_itself_once() -> None:
    bridge, ports = bridge_of(a=None, b=None)
    bridge.set_promiscuous("b")
    bridge.transmit(ports["b"], [Frame(bare(ALL, B))], 0)
    bridge.transmit(ports["a"], [Frame(bare(B, A)), Frame(bare(ALL, A))], 0)
    assert len(ports["b"].take()) == 2


@given(st.data())
def test_no_frame_leaves_its_vlan_or_comes_back(data: st.DataObject) -> None:
    """Whatever is sent: a port sees only VLANs it is in, in the form that it asked for."""
    entry = st.sampled_from(["10", "20", "10p/20", "10/20", "10u/20p", "10-12", None])
    bridge, ports = bridge_of(a=data.draw(entry), b=data.draw(entry), c="10p/20")
    for _ in range(data.draw(st.integers(1, 5))):
        source = data.draw(st.sampled_from(sorted(ports)))
        mac = data.draw(st.sampled_from([A, B]))
        destination = data.draw(st.sampled_from([ALL, A, B]))
        vid = data.draw(st.sampled_from([None, 0, 1, 10, 11, 20, 30]))
        frame = bare(destination, mac) if vid is None else tagged(vid, 2, destination, mac)
        bridge.transmit(ports[source], [Frame(frame)], 0)
        belongs = vid or bridge.ports[source].vlans.pvid
        let_in = belongs in bridge.ports[source].vlans.members
        for name, port in ports.items():
            got = port.take()
            if got:
                assert name != source
                assert let_in
                untagged = bridge.ports[name].vlans.members[belongs]
                priority = 2 if vid is not None else 0
                assert got == [
                    bare(destination, mac)
                    if untagged
                    else tagged(belongs, priority, destination, mac)
                ]


def test_vlan_of_a_vif_separates_guests() -> None:
    with Platform(seed=5) as xen:
        a, b, c = (
            xen.create(
                name=name, memory_mib=16, vifs=[Vif(vlan=vlans)], personality="linux"
            ).start()
            for name, vlans in (("a", "10"), ("b", "20"), ("c", "10/20"))
        )
        a.nets[0].send(bare(ALL, a.nets[0].mac))
        xen.run()
        assert list(b.nets[0].received) == []
        (got,) = c.nets[0].received
        assert Ether(bytes(got))[Dot1Q].vlan == 10
