"""Paths: which bytes make one, and how a client's text becomes an absolute path.

A path is `/`-separated names of letters, digits, `-`, `_` and `@` (docs/misc/xenstore.txt);
paths relative to the caller's home are made absolute. Special names begin with `@`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from xenpv.errors import StoreError

if TYPE_CHECKING:
    from xenpv.store.connection import Connection

ROOT: Final = b"/"
SPECIAL: Final = b"@"[0]
HOME: Final = b"/local/domain/%d"

INTRODUCE_DOMAIN: Final = b"@introduceDomain"
RELEASE_DOMAIN: Final = b"@releaseDomain"

LEGAL_NAME: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_@"
LEGAL: Final = LEGAL_NAME + b"/"
# The domid field of a home is at most five characters wide, sign included (sscanf "%5u").
_ANY_HOME: Final = re.compile(rb"/local/domain/[+-]?\d+/")
_HOME_PREFIX: Final = re.compile(rb"/local/domain/(?:\d{1,5}|[+-]\d{1,4})/")


def parent_of(path: bytes) -> bytes:
    """The path one level up; the root is its own parent and that of special names."""
    slash = path.rfind(b"/")
    return path[:slash] if slash > 0 else ROOT


def counted_length(path: bytes) -> int:
    """Bytes that count against the path-max quota: a leading home prefix does not."""
    prefix = _HOME_PREFIX.match(path)
    return len(path) - (prefix.end() if prefix else 0)


def canonicalise(
    conn: Connection, text: bytes, *, special: bool = False, measured: bool = True
) -> bytes:
    """The absolute path that `text` means to `conn`.

    An unprivileged caller's paths are measured (quota path-max), everybody's only where the
    profile has a limit besides, but for a watch's (`measured` False); then what follows a
    home is. To oxenstored a special name is one of the root's children, but not to watches.
    Raises StoreError EINVAL, or what the profile calls a breach.
    """
    path = text
    nodes = conn.server.nodes
    profile = conn.server.profile
    if path not in nodes:  # the path of a node is well formed
        first = text[:1]
        if first == b"@" and profile.numbered:
            if measured:
                path = b"/" + text
                if b"/" in text:
                    raise StoreError("EINVAL", f"special name {text!r} with a /")
        elif first not in (b"/", b"@"):
            path = conn.home_prefix + text
        if path not in nodes:
            special = special and (conn.privileged or profile.guests_see_special)
            _check(text, path, special=special or profile.numbered)
    if measured and len(path) > profile.path_max > 0:
        prefix = _ANY_HOME.match(path)
        size = len(path) - (prefix.end() if prefix else 0)
        if size > profile.path_max:
            raise StoreError("EINVAL", f"path of {size} bytes; {profile.path_max} are allowed")
    if not conn.privileged:
        limit = conn.domain.limits.path_max
        if len(path) >= limit > 0 and counted_length(path) >= limit:
            name = profile.breaches.get("path_max", "EINVAL")
            raise StoreError(name, f"path of {len(path)} bytes")
    return path


def _check(text: bytes, path: bytes, *, special: bool) -> None:
    if text.translate(None, LEGAL):
        raise StoreError("EINVAL", f"illegal character in path {text!r}")
    if not special and text[:1] == b"@":
        raise StoreError("EINVAL", f"special name {text!r} where a path is due")
    if b"//" in path or (path.endswith(b"/") and path != ROOT):
        raise StoreError("EINVAL", f"empty name in path {text!r}")
