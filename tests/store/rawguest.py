"""Guests that write any bytes into their store ring, and read when they like.

Not a test module.
"""

from __future__ import annotations

from tests.store.client import Message, message, split
from tests.world import World
from xenpv.abi._kernel import ffi, lib
from xenpv.abi.hvm import HVM_PARAM
from xenpv.abi.layout import offsetof
from xenpv.abi.xs import XS
from xenpv.store.ring import REQ, RSP
from xenpv.xen.domain import XENSTORE_PFN, Domain

PAGE = "xenstore_domain_interface_v2026"
FRESH = {"req_cons": 0, "req_prod": 0, "rsp_cons": 0, "rsp_prod": 0}


class RawGuest:
    """The guest's end of one ring page, byte by byte."""

    def __init__(self, world: World, domain: Domain) -> None:
        self.world = world
        self.domain = domain
        self.port = domain.hvm_param(HVM_PARAM.STORE_EVTCHN)
        self.received = b""

    def field(self, name: str, value: int | None = None) -> int:
        at = offsetof(PAGE, name)
        if value is not None:
            self.domain.store32(XENSTORE_PFN, at, value)
        return self.domain.load32(XENSTORE_PFN, at)

    def put(self, data: bytes) -> int:
        """Bytes into the ring, without an event; how many there was room for."""
        return int(
            lib.stream_put(self.domain.kernel, XENSTORE_PFN, *REQ, ffi.from_buffer(data), len(data))
        )

    def notify(self) -> None:
        self.domain.evtchn.send(self.port)
        self.world.loop.run()

    def rang(self) -> bool:
        """Has the port been notified since this was last asked?"""
        return bool(lib.evtchn_take_pending(self.domain.kernel, self.port) == 1)

    def send(self, op: int, payload: bytes, *, tx_id: int = 0, req_id: int = 0) -> None:
        data = message(op, payload, tx_id=tx_id, req_id=req_id)
        assert self.put(data) == len(data), "there is room"
        self.notify()

    def take(self) -> bytes:
        """What is in the response ring now, at most 1,024 bytes; no event."""
        out = bytearray(1024)
        count = lib.stream_get(
            self.domain.kernel, XENSTORE_PFN, *RSP, ffi.from_buffer(out), len(out)
        )
        return bytes(out[: max(0, count)])

    def messages(self) -> list[Message]:
        """Reads until nothing comes: all that xenstored has for this guest."""
        self.world.loop.run()
        while chunk := self.take():
            self.received += chunk
            self.notify()
        data, self.received = self.received, b""
        return split(data)

    def call(self, op: int, payload: bytes, tx_id: int = 0) -> bytes:
        self.send(op, payload, tx_id=tx_id)
        (kind, _, _, reply) = self.messages()[-1]
        return reply if kind != XS.ERROR else b"!" + reply


def add_guest(world: World, *, introduce: bool = True) -> RawGuest:
    """One more guest of `world`, owner of its /local/domain/N/data."""
    domain = world.hypervisor.create_domain(vcpus=1, max_pages=2048)
    domain.populate(64)
    domain.populate_special()
    port = domain.evtchn.alloc_unbound(0)
    world.dom0.hvm.set_param(domain.domid, HVM_PARAM.STORE_EVTCHN, port)
    domain.check(lib.grant_entry_set(domain.kernel, 1, 0, XENSTORE_PFN, 1))
    domain.unpause()
    home = f"/local/domain/{domain.domid}"
    world.write(home, "")
    world.chmod(home, "n0", f"r{domain.domid}")
    world.write(f"{home}/data", "")
    world.chmod(f"{home}/data", f"n{domain.domid}")
    guest = RawGuest(world, domain)
    if introduce:
        introduce_guest(guest)
    return guest


def introduce_guest(guest: RawGuest, *, port: int | None = None, frame: int = 1) -> bytes:
    """INTRODUCE with the port it has, or another."""
    parts = (guest.domain.domid, frame, guest.port if port is None else port)
    payload = b"".join(b"%d\0" % part for part in parts)
    reply = guest.world.client.call(XS.INTRODUCE, payload)
    guest.world.loop.run()
    return reply
