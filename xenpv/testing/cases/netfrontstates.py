"""net-frontend: keys, queues, the control ring, states (io/netif.h; win-xenvif frontend.c)."""

from __future__ import annotations

from typing import Final

from xenpv.abi.xenbus import XenbusState as State
from xenpv.testing.cases.claims import expect, holds
from xenpv.testing.cases.netbacks import QueuedBack
from xenpv.testing.cases.netframes import frame
from xenpv.testing.cases.netfront import SUITE
from xenpv.testing.cases.netfrontscene import (
    EVERYTHING,
    FEATURES,
    TASKS_MAX,
    VCPUS,
    FrontendScene,
    S,
)
from xenpv.testing.cases.netslots import (
    BUFFER_OVERFLOW,
    CTRL_REQUEST,
    INVALID_PARAMETER,
    NOT_SUPPORTED,
)

WITH_CONTROL: Final = {**FEATURES, "feature-ctrl-ring": "1"}
WITH_QUEUES: Final = {**FEATURES, "multi-queue-max-queues": str(VCPUS)}
GARBAGE: Final = ("", "abc", "99", "-1", "4x", "4294967300", "1" * 50)
CYCLES: Final = 6


@SUITE.case(
    "NETF-201",
    "keys come before Connected",
    source="io/netif.h; Linux xen-netfront.c, talk_to_netback",
    expected="in state 4 rings, port and request-rx-copy = 1 are there",
    hostile=False,
)
def keys_first(s: FrontendScene) -> None:
    missing: list[str] = []

    def prepare(back: QueuedBack) -> None:
        attach = back.attach

        def look() -> None:
            keys = ("tx-ring-ref", "rx-ring-ref", "request-rx-copy")
            missing.extend(key for key in keys if back.frontend_key(key) is None)
            attach()

        back.attach = look  # type: ignore[method-assign]  # before it is probed

    s.connect(prepare=prepare)
    expect(missing, [], "keys that are not there in state 4")
    expect(s.back.frontend_key("request-rx-copy"), "1", "request-rx-copy")
    expect(s.back.frontend_key("feature-rx-notify"), "1", "feature-rx-notify")


@SUITE.case(
    "NETF-202",
    "an event channel for each direction",
    source="io/netif.h, feature-split-event-channels",
    expected="event-channel-tx and -rx, or one for both; an event of rx is enough for what comes",
    requires=("split",),
    hostile=False,
)
def split_events(s: FrontendScene) -> None:
    s.connect({**FEATURES, "feature-split-event-channels": "1"})
    expect(len(s.back.queues[0].ports), 2, "ports of its queue")
    s.expect_works()


@SUITE.case(
    "NETF-203",
    "several queues",
    source="io/netif.h, multi-queue-max-queues, queue-N",
    expected="at most as many as are offered, each with rings of its own; all of them work",
    requires=("queues",),
    hostile=False,
)
def several_queues(s: FrontendScene) -> None:
    s.connect(WITH_QUEUES)
    count = len(s.back.queues)
    holds(1 <= count <= VCPUS, f"{count} queues, {VCPUS} are offered")
    refs = s.ring_refs()
    expect(len(dict.fromkeys(refs)), 2 * count, "ring pages of all queues")
    expect(s.back.frontend_key("tx-ring-ref"), None, "a flat tx-ring-ref beside queue-N")
    for queue in range(count):
        s.expect_works(queue)


@SUITE.case(
    "NETF-204",
    "pages of several queues",
    source="XSA-396; io/netif.h",
    expected="no reference is posted in two of them",
    requires=("queues",),
    hostile=False,
)
def pages_of_queues(s: FrontendScene) -> None:
    s.connect(WITH_QUEUES)
    refs = [gref for at in range(len(s.back.queues)) for _, gref in s.back.take_slots(at)]
    expect(len(dict.fromkeys(refs)), len(refs), "references that are posted")


@SUITE.case(
    "NETF-205",
    "a number of queues that cannot be",
    source="io/netif.h, multi-queue-max-queues; win-xenvif: 0 is INVALID_PARAMETER",
    expected="no endless loop; it connects with one it can have, or does not",
)
def bad_max_queues(s: FrontendScene) -> None:
    for text in ("0", "-1", "junk", "4294967296", "1000000", ""):
        s.begin({**FEATURES, "multi-queue-max-queues": text})
        holds(s.run() < TASKS_MAX, "the frontend runs on and on")
        if s.state is State.CONNECTED and s.back.connected:
            holds(len(s.back.queues) <= 64, f"{len(s.back.queues)} queues of {text!r}")
            s.answer_all()
            s.expect_works()


@SUITE.case(
    "NETF-206",
    "features that are no numbers",
    source="io/netif.h; a backend's keys are its own",
    expected="the frontend lives, connects, and sends nothing of a kind that was not offered",
)
def bad_features(s: FrontendScene) -> None:
    names = ("feature-gso-tcpv4", "feature-gso-tcpv6", "feature-split-event-channels",
             "feature-ctrl-ring", "feature-ipv6-csum-offload", "feature-dynamic-multicast-control",
             "feature-no-csum-offload")  # fmt: skip
    for text in ("", "junk", "-1", "1" * 70, "\x7f"):
        s.connect({**FEATURES, **dict.fromkeys(names, text)})
        s.expect_works()


@SUITE.case(
    "NETF-207",
    "a backend that offers nothing",
    source="io/netif.h: absent is 0; hw/net/xen_nic.c has no feature-sg",
    expected="a frame is one slot, without extras",
    hostile=False,
)
def nothing_offered(s: FrontendScene) -> None:
    s.connect({"feature-rx-copy": "1"})
    for size in (60, 1514):
        data = frame(size)
        sent = s.send(data)
        expect([s.back.bytes_of(one) for one in sent], [data], "frames on the wire")
        shapes = [(len(one.slots), len(one.extras)) for one in sent]
        expect(shapes, [(1, 0)], "slots and extras of a frame")
        s.answer(*sent)


@SUITE.case(
    "NETF-208",
    "a device that is taken away",
    source="io/xenbus.h; libxl: `online` 0, then Closing",
    expected="it closes; no page that was sent or posted stays granted",
    hostile=False,
)
def taken_away(s: FrontendScene) -> None:
    s.connect(EVERYTHING)
    back = s.back
    sent = s.send(*[frame(600, mark=mark) for mark in range(8)])
    refs = [slot.gref for one in sent for slot in one.slots]
    refs += [gref for at in range(len(back.queues)) for _, gref in back.take_slots(at)]
    s.expect_closes()
    expect([gref for gref in refs if back.is_granted(gref)], [], "pages that stay granted")


@SUITE.case(
    "NETF-209",
    "a device that is taken away while its backend says nothing",
    source="win-xenvif frontend.c: it waits for the backend; XSA-465",
    expected="the frontend lives; it closes when the backend does",
)
def taken_from_silence(s: FrontendScene) -> None:
    s.connect()
    s.back.answers = {}
    s.back.write_key("online", "0")
    s.run()
    s.world.platform.loop.advance(10 * S)
    s.back.state = State.CLOSING
    s.run()
    s.expect_closes()


@SUITE.case(
    "NETF-210",
    "text that is no state",
    source="io/xenbus.h, XenbusState",
    expected="the frontend lives through it and goes on, or closes",
)
def garbage_state(s: FrontendScene) -> None:
    s.connect()
    for text in GARBAGE:
        s.back.write_key("state", text)
        holds(s.run() < TASKS_MAX, "the frontend runs on and on")
    s.back.write_key("state", "4")
    s.run()
    if s.state is State.CONNECTED and s.back.connected:
        s.answer_all()
        s.expect_works()
        s.expect_closes()


@SUITE.case(
    "NETF-211",
    "text that is no state before the connection",
    source="io/xenbus.h, XenbusState",
    expected="the frontend waits, and connects when the backend says InitWait",
)
def garbage_before(s: FrontendScene) -> None:
    for text in GARBAGE:
        s.begin(waiting=lambda text=text: s.back.write_key("state", text))  # type: ignore[misc]  # bound now
        holds(s.world.platform.loop.advance(S) < TASKS_MAX, "the frontend runs on and on")
        s.back.write_key("state", "2")
        s.world.platform.loop.advance(300 * S)
        if s.state is State.CONNECTED and s.back.connected:
            s.answer_all()
            s.expect_works()


@SUITE.case(
    "NETF-212",
    "a state that is written a thousand times",
    source="XSA-349, CVE-2020-29568",
    expected="it is looked at as it is: frames go on",
)
def state_flood(s: FrontendScene) -> None:
    s.connect()
    for _ in range(500):
        s.back.write_key("state", "4")
    s.run()
    s.expect_works()


@SUITE.case(
    "NETF-213",
    "the backend's directory that is removed",
    source="win-xenvif (2025): it waited for a backend that had vanished",
    expected="no endless loop; the frontend gives the device up",
)
def backend_vanishes(s: FrontendScene) -> None:
    s.connect()
    grefs = s.ring_refs()
    # What it still has mapped its frontend would have to set aside (XSA-396).
    s.back.detach()
    s.world.platform.toolstack.xs.rm(s.back.device.path)
    holds(s.run() < TASKS_MAX, "the frontend runs on and on")
    s.expect_gone(grefs)


@SUITE.case(
    "NETF-214",
    "control requests",
    source="io/netif.h, xen_netif_ctrl_request",
    expected="one at a time, with an id other than 0 and a type that there is",
    requires=("control",),
    hostile=False,
)
def control_requests(s: FrontendScene) -> None:
    most: list[int] = []

    def prepare(back: QueuedBack) -> None:
        serve = back.serve_control

        def count() -> None:
            if back.ctrl is not None:
                most.append(back.ctrl.req_prod - back.ctrl.rsp_prod & 0xFFFFFFFF)
            serve()

        back.serve_control = count  # type: ignore[method-assign]  # before it is probed

    s.connect(WITH_CONTROL, prepare)
    asked = s.back.asked
    expect([one[1] for one in asked if not 1 <= one[1] <= 10], [], "types that there are not")
    expect([one[0] for one in asked if not one[0]], [], "requests with id 0")
    holds(max(most, default=0) <= 1, f"{max(most, default=0)} control requests at once")
    s.expect_works()


@SUITE.case(
    "NETF-215",
    "control requests that are refused",
    source="io/netif.h, XEN_NETIF_CTRL_STATUS_*",
    expected="the frontend does without, or without the interface; it closes",
    requires=("control",),
)
def control_refused(s: FrontendScene) -> None:
    for status in (NOT_SUPPORTED, INVALID_PARAMETER, BUFFER_OVERFLOW, 4, 0xFFFFFFFF):

        def prepare(back: QueuedBack, status: int = status) -> None:
            back.replies = dict.fromkeys(range(12), (status, 4294967295))

        s.connect(WITH_CONTROL, prepare)
        s.expect_closes()


@SUITE.case(
    "NETF-216",
    "a control ring that says nothing",
    source="win-xenvif (2025): an endless wait; controller.c: 5 s",
    expected="the frontend is Connected all the same, and closes",
    requires=("control",),
)
def control_silent(s: FrontendScene) -> None:
    def prepare(back: QueuedBack) -> None:
        back.replies = None

    s.begin(WITH_CONTROL, prepare)
    s.world.platform.loop.advance(60 * S)
    expect(s.state, State.CONNECTED, "the frontend's state")
    s.answer_all()
    s.expect_closes()


@SUITE.case(
    "NETF-217",
    "control responses to what was not asked",
    source="win-xenvif controller.c: other ids are ignored",
    expected="they are no answers: the frontend is Connected all the same, and closes",
    requires=("control",),
)
def control_wrong_ids(s: FrontendScene) -> None:
    def prepare(back: QueuedBack) -> None:
        def serve() -> None:
            if back.ctrl is None:
                return
            for raw in back.ctrl.take():
                number, kind, *_ = CTRL_REQUEST.unpack(raw)
                back.reply(number + 1 & 0xFFFF, kind, NOT_SUPPORTED)

        back.serve_control = serve  # type: ignore[method-assign]  # before it is probed

    s.begin(WITH_CONTROL, prepare)
    s.world.platform.loop.advance(60 * S)
    expect(s.state, State.CONNECTED, "the frontend's state")
    s.answer_all()
    s.expect_closes()


@SUITE.case(
    "NETF-218",
    "rsp_prod of the control ring runs past it",
    source="io/ring.h, RING_RESPONSE_PROD_OVERFLOW",
    expected="no endless loop; it closes",
    requires=("control",),
)
def control_past_ring(s: FrontendScene) -> None:
    for ahead in (129, 0x7FFFFFFF, 0xFFFFFFFF):
        s.connect(WITH_CONTROL)
        ring = s.back.ctrl
        assert ring is not None
        ring.rsp_prod = ring.rsp_prod + ahead
        s.back.notify()
        holds(s.run() < TASKS_MAX, "the frontend runs on and on")
        s.expect_survives()


@SUITE.case(
    "NETF-219",
    "frames while the backend is not Connected yet",
    source="mirage-net-xen: the first packet was lost before Connected",
    expected="rings are not touched before the backend maps them; what is sent then comes",
    hostile=False,
)
def maps_late(s: FrontendScene) -> None:
    def prepare(back: QueuedBack) -> None:
        back.maps_late = True

    s.begin(prepare=prepare)
    s.back.attach()
    s.back.notify()
    s.run()
    s.answer_all()
    s.expect_works()
