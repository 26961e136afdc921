"""Responses that break the protocol: a frontend fails the request or its device, and no more."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

from xenpv.testing.cases.blkbackpeer import BlkBackPeer, Taken
from xenpv.testing.cases.blkfrontscene import SUITE, BlkFrontScene
from xenpv.testing.cases.blkpeer import (
    BARRIER,
    EOPNOTSUPP,
    ERROR,
    FLUSH,
    OKAY,
    READ,
    WRITE,
)
from xenpv.testing.cases.blkscene import content, marked
from xenpv.testing.cases.claims import expect, expect_one
from xenpv.testing.cases.toctou import changed_after_read
from xenpv.testing.ends.app import Started
from xenpv.view.rings import FIRST_SLOT

__all__ = ["SUITE"]


def held(scene: BlkFrontScene, count: int = 3) -> tuple[BlkBackPeer, list[Started], list[Taken]]:
    """A backend that holds so many reads of a page, one after the other on the disk."""
    peer = scene.back()
    peer.hold = True
    started = [scene.app.start_read(at * 8, 8) for at in range(count)]
    scene.world.run()
    return peer, started, peer.take()


def all_end(scene: BlkFrontScene, started: Sequence[Started], right: Sequence[bytes]) -> None:
    """Each ends: as failed, or with the data that the backend gave."""
    peer = scene.peers[-1]
    scene.world.run()
    if not all(one.done for one in started):
        scene.unplug()
        scene.hangs_up = False
    for one, data in zip(started, right, strict=True):
        scene.ends(one)
        if one.okay:
            expect(one.data, data, "the data of a read that succeeded")
    peer.findings.clear()


PAGES = [content(at * 8, 8) for at in range(8)]


def right(count: int) -> list[bytes]:
    return PAGES[:count]


@SUITE.case(
    "BLKF-101",
    "rsp_prod ahead of the requests",
    source="XSA-376; io/ring.h, RING_RESPONSE_PROD_OVERFLOW",
    expected="every request ends as failed; nothing is taken from the ring any more",
)
def producer_ahead(scene: BlkFrontScene) -> None:
    for ahead in (4, 33, 36, 1000, 1 << 31, 0xFFFFFFFF):
        peer, started, taken = held(scene)
        for at, sent in enumerate(taken):  # what a frontend would find that looks all the same
            peer.sring.write_slot(at, peer.response(sent.rid, READ, OKAY))
        peer.sring.rsp_prod = ahead
        peer.notify()
        scene.world.run()
        for one in started:
            expect_one(scene.ends(one).okay, (False,), "whether a read succeeded")
        scene.unplug()
    scene.hangs_up = False


@SUITE.case(
    "BLKF-102",
    "a response to a request that was never sent",
    source="XSA-376: id range and pending checked",
    expected="it survives; every request ends, none with data that nobody read",
)
def unknown_id(scene: BlkFrontScene) -> None:
    for rid in (0, 99, 1 << 31, 1 << 63, (1 << 64) - 1):
        peer, started, taken = held(scene)
        if any(one.rid == rid for one in taken):
            continue
        peer.publish(0, rid, READ, OKAY)
        peer.notify()
        scene.world.run()
        for one in started:
            expect_one(one.okay, (False, None), "whether a read that is not answered succeeded")
        all_end(scene, started, right(3))


@SUITE.case(
    "BLKF-103",
    "two responses to one request",
    source="XSA-376; spec zoo: id-completed-twice",
    expected="it survives; no other request succeeds by the second",
)
def duplicate_id(scene: BlkFrontScene) -> None:
    peer, started, taken = held(scene)
    peer.perform(taken[0])
    for _ in range(2):
        peer.publish(0, taken[0].rid, READ, OKAY)
    peer.notify()
    scene.world.run()
    expect_one(started[1].okay, (False, None), "whether the second read succeeded")
    expect_one(started[2].okay, (False, None), "whether the third read succeeded")
    all_end(scene, started, right(3))


@SUITE.case(
    "BLKF-104",
    "an id that was answered before",
    source="XSA-376",
    expected="it survives; what is in flight does not succeed by it",
)
def stale_id(scene: BlkFrontScene) -> None:
    peer, started, taken = held(scene, 1)
    peer.answer_to(taken[0])
    scene.ends(started[0], okay=True)
    later = scene.app.start_read(8, 8)
    scene.world.run()
    (fresh,) = peer.take()
    if fresh.rid != taken[0].rid:
        peer.publish(0, taken[0].rid, READ, OKAY)
        peer.notify()
        scene.world.run()
        expect_one(later.okay, (False, None), "whether the read that is not answered succeeded")
    else:
        peer.answer_to(fresh)
    all_end(scene, [later], [content(8, 8)])


@SUITE.case(
    "BLKF-105",
    "a response that names another operation",
    source="xen-blkfront: a mismatch breaks the device; XenVbd and others ignore the field",
    expected="the request ends, as failed or with its data",
)
def wrong_operation(scene: BlkFrontScene) -> None:
    for operation in (WRITE, FLUSH, 6, 77, 255):
        peer, started, taken = held(scene, 1)
        peer.perform(taken[0])
        peer.publish(0, taken[0].rid, operation, OKAY)
        peer.notify()
        all_end(scene, started, right(1))


@SUITE.case(
    "BLKF-106",
    "any status but OKAY is an error of a READ or WRITE",
    source="io/blkif.h, BLKIF_RSP_*; spec zoo: blk-eopnotsupp-success",
    expected="the program's request fails, and the next one succeeds",
)
def statuses(scene: BlkFrontScene) -> None:
    peer = scene.back()
    peer.hold = True
    for status in (ERROR, EOPNOTSUPP, 1, -3, 127, -128, 256, 32767, -32768):
        for write in (False, True):
            started = scene.app.start_write(0, marked(1)) if write else scene.app.start_read(0, 8)
            scene.world.run()
            (taken,) = peer.take()
            peer.answer_to(taken, status)
            scene.ends(started, okay=False)
    peer.hold = False
    expect(scene.read(0, 8), content(0, 8), "a read afterwards")


@SUITE.case(
    "BLKF-107",
    "one of the requests of a long transfer fails",
    source="win-xenvbd: the last status that is not OKAY wins; an error is not forgotten",
    expected="the program's transfer fails, whichever it was and in whichever order",
)
def one_of_many(scene: BlkFrontScene) -> None:
    peer = scene.back()
    peer.hold = True
    for place in (0, 1, -1):
        for backwards in (False, True):
            started = scene.app.start_read(0, 300)
            scene.world.run()
            while taken := peer.take() or list(peer.in_flight):
                bad = taken[place] if place < len(taken) else taken[0]
                for one in reversed(taken) if backwards else taken:
                    peer.answer_to(one, ERROR if one is bad else OKAY)
                scene.world.run()
            scene.ends(started, okay=False)
    peer.hold = False
    expect(scene.read(0, 300), content(0, 300), "a read afterwards")


@SUITE.case(
    "BLKF-108",
    "a flush that fails, or is not supported after all",
    source="io/blkif.h: EOPNOTSUPP of a feature; blkfront and XenVbd stop to use it",
    expected="ERROR fails it; EOPNOTSUPP ends it, perhaps after a barrier, and not for ever",
)
def flush_fails(scene: BlkFrontScene) -> None:
    for status in (ERROR, EOPNOTSUPP):
        peer = scene.back(keys={"feature-barrier": "1"})
        peer.hold = True
        started = scene.app.start_flush()
        scene.world.run()
        sent = []
        for _ in range(4):
            for one in peer.take():
                sent.append(one.operation)
                peer.answer_to(one, status)
            scene.world.run()
        scene.ends(started, okay=False if status == ERROR else None)
        expect_one(sent, ([FLUSH], [FLUSH, BARRIER]), "operations that it tried")


@SUITE.case(
    "BLKF-109",
    "an INDIRECT that is not supported after all",
    source="io/blkif.h, EOPNOTSUPP",
    expected="the transfer fails, or is sent again as direct requests and has its data",
    requires=("indirect",),
)
def indirect_unsupported(scene: BlkFrontScene) -> None:
    peer = scene.back({"feature-max-indirect-segments": "32"})
    peer.hold = True
    started = scene.app.start_read(0, 200)
    scene.world.run()
    for _ in range(8):
        for one in peer.take():
            peer.answer_to(one, EOPNOTSUPP if one.indirect else OKAY)
        scene.world.run()
    all_end(scene, [started], [content(0, 200)])


RESPONSE_CHANGES = {  # offset in the entry, what is there later
    "id": (0, b"\xff" * 8),
    "status": (10, struct.pack("<h", ERROR)),
}


@SUITE.case(
    "BLKF-110",
    "a response whose bytes change once they were read",
    source="XSA-376, XSA-155's mirror: copy the response once",
    expected="what was read is believed: the request ends with its data",
)
def response_changes(scene: BlkFrontScene) -> None:
    for field, (offset, data) in RESPONSE_CHANGES.items():
        peer, started, taken = held(scene, 1)
        sring = peer.sring
        at = FIRST_SLOT + sring.rsp_prod % sring.size * sring.entry_size + offset
        peer.perform(taken[0])
        peer.in_flight.clear()
        with changed_after_read(scene.world.platform, peer.domain, sring.pfns[0], at, data):
            peer.publish(0, taken[0].rid, READ, OKAY)
            scene.world.run()
        expect(scene.ends(started[0], okay=True).data, content(0, 8), f"data, {field} changed")


@SUITE.case(
    "BLKF-111",
    "no byte of a response is read twice",
    source="XSA-376; XSA-155",
    expected="between two deliveries the frontend loads each byte once",
)
def double_fetches(scene: BlkFrontScene) -> None:
    from xenpv.testing.access import AccessLog

    peer, started, taken = held(scene, 8)
    with AccessLog(scene.world.platform) as log:
        for number, one in enumerate(taken):
            peer.answer_to(one, (OKAY, ERROR, EOPNOTSUPP)[number % 3])
        scene.world.run()
        found = [one for one in log.double_fetches() if one.actor != 0 and one.in_slot]
    expect([str(one) for one in found], [], "double fetches")
    for each in started:
        scene.ends(each)


@SUITE.case(
    "BLKF-112",
    "responses of random bytes",
    source="XSA-376",
    expected="it survives; every request ends once, none with data that nobody read",
)
def random_responses(scene: BlkFrontScene) -> None:
    chance = random.Random(376)
    for round_ in range(6):
        peer, started, taken = held(scene)
        for _ in range(chance.randint(1, 3)):
            rid = chance.choice([taken[0].rid, chance.getrandbits(64), chance.getrandbits(3)])
            status = chance.choice([ERROR, EOPNOTSUPP, 5, -1000])
            peer.publish(0, rid, chance.getrandbits(8), status)
        if round_ % 2:
            peer.sring.rsp_prod = peer.sring.rsp_prod + chance.randint(0, 3)
        peer.notify()
        scene.world.run()
        for one in started:
            expect_one(one.okay, (False, None), "whether a read succeeded")
        all_end(scene, started, right(3))


@SUITE.case(
    "BLKF-113",
    "rsp_prod moves on, and no response was written",
    source="XSA-376: what lies in the entry is the frontend's own request",
    expected="it survives; no read succeeds by it",
)
def no_response(scene: BlkFrontScene) -> None:
    for count in (1, 3):
        peer, started, _ = held(scene)
        peer.sring.rsp_prod = peer.sring.rsp_prod + count
        peer.notify()
        scene.world.run()
        for one in started:
            expect_one(one.okay, (False, None), "whether a read that is not answered succeeded")
        all_end(scene, started, right(3))


@SUITE.case(
    "BLKF-114",
    "one request of a transfer is answered as often as it has requests",
    source="XSA-376; spec zoo: id-completed-twice",
    expected="the transfer does not succeed before each of its requests was answered",
)
def counts_answers(scene: BlkFrontScene) -> None:
    peer = scene.back()
    peer.hold = True
    started = scene.app.start_read(0, 176)
    scene.world.run()
    taken = peer.take()
    if len(taken) > 1:
        peer.perform(taken[0])
        for _ in taken:
            peer.publish(0, taken[0].rid, READ, OKAY)
        peer.notify()
        scene.world.run()
        expect_one(started.okay, (False, None), "whether the read succeeded")
    all_end(scene, [started], [content(0, 176)])
