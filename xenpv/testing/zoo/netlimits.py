"""Limits that a netback forgets, of what a guest may say and of what it may make others keep."""

from __future__ import annotations

from typing import Any, Final

from xenpv.abi.layout import offsetof
from xenpv.back import netback, netctrl, nettx, txpacket
from xenpv.back.credit import Credit
from xenpv.back.netback import Netback
from xenpv.back.netrx import RxQueue
from xenpv.back.nettx import TxQueue
from xenpv.errors import PeerProtocolError
from xenpv.testing.zoo.defect import Defect, becomes, forgets
from xenpv.view.rings import FIRST_SLOT, u32
from xenpv.xen.domain import PAGE_SIZE

MANY: Final = 1 << 30
KEY_BYTES: Final = 4096  # all that a page has
SIZE: Final = offsetof("netif_tx_request", "size")


def _wraps_rest(_original: Any) -> Any:
    def later_slots(slots: Any, index: int, total: int) -> Any:
        later: list[Any] = []
        more = txpacket.MORE_DATA
        while more:
            if index >= len(slots):
                raise PeerProtocolError("tx data beyond the producer")
            _, offset, more, number, size = slots[index]
            if offset + size > PAGE_SIZE:
                raise PeerProtocolError(f"tx {number}: {size} bytes at {offset} in a page")
            later.append(slots[index])
            more &= txpacket.MORE_DATA
            index += 1
        return later, total - sum(one[4] for one in later) & 0xFFFF, False

    return later_slots


def _any_gso(_original: Any) -> Any:
    def gso(raw: Any, extras: dict[int, int]) -> tuple[int, int]:
        at = extras.get(txpacket.TYPE_GSO)
        if at is None:
            return 0, 0
        _, _, size, kind, _, _ = txpacket.EXTRA_GSO.unpack_from(raw, at)
        return kind, size

    return gso


def _any_queue(_original: Any) -> Any:
    return lambda _entry, _queues: True


def _stays_stalled(original: Any) -> Any:
    def judge(queue: Any) -> None:
        if not queue.stalled:
            original(queue)

    return judge


def _fetches_sizes_again(original: Any) -> Any:
    def batch(queue: Any, slots: list[Any], raw: Any, index: int) -> int:
        ring = queue._ring
        first = u32(ring.req_cons - len(slots))
        for at in range(index, len(slots)):
            where = FIRST_SLOT + u32(first + at) % ring.size * ring.req_size + SIZE
            size = int.from_bytes(ring.domain.read(ring.pfns[0], where, 2), "little")
            slots[at] = (*slots[at][:4], size)
        after: int = original(queue, slots, raw, index)
        return after

    return batch


DEFECTS: Final = (
    Defect(
        id="net-double-fetch-size",
        end="netback",
        mutation="a slot's size read again from the ring (XSA-155)",
        hunt="scenario:net_shapes",
        changes=((TxQueue, "_batch", _fetches_sizes_again),),
    ),
    Defect(
        id="net-total-wraps",
        end="netback",
        mutation="what later slots take of a packet's size is counted in 16 bits",
        hunt="scenario:net_refused",
        changes=((nettx, "later_slots", _wraps_rest),),
    ),
    Defect(
        id="net-slots-unbounded",
        end="netback",
        mutation="packets of any number of slots accepted",
        hunt="scenario:net_refused",
        changes=(
            (txpacket, "LATER_SLOTS_MAX", becomes(MANY)),
            (txpacket, "LATER_SLOTS_FATAL", becomes(MANY)),
        ),
    ),
    Defect(
        id="net-extra-type-unchecked",
        end="netback",
        mutation="extras of unknown types skipped",
        hunt="scenario:net_refused",
        changes=((txpacket, "EXTRA_TYPE_MAX", becomes(MANY)),),
    ),
    Defect(
        id="net-gso-unchecked",
        end="netback",
        mutation="large packets of no known type, and of segments of 0 bytes, accepted",
        hunt="scenario:net_refused",
        changes=((txpacket, "_gso", _any_gso),),
    ),
    Defect(
        id="net-hash-entry-unchecked",
        end="netback",
        mutation="SET_HASH_MAPPING takes queues that there are not",
        hunt="scenario:net_control",
        changes=((netctrl, "is_queue", _any_queue),),
    ),
    Defect(
        id="net-hash-key-unbounded",
        end="netback",
        mutation="SET_HASH_KEY takes keys of any length",
        hunt="scenario:net_control",
        changes=((netctrl, "KEY_MAX", becomes(KEY_BYTES)),),
    ),
    Defect(
        id="net-multicast-unbounded",
        end="netback",
        mutation="a list of multicast groups without an end",
        hunt="scenario:net_multicast",
        changes=((netback, "MULTICAST_MAX", becomes(MANY)),),
    ),
    Defect(
        id="net-multicast-unfiltered",
        end="netback",
        mutation="the list of multicast groups is kept and not looked at",
        hunt="scenario:net_multicast",
        changes=((Netback, "_wants", lambda _original: lambda _vif, _data: True),),
    ),
    Defect(
        id="net-credit-forgotten",
        end="netback",
        mutation="nobody comes back to what waits for the next window of `rate`",
        hunt="scenario:net_rate",
        changes=((Credit, "_await", forgets),),
    ),
    Defect(
        id="net-stall-for-ever",
        end="netback",
        mutation="a guest that was stalled never gets its carrier back",
        hunt="scenario:net_stall",
        changes=((RxQueue, "_judge", _stays_stalled),),
    ),
    Defect(
        id="net-watch-kept",
        end="netback",
        mutation="the watch of request-multicast-control stays when a connection ends",
        hunt="scenario:bus_handshake",
        changes=((Netback, "_unwatch", forgets),),
    ),
)
