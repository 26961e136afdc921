"""One queue of a connected vif: its mapped rings, bound ports and the tasks behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from xenpv.back import netrx, txpacket
from xenpv.back.netkeys import QueueKeys
from xenpv.back.netrx import RxQueue
from xenpv.back.ring import BackRing
from xenpv.back.txring import TxRing
from xenpv.back.txserver import TxServer, tx_server
from xenpv.errors import GrantError, HypercallError, PeerProtocolError

if TYPE_CHECKING:
    from xenpv.back.netback import Netback


class NetQueue:
    """`tx` and `rx` stand from `connect` to `release`."""

    def __init__(self, vif: Netback, index: int) -> None:
        self._vif = vif
        self._index = index
        self.name = f"{vif.name}-q{index}"
        self.tx: TxServer | None = None
        self.rx: RxQueue | None = None
        domain = vif.domain
        self._tx_task = domain.task(f"{self.name}-tx", self.poll_tx)
        self._rx_task = domain.task(f"{self.name}-rx", self.poll_rx)
        self._both_task = domain.task(self.name, self._poll_both)
        self._ports: list[int] = []
        self._maps: list[tuple[int, int]] = []  # pfn, handle

    def connect(self, keys: QueueKeys) -> None:
        """PeerProtocolError or HypercallError: what was done is undone by `release`."""
        tx_ring = self._ring(
            keys.tx_ring_ref, txpacket.REQUEST.size, txpacket.RESPONSE_SIZE, "netif_tx"
        )
        rx_ring = self._ring(keys.rx_ring_ref, netrx.REQUEST.size, netrx.RESPONSE_SIZE, "netif_rx")
        split = keys.tx_port != keys.rx_port
        tx_port = self._bind(keys.tx_port)
        rx_port = self._bind(keys.rx_port) if split else tx_port
        dispatcher = self._vif.device.dispatcher
        dispatcher.bind_task(tx_port, self._tx_task if split else self._both_task)
        if split:
            dispatcher.bind_task(rx_port, self._rx_task)
        ring = TxRing(self._vif, tx_ring, tx_port, self._index)
        self.tx = tx_server(ring, self._vif.profile.tx, self._tx_task, self.name)
        self.rx = RxQueue(self._vif, rx_ring, rx_port, self._rx_task, self._index)
        self._tx_task.wake()

    def start(self) -> None:
        """All queues of the vif are connected."""
        if self.rx is not None:
            self.rx.start()

    def reconfigure(self) -> None:
        """The offer of the frontend changed."""
        if self.rx is not None:
            self.rx.reconfigure()

    def _ring(self, ref: int, req_size: int, rsp_size: int, kind: str) -> BackRing:
        domain = self._vif.domain
        pfn = domain.holes.alloc()
        try:
            handle = domain.gnttab.map(self._vif.frontend_domid, ref, pfn)
        except GrantError as error:
            domain.holes.free(pfn)
            raise PeerProtocolError(f"mapping ring-ref {ref}: {error}") from error
        self._maps.append((pfn, handle))
        return BackRing(domain, [pfn], req_size=req_size, rsp_size=rsp_size, kind=kind)

    def _bind(self, port: int) -> int:
        local = self._vif.domain.evtchn.bind_interdomain(self._vif.frontend_domid, port)
        self._ports.append(local)
        return local

    def poll_tx(self) -> None:
        """Serve the tx ring; again later if the guest goes on."""
        if self.tx is not None and self._guarded(self.tx.poll):
            self._tx_task.wake()

    def poll_rx(self) -> None:
        if self.rx is not None:
            self._guarded(self.rx.poll)

    def _poll_both(self) -> None:
        self.poll_tx()
        self.poll_rx()

    def _guarded(self, poll: Callable[[], object]) -> object:
        """Run one end of the queue; a guest that breaks the protocol loses its vif."""
        if self._vif.disabled:
            return None
        try:
            return poll()
        except (PeerProtocolError, HypercallError) as error:
            self._vif.fatal(f"{self.name}: {error}")
            return None

    def release(self) -> None:
        """Unbind, unmap; a second call does nothing."""
        domain = self._vif.domain
        if self.tx is not None:
            self.tx.release()
        if self.rx is not None:
            self.rx.release()
        self.tx = self.rx = None
        for port in self._ports:
            self._vif.device.dispatcher.unbind_port(port)
            domain.evtchn.close(port)
        self._ports.clear()
        for pfn, handle in self._maps:
            domain.gnttab.unmap(handle, pfn)
            domain.holes.free(pfn)
        self._maps.clear()
        for task in (self._tx_task, self._rx_task, self._both_task):
            domain.forget(task)
