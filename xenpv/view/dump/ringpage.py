"""A ring of slots from its bytes: indices, what is unconsumed, what is in flight (io/ring.h).

The page has two indices of each direction, both written by the one who produces it; where the
consumers are is theirs alone. With their last look before they sleep they write the event
after that place (RING_FINAL_CHECK_FOR_REQUESTS sets req_event to req_cons + 1), so the page of
an end that sleeps says it too, and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import attrs

from xenpv.view.dump.slots import Row, SlotKind, extra
from xenpv.view.dump.table import ROWS_MAX, Cell, Dump, Table, limited
from xenpv.view.rings import FIRST_SLOT, HEADER, u32

SIGN: Final = 1 << 31
ANSWERED_MAX: Final = 4  # responses shown where nobody says how many are new


def entries(nr_bytes: int, entry_size: int) -> int:
    """__RING_SIZE: the highest power of two of entries that the bytes have room for, or 0."""
    room = max(nr_bytes - FIRST_SLOT, 0) // entry_size
    return 1 << room.bit_length() - 1 if room else 0


def ahead(index: int, of: int) -> int:
    """How far, modulo 2^32; negative if it is behind."""
    distance = u32(index - of)
    return distance - (1 << 32) if distance >= SIGN else distance


@attrs.frozen(kw_only=True)
class Private:
    """What the ends know that the page does not; None: that end is not known here."""

    req_prod_pvt: int | None = None
    rsp_cons: int | None = None
    rsp_prod_pvt: int | None = None
    req_cons: int | None = None


NOBODY: Final = Private()


@attrs.frozen(kw_only=True)
class Indices:
    """The words of a header with `size` entries below it, and the ends' own."""

    req_prod: int
    req_event: int
    rsp_prod: int
    rsp_event: int
    size: int
    private: Private = NOBODY

    @classmethod
    def of(cls, data: bytes, size: int, private: Private = NOBODY) -> Indices:
        words = {name: int.from_bytes(data[at : at + 4], "little") for name, at in HEADER.items()}
        return cls(**words, size=size, private=private)

    @property
    def is_fresh(self) -> bool:
        """Nobody has made a ring of this page: SHARED_RING_INIT sets both events to 1."""
        return not (self.req_prod or self.req_event or self.rsp_prod or self.rsp_event)

    @property
    def unanswered(self) -> int:
        """Requests without a response, modulo 2^32."""
        return u32(self.req_prod - self.rsp_prod)

    @property
    def requests(self) -> int | None:
        """Requests that the backend has not consumed."""
        if self.private.req_cons is not None:
            return u32(self.req_prod - self.private.req_cons)
        left = u32(self.req_prod + 1 - self.req_event)
        return left if not self.is_fresh and left <= min(self.unanswered, self.size) else None

    @property
    def responses(self) -> int | None:
        """Responses that the frontend has not consumed."""
        if self.private.rsp_cons is not None:
            return u32(self.rsp_prod - self.private.rsp_cons)
        left = u32(self.rsp_prod + 1 - self.rsp_event)
        return (
            left
            if not self.is_fresh and left <= self.size - min(self.unanswered, self.size)
            else None
        )

    def wrong(self) -> Iterator[str]:
        """Why these cannot be the indices of a ring."""
        far = ahead(self.req_prod, self.rsp_prod)
        if far < 0:
            yield f"rsp_prod is {-far} ahead of req_prod: responses to what was never asked"
        elif far > self.size:
            yield f"req_prod is {far} ahead of rsp_prod: more than the ring's {self.size} entries"
        own = self.private
        for name, shared, private in (
            ("req_prod", self.req_prod, own.req_prod_pvt),
            ("rsp_prod", self.rsp_prod, own.rsp_prod_pvt),
        ):
            if private is not None and not 0 <= ahead(private, shared) <= self.size:
                yield f"{name} is not what its end published: that is at {private:#x}"
        for name, consumed, shared in (
            ("requests", own.req_cons, self.req_prod),
            ("responses", own.rsp_cons, self.rsp_prod),
        ):
            if consumed is not None and not 0 <= ahead(shared, consumed) <= self.size:
                yield f"{name} were consumed up to {consumed:#x}, which the producer is not at"


def decode(
    data: bytes, kind: SlotKind, name: str, *, size: int = 0, private: Private = NOBODY,
    most: int = ROWS_MAX,
) -> Dump:  # fmt: skip
    """A ring of any bytes. `size` 0: as many entries as fit. `most`: rows of each table."""
    size = size or entries(len(data), kind.entry_size)
    indices = Indices.of(data, size, private)
    wrong = tuple(indices.wrong())
    ring = _Rows(data, kind, indices)
    tables = ring.tables(is_wrong=bool(wrong), most=most)
    words: dict[str, Cell] = {one: getattr(indices, one) for one in HEADER}
    words |= {one: value for one, value in attrs.asdict(private).items() if value is not None}
    words["entries"] = size
    return Dump(
        kind=kind.name,
        name=name,
        words=words,
        counts={
            "unconsumed_requests": indices.requests,
            "unconsumed_responses": indices.responses,
            "in_flight": None if wrong else indices.unanswered,
        },
        wrong=wrong,
        notes=("nobody has initialised this ring: its events would be 1",)
        if indices.is_fresh
        else (),
        tables=tables,
    )


class _Rows:
    """The entries of one ring as tables."""

    def __init__(self, data: bytes, kind: SlotKind, indices: Indices) -> None:
        self.data = data
        self.kind = kind
        self.indices = indices

    def raw(self, index: int) -> bytes:
        at = FIRST_SLOT + index % self.indices.size * self.kind.entry_size
        return self.data[at : at + self.kind.entry_size].ljust(self.kind.entry_size, b"\0")

    def tables(self, *, is_wrong: bool, most: int) -> tuple[Table, ...]:
        indices = self.indices
        if not indices.size:
            return ()
        if is_wrong:
            rows = [self._slot(at) for at in range(indices.size) if any(self.raw(at))]
            columns = ("slot", *self.kind.request_columns)
            return limited("entries that are not zero, read as requests", columns, rows, most)
        return (*self._requests(most), *self._responses(most))

    def _slot(self, at: int) -> list[Cell]:
        found = self.kind.request(self.raw(at))
        return [at, *(found.values.get(one) for one in self.kind.request_columns)]

    def _requests(self, most: int) -> tuple[Table, ...]:
        indices = self.indices
        left = indices.requests
        rows = []
        for index, found in self._walk(indices.rsp_prod, indices.unanswered, self.kind.request):
            behind = u32(indices.req_prod - index)
            state = "" if left is None else "not consumed" if behind <= left else "in flight"
            rows.append(self._row(index, state, found, self.kind.request_columns))
        columns = ("index", "slot", "state", *self.kind.request_columns, "wrong")
        return limited("requests without a response", columns, rows, most)

    def _responses(self, most: int) -> tuple[Table, ...]:
        indices = self.indices
        left = indices.responses
        count = min(ANSWERED_MAX, indices.size - indices.unanswered) if left is None else left
        if left is None and not any(self.raw(u32(indices.rsp_prod - 1))):
            return ()
        count = min(count, indices.size - indices.unanswered)
        state = "" if left is None else "not consumed"
        rows = []
        first = u32(indices.rsp_prod - count)
        for index, found in self._walk(first, count, self.kind.response):
            rows.append(self._row(index, state, found, self.kind.response_columns))
        title = "responses not consumed" if state else "the last responses"
        columns = ("index", "slot", "state", *self.kind.response_columns, "wrong")
        return limited(title, columns, rows, most)

    def _walk(
        self, first: int, count: int, decode: Callable[[bytes], Row]
    ) -> Iterator[tuple[int, Row]]:
        """Entries in order: what follows one that announces extras is an extra."""
        more = False
        for index in (u32(first + at) for at in range(count)):
            raw = self.raw(index)
            found = extra(raw) if more else decode(raw)
            more = found.extras and self.kind.extras
            yield index, found

    def _row(self, index: int, state: str, found: Row, columns: tuple[str, ...]) -> list[Cell]:
        cells = [found.values.get(one) for one in columns]
        return [index, index % self.indices.size, state, *cells, found.wrong]
