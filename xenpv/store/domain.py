"""Domains as xenstored knows them, and the requests that only ask about them or set a field."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

from xenpv.abi._kernel import lib
from xenpv.errors import StoreError
from xenpv.store.path import HOME
from xenpv.store.quota import Limits
from xenpv.store.wire import OK, atoi, one_string, strings

if TYPE_CHECKING:
    from xenpv.store.connection import Connection
    from xenpv.store.server import Xenstored
    from xenpv.store.transaction import Transaction

DOMID_SELF: Final[int] = lib.DOMID_SELF
DOMID_MAX: Final = 0xFFFF

# What is counted of a domain, and shown by CONTROL.
COUNTED: Final = ("nodes", "watches", "outstanding", "memory", "transactions")

_DOMID: Final = re.compile(rb"(?:[ \t\n\v\f\r]*([+-]?)(\d+))?\Z")


class DomainControl(Protocol):
    """What xenstored asks of the platform under it."""

    def exists(self, domid: int) -> bool:
        """Does Xen have such a domain, introduced or not?"""

    def unique_id(self, domid: int) -> int:
        """What tells a domain from a later one with its domid."""

    def map_ring(self, domid: int, gfn: int, port: int) -> None:
        """INTRODUCE: map the domain's ring page and bind to its port, again if it is known.

        Calls `Xenstored.introduce` for the connection to serve. Raises StoreError or
        HypercallError, and then nothing is introduced.
        """

    def unmap_ring(self, domid: int) -> None:
        """The domain is dead or released: drop page and port."""


class Domain:
    """A domain from when xenstored first met it until it died or was released.

    A domain is met by INTRODUCE, or when a SET_PERMS names it while it exists. `accounted`
    is False for the privileged domain, which has no quotas; the counts are of an accounted
    domain's nodes, bytes, watches, open transactions and requests not yet answered in full.
    `held` are the targets this domain was ever given, `holders` those that were given this
    one, by domid. A `lingering` domain is dead, but a holder of it is not. A `stalled`
    domain's requests wait until it holds less. `frame` is what INTRODUCE called its page,
    `credit` what it may still write (store.throttle), as of `credited_ms`.
    """

    __slots__ = (
        "__weakref__",
        "accounted",
        "connection",
        "credit",
        "credited_ms",
        "dead",
        "domid",
        "features",
        "frame",
        "held",
        "holders",
        "introduced",
        "limits",
        "lingering",
        "maxima",
        "memory",
        "nodes",
        "outstanding",
        "owned",
        "shutdown",
        "stalled",
        "target",
        "transactions",
        "unique_id",
        "watches",
    )

    def __init__(self, domid: int, unique_id: int, limits: Limits, *, accounted: bool) -> None:
        self.domid = domid
        self.unique_id = unique_id
        self.limits = limits
        self.accounted = accounted
        self.features = 0
        self.frame = 0
        self.introduced = False
        self.shutdown = False
        self.dead = False
        self.lingering = False
        self.stalled = False
        self.connection: Connection | None = None
        self.target: Domain | None = None
        self.held: dict[int, Domain] = {}
        self.holders: dict[int, Domain] = {}
        self.owned: dict[bytes, None] = {}
        self.nodes = 0
        self.memory = 0
        self.watches = 0
        self.transactions = 0
        self.outstanding = 0
        self.credit = 0
        self.credited_ms = 0
        self.maxima: dict[str, int] = {}

    def note_maxima(self) -> None:
        """After a request: the highest counts so far, which CONTROL `quota` shows."""
        seen = self.maxima
        values = (self.nodes, self.watches, self.outstanding, self.memory, self.transactions)
        for counted, value in zip(COUNTED, values, strict=True):
            if value > seen.get(counted, 0):
                seen[counted] = value

    def seen_max(self, counted: str) -> int:
        """The highest value of one of the counts so far."""
        return max(self.maxima.get(counted, 0), int(getattr(self, counted)))

    def release(self, size: int) -> None:
        """`size` bytes less (or more, if negative) against the memory quota."""
        self.memory -= size
        if self.stalled:
            self._resume()

    def answered(self) -> None:
        """One request is out of the way: its reply and all its events are sent."""
        self.outstanding -= 1
        if self.stalled:
            self._resume()

    def _resume(self) -> None:
        conn = self.connection
        if conn is not None and conn.wants_input:
            conn.wake()

    def __repr__(self) -> str:
        return f"<store Domain {self.domid}>"


def parse_domid(text: bytes) -> int:
    """A domid as a client writes it: decimal, empty means 0. Raises StoreError EINVAL."""
    number = _DOMID.match(text)
    if number is None:
        raise StoreError("EINVAL", f"domid {text!r}")
    value = int(number[2] or 0)
    if value > DOMID_MAX or (value and number[1] == b"-"):
        raise StoreError("EINVAL", f"domid {text!r}")
    return value


def get_domain_path(
    _server: Xenstored, _conn: Connection, _tx: Transaction | None, payload: bytes
) -> bytes:
    return HOME % parse_domid(one_string(payload)) + b"\0"


def is_domain_introduced(
    server: Xenstored, _conn: Connection, _tx: Transaction | None, payload: bytes
) -> bytes:
    domid = parse_domid(one_string(payload))
    domain = server.known.get(domid)
    introduced = domid == DOMID_SELF or (domain is not None and domain.introduced)
    return b"T\0" if introduced else b"F\0"


def get_feature(
    server: Xenstored, conn: Connection, _tx: Transaction | None, payload: bytes
) -> bytes:
    """GET_FEATURE: the caller's server features, or those of the domain it names."""
    parts = strings(payload)
    if len(parts) > 1:
        raise StoreError("EINVAL", f"{len(parts)} strings")
    if not parts:
        return b"%d\0" % conn.domain.features
    if not conn.privileged:
        raise StoreError("EACCES", "features of another domain")
    return b"%d\0" % server.known_domain(parts[0]).features


def set_feature(
    server: Xenstored, _conn: Connection, _tx: Transaction | None, payload: bytes
) -> bytes:
    """SET_FEATURE: limits what a domain is offered, before it is introduced."""
    parts = strings(payload)
    if len(parts) != 2:
        raise StoreError("EINVAL", f"{len(parts)} strings")
    domain = server.known_domain(parts[0])
    if domain.introduced:
        raise StoreError("EBUSY", f"domain {domain.domid} is introduced")
    features = atoi(parts[1])
    if features & ~server.profile.features:
        raise StoreError("EINVAL", f"features {features:#x}")
    domain.features = features
    return OK
