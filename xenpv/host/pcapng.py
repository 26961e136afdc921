"""Packet captures that tcpdump, Wireshark and scapy read (IETF draft-ietf-opsawg-pcapng).

Three block types are written: one section header, a description of each interface when it
first shows up, and a packet block for each frame, all little-endian and as they come, so a
capture that was cut short is readable up to there. Times are the platform's virtual
nanoseconds, counted from 1970 as the format wants it; nothing depends on the machine, so one
seed gives one file, byte for byte.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import BinaryIO

import attrs

from xenpv.errors import LocalProtocolError, PeerProtocolError
from xenpv.host.network import Direction, Frame
from xenpv.host.offload import to_wire

_SECTION_HEADER = 0x0A0D0D0A
_INTERFACE_DESCRIPTION = 1
_ENHANCED_PACKET = 6

_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_SECTION_LENGTH_UNKNOWN = -1
_LINKTYPE_ETHERNET = 1
_SNAPLEN_NONE = 0
_NANOSECONDS = 9  # of if_tsresol: 10**-9 s

# Option codes. 0 and 1 mean the same in every block, the others are its own.
_OPT_COMMENT = 1
_SHB_APPLICATION = 4
_IF_NAME = 2
_IF_DESCRIPTION = 3
_IF_MAC = 6
_IF_SPEED = 8
_IF_TSRESOL = 9
_EPB_FLAGS = 2
_EPB_DROPCOUNT = 4
_EPB_QUEUE = 6

_Option = tuple[int, bytes]


@attrs.define(eq=False)
class PcapngWriter:
    """Writes one section to `file`, which stays the caller's to flush and close."""

    file: BinaryIO
    application: str = "xenpv"
    interfaces: int = attrs.field(default=0, init=False)
    packets: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        body = struct.pack("<IHHq", _BYTE_ORDER_MAGIC, 1, 0, _SECTION_LENGTH_UNKNOWN)
        options = [(_SHB_APPLICATION, _text(self.application))]
        self._block(_SECTION_HEADER, body, options)

    def interface(
        self, name: str, *, description: str = "", mac: bytes | None = None, speed: int = 0
    ) -> int:
        """Describe an Ethernet interface and return its number for `packet`.

        `speed` is in bits per second; what is empty or 0 is left out.
        """
        options = [(_IF_NAME, _text(name))]
        if description:
            options.append((_IF_DESCRIPTION, _text(description)))
        if mac is not None:
            if len(mac) != 6:
                raise LocalProtocolError(f"pcapng: MAC address of {len(mac)} bytes")
            options.append((_IF_MAC, mac))
        if speed:
            options.append((_IF_SPEED, struct.pack("<Q", speed)))
        options.append((_IF_TSRESOL, bytes([_NANOSECONDS])))
        body = struct.pack("<HHI", _LINKTYPE_ETHERNET, 0, _SNAPLEN_NONE)
        self._block(_INTERFACE_DESCRIPTION, body, options)
        self.interfaces += 1
        return self.interfaces - 1

    def packet(
        self,
        interface: int,
        data: bytes,
        now_ns: int,
        *,
        direction: Direction | None = None,
        original_length: int | None = None,
        queue: int | None = None,
        drop_count: int | None = None,
        comments: Iterable[str] = (),
    ) -> None:
        """Write one frame.

        `original_length` is for data that were cut; `drop_count` says how many packets got
        lost between the interface's previous block and this one. Raises LocalProtocolError
        for an interface not described yet, a time outside 64 bits, and for text with a NUL
        or of more than 65535 bytes.
        """
        if not 0 <= interface < self.interfaces:
            raise LocalProtocolError(f"pcapng: interface {interface} of {self.interfaces}")
        if not 0 <= now_ns < 1 << 64:
            raise LocalProtocolError(f"pcapng: time {now_ns} outside 64 bits")
        original = len(data) if original_length is None else original_length
        options = [(_OPT_COMMENT, _text(comment)) for comment in comments]
        if direction is not None:
            options.append((_EPB_FLAGS, struct.pack("<I", direction)))
        if drop_count is not None:
            options.append((_EPB_DROPCOUNT, struct.pack("<Q", drop_count)))
        if queue is not None:
            options.append((_EPB_QUEUE, struct.pack("<I", queue)))
        head = struct.pack(
            "<IIIII", interface, now_ns >> 32, now_ns & 0xFFFFFFFF, len(data), original
        )
        self._block(_ENHANCED_PACKET, head + _padded(data), options)
        self.packets += 1

    def _block(self, kind: int, body: bytes, options: list[_Option]) -> None:
        if options:
            body += b"".join(
                struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options
            )
            body += bytes(4)  # opt_endofopt
        total = 12 + len(body)
        self.file.write(struct.pack("<II", kind, total) + body + struct.pack("<I", total))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _text(text: str) -> bytes:
    value = text.encode()
    if b"\0" in value or len(value) > 0xFFFF:
        raise LocalProtocolError(f"pcapng: text with a NUL or of {len(value)} bytes")
    return value


@attrs.define(eq=False)
class PcapngCapture:
    """A bridge's tap; each port is an interface of the file.

    Without `port` it writes the whole bridge: each frame once, inbound on the port that it
    came from, so that Wireshark does not take a second crossing for a retransmission. With
    `port` it writes both directions of that port alone, as tcpdump on the vif would. Captures
    of several ports may share a writer.

    Frames are written as a station without offloads would see them: checksums finished, GSO
    packets cut, with a comment that says so. A frame of a guest's ring has its queue in epb_queue
    and a comment with queue and slot; one that waits for slots is written when it gets them, and
    those that never did are in the epb_dropcount of the port's next packet.
    """

    writer: PcapngWriter
    port: str | None = attrs.field(default=None, kw_only=True)
    _interfaces: dict[str, int] = attrs.field(factory=dict, init=False)
    _lost: dict[str, int] = attrs.field(factory=dict, init=False)

    def describe(
        self, port_name: str, *, description: str = "", mac: bytes | None = None, speed: int = 0
    ) -> None:
        """Say more about a port than its name; only before its first frame."""
        if port_name in self._interfaces:
            raise LocalProtocolError(f"pcapng: interface {port_name} is described already")
        self._interfaces[port_name] = self.writer.interface(
            port_name, description=description, mac=mac, speed=speed
        )

    def capture(self, port_name: str, direction: Direction, frame: Frame, now_ns: int) -> None:
        wanted = direction is Direction.IN if self.port is None else port_name == self.port
        if not wanted:
            return
        interface = self._interfaces.get(port_name)
        if interface is None:
            self.describe(port_name)
            interface = self._interfaces[port_name]
        comments: list[str] = []
        queue = None
        if frame.queue >= 0:
            queue = frame.queue
            comments.append(f"queue {queue} slot {frame.slot}")
        dropped = self._lost.pop(port_name, None)
        try:
            parts = to_wire(frame)
        except PeerProtocolError as error:
            parts = [frame.data]
            comments.append(f"as it was sent: {error}")
        if len(parts) > 1:
            comments.append(f"GSO: {len(parts)} segments of {frame.gso_size} bytes")
        for data in parts:
            self.writer.packet(
                interface,
                data,
                now_ns,
                direction=direction,
                queue=queue,
                drop_count=dropped,
                comments=comments,
            )
            comments = []
            dropped = None

    def lost(self, port_name: str, count: int) -> None:
        if self.port == port_name:
            self._lost[port_name] = self._lost.get(port_name, 0) + count
