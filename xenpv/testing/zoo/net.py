"""What network drivers get wrong: netback, and XenVif where it is told."""

from __future__ import annotations

from struct import Struct
from typing import Any, Final

from xenpv.abi._kernel import lib
from xenpv.back import netctrl, netpack, netrx, nettx, txpacket, txpages
from xenpv.back.netpack import Packing
from xenpv.back.netrx import RxQueue
from xenpv.back.nettx import TxQueue
from xenpv.back.txpages import Mapped
from xenpv.errors import PeerProtocolError
from xenpv.testing.zoo import netlimits, vif
from xenpv.testing.zoo.defect import Defect, becomes
from xenpv.view.rings import FIRST_SLOT, u32
from xenpv.vif import rxpacket
from xenpv.vif.rxring import ReceiverRing

NEVER: Final = -1  # what no flags are
PAGES: Final = 1 << 20  # bytes: what no fragment reaches


def _never(_original: Any) -> Any:
    def forgotten(*_arguments: Any) -> bool:
        return False

    return forgotten


# The tx queues that netback serves now: what reads a packet is given bytes, not the ring.
_served: list[Any] = []


def _remembers_queue(original: Any) -> Any:
    def poll(queue: Any) -> bool:
        _served.append(queue)
        try:
            more: bool = original(queue)
        finally:
            _served.pop()
        return more

    return poll


def _follows_past_producer(original: Any) -> Any:
    def read_extras(raw: Any, index: int, count: int, extras: dict[int, int]) -> int:
        try:
            after: int = original(raw, index, count, extras)
        except PeerProtocolError:
            after = _taken_unasked(raw, index, count)
            if not after:
                raise
        return after

    return read_extras


def _taken_unasked(raw: Any, index: int, count: int) -> int:
    """Extras from slot `index` of `count` on, those that are not taken where they lie in the
    ring, whoever put them there; the index after them, 0 if they end where they should.
    """
    ring = _served[-1]._ring
    first = u32(ring.req_cons - count)
    flags = lib.XEN_NETIF_EXTRA_FLAG_MORE
    while flags & lib.XEN_NETIF_EXTRA_FLAG_MORE:
        if index < count:
            kind, flags = raw[index * ring.req_size : index * ring.req_size + 2]
        else:
            at = FIRST_SLOT + u32(first + index) % ring.size * ring.req_size
            kind, flags = ring.domain.read(ring.pfns[0], at, 2)
        if not 0 < kind < lib.XEN_NETIF_EXTRA_TYPE_MAX:
            return 0
        index += 1
    if index <= count:
        return 0
    lib.ring_seek(ring.handle, ring.rsp_prod, u32(first + index))
    return index


def _takes_first_as_fragment(original: Any) -> Any:
    def later_slots(slots: Any, index: int, total: int) -> Any:
        later, _, drop = original(slots, index, total)
        return later, total, drop

    return later_slots


def _no_nulls(original: Any) -> Any:
    def answer(responses: list[int], ids: list[int], _nr_extras: int, status: int) -> None:
        original(responses, ids, 0, status)

    return answer


def _no_nulls_of_mapped(_original: Any) -> Any:
    def answer(slot: Any, responses: list[int], status: int) -> None:
        responses += (slot.number, status)

    return answer


def _maps_empty(original: Any) -> Any:
    def is_copied(amount: int, size: int) -> bool:
        return size > 0 and original(amount, size)

    return is_copied


def _publishes_each(original: Any) -> Any:
    def publish(queue: Any, responses: list[int]) -> None:
        for at in range(0, len(responses), 4):
            original(queue, responses[at : at + 4])

    return publish


def _large_unvalidated(original: Any) -> Any:
    def flags(packing: Any, frame: Any) -> int:
        found: int = original(packing, frame)
        return found & ~netpack.DATA_VALIDATED if frame.gso_type else found

    return flags


def _wraps(original: Any) -> Any:
    def is_beyond(offset: int, size: int, entries: int) -> bool:
        wrapped: bool = original(0, u32(offset + size), entries)
        return wrapped

    return is_beyond


def _keeps_failed(original: Any) -> Any:
    def post_again(rx: Any, numbers: list[int], batch: Any) -> None:
        kept = len(numbers) - len(batch.losses)
        # A full ring has a page for each slot: that of the slot which is next goes out.
        own = rx._slots.run(rx.ring.req_prod % rx.ring.size, kept)
        is_full = rx._slots.numbers(own) is own
        original(rx, own if is_full else numbers[:kept], batch)

    return post_again


DEFECTS: Final = (
    Defect(
        id="net-status-unsigned",
        end="XenVif",
        mutation="rx status read as unsigned",
        hunt="scenario:vif_errors",
        changes=((rxpacket, "RESPONSE", becomes(Struct("<HHHH"))),),
    ),
    Defect(
        id="net-csum-flags-swapped",
        end="netback",
        mutation="tx bit values used on rx",
        hunt="scenario:net_received",
        changes=(
            (netpack, "CSUM_BLANK", becomes(lib.NETTXF_csum_blank)),
            (netpack, "DATA_VALIDATED", becomes(lib.NETTXF_data_validated)),
        ),
    ),
    Defect(
        id="net-first-size-as-fragment",
        end="netback",
        mutation="first request's size taken as its own bytes",
        hunt="scenario:net_shapes",
        changes=(
            (nettx, "PAIRED", becomes(NEVER)),
            (nettx, "later_slots", _takes_first_as_fragment),
        ),
    ),
    Defect(
        id="net-extra-not-answered",
        end="netback",
        mutation="extras' slots get no NULL response",
        hunt="scenario:net_shapes",
        changes=((nettx, "answer", _no_nulls), (Mapped, "answer", _no_nulls_of_mapped)),
    ),
    Defect(
        id="net-extra-past-producer",
        end="netback",
        mutation="extras chain followed beyond req_prod",
        hunt="scenario:net_refused",
        changes=(
            (TxQueue, "poll", _remembers_queue),
            (nettx, "read_extras", _follows_past_producer),
        ),
    ),
    Defect(
        id="net-page-cross",
        end="netback",
        mutation="offset + size > 4096 not refused",
        hunt="scenario:net_refused",
        changes=(
            (nettx, "PAGE_SIZE", becomes(PAGES)),
            (txpacket, "PAGE_SIZE", becomes(PAGES)),
        ),
    ),
    Defect(
        id="net-zero-length-mapped",
        end="netback",
        mutation="zero-length fragment mapped",
        hunt="scenario:net_mapped",
        changes=((txpages, "is_copied", _maps_empty),),
    ),
    Defect(
        id="net-short-header",
        end="netback",
        mutation="Ethernet header read when the first fragment is under 14 bytes",
        hunt="scenario:net_refused",
        changes=((nettx, "ETHERNET", becomes(0)),),
    ),
    Defect(
        id="net-rx-partial",
        end="netback",
        mutation="rsp_prod advanced inside a packet",
        hunt="scenario:net_received",
        changes=((RxQueue, "_publish", _publishes_each),),
    ),
    Defect(
        id="net-rx-page-leak",
        end="XenVif",
        mutation="pages of a failed packet not posted again",
        hunt="scenario:vif_errors",
        changes=((ReceiverRing, "_post_again", _keeps_failed),),
    ),
    Defect(
        id="net-gso-unvalidated",
        end="netback",
        mutation="GSO on rx without data_validated",
        hunt="scenario:net_received",
        changes=((Packing, "flags", _large_unvalidated),),
    ),
    Defect(
        id="net-hash-mapping-overflow",
        end="netback",
        mutation="SET_HASH_MAPPING offset + length not checked against wrap (XSA-270)",
        hunt="scenario:net_control",
        changes=((netctrl, "is_beyond", _wraps),),
    ),
    Defect(
        id="net-backlog-unbounded",
        end="netback",
        mutation="rx backlog without cap or expiry",
        hunt="scenario:net_backlog",
        changes=(
            (netrx, "BACKLOG_MAX", becomes(1 << 60)),
            (RxQueue, "_drop_expired", _never),
            (RxQueue, "_await_expiry", _never),
        ),
    ),
    *netlimits.DEFECTS,
    *vif.DEFECTS,
)
