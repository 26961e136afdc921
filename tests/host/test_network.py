from __future__ import annotations

from array import array
from itertools import accumulate

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpv.errors import LocalProtocolError
from xenpv.host.network import Bridge, Direction, Drop, FdbEntry, Frame, FrameBatch

SECOND = 10**9
BROADCAST = b"\xff" * 6


def mac(number: int) -> bytes:
    return bytes.fromhex("00163e") + number.to_bytes(3, "big")


def frame(destination: bytes, source: bytes, payload: bytes = b"") -> Frame:
    return Frame(destination + source + b"\x88\xb5" + payload)


@attrs.define(eq=False)
class Station:
    """A port that keeps the batches it was given."""

    name: str
    batches: list[list[Frame]] = attrs.Factory(list)

    def receive(self, frames):
        self.batches.append(list(frames))

    @property
    def frames(self):
        return [frame for batch in self.batches for frame in batch]


@pytest.fixture
def bridge():
    return Bridge("xenbr0")


@pytest.fixture
def stations(bridge):
    found = [Station(f"vif{number}.0") for number in (1, 2, 3)]
    for station in found:
        bridge.attach(station)
    return found


def batch(*frames: bytes) -> FrameBatch:
    ends = array("I", accumulate(map(len, frames)))
    return FrameBatch(memoryview(b"".join(frames)), memoryview(ends))


def test_batch_is_a_sequence_of_frames_made_once():
    datas = [b"a" * 14, b"b" * 60, b"c" * 1514]
    found = batch(*datas)
    assert len(found) == 3
    assert list(found) == [Frame(data) for data in datas]
    assert [one is other for one, other in zip(found, found, strict=True)] == [True] * 3
    assert found[1] is list(found)[1]
    assert [frame.data for frame in found[1:]] == datas[1:]
    assert found[-1].data == datas[2]
    assert not batch()
    with pytest.raises(IndexError):
        found[3]


def test_bridge_treats_a_batch_as_the_frames_it_stands_for(bridge, stations):
    one, two, three = stations
    sent = [mac(2) + mac(1) + b"\x88\xb5" + bytes([n]) * 50 for n in range(5)]
    bridge.transmit(one, batch(*sent), 0)
    assert [frame.data for frame in two.frames] == sent
    assert two.frames == three.frames
    assert list(bridge.frames) == sent
    assert bridge.ports["vif1.0"].received_bytes == 5 * 64


def test_unknown_destination_is_flooded_to_all_but_its_port(bridge, stations):
    one, two, three = stations
    sent = frame(mac(2), mac(1))
    bridge.transmit(one, [sent], 0)
    assert (one.frames, two.frames, three.frames) == ([], [sent], [sent])
    assert (bridge.forwarded, bridge.flooded, bridge.dropped) == (0, 1, 0)


def test_learnt_destination_gets_the_frame_alone(bridge, stations):
    one, two, three = stations
    bridge.transmit(two, [frame(BROADCAST, mac(2))], 0)
    sent = frame(mac(2), mac(1))
    bridge.transmit(one, [sent], 0)
    assert two.frames == [sent]
    assert len(three.frames) == 1
    assert (bridge.forwarded, bridge.flooded, bridge.dropped) == (1, 1, 0)


def test_frames_of_one_batch_to_one_station_have_each_its_source_looked_at(bridge, stations):
    one, two, three = stations
    bridge.transmit(two, [frame(mac(9), mac(2))], 0)
    group = bytes((1, 0, 0, 0, 0, 1))
    sent = [frame(mac(2), source) for source in (mac(1), mac(1), mac(7), group, mac(1))]
    bridge.transmit(one, sent, 0)
    assert two.frames == [*sent[:3], sent[4]]
    assert len(three.frames) == 1
    assert [entry.mac for entry in bridge.fdb(0) if entry.port == "vif1.0"] == [mac(1), mac(7)]
    assert bridge.dropped == 1
    bridge.transmit(two, [frame(mac(7), mac(2))], 0)
    assert len(one.frames) == 2


@pytest.mark.parametrize("group", [BROADCAST, bytes.fromhex("3333ff000001")])
def test_group_destination_is_flooded_though_a_station_used_it_as_source(bridge, stations, group):
    one, two, three = stations
    bridge.transmit(two, [frame(mac(9), group)], 0)
    assert bridge.drops[Drop.SOURCE] == 1
    bridge.transmit(one, [frame(group, mac(1))], 0)
    assert len(two.frames) == len(three.frames) == 1


def test_a_batch_keeps_its_order_and_arrives_as_one_batch(bridge, stations):
    one, two, three = stations
    bridge.transmit(two, [frame(BROADCAST, mac(2))], 0)
    one.batches.clear()
    three.batches.clear()
    sent = [
        frame(mac(2), mac(1), b"0"),
        frame(BROADCAST, mac(1), b"1"),
        frame(mac(3), mac(1), b"2"),
        frame(mac(2), mac(1), b"3"),
    ]
    bridge.transmit(one, sent, 0)
    assert two.batches == [sent]
    assert three.batches == [sent[1:3]]


def test_an_address_is_forgotten_300_seconds_after_it_was_last_seen(bridge, stations):
    one, two, three = stations
    bridge.transmit(two, [frame(BROADCAST, mac(2))], 0)
    three.batches.clear()
    bridge.transmit(one, [frame(mac(2), mac(1))], 300 * SECOND - 1)
    assert three.frames == []
    bridge.transmit(one, [frame(mac(2), mac(1))], 300 * SECOND)
    assert len(three.frames) == 1


def test_each_frame_from_an_address_renews_it(bridge, stations):
    one, two, three = stations
    bridge.transmit(two, [frame(BROADCAST, mac(2))], 0)
    bridge.transmit(two, [frame(BROADCAST, mac(2))], 200 * SECOND)
    three.batches.clear()
    bridge.transmit(one, [frame(mac(2), mac(1))], 499 * SECOND)
    assert three.frames == []


def test_a_station_that_moves_is_followed(bridge, stations):
    one, two, three = stations
    bridge.transmit(two, [frame(BROADCAST, mac(9))], 0)
    bridge.transmit(three, [frame(BROADCAST, mac(9))], 0)
    two.batches.clear()
    three.batches.clear()
    bridge.transmit(one, [frame(mac(9), mac(1))], 0)
    assert two.frames == []
    assert len(three.frames) == 1


def test_a_frame_for_its_own_port_is_dropped(bridge, stations):
    one, two, _three = stations
    bridge.transmit(one, [frame(mac(8), mac(9)), frame(mac(9), mac(8))], 0)
    assert len(two.frames) == 1
    assert bridge.drops[Drop.SAME_PORT] == 1


@pytest.mark.parametrize(("last", "passes"), [(0x00, False), (0x0F, False), (0x10, True)])
def test_link_local_group_addresses_are_not_forwarded(bridge, stations, last, passes):
    one, two, _three = stations
    bridge.transmit(one, [frame(b"\x01\x80\xc2\x00\x00" + bytes([last]), mac(1))], 0)
    assert len(two.frames) == passes
    assert bridge.drops[Drop.LINK_LOCAL] == (not passes)


@pytest.mark.parametrize(
    ("size", "passes"), [(0, False), (13, False), (14, True), (65549, True), (65550, False)]
)
def test_frame_size_limits(bridge, stations, size, passes):
    one, two, _three = stations
    whole = BROADCAST + mac(1) + bytes(65550)
    bridge.transmit(one, [Frame(whole[:size])], 0)
    assert len(two.frames) == passes
    assert bridge.drops[Drop.SIZE] == (not passes)
    assert len(bridge.frames) == passes


@pytest.mark.parametrize("source", [bytes(6), BROADCAST, b"\x01\x00\x5e\x00\x00\x01"])
def test_a_source_that_no_station_can_have_is_dropped(bridge, stations, source):
    one, two, _three = stations
    bridge.transmit(one, [frame(BROADCAST, source)], 0)
    assert two.frames == []
    assert bridge.drops[Drop.SOURCE] == 1
    assert bridge.fdb(0) == []


def test_offload_metadata_leaves_as_it_came(bridge, stations):
    one, two, _three = stations
    sent = Frame(
        BROADCAST + mac(1) + bytes(100),
        csum_blank=True,
        data_validated=True,
        gso_type=1,
        gso_size=10,
        hash=(1, 0xDEADBEEF),
    )
    bridge.transmit(one, [sent], 0)
    assert two.frames == [sent]


def test_the_latest_frames_are_kept_as_bytes_even_with_nobody_to_take_them():
    bridge = Bridge("xenbr0")
    alone = Station("vif1.0")
    bridge.attach(alone)
    sent = [frame(BROADCAST, mac(1), number.to_bytes(2, "big")) for number in range(5000)]
    bridge.transmit(alone, sent, 0)
    assert bridge.frames[-1] == sent[-1].data
    assert list(bridge.frames) == [kept.data for kept in sent[-4096:]]


def test_the_fdb_is_bounded_and_loses_the_least_recently_seen(stations):
    bridge = Bridge("xenbr0", fdb_limit=3)
    one = stations[0]
    bridge.attach(one)
    for now_ns, number in enumerate([1, 2, 3, 1, 4]):
        bridge.transmit(one, [frame(BROADCAST, mac(number))], now_ns)
    assert [entry.mac for entry in bridge.fdb(5)] == [mac(3), mac(1), mac(4)]


def test_a_flood_of_sources_keeps_the_fdb_at_4096(bridge, stations):
    one = stations[0]
    bridge.transmit(one, [frame(BROADCAST, mac(number)) for number in range(1, 10001)], 0)
    assert [entry.mac for entry in bridge.fdb(0)] == [mac(number) for number in range(5905, 10001)]


def test_fdb_lists_port_and_age_and_leaves_out_the_aged(bridge, stations):
    one, two, _three = stations
    bridge.transmit(one, [frame(BROADCAST, mac(1))], 0)
    bridge.transmit(two, [frame(BROADCAST, mac(2))], 10 * SECOND)
    assert bridge.fdb(20 * SECOND) == [
        FdbEntry(mac(1), "vif1.0", 20 * SECOND),
        FdbEntry(mac(2), "vif2.0", 10 * SECOND),
    ]
    assert [entry.port for entry in bridge.fdb(300 * SECOND)] == ["vif2.0"]


def test_detaching_a_port_forgets_its_addresses_only(bridge, stations):
    one, two, three = stations
    bridge.transmit(one, [frame(BROADCAST, mac(1))], 0)
    bridge.transmit(two, [frame(BROADCAST, mac(2))], 0)
    bridge.detach(two)
    assert [entry.mac for entry in bridge.fdb(0)] == [mac(1)]
    two.batches.clear()
    three.batches.clear()
    bridge.transmit(one, [frame(mac(2), mac(1))], 0)
    assert two.frames == []
    assert len(three.frames) == 1


def test_ports_are_counted_from_the_bridges_side(bridge, stations):
    one, two, _three = stations
    bridge.transmit(two, [frame(BROADCAST, mac(2))], 0)
    bridge.transmit(one, [frame(mac(2), mac(1), bytes(86)), Frame(b"short")], 0)
    place = bridge.ports["vif1.0"]
    assert (place.received_frames, place.received_bytes) == (2, 105)
    assert (place.sent_frames, place.sent_bytes) == (1, 14)
    place = bridge.ports["vif2.0"]
    assert (place.sent_frames, place.sent_bytes) == (1, 100)


def test_a_port_name_is_attached_once(bridge, stations):
    with pytest.raises(LocalProtocolError, match=r"port vif1\.0 is attached already"):
        bridge.attach(Station("vif1.0"))
    bridge.detach(stations[0])
    bridge.attach(Station("vif1.0"))


def test_a_port_that_is_not_attached_may_not_transmit_or_detach(bridge, stations):
    double = Station("vif1.0")
    for call in (lambda: bridge.transmit(double, [], 0), lambda: bridge.detach(double)):
        with pytest.raises(LocalProtocolError, match=r"port vif1\.0 is not attached"):
            call()
    assert list(bridge.ports) == ["vif1.0", "vif2.0", "vif3.0"]
    assert stations[0].batches == []


@attrs.define(eq=False)
class Reflector:
    """A port that answers inside receive, which no port may do."""

    bridge: Bridge
    name: str = "reflector"

    def receive(self, frames):  # noqa: ARG002 - Port's signature
        self.bridge.transmit(self, [frame(BROADCAST, mac(99))], 0)


def test_a_port_may_not_transmit_while_it_receives(bridge, stations):
    one, two, _three = stations
    reflector = Reflector(bridge)
    bridge.attach(reflector)
    with pytest.raises(LocalProtocolError, match=r"reflector transmits inside a port's receive"):
        bridge.transmit(one, [frame(BROADCAST, mac(1))], 0)
    bridge.detach(reflector)
    bridge.transmit(one, [frame(BROADCAST, mac(1))], 0)
    assert len(two.frames) == 2


@attrs.define(eq=False)
class Unplugger:
    """A port that unplugs another one when it receives."""

    bridge: Bridge
    victim: Station
    name: str = "unplugger"

    def receive(self, frames):  # noqa: ARG002 - Port's signature
        if self.victim.name in self.bridge.ports:
            self.bridge.detach(self.victim)


def test_a_port_detached_during_delivery_gets_nothing_more():
    bridge = Bridge("xenbr0")
    one, two = Station("vif1.0"), Station("vif2.0")
    for port in (one, Unplugger(bridge, two), two):
        bridge.attach(port)
    bridge.transmit(one, [frame(BROADCAST, mac(1))], 0)
    assert two.frames == []


@attrs.define(eq=False)
class Recorder:
    seen: list[tuple[str, Direction, Frame, int]] = attrs.Factory(list)

    def capture(self, port_name, direction, frame, now_ns):
        self.seen.append((port_name, direction, frame, now_ns))


def test_a_tap_sees_each_crossing_in_order_and_the_dropped_on_their_way_in(bridge, stations):
    one, _two, _three = stations
    recorder = Recorder()
    bridge.taps.append(recorder)
    good, bad = frame(BROADCAST, mac(1)), frame(BROADCAST, bytes(6))
    bridge.transmit(one, [bad, good], 5)
    assert recorder.seen == [
        ("vif1.0", Direction.IN, bad, 5),
        ("vif1.0", Direction.IN, good, 5),
        ("vif2.0", Direction.OUT, good, 5),
        ("vif3.0", Direction.OUT, good, 5),
    ]


ADDRESSES = [
    mac(1),
    mac(2),
    mac(3),
    BROADCAST,
    bytes(6),
    bytes.fromhex("0180c2000000"),
    bytes.fromhex("33330000fb01"),
]
FRAMES = st.builds(
    lambda destination, source, cut: Frame((destination + source + b"\x88\xb5tail")[:cut]),
    st.sampled_from(ADDRESSES),
    st.sampled_from(ADDRESSES),
    st.integers(10, 18),
)
SENDS = st.lists(
    st.tuples(st.integers(0, 3), st.lists(FRAMES, max_size=5), st.integers(0, 200 * SECOND)),
    max_size=12,
)


@given(SENDS)
def test_every_frame_is_dropped_forwarded_once_or_flooded_and_never_comes_back(sends):
    bridge = Bridge("xenbr0", fdb_limit=2)
    stations = [Station(f"vif{number}.0") for number in range(4)]
    for station in stations:
        bridge.attach(station)
    now_ns = offered = 0
    for sender, frames, step_ns in sends:
        now_ns += step_ns
        # Numbered, so that each delivery is known for what it is.
        numbered = [attrs.evolve(sent, gso_size=offered + i) for i, sent in enumerate(frames)]
        offered += len(frames)
        before = [len(station.frames) for station in stations]
        bridge.transmit(stations[sender], numbered, now_ns)
        assert len(stations[sender].frames) == before[sender]
        for station, start in zip(stations, before, strict=True):
            order = [received.gso_size for received in station.frames[start:]]
            assert order == sorted(set(order))
        assert len(bridge.fdb(now_ns)) <= 2
    assert bridge.forwarded + bridge.flooded + bridge.dropped == offered
    delivered = sum(len(station.frames) for station in stations)
    assert delivered == bridge.forwarded + 3 * bridge.flooded
    assert delivered == sum(place.sent_frames for place in bridge.ports.values())
    assert offered == sum(place.received_frames for place in bridge.ports.values())
