"""Requests as oxenstored 4.17 answers them, where it differs by more than a switch (process.ml).

Domains are numbers to it: permissions and targets may name any, and a domain that comes later
under that number has the rights. Numbers are read as OCaml reads them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from xenpv.abi._kernel import lib
from xenpv.errors import HypercallError, StoreError
from xenpv.store import lifecycle, request, transaction
from xenpv.store.domain import DOMID_SELF
from xenpv.store.path import HOME, ROOT, canonicalise, parent_of
from xenpv.store.permission import MASKS, OWNER, WRITE, Entry, Permissions
from xenpv.store.quota import breach
from xenpv.store.watch import forget
from xenpv.store.wire import OK, one_string, strings

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpv.store.connection import Connection
    from xenpv.store.domain import Domain
    from xenpv.store.server import Xenstored
    from xenpv.store.transaction import Transaction

_INTEGER: Final = re.compile(
    rb"([+-]?)(?:0[xX]([0-9a-fA-F][0-9a-fA-F_]*)|0[oO]([0-7][0-7_]*)|0[bB]([01][01_]*)"
    rb"|(0[uU])?([0-9][0-9_]*))\Z"
)
_DIGITS: Final = re.compile(rb"\D*(\d*)")
_INT_BITS: Final = 63


def _wrapped(value: int) -> int:
    """As an OCaml int holds it."""
    half = 1 << _INT_BITS - 1
    return ((value + half) & (2 * half - 1)) - half


def int_of_string(text: bytes) -> int:
    """OCaml's: decimal, 0x, 0o, 0b or 0u. Raises StoreError EINVAL."""
    number = _INTEGER.match(text)
    if number is None:
        raise StoreError("EINVAL", f"number {text!r}")
    sign, hexadecimal, octal, binary, unsigned, decimal = number.groups()
    if decimal is None:
        digits, base = (hexadecimal, 16) if hexadecimal else (octal, 8) if octal else (binary, 2)
    else:
        digits, base = decimal, 10
    value = int(digits.replace(b"_", b""), base)
    signed = decimal is not None and not unsigned
    limit = 1 << _INT_BITS - 1 if signed else 1 << _INT_BITS
    if value > limit or (value == limit and not (signed and sign == b"-")):
        raise StoreError("EINVAL", f"number {text!r}")
    return _wrapped(-value if sign == b"-" else value)


def c_int_of_string(text: bytes) -> int:
    """The first digits in it; 0 where there are none."""
    number = _DIGITS.match(text)
    return _wrapped(int(number[1] or b"0") if number else 0)


def shown(number: int) -> int:
    """What %u prints of an int."""
    return number & ((1 << _INT_BITS) - 1)


def write(server: Xenstored, conn: Connection, tx: Transaction | None, payload: bytes) -> bytes:
    """WRITE: values are limited for everybody.

    The path is looked at first, and the rights to what misses parents.
    """
    text, nul, value = payload.partition(b"\0")
    if nul and len(value) > server.profile.value_max:
        path = canonicalise(conn, text)
        view = tx or server.tree
        above = parent = parent_of(path)
        while (node := view.read(above)) is None:
            above = parent_of(above)
        if above != parent and not node.perms.mask(conn) & WRITE:
            raise StoreError("EACCES", f"no right to write {above!r}")
        raise StoreError("E2BIG", f"value of {len(value)} bytes")
    return request.write(server, conn, tx, payload)


def mkdir(server: Xenstored, conn: Connection, tx: Transaction | None, payload: bytes) -> bytes:
    """MKDIR: that of the root succeeds for everybody, and is a write of all in a transaction."""
    if payload != b"/\0":
        return request.mkdir(server, conn, tx, payload)
    if tx is not None:
        root = tx.read(ROOT)
        assert root is not None, "the root is always there"
        tx.fire(root)
    return OK


def set_perms(server: Xenstored, conn: Connection, tx: Transaction | None, payload: bytes) -> bytes:
    """SET_PERMS: for the owner, and of the root for whoever may write to it.

    The owner stays, unless dom0 says otherwise.
    """
    text, *texts = strings(payload) or [b""]
    path = canonicalise(conn, text, special=True)
    if not texts:
        raise StoreError("EINVAL", "no permission")
    if not conn.privileged and breach(conn.domain.limits.node_permissions, len(texts)):
        raise StoreError("ENOSPC", f"{len(texts)} permissions")
    perms = _permissions(server, texts)
    view = tx or server.tree
    node = view.read(path)
    if node is None:
        raise StoreError("ENOENT", f"{path!r}")
    old = node.perms
    need = WRITE if path == ROOT else WRITE | OWNER
    if (perms.owner is not old.owner and not conn.privileged) or old.mask(conn) & need != need:
        raise StoreError("EACCES", f"{path!r} is domain {old.owner.domid}'s")
    view.set_perms(node, perms)
    view.fire(node, old=old)
    return OK


def _permissions(server: Xenstored, texts: list[bytes]) -> Permissions:
    """Those that `texts` say. Raises StoreError EINVAL."""
    parsed = []
    for text in texts:
        mask = MASKS.get(text[:1])
        if mask is None:
            raise StoreError("EINVAL", f"permission {text!r}")
        parsed.append((mask, shown(int_of_string(text[1:]))))
    (mask, owner), *rest = parsed
    entries = [Entry(domid, one, server.learn_any(domid)) for one, domid in rest]
    return Permissions(server.learn_any(owner), mask, tuple(entries))


def unwatch(server: Xenstored, conn: Connection, _tx: Transaction | None, payload: bytes) -> bytes:
    """UNWATCH: a path that is none has no watch."""
    parts = strings(payload)
    if len(parts) != 2 or not parts[0]:
        raise StoreError("EINVAL", f"{len(parts)} strings")
    text, token = parts
    path = text if text[:1] in (b"/", b"@") else conn.home_prefix + text
    found = conn.watches.pop((path, token), None)
    if found is None:
        raise StoreError("ENOENT", f"no watch on {path!r} with token {token!r}")
    forget(server, conn, found)
    return OK


def get_domain_path(
    _server: Xenstored, _conn: Connection, _tx: Transaction | None, payload: bytes
) -> bytes:
    return HOME % shown(c_int_of_string(one_string(payload))) + b"\0"


def is_domain_introduced(
    server: Xenstored, _conn: Connection, _tx: Transaction | None, payload: bytes
) -> bytes:
    domid = int_of_string(payload.partition(b"\0")[0])
    domain = server.known.get(domid)
    introduced = domid == DOMID_SELF or (domain is not None and domain.introduced)
    return b"T\0" if introduced else b"F\0"


def _introduced(server: Xenstored, domid: int) -> Domain:
    domain = server.known.get(domid)
    if domain is None or not domain.introduced:
        raise StoreError("EINVAL", f"domain {domid} is not introduced")
    return domain


def introduce(
    server: Xenstored, conn: Connection, _tx: Transaction | None, payload: bytes
) -> bytes:
    """INTRODUCE: again it binds the port, if it names the same frame, and resets nothing.

    Special events precede the reply.
    """
    parts = payload.split(b"\0")
    if len(parts) < 3:
        raise StoreError("EINVAL", f"{len(parts)} strings")
    domid = int_of_string(parts[0])
    try:
        frame = int_of_string(parts[1])
    except StoreError as error:  # what reads this one fails otherwise
        raise StoreError("EIO", str(error)) from error
    port = int_of_string(parts[2])
    conn.answer_last()
    known = server.known.get(domid)
    repeat = known is not None and known.introduced
    if repeat and known is not None and known.frame != frame:
        raise StoreError("EINVAL", f"frame {frame:#x}, domain {domid} has {known.frame:#x}")
    if known is server.owner:
        return OK
    platform = server.domains
    unique_id = 0
    if platform is not None:
        try:
            unique_id = platform.unique_id(domid)
            platform.map_ring(domid, frame, port)
        except (HypercallError, StoreError) as failure:
            raise StoreError("EINVAL", f"domain {domid}: {failure}") from failure
    if not repeat and (known is None or not known.introduced):
        lifecycle.introduce_domain(server, domid, unique_id)
    server.known[domid].frame = frame
    return OK


def release(server: Xenstored, conn: Connection, _tx: Transaction | None, payload: bytes) -> bytes:
    domain = _introduced(server, int_of_string(one_string(payload)))
    if domain is server.owner:
        raise StoreError("EINVAL", "oxenstored's own domain")
    conn.answer_last()
    lifecycle.retire(server, domain)
    return OK


def resume(server: Xenstored, _conn: Connection, _tx: Transaction | None, payload: bytes) -> bytes:
    """RESUME: nothing to do, since each shutdown is told."""
    _introduced(server, int_of_string(payload.partition(b"\0")[0]))
    return OK


def set_target(
    server: Xenstored, _conn: Connection, _tx: Transaction | None, payload: bytes
) -> bytes:
    """SET_TARGET: the domain has the target's rights besides its own; it keeps nobody alive."""
    parts = payload.split(b"\0")
    if len(parts) != 3 or parts[2]:
        raise StoreError("EINVAL", f"{len(parts) - 1} strings")
    domid, target_domid = (c_int_of_string(text) for text in parts[:2])
    domain = server.known.get(domid)
    if domain is None or not domain.introduced:
        raise StoreError("ENOENT", f"domain {domid} is not introduced")
    if domain is not server.owner:
        domain.target = server.learn_any(target_domid)
    return OK


def control(server: Xenstored, conn: Connection, _tx: Transaction | None, payload: bytes) -> bytes:
    """CONTROL: OK to whatever it does not know, cannot do, or who may not ask for it.

    Of 4.17's commands those that tell something: `quota domid`, `watches`, `mfn domid`.
    """
    command, *words = payload.split(b"\0")
    ask = CONTROLS.get(command)
    if ask is None or not words or not conn.privileged:
        return OK
    try:
        answer = ask(server, words)
    except StoreError:
        return OK
    return OK if answer is None else answer + b"\0"


def _quota(server: Xenstored, words: list[bytes]) -> bytes:
    domid = int_of_string(words[0])
    domain = server.known.get(domid) or server.strangers.get(domid)
    if domain is None or not domain.nodes:
        return b"dom%d quota: not set" % domid
    limit = domain.limits.nodes - server.profile.boundary["nodes"]
    return b"dom%d quota: %d/%d" % (domid, domain.nodes, limit)


def _watches(server: Xenstored, _words: list[bytes]) -> bytes:
    lines = []
    for conn in server.connections.values():
        name = b"D%d" % conn.domid if conn is conn.domain.connection else b"A%d" % conn.age
        lines += [
            b"watch %b: %b %b\n" % (name, watch.path[watch.prefix :], watch.token)
            for watch in conn.watches.values()
        ]
    return b"".join(lines)


def _mfn(server: Xenstored, words: list[bytes]) -> bytes:
    return b"%d" % _introduced(server, int_of_string(words[0])).frame


CONTROLS: Final[dict[bytes, Callable[[Xenstored, list[bytes]], bytes]]] = {
    b"quota": _quota,
    b"watches": _watches,
    b"mfn": _mfn,
}


def transaction_end(
    server: Xenstored, conn: Connection, tx: Transaction | None, payload: bytes
) -> bytes:
    """TRANSACTION_END: its first string counts, and need not be ended."""
    return transaction.transaction_end(server, conn, tx, payload.partition(b"\0")[0] + b"\0")


HANDLERS: Final[dict[int, Callable[[Xenstored, Connection, Transaction | None, bytes], bytes]]] = {
    lib.XS_CONTROL: control,
    lib.XS_WRITE: write,
    lib.XS_MKDIR: mkdir,
    lib.XS_SET_PERMS: set_perms,
    lib.XS_UNWATCH: unwatch,
    lib.XS_GET_DOMAIN_PATH: get_domain_path,
    lib.XS_IS_DOMAIN_INTRODUCED: is_domain_introduced,
    lib.XS_TRANSACTION_END: transaction_end,
    lib.XS_INTRODUCE: introduce,
    lib.XS_RELEASE: release,
    lib.XS_RESUME: resume,
    lib.XS_SET_TARGET: set_target,
}
