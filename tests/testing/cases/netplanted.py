"""Mistakes that are planted in our own network drivers, each with the case that must fail by it.

None of them is the zoo's, and most of the cases are such as no entry of the zoo fails: what is
shown here is that they can fail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from xenpv.abi._kernel import lib
from xenpv.abi.netif import XEN_NETIF_CTRL_TYPE as TYPE
from xenpv.abi.xenbus import XenbusState as State
from xenpv.back import (
    netback,
    netctrl,
    nethash,
    netpack,
    netprofile,
    netrx,
    nettx,
    txpacket,
    txring,
)
from xenpv.back.credit import Credit
from xenpv.back.netback import Netback
from xenpv.back.nethash import NetHash
from xenpv.back.netpack import Packing
from xenpv.back.netrx import RxQueue
from xenpv.back.nettx import TxQueue
from xenpv.back.txring import TxRing
from xenpv.testing.cases.netslots import TX_RESPONSE
from xenpv.testing.rings import FIRST_SLOT
from xenpv.vif import controller, granter, keys, rxpacket, txslots
from xenpv.vif.features import Features
from xenpv.vif.rxpacket import Chain
from xenpv.vif.rxring import ReceiverRing
from xenpv.vif.txslots import SlotTable

Patch = pytest.MonkeyPatch
PLANTED: dict[str, tuple[str, Callable[[Patch], None]]] = {}


def plants(case: str) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """The mistake in words is the function's docstring."""

    def add(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
        assert plant.__doc__
        PLANTED[plant.__doc__] = case, plant
        return plant

    return add


def wrapped(patch: Patch, where: Any, name: str, change: Callable[..., Any]) -> None:
    """`change(original, *arguments)` in the place of what is there."""
    original = getattr(where, name)
    patch.setattr(where, name, lambda *arguments, **named: change(original, *arguments, **named))


def slowly(patch: Patch) -> None:
    """netback's tx slots are read one by one, in Python."""
    patch.setattr(TxQueue, "_whole", lambda _queue, _count: False)


def read_slots(ring: Any, cons: int) -> None:
    """The bytes of the next slot, once more."""
    at = FIRST_SLOT + cons % ring.size * ring.req_size
    ring.domain.read(ring.pfns[0], at, ring.req_size)


# netback, tx


@plants("NETB-006")
def page_of_4095(patch: Patch) -> None:
    """netback: a fragment may not end with its page"""
    patch.setattr(nettx, "PAGE_SIZE", 4095)
    patch.setattr(txpacket, "PAGE_SIZE", 4095)


@plants("NETB-012")
def ids_of_a_byte(patch: Patch) -> None:
    """netback: tx ids are cut to a byte"""
    slowly(patch)

    def answer(original: Any, ring: Any, responses: list[int]) -> None:
        original(ring, [one & 0xFF if not at % 2 else one for at, one in enumerate(responses)])

    wrapped(patch, TxRing, "answer", answer)


@plants("NETB-017")
def blank_forgotten(patch: Patch) -> None:
    """netback: csum_blank of tx is forgotten"""
    wrapped(
        patch,
        txring,
        "offloads",
        lambda original, data, flags, told: original(data, flags & ~1, told),
    )


@plants("NETB-019")
def rx_values_on_tx(patch: Patch) -> None:
    """netback: rx bit values used on tx"""
    patch.setattr(txpacket, "CSUM_BLANK", lib.NETRXF_csum_blank)


@plants("NETB-020")
def vouches_for_all(patch: Patch) -> None:
    """netback: says of every packet that its sender vouches for it"""

    def pass_on(original: Any, ring: Any, frames: Any, size: int) -> None:
        original(ring, [attrs.evolve(frame, data_validated=True) for frame in frames], size)

    wrapped(patch, TxRing, "pass_on", pass_on)


@plants("NETB-023")
def tx_slot_twice(patch: Patch) -> None:
    """netback: looks into a tx slot before it copies it"""

    def poll(original: Any, queue: Any) -> Any:
        read_slots(queue._ring, queue._ring.req_cons)
        return original(queue)

    wrapped(patch, TxQueue, "poll", poll)


@plants("NETB-105")
def any_extra(patch: Patch) -> None:
    """netback: extras of any type are passed over"""
    patch.setattr(txpacket, "EXTRA_TYPE_MAX", 256)


@plants("NETB-106")
def sends_half(patch: Patch) -> None:
    """netback: sends what there is of a packet that the producer cuts off"""

    def later_slots(original: Any, slots: Any, index: int, total: int) -> Any:
        if index >= len(slots):
            return [], 60, False
        return original(slots, index, total)

    wrapped(patch, nettx, "later_slots", later_slots)


@plants("NETB-107")
def twenty_slots(patch: Patch) -> None:
    """netback: takes packets of 20 slots"""
    patch.setattr(txpacket, "LATER_SLOTS_MAX", 20)


@plants("NETB-108")
def any_slots(patch: Patch) -> None:
    """netback: takes packets of any number of slots"""
    patch.setattr(txpacket, "LATER_SLOTS_MAX", 300)
    patch.setattr(txpacket, "LATER_SLOTS_FATAL", 300)


@plants("NETB-113")
def cut_to_fit(patch: Patch) -> None:
    """netback: what is left for the first slot is at least a header"""

    def later_slots(original: Any, slots: Any, index: int, total: int) -> Any:
        later, rest, _ = original(slots, index, total)
        return later, max(rest, 60), False

    wrapped(patch, nettx, "later_slots", later_slots)


@plants("NETB-114")
def any_gso(patch: Patch) -> None:
    """netback: a GSO extra is believed"""

    def gso(_original: Any, raw: Any, extras: dict[int, int]) -> tuple[int, int]:
        _, _, size, kind, _, _ = txpacket.EXTRA_GSO.unpack_from(raw, extras[txpacket.TYPE_GSO])
        return kind, size

    wrapped(patch, txpacket, "_gso", gso)


@plants("NETB-427")
def no_limit(patch: Patch) -> None:
    """netback: credit is never short"""
    patch.setattr(Credit, "spend", lambda _credit, _size: True)
    patch.setattr(Credit, "covers", lambda _credit, _size: True)


# netback, rx


@plants("NETB-201")
def validated_always(patch: Patch) -> None:
    """netback: rx frames have a flag that nobody gave them"""
    patch.setattr(netpack, "MORE_DATA", 0)
    wrapped(patch, Packing, "slots", lambda original, *rest: original(*rest))

    def finish(original: Any, queue: Any, ops: Any, responses: list[int], parts: Any) -> None:
        original(
            queue, ops, [one | 1 if at % 4 == 2 else one for at, one in enumerate(responses)], parts
        )

    wrapped(patch, RxQueue, "_finish", finish)


@plants("NETB-202")
def no_more_data(patch: Patch) -> None:
    """netback: rx slots of one frame are not chained"""
    patch.setattr(netpack, "MORE_DATA", 0)


@plants("NETB-206")
def gso_for_all(patch: Patch) -> None:
    """netback: a guest gets large packets that it did not ask for"""
    wrapped(
        patch,
        netback,
        "read_offer",
        lambda original, *rest: attrs.evolve(original(*rest), gso_types=(1, 2)),
    )


@plants("NETB-210")
def slots_reversed(patch: Patch) -> None:
    """netback: takes the newest rx slot first"""

    def take(original: Any, queue: Any) -> Any:
        count = original(queue)
        queue._slots.reverse()
        return count

    wrapped(patch, RxQueue, "_take", take)


@plants("NETB-211")
def writes_beyond(patch: Patch) -> None:
    """netback: pads the last frame of a batch in the guest's page"""

    def finish(
        original: Any, queue: Any, ops: list[int], responses: Any, parts: list[bytes]
    ) -> None:
        ops[-2] += 3 << 16
        original(queue, ops, responses, [*parts, bytes(3)])

    wrapped(patch, RxQueue, "_finish", finish)


@plants("NETB-218")
def never_stalls(patch: Patch) -> None:
    """netback: a guest that takes nothing keeps its carrier"""
    patch.setattr(netrx, "STALL_NS", 1 << 60)


@plants("NETB-221")
def sg_for_all(patch: Patch) -> None:
    """netback: a guest without feature-sg gets chains"""
    wrapped(
        patch, netback, "read_offer", lambda original, *rest: attrs.evolve(original(*rest), sg=True)
    )


@plants("NETB-223")
def multicast_once(patch: Patch) -> None:
    """netback: request-multicast-control is looked at when it connects, and never again"""

    def changed(original: Any, vif: Any, path: str = "") -> None:
        if not path:
            original(vif)

    wrapped(patch, Netback, "_multicast_changed", changed)


@plants("NETB-224")
def rx_slot_twice(patch: Patch) -> None:
    """netback: looks into an rx slot before it copies it"""

    def take(original: Any, queue: Any) -> Any:
        read_slots(queue._ring, queue._ring.req_cons)
        return original(queue)

    wrapped(patch, RxQueue, "_take", take)


# netback, control ring


@plants("NETB-301")
def unknown_succeeds(patch: Patch) -> None:
    """netback: control requests of unknown types succeed"""
    patch.setattr(netctrl, "NOT_SUPPORTED", (0, 0))


@plants("NETB-302")
def hash_swapped(patch: Patch) -> None:
    """netback: the hash has its bytes the other way round"""
    wrapped(
        patch,
        NetHash,
        "_value",
        lambda original, vif, data: int.from_bytes(
            original(vif, data).to_bytes(4, "big"), "little"
        ),
    )


@plants("NETB-303")
def all_types(patch: Patch) -> None:
    """netback: all hash types are on"""

    def of(original: Any, vif_hash: Any, data: bytes) -> Any:
        vif_hash.types = nethash.TYPES
        return original(vif_hash, data)

    wrapped(patch, NetHash, "of", of)


@plants("NETB-305")
def mapping_at_0(patch: Patch) -> None:
    """netback: the offset of SET_HASH_MAPPING is forgotten"""
    original = netctrl.HANDLERS[TYPE.SET_HASH_MAPPING]
    patch.setitem(
        netctrl.HANDLERS,
        TYPE.SET_HASH_MAPPING,
        lambda vif, ref, size, _offset: original(vif, ref, size, 0),
    )  # type: ignore[arg-type]  # it is a dict


@plants("NETB-306")
def modulo_0(patch: Patch) -> None:
    """netback: without a mapping all goes to queue 0"""
    patch.setattr(
        NetHash,
        "queue_of",
        lambda hashes, found, _queues: (
            hashes.mapping[found[1] % len(hashes.mapping)] if hashes.mapping else 0
        ),
    )


@plants("NETB-309")
def mapping_grows(patch: Patch) -> None:
    """netback: a mapping may be longer than its table"""
    original = netctrl.HANDLERS[TYPE.SET_HASH_MAPPING]

    def grows(vif: Any, ref: int, size: int, offset: int) -> Any:
        most = len(vif.hash.mapping)
        return original(vif, ref, max(0, min(size, most - offset)), min(offset, most))

    patch.setitem(netctrl.HANDLERS, TYPE.SET_HASH_MAPPING, grows)  # type: ignore[arg-type]  # it is a dict


@plants("NETB-312")
def any_key(patch: Patch) -> None:
    """netback: a key of any length is taken"""
    original = netctrl.HANDLERS[TYPE.SET_HASH_KEY]
    patch.setitem(
        netctrl.HANDLERS,
        TYPE.SET_HASH_KEY,
        lambda vif, ref, size, _: original(vif, ref, min(size, 40), 0),
    )  # type: ignore[arg-type]  # it is a dict


@plants("NETB-319")
def hash_survives(patch: Patch) -> None:
    """netback: the mapping of queues outlives its connection, as Linux'"""
    kept = NetHash()
    patch.setattr(netback, "NetHash", lambda: kept)


# netback, queues and states


@plants("NETB-408")
def one_home(patch: Patch) -> None:
    """netback: every queue is queue-0"""
    wrapped(
        patch,
        netback,
        "read_queue",
        lambda original, device, profile, prefix: original(device, profile, prefix and "queue-0/"),
    )


@plants("NETB-410")
def no_queues(patch: Patch) -> None:
    """netback: no queues are as good as any"""
    wrapped(
        patch,
        netback,
        "read_count",
        lambda _original, device, _profile, _offered: device.frontend_number(
            "multi-queue-num-queues", 1
        ),
    )


@plants("NETB-412")
def ports_swapped(patch: Patch) -> None:
    """netback: event-channel-tx and -rx are taken for one another"""

    def swapped(original: Any, *rest: Any) -> Any:
        found = original(*rest)
        return attrs.evolve(found, tx_port=found.rx_port, rx_port=found.tx_port)

    wrapped(patch, netback, "read_queue", swapped)


@plants("NETB-413")
def waits_for_connected(patch: Patch) -> None:
    """netback: a close before the first connection is not answered"""
    patch.setitem(netprofile.LINUX_WALK, (State.INIT_WAIT, State.CLOSING), ())  # type: ignore[arg-type]  # it is a dict


@plants("NETB-415")
def no_jump(patch: Patch) -> None:
    """netback: Closed without Closing is not answered"""
    patch.setitem(netprofile.LINUX_WALK, (State.CONNECTED, State.CLOSED), ())  # type: ignore[arg-type]  # it is a dict


@plants("NETB-416")
def no_new_start(patch: Patch) -> None:
    """netback: Initialising is not answered while it is connected"""
    patch.setitem(netprofile.LINUX_WALK, (State.CONNECTED, State.INITIALISING), ())  # type: ignore[arg-type]  # it is a dict


@plants("NETB-424")
def keeps_rings(patch: Patch) -> None:
    """netback: a frontend whose directory goes keeps its connection"""
    patch.setattr(Netback, "_unregister", lambda _vif: None)
    patch.setitem(netprofile.LINUX_WALK, (State.CONNECTED, State.UNKNOWN), ())  # type: ignore[arg-type]  # it is a dict


@plants("NETB-426")
def no_script(patch: Patch) -> None:
    """netback: does not wait for the hotplug script"""

    def changed(_original: Any, vif: Any) -> None:
        if vif.state is State.CONNECTED:
            vif.device.switch_state(State.CONNECTED)

    wrapped(patch, Netback, "hotplug_changed", changed)


# XenVif, tx


def before_publication(patch: Patch, change: Callable[[bytearray, int], None]) -> None:
    """`change(slot, place)` of each tx slot before it is published; place 0 begins a packet."""

    def publish(original: Any, table: Any) -> Any:
        ring, place = table.ring, 0
        first = ring.req_prod
        for at in range(table.pending):
            where = FIRST_SLOT + (first + at) % ring.size * ring.req_size
            slot = bytearray(ring.domain.read(ring.pfns[0], where, ring.req_size))
            change(slot, place)
            ring.domain.write(ring.pfns[0], where, bytes(slot))
            place = place + 1 if slot[6] & 4 else 0
        return original(table)

    wrapped(patch, SlotTable, "publish", publish)


@plants("NETF-002")
def first_as_own(patch: Patch) -> None:
    """XenVif: the first slot tells its own size"""

    def change(slot: bytearray, place: int) -> None:
        if not place and slot[6] & 4:
            slot[10:12] = (14).to_bytes(2, "little")

    before_publication(patch, change)


@plants("NETF-003")
def crosses(patch: Patch) -> None:
    """XenVif: a fragment begins near the end of its page"""

    def change(slot: bytearray, place: int) -> None:
        if place:
            slot[4:6] = (4090).to_bytes(2, "little")

    before_publication(patch, change)


@plants("NETF-004")
def flags_on_all(patch: Patch) -> None:
    """XenVif: data_validated in every slot"""

    def change(slot: bytearray, _place: int) -> None:
        slot[6] |= 2

    before_publication(patch, change)


@plants("NETF-005")
def one_id(patch: Patch) -> None:
    """XenVif: every request has id 1"""

    def change(slot: bytearray, _place: int) -> None:
        slot[8:10] = b"\1\0"

    before_publication(patch, change)


@plants("NETF-006")
def writable(patch: Patch) -> None:
    """XenVif: what is sent is granted writable"""
    patch.setattr(txslots, "GRANT", lib.GTF_permit_access)


@plants("NETF-022")
def pages_as_they_are(patch: Patch) -> None:
    """XenVif: pages are granted with what was in them"""
    patch.setattr(granter, "_ZERO_PAGE", b"")


@plants("NETF-207")
def sg_always(patch: Patch) -> None:
    """XenVif: feature-sg is taken for granted"""
    wrapped(
        patch,
        Features,
        "__init__",
        lambda original, self, *rest, **named: original(self, *rest, **{**named, "sg": True}),
    )


# XenVif, rx


@plants("NETF-012")
def few_slots(patch: Patch) -> None:
    """XenVif: posts ten pages"""

    def fill(_original: Any, ring: Any) -> None:
        ring.granter.add(10)
        ring.filled = True
        ring._post_new(range(10))

    wrapped(patch, ReceiverRing, "fill", fill)


@plants("NETF-112")
def any_offset(patch: Patch) -> None:
    """XenVif: bytes of a response may lie behind their page"""
    patch.setattr(rxpacket, "net_single", lambda *_: 0)
    patch.setattr(rxpacket, "PAGE_SIZE", 1 << 20)


@plants("NETF-024")
def response_twice(patch: Patch) -> None:
    """XenVif: looks into an rx response before it copies it"""

    def receive(original: Any, ring: Any) -> Any:
        front = ring.ring
        at = FIRST_SLOT + front.rsp_cons % front.size * 8
        front.domain.read(front.pfns[0], at, 8)
        return original(ring)

    wrapped(patch, ReceiverRing, "receive", receive)


@plants("NETF-118")
def wrong_kind(patch: Patch) -> None:
    """XenVif: a backend's mistake raises what nobody catches"""

    def wrong(_chain: Any, why: str) -> None:
        raise ValueError(why)

    patch.setattr(Chain, "_wrong", wrong)


# XenVif, keys and states


@plants("NETF-201")
def no_rx_copy(patch: Patch) -> None:
    """XenVif: does not say request-rx-copy"""
    from xenpv.vif import frontend

    name = "windows_keys"
    home = frontend if hasattr(frontend, name) else keys
    wrapped(
        patch,
        home,
        name,
        lambda original, *rest, **named: [
            one for one in original(*rest, **named) if one[0] != "request-rx-copy"
        ],
    )


@plants("NETF-203")
def flat_too(patch: Patch) -> None:
    """XenVif: keys of queue 0 lie flat as well"""

    def both(original: Any, queues: Any, *rest: Any, **named: Any) -> Any:
        return [*original(queues, *rest, **named), *queues[0].tx_keys()]

    from xenpv.vif import frontend

    home = frontend if hasattr(frontend, "windows_keys") else keys
    wrapped(patch, home, "windows_keys", both)


@plants("NETF-208")
def pages_stay(patch: Patch) -> None:
    """XenVif: rx pages stay granted after the close"""

    def release(_original: Any, ring: Any) -> Any:
        ring.stop()
        ring._page.release()
        return ring._page.quarantined

    wrapped(patch, ReceiverRing, "release", release)


@plants("NETF-214")
def id_0(patch: Patch) -> None:
    """XenVif: control requests have id 0"""
    original = controller.REQUEST

    class Packer:
        size = original.size

        @staticmethod
        def pack(_number: int, *rest: int) -> bytes:
            return original.pack(0, *rest)

    patch.setattr(controller, "REQUEST", Packer)


@plants("NETF-215")
def refusal_raises(patch: Patch) -> None:
    """XenVif: a refused control request raises what nobody catches"""

    def answer(original: Any, asker: Any, status: Any, data: int) -> None:
        if status:
            raise ValueError(status)
        original(asker, status, data)

    wrapped(patch, controller.Controller, "_answer", answer)


@plants("NETF-205")
def any_queues(patch: Patch) -> None:
    """XenVif: a number of queues that is none raises what nobody catches"""
    from xenpv.vif import features

    patch.setattr(features, "_queues", int)


def before_answers(patch: Patch, change: Callable[[int, int], tuple[int, int]]) -> None:
    """`change(id, status)` of each tx response before XenVif looks at it."""

    def answer(original: Any, table: Any, responses: Any, count: int) -> Any:
        raw = bytes(responses[: 4 * count])
        pairs = [change(*TX_RESPONSE.unpack_from(raw, at)) for at in range(0, len(raw), 4)]
        return original(
            table, memoryview(bytearray(b"".join(TX_RESPONSE.pack(*one) for one in pairs))), count
        )

    wrapped(patch, SlotTable, "answer", answer)


@plants("NETF-104")
def ids_of_a_bit(patch: Patch) -> None:
    """XenVif: its table has two entries for tx ids"""
    before_answers(patch, lambda number, status: (number & 1, status))


@plants("NETF-106")
def errors_stick(patch: Patch) -> None:
    """XenVif: a slot that was answered with an error stays granted"""
    before_answers(patch, lambda number, status: (number, 1 if status < 0 else status))


@plants("NETF-107")
def null_is_okay(patch: Patch) -> None:
    """XenVif: NULL ends a data slot"""
    before_answers(patch, lambda number, status: (number, 0 if status == 1 else status))


@plants("NETF-105")
def twice_is_next(patch: Patch) -> None:
    """XenVif: a second answer for an id ends the slot behind it"""
    seen: list[int] = []

    def change(number: int, status: int) -> tuple[int, int]:
        while number in seen:
            number += 1
        seen.append(number)
        return number, status

    before_answers(patch, change)


@plants("NETF-123")
def page_by_id(patch: Patch) -> None:
    """XenVif: the page of an rx response is the one that its id names"""
    patch.setattr(rxpacket, "net_single", lambda *_: 0)
    patch.setitem(rxpacket.RULES, "windows", attrs.evolve(rxpacket.RULES["windows"], ids=False))  # type: ignore[arg-type]  # it is a dict

    def packets(original: Any, assembler: Any, raw: bytes, first: int, pfns: Any) -> Any:
        ids = [
            int.from_bytes(raw[at : at + 2], "little") % len(pfns) for at in range(0, len(raw), 8)
        ]
        mixed = list(pfns)
        for at, number in enumerate(ids):
            mixed[(first + at) % len(pfns)] = pfns[number & 3]
        return original(assembler, raw, first, mixed)

    wrapped(patch, rxpacket.Assembler, "packets", packets)
