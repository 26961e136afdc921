"""Packets of a queue on their way to the driver above, until it takes them."""

from __future__ import annotations

import attrs

from xenpv.vif.packet import ReceiverPacket


@attrs.define(eq=False)
class Pending:
    """Packets in order, and of each the facts that statistics count: bits of NET_*."""

    packets: list[ReceiverPacket] = attrs.field(factory=list)
    facts: list[int] = attrs.field(factory=list)

    def take(self, count: int | None = None) -> tuple[list[ReceiverPacket], list[int]]:
        """The first `count`, or all."""
        packets, facts = self.packets, self.facts
        if count is None or len(packets) <= count:
            self.packets, self.facts = [], []
            return packets, facts
        self.packets, self.facts = packets[count:], facts[count:]
        return packets[:count], facts[:count]
