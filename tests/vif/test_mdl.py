"""How XenVif lays out a received packet."""

from __future__ import annotations

import pytest
from scapy.layers.inet import TCP, UDP

from tests.vif.rawback import GUEST_MAC, PEER_MAC
from tests.vif.rxscene import V4, V6, ether, payload
from xenpv.vif.mdl import mdl
from xenpv.vif.packet import Header, ReceiverPacket
from xenpv.vif.parameters import ReceiverParameters

LLC = GUEST_MAC + PEER_MAC + b"\5\xdc\x42\x42\3" + payload(1497)

LAYOUTS: dict[str, tuple[bytes, dict[str, int], list[int]]] = {
    "headers apart": (ether(V4 / TCP() / payload(1000)), {}, [54, 1000]),
    "headers apart, over IPv6": (ether(V6 / UDP() / payload(10)), {}, [62, 10]),
    "nothing but headers": (ether(V4 / TCP()), {}, [54]),
    "payload over pages": (ether(V4 / TCP() / payload(9000)), {}, [54, 4096, 4096, 808]),
    "AlwaysPullup": (ether(V4 / TCP() / payload(1000)), {"always_pullup": 1}, [1054]),
    "AlwaysPullup, more than a page": (
        ether(V4 / TCP() / payload(9000)), {"always_pullup": 1}, [4096, 4096, 862],
    ),
    "LLC": (LLC, {}, [1514]),
    "IpAlignOffset": (ether(V4 / TCP() / payload(1000)), {"ip_align_offset": 2}, [56, 1000]),
    "both": (
        ether(V4 / TCP() / payload(9000)), {"ip_align_offset": 2, "always_pullup": 1},
        [4096, 4096, 864],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "values", "sizes"), LAYOUTS.values(), ids=LAYOUTS)
def test_where_a_packet_lies(data: bytes, values: dict[str, int], sizes: list[int]) -> None:
    made = mdl(ReceiverPacket(data), ReceiverParameters(**values))
    assert [len(one) for one in made.buffers] == sizes
    assert b"".join(made.buffers)[made.offset :] == data
    assert made.offset == values.get("ip_align_offset", 0)
    assert made.info.ethernet == Header(0, 14)


def test_a_packet_tells_where_its_headers_lie() -> None:
    info = ReceiverPacket(ether(V4 / TCP() / payload(10), tci=5)).info
    assert (info.length, info.ip, info.tcp) == (58, Header(18, 20), Header(38, 20))
