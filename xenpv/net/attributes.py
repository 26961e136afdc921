"""What a miniport tells NDIS of its adapter at initialisation (NdisMSetMiniportAttributes)."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.net import oid
from xenpv.net.offload import ALL_SUMS, OffloadConfiguration, configuration, permitted
from xenpv.net.packetfilter import SUPPORTED_FILTERS
from xenpv.net.properties import RX, TX
from xenpv.net.rss import RssCapability
from xenpv.vif.interface import Offload

if TYPE_CHECKING:
    from xenpv.net.context import AdapterContext

LINK_SPEED: Final = 1_000_000_000  # bit/s: what is claimed, whatever the interface has
MAC_OPTIONS: Final = 0xCD
MULTICAST_LIST_MAX: Final = 32  # what is told; longer lists are taken all the same


class AttributeFlags(enum.IntFlag):
    """NDIS_MINIPORT_ATTRIBUTES_*."""

    BUS_MASTER = 0x0002
    SURPRISE_REMOVE_OK = 0x0008
    NO_HALT_ON_SUSPEND = 0x0020


REGISTRATION: Final = (
    AttributeFlags.BUS_MASTER
    | AttributeFlags.NO_HALT_ON_SUSPEND
    | AttributeFlags.SURPRISE_REMOVE_OK
)


@attrs.frozen(kw_only=True)
class Attributes:
    """Registration, general and offload attributes; speeds in bit/s, sizes in bytes.

    `default_offload` is what the properties leave of `supported_offload`; `rss` None: the interface
    does not hash, or is not to.
    """

    flags: AttributeFlags
    mtu: int
    link_speed: int
    is_connected: bool
    is_full_duplex: bool
    lookahead: int
    mac_options: int
    packet_filters: int
    multicast_list_max: int
    permanent_address: bytes
    current_address: bytes
    supported_oids: tuple[oid.Oid, ...]
    supported_offload: OffloadConfiguration
    default_offload: OffloadConfiguration
    rss: RssCapability | None


def attributes(context: AdapterContext) -> Attributes:
    """Of an adapter that was initialised a moment ago."""
    vif, properties = context.vif, context.properties
    offered = vif.transmitter_query_offload_options() & ~Offload.TAG_MANIPULATION
    receive = ALL_SUMS
    return Attributes(
        flags=REGISTRATION,
        mtu=context.mtu,
        link_speed=LINK_SPEED,
        is_connected=True,
        is_full_duplex=True,
        lookahead=context.maximum_frame_size,
        mac_options=MAC_OPTIONS,
        packet_filters=SUPPORTED_FILTERS,
        multicast_list_max=MULTICAST_LIST_MAX,
        permanent_address=vif.mac_query_permanent_address(),
        current_address=vif.mac_query_current_address(),
        supported_oids=oid.SUPPORTED,
        supported_offload=configuration(vif, offered, receive),
        default_offload=configuration(
            vif, offered & permitted(properties, TX), receive & permitted(properties, RX)
        ),
        rss=context.rss.capability,
    )
