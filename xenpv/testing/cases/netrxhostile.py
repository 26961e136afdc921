"""net-backend, hostile: rx slots of a guest's choice, and a guest that takes nothing."""

from __future__ import annotations

from typing import Final

from xenpv.abi.xenbus import XenbusState
from xenpv.host.network import Frame
from xenpv.testing.cases.claims import expect, holds, single
from xenpv.testing.cases.netback import SUITE
from xenpv.testing.cases.netframes import (
    GUEST_MAC,
    PEER_MAC,
    mark_of,
    packet,
)
from xenpv.testing.cases.netscene import (
    BAD_REF,
    PATTERN,
    TASKS_MAX,
    BackendScene,
    S,
    inbound,
    rx_id,
)

BACKLOG_MOST: Final = 1 << 20  # bytes that wait for a guest; Linux holds half of it
FLOOD: Final = 4000  # frames
LONG: Final = 8900  # bytes of payload: three slots with an MTU of 9000


def to_guest(size: int, **told: object) -> bytes:
    """A TCP packet to the guest, as `packet` makes it."""
    return packet(size, source=PEER_MAC, destination=GUEST_MAC, **told)  # type: ignore[arg-type]  # its own


@SUITE.case(
    "NETB-212",
    "a reference that nobody granted",
    source="XSA-361; io/netif.h: status below 0 is an error",
    expected="that slot is answered with an error; what comes next is received",
)
def bad_reference(s: BackendScene) -> None:
    s.connect()
    for ref in (BAD_REF, 0xFFFFFFFF):
        s.post(1, refs=[ref])
        s.post(1)
        s.deliver(inbound(60, 1), inbound(60, 2))
        found = s.received()
        expect(len(found), 2, "rx responses")
        bad, good = found
        holds(bad.status < 0, f"status {bad.status} of a page that is not there")
        expect(
            s.guest.domain.read(good.pfn, good.offset, 60), inbound(60, 2), "the frame behind it"
        )


@SUITE.case(
    "NETB-213",
    "a page that may only be read",
    source="xen/include/public/grant_table.h, GTF_readonly",
    expected="an error, and the page is not written",
)
def readonly_page(s: BackendScene) -> None:
    s.connect()
    pfn = s.guest.page()
    s.guest.domain.write(pfn, 0, PATTERN * 4096)
    s.post(1, refs=[s.guest.grant(pfn, readonly=True)])
    s.deliver(inbound(60))
    got = single(s.received(), "rx responses")
    holds(got.status < 0, f"status {got.status} of a page that may not be written")
    expect(s.guest.domain.read(pfn, 0, 4096), PATTERN * 4096, "the page")
    s.post(1)
    s.deliver(inbound(60, 2))
    expect([one.data for one in s.packets()], [inbound(60, 2)], "the frame behind it")


@SUITE.case(
    "NETB-214",
    "a bad reference in the middle of a packet",
    source="XSA-361; Linux rx.c, xenvif_rx_copy_flush",
    expected="an error in that slot; slots before and behind it stay what they are",
    requires=("feature-sg",),
)
def bad_reference_inside(s: BackendScene) -> None:
    s.connect_jumbo()
    s.post(1)
    s.post(1, refs=[BAD_REF])
    s.post(6)
    s.deliver(to_guest(LONG), inbound(60, 3))
    slots = s.received()
    bad = [at for at, one in enumerate(slots) if one.status < 0]
    holds(bad, "no slot says that the packet is lost")
    last = slots[-1]
    expect(s.guest.domain.read(last.pfn, last.offset, 60), inbound(60, 3), "the frame behind it")


@SUITE.case(
    "NETB-215",
    "req_prod runs past the ring",
    source="io/ring.h, RING_REQUEST_PROD_OVERFLOW",
    expected="no endless loop, no response to what nobody asked; it can be closed and used",
)
def producer_past_ring(s: BackendScene) -> None:
    for ahead in (257, 0x7FFFFFFF, 0xFFFFFFFF):
        s.connect()
        ring = s.front.queues[0].rx
        ring.req_prod = ahead
        s.front.notify()
        s.bridge.transmit(s.station, [Frame(inbound(60))], s.platform.loop.now)
        holds(s.run() < TASKS_MAX, "the backend runs on and on")
        expect(ring.rsp_prod, 0, "rsp_prod")
        s.expect_usable()
        s.expect_released()
        s.front.write_key("state", "1")
        s.run()


@SUITE.case(
    "NETB-216",
    "a guest that posts no slot while frames come",
    source="XSA-392, CVE-2021-28714, CVE-2021-28715",
    expected="what waits for it is bounded; what waited too long is dropped",
)
def bounded_backlog(s: BackendScene) -> None:
    s.connect()
    for at in range(0, FLOOD, 64):
        s.deliver(*[inbound(1514, mark) for mark in range(at, at + 64)], run=False)
    ref = s.guest.grant(s.guest.page())
    got = 0
    for _ in range(FLOOD // 256 + 1):
        s.post(256, refs=[ref] * 256)
        s.platform.loop.advance(0)
        slots = s.received()
        got += len(slots)
        if len(slots) < 256:
            break
    holds(got * 1514 <= BACKLOG_MOST, f"{got * 1514} bytes waited for a guest that takes nothing")


@SUITE.case(
    "NETB-217",
    "a guest that comes back after a long silence",
    source="XSA-392; Linux rx.c, rx_drain_timeout_msecs, rx_stall_timeout_msecs",
    expected="frames of a minute ago are gone; new ones are received once there are slots",
)
def stalled_guest(s: BackendScene) -> None:
    s.connect()
    for second in range(70):
        s.deliver(inbound(60, second), run=False)
        s.platform.loop.advance(S)
    ref_count = 64
    s.post(ref_count)
    s.platform.loop.advance(0)
    old = [mark_of(one.data) for one in s.packets()]
    expect([mark for mark in old if mark < 30], [], "frames of the first half minute")
    s.deliver(inbound(60, 1000), run=False)
    expect([mark_of(one.data) for one in s.packets()], [1000], "a new frame")


@SUITE.case(
    "NETB-218",
    "an interface that the guest took nothing from for a minute has no carrier",
    source="Linux rx.c, xenvif_rx_queue_stalled",
    expected="frames are no longer taken for it, and are again when it posts slots",
    requires=("stalls",),
)
def stalled_carrier(s: BackendScene) -> None:
    s.connect()
    ports = list(s.bridge.ports)
    for _ in range(62):
        s.deliver(inbound(60), run=False)
        s.platform.loop.advance(S)
    expect([one for one in ports if one not in s.bridge.ports], ports[1:], "ports of the bridge")
    s.post(64)
    s.run()
    expect(sorted(s.bridge.ports), sorted(ports), "ports of the bridge")


@SUITE.case(
    "NETB-220",
    "a frame longer than the guest takes",
    source="io/netif.h; Linux: mtu of the vif",
    expected="it comes whole or not at all",
)
def longer_than_mtu(s: BackendScene) -> None:
    s.connect({"feature-sg": "0", "feature-gso-tcpv4": "0", "feature-gso-tcpv6": "0"})
    s.post(4)
    s.deliver(to_guest(5000), inbound(9000), inbound(60, 2))
    found = [one.data for one in s.packets()]
    whole = (to_guest(5000), inbound(9000), inbound(60, 2))
    expect([len(one) for one in found if one not in whole], [], "frames that are only a part")
    holds(inbound(60, 2) in found, "the last frame is missing")


@SUITE.case(
    "NETB-224",
    "every byte of a posted slot is fetched once",
    source="XSA-155, CVE-2015-8550",
    expected="rx requests are copied before they are looked at",
)
def single_fetches(s: BackendScene) -> None:
    s.connect()
    s.watch_fetches()
    s.post(16)
    s.deliver(*[inbound(1514, mark) for mark in range(16)])
    s.expect_single_fetches()


@SUITE.case(
    "NETB-225",
    "a slot that changes after it was taken",
    source="XSA-155",
    expected="a frame that waits for slots goes into the pages that were posted",
    requires=("feature-sg",),
)
def taken_slot_changes(s: BackendScene) -> None:
    s.connect_jumbo()
    other = s.guest.page()
    s.guest.domain.write(other, 0, PATTERN * 4096)
    data = to_guest(LONG)
    s.post(1)
    s.deliver(data, run=False)
    ring = s.front.queues[0].rx
    ring.write_slot(0, b"\x77\0\0\0" + s.guest.grant(other).to_bytes(4, "little"))
    s.post(7)
    s.platform.loop.advance(0)
    slots = s.received()
    holds(slots, "the frame did not come")
    if slots[0].number == rx_id(0):
        expect(s.guest.domain.read(other, 0, 4096), PATTERN * 4096, "the page that came later")


@SUITE.case(
    "NETB-226",
    "slots that all lead to one page",
    source="io/netif.h: what a guest posts is its own matter",
    expected="each is answered",
)
def one_page_for_all(s: BackendScene) -> None:
    s.connect()
    ref = s.guest.grant(s.guest.page())
    s.post(200, refs=[ref] * 200)
    s.deliver(*[inbound(60, mark) for mark in range(200)])
    expect([one.number for one in s.received()], [rx_id(at) for at in range(200)], "ids")


@SUITE.case(
    "NETB-227",
    "a close while frames wait for slots",
    source="XSA-392; XSA-424, CVE-2022-42328",
    expected="nothing of the guest's stays mapped",
)
def close_with_backlog(s: BackendScene) -> None:
    s.connect()
    s.deliver(*[inbound(1514, mark) for mark in range(300)], run=False)
    s.expect_usable()


@SUITE.case(
    "NETB-230",
    "no room behind the headroom",
    source="Linux' io/netif.h, XEN_NETIF_MAX_XDP_HEADROOM",
    expected="4096 and more are refused, or the frame comes whole: nothing is written elsewhere",
    requires=("feature-xdp-headroom",),
)
def no_room(s: BackendScene) -> None:
    for text in ("4096", "32767", "65536", "4294967295"):
        state = s.begin({"xdp-headroom": text})
        if state is XenbusState.CONNECTED:
            s.post(8)
            s.deliver(inbound(100))
            for slot in s.received():
                expect(slot.offset + slot.status <= 4096, True, "a response within its page")
        s.again()
    s.connect({"xdp-headroom": "0"})
    s.expect_sends()
