"""The Hypothesis plugin: `st.from_type` of xenpv's types, and so `@given` by annotations.

Hypothesis calls `register` when it is imported, in every environment that xenpv is installed in:
nothing of xenpv is imported here. Modules with such types that are imported later call it then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

# Grant references of an example without a world: the first eight are reserved (grant_table.h).
REFS = range(8, 40)

# (module, type): its strategy, made of xenpv.testing.strategies when it is first asked for.
# A message is any that a peer could send: well-formed or hostile.
TYPES: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("xenpv.testing.schedule", "Schedule"): lambda known: known.schedules(),
    ("xenpv.testing.lifecycle", "Step"): lambda known: known.lifecycle_steps(),
    ("xenpv.testing.strategies.blk", "BlkRequest"): lambda known: (
        known.blk_requests(REFS) | known.blk_requests(REFS, hostile=True)
    ),
    ("xenpv.testing.strategies.net", "Extra"): lambda known: (
        known.extras() | known.extras(hostile=True)
    ),
    ("xenpv.testing.strategies.net", "NetPacket"): lambda known: (
        known.net_packets(REFS) | known.net_packets(REFS, hostile=True)
    ),
    ("xenpv.testing.strategies.scsi", "ScsiCommand"): lambda known: known.srbs(hostile=True),
    ("xenpv.testing.strategies.store", "StoreOperation"): lambda known: known.store_operations(),
}


def register() -> None:
    """Tell Hypothesis of the types whose modules are imported; again does no harm."""
    for (module, name), made in TYPES.items():
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None:
            _tell(kind, made)


def _tell(kind: type, made: Callable[[Any], Any]) -> None:
    from hypothesis.strategies import register_type_strategy

    def strategy(_: object) -> Any:
        from xenpv.testing import strategies

        return made(strategies)

    register_type_strategy(kind, strategy)
