"""Byte rings: DEFINE_XEN_FLEX_RING_AND_INTF of io/ring.h, as 9pfs and pvcalls have them.

    NINEPFS = ByteRingProtocol.from_cdef("xen_9pfs", TEXT, interface="xen_9pfs_data_intf",
                                         device="9pfs")

One page, the interface, has the indices of two streams, `ring_order` and the references of
`1 << ring_order` data pages. The first half of these is `in` (backend to frontend), the second
`out`. Indices run freely and wrap at 2^32; the byte that one stands for is masked by the half's
size, XEN_FLEX_RING_SIZE. A producer writes its bytes before its index, a consumer reads before it
moves its own; each goes by a private copy of what it wrote itself (9pfs.pandoc, "Ring Usage").
Both tell the other end after each move: version 1 leaves nothing out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

import attrs

from xenpv.errors import LocalProtocolError, PeerProtocolError
from xenpv.testing.ringkit.declaration import Declaration
from xenpv.view.rings import u32
from xenpv.xen.domain import PAGE_SIZE

if TYPE_CHECKING:
    from xenpv.back.xenbus import Device
    from xenpv.testing.raw_front import RawGuest
    from xenpv.testing.ringkit.rawbytes import RawByteBack, RawByteFront

ORDER_MAX: Final = 9  # 512 references: what fits into the interface's page (9pfs.pandoc)


class Memory(Protocol):
    """Pages of a domain: an End, or the domain itself."""

    def read(self, pfn: int, offset: int, size: int) -> bytes: ...

    def write(self, pfn: int, offset: int, data: bytes) -> None: ...

    def load32(self, pfn: int, offset: int) -> int: ...

    def store32(self, pfn: int, offset: int, value: int) -> None: ...


@attrs.frozen
class Way:
    """One stream: offsets of its words in the interface, and where its bytes are in the data.

    `error` is None where the interface has no such word.
    """

    name: str
    cons: int
    prod: int
    error: int | None
    base: int
    size: int


@attrs.frozen(eq=False, kw_only=True)
class ByteRingProtocol:
    """A protocol over one byte ring and one event channel, named in the store as 9pfs does it:
    `ring_ref`0 and `event_channel`0, with `front_keys` beside them.
    """

    name: str
    device: str
    declaration: Declaration
    ring_ref: str
    event_channel: str
    front_keys: tuple[tuple[str, str], ...]
    back_keys: tuple[tuple[str, str], ...]
    order_max: int
    _interface: Any

    @classmethod
    def from_cdef(
        cls,
        name: str,
        text: str,
        *,
        interface: str,
        device: str,
        ring_ref: str = "ring-ref",
        event_channel: str = "event-channel-",
        front_keys: tuple[tuple[str, str], ...] = (("version", "1"), ("num-rings", "1")),
        back_keys: tuple[tuple[str, str], ...] = (("versions", "1"), ("max-rings", "1")),
        order_max: int = ORDER_MAX,
    ) -> Self:
        """From the text of a header; `interface` is the struct with the indices.

        LocalProtocolError: cffi cannot read it, or a word of the interface is missing.
        """
        declaration = Declaration(name, text)
        of = declaration.struct(interface)
        have = [field for field, _ in of.fields]
        for word in ("in_cons", "in_prod", "out_cons", "out_prod", "ring_order", "ref"):
            if word not in have:
                raise LocalProtocolError(f"{name}: struct {interface} has no {word}")
        return cls(
            name=name,
            device=device,
            declaration=declaration,
            ring_ref=ring_ref,
            event_channel=event_channel,
            front_keys=front_keys,
            back_keys=(*back_keys, ("max-ring-page-order", str(order_max))),
            order_max=order_max,
            interface=of,
        )

    def __repr__(self) -> str:
        return f"<ByteRingProtocol {self.name}>"

    def offset(self, word: str) -> int:
        """Where a word of the interface is, in bytes. KeyError: it has none of that name."""
        return self.declaration.offset(self._interface, word)

    def ring_size(self, order: int) -> int:
        """XEN_FLEX_RING_SIZE: bytes of each way of a ring with that many pages, by order."""
        return 1 << order + PAGE_SIZE.bit_length() - 2

    def ways(self, order: int) -> tuple[Way, Way]:
        """`in` and `out` of a ring of that order."""
        size = self.ring_size(order)
        have = [field for field, _ in self._interface.fields]
        found = [
            Way(
                name=name,
                cons=self.offset(f"{name}_cons"),
                prod=self.offset(f"{name}_prod"),
                error=self.offset(f"{name}_error") if f"{name}_error" in have else None,
                base=base,
                size=size,
            )
            for name, base in (("in", 0), ("out", size))
        ]
        return found[0], found[1]

    def raw_front(self, guest: RawGuest, devid: int = 0) -> RawByteFront:
        """A frontend in a test's hands."""
        from xenpv.testing.ringkit.rawbytes import RawByteFront

        return RawByteFront(self, guest, devid)

    def raw_back(self, device: Device) -> RawByteBack:
        """A backend in a test's hands."""
        from xenpv.testing.ringkit.rawbytes import RawByteBack

        return RawByteBack(self, device)


class Half:
    """One way of a ring, from one end. `index` is the private copy of its own index."""

    def __init__(
        self, memory: Memory, interface: int, data: Sequence[int], way: Way, index: int
    ) -> None:
        self.memory = memory
        self.interface = interface
        self.data = tuple(data)
        self.way = way
        self.index = index

    @property
    def size(self) -> int:
        """Bytes that the way holds."""
        return self.way.size

    @property
    def error(self) -> int:
        """The way's error word, 0 for none. LocalProtocolError: this protocol has no such word."""
        return self.memory.load32(self.interface, self._error())

    @error.setter
    def error(self, value: int) -> None:
        self.memory.store32(self.interface, self._error(), value & 0xFFFFFFFF)

    def _error(self) -> int:
        if self.way.error is None:
            raise LocalProtocolError(f"{self.way.name}_error: this protocol's interface has none")
        return self.way.error

    def _queued(self, prod: int, cons: int) -> int:
        """Bytes between two indices. PeerProtocolError: more than there is room for."""
        queued = u32(prod - cons)
        if queued > self.way.size:
            name, size = self.way.name, self.way.size
            raise PeerProtocolError(
                f"{name}_prod {prod:#x}, {name}_cons {cons:#x}: {queued} bytes in a ring of {size}"
            )
        return queued

    def _pieces(self, index: int, size: int) -> list[tuple[int, int, int]]:
        """(pfn, offset, size) of bytes from an index on: cut at pages, and where the way ends."""
        found = []
        while size:
            at = self.way.base + (index & (self.way.size - 1))
            end = self.way.base + self.way.size
            page, offset = divmod(at, PAGE_SIZE)
            part = min(size, PAGE_SIZE - offset, end - at)
            found.append((self.data[page], offset, part))
            index, size = u32(index + part), size - part
        return found


class Producer(Half):
    """The end that writes a way."""

    @property
    def room(self) -> int:
        """Bytes that may be written now. PeerProtocolError: the consumer is ahead of them."""
        cons = self.memory.load32(self.interface, self.way.cons)  # read once
        return self.way.size - self._queued(self.index, cons)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write as many bytes as there is room for, and publish them: how many. Tell the
        consumer if it is not 0.
        """
        data = bytes(data[: self.room])
        done = 0
        for pfn, offset, size in self._pieces(self.index, len(data)):
            self.memory.write(pfn, offset, data[done : done + size])
            done += size
        if done:
            self.index = u32(self.index + done)
            self.memory.store32(self.interface, self.way.prod, self.index)
        return done


class Consumer(Half):
    """The end that reads a way."""

    @property
    def queued(self) -> int:
        """Bytes that may be read now. PeerProtocolError: more than the ring holds."""
        prod = self.memory.load32(self.interface, self.way.prod)  # read once
        return self._queued(prod, self.index)

    def read(self, most: int | None = None) -> bytes:
        """Bytes that are there, at most `most`, and make room for others. Tell the producer if it
        is not none: it may wait for room.
        """
        queued = self.queued
        size = queued if most is None else min(most, queued)
        pieces = self._pieces(self.index, size)
        data = b"".join([self.memory.read(pfn, offset, part) for pfn, offset, part in pieces])
        if data:
            self.index = u32(self.index + len(data))
            self.memory.store32(self.interface, self.way.cons, self.index)
        return data


class ByteFront:
    """A frontend's ring: `incoming` is `in`, `outgoing` is `out`."""

    def __init__(
        self,
        protocol: ByteRingProtocol,
        memory: Memory,
        interface: int,
        data: Sequence[int],
        refs: Sequence[int],
        *,
        start: int = 0,
    ) -> None:
        """Initialise the interface's page. `start`: where all indices begin, for tests of the
        wrap. LocalProtocolError: the pages are no power of two of them.
        """
        order = max(len(data).bit_length() - 1, 0)
        if len(data) != 1 << order or len(refs) != len(data) or order > protocol.order_max:
            raise LocalProtocolError(
                f"{len(data)} pages, {len(refs)} references: expected 2^n of each, n at most "
                f"{protocol.order_max}"
            )
        memory.write(interface, 0, bytes(PAGE_SIZE))
        into, out = protocol.ways(order)
        for way in (into, out):
            memory.store32(interface, way.cons, start)
            memory.store32(interface, way.prod, start)
        memory.store32(interface, protocol.offset("ring_order"), order)
        first = protocol.offset("ref")
        for at, ref in enumerate(refs):
            memory.store32(interface, first + 4 * at, ref)
        self.protocol = protocol
        self.incoming = Consumer(memory, interface, data, into, start)
        self.outgoing = Producer(memory, interface, data, out, start)


class ByteBack:
    """A backend's ring: `incoming` is `out`, `outgoing` is `in`."""

    def __init__(
        self,
        protocol: ByteRingProtocol,
        memory: Memory,
        interface: int,
        map_page: Callable[[int], int],
    ) -> None:
        """Attach to the interface's page that is mapped: read its order and references, once
        each, map the data by `map_page`, go on where the indices are.

        PeerProtocolError: the order is more than `order_max`, or an index cannot be.
        """
        order = memory.load32(interface, protocol.offset("ring_order"))
        if order > protocol.order_max:
            raise PeerProtocolError(f"ring_order {order}, at most {protocol.order_max}")
        first = protocol.offset("ref")
        refs = [memory.load32(interface, first + 4 * at) for at in range(1 << order)]
        self.data = [map_page(ref) for ref in refs]
        into, out = protocol.ways(order)
        self.protocol = protocol
        self.outgoing = Producer(
            memory, interface, self.data, into, memory.load32(interface, into.prod)
        )
        self.incoming = Consumer(
            memory, interface, self.data, out, memory.load32(interface, out.cons)
        )
        _ = self.outgoing.room, self.incoming.queued  # indices that cannot be are refused here


def check_byte_ring(front: ByteFront, back: ByteBack) -> list[str]:
    """What is wrong between two ends at rest: a line each.

    Each end's index is what it published, no more is queued than there is room for, and nobody
    sleeps with bytes that it has not read.
    """
    findings = []
    for way, producer, consumer in (
        ("out", front.outgoing, back.incoming),
        ("in", back.outgoing, front.incoming),
    ):
        memory, interface, at = producer.memory, producer.interface, producer.way
        prod, cons = memory.load32(interface, at.prod), memory.load32(interface, at.cons)
        if prod != producer.index:
            findings.append(f"{way}_prod is {prod:#x}, its producer published {producer.index:#x}")
        if cons != consumer.index:
            findings.append(f"{way}_cons is {cons:#x}, its consumer published {consumer.index:#x}")
        queued = u32(prod - cons)
        if queued > at.size:
            findings.append(f"{way}: {queued:#x} bytes in a ring of {at.size}")
        elif queued:
            findings.append(f"{way}: lost wake-up: its consumer sleeps with {queued} bytes unread")
    return findings


def table(front: ByteFront) -> list[str]:
    """The interface's words and how much is queued, a line for each way: for reports."""
    lines = []
    for half in (front.incoming, front.outgoing):
        way, memory = half.way, half.memory
        prod, cons = (memory.load32(half.interface, at) for at in (way.prod, way.cons))
        error = "" if way.error is None else f", {way.name}_error {half.error:#x}"
        lines.append(
            f"{front.protocol.name} {way.name}: {way.name}_prod {prod:#x}, {way.name}_cons "
            f"{cons:#x}{error}, {u32(prod - cons)} of {way.size} bytes queued"
        )
    return lines
