"""Mistakes that are planted in our own network drivers, each with the case that must fail by it.

None of them is the zoo's, and most of the cases are such as no entry of the zoo fails: what is
shown here is that they can fail.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, Self

import attrs
import pytest

from xenpv.abi._kernel import lib
from xenpv.abi.netif import XEN_NETIF_CTRL_TYPE as TYPE
from xenpv.abi.xenbus import XenbusState as State
from xenpv.back import (
    netback,
    netctrl,
    nethash,
    netkeys,
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
from xenpv.back.netqueue import NetQueue
from xenpv.back.netrx import RxQueue
from xenpv.back.nettx import TxQueue
from xenpv.back.txring import TxRing
from xenpv.errors import GrantError, PeerProtocolError
from xenpv.host.network import Frame
from xenpv.testing.cases.netslots import TX_RESPONSE
from xenpv.view.rings import FIRST_SLOT
from xenpv.vif import controller, features, granter, keys, receiver, rxpacket, txslots
from xenpv.vif.features import Features
from xenpv.vif.poller import Poller
from xenpv.vif.queue import Queue
from xenpv.vif.rxpacket import Chain
from xenpv.vif.rxring import ReceiverRing
from xenpv.vif.rxslots import Slots
from xenpv.vif.txslots import SlotTable
from xenpv.xen.evtchn_port import PortState

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


# netback, once more: what no other mistake of this list fails


def passes_on(patch: Patch, change: Callable[[list[Any]], list[Any]]) -> None:
    """What netback gives to the bridge is changed."""

    def pass_on(original: Any, ring: Any, frames: Any, size: int) -> None:
        original(ring, change(list(frames)), size)

    wrapped(patch, TxRing, "pass_on", pass_on)


@plants("NETB-001")
def cut_to_1500(patch: Patch) -> None:
    """netback: frames are cut to 1500 bytes"""
    passes_on(patch, lambda frames: [attrs.evolve(one, data=one.data[:1500]) for one in frames])


@plants("NETB-008")
def maps_writable(patch: Patch) -> None:
    """netback: maps to write what it is sent"""
    slowly(patch)

    def copy(original: Any, ring: Any, ops: list[int], count: int, size: int) -> Any:
        vif = ring.vif
        data, failed = original(ring, ops, count, size)
        for number in range(count):
            pfn = vif.domain.holes.alloc()
            try:
                handle = vif.domain.gnttab.map(vif.frontend_domid, ops[3 * number], pfn)
            except GrantError:
                failed = [*failed, number]
            else:
                vif.domain.gnttab.unmap(handle, pfn)
            vif.domain.holes.free(pfn)
        return data, failed

    wrapped(patch, TxRing, "copy", copy)


@plants("NETB-011")
def last_first(patch: Patch) -> None:
    """netback: the last frame of a batch goes out first"""
    passes_on(patch, lambda frames: frames[::-1])


@plants("NETB-018")
def blank_v6_forgotten(patch: Patch) -> None:
    """netback: csum_blank of IPv6 is forgotten"""

    def offloads(original: Any, data: bytes, flags: int, told: Any) -> Any:
        return original(data, flags & ~1 if data[12:14] == b"\x86\xdd" else flags, told)

    wrapped(patch, txring, "offloads", offloads)


@plants("NETB-022")
def tells_more(patch: Patch) -> None:
    """netback: what else is in a tx response's slot is the backend's"""
    slowly(patch)

    def answer(original: Any, tx: Any, responses: list[int]) -> None:
        ring = tx.ring
        first = ring.rsp_prod
        original(tx, responses)
        for at in range(len(responses) // 2):
            place = FIRST_SLOT + (first + at) % ring.size * 12 + 4
            ring.domain.write(ring.pfns[0], place, b"\xee" * 8)

    wrapped(patch, TxRing, "answer", answer)


@plants("NETB-104")
def extras_end_anywhere(patch: Patch) -> None:
    """netback: extras end where the producer does"""

    def read_extras(original: Any, raw: Any, index: int, count: int, extras: Any) -> int:
        try:
            return original(raw, index, count, extras)
        except PeerProtocolError:
            return count

    wrapped(patch, nettx, "read_extras", read_extras)


@plants("NETB-109")
def cut_at_page(patch: Patch) -> None:
    """netback: a fragment that crosses its page is filled up with zeros"""
    slowly(patch)
    patch.setattr(nettx, "PAGE_SIZE", 1 << 20)

    def copy(original: Any, ring: Any, ops: list[int], count: int, size: int) -> Any:
        cut = list(ops)
        for at in range(1, len(cut), 3):
            offset = cut[at] & 0xFFFF
            cut[at] = offset | min(cut[at] >> 16, max(0, 4096 - offset)) << 16
        return original(ring, cut, count, size)

    wrapped(patch, TxRing, "copy", copy)


@plants("NETB-115")
def reads_on(patch: Patch) -> None:
    """netback: a header that is cut off is looked for behind the frame"""

    def offloads(original: Any, data: bytes, flags: int, told: Any) -> Any:
        return original(data, flags, told) or Frame(data + bytes(40))

    wrapped(patch, txring, "offloads", offloads)


@plants("NETB-120")
def looks_again(patch: Patch) -> None:
    """netback: looks into the slot again once its page was read"""
    slowly(patch)

    def copy(original: Any, tx: Any, ops: list[int], count: int, size: int) -> Any:
        original(tx, ops, count, size)
        raw = tx.ring.domain.read(tx.ring.pfns[0], FIRST_SLOT, 4)
        return original(tx, [int.from_bytes(raw, "little"), *ops[1:]], count, size)

    wrapped(patch, TxRing, "copy", copy)


@plants("NETB-121")
def stays_shut(patch: Patch) -> None:
    """netback: a vif that was shut does not let go"""

    def disconnect(original: Any, vif: Any) -> None:
        if not vif.disabled:
            original(vif)

    wrapped(patch, Netback, "_disconnect", disconnect)


@plants("NETB-122")
def many_polls(patch: Patch) -> None:
    """netback: looks a hundred times for each event"""
    left = [0]

    def event(original: Any, queue: Any) -> None:
        left[0] = 100
        original(queue)

    def poll(original: Any, queue: Any) -> None:
        original(queue)
        left[0] -= 1
        if left[0] > 0:
            queue._tx_task.wake()

    wrapped(patch, NetQueue, "_poll_both", event)
    wrapped(patch, NetQueue, "poll_tx", poll)


@plants("NETB-203")
def begins_early(patch: Patch) -> None:
    """netback: begins a frame with the slots that there are"""
    patch.setattr(Packing, "slots", lambda _packing, _frame, _extras: 1)


@plants("NETB-207")
def blank_alone(patch: Patch) -> None:
    """netback: csum_blank goes without data_validated"""
    wrapped(
        patch,
        Packing,
        "flags",
        lambda original, packing, frame: (
            original(packing, frame) & ~1 if frame.csum_blank else original(packing, frame)
        ),
    )


@plants("NETB-220")
def cut_to_mtu(patch: Patch) -> None:
    """netback: frames for the guest are cut to its MTU"""
    wrapped(
        patch,
        Netback,
        "receive",
        lambda original, vif, frames: original(
            vif, [attrs.evolve(one, data=one.data[:1518]) for one in frames]
        ),
    )


@plants("NETB-225")
def posted_now(patch: Patch) -> None:
    """netback: the page of an rx slot is the one that lies there when it is filled"""

    def finish(original: Any, queue: Any, ops: list[int], responses: Any, parts: Any) -> None:
        ring = queue._ring
        for at in range(0, len(ops), 3):
            place = FIRST_SLOT + (ring.rsp_prod + at // 3) % ring.size * 8 + 4
            ops[at] = int.from_bytes(ring.domain.read(ring.pfns[0], place, 4), "little")
        original(queue, ops, responses, parts)

    wrapped(patch, RxQueue, "_finish", finish)


@plants("NETB-226")
def a_page_once(patch: Patch) -> None:
    """netback: of slots with one page all but one are passed over"""

    def take(original: Any, queue: Any) -> int:
        before = len(queue._slots)
        original(queue)
        queue._slots[:] = list({one[2]: one for one in queue._slots}.values())
        return len(queue._slots) - before

    wrapped(patch, RxQueue, "_take", take)


@plants("NETB-227")
def waits_to_close(patch: Patch) -> None:
    """netback: a queue with a backlog does not let go"""

    def release(original: Any, queue: Any) -> None:
        if queue.rx is None or not queue.rx.backlog_bytes:
            original(queue)

    wrapped(patch, NetQueue, "release", release)


@plants("NETB-228")
def room_uncounted(patch: Patch) -> None:
    """netback: an rx status does not count the room before the bytes"""

    def finish(original: Any, queue: Any, ops: Any, responses: list[int], parts: Any) -> None:
        responses[3] -= queue._packing.headroom
        original(queue, ops, responses, parts)

    wrapped(patch, RxQueue, "_finish", finish)


@plants("NETB-229")
def room_once(patch: Patch) -> None:
    """netback: the room before the bytes is looked at when it connects, and never again"""
    patch.setattr(RxQueue, "reconfigure", lambda _queue: None)


@plants("NETB-230")
def any_room(patch: Patch) -> None:
    """netback: any room before the bytes is taken"""
    patch.setattr(netkeys, "PAGE_SIZE", 1 << 20)


@plants("NETB-304")
def other_bits(patch: Patch) -> None:
    """netback: the entry of the mapping is of the hash's upper bits"""
    patch.setattr(
        NetHash,
        "queue_of",
        lambda hashes, found, _queues: hashes.mapping[(found[1] >> 16) % len(hashes.mapping)],
    )


@plants("NETB-307")
def in_turn(patch: Patch) -> None:
    """netback: frames go to the queues in turn"""
    turn = count()
    patch.setattr(NetHash, "queue", lambda _hashes, _data, queues: next(turn) % queues)


def handles(patch: Patch, kind: int, change: Callable[..., Any]) -> None:
    """`change(original, vif, *data)` in the place of a handler of the control ring."""
    original = netctrl.HANDLERS[kind]
    patch.setitem(netctrl.HANDLERS, kind, lambda vif, *data: change(original, vif, *data))  # type: ignore[arg-type]  # it is a dict


@plants("NETB-310")
def any_entry(patch: Patch) -> None:
    """netback: a mapping may name queues that there are not"""

    def mapping(original: Any, vif: Any, *data: int) -> Any:
        original(vif, *data)
        return netctrl.SUCCESS

    handles(patch, TYPE.SET_HASH_MAPPING, mapping)


@plants("NETB-311")
def zeros_for_nothing(patch: Patch) -> None:
    """netback: a page that nobody granted reads as zeros"""
    wrapped(
        patch,
        netctrl,
        "fetch",
        lambda original, vif, ref, size: original(vif, ref, size) or bytes(size),
    )


@plants("NETB-313")
def any_size(patch: Patch) -> None:
    """netback: a mapping size above the maximum is cut to it"""
    handles(
        patch,
        TYPE.SET_HASH_MAPPING_SIZE,
        lambda original, vif, size, *rest: original(vif, min(size, 128), *rest),
    )


@plants("NETB-314")
def any_algorithm(patch: Patch) -> None:
    """netback: any algorithm is taken"""
    patch.setattr(netctrl, "ALGORITHMS", range(1 << 32))


@plants("NETB-315")
def flags_of_none(patch: Patch) -> None:
    """netback: tells hash types without an algorithm"""
    patch.setattr(netctrl, "NONE", -1)


@plants("NETB-317")
def control_twice(patch: Patch) -> None:
    """netback: looks into a control request before it copies it"""

    def serve(original: Any, control: Any, ring: Any) -> Any:
        read_slots(ring, ring.req_cons)
        return original(control, ring)

    wrapped(patch, netctrl.ControlRing, "_serve", serve)


@plants("NETB-411")
def some_queues(patch: Patch) -> None:
    """netback: connects with the queues that it can read"""

    def read(original: Any, *rest: Any) -> Any:
        try:
            return original(*rest)
        except PeerProtocolError:
            return None

    wrapped(patch, netback, "read_queue", read)
    wrapped(
        patch,
        NetQueue,
        "connect",
        lambda original, queue, keys: original(queue, keys) if keys else None,
    )


@plants("NETB-417")
def ports_stay(patch: Patch) -> None:
    """netback: ports stay bound"""

    def release(original: Any, queue: Any) -> None:
        queue._ports.clear()
        original(queue)

    wrapped(patch, NetQueue, "release", release)


@plants("NETB-419")
def strange_state_raises(patch: Patch) -> None:
    """netback: a state that no frontend has raises what nobody catches"""

    def follow(original: Any, vif: Any, state: Any) -> None:
        if state in vif.profile.fatal_states:
            raise ValueError(state)
        original(vif, state)

    wrapped(patch, Netback, "_follow", follow)


@plants("NETB-420")
def same_state_again(patch: Patch) -> None:
    """netback: Connected once more lets everything go"""

    def follow(original: Any, vif: Any, state: Any) -> None:
        if state is State.CONNECTED and vif.state is State.CONNECTED:
            vif._disconnect()
        original(vif, state)

    wrapped(patch, Netback, "_follow", follow)


@plants("NETB-421")
def other_key(patch: Patch) -> None:
    """netback: without tx-ring-ref the other ring's page is taken"""

    def wanted(original: Any, device: Any, key: str) -> int:
        try:
            return original(device, key)
        except PeerProtocolError:
            return original(device, key.replace("tx-ring", "rx-ring"))

    wrapped(patch, netkeys, "_wanted", wanted)


@plants("NETB-422")
def one_page_raises(patch: Patch) -> None:
    """netback: two rings in one page raise what nobody catches"""

    def connect(original: Any, queue: Any, keys: Any) -> None:
        if keys.tx_ring_ref == keys.rx_ring_ref:
            raise ValueError(keys)
        original(queue, keys)

    wrapped(patch, NetQueue, "connect", connect)


@plants("NETB-125")
def passes_memory(patch: Patch) -> None:
    """netback: what it passes on lies in the guest's memory still"""
    slowly(patch)
    found: list[Any] = []

    def copy(original: Any, ring: Any, ops: list[int], number: int, size: int) -> Any:
        domain = ring.vif.domain
        pfn = domain.holes.alloc()
        handle = domain.gnttab.map(ring.vif.frontend_domid, ops[0], pfn, readonly=True)
        at = lib.p2m_lookup(domain.kernel, pfn, 0) * 4096
        views = memoryview(domain._hypervisor.arena.views)
        found.append(views[at : at + size].toreadonly())
        domain.gnttab.unmap(handle, pfn)
        domain.holes.free(pfn)
        return original(ring, ops, number, size)

    wrapped(patch, TxRing, "copy", copy)
    passes_on(patch, lambda frames: [attrs.evolve(frames[0], data=Late(found[-1]))])


class Late(bytes):
    """Bytes that are looked at when they are compared."""

    def __new__(cls, view: memoryview) -> Self:
        made = super().__new__(cls, bytes(view))
        made.view = view  # type: ignore[attr-defined]  # of this class alone
        return made

    def __eq__(self, other: object) -> bool:
        return bytes(self.view) == other  # type: ignore[attr-defined]  # of this class alone

    __hash__ = bytes.__hash__


@plants("NETB-318")
def port_missing(patch: Patch) -> None:
    """netback: a control ring without a port raises what nobody catches"""
    raises_for(patch, netback, "read_control")


@plants("NETB-423")
def ring_unmapped(patch: Patch) -> None:
    """netback: a ring that cannot be mapped raises what nobody catches"""
    raises_for(patch, NetQueue, "_ring")


def raises_for(patch: Patch, where: Any, name: str) -> None:
    """What is a peer's mistake there is none of a peer's."""

    def raising(original: Any, *rest: Any) -> Any:
        try:
            return original(*rest)
        except PeerProtocolError as error:
            raise ValueError(str(error)) from error

    wrapped(patch, where, name, raising)


@plants("NETB-429")
def port_must_lead(patch: Patch) -> None:
    """netback: an event that leads nowhere raises what nobody catches"""
    slowly(patch)

    def answer(original: Any, ring: Any, responses: list[int]) -> None:
        port = ring.vif.domain.evtchn.ports[ring.port]
        if port.state is not PortState.INTERDOMAIN:
            raise ValueError(port)
        original(ring, responses)

    wrapped(patch, TxRing, "answer", answer)


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


@plants("NETF-001")
def next_byte(patch: Patch) -> None:
    """XenVif: a fragment begins a byte too late"""

    def change(slot: bytearray, place: int) -> None:
        if place:
            slot[4] += 1

    before_publication(patch, change)


@plants("NETF-007")
def okay_is_null(patch: Patch) -> None:
    """XenVif: OKAY is taken for NULL"""
    before_answers(patch, lambda number, status: (number, status or 1))


@plants("NETF-011")
def says_nothing(patch: Patch) -> None:
    """XenVif: does not notify its backend of what it sends"""

    def publish(original: Any, table: Any) -> bool:
        original(table)
        return False

    wrapped(patch, SlotTable, "publish", publish)


def on_receive(patch: Patch, change: Callable[[Any], None]) -> None:
    """`change(batch)` of what XenVif takes off an rx ring."""

    def receive(original: Any, ring: Any) -> Any:
        batch, more = original(ring)
        if batch is not None and batch.ends:
            change(batch)
        return batch, more

    wrapped(patch, ReceiverRing, "receive", receive)


@plants("NETF-016")
def blank_summed_up_wrong(patch: Patch) -> None:
    """XenVif: a packet with a blank checksum loses its last byte"""

    def change(batch: Any) -> None:
        if batch.flags[-1] & 2:
            batch.data[-1] ^= 0xFF

    on_receive(patch, change)


@plants("NETF-017")
def validated_spoilt(patch: Patch) -> None:
    """XenVif: a packet that was verified loses its last byte"""

    def change(batch: Any) -> None:
        if batch.flags[-1] == 1:
            batch.data[-1] ^= 0xFF

    on_receive(patch, change)


@plants("NETF-021")
def no_broadcast(patch: Patch) -> None:
    """XenVif: broadcast is not for this interface"""
    patch.setattr(receiver, "BROADCAST", 0)
    patch.setattr(receiver, "MULTICAST", 0)


@plants("NETF-023")
def posts_as_they_are(patch: Patch) -> None:
    """XenVif: pages are posted with what was in them"""

    def add(original: Any, pages: Any, number: int) -> Any:
        with pytest.MonkeyPatch.context() as inner:
            if not pages._readonly:
                inner.setattr(granter, "_ZERO_PAGE", b"")
            return original(pages, number)

    wrapped(patch, granter.Granter, "add", add)


@plants("NETF-124")
def a_task_each(patch: Patch) -> None:
    """XenVif: makes a hundred tasks of each event"""

    def poll(original: Any, queue: Any) -> None:
        original(queue)
        for _ in range(100):
            queue.bus.domain.task("one of many", lambda: None).wake()

    wrapped(patch, Queue, "poll", poll)


@plants("NETF-202")
def one_port_twice(patch: Patch) -> None:
    """XenVif: event-channel-tx names the port of rx"""
    wrapped(
        patch,
        Queue,
        "tx_keys",
        lambda original, queue: [
            (key, str(queue.pollers[0].port) if "tx" in key and "event" in key else value)
            for key, value in original(queue)
        ],
    )


@plants("NETF-204")
def pages_of_another(patch: Patch) -> None:
    """XenVif: every queue posts the pages of the first"""
    first: list[bytes] = []

    def requests(original: Any, slots: Any, at: int, number: int) -> bytes:
        made = original(slots, at, number)
        first.append(made)
        return first[0] if len(first[0]) == len(made) else made

    wrapped(patch, Slots, "requests", requests)


@plants("NETF-206")
def flags_are_numbers(patch: Patch) -> None:
    """XenVif: a feature that is no number raises what nobody catches"""
    patch.setattr(features, "parse_flag", lambda text: bool(int(text or "0")))


@plants("NETF-301")
def adds_for_removes(patch: Patch) -> None:
    """XenVif: groups that go are added"""
    wrapped(
        patch,
        SlotTable,
        "own",
        lambda original, table, number, extra: original(table, number, bytes([2]) + extra[1:]),
    )


@plants("NETF-302")
def refusal_of_a_group(patch: Patch) -> None:
    """XenVif: an error that is not for a packet raises what nobody catches"""

    def answer(original: Any, table: Any, responses: Any, number: int) -> Any:
        answers = original(table, responses, number)
        if any(status < 0 for _, status in answers.own):
            raise ValueError(answers.own)
        return answers

    wrapped(patch, SlotTable, "answer", answer)


def chained(patch: Patch, change: Callable[[int, bytes], tuple[int, bytes]]) -> None:
    """`change(flags, extras)` of each packet with offloads that XenVif sends."""

    def chain(
        original: Any, table: Any, data: bytes, pieces: Any, flags: int, extras: bytes, told: Any
    ) -> None:
        original(table, data, pieces, *change(flags, extras), told)

    wrapped(patch, SlotTable, "chain", chain)


@plants("NETF-303")
def blank_unsaid(patch: Patch) -> None:
    """XenVif: does not say that a checksum is blank"""
    chained(patch, lambda flags, extras: (flags & ~1, extras))


@plants("NETF-304")
def other_mss(patch: Patch) -> None:
    """XenVif: the MSS is a byte too large"""
    chained(
        patch,
        lambda flags, extras: (
            flags,
            extras[:2] + bytes([extras[2] + 1]) + extras[3:] if extras else extras,
        ),
    )


@plants("NETF-305")
def gso_always(patch: Patch) -> None:
    """XenVif: feature-gso-tcpv4 is taken for granted"""
    wrapped(
        patch,
        Features,
        "__init__",
        lambda original, self, *rest, **named: original(
            self, *rest, **{**named, "gso_tcpv4": True}
        ),
    )


@plants("NETF-306")
def null_first(patch: Patch) -> None:
    """XenVif: a NULL response before the first slot's raises what nobody catches"""

    def answer(original: Any, table: Any, responses: Any, number: int) -> Any:
        if TX_RESPONSE.unpack_from(bytes(responses[:4]))[1] == 1:
            raise ValueError(number)
        return original(table, responses, number)

    wrapped(patch, SlotTable, "answer", answer)


@plants("NETF-219")
def peer_must_be_there(patch: Patch) -> None:
    """XenVif: an event that leads nowhere raises what nobody catches"""

    def send(original: Any, poller: Any) -> None:
        domain = poller._evtchn.domain
        if domain.evtchn.ports[poller.port].state is not PortState.INTERDOMAIN:
            raise ValueError(poller.port)
        original(poller)

    wrapped(patch, Poller, "send", send)
