from __future__ import annotations

import io
from array import array

import attrs
import pcapng
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pcapng.blocks import EnhancedPacket, InterfaceDescription, SectionHeader
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import RawPcapNgReader, rdpcap

from xenpv.errors import LocalProtocolError
from xenpv.host.network import Bridge, Direction, Frame, FrameBatch
from xenpv.host.offload import blank_checksum, to_wire
from xenpv.host.pcapng import PcapngCapture, PcapngWriter

# python-pcapng declares no type for if_tsresol and warns about itself.
pytestmark = pytest.mark.filterwarnings("ignore:Field type should not be:DeprecationWarning")

MAC = bytes.fromhex("00163e000001")
FRAME = bytes.fromhex("ffffffffffff00163e00000188b5") + b"payload"


def blocks(file):
    return list(pcapng.FileScanner(io.BytesIO(file.getvalue())))


def test_section_header_bytes():
    file = io.BytesIO()
    PcapngWriter(file, application="xen")
    assert file.getvalue().hex(" ", 4) == (
        "0a0d0d0a 28000000 4d3c2b1a 01000000 ffffffff ffffffff"  # magic, 1.0, length unknown
        " 04000300 78656e00 00000000 28000000"  # application "xen", end, total again
    )


def test_interface_description_bytes():
    file = io.BytesIO()
    writer = PcapngWriter(file)
    start = file.tell()
    assert writer.interface("vif1.0", description="web", mac=MAC, speed=10**9) == 0
    assert file.getvalue()[start:].hex(" ", 4) == (
        "01000000 4c000000 01000000 00000000"  # Ethernet, no snap length
        " 02000600 76696631 2e300000"
        " 03000300 77656200"
        " 06000600 00163e00 00010000"
        " 08000800 00ca9a3b 00000000"
        " 09000100 09000000"  # nanoseconds
        " 00000000 4c000000"
    )


def test_packet_block_bytes():
    file = io.BytesIO()
    writer = PcapngWriter(file)
    writer.interface("vif1.0")
    start = file.tell()
    writer.packet(
        0,
        b"\x01\x02\x03\x04\x05",
        0x0102030405060708,
        direction=Direction.OUT,
        original_length=9,
        queue=3,
        drop_count=7,
        comments=["hi"],
    )
    assert file.getvalue()[start:].hex(" ", 4) == (
        "06000000 50000000 00000000 04030201 08070605 05000000 09000000"
        " 01020304 05000000"
        " 01000200 68690000"
        " 02000400 02000000"
        " 04000800 07000000 00000000"
        " 06000400 03000000"
        " 00000000 50000000"
    )


def test_python_pcapng_reads_every_field():
    file = io.BytesIO()
    writer = PcapngWriter(file)
    writer.interface("vif1.0", description="first vif", mac=MAC, speed=100 * 10**9)
    writer.interface("vif2.0")
    writer.packet(
        1, FRAME, 12_345_678_901, direction=Direction.IN, queue=2, comments=["ä", "second"]
    )
    section, one, two, packet = blocks(file)
    assert isinstance(section, SectionHeader)
    assert section.version == (1, 0)
    assert section.options["shb_userappl"] == "xenpv"
    assert isinstance(one, InterfaceDescription)
    assert one.link_type == 1
    assert one.snaplen == 0
    assert one.options["if_name"] == "vif1.0"
    assert one.options["if_description"] == "first vif"
    assert one.options["if_MACaddr"] == "00:16:3e:00:00:01"
    assert one.options["if_speed"] == 100 * 10**9
    assert one.timestamp_resolution == 1e-9
    assert isinstance(two, InterfaceDescription)
    assert isinstance(packet, EnhancedPacket)
    assert packet.interface_id == 1
    assert packet.packet_data == FRAME
    assert packet.captured_len == packet.packet_len == len(FRAME)
    assert (packet.timestamp_high << 32 | packet.timestamp_low) == 12_345_678_901
    assert packet.options.get_all("opt_comment") == ["ä", "second"]
    assert packet.options["epb_flags"].inout == "inbound"
    assert packet.options["epb_queue"] == 2


def test_scapy_reads_frames_interfaces_times_and_directions(tmp_path):
    path = tmp_path / "a.pcapng"
    with path.open("wb") as file:
        writer = PcapngWriter(file)
        writer.interface("vif1.0")
        writer.packet(
            0, FRAME, 1_500_000_001, direction=Direction.OUT, original_length=99, comments=["why"]
        )
    (packet,) = rdpcap(str(path))
    assert bytes(packet) == FRAME
    assert int(packet.time * 10**9) == 1_500_000_001
    assert packet.sniffed_on == "vif1.0"
    assert packet.direction == 2
    assert packet.wirelen == 99
    assert packet.comments == [b"why"]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.binary(max_size=70),
            st.integers(0, 2**63),
            st.sampled_from([None, Direction.IN, Direction.OUT]),
            st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=9)),
        ),
        max_size=8,
    )
)
def test_whatever_is_written_two_readers_read_back(packets):
    file = io.BytesIO()
    writer = PcapngWriter(file)
    for name in ("a", "bc", "def"):
        writer.interface(name)
    for interface, data, now_ns, direction, comments in packets:
        writer.packet(interface, data, now_ns, direction=direction, comments=comments)
    assert len(file.getvalue()) % 4 == 0
    read = blocks(file)[4:]
    assert [
        (
            block.interface_id,
            block.packet_data,
            block.timestamp_high << 32 | block.timestamp_low,
            block.options.get_all("opt_comment") if block.options else [],
        )
        for block in read
    ] == [(interface, data, now_ns, comments) for interface, data, now_ns, _, comments in packets]
    with RawPcapNgReader(io.BytesIO(file.getvalue())) as reader:
        assert [data for data, _ in reader] == [data for _, data, *_ in packets]


def test_writer_refuses_what_the_format_cannot_say():
    writer = PcapngWriter(io.BytesIO())
    with pytest.raises(LocalProtocolError, match="interface 0 of 0"):
        writer.packet(0, FRAME, 0)
    writer.interface("vif1.0")
    with pytest.raises(LocalProtocolError, match="outside 64 bits"):
        writer.packet(0, FRAME, -1)
    with pytest.raises(LocalProtocolError, match="NUL"):
        writer.packet(0, FRAME, 0, comments=["a\0b"])
    with pytest.raises(LocalProtocolError, match="65536 bytes"):
        writer.packet(0, FRAME, 0, comments=["x" * 65536])
    with pytest.raises(LocalProtocolError, match="MAC address of 5 bytes"):
        writer.interface("vif2.0", mac=MAC[:5])
    assert (writer.interfaces, writer.packets) == (1, 0)


@attrs.define(eq=False)
class Station:
    name: str

    def receive(self, frames):
        pass


def capture_of(*sends, port=None):
    """The blocks of a bridge of three ports; each send is (port number, frame, time)."""
    file = io.BytesIO()
    capture = PcapngCapture(PcapngWriter(file), port=port)
    bridge = Bridge("xenbr0", taps=[capture])
    stations = [Station("vif1.0"), Station("vif2.0"), Station("vif3.0")]
    for station in stations:
        bridge.attach(station)
    for number, frame, now_ns in sends:
        bridge.transmit(stations[number], [frame], now_ns)
    return blocks(file)


def crossings(read):
    names = [block.options["if_name"] for block in read if isinstance(block, InterfaceDescription)]
    return [
        (names[block.interface_id], block.options["epb_flags"].inout, block.packet_data)
        for block in read
        if isinstance(block, EnhancedPacket)
    ]


REPLY = FRAME[6:12] + b"\x00\x16\x3e\x00\x00\x02" + FRAME[12:]


def test_capture_of_a_bridge_shows_each_frame_once_where_it_came_in():
    read = capture_of((0, Frame(FRAME), 7), (1, Frame(REPLY), 8))
    assert crossings(read) == [("vif1.0", "inbound", FRAME), ("vif2.0", "inbound", REPLY)]
    assert [block.timestamp_low for block in read if isinstance(block, EnhancedPacket)] == [7, 8]


def test_capture_of_a_port_shows_both_its_directions_and_no_other_port():
    sends = (0, Frame(FRAME), 7), (1, Frame(REPLY), 8)
    assert crossings(capture_of(*sends, port="vif1.0")) == [
        ("vif1.0", "inbound", FRAME),
        ("vif1.0", "outbound", REPLY),
    ]
    assert crossings(capture_of(*sends, port="vif3.0")) == [("vif3.0", "outbound", FRAME)]


ETHER = Ether(dst="ff:ff:ff:ff:ff:ff", src="00:16:3e:00:00:01")
V4 = IP(src="192.0.2.1", dst="192.0.2.2")


def test_capture_shows_finished_checksums():
    data = bytes(ETHER / V4 / UDP() / b"x")
    read = capture_of((0, blank_checksum(Frame(data)), 0))
    assert [crossing[2] for crossing in crossings(read)] == [data]


def test_capture_shows_the_segments_of_a_gso_packet_and_says_so():
    packet = bytes(ETHER / V4 / TCP() / bytes(2500))
    frame = blank_checksum(Frame(packet, gso_type=1, gso_size=1000))
    read = capture_of((0, frame, 0))
    assert [crossing[2] for crossing in crossings(read)] == to_wire(frame)
    comments = [
        block.options.get_all("opt_comment") for block in read if isinstance(block, EnhancedPacket)
    ]
    assert comments == [["GSO: 3 segments of 1000 bytes"], [], []]


def test_capture_shows_a_frame_that_cannot_be_finished_as_it_is():
    read = capture_of((0, Frame(FRAME, csum_blank=True), 0))
    assert [crossing[2] for crossing in crossings(read)] == [FRAME]
    packet = read[-1]
    assert packet.options["opt_comment"].startswith("as it was sent: offload asked for")


@attrs.define(eq=False)
class RingStation(Station):
    """A port whose frames get their slots later."""

    places: bool = True


def test_capture_says_which_queue_and_slot_a_frame_came_through():
    read = capture_of((0, Frame(FRAME, queue=2, slot=255), 7))
    packet = read[-1]
    assert packet.options["opt_comment"] == "queue 2 slot 255"
    assert packet.options["epb_queue"] == 2


def test_a_batch_counts_slots_on_from_its_first_and_around_the_ring():
    ends = memoryview(array("I", [len(FRAME), 2 * len(FRAME)]))
    batch = FrameBatch(memoryview(FRAME * 2), ends, queue=1, slot=255, slots=256)
    assert [(frame.queue, frame.slot) for frame in batch] == [(1, 255), (1, 0)]


def test_capture_shows_a_frame_for_a_ring_when_it_has_its_slots_and_counts_the_lost():
    file = io.BytesIO()
    bridge = Bridge("xenbr0", taps=[PcapngCapture(PcapngWriter(file), port="vif2.0")])
    sender, guest = Station("vif1.0"), RingStation("vif2.0")
    bridge.attach(sender)
    bridge.attach(guest)
    bridge.transmit(sender, [Frame(FRAME)] * 5, 7)
    assert len(blocks(file)) == 1  # the section's header: nothing was placed
    bridge.lost(guest, 2)
    bridge.lost(guest, 1)
    for slot in (8, 9):
        bridge.placed(guest, [Frame(FRAME, queue=0, slot=slot)], 11 + slot)
    packets = [block for block in blocks(file) if isinstance(block, EnhancedPacket)]
    assert [packet.timestamp_low for packet in packets] == [19, 20]
    assert [packet.options["opt_comment"] for packet in packets] == [
        "queue 0 slot 8", "queue 0 slot 9",
    ]  # fmt: skip
    assert packets[0].options["epb_dropcount"] == 3
    assert "epb_dropcount" not in packets[1].options


def test_described_port_carries_its_description_and_is_described_once():
    file = io.BytesIO()
    capture = PcapngCapture(PcapngWriter(file))
    capture.describe("vif1.0", description="web eth0", mac=MAC, speed=10**9)
    capture.capture("vif1.0", Direction.IN, Frame(FRAME), 0)
    interface, packet = blocks(file)[1:]
    assert interface.options["if_description"] == "web eth0"
    assert packet.interface_id == 0
    with pytest.raises(LocalProtocolError, match=r"vif1\.0 is described already"):
        capture.describe("vif1.0")
