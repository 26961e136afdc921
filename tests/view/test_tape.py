"""A tape holds all that happened, and recording it changes nothing."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.view.worlds import WORLDS
from xenpv import Platform
from xenpv.store.permission import Permissions
from xenpv.view.recording import recording
from xenpv.view.rings import is_by_hand, rings
from xenpv.view.slots import Slot
from xenpv.view.tape import Tape
from xenpv.xen.trace import Event

U32 = 0xFFFFFFFF


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_tape_changes_no_digest(world: str) -> None:
    plain = [platform.digest for platforms in WORLDS[world]() for platform in platforms]
    with recording() as tapes:
        taped = [platform.digest for platforms in WORLDS[world]() for platform in platforms]
    assert taped == plain
    assert len(tapes) == 1
    assert tapes[0].lost == 0


def check_events(tape: Tape) -> None:
    assert [event.time_ns for event in tape.events] == sorted(e.time_ns for e in tape.events)
    counts = Counter(event.event for event in tape.events)
    assert counts[Event.STORE] == len(tape.requests)
    assert counts[Event.NOTE] == len(tape.notes)
    for request in tape.requests:
        event = tape.events[request.moment]
        assert (event.event, event.domid, event.a) == (Event.STORE, request.domid, request.op)
        assert event.machine == request.machine
    for event in tape.events:
        if event.event is Event.DELIVER:
            assert tape.tasks[event.machine, event.a].name


def check_publications(tape: Tape) -> None:
    """Each PUBLISH record has its publication with as many slots."""
    by_moment = {one.moment: one for one in tape.publications if one.slots}
    for moment, event in enumerate(tape.events):
        if event.event is Event.PUBLISH and event.b:
            publication = by_moment[moment]
            ring = tape.rings[publication.ring]
            assert len(publication.slots) == event.b
            assert event.machine == ring.machine
            assert event.domid == (ring.back_domid if publication.is_response else ring.domid)
            word = publication.rsp_prod if publication.is_response else publication.req_prod
            assert (publication.first + event.b) & U32 == word
            assert {len(slot) for slot in publication.slots} == {ring.entry_size}
    for ring in tape.rings:
        assert ring.kind in ("blkif", "netif_tx", "netif_rx", "xen_netif_ctrl")
        assert ring.device.startswith("device/vbd/" if ring.kind == "blkif" else "device/vif/")
        assert tape.events[ring.first].event is Event.PUBLISH


def check_store(tape: Tape, xen: Platform) -> None:
    tree = xen.xenstored.tree
    real = {
        path.decode(): (node.value, texts(node.perms))
        for path, node in (*tree.nodes.items(), *tree.special.items())
    }
    kept = tape.store_at(tape.moment, xen.hypervisor.number)
    found = {path: (node.value, node.perms) for path, node in kept.items()}
    assert found == dict(sorted(real.items()))
    assert list(found) == sorted(real)


def texts(perms: Permissions) -> tuple[str, ...]:
    return tuple(text.decode() for text in perms.texts())


def check_rings(tape: Tape, xen: Platform) -> None:
    """At the end the tape's slots are the memory's, and its indices the ends'."""
    seen = 0
    for ring in rings(xen.hypervisor):
        taped = [
            one
            for one in tape.rings
            if (one.machine, one.domid) == (xen.hypervisor.number, ring.domid)
            and ring.front is not None
            and one.pfn == ring.front.pfns[0]
        ]
        if not taped:
            continue
        seen += 1
        slots = tape.slots_at(taped[-1].number, tape.moment)
        assert len(slots) == ring.size
        for slot in slots:
            if slot.state is not Slot.EMPTY:
                assert slot.data == ring.slot(slot.index), ring.name
        assert ring.front is not None
        assert ring.back is not None
        states = Counter(slot.state for slot in slots)
        if is_by_hand(ring.front.handle):  # its consumer is not where its responses are
            states[Slot.ANSWERED] = ring.back.index - ring.front.cons & U32
        unconsumed = ring.front.index - ring.back.cons & U32
        assert states[Slot.UNCONSUMED] == unconsumed
        assert states[Slot.IN_FLIGHT] == (ring.front.index - ring.back.index & U32) - unconsumed
        assert states[Slot.ANSWERED] == ring.back.index - ring.front.cons & U32
    assert seen


def test_a_tape_has_all_that_happened(world: str) -> None:
    with recording() as tapes:
        for platforms in WORLDS[world]():
            tape = tapes[0]
            check_events(tape)
            check_publications(tape)
            for platform in platforms:
                check_store(tape, platform)
                if world != "migration" or platform is platforms[1]:
                    check_rings(tape, platform)
