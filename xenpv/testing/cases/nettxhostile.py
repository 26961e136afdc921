"""net-backend, hostile: what a guest may put on the tx ring, and when it may change it."""

from __future__ import annotations

from typing import Final

from xenpv.abi._kernel import lib
from xenpv.abi.xenbus import XenbusState
from xenpv.testing.cases.claims import expect, holds
from xenpv.testing.cases.netback import MSS, SUITE
from xenpv.testing.cases.netframes import PSEUDO, frame, packet
from xenpv.testing.cases.netscene import (
    BAD_REF,
    FIRST_ID,
    TASKS_MAX,
    BackendScene,
)
from xenpv.testing.cases.netslots import (
    CSUM_BLANK,
    DATA_VALIDATED,
    ERROR,
    EXTRA_INFO,
    GSO,
    HASH,
    MCAST_ADD,
    MCAST_DEL,
    MORE_DATA,
    NULL,
    OKAY,
    extra,
    gso,
    tx,
)

BLANK: Final = CSUM_BLANK | DATA_VALIDATED
READ_MASK: Final = 3  # of an access' kind: read, write or change
GROUPS: Final = 4096  # more than any list of groups should hold


@SUITE.case(
    "NETB-101",
    "req_prod runs past the ring",
    source="XSA-39, CVE-2013-0216; io/ring.h, RING_REQUEST_PROD_OVERFLOW",
    expected="no endless loop: the device is broken or goes on, and can be closed and used",
)
def producer_past_ring(s: BackendScene) -> None:
    for ahead in (257, 0x7FFFFFFF, 0xFFFFFFFF):
        s.connect()
        ring = s.front.queues[0].tx
        ring.req_prod = ring.ring.req_prod + ahead
        s.front.notify()
        holds(s.run() < TASKS_MAX, "the backend runs on and on")
        moved = ring.rsp_prod - ring.ring.req_prod & 0xFFFFFFFF
        holds(moved in (0, 0xFFFFFFFF), f"{moved} responses to requests that nobody made")
        expect(s.arrived(), [], "frames on the bridge")
        s.expect_usable()
        s.expect_released()
        s.front.state = XenbusState.INITIALISING
        s.run()


@SUITE.case(
    "NETB-102",
    "extras that the producer cuts off",
    source="io/ring.h; Linux netback.c, xenvif_get_extras",
    expected="a slot beyond req_prod is never read as an extra: the packet does not go out",
)
def extra_past_producer(s: BackendScene) -> None:
    s.connect()
    ring = s.front.queues[0].tx
    data = packet(200)
    # What lies there is a good extra of a time that is over.
    ring.write_slot(1, extra(HASH, bytes(6)))
    s.expect_refused([tx(s.page(data), 0, EXTRA_INFO, FIRST_ID, len(data))])


@SUITE.case(
    "NETB-103",
    "a chain of extras that the producer cuts off",
    source="io/netif.h, XEN_NETIF_EXTRA_FLAG_MORE",
    expected="as for the first of them",
    requires=("feature-gso-tcpv4",),
)
def more_extras_past_producer(s: BackendScene) -> None:
    s.connect()
    data = packet(3500, checksum=PSEUDO)
    head = tx(s.page(data), 0, EXTRA_INFO | BLANK, FIRST_ID, len(data))
    s.front.queues[0].tx.write_slot(2, extra(HASH, bytes(6)))
    s.expect_refused([head, extra(GSO, gso(MSS), more=True)])


@SUITE.case(
    "NETB-104",
    "extras all around the ring",
    source="XSA-39",
    expected="the walk ends with the ring",
)
def extras_around_ring(s: BackendScene) -> None:
    s.connect()
    head = tx(s.page(frame(60)), 0, EXTRA_INFO, FIRST_ID, 60)
    s.expect_refused([head] + [extra(HASH, more=True)] * 255)


@SUITE.case(
    "NETB-105",
    "an extra of a type that there is not",
    source="io/netif.h, XEN_NETIF_EXTRA_TYPE_MAX",
    expected="types 0 and from 5 on are refused",
)
def unknown_extra(s: BackendScene) -> None:
    for kind in (0, 6, 255):
        s.connect()
        head = tx(s.page(frame(60)), 0, EXTRA_INFO, FIRST_ID, 60)
        s.expect_refused([head, extra(kind)])
        s.again()


@SUITE.case(
    "NETB-106",
    "data slots that the producer cuts off",
    source="Linux netback.c, xenvif_count_requests",
    expected="what lies beyond req_prod is not sent",
    requires=("feature-sg",),
)
def data_past_producer(s: BackendScene) -> None:
    s.connect()
    data = frame(160)
    first, second = s.chain(data, [60, 100])
    s.front.queues[0].tx.write_slot(1, second)
    s.expect_refused([first])


@SUITE.case(
    "NETB-107",
    "packets of 20 and 21 data slots",
    source="Linux netback.c, XEN_NETBK_LEGACY_SLOTS_MAX",
    expected="not sent; if the slots are answered it is ERROR",
    requires=("feature-sg",),
)
def too_many_slots(s: BackendScene) -> None:
    for count in (20, 21):
        s.connect()
        s.expect_refused(s.chain(frame(60 * count), [60] * count))
        s.again()


@SUITE.case(
    "NETB-108",
    "packets of 22 data slots and more",
    source="Linux netback.c, fatal_skb_slots",
    expected="not sent; the walk ends",
    requires=("feature-sg",),
)
def far_too_many_slots(s: BackendScene) -> None:
    for count in (22, 60, 256):
        s.connect()
        ref = s.page(frame(60))
        slots = [tx(ref, 0, MORE_DATA, 0, 60 * count)]
        slots += [tx(ref, 0, MORE_DATA, at, 60) for at in range(1, count - 1)]
        s.expect_refused([*slots, tx(ref, 0, 0, count, 60)])
        s.again()


@SUITE.case(
    "NETB-109",
    "a first fragment that crosses its page",
    source="io/netif.h: a fragment may not cross its page",
    expected="not sent, whatever lies in the next page",
)
def first_crosses(s: BackendScene) -> None:
    for offset, size in ((4090, 60), (4083, 14), (4095, 1514), (4096, 60), (0, 4097), (65535, 60)):
        s.connect()
        s.expect_refused([tx(s.page(frame(4096)), offset, 0, FIRST_ID, size)])
        s.again()


@SUITE.case(
    "NETB-110",
    "a later fragment that crosses its page",
    source="io/netif.h: a fragment may not cross its page",
    expected="not sent",
    requires=("feature-sg",),
)
def later_crosses(s: BackendScene) -> None:
    for offset, size in ((4000, 97), (4096, 1), (65535, 65)):
        s.connect()
        first = tx(s.page(frame(60)), 0, MORE_DATA, FIRST_ID, 60 + size)
        s.expect_refused([first, tx(s.page(frame(4096)), offset, 0, FIRST_ID + 1, size)])
        s.again()


@SUITE.case(
    "NETB-111",
    "a first fragment under 14 bytes",
    source="Linux netback.c, xenvif_tx_build_gops: txreq.size < ETH_HLEN",
    expected="no Ethernet header is read of it: not sent",
    requires=("feature-sg",),
)
def short_first(s: BackendScene) -> None:
    for first in (13, 1, 0):
        s.connect()
        slots = s.chain(frame(first + 100), [first, 100])
        s.expect_refused(slots)
        s.again()


@SUITE.case(
    "NETB-112",
    "a frame under 14 bytes",
    source="Linux netback.c; hw/net/xen_nic.c",
    expected="not sent",
)
def short_frame(s: BackendScene) -> None:
    for size in (0, 1, 13):
        s.connect()
        s.expect_refused([tx(s.page(frame(60)), 0, 0, FIRST_ID, size)])
        s.again()


@SUITE.case(
    "NETB-113",
    "slots with more bytes than the first one says",
    source="io/netif.h, netif_tx_request.size; Linux: size > first->size",
    expected="the size left for the first fragment does not wrap: not sent",
    requires=("feature-sg",),
)
def sizes_wrap(s: BackendScene) -> None:
    for total, later in ((100, [101]), (60, [60, 1]), (0, [60]), (65535, [4096] * 17)):
        s.connect()
        slots = [tx(s.page(frame(60)), 0, MORE_DATA, FIRST_ID, total)]
        for at, size in enumerate(later):
            more = MORE_DATA if at < len(later) - 1 else 0
            slots.append(tx(s.page(), 0, more, FIRST_ID + 1 + at, size))
        s.expect_refused(slots)
        s.again()


@SUITE.case(
    "NETB-114",
    "a GSO extra without a size, or of a type that there is not",
    source="Linux netback.c, xenvif_set_skb_gso",
    expected="not sent: nobody divides by it",
    requires=("feature-gso-tcpv4",),
)
def bad_gso(s: BackendScene) -> None:
    for size, kind in ((0, 1), (MSS, 0), (MSS, 3), (MSS, 255)):
        s.connect()
        data = packet(3500, checksum=PSEUDO)
        s.expect_refused(s.chain(data, [54, 3500], flags=BLANK, extras=[(GSO, gso(size, kind))]))
        s.again()


@SUITE.case(
    "NETB-115",
    "a blank checksum where there is none",
    source="Linux netback.c, checksum_setup",
    expected="answered; it reads nothing behind the frame's end, and goes on",
)
def blank_of_nothing(s: BackendScene) -> None:
    s.connect()
    short = packet(0, checksum=PSEUDO)
    strange = [
        frame(60),
        short[:40],  # its TCP header is cut off
        short[:14] + b"\x4f" + short[15:],  # IP options that reach beyond it
        short[:23] + b"\x2f" + short[24:],  # GRE
        b"\xff" * 14,
    ]
    for at, data in enumerate(strange):
        answers = s.send([tx(s.page(data), 0, BLANK, at, len(data))])
        holds([number for number, _ in answers] == [at], f"{answers} for slot {at}")
        holds(
            all(len(one) <= len(data) for one in s.arrived()),
            f"it went out longer than it was: {at}",
        )
    s.expect_sends()


@SUITE.case(
    "NETB-116",
    "a reference that nobody granted",
    source="XSA-361, CVE-2021-26932; XSA-362, CVE-2021-26931; XSA-367, CVE-2021-28038",
    expected="an error of that packet alone: the next one goes out",
)
def bad_reference(s: BackendScene) -> None:
    s.connect()
    other = s.guest.grant(s.guest.page(), domid=7)
    for ref in (BAD_REF, 0xFFFFFFFF, 0, other):
        good = frame(60, mark=ref & 0xFF)
        answers = s.send([tx(ref, 0, 0, 1, 60), tx(s.page(good), 0, 0, 2, 60)])
        expect(sorted(answers), [(1, ERROR), (2, OKAY)], f"responses, reference {ref:#x}")
        expect(s.arrived(), [good], "frames on the bridge")


@SUITE.case(
    "NETB-117",
    "a bad reference in the middle of a packet",
    source="XSA-361; Linux netback.c, xenvif_tx_check_gop",
    expected="the packet is lost and that slot answered ERROR; no page of the others stays mapped",
    requires=("feature-sg",),
)
def bad_reference_inside(s: BackendScene) -> None:
    s.connect()
    for place in range(3):
        pfns = [s.guest.page() for _ in range(3)]
        refs = [s.guest.grant(pfn, readonly=True) for pfn in pfns]
        used = [BAD_REF if at == place else ref for at, ref in enumerate(refs)]
        slots = [
            tx(used[at], 0, MORE_DATA if at < 2 else 0, at, 1500 if not at else 500)
            for at in range(3)
        ]
        answers = dict(s.send(slots))
        expect(sorted(answers), [0, 1, 2], "ids of responses")
        expect(answers[place], ERROR, "status of the bad slot")
        expect(s.arrived(), [], "frames on the bridge")
        held = [ref for ref in refs if not s.guest.revoke(ref)]
        expect(held, [], "references still in use")
    s.expect_sends()


@SUITE.case(
    "NETB-118",
    "a grant that is withdrawn before it is used",
    source="XSA-361; xen/include/public/grant_table.h, GTF_invalid",
    expected="an error of that packet",
)
def withdrawn_grant(s: BackendScene) -> None:
    s.connect()
    ref = s.page(frame(60))
    s.push([tx(ref, 0, 0, 1, 60)])
    s.guest.set_grant(ref, flags=0)
    s.run()
    expect(s.front.tx_responses(), [(1, ERROR)], "responses")
    expect(s.arrived(), [], "frames on the bridge")
    s.expect_sends()


@SUITE.case(
    "NETB-119",
    "a grant of a page that is to be transferred",
    source="xen/include/public/grant_table.h, GTF_accept_transfer",
    expected="an error of that packet",
)
def transfer_grant(s: BackendScene) -> None:
    s.connect()
    pfn = s.guest.page()
    ref = s.guest.grant(pfn)
    s.guest.set_grant(ref, flags=lib.GTF_accept_transfer, pfn=pfn)
    expect(s.send([tx(ref, 0, 0, 1, 60)]), [(1, ERROR)], "responses")
    s.expect_sends()


@SUITE.case(
    "NETB-120",
    "a slot that changes when its page is first read",
    source="XSA-155, CVE-2015-8550",
    expected="the packet that was checked goes out, or none: never the one that was written later",
)
def slot_changes(s: BackendScene) -> None:
    s.connect()
    data = frame(200)
    secret = s.page(frame(4096, mark=0x5EC))
    pfn = s.guest.page()
    s.guest.domain.write(pfn, 0, data)
    ref = s.guest.grant(pfn, readonly=True)
    ring = s.front.queues[0].tx
    frame_of_page = lib.p2m_lookup(s.guest.domain.kernel, pfn, 0)
    changed: list[int] = []

    def hook(actor: int, kind: int, page: int, _offset: int, _size: int) -> None:
        reads = kind & READ_MASK == lib.ACCESS_READ
        if actor != s.guest.domid and reads and page == frame_of_page and not changed:
            changed.append(page)
            ring.write_slot(0, tx(secret, 4000, MORE_DATA, 9, 4000))

    hypervisor = s.platform.hypervisor
    hypervisor.set_hook(hook)
    try:
        answers = s.send([tx(ref, 0, 0, 1, 200)])
    finally:
        hypervisor.set_hook(None)
    passed = s.arrived()
    holds(changed or not passed, "a frame passed, and nobody read its page")
    holds(passed in ([], [data]), f"{len(passed)} frames that were not asked for")
    expect([number for number, _ in answers], [1], "ids of responses")


@SUITE.case(
    "NETB-121",
    "a vif that was shut for its packet",
    source="XSA-90, CVE-2014-2580; XSA-374, CVE-2021-28691",
    expected="the close that races with it ends in Closed, with everything unmapped",
)
def fatal_races_close(s: BackendScene) -> None:
    s.connect()
    s.push([tx(s.page(), 4090, 0, 1, 60)])
    s.expect_usable()


@SUITE.case(
    "NETB-122",
    "a storm of events without work",
    source="XSA-332, CVE-2020-27673",
    expected="a bounded number of polls, and the next frame goes out",
)
def event_storm(s: BackendScene) -> None:
    s.connect()
    for _ in range(1000):
        s.front.notify()
    done = s.platform.loop.advance(0)
    holds(done <= 16, f"1000 events made {done} polls")
    s.expect_sends()


@SUITE.case(
    "NETB-123",
    "multicast requests without end",
    source="Linux netback.h, XEN_NETBK_MCAST_MAX",
    expected="each is answered, with its NULL; sooner or later ERROR says that the list is full",
    requires=("feature-multicast-control",),
)
def endless_groups(s: BackendScene) -> None:
    s.connect()
    refused = 0
    for at in range(0, GROUPS, 128):
        slots = []
        for group in range(at, at + 128):
            body = b"\x01\x00\x5e" + group.to_bytes(3, "big")
            slots += [tx(0, 0, EXTRA_INFO, group, 0), extra(MCAST_ADD, body)]
        answers = s.send(slots)
        statuses = [status for _, status in answers]
        expect(statuses.count(NULL), 128, "NULL responses")
        holds(len(answers) == 256, f"{len(answers)} responses to 256 slots")
        refused += statuses.count(ERROR)
    holds(refused, f"{GROUPS} groups fit into its list")
    expect(s.arrived(), [], "frames on the bridge")
    s.expect_sends()


@SUITE.case(
    "NETB-124",
    "a group that is removed and was never added",
    source="io/netif.h, XEN_NETIF_EXTRA_TYPE_MCAST_DEL",
    expected="answered with its NULL, and nothing else changes",
    requires=("feature-multicast-control",),
)
def remove_unknown_group(s: BackendScene) -> None:
    s.connect()
    slots = [tx(0, 0, EXTRA_INFO, 5, 0), extra(MCAST_DEL, bytes.fromhex("01005e000009"))]
    answers = s.send(slots)
    expect(len(answers), 2, "number of responses")
    expect((answers[0][0], answers[1][1]), (5, NULL), "the first id, and what is behind it")
    s.expect_sends()


@SUITE.case(
    "NETB-125",
    "a page that changes while the packet is under way",
    source="io/netif.h: OKAY hands the page back",
    expected="what is on the bridge does not change with the page once it was answered",
)
def page_changes(s: BackendScene) -> None:
    s.connect()
    data = frame(600)
    pfn = s.guest.page()
    s.guest.domain.write(pfn, 0, data)
    ref = s.guest.grant(pfn, readonly=True)
    expect(s.send([tx(ref, 0, 0, 1, 600)]), [(1, OKAY)], "responses")
    s.guest.domain.write(pfn, 0, bytes(600))
    expect(s.arrived(), [data], "frames on the bridge")
