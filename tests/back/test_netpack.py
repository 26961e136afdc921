"""What lies in the slots of an rx ring: data, flags, extras and headroom, by each netback."""

from __future__ import annotations

from collections.abc import Iterator
from struct import unpack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.back.netfront import GUEST_MAC, PEER_MAC, Net, frame
from tests.back.netscene import connect, scene
from tests.back.test_netrx import tcp, udp
from xenpv.abi.xenbus import XenbusState as State
from xenpv.back.nethash import NetHash
from xenpv.host.network import GSO_TCPV4, Frame
from xenpv.host.offload import blank_checksum

VALIDATED, BLANK, MORE, EXTRA = 1, 2, 4, 8
KEY = bytes(range(40))


@pytest.fixture
def net() -> Iterator[Net]:
    """With MTU 9000."""
    with scene() as made:
        made.world.guest.xs.write(f"{made.world.vif.backend_path}/mtu", "9000")
        connect(made)
        yield made


def inbound(size: int) -> bytes:
    return frame(size, source=PEER_MAC, destination=GUEST_MAC)


def hash_on(net: Net) -> NetHash:
    """Every type."""
    net.back.hash.algorithm = 1
    net.back.hash.types = 0xF
    net.back.hash.key = KEY
    return net.back.hash


def reconfigure(net: Net, headroom: str) -> None:
    """As netfront does when a program is attached: state 7, 8 comes, state 4."""
    net.world.vif.write_key("xdp-headroom", headroom)
    net.world.vif.state = State.RECONFIGURING
    net.world.run()
    net.world.vif.state = State.CONNECTED
    net.world.run()


def gso(payload: int) -> Frame:
    return blank_checksum(Frame(tcp(payload), gso_type=GSO_TCPV4, gso_size=1460))


def slots(net: Net) -> list[str | tuple[int, int, int]]:
    """Each answer: (offset, flags, status), an extra as its bytes in hex; ids count up."""
    found: list[str | tuple[int, int, int]] = []
    extras = False
    for number, raw in enumerate(net.world.vif.rx.take()):
        if extras:
            found.append(raw.hex())
            extras = bool(raw[1] & 1)
            continue
        rid, offset, flags, status = unpack("<HHHh", raw)
        assert rid == number
        extras = bool(flags & EXTRA)
        found.append((offset, flags, status))
    return found


def test_extras_come_as_gso_hash_xdp_after_the_first_slot(net: Net) -> None:
    reconfigure(net, "256")
    found = hash_on(net).of(gso(9000).data)
    assert found is not None
    kind, value = found
    assert kind == 1  # IPV4_TCP
    net.post(8)
    net.deliver(gso(9000))
    assert slots(net) == [
        (0, BLANK | VALIDATED | EXTRA | MORE, 4096),
        "0101" + "b405" + "01" + "00" + "0000",
        "0401" + "01" + "01" + value.to_bytes(4, "little").hex(),
        "0500" + "0001" + "00000000",
        (0, MORE, 4096),
        (0, 0, 256 + 9054 - 2 * 3840),
    ]


# frame, with hash, headroom: the slots. H is the hash' four bytes.
PACKED = [
    ("plain", 60, False, 0, [(0, 0, 60)]),
    ("plain", 4096, False, 0, [(0, 0, 4096)]),
    ("plain", 4097, False, 0, [(0, MORE, 4096), (0, 0, 1)]),
    ("plain", 9018, False, 0, [(0, MORE, 4096), (0, MORE, 4096), (0, 0, 826)]),
    ("plain", 60, False, 256, [(0, EXTRA, 316), "0500000100000000"]),
    ("plain", 3840, False, 256, [(0, EXTRA, 4096), "0500000100000000"]),
    ("plain", 3841, False, 256, [(0, EXTRA | MORE, 4096), "0500000100000000", (0, 0, 257)]),
    ("plain", 60, True, 0, [(0, 0, 60)]),  # it is no IP
    ("udp", 60, True, 0, [(0, EXTRA, 60), "04000001H"]),
    ("udp valid", 60, False, 0, [(0, VALIDATED, 60)]),
    ("udp blank", 60, True, 0, [(0, EXTRA | BLANK | VALIDATED, 60), "04000001H"]),
    (
        "udp blank",
        5000,
        True,
        0,
        [(0, EXTRA | BLANK | VALIDATED | MORE, 4096), "04000001H", (0, 0, 904)],
    ),
    (
        "udp",
        60,
        True,
        128,
        [(0, EXTRA, 188), "04010001H", "0500800000000000"],
    ),
]


def made(kind: str, size: int) -> Frame:
    if kind == "plain":
        return Frame(inbound(size))
    if kind == "udp blank":
        return blank_checksum(Frame(long_udp(size)))
    return Frame(long_udp(size), data_validated=kind == "udp valid")


def long_udp(size: int) -> bytes:
    """Its checksum is right; beyond 1,642 bytes there is none."""
    if size < 1600:
        return udp(size)
    data = udp(1600)
    length = size - 14
    return (
        data[:16] + length.to_bytes(2, "big") + data[18:38] + (length - 20).to_bytes(2, "big")
        + b"\0\0" + data[42:] + bytes(size - 1600)
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "size", "hashed", "headroom", "packed"), PACKED)
def test_linux_packs(
    net: Net,
    kind: str,
    size: int,
    hashed: bool,
    headroom: int,
    packed: list[str | tuple[int, int, int]],
) -> None:
    if headroom:
        reconfigure(net, str(headroom))
    sent = made(kind, size)
    value = b""
    if hashed:
        found = hash_on(net).of(sent.data)
        if found is not None:
            assert found[0] == 0  # IPV4
            value = found[1].to_bytes(4, "little")
    net.post(8)
    net.deliver(sent)
    expected = [one.replace("H", value.hex()) if isinstance(one, str) else one for one in packed]
    assert slots(net) == expected


def test_what_lies_before_the_headroom_is_left_alone(net: Net) -> None:
    reconfigure(net, "256")
    (pfn, *_) = net.post(2)
    net.world.guest.domain.write(pfn, 0, b"\xaa" * 256)
    net.deliver(Frame(inbound(60)))
    read = net.world.guest.domain.read
    assert read(pfn, 0, 256) == b"\xaa" * 256
    assert read(pfn, 256, 60) == inbound(60)


@pytest.mark.parametrize("size", [60, 4096, 5000, 9018])
@pytest.mark.parametrize("headroom", [1, 256, 2048, 3000])
def test_every_byte_arrives_behind_the_headroom(net: Net, size: int, headroom: int) -> None:
    reconfigure(net, str(headroom))
    pfns = net.post(16)
    net.deliver(Frame(inbound(size)))
    answers = slots(net)
    data = b""
    for pfn, answer in zip(pfns, answers, strict=False):
        if not isinstance(answer, str):
            data += net.world.guest.domain.read(pfn, headroom, answer[2] - headroom)
    assert data == inbound(size)


def test_the_headroom_goes_when_the_program_does(net: Net) -> None:
    reconfigure(net, "256")
    reconfigure(net, "0")
    net.post(1)
    net.deliver(Frame(inbound(60)))
    assert slots(net) == [(0, 0, 60)]


def test_state_8_answers_state_7_and_the_connection_stays(net: Net) -> None:
    rings = list(net.back.queues)
    reconfigure(net, "256")
    assert net.world.vif.backend_key("state") == "8"
    assert net.back.queues == rings
    assert net.back.carrier


@pytest.mark.parametrize("headroom", ["4096", "32767", "99999"])
def test_a_headroom_that_fills_the_page_is_refused(net: Net, headroom: str) -> None:
    net.world.vif.write_key("xdp-headroom", headroom)
    net.world.vif.state = State.RECONFIGURING
    net.world.run()
    assert net.world.vif.backend_key("state") == "5"
    assert net.back.queues == []


def test_a_frame_that_no_ring_can_hold_is_dropped(net: Net) -> None:
    reconfigure(net, "4095")  # a byte in each page
    net.post_one_page(255)
    net.deliver_at_once(Frame(inbound(300)), Frame(inbound(100)))
    answers = slots(net)
    assert len(answers) == 101
    assert answers[0] == (0, EXTRA | MORE, 4096)
    assert net.back.counters.rx_dropped == 1


def test_the_slots_of_extras_are_waited_for_too(net: Net) -> None:
    """Linux' estimate has no slot for XDP: it takes one that the guest has not posted."""
    reconfigure(net, "256")
    net.post(1)
    net.deliver_at_once(Frame(inbound(60)))
    assert slots(net) == []
    net.post(1)
    net.world.run()
    assert slots(net) == [(0, EXTRA, 316), "0500000100000000"]


@pytest.mark.parametrize(
    ("sizes", "packets"), [([60] * 64, 64), ([60] * 65, 65), ([60] * 200, 200), ([9000] * 58, 58)]
)
def test_more_than_a_batch_goes_in_order(net: Net, sizes: list[int], packets: int) -> None:
    net.post_one_page(256)
    net.deliver(*[Frame(inbound(size)) for size in sizes])
    answers = [one for one in slots(net) if not isinstance(one, str)]
    assert len([one for one in answers if not one[1] & MORE]) == packets


# what the guest takes, what comes: the slots of what goes, with (flags, size)
SOFTWARE = [
    ({}, "gso", [(EXTRA | MORE | BLANK | VALIDATED, 4096), (0, 1958)]),
    ({"feature_gso_tcpv4": "0"}, "gso", [(BLANK | VALIDATED, 1514)] * 4 + [(BLANK | VALIDATED, 214)]),
    ({"feature_sg": "0"}, "gso", [(BLANK | VALIDATED, 1514)] * 4 + [(BLANK | VALIDATED, 214)]),
    ({"feature_no_csum_offload": "1"}, "gso", [(VALIDATED, 1514)] * 4 + [(VALIDATED, 214)]),
    ({}, "udp blank", [(BLANK | VALIDATED, 200)]),
    ({"feature_no_csum_offload": "1"}, "udp blank", [(VALIDATED, 200)]),
    ({"feature_ipv6_csum_offload": "0"}, "udp blank", [(BLANK | VALIDATED, 200)]),
    ({}, "udp", [(0, 200)]),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "kind", "expected"), SOFTWARE)
def test_what_a_guest_does_not_take_is_done_in_software(
    keys: dict[str, str | None], kind: str, expected: list[tuple[int, int]]
) -> None:
    with scene() as net:
        connect(net, **keys)
        net.post(16)
        net.deliver(gso(6000) if kind == "gso" else made(kind, 200))
        answers = [one[1:] for one in slots(net) if not isinstance(one, str)]
    assert answers == expected


# QEMU: offset 2, one slot of 4,094 bytes, no flags, no extras.


@pytest.mark.parametrize(("size", "fits"), [(60, True), (1514, True), (4094, True), (4095, False)])
def test_qemu_puts_a_frame_into_one_slot(size: int, fits: bool) -> None:
    with scene("qemu") as net:
        connect(net)
        (pfn,) = net.post(1)
        net.deliver(Frame(inbound(size), data_validated=True))
        assert slots(net) == ([(2, 0, size)] if fits else [])
        if fits:
            assert net.world.guest.domain.read(pfn, 2, size) == inbound(size)
        assert net.back.counters.rx_dropped == 1 - fits


def test_qemu_finishes_and_cuts_everything() -> None:
    with scene("qemu") as net:
        connect(net)
        net.post(8)
        net.deliver(gso(3000), made("udp blank", 200))
        assert slots(net) == [(2, 0, 1514), (2, 0, 1514), (2, 0, 134), (2, 0, 200)]


@pytest.mark.parametrize("profile", ["qemu", "mirage"])
def test_others_answer_a_bad_reference_with_error(profile: str) -> None:
    with scene(profile) as net:
        connect(net)
        net.world.vif.rx.push(bytes.fromhex("0000 0000 a00f0000"), 1)
        net.world.vif.notify()
        net.deliver(Frame(inbound(60)))
        ((_, _, status),) = [one for one in slots(net) if not isinstance(one, str)]
        assert status == -1


# mirage: a page per slot, no flags but more_data; large packets with an extra, sums finished.


def test_mirage_sends_a_large_packet_whole_without_a_word_about_its_sum() -> None:
    with scene("mirage") as net:
        connect(net)
        net.post(4)
        net.deliver(gso(6000))
        assert slots(net) == [
            (0, EXTRA | MORE, 4096),
            "0100" + "b405" + "01" + "00" + "0000",
            (0, 0, 1958),
        ]


@pytest.mark.parametrize("kind", ["udp", "udp valid", "udp blank"])
def test_mirage_says_nothing_of_sums(kind: str) -> None:
    with scene("mirage") as net:
        connect(net)
        (pfn,) = net.post(1)
        net.deliver(made(kind, 200))
        assert slots(net) == [(0, 0, 200)]
        assert net.world.guest.domain.read(pfn, 0, 200) == udp(200)


def test_mirage_cuts_for_a_guest_without_gso() -> None:
    with scene("mirage") as net:
        connect(net, feature_gso_tcpv4="0")
        net.post(8)
        net.deliver(gso(3000))
        assert slots(net) == [(0, 0, 1514), (0, 0, 1514), (0, 0, 134)]


SIZES = st.integers(14, 9018)


@pytest.mark.parametrize("profile", ["linux", "qemu", "mirage"])
@settings(max_examples=60, deadline=None)
@given(
    sent=st.lists(
        st.tuples(SIZES, st.sampled_from(["plain", "udp", "udp blank", "gso"])), max_size=8
    ),
    posted=st.lists(st.integers(0, 12), max_size=8),
    headroom=st.sampled_from(["0", "256", "2047"]),
    hashed=st.booleans(),
)
def test_what_arrives_is_what_was_sent(
    profile: str, sent: list[tuple[int, str]], posted: list[int], headroom: str, hashed: bool
) -> None:
    """Whenever slots come: bytes and order, no slot twice, none that was not posted."""
    with scene(profile) as net:
        net.world.guest.xs.write(f"{net.world.vif.backend_path}/mtu", "9000")
        connect(net, xdp_headroom=headroom)
        if hashed and profile == "linux":
            hash_on(net)
        ring = net.world.vif.rx.ring
        pfns: list[int] = []
        got: list[bytes] = []
        partly = b""
        extras = False
        number = 0
        room = int(headroom) if profile == "linux" else 0
        wanted: list[int] = []
        steps = max(len(sent), len(posted))
        for step in range(steps):
            if step < len(sent):
                size, kind = sent[step]
                one = gso(max(1, size - 54)) if kind == "gso" else made(kind, max(60, size))
                wanted.append(len(one.data))
                net.world.bridge.transmit(net.sink, [one], 0)
            if step < len(posted) and posted[step]:
                pfns += net.post(posted[step])
            net.world.platform.loop.advance(0)
            for raw in net.world.vif.rx.take():
                if extras:
                    extras = bool(raw[1] & 1)
                    number += 1
                    continue
                rid, offset, flags, status = unpack("<HHHh", raw)
                assert rid == number % 256
                assert 0 < status <= 4096 - offset
                extras = bool(flags & EXTRA)
                partly += net.world.guest.domain.read(pfns[number], offset + room, status - room)
                number += 1
                if (not flags & MORE and not extras) or not flags & MORE:
                    got.append(partly)
                    partly = b""
            assert not extras
            assert not partly
        assert number <= len(pfns)
        assert ring.in_flight == len(pfns) - number
        assert net.back.counters.rx_packets == len(got)
        assert not net.back.disabled
