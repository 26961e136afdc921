from __future__ import annotations

import pytest

from tests.rss import KEY, VECTORS, Vector
from xenpv.back.nethash import NetHash
from xenpv.host.packet import TCP, UDP

IPV4, IPV4_TCP, IPV6, IPV6_TCP = 0, 1, 2, 3
ALL = 0xF
TAG = bytes.fromhex("8100 0064")


def made(types: int = ALL, *, mapping: tuple[int, ...] = (), algorithm: int = 1) -> NetHash:
    one = NetHash()
    one.algorithm, one.types, one.key, one.mapping = algorithm, types, KEY, mapping
    return one


@pytest.mark.parametrize("tag", [b"", TAG])
@pytest.mark.parametrize("vector", VECTORS, ids=lambda one: one.source)
def test_frames_hash_as_microsoft_says(vector: Vector, tag: bytes) -> None:
    plain, tcp = (IPV4, IPV4_TCP) if vector.version == 4 else (IPV6, IPV6_TCP)
    assert made().of(vector.frame(TCP, tag=tag)) == (tcp, vector.with_tcp)
    assert made().of(vector.frame(UDP, tag=tag)) == (plain, vector.addresses)
    assert made(1 << plain).of(vector.frame(TCP, tag=tag)) == (plain, vector.addresses)
    assert made(1 << tcp).of(vector.frame(UDP, tag=tag)) is None


def fragment(frame: bytes) -> bytes:
    return frame[:20] + b"\x20\x00" + frame[22:]  # more fragments


V4, V6 = VECTORS[0], VECTORS[5]
# situation, types, frame, expected
OF = [
    ("no type is on", 0, V4.frame(), None),
    ("a type of the other version", 1 << IPV6 | 1 << IPV6_TCP, V4.frame(), None),
    ("a fragment", ALL, fragment(V4.frame()), (IPV4, V4.addresses)),
    ("a fragment, tcp only", 1 << IPV4_TCP, fragment(V4.frame()), None),
    ("no IP", ALL, bytes(12) + b"\x88\xb5" + bytes(46), None),
    ("an IP header cut off", ALL, V4.frame()[:30], None),
    ("IPv6 cut off", ALL, V6.frame()[:50], None),
    ("nothing", ALL, b"", None),
]


@pytest.mark.parametrize(("types", "frame", "expected"), [row[1:] for row in OF],
                         ids=[row[0] for row in OF])  # fmt: skip
def test_what_is_hashed(types: int, frame: bytes, expected: tuple[int, int] | None) -> None:
    assert made(types).of(frame) == expected


def test_tcp_without_room_for_ports_counts_by_its_addresses() -> None:
    frame = V4.frame()
    short = frame[:16] + (22).to_bytes(2, "big") + frame[18:36]
    assert made().of(short) == (IPV4, V4.addresses)


def test_without_an_algorithm_nothing_is_hashed_and_a_flow_keeps_its_queue() -> None:
    one = made(algorithm=0)
    assert one.of(V4.frame()) is None
    assert {one.queue(V4.frame(), 4) for _ in range(3)} == {one.queue(V4.frame(UDP), 4)}


# situation, mapping, queues, frame, expected
QUEUE = [
    ("no mapping: modulo", (), 4, V4.frame(), 0x51CCC178 % 4),
    ("no mapping, 3 queues", (), 3, V4.frame(), 0x51CCC178 % 3),
    ("mapping", (2, 0, 1), 3, V4.frame(), (2, 0, 1)[0x51CCC178 % 3]),
    ("mapping of one", (3,), 4, V4.frame(), 3),
    ("what has no hash counts as 0", (2, 0, 1), 3, b"", 2),
    ("no hash, no mapping", (), 3, b"", 0),
]


@pytest.mark.parametrize(("mapping", "queues", "frame", "expected"), [row[1:] for row in QUEUE],
                         ids=[row[0] for row in QUEUE])  # fmt: skip
def test_queue(mapping: tuple[int, ...], queues: int, frame: bytes, expected: int) -> None:
    assert made(mapping=mapping).queue(frame, queues) == expected
