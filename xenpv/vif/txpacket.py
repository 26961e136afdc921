"""One packet made ready for the tx ring (transmitter.c, __TransmitterRingPrepareHeader).

The driver above says what it leaves to this one; here it is done, or put into the words of
netif.h for the backend to do. What cannot be sent is None: it never touches the ring.
"""

from __future__ import annotations

from typing import Final

import attrs

from xenpv.abi._kernel import lib
from xenpv.abi.layout import packer
from xenpv.vif.callbacks import CHECKSUM_SHIFT, Traits
from xenpv.vif.checksum import (
    CHECKSUM_IPV4,
    ipv4_header_good,
    ipv4_header_sum,
    pseudo_header_sum,
    transport_field,
    transport_good,
    transport_sum,
)
from xenpv.vif.granter import PAGE_SIZE
from xenpv.vif.packet import (
    Checksum,
    HashAlgorithm,
    HashType,
    Header,
    Offload,
    PacketHash,
    PacketInfo,
    TransmitterPacket,
)
from xenpv.vif.parse import ETHERNET, TAG, VLAN, parse, traits_of

EXTRA_GSO: Final = packer("netif_extra_info", "u.gso")
EXTRA_HASH: Final = packer("netif_extra_info", "u.hash")
EXTRA_MCAST: Final = packer("netif_extra_info", "u.mcast")
EXTRA_PAD: Final = bytes(packer("netif_tx_request").size - EXTRA_GSO.size)
CSUM_BLANK: Final[int] = lib.NETTXF_csum_blank
DATA_VALIDATED: Final[int] = lib.NETTXF_data_validated
TYPE_GSO: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_GSO
TYPE_HASH: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_HASH
TYPE_MCAST_ADD: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_MCAST_ADD
TYPE_MCAST_DEL: Final[int] = lib.XEN_NETIF_EXTRA_TYPE_MCAST_DEL
FLAG_MORE: Final[int] = lib.XEN_NETIF_EXTRA_FLAG_MORE
GSO_TCPV4: Final[int] = lib.XEN_NETIF_GSO_TYPE_TCPV4
GSO_TCPV6: Final[int] = lib.XEN_NETIF_GSO_TYPE_TCPV6
TOEPLITZ: Final[int] = lib.XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ

PACKET_MAX: Final[int] = lib.XEN_NETIF_MAX_TX_SIZE
# Bits of Offload as plain integers: an operation of an enum takes half a microsecond.
TAG_MANIPULATION: Final = int(Offload.TAG_MANIPULATION)
HEADER_SUM: Final = int(Offload.IPV4_HEADER_CHECKSUM)
TCP_SUMS: Final = {4: int(Offload.IPV4_TCP_CHECKSUM), 6: int(Offload.IPV6_TCP_CHECKSUM)}
UDP_SUMS: Final = {4: int(Offload.IPV4_UDP_CHECKSUM), 6: int(Offload.IPV6_UDP_CHECKSUM)}
LARGE_OF: Final = {4: int(Offload.IPV4_LARGE_PACKET), 6: int(Offload.IPV6_LARGE_PACKET)}
LARGE: Final = LARGE_OF[4] | LARGE_OF[6]
TRAIT_LARGE: Final = int(Traits.GSO)

# netif.h numbers the bits of its mask; an extra carries that number.
HASH_BITS: Final = {
    HashType.IPV4: 0,
    HashType.IPV4_TCP: 1,
    HashType.IPV6: 2,
    HashType.IPV6_TCP: 3,
}


@attrs.frozen(kw_only=True)
class Rules:
    """What one connection lets a packet be. Lengths in bytes, tags included."""

    frame_max: int  # of a packet that is not large
    linear: bool = False  # the backend takes one slot a packet, and no extras
    offered: int = attrs.field(default=0, converter=int)  # Offload: what the backend does for us
    hashes: bool = False  # HASH extras may be sent
    validate: bool = False  # look at sums that are not offloaded (ValidateChecksums)
    always_copy: bool = False  # payload goes through pages of the driver (AlwaysCopy)

    @property
    def longest(self) -> int:
        """Bytes of the longest packet that is not large."""
        return min(self.frame_max, PAGE_SIZE if self.linear else PACKET_MAX)


@attrs.define(eq=False)
class Prepared:
    """`data` as it goes to the backend, before padding; `head` bytes of it are headers."""

    data: bytes
    head: int
    flags: int  # of the first request
    extras: bytes  # each with the room of a request
    traits: int


def multicast_extra(address: bytes, *, add: bool) -> bytes:
    return EXTRA_MCAST.pack(TYPE_MCAST_ADD if add else TYPE_MCAST_DEL, 0, address) + EXTRA_PAD


def prepare(packet: TransmitterPacket, rules: Rules) -> Prepared | None:
    """Do what is asked of this driver; None for what cannot be sent: it is dropped."""
    size = len(packet.data)
    info, _ = parse(packet.data)
    if not info.length or size > PACKET_MAX:
        return None
    offload = int(packet.offload)
    data = bytearray(packet.data)
    if offload & TAG_MANIPULATION:
        data[12:12] = VLAN + (packet.tci & 0xFFFF).to_bytes(2, "big")
        info = _moved(info)
    version = data[info.ip.offset] >> 4 if info.ip.length else 0
    large = bool(offload & LARGE)
    segment = 0  # bytes of payload, if the backend is to segment
    if large:
        if not _is_large(packet, info, version):
            return None
        _fix_ip_length(data, info, version)
        offload |= HEADER_SUM | TCP_SUMS[version]
        if packet.mss < len(data) - info.length:
            if not rules.offered & LARGE_OF[version]:
                return None
            segment = packet.mss
    if len(data) > (PACKET_MAX if segment else rules.longest):
        return None
    flags, traits = _sums(data, info, version, offload, rules, blank=bool(segment))
    return Prepared(
        data=bytes(data),
        head=info.length,
        flags=flags,
        extras=_extras(segment, version, packet.hash, rules),
        traits=traits | (TRAIT_LARGE if large else 0),
    )


def _moved(info: PacketInfo) -> PacketInfo:
    """Where headers lie behind a tag that was put in front of the type."""
    moved = [Header(at + TAG, length) if length else Header() for at, length in info[3:]]
    ethernet = Header(0, info.ethernet.length + TAG)
    return PacketInfo(info.length + TAG, info.is_fragment, ethernet, *moved)


def _is_large(packet: TransmitterPacket, info: PacketInfo, version: int) -> bool:
    """Whether it is the whole TCP packet that the driver above says it is."""
    asked = int(packet.offload) & LARGE
    return bool(info.tcp.length) and asked == LARGE_OF.get(version) and 0 < packet.mss <= 0xFFFF


def _fix_ip_length(data: bytearray, info: PacketInfo, version: int) -> None:
    """Large packets may come with any length in their IP header."""
    at = info.ip.offset
    length = len(data) - at - (info.ip.length if version == 6 else 0)
    field = at + (2 if version == 4 else 4)
    data[field : field + 2] = length.to_bytes(2, "big")


def _sums(
    data: bytearray, info: PacketInfo, version: int, offload: int, rules: Rules, *, blank: bool
) -> tuple[int, int]:
    """Write the sums that are asked for; flags of the first request, and the packet's traits."""
    flags = 0
    traits = traits_of(data, info)
    seen = 0
    if version == 4:
        at = info.ip.offset + CHECKSUM_IPV4
        if offload & HEADER_SUM:
            data[at : at + 2] = ipv4_header_sum(data, info).to_bytes(2, "big")
        elif rules.validate:
            good = ipv4_header_good(bytes(data), info)
            seen |= Checksum.IP_SUCCEEDED if good else Checksum.IP_FAILED
    field = transport_field(info)
    if field:
        sums = TCP_SUMS if info.tcp.length else UDP_SUMS
        if offload & sums[version]:
            # Linux' backend loses a blank sum behind a tag, where skb_checksum_setup sees no IP.
            tagged = info.ethernet.length > ETHERNET
            if blank or (rules.offered & sums[version] and not tagged):
                value = pseudo_header_sum(data, info)
                flags = CSUM_BLANK | DATA_VALIDATED
            else:
                value = transport_sum(data, info)
            data[field : field + 2] = value.to_bytes(2, "big")
        elif rules.validate:
            good = transport_good(bytes(data), info)
            if info.tcp.length:
                seen |= Checksum.TCP_SUCCEEDED if good else Checksum.TCP_FAILED
            else:
                seen |= Checksum.UDP_SUCCEEDED if good else Checksum.UDP_FAILED
    return flags, _validated(traits, seen) if seen else traits


# A sum that was looked at is not one that was not.
_OUTCOMES: Final = (
    (Checksum.IP_SUCCEEDED | Checksum.IP_FAILED, Checksum.IP_NOT_VALIDATED),
    (Checksum.TCP_SUCCEEDED | Checksum.TCP_FAILED, Checksum.TCP_NOT_VALIDATED),
    (Checksum.UDP_SUCCEEDED | Checksum.UDP_FAILED, Checksum.UDP_NOT_VALIDATED),
)


def _validated(traits: int, seen: int) -> int:
    for outcomes, unknown in _OUTCOMES:
        if seen & outcomes:
            traits &= ~(unknown << CHECKSUM_SHIFT)
    return traits | seen << CHECKSUM_SHIFT


def _extras(segment: int, version: int, told: PacketHash, rules: Rules) -> bytes:
    """GSO, then HASH, each but the last with the flag that more follow."""
    found = b""
    hashed = rules.hashes and told.algorithm == HashAlgorithm.TOEPLITZ and told.type in HASH_BITS
    if segment:
        kind = GSO_TCPV4 if version == 4 else GSO_TCPV6
        more = FLAG_MORE if hashed else 0
        found = EXTRA_GSO.pack(TYPE_GSO, more, segment, kind, 0, 0) + EXTRA_PAD
    if hashed:
        value = (told.value & 0xFFFFFFFF).to_bytes(4, "little")
        bit = HASH_BITS[HashType(told.type)]
        found += EXTRA_HASH.pack(TYPE_HASH, 0, bit, TOEPLITZ, value) + EXTRA_PAD
    return found
