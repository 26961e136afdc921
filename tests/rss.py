"""Microsoft's vectors of the RSS hash ("Verifying the RSS Hash Calculation")."""

from __future__ import annotations

from ipaddress import ip_address

import attrs

from xenpv.host.packet import (
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    TCP,
    ethernet_frame,
    ipv4_packet,
    ipv6_packet,
)

KEY = bytes.fromhex(
    "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
)


@attrs.frozen
class Vector:
    """A flow, and its hash over the addresses and over addresses and ports."""

    source: str
    source_port: int
    destination: str
    destination_port: int
    addresses: int
    with_tcp: int

    @property
    def version(self) -> int:
        return ip_address(self.source).version

    @property
    def packed(self) -> bytes:
        return ip_address(self.source).packed + ip_address(self.destination).packed

    @property
    def ports(self) -> bytes:
        return self.source_port.to_bytes(2, "big") + self.destination_port.to_bytes(2, "big")

    def frame(
        self,
        protocol: int = TCP,
        *,
        destination: bytes = bytes.fromhex("00163e000001"),
        tag: bytes = b"",
    ) -> bytes:
        """An Ethernet frame of that flow, with a TCP or UDP header of 20 bytes in all."""
        source, target = ip_address(self.source).packed, ip_address(self.destination).packed
        rest = bytes(8) + b"\x50" + bytes(7) if protocol == TCP else b"\x00\x14" + bytes(14)
        body = self.ports + rest
        if self.version == 4:
            kind, packet = ETHERTYPE_IPV4, ipv4_packet(source, target, protocol, body)
        else:
            kind, packet = ETHERTYPE_IPV6, ipv6_packet(source, target, protocol, body)
        plain = ethernet_frame(destination, bytes.fromhex("00163e0000ee"), kind, packet)
        return plain[:12] + tag + plain[12:]


# fmt: off
VECTORS = [
    Vector("66.9.149.187", 2794, "161.142.100.80", 1766, 0x323E8FC2, 0x51CCC178),
    Vector("199.92.111.2", 14230, "65.69.140.83", 4739, 0xD718262A, 0xC626B0EA),
    Vector("24.19.198.95", 12898, "12.22.207.184", 38024, 0xD2D0A5DE, 0x5C2B394A),
    Vector("38.27.205.30", 48228, "209.142.163.6", 2217, 0x82989176, 0xAFC7327F),
    Vector("153.39.163.191", 44251, "202.188.127.2", 1303, 0x5D1809C5, 0x10E828A2),
    Vector("3ffe:2501:200:1fff::7", 2794, "3ffe:2501:200:3::1", 1766, 0x2CC18CD5, 0x40207D3D),
    Vector("3ffe:501:8::260:97ff:fe40:efab", 14230, "ff02::1", 4739, 0x0F0C461C, 0xDDE51BBF),
    Vector("3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251, "fe80::200:f8ff:fe21:67cf", 38024,
           0x4B61E985, 0x02D1FEEF),
]
# fmt: on
