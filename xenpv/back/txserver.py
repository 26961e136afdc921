"""Who serves a tx ring: the reading of it that a backend's rules name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from xenpv.back.credit import Rate
from xenpv.back.nettx import TxQueue
from xenpv.back.txmirage import MirageTx
from xenpv.back.txqemu import QemuTx
from xenpv.back.txring import TxRing
from xenpv.back.txrules import Server, TxRules
from xenpv.xen.loop import Task


class TxServer(Protocol):
    """The tx side of a queue, from connect to disconnect."""

    def poll(self) -> bool:
        """Everything that is on the ring now; True if there is more by the end.

        PeerProtocolError, HypercallError: the guest broke the protocol; its vif is lost.
        """

    def set_rate(self, rate: Rate | None) -> None:
        """The limit of what the guest sends; None: there is none."""

    def release(self) -> None:
        """The ring goes."""


def _linux(ring: TxRing, rules: TxRules, task: Task, name: str) -> TxServer:
    return TxQueue(ring, rules, task, name)


def _qemu(ring: TxRing, _rules: TxRules, _task: Task, _name: str) -> TxServer:
    return QemuTx(ring)


def _mirage(ring: TxRing, _rules: TxRules, _task: Task, _name: str) -> TxServer:
    return MirageTx(ring)


_SERVERS: Final[dict[Server, Callable[[TxRing, TxRules, Task, str], TxServer]]] = {
    Server.LINUX: _linux,
    Server.QEMU: _qemu,
    Server.MIRAGE: _mirage,
}


def tx_server(ring: TxRing, rules: TxRules, task: Task, name: str) -> TxServer:
    """Serves `ring` of queue `name`; `task` polls it."""
    return _SERVERS[rules.server](ring, rules, task, name)
