"""What the driver above set of the receive side; it stays over reconnections."""

from __future__ import annotations

import attrs


@attrs.define(eq=False)
class ReceiverOptions:
    """Of one interface, for all its queues.

    `offload` are Offload's bits; `backfill` is how many bytes the driver above wants in front
    of each packet for headers of its own.
    """

    offload: int = 0
    backfill: int = 0
