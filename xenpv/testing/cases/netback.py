"""net-backend, conformance: what a guest transmits (io/netif.h; Linux netback.c)."""

from __future__ import annotations

from typing import Final

from xenpv.host.network import Frame
from xenpv.testing.cases.claims import expect, holds, single
from xenpv.testing.cases.netframes import (
    IPV6,
    PSEUDO,
    UDP,
    V6,
    WHOLE,
    WRONG,
    body_of,
    checksum_of,
    frame,
    packet,
)
from xenpv.testing.cases.netscene import (
    FIRST_ID,
    BackendScene,
)
from xenpv.testing.cases.netslots import (
    CSUM_BLANK,
    DATA_VALIDATED,
    GSO,
    HASH,
    MORE_DATA,
    OKAY,
    SLOTS_MAX,
    TCPV4,
    TCPV6,
    gso,
    tx,
)
from xenpv.testing.cases.suite import Suite

SUITE: Final = Suite("net-backend", "NETB-", BackendScene)
MSS: Final = 1000
BLANK: Final = CSUM_BLANK | DATA_VALIDATED


@SUITE.case(
    "NETB-001",
    "a frame in one slot",
    source="io/netif.h, netif_tx_request",
    expected="the frame comes to the bridge unchanged, and its slot is answered OKAY with its id",
    hostile=False,
)
def one_slot(s: BackendScene) -> None:
    s.connect()
    data = frame(1514)
    expect(s.send([tx(s.page(data), 0, 0, 0xBEEF, 1514)]), [(0xBEEF, OKAY)], "responses")
    expect(s.arrived(), [data], "frames on the bridge")


@SUITE.case(
    "NETB-002",
    "a packet over several slots, the first of which tells the size of all",
    source="io/netif.h, netif_tx_request.size",
    expected="the first slot's own bytes are its size less those of the others",
    requires=("feature-sg",),
    hostile=False,
)
def several_slots(s: BackendScene) -> None:
    s.connect()
    for sizes in ([60, 1454], [14, 1, 1499], [500, 500, 500], [60] * 5):
        data = frame(sum(sizes))
        s.expect_answers(s.chain(data, sizes), [OKAY] * len(sizes))
        expect(s.arrived(), [data], f"frames of slots of {sizes}")


@SUITE.case(
    "NETB-003",
    "a packet of the 18 slots that every backend takes",
    source="io/netif.h, XEN_NETIF_NR_SLOTS_MIN",
    expected="it comes to the bridge whole, and each slot is answered OKAY",
    requires=("feature-sg",),
    hostile=False,
)
def most_slots(s: BackendScene) -> None:
    s.connect()
    data = frame(60 * SLOTS_MAX)
    s.expect_answers(s.chain(data, [60] * SLOTS_MAX), [OKAY] * SLOTS_MAX)
    expect(s.arrived(), [data], "frames on the bridge")


@SUITE.case(
    "NETB-004",
    "18 slots with fewer bytes than a backend copies of the headers",
    source="XSA-432, CVE-2023-34319",
    expected="the frame comes to the bridge; nothing is counted below zero",
    requires=("feature-sg",),
    hostile=False,
)
def most_slots_few_bytes(s: BackendScene) -> None:
    s.connect()
    sizes = [14] + [5] * (SLOTS_MAX - 1)
    data = frame(sum(sizes))
    s.expect_answers(s.chain(data, sizes), [OKAY] * len(sizes))
    expect(s.arrived(), [data], "frames on the bridge")


@SUITE.case(
    "NETB-005",
    "headers over the smallest slots",
    source="XSA-423, CVE-2022-3643",
    expected="headers are put together before they are read: the packet comes out unchanged",
    requires=("feature-sg",),
    hostile=False,
)
def small_header_slots(s: BackendScene) -> None:
    s.connect()
    data = packet(1400, checksum=PSEUDO)
    sizes = [14, 1, 1, 1, 3, 10, 4, 20, 1400]
    s.expect_answers(s.chain(data, sizes, flags=BLANK), [OKAY] * len(sizes))
    got = single(s.station.take(), "frames on the bridge")
    expect(body_of(got.data), body_of(data), "payload")


@SUITE.case(
    "NETB-006",
    "a fragment that ends with its page",
    source="io/netif.h: a fragment may not cross its page",
    expected="offset + size = 4096 is no crossing",
    hostile=False,
)
def page_end(s: BackendScene) -> None:
    s.connect()
    data = frame(1000)
    ref = s.page(data, 3096)
    expect(s.send([tx(ref, 3096, 0, 1, 1000)]), [(1, OKAY)], "responses")
    expect(s.arrived(), [data], "frames on the bridge")


@SUITE.case(
    "NETB-007",
    "a fragment that begins at an odd byte of its page",
    source="io/netif.h, netif_tx_request.offset",
    expected="the bytes at `offset`, and no others",
    requires=("feature-sg",),
    hostile=False,
)
def odd_offsets(s: BackendScene) -> None:
    s.connect()
    data = frame(300)
    first, second = s.page(data[:99], 1), s.page(data[99:], 4096 - 201)
    answers = s.send([tx(first, 1, MORE_DATA, 1, 300), tx(second, 4096 - 201, 0, 2, 201)])
    expect(sorted(answers), [(1, OKAY), (2, OKAY)], "responses")
    expect(s.arrived(), [data], "frames on the bridge")


@SUITE.case(
    "NETB-008",
    "pages granted read-only",
    source="io/netif.h: a backend reads what is transmitted",
    expected="they are enough, and so are writable ones",
    hostile=False,
)
def readonly_pages(s: BackendScene) -> None:
    s.connect()
    data = frame(200)
    for number, readonly in enumerate((True, False)):
        ref = s.page(data, readonly=readonly)
        expect(s.send([tx(ref, 0, 0, number, 200)]), [(number, OKAY)], "responses")
        holds(s.guest.revoke(ref), "the page is still in use after the answer")
    expect(s.arrived(), [data, data], "frames on the bridge")


@SUITE.case(
    "NETB-009",
    "empty fragments inside a packet",
    source="XSA-448, CVE-2023-46838",
    expected="answered OKAY and never mapped: their reference may be anything",
    requires=("feature-sg",),
)
def empty_fragments(s: BackendScene) -> None:
    s.connect()
    data = frame(300)
    for place in (1, 2):
        slots = s.chain(data, [100, 100, 100])
        slots.insert(place, tx(0xFFFFFFF0, 0, MORE_DATA, FIRST_ID + 3, 0))
        s.expect_answers(slots, [OKAY] * 4)
        expect(s.arrived(), [data], "frames on the bridge")


@SUITE.case(
    "NETB-010",
    "the smallest first fragment",
    source="Linux netback.c, xenvif_tx_build_gops: ETH_HLEN",
    expected="14 bytes are enough",
    requires=("feature-sg",),
    hostile=False,
)
def smallest_first(s: BackendScene) -> None:
    s.connect()
    data = frame(114)
    s.expect_answers(s.chain(data, [14, 100]), [OKAY] * 2)
    expect(s.arrived(), [data], "frames on the bridge")


@SUITE.case(
    "NETB-011",
    "a ring of 256 frames at once",
    source="io/ring.h, RING_PUSH_REQUESTS_AND_CHECK_NOTIFY",
    expected="each is answered once, and they come to the bridge in order",
    hostile=False,
)
def full_ring(s: BackendScene) -> None:
    s.connect()
    sent = [frame(60, mark=mark) for mark in range(8)]
    refs = [s.page(data) for data in sent]
    answers = s.send([tx(refs[at % 8], 0, 0, at, 60) for at in range(256)])
    expect(sorted(answers), [(at, OKAY) for at in range(256)], "responses")
    expect(s.arrived(), sent * 32, "frames on the bridge")


@SUITE.case(
    "NETB-012",
    "ids are the frontend's",
    source="io/netif.h, netif_tx_request.id",
    expected="echoed as they are: 0, 0xFFFF, and one that is on the ring twice",
    hostile=False,
)
def any_id(s: BackendScene) -> None:
    s.connect()
    ref = s.page(frame(60))
    ids = [0, 0xFFFF, 0x8000, 5, 5, 256]
    answers = s.send([tx(ref, 0, 0, number, 60) for number in ids])
    expect(sorted(answers), sorted((number, OKAY) for number in ids), "responses")


@SUITE.case(
    "NETB-013",
    "a GSO extra",
    source="io/netif.h, XEN_NETIF_EXTRA_TYPE_GSO",
    expected="one large packet with its MSS, or segments of it with right sums; the extra is NULL",
    requires=("feature-gso-tcpv4",),
    hostile=False,
)
def gso_v4(s: BackendScene) -> None:
    s.connect()
    data = packet(3500, checksum=PSEUDO)
    slots = s.chain(data, [54, 3500], flags=BLANK, extras=[(GSO, gso(MSS))])
    s.expect_answers(slots, [OKAY] * 2, nulls=1)
    expect_large(s.station.take(), data, TCPV4)


@SUITE.case(
    "NETB-014",
    "a GSO extra for TCP over IPv6",
    source="io/netif.h, XEN_NETIF_GSO_TYPE_TCPV6",
    expected="as for IPv4",
    requires=("feature-gso-tcpv6",),
    hostile=False,
)
def gso_v6(s: BackendScene) -> None:
    s.connect()
    data = packet(3500, flow=V6, checksum=PSEUDO)
    slots = s.chain(data, [74, 3500], flags=BLANK, extras=[(GSO, gso(MSS, TCPV6))])
    s.expect_answers(slots, [OKAY] * 2, nulls=1)
    expect_large(s.station.take(), data, TCPV6)


@SUITE.case(
    "NETB-015",
    "a large packet of nearly 64 KiB",
    source="io/netif.h, XEN_NETIF_MAX_TX_SIZE; Linux, XEN_NETBACK_MAJOR_SLOTS",
    expected="17 slots carry it; no byte is lost",
    requires=("feature-gso-tcpv4",),
    hostile=False,
)
def gso_whole(s: BackendScene) -> None:
    s.connect()
    data = packet(65000, checksum=PSEUDO)
    sizes = [54] + [4096] * 15 + [65000 - 15 * 4096]
    slots = s.chain(data, sizes, flags=BLANK, extras=[(GSO, gso(MSS))])
    s.expect_answers(slots, [OKAY] * len(sizes), nulls=1)
    expect_large(s.station.take(), data, TCPV4)


@SUITE.case(
    "NETB-016",
    "two extras behind one slot",
    source="io/netif.h, XEN_NETIF_EXTRA_FLAG_MORE",
    expected="the chain is followed by its flags; two NULL responses come behind the first slot's",
    requires=("feature-gso-tcpv4",),
    hostile=False,
)
def two_extras(s: BackendScene) -> None:
    s.connect()
    data = packet(3500, checksum=PSEUDO)
    extras = [(GSO, gso(MSS)), (HASH, bytes((1, 1)) + bytes(4))]
    s.expect_answers(s.chain(data, [54, 3500], flags=BLANK, extras=extras), [OKAY] * 2, nulls=2)
    expect_large(s.station.take(), data, TCPV4)
    s.expect_sends()


@SUITE.case(
    "NETB-017",
    "a blank TCP checksum",
    source="io/netif.h, NETTXF_csum_blank",
    expected="on the bridge it is known to be blank, or it is right",
    hostile=False,
)
def blank_sum(s: BackendScene) -> None:
    s.connect()
    for protocol in (6, UDP):
        data = packet(200, protocol=protocol, checksum=PSEUDO)
        s.expect_answers(s.chain(data, [len(data)], flags=BLANK), [OKAY])
        expect_good_sum(s.station.take(), data)


@SUITE.case(
    "NETB-018",
    "a blank checksum over IPv6",
    source="io/netif.h, feature-ipv6-csum-offload",
    expected="as over IPv4",
    requires=("feature-ipv6-csum-offload",),
    hostile=False,
)
def blank_sum_v6(s: BackendScene) -> None:
    s.connect()
    data = packet(200, flow=V6, checksum=PSEUDO)
    s.expect_answers(s.chain(data, [len(data)], flags=BLANK), [OKAY])
    got = single(s.station.take(), "frames on the bridge")
    expect(got.data[12:14], IPV6, "its type")
    expect_good_sum([got], data)


@SUITE.case(
    "NETB-019",
    "a packet that its sender vouches for",
    source="io/netif.h, NETTXF_data_validated (2; of rx it is 1)",
    expected="unchanged and not blank: the bits of tx are not those of rx",
    hostile=False,
)
def validated(s: BackendScene) -> None:
    s.connect()
    data = packet(200)
    s.expect_answers(s.chain(data, [len(data)], flags=DATA_VALIDATED), [OKAY])
    got = single(s.station.take(), "frames on the bridge")
    expect(got.data, data, "the frame")
    expect(got.csum_blank, False, "whether its sum is blank")


@SUITE.case(
    "NETB-020",
    "a packet of which nothing is said",
    source="io/netif.h, NETTXF_*",
    expected="unchanged, nobody vouches for it, and a wrong sum stays wrong",
    hostile=False,
)
def unverified(s: BackendScene) -> None:
    s.connect()
    data = packet(200, checksum=WRONG)
    s.expect_answers(s.chain(data, [len(data)]), [OKAY])
    got = single(s.station.take(), "frames on the bridge")
    expect(got.data, data, "the frame")
    expect((got.csum_blank, got.data_validated), (False, False), "blank, and vouched for")


@SUITE.case(
    "NETB-021",
    "a HASH extra",
    source="io/netif.h, XEN_NETIF_EXTRA_TYPE_HASH",
    expected="its slot is answered NULL and the packet comes out unchanged",
    requires=("feature-ctrl-ring",),
    hostile=False,
)
def hash_extra(s: BackendScene) -> None:
    s.connect()
    data = packet(200)
    extras = [(HASH, bytes((1, 1)) + (0x12345678).to_bytes(4, "little"))]
    s.expect_answers(s.chain(data, [len(data)], extras=extras), [OKAY], nulls=1)
    expect(s.arrived(), [data], "frames on the bridge")


@SUITE.case(
    "NETB-022",
    "responses and what else lies in their slots",
    source="io/netif.h, netif_tx_response: 4 of 12 bytes",
    expected="the rest of a slot is what the request had there, or zero: nothing of the backend's",
    hostile=False,
)
def response_bytes(s: BackendScene) -> None:
    s.connect()
    ref = s.page(frame(60))
    slots = [tx(ref, 0x123, 0, 0x5678, 60), tx(0xABCD, 0, 0, 0x9ABC, 60)]
    s.send(slots)
    ring = s.front.queues[0].tx
    for at, request in enumerate(slots):
        rest = ring.slot(at)[4:]
        strange = [one for one, was in zip(rest, request[4:], strict=True) if one not in (was, 0)]
        expect(strange, [], f"strange bytes in response {at}")


@SUITE.case(
    "NETB-023",
    "every byte of a slot is fetched once",
    source="XSA-155, CVE-2015-8550",
    expected="requests and extras are copied before they are looked at",
    requires=("feature-gso-tcpv4",),
)
def single_fetches(s: BackendScene) -> None:
    s.connect()
    data = packet(3500, checksum=PSEUDO)
    chain = s.chain(data, [54, 3500], flags=BLANK, extras=[(GSO, gso(MSS)), (HASH, bytes(6))])
    s.watch_fetches()
    s.send([*chain, tx(s.page(frame(60)), 0, 0, 1, 60)])
    s.expect_single_fetches()


def expect_good_sum(frames: list[Frame], sent: bytes) -> None:
    """One packet with the payload of `sent`, and its sum blank and known to be, or right."""
    expect(len(frames), 1, "packets on the bridge")
    (got,) = frames
    expect(body_of(got.data), body_of(sent), "payload")
    wanted = PSEUDO if got.csum_blank else WHOLE
    expect(checksum_of(got.data), wanted, "its checksum")


def expect_large(frames: list[Frame], sent: bytes, kind: int) -> None:
    """What is `sent`, a large packet: one frame that says so, or finished segments of MSS."""
    holds(frames, "nothing came to the bridge")
    expect(b"".join(body_of(one.data) for one in frames), body_of(sent), "payload")
    if len(frames) == 1:
        (got,) = frames
        expect((got.gso_type, got.gso_size), (kind, MSS), "type and MSS")
        expect(got.csum_blank, True, "whether its sum is blank")
        return
    longest = max(len(body_of(one.data)) for one in frames)
    holds(longest <= MSS, f"a segment of {longest} bytes, the MSS is {MSS}")
    for one in frames:
        expect_good_sum([one], one.data)


__all__ = ["BLANK", "MSS", "SUITE", "expect_good_sum", "expect_large"]
