"""The hostile side of a disk: a backend without policy, in a test's hands."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import attrs

from xenpv.abi.xenbus import XenbusState as State
from xenpv.back.ring import BackRing
from xenpv.back.xenbus import Device
from xenpv.errors import GrantError, HypercallError
from xenpv.host.image import MemoryImage
from xenpv.platform import Disk, Guest, Platform
from xenpv.vbd.adapter import Vbd
from xenpv.vbd.frontend import Frontend
from xenpv.vbd.parameters import Parameters
from xenpv.vbd.srb import Srb
from xenpv.vbd.target import Target
from xenpv.xen.domain import Domain

READ, WRITE, BARRIER, FLUSH, RESERVED, DISCARD, INDIRECT = range(7)
OKAY, ERROR, EOPNOTSUPP = 0, -1, -2
DEVID = 51712

# What this end writes when the frontend goes to a state.
ANSWERS = {
    State.INITIALISING: State.INIT_WAIT,
    State.INITIALISED: State.CONNECTED,
    State.CONNECTED: State.CONNECTED,
    State.CLOSING: State.CLOSING,
    State.CLOSED: State.CLOSED,
}
EARLY = {"max-ring-page-order": "0", "multi-queue-max-queues": "1"}
KEYS = {"sectors": "1024", "sector-size": "512", "info": "0", "feature-flush-cache": "1"}


@attrs.frozen
class Slot:
    """A request as it lay in the ring; `grefs` are an indirect one's segment pages."""

    operation: int
    nr: int
    id: int
    sector: int
    segments: tuple[tuple[int, int, int], ...] = ()
    inner: int = 0
    grefs: tuple[int, ...] = ()


@attrs.define(eq=False)
class RawBack:
    """Maps every ring when the frontend is Initialised, and answers only when told."""

    device: Device
    early: Mapping[str, str]
    keys: Mapping[str, str]
    states: list[State] = attrs.field(factory=list)
    rings: list[BackRing] = attrs.field(factory=list)
    ports: list[int] = attrs.field(factory=list)
    maps: list[tuple[int, int]] = attrs.field(factory=list)
    answers: dict[State, State] = attrs.field(factory=lambda: dict(ANSWERS))
    operations: dict[int, int] = attrs.field(factory=dict)  # by id, of requests that were taken
    keeps: bool = False  # does not unmap when the frontend closes

    @property
    def domain(self) -> Domain:
        return self.device.domain

    def probe(self) -> None:
        for key, value in self.early.items():
            self.device.write(key, value)
        self.device.switch_state(State.INIT_WAIT)

    def frontend_changed(self, state: State) -> None:
        self.states.append(state)
        if state is State.INITIALISED and not self.rings:
            try:
                self.connect()
            except (GrantError, HypercallError):  # a test spoiled the frontend's keys
                self.disconnect()
                self.device.switch_state(State.CLOSING)
                return
        if state in (State.CLOSED, State.UNKNOWN) and not self.keeps:
            self.disconnect()
        answer = self.answers.get(state, State.CLOSED)
        self.device.switch_state(answer)

    def hotplug_changed(self) -> None: ...

    def remove(self) -> None:
        self.disconnect()

    def connect(self) -> None:
        device, domain = self.device, self.domain
        queues = device.frontend_number("multi-queue-num-queues", 1)
        order = device.frontend_number("ring-page-order", -1)
        for queue in range(queues):
            home = f"queue-{queue}/" if queues > 1 else ""
            names = [f"ring-ref{n}" for n in range(1 << order)] if order >= 0 else ["ring-ref"]
            pfns = [self.map(device.frontend_number(home + name, 0)) for name in names]
            self.rings.append(BackRing(domain, pfns, req_size=112, rsp_size=16))
            port = device.frontend_number(f"{home}event-channel", 0)
            self.ports.append(domain.evtchn.bind_interdomain(device.frontend_domid, port))
        for key, value in self.keys.items():
            device.write(key, value)

    def map(self, ref: int, *, readonly: bool = False) -> int:
        pfn = self.domain.holes.alloc()
        handle = self.domain.gnttab.map(self.device.frontend_domid, ref, pfn, readonly=readonly)
        self.maps.append((pfn, handle))
        return pfn

    def unmap(self, pfn: int) -> None:
        (found,) = [one for one in self.maps if one[0] == pfn]
        self.maps.remove(found)
        self.domain.gnttab.unmap(found[1], pfn)
        self.domain.holes.free(pfn)

    def disconnect(self) -> None:
        for port in self.ports:
            self.domain.evtchn.close(port)
        for pfn, _handle in list(self.maps):
            self.unmap(pfn)
        self.ports.clear()
        self.rings.clear()

    # what a test does with it

    def taken(self, queue: int = 0) -> list[Slot]:
        """Requests since the last call."""
        ring = self.rings[queue]
        count, raw = ring.take()
        ring.final_check()
        slots = [_parse(bytes(raw[112 * n : 112 * n + 112])) for n in range(count)]
        for slot in slots:
            inner = slot.inner if slot.operation == INDIRECT else slot.operation
            self.operations[slot.id] = inner
        return slots

    def answer(self, *responses: tuple[int, int], queue: int = 0) -> None:
        """Publish (id, status) pairs, with the operation that was asked for, and notify."""
        operations = self.operations
        packed = b"".join(
            struct.pack("<QBxh4x", rid, operations.get(rid, 0), status) for rid, status in responses
        )
        self.rings[queue].push(packed, len(responses))
        self.notify()

    def notify(self) -> None:
        for port in self.ports:
            self.domain.evtchn.send(port)
        self.domain.loop.run()

    def store(self, at: int, value: int, queue: int = 0) -> None:
        """A word of a ring's header: 0 req_prod, 4 req_event, 8 rsp_prod, 12 rsp_event."""
        self.domain.store32(self.rings[queue].pfns[0], at, value & 0xFFFFFFFF)

    def read(self, ref: int, offset: int = 0, size: int = 4096) -> bytes:
        """Bytes of a page of the guest, mapped read-only for a moment."""
        pfn = self.map(ref, readonly=True)
        try:
            return self.domain.read(pfn, offset, size)
        finally:
            self.unmap(pfn)

    def fill(self, ref: int, data: bytes, offset: int = 0) -> None:
        pfn = self.map(ref)
        self.domain.write(pfn, offset, data)
        self.unmap(pfn)

    def table(self, slot: Slot) -> list[tuple[int, int, int]]:
        """The segments of an indirect request."""
        pages = b"".join(self.read(ref) for ref in slot.grefs)
        return [struct.unpack_from("<IBB", pages, 8 * n) for n in range(slot.nr)]

    def switch(self, state: State) -> None:
        self.device.switch_state(state)
        self.domain.loop.run()


def _parse(raw: bytes) -> Slot:
    operation, nr = raw[0], raw[1]
    rid, sector = struct.unpack_from("<QQ", raw, 8)
    if operation == INDIRECT:
        (nr,) = struct.unpack_from("<H", raw, 2)
        pages = -(-nr // 512)
        grefs = struct.unpack_from("<8I", raw, 28)
        assert grefs[pages:] == (0,) * (8 - pages)
        return Slot(operation, nr, rid, sector, inner=raw[1], grefs=grefs[:pages])
    if operation == DISCARD:
        nr = struct.unpack_from("<Q", raw, 24)[0]
        return Slot(operation, nr, rid, sector)
    segments = tuple(struct.unpack_from("<IBB", raw, 24 + 8 * n) for n in range(nr))
    assert not any(raw[24 + 8 * nr :])
    return Slot(operation, nr, rid, sector, segments)


@attrs.define(eq=False)
class Scene:
    """A running guest whose disks have raw backends."""

    xen: Platform
    guest: Guest
    backs: list[RawBack]

    @property
    def back(self) -> RawBack:
        return self.backs[0]

    @property
    def adapter(self) -> Vbd:
        adapter = self.guest._vbd
        assert adapter is not None
        return adapter

    @property
    def target(self) -> Target:
        return self.adapter.targets[0]

    @property
    def frontend(self) -> Frontend:
        return self.target.frontend

    @property
    def domain(self) -> Domain:
        return self.guest.created.domain

    def page(self, content: bytes = b"") -> int:
        pfn = self.domain.pages.alloc()
        self.domain.write(pfn, 0, content.ljust(4096, b"\0"))
        return pfn

    def submit(self, cdb: bytes, data: Sequence[tuple[int, int, int]] = (), **fields: int) -> Srb:
        """An SRB that went to the adapter; the loop ran."""
        srb = Srb(cdb=cdb, data=list(data), **fields)  # type: ignore[arg-type]  # SRB fields
        self.adapter.submit(srb)
        self.xen.run()
        return srb


def read10(lba: int, count: int) -> bytes:
    return struct.pack(">BBIBHB", 0x28, 0, lba, 0, count, 0)


def write10(lba: int, count: int) -> bytes:
    return struct.pack(">BBIBHB", 0x2A, 0, lba, 0, count, 0)


SYNC10 = bytes([0x35]).ljust(10, b"\0")


@contextmanager
def scene(
    personality: str = "windows",
    *,
    early: Mapping[str, str] | None = None,
    keys: Mapping[str, str] | None = None,
    disks: int = 1,
    vcpus: int = 1,
    seed: int = 3,
    start: bool = True,
    vbd: Parameters | None = None,
) -> Iterator[Scene]:
    with Platform(seed=seed) as xen:
        backs: list[RawBack] = []

        def factory(device: Device) -> RawBack:
            backs.append(RawBack(device, EARLY | dict(early or {}), KEYS | dict(keys or {})))
            return backs[-1]

        xen.backends.drivers = {**xen.backends.drivers, "vbd": factory}
        images = [Disk(MemoryImage(bytearray(1 << 19))) for _ in range(disks)]
        guest = xen.create(
            name="raw",
            memory_mib=32,
            disks=images,
            personality=personality,
            vcpus=vcpus,
            vbd=vbd,
        )
        made = Scene(xen, guest, backs)
        if start:
            guest.start()
        yield made
