"""Which domid a new domain gets: a fixed one, the next free one, or any.

libxl__domain_make and the domid history of libxl_create.c and libxl_domain.c. A domid whose
domain was destroyed a moment ago is not given again: what still names it means the dead one.
"""

from __future__ import annotations

import random
from errno import EEXIST
from functools import cached_property
from typing import Final, Literal

from xenpv.abi._kernel import lib
from xenpv.errors import ConfigError, HypercallError
from xenpv.host.libxl import LIBXL, LibxlCtx, ToolstackError
from xenpv.xen.domain import Domain
from xenpv.xen.loop import NS_PER_S

DOMID_ANY: Final[int] = lib.DOMID_ANY
DOMID_FIRST_RESERVED: Final[int] = lib.DOMID_FIRST_RESERVED
REUSE_TIMEOUT_S: Final = 60  # LIBXL_DOMID_REUSE_TIMEOUT: whole seconds, inclusive
DOMID_MASK: Final = 0x7FFF
TRIES_MAX: Final = 1 << 18  # libxl tries for ever; so many picks miss a free domid of 32,751 never
RANDOM: Final = "RANDOM"

Domid = int | Literal["RANDOM"] | None


def checked(domid: Domid) -> Domid:
    """A domid as a user gave it. Raises ConfigError unless a guest may have it."""
    if domid is None or domid == RANDOM:
        return domid
    if isinstance(domid, bool) or not isinstance(domid, int):
        raise ConfigError(f'domid of {domid!r}: expected a number, None or "{RANDOM}"')
    if not 0 < domid < DOMID_FIRST_RESERVED:
        raise ConfigError(f"domid of {domid}: a guest has one of 1 to {DOMID_FIRST_RESERVED - 1}")
    return domid


class Chance:
    """A seeded generator, made when it is first needed: most worlds need none."""

    def __init__(self, seed: str) -> None:
        self.seed = seed

    @cached_property
    def generator(self) -> random.Random:
        return random.Random(self.seed)

    def uuid(self) -> str:
        """8-4-4-4-12 hexadecimal digits."""
        text = f"{self.generator.getrandbits(128):032x}"
        return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))

    def mac(self) -> bytes:
        """Xen's own prefix, then random: 00:16:3e:(r & 7f):r:r."""
        tail = self.generator.getrandbits(24)
        return bytes((0x00, 0x16, 0x3E, tail >> 16 & 0x7F, tail >> 8 & 0xFF, tail & 0xFF))


class Domids:
    """Gives domids, and remembers those that were freed in the last 60 s of virtual time."""

    def __init__(self, ctx: LibxlCtx, chance: Chance) -> None:
        self.ctx = ctx
        self._chance = chance  # the toolstack's own
        self._destroyed: dict[int, int] = {}  # domid: the second in which it was destroyed

    @property
    def _second(self) -> int:
        return self.ctx.loop.now // NS_PER_S

    def note_destroyed(self, domid: int) -> None:
        """libxl__mark_domid_recent."""
        now = self._second
        self._destroyed = {
            one: second
            for one, second in self._destroyed.items()
            if now - second <= REUSE_TIMEOUT_S and one != domid
        }
        self._destroyed[domid] = now

    def is_recent(self, domid: int) -> bool:
        """libxl__is_domid_recent."""
        second = self._destroyed.get(domid)
        return second is not None and self._second - second <= REUSE_TIMEOUT_S

    def create(self, domid: Domid, **fields: object) -> Domain:
        """XEN_DOMCTL_createdomain until the domid will do; `fields` are those of CreateDomain.

        ToolstackError: a fixed domid is taken, or recent; every domid there is.
        """
        for _ in range(TRIES_MAX):
            asked = self._asked(domid)
            domain = self._create(asked, again=domid == RANDOM, **fields)
            if domain is None:
                continue
            if not self.is_recent(domain.domid):
                return domain
            self.ctx.control.domctl.destroy_domain(domain)
            if isinstance(domid, int):
                raise ToolstackError(f"domain id {domid} recently used")
        raise ToolstackError(f"no domid is free or has rested for {REUSE_TIMEOUT_S} s")

    def _asked(self, domid: Domid) -> int:
        if domid is None:
            return DOMID_ANY
        if isinstance(domid, int):
            return domid
        while True:
            value = self._chance.generator.getrandbits(16) & DOMID_MASK
            if 0 < value < DOMID_FIRST_RESERVED:
                return value

    def _create(self, domid: int, *, again: bool, **fields: object) -> Domain | None:
        """None: a domid taken at random is in use."""
        try:
            return self.ctx.control.domctl.createdomain(domid, **fields)
        except HypercallError as error:
            if error.errno != EEXIST:
                raise
            if again:
                return None
            what = "every domid is in use" if domid == DOMID_ANY else f"domid {domid} is in use"
            raise ToolstackError(f"domain creation failed: {what}", LIBXL.FAIL) from error
