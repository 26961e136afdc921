"""Mistakes planted into our block drivers, one at a time, each with a case that must see it.

None of them is an entry of the zoo. `server`: the backend serves request by request, where most
of what it does is in one place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import pytest

from xenpv.abi.xenbus import XenbusState as State
from xenpv.back import blkback, blkkeys, blkprofile, blkring, blkrules, blkserver, blkthread
from xenpv.back.blkdata import BlkData
from xenpv.back.blkpages import BlkPages
from xenpv.back.persistent import PersistentGrants
from xenpv.errors import LocalProtocolError, PeerProtocolError
from xenpv.vbd import advertisement, backend, drain, frontend, medium, preparer, segments
from xenpv.vbd import bounce as bounces
from xenpv.vbd import ring as frontring
from xenpv.vbd.granter import Granter
from xenpv.vbd.srb import SrbStatus

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]
PLANTS: dict[str, tuple[Plant, tuple[str, ...]]] = {}


def sees(*cases: str) -> Callable[[Plant], Plant]:
    """A plant, and the cases that fail with it."""

    def add(plant: Plant) -> Plant:
        PLANTS[plant.__name__] = (plant, cases)
        return plant

    return add


def server(mp: Patch) -> None:
    mp.setattr(blkprofile.Settings, "batches", property(lambda _self: False))


def wrap(mp: Patch, where: Any, name: str, change: Callable[..., Any]) -> None:
    """`change` gets what was there before its arguments."""
    before = getattr(where, name)
    mp.setattr(where, name, lambda *args, **kw: change(before, *args, **kw))


def linux_walk(mp: Patch, changes: dict[tuple[State, State], Any]) -> None:
    for pair, step in changes.items():
        mp.setitem(blkprofile.LINUX.walk, pair, step)


def rules(mp: Patch, **changes: Any) -> None:
    """Other rules than Linux', request by request."""
    server(mp)

    def change(old: Any, self: Any, *args: Any, **kw: Any) -> None:
        old(self, *args, **kw)
        self.rules = attrs.evolve(self.rules, **changes)

    wrap(mp, blkserver.BlkServer, "__init__", change)


# the backend: keys and states


@sees("BLKB-001", "BLKB-034")
def sectors_one_too_many(mp: Patch) -> None:
    wrap(mp, blkkeys, "sectors_of", lambda old, vbd, units: old(vbd, units) + 1)


@sees("BLKB-002", "BLKB-108")
def readonly_forgotten(mp: Patch) -> None:
    old = blkring.Vbd.of
    mp.setattr(
        blkring.Vbd,
        "of",
        lambda image, *, readonly, discard: old(image, readonly=False, discard=discard),
    )


@sees("BLKB-003")
def waits_for_initialised_alone(mp: Patch) -> None:
    for own in blkprofile.UNCONNECTED:
        mp.delitem(blkprofile.LINUX.walk, (own, State.CONNECTED))


@sees("BLKB-004")
def never_waits_again(mp: Patch) -> None:
    mp.delitem(blkprofile.LINUX.walk, (State.CLOSED, State.INITIALISING))


@sees("BLKB-005")
def stays_when_it_is_not_online(mp: Patch) -> None:
    def change(old: Any, self: Any, state: State) -> None:
        if self.device.online:
            old(self, state)

    mp.setitem(blkback._STEPS, blkprofile.Step.CLOSED, partial(change, blkback.Blkback._closed))


@sees("BLKB-008")
def order_needs_to_be_positive(mp: Patch) -> None:
    def change(old: Any, device: Any, profile: Any) -> Any:
        if device.frontend_get("ring-page-order") == "0":
            raise PeerProtocolError("ring-page-order is 0")
        return old(device, profile)

    wrap(mp, blkkeys, "read_ring_refs", change)


@sees("BLKB-009")
def order_taken_for_a_count(mp: Patch) -> None:
    def change(old: Any, device: Any, profile: Any) -> Any:
        names = old(device, profile)
        return names[: names.index("ring-ref2")] if "ring-ref2" in names else names

    wrap(mp, blkkeys, "read_ring_refs", change)


@sees("BLKB-010")
def second_queue_reads_the_first_port(mp: Patch) -> None:
    def change(old: Any, device: Any, profile: Any, prefix: str, names: Any) -> Any:
        first = "queue-0/" if prefix else ""
        keys = old(device, profile, prefix, names)
        return type(keys)(keys.grefs, old(device, profile, first, names).port)

    wrap(mp, blkkeys, "_read_ring", change)


@sees("BLKB-011")
def discard_of_32_bits_by_the_wide_layout(mp: Patch) -> None:
    def change(old: Any, self: Any, vbd: Any, first: int, end: int) -> Any:
        for index in range(first, end):
            self._verdicts[index] = blkring.ERROR if self.abi.is_x86_32 else 0

    wrap(mp, blkring.BlkRing, "_discard", change)
    mp.setitem(blkring._OPERATIONS, blkring.DISCARD, blkring.BlkRing._discard)


# the backend: what moves


@sees("BLKB-020")
def reads_fill_the_page(mp: Patch) -> None:
    server(mp)

    def change(old: Any, self: Any, requests: Any, disk: Any, data: Any) -> Any:
        for request in requests:
            for page in self._opened.get(request, ()):
                self._domain.write(page.pfn, 0, bytes(4096))
        return old(self, requests, disk, data)

    wrap(mp, BlkData, "store", change)


@sees("BLKB-021")
def writes_a_sector_more(mp: Patch) -> None:
    server(mp)

    def change(old: Any, self: Any, requests: Any, disk: Any) -> Any:
        data = old(self, requests, disk)
        return data + bytes(512) if requests[0].length < 4096 else data

    wrap(mp, BlkData, "load", change)


@sees("BLKB-022", "BLKB-028")
def segments_sorted_by_reference(mp: Patch) -> None:
    server(mp)

    def change(old: Any, abi: Any, raw: Any) -> Any:
        request = old(abi, raw)
        request.segments = tuple(sorted(request.segments))
        return request

    wrap(mp, blkserver, "parse", change)


@sees("BLKB-023")
def ids_of_32_bits(mp: Patch) -> None:
    server(mp)

    def change(old: Any, abi: Any, raw: Any) -> Any:
        request = old(abi, raw)
        request.rid &= 0xFFFFFFFF
        return request

    wrap(mp, blkserver, "parse", change)


@sees("BLKB-025", "BLKB-027")
def responses_of_a_pass_have_one_id(mp: Patch) -> None:
    server(mp)

    def change(old: Any, self: Any) -> Any:
        for request, _ in self._done:
            request.rid = self._done[0][0].rid
        return old(self)

    wrap(mp, blkserver.BlkServer, "_answer", change)


@sees("BLKB-111")
def references_of_31_bits(mp: Patch) -> None:
    """What is negative is no reference, and needs no page."""
    server(mp)

    def change(old: Any, abi: Any, raw: Any) -> Any:
        request = old(abi, raw)
        request.segments = tuple(one for one in request.segments if not one[0] >> 31)
        if not request.segments and request.operation <= blkring.WRITE:
            request.operation = request.inner = blkring.FLUSH_DISKCACHE
        return request

    wrap(mp, blkserver, "parse", change)


@sees("BLKB-024")
def responses_name_no_operation(mp: Patch) -> None:
    server(mp)

    def change(old: Any, self: Any) -> Any:
        for request, _ in self._done:
            request.inner = 0
        return old(self)

    wrap(mp, blkserver.BlkServer, "_answer", change)


@sees("BLKB-025", "BLKB-009")
def last_entry_never_taken(mp: Patch) -> None:
    server(mp)

    def take(self: Any) -> None:
        size = self.abi.request_size
        count, raw = self.ring.take(self.ring.size - 1 - self.ring.in_flight)
        for at in range(0, count * size, size):
            self._waiting.append(blkrules.parse(self.abi, raw[at : at + size]))
        if count == self.ring.size - 1:
            self.ring.take(1)  # and lost

    mp.setattr(blkserver.BlkServer, "_take", take)


@sees("BLKB-026")
def last_sector_out_of_reach(mp: Patch) -> None:
    server(mp)
    mp.setattr(
        blkrules.Geometry,
        "of",
        classmethod(
            lambda cls, vbd, units: cls(
                size=(vbd.sectors - 1) * 512,
                sector=vbd.image.sector_size,
                request_unit=512,
                segment_unit=512,
                aligned=units.aligned,
                readonly=vbd.readonly,
            )
        ),
    )


@sees("BLKB-027")
def neighbours_by_reference(mp: Patch) -> None:
    """Pages whose references follow one another are taken for one piece (XSA-229)."""
    server(mp)

    def change(old: Any, self: Any, requests: Any, disk: Any) -> Any:
        for request in requests:
            pages = self._opened[request]
            if len({page.ref for page in pages}) == len(pages):
                self._opened[request] = sorted(pages, key=lambda page: page.ref)
        return old(self, requests, disk)

    wrap(mp, BlkData, "_pieces", change)


@sees("BLKB-029")
def indirect_as_long_as_direct(mp: Patch) -> None:
    rules(mp, indirect_max=11)


@sees("BLKB-031")
def flush_drops_its_data(mp: Patch) -> None:
    server(mp)

    def flush(self: Any, io: Any) -> int:
        self._disk.image.flush()
        return 0

    mp.setitem(blkserver._PERFORM, blkserver.Kind.FLUSH, flush)


@sees("BLKB-032")
def barrier_drops_its_data(mp: Patch) -> None:
    mp.setitem(blkring._OPERATIONS, blkring.WRITE_BARRIER, lambda *_args: None)


@sees("BLKB-033")
def discard_one_sector_longer(mp: Patch) -> None:
    def change(old: Any, self: Any, vbd: Any, sector: int, count: int) -> Any:
        return old(vbd, sector, count + (count == 8))

    wrap(mp, blkring.BlkRing, "_discard_one", change)


@sees("BLKB-035", "BLKB-112", "BLKB-147")
def one_page_stays_mapped(mp: Patch) -> None:
    server(mp)
    wrap(mp, BlkPages, "_give_back", lambda old, self, pages: old(self, pages[:-1]))


@sees("BLKB-036")
def kept_page_of_another_reference(mp: Patch) -> None:
    def change(old: Any, self: Any, ref: int) -> Any:
        return old(self, ref - ref % 2)

    wrap(mp, PersistentGrants, "get", change)


# the backend: events


@sees("BLKB-040")
def always_notifies(mp: Patch) -> None:
    def change(old: Any, self: Any, count: int) -> None:
        old(self, count)
        self._send(self.port)

    wrap(mp, blkring.BlkRing, "_answer", change)


@sees("BLKB-042")
def answers_events_with_events(mp: Patch) -> None:
    def change(old: Any, self: Any, vbd: Any) -> Any:
        more = old(self, vbd)
        if self.spurious == 1:
            self._send(self.port)
        return more

    wrap(mp, blkring.BlkRing, "service", change)


# the backend: hostile requests


@sees("BLKB-101", "BLKB-135")
def unknown_operations_dropped(mp: Patch) -> None:
    server(mp)

    def change(old: Any, self: Any) -> Any:
        known = self.rules.operations
        self._done[:] = [one for one in self._done if one[0].operation in known]
        return old(self)

    wrap(mp, blkserver.BlkServer, "_answer", change)


@sees("BLKB-103")
def no_segments_no_answer(mp: Patch) -> None:
    server(mp)

    def change(old: Any, self: Any) -> Any:
        self._done[:] = [
            one for one in self._done if one[0].nr_segments or one[0].operation > blkring.WRITE
        ]
        return old(self)

    wrap(mp, blkserver.BlkServer, "_answer", change)


@sees("BLKB-106")
def a_flush_beyond_the_end_has_no_data(mp: Patch) -> None:
    def change(old: Any, self: Any, vbd: Any, first: int, end: int) -> None:
        for index in range(first, end):
            self._verdicts[index] = self._sectors[index] = 0
        old(self, vbd, first, end)

    for operation in (blkring.FLUSH_DISKCACHE, blkring.WRITE_BARRIER):
        mp.setitem(blkring._OPERATIONS, operation, partial(change, blkring.BlkRing._flush))


@sees("BLKB-107")
def a_discard_is_cut_off_at_the_end(mp: Patch) -> None:
    def change(old: Any, self: Any, vbd: Any, sector: int, count: int) -> Any:
        return old(vbd, min(sector, vbd.sectors), max(0, min(count, vbd.sectors - sector)))

    wrap(mp, blkring.BlkRing, "_discard_one", change)


@sees("BLKB-109")
def discard_that_was_not_offered(mp: Patch) -> None:
    old = blkring.Vbd.of
    mp.setattr(
        blkring.Vbd, "of",
        lambda image, *, readonly, discard: old(image, readonly=readonly, discard=not readonly),
    )  # fmt: skip
    mp.setattr(
        blkkeys, "OF_DISK", {**blkkeys.OF_DISK, "feature-discard": lambda _offer, _vbd: None}
    )


@sees("BLKB-110")
def unknown_flags_wipe_more(mp: Patch) -> None:
    server(mp)

    def change(old: Any, abi: Any, raw: Any) -> Any:
        request = old(abi, raw)
        if request.operation == blkring.DISCARD and raw[1]:
            request.nr_sectors += 1
        return request

    wrap(mp, blkserver, "parse", change)


@sees("BLKB-111", "BLKB-134")
def bad_references_are_fine(mp: Patch) -> None:
    wrap(mp, blkring, "blk_copy", lambda old, *args: _cleared(old, *args))


def _cleared(old: Any, *args: Any) -> int:
    result: int = old(*args)
    verdicts = args[0].verdicts
    for index in range(args[1], args[2]):
        verdicts[index] = 0
    return min(result, 0) if result >= 0 else result


@sees("BLKB-112")
def an_error_that_is_forgotten(mp: Patch) -> None:
    """What is mapped is written, what is not is left out (XSA-365)."""
    server(mp)

    def change(old: Any, self: Any, requests: Any) -> list[bool]:
        opened = []
        for request in requests:
            pages = self.pages.map([(ref, True) for ref, _, _ in request.segments])
            both = [(page, one) for page, one in zip(pages, request.segments, strict=True) if page]
            request.segments = tuple(one for _, one in both)
            self._opened[request] = [page for page, _ in both]
            request.length = sum(last - first + 1 for _, first, last in request.segments) * 512
            opened.append(True)
        return opened

    wrap(mp, BlkData, "open", change)


@sees("BLKB-113")
def maps_everything_read_only(mp: Patch) -> None:
    """A READ that could not be stored is answered OKAY."""
    server(mp)
    wrap(mp, BlkData, "open", lambda old, self, requests: [True] * len(requests))
    wrap(mp, BlkData, "store", lambda old, *_args: True)
    wrap(mp, BlkData, "load", lambda old, self, requests, disk: bytearray(requests[0].length))


@sees("BLKB-121")
def indirect_of_anything_is_a_write(mp: Patch) -> None:
    rules(mp, first=(blkrules.COUNT,))

    def change(old: Any, abi: Any, raw: Any) -> Any:
        request = old(abi, raw)
        if request.operation == blkring.INDIRECT and request.inner:
            request.inner = blkring.WRITE
        return request

    wrap(mp, blkserver, "parse", change)


@sees("BLKB-122")
def tables_that_are_not_there_are_empty(mp: Patch) -> None:
    server(mp)

    def change(old: Any, self: Any, requests: Any) -> list[bool]:
        return [True for _ in old(self, requests)]

    wrap(mp, BlkData, "fetch_tables", change)


@sees("BLKB-123", "BLKB-131")
def tables_read_when_they_are_needed(mp: Patch) -> None:
    """Once to check, once more to move the data (XSA-155)."""
    server(mp)

    def change(old: Any, self: Any, requests: Any, disk: Any, data: Any) -> Any:
        moved = old(self, requests, disk, data)
        tables = [one for one in requests if one.table]
        if tables and self.fetch_tables(tables):
            for one in tables:
                if any(first > last for _, first, last in one.segments):
                    return False
                self.close([one])
                if not all(self.open([one])):
                    return False
            return old(self, requests, disk, data)
        return moved

    wrap(mp, BlkData, "store", change)


@sees("BLKB-136")
def alignment_unchecked(mp: Patch) -> None:
    rules(mp, then=(blkrules.BOUNDS, blkrules.READONLY, blkrules.RANGE))


# the backend: hostile rings, keys and states


@sees("BLKB-141")
def goes_back_with_the_producer(mp: Patch) -> None:
    from xenpv.abi._kernel import lib

    def change(old: Any, self: Any, vbd: Any) -> Any:
        ring = self.ring
        shared = ring.domain.load32(ring.pfns[0], 0)
        if (shared - ring.req_cons) & 0xFFFFFFFF > ring.size:
            lib.ring_seek(ring.handle, shared - 1, shared - 1)
        return old(self, vbd)

    wrap(mp, blkring.BlkRing, "service", change)


@sees("BLKB-142")
def believes_the_shared_producer(mp: Patch) -> None:
    from xenpv.abi._kernel import lib

    def change(old: Any, self: Any, vbd: Any) -> Any:
        ring = self.ring
        shared = ring.domain.load32(ring.pfns[0], 8)
        lib.ring_seek(ring.handle, shared, ring.req_cons)
        return old(self, vbd)

    wrap(mp, blkring.BlkRing, "service", change)


@sees("BLKB-143")
def sleeps_by_the_shared_event_index(mp: Patch) -> None:
    def change(old: Any, self: Any, vbd: Any) -> Any:
        ring = self.ring
        if (ring.domain.load32(ring.pfns[0], 4) - ring.req_cons - 1) & 0xFFFFFFFF > ring.size:
            return False
        return old(self, vbd)

    wrap(mp, blkring.BlkRing, "service", change)


@sees("BLKB-144")
def sleeps_for_ever_after_a_storm(mp: Patch) -> None:
    def change(old: Any, self: Any, spurious: int) -> None:
        self.task.hold()

    wrap(mp, blkthread.Queue, "_defer", change)


@sees("BLKB-145")
def a_dead_port_escapes(mp: Patch) -> None:
    from xenpv.errors import HypercallError

    def change(old: Any, self: Any) -> None:
        old(self)
        port = self.driver.device.domain.evtchn.ports[self.ring.port]
        if port.remote is None:
            raise HypercallError(22, "send")

    wrap(mp, blkthread.Queue, "run", change)


@sees("BLKB-150", "BLKB-151")
def junk_numbers_escape(mp: Patch) -> None:
    def change(old: Any, device: Any, profile: Any, key: str) -> int:
        return int(device.frontend_get(key) or "")

    wrap(mp, blkkeys, "_number", change)


@sees("BLKB-152")
def unknown_protocol_is_32_bits(mp: Patch) -> None:
    def change(old: Any, device: Any, profile: Any) -> Any:
        try:
            return old(device, profile)
        except PeerProtocolError:
            return blkkeys.PROTOCOLS["x86_32-abi"]

    wrap(mp, blkkeys, "read_protocol", change)


@sees("BLKB-153")
def any_page_order(mp: Patch) -> None:
    def change(old: Any, device: Any, profile: Any) -> Any:
        order = device.frontend_number("ring-page-order", -1)
        return ("ring-ref",) if order > 4 else old(device, profile)

    wrap(mp, blkkeys, "read_ring_refs", change)


@sees("BLKB-154")
def any_number_of_queues(mp: Patch) -> None:
    def change(old: Any, device: Any, profile: Any, units: Any, most: int) -> Any:
        count = device.frontend_number("multi-queue-num-queues", 1)
        if not 0 < count <= most:
            return old(device, profile, units, 1 << 31) if count == 1 else _one(old, device)
        return old(device, profile, units, most)

    def _one(old: Any, device: Any) -> Any:
        profile, units = blkprofile.LINUX, blkprofile.LINUX.units
        port = blkkeys._read_ring(device, profile, "", ("ring-ref",))
        abi = blkkeys.read_protocol(device, profile)
        del old, units
        return blkkeys.FrontKeys(abi=abi, persistent=False, large=False, rings=(port,))

    wrap(mp, blkback, "read_front", change)


@sees("BLKB-155")
def the_first_ring_is_forgotten(mp: Patch) -> None:
    def change(old: Any, self: Any) -> None:
        if self.device.broken or self.device.state is State.CONNECTED or not self.queues:
            old(self)
        elif len(self.queues) == 1 and self.device.frontend_get("multi-queue-num-queues") == "2":
            self.queues.clear()
        else:
            old(self)

    def refuse(old: Any, device: Any, profile: Any, prefix: str, names: Any) -> Any:
        try:
            return old(device, profile, prefix, names)
        except PeerProtocolError:
            return blkkeys.RingKeys((0,), 0)

    wrap(mp, blkback.Blkback, "_disconnect", change)
    wrap(mp, blkkeys, "_read_ring", refuse)


@sees("BLKB-156", "BLKB-164")
def connects_whenever_it_is_told(mp: Patch) -> None:
    for seen in (State.INITIALISED, State.CONNECTED):
        mp.setitem(blkprofile.LINUX.walk, (State.CONNECTED, seen), blkprofile.Step.CONNECT)
    wrap(mp, blkback.Blkback, "_disconnect", lambda old, self: None)


@sees("BLKB-160")
def a_closed_ring_is_kept(mp: Patch) -> None:
    wrap(mp, blkthread.Queue, "_unmap", lambda old, self: None)


@sees("BLKB-162")
def a_frontend_that_goes_is_not_missed(mp: Patch) -> None:
    for own in blkprofile.OWN:
        mp.delitem(blkprofile.LINUX.walk, (own, State.UNKNOWN))


@sees("BLKB-163")
def closed_needs_closing_before(mp: Patch) -> None:
    mp.delitem(blkprofile.LINUX.walk, (State.CONNECTED, State.CLOSED))


@sees("BLKB-165")
def takes_a_ring_that_is_ahead(mp: Patch) -> None:
    from xenpv.abi._kernel import lib

    old = lib.ring_resume

    def change(handle: Any) -> int:
        result: int = old(handle)
        if result < 0:
            lib.ring_seek(handle, 1, 68)
        return 0

    from xenpv.back import ring

    class Lib:
        def __getattr__(self, name: str) -> Any:
            return change if name == "ring_resume" else getattr(lib, name)

    mp.setattr(ring, "lib", Lib())


@sees("BLKB-030")
def a_flush_is_an_empty_write(mp: Patch) -> None:
    mp.setitem(blkring._OPERATIONS, blkring.FLUSH_DISKCACHE, lambda *_args: None)


@sees("BLKB-037")
def a_kept_page_serves_one_request(mp: Patch) -> None:
    """The mapping of one that is in use already is taken for its own, and goes with it."""

    def change(old: Any, self: Any, ref: int) -> Any:
        page = self._pages.get(ref)
        if page is not None and page.active:
            raise AssertionError(f"reference {ref} is in use")
        return old(self, ref)

    wrap(mp, PersistentGrants, "get", change)


@sees("BLKB-050", "BLKB-051")
def failed_reads_are_okay(mp: Patch) -> None:
    def change(old: Any, self: Any, move: Any, extent: Any) -> None:
        old(self, move, extent)
        for index in range(extent[3], extent[4]):
            self._verdicts[index] = 0

    wrap(mp, blkring.BlkRing, "_transfer", change)


@sees("BLKB-052")
def one_bad_write_fails_the_pass(mp: Patch) -> None:
    def change(old: Any, self: Any, vbd: Any, first: int, end: int) -> None:
        old(self, vbd, first, end)
        if any(self._verdicts[first:end]):
            for index in range(first, end):
                self._verdicts[index] = blkring.ERROR

    mp.setitem(blkring._OPERATIONS, blkring.WRITE, partial(change, blkring.BlkRing._write))


@sees("BLKB-053", "BLKB-054")
def failed_flushes_are_okay(mp: Patch) -> None:
    def change(old: Any, self: Any, vbd: Any, first: int, end: int) -> None:
        old(self, vbd, first, end)
        for index in range(first, end):
            self._verdicts[index] = 0

    mp.setitem(
        blkring._OPERATIONS, blkring.FLUSH_DISKCACHE, partial(change, blkring.BlkRing._flush)
    )


@sees("BLKB-055")
def a_discard_that_fails_writes_zeros(mp: Patch) -> None:
    def change(old: Any, self: Any, vbd: Any, sector: int, count: int) -> Any:
        status = old(vbd, sector, count)
        if status and sector + count <= vbd.sectors:
            vbd.image.write_from(memoryview(bytes(count * 512)), sector * 512)
            return 0
        return status

    wrap(mp, blkring.BlkRing, "_discard_one", change)


@sees("BLKB-166")
def every_look_at_the_state_is_answered(mp: Patch) -> None:
    def change(old: Any, self: Any, state: State) -> None:
        old(self, state)
        if state is State.CONNECTED:
            self.seen = self.device.write("seen", "1")
            key = f"{self.device.frontend}/state"
            self.device.store.write(key, "4")

    wrap(mp, blkback.Blkback, "frontend_changed", change)


@sees("BLKB-167")
def follows_the_frontend_s_own_word(mp: Patch) -> None:
    def change(old: Any, self: Any, vbd: Any) -> Any:
        device = self.task_owner.device
        if device.frontend_get("backend") != device.path:
            raise PeerProtocolError("it is another's")
        return old(self, vbd)

    def connect(old: Any, driver: Any, *args: Any, **kw: Any) -> Any:
        queue = old(driver, *args, **kw)
        queue.ring.task_owner = driver
        return queue

    wrap(mp, blkring.BlkRing, "service", change)
    wrap(mp, blkback, "connect", connect)


@sees("BLKB-168")
def answers_until_the_page_ends(mp: Patch) -> None:
    """What is no request of its layout is answered twice."""

    def change(old: Any, self: Any, count: int) -> None:
        old(self, count)
        if self.abi.is_x86_32 and any(self._verdicts[:count]):
            ring = self.ring
            ring.domain.store32(ring.pfns[0], 8, ring.rsp_prod + count)

    wrap(mp, blkring.BlkRing, "_answer", change)


@sees("BLKB-043")
def every_tenth_event_is_lost(mp: Patch) -> None:
    seen = [0]

    def change(old: Any, self: Any) -> None:
        seen[0] += 1
        if seen[0] % 10:
            old(self)

    wrap(mp, blkthread.Queue, "run", change)


@sees("BLKB-105")
def sectors_of_55_bits(mp: Patch) -> None:
    server(mp)

    def change(old: Any, self: Any, request: Any) -> None:
        old(self, request)
        request.offset &= (1 << 64) - 1

    wrap(mp, blkrules.Geometry, "place", change)


@sees("BLKB-114")
def a_spoilt_ring_escapes(mp: Patch) -> None:
    def change(old: Any, self: Any, queue: Any, why: str) -> None:
        raise AssertionError(why)

    wrap(mp, blkback.Blkback, "ring_broken", change)


@sees("BLKB-146")
def answers_what_was_answered(mp: Patch) -> None:
    """A grant entry that changed makes it map the ring once more, and begin anew."""
    from xenpv.abi._kernel import lib

    def change(old: Any, self: Any, vbd: Any) -> Any:
        refs = self.granter.kernel
        if not lib.grant_entry_flags(refs, self.ring_ref):
            raise AssertionError("the ring's reference went")
        return old(self, vbd)

    def connect(old: Any, driver: Any, keys: Any, *args: Any, **kw: Any) -> Any:
        queue = old(driver, keys, *args, **kw)
        queue.ring.ring_ref = keys.grefs[0]
        return queue

    wrap(mp, blkring.BlkRing, "service", change)
    wrap(mp, blkback, "connect", connect)


@sees("BLKB-161", "BLKB-162")
def an_unknown_state_escapes(mp: Patch) -> None:
    def change(self: Any, state: State) -> None:
        raise LocalProtocolError(f"a frontend of state {state}")

    mp.setitem(blkback._STEPS, blkprofile.Step.GONE, change)


# the frontend


@sees("BLKF-001")
def ring_granted_read_only(mp: Patch) -> None:
    def change(old: Any, self: Any, pfn: int, readonly: bool) -> Any:
        return old(self, pfn, True) if not self.granted else old(self, pfn, readonly)

    wrap(mp, Granter, "permit", change)


@sees("BLKF-004")
def tells_an_order_that_it_has_not(mp: Patch) -> None:
    def change(old: Any, front: Any, order: int) -> Any:
        keys = old(front, order)
        return {**keys, "ring-page-order": 2} if order else keys

    wrap(mp, advertisement, "_keys", change)


@sees("BLKF-131")
def order_beyond_the_offer(mp: Patch) -> None:
    def change(old: Any, self: Any, *args: Any) -> None:
        old(self, *args)
        self.max_ring_page_order += 1

    wrap(mp, backend.Backend, "read_features", change)


@sees("BLKF-005")
def queues_beyond_the_offer(mp: Patch) -> None:
    wrap(mp, frontend.Frontend, "_shape", lambda old, self: (2, old(self)[1]))


@sees("BLKF-010", "BLKF-107")
def second_request_a_sector_late(mp: Patch) -> None:
    def change(old: Any, self: Any, part: Any, pieces: Any, count: int) -> Any:
        request = old(self, part, pieces, count)
        if part.offset:
            slot = bytearray(request.slot)
            slot[16:24] = (part.sector + 1).to_bytes(8, "little")
            request.slot = bytes(slot)
        return request

    wrap(mp, preparer.Preparer, "_request", change)


@sees("BLKF-010", "BLKF-011")
def every_transfer_twice(mp: Patch) -> None:
    def change(old: Any, self: Any, part: Any) -> Any:
        if part.offset:
            return old(self, part)
        part.srb.outstanding += 1
        return old(self, part) + old(self, part)

    wrap(mp, preparer.Preparer, "_transfer", change)


@sees("BLKF-016")
def indirect_beyond_the_offer(mp: Patch) -> None:
    def change(old: Any, self: Any, *args: Any) -> None:
        old(self, *args)
        if self.indirect_segments:
            self.indirect_segments = 4096

    wrap(mp, backend.Backend, "_read_early", change)


@sees("BLKF-017")
def indirect_by_default(mp: Patch) -> None:
    def change(old: Any, self: Any, *args: Any) -> None:
        old(self, *args)
        self.indirect_segments = self.indirect_segments or 32

    wrap(mp, backend.Backend, "_read_early", change)


@sees("BLKF-018")
def flush_whatever_is_offered(mp: Patch) -> None:
    def change(old: Any, self: Any, part: Any) -> Any:
        self.frontend.backend.flush_cache = True
        return old(self, part)

    wrap(mp, preparer.Preparer, "_flush", change)


@sees("BLKF-019")
def discard_whatever_is_offered(mp: Patch) -> None:
    wrap(mp, backend.Backend, "_read_discard", lambda old, self, *args: setattr(self, "discard", 1))


@sees("BLKF-020")
def readonly_not_looked_at(mp: Patch) -> None:
    mp.setattr(backend.Backend, "is_readonly", property(lambda _self: False))


@sees("BLKF-021")
def sectors_of_32_bits(mp: Patch) -> None:
    def change(old: Any, target: Any, srb: Any, operation: int, lba: int, count: int) -> None:
        old(target, srb, operation, lba & 0xFFFFFFFF, count)

    wrap(mp, medium, "transfer", change)


@sees("BLKF-022")
def sector_numbers_of_the_disk(mp: Patch) -> None:
    def change(old: Any, self: Any, part: Any, pieces: Any, count: int) -> Any:
        request = old(self, part, pieces, count)
        ratio = self._ratio()
        slot = bytearray(request.slot)
        slot[16:24] = (part.sector // ratio).to_bytes(8, "little")
        request.slot = bytes(slot)
        return request

    wrap(mp, preparer.Preparer, "_request", change)


@sees("BLKF-023")
def trusts_everybody(mp: Patch) -> None:
    wrap(
        mp, bounces, "bounce_of", lambda old, granter, persistent, _: old(granter, persistent, True)
    )
    wrap(
        mp,
        frontring,
        "bounce_of",
        lambda old, granter, persistent, _: old(granter, persistent, True),
    )


@sees("BLKF-013", "BLKF-002")
def grants_never_end(mp: Patch) -> None:
    wrap(mp, Granter, "revoke_all", lambda old, self, refs, pfns: True)


@sees("BLKF-014")
def answers_in_the_order_of_requests(mp: Patch) -> None:
    def change(old: Any, self: Any, front: Any) -> Any:
        ids = sorted(self.submitted)
        before = self.submitted

        class InOrder(dict):  # type: ignore[type-arg]  # a table that ignores the key
            def pop(self, rid: int, default: Any = None) -> Any:
                return before.pop(ids.pop(0), default) if rid in before else default

        self.submitted = InOrder(before)
        try:
            return old(self, front)
        finally:
            self.submitted = before

    wrap(mp, frontring.Ring, "_complete", change)


@sees("BLKF-015")
def full_ring_forgotten(mp: Patch) -> None:
    def change(old: Any, self: Any, front: Any) -> Any:
        old(self, front)
        self.queue.clear()

    wrap(mp, frontring.Ring, "_submit", change)


@sees("BLKF-031")
def always_sends_an_event(mp: Patch) -> None:
    def change(old: Any, self: Any, front: Any) -> Any:
        old(self, front)
        self.frontend.bus.evtchn.send(self.channel)

    wrap(mp, frontring.Ring, "_submit", change)


@sees("BLKF-011")
def long_writes_lose_their_last_sector(mp: Patch) -> None:
    def change(old: Any, self: Any, part: Any) -> Any:
        if part.operation == 1 and part.nr_sectors > 8:
            part.nr_sectors -= 1
        return old(self, part)

    wrap(mp, preparer.Preparer, "_transfer", change)


@sees("BLKF-012")
def all_pages_writable(mp: Patch) -> None:
    wrap(mp, Granter, "permit", lambda old, self, pfn, readonly: old(self, pfn, False))
    wrap(mp, Granter, "permit_run", lambda old, self, pfn, n, readonly: old(self, pfn, n, False))


@sees("BLKF-032", "BLKF-030")
def looks_at_one_response_an_event(mp: Patch) -> None:
    def change(old: Any, self: Any, front: Any) -> Any:
        batch, self.batch = self.batch, 1
        try:
            old(self, front)
        finally:
            self.batch = batch
        return False

    wrap(mp, frontring.Ring, "_complete", change)


# the frontend on a hostile backend


@sees("BLKF-101", "BLKF-110")
def believes_what_lies_in_the_entry(mp: Patch) -> None:
    """Whatever rsp_prod says, and read where it lies."""

    def change(old: Any, self: Any, front: Any) -> Any:
        domain = self.frontend.domain
        prod = domain.load32(front.pfns[0], 8)
        for at in range(min(prod, 3)):
            place = 64 + at * 112
            rid = domain.load32(front.pfns[0], place)
            domain.load32(front.pfns[0], place + 8)
            if domain.load32(front.pfns[0], place) == rid and rid in self.submitted:
                self._finish(self.submitted.pop(rid), 0)
        return False

    wrap(mp, frontring.Ring, "_complete", change)


@sees("BLKF-103", "BLKF-104")
def ids_of_what_is_over_end_the_next(mp: Patch) -> None:
    def change(old: Any, self: Any, rid: int) -> None:
        if self.submitted and rid < min(self.submitted):
            self._finish(self.submitted.pop(min(self.submitted)), 0)

    wrap(mp, frontring.Ring, "_late", change)


@sees("BLKF-105")
def operations_that_are_none_escape(mp: Patch) -> None:
    from xenpv.abi.blkif import BLKIF_OP

    def change(old: Any, self: Any, front: Any) -> Any:
        for at in range(front.size):
            place = 64 + at * 112
            if domain_read(self, front, place):
                BLKIF_OP(self.frontend.domain.read(front.pfns[0], place + 8, 1)[0])
        return old(self, front)

    def domain_read(self: Any, front: Any, place: int) -> bool:
        end = min(place + 16, 4096)
        return end - place == 16 and self.frontend.domain.read(front.pfns[0], place, 2) == b"\1\0"

    wrap(mp, frontring.Ring, "_complete", change)


@sees("BLKF-111")
def reads_the_status_once_more(mp: Patch) -> None:
    def change(old: Any, self: Any, front: Any) -> Any:
        more = old(self, front)
        for at in range(8):
            self.frontend.domain.read(front.pfns[0], 64 + at * 112 + 10, 2)
        return more

    wrap(mp, frontring.Ring, "_complete", change)


@sees("BLKF-113")
def what_lies_in_the_entry_is_an_answer(mp: Patch) -> None:
    def change(old: Any, self: Any, rid: int) -> None:
        if self.submitted and rid >> 16 & 0xFFFF == self.frontend.handle:
            first = next(iter(self.submitted))
            self._finish(self.submitted.pop(first), 0)

    wrap(mp, frontring.Ring, "_late", change)


@sees("BLKF-138")
def changes_too_often(mp: Patch) -> None:
    looks: dict[Any, int] = {}

    def change(old: Any, self: Any) -> None:
        looks[self] = looks.get(self, 0) + 1
        if looks[self] > 2:
            raise PeerProtocolError("its backend changes too often")
        old(self)

    wrap(mp, frontend.Frontend, "read_disk", change)


@sees("BLKF-120")
def goes_on_from_the_shared_producer(mp: Patch) -> None:
    from xenpv.abi._kernel import lib

    def change(old: Any, self: Any, front: Any) -> Any:
        shared = self.frontend.domain.load32(front.pfns[0], 0)
        if shared > 64:
            lib.ring_seek(front.handle, shared, shared)
        return old(self, front)

    wrap(mp, frontring.Ring, "_submit", change)


@sees("BLKF-121")
def a_producer_that_goes_back_escapes(mp: Patch) -> None:
    seen: dict[Any, int] = {}

    def change(old: Any, self: Any, front: Any) -> Any:
        shared = self.frontend.domain.load32(front.pfns[0], 8)
        assert shared >= seen.get(front, 0), "responses went"
        seen[front] = shared
        return old(self, front)

    wrap(mp, frontring.Ring, "_complete", change)


@sees("BLKF-122")
def sleeps_by_the_shared_event_index_too(mp: Patch) -> None:
    def change(old: Any, self: Any, front: Any) -> Any:
        event = self.frontend.domain.load32(front.pfns[0], 12)
        prod = self.frontend.domain.load32(front.pfns[0], 8)
        return False if (event - prod) & 0xFFFFFFFF > front.size else old(self, front)

    wrap(mp, frontring.Ring, "_complete", change)


@sees("BLKF-102", "BLKF-112")
def unknown_ids_end_the_oldest(mp: Patch) -> None:
    def change(old: Any, self: Any, rid: int) -> None:
        if not self.submitted:
            return
        first = next(iter(self.submitted))
        self._finish(self.submitted.pop(first), 0)

    wrap(mp, frontring.Ring, "_late", change)


@sees("BLKF-106")
def statuses_by_their_low_byte(mp: Patch) -> None:
    def change(old: Any, self: Any, request: Any, status: int) -> Any:
        return old(self, request, -1 if status & 0xFF else 0)

    wrap(mp, frontring.Ring, "_outcome", change)


@sees("BLKF-107")
def an_okay_forgives_an_error(mp: Patch) -> None:
    def change(old: Any, self: Any, request: Any, status: int) -> Any:
        outcome = old(self, request, status)
        if outcome is SrbStatus.SUCCESS:
            request.srb.outcome = SrbStatus.SUCCESS
        return outcome

    wrap(mp, frontring.Ring, "_outcome", change)


@sees("BLKF-108")
def a_flush_for_ever(mp: Patch) -> None:
    wrap(mp, preparer.Preparer, "forget", lambda old, self, request: None)


@sees("BLKF-109")
def indirect_not_supported_is_done(mp: Patch) -> None:
    def change(old: Any, self: Any, request: Any, status: int) -> Any:
        return old(self, request, 0 if request.indirect and status == -2 else status)

    wrap(mp, frontring.Ring, "_finish", change)


@sees("BLKF-123")
def events_without_answers_are_too_many(mp: Patch) -> None:
    def change(old: Any, self: Any, front: Any) -> Any:
        before = len(self.submitted)
        more = old(self, front)
        self.idle_events = getattr(self, "idle_events", 0) + (len(self.submitted) == before)
        if self.idle_events > 40:
            raise PeerProtocolError("events without answers")
        return more

    wrap(mp, frontring.Ring, "_complete", change)


@sees("BLKF-124", "BLKF-125")
def a_mapped_page_is_used_again(mp: Patch) -> None:
    wrap(mp, Granter, "holds", lambda old, self, pfn, count: False)


@sees("BLKF-130")
def sector_size_believed(mp: Patch) -> None:
    def change(old: Any, self: Any, store: Any, path: str, names: Any) -> None:
        try:
            old(self, store, path, names)
        except PeerProtocolError:
            self.sectors = 2048
            self.sector_size = backend.number(store.get(f"{path}/sector-size") or "512")

    wrap(mp, backend.Backend, "_read_disk", change)


@sees("BLKF-131")
def no_queue_is_none(mp: Patch) -> None:
    def change(old: Any, self: Any, *args: Any) -> None:
        old(self, *args)
        store, path = args
        if store.get(f"{path}/multi-queue-max-queues") == "0":
            raise LocalProtocolError("no queue")

    wrap(mp, backend.Backend, "read_features", change)


@sees("BLKF-132", "BLKF-133", "BLKF-139")
def gives_up_at_any_change(mp: Patch) -> None:
    def change(old: Any, self: Any) -> None:
        self.fail("a key changed")

    wrap(mp, frontend.Frontend, "read_disk", change)


@sees("BLKF-134", "BLKF-002")
def never_closes(mp: Patch) -> None:
    wrap(mp, frontend.Frontend, "_close", lambda old, self: None)


@sees("BLKF-135")
def junk_states_escape(mp: Patch) -> None:
    from xenpv.bus import handshake

    def change(old: Any, text: str | None) -> Any:
        return State(int(text or ""))

    wrap(mp, handshake, "parse_state", change)


@sees("BLKF-136", "BLKF-003")
def waits_for_every_answer(mp: Patch) -> None:
    mp.setattr(drain.Drain, "_backend_answers", lambda _self: True)
    mp.setattr(drain, "ROUNDS", 1 << 30)
    mp.setattr(drain.Drain, "_round", lambda self: None)


@sees("BLKF-137")
def copies_the_whole_page_out(mp: Patch) -> None:
    def change(old: Any, self: Any, bounce: Any) -> None:
        domain = bounce.granter.domain
        for pfn, (first, last) in zip(
            self.pfns, zip(self.bounds[::2], self.bounds[1::2], strict=True), strict=False
        ):
            page = domain.read(pfn, 0, 4096)
            domain.write(pfn, 0, page[512:] + page[:512] if last - first < 7 else page)
        old(self, bounce)

    wrap(mp, segments.Segments, "copy_out", change)


# Entries of the zoo, where those are the mistake.
ZOO = {
    "ring-reinit-at-attach": ("BLKB-006", "BLKB-007"),
    "ring-back-no-final-check": ("BLKB-041",),
    "blk-nr-segments-unchecked": ("BLKB-102",),
    "blk-first-after-last": ("BLKB-104",),
    "blk-indirect-overrun": ("BLKB-120",),
    "blk-double-fetch-nr-segments": ("BLKB-130", "BLKB-132"),
    "blk-persistent-leak": ("BLKB-038",),
    "ring-response-leak": ("BLKB-133",),
    "id-completed-twice": ("BLKF-114",),
    "ring-prod-unbounded-back": ("BLKB-140",),
}
