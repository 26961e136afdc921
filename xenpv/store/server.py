"""xenstored: the tree, who is connected to it, and which handler answers which request."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property
from typing import TYPE_CHECKING, Final, Protocol
from weakref import WeakValueDictionary

from xenpv.abi._kernel import lib
from xenpv.errors import StoreError
from xenpv.store import domain as domains_
from xenpv.store import lifecycle, quota, request, transaction, watch
from xenpv.store.connection import Connection
from xenpv.store.domain import Domain, DomainControl, parse_domid
from xenpv.store.oxwatch import OxWatchIndex
from xenpv.store.path import HOME, RELEASE_DOMAIN, ROOT
from xenpv.store.permission import Permissions
from xenpv.store.profile import C, Isolation, Profile, Throttle
from xenpv.store.quota import Limits
from xenpv.store.throttle import Credit, WriteCredit
from xenpv.store.transaction import Transaction
from xenpv.store.tree import Tree
from xenpv.store.watch import WatchIndex

if TYPE_CHECKING:
    from xenpv.store.control import Administration
    from xenpv.store.listing import Listed
    from xenpv.store.outbox import Request

Handler = Callable[["Xenstored", Connection, Transaction | None, bytes], bytes]

PRIVILEGED: Final = True
NO_TX: Final = False


# type: (handler, is it for the privileged domain alone, does it look at the transaction id)
def _control(
    server: Xenstored, connection: Connection, tx: Transaction | None, payload: bytes
) -> bytes:
    from xenpv.store.control import control

    return control(server, connection, tx, payload)


HANDLERS: Final[dict[int, tuple[Handler, bool, bool]]] = {
    lib.XS_CONTROL: (_control, PRIVILEGED, True),
    lib.XS_DIRECTORY: (request.directory, False, True),
    lib.XS_READ: (request.read, False, True),
    lib.XS_GET_PERMS: (request.get_perms, False, True),
    lib.XS_WATCH: (watch.watch, False, NO_TX),
    lib.XS_UNWATCH: (watch.unwatch, False, NO_TX),
    lib.XS_TRANSACTION_START: (transaction.transaction_start, False, True),
    lib.XS_TRANSACTION_END: (transaction.transaction_end, False, True),
    lib.XS_INTRODUCE: (lifecycle.introduce, PRIVILEGED, True),
    lib.XS_RELEASE: (lifecycle.release, PRIVILEGED, True),
    lib.XS_GET_DOMAIN_PATH: (domains_.get_domain_path, False, True),
    lib.XS_WRITE: (request.write, False, True),
    lib.XS_MKDIR: (request.mkdir, False, True),
    lib.XS_RM: (request.rm, False, True),
    lib.XS_SET_PERMS: (request.set_perms, False, True),
    lib.XS_IS_DOMAIN_INTRODUCED: (domains_.is_domain_introduced, PRIVILEGED, True),
    lib.XS_RESUME: (lifecycle.resume, PRIVILEGED, True),
    lib.XS_SET_TARGET: (lifecycle.set_target, PRIVILEGED, True),
    lib.XS_RESET_WATCHES: (watch.reset_watches, False, True),
    lib.XS_DIRECTORY_PART: (request.directory_part, False, True),
    lib.XS_GET_FEATURE: (domains_.get_feature, False, True),
    lib.XS_SET_FEATURE: (domains_.set_feature, PRIVILEGED, True),
    lib.XS_GET_QUOTA: (quota.get_quota, PRIVILEGED, True),
    lib.XS_SET_QUOTA: (quota.set_quota, PRIVILEGED, True),
}


@cache
def _known(
    newest: int, unknown: tuple[int, ...], *, numbered: bool
) -> dict[int, tuple[Handler, bool, bool]]:
    """What a profile knows; `numbered`: as oxenstored has it."""
    known = {op: one for op, one in HANDLERS.items() if op <= newest and op not in unknown}
    if numbered:
        from xenpv.store import oxrequest

        for op, handler in oxrequest.HANDLERS.items():
            # It tells who may not use CONTROL nothing, and says OK.
            restricted = known[op][1] and op != lib.XS_CONTROL
            known[op] = (handler, restricted, known[op][2])
    return known


@cache
def _open(
    newest: int, unknown: tuple[int, ...], *, numbered: bool
) -> dict[bool, dict[int, tuple[Handler, bool]]]:
    """What is open to the privileged domain (True) and to others: (handler, takes a tx id)."""
    known = _known(newest, unknown, numbered=numbered)
    return {
        privileged: {
            op: (handler, takes_tx)
            for op, (handler, restricted, takes_tx) in known.items()
            if privileged or not restricted
        }
        for privileged in (False, True)
    }


class TraceSink(Protocol):
    """Told of every request that was dispatched; `error` is the name it was refused with."""

    def store_op(
        self, conn_domid: int, op: int, tx_id: int, payload: bytes, error: bytes | None
    ) -> None: ...


def _isolated(isolation: Isolation, watches: WatchIndex) -> tuple[Tree, type[Transaction]]:
    if isolation is Isolation.FIRST_ACCESS:
        return Tree(watches), Transaction
    from xenpv.store.snapshot import AnyChangeTransaction, MergeTransaction, SnapshotTree

    merges = isolation is Isolation.MERGE
    return SnapshotTree(watches), MergeTransaction if merges else AnyChangeTransaction


class Xenstored:
    """The store of one platform: plain data, deterministic, no I/O.

    `domid` is the privileged domain, in which it runs. `domains` is the platform under it;
    without one, only introduced domains exist. `profile` says which implementation it is like,
    `clock` the time in nanoseconds: without one, no guest writes too fast. `connections` are by
    age, oldest first, `known` the domains by domid, `limits` the quotas that new domains get.
    `event_timeout_s` is xenstored's `--timeout watch-event=`, in seconds of the transport's
    clock: None is the profile's, 0 keeps unread events for ever.
    """

    def __init__(
        self,
        *,
        domid: int = 0,
        domains: DomainControl | None = None,
        profile: Profile = C,
        clock: Callable[[], int] | None = None,
        event_timeout_s: int | None = None,
    ) -> None:
        self.domid = domid
        self.profile = profile
        self.event_timeout_s = (
            profile.event_timeout_s if event_timeout_s is None else event_timeout_s
        )
        self.domains = domains
        self.trace: TraceSink | None = None
        kind = (profile.newest, profile.unknown)
        self.handlers = _known(*kind, numbered=profile.numbered)
        self._open = _open(*kind, numbered=profile.numbered)
        self.limits = Limits.of(profile)
        self.high_water: dict[str, int] = {}  # of domains that are gone
        self.known: dict[int, Domain] = {}
        # Those that permissions or targets name, and nothing else knows of (oxrequest).
        self.strangers: WeakValueDictionary[int, Domain] = WeakValueDictionary()
        self.resolved: dict[tuple[bytes, ...], Permissions] = {}  # of SET_PERMS, by its texts
        self.connections: dict[int, Connection] = {}
        self.connected = 0
        self.request: Request | None = None  # the unprivileged one that is being answered
        self.cause: Connection | None = None  # whose request it is that is being answered
        self.watches = OxWatchIndex() if profile.ox_watches else WatchIndex()
        self.tree, self.transaction_type = _isolated(profile.isolation, self.watches)
        self.nodes = self.tree.nodes
        self.credit = self._credit(clock)
        self.owner = self.meet(domid, 0)
        self.tree.populate(self.owner, profile)
        lifecycle.introduce_domain(self, domid, 0)

    @cached_property
    def administration(self) -> Administration:
        """What CONTROL changes."""
        from xenpv.store.control import Administration

        return Administration()

    def _credit(self, clock: Callable[[], int] | None) -> Credit:
        throttle = self.profile.throttle
        if throttle is Throttle.WRITES:
            return WriteCredit(clock)
        if throttle is Throttle.NONE:
            return Credit(clock)
        from xenpv.store.conflict import ConflictCredit
        from xenpv.store.snapshot import SnapshotTree

        assert isinstance(self.tree, SnapshotTree), "the tree that goes with this throttle"
        return ConflictCredit(clock, self.tree)

    def connect_local(self, name: str) -> Connection:
        """A client in this process; it acts as the privileged domain.

        Its events wait in `Connection.events`.
        """
        return self.connect(name, self.owner, HOME % 0, local=True)

    def connect_socket(self, name: str) -> Connection:
        """The same for a client of the socket: events are in its output."""
        return self.connect(name, self.owner, HOME % 0, local=False)

    def introduce(self, domid: int, unique_id: int) -> Connection:
        """The connection of a domain's ring, for `DomainControl.map_ring` to serve.

        The first time @introduceDomain fires; later the connection is reset. A domain with
        this domid but another unique id died unseen: it is cleaned up first.
        """
        return lifecycle.introduce_domain(self, domid, unique_id)

    def disconnect(self, conn: Connection) -> None:
        """A client is gone: its watches and transactions go too."""
        self.drop(conn)

    def domain_shutdown(self, domid: int) -> None:
        """The domain has shut down; said once until RESUME or a new INTRODUCE."""
        domain = self.known.get(domid)
        if domain is None or not domain.introduced or domain.shutdown or domain.lingering:
            return
        domain.shutdown = not self.profile.numbered  # oxenstored tells each time
        lifecycle.fire_special(self, RELEASE_DOMAIN, domid, plain=False)
        lifecycle.fire_special(self, RELEASE_DOMAIN, domid, named=False)

    def domain_died(self, domid: int) -> None:
        """The domain is dead (not merely dying), or has another unique id now."""
        domain = self.known.get(domid)
        if domain is not None and domain is not self.owner and not domain.lingering:
            lifecycle.retire(self, domain)

    def dump(self, root: bytes = ROOT) -> list[Listed]:
        """All nodes below `root`, parents first: path, value, permissions."""
        from xenpv.store import listing

        return listing.dump(self.tree, root)

    def ls_fp(self, root: bytes = ROOT) -> str:
        """The tree below `root` as `xenstore-ls -fp` prints it."""
        from xenpv.store import listing

        return listing.ls_fp(self.tree, root)

    def close(self) -> None:
        """Let go of every client and node, so that what used them is freed at once."""
        for conn in self.connections.values():
            conn.closed = True
            conn.on_event = conn.put = None
            conn.watches.clear()
            conn.transactions.clear()
        self.connections.clear()
        self.watches = self.tree.watches = WatchIndex()
        for domain in self.known.values():
            domain.connection = None
        self.domains = None
        self.trace = None
        self.resolved.clear()
        self.nodes.clear()

    # for the other modules of this package

    def connect(self, name: str, domain: Domain, home: bytes, *, local: bool) -> Connection:
        self.connected += 1
        conn = Connection(self, self.connected, name, domain, home + b"/", local=local)
        conn.handlers = self._open[conn.privileged]
        self.connections[conn.age] = conn
        return conn

    def drop(self, conn: Connection) -> None:
        conn.reset()
        conn.closed = True
        self.connections.pop(conn.age, None)

    def meet(self, domid: int, unique_id: int) -> Domain:
        """A domain that xenstored has not seen before; it gets the quotas of this moment."""
        domain = self.strangers.pop(domid, None) or self._new_domain(domid)
        domain.unique_id = unique_id
        domain.limits = self.limits.copy()
        domain.features = self.profile.features
        self.known[domid] = domain
        if domain.accounted:
            self.credit.admit(domain)
        return domain

    def _new_domain(self, domid: int) -> Domain:
        return Domain(domid, 0, self.limits, accounted=domid != self.domid)

    def learn_any(self, domid: int) -> Domain:
        """The domain of this number, whether there is one or not.

        If nobody else knows it, it is forgotten with the last that names it.
        """
        domain = self.learn(domid) or self.strangers.get(domid)
        if domain is None:
            domain = self.strangers[domid] = self._new_domain(domid)
        return domain

    def learn(self, domid: int) -> Domain | None:
        """The domain, if it is known or the platform has it."""
        domain = self.known.get(domid)
        if domain is None and self.domains is not None and self.domains.exists(domid):
            domain = self.meet(domid, self.domains.unique_id(domid))
        return domain

    def keep_maxima(self, domain: Domain) -> None:
        """The highest counts of a domain that goes outlive it."""
        for counted, value in domain.maxima.items():
            self.high_water[counted] = max(self.high_water.get(counted, 0), value)

    def seen_max(self, counted: str) -> int:
        """The highest value of a count that any accounted domain had."""
        live = [domain.seen_max(counted) for domain in self.known.values() if domain.accounted]
        return max([self.high_water.get(counted, 0), *live])

    def forget_maxima(self) -> None:
        """`quota max -r`: from now on."""
        self.high_water.clear()
        for domain in self.known.values():
            domain.maxima.clear()

    def known_domain(self, text: bytes) -> Domain:
        """The domain that a client names. Raises StoreError EINVAL or ENOENT."""
        domid = parse_domid(text)
        domain = self.learn(domid)
        if domain is None:
            raise StoreError("ENOENT", f"domain {domid} does not exist")
        return domain
