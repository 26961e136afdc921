"""Which offloads are switched on, and the two requests that switch them (XenNet adapter.c).

After initialisation a protocol may send with an 802.1p priority, and gets large packets, sums
written and tags taken out. The rest is on once it set OFFLOAD_ENCAPSULATION.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.net.ndis import NdisStatus
from xenpv.net.oid import OidError
from xenpv.net.properties import RX, TX, Properties
from xenpv.vif.interface import Offload

if TYPE_CHECKING:
    from xenpv.vif.interface import VifInterface

SEGMENTS_MIN: Final = 2  # MinSegmentCount of LSO

# NDIS_OFFLOAD_ENCAPSULATION: header, then enabled, type and header size of IPv4 and of IPv6.
ENCAPSULATION: Final = Struct("<4x6I")
SET_ON: Final = 1  # NDIS_OFFLOAD_SET_ON
IEEE_802_3: Final = 2  # NDIS_ENCAPSULATION_IEEE_802_3

# NDIS_OFFLOAD_PARAMETERS: header; IPv4, TCPv4, UDPv4, TCPv6, UDPv6 checksum, LsoV1, IPsecV1,
# LsoV2 of IPv4 and IPv6, TcpConnection of both; from 20 on IPsecV2 of any and of IPv4.
PARAMETERS: Final = Struct("<4x11B5x2B4x")
TX_VALUES: Final = (2, 4)  # TX_ENABLED_RX_DISABLED, TX_RX_ENABLED
RX_VALUES: Final = (3, 4)
LSO_OFF: Final = 1
LSO_ON: Final = 2

LARGE: Final = (Offload.IPV4_LARGE_PACKET, Offload.IPV6_LARGE_PACKET)
# In the order of NDIS_OFFLOAD_PARAMETERS.
SUMS: Final[Mapping[str, Offload]] = {
    "ip_checksum_ipv4": Offload.IPV4_HEADER_CHECKSUM,
    "tcp_checksum_ipv4": Offload.IPV4_TCP_CHECKSUM,
    "udp_checksum_ipv4": Offload.IPV4_UDP_CHECKSUM,
    "tcp_checksum_ipv6": Offload.IPV6_TCP_CHECKSUM,
    "udp_checksum_ipv6": Offload.IPV6_UDP_CHECKSUM,
}
ALL_SUMS: Final[int] = sum(SUMS.values())


@attrs.frozen(kw_only=True)
class OffloadConfiguration:
    """NDIS_OFFLOAD: bits of Offload each way.

    The sizes are of the longest packet that LSO version 2 takes, in bytes; 0: it takes none.
    """

    transmit: Offload
    receive: Offload
    lso_ipv4_size: int = 0
    lso_ipv6_size: int = 0

    @property
    def segments_min(self) -> int:
        """MinSegmentCount: a packet of fewer segments is not worth it."""
        return SEGMENTS_MIN


def configuration(vif: VifInterface, transmit: int, receive: int) -> OffloadConfiguration:
    """What these bits come to on that interface."""
    size = vif.transmitter_query_large_packet_size
    return OffloadConfiguration(
        transmit=Offload(transmit),
        receive=Offload(receive),
        lso_ipv4_size=size(4) if transmit & Offload.IPV4_LARGE_PACKET else 0,
        lso_ipv6_size=size(6) if transmit & Offload.IPV6_LARGE_PACKET else 0,
    )


def initial_receive(properties: Properties) -> int:
    """Bits of Offload that are on, for packets that arrive, before anybody asked for any."""
    options = int(Offload.TAG_MANIPULATION)
    if properties.need_checksum_value:
        options |= Offload.NEED_CHECKSUM_VALUE
    for is_on, large in zip((properties.lro_ipv4, properties.lro_ipv6), LARGE, strict=True):
        if is_on:
            options |= large | Offload.NEED_LARGE_PACKET_SPLIT
    return options


def permitted(properties: Properties, way: int) -> int:
    """Bits of Offload that the properties allow for TX or RX, large packets in TX alone."""
    allowed: int = sum(bit for name, bit in SUMS.items() if getattr(properties, name) & way)
    if way == TX:
        allowed |= LARGE[0] if properties.lso_v2_ipv4 else 0
        allowed |= LARGE[1] if properties.lso_v2_ipv6 else 0
    return allowed


@attrs.define(eq=False)
class OffloadState:
    """Bits of Offload that are switched on, each way."""

    transmit: int = Offload.TAG_MANIPULATION
    receive: int = 0

    @classmethod
    def initial(cls, vif: VifInterface, properties: Properties) -> OffloadState:
        """After InitializeEx. What stands for Linux' network stack has all from the start.

        That one keeps tags in their frames and large packets whole.
        """
        if vif.stack.is_windows:
            return cls(receive=initial_receive(properties))
        large = LARGE[0] | LARGE[1]
        return cls(
            transmit=vif.transmitter_query_offload_options() & ~Offload.TAG_MANIPULATION,
            receive=Offload.NEED_CHECKSUM_VALUE | ALL_SUMS | large,
        )

    def set_encapsulation(self, vif: VifInterface, properties: Properties, value: bytes) -> None:
        """OFFLOAD_ENCAPSULATION, at least 28 bytes: switch on all that may be.

        INVALID_PARAMETER: another encapsulation than Ethernet's is to be switched on.
        """
        enabled_4, type_4, _, enabled_6, type_6, _ = ENCAPSULATION.unpack_from(value)
        for enabled, kind in ((enabled_4, type_4), (enabled_6, type_6)):
            if enabled == SET_ON and kind != IEEE_802_3:
                raise OidError(NdisStatus.INVALID_PARAMETER, f"encapsulation {kind}")
        offered = vif.transmitter_query_offload_options()
        self.transmit = Offload.TAG_MANIPULATION | permitted(properties, TX) & offered
        self.receive = initial_receive(properties) | permitted(properties, RX)

    def set_parameters(self, vif: VifInterface, value: bytes) -> None:
        """TCP_OFFLOAD_PARAMETERS, at least 26 bytes: switch sums and LSO one by one.

        0 leaves one as it is, where XenNet switches a sum off. What the interface does not
        offer stays off. INVALID_PARAMETER: a value for LSO version 1, IPsec or TCP connections,
        or for an LSO that the interface does not offer.
        """
        fields = PARAMETERS.unpack_from(value)
        sums, (lso_v1, ipsec_v1), lso, others = fields[:5], fields[5:7], fields[7:9], fields[9:]
        offered = vif.transmitter_query_offload_options()
        if lso_v1 or ipsec_v1 or any(others):
            raise OidError(NdisStatus.INVALID_PARAMETER, "LSO version 1, IPsec or TCP connection")
        for wanted, bit in zip(lso, LARGE, strict=True):
            if wanted and not offered & bit:
                raise OidError(NdisStatus.INVALID_PARAMETER, f"{bit.name} is not offered")
        for wanted, bit in zip(lso, LARGE, strict=True):
            if wanted in (LSO_OFF, LSO_ON):
                self.transmit = _switched(self.transmit, bit, on=wanted == LSO_ON)
        for wanted, bit in zip(sums, SUMS.values(), strict=True):
            if wanted:
                can_send = wanted in TX_VALUES and bool(offered & bit)
                self.transmit = _switched(self.transmit, bit, on=can_send)
                self.receive = _switched(self.receive, bit, on=wanted in RX_VALUES)


def _switched(bits: int, bit: int, *, on: bool) -> int:
    return bits | bit if on else bits & ~bit
