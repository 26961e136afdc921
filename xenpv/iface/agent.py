"""Who answers control/shutdown: XENIFACE's agent in Windows, the kernel in Linux.

The rules are one table. An acknowledgement is an empty value, written before acting and
only for a value that is understood; anything else is left where it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from xenpv.abi.sched import SHUTDOWN
from xenpv.bus.store import Watch
from xenpv.bus.xenbus import XenBus
from xenpv.errors import StoreError
from xenpv.xen.loop import Task

KEY: Final = "control/shutdown"


@attrs.frozen(kw_only=True)
class Requests:
    """What one kind of guest understands, which keys advertise it, and how it acknowledges."""

    reasons: Mapping[str, SHUTDOWN]
    features: tuple[str, ...]
    in_transaction: bool


REQUESTS: Final[dict[str, Requests]] = {
    # xenagent: plain write of ""; halt and crash are ignored.
    "windows": Requests(
        reasons={"poweroff": SHUTDOWN.poweroff, "reboot": SHUTDOWN.reboot},
        features=("feature-poweroff", "feature-reboot"),
        in_transaction=False,
    ),
    # drivers/xen/manage.c: read and acknowledge in one transaction; halt has no feature key.
    "linux": Requests(
        reasons={
            "poweroff": SHUTDOWN.poweroff,
            "halt": SHUTDOWN.poweroff,
            "reboot": SHUTDOWN.reboot,
        },
        features=("feature-poweroff", "feature-reboot"),
        in_transaction=True,
    ),
}


class Agent:
    """Windows' service above XENIFACE, or in Linux manage.c, in the place of that driver."""

    def __init__(self, bus: XenBus) -> None:
        self.bus = bus
        self.requests = REQUESTS[bus.personality]
        self.going_down = False
        self.stopped = True
        self._task: Task = bus.domain.task("agent", self._look)
        self._watch: Watch | None = None

    def start(self) -> None:
        self.stopped = False
        self._watch = self.bus.store.watch_add(KEY, self._task)
        self._advertise("1")

    def stop(self) -> None:
        if self.stopped:
            return
        self._advertise("")
        if self._watch is not None:
            self.bus.store.watch_remove(self._watch)
            self._watch = None
        self.stopped = True

    def _advertise(self, value: str) -> None:
        for feature in self.requests.features:
            try:
                self.bus.store.write(f"control/{feature}", value)
            except StoreError as error:
                # libxl makes `control` read-only: a key it did not provide cannot be created.
                self.bus.log(f"agent: control/{feature}: {error.name}\n")

    def _look(self) -> None:
        if self.going_down or self.stopped:
            return
        value = self._acknowledge()
        reason = self.requests.reasons.get(value) if value else None
        if reason is None:
            return
        self.going_down = True
        self.bus.log(f"agent: {value}\n")
        self.bus.domain.trace.note(self.bus.domain.domid, f"agent: {value} acknowledged")
        self.bus.power_off(reason)

    def _acknowledge(self) -> str | None:
        """Read the request and write `""` over it, if it is one of ours."""
        store = self.bus.store
        if not self.requests.in_transaction:
            value = store.get(KEY)
            if value in self.requests.reasons:
                store.write(KEY, "")
            return value
        while True:
            transaction = store.transaction_start()
            value = store.get(KEY, transaction)
            if value in self.requests.reasons:
                store.write(KEY, "", transaction)
            if store.transaction_end(transaction, commit=True):
                return value
