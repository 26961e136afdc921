"""How agents tell what they can do, by keys of `control`, and stop listening.

libxl makes `control` read-only: a key that it did not provide cannot be created, and that is
logged and no more. A toolstack that finds "" does not know, and tries (xenstore-paths).
"""

from __future__ import annotations

from collections.abc import Iterable

from xenpv.bus.store import Watch
from xenpv.bus.xenbus import XenBus
from xenpv.errors import StoreError


def advertise(bus: XenBus, who: str, features: Iterable[str], value: str) -> None:
    """Write `value` to each: "1" for can, "" for no answer. `who` is for the log."""
    for feature in features:
        try:
            bus.store.write(f"control/{feature}", value)
        except StoreError as error:
            bus.log(f"{who}: control/{feature}: {error.name}\n")


def unwatch(bus: XenBus, who: str, watch: Watch) -> None:
    """A watch that xenstored does not know any more is gone as well."""
    try:
        bus.store.watch_remove(watch)
    except StoreError as error:
        bus.log(f"{who}: {error}\n")
