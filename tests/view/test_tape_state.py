"""The state of rings and stores at any moment, ends that no record tells of, and a tape's limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpv import Disk, MemoryImage, Platform, Vif
from xenpv.abi.xs import XS
from xenpv.back.ring import BackRing
from xenpv.testing.raw_world import world_raw
from xenpv.view import words
from xenpv.view.flights import Flights
from xenpv.view.history import CHECKPOINT, StoreNode
from xenpv.view.recording import recording
from xenpv.view.rings import FIRST_SLOT, REQ_PROD
from xenpv.view.slots import Slot
from xenpv.view.tape import (
    Consumption,
    Publication,
    StoreChange,
    Tape,
    TapedRing,
)
from xenpv.xen.trace import Event

U32 = 0xFFFFFFFF
SIZE = 4


def ring_of(kind: str = "netif_rx", size: int = SIZE, entry_size: int = 8) -> TapedRing:
    return TapedRing(
        number=0, machine=0, domid=1, back_domid=0, kind=kind, device="device/vif/0", queue=0,
        size=size, entry_size=entry_size, request=f"{kind}_request", response=f"{kind}_response",
        first=0, pfn=1,
    )  # fmt: skip


def published(moment: int, is_response: bool, first: int, *slots: bytes) -> Publication:
    return Publication(moment, 0, is_response, first & U32, slots, 0, 0, 0, 0)


# slots at a moment


@given(st.integers(0, U32), st.lists(st.tuples(st.booleans(), st.integers(1, SIZE)), max_size=12))
def test_slots_at_any_moment_are_what_was_published_last(
    start: int, steps: list[tuple[bool, int]]
) -> None:
    """Against a model that plays all from the beginning, over the wrap of the indices."""
    tape = Tape()
    tape.rings.append(ring_of())
    ends = [start, start]
    # By slot: (index, whether it is a response, bytes, moment): the greatest is what is there.
    states: list[dict[int, tuple[int, bool, bytes, int]]] = [{}]
    for moment, (is_response, count) in enumerate(steps):
        first = ends[is_response]
        slots = [bytes([moment, at]) for at in range(count)]
        tape.publications.append(published(moment, is_response, first, *slots))
        ends[is_response] += count
        state = dict(states[-1])
        for index, data in enumerate(slots, first):
            there = state.get(index % SIZE, (-1, False, b"", 0))
            state[index % SIZE] = max(there, (index, is_response, data, moment))
        states.append(state)
    for moment in range(len(steps)):
        found = {
            one.slot: (one.index, one.is_response, one.data, one.moment)
            for one in tape.slots_at(0, moment)
            if one.state is not Slot.EMPTY
        }
        wrapped = {slot: (at & U32, *rest) for slot, (at, *rest) in states[moment + 1].items()}
        assert found == wrapped


@given(st.lists(st.tuples(st.integers(1, SIZE), st.sampled_from([0, 1, 5, 1 << 31])), max_size=10))
def test_an_index_that_jumps_goes_on_where_it_is(steps: list[tuple[int, int]]) -> None:
    tape = Tape()
    tape.rings.append(ring_of())
    index, last = 0, {}
    for moment, (count, jump) in enumerate(steps):
        index += jump
        for at in range(count):
            last[(index + at) % SIZE] = (index + at) & U32, moment
        slots = [bytes([moment])] * count
        tape.publications.append(published(moment, False, index, *slots))
        index += count
    found = {
        one.slot: (one.index, one.moment)
        for one in tape.slots_at(0, len(steps))
        if one.state is not Slot.EMPTY
    }
    assert found == last


def test_how_far_each_slot_has_come() -> None:
    tape = Tape()
    tape.rings.append(ring_of())
    tape.publications += [
        Publication(1, 0, False, U32, (b"a", b"b", b"c"), 0, 0, 0, 0, U32, U32),
        Publication(4, 0, True, U32, (b"A",), 0, 0, 0, 0, 1, U32),
        Publication(7, 0, False, 2, (b"d",), 0, 0, 0, 0, 1, U32),
    ]
    tape.consumptions += [Consumption(2, 0, 1, U32), Consumption(5, 0, 1, 0)]
    rows = {
        0: "empty empty empty empty",
        1: "unconsumed unconsumed empty unconsumed",
        2: "in flight unconsumed empty in flight",
        3: "in flight unconsumed empty in flight",
        4: "in flight unconsumed empty answered",
        5: "in flight unconsumed empty done",
        7: "in flight unconsumed unconsumed answered",
    }
    for moment, words_ in rows.items():
        slots = tape.slots_at(0, moment)
        assert " ".join(slot.state.value for slot in slots) == words_, moment
    assert [slot.index for slot in tape.slots_at(0, 7)] == [0, 1, 2, U32]
    assert [slot.data for slot in tape.slots_at(0, 7)] == [b"b", b"c", b"d", b"A"]


def test_a_tape_that_goes_on_is_read_on() -> None:
    tape = Tape()
    tape.rings.append(ring_of())
    tape.publications.append(published(0, False, 0, b"a"))
    assert tape.slots_at(0, 9)[0].data == b"a"
    tape.publications.append(published(3, True, 0, b"A"))
    assert tape.slots_at(0, 9)[0].data == b"A"
    assert tape.slots_at(0, 2)[0].data == b"a"


# the store at a moment


def test_a_store_of_many_changes_at_any_moment() -> None:
    tape = Tape()
    state: dict[str, StoreNode] = {}
    states = []
    for moment in range(3 * CHECKPOINT + 7):
        path = f"/n{moment * 7 % 50:02}"
        value = None if moment % 5 == 4 else b"%d" % moment
        tape.changes.append(StoreChange(moment, path, value, ("n0",)))
        tape.changes.append(StoreChange(moment, path, b"other", ("n0",), machine=1))
        if value is None:
            state.pop(path, None)
        else:
            state[path] = StoreNode(value, ("n0",))
        states.append(dict(state))
        if moment % 97 == 0:
            assert tape.store_at(moment) == state
    for moment in (0, CHECKPOINT - 1, CHECKPOINT, 2 * CHECKPOINT + 1, 3 * CHECKPOINT + 6):
        found = tape.store_at(moment)
        assert found == states[moment]
        assert list(found) == sorted(found)
    assert tape.store_at(-1) == {}
    assert tape.store_at(0, machine=1) == {"/n00": StoreNode(b"other", ("n0",))}


def test_a_change_is_dated_by_its_request() -> None:
    tape = Tape()
    with Platform(seed=1, tape=tape) as xen:
        xs = xen.toolstack.xs
        xs.write("/a/b", "1")

        def body(t: int) -> None:
            xs.write("/a/c", "2", t)
            xs.write("/a/d", "3", t)

        xs.transaction(body)
        xs.rm("/a")
    paths = {change.path: change for change in tape.changes if change.path.startswith("/a")}
    assert paths["/a/c"].value is None
    rows = [
        (change.path, change.value, tape.events[change.moment].a)
        for change in tape.changes
        if change.path.startswith("/a/")
    ]
    write, end, rm = 11, 7, 13  # XS_WRITE, XS_TRANSACTION_END, XS_RM
    assert rows == [
        ("/a/b", b"", write),
        ("/a/b", b"1", write),
        ("/a/c", b"2", end),
        ("/a/d", b"3", end),
        ("/a/b", None, rm),
        ("/a/c", None, rm),
        ("/a/d", None, rm),
    ]


# ends that no record of the trace tells of


def test_an_end_that_has_the_page_alone_is_seen_when_it_sends() -> None:
    with recording() as tapes, world_raw(seed=2) as world:
        guest, dom0 = world.guest, world.platform.dom0
        pfn = guest.page()
        guest.domain.store32(pfn, 4, 1)
        guest.domain.store32(pfn, 12, 1)
        at = dom0.holes.alloc()
        dom0.gnttab.map(guest.domid, guest.grant(pfn), at)
        back = BackRing(dom0, (at,), req_size=112, rsp_size=16, kind="blkif")
        world.platform.run()
        for count in (1, 3):
            guest.domain.write(pfn, FIRST_SLOT + 112 * (count - 1), bytes([count]) * 112)
            guest.domain.store32(pfn, REQ_PROD, count)
            world.vbd.notify()
            world.platform.run()
        back.take()
        back.push(bytes(48), 3)
        tape = tapes[0]
        (ring,) = [one for one in tape.rings if one.back_domid == 0 and one.kind == "blkif"]
        mine = [one for one in tape.publications if one.ring == ring.number]
        assert [(one.is_response, one.first, len(one.slots)) for one in mine] == [
            (False, 0, 1),
            (False, 1, 2),
            (True, 0, 3),
        ]
        assert mine[1].slots[1] == bytes([3]) * 112
        assert [tape.events[one.moment].event for one in mine] == [
            Event.SEND,
            Event.SEND,
            Event.PUBLISH,
        ]
        guest.domain.store32(pfn, REQ_PROD, 1 << 20)  # more than a ring
        world.vbd.notify()
        world.vbd.notify()
        last = [one for one in tape.publications if one.ring == ring.number][3:]
        assert [(one.first, one.slots, one.req_prod) for one in last] == [(3, (), 1 << 20)]


# limits


def test_a_full_tape_keeps_what_it_has_and_counts_the_rest() -> None:
    whole, tape = Tape(), Tape(limit=900)
    digests = []
    for one in (whole, tape):
        with Platform(seed=3, tape=one) as xen:
            image = MemoryImage(bytearray(65536))
            guest = xen.create(name="web", disks=[Disk(image)], vifs=[Vif()]).start()
            guest.disks[0].read(0, 8)
            digests.append(xen.digest)
    assert digests[0] == digests[1]
    assert tape.events == whole.events[:900]
    assert tape.lost == len(whole.events) - 900
    for name in ("requests", "publications", "frames"):
        kept, all_ = getattr(tape, name), getattr(whole, name)
        assert kept == [one for one in all_ if one.moment < 900], name
    assert [c for c in tape.changes if c.moment < 899] == [
        c for c in whole.changes if c.moment < 899
    ]
    assert max(c.moment for c in tape.changes) <= 899
    assert set(tape.notes) == {moment for moment in whole.notes if moment < 900}
    window = whole.window(700, 799)
    assert window.events == whole.events[700:800]
    assert window.requests == [one for one in whole.requests if 700 <= one.moment < 800]
    assert window.changes == [one for one in whole.changes if 700 <= one.moment < 800]


# words


READ = bytes([0, 2, 0, 0, 0, 0, 0, 0, 7, *[0] * 7, 40, *[0] * 7, 9, 0, 0, 0, 1, 6]).ljust(
    112, b"\0"
)
WORDS = [
    ("blkif", "blkif_request", READ, {"operation": "BLKIF_OP_READ", "nr_segments": 2, "handle": 0, "id": 7, "sector_number": 40, "seg[0].gref": 9, "seg[0].first_sect": 1, "seg[0].last_sect": 6, "seg[1].gref": 0, "seg[1].first_sect": 0, "seg[1].last_sect": 0}),
    ("blkif", "blkif_request", bytes([5, 1, 0, 0, 0, 0, 0, 0, 7, *[0] * 7, 40, *[0] * 7, 8]).ljust(112, b"\0"), {"operation": "BLKIF_OP_DISCARD", "flag": 1, "handle": 0, "id": 7, "sector_number": 40, "nr_sectors": 8}),
    ("blkif", "blkif_request", bytes([6, 1, 1, 2, 0, 0, 0, 0, 7]).ljust(112, b"\0"), {"operation": "BLKIF_OP_INDIRECT", "indirect_op": "BLKIF_OP_WRITE", "nr_segments": 513, "id": 7, "sector_number": 0, "handle": 0, "indirect_grefs[0]": 0, "indirect_grefs[1]": 0}),
    ("blkif", "blkif_request", bytes([9]).ljust(112, b"\0"), {"operation": 9, "nr_segments": 0, "handle": 0, "id": 0, "sector_number": 0}),
    ("netif_tx", "netif_tx_request", bytes([1, 0, 0, 0, 2, 0, 0x19, 0, 3, 0, 60, 0]), {"gref": 1, "offset": 2, "flags": "NETTXF_csum_blank|NETTXF_extra_info|0x10", "id": 3, "size": 60}),
]  # fmt: skip
RESPONSES = [
    ("blkif_response", bytes([7, *[0] * 7, 1, 0, 0xFE, 0xFF]), {"id": 7, "operation": "BLKIF_OP_WRITE", "status": "BLKIF_RSP_EOPNOTSUPP"}),
    ("blkif_response", bytes([7, *[0] * 7, 1, 0, 5, 0]), {"id": 7, "operation": "BLKIF_OP_WRITE", "status": 5}),
    ("netif_tx_response", bytes([7, 0, 1, 0]), {"id": 7, "status": "NETIF_RSP_NULL"}),
    ("netif_rx_response", bytes([7, 0, 2, 0, 8, 0, 60, 0]), {"id": 7, "offset": 2, "flags": "NETRXF_extra_info", "status": 60}),
    ("netif_rx_response", bytes([7, 0, 2, 0, 0, 0, 0xFF, 0xFF]), {"id": 7, "offset": 2, "flags": 0, "status": "NETIF_RSP_ERROR"}),
    ("xen_netif_ctrl_response", bytes([7, 0, 3, 0, 2, 0, 0, 0, 0, 0, 0, 0]), {"id": 7, "type": "XEN_NETIF_CTRL_TYPE_SET_HASH_KEY", "status": "XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER", "data": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "struct", "data", "said"), WORDS)
def test_a_request_in_words(kind: str, struct: str, data: bytes, said: dict[str, object]) -> None:
    assert words.request(kind, struct, data) == said


@pytest.mark.parametrize(("struct", "data", "said"), RESPONSES)
def test_a_response_in_words(struct: str, data: bytes, said: dict[str, object]) -> None:
    assert words.response(struct, data) == said


def test_an_extra_in_words() -> None:
    gso = bytes([1, 0, 0xB4, 5, 1, 0, 0, 0])
    said = {"type": "XEN_NETIF_EXTRA_TYPE_GSO", "flags": 0}
    gso_said = {"u.gso.size": 1460, "u.gso.type": 1, "u.gso.features": 0}
    assert words.extra_info(gso) == {**said, **gso_said}
    assert words.extra_info(bytes([9, 0])) == {"type": 9, "flags": 0}


# which response answers which request


def tx(number: int, flags: int = 0) -> bytes:
    return bytes([1, 0, 0, 0, 0, 0, flags, 0, number, 0, 60, 0])


def test_responses_of_tx_answer_by_id_and_extras_after_their_packet() -> None:
    flights = Flights(ring_of("netif_tx", 8, 12))
    extra = bytes([1, 1]).ljust(12, b"\0")  # one more follows
    slots = (tx(5, 8), extra, bytes([2, 0]).ljust(12, b"\0"), tx(5), tx(9))
    sent = [flight for flight, _ in flights.requests(published(0, False, 0, *slots), 1)]
    names = [flight.name for flight in sent]
    assert names == [
        "netif_tx_request", "netif_extra_info", "netif_extra_info", *["netif_tx_request"] * 2
    ]  # fmt: skip
    null = bytes([0, 0, 1, 0]).ljust(12, b"\0")
    okay = [bytes([number, 0, 0, 0]).ljust(12, b"\0") for number in (9, 5, 5, 77)]
    answers = (okay[0], okay[1], null, null, okay[2], okay[3])
    found = [flight for flight, _ in flights.responses(published(3, True, 0, *answers))]
    assert found == [sent[4], sent[0], sent[1], sent[2], sent[3], None]
    assert [flight.answered for flight in sent] == [3] * 5
    assert flights.open == {}
    assert flights.unknown == 1


def test_responses_of_rx_answer_by_slot() -> None:
    flights = Flights(ring_of("netif_rx", 4, 8))
    slots = [bytes([number]) * 8 for number in (3, 2, 1, 0)]
    sent = [flight for flight, _ in flights.requests(published(0, False, U32, *slots), 1)]
    answers = [bytes([9]) * 8, bytes([9]) * 8]
    found = [flight for flight, _ in flights.responses(published(1, True, U32, *answers))]
    assert found == sent[:2]
    assert list(flights.open) == [1, 2]


def test_a_request_in_a_slot_that_is_in_flight_overwrites_it() -> None:
    flights = Flights(ring_of("netif_tx", 4, 12))
    first = [one for one, _ in flights.requests(published(0, False, 0, tx(1)), 1)]
    again = list(flights.requests(published(0, False, 4, tx(2)), 2))
    assert again[0] == (first[0], True)
    assert again[1][0].index == 4
    assert list(flights.open) == [4]
    assert flights.overwritten == 1
    late = bytes([1, 0, 0, 0]).ljust(12, b"\0")
    assert [one for one, _ in flights.responses(published(1, True, 0, late))] == [None]


# what the worlds of test_tape.py do not do


def test_publications_over_the_end_of_a_ring_and_of_its_indices() -> None:
    with recording() as tapes, world_raw(seed=2) as world:
        sring = world.vbd.sring
        size = sring.size
        for count in (size - 5, 9):  # the second crosses the end
            packed = b"".join(bytes([9, count, at]).ljust(112, b"\0") for at in range(count))
            sring.push(packed, count)
            world.vbd.notify()
            world.platform.run()
            sring.take()
        tape = tapes[0]
        first, second = [
            one for one in tape.publications if not one.is_response and len(one.slots[0]) == 112
        ]
        assert [slot[1:3] for slot in second.slots] == [bytes([9, at]) for at in range(9)]
        assert (first.first, second.first) == (0, size - 5)
        sring.ring.seek(U32 - 2)
        sring.push(b"".join(bytes([at]).ljust(112, b"\0") for at in range(6)), 6)
        last = tape.publications[-1]
        assert (last.first, [slot[0] for slot in last.slots]) == (U32 - 2, [0, 1, 2, 3, 4, 5])
        slots = tape.slots_at(last.ring, tape.moment)
        assert [slots[at].index for at in (size - 1, 0, 1, 2)] == [U32, 0, 1, 2]


def test_rings_of_several_queues_have_their_numbers() -> None:
    tape = Tape()
    with Platform(seed=4, dom0_vcpus=3, tape=tape) as xen:
        guest = xen.create(name="web", vcpus=3, vifs=[Vif()], personality="linux").start()
        for number in range(40):
            head = b"\xff" * 6 + guest.nets[0].mac + b"\x08\x00\x45"
            guest.nets[0].send(head + bytes([number]) * 60)
        xen.run()
    rx = [ring.queue for ring in tape.rings if ring.kind == "netif_rx"]
    assert sorted(rx) == [0, 1, 2]
    assert {ring.device for ring in tape.rings} == {"device/vif/0"}


def test_a_page_that_gets_another_backend_is_another_ring() -> None:
    with recording() as tapes, world_raw(seed=2) as world:
        guest, dom0 = world.guest, world.platform.dom0
        pfn, at = guest.page(), dom0.holes.alloc()
        dom0.gnttab.map(guest.domid, guest.grant(pfn), at)
        for count in (1, 2):
            back = BackRing(dom0, (at,), req_size=112, rsp_size=16, kind="blkif")
            guest.domain.store32(pfn, REQ_PROD, count)
            world.vbd.notify()
            del back
        rings = [one for one in tapes[0].rings if one.kind == "blkif"]
        assert len(rings) == 2


def test_permissions_are_changes_and_deaths_are_nobodys_request() -> None:
    tape = Tape()
    with Platform(seed=1, tape=tape) as xen:
        xs = xen.toolstack.xs
        xs.write("/a", "1")
        xs.connection.call(XS.SET_PERMS, b"/a\0n0\0r5\0")
        guest = xen.create(name="web", disks=[Disk(MemoryImage(bytearray(65536)))]).start()
        domid = guest.domid
        before = len(tape.changes)
        xen.hypervisor.destroy_domain(guest.created.domain)
        xen.run()
        xs.write("/b", "2")
    last = [change for change in tape.changes if change.path == "/a"][-1]
    assert (last.value, last.perms) == (b"1", ("n0", "r5"))
    assert tape.events[last.moment].a == XS.SET_PERMS
    gone = [
        change
        for change in tape.changes[before:]
        if change.value is None and change.path.startswith(f"/local/domain/{domid}/")
    ]
    assert gone
    assert all(tape.events[change.moment].event is not Event.STORE for change in gone)
    assert tape.domains[1].last is not None
    assert tape.events[tape.domains[1].last].event is Event.DOMAIN
    assert tape.domains[0].last is None


def test_frames_of_all_bridges_with_their_direction() -> None:
    """Dom0's bridges and a driver domain's, by the port and from which side."""
    frame = b"\xff" * 6 + bytes.fromhex("00163e000001") + b"\x88\xb5" + bytes(46)
    tape = Tape()
    with Platform(seed=6, tape=tape) as xen:
        xen.create(name="b", personality="linux", driver_domain=True).start()
        guest = xen.create(
            name="app", vifs=[Vif(mac="00:16:3e:00:00:01"), Vif("br0", backend="b")]
        ).start()
        xen.create(name="other", vifs=[Vif(mac="00:16:3e:00:00:02")]).start()
        for net in guest.nets:
            net.send(frame)
        xen.run()
        captured = xen.bridge("xenbr0").frames[-1]
    mine = [(one.bridge, one.port, one.is_in) for one in tape.frames if one.data == frame]
    assert captured == frame
    assert sorted(mine) == [
        ("b:br0", "vif2.1", True),
        ("xenbr0", "vif2.0", True),
        ("xenbr0", "vif3.0", False),
    ]
