"""What a frontend writes into the store, but for its state (win-xenvbd frontend.c, ring.c).

The keys of a connection are written in one transaction and in the driver's order; what tells the
crash driver where the disk is stands below data/scsi/target.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpv.bus.store import Transaction
from xenpv.errors import StoreError
from xenpv.vbd import blkif
from xenpv.vbd.personality import WINDOWS

if TYPE_CHECKING:
    from xenpv.vbd.frontend import Frontend

RING_PAGE_ORDER_MAX: Final = 4
COMMIT_RETRIES_MAX: Final = 1000  # the driver's are without limit


def write_target_path(frontend: Frontend) -> None:
    """In Prepare: how the system uses the disk, and whose it is. StoreError if it is refused."""
    home = f"data/scsi/target/{frontend.target.target_id}"
    values = {
        **frontend.usage.values(),
        "frontend": frontend.path,
        "device": str(frontend.devid),
    }
    for key, value in values.items():
        frontend.store.write(f"{home}/{key}", value)


def write_keys(frontend: Frontend, order: int) -> None:
    """In Connect, again after each conflict. StoreError: refused, or no end of conflicts."""
    store = frontend.store
    for _ in range(COMMIT_RETRIES_MAX):
        transaction = store.transaction_start()
        try:
            _write(frontend, transaction, order)
        except StoreError:
            store.transaction_end(transaction, commit=False)
            raise
        if store.transaction_end(transaction, commit=True):
            return
    raise StoreError("EAGAIN", f"no commit in {COMMIT_RETRIES_MAX} tries")


def _write(frontend: Frontend, transaction: Transaction, order: int) -> None:
    store, path = frontend.store, frontend.path
    if not order and store.get(f"{path}/ring-page-order", transaction) is not None:
        # Left by an earlier connection, it would make the backend look for ring-ref0.
        store.remove(f"{path}/ring-page-order", transaction)
    for key, value in _keys(frontend, order).items():
        store.write(f"{path}/{key}", str(value), transaction)


def _keys(frontend: Frontend, order: int) -> dict[str, int | str]:
    """In the order of their writing."""
    rings, parameters = frontend.rings, frontend.parameters
    windows = frontend.personality is WINDOWS
    keys: dict[str, int | str] = {}
    for ring in rings:
        prefix = f"queue-{ring.index}/" if len(rings) > 1 else ""
        keys[f"{prefix}event-channel"] = ring.port
        for index, gref in enumerate(ring.grefs):
            keys[f"{prefix}ring-ref{index if order else ''}"] = gref
    if windows or len(rings) > 1:
        keys["multi-queue-num-queues"] = len(rings)
    if order:
        keys["ring-page-order"] = order
    keys["protocol"] = blkif.PROTOCOL
    if windows:
        keys["target-id"] = frontend.target.target_id
        keys["feature-surprise-remove"] = 1
        keys["feature-online-resize"] = 1
    if parameters.units.large_feature:
        keys["feature-large-sector-size"] = 1
    if parameters.persistent or not windows:
        keys["feature-persistent"] = int(parameters.persistent)
    return keys
