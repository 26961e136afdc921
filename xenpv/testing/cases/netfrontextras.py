"""net-frontend: requests with extras and blank checksums (io/netif.h; win-xenvif transmitter.c)."""

from __future__ import annotations

from typing import Final

from xenpv.testing.cases.claims import expect, holds, single
from xenpv.testing.cases.netbacks import Sent
from xenpv.testing.cases.netframes import GROUP, PSEUDO, V6, body_of, checksum_of, packet
from xenpv.testing.cases.netfront import MSS, PAGE, SUITE
from xenpv.testing.cases.netfrontscene import EVERYTHING, FEATURES, FrontendScene
from xenpv.testing.cases.netslots import (
    CSUM_BLANK,
    DATA_VALIDATED,
    ERROR,
    EXTRA_INFO,
    GSO,
    MCAST_ADD,
    MCAST_DEL,
    MORE_DATA,
    NULL,
    OKAY,
    SLOTS_MAX,
    TCPV4,
    TCPV6,
    extra,
    gso,
)

GROUPS_FEATURES: Final = {
    **FEATURES,
    "feature-multicast-control": "1",
    "feature-dynamic-multicast-control": "1",
}
OFFLOADS: Final = {key: EVERYTHING[key] for key in EVERYTHING if "queue" not in key}
OTHER: Final = bytes.fromhex("01005e000002")


@SUITE.case(
    "NETF-301",
    "groups that are asked for",
    source="io/netif.h, XEN_NETIF_EXTRA_TYPE_MCAST_ADD, _MCAST_DEL",
    expected="a request without data and one extra for each that comes and goes",
    requires=("groups",),
    hostile=False,
)
def groups(s: FrontendScene) -> None:
    s.connect(GROUPS_FEATURES)
    for now, wanted in (
        ([GROUP], [(MCAST_ADD, GROUP)]),
        ([GROUP, OTHER], [(MCAST_ADD, OTHER)]),
        ([OTHER], [(MCAST_DEL, GROUP)]),
    ):
        s.world.join(*now)
        s.run()
        sent = s.take()
        heads = [(one.slots[0].flags, one.size) for one in sent]
        expect(heads, [(EXTRA_INFO, 0)] * len(wanted), "flags and size of the requests")
        told = [(one.extras[0][0], one.extras[0][2:8]) for one in sent if len(one.extras) == 1]
        expect(told, wanted, "types and addresses of their extras")
        s.answer(*sent)
    s.expect_works()


@SUITE.case(
    "NETF-302",
    "groups that are refused",
    source="io/netif.h; Linux answers ERROR when its list is full",
    expected="the frontend goes on; it asks for what comes next",
    requires=("groups",),
)
def groups_refused(s: FrontendScene) -> None:
    s.connect(GROUPS_FEATURES)
    for now in ([GROUP], [GROUP, OTHER], []):
        s.world.join(*now)
        s.run()
        for one in s.take():
            s.back.respond((one.slots[0].number, ERROR), (0, NULL))
        s.run()
    s.expect_works()


@SUITE.case(
    "NETF-303",
    "a checksum that is left to the backend",
    source="io/netif.h, NETTXF_csum_blank: the field has the sum of the pseudo-header",
    expected="csum_blank and data_validated in the first slot, and that sum; else a right sum",
    requires=("large",),
    hostile=False,
)
def blank(s: FrontendScene) -> None:
    s.connect(OFFLOADS)
    for flow in (None, V6):
        data = packet(700) if flow is None else packet(700, flow=flow)
        holds(s.world.send_large(data, 0, is_ipv6=flow is not None), "it was not taken")
        s.run()
        sent = single(s.take(), "packets on the ring")
        _expect_blank(s, sent, data)
        s.answer(sent)


@SUITE.case(
    "NETF-304",
    "a large packet",
    source="io/netif.h, XEN_NETIF_EXTRA_TYPE_GSO",
    expected="one packet of at most 18 slots with a GSO extra: MSS, type, a blank checksum",
    requires=("large", "gso"),
    hostile=False,
)
def large(s: FrontendScene) -> None:
    s.connect(OFFLOADS)
    for flow, kind in ((None, TCPV4), (V6, TCPV6)):
        for size in (3 * MSS, 60_000):
            data = packet(size) if flow is None else packet(size, flow=flow)
            holds(s.world.send_large(data, MSS, is_ipv6=flow is not None), "it was not taken")
            s.run()
            sent = single(s.take(), "packets on the ring")
            _expect_blank(s, sent, data)
            told = [one[:8] for one in sent.extras if one[0] == GSO]
            expect([one[2:] for one in told], [extra(GSO, gso(MSS, kind))[2:8]], "its GSO extra")
            holds(len(sent.slots) <= SLOTS_MAX, f"{len(sent.slots)} slots")
            ends = [slot.offset + slot.own for slot in sent.slots]
            holds(max(ends) <= PAGE, f"a fragment ends at {max(ends)}")
            s.answer(sent)
    s.expect_works()


@SUITE.case(
    "NETF-305",
    "a large packet for a backend that takes none",
    source="io/netif.h, feature-gso-tcpv4: absent is 0",
    expected="no GSO extra comes",
    requires=("large",),
    hostile=False,
)
def large_not_offered(s: FrontendScene) -> None:
    s.connect(FEATURES)
    s.world.send_large(packet(3 * MSS), MSS)
    s.run()
    kinds = [one[0] for sent in s.take() for one in sent.extras]
    expect(kinds, [], "types of extras")


@SUITE.case(
    "NETF-306",
    "extras that are answered with other than NULL, or not in their place",
    source="io/netif.h, NETIF_RSP_NULL; mirage-net-xen 2.1.8",
    expected="the packet is done with once, or the device is given up",
    requires=("large", "gso"),
)
def extras_answered(s: FrontendScene) -> None:
    for order in ("null last", "null first", "okay", "two"):
        s.connect(OFFLOADS)
        s.world.send_large(packet(3 * MSS), MSS)
        s.run()
        sent = single(s.take(), "packets on the ring")
        data = [(one.number, OKAY) for one in sent.slots]
        nulls = [(0, NULL)] * len(sent.extras)
        answers = {
            "null last": [*data, *nulls],
            "null first": [*nulls, *data],
            "okay": [*data, *[(0, OKAY)] * len(nulls)],
            "two": [*data[:-1], *nulls, (0, NULL)],
        }[order]
        s.back.respond(*answers)
        s.run()
        s.expect_survives()


def _expect_blank(s: FrontendScene, sent: Sent, data: bytes) -> None:
    """A packet with the payload of `data` and a blank checksum."""
    flags = sent.slots[0].flags & ~(MORE_DATA | EXTRA_INFO)
    got = s.back.bytes_of(sent)
    expect(body_of(got), body_of(data), "payload")
    expect(flags, CSUM_BLANK | DATA_VALIDATED, "flags of the first slot")
    expect(checksum_of(got), PSEUDO, "its checksum")
