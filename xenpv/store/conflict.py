"""Whose fault it is that a transaction fails, and what that costs (history.ml, domains.ml).

oxenstored remembers what guests changed while others' transactions are open. One that ends
with EAGAIN is tried before and after each of those changes: a guest whose change made the
difference loses a point of credit, and without credit its ring is not read. Points come back
one at a time, to those that wait first. Clients of the socket, and dom0, are never blamed.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import attrs

from xenpv.store.throttle import Credit
from xenpv.store.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpv.store.domain import Domain
    from xenpv.store.node import Node
    from xenpv.store.snapshot import MergeTransaction, SnapshotTree

BURST: Final = 5  # conflict-burst-limit
INTERVAL_NS: Final = 50_000_000  # conflict-max-history-seconds: of a point, and of memory
BLOCKED: Final = -1  # a domain's credit is one less than oxenstored's, which has to be positive
WORST: Final = -2
# Of what is remembered; oxenstored has no such bounds.
RECORDS_MAX: Final = 64  # requests and commits of guests
JOURNAL_MAX: Final = 4096  # changed nodes

# What was there before one change: the tree's generation then, the path, the node or None.
Before = tuple[int, bytes, "Node | None"]


@attrs.frozen
class Record:
    """What one request or commit of a guest changed: the generations before and after."""

    domain: Domain
    before: int
    after: int


class Past(Tree):
    """The store as it was at an earlier generation, to try a transaction on."""

    __slots__ = ("before", "live")

    def __init__(self, live: Tree, journal: deque[Before], generation: int) -> None:
        super().__init__(live.watches)
        self.live = live
        self.nodes = live.nodes
        self.generation = live.generation
        self.before: dict[bytes, Node | None] = {}
        for then, path, node in journal:
            if then >= generation:
                self.before.setdefault(path, node)

    def read(self, path: bytes) -> Node | None:
        if path in self.before:
            return self.before[path]
        return self.live.read(path)


class ConflictCredit(Credit):
    """Credit of all domains, and the history that tells who is to blame."""

    def __init__(self, clock: Callable[[], int] | None, tree: SnapshotTree) -> None:
        super().__init__(clock)
        self.tree = tree
        self.records: deque[Record] = deque()
        # Of the latest transaction that closed with no other open.
        self.kept: tuple[deque[Record], deque[Before] | None] = (self.records, None)
        self.open: deque[tuple[int, int, MergeTransaction]] = deque()  # since when, generation
        self.paused: deque[Domain] = deque()
        self.penalised: deque[Domain] = deque()
        self.next_ns = 0  # when the next point is due, if anybody waits for one

    # the history

    def began(self, tx: MergeTransaction) -> None:
        """A transaction starts: from now on changes are remembered, for as long as it is new."""
        if self.clock is None:
            return
        self._trim()
        self.kept = (self.records, None)
        self.open.append((self.clock(), self.tree.generation, tx))
        if self.tree.journal is None:
            self.tree.journal = deque(maxlen=JOURNAL_MAX)

    def ended(self, tx: MergeTransaction) -> None:
        """It is closed, and may be committed now: what it needs to blame somebody is kept."""
        if self.clock is None:
            return
        self.open = deque(one for one in self.open if one[2] is not tx)
        if not self.open:
            self.kept = (self.records, self.tree.journal)
            self.records, self.tree.journal = deque(), None

    def debit(self, domain: Domain, nodes: int) -> None:
        self.committed(domain, self.tree.generation - nodes)

    def committed(self, domain: Domain, generation: int) -> None:
        if self.open and generation < self.tree.generation:
            self.records.append(Record(domain, generation, self.tree.generation))
            self._trim()

    def _trim(self) -> None:
        """Forgets what is older than each of the new transactions."""
        if self.clock is None:
            return
        oldest_ns = self.clock() - INTERVAL_NS
        while self.open and self.open[0][0] < oldest_ns:
            self.open.popleft()
        records, journal = self.records, self.tree.journal
        if not self.open or journal is None:
            records.clear()
            self.tree.journal = None
            return
        since = self.open[0][1]
        while records and (records[0].after <= since or len(records) > RECORDS_MAX):
            records.popleft()
        first = records[0].before if records else self.tree.generation
        while journal and journal[0][0] < first:
            journal.popleft()

    def blame(self, tx: MergeTransaction) -> None:
        """`tx` fails: whoever made that happen pays."""
        records, journal = (self.records, self.tree.journal) if self.open else self.kept
        if journal is None:
            return
        guilty: dict[Domain, None] = {}
        for record in reversed(records):
            domain = record.domain
            if record.after <= tx.since or domain is tx.conn.domain or domain in guilty:
                continue
            if not journal or journal[0][0] > record.before:
                break  # what it changed is forgotten
            if tx.fits(Past(self.tree, journal, record.before)) and not tx.fits(
                Past(self.tree, journal, record.after)
            ):
                guilty[domain] = None
        for domain in guilty:
            self._punish(domain)

    # the credit

    def admit(self, domain: Domain) -> None:
        domain.credit = BURST + BLOCKED

    def dismiss(self, domain: Domain) -> None:
        for queue in (self.paused, self.penalised):
            if domain in queue:
                queue.remove(domain)
        self.records = deque(one for one in self.records if one.domain is not domain)

    def _punish(self, domain: Domain) -> None:
        self._give()
        before = domain.credit
        domain.credit = max(WORST, before - 1)
        if not self.paused and not self.penalised:
            self.next_ns = self._now() + INTERVAL_NS
        if before > BLOCKED >= domain.credit:
            if domain in self.penalised:
                self.penalised.remove(domain)
            if not self.paused:
                self.next_ns = self._now() + INTERVAL_NS
            self.paused.append(domain)
        elif domain.credit > BLOCKED and domain not in self.penalised:
            self.penalised.append(domain)

    def _give(self) -> None:
        """The points that are due by now."""
        now = self._now()
        while self.next_ns <= now and (self.paused or self.penalised):
            self.next_ns += INTERVAL_NS
            queue = self.paused or self.penalised
            domain = queue.popleft()
            domain.credit += 1
            if domain.credit <= BLOCKED:
                self.paused.append(domain)
            elif domain.credit < BURST + BLOCKED:
                self.penalised.append(domain)

    def blocked_ns(self, domain: Domain) -> int:
        if domain.credit > BLOCKED:
            return 0
        self._give()
        return 0 if domain.credit > BLOCKED else max(1, self.next_ns - self._now())

    def _now(self) -> int:
        return 0 if self.clock is None else self.clock()
