"""A large TCP packet and the driver above: whole, its first segment split off, or all of it cut
(win-xenvif receiver.c).

Each segment has the lengths, IPv4 id and header sum, and sequence number of its own. The
window-reduced flag stays on the first, push and end on the last: XenVif itself drops those
two where it cuts the packet up.
"""

from __future__ import annotations

from typing import Final

from xenpv.abi._kernel import ffi, lib

IPV4: Final[int] = lib.NET_IPV4
CWR: Final = 0x80
PSH: Final = 0x08
FIN: Final = 0x01


class LargePacket:
    """A TCP packet of several segments of `mss` bytes; ValueError if `data` is none."""

    def __init__(self, data: bytes | bytearray, mss: int) -> None:
        headers = ffi.new("struct net_headers *")
        if not lib.net_parse(ffi.from_buffer(data), len(data), headers) or not headers.tcp:
            raise ValueError("a large packet that is not TCP")
        self.is_ipv4 = bool(headers.facts & IPV4)
        self._head = bytes(data[: headers.length])
        self._payload = bytes(data[headers.length : headers.end])
        self._ip: int = headers.ip
        self._tcp: int = headers.tcp
        self._mss = mss

    def whole(self) -> list[tuple[bytes, int]]:
        """As it is, and its segments' size; 0 if it is not even one."""
        size = len(self._payload)
        return [(self._part(0, size, 0), self._mss if size >= self._mss else 0)]

    def peeled(self) -> list[tuple[bytes, int]]:
        """The first segment, and what is left as a large packet of its own."""
        size, mss = len(self._payload), self._mss
        if size <= mss:
            return [(self._part(0, size, 0), 0)]
        rest = mss if size - mss >= mss else 0
        return [(self._part(0, mss, 0), 0), (self._part(mss, size, 1), rest)]

    def cut(self) -> list[tuple[bytes, int]]:
        """Every segment."""
        size, mss = len(self._payload), self._mss
        starts = range(0, max(size, 1), mss)
        return [
            (self._part(start, min(start + mss, size), number), 0)
            for number, start in enumerate(starts)
        ]

    def _part(self, start: int, end: int, number: int) -> bytes:
        """Payload from `start` to `end` behind headers made for it."""
        head = bytearray(self._head)
        ip, tcp = self._ip, self._tcp
        size = len(head) - ip + end - start
        if self.is_ipv4:
            ident = int.from_bytes(head[ip + 4 : ip + 6], "big") + number & 0xFFFF
            head[ip + 2 : ip + 6] = (size << 16 | ident).to_bytes(4, "big")
            head[ip + 10 : ip + 12] = b"\0\0"
            length = (head[ip] & 15) * 4
            total = lib.checksum_internet(bytes(head[ip : ip + length]), length, 0)
            head[ip + 10 : ip + 12] = (total ^ 0xFFFF).to_bytes(2, "big")
        else:
            head[ip + 4 : ip + 6] = (size - 40).to_bytes(2, "big")
        sequence = int.from_bytes(head[tcp + 4 : tcp + 8], "big") + start & 0xFFFFFFFF
        head[tcp + 4 : tcp + 8] = sequence.to_bytes(4, "big")
        if start:
            head[tcp + 13] &= ~CWR & 0xFF
        if end < len(self._payload):
            head[tcp + 13] &= ~(PSH | FIN) & 0xFF
        return bytes(head) + self._payload[start:end]
