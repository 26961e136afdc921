"""What an adapter indicates: its link, and which offloads are switched on."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.net.ndis import OBJECT_TYPE_DEFAULT, NdisStatus

if TYPE_CHECKING:
    from xenpv.net.offload import OffloadConfiguration

# NDIS_LINK_STATE: header, connect state, duplex state, then from 16 on xmit and rcv speed in
# bit/s, pause functions, auto-negotiation.
LINK_STATE: Final = Struct("<BBHII4xQQII")
CONNECTED: Final = 1  # MediaConnectState
DISCONNECTED: Final = 2
DUPLEX_UNKNOWN: Final = 0  # MediaDuplexState
DUPLEX_FULL: Final = 2


@attrs.frozen(kw_only=True)
class Link:
    """A link indication (NDIS_STATUS_LINK_STATE): speeds in bit/s, both ways alike."""

    up: bool
    speed: int
    full_duplex: bool

    def emit(self) -> bytes:
        """NDIS_LINK_STATE, 40 bytes."""
        connect = CONNECTED if self.up else DISCONNECTED
        duplex = DUPLEX_FULL if self.full_duplex else DUPLEX_UNKNOWN
        header = (OBJECT_TYPE_DEFAULT, 1, LINK_STATE.size)
        return LINK_STATE.pack(*header, connect, duplex, self.speed, self.speed, 0, 0)


@attrs.frozen(kw_only=True)
class Indication:
    """NdisMIndicateStatusEx: LINK_STATE with its bytes, or TASK_OFFLOAD_CURRENT_CONFIG with
    the offloads.
    """

    status: NdisStatus
    value: bytes | OffloadConfiguration
