"""A raw control ring in a test's hands, beside a raw network frontend of any number of queues."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from struct import pack, unpack

import attrs

from tests.back.netfront import Net
from xenpv.abi.xenbus import XenbusState
from xenpv.back.netback import Netback
from xenpv.bus.evtchn import Channel
from xenpv.host.image import MemoryImage
from xenpv.platform import Platform
from xenpv.testing.raw_front import RawGuest
from xenpv.testing.raw_world import RawWorld
from xenpv.testing.sring import RawSring

GET_FLAGS, SET_FLAGS, SET_KEY, GET_SIZE, SET_SIZE, SET_MAPPING, SET_ALGORITHM = range(1, 8)
SUCCESS, NOT_SUPPORTED, INVALID, OVERFLOW = range(4)
RX_POSTED = 64  # slots of each queue


@attrs.define(eq=False)
class Ctrl:
    """The control ring of interface 0 of a raw world."""

    net: Net
    sring: RawSring
    ref: int
    channel: Channel
    rx: list[RawSring]
    connected: bool
    number: int = 0x1234

    @property
    def back(self) -> Netback:
        return self.net.back

    def ask(self, kind: int, *data: int) -> tuple[int, int]:
        """(status, data) of the answer to one request; its id and type are looked at."""
        self.number = (self.number + 1) & 0xFFFF
        self.push((self.number, kind, *data))
        self.net.world.run()
        ((number, answered, status, value),) = self.answers()
        assert (number, answered) == (self.number, kind)
        return status, value

    def push(self, *requests: tuple[int, ...]) -> None:
        """(id, type, data...) of each; notifies."""
        packed = [pack("<HHIII", *(*one, 0, 0, 0)[:5]) for one in requests]
        self.sring.push(b"".join(packed), len(packed))
        self.notify()

    def notify(self) -> None:
        self.net.world.guest.domain.evtchn.send(self.channel.port)

    def answers(self) -> list[tuple[int, int, int, int]]:
        return [unpack("<HHII", raw[:12]) for raw in self.sring.take()]

    def table(self, *entries: int) -> int:
        """A reference to a page that holds these u32."""
        return self.net.page(pack(f"<{len(entries)}I", *entries))

    def received(self) -> list[list[bytes]]:
        """rx responses of each queue, as bytes."""
        return [rx.take() for rx in self.rx]


def ring(guest: RawGuest, name: str, start: int = 0) -> tuple[RawSring, int]:
    """A granted ring of those structs, its indices at `start`; its reference."""
    pfn = guest.page()
    made = RawSring(guest.domain, pfn, 1, req=f"{name}_request", rsp=f"{name}_response")
    if start:
        made.ring.seek(start)
        made.req_prod = made.rsp_prod = start
        made.req_event = made.rsp_event = start + 1
    return made, guest.grant(pfn)


def channel(guest: RawGuest) -> Channel:
    made = guest.evtchn.open_unbound(0, _nothing)
    guest.evtchn.unmask(made, force=True)
    return made


@contextmanager
def control(queues: int = 1, *, start: int = 0, **overrides: str | None) -> Iterator[Ctrl]:
    """A raw interface with a control ring; `start`: where its indices begin.

    `overrides` are keys of the frontend with `_` for `-`; None leaves one out.
    """
    platform = Platform(seed=4)
    platform.dom0.vcpus = queues
    world = RawWorld(platform, MemoryImage(bytearray(512)), "xenbr0")
    with world:
        platform.run()
        guest, vif = world.guest, world.vif
        sring, ref = ring(guest, "xen_netif_ctrl", start)
        events = channel(guest)
        keys: dict[str, str | None] = {
            "ctrl-ring-ref": str(ref),
            "event-channel-ctrl": str(events.port),
            "multi-queue-num-queues": str(queues),
        }
        rings = []
        for index in range(queues):
            home = f"queue-{index}/" if queues > 1 else ""
            _, tx_ref = ring(guest, "netif_tx")
            rx, rx_ref = ring(guest, "netif_rx")
            keys |= {f"{home}tx-ring-ref": str(tx_ref), f"{home}rx-ring-ref": str(rx_ref),
                     f"{home}event-channel": str(channel(guest).port)}  # fmt: skip
            rings.append(rx)
        vif.attach()
        vif.announce(keys | {key.replace("_", "-"): value for key, value in overrides.items()})
        platform.run()
        net = Net(world)
        for rx in rings:
            posted = [pack("<HHI", at, 0, guest.grant(guest.page())) for at in range(RX_POSTED)]
            rx.push(b"".join(posted), RX_POSTED)
        yield Ctrl(
            net, sring, ref, events, rings, connected=vif.backend_state is XenbusState.CONNECTED
        )


def _nothing() -> None:
    """The channel's callback: a test looks at the ring."""
