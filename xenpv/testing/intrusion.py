"""What a scenario lets a peer do at one access of a domain: between a check and its use, or in the
window before an event index is stored.

The adversary and the schedule come to such a place among thousands of others; a scenario that is
about one place names it, and lets `Explorer.decide` say which time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from xenpv.testing.adversary import Load

KIND: int = 3  # the bits of an access' kind that tell reads (0) from writes


@attrs.define(eq=False)
class Intrusion:
    """`act` is called once: before the `left`-th access of domain `actor` to the bytes at
    `offset` of a machine frame, reads or writes as `writes` says.
    """

    actor: int
    frame: int
    offset: int
    writes: bool
    left: int
    act: Callable[[], object]

    def meets(self, actor: int, kind: int, load: Load) -> bool:
        """Whether this access is the one."""
        if (actor, load.frame, load.offset) != (self.actor, self.frame, self.offset):
            return False
        if bool(kind & KIND) is not self.writes:
            return False
        self.left -= 1
        return not self.left
