"""The rings of a platform as its memory has them: where each lies, and what its bytes are called.

Found through the handles that both ends have (Domain.rings), whoever wrote the ends. What a ring
carries is what its ends call it (`kind` of FrontRing and BackRing): a name of KINDS, or of a
protocol that was made known by `declare`. Reading here goes past the access hook and the log:
looking changes nothing, and is not logged.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import attrs

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.layout import ctype, offsetof, sizeof
from xenpv.errors import LocalProtocolError
from xenpv.xen.domain import PAGE_SIZE, Domain

if TYPE_CHECKING:
    from xenpv.platform import Platform
    from xenpv.xen.hypervisor import Hypervisor

# The header is that of every ring (io/ring.h); netif_tx's stands for all.
WORDS: Final = ("req_prod", "req_event", "rsp_prod", "rsp_event")
HEADER: Final = {name: offsetof("netif_tx_sring", name) for name in WORDS}
REQ_PROD: Final = HEADER["req_prod"]
REQ_EVENT: Final = HEADER["req_event"]
RSP_PROD: Final = HEADER["rsp_prod"]
RSP_EVENT: Final = HEADER["rsp_event"]
FIRST_SLOT: Final = offsetof("netif_tx_sring", "ring")


def u32(value: int) -> int:
    """Where indices wrap."""
    return value & 0xFFFFFFFF


# (name, offset, size in bytes) of each scalar of a struct.
Fields = tuple[tuple[str, int, int], ...]


@attrs.frozen
class RingKind:
    """What a ring carries. `device` is the store's name of its device class.

    `request` and `response` are structs, of Xen's headers or those of `structs`, with sizes in
    bytes. `request_id` and `response_id` are the fields by which a response names its request,
    "" if there is none. A kind whose requests `wait` holds buffers for what may come: its consumer
    takes them when it needs them, and unconsumed requests mean nothing.
    """

    name: str
    device: str
    request: str
    response: str
    request_size: int = 0
    response_size: int = 0
    request_id: str = ""
    response_id: str = ""
    wait: bool = False
    structs: tuple[tuple[str, Fields], ...] = ()

    @property
    def entry_size(self) -> int:
        """A slot: the union of both."""
        return max(self.request_size, self.response_size)


def _xen(name: str, device: str, suffix: str = "", *, wait: bool = False) -> RingKind:
    """One of Xen's own headers."""
    request, response = f"{name}_request{suffix}", f"{name}_response{suffix}"
    sizes = sizeof(request), sizeof(response)
    return RingKind(f"{name}{suffix}", device, request, response, *sizes, "id", "id", wait)


UNKNOWN: Final = RingKind("ring", "", "", "")
# By name. Those of Xen's headers that our own drivers have; `declare` adds others.
KINDS: Final[dict[str, RingKind]] = {
    one.name: one
    for one in (
        _xen("blkif", "vbd"),
        _xen("blkif", "vbd", "_x86_32"),
        _xen("netif_tx", "vif"),
        _xen("netif_rx", "vif", wait=True),
        _xen("xen_netif_ctrl", "vif"),
    )
}
_structs: dict[str, Fields] = {}  # of those that were declared


def declare(kind: RingKind) -> RingKind:
    """Make a protocol known: rings that are called by its name are decoded by its structs.

    A second declaration must say the same. LocalProtocolError: the name, or that of a struct,
    means something else already.
    """
    if KINDS.get(kind.name, kind) != kind:
        raise LocalProtocolError(f"a ring called {kind.name} is declared with another layout")
    for name, of in kind.structs:
        if fields(name) not in ((), of):
            raise LocalProtocolError(f"struct {name} is declared with another layout")
    KINDS[kind.name] = kind
    _structs.update(kind.structs)
    return kind


def kind_of(device: str, request_size: int, response_size: int) -> str:
    """What rings of such sizes are called that a device of that class has; "" if nothing."""
    sizes = (request_size, response_size)
    for kind in KINDS.values():
        if kind.device == device and sizes == (kind.request_size, kind.response_size):
            return kind.name
    return ""


def kind_with(request: str) -> str:
    """What rings are called whose requests are that struct; "" if nothing."""
    return next((one.name for one in KINDS.values() if one.request == request), "")


def fields(struct: str) -> Fields:
    """(name, offset, size in bytes) of each scalar of a struct: `seg[2].gref`, 40, 4.

    Empty for a struct that nobody has declared.
    """
    return _structs.get(struct) or _fields(struct)


@cache
def _fields(struct: str) -> Fields:
    try:
        return fields_of(ctype(struct)) if struct else ()
    except KeyError:
        return ()


def fields_of(of: Any) -> Fields:
    """The scalars of a cffi type; of a union those of each member."""
    return tuple(_leaves(of, 0, ""))


def _leaves(of: Any, offset: int, path: str) -> Iterator[tuple[str, int, int]]:
    if of.kind in ("struct", "union"):
        for name, field in of.fields:
            inner = f"{path}.{name}" if path else name
            yield from _leaves(field.type, offset + field.offset, inner)
    elif of.kind == "array":
        for at in range(of.length):
            yield from _leaves(of.item, offset + at * ffi.sizeof(of.item), f"{path}[{at}]")
    elif of.kind in ("primitive", "enum"):
        yield path, offset, ffi.sizeof(of)


def peek(hypervisor: Hypervisor, frame: int, offset: int, size: int) -> bytes:
    """Bytes of machine memory, unseen by hook and log."""
    at = frame * PAGE_SIZE + offset
    return bytes(hypervisor.arena.views[at : at + size])


def poke(hypervisor: Hypervisor, frame: int, offset: int, data: bytes) -> None:
    """Change machine memory as a peer on another processor would: no hook, no log."""
    at = frame * PAGE_SIZE + offset
    hypervisor.arena.views[at : at + len(data)] = data


# Handles of ends that a test drives: nobody is there who could miss a wake-up, or be wrong
# about an index.
_by_hand: weakref.WeakSet[Any] = weakref.WeakSet()


def by_hand(handle: Any) -> None:
    """A test is this end of a ring: checkers ask nothing of it."""
    _by_hand.add(handle)


def is_by_hand(handle: Any) -> bool:
    """Whether a test drives the end that has this handle."""
    return handle in _by_hand


@attrs.frozen(eq=False)
class End:
    """One end's handle on a ring. `index` is its private producer, `cons` its private consumer."""

    domain: Domain
    pfns: tuple[int, ...]
    handle: Any

    @property
    def index(self) -> int:
        return int(lib.ring_prod_pvt(self.handle))

    @property
    def cons(self) -> int:
        return int(lib.ring_cons(self.handle))

    @property
    def by_hand(self) -> bool:
        """Whether a test drives it."""
        return is_by_hand(self.handle)


@attrs.define(eq=False)
class KnownRing:
    """A shared ring of `size` entries of `entry_size` bytes in machine frames `frames`.

    `domain` is the frontend's (whose pages they are). `front` or `back` is None where that
    end has no handle of the kernel's: then only the shared words tell of it.
    """

    hypervisor: Hypervisor
    kind: RingKind
    domid: int
    frames: tuple[int, ...]
    entry_size: int
    size: int
    front: End | None = None
    back: End | None = None

    @property
    def name(self) -> str:
        """`blkif of d1`, with the pfn of the first page if the frontend is known."""
        at = "" if self.front is None else f" at pfn {self.front.pfns[0]:#x}"
        return f"{self.kind.name} of d{self.domid}{at}"

    def word(self, offset: int) -> int:
        """A word of the header: one of HEADER's offsets."""
        return int.from_bytes(peek(self.hypervisor, self.frames[0], offset, 4), "little")

    def place(self, index: int) -> tuple[int, int]:
        """Page and offset of the entry that `index` (free-running) falls on."""
        return divmod(FIRST_SLOT + index % self.size * self.entry_size, PAGE_SIZE)

    def slot(self, index: int) -> bytes:
        """All bytes of an entry."""
        page, offset = self.place(index)
        head = min(self.entry_size, PAGE_SIZE - offset)
        data = peek(self.hypervisor, self.frames[page], offset, head)
        if head < self.entry_size:
            data += peek(self.hypervisor, self.frames[page + 1], 0, self.entry_size - head)
        return data

    def values(self, index: int, struct: str) -> dict[str, int]:
        """An entry decoded as `struct`: each scalar, unsigned."""
        raw = self.slot(index)
        return {
            name: int.from_bytes(raw[at : at + size], "little") for name, at, size in fields(struct)
        }

    def where(self, frame: int, offset: int) -> str | None:
        """`blkif_request[3].nr_segments`, `req_prod`, or None if the byte is not the ring's.

        An entry is named as a request; a response lies in the same bytes.
        """
        if frame not in self.frames:
            return None
        at = self.frames.index(frame) * PAGE_SIZE + offset
        for name, start in HEADER.items():
            if start <= at < start + 4:
                return f"{self.kind.name}.{name}"
        slot, within = divmod(at - FIRST_SLOT, self.entry_size)
        if at < FIRST_SLOT or slot >= self.size:
            return f"{self.kind.name}+{at:#x}"
        entry = f"{self.kind.request or 'entry'}[{slot}]"
        for name, start, size in fields(self.kind.request):
            if start <= within < start + size:
                return f"{entry}.{name}"
        return f"{entry}+{within}"

    def is_slot(self, frame: int, offset: int) -> bool:
        """Whether the byte lies in an entry, not in the header."""
        if frame not in self.frames:
            return False
        return self.frames.index(frame) * PAGE_SIZE + offset >= FIRST_SLOT

    def table(self) -> list[str]:
        """Header and the entries in use as lines; at most ROWS_MAX entries."""
        words = ", ".join(f"{name} {self.word(at):#x}" for name, at in HEADER.items())
        lines = [f"{self.name}, {self.size} entries: {words}"]
        if not self.word(REQ_PROD) and not self.word(RSP_PROD):
            return lines
        for side, end in (("frontend", self.front), ("backend", self.back)):
            if end is not None:
                lines.append(
                    f"  {side} d{end.domain.domid}: private producer {end.index:#x}, "
                    f"consumer {end.cons:#x}"
                )
        requests, responses = self.word(REQ_PROD), self.word(RSP_PROD)
        used = min(u32(requests - responses), self.size)
        shown = range(min(used, ROWS_MAX))
        lines += [self._row(u32(responses + at), self.kind.request) for at in shown]
        answered = min(responses, self.size - used, 4)
        lines += [
            self._row(u32(responses - answered + at), self.kind.response) for at in range(answered)
        ]
        if used > ROWS_MAX:
            lines.append(f"  and {used - ROWS_MAX} more requests")
        return lines

    def _row(self, index: int, struct: str) -> str:
        if not struct:
            return f"  entry[{index % self.size}] {self.slot(index).hex()}"
        found = self.values(index, struct)
        shown = [f"{name} {value:#x}" for name, value in found.items() if value]
        return f"  {struct}[{index % self.size}] {', '.join(shown) or 'all zero'}"


ROWS_MAX: Final = 8


def _handles(domain: Domain) -> Iterator[tuple[Any, tuple[int, ...], int, str]]:
    """A domain's handles with their pages, entry size and kind, oldest first. One whose pages
    have a newer one is of a ring that is gone, and whose end has not let go of it.
    """
    taken: dict[int, None] = {}
    living = []
    for reference, (pfns, entry_size, _, kind) in reversed(list(domain.rings.items())):
        handle = reference()
        if handle is not None and not any(pfn in taken for pfn in pfns):
            living.append((handle, pfns, entry_size, kind))
            taken |= dict.fromkeys(pfns)
    return iter(living[::-1])


def rings(hypervisor: Hypervisor) -> list[KnownRing]:
    """Every ring that an end has a handle on, in the order in which they were attached."""
    found: dict[int, KnownRing] = {}
    domains = list(hypervisor.domains.values())
    for domain in domains:
        for handle, pfns, entry_size, named in _handles(domain):
            frames = tuple(int(lib.p2m_lookup(domain.kernel, pfn, 0)) for pfn in pfns)
            if min(frames) < 0:
                continue  # its pages are gone
            ring = found.get(frames[0])
            if ring is None:
                ring = found[frames[0]] = KnownRing(
                    hypervisor=hypervisor,
                    kind=UNKNOWN,
                    domid=int(lib.frame_owner(hypervisor.machine, frames[0])),
                    frames=frames,
                    entry_size=entry_size,
                    size=int(lib.ring_size(handle)),
                )
            if ring.kind is UNKNOWN:
                ring.kind = _known(named, entry_size)
            end = End(domain, pfns, handle)
            if ring.domid == domain.domid:
                ring.front = end
            else:
                ring.back = end
    return list(found.values())


def _known(name: str, entry_size: int) -> RingKind:
    """By what an end calls it, if its slots are such."""
    kind = KINDS.get(name, UNKNOWN)
    return kind if kind.entry_size == entry_size else UNKNOWN


def rings_of(platform: Platform) -> list[KnownRing]:
    """The rings of one platform."""
    return rings(platform.hypervisor)
