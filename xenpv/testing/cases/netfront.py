"""net-frontend, conformance: what a guest puts on its rings, and what it makes of what comes."""

from __future__ import annotations

from typing import Final

from xenpv.testing.cases.claims import expect, holds, single
from xenpv.testing.cases.netbacks import Sent
from xenpv.testing.cases.netframes import (
    BROADCAST,
    GUEST_MAC,
    PEER_MAC,
    PSEUDO,
    V4,
    WHOLE,
    Flow,
    body_of,
    checksum_of,
    frame,
    mark_of,
    packet,
)
from xenpv.testing.cases.netfrontscene import STAIN, FrontendScene, inbound
from xenpv.testing.cases.netslots import (
    GSO,
    HASH,
    MORE_DATA,
    RX_CSUM_BLANK,
    RX_DATA_VALIDATED,
    SLOTS_MAX,
    extra,
    gso,
)
from xenpv.testing.cases.suite import Suite

SUITE: Final = Suite("net-frontend", "NETF-", FrontendScene)
PAGE: Final = 4096
RING: Final = 256
SIZES: Final = (60, 61, 200, 513, 1000, 1514)
MSS: Final = 1000


@SUITE.case(
    "NETF-001",
    "frames of every size",
    source="io/netif.h, netif_tx_request",
    expected="slots of one packet, put together, are the frame",
    hostile=False,
)
def frames(s: FrontendScene) -> None:
    s.connect()
    for size in SIZES:
        data = frame(size, mark=size)
        sent = s.send(data)
        expect([s.back.bytes_of(one) for one in sent], [data], f"a frame of {size} bytes")
        s.answer(*sent)


@SUITE.case(
    "NETF-002",
    "the first slot tells the size of all",
    source="io/netif.h, netif_tx_request.size",
    expected="the others' sizes leave at least 14 bytes of it for the first",
    hostile=False,
)
def first_size(s: FrontendScene) -> None:
    s.connect()
    for one in _sent(s):
        own = one.slots[0].own
        holds(own >= 14, f"{own} bytes in the first slot of a packet of {one.size}")


@SUITE.case(
    "NETF-003",
    "no fragment crosses its page",
    source="io/netif.h; XEN_NETIF_NR_SLOTS_MIN",
    expected="offset + size <= 4096 of each slot, and at most 18 of them",
    hostile=False,
)
def fragments(s: FrontendScene) -> None:
    s.connect()
    for one in _sent(s):
        ends = [slot.offset + slot.own for slot in one.slots]
        holds(max(ends) <= PAGE, f"a fragment ends at {max(ends)}")
        holds(len(ends) <= SLOTS_MAX, f"a packet of {len(ends)} slots")


@SUITE.case(
    "NETF-004",
    "flags of the slots behind the first",
    source="io/netif.h: flags but more_data are of the first request",
    expected="none but more_data",
    hostile=False,
)
def later_flags(s: FrontendScene) -> None:
    s.connect()
    for one in _sent(s):
        strange = [slot.flags & ~MORE_DATA for slot in one.slots[1:]]
        expect(strange, [0] * len(strange), "other flags of later slots")


@SUITE.case(
    "NETF-005",
    "ids in flight",
    source="io/netif.h, netif_tx_request.id",
    expected="no two requests without an answer have one id",
    hostile=False,
)
def ids_in_flight(s: FrontendScene) -> None:
    s.connect()
    sent = s.send(*[frame(60, mark=mark) for mark in range(100)])
    for _ in range(5):
        ids = [slot.number for one in sent for slot in one.slots]
        expect(len(ids) - len(dict.fromkeys(ids)), 0, "ids that are in flight twice")
        done, sent = sent[::2], sent[1::2]
        s.answer(*done)
        sent += s.send(*[frame(60, mark=mark) for mark in range(len(done))])


@SUITE.case(
    "NETF-006",
    "what is sent is granted read-only",
    source="grant_table.h, GTF_readonly; Linux xen-netfront.c, xennet_tx_setup_grant",
    expected="the backend cannot map it to write",
    hostile=False,
)
def readonly_grants(s: FrontendScene) -> None:
    s.connect()
    for one in s.send(frame(1514)):
        writable = [slot.gref for slot in one.slots if s.back.is_granted(slot.gref, readonly=False)]
        expect(writable, [], "references that may be written by")


@SUITE.case(
    "NETF-007",
    "grants end with the answer",
    source="grant_table.h; XSA-396",
    expected="a reference of a packet that was answered leads nowhere, or into another's page",
    hostile=False,
)
def grants_end(s: FrontendScene) -> None:
    s.connect()
    sent = s.send(frame(1514))
    refs = [slot.gref for one in sent for slot in one.slots]
    s.answer(*sent)
    expect([ref for ref in refs if s.back.is_granted(ref)], [], "references that still lead to it")


@SUITE.case(
    "NETF-008",
    "more frames than the ring holds",
    source="io/ring.h, RING_FULL",
    expected="never more than a ring in flight; what is not dropped comes in order and once",
    hostile=False,
)
def full_ring(s: FrontendScene) -> None:
    s.connect()
    for mark in range(2 * RING):
        s.world.app.send(frame(200, mark=mark))
    s.run()
    ring = s.back.queues[0].tx
    ahead = ring.req_prod - ring.rsp_prod & 0xFFFFFFFF
    holds(ahead <= RING, f"{ahead} requests on a ring of {RING}")
    marks = [mark_of(data) for data in s.answer_all()]
    expect(marks, sorted(set(marks)), "frames out of order, or twice")
    holds(marks, "no frame came")
    s.expect_works()


@SUITE.case(
    "NETF-009",
    "answers in any order",
    source="io/netif.h: responses match by id",
    expected="each frees its own slot",
    hostile=False,
)
def any_order(s: FrontendScene) -> None:
    s.connect()
    for _ in range(8):
        sent = s.send(*[frame(200, mark=mark) for mark in range(60)])
        answers = [answer for one in sent for answer in one.answers]
        s.back.respond(*answers[::-1])
        s.run()
        held = [slot.gref for one in sent for slot in one.slots if s.back.is_granted(slot.gref)]
        expect(held, [], "references that stay granted")
    s.expect_works()


@SUITE.case(
    "NETF-010",
    "a backend that notifies only when it is asked to",
    source="io/ring.h, RING_FINAL_CHECK_FOR_RESPONSES",
    expected="whoever sleeps has asked for the next response: no frame waits for ever",
    hostile=False,
)
def asks_for_events(s: FrontendScene) -> None:
    s.connect()
    for mark in range(RING + 20):
        sent = s.send(frame(60, mark=mark))
        expect([mark_of(s.back.bytes_of(one)) for one in sent], [mark], "frames on the wire")
        s.answer(*sent)
    for turn in range(4):
        sent = s.send(*[frame(60, mark=turn * 20 + at) for at in range(20)])
        expect(len(sent), 20, "frames on the wire")
        for one in sent:
            s.answer(one)


@SUITE.case(
    "NETF-011",
    "a backend that asks for an event with the third request",
    source="io/ring.h, RING_PUSH_REQUESTS_AND_CHECK_NOTIFY",
    expected="an event comes when that request does",
    hostile=False,
)
def notifies_as_asked(s: FrontendScene) -> None:
    s.connect()
    ring = s.back.queues[0].tx
    ring.req_event = ring.req_prod + 1
    before = s.back.events
    s.world.app.send(frame(200))
    s.run()
    holds(s.back.events > before, "no event came")


@SUITE.case(
    "NETF-012",
    "pages for what comes",
    source="io/netif.h, netif_rx_request; Linux: NET_RX_SLOTS_MIN",
    expected="at least 18 slots, each with a writable page of its own",
    hostile=False,
)
def posted_pages(s: FrontendScene) -> None:
    s.connect()
    posted = s.back.take_slots()
    holds(len(posted) >= SLOTS_MAX, f"{len(posted)} slots are posted")
    refs = [gref for _, gref in posted]
    expect(len(refs) - len(dict.fromkeys(refs)), 0, "references that are posted twice")
    dead = [gref for gref in refs if not s.back.is_granted(gref, readonly=False)]
    expect(dead, [], "references that cannot be written by")


@SUITE.case(
    "NETF-013",
    "a frame in one slot",
    source="io/netif.h, netif_rx_response",
    expected="it comes to the program unchanged",
    hostile=False,
)
def receives(s: FrontendScene) -> None:
    s.connect()
    for size in SIZES:
        data = inbound(size, size)
        s.deliver(data)
        expect(s.received(), [data], f"a frame of {size} bytes")


@SUITE.case(
    "NETF-014",
    "a frame at an offset of its page",
    source="io/netif.h, netif_rx_response.offset; QEMU has 2",
    expected="the bytes from there on",
    hostile=False,
)
def receives_at_offset(s: FrontendScene) -> None:
    s.connect()
    for offset in (2, 256, PAGE - 200):
        data = inbound(200, offset)
        s.deliver(data, offset=offset)
        expect(s.received(), [data], f"a frame at {offset}")


@SUITE.case(
    "NETF-015",
    "a frame over several slots",
    source="io/netif.h, NETRXF_more_data",
    expected="put together",
    requires=("sg",),
    hostile=False,
)
def receives_chain(s: FrontendScene) -> None:
    s.connect()
    for sizes in ([1000, 514], [14, 1500], [60] * 10):
        data = inbound(sum(sizes))
        s.deliver(data, sizes=sizes)
        expect(s.received(), [data], f"a frame in slots of {sizes}")


@SUITE.case(
    "NETF-016",
    "a blank checksum",
    source="io/netif.h, NETRXF_csum_blank (2), NETRXF_data_validated (1)",
    expected="the packet comes, with its sum as it was or right",
    hostile=False,
)
def receives_blank(s: FrontendScene) -> None:
    s.connect()
    data = packet_in(200, checksum=PSEUDO)
    s.deliver(data, flags=RX_CSUM_BLANK | RX_DATA_VALIDATED)
    got = single(s.received(), "frames that came to the program")
    expect(body_of(got), body_of(data), "payload")
    holds(checksum_of(got) in (PSEUDO, WHOLE), "its checksum is neither blank nor right")


@SUITE.case(
    "NETF-017",
    "a packet that the backend verified",
    source="io/netif.h, NETRXF_data_validated",
    expected="it comes unchanged",
    hostile=False,
)
def receives_validated(s: FrontendScene) -> None:
    s.connect()
    data = packet_in(200)
    s.deliver(data, flags=RX_DATA_VALIDATED)
    expect(s.received(), [data], "frames that came to the program")


@SUITE.case(
    "NETF-018",
    "a large packet",
    source="io/netif.h, XEN_NETIF_EXTRA_TYPE_GSO",
    expected="whole or in segments: no byte of payload is lost",
    requires=("gso",),
    hostile=False,
)
def receives_gso(s: FrontendScene) -> None:
    s.connect()
    data = packet_in(3500, checksum=PSEUDO)
    blank = RX_CSUM_BLANK | RX_DATA_VALIDATED
    s.deliver(data, sizes=[3000, 554], flags=blank, extras=[extra(GSO, gso(MSS))])
    got = s.received()
    expect(b"".join(body_of(one) for one in got), body_of(data), "payload")
    s.expect_works()


@SUITE.case(
    "NETF-019",
    "two extras behind the first slot",
    source="io/netif.h, XEN_NETIF_EXTRA_FLAG_MORE: GSO, then HASH",
    expected="their pages are posted again; the packet comes whole",
    requires=("gso",),
    hostile=False,
)
def receives_extras(s: FrontendScene) -> None:
    s.connect()
    blank = RX_CSUM_BLANK | RX_DATA_VALIDATED
    extras = [extra(GSO, gso(MSS), more=True), extra(HASH, bytes((1, 1)) + bytes(4))]
    for mark in range(100):
        data = packet_in(3500, checksum=PSEUDO, mark=mark)
        s.deliver(data, sizes=[3000, 554], flags=blank, extras=extras)
        got = s.received()
        expect(b"".join(body_of(one) for one in got), body_of(data), "payload")
    s.expect_works()


@SUITE.case(
    "NETF-020",
    "pages are posted again",
    source="XSA-457, CVE-2024-27393; io/netif.h",
    expected="a thousand frames come through 256 slots, and as many slots are posted as before",
    hostile=False,
)
def posts_again(s: FrontendScene) -> None:
    s.connect()
    before = len(s.back.take_slots())
    for mark in range(0, 1000, 10):
        for at in range(10):
            s.deliver(inbound(60, mark + at))
        expect([mark_of(data) for data in s.received()], list(range(mark, mark + 10)), "frames")
    expect(len(s.back.take_slots()), before, "slots that are posted")


@SUITE.case(
    "NETF-021",
    "group and broadcast frames",
    source="IEEE 802.3; the interface's filter",
    expected="broadcast comes to the program",
    hostile=False,
)
def receives_broadcast(s: FrontendScene) -> None:
    s.connect()
    data = frame(60, source=PEER_MAC, destination=BROADCAST)
    s.deliver(data)
    expect(s.received(), [data], "frames that came to the program")


@SUITE.case(
    "NETF-022",
    "what a sent page holds beside the frame",
    source="XSA-403, CVE-2022-33741",
    expected="no byte of memory that the backend was never shown",
)
def sent_remnants(s: FrontendScene) -> None:
    s.connect(stained=True)
    for size in SIZES:
        for one in s.send(*[frame(size, mark=mark) for mark in range(20)]):
            for slot in one.slots:
                holds(STAIN * 4 not in s.back.read(slot.gref), f"the guest's own, {size} bytes")
            s.answer(one)


@SUITE.case(
    "NETF-023",
    "what a posted page holds",
    source="XSA-403, CVE-2022-33740",
    expected="no byte of memory that the backend was never shown",
)
def posted_remnants(s: FrontendScene) -> None:
    s.connect(stained=True)
    for mark in range(20):
        s.deliver(inbound(60, mark))
    for _, gref in s.back.take_slots():
        holds(STAIN * 4 not in s.back.read(gref), "bytes of the guest's own")


@SUITE.case(
    "NETF-024",
    "every byte of a response is fetched once",
    source="XSA-155; the same for a frontend",
    expected="responses are copied before they are looked at",
)
def single_fetches(s: FrontendScene) -> None:
    s.connect()
    sent = s.send(*[frame(200, mark=mark) for mark in range(20)])
    with s.single_fetches():
        s.answer(*sent)
        for mark in range(20):
            s.deliver(inbound(200, mark))


def packet_in(size: int, *, checksum: str = WHOLE, mark: int = 0) -> bytes:
    """A TCP packet to the guest."""
    flow = Flow(V4.destination, V4.source, V4.dport, V4.sport)
    return packet(size, flow=flow, checksum=checksum, source=PEER_MAC, destination=GUEST_MAC,
                  mark=mark)  # fmt: skip


def _sent(s: FrontendScene) -> list[Sent]:
    """A frame of each size, answered, as it lay on the ring."""
    found = []
    for size in SIZES:
        sent = s.send(frame(size))
        expect(len(sent), 1, f"packets of a frame of {size} bytes")
        s.answer(*sent)
        found += sent
    return found
