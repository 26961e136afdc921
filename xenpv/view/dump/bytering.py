"""Rings of bytes: xenstored's page of a guest (io/xs_wire.h) and its console's (io/console.h).

What was not consumed of the store's is read as messages. Where the consumer stands in the
middle of one, nothing in the page says so: bytes that no header can be are shown as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.layout import offsetof, packer, sizeof
from xenpv.abi.xs import XS
from xenpv.view.dump.ringpage import ahead
from xenpv.view.dump.table import ROWS_MAX, Cell, Dump, Table, limited, quoted
from xenpv.view.rings import u32

HEADER: Final = packer("xsd_sockmsg")
PAYLOAD_MAX: Final[int] = lib.XENSTORE_PAYLOAD_MAX
RECENT: Final = 64  # bytes before the consumer
TEXT_MAX: Final = 160
ERRORS: Final = {
    lib.XENSTORE_ERROR_COMM: "COMM: the ring cannot be reached",
    lib.XENSTORE_ERROR_RINGIDX: "RINGIDX: the guest's indices were wrong",
    lib.XENSTORE_ERROR_PROTO: "PROTO: a message of the guest was wrong",
}


@attrs.frozen
class ByteRing:
    """One direction: where its bytes lie, and the names of its indices."""

    title: str
    buffer: str
    size: int
    cons: str
    prod: str


STORE: Final = "xenstore_domain_interface"
CONSOLE: Final = "xencons_interface"
STORE_RINGS: Final = (
    ByteRing("requests", "req", 1024, "req_cons", "req_prod"),
    ByteRing("responses", "rsp", 1024, "rsp_cons", "rsp_prod"),
)
CONSOLE_RINGS: Final = (
    ByteRing("input", "in", 1024, "in_cons", "in_prod"),
    ByteRing("output", "out", 2048, "out_cons", "out_prod"),
)


@attrs.frozen
class Found:
    """One direction as its indices have it."""

    ring: ByteRing
    struct: str
    data: bytes
    words: Mapping[str, int]

    @property
    def left(self) -> int:
        """Bytes that were not consumed, modulo 2^32."""
        return u32(self.words[self.ring.prod] - self.words[self.ring.cons])

    @property
    def wrong(self) -> str:
        far = ahead(self.words[self.ring.prod], self.words[self.ring.cons])
        names = f"{self.ring.prod} is"
        if far < 0:
            return f"{names} {-far} behind {self.ring.cons}: more was consumed than produced"
        if far > self.ring.size:
            return f"{names} {far} ahead of {self.ring.cons}: the ring has {self.ring.size} bytes"
        return ""

    def taken(self, first: int, count: int) -> bytes:
        """Bytes from free-running index `first` on."""
        start = offsetof(self.struct, self.ring.buffer)
        whole = self.data[start : start + self.ring.size]
        at = first % self.ring.size
        return (whole + whole)[at : at + count]

    def unconsumed(self) -> bytes:
        return self.taken(self.words[self.ring.cons], min(self.left, self.ring.size))

    def recent(self) -> bytes:
        """What was consumed last, as far as it is not written over."""
        cons = self.words[self.ring.cons]
        room = self.ring.size - min(self.left, self.ring.size)
        count = min(RECENT, room, cons)
        return self.taken(u32(cons - count), count)


def _found(struct: str, rings: tuple[ByteRing, ...], data: bytes) -> list[Found]:
    names = [name for ring in rings for name in (ring.cons, ring.prod)]
    words = {name: _word(struct, name, data) for name in names}
    return [Found(ring, struct, data, words) for ring in rings]


def _word(struct: str, name: str, data: bytes) -> int:
    at = offsetof(struct, name)
    return int.from_bytes(data[at : at + 4], "little")


def store(data: bytes, name: str, *, most: int = ROWS_MAX) -> Dump:
    """The store's page of any bytes."""
    data = data.ljust(sizeof(STORE), b"\0")
    found = _found(STORE, STORE_RINGS, data)
    words: dict[str, Cell] = dict(found[0].words)
    wrong = [one.wrong for one in found if one.wrong]
    for word in ("server_features", "connection", "error"):
        words[word] = _word(STORE, word, data)
    notes = []
    if words["connection"] == lib.XENSTORE_RECONNECT:
        notes.append("the guest asks xenstored to reconnect")
    error = _word(STORE, "error", data)
    if error:
        text = ERRORS.get(error, f"{error} is none that a header names")
        notes.append(f"xenstored serves this ring no more: {text}")
    tables: list[Table] = []
    for one in found:
        if one.wrong:
            continue
        rows, columns = messages(one.unconsumed())
        tables += limited(f"{one.ring.title} not consumed", columns, rows, most)
        recent = one.recent()
        if any(recent):
            rows = [[quoted(recent, RECENT)]]
            tables += limited(f"the end of the {one.ring.title} consumed", ("bytes",), rows, most)
    return Dump(
        kind="xenstore",
        name=name,
        words=words,
        counts={
            "unconsumed_request_bytes": None if found[0].wrong else found[0].left,
            "unconsumed_response_bytes": None if found[1].wrong else found[1].left,
        },
        wrong=tuple(wrong),
        notes=tuple(notes),
        tables=tuple(tables),
    )


MESSAGE_COLUMNS: Final = ("type", "req_id", "tx_id", "len", "payload")


def messages(data: bytes) -> tuple[list[list[Cell]], tuple[str, ...]]:
    """Rows of what xs_wire.h makes of bytes, as far as it makes something of them."""
    rows: list[list[Cell]] = []
    known = {int(one): one.name for one in XS}
    at = 0
    while at < len(data):
        head = data[at : at + HEADER.size]
        if len(head) < HEADER.size:
            rows.append(["a header's start", None, None, None, quoted(head)])
            break
        kind, req_id, tx_id, length = HEADER.unpack(head)
        if kind not in known or length > PAYLOAD_MAX:
            rows.append(["no header", None, None, None, quoted(data[at:], TEXT_MAX)])
            break
        at += HEADER.size
        payload = data[at : at + length]
        text = quoted(payload, TEXT_MAX)
        if len(payload) < length:
            text += f" and {length - len(payload)} bytes to come"
        rows.append([known[kind], req_id, tx_id, length, text])
        at += length
    return rows, MESSAGE_COLUMNS


def console(data: bytes, name: str, *, most: int = ROWS_MAX) -> Dump:
    """The console's page of any bytes."""
    data = data.ljust(sizeof(CONSOLE), b"\0")
    found = _found(CONSOLE, CONSOLE_RINGS, data)
    tables: list[Table] = []
    for one in found:
        if one.wrong:
            continue
        left, recent = one.unconsumed(), one.recent()
        rows: list[list[Cell]] = []
        if any(recent):
            rows.append(["consumed", quoted(recent, RECENT)])
        if left:
            rows.append(["not consumed", quoted(left, TEXT_MAX)])
        tables += limited(one.ring.title, ("state", "text"), rows, most)
    return Dump(
        kind="console",
        name=name,
        words=dict(found[0].words),
        counts={
            "unconsumed_input_bytes": None if found[0].wrong else found[0].left,
            "unconsumed_output_bytes": None if found[1].wrong else found[1].left,
        },
        wrong=tuple(one.wrong for one in found if one.wrong),
        tables=tuple(tables),
    )
