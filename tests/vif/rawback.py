"""The hostile side of a network device: a backend without policy, in a test's hands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from struct import pack, unpack
from typing import Any

import attrs
import pytest

from xenpv import Guest, Platform, Vif
from xenpv.abi.xenbus import XenbusState as State
from xenpv.back.ring import BackRing
from xenpv.back.xenbus import Device
from xenpv.bus.ring import FrontRing
from xenpv.net.adapter import Adapter
from xenpv.vif import controller, rxring, transmitter
from xenpv.vif.adapter import Pdo
from xenpv.xen.domain import Domain

MAC = "00:16:3e:00:00:01"
GUEST_MAC = bytes.fromhex("00163e000001")
PEER_MAC = bytes.fromhex("00163e0000ee")

GET_HASH_FLAGS, SET_KEY, SET_MAPPING = 1, 3, 6  # control requests

# What this end writes when the frontend goes to a state.
ANSWERS = {
    State.INITIALISING: State.INIT_WAIT,
    State.CONNECTED: State.CONNECTED,
    State.CLOSING: State.CLOSING,
    State.CLOSED: State.CLOSED,
    State.UNKNOWN: State.CLOSED,
}


def frame(size: int, *, source: bytes = PEER_MAC, destination: bytes = GUEST_MAC) -> bytes:
    body = bytes(at * 7 + at // 251 & 0xFF for at in range(max(0, size - 14)))
    return (destination + source + b"\x88\xb5" + body)[:size]


@attrs.define(eq=False)
class RawBack:
    """Maps the rings when the frontend connects, the first queue's if there are several."""

    device: Device
    features: Mapping[str, str]
    states: list[State] = attrs.field(factory=list)
    tx: BackRing | None = None
    rx: BackRing | None = None
    ctrl: BackRing | None = None
    ctrl_port: int = 0
    # By type: status and data; None: it says nothing at all.
    replies: dict[int, tuple[int, int]] | None = attrs.field(
        factory=lambda: {GET_HASH_FLAGS: (0, 0xF)}
    )
    seen: list[tuple[int | bytes, ...]] = attrs.field(factory=list)
    ports: list[int] = attrs.field(factory=list)
    maps: list[tuple[int, int]] = attrs.field(factory=list)
    posted: list[tuple[int, int]] = attrs.field(factory=list)  # rx id and reference
    answers: dict[State, State] = attrs.field(factory=lambda: dict(ANSWERS))

    def probe(self) -> None:
        for key, value in self.features.items():
            self.device.write(key, value)

    def frontend_changed(self, state: State) -> None:
        self.states.append(state)
        if state is State.CONNECTED and self.tx is None:
            self.connect()
        if state in (State.CLOSED, State.CLOSING, State.UNKNOWN):
            self.disconnect()
        answer = self.answers.get(state)
        if answer is not None:
            self.device.switch_state(answer)

    def hotplug_changed(self) -> None: ...

    def remove(self) -> None:
        self.disconnect()

    def connect(self) -> None:
        domain = self.device.domain
        home = "queue-0/" if self.device.frontend_number("multi-queue-num-queues", 1) > 1 else ""

        def number(key: str) -> int:
            return self.device.frontend_number(home + key, 0)

        ports = [number("event-channel")]
        if not ports[0]:
            ports = [number("event-channel-tx"), number("event-channel-rx")]
        self.ports = [
            domain.evtchn.bind_interdomain(self.device.frontend_domid, port) for port in ports
        ]
        self.tx = self._ring(number("tx-ring-ref"), 12, 4)
        self.rx = self._ring(number("rx-ring-ref"), 8, 8)
        ref = self.device.frontend_number("ctrl-ring-ref", 0)
        if ref:
            port = self.device.frontend_number("event-channel-ctrl", 0)
            self.ctrl_port = domain.evtchn.bind_interdomain(self.device.frontend_domid, port)
            self.ctrl = self._ring(ref, 16, 12)
            task = domain.task("raw control", self.serve_ctrl)
            self.device.dispatcher.bind_task(self.ctrl_port, task)

    def _ring(self, ref: int, req: int, rsp: int) -> BackRing:
        domain = self.device.domain
        pfn = domain.holes.alloc()
        self.maps.append((pfn, domain.gnttab.map(self.device.frontend_domid, ref, pfn)))
        return BackRing(domain, [pfn], req_size=req, rsp_size=rsp)

    def disconnect(self) -> None:
        domain = self.device.domain
        for port in self.ports:
            domain.evtchn.close(port)
        if self.ctrl_port:
            self.device.dispatcher.unbind_port(self.ctrl_port)
            domain.evtchn.close(self.ctrl_port)
            self.ctrl_port = 0
        for pfn, handle in self.maps:
            domain.gnttab.unmap(handle, pfn)
            domain.holes.free(pfn)
        self.ports.clear()
        self.maps.clear()
        self.posted.clear()
        self.tx = self.rx = self.ctrl = None

    # what a test does with it

    def notify(self) -> None:
        for port in self.ports:
            self.device.domain.evtchn.send(port)

    def store(self, which: BackRing | None, at: int, value: int) -> None:
        """A word of a ring's header: 0 req_prod, 4 req_event, 8 rsp_prod, 12 rsp_event."""
        assert which is not None
        self.device.domain.store32(which.pfns[0], at, value & 0xFFFFFFFF)

    def sent(self) -> list[tuple[int, int, int, int, int]]:
        """tx requests since the last call: reference, offset, flags, id, size."""
        assert self.tx is not None
        count, raw = self.tx.take()
        self.tx.final_check()
        return [unpack("<IHHHH", raw[12 * n : 12 * n + 12]) for n in range(count)]

    def payload(self, ref: int, offset: int, size: int) -> bytes:
        """Bytes of a page of the guest, mapped for a moment."""
        domain = self.device.domain
        pfn = domain.holes.alloc()
        handle = domain.gnttab.map(self.device.frontend_domid, ref, pfn, readonly=True)
        try:
            return domain.read(pfn, offset, size)
        finally:
            domain.gnttab.unmap(handle, pfn)
            domain.holes.free(pfn)

    def asked(self) -> list[tuple[int, int, int, int, int]]:
        """Control requests since the last call: id, type, data."""
        assert self.ctrl is not None
        count, raw = self.ctrl.take()
        self.ctrl.final_check()
        return [unpack("<HHIII", raw[16 * n : 16 * n + 16]) for n in range(count)]

    def serve_ctrl(self) -> None:
        """Answer by `replies`, and keep in `seen` what was asked, with the bytes behind it."""
        if self.ctrl is None or self.replies is None:
            return
        for number, kind, *data in self.asked():
            size = {SET_KEY: data[1], SET_MAPPING: 4 * data[1]}.get(kind, 0)
            told = self.payload(data[0], 0, size) if size else b""
            self.seen.append((kind, *((told, *data[1:]) if told else data)))
            status, value = self.replies.get(kind, (0, 0))
            self.answer_ctrl((number, kind, status, value))

    def answer_ctrl(self, *responses: tuple[int, int, int, int]) -> None:
        """Publish (id, type, status, data) and notify."""
        assert self.ctrl is not None
        self.ctrl.push(b"".join(pack("<HHII", *one) for one in responses), len(responses))
        self.device.domain.evtchn.send(self.ctrl_port)

    def answer_tx(self, *responses: tuple[int, int]) -> None:
        """Publish (id, status) pairs and notify."""
        assert self.tx is not None
        self.tx.push(b"".join(pack("<Hh", *one) for one in responses), len(responses))
        self.notify()

    def take_posted(self) -> None:
        """Take the rx slots that the guest posted."""
        assert self.rx is not None
        count, raw = self.rx.take()
        self.rx.final_check()
        requests = [unpack("<HHI", raw[8 * n : 8 * n + 8]) for n in range(count)]
        self.posted += [(number, ref) for number, _, ref in requests]

    def fill(self, ref: int, data: bytes, offset: int = 0) -> None:
        """Write into a page that the guest posted."""
        domain = self.device.domain
        pfn = domain.holes.alloc()
        handle = domain.gnttab.map(self.device.frontend_domid, ref, pfn)
        domain.write(pfn, offset, data)
        domain.gnttab.unmap(handle, pfn)
        domain.holes.free(pfn)

    def answer_rx(self, *responses: bytes) -> None:
        """Publish rx responses as raw bytes and notify; slots must have been taken."""
        assert self.rx is not None
        self.rx.push(b"".join(responses), len(responses))
        self.notify()

    def send(self, *frames: bytes) -> None:
        """What an honest backend does with frames of up to a page."""
        self.take_posted()
        responses = []
        for data in frames:
            number, ref = self.posted.pop(0)
            self.fill(ref, data)
            responses.append(rx(number, len(data)))
        self.answer_rx(*responses)


def rx(number: int, status: int, *, offset: int = 0, flags: int = 0) -> bytes:
    """An rx response."""
    return pack("<HHHh", number, offset, flags, status)


@attrs.define(eq=False)
class Scene:
    """A running guest whose interface 0 has a raw backend."""

    xen: Platform
    guest: Guest
    backs: list[RawBack]

    @property
    def back(self) -> RawBack:
        return self.backs[-1]

    @property
    def nic(self) -> Adapter:
        return self.guest.nets[0]

    @property
    def pdo(self) -> Pdo[Adapter]:
        vif = self.guest._vif
        assert vif is not None
        return vif.pdos[0]

    @property
    def broken(self) -> str:
        return self.pdo.frontend.broken

    def run(self) -> None:
        self.xen.run()

    def key(self, key: str) -> str | None:
        """A key of the frontend."""
        return self.back.device.frontend_get(key)

    def attr(self, key: str) -> str | None:
        return self.back.device.store.get(f"/local/domain/{self.guest.domid}/{key}")


@contextmanager
def rings_at(start: int) -> Iterator[None]:
    """Every ring that a guest's interface makes begins at index `start`."""

    def ring(domain: Domain, pfns: Sequence[int], **sizes: Any) -> FrontRing:
        made = FrontRing(domain, pfns, **sizes)
        made.seek(start)
        for at, value in ((0, 0), (4, 1), (8, 0), (12, 1)):
            domain.store32(pfns[0], at, (start + value) & 0xFFFFFFFF)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(controller, "FrontRing", ring)
        patch.setattr(transmitter, "FrontRing", ring)
        patch.setattr(rxring, "FrontRing", ring)
        yield


FEATURES = {"feature-sg": "1", "feature-rx-copy": "1"}


@contextmanager
def scene(
    personality: str = "windows",
    features: Mapping[str, str] = FEATURES,
    *,
    start: int = 0,
    seed: int = 3,
    mtu: int | None = None,
    connect: bool = True,
    vcpus: int = 1,
) -> Iterator[Scene]:
    """A guest of that personality, connected to a raw backend with these features."""
    with Platform(seed=seed) as xen, rings_at(start):
        backs: list[RawBack] = []

        def factory(device: Device) -> RawBack:
            backs.append(RawBack(device, features))
            return backs[-1]

        xen.backends.drivers = {**xen.backends.drivers, "vif": factory}
        guest = xen.create(
            name="g", vifs=[Vif(mac=MAC, mtu=mtu)], personality=personality, vcpus=vcpus
        )
        if connect:
            guest.start()
        yield Scene(xen, guest, backs)
