"""Event-channel state from its bytes: shared_info's bits, FIFO's words and control blocks.

event_channel.h and xen.h. What a port is bound to is Xen's and in no page; see
xenpv.view.dump.live for that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.layout import offsetof, sizeof
from xenpv.view.dump.table import ROWS_MAX, Cell, Dump, limited

LEGACY_VCPUS: Final[int] = lib.XEN_LEGACY_MAX_VCPUS
PENDING: Final = 1 << lib.EVTCHN_FIFO_PENDING
MASKED: Final = 1 << lib.EVTCHN_FIFO_MASKED
LINKED: Final = 1 << lib.EVTCHN_FIFO_LINKED
BUSY: Final = 1 << lib.EVTCHN_FIFO_BUSY
LINK_MASK: Final[int] = lib.EVTCHN_FIFO_LINK_MASK
QUEUES: Final[int] = lib.EVTCHN_FIFO_MAX_QUEUES
CONTROL: Final = "evtchn_fifo_control_block"
CONTROL_SIZE: Final = sizeof(CONTROL)
WORD: Final = 4


@attrs.frozen
class Width:
    """shared_info of a 64-bit or of a 32-bit guest."""

    kind: str
    suffix: str
    word: int  # bytes

    @property
    def ports(self) -> int:
        """EVTCHN_2L_NR_CHANNELS."""
        return (8 * self.word) ** 2

    def offset(self, field: str) -> int:
        return offsetof(f"shared_info{self.suffix}", field)

    def selector(self) -> int:
        """Of evtchn_pending_sel, in a vcpu_info."""
        return offsetof(f"vcpu_info{self.suffix}", "evtchn_pending_sel")

    @property
    def vcpu_info_size(self) -> int:
        return sizeof(f"vcpu_info{self.suffix}")


X86_64: Final = Width("shared_info", "", 8)
X86_32: Final = Width("shared_info_x86_32", "_x86_32", 4)


@attrs.frozen
class Vcpu:
    """What a vcpu_info says: whether an upcall is due, may be made, and where to look."""

    number: int
    pending: int
    mask: int
    selector: int

    @classmethod
    def of(cls, number: int, raw: bytes, width: Width) -> Vcpu:
        at = width.selector()
        selector = int.from_bytes(raw[at : at + width.word], "little")
        return cls(number, raw[0], raw[1], selector)


def bits(data: bytes, at: int, count: int) -> int:
    """A bitmap as one number."""
    return int.from_bytes(data[at : at + count // 8], "little")


@attrs.frozen
class TwoLevel:
    """The bits of a shared_info page; bit N of each number is port N's."""

    width: Width
    pending: int
    mask: int

    @classmethod
    def of(cls, data: bytes, width: Width) -> TwoLevel:
        ports = width.ports
        return cls(
            width,
            bits(data, width.offset("evtchn_pending"), ports),
            bits(data, width.offset("evtchn_mask"), ports),
        )

    def is_pending(self, port: int) -> bool:
        return bool(self.pending >> port & 1)

    def is_masked(self, port: int) -> bool:
        return bool(self.mask >> port & 1)

    def waits(self) -> list[int]:
        """Ports that are pending and not masked."""
        found = self.pending & ~self.mask
        return [port for port in range(found.bit_length()) if found >> port & 1]

    def unseen(self, vcpus: Iterable[Vcpu]) -> list[int]:
        """Those of them to which no vcpu's evtchn_pending_sel leads."""
        selected = 0
        for vcpu in vcpus:
            selected |= vcpu.selector
        return [port for port in self.waits() if not selected >> port // (8 * self.width.word) & 1]


NOBODY_LOOKS: Final = (
    "ports {} are pending, not masked, and in no vcpu's evtchn_pending_sel: "
    "a handler is at them, or they were lost"
)
NOT_QUEUED: Final = (
    "ports {} are pending, not masked, and in no queue: a handler is at them, or they were lost"
)


def port_list(ports: list[int], most: int = 8) -> str:
    """The first of them as text."""
    more = ", ..." if len(ports) > most else ""
    return ", ".join(map(str, ports[:most])) + more


def vcpu_rows(vcpus: Iterable[Vcpu]) -> list[list[Cell]]:
    return [[one.number, one.pending, one.mask, one.selector] for one in vcpus]


VCPU_COLUMNS: Final = ("vcpu", "upcall_pending", "upcall_mask", "pending_sel")


def shared_info(data: bytes, name: str, *, width: Width = X86_64, most: int = ROWS_MAX) -> Dump:
    """A shared_info page of any bytes: the 2-level ABI's bits, and who has to look."""
    data = data.ljust(sizeof(f"shared_info{width.suffix}"), b"\0")
    level = TwoLevel.of(data, width)
    size = width.vcpu_info_size
    vcpus = [
        Vcpu.of(number, data[number * size : (number + 1) * size], width)
        for number in range(LEGACY_VCPUS)
    ]
    # A vcpu that was never made has a time of zeros; the first is always shown.
    used = [
        one
        for one in vcpus
        if not one.number or any(data[one.number * size : (one.number + 1) * size])
    ]
    rows: list[list[Cell]] = []
    unmasked = 0
    for port in range(width.ports):
        pending, masked = level.is_pending(port), level.is_masked(port)
        unmasked += not masked
        if pending:
            rows.append([port, "masked" if masked else "not masked"])
    unseen = level.unseen(vcpus)
    notes = (NOBODY_LOOKS.format(port_list(unseen)),) if unseen else ()
    words = {field: _u32(data, width.offset(field)) for field in ("wc_version", "wc_sec")}
    return Dump(
        kind=width.kind,
        name=name,
        words={"ports": width.ports, **words},
        counts={
            "pending": len(rows),
            "pending_not_masked": len(level.waits()),
            "not_masked": unmasked,
        },
        notes=notes,
        tables=(
            *limited("vcpus", VCPU_COLUMNS, vcpu_rows(used), most),
            *limited("pending", ("port", "mask"), rows, most),
        ),
    )


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + WORD], "little")


# FIFO


def word_text(word: int) -> str:
    """`pending masked linked`, and the port that the link leads to."""
    names = [
        name
        for bit, name in (
            (PENDING, "pending"), (MASKED, "masked"), (LINKED, "linked"), (BUSY, "busy"),
        )
        if word & bit
    ]  # fmt: skip
    return " ".join(names)


def word_wrong(word: int, nr_words: int) -> str:
    """Why an event word cannot be one of an array of so many, or nothing."""
    rest = word & ~(PENDING | MASKED | LINKED | BUSY | LINK_MASK)
    if rest:
        return f"{rest:#x} is no bit of an event word"
    if word & LINK_MASK >= nr_words:
        return f"the link leads to port {word & LINK_MASK} of {nr_words}"
    return ""


def fifo_words(data: bytes, name: str, *, most: int = ROWS_MAX) -> Dump:
    """Pages of a domain's event array, from its first on."""
    nr_words = len(data) // WORD
    rows: list[list[Cell]] = []
    masked = pending = 0
    for port in range(nr_words):
        word = _u32(data, port * WORD)
        masked += bool(word & MASKED)
        pending += bool(word & PENDING)
        if word & ~MASKED:
            rows.append(_word_row(port, word, nr_words))
    notes = []
    waits = [row[0] for row in rows if isinstance(row[1], int) and row[1] & PENDING]
    stuck = [
        port
        for port in waits
        if isinstance(port, int) and not _u32(data, port * WORD) & (MASKED | LINKED)
    ]
    if stuck:
        notes.append(NOT_QUEUED.format(port_list(stuck)))
    return Dump(
        kind="evtchn_fifo",
        name=name,
        words={"event_words": nr_words},
        counts={"pending": pending, "masked": masked},
        notes=tuple(notes),
        tables=limited("pending or linked", WORD_COLUMNS, rows, most),
    )


WORD_COLUMNS: Final = ("port", "word", "state", "link", "wrong")


def _word_row(port: int, word: int, nr_words: int) -> list[Cell]:
    link = word & LINK_MASK
    return [port, word, word_text(word), link or None, word_wrong(word, nr_words)]


def control_words(data: bytes) -> tuple[int, list[int]]:
    """`ready`, and the head of each of the 16 queues."""
    heads = offsetof(CONTROL, "head")
    ready = _u32(data, offsetof(CONTROL, "ready"))
    return ready, [_u32(data, heads + WORD * priority) for priority in range(QUEUES)]


def fifo_control(data: bytes, name: str, *, most: int = ROWS_MAX) -> Dump:
    """A vcpu's control block at the start of the bytes."""
    ready, heads = control_words(data.ljust(sizeof(CONTROL), b"\0"))
    rows: list[list[Cell]] = []
    for priority, head in enumerate(heads):
        is_ready = ready >> priority & 1
        if is_ready or head:
            wrong = f"there is no port {head}" if head > LINK_MASK else ""
            rows.append([priority, "yes" if is_ready else "no", head, wrong])
    beyond = ready >> QUEUES
    return Dump(
        kind="evtchn_fifo_control",
        name=name,
        words={"ready": ready},
        wrong=(f"ready has bits beyond the {QUEUES} queues: {ready:#x}",) if beyond else (),
        counts={"queues_ready": (ready & 0xFFFF).bit_count()},
        tables=limited("queues", ("priority", "ready", "head", "wrong"), rows, most),
    )
