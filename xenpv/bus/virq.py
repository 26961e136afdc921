"""The virtual interrupts that the XENBUS function device opens (FDO_VIRQ of win-xenbus fdo.c)."""

from __future__ import annotations

from typing import Final

import attrs

from xenpv.abi.evtchn import VIRQ
from xenpv.bus.debug import DebugInterface
from xenpv.bus.evtchn import Channel, EvtchnInterface

U32: Final = 0xFFFF_FFFF


@attrs.define(eq=False)
class Virq:
    """One that is open; `count` is how often it came (u32)."""

    name: str
    vcpu: int
    channel: Channel
    count: int = 0

    def counted(self) -> int:
        """It came: the count before that."""
        before = self.count
        self.count = (before + 1) & U32
        return before


class DebugVirq:
    """VIRQ_DEBUG on vcpu 0: somebody pressed `q` on Xen's console, so everybody prints."""

    def __init__(self, evtchn: EvtchnInterface, debug: DebugInterface) -> None:
        self.virq: Virq | None = None
        self._evtchn = evtchn
        self._debug = debug

    def start(self) -> None:
        """To D0. HypercallError: it cannot be opened, and the bus cannot start."""
        channel = self._evtchn.open_virq(VIRQ.DEBUG, self._event)
        self.virq = Virq("DEBUG", 0, channel)
        self._evtchn.unmask(channel, force=True)

    def stop(self) -> None:
        """To D3."""
        virq, self.virq = self.virq, None
        if virq is not None:
            self._evtchn.close(virq.channel)

    def _event(self) -> None:
        if self.virq is not None:
            self.virq.counted()
            self._debug.trigger()
