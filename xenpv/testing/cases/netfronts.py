"""A raw network frontend of any shape: several queues, split events, a control ring.

It stands on a raw guest and has no policy, as RawNetFront, which has one queue.
"""

from __future__ import annotations

from typing import Final

import attrs

from xenpv.abi.xenbus import XenbusState
from xenpv.bus.evtchn import Channel
from xenpv.testing.cases.netslots import CTRL_REQUEST, CTRL_RESPONSE, TX_RESPONSE
from xenpv.testing.raw_front import BACKEND_DOMID, RawFront, RawGuest
from xenpv.testing.sring import RawSring

# What an honest frontend says of itself (XenVif's keys, less those of its rings).
KEYS: Final = {
    "request-rx-copy": "1",
    "feature-sg": "1",
    "feature-rx-notify": "1",
    "feature-gso-tcpv4": "1",
    "feature-gso-tcpv6": "1",
    "feature-no-csum-offload": "0",
    "feature-ipv6-csum-offload": "1",
}


@attrs.define(eq=False)
class Queue:
    """One queue: its rings, their references, and the ports of tx and rx, which may be one."""

    tx: RawSring
    rx: RawSring
    tx_ref: int
    rx_ref: int
    channels: list[Channel]

    @property
    def tx_channel(self) -> Channel:
        return self.channels[0]

    @property
    def rx_channel(self) -> Channel:
        return self.channels[-1]


class QueuedFront(RawFront):
    """`shape` it, then `attach`, `announce` and let it run; `queues` stand from `attach` on.

    `ctrl` is the control ring, if it has one.
    """

    kind = "vif"

    def __init__(self, guest: RawGuest, devid: int) -> None:
        super().__init__(guest, devid)
        self.count = 1
        self.split = False
        self.control = False
        self.start = 0
        self.queues: list[Queue] = []
        self.made: list[tuple[int, int]] = []  # of all connections: reference, pfn of a ring
        self.opened: list[Channel] = []
        self.ctrl: RawSring
        self.ctrl_ref = 0
        self.ctrl_channel: Channel
        self._number = 0x1234

    def shape(
        self, *, queues: int = 1, split: bool = False, control: bool = False, start: int = 0
    ) -> None:
        """What the next `attach` makes; the indices of its rings begin at `start`."""
        self.count, self.split, self.control, self.start = queues, split, control, start

    def attach(self) -> None:
        self.queues = [self._queue() for _ in range(self.count)]
        if self.control:
            self.ctrl, self.ctrl_ref = self._ring("xen_netif_ctrl")
            self.ctrl_channel = self._open()

    def _queue(self) -> Queue:
        tx, tx_ref = self._ring("netif_tx")
        rx, rx_ref = self._ring("netif_rx")
        channels = [self._open() for _ in range(1 + self.split)]
        return Queue(tx, rx, tx_ref, rx_ref, channels)

    def _ring(self, name: str) -> tuple[RawSring, int]:
        guest = self.guest
        pfn = guest.page()
        ring = RawSring(self.domain, pfn, 1, req=f"{name}_request", rsp=f"{name}_response")
        if self.start:
            ring.ring.seek(self.start)
            ring.req_prod = ring.rsp_prod = self.start
            ring.req_event = ring.rsp_event = self.start + 1
        self.made.append((guest.grant(pfn), pfn))
        return ring, self.made[-1][0]

    def _open(self) -> Channel:
        channel = self.guest.evtchn.open_unbound(BACKEND_DOMID, _nothing)
        self.guest.evtchn.unmask(channel, force=True)
        self.opened.append(channel)
        return channel

    def keys(self) -> dict[str, str]:
        keys = dict(KEYS)
        for index, queue in enumerate(self.queues):
            home = f"queue-{index}/" if self.count > 1 else ""
            keys |= {
                f"{home}tx-ring-ref": str(queue.tx_ref),
                f"{home}rx-ring-ref": str(queue.rx_ref),
            }
            names = ("event-channel-tx", "event-channel-rx") if self.split else ("event-channel",)
            for name, channel in zip(names, queue.channels, strict=True):
                keys[f"{home}{name}"] = str(channel.port)
        if self.count > 1:
            keys["multi-queue-num-queues"] = str(self.count)
        if self.control:
            keys |= {
                "ctrl-ring-ref": str(self.ctrl_ref),
                "event-channel-ctrl": str(self.ctrl_channel.port),
            }
        return {**keys, "state": str(int(XenbusState.CONNECTED))}

    def send_event(self, channel: Channel) -> None:
        """EVTCHNOP_send, whether or not a ring asked for it."""
        self.domain.evtchn.send(channel.port)

    def notify(self) -> None:
        """On every port of every queue."""
        for queue in self.queues:
            for channel in queue.channels:
                self.send_event(channel)

    def tx_responses(self, index: int = 0) -> list[tuple[int, int]]:
        """(id, status) of the tx responses of a queue since the last call."""
        return [TX_RESPONSE.unpack(raw) for raw in self.queues[index].tx.take()]

    def rings(self) -> list[tuple[int, int]]:
        """(reference, pfn) of each ring page."""
        found = [(one.tx_ref, one.tx.pfn) for one in self.queues]
        found += [(one.rx_ref, one.rx.pfn) for one in self.queues]
        return found + ([(self.ctrl_ref, self.ctrl.pfn)] if self.control else [])

    # the control ring

    def ask(self, kind: int, *data: int) -> list[tuple[int, ...]]:
        """Publish one control request and let it run: (id, type, status, data) of what comes."""
        self._number = self._number + 1 & 0xFFFF
        fields = (*data, 0, 0, 0)[:3]
        self.ctrl.push(CTRL_REQUEST.pack(self._number, kind, *fields), 1)
        self.send_event(self.ctrl_channel)
        self.platform.run()
        return [CTRL_RESPONSE.unpack(raw) for raw in self.ctrl.take()]

    @property
    def asked(self) -> int:
        """The id of the last control request."""
        return self._number


def _nothing() -> None:
    """The callback of a channel: a case looks at the ring."""
