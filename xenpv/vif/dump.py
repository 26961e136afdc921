"""What XenVif prints when DEBUG is triggered: each interface's handshake, rings and grants."""

from __future__ import annotations

from collections.abc import Iterator

from xenpv.bus.dump import handshake_lines, ring_lines
from xenpv.vif.frontend import Frontend
from xenpv.vif.granter import Granter
from xenpv.vif.queue import Queue
from xenpv.vif.receivehash import ReceiveHash


def frontend_lines(frontend: Frontend, crashing: bool) -> Iterator[str]:
    """Lines of one interface, its path in front of each."""
    for line in _lines(frontend, crashing):
        yield f"{frontend.path}: {line}"


def _lines(frontend: Frontend, crashing: bool) -> Iterator[str]:
    yield f"{frontend.state.name}, {'' if frontend.mac_state().link_up else 'no '}link"
    if frontend.broken:
        yield f"BROKEN: {frontend.broken}"
    if frontend.error:
        yield f"ERROR: {frontend.error}"
    yield from handshake_lines(frontend.handshake)
    for queue in frontend.queues:
        yield from queue_lines(queue, crashing)
    yield from hash_lines(frontend.receive_hash, crashing)
    if frontend.quarantined:
        yield f"{len(frontend.quarantined)} pages are still mapped by the backend"


def queue_lines(queue: Queue, crashing: bool) -> Iterator[str]:
    """Lines of one queue's rings."""
    ports = ", ".join(f"{poller.port:04x}" for poller in queue.pollers)
    running = "running" if queue.running else "stopped"
    yield f"queue {queue.index}: {running}, ports {ports}"
    tx, rx = queue.transmitter, queue.receiver
    if tx is not None:
        yield from ring_lines(f"queue {queue.index} tx", tx.ring, crashing)
        grants = _grants(tx.granter)
        waiting = len(tx.waiting)
        yield f"queue {queue.index} tx: {waiting} packets wait for room; {grants}"
    if rx is not None:
        yield from ring_lines(f"queue {queue.index} rx", rx.ring, crashing, posted=True)
        yield f"queue {queue.index} rx: {_grants(rx.granter)}"


def hash_lines(receive_hash: ReceiveHash, crashing: bool) -> Iterator[str]:
    """Lines of the control ring, and of what is asked for over it."""
    controller, settings = receive_hash.controller, receive_hash.settings
    if controller is None:
        return
    yield from ring_lines("ctrl", controller.ring, crashing)
    hashed = f"hash {settings.algorithm.name}, types {settings.types:#x}"
    yield f"ctrl: {controller.state.name}, {hashed}"


def _grants(granter: Granter) -> str:
    return f"{granter.held} references held, {len(granter.quarantined)} quarantined"
