"""What backends get wrong about a response: what it is published before, what its slot shows.

Part of the room rings.
"""

from __future__ import annotations

from typing import Any, Final

from xenpv.abi._kernel import lib
from xenpv.back import blkring, blkserver, netrx, nettx
from xenpv.back.blkqueue import Kind
from xenpv.back.blkrules import OKAY
from xenpv.back.ring import BackRing
from xenpv.back.txpacket import REQUEST
from xenpv.back.txpacket import responses_packer as tx_packer
from xenpv.testing.zoo.defect import Defect
from xenpv.testing.zoo.passes import instead, on_rings, publish, remembers, write_slot
from xenpv.view.rings import KINDS, RSP_EVENT, RSP_PROD, fields, u32

READ: Final = blkring.READ
# What the backend had where a response has padding: some of its own memory.
PRIVATE: Final = 0xA5

_blk: list[Any] = []
_net: list[Any] = []


# published before the data is there

_waiting: list[tuple[Any, ...]] = []  # blk_copy's arguments
_published: list[Any] = []  # rings whose next response is out already


def _copies_later(original: Any, blk_pass: Any, first: int, *arguments: Any) -> Any:
    """What is written has to be there before it goes to the disk."""
    served = _blk[-1]
    if served.ring.raw[first * served.abi.request_size] != READ:
        return original(blk_pass, first, *arguments)
    _waiting.append((blk_pass, first, *arguments))
    return 0


def _answers_then_copies(original: Any, ring: Any, count: int) -> None:
    original(ring, count)
    waiting = _waiting[:]
    _waiting.clear()
    for arguments in waiting:
        lib.blk_copy(*arguments)


def _reads_after_answer(_original: Any, server: Any, io: Any) -> int:
    """BlkServer._read: its responses are out while the pages still hold what they did."""
    if not io.length:
        return OKAY
    buffer = server.bounce.view[: io.length]
    server._disk.image.read_into(buffer, io.offset)
    packed = [server.abi.response.pack(one.rid, one.operation, OKAY) for one in io.requests]
    if server.ring.push(b"".join(packed), len(packed)):
        server.domain.evtchn.send(server.port)
    server.data.store(io.requests, server._geometry, buffer)
    _published.extend(io.requests)
    return OKAY


def _answers_the_others(original: Any, server: Any) -> None:
    server._done[:] = [one for one in server._done if one[0] not in _published]
    _published.clear()
    original(server)


def _performs(original: Any) -> Any:
    """The table of blkserver, with reads as above."""
    reads = instead(_reads_after_answer)(original[Kind.READ])
    return {**original, Kind.READ: reads}


def _net_answers_first(original: Any, net_pass: Any, granter: Any, first: int, count: int,
                       *rest: Any) -> Any:  # fmt: skip
    for index in range(first, first + count):
        net_pass.verdicts[index] = OKAY
    queue = _net[-1]
    if lib.net_answer(net_pass, first, count) > 0:
        queue._vif.domain.evtchn.send(queue._port)
    return original(net_pass, granter, first, count, *rest)


def _net_answered(_original: Any, *_arguments: Any) -> int:
    return 0


def _finishes_answered(original: Any, queue: Any, batch: Any, count: int) -> None:
    """TxQueue._finish of packets of any shape."""
    queue._tx.answer(batch.refused + batch.responses)
    _published.append(queue._ring)
    try:
        original(queue, batch, count)
    finally:
        _published.clear()


def _rx_finishes_answered(original: Any, queue: Any, ops: Any, responses: Any, parts: Any) -> None:
    count = len(responses) // 4
    ring = queue._ring
    if ring.push(netrx.responses_packer(count).pack(*responses), count):
        queue._vif.domain.evtchn.send(queue._port)
    _published.append(ring)
    try:
        original(queue, ops, responses, parts)
    finally:
        _published.clear()


def _pushes_once(original: Any, ring: Any, packed: Any, count: int) -> bool:
    return False if ring in _published else original(ring, packed, count)


# what else is in the slot


def _padded(packed: bytes, struct: str) -> bytes:
    """A response with something in the bytes that no field of it has."""
    used = {at for _, start, size in fields(struct) for at in range(start, start + size)}
    return bytes(byte if at in used else PRIVATE for at, byte in enumerate(packed))


def _push_leaking(ring: Any, packed: bytes, count: int) -> bool:
    """Each response over the first bytes of its slot, and nothing over the others."""
    old = ring.rsp_prod
    response = KINDS[ring.kind].response
    for number in range(count):
        one = packed[number * ring.rsp_size : (number + 1) * ring.rsp_size]
        write_slot_at = u32(old + number)
        write_slot(ring, write_slot_at, _padded(one, response))
    new = u32(old + count)
    return publish(ring, RSP_PROD, RSP_EVENT, old, new, ring.req_cons)


def _back_push_leaking(original: Any, ring: Any, packed: Any, count: int) -> bool:
    if ring.kind not in KINDS:
        return bool(original(ring, packed, count))
    notify = _push_leaking(ring, bytes(packed), count)
    ring.published(count)
    return notify


def _blk_answer_leaking(_original: Any, _blk_pass: Any, count: int) -> int:
    served = _blk[-1]
    size, pack = served.abi.request_size, served.abi.response.pack
    packed = []
    for index in range(count):
        head = served.abi.head.unpack_from(served.ring.raw, index * size)
        rid = served.abi.indirect.unpack_from(served.ring.raw, index * size)[3]
        rid = rid if head[0] == blkring.INDIRECT else head[3]
        packed.append(pack(rid, head[0], served._verdicts[index]))
    return _push_leaking(served.ring, b"".join(packed), count)


def _net_answer_leaking(_original: Any, _net_pass: Any, first: int, count: int) -> int:
    queue = _net[-1]
    flat: list[int] = []
    for index in range(first, first + count):
        number = REQUEST.unpack_from(queue._ring.raw, index * REQUEST.size)[3]
        verdict = queue._verdicts[index]
        flat += (number, verdict - 256 if verdict > 127 else verdict)
    return _push_leaking(queue._ring, tx_packer(count).pack(*flat), count)


DEFECTS: Final = (
    Defect(
        id="ring-response-before-data",
        end="backend",
        mutation="publishes rsp_prod before the data is copied",
        hunt="scenario:blk_reads",
        changes=(
            (blkring.BlkRing, "service", remembers(_blk)),
            (blkring, "blk_copy", instead(_copies_later)),
            (blkring.BlkRing, "_answer", instead(_answers_then_copies)),
            (blkserver, "_PERFORM", _performs),
            (blkserver.BlkServer, "_answer", instead(_answers_the_others)),
            (nettx.TxQueue, "poll", remembers(_net)),
            (nettx, "net_copy", instead(_net_answers_first)),
            (nettx, "net_answer", instead(_net_answered)),
            (nettx.TxQueue, "_finish", instead(_finishes_answered)),
            (netrx.RxQueue, "_finish", instead(_rx_finishes_answered)),
            (BackRing, "push", on_rings(_pushes_once)),
        ),
    ),
    Defect(
        id="ring-response-leak",
        end="backend",
        mutation="leaves the request's other bytes in the response slot of a fresh ring page, "
        "with backend memory in the padding",
        hunt="scenario:blk_requests",
        changes=(
            (blkring.BlkRing, "service", remembers(_blk)),
            (nettx.TxQueue, "poll", remembers(_net)),
            (BackRing, "push", on_rings(_back_push_leaking)),
            (blkring, "blk_answer", instead(_blk_answer_leaking)),
            (nettx, "net_answer", instead(_net_answer_leaking)),
        ),
    ),
)
