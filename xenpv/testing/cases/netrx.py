"""net-backend, conformance: what a guest receives (io/netif.h; Linux netback rx.c)."""

from __future__ import annotations

from typing import Final

from xenpv.abi._kernel import lib
from xenpv.host.network import Frame
from xenpv.testing.cases.claims import expect, holds, single
from xenpv.testing.cases.netback import MSS, SUITE
from xenpv.testing.cases.netframes import (
    BROADCAST,
    GROUP,
    GUEST_MAC,
    PEER_MAC,
    PSEUDO,
    UDP,
    V4,
    V6,
    WHOLE,
    WRONG,
    Flow,
    body_of,
    checksum_of,
    frame,
    mark_of,
    packet,
)
from xenpv.testing.cases.netscene import (
    MS,
    PATTERN,
    BackendScene,
    Packet,
    inbound,
    rx_id,
)
from xenpv.testing.cases.netslots import (
    EXTRA_INFO,
    GSO,
    MCAST_ADD,
    MCAST_DEL,
    MORE_DATA,
    NULL,
    OKAY,
    RX_CSUM_BLANK,
    RX_DATA_VALIDATED,
    TCPV4,
    TCPV6,
    XDP,
    extra,
    gso,
    tx,
)

LONG: Final = 8900  # bytes of payload: three slots with an MTU of 9000


def to_guest(size: int, **told: object) -> bytes:
    """A TCP packet to the guest, as `packet` makes it."""
    return packet(size, source=PEER_MAC, destination=GUEST_MAC, **told)  # type: ignore[arg-type]  # its own


@SUITE.case(
    "NETB-201",
    "a frame in one slot",
    source="io/netif.h, netif_rx_response",
    expected="the slot's id, its bytes in the page, their number in `status`, no flag",
    hostile=False,
)
def one_slot(s: BackendScene) -> None:
    s.connect()
    s.post(1)
    data = inbound(1514)
    s.deliver(data)
    got = single(s.packets(), "packets that were received")
    expect(got.data, data, "the frame")
    expect((got.slots[0].number, got.flags), (rx_id(0), 0), "id and flags")


@SUITE.case(
    "NETB-202",
    "a frame over several slots",
    source="io/netif.h, NETRXF_more_data; Linux rx.c, xenvif_rx_data_slot",
    expected="more_data in all but the last, each with its own id",
    requires=("feature-sg",),
    hostile=False,
)
def several_slots(s: BackendScene) -> None:
    s.connect_jumbo()
    s.post(8)
    data = to_guest(LONG)
    s.deliver(data)
    got = single(s.packets(), "packets that were received")
    expect(got.data, data, "the frame")
    expect([one.number for one in got.slots], [rx_id(at) for at in range(len(got.slots))], "ids")
    more = [bool(one.flags & MORE_DATA) for one in got.slots]
    expect(more, [True] * (len(got.slots) - 1) + [False], "more_data")


@SUITE.case(
    "NETB-203",
    "half a frame is never seen",
    source="Linux rx.c: rsp_prod moves at the end of a packet; XenVif depends on it",
    expected="rsp_prod stays until there are slots for all of it",
    requires=("feature-sg",),
    hostile=False,
)
def no_partial_packet(s: BackendScene) -> None:
    s.connect_jumbo()
    data = to_guest(LONG)
    s.post(1)
    s.deliver(data, run=False)
    expect(s.front.queues[0].rx.rsp_prod, 0, "rsp_prod with too few slots")
    s.post(1)
    s.platform.loop.advance(0)
    expect(s.front.queues[0].rx.rsp_prod, 0, "rsp_prod with too few slots")
    s.post(6)
    s.platform.loop.advance(0)
    got = single(s.packets(), "packets that were received")
    expect(got.data, data, "the frame")


@SUITE.case(
    "NETB-204",
    "the producer moves once for a frame",
    source="Linux rx.c: RING_PUSH_RESPONSES after the last slot of a packet",
    expected="at each moment the responses on the ring are whole packets",
    requires=("feature-sg",),
    hostile=False,
)
def producer_moves_once(s: BackendScene) -> None:
    s.connect_jumbo()
    s.post(12)
    ring = s.front.queues[0].rx
    page = lib.p2m_lookup(s.guest.domain.kernel, ring.pfn, 0)
    seen: list[int] = []

    def hook(actor: int, _kind: int, at: int, _offset: int, _size: int) -> None:
        if actor != s.guest.domid and at == page:
            prod = ring.rsp_prod
            if prod and prod != (seen or [0])[-1]:
                seen.append(prod)

    s.platform.hypervisor.set_hook(hook)
    try:
        s.deliver(to_guest(LONG), to_guest(LONG))
    finally:
        s.platform.hypervisor.set_hook(None)
    ends = []
    at = 0
    for got in s.packets():
        at += len(got.slots) + len(got.extras)
        ends.append(at)
    expect([one for one in seen if one not in ends], [], "values of rsp_prod within a packet")


@SUITE.case(
    "NETB-205",
    "a large packet for a guest that takes it",
    source="io/netif.h, XEN_NETIF_EXTRA_TYPE_GSO; mirage-net-xen #122",
    expected="a GSO extra comes with csum_blank and data_validated, or the packet in segments",
    requires=("feature-gso-tcpv4",),
    hostile=False,
)
def gso_to_guest(s: BackendScene) -> None:
    s.connect()
    for flow, kind in ((_reverse(V4), TCPV4), (_reverse(V6), TCPV6)):
        s.post(8)
        data = to_guest(3500, flow=flow, checksum=PSEUDO)
        s.deliver(Frame(data, csum_blank=True, data_validated=True, gso_type=kind, gso_size=MSS))
        found = s.packets()
        expect(b"".join(body_of(one.data) for one in found), body_of(data), "payload")
        for one in found:
            expect_sum(one)
        if len(found) == 1:
            blank = RX_CSUM_BLANK | RX_DATA_VALIDATED
            expect(found[0].flags & ~MORE_DATA, blank | EXTRA_INFO, "flags of the first slot")
            expect(found[0].extras, [extra(GSO, gso(MSS, kind))[:8]], "its extra")
        else:
            longest = max(len(body_of(one.data)) for one in found)
            holds(longest <= MSS, f"a segment of {longest} bytes, the MSS is {MSS}")


@SUITE.case(
    "NETB-206",
    "a large packet for a guest that takes none",
    source="io/netif.h, feature-gso-tcpv4 of the frontend",
    expected="segments with right sums and no extra",
    hostile=False,
)
def gso_not_taken(s: BackendScene) -> None:
    s.connect({"feature-gso-tcpv4": "0", "feature-gso-tcpv6": "0"})
    s.post(8)
    data = to_guest(3500, flow=_reverse(V4), checksum=PSEUDO)
    s.deliver(Frame(data, csum_blank=True, data_validated=True, gso_type=TCPV4, gso_size=MSS))
    found = s.packets()
    expect(b"".join(body_of(one.data) for one in found), body_of(data), "payload")
    for one in found:
        expect(one.extras, [], "its extras")
        holds(len(one.data) <= 1514, f"a segment of {len(one.data)} bytes")
        expect_sum(one)


@SUITE.case(
    "NETB-207",
    "a blank checksum for a guest that takes it",
    source="io/netif.h, NETRXF_csum_blank (2; of tx it is 1)",
    expected="csum_blank goes with data_validated; else the sum is right",
    hostile=False,
)
def blank_to_guest(s: BackendScene) -> None:
    s.connect()
    for protocol in (6, UDP):
        s.post(1)
        data = to_guest(200, flow=_reverse(V4), protocol=protocol, checksum=PSEUDO)
        s.deliver(Frame(data, csum_blank=True, data_validated=True))
        got = single(s.packets(), "packets that were received")
        expect(body_of(got.data), body_of(data), "payload")
        expect_sum(got)


@SUITE.case(
    "NETB-208",
    "a blank checksum for a guest that takes none",
    source="io/netif.h, feature-no-csum-offload, feature-ipv6-csum-offload",
    expected="summed up before it comes",
    hostile=False,
)
def blank_not_taken(s: BackendScene) -> None:
    s.connect({"feature-no-csum-offload": "1", "feature-ipv6-csum-offload": "0"})
    for flow in (_reverse(V4), _reverse(V6)):
        s.post(1)
        data = to_guest(200, flow=flow, checksum=PSEUDO)
        s.deliver(Frame(data, csum_blank=True, data_validated=True))
        got = single(s.packets(), "packets that were received")
        expect(checksum_of(got.data), WHOLE, "its checksum")
        expect(got.flags & RX_CSUM_BLANK, 0, "csum_blank")


@SUITE.case(
    "NETB-209",
    "a packet that was verified, and one that nobody looked at",
    source="io/netif.h, NETRXF_data_validated (1)",
    expected="data_validated is never said of a wrong sum, nor csum_blank of a whole one",
    hostile=False,
)
def validated_to_guest(s: BackendScene) -> None:
    s.connect()
    s.post(2)
    flow = _reverse(V4)
    s.deliver(
        Frame(to_guest(200, flow=flow), data_validated=True),
        Frame(to_guest(200, flow=flow, checksum=WRONG)),
    )
    found = s.packets()
    expect(len(found), 2, "packets that were received")
    good, bad = found
    expect(good.flags & RX_CSUM_BLANK, 0, "csum_blank of a whole sum")
    expect(bad.flags, 0, "flags of a packet that nobody looked at")


@SUITE.case(
    "NETB-210",
    "ids are the frontend's, and slots go in order",
    source="io/netif.h, netif_rx_request.id",
    expected="each response has the id of the request in its slot",
    hostile=False,
)
def any_id(s: BackendScene) -> None:
    s.connect()
    s.post(64)
    s.deliver(*[inbound(60, mark) for mark in range(64)])
    found = s.packets()
    expect([one.slots[0].number for one in found], [rx_id(at) for at in range(64)], "ids")
    expect([mark_of(one.data) for one in found], list(range(64)), "order")


@SUITE.case(
    "NETB-211",
    "what a page holds beyond the frame",
    source="XSA-216; io/netif.h, netif_rx_response.status",
    expected="nothing is written there",
    hostile=False,
)
def page_beyond(s: BackendScene) -> None:
    s.connect()
    s.post(1)
    s.deliver(inbound(61))
    got = single(s.packets(), "packets that were received")
    slot = got.slots[0]
    page = s.guest.domain.read(slot.pfn, 0, 4096)
    end = slot.offset + slot.status
    expect(page[end:], PATTERN * (4096 - end), "bytes behind the frame")


@SUITE.case(
    "NETB-219",
    "a guest that does not say when it posts",
    source="io/netif.h, feature-rx-notify; Linux: 30 ms",
    expected="what finds no slot is soon dropped: nothing is sent to it a second later",
    requires=("stalls",),
    hostile=False,
)
def without_rx_notify(s: BackendScene) -> None:
    s.connect({"feature-rx-notify": "0"})
    s.deliver(inbound(60, 1), run=False)
    s.platform.loop.advance(1000 * MS)
    s.post(2)
    s.deliver(inbound(60, 2), run=False)
    expect([mark_of(one.data) for one in s.packets()], [2], "frames")


@SUITE.case(
    "NETB-221",
    "a guest without feature-sg",
    source="io/netif.h, feature-sg of the frontend: absent is 0",
    expected="no frame of several slots",
    hostile=False,
)
def without_sg(s: BackendScene) -> None:
    s.guest.xs.write(f"{s.front.backend_path}/mtu", "9000")
    s.connect({"feature-sg": "0"})
    s.post(4)
    s.deliver(to_guest(LONG), inbound(60, 2))
    found = s.packets()
    expect([len(one.slots) for one in found], [1] * len(found), "slots of each frame")


@SUITE.case(
    "NETB-222",
    "groups that the guest did not ask for",
    source="io/netif.h, request-multicast-control; XEN_NETIF_EXTRA_TYPE_MCAST_*",
    expected="only those of its list come, with unicast and broadcast",
    requires=("feature-multicast-control",),
    hostile=False,
)
def multicast_list(s: BackendScene) -> None:
    s.connect({"request-multicast-control": "1"})
    s.post(16)
    wanted = [GUEST_MAC, BROADCAST]
    everything = [GUEST_MAC, BROADCAST, GROUP]

    def heard() -> list[bytes]:
        s.deliver(*[frame(60, source=PEER_MAC, destination=one) for one in everything])
        return [one.data[:6] for one in s.packets()]

    expect(heard(), wanted, "destinations without a list")
    added = [tx(0, 0, EXTRA_INFO, 1, 0), extra(MCAST_ADD, GROUP)]
    expect([one[1] for one in s.send(added)], [OKAY, NULL], "the answer to an addition")
    expect(heard(), everything, "destinations with a list")
    removed = [tx(0, 0, EXTRA_INFO, 1, 0), extra(MCAST_DEL, GROUP)]
    expect([one[1] for one in s.send(removed)], [OKAY, NULL], "the answer to a removal")
    expect(heard(), wanted, "destinations after it")


@SUITE.case(
    "NETB-223",
    "multicast control that is asked for while connected",
    source="io/netif.h, feature-dynamic-multicast-control",
    expected="the key is watched: groups stop coming when it is written, and come again",
    requires=("feature-dynamic-multicast-control",),
    hostile=False,
)
def dynamic_multicast(s: BackendScene) -> None:
    s.connect()
    s.post(8)
    data = frame(60, source=PEER_MAC, destination=GROUP)
    for text, wanted in (("1", []), ("0", [data]), ("1", []), ("junk", [data])):
        s.front.write_key("request-multicast-control", text)
        s.run()
        s.deliver(data)
        expect([one.data for one in s.packets()], wanted, f"frames after {text!r}")


def _reverse(flow: Flow) -> Flow:
    return Flow(flow.destination, flow.source, flow.dport, flow.sport)


def expect_sum(got: Packet) -> None:
    """csum_blank with data_validated and the sum of the pseudo-header, or a right sum."""
    if got.flags & RX_CSUM_BLANK:
        expect(bool(got.flags & RX_DATA_VALIDATED), True, "data_validated with csum_blank")
        expect(checksum_of(got.data), PSEUDO, "its checksum")
    else:
        expect(checksum_of(got.data), WHOLE, "its checksum")


@SUITE.case(
    "NETB-228",
    "room before the bytes of each page",
    source="Linux' io/netif.h, xdp-headroom; netback's state 8",
    expected="bytes begin there, and `status` counts it; an XDP extra says how much it is",
    requires=("feature-xdp-headroom",),
    hostile=False,
)
def headroom(s: BackendScene) -> None:
    s.connect({"xdp-headroom": "256"})
    s.post(2)
    data = inbound(1000)
    s.deliver(data)
    got = single(s.packets(), "packets that were received")
    expect([one[0] for one in got.extras], [XDP], "types of extras")
    expect(int.from_bytes(got.extras[0][2:4], "little"), 256, "the headroom of the extra")
    expect(got.slots[0].status, 256 + 1000, "status")
    expect(got.data[256:], data, "the frame")


@SUITE.case(
    "NETB-229",
    "other room while connected",
    source="Linux xenbus.c, xen_net_read_xdp: XenbusStateReconfiguring",
    expected="7 is answered with 8, and the next frame has the room that the frontend wrote",
    requires=("feature-xdp-headroom",),
    hostile=False,
)
def reconfigured(s: BackendScene) -> None:
    s.connect()
    for room in (256, 0):
        s.front.write_key("xdp-headroom", str(room))
        s.front.write_key("state", "7")
        s.run()
        expect(s.front.backend_state.name, "RECONFIGURED", "the backend's state")
        s.front.write_key("state", "4")
        s.run()
        s.post(2)
        s.deliver(inbound(100))
        got = single(s.packets(), "packets that were received")
        expect((got.slots[0].status, got.data[room:]), (room + 100, inbound(100)), "the frame")
