"""What a block backend does for an honest frontend: connections, requests, responses, events."""

from __future__ import annotations

from xenpv.testing.cases.blkpeer import ERROR, OKAY, READ, WHOLE, WRITE, BlkPeer
from xenpv.testing.cases.blkscene import SECTORS, SUITE, BlkBackScene, content, marked
from xenpv.testing.cases.claims import expect, holds
from xenpv.testing.cases.suite import Skip

__all__ = ["SUITE"]

# connections and keys


@SUITE.case(
    "BLKB-001",
    "the keys say what the disk is",
    source="io/blkif.h, sectors, sector-size, info",
    expected="sectors counts 512 bytes each, sector-size is the disk's, info has no READONLY",
    hostile=False,
)
def keys(scene: BlkBackScene) -> None:
    peer = scene.front()
    expect(peer.backend_key("sectors"), str(SECTORS), "sectors")
    expect(peer.backend_key("sector-size"), "512", "sector-size")
    expect(peer.number("info", 99) & 4, 0, "READONLY of info, of a disk of mode w")


@SUITE.case(
    "BLKB-002",
    "a read-only disk is told, and not written",
    source="io/blkif.h, VDISK_READONLY",
    expected="info has READONLY (mirage: 0), and a WRITE ends as ERROR either way",
    hostile=False,
)
def readonly(scene: BlkBackScene) -> None:
    peer = scene.connected(readonly=True)
    expect(peer.read(8, 8), content(8, 8), "a READ")
    if not peer.number("info", 99) & 4:
        expect(peer.backend_key("info"), "0", "info")
    _, ref = peer.granted(marked(1), readonly=True)
    expect(peer.status(peer.rw(WRITE, 8, [(ref, *WHOLE)])), ERROR, "status of a WRITE")
    expect(peer.read(8, 8), content(8, 8), "the disk after it")


@SUITE.case(
    "BLKB-003",
    "a frontend may go to Connected at once",
    source="xen-blkback/xenbus.c, frontend_changed: Initialised and Connected alike",
    expected="the backend connects, and serves",
    hostile=False,
)
def connected_at_once(scene: BlkBackScene) -> None:
    peer = scene.waiting()
    peer.connect({"state": "4"})
    expect(peer.backend_key("state"), "4", "the backend's state")
    expect(peer.read(0, 8), content(0, 8), "a READ")


@SUITE.case(
    "BLKB-004",
    "it closes with its frontend, and connects again",
    source="xen-blkback/xenbus.c, frontend_changed",
    expected="Closing for Closing, Closed for Closed, InitWait for Initialising, then as before",
    hostile=False,
)
def reconnects(scene: BlkBackScene) -> None:
    peer = scene.front()
    for round_ in range(3):
        peer.write(round_ * 8, marked(round_))
        peer.state = 5
        scene.world.run()
        expect(peer.backend_key("state"), "5", "its state at a frontend's Closing")
        peer.state = 6
        scene.world.run()
        expect(peer.backend_key("state"), "6", "its state at a frontend's Closed")
        scene.nothing_held()
        peer.state = 1
        scene.world.run()
        expect(peer.backend_key("state"), "2", "its state at a frontend's Initialising")
        peer.connect()
        expect(peer.backend_key("state"), "4", "its state at a frontend's Initialised")
        expect(peer.read(round_ * 8, 8), marked(round_), "what was written before")


@SUITE.case(
    "BLKB-005",
    "a toolstack takes the disk away",
    source="io/xenbus.h; libxl: online 0 and state Closing",
    expected="once the frontend is Closed so is the backend, and nothing is held",
    hostile=False,
)
def unplugged(scene: BlkBackScene) -> None:
    peer = scene.front()
    write = scene.world.guest.xs.write
    write(f"{peer.backend_path}/online", "0")
    write(f"{peer.backend_path}/state", "5")
    scene.world.run()
    expect(peer.read(0, 8), content(0, 8), "a READ while the frontend is still Connected")
    scene.close_device()
    scene.hangs_up = False


@SUITE.case(
    "BLKB-006",
    "requests published before the backend connects are served",
    source="io/ring.h, BACK_RING_ATTACH: never reset what the frontend owns",
    expected="each is answered once it is Connected",
    hostile=False,
)
def published_early(scene: BlkBackScene) -> None:
    peer = scene.waiting()
    peer.attach()
    pfns = [peer.granted() for _ in range(3)]
    slots = [peer.rw(READ, at * 8, [(ref, *WHOLE)]) for at, (_, ref) in enumerate(pfns)]
    peer.publish(*slots)
    peer.announce()
    scene.world.run()
    expect(peer.backend_key("state"), "4", "its state")
    peer.state = 4
    peer.kick()
    scene.world.run()
    got = peer.answers()
    expect(sorted(one.rid for one in got), sorted(map(peer.id_of, slots)), "ids of the responses")
    expect([one.status for one in got], [OKAY] * 3, "statuses")
    for at, (pfn, _) in enumerate(pfns):
        expect(peer.read_page(pfn), content(at * 8, 8), f"data of request {at}")


@SUITE.case(
    "BLKB-007",
    "a ring whose indices have been round before",
    source="io/ring.h, BACK_RING_ATTACH(_r, _s, rsp_prod)",
    expected="the backend goes on from the producers in the page, or takes no such ring",
    hostile=False,
)
def indices_at_attach(scene: BlkBackScene) -> None:
    peer = scene.waiting()
    peer.run()
    peer.attach()
    at = 0xFFFFFFFA
    ring = peer.rings[0].sring
    ring.ring.seek(at)
    ring.req_prod = ring.rsp_prod = at
    ring.req_event = ring.rsp_event = at + 1
    peer.announce()
    scene.world.run()
    if not peer.is_connected:
        return
    peer.state = 4
    scene.world.run()
    for round_ in range(12):
        expect(peer.read(round_ * 8, 8), content(round_ * 8, 8), f"READ {round_}")


@SUITE.case(
    "BLKB-008",
    "ring-page-order 0 with both names of the one page",
    source="xen-blkback/xenbus.c, read_per_ring_refs; tapback/frontend.c",
    expected="it connects by ring-ref0 or by ring-ref",
    hostile=False,
)
def order_zero(scene: BlkBackScene) -> None:
    peer = scene.waiting()
    peer.attach()
    ref = str(peer.rings[0].refs[0])
    peer.announce({"ring-page-order": "0", "ring-ref0": ref, "ring-ref": ref})
    scene.world.run()
    expect(peer.backend_key("state"), "4", "its state")
    peer.state = 4
    scene.world.run()
    expect(peer.read(0, 8), content(0, 8), "a READ")


@SUITE.case(
    "BLKB-009",
    "rings of several pages",
    source="io/blkif.h, max-ring-page-order and ring-page-order",
    expected="every order up to the one offered has a ring of 32 entries a page, all of them used",
    requires=("max-ring-page-order",),
    hostile=False,
)
def page_orders(scene: BlkBackScene) -> None:
    most = min(scene.front().number("max-ring-page-order"), 4)
    for order in range(1, most + 1):
        peer = scene.connected(order=order)
        size = peer.rings[0].sring.size
        expect(size, 32 << order, "entries")
        _, ref = peer.granted()
        for _ in range(2):
            slots = [peer.rw(READ, at % SECTORS, [(ref, 0, 0)]) for at in range(size)]
            expect(peer.statuses(*slots), [OKAY] * size, f"statuses of {size} requests")
        pfn, ref = peer.granted()
        expect(peer.status(peer.rw(READ, 80, [(ref, *WHOLE)])), OKAY, "status")
        expect(peer.read_page(pfn), content(80, 8), "data after two rounds")


@SUITE.case(
    "BLKB-010",
    "several rings",
    source="io/blkif.h, multi-queue-max-queues and multi-queue-num-queues",
    expected="each ring has its port, its requests and its responses",
    requires=("multi-queue-max-queues",),
    hostile=False,
)
def several_rings(scene: BlkBackScene) -> None:
    peer = scene.connected(queues=2)
    for queue in (0, 1, 1, 0):
        before = [ring.events for ring in peer.rings]
        expect(peer.read(queue * 16, 8, queue), content(queue * 16, 8), f"a READ of ring {queue}")
        after = [ring.events for ring in peer.rings]
        expect(after[1 - queue], before[1 - queue], f"events of ring {1 - queue}")
        expect(after[queue], before[queue] + 1, f"events of ring {queue}")
    slots = [[peer.rw(READ, 0, [(peer.granted()[1], *WHOLE)])] for _ in range(2)]
    for queue in (1, 0):
        if peer.publish(*slots[queue], queue=queue):
            peer.kick(queue)
    scene.world.run()
    for queue in (0, 1):
        ids = [one.rid for one in peer.answers(queue)]
        expect(ids, [peer.id_of(slots[queue][0])], f"responses of ring {queue}")


@SUITE.case(
    "BLKB-011",
    "a frontend of the 32-bit layout",
    source="io/blkif.h, protocol x86_32-abi; abi/kernel: 108 bytes an entry",
    expected="it is served in its own layout, or refused",
    hostile=False,
)
def layout_32(scene: BlkBackScene) -> None:
    peer = scene.waiting(protocol="x86_32-abi")
    peer.connect()
    if not peer.is_connected:
        raise Skip("it takes no x86_32-abi")
    _basics(peer)
    pfns = [peer.granted() for _ in range(11)]
    segments = [(ref, *WHOLE) for _, ref in pfns]
    slots = [peer.rw(READ, at * 8, segments) for at in range(30)]
    expect(peer.statuses(*slots), [OKAY] * 30, "statuses")
    if peer.number("feature-discard"):
        expect(peer.status(peer.discard(64, 8)), OKAY, "status of a DISCARD")
        beyond = peer.discard(SECTORS, 8)
        expect(peer.status(beyond), ERROR, "status of a DISCARD behind the end")
    if peer.number("feature-max-indirect-segments") >= 12:
        refs = [peer.granted()[1] for _ in range(12)]
        slot = peer.indirect(READ, 0, [(ref, 0, 0) for ref in refs])
        expect(peer.status(slot), OKAY, "status of an INDIRECT")


def _basics(peer: BlkPeer) -> None:
    peer.write(16, marked(3))
    expect(peer.read(16, 8), marked(3), "what was written")
    expect(peer.read(24, 8), content(24, 8), "what lies behind it")


# events


@SUITE.case(
    "BLKB-040",
    "an event comes when it was asked for, and not otherwise",
    source="io/ring.h, RING_PUSH_RESPONSES_AND_CHECK_NOTIFY",
    expected="rsp_event within what was published: an event; beyond it: none",
    hostile=False,
)
def response_events(scene: BlkBackScene) -> None:
    peer = scene.front()
    ring = peer.rings[0]
    _, ref = peer.granted()
    for at in range(8):
        before, produced = ring.events, ring.sring.rsp_prod
        asked = at % 2 == 0
        ring.sring.rsp_event = produced + 1 if asked else produced + 20
        peer.publish(peer.rw(READ, 0, [(ref, 0, 0)]))
        peer.kick()
        scene.world.run()
        expect(ring.sring.rsp_prod, produced + 1, "rsp_prod")
        expect(ring.events - before, int(asked), "events")
        peer.answers()
    ring.sring.rsp_event = ring.sring.rsp_prod + 3
    before = ring.events
    slots = [peer.rw(READ, 0, [(ref, 0, 0)]) for _ in range(2)]
    for slot in slots:
        peer.publish(slot)
        peer.kick()
        scene.world.run()
    expect(ring.events - before, 0, "events before the third response")
    peer.publish(peer.rw(READ, 0, [(ref, 0, 0)]))
    peer.kick()
    scene.world.run()
    expect(ring.events - before, 1, "events with the third response")


@SUITE.case(
    "BLKB-041",
    "a backend that sleeps has asked for an event",
    source="io/ring.h, RING_FINAL_CHECK_FOR_REQUESTS",
    expected="req_event is the request after the last that it took",
    hostile=False,
)
def request_events(scene: BlkBackScene) -> None:
    peer = scene.front()
    sring = peer.rings[0].sring
    _, ref = peer.granted()
    for burst in (1, 5, 32, 1):
        slots = [peer.rw(READ, 0, [(ref, 0, 0)]) for _ in range(burst)]
        holds(peer.publish(*slots), "the backend sleeps and wants no notice of a request")
        peer.kick()
        scene.world.run()
        expect(len(peer.answers()), burst, "responses")
        expect(sring.req_event, sring.req_prod + 1, "req_event")


@SUITE.case(
    "BLKB-042",
    "an event without a request",
    source="io/ring.h: an event is a hint",
    expected="no response, no event back, and the next request is served",
    hostile=False,
)
def event_alone(scene: BlkBackScene) -> None:
    peer = scene.front()
    ring = peer.rings[0]
    for _ in range(3):
        before = ring.events
        peer.kick()
        scene.world.run()
        expect((ring.events - before, ring.sring.rsp_prod), (0, ring.sent), "events, rsp_prod")
        expect(peer.read(8, 8), content(8, 8), "a READ after it")


@SUITE.case(
    "BLKB-043",
    "requests that come while earlier ones are served",
    source="io/ring.h, RING_FINAL_CHECK_FOR_REQUESTS",
    expected="at every notification the frontend sends the next, and none is lost",
    hostile=False,
)
def ping_pong(scene: BlkBackScene) -> None:
    peer = scene.front()
    ring = peer.rings[0]
    _, ref = peer.granted()
    got: list[int] = []

    def heard() -> None:
        ring.events += 1
        for answer in peer.answers():
            got.append(answer.status)
            if ring.sent < 100 and peer.publish(peer.rw(READ, len(got), [(ref, 0, 0)])):
                peer.kick()

    ring.channel.callback = heard
    for _ in range(3):
        peer.publish(peer.rw(READ, 0, [(ref, 0, 0)]))
    peer.kick()
    scene.world.run()
    expect(got, [OKAY] * 100, "statuses of a hundred requests")
