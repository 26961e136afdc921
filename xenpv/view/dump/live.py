"""The same of a platform that runs: with what its ends and its Xen know beside the pages.

For a moment between tasks, when every handler is done. Everything is read past the access
hook and the log, and nothing is written: the digest stays what it would have been.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.evtchn import VIRQ
from xenpv.errors import LocalProtocolError
from xenpv.view.dump import bytering, grants, ports, ringpage
from xenpv.view.dump.slots import SLOTS, SlotKind, plain
from xenpv.view.dump.table import ROWS_MAX, Cell, Dump, Dumps, Table, limited
from xenpv.view.rings import KnownRing, peek, rings
from xenpv.xen.domain import PAGE_SIZE, Domain
from xenpv.xen.evtchn_port import Port, PortState
from xenpv.xen.memory import PFN_END

if TYPE_CHECKING:
    from xenpv.platform import Platform
    from xenpv.store.node import Node
    from xenpv.store.ring import StoreRing
    from xenpv.xen.hypervisor import Hypervisor

STORE_REF: Final[int] = lib.GNTTAB_RESERVED_XENSTORE
CONSOLE_REF: Final[int] = lib.GNTTAB_RESERVED_CONSOLE
NODES_MAX: Final = 4096  # of a domain's devices that are looked at for rings
GREF_DIGITS: Final = 10


# rings


def dump_ring(ring: KnownRing, *, name: str = "", most: int = ROWS_MAX) -> Dump:
    """A ring with both ends' own indices, as far as they have handles.

    An end that a test drives by hand has no indices of its own here.
    """
    data = b"".join(peek(ring.hypervisor, frame, 0, PAGE_SIZE) for frame in ring.frames)
    own: dict[str, int] = {}
    if ring.front is not None and not ring.front.by_hand:
        own |= {"req_prod_pvt": ring.front.index, "rsp_cons": ring.front.cons}
    if ring.back is not None and not ring.back.by_hand:
        own |= {"rsp_prod_pvt": ring.back.index, "req_cons": ring.back.cons}
    return ringpage.decode(
        data,
        slots_of(ring),
        name or ring.name,
        size=ring.size,
        private=ringpage.Private(**own),
        most=most,
    )


def slots_of(ring: KnownRing) -> SlotKind:
    """How its entries are read: those of our headers by name, any other by what was declared."""
    known = SLOTS.get(ring.kind.name)
    if known is not None and known.entry_size == ring.entry_size:
        return known
    kind = ring.kind
    return SlotKind(kind.name or "ring", ring.entry_size, plain(kind.request), plain(kind.response))


# grants


def _frames(hypervisor: Hypervisor, frames: Iterator[int]) -> bytes:
    return b"".join(peek(hypervisor, frame, 0, PAGE_SIZE) for frame in frames)


def _entries(domain: Domain) -> list[grants.Entry]:
    table, kernel = domain.gnttab, domain.kernel
    hypervisor = domain._hypervisor
    shared = _frames(
        hypervisor, (int(lib.grant_table_frame(kernel, at)) for at in range(table.nr_frames))
    )
    if table.version == 1:
        return grants.entries_v1(shared)
    status = _frames(
        hypervisor,
        (int(lib.grant_table_status_frame(kernel, at)) for at in range(table.nr_status_frames)),
    )
    return grants.entries_v2(shared, status=status)


def mappers(domain: Domain) -> dict[int, list[int]]:
    """By reference: who has mapped the entry, a domid for each mapping."""
    found: dict[int, list[int]] = {}
    for other in domain._hypervisor.domains.values():
        for mapping in other.gnttab.maptrack.values():
            if mapping.granter is domain:
                found.setdefault(mapping.ref, []).append(other.domid)
    return found


def dump_grants(
    domain: Domain, *, labels: Mapping[int, str] | None = None, most: int = ROWS_MAX
) -> Dump:
    """A domain's grant table: what it grants to whom, and who has mapped it.

    `labels` says by machine frame what a page is.
    """
    table = domain.gnttab
    mapped = mappers(domain)
    found = _entries(domain)
    names = labels or {}

    def what(entry: grants.Entry) -> str:
        told = [grants.RESERVED.get(entry.ref, "")]
        if entry.frame is not None:
            told.append(names.get(_machine_frame(domain, entry.frame), ""))
        by = mapped.get(entry.ref)
        if by:
            told.append("mapped by " + " ".join(f"d{one}" for one in by))
        return ", ".join(one for one in told if one)

    refs = {one.ref for one in found}
    revoked = [ref for ref in mapped if ref not in refs]
    wrong = tuple(
        f"ref {ref} is mapped by {' '.join(f'd{one}' for one in mapped[ref])} and not granted"
        for ref in revoked[:ROWS_MAX]
    )
    dump = grants.table(
        found, "grants", f"grant table of d{domain.domid}", nr_entries=table.nr_entries,
        words={"version": table.version, "frames": table.nr_frames, "max_frames": table.max_frames},
        what=what, most=most, wrong=wrong,
    )  # fmt: skip
    counts = {**dump.counts, "pinned": table.pinned(), "mapped": len(mapped)}
    return attrs.evolve(dump, counts=counts)


def _machine_frame(domain: Domain, gfn: int) -> int:
    """-1: nothing is there."""
    if not domain.translated:
        return gfn
    return int(lib.p2m_lookup(domain.kernel, gfn, 0)) if gfn < PFN_END else -1


# event channels


def _vcpus(domain: Domain, width: ports.Width) -> list[ports.Vcpu]:
    places = domain.vcpu_op.info_places
    size = width.vcpu_info_size
    shared = domain._shared_info
    found = []
    for number in range(domain.vcpus):
        if number < ports.LEGACY_VCPUS or number in places:
            frame, offset = places.get(number, (shared, number * size))
            raw = peek(domain._hypervisor, frame, offset, size)
            found.append(ports.Vcpu.of(number, raw, width))
    return found


def _state(port: Port) -> tuple[str, str]:
    """What it is bound to: the kind, and to what."""
    if port.state is PortState.INTERDOMAIN:
        return "interdomain", f"d{port.remote_domid}:{port.remote_port}"
    if port.state is PortState.UNBOUND:
        return "unbound", f"d{port.remote_domid}"
    if port.state is PortState.VIRQ:
        names = {int(one): one.name for one in VIRQ}
        return "virq", names.get(port.irq, str(port.irq))
    if port.state is PortState.PIRQ:
        return "pirq", str(port.irq)
    return port.state.name.lower(), ""


PORT_COLUMNS: Final = ("port", "state", "peer", "vcpu", "bits", "priority", "link", "detail")


def dump_ports(domain: Domain, *, most: int = ROWS_MAX) -> Dump:
    """A domain's event channels in either ABI: bindings, bits, and who has to look at them."""
    width = ports.X86_32 if domain.is_32bit else ports.X86_64
    bound = [port for port in domain.evtchn.ports if port.handle is not None]
    look: _Fifo | _TwoLevel = _Fifo(domain) if domain.evtchn.fifo else _TwoLevel(domain, width)
    rows: list[list[Cell]] = []
    waits = []
    pending = 0
    for port in bound:
        state, peer = _state(port)
        bits, priority, link = look.of(port)
        detail = "Xen's own" if port.consumer is not None else ""
        if "saved" in bits:
            detail = "raised before its event word was there"
        rows.append([port.number, state, peer, port.vcpu, bits, priority, link, detail])
        words = bits.split()
        pending += "pending" in words
        if "pending" in words and "masked" not in words:
            waits.append(port.number)
    lost = look.unseen(waits)
    notes = (look.NOTE.format(ports.port_list(lost)),) if lost else ()
    return Dump(
        kind="ports",
        name=f"event channels of d{domain.domid}",
        words={"abi": look.ABI, "limit": domain.evtchn.limit},
        counts={"bound": len(bound), "pending": pending, "pending_not_masked": len(waits)},
        notes=notes,
        tables=(*look.vcpus(most), *limited("ports in use", PORT_COLUMNS, rows, most)),
    )


class _TwoLevel:
    ABI: Final[str] = "2-level"
    NOTE: Final[str] = ports.NOBODY_LOOKS

    def __init__(self, domain: Domain, width: ports.Width) -> None:
        data = peek(domain._hypervisor, domain._shared_info, 0, PAGE_SIZE)
        self._level = ports.TwoLevel.of(data, width)
        self._vcpus = _vcpus(domain, width)

    def of(self, port: Port) -> tuple[str, int | None, int | None]:
        """Its bits, its priority and its link, which this ABI has not."""
        number = port.number
        pending = "pending" if self._level.is_pending(number) else ""
        masked = "masked" if self._level.is_masked(number) else ""
        return f"{pending} {masked}".strip(), None, None

    def unseen(self, waits: list[int]) -> list[int]:
        return [port for port in self._level.unseen(self._vcpus) if port in waits]

    def vcpus(self, most: int) -> tuple[Table, ...]:
        return limited("vcpus", ports.VCPU_COLUMNS, ports.vcpu_rows(self._vcpus), most)


class _Fifo:
    ABI: Final[str] = "FIFO"
    NOTE: Final[str] = ports.NOT_QUEUED

    def __init__(self, domain: Domain) -> None:
        evtchn = domain.evtchn
        self._words = _frames(domain._hypervisor, iter(evtchn.fifo_frames))
        self._blocks = []
        for vcpu, (frame, offset) in sorted(evtchn.control_blocks.items()):
            data = peek(domain._hypervisor, frame, offset, ports.CONTROL_SIZE)
            self._blocks.append((vcpu, *ports.control_words(data)))

    def _word(self, number: int) -> int | None:
        raw = self._words[4 * number : 4 * number + 4]
        return int.from_bytes(raw, "little") if raw else None

    def of(self, port: Port) -> tuple[str, int | None, int | None]:
        word = self._word(port.number)
        priority = int(lib.evtchn_get_priority(port.handle))
        if word is None:
            saved = "saved" if lib.evtchn_is_saved(port.handle) else ""
            return f"no event word {saved}".strip(), priority, None
        return ports.word_text(word), priority, word & ports.LINK_MASK or None

    def unseen(self, waits: list[int]) -> list[int]:
        return [port for port in waits if not (self._word(port) or 0) & ports.LINKED]

    def vcpus(self, most: int) -> tuple[Table, ...]:
        rows: list[list[Cell]] = [
            [vcpu, ready, " ".join(f"{at}:{head}" for at, head in enumerate(heads) if head)]
            for vcpu, ready, heads in self._blocks
        ]
        return limited("control blocks", ("vcpu", "ready", "heads"), rows, most)


# the store's and the console's rings


def _reserved_page(domain: Domain, ref: int) -> bytes | None:
    """The page that a reserved entry grants."""
    entry = next((one for one in _entries(domain) if one.ref == ref), None)
    if entry is None or entry.frame is None:
        return None
    frame = _machine_frame(domain, entry.frame)
    return peek(domain._hypervisor, frame, 0, PAGE_SIZE) if frame >= 0 else None


def dump_store_ring(
    domain: Domain, *, served: StoreRing | None = None, most: int = ROWS_MAX
) -> Dump | None:
    """A guest's ring to xenstored; None where it has none. `served`: xenstored's end of it."""
    data = _reserved_page(domain, STORE_REF)
    if data is None:
        return None
    dump = bytering.store(data, f"store ring of d{domain.domid}", most=most)
    if served is None:
        return dump
    connection = served.connection
    notes = list(dump.notes)
    if connection.partial:
        notes.append(f"xenstored has {len(connection.partial)} bytes of a message to come")
    if connection.backlog:
        notes.append(f"{connection.backlog} messages of xenstored wait for room")
    if served.frozen and not dump.words["error"]:
        notes.append("xenstored serves this ring no more")
    return attrs.evolve(dump, notes=tuple(notes))


def dump_console(domain: Domain, *, most: int = ROWS_MAX) -> Dump | None:
    """A guest's console ring; None where it has none."""
    data = _reserved_page(domain, CONSOLE_REF)
    if data is None:
        return None
    return bytering.console(data, f"console of d{domain.domid}", most=most)


# all of it


def dump(xen: Platform, *, most: int = ROWS_MAX) -> Dumps:
    """Everything that the domains of a platform share, domain by domain.

    LocalProtocolError for a platform that is closed. Call it between tasks: of a handler that is
    at work the indices may be half moved.
    """
    found = Dumps()
    labels = ring_labels(xen)
    known = rings(xen.hypervisor)
    for domain in list(xen.hypervisor.domains.values()):
        if domain.dead:
            continue
        served = xen.store_daemon.rings.get(domain.domid)
        found += [
            one
            for one in (
                dump_store_ring(domain, served=served, most=most),
                dump_console(domain, most=most),
            )
            if one is not None
        ]
        for ring in known:
            if ring.domid == domain.domid:
                label = labels.get(ring.frames[0], "")
                name = f"d{domain.domid} {label}" if label else ring.name
                found.append(dump_ring(ring, name=name, most=most))
        found.append(dump_grants(domain, labels=labels, most=most))
        found.append(dump_ports(domain, most=most))
    return found


def ring_labels(xen: Platform) -> dict[int, str]:
    """By machine frame: `vbd/51712 ring-ref`, of the references that frontends wrote.

    What stands in the store is the guest's word; a reference that grants nothing names nothing.
    """
    found: dict[int, str] = {}
    for domain in xen.hypervisor.domains.values():
        granted = {one.ref: one for one in _entries(domain)}
        home = f"/local/domain/{domain.domid}/device".encode()
        for path, node in _keys(xen, home):
            text = node.value
            if b"ring-ref" not in path.rpartition(b"/")[2] or not text.isdigit():
                continue
            entry = granted.get(int(text)) if len(text) <= GREF_DIGITS else None
            if entry is None or entry.frame is None:
                continue
            name = path[len(home) + 1 :].decode("ascii", "backslashreplace")
            kind, _, rest = name.partition("/")
            device, _, key = rest.partition("/")
            frame = _machine_frame(domain, entry.frame)
            found[frame] = f"{kind}/{device} {key}"
    return found


def _keys(xen: Platform, home: bytes) -> Iterator[tuple[bytes, Node]]:
    """Leaves below a node, in their order; at most NODES_MAX nodes are looked at."""
    tree = xen.xenstored.tree
    paths = [home]
    for _ in range(NODES_MAX):
        if not paths:
            return
        path = paths.pop()
        node = tree.read(path)
        if node is None:
            continue
        if not node.children:
            yield path, node
        paths += [path + b"/" + name for name in reversed(node.children)]


def pages(xen: Platform, domid: int, pfns: Sequence[int]) -> bytes:
    """Pages of a domain one after the other. LocalProtocolError: nothing is there."""
    domain = xen.hypervisor.domains.get(domid)
    if domain is None:
        known = ", ".join(map(str, xen.hypervisor.domains))
        raise LocalProtocolError(f"there is no domain {domid}: there is {known}")
    data = []
    for pfn in pfns:
        frame = int(lib.p2m_lookup(domain.kernel, pfn, 0)) if 0 <= pfn < PFN_END else -1
        if frame < 0:
            raise LocalProtocolError(f"pfn {pfn:#x} of d{domid}: no page is there")
        data.append(peek(xen.hypervisor, frame, 0, PAGE_SIZE))
    return b"".join(data)
