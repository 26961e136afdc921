"""Rings, events, keys and states that no frontend should show: a backend outlives them."""

from __future__ import annotations

from xenpv.testing.cases.blkclaims import lives
from xenpv.testing.cases.blkpeer import OKAY, READ, WHOLE, WRITE, BlkPeer
from xenpv.testing.cases.blkscene import SUITE, BlkBackScene, content, marked
from xenpv.testing.cases.claims import expect, expect_one, holds

__all__ = ["SUITE"]


def looks_dead(scene: BlkBackScene, peer: BlkPeer, produced: int, what: str) -> None:
    """Nothing is answered, however often the backend is told."""
    for _ in range(4):
        peer.kick()
        scene.world.run()
    expect(peer.rings[0].sring.rsp_prod, produced, f"rsp_prod after {what}")


@SUITE.case(
    "BLKB-140",
    "req_prod further ahead than the ring has entries",
    source="CVE-2010-4247; io/ring.h, RING_REQUEST_PROD_OVERFLOW",
    expected="nothing of the ring is served any more; the device still closes, and connects again",
)
def producer_ahead(scene: BlkBackScene) -> None:
    for ahead in (33, 34, 1000, 1 << 31, 0xFFFFFFFF):
        peer = scene.connected()
        sring = peer.rings[0].sring
        _, ref = peer.granted()
        for at in range(32):
            sring.write_slot(at, peer.rw(READ, 0, [(ref, 0, 0)]))
        sring.req_prod = ahead
        looks_dead(scene, peer, 0, f"req_prod {ahead:#x}")
        scene.close_device()
        peer.state = 1
        scene.world.run()
        peer.connect()
        expect(peer.backend_key("state"), "4", "its state after a new handshake")
        lives(peer)


@SUITE.case(
    "BLKB-141",
    "req_prod that goes back",
    source="io/ring.h, RING_REQUEST_PROD_OVERFLOW",
    expected="what was answered is not served again",
)
def producer_back(scene: BlkBackScene) -> None:
    peer = scene.front()
    _, ref = peer.granted()
    expect(
        peer.statuses(*(peer.rw(READ, 0, [(ref, 0, 0)]) for _ in range(3))), [OKAY] * 3, "status"
    )
    peer.rings[0].sring.req_prod = 1
    looks_dead(scene, peer, 3, "req_prod went from 3 to 1")


@SUITE.case(
    "BLKB-142",
    "the frontend writes rsp_prod",
    source="io/ring.h: rsp_prod_pvt is the backend's own",
    expected="the next response is where it belongs, and rsp_prod is right again",
)
def response_producer(scene: BlkBackScene) -> None:
    peer = scene.front()
    sring = peer.rings[0].sring
    _, ref = peer.granted()
    for garbage in (1000, 0xFFFFFFFF, 0, 1 << 31):
        produced = peer.rings[0].sent
        sring.rsp_prod = garbage
        slot = peer.rw(READ, 0, [(ref, 0, 0)])
        peer.publish(slot)
        peer.kick()
        scene.world.run()
        expect(sring.rsp_prod, produced + 1, "rsp_prod")
        (answer,) = peer.layout.responses(sring.slot(produced)[: peer.layout.response_size])
        expect(answer, (peer.id_of(slot), READ, OKAY), "the response")


@SUITE.case(
    "BLKB-143",
    "event indices of any value",
    source="io/ring.h: req_event and rsp_event are hints to the other end",
    expected="every request is answered when the backend is told of it",
)
def event_indices(scene: BlkBackScene) -> None:
    peer = scene.front()
    sring = peer.rings[0].sring
    _, ref = peer.granted()
    for value in (0, 5, 1 << 31, 0xFFFFFFFF):
        sring.req_event = sring.rsp_event = value
        slot = peer.rw(READ, 0, [(ref, 0, 0)])
        peer.publish(slot)
        peer.kick()
        scene.world.run()
        expect([one.rid for one in peer.answers()], [peer.id_of(slot)], "ids of the responses")


@SUITE.case(
    "BLKB-144",
    "a storm of events",
    source="XSA-332 / CVE-2020-27673; XSA-391",
    expected="the world comes to rest, and requests are served during and after it",
)
def event_storm(scene: BlkBackScene) -> None:
    peer = scene.front()
    for at in range(300):
        peer.kick()
        if at % 3 == 0:
            scene.world.platform.loop.advance(100_000)
        if at % 60 == 0:
            expect(peer.read(8, 8), content(8, 8), f"a READ after {at} events")
    scene.world.run()
    lives(peer)


@SUITE.case(
    "BLKB-145",
    "the frontend closes its port while it is connected",
    source="event_channel.h: the other end of a closed port is unbound",
    expected="the backend survives, and gives everything back when it is told to close",
)
def port_closed(scene: BlkBackScene) -> None:
    peer = scene.front()
    _, ref = peer.granted()
    peer.publish(peer.rw(READ, 0, [(ref, 0, 0)]))
    peer.kick()
    peer.guest.evtchn.close(peer.rings[0].channel)
    scene.world.run()
    peer.detach()


@SUITE.case(
    "BLKB-146",
    "the ring's reference is rewritten while it is mapped",
    source="XSA-396's mirror: a mapping holds, whatever the entry says later",
    expected="requests are served by the mapping that is there, or not at all; then all is closed",
)
def ring_reference_gone(scene: BlkBackScene) -> None:
    peer = scene.front()
    ref = peer.rings[0].refs[0]
    peer.guest.set_grant(ref, flags=0)
    _, other = peer.granted()
    slot = peer.rw(READ, 0, [(other, 0, 0)])
    got = peer.send(slot)
    holds(len(got) <= 1, f"{len(got)} responses to one request")


@SUITE.case(
    "BLKB-147",
    "a data page's reference is rewritten in flight",
    source="grant_table.h: an entry in use keeps its mapping",
    expected="one response, and nothing stays mapped",
)
def data_reference_gone(scene: BlkBackScene) -> None:
    peer = scene.front()
    before = peer.mapped
    for flags in (0, 1, 5):
        _, ref = peer.granted()
        slot = peer.rw(WRITE, 400, [(ref, *WHOLE)])
        peer.publish(slot)
        peer.kick()
        peer.guest.set_grant(ref, flags=flags, pfn=peer.rings[0].sring.pfn)
        scene.world.run()
        expect([one.rid for one in peer.answers()], [peer.id_of(slot)], "ids of the responses")
        expect(peer.mapped, before, "references that are mapped")
    lives(peer)


# keys

JUNK = ("", " ", "x", "-1", "0x3e7", "4294967296", "18446744073709551616", "9" * 300)


def refuses(scene: BlkBackScene, keys: dict[str, str | None], queues: int = 1) -> None:
    """It does not connect by these keys, holds nothing, and then connects by good ones."""
    peer = scene.waiting(queues=queues)
    peer.attach()
    peer.announce(keys)
    scene.world.run()
    holds(peer.backend_key("state") != "4", f"it is Connected by {keys}")
    scene.nothing_held()
    scene.close_device()
    for key in keys:
        peer.remove_key(key)
    peer.state = 1
    scene.world.run()
    peer.connect()
    expect(peer.backend_key("state"), "4", f"its state after {keys} and good keys")
    lives(peer)


@SUITE.case(
    "BLKB-150",
    "ring references that are none",
    source="xen-blkback/xenbus.c, read_per_ring_refs",
    expected="no connection, nothing held; good keys after a close connect",
)
def junk_ring_ref(scene: BlkBackScene) -> None:
    for text in (None, *JUNK, "0", "1000"):
        refuses(scene, {"ring-ref": text})


@SUITE.case(
    "BLKB-151",
    "event channels that are none",
    source="xen-blkback/xenbus.c, read_per_ring_refs; bind_interdomain",
    expected="no connection, nothing held; good keys after a close connect",
)
def junk_event_channel(scene: BlkBackScene) -> None:
    for text in (None, *JUNK, "0", "1000"):
        refuses(scene, {"event-channel": text})


@SUITE.case(
    "BLKB-152",
    "a protocol that nobody knows",
    source="xen-blkback/xenbus.c: unknown fe protocol; QEMU takes it for native",
    expected="no connection, or one in the layout of x86_64; nothing but requests is believed",
)
def junk_protocol(scene: BlkBackScene) -> None:
    for text in ("x86_16-abi", "X86_64-ABI", "x" * 200):
        peer = scene.waiting()
        peer.connect({"protocol": text})
        if peer.is_connected:
            lives(peer)
        scene.close_device()


@SUITE.case(
    "BLKB-153",
    "ring-page-order beyond what is offered",
    source="io/blkif.h, max-ring-page-order; xen-blkback/xenbus.c",
    expected="no connection, and no thousand references are looked for",
    requires=("max-ring-page-order",),
)
def junk_page_order(scene: BlkBackScene) -> None:
    for text in ("5", "31", "32", "63", "99", "2147483647"):
        refuses(scene, {"ring-page-order": text})


@SUITE.case(
    "BLKB-154",
    "numbers of queues that were not offered",
    source="io/blkif.h, multi-queue-num-queues; xen-blkback/xenbus.c",
    expected="no connection; nothing held",
    requires=("multi-queue-max-queues",),
)
def junk_queues(scene: BlkBackScene) -> None:
    most = scene.front().number("multi-queue-max-queues")
    for number in (0, most + 1, 65536, 2147483647):
        refuses(scene, {"multi-queue-num-queues": str(number)})


@SUITE.case(
    "BLKB-155",
    "one of two rings is missing",
    source="io/blkif.h: queue-N/ring-ref, queue-N/event-channel",
    expected="no connection, and the ring that is there is given back",
    requires=("multi-queue-max-queues",),
)
def ring_missing(scene: BlkBackScene) -> None:
    for key in ("queue-1/ring-ref", "queue-1/event-channel", "queue-0/ring-ref"):
        refuses(scene, {key: None}, queues=2)


@SUITE.case(
    "BLKB-156",
    "keys that change while it is connected",
    source="io/blkif.h: keys are read once, at Initialised",
    expected="the ring that is mapped is served as before",
)
def keys_change(scene: BlkBackScene) -> None:
    peer = scene.front()
    for key, text in (
        ("ring-ref", "0"),
        ("event-channel", "0"),
        ("protocol", "x86_32-abi"),
        ("ring-page-order", "4"),
        ("multi-queue-num-queues", "2"),
        ("feature-persistent", "1"),
        ("state", "4"),
        ("unknown", "x"),
    ):
        peer.write_key(key, text)
        scene.world.run()
        expect(peer.read(8, 8), content(8, 8), f"a READ after {key} changed")
    peer.write(32, marked(3))
    expect(peer.read(32, 8), marked(3), "what was written")


# states


@SUITE.case(
    "BLKB-160",
    "states in any order",
    source="XSA-350 / CVE-2020-29569: rapid toggling used a freed thread",
    expected="it survives, holds nothing at the end, and connects again",
)
def toggles(scene: BlkBackScene) -> None:
    peer = scene.front()
    orders = ((5, 4), (6, 3), (1, 3, 5, 3), (4, 6, 4), (3, 3, 3), (5, 6, 5, 6, 1), (2, 4), (7, 8))
    for order in orders:
        _, ref = peer.granted()
        if peer.rings[0].channel.active:
            peer.rings[0].sring.write_slot(0, peer.rw(READ, 0, [(ref, 0, 0)]))
            peer.kick()
        for state in order:
            peer.state = state
        scene.world.run()
    scene.close_device()
    peer.state = 1
    scene.world.run()
    peer.connect()
    expect(peer.backend_key("state"), "4", "its state after a new handshake")
    lives(peer)


@SUITE.case(
    "BLKB-161",
    "a state that is none",
    source="io/xenbus.h, XenbusState; xenbus_read_driver_state: anything else is Unknown",
    expected="it survives; nothing of the guest is mapped once the frontend is Closed",
)
def junk_state(scene: BlkBackScene) -> None:
    for text in ("", "x", "-1", "9", "99", "4294967300", "4x", "9" * 1000):
        peer = scene.connected()
        peer.write_key("state", text)
        scene.world.run()
        peer.kick()
        scene.world.run()
        peer.state = 6
        scene.world.run()
        scene.nothing_held()
    scene.hangs_up = False


@SUITE.case(
    "BLKB-162",
    "the frontend's directory goes",
    source="xen-blkback: XenbusStateUnknown unregisters the device",
    expected="pages and ports are given back",
)
def directory_gone(scene: BlkBackScene) -> None:
    peer = scene.front()
    expect(peer.read(0, 8), content(0, 8), "a READ")
    peer.remove_key("")
    scene.world.run()
    scene.nothing_held()
    scene.hangs_up = False


@SUITE.case(
    "BLKB-163",
    "Closed at once, without Closing",
    source="xen-blkback/xenbus.c, frontend_changed: Closed disconnects as well",
    expected="the backend is Closed, and holds nothing",
)
def closed_at_once(scene: BlkBackScene) -> None:
    peer = scene.front()
    _, ref = peer.granted()
    peer.publish(*(peer.rw(READ, 0, [(ref, 0, 0)]) for _ in range(5)))
    peer.kick()
    peer.state = 6
    scene.world.run()
    expect_one(peer.backend_key("state"), ("6",), "its state")
    scene.nothing_held()


@SUITE.case(
    "BLKB-164",
    "a new connection without a close",
    source="xen-blkback/xenbus.c: Initialised again while it is not Connected; XSA-350",
    expected="it stays with the ring that it has or takes the new one, and holds one at most",
)
def reconnect_without_close(scene: BlkBackScene) -> None:
    peer = scene.front()
    before = peer.mapped
    old = peer.rings[0]
    new = peer._ring()
    peer.write_key("ring-ref", str(new.refs[0]))
    peer.write_key("event-channel", str(new.channel.port))
    peer.state = 3
    scene.world.run()
    holds(peer.mapped <= before, f"{peer.mapped} references are mapped, {before} before")
    holds(old.channel.active, "the old port is still the frontend's")
    peer.rings.append(new)


@SUITE.case(
    "BLKB-165",
    "a ring whose indices cannot be when it is announced",
    source="blkback.c: req_prod - rsp_prod > size at attach",
    expected="no connection, or a ring that is not served; nothing else suffers",
)
def indices_that_cannot_be(scene: BlkBackScene) -> None:
    peer = scene.waiting()
    peer.attach()
    sring = peer.rings[0].sring
    _, ref = peer.granted()
    for at in range(32):
        sring.write_slot(at, peer.rw(READ, 0, [(ref, 0, 0)]))
    sring.req_prod, sring.rsp_prod = 100, 1
    peer.announce()
    scene.world.run()
    if not peer.is_connected:
        return
    looks_dead(scene, peer, 1, "a ring 99 requests ahead")


@SUITE.case(
    "BLKB-166",
    "a flood of the frontend's keys",
    source="XSA-349 / CVE-2020-29568: a watch's events are taken together",
    expected="the world comes to rest, and requests are served during and after it",
)
def key_flood(scene: BlkBackScene) -> None:
    peer = scene.front()
    for at in range(300):
        peer.write_key("state", "4")
        peer.write_key(f"junk-{at % 7}", "x" * (at % 50))
        if at % 100 == 0:
            expect(peer.read(8, 8), content(8, 8), f"a READ after {at} writes")
    scene.world.run()
    lives(peer)


@SUITE.case(
    "BLKB-167",
    "a frontend that says another backend is its own",
    source="XSA-175, XSA-178: nothing that a guest can write leads to a backend",
    expected="the backend serves as before, and closes with this frontend",
)
def other_backend(scene: BlkBackScene) -> None:
    peer = scene.front()
    for key, text in (
        ("backend", "/local/domain/0/backend/vif/1/0"),
        ("backend", ""),
        ("backend-id", "32752"),
        ("frontend-id", "0"),
        ("virtual-device", "x"),
    ):
        peer.write_key(key, text)
        scene.world.run()
        expect(peer.read(8, 8), content(8, 8), f"a READ after {key} is {text!r}")


@SUITE.case(
    "BLKB-168",
    "slots in another layout than the frontend told",
    source="io/blkif.h, protocol: 112 bytes an entry, or 108",
    expected="whatever is answered, no more than was sent; nothing stays mapped",
)
def layouts_mixed(scene: BlkBackScene) -> None:
    peer = scene.waiting()
    peer.connect({"protocol": "x86_32-abi"})
    if not peer.is_connected:
        return
    before = peer.mapped
    _, ref = peer.granted()
    sring = peer.rings[0].sring
    for at in range(8):
        sring.write_slot(at, peer.rw(READ, at, [(ref, 0, 0)]))
    sring.req_prod = 8
    for _ in range(3):
        peer.kick()
        scene.world.run()
    holds(sring.rsp_prod <= 8, f"{sring.rsp_prod} responses to 8 requests")
    expect(peer.mapped, before, "references that are mapped")
