"""Xen's own console: what `xl dmesg` shows, and the port by which HVM guests write to it.

hvm_print_line, arch/x86/hvm/hvm.c; guest_printk, drivers/char/console.c. Everything is kept,
as with loglvl=all guest_loglvl=all on Xen's command line.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Final

DEBUGCONS_PORT: Final = 0xE9  # XEN_HVM_DEBUGCONS_IOPORT
LINE_MAX: Final = 199  # DOMAIN_PBUF_SIZE, less its NUL: a longer line is broken there
LINES_MAX: Final = 16384  # the oldest go first
XEN: Final = -1  # whose line it is: Xen's own

PRINTABLE: Final = bytes((*range(0x20, 0x7F), 0x09, 0x0A))
UNPRINTABLE: Final = bytes(byte for byte in range(256) if byte not in PRINTABLE)


class XenConsole:
    """Lines of Xen and of its guests, oldest first."""

    def __init__(self) -> None:
        self.lines: deque[tuple[int, str]] = deque(maxlen=LINES_MAX)
        self.written = 0  # lines, those that went included
        self._begun: dict[int, str] = {}  # of each domain, what is no line yet

    def _add(self, owner: int, line: str) -> None:
        self.lines.append((owner, line))
        self.written += 1

    def printk(self, line: str) -> None:
        """A line of Xen's own."""
        self._add(XEN, line)

    def write(self, domid: int, data: bytes) -> None:
        """Bytes that a guest writes to the port; what cannot be printed is left out."""
        text = data.translate(None, UNPRINTABLE).decode("ascii")
        *whole, begun = (self._begun.get(domid, "") + text).split("\n")
        for line in whole:
            self._add(domid, self._break(domid, line))
        self._begun[domid] = self._break(domid, begun)

    def _break(self, domid: int, line: str) -> str:
        """What is left of a line after each full buffer of it."""
        while len(line) >= LINE_MAX:
            self._add(domid, line[:LINE_MAX])
            line = line[LINE_MAX:]
        return line

    def forget(self, domid: int) -> None:
        """The domain is gone: what it began is no line any more."""
        self._begun.pop(domid, None)

    def of(self, domid: int) -> str:
        """What one domain wrote, without the `(d1) ` in front."""
        return "".join(f"{line}\n" for owner, line in self.lines if owner == domid)

    def since(self, written: int) -> list[str]:
        """Xen's own lines of those after the first `written`."""
        first = max(0, len(self.lines) - (self.written - written))
        return [line for owner, line in islice(self.lines, first, None) if owner == XEN]

    @property
    def text(self) -> str:
        """As `xl dmesg`: `(XEN) ` or `(d1) ` in front of each line."""
        return "".join(
            f"({'XEN' if owner == XEN else f'd{owner}'}) {line}\n" for owner, line in self.lines
        )
