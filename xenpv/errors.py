"""Exception types, grouped by who was wrong (DESIGN: an error says whose fault it is).

`LocalProtocolError` and `HypercallError`, `GrantError`, `StoreError` go to the caller,
`PeerProtocolError` never leaves the end that raised it: the event handler that met the
peer's data answers with an error response or breaks its own device.
"""

from __future__ import annotations

import errno as _errno


class XenpvError(Exception):
    """Base of everything this package raises on purpose."""


class LocalProtocolError(XenpvError):
    """The caller broke the protocol: a call out of order, an argument out of range."""


class PeerProtocolError(XenpvError):
    """The other end broke the protocol; raised and caught inside one end."""


class HypercallError(XenpvError):
    """A hypercall failed as Xen would fail it.

    `errno` is positive, `name` is its symbol (Xen's errno.h has Linux' numbers).
    """

    def __init__(self, errno: int, message: str = "") -> None:
        self.errno = errno
        self.name = _errno.errorcode.get(errno, str(errno))
        super().__init__(f"{self.name}: {message}" if message else self.name)


class GrantError(XenpvError):
    """One grant operation failed; `status` is the negative GNTST_ value."""

    def __init__(self, status: int, message: str = "") -> None:
        self.status = status
        super().__init__(f"GNTST {status}: {message}" if message else f"GNTST {status}")


class StoreError(XenpvError):
    """xenstored answered XS_ERROR; `name` is the errno name that was on the wire."""

    def __init__(self, name: str, message: str = "") -> None:
        self.name = name
        super().__init__(f"{name}: {message}" if message else name)


class ConfigError(XenpvError):
    """A user's configuration is wrong: where it is, and what was expected there.

    `line` and `column` count from 1; 0 means that the place is the file as a whole.
    """

    def __init__(self, message: str, *, file: str = "", line: int = 0, column: int = 0) -> None:
        self.message = message
        self.file = file
        self.line = line
        self.column = column
        place = ":".join(part for part in (file, str(line or ""), str(column or "")) if part)
        super().__init__(f"{place}: {message}" if place else message)


class Livelock(XenpvError):  # noqa: N818 - the name users grep for says what happened
    """A limit of the loop is exhausted: nothing settles.

    `seed` reproduces it; `tail` holds the last lines of the trace, newest last.
    """

    def __init__(self, message: str, *, seed: int, tail: tuple[str, ...] = ()) -> None:
        self.seed = seed
        self.tail = tail
        lines = "".join(f"\n  {line}" for line in tail)
        super().__init__(f"{message} (seed {seed}){lines}")
