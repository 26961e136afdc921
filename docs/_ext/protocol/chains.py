"""Packets and requests that take more than one slot: what lies on the ring, before and after.

The slots are those of a run: they are put on a ring, a backend answers, and both are read back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Final

import attrs

from xenpv.abi import layout
from xenpv.abi.netif import NETRXF, NETTXF
from xenpv.host.network import GSO_TCPV4, Frame
from xenpv.testing.cases.blkpeer import READ, WHOLE
from xenpv.testing.cases.blkscene import Blkback, BlkBackScene
from xenpv.testing.cases.netframes import PSEUDO, packet
from xenpv.testing.cases.netscene import FIRST_ID, BackendScene, Netback, rx_id
from xenpv.testing.cases.netslots import (
    CSUM_BLANK,
    DATA_VALIDATED,
    EXTRA_INFO,
    GSO,
    HASH,
    MORE_DATA,
    extra,
    gso,
    tx,
)

from .netprobes import STATUS
from .svg import FONT_MIN, Box, Picture, PictureError, text_width
from .texts import UnknownError

LINE: Final = 15
GAP: Final = 6
TOP: Final = 24
LEFT: Final = 26
MIDDLE: Final = 188
WIDTH: Final = 356
MSS: Final = 1448
EXTRA_TYPES: Final = {1: "GSO", 2: "MCAST_ADD", 3: "MCAST_DEL", 4: "HASH", 5: "XDP"}


@attrs.frozen
class Row:
    """A slot: its number, what the one end put there, what the other made of it.

    `kind` is request or extra; `after_kind` response or extra.
    """

    index: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    kind: str = "request"
    after_kind: str = "response"


def draw(title: str, heads: tuple[str, str], rows: Sequence[Row]) -> Picture:
    heights = [LINE * max(len(row.before), len(row.after)) + 8 for row in rows]
    said = "; ".join(
        f"slot {row.index}: {' '.join(row.before)}, then {' '.join(row.after)}" for row in rows
    )
    height = TOP + sum(heights) + GAP * len(rows) + 4
    picture = Picture(WIDTH, height, title, said)
    for x, head in ((LEFT, heads[0]), (MIDDLE, heads[1])):
        picture.text(x + 2, TOP / 2, head, "dim", size=FONT_MIN, anchor="start")
    y = float(TOP)
    for row, tall in zip(rows, heights, strict=True):
        picture.text(LEFT - 6, y + tall / 2, row.index, "dim", size=FONT_MIN, anchor="end")
        _cell(picture, Box(LEFT, y, MIDDLE - LEFT - 6, tall), row.kind, row.before)
        _cell(picture, Box(MIDDLE, y, WIDTH - MIDDLE - 4, tall), row.after_kind, row.after)
        y += tall + GAP
    return picture


def _cell(picture: Picture, box: Box, kind: str, lines: Sequence[str]) -> None:
    picture.box(box, kind if lines else "ghost", radius=3)
    for index, text in enumerate(lines):
        if text_width(text, FONT_MIN) > box.width - 8:
            raise PictureError(f"{picture.title}: {text!r} is wider than its box")
        picture.text(
            box.x + 6, box.y + 4 + LINE * (index + 0.5), text, size=FONT_MIN, anchor="start"
        )


def _flags(kind: type[NETTXF | NETRXF], value: int) -> list[str]:
    return [str(one.name) for one in kind if value & one]


def _extra_lines(raw: bytes) -> tuple[str, ...]:
    kind, flags = raw[0], raw[1]
    lines = ["extra " + EXTRA_TYPES[kind] + (", MORE" if flags & 1 else "")]
    if kind == GSO:
        lines.append(f"size {int.from_bytes(raw[2:4], 'little')}, type {raw[4]}")
    return tuple(lines)


# transmit


def _tx_slots(s: BackendScene) -> list[bytes]:
    """A large TCP packet: headers of 100 bytes, a GSO and a HASH extra, two more pages."""
    body = packet(6100, checksum=PSEUDO)
    flags = CSUM_BLANK | DATA_VALIDATED | MORE_DATA | EXTRA_INFO
    parts = [body[:100], body[100:4100], body[4100:]]
    refs = [s.page(part) for part in parts]
    return [
        tx(refs[0], 0, flags, FIRST_ID, len(body)),
        extra(GSO, gso(MSS), more=True),
        extra(HASH, bytes((1, 1)) + b"\x11\x22\x33\x44"),
        tx(refs[1], 0, MORE_DATA, FIRST_ID + 1, len(parts[1])),
        tx(refs[2], 0, 0, FIRST_ID + 2, len(parts[2])),
    ]


def _tx_rows(s: BackendScene) -> list[Row]:
    slots = _tx_slots(s)
    answers = s.send(slots)
    assert len(s.arrived()) == 1, "the packet did not pass"
    rows = []
    is_extra = (False, True, True, False, False)
    for at, (slot, (number, status)) in enumerate(zip(slots, answers, strict=True)):
        if is_extra[at]:
            after: tuple[str, ...] = (f"status {STATUS[status]}",)
            rows.append(Row(str(at), _extra_lines(slot), after, "extra"))
            continue
        _, offset, flags, rid, size = layout.packer("netif_tx_request").unpack(slot)
        what = "whole" if not at else "own bytes"
        before = (f"id {rid}, offset {offset}", f"size {size} ({what})", *_flags(NETTXF, flags))
        rows.append(Row(str(at), before, (f"id {number}", f"status {STATUS[status]}")))
    return rows


# receive


def _rx_rows(s: BackendScene) -> list[Row]:
    """Five pages are posted, and a large packet comes from the bridge."""
    s.post(5)
    frame = Frame(packet(6100, checksum=PSEUDO), csum_blank=True, data_validated=True)
    frame.gso_type, frame.gso_size = GSO_TCPV4, MSS
    s.deliver(frame)
    rows = []
    more_extra = False
    slots = s.received()
    for at in range(5):
        before = (f"id {rx_id(at)}, a page",)
        if at >= len(slots):
            rows.append(Row(str(at), before, (), after_kind="ghost"))
            continue
        slot = slots[at]
        if more_extra:
            rows.append(Row(str(at), before, _extra_lines(slot.raw), after_kind="extra"))
            more_extra = bool(slot.raw[1] & 1)
            continue
        more_extra = bool(slot.flags & EXTRA_INFO)
        told = (f"id {slot.number}, offset {slot.offset}", f"status {slot.status} (bytes)")
        rows.append(Row(str(at), before, (*told, *_flags(NETRXF, slot.flags))))
    return rows


# block requests


def _blk_rows(s: BlkBackScene) -> list[Row]:
    """A READ of three pages, and the same of twelve by INDIRECT: one slot each."""
    peer = s.front()
    pages = [peer.granted()[1] for _ in range(12)]
    direct = peer.rw(READ, 0, [(ref, *WHOLE) for ref in pages[:3]])
    indirect = peer.indirect(READ, 0, [(ref, *WHOLE) for ref in pages])
    answers = peer.send(direct, indirect)
    names = [f"status {STATUS[one.status]}, operation {one.operation}" for one in answers]
    count = len(pages)
    table = layout.sizeof("blkif_request_segment")
    return [
        Row("0", ("operation 0 READ", "nr_segments 3", "sector_number 0", "seg[0..2]: 3 grefs,",
                  "sectors 0 to 7 of each"), ("id of slot 0", *names[0].split(", "))),
        Row("1", ("operation 6 INDIRECT", "indirect_op 0 READ", f"nr_segments {count}",
                  "sector_number 0", "indirect_grefs[0]: a", f"page of {count} x {table} bytes"),
            ("id of slot 1", *names[1].split(", "))),
    ]  # fmt: skip


def _net(rows: Callable[[BackendScene], list[Row]]) -> list[Row]:
    scene = BackendScene(Netback("linux"), 1)
    try:
        scene.connect({"feature-gso-tcpv4": "1", "feature-sg": "1"})
        return rows(scene)
    finally:
        scene.close()


@cache
def picture(name: str) -> Picture:
    """UnknownError: no such chain."""
    if name == "tx":
        heads = ("the frontend's requests", "the backend's responses")
        return draw("A large packet on a transmit ring", heads, _net(_tx_rows))
    if name == "rx":
        heads = ("the frontend's requests", "the backend's responses")
        return draw("A large packet on a receive ring", heads, _net(_rx_rows))
    if name == "blk":
        scene = BlkBackScene(Blkback("linux"), 1)
        try:
            heads = ("requests", "responses")
            return draw("Two reads on a block ring", heads, _blk_rows(scene))
        finally:
            scene.close()
    raise UnknownError("chain", name, ("tx", "rx", "blk"))
