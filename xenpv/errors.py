"""Exception types, grouped by who was wrong (DESIGN: an error says whose fault it is).

`LocalProtocolError` and `HypercallError`, `GrantError`, `StoreError` go to the caller,
`PeerProtocolError` never leaves the end that raised it: the event handler that met the
peer's data answers with an error response or breaks its own device.
"""

from __future__ import annotations

import errno as _errno
from collections.abc import Mapping

# GNTST_* of grant_table.h by value; this module imports nothing, so it cannot ask abi.gnttab.
_GNTST = {
    -1: "GNTST_general_error",
    -2: "GNTST_bad_domain",
    -3: "GNTST_bad_gntref",
    -4: "GNTST_bad_handle",
    -5: "GNTST_bad_virt_addr",
    -6: "GNTST_bad_dev_addr",
    -7: "GNTST_no_device_space",
    -8: "GNTST_permission_denied",
    -9: "GNTST_bad_page",
    -10: "GNTST_bad_copy_arg",
    -11: "GNTST_address_too_big",
    -12: "GNTST_eagain",
    -13: "GNTST_no_space",
}

# Python names 95 ENOTSUP; Xen's errno.h has only the other name of it.
_ERRNO = {**_errno.errorcode, _errno.EOPNOTSUPP: "EOPNOTSUPP"}


def _call(operation: str, arguments: Mapping[str, object]) -> str:
    given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return f"{operation}({given})" if operation else given


def _sentence(*parts: str) -> str:
    return ": ".join(part for part in parts if part)


class XenpvError(Exception):
    """Base of everything this package raises on purpose."""


class LocalProtocolError(XenpvError):
    """The caller broke the protocol: a call out of order, an argument out of range."""


class PeerProtocolError(XenpvError):
    """The other end broke the protocol; raised and caught inside one end."""


class HypercallError(XenpvError):
    """A hypercall failed as Xen would fail it.

    `errno` is positive, `name` is its symbol (Xen's errno.h has Linux' numbers). `operation`
    is Xen's name of what was asked ("EVTCHNOP_close"), `arguments` what it was given, `reason`
    why that was refused; the first two are empty where the failure is no single operation's.
    """

    def __init__(
        self,
        errno: int,
        reason: str = "",
        *,
        operation: str = "",
        arguments: Mapping[str, object] | None = None,
    ) -> None:
        self.errno = errno
        self.name = _ERRNO.get(errno, str(errno))
        self.operation = operation
        self.arguments = dict(arguments or {})
        self.reason = reason
        super().__init__(_sentence(self.name, _call(operation, self.arguments), reason))


class GrantError(XenpvError):
    """One grant operation failed; `status` is the negative GNTST_ value, `name` its symbol.

    `operation`, `arguments` and `reason` as for HypercallError.
    """

    def __init__(
        self,
        status: int,
        reason: str = "",
        *,
        operation: str = "",
        arguments: Mapping[str, object] | None = None,
    ) -> None:
        self.status = status
        self.name = _GNTST.get(status, f"GNTST {status}")
        self.operation = operation
        self.arguments = dict(arguments or {})
        self.reason = reason
        super().__init__(_sentence(self.name, _call(operation, self.arguments), reason))


class StoreError(XenpvError):
    """xenstored answered XS_ERROR; `name` is the errno name that was on the wire.

    `operation` is the type of the request ("READ") and `path` the node that it named, where
    a client says so; `reason` is what is known beyond that.
    """

    def __init__(
        self, name: str, message: str = "", *, operation: str = "", path: str = ""
    ) -> None:
        self.name = name
        self.operation = operation
        self.path = path
        self.reason = message
        request = f"{operation} of {path!r}" if path else operation
        super().__init__(_sentence(name, request, message))


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
