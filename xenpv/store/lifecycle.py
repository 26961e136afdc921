"""Domains come and go: INTRODUCE, RELEASE, RESUME, SET_TARGET, and what a death takes along."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpv.errors import HypercallError, StoreError
from xenpv.store.connection import Connection
from xenpv.store.domain import Domain, parse_domid
from xenpv.store.path import HOME, INTRODUCE_DOMAIN, RELEASE_DOMAIN, ROOT
from xenpv.store.request import remove
from xenpv.store.wire import OK, atoi, one_string, strings

if TYPE_CHECKING:
    from xenpv.store.server import Xenstored
    from xenpv.store.transaction import Transaction


def introduce_domain(server: Xenstored, domid: int, unique_id: int) -> Connection:
    """The ring connection of a domain; one that exists is reset, and no event fires."""
    domain = server.known.get(domid)
    if domain is not None and (domain.unique_id != unique_id or domain.lingering):
        bury(server, domain)
        domain = None
    if domain is None:
        domain = server.meet(domid, unique_id)
    conn = domain.connection
    if conn is not None:
        if not server.profile.numbered:
            conn.reset()
        return conn
    conn = server.connect(f"d{domid}", domain, HOME % domid, local=False)
    domain.connection = conn
    domain.introduced = True
    domain.shutdown = False
    if domain.accounted:
        fire_special(server, INTRODUCE_DOMAIN, domid)
    return conn


def fire_special(
    server: Xenstored, name: bytes, domid: int, *, plain: bool = True, named: bool = True
) -> None:
    server.watches.fire_special(server.tree, name, domid, plain=plain, named=named)


def retire(server: Xenstored, domain: Domain) -> None:
    """The domain is dead or released: its connection goes, its targets, then its nodes.

    As long as a live domain has it as its target it stays introduced, and silent.
    """
    if domain.connection is not None:
        server.drop(domain.connection)
        domain.connection = None
    domain.lingering = True
    if not _is_held(domain):
        bury(server, domain)


def _is_held(domain: Domain) -> bool:
    """Is it the target of a live domain?"""
    return any(not holder.lingering for holder in domain.holders.values())


def bury(server: Xenstored, domain: Domain) -> None:
    """Removes what a dead domain owns and tells whoever watches @releaseDomain."""
    domain.dead = True
    if domain.connection is not None:
        server.drop(domain.connection)
        domain.connection = None
    for target in domain.held.values():
        target.holders.pop(domain.domid, None)
        if target.lingering and not target.dead and not _is_held(target):
            bury(server, target)
    domain.held.clear()
    if server.profile.numbered:  # a target holds nobody there, nor do its rights outlive it
        for other in server.known.values():
            if other.target is domain:
                other.target = None
    server.keep_maxima(domain)
    if domain.accounted:
        server.credit.dismiss(domain)
    remove_owned(server, domain)
    del server.known[domain.domid]
    if not domain.introduced:
        return
    if server.domains is not None:
        server.domains.unmap_ring(domain.domid)
    fire_special(server, RELEASE_DOMAIN, domain.domid)


def remove_owned(server: Xenstored, domain: Domain) -> None:
    """Removes the nodes that `domain` owns, each with all below it, whoever owns that.

    Top down in the order of the tree; only ancestors of such nodes are visited. oxenstored
    makes the whole tree anew, and tells nobody.
    """
    tree = server.tree
    silent = server.profile.numbered
    if silent:
        tree.rebuild()
    for node in (*tree.special.values(), tree.nodes[ROOT]):
        if node.perms.owner is domain:
            tree.set_perms(node, node.perms.with_owner(server.owner))
    on_the_way: dict[bytes, None] = {}
    for path in domain.owned:
        on_the_way.update(dict.fromkeys(tree.nodes[path].lineage))
    paths = [ROOT] if on_the_way else []
    while paths:
        node = tree.nodes[paths.pop()]
        if node.perms.owner is domain:
            remove(tree, tree.nodes[node.lineage[1]], node, fired=silent)
            continue
        below = [node.child_path(name) for name in reversed(node.children)]
        paths += [path for path in below if path in on_the_way]


def introduce(
    server: Xenstored, _conn: Connection, _tx: Transaction | None, payload: bytes
) -> bytes:
    """INTRODUCE: the page is grant 1 of the domain, whatever the frame number says."""
    parts = strings(payload)
    if len(parts) < 3:
        raise StoreError("EINVAL", f"{len(parts)} strings")
    domid = parse_domid(parts[0])
    port = atoi(parts[2])
    if port <= 0:
        raise StoreError("EINVAL", f"port {port}")
    known = server.known.get(domid)
    repeat = known is not None and known.introduced
    if repeat and server.profile.introduce_again:
        raise StoreError(server.profile.introduce_again, f"domain {domid} is introduced")
    frame = atoi(parts[1])
    platform = server.domains
    unique_id = 0
    if platform is not None:
        try:
            unique_id = platform.unique_id(domid)
            platform.map_ring(domid, frame, port)
        except (HypercallError, StoreError) as failure:
            if not repeat:
                raise StoreError(failure.name, f"domain {domid}: {failure}") from failure
    elif known is not None:
        unique_id = known.unique_id
    domain = server.known.get(domid)
    if repeat or domain is None or not domain.introduced:
        introduce_domain(server, domid, unique_id)
    server.known[domid].frame = frame
    return OK


def _connected(server: Xenstored, domid: int) -> Domain:
    domain = server.known.get(domid)
    if domain is None or not domain.introduced:
        raise StoreError(server.profile.release_unknown, f"domain {domid} is not introduced")
    if domain.connection is None:
        raise StoreError("EINVAL", f"domain {domid} is dead")
    return domain


def _named(server: Xenstored, payload: bytes) -> Domain:
    domid = parse_domid(one_string(payload))
    if domid == server.domid:
        raise StoreError("EINVAL", f"domain {domid} is xenstored's own")
    return _connected(server, domid)


def release(server: Xenstored, _conn: Connection, _tx: Transaction | None, payload: bytes) -> bytes:
    retire(server, _named(server, payload))
    return OK


def resume(server: Xenstored, _conn: Connection, _tx: Transaction | None, payload: bytes) -> bytes:
    """RESUME: the next shutdown of the domain fires @releaseDomain again."""
    _named(server, payload).shutdown = False
    return OK


def set_target(
    server: Xenstored, _conn: Connection, _tx: Transaction | None, payload: bytes
) -> bytes:
    """SET_TARGET: the domain gets all rights of its target, a stub domain's guest."""
    parts = strings(payload)
    if len(parts) < 2:
        raise StoreError("EINVAL", f"{len(parts)} strings")
    domid, target_domid = parse_domid(parts[0]), parse_domid(parts[1])
    domain = _connected(server, domid)
    target = _connected(server, target_domid)
    domain.target = target
    domain.held[target_domid] = target
    target.holders[domid] = domain
    return OK
