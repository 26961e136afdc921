"""What a frontend writes into its directory before it connects, in each driver's order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from xenpv.errors import StoreError
from xenpv.vif.parameters import GSO_TCPV4, GSO_TCPV6

if TYPE_CHECKING:
    from xenpv.bus.store import StoreInterface
    from xenpv.vif.features import Features
    from xenpv.vif.parameters import Parameters
    from xenpv.vif.queue import Queue

# Path below the frontend's directory, and the value; None removes.
Keys = list[tuple[str, str | None]]

RETRIES_MAX: Final = 10


def _home(queue: Queue, queues: Sequence[Queue]) -> str:
    """Several queues have a directory each; the keys of one alone lie flat."""
    return f"queue-{queue.index}/" if len(queues) > 1 else ""


def windows_keys(
    queues: Sequence[Queue], parameters: Parameters, *, multicast: Keys, control: Keys
) -> Keys:
    """XenVif's; each legacy `-prefix` key goes before the one that replaced it.

    `multicast` asks for the backend's filter, `control` are the keys of the control ring: what
    there is of them.
    """
    gso = parameters.receiver.gso_types
    keys: Keys = [
        ("request-rx-copy", "1"),
        ("feature-sg", "1"),
        ("feature-rx-notify", "1"),
        ("feature-gso-tcpv4-prefix", None),
        ("feature-gso-tcpv4", str(int(GSO_TCPV4 in gso))),
        ("feature-gso-tcpv6-prefix", None),
        ("feature-gso-tcpv6", str(int(GSO_TCPV6 in gso))),
        ("feature-no-csum-offload", "0"),
        ("feature-ipv6-csum-offload", "1"),
    ]
    for queue in queues:
        keys += [(_home(queue, queues) + key, value) for key, value in queue.rx_keys()]
    keys += multicast
    for queue in queues:
        keys += [(_home(queue, queues) + key, value) for key, value in queue.tx_keys()]
    return [*keys, *control, ("multi-queue-num-queues", str(len(queues)))]


def linux_keys(queues: Sequence[Queue], features: Features) -> Keys:
    """netfront's; a backend does sums over IPv4 unless it is told not to."""
    keys: Keys = []
    if features.max_queues is not None:
        keys.append(("multi-queue-num-queues", str(len(queues))))
    for queue in queues:
        rx, tx = queue.rx_keys(), queue.tx_keys()
        ordered = [tx[0], rx[0], *tx[1:], *rx[1:]]
        keys += [(_home(queue, queues) + key, value) for key, value in ordered]
    return [
        *keys,
        ("request-rx-copy", "1"),
        ("feature-rx-notify", "1"),
        ("feature-sg", "1"),
        ("feature-gso-tcpv4", "1"),
        ("feature-gso-tcpv6", "1"),
        ("feature-ipv6-csum-offload", "1"),
    ]


def write(store: StoreInterface, path: str, keys: Keys) -> None:
    """All of them, or none, below `path`. StoreError; EAGAIN after ten conflicts."""
    values = [(f"{path}/{key}", value) for key, value in keys]
    for _ in range(RETRIES_MAX):
        transaction = store.transaction_start()
        try:
            store.write_many(values, transaction)
        except StoreError:
            store.transaction_end(transaction, commit=False)
            raise
        if store.transaction_end(transaction, commit=True):
            return
    raise StoreError("EAGAIN", f"{path}: no commit in {RETRIES_MAX} tries")
