"""The write rate limit: a guest that writes without end may not starve others' transactions.

As xenstored's wrl_* functions have it: a domain's credit grows with time, each node that it
writes while some transaction is open costs one, and below zero its ring is not read. Credits
are in thousandths, so that whole milliseconds add whole numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from xenpv.store.domain import Domain

FACTOR: Final = 1_000  # WRL_FACTOR
RATE_PER_S: Final = 200 * FACTOR
DOMAIN_BURST: Final = 10 * FACTOR
RESERVE_MAX: Final = 1_000 * FACTOR
NEW_DOMAINS_DEBT: Final = 5 * DOMAIN_BURST  # what new domains may borrow of an empty reserve
COST: Final = FACTOR

NS_PER_MS: Final = 1_000_000
MS_MAX: Final = 1_000_000_000


class Credit:
    """No limit: what an implementation without one does.

    `clock` gives nanoseconds, None: nothing is limited. `transactions` is how many are open,
    of any connection: with none, a write is free.
    """

    def __init__(self, clock: Callable[[], int] | None) -> None:
        self.clock = clock
        self.transactions = 0

    def admit(self, domain: Domain) -> None:
        """A new domain."""

    def dismiss(self, domain: Domain) -> None:
        """A domain is gone."""

    def debit(self, domain: Domain, nodes: int) -> None:
        """`nodes` were written outside a transaction while one is open."""

    def committed(self, domain: Domain, generation: int) -> None:
        """A transaction is committed while another is open; before, `generation` was the tree's."""

    def blocked_ns(self, domain: Domain) -> int:
        """How long its ring is not read: 0 if it may be read now."""
        del domain
        return 0


class WriteCredit(Credit):
    """xenstored's: `domains` are those that it is for; one alone measured 200 writes a second."""

    def __init__(self, clock: Callable[[], int] | None) -> None:
        super().__init__(clock)
        self.domains = 0
        self.reserve = 0

    def admit(self, domain: Domain) -> None:
        """It starts with what the reserve, or its debt, can give."""
        self.domains += 1
        domain.credited_ms = self._now_ms()
        gift = min(self.reserve + NEW_DOMAINS_DEBT, DOMAIN_BURST)
        if gift > 0:
            self.reserve -= gift
            domain.credit = gift

    def dismiss(self, domain: Domain) -> None:
        """What it had goes to the reserve."""
        self.domains -= 1
        gift = min(domain.credit, DOMAIN_BURST - self.reserve)
        if gift > 0:
            self.reserve += gift

    def debit(self, domain: Domain, nodes: int) -> None:
        if self.clock is not None:
            self._update(domain)
            domain.credit -= nodes * COST

    def committed(self, domain: Domain, generation: int) -> None:
        del generation
        self.debit(domain, 1)

    def blocked_ns(self, domain: Domain) -> int:
        if domain.credit >= 0:
            return 0
        self._update(domain)
        if domain.credit >= 0:
            return 0
        # Whole milliseconds, rounded up: then the credit is not negative any more.
        per_ms = RATE_PER_S / 1_000 / max(1, self.domains)
        due_ms = domain.credited_ms + int(-domain.credit / per_ms) + 1
        return max(1, due_ms - domain.credited_ms) * NS_PER_MS

    def _now_ms(self) -> int:
        return 0 if self.clock is None else self.clock() // NS_PER_MS

    def _update(self, domain: Domain) -> None:
        now = self._now_ms()
        ms = min(now - domain.credited_ms, MS_MAX)
        if ms <= 0:
            return
        domain.credited_ms = now
        domain.credit += ms * RATE_PER_S // (1_000 * max(1, self.domains))
        surplus = domain.credit - DOMAIN_BURST
        if surplus > 0:
            domain.credit = DOMAIN_BURST
            self.reserve = min(self.reserve + surplus, RESERVE_MAX)
