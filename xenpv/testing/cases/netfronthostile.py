"""net-frontend, hostile: what a backend may write on the rings of a guest."""

from __future__ import annotations

from typing import Final

from xenpv.abi.xenbus import XenbusState as State
from xenpv.testing.cases.claims import expect, holds, single
from xenpv.testing.cases.netbacks import Sent
from xenpv.testing.cases.netframes import PSEUDO, frame, mark_of
from xenpv.testing.cases.netfront import MSS, PAGE, RING, SUITE, packet_in
from xenpv.testing.cases.netfrontscene import TASKS_MAX, FrontendScene, inbound
from xenpv.testing.cases.netslots import (
    DROPPED,
    ERROR,
    EXTRA_INFO,
    GSO,
    HASH,
    MORE_DATA,
    NULL,
    OKAY,
    RX_CSUM_BLANK,
    RX_DATA_VALIDATED,
    extra,
    gso,
    rx_response,
)

BLANK: Final = RX_CSUM_BLANK | RX_DATA_VALIDATED
INDICES: Final = (RING + 1, 0x7FFFFFFF, 0xFFFFFFFF)


@SUITE.case(
    "NETF-101",
    "rsp_prod of tx runs past what was asked",
    source="io/ring.h, RING_RESPONSE_PROD_OVERFLOW; Linux xen-netfront.c",
    expected="no endless loop; the device is given up or goes on, and closes",
)
def tx_producer_past_ring(s: FrontendScene) -> None:
    for ahead in INDICES:
        s.connect()
        s.send(frame(200))
        ring = s.back.queues[0].tx
        ring.rsp_prod = ring.rsp_prod + ahead
        s.back.notify()
        holds(s.run() < TASKS_MAX, "the frontend runs on and on")
        s.expect_survives()


@SUITE.case(
    "NETF-102",
    "rsp_prod of rx runs past what was posted",
    source="io/ring.h, RING_RESPONSE_PROD_OVERFLOW; Linux xen-netfront.c",
    expected="no endless loop, nothing comes to the program; it closes",
)
def rx_producer_past_ring(s: FrontendScene) -> None:
    for ahead in INDICES:
        s.connect()
        ring = s.back.queues[0].rx
        ring.rsp_prod = ring.rsp_prod + ahead
        s.back.notify()
        holds(s.run() < TASKS_MAX, "the frontend runs on and on")
        s.expect_survives()


@SUITE.case(
    "NETF-103",
    "rsp_prod that moves backwards",
    source="Linux xen-netfront.c: rsp_prod is checked against what was consumed",
    expected="nothing comes twice",
)
def producer_backwards(s: FrontendScene) -> None:
    s.connect()
    for mark in range(4):
        s.deliver(inbound(60, mark))
    expect(len(s.received()), 4, "frames that came")
    ring = s.back.queues[0].rx
    ring.rsp_prod = ring.rsp_prod - 2
    s.back.notify()
    s.run()
    s.expect_survives()


@SUITE.case(
    "NETF-104",
    "a tx response with an id that is not in flight",
    source="Linux xen-netfront.c, tx_skb_in_flight; win-xenvif: 16 bits index 1024 entries",
    expected="no table is read by it; the pages that are in flight stay what they are",
)
def unknown_id(s: FrontendScene) -> None:
    for number in (0xFFFF, 1024, 1023, 256, 0):
        s.connect()
        data = frame(600)
        sent = single(s.send(data), "packets on the ring")
        if number in [slot.number for slot in sent.slots]:
            continue
        s.back.respond((number, OKAY))
        s.run()
        _expect_untouched(s, sent, data)
        s.expect_survives()


@SUITE.case(
    "NETF-105",
    "two tx responses for one id",
    source="Linux xen-netfront.c: id %u not in use",
    expected="the second frees nothing: what was not answered stays granted and unchanged",
)
def answered_twice(s: FrontendScene) -> None:
    s.connect()
    sent = s.send(frame(600, mark=1), frame(600, mark=2))
    expect(len(sent), 2, "packets on the ring")
    first, second = sent
    twice = [one for one in first.answers for _ in range(2)]
    s.back.respond(*twice)
    s.run()
    for mark in range(40):
        s.world.app.send(frame(600, mark=100 + mark))
    s.run()
    _expect_untouched(s, second, frame(600, mark=2))
    s.expect_survives()


@SUITE.case(
    "NETF-106",
    "tx statuses of every kind",
    source="io/netif.h, NETIF_RSP_*; Linux takes any for done",
    expected="the packet is done with, once; or the device is given up",
)
def strange_status(s: FrontendScene) -> None:
    for status in (DROPPED, ERROR, -32768, 32767, 2):
        s.connect()
        sent = single(s.send(frame(200)), "packets on the ring")
        s.back.respond(*[(slot.number, status) for slot in sent.slots])
        holds(s.run() < TASKS_MAX, "the frontend runs on and on")
        if status in (DROPPED, ERROR):
            held = [slot.gref for slot in sent.slots if s.back.is_granted(slot.gref)]
            expect(held, [], f"references after status {status}")
            s.expect_works()
        s.expect_survives()


@SUITE.case(
    "NETF-107",
    "NULL responses that belong to no extra",
    source="io/netif.h, NETIF_RSP_NULL",
    expected="they free nothing",
)
def strange_null(s: FrontendScene) -> None:
    s.connect()
    data = frame(600)
    sent = single(s.send(data), "packets on the ring")
    s.back.respond(*[(slot.number, NULL) for slot in sent.slots])
    holds(s.run() < TASKS_MAX, "the frontend runs on and on")
    _expect_untouched(s, sent, data)
    s.expect_survives()


@SUITE.case(
    "NETF-108",
    "a page that the backend keeps mapped",
    source="XSA-396, CVE-2022-23037",
    expected="it is not used again: what lies there does not change",
)
def page_kept_mapped(s: FrontendScene) -> None:
    s.connect()
    sent = single(s.send(frame(600, mark=7)), "packets on the ring")
    last = sent.slots[-1]
    pfn = s.back.map(last.gref, readonly=True)
    before = s.back.domain.read(pfn, 0, PAGE)
    s.answer(sent)
    for mark in range(RING):
        s.world.app.send(frame(600, mark=100 + mark))
    s.run()
    if s.back.connected:
        s.answer_all()
    expect(s.back.domain.read(pfn, 0, PAGE) == before, True, "the page is as it was")
    s.back.unmap(pfn)
    s.expect_survives()


@SUITE.case(
    "NETF-109",
    "an rx status below 0",
    source="io/netif.h, netif_rx_response.status: s16; XSA-361",
    expected="the packet is lost, its page is posted again, the next one comes",
)
def rx_errors(s: FrontendScene) -> None:
    s.connect()
    before = len(s.back.take_slots())
    for status in (ERROR, DROPPED, -12, -32768):
        s.respond((status, 0, 0))
        expect(s.received(), [], f"frames of status {status}")
        s.deliver(inbound(60, 1))
        expect(s.received(), [inbound(60, 1)], "the frame behind it")
    expect(len(s.back.take_slots()), before, "slots that are posted")


@SUITE.case(
    "NETF-110",
    "an error in a later slot",
    source="Linux xen-netfront.c, xennet_get_responses",
    expected="the packet is lost whole; every page of it is posted again",
    requires=("sg",),
)
def rx_error_inside(s: FrontendScene) -> None:
    s.connect()
    before = len(s.back.take_slots())
    for chain in (
        [(600, MORE_DATA, 0), (ERROR, 0, 0)],
        [(ERROR, MORE_DATA, 0), (600, 0, 0)],
        [(600, MORE_DATA, 0), (ERROR, MORE_DATA, 0), (600, 0, 0)],
    ):
        s.respond(*chain)
        expect(s.received(), [], f"frames of slots {chain}")
    s.expect_works()
    expect(len(s.back.take_slots()), before, "slots that are posted")


@SUITE.case(
    "NETF-111",
    "a thousand packets that fail",
    source="XSA-405, CVE-2022-33743; XSA-457, CVE-2024-27393",
    expected="each page is posted again, once: none is lost and none is there twice",
)
def thousand_errors(s: FrontendScene) -> None:
    s.connect()
    before = len(s.back.take_slots())
    for _ in range(20):
        s.respond(*[(ERROR, 0, 0)] * 25)
        s.respond(*[(5, 0, 0)] * 25)
    refs = [gref for _, gref in s.back.take_slots()]
    expect(len(refs), before, "slots that are posted")
    expect(len(dict.fromkeys(refs)), before, "references that are posted")
    expect(s.received(), [], "frames that came to the program")
    s.expect_works()


@SUITE.case(
    "NETF-112",
    "an rx response that ends behind its page",
    source="Linux xen-netfront.c: rx->offset + rx->status > XEN_PAGE_SIZE",
    expected="nothing of what lies behind comes to the program",
)
def rx_beyond_page(s: FrontendScene) -> None:
    for status, offset in ((100, PAGE - 50), (PAGE + 1, 0), (60, PAGE), (60, 65535), (32767, 0)):
        s.connect()
        if offset < PAGE:
            s.back.fill(s.back.take_slots()[0][1], inbound(50), offset)
        s.respond((status, 0, offset))
        s.expect_survives()


@SUITE.case(
    "NETF-113",
    "a frame under 14 bytes",
    source="IEEE 802.3; win-xenvif receiver.c: a header that is not whole",
    expected="it does not come to the program; the next one does",
)
def rx_short(s: FrontendScene) -> None:
    s.connect()
    for size in (0, 1, 13):
        s.respond((size, 0, 0))
        expect(s.received(), [], f"frames of {size} bytes")
    s.expect_works()


@SUITE.case(
    "NETF-114",
    "a packet of more slots than there may be",
    source="io/netif.h, XEN_NETIF_NR_SLOTS_MIN; Linux: too many slots",
    expected="it does not come to the program; the walk ends",
    requires=("sg",),
)
def rx_many_slots(s: FrontendScene) -> None:
    for count in (40, 200):
        s.connect()
        most = min(count, len(s.back.take_slots()))
        chain = [(1000, MORE_DATA, 0)] * (most - 1) + [(1000, 0, 0)]
        s.respond(*chain)
        s.expect_survives()


@SUITE.case(
    "NETF-115",
    "a packet all around the ring",
    source="Linux xen-netfront.c; win-xenvif: half packets are assumed impossible",
    expected="256 slots with more_data are no packet; the walk ends",
    requires=("sg",),
)
def rx_whole_ring(s: FrontendScene) -> None:
    s.connect()
    count = len(s.back.take_slots())
    s.respond(*[(1000, MORE_DATA, 0)] * count)
    s.back.notify()
    holds(s.run() < TASKS_MAX, "the frontend runs on and on")
    s.expect_survives()


@SUITE.case(
    "NETF-116",
    "half a packet, and the rest later",
    source="Linux rx.c never publishes it; win-xenvif depends on that",
    expected="the packet comes whole or not at all",
    requires=("sg",),
)
def rx_in_halves(s: FrontendScene) -> None:
    s.connect()
    data = inbound(1000)
    back = s.back
    posted = back.take_slots()
    (first, one), (second, two) = posted[0], posted[1]
    del posted[:2]
    back.fill(one, data[:600])
    back.fill(two, data[600:])
    back.publish(rx_response(first, 600, flags=MORE_DATA))
    s.run()
    expect(s.received(), [], "frames of half a packet")
    back.publish(rx_response(second, 400))
    s.run()
    holds(s.received() in ([], [data]), "something else than the packet came")
    s.expect_closes()


@SUITE.case(
    "NETF-117",
    "an extra of a type that there is not",
    source="io/netif.h, XEN_NETIF_EXTRA_TYPE_MAX; win-xenvif: the type is a shift count",
    expected="the packet is lost or comes without it; nothing is written by its number",
)
def rx_unknown_extra(s: FrontendScene) -> None:
    for kind in (0, 6, 32, 255):
        s.connect()
        data = packet_in(200)
        s.deliver(data, flags=RX_DATA_VALIDATED, extras=[extra(kind)])
        holds(s.received() in ([], [data]), "something else than the packet came")
        s.expect_survives()


@SUITE.case(
    "NETF-118",
    "extras without an end",
    source="Linux xen-netfront.c, xennet_get_extras: missing extra info",
    expected="the walk ends with the responses that there are",
)
def rx_endless_extras(s: FrontendScene) -> None:
    s.connect()
    back = s.back
    posted = back.take_slots()
    number, gref = posted[0]
    back.fill(gref, packet_in(200))
    head = rx_response(number, 254, flags=EXTRA_INFO | RX_DATA_VALIDATED)
    count = len(posted) - 1
    posted.clear()
    back.publish(head, *[extra(HASH, more=True)[:8]] * count)
    holds(s.run() < TASKS_MAX, "the frontend runs on and on")
    s.expect_survives()


@SUITE.case(
    "NETF-119",
    "an extra that is not there",
    source="Linux xen-netfront.c: missing extra info",
    expected="what lies in the slot behind is not read as one",
)
def rx_missing_extra(s: FrontendScene) -> None:
    s.connect()
    s.respond((200, EXTRA_INFO, 0))
    expect(s.received(), [], "frames that came to the program")
    s.expect_survives()


@SUITE.case(
    "NETF-120",
    "a GSO extra that cannot be",
    source="Linux xen-netfront.c, xennet_set_skb_gso; win-xenvif asserts MSS != 0",
    expected="size 0 or an unknown type: nobody divides by it, the walk ends",
    requires=("gso",),
)
def rx_bad_gso(s: FrontendScene) -> None:
    for size, kind in ((0, 1), (MSS, 0), (MSS, 3), (1, 1), (MSS, 2)):
        s.connect()
        data = packet_in(3500, checksum=PSEUDO)
        s.deliver(data, sizes=[3000, 554], flags=BLANK, extras=[extra(GSO, gso(size, kind))])
        holds(s.run() < TASKS_MAX, "the frontend runs on and on")
        s.received()
        s.expect_closes()


@SUITE.case(
    "NETF-121",
    "a GSO extra on what is no TCP packet",
    source="win-xenvif receiver.c: lengths below the headers underflow",
    expected="nothing is made of it that was not there",
    requires=("gso",),
)
def rx_gso_of_nothing(s: FrontendScene) -> None:
    whole = packet_in(3500, checksum=PSEUDO)
    spoilt = [
        inbound(1000),
        whole[:16] + b"\0\x14" + whole[18:],  # its IP packet ends with the IP header
        whole[:14] + b"\x4f" + whole[15:],  # IP options that reach into TCP
        whole[:46] + b"\xf0" + whole[47:],  # TCP options that reach into the payload
        whole[:40],
    ]
    for data in spoilt:
        s.connect()
        s.deliver(data, flags=BLANK, extras=[extra(GSO, gso(MSS))])
        total = sum(len(one) for one in s.received())
        holds(total <= 3 * len(data), f"{total} bytes came of {len(data)}")
        s.expect_closes()


@SUITE.case(
    "NETF-122",
    "a blank checksum where there is none",
    source="Linux skb_checksum_setup; win-xenvif receiver.c",
    expected="nothing is written behind the packet's end, and the next one comes",
)
def rx_blank_of_nothing(s: FrontendScene) -> None:
    s.connect()
    whole = packet_in(20, checksum=PSEUDO)
    for data in (inbound(60), whole[:36], whole[:14] + b"\x4f" + whole[15:], b"\xff" * 14):
        s.deliver(data, flags=BLANK)
        lengths = [len(one) for one in s.received()]
        holds(all(one <= len(data) for one in lengths), f"frames of {lengths} bytes came")
    s.expect_works()


@SUITE.case(
    "NETF-123",
    "ids of rx responses that are not their slots'",
    source="io/netif.h: an extra has no id; Linux: rx->id",
    expected="by the slot or not at all: no page comes twice, none is lost",
)
def rx_wrong_ids(s: FrontendScene) -> None:
    s.connect()
    back = s.back
    posted = back.take_slots()
    before = len(posted)
    for at in range(8):
        _, gref = posted.pop(0)
        back.fill(gref, inbound(60, at))
        back.publish(rx_response(0xFFFF - at, 60))
    s.run()
    marks = [mark_of(data) for data in s.received()]
    expect(marks, sorted(dict.fromkeys(marks)), "frames, by the slot or not at all")
    if marks:
        refs = [gref for _, gref in back.take_slots()]
        expect(len(dict.fromkeys(refs)), before, "references that are posted")
    s.expect_closes()


@SUITE.case(
    "NETF-124",
    "a storm of events without work",
    source="XSA-391, CVE-2021-28712",
    expected="a bounded number of polls",
)
def event_storm(s: FrontendScene) -> None:
    s.connect()
    for _ in range(1000):
        s.back.notify()
    done = s.world.platform.loop.advance(0)
    holds(done <= 64, f"1000 events made {done} tasks run")
    s.expect_works()


@SUITE.case(
    "NETF-125",
    "a page that changes after it was answered",
    source="win-xenvif and Linux: the grant ends before the packet is looked at",
    expected="what came to the program does not change, and the reference leads nowhere",
)
def rx_page_changes(s: FrontendScene) -> None:
    s.connect()
    back = s.back
    number, gref = back.take_slots().pop(0)
    data = inbound(600)
    back.fill(gref, data)
    pfn = back.map(gref)
    back.publish(rx_response(number, 600))
    s.run()
    back.domain.write(pfn, 0, bytes(600))
    holds(s.received() in ([], [data]), "a frame that changed on its way")
    back.unmap(pfn)
    s.expect_closes()


def _expect_untouched(s: FrontendScene, sent: Sent, data: bytes) -> None:
    """A packet that was not answered: its pages are what they were, or were taken back whole by
    a frontend that gave the device up.
    """
    granted = [s.back.is_granted(slot.gref) for slot in sent.slots]
    if s.state is State.CONNECTED:
        expect(granted, [True] * len(granted), "whether its pages are still granted")
    if all(granted):
        expect(s.back.bytes_of(sent), data, "a packet that was not answered")
