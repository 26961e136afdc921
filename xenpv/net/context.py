"""What XenNet keeps of one adapter between requests (XENNET_ADAPTER)."""

from __future__ import annotations

from collections import deque
from typing import Final

import attrs

from xenpv.net.link import Indication, Link
from xenpv.net.ndis import NdisStatus, NdisVersion
from xenpv.net.offload import OffloadConfiguration, OffloadState, configuration
from xenpv.net.properties import Properties
from xenpv.net.rss import Rss
from xenpv.vif.interface import VifInterface

INDICATIONS_MAX: Final = 256  # kept; the oldest go first
HEADER_ALLOWANCE: Final = 18  # of the longest frame: Ethernet and one tag


@attrs.define(eq=False)
class AdapterContext:
    """`lookahead`: what CURRENT_LOOKAHEAD was set to, in bytes.

    `indications` are what NDIS was told of, oldest first.
    """

    vif: VifInterface
    properties: Properties
    version: NdisVersion
    offload: OffloadState
    rss: Rss = attrs.field(factory=Rss)
    lookahead: int = 0
    indications: deque[Indication] = attrs.field(factory=lambda: deque(maxlen=INDICATIONS_MAX))

    @classmethod
    def initialize(
        cls, vif: VifInterface, properties: Properties, version: NdisVersion
    ) -> AdapterContext:
        """InitializeEx: hold the interface, and tell it what is to be done to packets."""
        vif.acquire()
        offload = OffloadState.initial(vif, properties)
        context = cls(vif=vif, properties=properties, version=version, offload=offload)
        context.rss.initialize(vif, properties)
        vif.receiver_set_offload_options(offload.receive)
        return context

    @property
    def maximum_frame_size(self) -> int:
        """Bytes of the longest frame, its header and a tag included."""
        return self.vif.mac_query_maximum_frame_size()

    @property
    def mtu(self) -> int:
        """Longest IP packet, in bytes."""
        return self.maximum_frame_size - HEADER_ALLOWANCE

    @property
    def configuration(self) -> OffloadConfiguration:
        """The offloads that are switched on."""
        return configuration(self.vif, self.offload.transmit, self.offload.receive)

    def offload_changed(self) -> None:
        """Tell the interface below, and NDIS above (AdapterIndicateOffloadChanged)."""
        self.vif.receiver_set_offload_options(self.offload.receive)
        status = NdisStatus.TASK_OFFLOAD_CURRENT_CONFIG
        self.indications.append(Indication(status=status, value=self.configuration))

    def offload_withdrawn(self) -> None:
        """A new backend offers less: what it does not offer is off."""
        offered = self.vif.transmitter_query_offload_options()
        if self.offload.transmit & ~offered:
            self.offload.transmit &= offered
            self.offload_changed()

    def link_changed(self) -> Link:
        """Indicate the link as it is (AdapterMediaStateChange)."""
        state = self.vif.mac_query_state()
        link = Link(up=state.link_up, speed=state.speed, full_duplex=state.full_duplex)
        self.indications.append(Indication(status=NdisStatus.LINK_STATE, value=link.emit()))
        return link
