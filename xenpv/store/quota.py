"""Quotas: what one unprivileged domain may hold, and GET_QUOTA and SET_QUOTA.

A value that reaches its quota is refused (xenstored of 2026; 4.17 refused what exceeded it),
so 1000 nodes admit 999. Only ring connections of unprivileged domains are measured.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from xenpv.errors import StoreError
from xenpv.store.wire import OK, strings

if TYPE_CHECKING:
    from xenpv.store.connection import Connection
    from xenpv.store.profile import Profile
    from xenpv.store.server import Xenstored
    from xenpv.store.transaction import Transaction

_NUMBER: Final = re.compile(rb"\d{1,10}\Z")
_VALUE_MAX: Final = 0x7FFFFFFF


class Limits:
    """Quotas of one domain, or those that new domains get; 0 is unlimited.

    Counts but for `node_size` and `path_max`, in bytes, and the two memory limits, in bytes.
    """

    def __init__(self) -> None:
        self.nodes = 1000
        self.watches = 128
        self.outstanding = 20
        self.memory = 2_621_440
        self.soft_memory = 2_097_152
        self.transactions = 10
        self.transaction_nodes = 1024
        self.node_permissions = 5
        self.path_max = 2048
        self.node_size = 2048

    @classmethod
    def of(cls, profile: Profile) -> Limits:
        """Those of an implementation, each moved to where its first refusal lies."""
        limits = cls()
        vars(limits).update(profile.quotas)
        for name, beyond in profile.boundary.items():
            setattr(limits, name, getattr(limits, name) + beyond)
        return limits

    def copy(self) -> Limits:
        new = Limits()
        vars(new).update(vars(self))
        return new


# Names on the wire, in the order in which xenstored lists them.
NAMES: Final[dict[bytes, str]] = {name.replace("_", "-").encode(): name for name in vars(Limits())}


def breach(limit: int, value: int) -> bool:
    """Is `value`, what there would be, refused under `limit`?"""
    return value >= limit > 0


def get_quota(
    server: Xenstored, _conn: Connection, _tx: Transaction | None, payload: bytes
) -> bytes:
    """GET_QUOTA: no string lists the names; `name` or `domid|name` gives one value."""
    parts = strings(payload)
    if not parts:
        return b" ".join(NAMES) + b"\0"
    if len(parts) > 2:
        raise StoreError("EINVAL", f"{len(parts)} strings")
    limits = server.limits if len(parts) == 1 else server.known_domain(parts[0]).limits
    name = NAMES.get(parts[-1])
    if name is None:
        raise StoreError("EINVAL", f"quota {parts[-1]!r}")
    return b"%d\0" % getattr(limits, name)


def set_quota(
    server: Xenstored, _conn: Connection, _tx: Transaction | None, payload: bytes
) -> bytes:
    """SET_QUOTA: `name|value` seeds new domains, `domid|name|value` changes one."""
    parts = strings(payload)
    if len(parts) not in (2, 3):
        raise StoreError("EINVAL", f"{len(parts)} strings")
    limits = server.limits if len(parts) == 2 else server.known_domain(parts[0]).limits
    name = NAMES.get(parts[-2])
    if name is None or not _NUMBER.match(parts[-1]) or int(parts[-1]) > _VALUE_MAX:
        raise StoreError("EINVAL", f"quota {parts[-2]!r} to {parts[-1]!r}")
    setattr(limits, name, int(parts[-1]))
    return OK
