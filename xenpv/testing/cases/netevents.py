"""net-backend: what is on a ring, when an event comes, and where indices wrap (io/ring.h)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from xenpv.abi.xenbus import XenbusState as State
from xenpv.bus.evtchn import Channel
from xenpv.testing.cases.claims import expect, holds
from xenpv.testing.cases.netback import SUITE
from xenpv.testing.cases.netframes import frame
from xenpv.testing.cases.netscene import (
    BackendScene,
    inbound,
)
from xenpv.testing.cases.netslots import OKAY, tx

WRAP: Final = 0xFFFFFFF0  # where indices begin that are about to wrap
ROUNDS: Final = 12


@SUITE.case(
    "NETB-402",
    "a frontend that notifies only when it is asked to",
    source="io/ring.h, RING_FINAL_CHECK_FOR_REQUESTS, RING_PUSH_REQUESTS_AND_CHECK_NOTIFY",
    expected="whoever sleeps has asked for the next request: each round is answered",
    hostile=False,
)
def asks_for_events(s: BackendScene) -> None:
    s.connect()
    ring = s.front.queues[0]
    ref = s.page(frame(60))
    for at in range(ROUNDS):
        if ring.tx.push(tx(ref, 0, 0, at, 60), 1):
            s.front.send_event(ring.tx_channel)
        s.run()
        expect(s.front.tx_responses(), [(at, OKAY)], f"responses of round {at}")


@SUITE.case(
    "NETB-403",
    "a guest that asks for an event with the third response",
    source="io/ring.h, RING_PUSH_RESPONSES_AND_CHECK_NOTIFY",
    expected="an event comes with that response, and none before; also where indices wrap",
    hostile=False,
)
def notifies_as_asked(s: BackendScene) -> None:
    for start in (0, 0xFFFFFFFD, 0x7FFFFFFE):
        s.connect(start=start)
        ring = s.front.queues[0]
        ref = s.page(frame(60))
        s.run()
        ring.tx.rsp_event = start + 3
        for at in range(4):
            before = ring.tx_channel.count
            ring.tx.push(tx(ref, 0, 0, at, 60), 1)
            s.front.send_event(ring.tx_channel)
            s.run()
            came = ring.tx_channel.count - before
            expect(came, int(at == 2), f"events with response {at} from index {start:#x}")
        s.front.tx_responses()
        s.again()


@SUITE.case(
    "NETB-404",
    "rings whose indices wrap",
    source="io/ring.h: indices are free-running u32",
    expected="40 frames each way over the wrap, each once and in order",
    hostile=False,
)
def indices_wrap(s: BackendScene) -> None:
    s.connect(start=WRAP)
    sent = [frame(60, mark=mark) for mark in range(4)]
    refs = [s.page(data) for data in sent]
    for at in range(40):
        answers = s.send([tx(refs[at % 4], 0, 0, at, 60)])
        expect(answers, [(at, OKAY)], "responses")
        expect(s.arrived(), [sent[at % 4]], "frames on the bridge")
        s.post(1)
        s.deliver(inbound(60, at))
        expect([one.data for one in s.packets()], [inbound(60, at)], "frames received")


@SUITE.case(
    "NETB-405",
    "a ring that was in use before it is attached to",
    source="io/ring.h, BACK_RING_ATTACH",
    expected="the backend goes on where rsp_prod stands, and resets nothing",
    hostile=False,
)
def attaches_to_used_ring(s: BackendScene) -> None:
    s.front.shape(start=1000)
    s.connect(start=1000)
    for ring in (s.front.queues[0].tx, s.front.queues[0].rx):
        expect((ring.req_prod, ring.rsp_prod), (1000, 1000), "indices after the attach")
    s.expect_sends()


@SUITE.case(
    "NETB-406",
    "requests that were on the ring before it was attached to",
    source="Linux xenbus.c: a poll at connect",
    expected="they are answered without an event",
    hostile=False,
)
def requests_before_connect(s: BackendScene) -> None:
    front = s.front
    front.shape()
    front.attach()
    data = frame(60)
    front.queues[0].tx.push(tx(s.page(data), 0, 0, 3, 60), 1)
    front.announce()
    s.run()
    expect(front.tx_responses(), [(3, OKAY)], "responses")


@SUITE.case(
    "NETB-407",
    "a ring whose indices cannot be",
    source="io/ring.h; Linux: req_prod - rsp_prod above the ring's size",
    expected="not Connected, or no response to requests that nobody made; a good one connects then",
)
def attaches_to_bad_ring(s: BackendScene) -> None:
    front = s.front
    for prod, answered in ((257, 0), (0, 1), (0x80000000, 0)):
        front.shape()
        front.attach()
        ring = front.queues[0].tx
        ring.req_prod, ring.rsp_prod = prod, answered
        front.announce()
        s.run()
        expect(ring.rsp_prod, answered, "rsp_prod")
        s.expect_usable()
        s.again()


@SUITE.case(
    "NETB-412",
    "an event channel for each direction",
    source="io/netif.h, feature-split-event-channels",
    expected="responses of each ring are told on its own port",
    requires=("feature-split-event-channels",),
    hostile=False,
)
def split_events(s: BackendScene) -> None:
    s.connect(split=True)
    queue = s.front.queues[0]
    counts = (queue.tx_channel.count, queue.rx_channel.count)
    s.expect_sends()
    expect(_since(queue.channels, counts), [1, 0], "events of tx and rx")
    counts = (queue.tx_channel.count, queue.rx_channel.count)
    s.post(1)
    s.deliver(inbound(60))
    expect([one.data for one in s.packets()], [inbound(60)], "frames received")
    expect(_since(queue.channels, counts), [0, 1], "events of tx and rx")


@SUITE.case(
    "NETB-422",
    "one page for two rings, and a port that is taken",
    source="XSA-396; io/netif.h",
    expected="Connected or not, the backend lives and lets go",
)
def shared_keys(s: BackendScene) -> None:
    s.front.shape()
    s.front.attach()
    queue = s.front.queues[0]
    s.front.announce({"rx-ring-ref": str(queue.tx_ref)})
    s.run()
    s.expect_usable()


@SUITE.case(
    "NETB-423",
    "a ring page that may only be read",
    source="xen/include/public/grant_table.h, GTF_readonly",
    expected="not Connected: a response could not be written",
)
def readonly_ring(s: BackendScene) -> None:
    s.front.shape()
    s.front.attach()
    queue = s.front.queues[0]
    ref = s.guest.grant(queue.tx.pfn, readonly=True)
    s.front.announce({"tx-ring-ref": str(ref)})
    s.run()
    holds(s.front.backend_state is not State.CONNECTED, "Connected")
    s.expect_usable()


@SUITE.case(
    "NETB-428",
    "a reference of a ring that is withdrawn while it is mapped",
    source="XSA-396; grant_table.h: a mapping outlives its entry",
    expected="the backend lives, and lets go at the close",
)
def ring_withdrawn(s: BackendScene) -> None:
    s.connect()
    queue = s.front.queues[0]
    for ref in (queue.tx_ref, queue.rx_ref):
        s.guest.set_grant(ref, flags=0)
    s.push([tx(s.page(frame(60)), 0, 0, 1, 60)])
    s.deliver(inbound(60))
    s.close_front()
    expect(s.front.backend_state.name, "CLOSED", "the backend's state")
    expect(s.guest.domain.gnttab.pinned(), 0, "pages that it has mapped")


@SUITE.case(
    "NETB-429",
    "an event channel that the guest closes",
    source="xen/include/public/event_channel.h, EVTCHNOP_close",
    expected="the backend's sends lead nowhere, and the close ends in Closed",
)
def port_closed(s: BackendScene) -> None:
    s.connect()
    queue = s.front.queues[0]
    s.push([tx(s.page(frame(60)), 0, 0, 1, 60)])
    s.guest.evtchn.close(queue.tx_channel)
    s.post(1, notify=False)
    s.deliver(inbound(60))
    s.expect_released()


def _since(channels: Sequence[Channel], before: Sequence[int]) -> list[int]:
    """Events of each since then."""
    return [one.count - was for one, was in zip(channels, before, strict=True)]
