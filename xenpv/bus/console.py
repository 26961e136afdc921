"""XenBus' CONSOLE interface: the PV console page (public/io/console.h, win-xenbus console.c).

Its page is the frame of grant reference 0, its port HVM param 18. Writing never blocks.
"""

from __future__ import annotations

from typing import Final

from xenpv.abi._kernel import ffi, lib
from xenpv.abi.layout import offsetof
from xenpv.bus.evtchn import Channel, EvtchnInterface
from xenpv.errors import PeerProtocolError
from xenpv.xen.domain import Domain

PAGE: Final = "xencons_interface"
IN: Final = (offsetof(PAGE, "in"), 1024, offsetof(PAGE, "in_cons"), offsetof(PAGE, "in_prod"))
OUT: Final = (offsetof(PAGE, "out"), 2048, offsetof(PAGE, "out_cons"), offsetof(PAGE, "out_prod"))
BACKLOG_MAX: Final = 65536


class ConsoleInterface:
    """Bytes to and from the console daemon. Text that does not fit waits for room.

    At most BACKLOG_MAX bytes wait; the oldest are dropped first and counted. `broken` says why
    nothing is printed any more: the daemon's indices cannot be. `write` and `read` raise
    PeerProtocolError for such.
    """

    def __init__(self, domain: Domain, evtchn: EvtchnInterface, pfn: int, port: int) -> None:
        self.domain = domain
        self.pfn = pfn
        self.dropped = 0
        self.broken = ""
        self.received = bytearray()
        self._backlog = bytearray()
        self._evtchn = evtchn
        self.channel: Channel = evtchn.open_fixed(port, self._event)
        evtchn.unmask(self.channel, force=True)

    def write(self, data: bytes) -> int:
        """Bytes taken by the ring now; the daemon is notified if there are any."""
        count = lib.stream_put(self.domain.kernel, self.pfn, *OUT, ffi.from_buffer(data), len(data))
        if count < 0:
            self.domain.fail(count, "console ring")
        if count:
            self._evtchn.send(self.channel)
        return int(count)

    def read(self, size: int = 1024) -> bytes:
        """Up to `size` bytes of input that are there."""
        chunk = bytearray(size)
        count = lib.stream_get(self.domain.kernel, self.pfn, *IN, ffi.from_buffer(chunk), size)
        if count < 0:
            self.domain.fail(count, "console ring")
        if count:
            self._evtchn.send(self.channel)
        return bytes(chunk[:count])

    def print(self, text: str) -> None:
        """A log line; LF becomes CRLF as in the driver's log sink."""
        self._backlog += text.replace("\n", "\r\n").encode()
        excess = len(self._backlog) - BACKLOG_MAX
        if excess > 0:
            del self._backlog[:excess]
            self.dropped += excess
        self._flush()

    def _flush(self) -> None:
        while self._backlog and not self.broken:
            try:
                count = self.write(bytes(self._backlog[:2048]))
            except PeerProtocolError as error:
                self.broken = str(error)
                return
            if not count:
                return
            del self._backlog[:count]

    def _event(self) -> None:
        if self.broken:
            return
        try:
            self.received += self.read()
        except PeerProtocolError as error:
            self.broken = str(error)
            return
        del self.received[:-BACKLOG_MAX]
        self._flush()

    def close(self) -> None:
        self._evtchn.close(self.channel)
