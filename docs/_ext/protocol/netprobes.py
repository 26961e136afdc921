"""What netbacks make of each wrong packet and each control request, found out by sending it.

A row is a situation and the slots for it; each is sent on a fresh connection to each backend, and
what the table says is what came back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import groupby
from typing import Final

from xenpv.testing.cases.netframes import PSEUDO, frame, packet
from xenpv.testing.cases.netscene import BAD_REF, FIRST_ID, BackendScene, Netback
from xenpv.testing.cases.netslots import (
    CSUM_BLANK,
    DATA_VALIDATED,
    EXTRA_INFO,
    GSO,
    HASH,
    MCAST_ADD,
    MCAST_DEL,
    MORE_DATA,
    extra,
    gso,
    tx,
)

from .table import Table

PROFILES: Final = ("linux", "qemu", "mirage")
STATUS: Final = {-2: "DROPPED", -1: "ERROR", 0: "OKAY", 1: "NULL"}
BLANK: Final = CSUM_BLANK | DATA_VALIDATED
MULTICAST: Final = bytes.fromhex("01005e000001")

Slots = Callable[[BackendScene], Sequence[bytes]]


def _one(size: int, *, offset: int = 0, flags: int = 0, ref: int | None = None) -> Slots:
    """A packet of one slot."""

    def slots(s: BackendScene) -> list[bytes]:
        page = s.page(frame(min(size, 4096 - offset)), offset) if ref is None else ref
        return [tx(page, offset, flags, FIRST_ID, size)]

    return slots


def _data(sizes: Sequence[int], *, total: int | None = None, offsets: Sequence[int] = ()) -> Slots:
    """A packet of several data slots; `total` where it is not their sum."""

    def slots(s: BackendScene) -> list[bytes]:
        whole = sum(sizes) if total is None else total
        made = []
        for index, size in enumerate(sizes):
            offset = offsets[index] if offsets else 0
            flags = MORE_DATA if index < len(sizes) - 1 else 0
            page = s.page(frame(min(4096 - offset, 4096)), offset)
            made.append(tx(page, offset, flags, FIRST_ID + index, size if index else whole))
        return made

    return slots


def _extras(*extras: bytes, data: bool = True, blank: bool = False) -> Slots:
    """A packet of one data slot and these extras."""

    def slots(s: BackendScene) -> list[bytes]:
        body = packet(3000, checksum=PSEUDO) if blank else frame(60)
        flags = EXTRA_INFO | (BLANK if blank else 0)
        ref, size = (s.page(body), len(body)) if data else (0, 0)
        return [tx(ref, 0, flags, FIRST_ID, size), *extras]

    return slots


def _cut(flags: int) -> Slots:
    """One slot that announces another which is not there."""
    return lambda s: [tx(s.page(frame(60)), 0, flags, FIRST_ID, 60)]


def _bad_second(s: BackendScene) -> list[bytes]:
    return [
        tx(s.page(frame(60)), 0, MORE_DATA, FIRST_ID, 120),
        tx(BAD_REF, 0, 0, FIRST_ID + 1, 60),
    ]


def _whole_gso(s: BackendScene) -> list[bytes]:
    data = packet(3000)
    return [tx(s.page(data), 0, EXTRA_INFO, FIRST_ID, len(data)), extra(GSO, gso(1448))]


def _blank_no_ip(s: BackendScene) -> list[bytes]:
    return [tx(s.page(frame(60)), 0, BLANK, FIRST_ID, 60)]


# In the order in which Linux' netback checks (xenvif_tx_build_gops and below).
ROWS: Final[tuple[tuple[str, Slots], ...]] = (
    ("a packet of one slot", _one(60)),
    ("of two", _data([60, 100])),
    ("an extra that the producer cuts off", _cut(EXTRA_INFO)),
    ("an extra of type 0", _extras(extra(0))),
    ("an extra of type 5", _extras(extra(5))),
    ("two GSO extras", _extras(extra(GSO, gso(1448), more=True), extra(GSO, gso(1000)),
                               blank=True)),
    ("a HASH extra", _extras(extra(HASH, bytes(6)))),
    ("MCAST_ADD", _extras(extra(MCAST_ADD, MULTICAST), data=False)),
    ("MCAST_DEL of a group that is not there", _extras(extra(MCAST_DEL, MULTICAST), data=False)),
    ("data that the producer cuts off", _cut(MORE_DATA)),
    ("18 data slots", _data([60] * 18)),
    ("19 data slots", _data([60] * 19)),
    ("20 data slots", _data([60] * 20)),
    ("21 data slots", _data([60] * 21)),
    ("22 data slots", _data([60] * 22)),
    ("later slots of more bytes than the packet has", _data([60, 100], total=80)),
    ("a later slot that crosses its page", _data([60, 97], offsets=[0, 4000])),
    ("13 bytes", _one(13)),
    ("a first piece of 13 bytes", _data([13, 100])),
    ("a first slot that crosses its page", _one(97, offset=4000)),
    ("a GSO extra of size 0", _extras(extra(GSO, gso(0)), blank=True)),
    ("a GSO extra of type 3", _extras(extra(GSO, gso(1448, 3)), blank=True)),
    ("a GSO extra and a checksum that is done", _whole_gso),
    ("a reference that nobody granted", _one(60, ref=BAD_REF)),
    ("the same in the second of two slots", _bad_second),
    ("a blank checksum in what is no IP", _blank_no_ip),
)  # fmt: skip


def told(answers: Sequence[tuple[int, int]], frames: int, broken: str) -> str:
    """Statuses in the order of the ring, alike ones once; what became of the packet."""
    if broken:
        return "fatal"
    if not answers:
        return "no answer"
    names = [STATUS[status] for _, status in answers]
    runs = [(name, len(list(found))) for name, found in groupby(names)]
    alike = [f"{count} x {name}" if count > 1 else name for name, count in runs]
    passed = {0: "", 1: "; passes"}.get(frames, f"; {frames} frames pass")
    return ", ".join(alike) + passed


def outcome(profile: str, slots: Slots) -> str:
    """Of one packet on a fresh connection."""
    scene = BackendScene(Netback(profile), 1)
    try:
        scene.connect()
        answers = scene.send(slots(scene))
        device = scene.front.backend
        broken = "" if device is None else device.broken
        return told(answers, len(scene.arrived()), broken)
    finally:
        scene.close()


@cache
def table() -> Table:
    rows = [(situation, *(outcome(one, slots) for one in PROFILES)) for situation, slots in ROWS]
    return Table(("packet", *PROFILES), tuple(rows))


# the control ring


def _key(s: BackendScene) -> tuple[int, ...]:
    return (s.page(bytes(40)), 40)


Asked = tuple[str, int, Callable[[BackendScene], tuple[int, ...]]]

# type, its arguments, what they are
CONTROL: Final[tuple[Asked, ...]] = (
    ("GET_HASH_FLAGS before an algorithm", 1, lambda _s: ()),
    ("SET_HASH_ALGORITHM 2", 7, lambda _s: (2,)),
    ("SET_HASH_ALGORITHM TOEPLITZ", 7, lambda _s: (1,)),
    ("GET_HASH_FLAGS", 1, lambda _s: ()),
    ("SET_HASH_FLAGS of an unknown bit", 2, lambda _s: (0x10,)),
    ("SET_HASH_FLAGS of all four", 2, lambda _s: (0xF,)),
    ("SET_HASH_KEY: reference, 41 bytes", 3, lambda s: (s.page(bytes(41)), 41)),
    ("SET_HASH_KEY: reference that nobody granted", 3, lambda _s: (BAD_REF, 40)),
    ("SET_HASH_KEY: reference, 40 bytes", 3, _key),
    ("GET_HASH_MAPPING_SIZE", 4, lambda _s: ()),
    ("SET_HASH_MAPPING_SIZE 129", 5, lambda _s: (129,)),
    ("SET_HASH_MAPPING_SIZE 4", 5, lambda _s: (4,)),
    ("SET_HASH_MAPPING: reference, 5 entries from 0", 6, lambda s: (s.page(bytes(20)), 5, 0)),
    ("SET_HASH_MAPPING: an entry that is no queue", 6,
     lambda s: (s.page(b"\x09\0\0\0" * 4), 4, 0)),
    ("SET_HASH_MAPPING: reference, 4 entries from 0", 6, lambda s: (s.page(bytes(16)), 4, 0)),
    ("GET_GREF_MAPPING_SIZE: queue", 8, lambda _s: (0,)),
    ("ADD_GREF_MAPPING: queue, reference, count", 9, lambda s: (0, s.page(), 1)),
    ("DEL_GREF_MAPPING: queue, reference, count", 10, lambda s: (0, s.page(), 1)),
    ("a type of 11", 11, lambda _s: ()),
)  # fmt: skip
CONTROL_STATUS: Final = ("SUCCESS", "NOT_SUPPORTED", "INVALID_PARAMETER", "BUFFER_OVERFLOW")


@cache
def control() -> Table:
    """Linux' answers, asked one after the other on one connection."""
    scene = BackendScene(Netback("linux"), 1)
    rows = []
    try:
        scene.connect(control=True)
        for text, kind, data in CONTROL:
            status, result = scene.ask(kind, *data(scene))
            rows.append((text, str(kind), CONTROL_STATUS[status], str(result) if result else ""))
    finally:
        scene.close()
    return Table(("request, its data in order", "type", "status", "data"), tuple(rows))
