"""Permissions of a node: an owner, a default for everybody, and an access list.

On the wire a permission is a letter (r, w, b for both, n for none) and a domid. The first
names the owner, who may do anything, and its letter is what unlisted domains may do; of the
others the first that matches decides, even if it says n. Entries hold the domain itself
(a domid and a unique id), so one that dies takes its rights with it and a successor that
gets its domid has none of them (XSA-322, XSA-417).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from xenpv.abi._kernel import lib
from xenpv.errors import StoreError

if TYPE_CHECKING:
    from xenpv.store.connection import Connection
    from xenpv.store.domain import Domain
    from xenpv.store.server import Xenstored

READ: Final = 1
WRITE: Final = 2
OWNER: Final = 4
ALL: Final = READ | WRITE | OWNER

DOMID_ANY: Final[int] = lib.DOMID_ANY
FEATURE_DOMID_ANY: Final[int] = lib.XENSTORE_SERVER_FEATURE_DOMID_ANY

MASKS: Final = {b"n": 0, b"r": READ, b"w": WRITE, b"b": READ | WRITE}
_LETTERS: Final = {mask: letter for letter, mask in MASKS.items()}

# What strtol(..., 0) takes: blanks, a sign, then hexadecimal, octal or decimal.
_DOMID: Final = re.compile(rb"[ \t\n\v\f\r]*([+-]?)(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9]\d*))\Z")
RESOLVED_MAX: Final = 32  # lists that the server remembers; a guest's may be long and many
_LONG_MAX: Final = (1 << 63) - 1


class Entry:
    """One entry of the access list.

    `domain` is None where it never matches: the domain did not exist when the entry was set.
    `anyone` is DOMID_ANY, set by a connection that has the feature.
    """

    __slots__ = ("anyone", "domain", "domid", "mask")

    def __init__(
        self, domid: int, mask: int, domain: Domain | None, *, anyone: bool = False
    ) -> None:
        self.domid = domid
        self.mask = mask
        self.domain = domain
        self.anyone = anyone


class Permissions:
    """Never changed once made: nodes and transactions share one object."""

    __slots__ = ("default", "entries", "owner")

    def __init__(self, owner: Domain, default: int, entries: tuple[Entry, ...] = ()) -> None:
        self.owner = owner
        self.default = default
        self.entries = entries

    def mask(self, conn: Connection) -> int:
        """What `conn` may do: READ, WRITE and OWNER bits."""
        if conn.privileged:
            return ALL
        domain = conn.domain
        target = domain.target
        if self.owner is domain or self.owner is target:
            return ALL
        if target is not None and conn.server.profile.numbered:
            # Both have their own, and who has dom0 for a target may do anything.
            own = self._granted(domain) | self._granted(target)
            return ALL if target is conn.server.owner else own
        for entry in self.entries:
            holder = entry.domain
            if entry.anyone or (holder is not None and (holder is domain or holder is target)):
                return entry.mask
        return self.default

    def _granted(self, domain: Domain) -> int:
        for entry in self.entries:
            if entry.domain is domain:
                return entry.mask
        return self.default

    @property
    def count(self) -> int:
        """Permissions in the list; those of domains that died are gone from it."""
        count = 1
        for entry in self.entries:
            if entry.domain is None or not entry.domain.dead:
                count += 1
        return count

    def with_owner(self, owner: Domain) -> Permissions:
        """What a new node gets whose unprivileged creator is not the parent's owner."""
        return Permissions(owner, self.default, self.entries)

    def texts(self) -> list[bytes]:
        """The list as GET_PERMS gives it, one `b"r1"` each."""
        texts = [b"%b%d" % (_LETTERS[self.default], self.owner.domid)]
        texts += [
            b"%b%d" % (_LETTERS[entry.mask], entry.domid)
            for entry in self.entries
            if entry.domain is None or not entry.domain.dead
        ]
        return texts

    def __repr__(self) -> str:
        return f"<Permissions {b','.join(self.texts()).decode()}>"


def parse(texts: list[bytes]) -> list[tuple[int, int]]:
    """(mask, domid) of each permission text; a domid is signed 32 bits, as it is listed.

    Raises StoreError EINVAL.
    """
    return [_parse_one(text) for text in texts]


def _parse_one(text: bytes) -> tuple[int, int]:
    mask = MASKS.get(text[:1])
    number = _DOMID.match(text, 1)
    if mask is None or number is None:
        raise StoreError("EINVAL", f"permission {text!r}")
    sign, hexadecimal, octal, decimal = number.groups()
    if hexadecimal:
        value = int(hexadecimal, 16)
    elif octal:
        value = int(octal, 8)
    else:
        value = int(decimal)
    value = max(-value, -_LONG_MAX - 1) if sign == b"-" else min(value, _LONG_MAX)
    return mask, ((value & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def resolve(server: Xenstored, conn: Connection, texts: list[bytes]) -> Permissions:
    """Permissions for domids as they are now.

    Raises StoreError EINVAL, or ENOENT: no such owner.
    """
    key = tuple(texts)
    known = server.resolved.get(key)
    if known is not None and _is_current(server, known):
        return known
    parsed = parse(texts)
    mask, domid = parsed[0]
    owner = server.learn(domid)
    if owner is None:
        raise StoreError("ENOENT", f"owner domain {domid} does not exist")
    entries = []
    for entry_mask, entry_domid in parsed[1:]:
        if entry_domid == DOMID_ANY:
            # A socket client has no features of its own; 4.22 dies here (NULL dereference).
            allowed = bool(conn.domain.features & FEATURE_DOMID_ANY)
            entries.append(Entry(entry_domid, entry_mask, None, anyone=allowed))
        else:
            entries.append(Entry(entry_domid, entry_mask, server.learn(entry_domid)))
    perms = Permissions(owner, mask, tuple(entries))
    if len(server.resolved) >= RESOLVED_MAX:
        server.resolved.clear()
    server.resolved[key] = perms
    return perms


def _is_current(server: Xenstored, perms: Permissions) -> bool:
    """Would the same texts still mean the same domains?"""
    known = server.known
    owner = perms.owner
    if known.get(owner.domid) is not owner:
        return False
    for entry in perms.entries:
        domain = entry.domain
        if domain is None or known.get(domain.domid) is not domain:
            return False
    return True
